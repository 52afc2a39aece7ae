"""The losses of `Denoising`: closed forms for Gaussian data, weights by hand, the bound, and both
backends at the same noise."""

import numpy as np
import pytest
from denoiser_cases import exact, remaining
from shared_noise import each_backend

import probgen as pg
from probgen import nets
from probgen.engine.bind import bind
from probgen.errors import AlgorithmError, DeclarationError, OtherRun
from probgen.inference import DDIM, Denoising, DenoisingELBO
from probgen.inference.learn.denoising_terms import continuous_times, weight
from probgen.models import Diffusion, NoiseSchedule
from probgen.trees import tree_items

TYPES = ("epsilon", "sample", "v_prediction")
LAM = np.array([0.3, 1.5, 4.0])
SCHEDULE = NoiseSchedule(12, "linear", 0.02, 0.6)
PURE = NoiseSchedule(12, "linear", 0.02, 0.6, rescale_betas_zero_snr=True)
LINE = NoiseSchedule(12, "rectified_flow")
N, REPEATS = 2000, 12


def of_x0(weighting, schedule):
    """[T] the weight of an error of x_0, from the published formulas."""
    bar = schedule.alphas_bar()
    snr, sigma = bar / (1 - bar), np.sqrt(1 - bar) / np.sqrt(np.maximum(bar, 1e-300))
    table = exact(schedule, "sample", LAM).table()
    return {
        "min_snr": np.minimum(snr, 5.0),
        "flow_matching": ((1 + sigma) / sigma) ** 2,
        "edm": (sigma**2 + 0.25) / (sigma * 0.5) ** 2,
        "elbo": table["of_x0"] ** 2 / (2 * table["std"] ** 2),
    }[weighting]


def of_prediction(kind, schedule):
    """[T] what a squared error of x_0 is as one of the prediction."""
    bar = schedule.alphas_bar()
    found = {"epsilon": bar / (1 - bar), "sample": 1 + 0 * bar, "v_prediction": 1 / (1 - bar)}
    return found[kind]


def losses(b, model, algorithm, seed=0):
    """[REPEATS] of fresh data from N(0, diag(LAM)) and fresh noise."""
    rng = np.random.default_rng(seed)
    bound, own = bind(model, b, data={"x": np.zeros((1, len(LAM)), np.float32)})
    learner = algorithm.bind(bound)
    found = []
    for i in range(REPEATS):
        x = (rng.normal(size=(N, len(LAM))) * np.sqrt(LAM)).astype(np.float32)
        out = learner.evaluate(own, {"x": b.asarray(x)}, b.key(i))
        found.append(float(b.to_numpy(out["loss"])))
    return np.array(found)


def agrees(found, want):
    error = found.std(ddof=1) / np.sqrt(len(found))
    return abs(found.mean() - want) < 5 * error + 1e-5 * abs(want)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("weighting", ["min_snr", "edm", "flow_matching", "elbo"])
def test_a_weight_is_that_of_x0_whatever_is_predicted(kind, weighting):
    table = exact(SCHEDULE, "sample", LAM).table()
    row = {**table, "bound": of_x0("elbo", SCHEDULE)}
    found = weight(weighting, kind, row, gamma=5.0, sigma_data=0.5, ops=np)
    want = of_x0(weighting, SCHEDULE) / of_prediction(kind, SCHEDULE)
    np.testing.assert_allclose(found, want, rtol=1e-10)


# What a weight is for another prediction is exact in `test_a_weight_is_that_of_x0...`.
REPEATED = pytest.mark.repeated("test_the_expected_loss_is_the_closed_form")
CASES = [
    ("uniform", "epsilon", SCHEDULE), ("min_snr", "epsilon", SCHEDULE),
    ("edm", "sample", PURE), ("flow_matching", "v_prediction", LINE),
    ("elbo", "v_prediction", PURE),
    pytest.param("uniform", "v_prediction", PURE, marks=REPEATED),
    pytest.param("min_snr", "v_prediction", PURE, marks=REPEATED),
    pytest.param("elbo", "epsilon", SCHEDULE, marks=REPEATED),
]  # fmt: skip


