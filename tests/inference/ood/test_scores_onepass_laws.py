"""Laws of one-pass scores that need no model; and gradients, against differences by hand."""

import numpy as np
import pytest
from measure_cases import measured
from scipy.stats import kstest, skew
from test_generate_evaluate import S, data, linear_vae

from probgen import dist, nets
from probgen.engine.bind import bind
from probgen.engine.fitted import Fitted
from probgen.errors import DataError, DeclarationError
from probgen.inference.ood import batch_typicality, layer_names
from probgen.inference.ood.gradient import LayerNorms, _combiner
from probgen.inference.ood.mahalanobis import fit_gaussian
from probgen.inference.ood.moments import GuideMoments
from probgen.inference.ood.ranks import brown, copod, fisher, left_tail, right_tail
from probgen.models import VAE, likelihoods
from probgen.records.evaluation import Evaluation

# ---- ranks and combinations


def test_tails_count_the_datum_itself():
    known = np.array([1.0, 2.0, 2.0, 3.0])
    s = np.array([0.0, 2.0, 4.0, np.nan])
    np.testing.assert_allclose(right_tail(known, s), [1.0, 4 / 5, 1 / 5, np.nan])
    np.testing.assert_allclose(left_tail(known, s), [1 / 5, 4 / 5, 1.0, np.nan])


def test_copod_is_its_definition_one_by_one():
    rng = np.random.default_rng(0)
    known, x = np.exp(rng.normal(size=(30, 3))), np.exp(rng.normal(size=(8, 3)))
    known[:, 1] *= -1  # one variable skewed to the left
    x[:, 1] *= -1
    expected = []
    for row in x:
        sums = np.zeros(3)
        for j in range(3):
            u = (1 + (known[:, j] <= row[j]).sum()) / 31
            v = (1 + (known[:, j] >= row[j]).sum()) / 31
            sums -= np.log([u, v, u if skew(known[:, j]) < 0 else v])
        expected.append(sums.max())
    np.testing.assert_allclose(copod(known, x), expected, rtol=1e-12)


def test_copod_sees_only_ranks():
    rng = np.random.default_rng(1)
    known, x = np.exp(rng.normal(size=(50, 2))), np.exp(rng.normal(size=(20, 2)))
    np.testing.assert_allclose(copod(known**1.3, x**1.3), copod(known, x), rtol=1e-12)


def test_fishers_p_value_is_uniform_for_independent_tests():
    p = np.random.default_rng(0).uniform(size=(5000, 3))
    assert kstest(fisher(p)[1], "uniform").pvalue > 1e-3
    np.testing.assert_allclose(fisher(np.array([[0.3]]))[1], 0.3)  # one test is itself


def test_browns_p_value_is_uniform_for_dependent_tests_and_fishers_is_not():
    from scipy.stats import norm

    rng = np.random.default_rng(0)
    z = rng.normal(size=(40_000, 1)) * 0.8 + rng.normal(size=(40_000, 2)) * 0.6
    p = norm.sf(z)
    value = brown(p[20_000:], p[:20_000])[1]
    for level in (0.01, 0.05, 0.2):  # a scaled chi-square is an approximation of the law
        assert abs((value < level).mean() - level) < 0.15 * level + 5 * (level / 20_000) ** 0.5
    assert (fisher(p)[1] < 0.05).mean() > 0.065
    independent = rng.uniform(size=(40_000, 2))
    statistic, ours = brown(independent[:100], independent)
    np.testing.assert_allclose(ours, fisher(independent[:100])[1], atol=0.01)
    np.testing.assert_array_equal(statistic, fisher(independent[:100])[0])


# ---- typicality of batches


