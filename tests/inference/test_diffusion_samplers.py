"""Samplers of a diffusion against closed forms: with an exact denoiser of Gaussian data each is a
linear map, of an order that is its own.

`chain` is that map in numpy, float64: a sampler's table on mean and covariance. What holds of
tables is seen there, and that the loop on the device does what a table says, on both backends.
"""

import dataclasses

import numpy as np
import pytest
from flow_cases import TYPES, LinearBeta, draws, exact_diffusion, marginal
from scipy.integrate import quad

import probgen as pg
from probgen import ops
from probgen.errors import AlgorithmError, DataError, DeclarationError, ShapeError
from probgen.inference import DDIM, Ancestral, DDIMInverse, DPMSolver, Inpaint, ProbabilityFlowODE
from probgen.inference.sample.noise_levels import Levels, visited, word
from probgen.models import Diffusion, NoiseSchedule

STEPS = 60
EIGHT = np.array([0.05, 0.5, 2.0, 8.0])


def gains(model, time, lam):
    """What the exact net says along eigenvectors: n = gain x."""
    if isinstance(model.schedule, LinearBeta):
        t = (time + 1.0) / model.schedule.num_train_timesteps
        total = 0.1 * t + 9.95 * t * t
        bar, noise2 = np.exp(-total), -np.expm1(-total)
    else:
        angles = model.schedule.angles(8)
        bar = np.cos(np.interp(8 * time, np.arange(len(angles)), angles)) ** 2
        noise2 = 1.0 - bar
    a, sigma = np.sqrt(bar), np.sqrt(noise2)
    says = {"epsilon": sigma, "sample": a * lam, "v_prediction": a * sigma * (1 - lam)}
    return says[model.prediction_type] / (bar * lam + noise2)


def chain(model, sampler, u, lam, mean, cov, mask=None, values=None):
    """(mean, covariance) at the end of a table without memory, in data's own axes."""
    columns, eye = sampler.columns(model), np.eye(len(lam))
    for i in range(len(columns["time"])):
        row = {k: v[i] for k, v in columns.items()}
        move = (u * (row["x"] + row["net"] * gains(model, row["time"], lam))) @ u.T
        mean, cov = move @ mean, move @ cov @ move.T + row.get("std", 0.0) ** 2 * eye
        if mask is not None:
            keep = np.diag(1.0 - mask)
            mean = row["back"] * (keep @ mean + mask * values * row["known_signal"])
            cov = keep @ cov @ keep + np.diag(mask) * row["known_noise"] ** 2
            cov = row["back"] ** 2 * cov + row["back_std"] ** 2 * eye
    return mean, cov


def along(model, sampler, lam):
    """Where a deterministic table leads 1 along each eigenvector, with its memory."""
    columns = sampler.columns(model)
    x, m = np.ones_like(lam), np.zeros_like(lam)
    for i in range(len(columns["time"])):
        row = {k: v[i] for k, v in columns.items()}
        n = gains(model, row["time"], lam) * x
        new = row["x"] * x + row["net"] * n + row.get("m", 0.0) * m
        x, m = new, row.get("m_x", 0.0) * x + row.get("m_net", 0.0) * n
    return x


def flow(model, lam):
    """The ODE itself, exactly, from the last level to the first, and there the net's x_0."""
    table = model.table()
    bar, v = table["signal"][[0, -1]] ** 2, marginal(lam, table["signal"][[0, -1], None] ** 2)
    return np.sqrt(v[0] / v[1]) * np.sqrt(bar[0]) * lam / v[0]


ORDERS = [
    (DDIM(), 1, 50), (ProbabilityFlowODE(), 2, 32), (ProbabilityFlowODE(spacing="log_snr"), 2, 32),
    (DPMSolver(), 2, 48), (DPMSolver(spacing="karras"), 2, 48),
]  # fmt: skip


