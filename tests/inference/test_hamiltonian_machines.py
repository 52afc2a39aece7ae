"""NUTS and HMC, a leapfrog at a time: what they compute, and the laws that they leave alone."""

import numpy as np
import pytest
import scipy.stats
from floats import float64

from probgen.inference.sample.fixed_time import fixed_time
from probgen.inference.sample.machine import Noise, Place
from probgen.inference.sample.no_u_turn import no_u_turn


def climber(b, log_density):
    """(x [chain, d]) -> (log density, its gradient)."""
    both = b.value_and_grad(lambda x: (b.ops.sum(v := log_density(x)), v), has_aux=True)

    def climb(x):
        (_, value), grad = both(x)
        return value, grad

    return climb


def transitions(b, make, log_density, x, size, rng, count, depth=10, length=1.0):
    """What the first `count` transitions of each chain told, [count, chain, ...], and how many
    steps all took; `rng` gives each step's noise, [chain, ...]."""
    climb = climber(b, log_density)
    machine = make(b.ops, climb) if make is fixed_time else make(b.ops, climb, depth)
    num, dim = x.shape
    size, length = b.asarray(np.broadcast_to(size, num)), b.asarray(np.full(num, length))
    still = (lambda v: v, lambda v: v)

    def noise():
        return Noise(b.asarray(rng.normal(size=(num, dim))), b.asarray(rng.random((num, 3))))

    def begun(x, noise, length):
        value, grad = climb(x)
        return machine.begin(Place(x, grad, value, value), noise, length)

    state = b.compile(begun, 1)(b.asarray(x), noise(), length)
    step = b.compile(lambda state, noise: machine.step(state, noise, size, still, length))
    told, counts = [], np.zeros(num, int)
    while counts.min() < count:
        state, out = step(state, noise())
        out = {n: b.to_numpy(v) for n, v in out.items()}
        counts += out["done"]
        told.append(out)
    stacked = {n: np.stack([t[n] for t in told]) for n in told[0]}
    index = np.stack([np.flatnonzero(stacked["done"][:, c])[:count] for c in range(num)], axis=1)
    return {n: np.stack([v[index[:, c], c] for c in range(num)], axis=1)
            for n, v in stacked.items()}  # fmt: skip


# ---- the same tree, made of a list of all its points


def listed(climb, x, size, row, rows, depth):
    """One transition of NUTS that remembers every point: (draw, leapfrogs, last row of noise)."""

    def energy(at, p):
        return 0.5 * p @ p - climb(at)[0]

    def turned(part):
        total = sum(p for _, p in part)
        return part[0][1] @ total <= 0 or part[-1][1] @ total <= 0

    def turned_anyhow(part):
        """By the criterion of all of it, and of each half with the other's nearest point."""
        half = len(part) // 2
        return turned(part) or turned(part[: half + 1]) or turned(part[half - 1 :])

    points = [(x, row.normal)]
    start, draw, weight, steps = energy(*points[0]), x, 0.0, 0
    for level in range(depth):
        # In the order in which they grow; backwards in time by steps of -size.
        way = -1.0 if row.uniform[2] < 0.5 else 1.0
        ends, added, sub_weight, sub_draw = points[:: int(way)], [], -np.inf, None
        for count in range(1, 2**level + 1):
            at, p = (ends + added)[-1]
            p = p + 0.5 * way * size * climb(at)[1]
            at = at + way * size * p
            p = p + 0.5 * way * size * climb(at)[1]
            added.append((at, p))
            row, steps = next(rows), steps + 1
            gain = start - energy(at, p)
            sub_weight = np.logaddexp(sub_weight, gain)
            if np.log(row.uniform[0]) < gain - sub_weight:
                sub_draw = at
            whole = [added[-(2**k) :] for k in range(1, level + 1) if count % 2**k == 0]
            if not gain > -1000 or any(map(turned_anyhow, whole)):
                return draw, steps, row
        if np.log(row.uniform[1]) < sub_weight - weight:
            draw = sub_draw
        weight = np.logaddexp(weight, sub_weight)
        points = (ends + added)[:: int(way)]
        if turned_anyhow(points):
            break
    return draw, steps, row


def bent(ops):
    """log p of x_0 Gumbel, x_1 | x_0 ~ N(x_0^2 / 2, 1 / 4): bent and skewed."""
    return lambda x: (
        -x[..., 0] - ops.exp(-x[..., 0]) - 2.0 * (x[..., 1] - 0.5 * x[..., 0] ** 2) ** 2
    )


