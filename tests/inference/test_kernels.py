"""Kernels keep their target, and a biased one shows the bias that theory says."""

import numpy as np
import pytest

from probgen.engine.markov import judged
from probgen.engine.spaces import model_target
from probgen.engine.target import Target, climb, run_chain
from probgen.errors import AlgorithmError, DeclarationError, ShapeError
from probgen.inference import HMC, NUTS, GradientFlow, Langevin
from probgen.inference.sample.hamiltonian import normals
from probgen.inference.sample.langevin import clip


def target(log_density=None, drift=None, names=("x",)):
    return Target(
        names, init=None, log_density=log_density, drift=drift,
        values=lambda x, *args: dict(x), is_normalized=False,
    )  # fmt: skip


def ends(backend, declared, log_density, start, seed=0, drift=None):
    """Positions after the declared number of steps, one per chain, and each step's statistics."""
    kernel = declared.kernel(backend, target(log_density, drift), num_calls=1)

    def run(x, key):
        state, info = run_chain(
            backend, kernel, x, key, declared.num_warmup + declared.num_draws,
            keep=lambda state, info: judged(backend.ops, info, state.x),
        )  # fmt: skip
        return state.x, info

    x, info = backend.compile(run, over="steps")({"x": backend.asarray(start)}, backend.key(seed))
    return backend.to_numpy(x["x"]), {k: backend.to_numpy(v) for k, v in info.items()}


def skewed(ops):
    """Gumbel: log p(x) = -x - exp(-x), mean 0.5772, variance pi^2 / 6; a flipped sign shows."""
    return lambda x: (-x["x"] - ops.exp(-x["x"]))[:, 0]


def within(values, mean, num_errors=5.0):
    error = values.std() / np.sqrt(len(values))
    assert abs(values.mean() - mean) < num_errors * error, (values.mean(), mean, error)


WARM = pytest.param(
    1.0, marks=pytest.mark.repeated("test_without_the_test_the_variance_is_what_theory_says")
)


@pytest.mark.parametrize("heat", [WARM, 0.25])
def test_without_the_test_the_variance_is_what_theory_says(backend, heat):
    """On x^2 / 2 it is T / (1 - h / 2); 50,000 chains see a bias of 33 % at 40 s.e."""
    h, variance = 0.5, heat / (1.0 - 0.25)
    start = variance**0.5 * np.random.default_rng(1).normal(size=(50_000, 1))
    declared = Langevin(h, 20, noise_size=(2.0 * h * heat) ** 0.5)
    assert declared.temperature == pytest.approx(heat)
    square = lambda x: -0.5 * (x["x"] ** 2)[:, 0]  # noqa: E731
    x, _ = ends(backend, declared, square, start.astype(np.float32))
    within(x[:, 0], 0.0)
    within(x[:, 0] ** 2, variance)


# x_0 Gumbel, x_1 | x_0 ~ N(x_0^2 / 2, 1 / 4): bent and skewed, and its powers can be drawn from.
NARROW = {"preconditioner": np.float32([5.0, 0.7]), "max_grad_norm": 3.0, "max_grad_value": 2.0}
EXACT = {
    "MALA": Langevin(0.1, 12, metropolis=True),
    "tempered": Langevin(0.1, 12, noise_size=0.1**0.5, metropolis=True),
    "clipped": Langevin(0.1, 12, metropolis=True, **NARROW),
    "learned": Langevin(2.0, 12, metropolis=True, adapt_step_size=True, num_warmup=50),
    "HMC": HMC(num_steps=5, step_size=0.3, num_warmup=0, num_samples=6),
    "jittered HMC": HMC(num_steps=5, step_size=0.3, num_warmup=0, num_samples=6, jitter=0.5),
}


def bent(ops):
    def log_density(x):
        a, c = x["x"][:, 0], x["x"][:, 1]
        return -a - ops.exp(-a) - 2.0 * (c - 0.5 * a * a) ** 2

    return log_density


