"""The E-step and M-step of EM distillation, against closed forms and by hand."""

import math

import numpy as np
import pytest
from emd_cases import (
    ALPHA,
    BIAS,
    FORWARD,
    REVERSE,
    SIGMA,
    SLOPE,
    STILL,
    affine,
    chain_ends,
    exact,
    gradients,
    within_errors,
)
from fit_cases import quick
from shared_noise import each_backend, share_noise

import probgen as pg
from probgen import dist, nets, ops
from probgen.engine.bind import bind
from probgen.inference.learn.em_distillation_chain import Ends, Generator, target_of
from probgen.inference.learn.em_distillation_scores import scores_of
from probgen.inference.learn.em_distillation_step import objective, weight_of
from probgen.inference.sample.langevin import Langevin

KINDS = ("full", "last", "none", "anchored")


@pytest.fixture(scope="module")
def b(backend_name):
    return quick(backend_name)


# ---- exact: a linear student of a Gaussian ----


def test_one_step_with_z_still_is_the_gradient_of_the_reverse_divergence(b):
    ends, _ = chain_ends(b, exact(num_steps=1, gamma_z=0.0), 50_000)
    found = gradients(ends)
    for kind in ("full", "none"):
        within_errors(found[kind], 0.16 * np.array(REVERSE))
    # Injected noise leaves nothing but the drift: 64 times the variance is gone.
    assert found["none"].var(0).sum() > 30 * found["full"].var(0).sum()


def test_many_steps_with_z_still_climb_the_objective_between_the_two(b):
    """F = E_z log E_{x | z} q_t / p_t by quadrature; z that does not move is not the likelihood."""
    options = dict(num_steps=400, gamma_eps=0.02, gamma_z=0.0)
    ends, _ = chain_ends(b, exact(**options), 4000)
    within_errors(gradients(ends)["full"], STILL)


def test_with_z_moving_it_is_the_forward_divergence_and_anchoring_is_unbiased(b):
    """At gz = ge the chain forgets its start in 16 steps; the paper's cancellation is then off by
    0.13 of a slope's 0.06, ours by nothing."""
    ends, _ = chain_ends(b, exact(num_steps=16, gamma_z=0.16), 40_000)
    found = gradients(ends)
    within_errors(found["none"], FORWARD, bias=0.01)
    within_errors(found["anchored"], FORWARD, bias=0.01)
    within_errors(found["anchored"] - found["none"], (0.0, 0.0))
    assert found["full"][:, 0].mean() - found["none"][:, 0].mean() > 0.1


def test_where_z_hardly_moves_both_cancellations_have_little_variance_and_one_mean(b):
    ends, start = chain_ends(b, exact(num_steps=16, gamma_z=0.0016), 40_000)
    found = gradients(ends)
    within_errors(found["anchored"] - found["none"], (0.0, 0.0))
    within_errors(found["full"], (-0.255, 0.708), bias=0.01)
    variance = {k: v.var(0).sum() for k, v in found.items()}
    assert variance["anchored"] < 1.3 * variance["full"] < 0.4 * variance["none"]
    assert variance["last"] < variance["none"]

    # The chain corrects its draws: they are likelier under the teacher than the student's own.
    def log_q(x):
        return -0.5 * (x - ALPHA) ** 2 / (0.25 * ALPHA**2 + SIGMA**2)

    z, z0 = ends.z["z"], start["z"]["z"]
    first = ALPHA * (SLOPE * z0 + BIAS) + SIGMA * start["eps"]
    last = ALPHA * (SLOPE * z + BIAS) + SIGMA * ends.eps
    assert log_q(last).mean() > log_q(first).mean() + 0.05


def test_a_long_chain_at_one_low_level_makes_a_students_draws_the_teachers(b):
    """A half-trained student's mean log q_t(x) rises, in 300 steps, from what is known to minus
    the entropy of q_t."""
    alpha, sigma = math.cos(0.05 * math.pi), math.sin(0.05 * math.pi)
    options = dict(num_steps=300, gamma_eps=0.1, gamma_z=0.02, times=(0.1, 0.1))
    ends, start = chain_ends(b, exact(**options), 3000)
    variance = 0.25 * alpha**2 + sigma**2

    def log_q(z, eps):
        off = alpha * (SLOPE * z["z"] + BIAS) + sigma * eps - alpha
        return -0.5 * (off**2 / variance + math.log(2 * math.pi * variance))

    def known(second):
        return -0.5 * (second / variance + math.log(2 * math.pi * variance))

    first = known((alpha * (BIAS - 1)) ** 2 + (alpha * SLOPE) ** 2 + sigma**2)
    within_errors(log_q(start["z"], start["eps"]), first)
    within_errors(log_q(ends.z, ends.eps), known(variance), bias=0.02)
    assert known(variance) - first > 1.0


@pytest.mark.slow
def test_a_long_chain_with_small_steps_is_the_teachers_law(b):
    """K = 2000, ge = 0.02, gz = 0.002: x has mean 0.809 and variance 0.509; the paper's
    cancellation is off by gz / ge."""
    options = dict(num_steps=2000, gamma_eps=0.02, gamma_z=0.002)
    ends, _ = chain_ends(b, exact(**options), 100_000)
    x = ALPHA * (SLOPE * ends.z["z"] + BIAS) + SIGMA * ends.eps
    assert abs(x.mean() - 0.809) < 0.012 and abs(x.var() - 0.509) < 0.012
    found = gradients(ends, 0.02)
    within_errors(found["none"], FORWARD, bias=0.01)
    within_errors(found["anchored"], FORWARD, bias=0.01)
    assert 0.01 < found["full"][:, 0].mean() - FORWARD[0] < 0.05


