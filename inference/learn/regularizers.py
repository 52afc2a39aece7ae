"""What is added to the loss of an energy so that it stays tame; a declaration each.

    EnergyMagnitude(a)     a (mean E(x)^2 + mean E(x')^2)
    GradientPenalty(g)     g/2 mean |grad_x E(x)|^2, at data, at draws, or at both
    SpectralPenalty(s)     s sum over kernels of the largest singular value

x are data, x' draws of the negative phase (under `ImportanceSampling` those of the base,
unweighted). One of your own subclasses `Regularizer`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from probgen.engine.bound import Bound
from probgen.errors import AlgorithmError
from probgen.inference.learn.contrast import WHO
from probgen.language.declared import declaration
from probgen.language.kinds import Count, NonNegative
from probgen.nets import adapters
from probgen.nets.weight_norm import kernels

Array = Any
Tree = Any


class Seen(NamedTuple):
    """What a regulariser is told of an update.

    Attributes:
        energy: values by site -> E [n], nats, with the gradient of the parameters.
        params: all parameters, by net.
        data, samples: values by site, [n, *event].
        on_data, on_samples: E there.
        kept: what the regulariser keeps, as of this update.
    """

    energy: Callable
    params: Mapping
    data: Mapping
    samples: Mapping
    on_data: Array
    on_samples: Array
    kept: Tree


@declaration
class Regularizer:
    """A term of the loss of `MaximumLikelihood`, nats per datum."""

    def own(self, bound: Bound, params: Mapping) -> Tree:
        """What it keeps, at first: a tree of arrays, {} for nothing."""
        return {}

    def refresh(self, bound: Bound, kept: Tree, params: Mapping) -> Tree:
        """What it keeps at the next update, with no gradient."""
        return kept

    def term(self, bound: Bound, seen: Seen) -> Array:
        """The term, a scalar."""
        raise NotImplementedError  # abstract: every regulariser below defines it


@declaration
class EnergyMagnitude(Regularizer):
    """a (mean E(x)^2 + mean E(x')^2): keeps energies near zero.

    Args:
        weight: a; 1e-3 to 0.1 is usual.

    Source: Du & Mordatch 2019, arXiv:1903.08689, section 3.3.
    """

    weight: NonNegative = 0.02

    def term(self, bound: Bound, seen: Seen) -> Array:
        ops = bound.backend.ops
        squares = (ops.mean(e * e) for e in (seen.on_data, seen.on_samples))
        return self.weight * sum(squares)


@declaration
class GradientPenalty(Regularizer):
    """g/2 mean |grad_x E(x)|^2: keeps slopes small where chains end up.

    Args:
        weight: g.
        at: "data" (R1), "samples" (R2), or "both", their sum.

    Source: Mescheder, Geiger & Nowozin 2018, arXiv:1801.04406, equation 9.
    """

    weight: NonNegative = 0.1
    at: Literal["data", "samples", "both"] = "data"

    def term(self, bound: Bound, seen: Seen) -> Array:
        b, ops = bound.backend, bound.backend.ops
        slope = b.grad(lambda values: ops.sum(seen.energy(values)))
        places = {"data": [seen.data], "samples": [seen.samples]}.get(
            self.at, [seen.data, seen.samples]
        )
        out: Any = 0.0
        for values in places:
            size = next(iter(values.values())).shape[0]
            out = out + sum(ops.sum(g * g) for g in slope(dict(values)).values()) / size
        return 0.5 * self.weight * out


@declaration
class SpectralPenalty(Regularizer):
    """s sum over the kernels of the trained nets of their largest singular value.

    Of a weight norm the kernel is g v / |v|; a convolution's counts as the matrix [kh kw cin, out];
    layers under a spectral norm are left out. Singular vectors u, v are found by power iteration
    and kept from update to update; no gradient goes through them, only through W in v^T W u.

    Args:
        weight: s; 0.2 in the source.
        num_iterations: of each update; ten times as many at the start.

    Source: Xiao et al. 2021, arXiv:2010.00654, and Vahdat & Kautz 2020, arXiv:2007.03898.
    """

    weight: NonNegative = 0.2
    num_iterations: Count = 4

    def own(self, bound: Bound, params: Mapping) -> Tree:
        trained = self._kernels(bound, params)
        if not trained:
            raise AlgorithmError(
                f"{WHO}: got SpectralPenalty and nets without a kernel to penalise, expected some "
                "Dense or Conv in the energy that has no spectral norm; leave it out."
            )
        rng, start = np.random.default_rng(0), {}
        for path, matrix in trained.items():
            start[path] = bound.backend.asarray(rng.normal(size=matrix.shape[1]))
        return self._iterated(bound, start, params, 10 * self.num_iterations)

    def refresh(self, bound: Bound, kept: Tree, params: Mapping) -> Tree:
        return self._iterated(bound, kept, params, self.num_iterations)

    def term(self, bound: Bound, seen: Seen) -> Array:
        ops, total = bound.backend.ops, 0.0
        for path, matrix in self._kernels(bound, seen.params).items():
            u = seen.kept[path]
            v = _unit(ops, ops.matmul(ops.stop_gradient(matrix), u))
            total = total + ops.sum(v * ops.matmul(matrix, u))
        return self.weight * total

    def _iterated(self, bound: Bound, kept: Tree, params: Mapping, times: int) -> Tree:
        ops, out = bound.backend.ops, {}
        for path, matrix in self._kernels(bound, params).items():
            u, turned = kept[path], ops.transpose(matrix)
            for _ in range(times):
                u = _unit(ops, ops.matmul(turned, ops.matmul(matrix, u)))
            out[path] = u
        return out

    def _kernels(self, bound: Bound, params: Mapping) -> dict[str, Array]:
        """Matrices [in, out] by the path of their layer."""
        frozen = bound.frozen()
        out: dict[str, Array] = {}
        foreign = adapters.TorchNet | adapters.FlaxNet | adapters.NnxNet | adapters.EquinoxNet
        for name, tree in params.items():
            if name in frozen:
                continue
            if _holds(bound.nets.get(name), foreign):
                raise AlgorithmError(
                    f"{WHO}: got SpectralPenalty and the net {name!r} of another library, whose "
                    "layout of weights is its own, expected a net of probgen.nets; leave it out, "
                    "or write a Regularizer that knows the layout."
                )
            out |= {"/".join((name, *path)): matrix for path, matrix in kernels(tree)}
        return out


def _holds(net: Any, kinds: Any) -> bool:
    """Whether a declaration is, or has somewhere among its parts, one of these kinds."""
    if isinstance(net, kinds):
        return True
    if isinstance(net, tuple | list):
        return any(_holds(part, kinds) for part in net)
    return dataclasses.is_dataclass(net) and any(
        _holds(getattr(net, f.name), kinds) for f in dataclasses.fields(net)
    )


def _unit(ops: Any, vector: Array) -> Array:
    return vector / ops.sqrt(ops.sum(vector * vector) + 1e-24)