@pytest.mark.parametrize("weighting, kind, schedule", CASES)
def test_the_expected_loss_is_the_closed_form(b, weighting, kind, schedule):
    """Of the exact denoiser, and of one that takes the data for N(0, I)."""
    for assumed in (LAM, np.ones(3)):
        found = losses(b, exact(schedule, kind, assumed), Denoising(weighting=weighting))
        left = remaining(schedule, LAM, assumed)
        if weighting == "elbo":
            # T E_t w_t |x - x0|^2 - log of the last step's constant + KL(q(x_T | x) || N(0, I)).
            bar, std = schedule.alphas_bar()[-1], exact(schedule, kind, LAM).table()["std"][0]
            prior = 0.5 * (bar * LAM.sum() - 3 * (bar + np.log1p(-bar)))
            want = (of_x0(weighting, schedule)[:, None] * left).sum() + prior
            want += 3 * np.log(std) + 1.5 * np.log(2 * np.pi)
        elif weighting == "uniform":
            want = (of_prediction(kind, schedule)[:, None] * left).mean()
        else:
            want = (of_x0(weighting, schedule)[:, None] * left).mean()
        assert agrees(found, want), (found.mean(), want)


def test_flow_matching_is_the_error_of_the_velocity_and_ddim_its_euler_step(b):
    """u = eps - x along x_s = (1 - s) x + s eps: by hand, for a net that knows E[x | x_s]."""
    model = exact(LINE, "v_prediction", LAM)
    s = (np.arange(12) + 1.0)[:, None] / 12
    gain = (1 - s) * LAM / ((1 - s) ** 2 * LAM + s**2)
    slope = (1 - gain) / s  # u^ = (x_s - x_0^) / s
    error = (slope * (1 - s) + 1) ** 2 * LAM + (slope * s - 1) ** 2  # of u = eps - x
    assert agrees(losses(b, model, Denoising(weighting="flow_matching")), error.mean())

    state = np.random.default_rng(0).normal(size=(5, 3))  # at s = 1, where x_s is the noise
    fitted = pg.Fitted(model, {"denoiser": {}}, shapes={"x": (3,)})
    start = state.astype(np.float32)
    drawn = pg.generate(fitted, 5, method=DDIM(12), start={"x_12": start}, seed=0, backend=b)["x"]
    for i in reversed(range(12)):
        state = state - slope[i] * state / 12  # an Euler step of dx/ds = u^
    np.testing.assert_allclose(drawn, state, rtol=1e-4, atol=1e-5)


def test_a_net_that_predicts_zero_loses_what_is_to_be_predicted(b):
    """1 for the noise; the data's variance for the datum."""
    for kind, want in (("epsilon", 1.0), ("sample", LAM.mean())):
        model = Diffusion(nets.Parameter((3,)), (3,), SCHEDULE, kind)
        assert agrees(losses(b, model, Denoising()), want)


# The bound is a closed form in `test_flow_likelihood_elbo`, and this loss of it above.
@pytest.mark.repeated("test_the_expected_loss_is_the_closed_form")
def test_the_loss_of_the_bound_is_the_bound(b):
    """Datum by datum `DenoisingELBO` gives what the loss gives on average."""
    model = exact(SCHEDULE, "epsilon", np.ones(3))
    x = np.repeat(np.array([[0.5, -1.0, 3.0]], np.float32), N, axis=0)
    bound, params = bind(model, b, data={"x": x[:1]})
    learner = Denoising(weighting="elbo").bind(bound)
    batch = {"x": b.asarray(x)}
    found = [b.to_numpy(learner.evaluate(params, batch, b.key(i))["loss"]) for i in range(REPEATS)]
    measure = DenoisingELBO(8)
    fitted = pg.Fitted(model, {"denoiser": {}}, shapes={"x": (3,)})
    run = pg.evaluate(fitted, x[:100], [measure], seed=0, backend=b, progress_bar=False)
    each = run[measure.name]["estimate"].values
    error = np.hypot(np.std(found, ddof=1) / np.sqrt(REPEATS), each.std() / 10)
    assert abs(np.mean(found) + each.mean()) < 5 * error


@pytest.mark.parametrize("schedule", [NoiseSchedule.rescaled(50), PURE])
def test_continuous_times_are_uniform_and_lie_on_the_interpolated_levels(b, schedule):
    model = exact(schedule, "v_prediction", LAM)
    t, row = continuous_times(b, model)(b.key(0), 20_000)
    t, a, s = (b.to_numpy(v).astype(np.float64) for v in (t, row["signal"], row["noise"]))
    last = schedule.num_train_timesteps - 1
    assert t.min() >= 0 and t.max() <= last
    assert abs(t.mean() / last - 0.5) < 5 * np.sqrt(1 / 12 / len(t))
    assert abs(t.var() / last**2 - 1 / 12) < 5 * np.sqrt(1 / 180 / len(t))
    np.testing.assert_allclose(a**2 + s**2, 1.0, rtol=1e-5)
    inside = t < (last - 1 if schedule is PURE else last)
    np.testing.assert_allclose(schedule.index_at(np.log(s / a)[inside]), t[inside], atol=0.02)
    # E |v - v^|^2 = lam / (a^2 lam + s^2), over all times between.
    bar = np.cos(schedule.angles(16))[:, None] ** 2
    want = np.trapezoid(LAM / (bar * LAM + 1 - bar), axis=0).mean() / (16 * last)
    assert agrees(losses(b, model, Denoising(time="continuous")), want)