# ---- the chain, by hand ----


def test_what_is_left_of_eps_is_the_noise_that_the_kernel_drew(b):
    """a' = (1 - ge) a + sqrt(2 ge) n from eps_0, with the kernel's own n, is eps - push."""
    algorithm = exact(num_steps=3, gamma_z=0.01)
    bound, params = bind(affine, b, params=None, num_draws=5)
    g = Generator(bound)
    scores = scores_of(bound, algorithm, g.shape)
    steps = {"eps": 0.16, "push": 0.16, "z": 0.01}
    sizes = {n: math.sqrt(2 * h) * (n != "push") for n, h in steps.items()}
    kernel = Langevin(steps, 3, sizes).kernel(b, target_of(bound, g, scores, True))
    args = (
        {"student": params, "score": {}, "teacher": {}},
        {"level": scores.level(b.key(0), 5), "batch": {}, "seen": {}},
    )
    at = target_of(bound, g, scores, True).init(*args, b.key(1), 5)
    state, a = kernel.init(at, *args), at["eps"]
    assert not b.to_numpy(at["push"]).any()
    for i in range(3):
        state, info = kernel.step(b.key(2 + i), state, *args)
        a = (1 - 0.16) * a + 0.32**0.5 * info["noise"]["eps"]
        left = b.to_numpy(state.x["eps"] - state.x["push"])
        np.testing.assert_allclose(left, b.to_numpy(a), atol=2e-6)


def test_the_same_noise_gives_the_same_chain_on_both_backends(monkeypatch):
    share_noise(monkeypatch)
    net = nets.MLP((4,), out=2, activation="tanh", in_ndim=1)

    @pg.model
    def student():
        with pg.data_plate():
            z = pg.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
            pg.deterministic("x", pg.net("g", net)(z))

    def own(params, x, t):
        return -x + 0.1 * t

    algorithm = exact(
        num_steps=4, gamma_z=0.02, student_score=own, times=(0.1, 0.9), noise_cancellation="last"
    )
    params = {"g": net.init(np.random.default_rng(0), (3,))}
    with each_backend(float64=False) as both:
        one, other = (chain_ends(b, algorithm, 6, model=student, params=params)[0] for b in both)
    for here, there in zip(
        (*one.start.values(), *one.z.values(), *one[2:]),
        (*other.start.values(), *other.z.values(), *other[2:]),
        strict=True,
    ):
        np.testing.assert_allclose(here, there, rtol=1e-5, atol=1e-5)


# ---- the M-step ----


@pytest.mark.parametrize("kind", KINDS)
def test_the_m_step_is_that_of_a_gaussian_likelihood_at_the_ends(b, kind):
    """Its gradient is that of -w log N(x*; alpha g(z), sigma^2), x* held; anchored, the difference
    of two such."""
    rng, n = np.random.default_rng(0), 5
    bound, params = bind(affine, b, num_draws=n)
    g, algorithm = Generator(bound), exact(noise_cancellation=kind)

    def numbers():
        return b.asarray(rng.normal(size=(n, 1)).astype(np.float32))

    ends = Ends({"z": numbers()}, {"z": numbers()}, numbers(), numbers(), numbers())
    level = {"signal": 0.5 + 0.1 * ops.abs(numbers()), "noise": 0.3 + 0.1 * ops.abs(numbers())}
    weight = 1.0 + ops.abs(numbers())

    first, last = {
        "full": (ends.push, None), "last": (ends.push + 0.84 * ends.before, None),
        "none": (ends.eps, None), "anchored": (ends.eps, ends.eps - ends.push),
    }[kind]  # fmt: skip

    def likelihood(params):
        total = 0.0
        for eps, z, sign in ((first, ends.z, 1.0), (last, ends.start, -1.0)):
            if eps is None:
                continue
            loc = level["signal"] * g(params, {}, z)
            x = ops.stop_gradient(loc) + level["noise"] * eps
            density = -0.5 * ((x - loc) / level["noise"]) ** 2 - ops.log(level["noise"])
            total = total - sign * ops.sum(weight * density) / n
        return total

    loss = objective(bound, algorithm, g)
    (_, told), found = b.value_and_grad(loss, has_aux=True)(
        params, {}, (ends, level, weight), {}, None
    )
    wanted = b.grad(likelihood)(params)
    for name in ("weight", "bias"):
        np.testing.assert_allclose(
            b.to_numpy(found["g"]["out"][name]), b.to_numpy(wanted["g"]["out"][name]),
            rtol=2e-4, atol=2e-5,
        )  # fmt: skip
    first = b.to_numpy(first)
    np.testing.assert_allclose(
        float(told["loss"]), (0.5 * b.to_numpy(weight) * first**2).sum() / n, rtol=1e-5
    )


def test_weightings_by_hand(b):
    level = {k: b.asarray(np.float32(v)[:, None]) for k, v in
             {"signal": [0.8, 0.5], "noise": [0.6, 0.9]}.items()}  # fmt: skip
    x = b.asarray(np.float32([[1.0, 3.0], [2.0, 2.0]]))
    estimate = b.asarray(np.float32([[0.0, 0.0], [1.0, 1.0]]))  # off by 2 and 1 on average
    ratio = np.float32([[0.5625], [3.24]])
    for given, wanted in (
        ("uniform", np.ones((2, 1))),
        ("sigma2_over_alpha2", ratio),
        ("l1", ratio / np.float32([[2.0], [1.0]])),
        (lambda alpha, sigma: alpha * sigma, np.float32([[0.48], [0.45]])),
    ):
        found = weight_of(b.ops, exact(weighting=given), level, x, lambda: estimate)
        np.testing.assert_allclose(b.to_numpy(found), wanted, rtol=1e-6)
