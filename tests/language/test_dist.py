"""Distributions: every class of the table against scipy, on both backends.

Law: for the declared arguments, log densities are scipy's, supports hold the same points on both
backends, and moments of draws are scipy's within 5 s.e. The arguments are numbers of the program
here; in `test_dist_edges.py` they are its arguments, with gradients.
"""

import inspect
import math

import numpy as np
import pytest
import scipy.special as sp
import scipy.stats as st
from at_once import at_once, terms_of
from dist_cases import CASES, DISCRETE_INDEX, JAX_ONLY, SIMPLEX, TORCH_ONLY

import probgen as pg
from probgen import backends, dist
from probgen.engine.bind import bind
from probgen.errors import BackendError, DeclarationError, UnknownName
from probgen.language.dist import SIGNATURES, Family, signature

NUM_DRAWS = 20_000
# Inside (-pi, pi), where torch's von Mises has its support as well as NumPyro's.
PROBES = np.array([-3.0, -2.0, -1.0, -0.25, 0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0])


def program_of(declared):
    def program():
        with pg.data_plate():
            pg.sample("x", declared)

    return program


def log_prob(backend, declared, values, as_integer: bool = False) -> np.ndarray:
    """[n] log-probabilities of values [n, *event]."""
    given = backend.asarray(values, "int32" if as_integer else "float32")

    def run(given):
        sites = backend.trace(program_of(declared), {}, values={"x": given}, batch_size=len(values))
        return sites["x"].log_prob

    return at_once(backend, run, given)


def test_every_distribution_is_in_one_of_the_tables():
    """A new name in SIGNATURES must bring its case."""
    own = {"DiscretizedLogistic", "Unit"}  # below, and `pg.factor`
    own |= {"Density", "ImproperUniform", "Transformed"}  # `test_written_distributions.py`
    assert set(CASES) | set(TORCH_ONLY) | set(JAX_ONLY) | own == set(SIGNATURES)


SEEN: dict[tuple, dict] = {}


def seen(b, name):
    """`NUM_DRAWS` draws, their log densities, whether they and `PROBES` lie in the support; and the
    log densities of the case's values: one program on JAX."""
    if (b.name, name) in SEEN:
        return SEEN[b.name, name]
    case, is_discrete = CASES[name], []
    count = NUM_DRAWS if case.moments is not None else 200

    def run(key, probes, values):
        program = program_of(Family(name)(**case.arguments))
        site = b.trace(program, {}, key=key, batch_size=count)["x"]
        given = b.trace(program, {}, values={"x": values}, batch_size=len(case.values))["x"]
        is_discrete.append(b.is_discrete(site.fn))
        return {
            "draws": site.value,
            "log_prob_of_draws": site.log_prob,
            "log_prob": given.log_prob,
            "inside": b.in_support(site.fn, site.value),
            "probes": None if case.event_ndim else b.in_support(site.fn, probes)[:, 0],
        }

    values = b.asarray(case.values, "int32" if name in DISCRETE_INDEX else "float32")
    found = at_once(b, run, b.key(7), b.asarray(PROBES.astype(np.float32)[:, None]), values)
    return SEEN.setdefault((b.name, name), {**found, "is_discrete": is_discrete[0]})


@pytest.fixture(scope="module")
def named(request):
    """The name of a family: tests of one come one after another, and share its program."""
    return request.param


def of_families(names):
    return pytest.mark.parametrize("named", list(names), indirect=True)


@of_families(n for n, c in CASES.items() if c.moments is not None)
def test_moments_of_draws_are_those_of_scipy(backend, named):
    """Mean and variance within 5 standard errors, s.e. of the variance by the fourth moment."""
    case = CASES[named]
    x = seen(backend, named)["draws"].astype(np.float64)
    mean, var = (np.asarray(m, float) for m in case.moments)
    np.testing.assert_array_less(abs(x.mean(0) - mean), 5 * np.sqrt(var / NUM_DRAWS) + 1e-6)
    squares = (x - mean) ** 2
    se = squares.std(0) / math.sqrt(NUM_DRAWS)
    np.testing.assert_array_less(abs(squares.mean(0) - var), 5 * se + 1e-5)


@of_families(n for n in CASES if n != "Delta")
def test_draws_lie_in_the_support(backend, named):
    found = seen(backend, named)
    assert found["inside"].all() and np.isfinite(found["log_prob_of_draws"]).all()


@of_families(CASES)
def test_log_densities_are_scipys_for_arguments_written_as_numbers(backend, named):
    case, got = CASES[named], seen(backend, named)["log_prob"]
    np.testing.assert_allclose(got, case.log_prob(case.values), rtol=2e-5, atol=2e-5)