def bent_by_hand(x):
    """(log p, its gradient), numpy."""
    gap = x[1] - 0.5 * x[0] ** 2
    return (
        -x[0] - np.exp(-x[0]) - 2.0 * gap**2,
        np.array([-1.0 + np.exp(-x[0]) + 4.0 * gap * x[0], -4.0 * gap]),
    )


class Rows:
    """A generator that remembers what it gave."""

    def __init__(self, seed):
        self.rng, self.normals, self.uniforms = np.random.default_rng(seed), [], []

    def normal(self, size):
        self.normals.append(self.rng.normal(size=size))
        return self.normals[-1]

    def random(self, size):
        self.uniforms.append(self.rng.random(size))
        return self.uniforms[-1]


@pytest.mark.parametrize("depth", [1, 6])
def test_trees_of_bounded_memory_are_those_of_all_points(b, depth):
    """On the same noise, to rounding; at these sizes of steps trees have every depth, and some
    diverge."""
    rows, x = Rows(0), np.random.default_rng(1).normal(size=(6, 2))
    size = np.array([0.02, 0.05, 0.1, 0.2, 0.4, 0.9])
    with float64(b):
        told = transitions(b, no_u_turn, bent(b.ops), x, size, rows, 8, depth)
    for chain in range(6):
        each = (Noise(z[chain], u[chain]) for z, u in zip(rows.normals, rows.uniforms, strict=True))
        at, row = x[chain], next(each)
        for i in range(8):
            at, steps, row = listed(bent_by_hand, at, size[chain], row, each, depth)
            assert told["n_steps"][i, chain] == steps
            np.testing.assert_allclose(told["x"][i, chain], at, rtol=1e-7)
    depths = np.floor(np.log2(told["n_steps"])) + 1
    assert set(np.unique(depths)) >= set(range(1, depth))


# ---- laws that are left alone


def gumbel_and_more(rng, num):
    first = -np.log(-np.log(rng.random(num)))
    return np.stack([first, 0.5 * first**2 + 0.5 * rng.normal(size=num)], axis=1)


# Of the trees above the law is known; `test_infer` sees it too.
TREES = pytest.param(
    no_u_turn,
    0.35,
    id="NUTS",
    marks=pytest.mark.repeated("test_infer.py::test_nuts_keeps_a_posterior_known_in_closed_form"),
)


@pytest.mark.parametrize(("make", "size"), [TREES, pytest.param(fixed_time, 0.3, id="HMC")])
def test_the_law_of_draws_stays(b, make, size):
    """4,000 chains that start by it are of it after four transitions: by the Kolmogorov-Smirnov
    distance of x_0 and of x_1 - x_0^2 / 2, at a level of 1e-4 each."""
    x = gumbel_and_more(np.random.default_rng(2), 4_000)
    rng = np.random.default_rng(3)
    told = transitions(b, make, bent(b.ops), x, size, rng, 4, depth=4, length=1.2)
    end = told["x"][-1]
    assert 0.5 < told["acceptance_rate"].mean() < 0.98  # the test sees what it is to correct
    moved = np.abs(end - x).min(1) > 0
    assert moved.mean() > 0.9
    for values, law in (
        (end[:, 0], scipy.stats.gumbel_r.cdf),
        (2.0 * (end[:, 1] - 0.5 * end[:, 0] ** 2), scipy.stats.norm.cdf),
    ):
        assert scipy.stats.kstest(values, law).pvalue > 1e-4


def test_hmc_takes_the_leapfrogs_of_its_time(b):
    """floor(T / h) of them, at least one; and num_steps whatever the step size."""
    x, rng = np.zeros((3, 1)), np.random.default_rng(4)
    square = lambda x: -0.5 * x[:, 0] ** 2  # noqa: E731
    told = transitions(b, fixed_time, square, x, np.array([0.3, 0.11, 5.0]), rng, 2)
    np.testing.assert_array_equal(told["n_steps"], [[3, 9, 1]] * 2)


def test_a_step_too_long_is_told_as_divergent(b):
    """Where the energy error is above 1,000 nats, some 5,000 here, the draw stays where it was; a
    step in which the motion is stable does not diverge."""
    x, rng = np.full((2, 1), 0.5), np.random.default_rng(5)
    steep = lambda x: -0.5 * 137.0 * x[:, 0] ** 2  # noqa: E731
    told = transitions(b, no_u_turn, steep, x, np.array([0.5, 0.1]), rng, 1)
    np.testing.assert_array_equal(told["diverging"], [[True, False]])
    assert told["x"][0, 0] == 0.5
    assert told["n_steps"][0, 0] == 1