@pytest.mark.repeated("test_the_expected_loss_is_the_closed_form")
@pytest.mark.usefixtures("same_noise")
def test_the_same_noise_gives_the_same_loss_and_reverse_step_on_both_backends():
    model = Diffusion(
        nets.MLPDenoiser(2, hidden=(8,)), (2,), NoiseSchedule(3, "vp_sde"), "v_prediction",
        nets.ClassEmbedding(3, 4),
    )  # fmt: skip
    x = np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)
    y = np.arange(16) % 3
    algorithms = (
        Denoising(), Denoising(weighting="min_snr", time="continuous"),
        Denoising(weighting="elbo", condition_dropout=0.5),
    )  # fmt: skip
    found = []
    with each_backend(float64=False) as both:
        for b in both:
            bound, params = bind(model, b, data={"x": x, "condition": y}, seed=1)
            batch = {"x": b.asarray(x), "condition": b.asarray(y)}
            mine = []
            for algorithm in algorithms:
                learner = algorithm.bind(bound)
                state = learner.init(b.copy(params), b.key(2), batch, None)
                update = b.compile(learner.update, over="steps")
                state, metrics = update(state, batch, b.key(3))
                mine.append(b.to_numpy(metrics["loss"]))
            fitted = pg.Fitted(model, b.tree_map(b.to_numpy, params), shapes={"x": (2,)})
            draws = pg.generate(fitted, 16, inputs={"condition": y}, seed=0, backend=b)
            found.append((np.array(mine), draws["x"]))
    (one, x_one), (two, x_two) = found
    np.testing.assert_allclose(one, two, rtol=1e-5)
    np.testing.assert_allclose(x_one, x_two, rtol=3e-5, atol=1e-6)


def test_the_weights_of_the_last_step_stand_beside_their_average(b, tmp_path):
    """With an average kept the steps are the same: `raw` is the fit without, and is saved."""
    model = Diffusion(nets.MLPDenoiser(3, hidden=(4,)), (3,), SCHEDULE)
    x = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
    options = {"num_steps": 5, "batch_size": 16, "seed": 0, "backend": b, "progress_bar": False}
    plain = pg.fit(model, x, Denoising(), **options)
    averaged = pg.fit(model, x, Denoising(), ema_decay=0.9, **options)
    averaged.save_pretrained(tmp_path / "run")
    loaded = pg.Fitted.from_pretrained(tmp_path / "run")
    for (name, want), (_, mean) in zip(
        tree_items(plain.params), tree_items(averaged.params), strict=True
    ):
        assert not np.allclose(want, mean, rtol=1e-6, atol=0) or not np.any(want), name
    for fitted in (averaged, loaded):
        for (name, got), (_, want) in zip(
            tree_items(fitted.raw.params), tree_items(plain.params), strict=True
        ):
            np.testing.assert_array_equal(got, want, err_msg=str(name))
    with pytest.raises(AlgorithmError, match="kept no moving average"):
        _ = plain.raw


def test_what_cannot_be_learned_is_refused(b):
    with pytest.raises(DeclarationError, match="weighting='elbo', time='continuous'"):
        Denoising(weighting="elbo", time="continuous")
    one = exact(NoiseSchedule(1, "linear", 0.9), "sample", LAM)
    bound, _ = bind(one, b, data={"x": np.zeros((1, 3), np.float32)})
    with pytest.raises(AlgorithmError, match="one step, expected two or more"):
        Denoising(time="continuous").bind(bound)


def test_going_on_under_another_schedule_is_refused_by_what_differs(tmp_path):
    pytest.importorskip("pyro")
    x = np.zeros((8, 2), np.float32)
    options = {"num_steps": 1, "seed": 0, "backend": "torch", "progress_bar": False}

    def fit(steps):
        model = Diffusion(nets.MLPDenoiser(2, hidden=(4,)), (2,), NoiseSchedule(steps, "vp_sde"))
        return pg.fit(model, x, Denoising(), checkpoint=tmp_path / "run", **options)

    fit(50)
    with pytest.raises(OtherRun, match="num_train_timesteps=50.*expected.*num_train_timesteps=60"):
        fit(60)
