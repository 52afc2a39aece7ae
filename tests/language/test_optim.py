"""Optimisers: both backends step as torch.optim and optax do; schedules are their formulas."""

import math

import numpy as np
import pytest

import probgen as pg
from probgen.backends import available
from probgen.backends.optimizer_steps import pure
from probgen.errors import DeclarationError
from probgen.trees import tree_map

START = {"a": {"w": np.array([[1.0, -2.0], [0.5, 3.0]])}, "b": np.array([4.0, -1.0, 0.1])}
CURVATURE = {"a": {"w": np.array([[3.0, 0.2], [1.0, 0.05]])}, "b": np.array([0.5, 2.0, 1.0])}
STEPS = 50

DECLARATIONS = {
    "adam": pg.Adam(0.05),
    "adam, L2": pg.Adam(0.05, weight_decay=0.1),
    "adam, betas": pg.Adam(0.05, b1=0.5, b2=0.9, eps=1e-4),
    "adamw": pg.AdamW(0.05, weight_decay=0.1),
    "sgd": pg.SGD(0.05),
    "sgd, L2": pg.SGD(0.05, weight_decay=0.1),
    "momentum": pg.SGD(0.02, momentum=0.9),
    "nesterov": pg.SGD(0.02, momentum=0.9, nesterov=True, weight_decay=0.01),
    "clipped adam": pg.Adam(0.05, clip_norm=0.5),
    "clipped sgd": pg.SGD(0.05, clip_norm=0.5, weight_decay=0.1),
    "cosine": pg.Adam(pg.CosineDecay(0.1, num_steps=40, warmup_steps=10, final=0.01)),
    "exponential": pg.SGD(pg.ExponentialDecay(0.1, rate=0.5, every=10)),
    "warm-up": pg.AdamW(pg.LinearWarmup(0.1, num_steps=20), weight_decay=0.01),
}


def ours(backend, declaration, steps=STEPS):
    """Parameters after `steps` on 1/2 sum c p^2, and the state."""
    optimizer = backend.optimizer(declaration)
    params = backend.copy(tree_map(backend.asarray, START))
    curvature = tree_map(backend.asarray, CURVATURE)
    state = optimizer.init(params)
    for _ in range(steps):
        grads = tree_map(lambda c, p: c * p, curvature, params)
        params, state = optimizer.update(grads, state, params)
    return tree_map(lambda x: np.array(backend.to_numpy(x)), params), state


def flat(params):
    return np.concatenate([params["a"]["w"].ravel(), params["b"].ravel()])


def rate_at(rate, count):
    """Each schedule as its docstring has it, in plain Python."""
    if isinstance(rate, pg.CosineDecay):
        if count < rate.warmup_steps:
            return rate.peak * (count + 1) / rate.warmup_steps
        part = min((count - rate.warmup_steps) / (rate.num_steps - rate.warmup_steps), 1.0)
        return rate.final + (rate.peak - rate.final) * (1 + math.cos(math.pi * part)) / 2
    if isinstance(rate, pg.ExponentialDecay):
        return rate.start * rate.rate ** (count / rate.every)
    if isinstance(rate, pg.LinearWarmup):
        return rate.peak * min((count + 1) / rate.num_steps, 1.0)
    return rate


def by_torch(d):
    torch = pytest.importorskip("torch")
    ps = [torch.tensor(START["a"]["w"]), torch.tensor(START["b"])]  # float64
    cs = [torch.tensor(CURVATURE["a"]["w"]), torch.tensor(CURVATURE["b"])]
    kind = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW, "SGD": torch.optim.SGD}
    options = {"weight_decay": d.weight_decay}
    if isinstance(d, pg.SGD):
        options |= {"momentum": d.momentum, "nesterov": d.nesterov}
    else:
        options |= {"betas": (d.b1, d.b2), "eps": d.eps}
    reference = kind[type(d).__name__](ps, lr=1.0, **options)
    for count in range(STEPS):
        for p, c in zip(ps, cs, strict=True):
            p.grad = c * p
        if d.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(ps, d.clip_norm)
        reference.param_groups[0]["lr"] = rate_at(d.learning_rate, count)
        reference.step()
    return np.concatenate([p.detach().numpy().ravel() for p in ps])


def by_optax(d):
    optax = pytest.importorskip("optax")
    jax = pytest.importorskip("jax")

    def rate(count):
        grid = np.array([rate_at(d.learning_rate, i) for i in range(STEPS + 1)], np.float32)
        return jax.numpy.asarray(grid)[count]

    if isinstance(d, pg.SGD):
        chain = optax.sgd(rate, d.momentum or None, d.nesterov)
    elif isinstance(d, pg.AdamW):
        chain = optax.adamw(rate, d.b1, d.b2, d.eps, weight_decay=d.weight_decay)
    else:
        chain = optax.adam(rate, d.b1, d.b2, d.eps)
    if d.weight_decay and not isinstance(d, pg.AdamW):
        chain = optax.chain(optax.add_decayed_weights(d.weight_decay), chain)
    if d.clip_norm is not None:
        chain = optax.chain(optax.clip_by_global_norm(d.clip_norm), chain)
    params = tree_map(lambda x: jax.numpy.asarray(x, "float32"), START)
    state = chain.init(params)

    @jax.jit
    def step(params, state):
        grads = jax.tree.map(lambda c, p: c * p, CURVATURE, params)
        updates, state = chain.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(STEPS):
        params, state = step(params, state)
    return flat(tree_map(np.asarray, params))


