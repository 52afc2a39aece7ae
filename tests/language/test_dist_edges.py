"""Densities at edges of supports, in tails, with large counts and parameters; and their arguments.

Law: at every value the log density is scipy's: -inf outside the support and where the density is 0.
Its gradient by the arguments is scipy's by finite differences. A family joins with one line in
`dist_instances.py`.
"""

import numpy as np
import pytest
import scipy.stats as st
from dist_cases import CASES
from dist_instances import INSTANCES

import probgen as pg
from probgen import dist
from probgen.language import densities
from probgen.language.dist import SIGNATURES, Family

IDS = [f"{i}-{each.family}" for i, each in enumerate(INSTANCES)]
# What has no edge, and tails that say no more than test_dist.py does.
ELSEWHERE = {"DiscretizedLogistic", "LKJ", "LKJCholesky", "Stable", "Unit"}
ELSEWHERE |= {"Density", "ImproperUniform", "Transformed"}  # `test_written_distributions.py`
CLASSES = {"Categorical", "OrderedLogistic"}


def _rounded(x):
    """As float32 holds it, in float64."""
    return np.asarray(x, np.float32).astype(np.float64)


def _round_all(arguments):
    return {
        k: v
        if isinstance(v, int | dist.Deferred)
        else _rounded(v)
        if np.ndim(v)
        else float(_rounded(v))
        for k, v in arguments.items()
    }


NUM_VALUES = 20  # as many for each, so that instances of a family share a program
RUNS: dict[tuple, object] = {}


def _density(b, family, arguments, values):
    """(log densities [n], their gradients by argument where they are finite and kept).

    One program serves all instances of a family on JAX: numbers and values are its arguments.
    """
    learned = {
        k: b.asarray(np.asarray(v, np.float32))
        for k, v in arguments.items()
        if isinstance(v, float | np.ndarray) and k not in ("low", "high")
    }
    counts = {
        k: b.asarray(np.float32(v))
        for k, v in arguments.items()
        if k == "total_count" and k not in learned and family != "Multinomial"
    }
    rest = {k: v for k, v in arguments.items() if k not in {**learned, **counts}}
    rows = np.minimum(np.arange(NUM_VALUES), len(values) - 1)
    given = b.asarray(values[rows], "int32" if family in CLASSES else "float32")
    once = b.asarray((np.arange(NUM_VALUES) < len(values)).astype(np.float32))
    names = tuple(sorted((k, tuple(v.shape)) for k, v in learned.items()))

    def both(learned, given, once, counts):
        def program():
            with pg.data_plate():
                pg.sample("x", Family(family)(**learned, **counts, **rest))

        sites = b.trace(program, {}, values={"x": given}, batch_size=NUM_VALUES)
        found = sites["x"].log_prob
        counted = b.ops.where(b.ops.isfinite(found), found, 0.0) * once
        return b.ops.sum(counted), found

    def without(learned, given, once, counts):
        return (0.0, both({}, given, once, counts)[1]), {}

    key = (b.name, family, names, str(rest))
    if key not in RUNS:
        RUNS[key] = b.compile(b.value_and_grad(both, has_aux=True) if learned else without, 1)
    (_, found), gradients = RUNS[key](learned, given, once, counts)
    found = b.to_numpy(found)[: len(values)]
    return found, {k: b.to_numpy(v) for k, v in gradients.items()}


def _has(b, family):
    return (family not in ONLY) or ONLY[family] == b.name


ONLY = {
    **dict.fromkeys(["AffineBeta", "ContinuousBernoulli", "FisherSnedecor"], "torch"),
    "OneHotCategorical": "torch",
    **dict.fromkeys(["BetaProportion", "DiscreteUniform", "Gompertz", "TruncatedNormal"], "jax"),
}


def test_every_distribution_has_an_instance_here():
    assert {each.family for each in INSTANCES} | ELSEWHERE == set(SIGNATURES)