def bent_draws(rng, n, heat):
    """Of p^(1 / T): exp(-x_0) ~ Gamma(1 / T, rate 1 / T)."""
    a = -np.log(rng.gamma(1.0 / heat, heat, size=n))
    return np.stack([a, rng.normal(0.5 * a * a, np.sqrt(heat) / 2)], 1)


# At another temperature, and with a jitter, the plain kernels are seen as well.
REPEATED = pytest.mark.repeated("test_a_tested_kernel_keeps_the_power_of_the_density_that_it_names")
PLAIN = [pytest.param(name, marks=REPEATED) for name in ("MALA", "HMC")]


@pytest.mark.parametrize("name", [*PLAIN, "tempered", "clipped", "learned", "jittered HMC"])
def test_a_tested_kernel_keeps_the_power_of_the_density_that_it_names(backend, name):
    """Chains that start at exact draws of p^(1/T) stay there, whatever is scaled or clipped."""
    declared, rng = EXACT[name], np.random.default_rng(3)
    heat = getattr(declared, "temperature", 1.0)
    start = bent_draws(rng, 20_000, heat).astype(np.float32)
    x, info = ends(backend, declared, bent(backend.ops), start)
    truth = bent_draws(rng, 1_000_000, heat)
    for f in (lambda x: x[:, 0], lambda x: x[:, 0] ** 2, lambda x: x[:, 1], lambda x: np.tanh(
        x[:, 1] * x[:, 0] - 1.0), lambda x: (x[:, 1] - x[:, 0] ** 2 / 2) ** 2):  # fmt: skip
        within(f(x.astype(np.float64)), f(truth).mean())
    rate = info["acceptance_rate"][-6:].mean()
    assert 0.4 < rate < 0.9 and np.abs(x - start).mean() > 0.3
    if name == "learned":
        assert abs(rate - 0.574) < 0.03
    if name == "clipped":
        assert 0.1 < info["clipped"].mean() < 0.6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "Langevin, 20 steps of 0.02, temperature 1: the density itself, but for a bias"),
        ({"metropolis": True}, "MALA, 20 steps of 0.02, temperature 1: the density itself"),
        ({"noise_size": 0.2, "metropolis": True}, "noise 0.2, temperature 1: the density itself"),
        ({"noise_size": 0.005}, "noise 0.005, temperature 0.000625: p^(1/0.000625), not the"),
        ({"noise_size": {"x": 0.1, "z": 0.2}}, "temperatures 0.25 x, 1 z: no power of"),
        ({"noise_size": 0.0}, "no noise: it climbs to modes and has no law"),
        ({"max_grad_norm": 1.0}, "and the clipped drift, which changes the law"),
    ],
)
def test_a_chain_says_what_step_and_noise_imply(options, words):
    assert words in Langevin(0.02, **options).note({})


def test_a_long_drift_is_cut_and_counted(b):
    """Of x^2 / 2 at (3, 4): by its norm of 5, and then each entry, all times the diagonal."""
    start = np.array([[3.0, 4.0], [0.3, 0.4]], np.float32)
    declared = Langevin(
        0.1, 1, 0.0, max_grad_norm=2.5, max_grad_value=3.5, preconditioner=[1.0, 2.0]
    )
    x, info = ends(b, declared, lambda x: -0.5 * b.ops.sum(x["x"] ** 2, axis=-1), start)
    cut = np.array([[3.0, 3.5], [0.3, 0.4]]) * [[2.5 / np.hypot(3.0, 3.5)], [1.0]]
    np.testing.assert_allclose(x, start - 0.1 * cut * [1.0, 2.0], rtol=1e-5)
    np.testing.assert_array_equal(info["clipped"], [[1.0, 0.0]])
    assert "the drift clipped in 50% of steps" in declared.note({"clipped": info["clipped"][0]})
    wrong = Langevin(0.1, 1, preconditioner=np.ones(3))
    with pytest.raises(ShapeError, match="preconditioner of shape .3,. for site 'x'.*.2,."):
        ends(b, wrong, lambda x: -0.5 * b.ops.sum(x["x"] ** 2, axis=-1), start)


