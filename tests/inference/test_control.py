"""The KL controller as a pair of pure functions, and the loss that it steers.

Golden values and the plant's laws hold for numbers, torch tensors and JAX arrays. Short fits are in
`test_control_fits.py`, the published checks at their own length in `test_control_vae.py`.
"""

import contextlib
import importlib
import math
import typing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import probgen as pg
from probgen.errors import DeclarationError
from probgen.inference import (
    PI,
    CapacityELBO,
    ControlledELBO,
    CyclicalWarmup,
    IncrementalPI,
    LinearWarmup,
    RampSetPoint,
    SigmoidWarmup,
    StepSetPoint,
)
from probgen.inference.objectives.control import AntiWindup
from probgen.trees import tree_map

ANTI_WINDUP = typing.get_args(AntiWindup)


def every_mode(betas):
    return {mode: betas for mode in ANTI_WINDUP}


# (controller, set point, KLs, weights in every mode or by mode), float64.
GOLDEN = [
    (
        PI(kp=0.01, ki=0.001, beta_min=1.0),
        0.5,
        [0, 0.2, 0.5, 1, 3, 3, 0.1],
        every_mode(
            [1.0032754067, 1.0034555748, 1.0042, 1.0059245933, 1.0114414182, 1.0139414182,
             1.0083131234],
        ),
    ),
    (
        PI(kp=0.01, ki=1e-4, beta_max=1.0),
        2.0,
        [0, 0.5, 3, 5, 5, 1],
        every_mode(
            [0.0009920292, 0.0014742552, 0.0070605858, 0.0095757413, 0.0098757413, 0.0029394142],
        ),
    ),
    (
        PI(kp=0.01, ki=1e-4, beta_max=1.0),
        200.0,
        [0, 50, 150, 250, 300, 210],
        {
            "official_none": [0.0] * 6,
            "official_freeze": [0.0] * 6,
            "conditional": [0, 0, 0, 0.015, 0.025, 0.025999546],
        },
    ),
]  # fmt: skip


@contextlib.contextmanager
def float64(kind: str):
    """A maker of float64 scalars: Python's, numpy's, torch's or JAX's."""
    if kind == "torch":
        torch = pytest.importorskip("torch")
        yield lambda v: torch.tensor(v, dtype=torch.float64)
    elif kind == "jax":
        jax = pytest.importorskip("jax")
        with jax.enable_x64(True):
            yield lambda v: jax.numpy.asarray(v, dtype="float64")
    else:
        yield {"python": float, "numpy": np.float64}[kind]


def played(controller, kls, set_point, make=float):
    """The weights that a controller gives for a sequence of KLs."""
    state = tree_map(make, controller.init())
    betas = []
    for kl in kls:
        state, beta = controller.update(state, make(kl), make(set_point))
        betas.append(float(beta))
    return np.array(betas)


@pytest.mark.parametrize("mode", ANTI_WINDUP)
@pytest.mark.parametrize("kind", ["python", "numpy", "torch", "jax"])
@pytest.mark.parametrize("case", GOLDEN, ids=["unbounded", "unit", "far"])
def test_golden_weights(case, kind, mode):
    controller, set_point, kls, betas = case
    controller = PI(**{**vars(controller), "anti_windup": mode})
    with float64(kind) as make:
        got = played(controller, kls, set_point, make)
    np.testing.assert_allclose(got, betas[mode], rtol=0, atol=1e-10 + 5e-11)


@pytest.mark.parametrize("controller", [PI(), PI(beta_max=1.0, ki=1e-4), IncrementalPI()])
def test_one_sequence_of_kls_gives_one_sequence_of_weights_on_both_backends(controller):
    kls = np.random.default_rng(0).gamma(2.0, 4.0, size=400).astype(np.float32)
    found = []
    for name in ("torch", "jax"):
        pytest.importorskip(name)
        b = pg.backends.load(name, "cpu")
        update = b.compile(lambda state, kl: controller.update(state, kl, kl * 0.0 + 9.0), 8)
        state, betas = b.tree_map(b.asarray, controller.init()), []
        for kl in kls:
            state, beta = update(state, b.asarray(kl))
            betas.append(float(b.to_numpy(beta)))
        found.append(betas)
    np.testing.assert_allclose(*found, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found[0], played(controller, kls.astype(float), 9.0), rtol=1e-4)


@given(
    kls=st.lists(st.floats(0, 1e6), min_size=1, max_size=30),
    set_point=st.floats(0, 1e4),
    mode=st.sampled_from(ANTI_WINDUP),
)
def test_the_weight_stays_in_its_range_and_grows_with_the_kl(kls, set_point, mode):
    controller = PI(beta_min=0.5, beta_max=2.0, anti_windup=mode)
    state = controller.init()
    for kl in kls:
        higher = controller.update(state, kl + 1.0, set_point)[1]
        state, beta = controller.update(state, kl, set_point)
        assert 0.5 <= beta <= higher <= 2.0
        assert math.isfinite(state["integral"])