def test_a_batch_test_keeps_its_level_and_sees_both_directions():
    """Many references and batches of one skewed law: p-values are uniform at their low end."""
    rng = np.random.default_rng(0)
    p = np.concatenate(
        [
            batch_typicality(
                rng.gamma(3.0, size=400), rng.gamma(3.0, size=100), batch_size=20,
                num_bootstrap=400, seed=i,
            ).p_value
            for i in range(150)
        ]
    )  # fmt: skip
    # Batches of one reference share it, so the number of independent ones is nearer to 150 x 5.
    for level in (0.05, 0.2):
        assert abs((p <= level).mean() - level) < 5 * np.sqrt(level * (1 - level) / 750)
    known = rng.gamma(3.0, size=500)
    for shift in (-2.0, 2.0):
        out = batch_typicality(
            rng.gamma(3.0, size=200) + shift, known, batch_size=20, seed=0, alpha=0.01
        )
        assert out.is_rejected.all() and len(out.p_value) == 10 and "10 of 10" in repr(out)


def test_batches_are_cut_in_order_and_hold_their_means():
    rng = np.random.default_rng(0)
    known, x = rng.normal(size=200), rng.normal(size=25)
    out = batch_typicality(x, known, batch_size=10, seed=0)
    np.testing.assert_allclose(out.mean_nll, [x[:10].mean(), x[10:20].mean()])
    np.testing.assert_allclose(out.statistic, np.abs(out.mean_nll - known.mean()))
    assert out.num_left_out == 5 and out.entropy == known.mean()
    # sd of the difference of means of 10 and of 200 values, 1.96 of them at level 0.05
    width = 1.96 * known.std() * np.sqrt(1 / 10 + 1 / 200)
    assert abs(out.threshold / width - 1) < 0.1
    # As many as the reference has: its own mean is as uncertain as the batch's.
    whole = batch_typicality(rng.normal(size=200), known, batch_size=200, seed=0)
    assert abs(whole.threshold / (1.96 * known.std() * np.sqrt(2 / 200)) - 1) < 0.1
    single = batch_typicality([known.mean(), 9.0], known, batch_size=1, seed=0)
    assert single.p_value[0] == 1.0 and single.p_value[1] == 1 / 2001


def test_batch_typicality_reads_an_evaluation():
    nll = np.random.default_rng(0).normal(size=40)
    table = Evaluation.from_values(
        {"IWAE(9)": {"estimate": -nll}, "KLTerm(2)": {"estimate": 0.0 * nll}},
        units={"IWAE(9)": "nats", "KLTerm(2)": "nats"},
        larger_is_stranger={"IWAE(9)": False, "KLTerm(2)": True},
    )
    out = batch_typicality(table, table, batch_size=10, measure="IWAE(9)", seed=0)
    np.testing.assert_allclose(out.entropy, nll.mean())  # log p has its sign turned
    with pytest.raises(DataError, match="measure="):
        batch_typicality(table, table, batch_size=10, seed=0)


@pytest.mark.parametrize(
    ("x", "known", "options", "error", "words"),
    [
        ([1.0, np.nan], np.arange(50.0), {}, DataError, "nll: .* 1 values that are not finite"),
        (np.ones((3, 2)), np.arange(50.0), {}, DataError, r"shape \(3, 2\)"),
        ([], np.arange(50.0), {}, DataError, "expected"),
        ([1.0], np.arange(50.0), {"batch_size": 2}, DataError, "1 data for batches of 2"),
        ([1.0], np.ones(50), {}, DataError, "all equal"),
        ([1.0], np.arange(5.0), {}, DataError, "5 in number"),
        ([1.0], np.arange(50.0), {"seed": None}, DeclarationError, "seed=None"),
        ([1.0], np.arange(50.0), {"alpha": 1.0}, DeclarationError, "alpha=1.0"),
        ([1.0], np.arange(50.0), {"batch_size": 0}, DeclarationError, "batch_size=0"),
        ([1.0], np.arange(50.0), {"num_bootstrap": 9}, DeclarationError, "at least 20"),
    ],
)
def test_what_no_batch_test_can_be_made_of_is_refused(x, known, options, error, words):
    with pytest.raises(error, match=words):
        batch_typicality(x, known, **{"batch_size": 1, "seed": 0, **options})


