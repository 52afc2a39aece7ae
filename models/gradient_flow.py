"""The generator that steps down an energy, as a density: what a chain without noise draws from.

    x = Phi^K(z),    Phi(x) = x - eta grad E(x),    z ~ p_0
    log q(x) = log p_0(z) - sum_k log det(I - eta H(x_k)),    H the Hessian of E

An energy that is trained by maximum likelihood with short chains defines two laws: the nominal one,
exp(-E) / Z, and q, of what its chain makes of its starts. Samples are those of q; q need not be
near the nominal law, and the loss is that of a critic -E whose generator is its own gradient.

Source: Xiao, Yan & Amit 2021, arXiv:2102.11757.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

import probgen as pg
from probgen import dist, ops
from probgen.errors import ShapeError
from probgen.language.declared import declaration, require
from probgen.language.kinds import AnyNet, CountOrZero, Many, Positive
from probgen.language.model import Distribution, Model
from probgen.models.ebm import EBM
from probgen.models.gradient_map import GradientMap, Undone
from probgen.nets.smooth import require_smooth

Array = Any
EXACT_UP_TO = 16  # dimensions of which "auto" writes the Hessian down


@declaration
class GradientFlowGenerator(Model):
    """x = Phi^K(z), Phi(x) = x - eta grad E(x), z ~ start: draws, and an exact log density.

    It has the net of `EBM(energy, ...)` and of its own `gibbs`, so that parameters go over:

        generator = GradientFlowGenerator(energy, start, step_size=0.05, num_steps=20)
        fitted = pg.fit(generator.gibbs, x, MaximumLikelihood(GradientFlow(0.05, 20)), ...)
        pg.evaluate(pg.Fitted(generator, fitted.params), x, [ELBO(), Invertibility()])

    or it is fitted itself, by its own log-likelihood: `SVI(ELBO())`.

    Args:
        energy: a smooth net from a datum to a number (`nets.MLPEnergy`).
        start: p_0, of z, with the data's shape.
        step_size, num_steps: eta and K; with another of them it is another density.
        solver: "euler", the map of the chain; "rk4", the flow dx/dt = -grad E over eta K, to which
            the former is near by the order of eta.
        log_det: "exact", by the whole Hessian; "hutchinson", by products with probes (a series in
            `num_terms` powers for "euler", which needs |eta lambda| < 1); "auto" is exact up to 16
            dimensions.
        num_probes, probe_seed: probes of +-1, the same for all data and parameters: an estimate
            whose error data share, and none where the Hessian is diagonal.
        num_terms: of the series, even.
        num_iterations: of the fixed point that takes a step back; its best iterate goes on to
            `num_newton` steps of Newton's.
        tolerance: of a step's |Phi(x) - y| / (1 + |y|). Where it is not met, where I - eta H is not
            positive definite (the map folds) or the series does not converge, log q is NaN and no
            number; `inference.Invertibility` says which of them it is. With probes that is seen as
            far as their powers see it, from below: a fold in few of many directions may be missed.

    Sites: "x" (data). Nets: "energy".

    Raises: DeclarationError: the energy has parts without second derivatives (relu, max pooling).
    Raises (when bound): ShapeError: an energy that is not one number a datum.

    Sources: Xiao, Yan & Amit 2021, arXiv:2102.11757; Hutchinson 1990; Behrmann et al. 2019,
    arXiv:1811.00995 (the series).
    """

    energy: AnyNet
    start: Distribution
    step_size: Positive = 0.05
    num_steps: Many = 20
    solver: Literal["euler", "rk4"] = dataclasses.field(default="euler", kw_only=True)
    log_det: Literal["auto", "exact", "hutchinson"] = dataclasses.field(
        default="auto", kw_only=True
    )
    num_probes: Many = dataclasses.field(default=16, kw_only=True)
    probe_seed: CountOrZero = dataclasses.field(default=0, kw_only=True)
    num_terms: Many = dataclasses.field(default=8, kw_only=True)
    num_iterations: Many = dataclasses.field(default=6, kw_only=True)
    num_newton: Many = dataclasses.field(default=3, kw_only=True)
    tolerance: Positive = dataclasses.field(default=1e-4, kw_only=True)

    def __post_init__(self) -> None:
        require_smooth(self.energy, type(self).__name__)
        require(self.num_terms % 2 == 0, self, "an even number of powers", "num_terms")

    @property
    def gibbs(self) -> EBM:
        """The nominal law of the same energy, exp(-E) / Z, whose chains begin at `start`."""
        return EBM(self.energy, dist.ImproperUniform("real", start=self.start))

    @property
    def program(self) -> Any:
        def program() -> None:
            energy = pg.net("energy", self.energy)
            forward, inverse = self._functions(energy)
            with pg.data_plate():
                pg.sample("x", dist.Transformed(self.start, forward, inverse))

        return program

    def undone(self, params: Mapping, x: Array) -> Undone:
        """The steps that lead to data x, taken back: where from, how sharp and how exactly."""
        energy = lambda x: self.energy.apply(params["energy"], x)  # noqa: E731
        step, flat, whole = self._map(energy, x)
        found = step.inverse(flat(x))
        return found._replace(x=whole(found.x))

    def _functions(self, energy: Callable) -> tuple[Callable, Callable]:
        def forward(z: Array) -> Array:
            step, flat, whole = self._map(energy, z)
            return whole(step.forward(flat(z)))

        def inverse(x: Array) -> tuple[Array, Array]:
            step, flat, whole = self._map(energy, x)
            found = step._replace(is_watched=False).inverse(flat(x))
            return whole(found.x), found.log_det

        return forward, inverse

    def _map(self, energy: Callable, x: Array) -> tuple[GradientMap, Callable, Callable]:
        """(the map on flat positions, what flattens those of x's shape, and its inverse)."""
        batch = tuple(energy(x).shape)  # the net gets its first parameters here, in no derivative
        shape = tuple(x.shape)
        has_event = any(method == "to_event" for method, _ in self.start.calls)
        if shape[: len(batch)] != batch or (has_event and len(batch) == len(shape)):
            raise ShapeError(
                f"GradientFlowGenerator: the energy gives {batch} for data of shape {shape}, "
                "expected one number a datum, the leading axes alone; use nets.MLPEnergy or "
                "nets.ConvEnergy, or sum over what is left."
            )
        event = shape[len(batch) :]
        size = math.prod(event)
        is_exact = self.log_det == "exact" or (self.log_det == "auto" and size <= EXACT_UP_TO)
        probes = None
        if not is_exact:
            draws = np.random.default_rng(self.probe_seed).integers(0, 2, (self.num_probes, size))
            probes = 2.0 * draws - 1.0

        def flat(x: Array) -> Array:
            return ops.reshape(x, (*batch, size))

        def whole(x: Array) -> Array:
            return ops.reshape(x, (*tuple(x.shape)[:-1], *event))

        step = GradientMap(
            lambda x: energy(whole(x)), self.step_size, self.num_steps, self.solver == "rk4",
            probes, self.num_terms, self.num_iterations, self.num_newton, self.tolerance,
        )  # fmt: skip
        return step, flat, whole

    def formula(self) -> str:
        return (
            r"q_\theta(x) = p_0(z) \prod_k \det(I - \eta \nabla^2 E_\theta(x_k))^{-1},\qquad "
            r"x = \Phi^K(z),\ \Phi(x) = x - \eta \nabla E_\theta(x)"
        )