@pytest.mark.parametrize(("solver", "low", "high"), [("euler", 1.8, 2.5), ("rk4", 14.0, 24.0)])
def test_a_gradient_flow_has_its_order(b, solver, low, high):
    """dx/dt = 1 - x from x_0 is at 1 + (x_0 - 1) / e; the error falls by 2, or by 16."""
    start = np.linspace(-1.0, 2.0, 5, dtype=np.float32)[:, None]
    exact = 1.0 + (start - 1.0) * np.exp(-1.0)
    errors = []
    for n in (2, 4):
        declared = GradientFlow(1.0 / n, n, solver)
        x, info = ends(b, declared, lambda x: -0.5 * ((x["x"] - 1.0) ** 2)[:, 0], start)
        assert "acceptance_rate" not in info and "no noise" in declared.note({})
        errors.append(np.abs(x - exact).max())
    assert low < errors[0] / errors[1] < high, errors


def test_a_flow_has_no_law_to_infer_from(b):
    import probgen as pg
    from probgen import dist

    @pg.model
    def mean():
        m = pg.sample("m", dist.Normal(0.0, 1.0))
        with pg.data_plate():
            pg.sample("y", dist.Normal(m, 1.0))

    for method, words in ((GradientFlow(0.1), "modes; use Langevin"),
                          (HMC(num_steps=2, preconditioner=2.0), "a preconditioner for pg.infer"),
                          (HMC(num_steps=2, jitter=0.1), "jitter=0.1 for pg.infer")):  # fmt: skip
        with pytest.raises(AlgorithmError, match=words):
            pg.infer(mean, {"y": np.ones(3, np.float32)}, method, seed=0, backend=b)


