"""Noise schedules: diffusers' names mean diffusers' numbers, and no beta leaves (0, 1)."""

import logging
import math

import numpy as np
import pytest
import scipy.stats as st
from denoiser_cases import exact

import probgen as pg
from probgen import nets
from probgen.engine.bind import bind
from probgen.errors import DeclarationError
from probgen.inference import DDIM, Denoising, DenoisingELBO, ProbabilityFlow
from probgen.models import Diffusion, NoiseSchedule
from probgen.models.random_step import shares


def bar(s):
    return math.cos(math.pi / 2 * (s + 0.008) / 1.008) ** 2


# (name, T, start, end): the first, second and last beta, worked out by hand from the definitions.
KNOWN = {
    ("linear", 1000, 1e-4, 2e-2): (1e-4, 1e-4 + 0.0199 / 999, 2e-2),
    ("linear", 4, 0.1, 0.5): (0.1, 0.1 + 0.4 / 3, 0.5),
    ("linear", 50, 1e-4, 2e-2): (1e-4, 1e-4 + 0.0199 / 49, 2e-2),
    ("linear", 1, 1e-4, 2e-2): (1e-4, None, 1e-4),
    ("scaled_linear", 5, 0.01, 0.25): (0.01, 0.04, 0.25),
    ("scaled_linear", 1000, 0.00085, 0.012): (
        0.00085, (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) / 999) ** 2, 0.012,
    ),
    ("sigmoid", 3, 0.1, 0.5): (0.1 + 0.4 * 0.0024726232, 0.3, 0.5 - 0.4 * 0.0024726232),
    ("squaredcos_cap_v2", 1000, 1e-4, 2e-2): (
        1.0 - bar(0.001) / bar(0.0), 1.0 - bar(0.002) / bar(0.001), 0.999,
    ),
    ("squaredcos_cap_v2", 2, 1e-4, 2e-2): (1.0 - bar(0.5) / bar(0.0), 0.999, 0.999),
}  # fmt: skip


NAMES = [
    "rectified_flow",
    "linear",
    "scaled_linear",
    "sigmoid",
    "squaredcos_cap_v2",
    "vp_sde",
    "edm",
    "clipped_cosine",
]


@pytest.mark.parametrize("case", KNOWN, ids=lambda case: f"{case[0]}-{case[1]}")
def test_a_name_means_the_same_numbers_for_every_length(case):
    name, num, start, end = case
    betas = NoiseSchedule(num, name, start, end).betas()
    assert betas.shape == (num,) and betas.dtype == np.float64
    found = (betas[0], betas[1] if num > 1 else None, betas[-1])
    for got, want in zip(found, KNOWN[case], strict=True):
        assert got is want or abs(got / want - 1.0) < 1e-4, (found, KNOWN[case])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num", [1, 2, 7, 1000])
def test_every_schedule_is_one(name, num):
    """Betas in (0, 1), so alpha_bar falls and stays above 0; rescaled, it ends at 0."""
    if name == "rectified_flow":
        num += 1  # it ends at 0 by itself
    schedule = NoiseSchedule(num, name, 1e-3, 0.1)
    betas, left = schedule.betas(), schedule.alphas_bar()
    if name == "rectified_flow":
        s = np.arange(1, num + 1) / num
        np.testing.assert_allclose(left, (1 - s) ** 2 / ((1 - s) ** 2 + s**2), atol=1e-12)
        assert betas[-1] == 1.0 and left[-1] == 0.0
        return
    assert ((betas > 0) & (betas < 1)).all() and (np.diff(left) < 0).all() and (left > 0).all()
    if num == 1:
        return
    rescaled = NoiseSchedule(num, name, 1e-3, 0.1, rescale_betas_zero_snr=True)
    root, new = np.sqrt(left), np.sqrt(rescaled.alphas_bar())
    # Shifted and scaled: equal parts stay equal parts, from the first to 0.
    np.testing.assert_allclose((root[0] - root) / (root[0] - root[-1]), 1 - new / new[0], atol=1e-9)
    assert abs(new[0] / root[0] - 1) < 1e-12 and new[-1] == 0.0 and rescaled.betas()[-1] == 1.0


# b, A, v, c0, ct of a denoising diffusion GAN's steps (Xiao, Kreis & Vahdat 2022), t = 1 ... T.
VP_SDE = {
    4: {
        "b": (0.4783, 0.8492, 0.9564, 0.9874), "A": (0.5217, 0.0787, 0.0034, 4.30e-5),
        "v": (0.0, 0.4408, 0.8842, 0.9841), "c0": (1.0, 0.6658, 0.2692, 0.0578),
        "ct": (0.0, 0.2016, 0.1930, 0.1119),
    },
    2: {"b": (0.9213, 0.9995), "v": (0.0, 0.9209), "c0": (1.0, 0.2804), "ct": (0.0, 0.0216)},
    8: {
        "b": (0.1564, 0.3815, 0.5465, 0.6675, 0.7562, 0.8212, 0.8689, 0.9039),
        "v": (0.0, 0.1248, 0.3424, 0.5531, 0.7103, 0.8083, 0.8663, 0.9035),
    },
}  # fmt: skip