@pytest.mark.parametrize("sampler, order, num_steps", ORDERS, ids=repr)
@pytest.mark.parametrize("kind", TYPES)
def test_halving_the_step_divides_the_error_by_two_to_the_order(sampler, order, num_steps, kind):
    model = exact_diffusion(4, steps=1000, kind=kind)[0].model
    errors = [
        np.abs(along(model, dataclasses.replace(sampler, num_steps=n), EIGHT) - flow(model, EIGHT))
        for n in (num_steps, 2 * num_steps)
    ]
    ratio = errors[0] / errors[1]
    low, high = {1: (1.85, 2.15), 2: (3.4, 4.6)}[order]
    assert (low < ratio).all() and (ratio < high).all(), ratio


BEYOND = [
    (DPMSolver(50), 0.01), (DPMSolver(50, spacing="karras", sigma_max=80.0), 0.01),
    (DPMSolver(50, spacing="trailing"), 0.01), (ProbabilityFlowODE(50, sigma_max=80.0), 0.01),
    (DDIM(50), 0.06),
]  # fmt: skip


@pytest.mark.parametrize("sampler, error", BEYOND, ids=repr)
def test_a_chain_from_no_signal_at_all_ends_with_the_data_s_spread(sampler, error):
    """Noise N(0, 1) is led to N(0, lam): x by sqrt(lam), from a = 0 too."""
    straight = NoiseSchedule(1000, "rectified_flow")
    exact = exact_diffusion(4, kind="v_prediction")[0].model
    model = dataclasses.replace(exact, schedule=straight)
    off = along(model, sampler, EIGHT) / np.sqrt(EIGHT) - 1
    assert (np.abs(off) < error).all(), off


def test_beyond_sigma_max_the_first_step_is_ddim_s():
    model = exact_diffusion(4, steps=1000)[0].model
    for solver in (DPMSolver, ProbabilityFlowODE):
        first = solver(9, spacing="log_snr", sigma_max=20.0).levels(model)
        np.testing.assert_allclose(first.ratio[1], 20.0)
        assert first.time[0] == 999 and first.ratio[0] > 100
        columns = solver(9, spacing="log_snr", sigma_max=20.0).columns(model)
        n, x = -0.3, 0.8
        clean = model.clean(x, n, {"signal": first.signal[0], "noise": first.noise[0]})
        np.testing.assert_allclose(
            columns["x"][0] * x + columns["net"][0] * n,
            first.signal[1] * clean + first.noise[1] * n,
        )
        assert len(columns["time"]) == (9 if solver is DPMSolver else 16)


@pytest.mark.parametrize("spacing", ["karras", "trailing"])
def test_heun_and_multistep_do_on_the_device_what_their_tables_say(b, spacing):
    fitted, u, lam = exact_diffusion(3, steps=STEPS, kind="v_prediction")
    x = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    for sampler in (ProbabilityFlowODE(6, spacing=spacing), DPMSolver(6, spacing=spacing)):
        drawn = pg.generate(fitted, 5, method=sampler, start=x, seed=0, backend=b)
        want = (x @ u * along(fitted.model, sampler, lam)) @ u.T
        np.testing.assert_allclose(drawn["x"], want, atol=2e-5)
        assert "second order" in drawn.note


def test_all_steps_are_the_model_s_own_chain_for_each_prediction():
    for kind in TYPES:
        model = exact_diffusion(4, steps=STEPS, kind=kind)[0].model
        columns, table = Ancestral(STEPS).columns(model), model.table()
        down = {k: v[::-1] for k, v in table.items()}
        x, n = 0.7, -0.4
        np.testing.assert_allclose(
            columns["x"] * x + columns["net"] * n, model.posterior_mean(x, n, down), rtol=1e-9
        )
        np.testing.assert_allclose(columns["std"], down["std"], rtol=1e-9)
        np.testing.assert_array_equal(columns["time"], np.arange(STEPS)[::-1])


