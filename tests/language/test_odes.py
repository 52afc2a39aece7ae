"""`ops.solve_ode`: the matrix exponential and its gradient, a rate from data, refusals."""

import sys

import numpy as np
import pytest
from scipy.linalg import expm

import probgen as pg
from probgen import dist, ops
from probgen.engine.bind import bind
from probgen.errors import BackendError, DeclarationError, ShapeError

A = np.array([[-0.5, 1.0], [-1.0, -0.3]], "float32")
TIMES = np.array([0.0, 0.5, 2.0], "float32")
Y0 = np.array([1.0, 0.5], "float32")
PACKAGES = {"jax": "diffrax", "torch": "torchdiffeq"}


@pytest.mark.parametrize("num_steps", [None, 5])
def test_a_linear_equation_is_the_matrix_exponential(b, num_steps):
    """y(t) = e^{r A t} y_0, whose derivative in r is t A y(t); steps of both kinds."""
    if num_steps is None:
        pytest.importorskip(PACKAGES[b.name])

    def last(r):
        y = ops.solve_ode(
            lambda t, y: r * ops.matmul(ops.asarray_like(A, y), y), b.asarray(Y0), TIMES,
            num_steps=num_steps, rtol=1e-6, atol=1e-7,
        )  # fmt: skip
        return ops.sum(y[-1]), y

    solve = b.compile(b.value_and_grad(last, has_aux=True), num_calls=10)
    (_, found), slope = solve(b.asarray(np.float32(0.7)))
    want = np.stack([expm(0.7 * A.astype(float) * t) @ Y0 for t in TIMES])
    np.testing.assert_allclose(b.to_numpy(found), want, atol=2e-4)
    np.testing.assert_allclose(b.to_numpy(slope), (2.0 * A @ want[-1]).sum(), rtol=2e-3)
    if b.name == "torch" and num_steps is None:
        assert "live" in b.info()["routes"]
        assert "chooses its steps by the numbers" in str(b.info()["fallbacks"])


@pg.model
def growth(times):
    """Logistic growth, y' = r y (1 - y): y(t) = 1 / (1 + 9 e^{-r t}) from 0.1."""
    r = pg.sample("r", dist.LogNormal(0.0, 1.0))
    y = ops.solve_ode(lambda t, y: r * y * (1.0 - y), 0.1, times, num_steps=2)
    pg.sample("y", dist.Normal(y, 0.02).to_event(1))


def test_a_rate_is_recovered_from_noisy_data(b):
    """The peak of the log joint lies within its own standard errors of the truth, by Newton."""
    times = np.linspace(0.0, 5.0, 11).astype("float32")
    exact = 1 / (1 + 9 * np.exp(-1.3 * times))
    y = (exact + 0.02 * np.random.default_rng(0).normal(size=11)).astype("float32")
    bound, params = bind(growth, b, data={"y": y}, constants={"times": times}, whole=True)

    def joint(r, rows):
        sites = bound.trace(params, rows, {"r": r})
        return ops.sum(sites["y"].log_prob) + ops.sum(sites["r"].log_prob)

    slope = b.grad(joint)
    slope = b.compile(slope) if b.name == "jax" else slope  # a graph is dear to trace
    rows, r = {"y": b.asarray(y)}, 1.0
    for _ in range(6):
        here, near = (float(slope(b.asarray(np.float32(v)), rows)) for v in (r, r + 0.01))
        curvature = (near - here) / 0.01
        r -= here / curvature
    assert abs(r - 1.3) < 5 * (-curvature) ** -0.5 < 0.2


def test_steps_that_run_out_are_nan(b):
    pytest.importorskip(PACKAGES[b.name])
    fast = ops.solve_ode(lambda t, y: -1e4 * y, b.asarray(Y0), TIMES, max_steps=3)
    assert np.isnan(b.to_numpy(fast)[-1]).all()


def test_what_cannot_be_solved_is_refused_in_words(b, monkeypatch):
    y0 = b.asarray(Y0)
    with pytest.raises(ShapeError, match="expected that shape"):
        ops.solve_ode(lambda t, y: y[:1], y0, TIMES, num_steps=1)
    with pytest.raises(ShapeError, match=r"expected \[n\] with n of at least 2"):
        ops.solve_ode(lambda t, y: y, y0, TIMES[:1], num_steps=1)
    with pytest.raises(DeclarationError, match="expected floats"):
        ops.solve_ode(lambda t, y: y, b.asarray(np.array([1, 2])), TIMES)
    monkeypatch.setitem(sys.modules, PACKAGES[b.name], None)
    with pytest.raises(BackendError, match=r"pip install 'probgen\[ode\]'"):
        ops.solve_ode(lambda t, y: y, y0, TIMES)