@pytest.mark.parametrize("num", VP_SDE)
def test_the_vp_sde_in_few_steps_has_the_published_numbers(num):
    schedule = NoiseSchedule(num, "vp_sde")
    table = Diffusion(nets.MLP(), (2,), schedule).table()
    left = schedule.alphas_bar()
    found = {
        "b": schedule.betas(), "A": left, "v": table["std"] ** 2, "c0": table["of_x0"],
        "ct": table["of_xt"],
    }  # fmt: skip
    for name, want in VP_SDE[num].items():
        # The chain's last step keeps a variance, that it may have a density.
        start = 1 if name == "v" else 0
        np.testing.assert_allclose(found[name][start:], want[start:], atol=6e-5, err_msg=name)
    assert num != 4 or abs(left[-1] / math.exp(-0.5 * (1 - 1e-6) * 19.9 - 0.999 * 0.1) - 1) < 1e-9
    before = np.concatenate([[1.0], left[:-1]])
    mean = table["of_x0"] + table["of_xt"] * np.sqrt(left)
    np.testing.assert_allclose(mean, np.sqrt(before), rtol=1e-12)
    variance = table["of_xt"] ** 2 * (1 - left) + table["std"] ** 2
    np.testing.assert_allclose(variance[1:], 1 - before[1:], rtol=1e-12)


def test_the_levels_of_edm_are_its_sigmas():
    """Equal steps of sigma^(1/7) from 80 to 0.002: the published list of 18, worked by hand."""
    bar_ = NoiseSchedule(18, "edm").alphas_bar()
    sigma = np.sqrt(1 / bar_ - 1)
    np.testing.assert_allclose(sigma[[0, -1]], [0.002, 80.0], rtol=1e-9)
    middle = (0.002 ** (1 / 7) + 9 / 17 * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    assert abs(sigma[9] / middle - 1) < 1e-9
    other = NoiseSchedule(3, "edm", sigma_min=0.01, sigma_max=4.0, rho=1.0)
    np.testing.assert_allclose(np.sqrt(1 / other.alphas_bar() - 1), [0.01, 2.005, 4.0], rtol=1e-9)


def test_a_clipped_cosine_goes_from_one_level_to_the_other_in_equal_angles():
    schedule = NoiseSchedule(5, "clipped_cosine", alpha_bar_min=0.25, alpha_bar_max=0.75)
    want = np.cos(np.deg2rad([30.0, 37.5, 45.0, 52.5, 60.0])) ** 2
    np.testing.assert_allclose(schedule.alphas_bar(), want, rtol=1e-12)
    default = NoiseSchedule(50, "clipped_cosine").alphas_bar()
    np.testing.assert_allclose(default[[0, -1]], [0.995, 0.001], rtol=1e-9)


@pytest.mark.parametrize("is_rescaled", [False, True])
def test_times_between_steps_invert_the_interpolation(is_rescaled):
    schedule = NoiseSchedule(20, "squaredcos_cap_v2", rescale_betas_zero_snr=is_rescaled)
    angles = schedule.angles(8)
    np.testing.assert_allclose(np.cos(angles[::8]) ** 2, schedule.alphas_bar(), atol=1e-6)
    inner = angles[: 18 * 8]
    found = schedule.index_at(np.log(np.tan(inner)))
    np.testing.assert_allclose(found, np.arange(18 * 8) / 8, atol=2e-3)
    assert (np.diff(angles) > 0).all()


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "sigmoid"])
def test_a_rescaled_chain_adds_as_much_noise(name):
    """sum of betas, which is about -log alpha_bar, is that of a thousand steps."""
    whole = NoiseSchedule(1000, name).betas().sum()
    for num in (50, 200, 4000):
        short = NoiseSchedule.rescaled(num, name).betas()
        assert len(short) == num and abs(short.sum() / whole - 1.0) < 0.05
    cosine = NoiseSchedule.rescaled(3, "squaredcos_cap_v2")
    assert cosine == NoiseSchedule(3, "squaredcos_cap_v2")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_train_timesteps": 0}, "num_train_timesteps"),
        ({"num_train_timesteps": 2.5}, "num_train_timesteps"),
        ({"beta_start": -0.1}, "beta_start"),
        ({"beta_start": 0.0}, "beta_start"),
        ({"beta_end": 1.0}, "beta_end"),
        ({"beta_end": float("nan")}, "beta_end"),
        ({"beta_schedule": "cosine"}, "beta_schedule"),
        ({"beta_end": 0.9}, "alpha_bar ends at"),
        ({"num_train_timesteps": 1, "rescale_betas_zero_snr": True}, "two steps or more"),
        ({"beta_schedule": "vp_sde", "beta_min": 30.0}, "beta_min=30"),
        ({"beta_schedule": "edm", "sigma_min": 90.0}, "sigma_min=90"),
        ({"beta_schedule": "clipped_cosine", "alpha_bar_max": 1e-3}, "alpha_bar_min=0.001"),
    ],
)
def test_what_is_no_schedule_is_refused(options, words):
    with pytest.raises(DeclarationError, match=f"NoiseSchedule.*{words}"):
        NoiseSchedule(**options)


