"""Roots of inverse mass matrices, A with M^-1 = A A', one a chain, and what draws make of them.

    blocks       A = lower triangular blocks of the first coordinates, a diagonal of the others
    low rank     A = diag(s) (I + U diag(g) U'),     k orthonormal directions in U [d, k]

M^-1 is the covariance of a window's n draws as Stan shrinks it: n / (n + 5) times it, plus 5e-3 /
(n + 5) times the identity. One of low rank has these variances, and of the correlation matrix the
directions that independent coordinates would not show by chance, their eigenvalues drawn to 1 with
the weight of 5 draws.

Sources: Stan Reference Manual; Bales et al. 2019, arXiv:1905.11916 (low rank); Marchenko & Pastur
1967 (what chance shows).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

Array = Any
LOW_RANK = ("directions", "gains")


@dataclasses.dataclass(frozen=True)
class Mass:
    """The form of a mass matrix.

    Attributes:
        dim: d, of all coordinates.
        blocks: how many of the first coordinates each dense block has.
        rank: k, of a low-rank one; 0 is none.
    """

    dim: int
    blocks: tuple[int, ...] = ()
    rank: int = 0

    def unit(self, num_chains: int) -> dict[str, np.ndarray]:
        """The root of the identity."""
        found = {
            f"block_{i}": np.tile(np.eye(n), (num_chains, 1, 1)) for i, n in enumerate(self.blocks)
        }
        found["diagonal"] = np.ones((num_chains, self.dim - sum(self.blocks)))
        if self.rank:
            found["directions"] = np.zeros((num_chains, self.dim, self.rank))
            found["gains"] = np.zeros((num_chains, self.rank))
        return found

    def learned(self, draws: np.ndarray) -> dict[str, np.ndarray]:
        """The root for draws [n, chain, d] of a window."""
        draws = draws.astype(np.float64)
        each = [self._of_chain(draws[:, i]) for i in range(draws.shape[1])]
        return {n: np.stack([e[n] for e in each]) for n in each[0]}

    def _of_chain(self, draws: np.ndarray) -> dict[str, np.ndarray]:
        """The same of one chain, [n, d]."""
        num, start, found = len(draws), 0, {}
        for i, size in enumerate(self.blocks):
            cov = np.atleast_2d(np.cov(draws[:, start : start + size], rowvar=False))
            found[f"block_{i}"] = np.linalg.cholesky(_shrunk(cov, num, np.eye(size)))
            start += size
        found["diagonal"] = np.sqrt(_shrunk(draws[:, start:].var(0, ddof=1), num, 1.0))
        if self.rank:
            found |= _directions(draws / found["diagonal"], self.rank)
        return found

    def inverse(self, root: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """M^-1 of its root, float64, as `WarmStart` has it; `of_inverse` goes back."""
        exact = {n: v.astype(np.float64) for n, v in root.items()}
        blocks = [exact[f"block_{i}"] for i in range(len(self.blocks))]
        full = [v @ v.swapaxes(1, 2) for v in blocks]
        diagonal = [(v**2).sum(2) for v in blocks] + [exact["diagonal"] ** 2]
        found = {"inv_metric": np.concatenate(diagonal, axis=1)}
        found |= {f"inv_metric_block_{i}": v for i, v in enumerate(full)}
        return found | {f"inv_metric_{n}": root[n] for n in LOW_RANK if n in root}

    def of_inverse(self, learned: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The root of M^-1; where that came of a float32 root, the same to the bit."""
        names = [f"block_{i}" for i in range(len(self.blocks))]
        root = {n: np.linalg.cholesky(learned[f"inv_metric_{n}"].astype(float)) for n in names}
        rest = learned["inv_metric"][:, sum(self.blocks) :]
        root["diagonal"] = np.sqrt(rest.astype(np.float64))
        return root | ({n: learned[f"inv_metric_{n}"] for n in LOW_RANK} if self.rank else {})

    def root(self, ops: Any, arrays: Mapping[str, Array]) -> tuple[Any, Any]:
        """(v -> A v, v -> A' v) of vectors [chain, d]."""
        if self.rank:
            return _low_rank(ops, arrays)

        def times(v: Array, axis: int) -> Array:
            parts, start = [], 0
            for i, size in enumerate(self.blocks):
                part = v[:, start : start + size]
                block = arrays[f"block_{i}"]
                parts.append(ops.sum(block * ops.expand_dims(part, 3 - axis), axis=axis))
                start += size
            if start < self.dim:
                parts.append(arrays["diagonal"] * v[:, start:])
            return parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=1)

        return (lambda v: times(v, 2)), (lambda v: times(v, 1))


def _shrunk(cov: np.ndarray, num: int, unit: Any) -> np.ndarray:
    return (num * cov + 5e-3 * unit) / (num + 5.0)


def _directions(draws: np.ndarray, rank: int) -> dict[str, np.ndarray]:
    """U and g of draws [n, d] of variance one; directions that are left over are zero."""
    num, dim = draws.shape
    centred = (draws - draws.mean(0)) / np.sqrt(num - 1.0)
    _, roots, axes = np.linalg.svd(centred, full_matrices=False)
    found, edge = roots**2, np.sqrt(dim / num)
    is_chance = (found < (1.0 + edge) ** 2) & (found > max(1.0 - edge, 0.0) ** 2)
    eigen = np.where(is_chance | (found <= 0.0), 1.0, (num * found + 5.0) / (num + 5.0))
    best = np.argsort(-np.abs(np.log(eigen)), kind="stable")[:rank]
    directions, gains = np.zeros((dim, rank)), np.zeros(rank)
    directions[:, : len(best)] = axes[best].T
    gains[: len(best)] = np.sqrt(eigen[best]) - 1.0
    return {"directions": directions, "gains": gains}


def _low_rank(ops: Any, arrays: Mapping[str, Array]) -> tuple[Any, Any]:
    s, u, g = arrays["diagonal"], arrays["directions"], arrays["gains"]

    def stretched(v: Array) -> Array:
        along = ops.sum(u * ops.expand_dims(v, 2), axis=1)
        return v + ops.sum(u * ops.expand_dims(g * along, 1), axis=2)

    return (lambda v: s * stretched(v)), (lambda v: stretched(s * v))