@pytest.mark.parametrize("instance", INSTANCES, ids=IDS)
def test_log_densities_are_scipys_at_edges_in_tails_and_for_large_parameters(b, instance):
    """Within 0.01 nats plus 2e-6 of the number, which float32 rounds to 1.2e-7; gradients too."""
    family, arguments = instance.family, _round_all(instance.arguments)
    if not _has(b, family):
        pytest.skip(f"{family} is not a distribution of {b.name}")
    values = _rounded(instance.values)
    with np.errstate(all="ignore"):
        want = np.asarray(instance.reference(**arguments)(values))
    got, gradients = _density(b, family, arguments, values)
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want))
    np.testing.assert_array_equal(got[~np.isfinite(want)], want[~np.isfinite(want)])
    finite = np.isfinite(want)
    np.testing.assert_allclose(got[finite], want[finite], rtol=2e-6, atol=0.01)
    if family in densities.TABLE and want.max() < 0:
        assert got.max() <= 0 or not b_is_mass(family)
    for name, gradient in gradients.items():
        _compare_gradient(instance, arguments, name, gradient, values, finite)


@pytest.mark.parametrize("name", CASES)
def test_log_densities_are_scipys_to_five_digits(b, name):
    case = CASES[name]
    values = np.asarray(case.values)[:NUM_VALUES]
    got, _ = _density(b, name, case.arguments, values)
    np.testing.assert_allclose(got, case.log_prob(values), rtol=2e-5, atol=2e-5)


MOVES_THE_SUPPORT = {("AffineBeta", "loc"), ("AffineBeta", "scale"), ("Pareto", "scale")}


def b_is_mass(family):
    return family in {"Binomial", "Poisson", "NegativeBinomial", "BetaBinomial", "GammaPoisson"}


def _compare_gradient(instance, arguments, name, got, values, finite):
    """Central differences of the reference; none where an argument is at an edge of its domain."""
    value = np.asarray(arguments[name], float)
    if (
        value.ndim
        or name == "v"
        or (name in ("probs", "gate") and value in (0.0, 1.0))
        or value == 0
    ):
        return
    # At an edge of the support the density may jump with the argument.
    jumps = name.startswith(("concentration", "df", "temperature")) and value in (1.0, 2.0)
    if jumps or (instance.family, name) in MOVES_THE_SUPPORT:
        return
    step = 1e-5 * abs(value)
    with np.errstate(all="ignore"):
        up, down = (
            np.asarray(instance.reference(**{**arguments, name: float(value + s)})(values))[finite]
            for s in (step, -step)
        )
    want = (up - down) / (2 * step)
    size = np.abs(want).sum() + 1.0 / max(abs(value), 1.0)
    np.testing.assert_allclose(got, want.sum(), atol=2e-3 * size + 1e-5, err_msg=name)


MORE = [
    pytest.param(bounds, marks=pytest.mark.repeated(
        "test_draws_of_a_truncated_normal_stay_inside_and_have_its_distribution"
    )) for bounds in ((-1.0, 1.0), (-0.5, 40.0))
]  # fmt: skip


@pytest.mark.parametrize("bounds", [(8.0, np.inf), (-np.inf, -30.0), (20.0, 20.5), *MORE])
def test_draws_of_a_truncated_normal_stay_inside_and_have_its_distribution(b, bounds):
    """Kolmogorov-Smirnov's distance of 4,000 draws from scipy's law; 2.5 / sqrt(n) is a level of
    1e-5. NumPyro's own draws leave the bounds far out."""
    if b.name != "jax":
        pytest.skip("TruncatedNormal is a distribution of JAX")
    ends = {k: v for k, v in zip(("low", "high"), bounds, strict=True) if np.isfinite(v)}

    def program():
        with pg.data_plate():
            pg.sample("x", dist.TruncatedNormal(0.0, 1.0, **ends))

    site = b.trace(program, {}, key=b.key(3), batch_size=4000)["x"]
    x = np.sort(b.to_numpy(site.value).astype(np.float64))
    assert x[0] >= bounds[0] and x[-1] <= bounds[1]
    assert np.isfinite(b.to_numpy(site.log_prob)).all()
    cdf = st.truncnorm(*bounds).cdf(x)
    rank = np.arange(1, len(x) + 1) / len(x)
    assert abs(cdf - rank).max() < 2.5 / np.sqrt(len(x)) + 1 / len(x)
    mean = float(np.mean(b.to_numpy(b.mean(site.fn))))
    want, sd = st.truncnorm(*bounds).mean(), st.truncnorm(*bounds).std()
    assert abs(mean - want) < 1e-3 * sd + 1e-5 * abs(want)