@pytest.mark.parametrize(
    "declared",
    [
        Langevin(0.1, 5, metropolis=True, max_grad_norm=0.2),
        HMC(num_steps=2, step_size=0.3, num_warmup=0, num_samples=3, jitter=0.5),
        GradientFlow(0.1, 3, "rk4"),
    ],
)
def test_the_same_key_gives_the_same_chain_whatever_its_neighbours_do(backend, declared):
    """To the bit; of another start, or of one at NaN, no other chain hears."""
    start, moved = np.zeros((2, 4, 1), np.float32) + 0.5
    moved[2:, 0] = 3.0, np.nan
    runs = [
        ends(backend, declared, skewed(backend.ops), x, seed=s)[0]
        for x, s in ((start, 7), (start, 7), (start, 8), (moved, 7))
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert isinstance(declared, GradientFlow) or not np.allclose(runs[0], runs[2])
    np.testing.assert_array_equal(runs[0][:2], runs[3][:2])
    assert (runs[3][2] != runs[0][2]).all() and np.isnan(runs[3][3]).all()


def test_a_drift_stands_for_the_gradient(b):
    """x' = x + h d(x) by hand where only a drift is known; a test of its steps is refused."""
    start = np.array([[3.0], [-1.0]], np.float32)
    along = {"drift": lambda x: {"x": 1.0 - x["x"]}}
    x, info = ends(b, Langevin(0.1, num_steps=7, noise_size=0.0), None, start, **along)
    np.testing.assert_allclose(x, 1.0 + (start - 1.0) * 0.9**7, rtol=1e-5)
    assert not info["diverging"].any() and "acceptance_rate" not in info
    _, up = climb(b, target(**along))({"x": b.asarray(start)})
    np.testing.assert_allclose(b.to_numpy(up["x"]), 1.0 - start)
    for asked in (Langevin(0.1, metropolis=True), HMC(num_steps=2)):
        with pytest.raises(AlgorithmError, match="only a drift is known"):
            asked.kernel(b, target(**along))


def test_a_preconditioned_chain_is_the_plain_one_in_other_units(b):
    """Under M = s^2 the scales s of a Gaussian are units alone; M = 1 changes no bit, and exact
    draws stay exact draws."""
    s = np.array([1 / 16, 8.0], np.float32)
    start = np.random.default_rng(0).normal(size=(4000, 2)).astype(np.float32)

    def ended(scale, **options):
        unit = b.asarray(1.0 / scale * np.ones(2, np.float32))
        square = lambda x: -0.5 * b.ops.sum((x["x"] * unit) ** 2, axis=-1)  # noqa: E731
        method = HMC(num_steps=4, step_size=0.4, num_warmup=0, num_samples=3, **options)
        return ends(b, method, square, scale * start)

    (plain, _), (one, _) = ended(np.float32(1.0)), ended(np.float32(1.0), preconditioner=1.0)
    x, info = ended(s, preconditioner=s**2)
    np.testing.assert_array_equal(one, plain)
    np.testing.assert_allclose(x / s, plain, atol=1e-5)
    assert info["acceptance_rate"].mean() > 0.9 and np.corrcoef(x[:, 0], start[:, 0])[0, 1] < 0.5
    for u in (x / s).T.astype(np.float64):
        within(u, 0.0)
        within(u**2, 1.0)
    with pytest.raises(ShapeError, match="HMC: got a preconditioner of shape .3,. for site 'x'"):
        ended(s, preconditioner=np.ones(3))


def test_hmc_learns_one_step_size_for_all_chains(b):
    """Of a Gaussian whose scales are 1 and 0.1, given by site: moments, at the rate aimed at."""
    from probgen.engine.markov import chain_ends

    def log_density(x, *args):
        return -0.5 * (x["a"] ** 2)[:, 0] - 50.0 * ((x["c"] - 2.0) ** 2)[:, 0]

    def init(params, batch, key, n):
        return {k: b.ops.asarray(b.normal(key, (n, 1))) for k in ("a", "c")}

    where = target(log_density, names=("a", "c"))._replace(init=init)
    method = HMC(
        num_warmup=40, num_samples=30, num_steps=4, step_size={"a": 3.0, "c": 0.3},
        target_accept_prob=0.8,
    )  # fmt: skip
    values, _, stats = chain_ends(b, method, where)({}, {}, b.key(0), 4000)
    values = {n: b.to_numpy(v)[:, 0].astype(np.float64) for n, v in values.items()}
    within(values["a"], 0.0)
    within(values["a"] ** 2, 1.0)
    within(values["c"] - 2.0, 0.0)
    within((values["c"] - 2.0) ** 2, 0.01)
    # Of what follows the warm-up, whose first trajectories are ten times as long and diverge.
    assert 0.7 < b.to_numpy(stats["acceptance_rate"]).mean() < 0.95
    assert not b.to_numpy(stats["diverged"]).any() and not b.to_numpy(stats["outside"]).any()


def test_chains_of_which_little_is_told_end_where_all_is_told(b):
    """By moves alone, but for the last step of each hundred, the same draws as step by step; what
    is told of those steps is what all of them are like."""
    from probgen.engine.markov import chain_ends

    where = target(lambda x, *args: -0.5 * (x["x"] ** 2).sum(1) - 0.1 * (x["x"] ** 4).sum(1))
    where = where._replace(init=lambda params, batch, key, n: {"x": b.normal(key, (n, 2))})
    method = Langevin(0.2, 203, preconditioner=np.float32([1.0, 0.5]), max_grad_norm=1.5)
    assert method.kernel(b, where, 203).move is not None
    assert Langevin(0.2, metropolis=True).kernel(b, where).move is None
    few = chain_ends(b, method, where, num_calls=203)({}, {}, b.key(3), 400)
    all_of_them = chain_ends(b, method, where, num_calls=203, keep=lambda x, *args: x)
    values, chain, stats = all_of_them({}, {}, b.key(3), 400)
    assert chain["x"].shape == (203, 400, 2) and few[1] is None
    np.testing.assert_allclose(b.to_numpy(few[0]["x"]), b.to_numpy(values["x"]), atol=1e-4)
    for name in ("acceptance_rate", "clipped"):
        one, other = b.to_numpy(few[2][name]), b.to_numpy(stats[name])
        assert 0.05 < other.mean() < 0.99
        assert abs(one.mean() - other.mean()) < 5 * np.hypot(one.std(), other.std()) / 20


def test_what_no_kernel_moves_is_refused(b):
    where = target(lambda x: -0.5 * (x["x"] ** 2)[:, 0])
    with pytest.raises(AlgorithmError, match="NUTS is for pg.infer"):
        NUTS().kernel(b, where)
    with pytest.raises(AlgorithmError, match="num_steps=10"):
        HMC().kernel(b, where)
    with pytest.raises(AlgorithmError, match="step sizes of \\['z'\\].*each of \\['x'\\]"):
        Langevin({"z": 0.1}).kernel(b, where)
    with pytest.raises(AlgorithmError, match="num_warmup=0, expected some num_warmup to learn a"):
        Langevin(0.1, metropolis=True, adapt_step_size=True).kernel(b, where)


@pytest.mark.parametrize(
    "options", [{"step_size": {"x": -0.1}}, {"step_size": {}},
                {"step_size": 0.0}, {"step_size": 0.1, "num_steps": 0},
                {"step_size": 0.1, "metropolis": True, "noise_size": 0.0},
                {"step_size": {"x": 0.1}, "noise_size": {"z": 0.1}}, {"noise_size": -0.1},
                {"step_size": {"x": 0.1, "z": 0.2}, "metropolis": True, "noise_size": 0.5},
                {"step_size": 0.1, "preconditioner": [1.0, -1.0]}, {"max_grad_norm": 0.0},
                {"step_size": 0.1, "adapt_step_size": True, "num_warmup": 10}]
)  # fmt: skip
def test_options_that_make_no_chain_are_refused(options):
    with pytest.raises(DeclarationError, match="Langevin"):
        Langevin(**{"step_size": 0.1, **options})


def test_a_chain_cannot_move_a_discrete_site(backend):
    import probgen as pg
    from probgen import dist
    from probgen.engine.bind import bind

    @pg.model
    def coins():
        with pg.data_plate():
            pg.sample("x", dist.Bernoulli(0.5))

    bound, _ = bind(coins, backend, data={"x": np.zeros(3, np.float32)})
    with pytest.raises(AlgorithmError, match="'x' is discrete"):
        model_target(bound, "data")


def test_a_drift_of_any_size_is_clipped_to_its_length(b):
    """Beyond 1e19 too, whose square is no float; NaN stays."""
    grad = np.float32([[3e30, 4e30], [0.3, 0.4], [30.0, 40.0], [np.nan, 1.0]])
    found, clipped = clip(b.ops, {"x": b.asarray(grad)}, 1.0, None)
    want = np.float32([[0.6, 0.8], [0.3, 0.4], [0.6, 0.8]])
    np.testing.assert_allclose(b.to_numpy(found["x"])[:3], want, rtol=1e-5)
    assert np.isnan(b.to_numpy(found["x"])[3]).any()
    np.testing.assert_array_equal(b.to_numpy(clipped)[:3], [1.0, 0.0, 1.0])


def test_noise_of_several_sites_is_standard_and_each_sites_own(b):
    """Their covariance is the identity: no site, nor any of its numbers, sees another's."""
    shapes = {"w": (4000,), "x": (4000, 2, 2), "z": (4000, 1)}
    found = normals(b, b.key(0), shapes)
    assert {n: tuple(v.shape) for n, v in found.items()} == shapes
    flat = np.concatenate([b.to_numpy(v).reshape(4000, -1) for v in found.values()], 1)
    np.testing.assert_allclose(np.cov(flat.T), np.eye(6), atol=5 * (2 / 4000) ** 0.5)
    np.testing.assert_allclose(flat.mean(0), 0.0, atol=5 / 4000**0.5)