# ---- on a first-order plant ----------------------------------------------------------------------


def simulate(controller, set_point, equilibrium, steps, response=0.01):
    """K' = K + response (equilibrium(beta) - K) from K = 0: (KLs, weights, integrals)."""
    kl, state, rows = 0.0, controller.init(), []
    for _ in range(steps):
        state, beta = controller.update(state, kl, set_point)
        rows.append((kl, beta, state.get("integral", 0.0)))
        kl += response * (equilibrium(beta) - kl)
    return np.array(rows).T


@pytest.mark.parametrize(
    "options, locks, works",
    [
        ({"ki": 1e-3, "beta_min": 1.0}, 11.0, 9.0),
        ({"ki": 1e-4, "beta_max": 1.0}, 200.0, 90.0),
    ],
    ids=["disentangling", "dialog"],
)
def test_freezing_the_integral_locks_up_and_the_default_does_not(options, locks, works):
    """Once one step's ki * error exceeds kp the frozen integral lies out of reach of P."""
    top = {11.0: 24.0, 200.0: 300.0}[locks]

    def equilibrium(beta):
        return top / (1.0 + 40.0 * (beta - options.get("beta_min", 0.0)))

    def last(mode, set_point):
        kl, beta, _ = simulate(
            PI(**options, anti_windup=mode), set_point, equilibrium, 10_000, 0.005
        )
        return kl[-1], beta[-1]

    kl, beta = last("official_freeze", locks)
    assert beta == options.get("beta_min", 0.0) and kl == pytest.approx(top, rel=1e-3)
    assert last("conditional", locks)[0] == pytest.approx(locks, rel=1e-3)
    assert last("official_freeze", works)[0] == pytest.approx(works, rel=1e-3)


def test_without_anti_windup_the_kl_overshoots_further():
    def equilibrium(beta):
        return 300.0 / (1.0 + 20.0 * beta)

    peaks = {
        mode: simulate(PI(ki=1e-4, anti_windup=mode), 200.0, equilibrium, 4000)[0].max()
        for mode in ("conditional", "official_none")
    }
    assert 200.0 < peaks["conditional"] < peaks["official_none"]


@pytest.mark.parametrize("mode", ["conditional", "official_freeze"])
def test_saturation_leaves_weight_and_integral_bounded(mode):
    """A set point out of reach of beta >= 1: the weight rests at 1, the integral stays put.

    The proportional part is never quite zero, so "at 1" is up to kp s(-3), 0.0005.
    """
    controller = PI(beta_min=1.0, anti_windup=mode)
    kl, beta, integral = simulate(controller, 10.0, lambda beta: 7.0 / beta, 20_000)
    assert kl[-1] == pytest.approx(7.0, rel=1e-3)
    assert np.all(beta[5000:] - 1.0 <= controller.kp / (1 + math.exp(2.99)))
    assert np.abs(integral).max() <= controller.kp + controller.ki * 10.0


def test_a_saturated_weight_leaves_its_limit_as_soon_as_the_error_turns():
    controller = PI(beta_min=1.0)
    state = controller.init()
    for _ in range(20_000):
        state, beta = controller.update(state, 7.0, 10.0)
    assert beta < 1.0005
    assert controller.update(state, 16.0, 10.0)[1] > 1.005


REPEATED = pytest.mark.repeated("test_the_first_gain_that_diverges_is_the_bound")


@pytest.mark.parametrize(
    "response, slope",
    [
        (0.02, 200.0), (0.5, 5.0),
        pytest.param(0.02, 5.0, marks=REPEATED), pytest.param(0.5, 200.0, marks=REPEATED),
    ],
)  # fmt: skip
def test_the_first_gain_that_diverges_is_the_bound(response, slope):
    """a (2 + g (kp/2 + ki)) = 4, by a scan of ki on the linear plant; within 5%."""
    kp, middle = 0.01, 1000.0
    bound = (4.0 / response - 2.0) / slope - kp / 2.0

    def diverges(ki):
        controller = PI(kp=kp, ki=ki, initial_beta=middle - kp / 2.0)
        kl, state = 8.0 + 1e-6, controller.init()
        for _ in range(3000):
            state, beta = controller.update(state, kl, 8.0)
            kl += response * (8.0 - slope * (beta - middle) - kl)
            if abs(kl - 8.0) > 1e-3:
                return True
        return False

    gains = bound * np.linspace(0.9, 1.1, 21)
    first = next(ki for ki in gains if diverges(ki))
    assert first == pytest.approx(bound, rel=0.05) and first > gains[0]
    assert PI(kp=kp, ki=0.99 * bound).is_stable(response, slope)
    assert not PI(kp=kp, ki=1.01 * bound).is_stable(response, slope)


def test_any_integral_gain_removes_the_offset_that_p_alone_leaves():
    def equilibrium(beta):
        return 12.0 * math.exp(-2.0 * beta)

    errors = [abs(simulate(PI(ki=ki), 6.0, equilibrium, 12_000)[0][-1] - 6.0) for ki in (0, 1e-4)]
    assert errors[0] > 1.0 and errors[1] < 1e-3


