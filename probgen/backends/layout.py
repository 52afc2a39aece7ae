"""Sites as one flat vector, in the order that mass matrices have on every engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Array = Any


class Layout:
    """Sites as one flat vector: those of dense blocks first, one block after another.

    Attributes:
        shapes: of each site on the real line.
        blocks: names of sites, a tuple for each block of the mass matrix that is dense.
        names: of all sites in their order; those in no block are sorted.
        dim: d, how many numbers they have.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dense_mass: Any):
        whole = tuple(sorted(shapes))
        if isinstance(dense_mass, bool):
            dense_mass = [whole] if dense_mass else []
        self.blocks = tuple(tuple(block) for block in dense_mass)
        taken = [n for block in self.blocks for n in block]
        self.shapes = dict(shapes)
        self.names = (*taken, *(n for n in whole if n not in taken))
        self._sizes = {n: math.prod(shapes[n]) for n in shapes}
        self.dim = sum(self._sizes.values())

    @property
    def block_sizes(self) -> tuple[int, ...]:
        """How many numbers each dense block has."""
        return tuple(sum(self._sizes[n] for n in block) for block in self.blocks)

    def metric(self, parts: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """An inverse mass matrix as `WarmStart` has it, of its dense blocks [..., n, n] and of the
        diagonal of the rest, [..., m], if there is a rest."""
        rest = parts[len(self.blocks) :]
        blocks = parts[: len(self.blocks)]
        found = [np.diagonal(v, axis1=-2, axis2=-1) for v in blocks]
        named = {f"inv_metric_block_{i}": v for i, v in enumerate(blocks)}
        return {"inv_metric": np.concatenate([*found, *rest], axis=-1), **named}

    def metric_parts(self, learned: Mapping[str, Array]) -> list[Array]:
        """The parts of which `metric` makes it."""
        dense = sum(self.block_sizes)
        blocks = [learned[f"inv_metric_block_{i}"] for i in range(len(self.blocks))]
        return [*blocks, learned["inv_metric"][..., dense:]] if dense < self.dim else blocks

    def pack(self, free: Mapping[str, np.ndarray]) -> np.ndarray:
        """[chain, d] of arrays [chain, ...]."""
        return np.concatenate([free[n].reshape(len(free[n]), -1) for n in self.names], axis=1)

    def unpack(self, x: Array, reshape: Callable) -> dict[str, Array]:
        """Sites [..., *shape] of vectors [..., d]."""
        out, start = {}, 0
        for n in self.names:
            size = math.prod(self.shapes[n])
            part = x[..., start : start + size]
            out[n] = reshape(part, (*x.shape[:-1], *self.shapes[n]))
            start += size
        return out
