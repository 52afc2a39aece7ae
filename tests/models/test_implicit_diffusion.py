"""A diffusion whose reverse step is a generator: its chain, pairs and constants by hand."""

import dataclasses
import time

import numpy as np
import pytest
from at_once import terms_of
from compilations import Compilations
from fit_cases import assert_same_bits, quick
from floats import float64

import probgen as pg
from probgen import nets
from probgen.backends import load
from probgen.engine.bind import bind
from probgen.errors import AlgorithmError, SaveError, ShapeError, SupportError
from probgen.inference import ELBO, Adversarial
from probgen.models import ImplicitDiffusion, NoiseSchedule
from probgen.trees import tree_leaves

# beta, alpha_bar, v, c0, ct of t = 1 ... 4: the discretised VP-SDE of the paper's code.
FOUR = np.array([
    [0.4783, 0.8492, 0.9564, 0.9874],
    [0.5217, 0.0787, 0.0034, 4.30e-5],
    [0.0, 0.4408, 0.8842, 0.9841],
    [1.0, 0.6658, 0.2692, 0.0578],
    [0.0, 0.2016, 0.1930, 0.1119],
])  # fmt: skip
X = np.random.default_rng(0).normal(size=(32, 2)).astype("f")
D = nets.TimedDiscriminator((8,), 4)


def schedule(total=4):
    return NoiseSchedule(total, "vp_sde")


def small(total=4, latent_dim=3):
    return ImplicitDiffusion(nets.LatentDenoiser(2, (8,), 4), (2,), latent_dim, schedule(total))


@pytest.fixture(scope="module")
def b(backend_name):
    return quick(backend_name)


def fit(b, model, learner, num_steps, **options):
    options = {"batch_size": 8, "seed": 0, "backend": b, "progress_bar": False, **options}
    return pg.fit(model, X, learner, num_steps=num_steps, **options)


# ---- coefficients ----


def test_four_steps_have_the_numbers_of_the_paper():
    model = small()
    found = model.coefficients()
    table = np.stack([
        model.schedule.betas(), model.schedule.alphas_bar(), found["std"] ** 2, found["of_x0"],
        found["of_xt"],
    ])  # fmt: skip
    np.testing.assert_allclose(table, FOUR, rtol=2e-3, atol=1e-4)


def test_two_and_eight_steps_too():
    two, eight = small(2).coefficients(), small(8).coefficients()
    found = [two[k][1] for k in ("of_x0", "of_xt")] + [two["std"][1] ** 2]
    np.testing.assert_allclose(found, [0.2804, 0.0216, 0.9209], atol=1e-4)
    v = [0, 0.1248, 0.3424, 0.5531, 0.7103, 0.8083, 0.8663, 0.9035]
    np.testing.assert_allclose(eight["std"] ** 2, v, atol=1e-4)


@pytest.mark.parametrize("total", [1, 2, 4, 8])
def test_the_posterior_is_that_of_the_forward_process(total):
    """Integrated over q(x_t | x_0) it is q(x_{t-1} | x_0); its last step is exactly x_0."""
    model = small(total)
    k, bar = model.coefficients(), model.schedule.alphas_bar()
    before = np.concatenate([[1.0], bar[:-1]])
    np.testing.assert_allclose(k["of_x0"] + k["of_xt"] * np.sqrt(bar), np.sqrt(before), atol=1e-12)
    spread = k["of_xt"] ** 2 * (1 - bar) + k["std"] ** 2
    np.testing.assert_allclose(spread, 1 - before, atol=1e-12)
    assert (k["of_x0"][0], k["of_xt"][0], k["std"][0]) == (1.0, 0.0, 0.0)


# ---- pairs ----


class Known:
    """G = 1 everywhere, whatever it gets."""

    def init(self, key, *shapes):
        return {"value": np.float32(1.0)}

    def apply(self, params, x, *rest):
        return x * 0.0 + params["value"]