def test_the_weight_starts_at_initial_beta():
    beta = PI(initial_beta=5.0).update(PI(initial_beta=5.0).init(), 10.0, 10.0)[1]
    assert beta == pytest.approx(5.005)


# ---- DynamicVAE's form ---------------------------------------------------------------------------


def test_the_incremental_form_is_its_formula():
    c = IncrementalPI(anti_windup="official_freeze")
    kls, wanted = np.random.default_rng(1).uniform(0, 20, 60), 8.0
    u, before, betas = c.initial_beta, None, []
    for t in range(len(kls)):
        error = wanted - kls[max(0, t - 4) : t + 1].mean()
        now = 1.0 / (1.0 + math.exp(error))
        held = u < c.beta_min
        u += c.kp * (now - (now if before is None else before)) - (0 if held else c.ki * error)
        before = now
        betas.append(max(u, c.beta_min))
    np.testing.assert_allclose(played(c, kls, wanted), betas, rtol=1e-12)


def test_the_incremental_form_comes_down_from_its_high_start_and_settles():
    rng = np.random.default_rng(2)
    controller = IncrementalPI()
    kl, beta, _ = simulate(
        controller, 6.0, lambda beta: 12.0 / (1.0 + beta) + rng.normal(0, 0.3), 12_000
    )
    assert beta[0] == pytest.approx(50.0, abs=0.1) and np.all(beta >= controller.beta_min)
    assert kl[-2000:].mean() == pytest.approx(6.0, rel=0.01)


def test_the_incremental_form_locks_up_when_frozen_and_not_by_default():
    """A low start below reach: the published code then never moves its weight again."""

    def last(mode):
        controller = IncrementalPI(initial_beta=0.1, anti_windup=mode)
        return simulate(controller, 11.0, lambda beta: 14.0 / (1.0 + beta), 10_000)[0][-1]

    assert last("conditional") == pytest.approx(11.0, rel=1e-2)
    assert last("official_freeze") > 12.0


# ---- schedules -----------------------------------------------------------------------------------


def _ramp(t, start=0.5, delta=0.25, every=41, ramp=10, maximum=2.0):
    window = t // every
    risen = start if window < 1 else start + delta * (window - 1 + min((t % every) / ramp, 1.0))
    return min(risen, maximum)


SCHEDULES = [
    (LinearWarmup(100), lambda t: min(t / 100, 1.0)),
    (LinearWarmup(50, start=4.0, final=0.5), lambda t: 4.0 - 3.5 * min(t / 50, 1.0)),
    (CyclicalWarmup(41), lambda t: min(2 * (t % 41) / 41, 1.0)),
    (CyclicalWarmup(30, ratio=0.25, final=2.0), lambda t: 2 * min(4 * (t % 30) / 30, 1.0)),
    (SigmoidWarmup(80), lambda t: 1 / (1 + math.exp(-(t - 40) / 8)) if t < 80 else 1.0),
    (StepSetPoint(0.5, 0.15, 41, 1.9), lambda t: min(0.5 + 0.15 * (t // 41), 1.9)),
    (RampSetPoint(0.5, 0.25, 41, 10, 2.0), _ramp),
]


@pytest.mark.parametrize("schedule, expected", SCHEDULES, ids=lambda s: type(s).__name__)
def test_schedules_are_their_formulas(backend, schedule, expected):
    """On numbers and, compiled, on arrays; at every count, whole cycles included."""
    counts = np.arange(0, 600, dtype=np.float32)
    want = [expected(int(t)) for t in counts]
    at = backend.compile(schedule.at, num_calls=8)
    np.testing.assert_allclose(backend.to_numpy(at(backend.asarray(counts))), want, atol=1e-5)
    np.testing.assert_allclose([schedule.at(float(t)) for t in counts], want, atol=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PI(kp=-1.0),
        lambda: PI(ki=float("nan")),
        lambda: PI(beta_min=2.0, beta_max=1.0),
        lambda: PI(anti_windup="none"),
        lambda: PI(initial_beta=-1.0),
        lambda: IncrementalPI(window=0),
        lambda: ControlledELBO(set_point=-3.0),
        lambda: ControlledELBO(kl_weight=2.0),
        lambda: ControlledELBO(free_bits=0.5),
        lambda: CapacityELBO(gamma=0.0),
        lambda: StepSetPoint(every=0),
        lambda: RampSetPoint(every=10, ramp=20),
        lambda: LinearWarmup(0),
        lambda: CyclicalWarmup(10, ratio=2.0),
    ],
)
def test_declarations_that_make_no_sense_are_refused(make):
    with pytest.raises(DeclarationError, match="got .*expected|got .*but"):
        make()


def test_the_controller_knows_no_framework():
    source = importlib.import_module("probgen.inference.objectives.control").__file__
    with open(source) as file:
        assert "torch" not in file.read()