# ---- Mahalanobis


def test_distances_of_the_reference_itself_sum_to_their_degrees_of_freedom():
    """sum_i d_i^2 = trace(S^-1 sum_i off off') = d (n - classes); and no linear map matters."""
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 3)), np.arange(40) % 4
    own = fit_gaussian(x, "test", labels).distances(x)[np.arange(40), labels]
    np.testing.assert_allclose(own.sum(), 3 * (40 - 4))
    turn = rng.normal(size=(3, 3))
    moved = fit_gaussian(x @ turn + 5.0, "test", labels).distances(x @ turn + 5.0)
    np.testing.assert_allclose(moved[np.arange(40), labels], own)
    spread = fit_gaussian(x, "test", shrinkage=1.0).distances(x)[:, 0]
    np.testing.assert_allclose(spread, (((x - x.mean(0)) / x.std(0, ddof=1)) ** 2).sum(1))


def test_the_code_of_a_hierarchy_needs_no_noise(backend):
    """z1 = f(x), then z2 = g(z1) at the mean of z1: linear encoders give it by hand."""
    normal, linear = likelihoods.Normal(scale=1.0), nets.MLP(hidden=(), out=(2,))
    top = VAE(
        latent=dist.Normal(0, 1).expand([1]).to_event(1), decoder=linear, likelihood=normal,
        encoder=nets.MLP(hidden=(), out=1, heads=("loc", "log_scale")),
    )  # fmt: skip
    model = VAE(
        latent=top, decoder=nets.MLP(hidden=(), out=(3,)), likelihood=normal,
        encoder=nets.MLP(hidden=(), out=2, heads=("loc", "log_scale")),
    )  # fmt: skip
    b, x = backend, data(6)
    _, drawn = bind(model, b, data={"x": x[:1]}, seed=0)
    params = b.tree_map(b.to_numpy, drawn)
    fitted = Fitted(model, params, shapes={"x": (3,)})
    one, other = (measured(fitted, b, GuideMoments(), x, seed=i) for i in range(2))
    lower, upper = params["encoder"]["out"], params["prior/encoder"]["out"]
    h = x @ lower["weight"] + lower["bias"]
    g = h[:, :2] @ upper["weight"] + upper["bias"]
    np.testing.assert_allclose(b.to_numpy(one["mean"]), np.c_[h[:, :2], g[:, :1]], atol=1e-5)
    np.testing.assert_allclose(b.to_numpy(one["sd"]), np.exp(np.c_[h[:, 2:], g[:, 1:]]), rtol=1e-4)
    np.testing.assert_array_equal(b.to_numpy(one["mean"]), b.to_numpy(other["mean"]))


# ---- gradients


def elbo_by_hand(params, x, eps):
    """ELBO of one datum of `linear_vae` in float64 for draws eps [K]."""
    h = x @ params["encoder.out.weight"] + params["encoder.out.bias"]
    z = h[0] + np.exp(h[1]) * eps
    log_q = -0.5 * eps**2 - h[1]
    off = (x - z[:, None] @ params["decoder.out.weight"] - params["decoder.out.bias"]) / S
    log_p = -0.5 * z**2 - 0.5 * (off**2).sum(1) - 3 * np.log(S)
    return (log_p - log_q).mean()


def norms_by_hand(params, x, eps):
    """|d ELBO / d theta_l|^2 by central differences."""
    found = []
    for name in sorted(params):
        total = 0.0
        for i in np.ndindex(params[name].shape):
            up, down = ({k: v.copy() for k, v in params.items()} for _ in range(2))
            up[name][i] += 1e-5
            down[name][i] -= 1e-5
            total += ((elbo_by_hand(up, x, eps) - elbo_by_hand(down, x, eps)) / 2e-5) ** 2
        found.append(total)
    return found


