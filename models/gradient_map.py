"""The map that steps down an energy, its inverse and its Jacobian: functions of `ops`.

    Phi(x) = x - eta grad E(x),     J = d Phi / dx = I - eta H(x),     H the Hessian of E

Phi is the gradient of |x|^2 / 2 - eta E(x): where eta lambda_max(H) < 1 that is convex, J is
symmetric and positive definite, and Phi is one to one. Its inverse is a fixed point, x = y + eta
grad E(x), which contracts where |eta lambda| < 1 on both signs; Newton's steps do the rest. In
continuous time, dx/dt = -grad E(x), the flow has an inverse whatever the curvature.

    log q(x_K) = log p_0(x_0) - sum_k log det J(x_k)          (Euler, exact)
    log q(x_T) = log p_0(x_0) + int tr H(x_t) dt              (Runge and Kutta, the limit)
    -log det J = sum_m eta^m tr(H^m) / m,   tr(A) = E[v' A v],   v of +-1     (in many dimensions)

Positions here are flat, [*batch, d]; an energy takes them with any leading axes and gives one
number each. What no number should stand for is NaN: a place where J is not positive definite, an
inverse that was not found, a series that does not converge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from probgen import ops

Array = Any
CONJUGATE_STEPS = 12  # of a Newton step where H is too large to write down
POWER_STEPS = 12
CARRIED_TERMS = 24  # of the derivative of such a step; what it lacks is |eta lambda|^25


class Undone(NamedTuple):
    """A step taken back.

    Attributes:
        x: where it came from, [*batch, d].
        log_det: log |det dx/dy|, [*batch], NaN where there is none.
        residual: |Phi(x) - y| / (1 + |y|).
        sharpness: max |eta lambda| there, by power iteration, from below.
        by_newton: 1.0 where fixed point iteration alone did not get there, else 0.0.
    """

    x: Array
    log_det: Array
    residual: Array
    sharpness: Array
    by_newton: Array


class GradientMap(NamedTuple):
    """Phi, or a Runge-Kutta step of the flow, `num_steps` times.

    Attributes:
        energy: [*lead, d] -> [*lead].
        step_size: eta.
        probes: of traces, [num, d] of +-1; None for exact ones by the whole Hessian.
        num_terms: of the series of -log det J, an even number.
        num_iterations, num_newton: of an inverse step.
        tolerance: of its residual.
        is_watched: whether `sharpness` is computed; else 0, but where it comes with the series.
    """

    energy: Callable[[Array], Array]
    step_size: float
    num_steps: int
    is_flow: bool = False
    probes: np.ndarray | None = None
    num_terms: int = 8
    num_iterations: int = 6
    num_newton: int = 3
    tolerance: float = 1e-4
    is_watched: bool = True

    def forward(self, z: Array) -> Array:
        """x = Phi^K(z)."""

        def step(x: Array, _: None) -> tuple[Array, None]:
            return (self._flow(x, self.step_size)[0] if self.is_flow else self.down(x)), None

        return ops.scan(step, z, length=self.num_steps)[0]

    def down(self, x: Array) -> Array:
        """Phi(x)."""
        return x - self.step_size * gradient(self.energy, x)

    def inverse(self, x: Array) -> Undone:
        """All steps taken back: log_det is their sum, residual and sharpness the largest."""

        def step(y: Array, _: None) -> tuple[Array, tuple]:
            at = self._flow_back(y) if self.is_flow else self._back(y)
            return at.x, tuple(at[1:])

        z, (log_det, residual, sharpness, newton) = ops.scan(step, x, length=self.num_steps)
        total = ops.sum(log_det, axis=0)
        return Undone(
            z, total, ops.max(residual, axis=0), ops.max(sharpness, axis=0), ops.sum(newton, axis=0)
        )

    # ---- one Euler step back

    def _back(self, y: Array) -> Undone:
        held = ops.stop_gradient(y)
        x, found = self._fixed_point(held)
        is_near = found < self.tolerance
        x = self._newton(held, x, found)
        # A last step of Newton's with the matrix held has the derivatives of the inverse itself.
        x = ops.stop_gradient(x)
        left = self.down(x) - y
        moved = self._solve(x, left)
        if self.probes is not None:
            moved = ops.stop_gradient(moved) + self._carried(x, left)
        x = x - ops.where(ops.isfinite(moved), moved, 0.0)
        log_det, sharpness = self._log_det(x)
        residual = _size(self.down(x) - y) / (1.0 + _size(y))
        log_det = ops.where(residual < self.tolerance, log_det, float("nan"))
        return Undone(x, log_det, residual, sharpness, ops.where(is_near, 0.0, 1.0))

    def _fixed_point(self, y: Array) -> tuple[Array, Array]:
        """x <- y + eta grad E(x) from y; of all iterates the best, and its residual."""

        def iterate(carry: tuple, _: None) -> tuple[tuple, None]:
            x, best, least = carry
            proposed = y + self.step_size * gradient(self.energy, x)
            residual = _size(x - proposed) / (1.0 + _size(y))  # Phi(x) - y
            best, least = _better(x, residual, best, least)
            return (proposed, best, least), None

        start = (y, y, ops.full_like(_size(y), float("inf")))
        (_, x, found), _ = ops.scan(iterate, start, length=self.num_iterations)
        return x, found

    def _newton(self, y: Array, x: Array, found: Array) -> Array:
        """Newton's steps from there, each kept only where it helps, and shorter after one that did
        not: |x|^2 / 2 - eta E(x) - y x is convex where the map is one to one."""

        def iterate(carry: tuple, _: None) -> tuple[tuple, None]:
            best, least, share = carry
            moved = self._solve(best, self.down(best) - y)
            proposed = best - ops.expand_dims(share, -1) * moved
            residual = _size(self.down(proposed) - y) / (1.0 + _size(y))
            share = ops.where(residual < least, 1.0, 0.25 * share)
            return (*_better(proposed, residual, best, least), share), None

        start = (x, found, 1.0 + ops.zeros_like(found))
        return ops.scan(iterate, start, length=self.num_newton)[0][0]

    def _solve(self, x: Array, r: Array) -> Array:
        """J(x)^-1 r, with no derivative of J; NaN where J is not positive definite."""
        if self.probes is not None:
            return self._conjugate_gradients(x, r)
        lower = ops.stop_gradient(ops.cholesky(self._jacobian(x)))
        half = ops.solve_triangular(lower, ops.expand_dims(r, -1))
        return ops.solve_triangular(_transposed(lower), half, lower=False)[..., 0]

    def _jacobian(self, x: Array) -> Array:
        """I - eta H(x), [*batch, d, d]."""
        return ops.eye_like(x.shape[-1], x) - self.step_size * hessian(self.energy, x)

    def _conjugate_gradients(self, x: Array, r: Array) -> Array:
        """The same without the matrix; a direction of no curvature left is not followed."""

        def times(v: Array) -> Array:
            return v - self.step_size * hessian_times(self.energy, x, v)

        def iterate(carry: tuple, _: None) -> tuple[tuple, None]:
            u, left, way, square = carry
            along = ops.stop_gradient(times(way))
            curve = ops.sum(way * along, axis=-1, keepdims=True)
            is_done = curve <= 1e-30
            step = ops.where(is_done, 0.0, square / ops.where(is_done, 1.0, curve))
            u, left = u + step * way, left - step * along
            new = ops.sum(left * left, axis=-1, keepdims=True)
            turn = ops.where(square <= 1e-30, 0.0, new / ops.where(square <= 1e-30, 1.0, square))
            return (u, left, left + turn * way, new), None

        start = (0.0 * r, r, r, ops.sum(r * r, axis=-1, keepdims=True))
        return ops.scan(iterate, start, length=CONJUGATE_STEPS)[0][0]

    def _carried(self, x: Array, r: Array) -> Array:
        """0, with the derivative of J(x)^-1 r in r, sum_m (eta H)^m dr. That of conjugate gradients
        is another: the lengths of their steps hang on r."""
        held, start = ops.stop_gradient(x), r - ops.stop_gradient(r)

        def iterate(carry: tuple, _: None) -> tuple[tuple, None]:
            term = self.step_size * hessian_times(self.energy, held, carry[0])
            return (term, carry[1] + term), None

        return ops.scan(iterate, (start, start), length=CARRIED_TERMS)[0][1]

    # ---- log det of one step

    def _log_det(self, x: Array) -> tuple[Array, Array]:
        """(-log det J, max |eta lambda|) at x."""
        if self.probes is not None:
            return self._series(x)
        jacobian = self._jacobian(x)
        log_diagonal = ops.log(ops.diagonal(ops.cholesky(jacobian)))
        log_det = -2.0 * ops.sum(log_diagonal, axis=-1)
        scaled = ops.stop_gradient(ops.eye_like(x.shape[-1], x) - jacobian)
        return log_det, self._watch(lambda v: (scaled @ ops.expand_dims(v, -1))[..., 0], x)

    def _watch(self, times: Callable, x: Array) -> Array:
        return largest(times, x) if self.is_watched else ops.zeros_like(x[..., 0])

    def _series(self, x: Array) -> tuple[Array, Array]:
        """sum_m eta^m v' H^m v / m, the mean over probes; each product serves two powers."""
        spread, v = _spread(self.probes, x)
        total, power, rate = 0.0, v, 0.0
        for m in range(1, self.num_terms + 1, 2):
            new = self.step_size * hessian_times(self.energy, spread, power)
            total = (
                total + ops.sum(power * new, axis=-1) / m + ops.sum(new * new, axis=-1) / (m + 1)
            )
            rate, power = _size(new) / (_size(power) + 1e-30), new
        sharpness = ops.stop_gradient(ops.max(rate, axis=0))
        found = ops.where(sharpness < 1.0, ops.mean(total, axis=0), float("nan"))
        return found, sharpness

    # ---- the flow in continuous time

    def _flow(self, x: Array, h: float, volume: bool = False) -> tuple[Array, Array]:
        """(x, integral of tr H) after a Runge-Kutta step of dx/dt = -grad E over h."""

        def slope(x: Array) -> tuple[Array, Array]:
            return -gradient(self.energy, x), self._trace(x) if volume else _size(x)

        way, gain = slope(x)
        total, gained = way, gain
        for share, weight in ((0.5, 2.0), (0.5, 2.0), (1.0, 1.0)):
            way, gain = slope(x + share * h * way)
            total, gained = total + weight * way, gained + weight * gain
        return x + h / 6.0 * total, h / 6.0 * gained

    def _flow_back(self, y: Array) -> Undone:
        x, lost = self._flow(y, -self.step_size, volume=True)
        again = self._flow(x, self.step_size)[0]
        residual = ops.stop_gradient(_size(again - y) / (1.0 + _size(y)))
        times = lambda v: self.step_size * hessian_times(self.energy, x, v)  # noqa: E731
        sharpness = ops.stop_gradient(self._watch(times, x))
        log_det = ops.where(residual < self.tolerance, -lost, float("nan"))
        return Undone(x, log_det, residual, sharpness, 0.0 * residual)

    def _trace(self, x: Array) -> Array:
        if self.probes is None:
            return ops.sum(ops.diagonal(hessian(self.energy, x)), axis=-1)
        spread, v = _spread(self.probes, x)
        return ops.mean(ops.sum(v * hessian_times(self.energy, spread, v), axis=-1), axis=0)