@pytest.mark.parametrize("name", DECLARATIONS)
def test_fifty_steps_are_those_of_torch_optim(backend, name):
    params, _ = ours(backend, DECLARATIONS[name])
    np.testing.assert_allclose(flat(params), by_torch(DECLARATIONS[name]), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("name", DECLARATIONS)
def test_fifty_steps_are_those_of_optax(backend, name):
    params, _ = ours(backend, DECLARATIONS[name])
    np.testing.assert_allclose(flat(params), by_optax(DECLARATIONS[name]), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("name", DECLARATIONS)
def test_both_backends_take_the_same_steps(name):
    if not all(available().values()):
        pytest.skip("needs torch and jax")
    from probgen import backends

    one, two = (ours(backends.load(n, "cpu"), DECLARATIONS[name])[0] for n in ("torch", "jax"))
    # A path of length 4 in float32, which Adam bends where a gradient changes sign.
    np.testing.assert_allclose(flat(one), flat(two), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    "schedule",
    [
        pg.CosineDecay(0.1, num_steps=40, warmup_steps=10, final=0.01),
        pg.CosineDecay(0.1, num_steps=40),
        pg.ExponentialDecay(0.1, rate=0.5, every=10),
        pg.LinearWarmup(0.1, num_steps=20),
    ],
    ids=lambda s: type(s).__name__,
)
def test_a_schedule_is_its_formula_on_arrays_of_the_backend(backend, schedule):
    counts = np.array([0, 1, 9, 10, 19, 20, 25, 39, 40, 100], np.float32)
    got = backend.to_numpy(schedule.at(backend.asarray(counts)))
    np.testing.assert_allclose(got, [rate_at(schedule, c) for c in counts], rtol=1e-5, atol=1e-8)


def test_the_state_counts_steps_and_its_scale_scales_the_step(backend):
    optimizer = backend.optimizer(pg.SGD(0.1))
    params = {"w": backend.asarray(np.ones(3))}
    state = optimizer.init(params)
    state = {**state, "step_scale": state["step_scale"] * 0.5}
    grads = {"w": backend.asarray(np.full(3, 2.0))}
    params, state = optimizer.update(grads, state, params)
    np.testing.assert_allclose(backend.to_numpy(params["w"]), 1.0 - 0.5 * 0.1 * 2.0, rtol=1e-6)
    assert float(backend.to_numpy(state["count"])) == 1.0


@pytest.mark.parametrize("is_pure", [False, True])
def test_elements_are_clipped_by_the_second_moment_before_them(backend, is_pure):
    """+-(3 sqrt(vhat) + 0.1) by hand, vhat of the updates before: the first is free, the jump to
    50 is held, each element by its own bound."""
    d = pg.Adam(0.1, b1=0.5, b2=0.9, clip_by_moment=(3.0, 0.1), weight_decay=0.01)
    given = np.array([[2.0, -0.01, 0.0], [50.0, -50.0, 0.5], [1.0, 1.0, -9.0]])
    p, m, v, clipped = np.ones(3), np.zeros(3), np.zeros(3), 0
    for t, g in enumerate(given, start=1):
        if t > 1:
            bound = 3.0 * np.sqrt(v / (1.0 - 0.9 ** (t - 1))) + 0.1
            clipped, g = clipped + (np.abs(g) > bound).sum(), np.clip(g, -bound, bound)
        g = g + 0.01 * p
        m, v = 0.5 * m + 0.5 * g, 0.9 * v + 0.1 * g * g
        p = p - 0.1 * (m / (1 - 0.5**t)) / (np.sqrt(v / (1 - 0.9**t)) + d.eps)
    assert clipped == 5
    optimizer = pure(d) if is_pure else backend.optimizer(d)
    params = {"w": backend.asarray(np.ones(3))}
    state = optimizer.init(params)
    for g in given:
        params, state = optimizer.update({"w": backend.asarray(g)}, state, params)
    np.testing.assert_allclose(backend.to_numpy(params["w"]), p, rtol=1e-5)


def test_clipping_a_zero_gradient_leaves_the_parameters(backend):
    optimizer = backend.optimizer(pg.SGD(0.1, clip_norm=1.0))
    params = {"w": backend.asarray(np.ones(3))}
    state = optimizer.init(params)
    params, _ = optimizer.update({"w": backend.asarray(np.zeros(3))}, state, params)
    np.testing.assert_array_equal(backend.to_numpy(params["w"]), np.ones(3, np.float32))


@pytest.mark.parametrize(
    "make",
    [
        lambda: pg.Adam(0.0),
        lambda: pg.Adam(float("nan")),
        lambda: pg.Adam(b1=1.0),
        lambda: pg.Adam(eps=0.0),
        lambda: pg.Adam(clip_by_moment=(3.0, 0.0)),
        lambda: pg.Adam(clip_norm=0.0),
        lambda: pg.AdamW(weight_decay=-0.1),
        lambda: pg.SGD(0.1, momentum=1.0),
        lambda: pg.SGD(0.1, nesterov=True),
        lambda: pg.CosineDecay(0.1, num_steps=0),
        lambda: pg.CosineDecay(0.1, num_steps=5, warmup_steps=6),
        lambda: pg.ExponentialDecay(0.1, rate=-1.0, every=2),
        lambda: pg.LinearWarmup(-0.1, num_steps=3),
    ],
)
def test_options_that_make_no_sense_are_refused_where_they_are_written(make):
    with pytest.raises(DeclarationError, match="expected"):
        make()