def test_a_chain_too_short_to_be_rescaled_is_refused():
    with pytest.raises(DeclarationError, match="largest beta would be 2.*more than 20 steps"):
        NoiseSchedule.rescaled(10)


def test_a_chain_that_ends_far_from_noise_is_said(b, caplog):
    """A thousand steps' betas over fifty leave 60 % of the data: the log says so before a step."""
    x = np.zeros((4, 2), np.float32)
    for schedule, said in ((NoiseSchedule(50), True), (NoiseSchedule.rescaled(50), False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="probgen"):
            model = Diffusion(nets.MLPDenoiser(out=2, hidden=(4,)), (2,), schedule)
            Denoising().bind(bind(model, b, data={"x": x}, seed=0)[0])
        assert ("is left" in caplog.text) is said


@pytest.mark.parametrize("name", NAMES)
def test_the_last_step_s_std_costs_smooth_data_little(name):
    """Of an error sigma_0^2 in each dimension, log std + sigma_0^2 / (2 std^2) above its least."""
    for num in (3, 30, 1000):
        table = Diffusion(nets.MLP(), (1,), NoiseSchedule(num, name), "sample").table()
        ratio = (table["std"][0] / table["noise"][0]) ** 2
        assert 0.5 * (np.log(ratio) + 1 / ratio - 1) < 0.16


@pytest.mark.parametrize("options", [{}, {"rescale_betas_zero_snr": True}])
def test_each_of_thousands_of_steps_is_drawn(options):
    """Shares (SNR_{t-1} / SNR_t - 1) / 2, all above the grid of float32's uniform numbers."""
    model = Diffusion(nets.MLP(), (1,), NoiseSchedule(4000, "linear", **options), "sample")
    weight, share = shares(model.table())
    bar = model.schedule.alphas_bar()
    bar = bar[bar > 0]
    ratio = bar / (1 - bar)
    want = 0.5 * (ratio[:-1] / ratio[1:] - 1)
    found = share[1 : len(bar)]
    np.testing.assert_allclose(found / found[0], want / want[0], rtol=1e-6)
    assert share.min() > 1e-6 and share.max() < 0.1 and np.isfinite(weight / share).all()


KINDS = [
    "v_prediction",
    pytest.param(
        "sample",
        marks=pytest.mark.repeated("test_a_chain_that_ends_in_pure_noise_is_drawn_and_bounded"),
    ),
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_chain_that_ends_in_pure_noise_is_drawn_and_bounded(b, kind):
    """With the exact denoiser of Gaussian data, whose last step sees nothing of the datum: the
    draws have the variance of the linear maps, step by step, and the bound of a chain that ends in
    its own prior stays below log p(x) = log N(x; 0, 4)."""
    schedule = NoiseSchedule(12, "linear", 0.02, 0.6, rescale_betas_zero_snr=True)
    model = exact(schedule, kind, (4.0,))
    fitted = pg.Fitted(model, {"denoiser": {}}, shapes={"x": (1,)})
    how = {"seed": 0, "backend": b}
    t, n = model.table(), 4000
    a, s2 = t["signal"], t["noise"] ** 2
    gain = 4 * a / (4 * a**2 + s2)  # x_0 = gain x_t
    after = np.concatenate([[1.0], a[:-1]])
    leap = after * gain + np.sqrt((1 - after**2) / s2) * (1 - a * gain)
    for method, slope, std in (
        (None, t["of_x0"] * gain + t["of_xt"], t["std"]), (DDIM(12), leap, 0.0 * a),
    ):  # fmt: skip
        want = 1.0
        for i in reversed(range(12)):
            want = slope[i] ** 2 * want + std[i] ** 2
        x = pg.generate(fitted, n, method=method, chunk_size=n, **how)["x"]
        assert abs(x.var() / want - 1.0) < 5 * np.sqrt(2 / n)
    at = np.linspace(-4, 4, 9, dtype=np.float32)[:, None]
    flow = ProbabilityFlow(48, down_to="lowest_noise")
    table = pg.evaluate(fitted, at, [DenoisingELBO(4), flow], progress_bar=False, **how)
    bound_ = table[DenoisingELBO(4).name]
    gap = st.norm.logpdf(at[:, 0], scale=2.0) - bound_["estimate"].values
    assert (gap > -5 * bound_["standard_error"].values).all()
    np.testing.assert_allclose(bound_["prior_kl"].values, 0.0, atol=1e-12)
    # The flow of the data blurred by the first level's noise, between whose levels this
    # denoiser is that of the nearest sixteenth.
    bar = schedule.alphas_bar()[0]
    want = st.norm.logpdf(at[:, 0], scale=np.sqrt(4.0 * bar + 1 - bar))
    np.testing.assert_allclose(table[flow.name]["estimate"].values, want, atol=0.01)


def test_of_pure_noise_none_can_be_predicted():
    schedule = NoiseSchedule(12, "linear", 0.02, 0.6, rescale_betas_zero_snr=True)
    with pytest.raises(DeclarationError, match="got prediction_type='epsilon'.*no signal"):
        Diffusion(nets.MLP(), (1,), schedule)