# ---- derivatives of an energy -------------------------------------------------------------------


def gradient(energy: Callable, x: Array) -> Array:
    """grad E(x), [*batch, d]."""
    return ops.grad(lambda x: ops.sum(energy(x)))(x)


def hessian_times(energy: Callable, x: Array, v: Array) -> Array:
    """H(x) v, [*batch, d], for a v that does not hang on x."""
    return ops.grad(lambda x: ops.sum(gradient(energy, x) * v))(x)


def hessian(energy: Callable, x: Array) -> Array:
    """H(x), [*batch, d, d], all its columns by one pass over d copies of x."""
    d = x.shape[-1]
    spread, basis = _spread(np.eye(d), x)
    columns = hessian_times(energy, spread, basis)
    return ops.transpose(columns, (*range(1, x.ndim), 0, x.ndim))


def largest(times: Callable, x: Array) -> Array:
    """The largest |eigenvalue| of a symmetric matrix by its products, [*batch], from below."""
    start = np.cos(np.arange(x.shape[-1]) + 0.5)
    v = 0.0 * x + ops.asarray_like(start / np.linalg.norm(start), x)

    def iterate(v: Array, _: None) -> tuple[Array, Array]:
        new = times(v)
        size = _size(new)
        return new / ops.expand_dims(size + 1e-30, -1), size

    return ops.scan(iterate, v, length=POWER_STEPS)[1][-1]


def _spread(vectors: Any, x: Array) -> tuple[Array, Array]:
    """x once for each vector, and the vectors, both [num, *x.shape]."""
    v = ops.asarray_like(np.asarray(vectors, np.float64), x)
    v = ops.reshape(v, (v.shape[0], *([1] * (x.ndim - 1)), v.shape[1]))
    shape = (v.shape[0], *x.shape)
    return ops.broadcast_to(x, shape), ops.broadcast_to(v, shape)


def _size(x: Array) -> Array:
    """|x| of each, [*batch]; its derivative is not asked for."""
    return ops.sqrt(ops.sum(ops.stop_gradient(x) ** 2, axis=-1))


def _better(x: Array, residual: Array, best: Array, least: Array) -> tuple[Array, Array]:
    """Of each datum the position with the smaller residual; NaN is none."""
    is_better = residual < least
    return (
        ops.where(ops.expand_dims(is_better, -1), x, best), ops.where(is_better, residual, least)
    )  # fmt: skip


def _transposed(a: Array) -> Array:
    return ops.transpose(a, (*range(a.ndim - 2), a.ndim - 1, a.ndim - 2))
