"""Cholesky factors of correlation matrices from the real line, with indices that are constants.

torch's own map picks a triangle by a mask, whose number of entries a recorded graph cannot know, so
that models with an LKJ prior would run live. The formulas are its own: row by row, r = tanh(u),

    L_ij = r_ij sqrt(prod_{k < j} (1 - r_ik^2)),    L_ii = sqrt(prod_{k < i} (1 - r_ik^2))

Source: Stan Reference Manual, "Cholesky factors of correlation matrices".
"""

from __future__ import annotations

import math

import torch
from torch.distributions.transforms import CorrCholeskyTransform
from torch.nn.functional import pad, softplus


class CorrCholesky(CorrCholeskyTransform):
    """u [n (n - 1) / 2] -> L [n, n]."""

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        edge = 1.0 - torch.finfo(x.dtype).eps
        r = _as_triangle(torch.tanh(x).clamp(-edge, edge))
        left = pad((1.0 - r**2).sqrt().cumprod(-1)[..., :-1], [1, 0], value=1.0)
        return (r + torch.eye(r.shape[-1], dtype=r.dtype, device=r.device)) * left

    def _inverse(self, y: torch.Tensor) -> torch.Tensor:
        left = pad((1.0 - torch.cumsum(y * y, dim=-1))[..., :-1], [1, 0], value=1.0)
        return torch.atanh(_triangle(y, -1) / _triangle(left, -1).sqrt())

    def log_abs_det_jacobian(
        self, x: torch.Tensor, y: torch.Tensor, intermediates: None = None
    ) -> torch.Tensor:
        left = 1.0 - torch.cumsum(y * y, dim=-1)
        breaking = 0.5 * _triangle(left, -2).log().sum(-1)
        return breaking - 2.0 * (x + softplus(-2.0 * x) - math.log(2.0)).sum(-1)


def _as_triangle(vector: torch.Tensor) -> torch.Tensor:
    """[..., n, n] with the numbers below the diagonal, row by row, and zeros."""
    count = vector.shape[-1]
    n = round((1.0 + math.sqrt(1.0 + 8.0 * count)) / 2.0)
    place = torch.zeros(n * n, dtype=torch.long, device=vector.device)
    rows, columns = torch.tril_indices(n, n, -1, device=vector.device)
    place[rows * n + columns] = torch.arange(1, count + 1, device=vector.device)
    padded = pad(vector, [1, 0])
    return padded.index_select(-1, place).reshape(*vector.shape[:-1], n, n)


def _triangle(matrix: torch.Tensor, diagonal: int) -> torch.Tensor:
    """[..., count] of [..., n, n]: what lies on that diagonal and below, row by row."""
    n = matrix.shape[-1]
    rows, columns = torch.tril_indices(n, n, diagonal, device=matrix.device)
    return matrix.reshape(*matrix.shape[:-2], n * n).index_select(-1, rows * n + columns)