def test_pairs_have_the_joint_law_of_the_forward_process(b):
    """Given x_0 = 1: means, variances and correlation of (x_{t-1}, x_t), each within 5 standard
    errors; with the true x_0 for a guess the fake has the law of the real one."""
    n = 40_000
    model = ImplicitDiffusion(Known(), (1,), 1, schedule())
    bound, params = bind(model, b, data={"x": np.ones((2, 1), "f")})
    make = b.compile(model.pairs(bound))
    pairs = b.tree_map(b.to_numpy, make(params, {"x": b.asarray(np.ones((n, 1), "f"))}, b.key(0)))
    bar = model.schedule.alphas_bar()
    for t, before in enumerate([1.0, *bar[:-1]]):
        rows = pairs.labels[0] == t
        m = rows.sum()
        assert abs(m - n / 4) < 5 * np.sqrt(n * 3 / 16)
        real, fake, x_t = (v[rows, 0] for v in (pairs.real, pairs.fake, pairs.given[0]))
        for x, a in ((real, before), (fake, before), (x_t, bar[t])):
            assert abs(x.mean() - np.sqrt(a)) <= 5 * np.sqrt((1 - a) / m) + 1e-6
            assert abs(x.var() - (1 - a)) <= 5 * (1 - a) * np.sqrt(2 / m) + 1e-6
        if t:
            rho = np.sqrt((bar[t] / before) * (1 - before) / (1 - bar[t]))
            for x in (real, fake):
                assert abs(np.corrcoef(x, x_t)[0, 1] - rho) < 5 * (1 - rho**2) / np.sqrt(m)
        beta = model.schedule.betas()[t]
        strain = (x_t - np.sqrt(1 - beta) * fake) ** 2 / (2 * beta)
        np.testing.assert_allclose(pairs.strain[rows], strain, rtol=1e-3, atol=1e-4)


class Tilted:
    """Logits whose slope in x_{t-1} is (3, 4) and in x_t a hundred times that."""

    def init(self, key, *shapes):
        return {"a": np.float32([3.0, 4.0])}

    def apply(self, params, x, *rest):
        return (x * params["a"]).sum(-1) + 100.0 * sum((r * params["a"]).sum(-1) for r in rest[:-1])

    def out_shape(self, *shapes):
        return ()


def test_r1_is_of_the_right_argument_alone(b):
    still = pg.SGD(1e-30)
    history = fit(b, small(), Adversarial(Tilted(), still, still, r1=2.0), 1).history
    np.testing.assert_allclose(history["r1"], 25.0, rtol=1e-5)


class Blind:
    """No opinion; how many inputs it was made for is a parameter."""

    def init(self, key, *shapes):
        return {"inputs": np.float32(len(shapes))}

    def apply(self, params, x, *rest):
        return (x * 0.0).sum(-1) * params["inputs"]

    def out_shape(self, *shapes):
        return ()


def test_by_marginals_the_discriminator_lacks_x_t_and_the_strain_joins_the_loss(b):
    """Wasserstein with D = 0: the loss is its weight times the strain; D gets x_{t-1} and t'."""
    learner = Adversarial(Blind(), loss="wasserstein", consistency=0.5)
    fitted = fit(b, small(), learner, 1)
    np.testing.assert_allclose(fitted.history["loss"], 0.5 * fitted.history["strain"], rtol=1e-5)
    assert fitted.history["strain"][0] > 0 and fitted.extras["discriminator"]["inputs"] == 2


# ---- the chain ----


def test_the_program_ends_in_the_generators_output(b):
    """With noise given, site by site: x_{t-1} by its posterior, and x = G(x_1, z_1, 0) itself."""
    model = small()
    bound, params = bind(model, b, data={"x": X[:5]})
    rng = np.random.default_rng(1)
    noise = {f"x_{t}": rng.normal(size=(5, 2)).astype("f") for t in (4, 3, 2, 1)}
    noise |= {f"z_{t}": rng.normal(size=(5, 3)).astype("f") for t in (4, 3, 2, 1)}
    given = {n: b.asarray(v) for n, v in noise.items()}
    options = {"noise": given, "key": b.key(0), "batch_size": 5, "condition": False}
    sites = terms_of(b, bound.trace, params, {}, **options)
    guessed = b.compile(model.guess)
    x = noise["x_4"]
    k = model.coefficients()
    for t in (4, 3, 2, 1):
        z, step = given[f"z_{t}"], b.asarray(np.full(5, t - 1.0))
        guess = b.to_numpy(guessed(params, b.asarray(x), z, step))
        if t == 1:
            np.testing.assert_allclose(sites["x"][0], guess, rtol=1e-6, atol=1e-6)
            continue
        x = (
            k["of_x0"][t - 1] * guess
            + k["of_xt"][t - 1] * x
            + k["std"][t - 1] * noise[f"x_{t - 1}"]
        )
        np.testing.assert_allclose(sites[f"x_{t - 1}"][0], x, rtol=1e-5, atol=1e-6)


class Counting:
    """x_0 guessed as x_t + 1: the calls that a draw took can be read off it."""

    calls = 0

    def init(self, key, *shapes):
        return {"value": np.float32(1.0)}

    def apply(self, params, x, *rest):
        Counting.calls += 1
        return x + params["value"]