def test_fewer_ancestral_steps_draw_by_the_posterior_of_the_leaps(b):
    fitted, u, lam = exact_diffusion(3, steps=STEPS)
    n, sampler = 4000, Ancestral(4)
    found = pg.generate(fitted, n, method=sampler, chunk_size=n, seed=0, backend=b)
    # A Gaussian's exact posterior has this mean, and this variance but for that of x_0.
    visit = np.array([14, 29, 44, 59])
    bar, v = fitted.model.schedule.alphas_bar(), np.ones_like(lam)
    for i in reversed(range(4)):
        now, then = bar[visit[i]], bar[visit[i - 1]] if i else 1.0
        beta = 1 - now / then
        gain = np.sqrt(then) * beta / (1 - now) * np.sqrt(now) * lam / marginal(lam, now)
        gain += np.sqrt(now / then) * (1 - then) / (1 - now)
        noise = beta * (1 - then) / (1 - now) if i else fitted.model.table()["std"][0] ** 2
        v = gain**2 * v + noise
    cov = np.cov((found["x"] @ u).T)
    error = np.sqrt((np.outer(v, v) + np.diag(v) ** 2) / n)
    assert (np.abs(cov - np.diag(v)) < 6 * error).all()
    assert "4 leaps" in found.note


def test_steps_are_diffusers_numbers():
    model = exact_diffusion(2, steps=1000)[0].model
    times = {
        ("leading", 0, 50): [980, 960, 20, 0], ("leading", 1, 50): [981, 961, 21, 1],
        ("trailing", 0, 50): [999, 979, 39, 19], ("linspace", 0, 50): [999, 979, 20, 0],
        ("leading", 0, 30): [957, 924, 33, 0], ("trailing", 0, 30): [999, 966, 66, 32],
    }  # fmt: skip
    for (spacing, offset, n), want in times.items():
        found = visited(model, n, spacing, offset, "DDIM").time
        assert len(found) == n and [*found[:2], *found[-2:]] == want
    # The stride is another level than the next one where leaps are unequal, and nowhere else.
    for n, spacing, same in ((50, "leading", True), (30, "trailing", False)):
        tables = [DDIM(n, spacing=spacing, lands=w).columns(model) for w in ("next", "stride")]
        assert np.allclose(tables[0]["x"], tables[1]["x"], rtol=1e-12) == same


def test_inversion_leads_back_to_the_datum_the_better_the_more_steps(b):
    fitted, u, lam = exact_diffusion(3, steps=STEPS)
    fitted = dataclasses.replace(fitted, info={"backend": b.name})
    x, errors = draws(u, lam, 6), {}
    for time in ("target", "current"):
        maps = [
            along(fitted.model, DDIMInverse(n, time), lam) * along(fitted.model, DDIM(n), lam)
            for n in (15, 30, STEPS)
        ]
        errors[time] = np.abs(np.array(maps) - 1).max(1)
        assert (errors[time][1:] < 0.62 * errors[time][:-1]).all(), errors
    assert errors["target"][-1] != errors["current"][-1]
    codes = fitted.encode(x, method=DDIMInverse(15))
    want = (x @ u * along(fitted.model, DDIMInverse(15), lam)) @ u.T
    np.testing.assert_allclose(codes["x_60"], want, atol=2e-5)
    again = pg.generate(fitted, 6, method=DDIM(15), start=codes, chunk_size=4, seed=0)
    back = (want @ u * along(fitted.model, DDIM(15), lam)) @ u.T
    np.testing.assert_allclose(again["x"], back, atol=2e-5)


def test_the_net_is_asked_at_the_level_that_is_led_to_or_at_the_present_one():
    model = exact_diffusion(2, steps=STEPS)[0].model
    ways = [DDIMInverse(4, t).columns(model)["time"].tolist() for t in ("target", "current")]
    assert ways == [[14, 29, 44, 59], [0, 14, 29, 44]]


def test_a_clipped_datum_is_in_its_range(b):
    fitted, u, lam = exact_diffusion(3, steps=STEPS, kind="sample")
    x = 2.0 * np.random.default_rng(0).normal(size=(50, 3)).astype("float32")
    one = DDIM(1, clip_sample_range=0.01)
    found = pg.generate(fitted, 50, method=one, start=x, seed=0, backend=b)["x"]
    free = (x @ u * along(fitted.model, DDIM(1), lam)) @ u.T
    assert (np.abs(free) > 0.012).any()
    np.testing.assert_allclose(found, np.clip(free, -0.01, 0.01), atol=1e-5)