def test_gradient_norms_are_those_of_each_datum_alone(backend):
    b, fitted, x = backend, linear_vae(1.5), data(5)
    bound, params = fitted.bind(b, {"x": x[:1]})
    names = ["decoder.out.bias", "decoder.out.weight", "encoder.out.bias", "encoder.out.weight"]
    assert layer_names(bound, params) == names
    arrays = {n: np.float64(fitted.params[n.split(".")[0]]["out"][n.split(".")[2]]) for n in names}
    keys = b.row_keys(b.key(0), np.arange(5))
    eps = b.to_numpy(b.normal(b.split(keys, 1)[0], (5, 3, 1)))[:, :, 0]
    exact = np.array([norms_by_hand(arrays, x[i].astype(float), eps[i]) for i in range(5)])
    found = {}
    for which in ("all", "guide", "model"):  # blocks of 2, 2 and 1
        measure = LayerNorms(3, which, data_at_once=2).device_function(bound)
        out = b.compile(measure, 1, over="rows")(params, {"x": b.asarray(x)}, keys)
        found[which] = b.to_numpy(out["layers"])
    np.testing.assert_allclose(found["all"], exact, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(found["model"], exact[:, :2], rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(found["guide"], exact[:, 2:], rtol=2e-3, atol=1e-4)
    assert layer_names(bound, params, "guide") == names[2:]


def test_a_step_of_the_guide_gains_the_squared_norm():
    """First-order regret: ELBO(phi + h g) - ELBO(phi) = h |g|^2 + O(h^2)."""
    fitted, x, eps, h = linear_vae(1.5), data(1)[0].astype(float), np.array([0.3, -1.0]), 1e-6
    params = {
        f"{n}.out.{k}": np.float64(v)
        for n in fitted.params
        for k, v in fitted.params[n]["out"].items()
    }
    grads, norm = {}, 0.0
    for name in ("encoder.out.bias", "encoder.out.weight"):
        grads[name] = np.zeros_like(params[name])
        for i in np.ndindex(params[name].shape):
            up = {k: v.copy() for k, v in params.items()}
            up[name][i] += 1e-6
            grads[name][i] = (elbo_by_hand(up, x, eps) - elbo_by_hand(params, x, eps)) / 1e-6
        norm += (grads[name] ** 2).sum()
    moved = {k: v + h * grads.get(k, 0.0) for k, v in params.items()}
    gain = elbo_by_hand(moved, x, eps) - elbo_by_hand(params, x, eps)
    np.testing.assert_allclose(gain, h * norm, rtol=1e-3)
    np.testing.assert_allclose(norm, sum(norms_by_hand(params, x, eps)[2:]), rtol=1e-3)


def test_scaled_norms_have_the_mean_of_the_number_of_layers():
    """Each layer over its mean has the mean 1; a density is that of independent log-normals."""
    known = np.random.default_rng(0).gamma(2.0, size=(50, 4)) * [1.0, 10.0, 0.1, 3.0]
    np.testing.assert_allclose(_combiner("fisher", known, "test")(known).mean(), 4.0)
    np.testing.assert_allclose(_combiner("norm", None, "test")(known), known.sum(1))
    logs = np.log(known)
    law = -0.5 * ((logs - logs.mean(0)) / logs.std(0, ddof=1)) ** 2
    law = law - np.log(logs.std(0, ddof=1) * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(_combiner("density", known, "test")(known), -law.sum(1))
    dead = np.concatenate([known, np.zeros((50, 1))], axis=1)  # a layer at which nothing pulls
    for method in ("fisher", "density"):
        got = _combiner(method, dead, "test")(dead)
        np.testing.assert_allclose(got, _combiner(method, known, "test")(known))
    with pytest.raises(DataError, match="no reference datum has a gradient"):
        _combiner("fisher", np.zeros((20, 2)), "test")