def test_a_draw_takes_as_many_calls_as_there_are_steps(b):
    """E x of x_{t-1} = (c0 + ct) x_t + c0, from E x_T = 0, T times and no more."""
    model = ImplicitDiffusion(Counting(), (1,), 0, schedule())
    fitted = pg.Fitted(model, {"generator": {"value": np.float32(1.0)}}, shapes={"x": (1,)})
    k, mean, var = model.coefficients(), 0.0, 1.0
    for t in (3, 2, 1, 0):
        slope = k["of_x0"][t] + k["of_xt"][t]
        mean, var = slope * mean + k["of_x0"][t], slope**2 * var + k["std"][t] ** 2
    Counting.calls = 0
    x = pg.generate(fitted, 20_000, seed=0, chunk_size=20_000, backend=b)["x"]
    assert abs(x.mean() - mean) < 5 * np.sqrt(var / len(x))
    assert abs(x.var() - var) < 5 * var * np.sqrt(2 / len(x))
    # Binding runs the program once; the loop is T calls, or one that is traced.
    assert Counting.calls - 2 * 4 <= 4


# Each part of a step is held to its formula on both: pairs, strain and chain here, losses, R1 and
# both players' gradients in `test_adversarial.py`.
@pytest.mark.repeated("test_adversarial.py::test_each_player_moves_by_its_own_gradient_alone")
def test_torch_and_jax_give_the_same_losses_steps_and_samples(same_noise):
    learner = Adversarial(D, r1=0.1, r1_every=2, consistency=0.5)
    learner = dataclasses.replace(
        learner, optimizer=pg.SGD(0.1), discriminator_optimizer=pg.SGD(0.1)
    )
    found = []
    for name in ("torch", "jax"):
        at = load(name, "cpu", **({"compile": "graph"} if name == "torch" else {}))
        fitted = fit(at, small(), learner, 3)
        drawn = pg.generate(fitted, 50, seed=1, backend=at)["x"]
        found.append((fitted, drawn))
    (one, x), (two, y) = found
    for name in one.history:
        np.testing.assert_allclose(one.history[name], two.history[name], rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


# ---- verbs ----


def test_it_is_fitted_kept_and_drawn_from_and_goes_on_to_the_bit(b, tmp_path):
    learner, options = Adversarial(D, r1=0.1, r1_every=2), dict(ema_decay=0.9, checkpoint_every=2)
    fit(b, small(), learner, 2, checkpoint=tmp_path / "c", **options)
    with Compilations(b.name) as seen:
        resumed = fit(b, small(), learner, 4, checkpoint=tmp_path / "c", **options)
    assert not seen.names
    whole = fit(b, small(), learner, 4, **options)
    assert_same_bits([whole.params, whole.extras], [resumed.params, resumed.extras])
    raw, mean = (f.params["generator"]["mlp"]["out"]["weight"] for f in (whole.raw, whole))
    assert np.abs(raw - mean).max() > 0
    whole.save_pretrained(tmp_path / "m")
    kept = pg.Fitted.from_pretrained(tmp_path / "m")
    draws = [pg.generate(f, 4, seed=3, backend=b)["x"] for f in (whole, kept)]
    np.testing.assert_array_equal(*draws)
    with pytest.raises(SaveError, match="model"):
        fit(b, small(2), learner, 4, checkpoint=tmp_path / "c", **options)
    with pytest.raises(AlgorithmError, match=r"\['x'\] have no density under"):
        pg.evaluate(kept, X, [ELBO()], seed=0, backend=b)


def test_a_long_chain_is_bound_by_a_sketch_of_it_within_a_second(backend_name):
    b = quick(backend_name)
    bind(small(10, 2), b, data={"x": X})  # imports, and what is compiled once
    began = time.process_time()
    _, params = bind(small(1000, 2), b, data={"x": X})
    assert time.process_time() - began < 1.0
    assert params["generator"]["mlp"]["layer0"]["weight"].shape == (2 + 2 + 4, 8)


def test_what_does_not_fit_is_refused(backend_name):
    b = quick(backend_name)
    slow = dataclasses.replace(small(), schedule=NoiseSchedule(4))
    with pytest.raises(AlgorithmError, match="a share of 0.96 of a datum's variance is left"):
        fit(b, slow, Adversarial(D), 1)
    wide = dataclasses.replace(small(), generator=nets.LatentDenoiser(3, (8,), 4))
    with pytest.raises(ShapeError, match=r"output for data of shape \(2,\) has the shape \(1, 3\)"):
        fit(b, wide, Adversarial(D), 1)
    bounded = dataclasses.replace(small(), data_range=(-1.0, 1.0))
    with pytest.raises(SupportError, match="declared data_range, -1 to 1"):
        fit(b, bounded, Adversarial(D), 1)


def test_it_is_trained_in_float64_too(b):
    """Its steps are integers, which as times are of the running kind."""
    with float64(b):
        found = fit(b, small(), Adversarial(D), 1)
    assert {x.dtype for x in tree_leaves(found.params)} == {np.dtype("float64")}