FLOW = pytest.param(
    ProbabilityFlowODE(3),
    marks=pytest.mark.repeated("test_the_way_of_the_draws_ends_at_the_draws"),
)


@pytest.mark.parametrize("keeps", [FLOW, Inpaint(DDIM(4), [1, 0, 0], [1, np.nan, np.inf], 2)])
def test_the_way_of_the_draws_ends_at_the_draws(b, keeps):
    fitted, _, _ = exact_diffusion(3, steps=STEPS)
    how = {"method": keeps, "chunk_size": 3, "seed": 0, "backend": b}
    kept, plain = (pg.generate(fitted, 5, return_chain=k, **how) for k in (True, False))
    calls = 5 if isinstance(keeps, ProbabilityFlowODE) else 7
    assert kept.chain["x"].shape == (calls, 5, 3)
    np.testing.assert_array_equal(kept.chain["x"][-1], plain["x"])
    np.testing.assert_array_equal(kept["x"], plain["x"])


# ---- guidance ------------------------------------------------------------------------------------

WITHIN, ALL = 0.2, 1.7  # variances of x given y, and of x
MEANS = np.array([1.5, -0.5])


@dataclasses.dataclass(frozen=True)
class MeanAndVariance:
    """The context of a class: the mean and variance of x given it; of none, those of x."""

    in_ndim = 0

    def init(self, key, *shapes):
        raise NotImplementedError

    def apply(self, params, y):
        mean = ops.take(params["means"], ops.cast(y, "int32"))
        return ops.stack([mean, 0.0 * mean + WITHIN], axis=-1)[..., None, :]

    def null(self, params):
        return ops.stack([0.0 * params["means"][:1], 0.0 * params["means"][:1] + ALL], axis=-1)


@dataclasses.dataclass(frozen=True)
class PairDenoiser:
    """The exact eps of N(mean, variance), both from the context."""

    def init(self, key, *shapes):
        raise NotImplementedError

    def apply(self, params, x, t, context):
        time = (t[..., None] + 1.0) / 1000
        total = 0.1 * time + 9.95 * time * time
        bar = ops.exp(-total)
        mean, variance = context[..., 0, :1], context[..., 0, 1:]
        return ops.sqrt(1.0 - bar) * (x - ops.sqrt(bar) * mean) / (bar * variance + 1.0 - bar)


def guided_flow(table, start, mean, w):
    """y = x / a along dy/dr = r ((1 - w) y / (ALL + r^2) + w (y - mean) / (WITHIN + r^2)), exactly:
    with growth g(r) = (ALL + r^2)^((1-w)/2) (WITHIN + r^2)^(w/2) the way down from r_1 to r_0 is

        y(r_0) = g(r_0) (y(r_1) / g(r_1) + int_{r_0}^{r_1} w mean r / ((WITHIN + r^2) g(r)) dr),

    and at r_0 one step of first order to r = 0.
    """
    low, high = (table["noise"] / table["signal"])[[0, -1]]

    def growth(r):
        return (ALL + r * r) ** ((1 - w) / 2) * (WITHIN + r * r) ** (w / 2)

    pull = quad(lambda r: w * r / ((WITHIN + r * r) * growth(r)), low, high, limit=200)[0]
    y = growth(low) * (start / table["signal"][-1] / growth(high) + mean * pull)
    eps = low * ((1 - w) * y / (ALL + low**2) + w * (y - mean) / (WITHIN + low**2))
    return y - low * eps