# Among the tests of JAX, whose programs the others compile too.
@pytest.mark.parametrize("backend_name", ["jax"], indirect=True)
@of_families(n for n, c in CASES.items() if c.event_ndim == 0)
def test_supports_hold_the_same_points_on_both_backends(backend, named):
    """Probed at points rather than by name, which the libraries spell differently."""
    if not backends.available()["torch"]:
        pytest.skip("torch is not installed: support is compared between the two")
    both = [seen(b, named) for b in (backends.load("torch", "cpu"), backend)]
    answers, kinds = ([found[what] for found in both] for what in ("probes", "is_discrete"))
    # Whether an end point with no mass belongs to the support, the libraries do not agree.
    lowest, on_edge = CASES[named].values.min(), np.zeros(len(PROBES), bool)
    if not kinds[0]:
        on_edge = (PROBES == 0.0) & (lowest > 0) | (PROBES == 1.5) & (named == "Pareto")
    np.testing.assert_array_equal(answers[0][~on_edge], answers[1][~on_edge])
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize("name", [n for n in CASES if 0.0 in signature(n).values()])
def test_defaults_are_those_of_the_table(backend, name):
    """Arguments left out get the table's default, on either backend."""
    known = signature(name)
    needed = {k: CASES[name].arguments[k] for k, v in known.items() if v is ...}
    defaults = {k: v for k, v in known.items() if v is not None and v is not ...}
    values = CASES[name].values if name != "Delta" else np.zeros(2)
    short = log_prob(backend, Family(name)(**needed), values)
    np.testing.assert_array_equal(
        short, log_prob(backend, Family(name)(**needed, **defaults), values)
    )


@pytest.mark.parametrize(
    "name, probability", [("Bernoulli", 0.3), ("Geometric", 0.3), ("Binomial", 0.3),
                          ("NegativeBinomial", 0.3), ("Categorical", SIMPLEX),
                          ("Multinomial", SIMPLEX), ("RelaxedBernoulli", np.array(0.3))],
)  # fmt: skip
def test_logits_and_probs_are_one_distribution(backend, name, probability):
    case = CASES[name]
    rest = {k: v for k, v in case.arguments.items() if k not in ("probs", "logits")}
    is_vector = np.ndim(probability) > 0
    logit = np.log(probability) if is_vector else sp.logit(probability)
    as_integer = name in DISCRETE_INDEX
    by_probs = log_prob(backend, Family(name)(**rest, probs=probability), case.values, as_integer)
    by_logits = log_prob(backend, Family(name)(**rest, logits=logit), case.values, as_integer)
    np.testing.assert_allclose(by_probs, by_logits, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", [*TORCH_ONLY, *JAX_ONLY])
def test_a_distribution_of_one_backend_runs_there_and_is_refused_by_the_other(backend, name):
    home = "torch" if name in TORCH_ONLY else "jax"
    declared = Family(name)(**{**TORCH_ONLY, **JAX_ONLY}[name])
    if backend.name == home:
        bound, _ = bind(pg.model(program_of(declared)), backend)
        assert list(bound.structure.sites) == ["x"]
        drawn = {"key": backend.key(0), "batch_size": 4}
        value, log_prob = terms_of(backend, backend.trace, program_of(declared), {}, **drawn)["x"]
        assert value.shape[0] == 4 and np.isfinite(value).all() and np.isfinite(log_prob).all()
        return
    with pytest.raises(BackendError, match=rf'dist\.{name}.*only.*backend="{home}"'):
        backend.trace(program_of(declared), {}, key=backend.key(0), batch_size=4)


def test_a_misspelt_argument_is_refused_where_it_is_written():
    with pytest.raises(UnknownName, match=r"dist\.Normal.*'scal'.*did you mean 'scale'"):
        dist.Normal(0.0, scal=1.0)
    with pytest.raises(DeclarationError, match="no rate"):
        dist.Poisson()
    with pytest.raises(DeclarationError, match="'loc' is given twice"):
        dist.Normal(0.0, loc=1.0)
    with pytest.raises(DeclarationError, match="got 3 positional arguments, expected at most 2"):
        dist.Normal(0.0, 1.0, 2.0)


def test_a_misspelt_distribution_is_refused_with_a_hint():
    with pytest.raises(AttributeError, match="did you mean 'Normal'"):
        _ = dist.Norml


def test_arguments_that_do_not_fit_each_other_name_the_site(backend):
    with pytest.raises(DeclarationError, match=r"site 'x'.*cannot be built"):
        log_prob(backend, dist.Normal(np.zeros(3), np.ones(4)), np.zeros((2, 3)))


def test_a_mask_makes_a_term_count_nothing(backend):
    keep = backend.asarray(np.array([True, False, True]))
    got = log_prob(backend, dist.Normal(0.0, 1.0).mask(keep), np.array([0.5, 0.5, -1.0]))
    np.testing.assert_allclose(got, st.norm.logpdf([0.5, 0.5, -1.0]) * [1, 0, 1], rtol=1e-6)


def test_positional_arguments_stand_in_numpyros_order():
    """What people write by position, `dist.Gumbel(0.5, 2.0)`, means what it means there."""
    numpyro_dist = pytest.importorskip("numpyro.distributions", reason="numpyro is not installed")
    spelled = {"dimension": "dim"}
    for name in CASES:
        found = getattr(numpyro_dist, name)
        theirs = [spelled.get(k, k) for k in inspect.signature(found).parameters]
        ours = list(signature(name))
        if name != "ZeroInflatedPoisson":  # Pyro has the rate first, NumPyro the gate
            assert [k for k in theirs if k in ours] == ours, name