@pytest.mark.parametrize("sampler, error", [(DPMSolver(100), 2e-3), (DDIM(200), 4e-2)], ids=repr)
def test_guided_draws_follow_the_guided_flow_of_a_gaussian_pair(b, sampler, error):
    w, y = 2.5, np.array([0, 0, 1, 1])
    start = np.random.default_rng(0).normal(size=(4, 1)).astype("float32")
    model = Diffusion(
        PairDenoiser(), (1,), LinearBeta(1000), condition=MeanAndVariance(), data_range=None
    )
    params = {"denoiser": {}, "condition": {"means": MEANS.astype("float32")}}
    fitted = pg.Fitted(model, params, shapes={"x": (1,), "condition": ()},
                       dtypes={"condition": "int64"})  # fmt: skip
    found = pg.generate(
        fitted, 4, method=dataclasses.replace(sampler, guidance_scale=w), start=start, seed=0,
        inputs={"condition": y}, backend=b,
    )  # fmt: skip
    want, plain = (guided_flow(model.table(), start[:, 0], MEANS[y], s) for s in (w, 1.0))
    np.testing.assert_allclose(found["x"][:, 0], want, atol=error)
    assert np.abs(want - plain).min() > 3 * error
    assert "guidance 2.5" in found.note


# ---- inpainting ----------------------------------------------------------------------------------

MASK, VALUES = np.array([1, 0, 0]), np.array([1.5, 9.0, 9.0])


def conditional(u, lam):
    """Mean and covariance of the unknown two, given the first."""
    cov = (u * lam) @ u.T
    mean = cov[1:, 0] / cov[0, 0] * VALUES[0]
    return mean, cov[1:, 1:] - np.outer(cov[1:, 0], cov[0, 1:]) / cov[0, 0]


def test_resampling_brings_completions_to_the_mean_given_the_known_numbers():
    """And their variance too low, the more so the fewer the steps, which a docstring says."""
    fitted, u, lam = exact_diffusion(3, steps=100)
    want, spread = conditional(u, lam)
    ends = [
        chain(fitted.model, Inpaint(Ancestral(), MASK, VALUES, r), u, lam, np.zeros(3), np.eye(3),
              MASK, VALUES)
        for r in (1, 4, 16, 64)
    ]  # fmt: skip
    off = [np.linalg.norm(mean[1:] - want) / np.linalg.norm(want) for mean, _ in ends]
    assert off[0] > 0.3 and off[-1] < 0.1, off
    assert (np.array(off[1:]) < 0.65 * np.array(off[:-1])).all(), off
    assert (np.diag(ends[-1][1])[1:] < np.diag(spread)).all()


def test_replacement_is_exact_where_numbers_are_independent():
    model, lam = exact_diffusion(3, steps=200)[0].model, np.array([0.3, 1.0, 2.0])
    start, own = (np.zeros(3), np.eye(3)), np.eye(3)
    mean, cov = chain(
        model, Inpaint(Ancestral(), MASK, VALUES), own, lam, *start, mask=MASK, values=VALUES
    )
    free = chain(model, Ancestral(), own, lam, *start)
    np.testing.assert_allclose(mean, [1.5, 0, 0], atol=1e-9)
    np.testing.assert_allclose(cov[1:, 1:], free[1][1:, 1:], atol=1e-9)


def test_completions_have_the_law_of_their_chain_and_the_known_numbers(b):
    fitted, u, lam = exact_diffusion(3, steps=STEPS)
    n, sampler = 4000, Inpaint(Ancestral(8), MASK, VALUES, num_resamples=3)
    found = pg.generate(fitted, n, method=sampler, chunk_size=n, seed=0, backend=b)
    mean, cov = chain(fitted.model, sampler, u, lam, np.zeros(3), np.eye(3), MASK, VALUES)
    assert (found["x"][:, 0] == np.float32(1.5)).all()
    rest, cov = found["x"][:, 1:], cov[1:, 1:]
    assert (np.abs(rest.mean(0) - mean[1:]) < 5 * np.sqrt(np.diag(cov) / n)).all()
    error = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / n)
    assert (np.abs(np.cov(rest.T) - cov) < 6 * error).all()
    assert "1 of 3 numbers known and resampled 3 times: near the law" in found.note


def test_each_sample_may_have_a_mask_and_a_datum_of_its_own(b):
    """Row i is, to the bit, what all samples with its mask and datum have there; chunk by chunk."""
    fitted = exact_diffusion(3, steps=STEPS)[0]
    masks, data = np.array([[1, 0, 0], [0, 1, 1]]), np.array([[1.5, np.nan, 9.0], [np.inf, -1, 2]])
    rows = np.array([0, 1, 1, 0, 1])
    how = {"seed": 0, "chunk_size": 3, "backend": b}

    def drawn(mask, values):
        return pg.generate(fitted, 5, method=Inpaint(DDIM(4), mask, values, 2), **how)["x"]

    whole = np.stack([drawn(m, v) for m, v in zip(masks, data, strict=True)])
    np.testing.assert_array_equal(drawn(masks[rows], data[rows]), whole[rows, np.arange(5)])
    np.testing.assert_array_equal(drawn(masks[0], data[[0] * 5]), whole[0])
    with pytest.raises(ShapeError, match="one row of it for each sample, 5 of them"):
        drawn(masks, data)


# ---- refusals ------------------------------------------------------------------------------------


def test_what_does_not_go_together_is_refused_in_words():
    fitted, _, _ = exact_diffusion(3, steps=STEPS)
    how = {"seed": 0, "backend": "torch"}

    def drawn(method, **more):
        return pg.generate(fitted, 2, method=method, **how, **more)

    with pytest.raises(AlgorithmError, match="Ancestral: got num_steps=61 .* has 60 steps"):
        drawn(Ancestral(61))
    with pytest.raises(AlgorithmError, match="steps_offset=15, with which .* is 60 .* at most 59"):
        drawn(DDIM(4, spacing="leading", steps_offset=15))
    with pytest.raises(AlgorithmError, match="sigma_max=0.01 .*expected two steps or more and a"):
        drawn(DPMSolver(4, sigma_max=0.01))
    with pytest.raises(ShapeError, match=r"Inpaint: got mask of shape \[2\], expected \[3\]"):
        drawn(Inpaint(DDIM(4), np.ones(2), np.ones(3)))
    with pytest.raises(DataError, match="Inpaint: got values with 1 numbers that are NaN"):
        drawn(Inpaint(DDIM(4), [1, 0, 0], [np.nan, 1.0, 1.0]))
    with pytest.raises(DeclarationError, match="Inpaint: got mask=.*expected 0 and 1"):
        Inpaint(DDIM(4), np.full(3, 0.5), np.ones(3))
    with pytest.raises(DeclarationError, match="Inpaint: got sampler="):
        Inpaint(DPMSolver(4), np.ones(3), np.ones(3))
    with pytest.raises(ShapeError, match=r"start of shape \[3, 3\], expected \[2, 3\]"):
        drawn(DDIM(4), start=np.zeros((3, 3)))
    with pytest.raises(DataError, match="start of .*'z'.*, expected 'x_60'"):
        drawn(DDIM(4), start={"z": np.zeros((2, 3))})
    with pytest.raises(AlgorithmError, match="start= with method=None"):
        drawn(None, start=np.zeros((2, 3)))
    with pytest.raises(DeclarationError, match="encode: got method=DDIM"):
        fitted.encode(np.zeros((2, 3)), method=DDIM(4))
    with pytest.raises(AlgorithmError, match="without an unconditional branch"):
        drawn(DDIM(4, guidance_scale=2.0))


def test_a_level_where_the_prediction_tells_nothing_is_refused_in_words():
    ends = Levels(np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([1.0, 0.0]))
    for kind, at in (("epsilon", "=0 and noise 1"), ("sample", "=1 and noise 0")):
        model = exact_diffusion(2, steps=STEPS, kind=kind)[0].model
        with pytest.raises(AlgorithmError, match=f"DDIM: got prediction_type='{kind}' .*{at}"):
            word(model, ends, "DDIM")
    model = exact_diffusion(2, steps=STEPS, kind="v_prediction")[0].model
    assert np.isfinite(np.array(word(model, ends, "DDIM"))).all()
