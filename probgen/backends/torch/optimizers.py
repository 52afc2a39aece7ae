"""Optimiser declarations on torch: fused or foreach kernels, in place on the given trees."""

from __future__ import annotations

from typing import Any

import torch

from probgen.backends.optimizer_steps import moment_bounds
from probgen.backends.protocol import Optimizer
from probgen.backends.torch.split import Piece
from probgen.language import optim
from probgen.trees import tree_leaves, tree_map


def optimizer(declaration: optim.OptimizerDeclaration, device: str) -> Optimizer:
    """A declaration as torch's fused (Adam, AdamW) or foreach (SGD) update."""
    moments = declaration.num_moments

    def init(params: Any) -> dict:
        return {
            "count": torch.zeros((), device=device),
            "step_scale": torch.ones((), device=device),
            "moments": [tree_map(torch.zeros_like, params) for _ in range(moments)],
        }

    def update(grads: Any, state: dict, params: Any) -> tuple[Any, dict]:
        ps = tree_leaves(params)
        gs = [_laid_out_like(p, g) for p, g in zip(ps, tree_leaves(grads), strict=True)]
        ms = [tree_leaves(m) for m in state["moments"]]
        if not ps:
            return params, state
        with torch.no_grad():
            if getattr(declaration, "clip_by_moment", None) is not None:
                high = moment_bounds(declaration, state["count"], ms[1])
                gs = torch._foreach_minimum(gs, high)
                gs = torch._foreach_maximum(gs, torch._foreach_neg(high))
            if declaration.clip_norm is not None:
                norms = torch._foreach_norm(gs)
                norm = torch.linalg.vector_norm(torch.stack(norms))
                gs = torch._foreach_mul(gs, torch.clamp(declaration.clip_norm / norm, max=1.0))
            ps, gs, *ms = _own(ps, gs, *ms)
            lr = declaration.learning_rate_at(state["count"]) * state["step_scale"]
            if isinstance(declaration, optim.Adam):
                _adam(declaration, ps, gs, ms, state["count"], lr)
            elif isinstance(declaration, optim.SGD):
                _sgd(declaration, ps, gs, ms, state["count"], lr)
        return params, state

    return Optimizer(init, update)


def _own(ps: list, *others: list) -> list[list]:
    """The pieces of parameters that this process has, and of what goes with them."""
    cut = {i: p for i, p in enumerate(ps) if isinstance(p, Piece)}
    if not cut:
        return [ps, *others]

    def part(i: int, x: Any) -> Any:
        if i not in cut or isinstance(x, Piece):
            return getattr(x, "local", x)
        return cut[i].world.part(x, cut[i].axis or 0).contiguous()

    return [[part(i, x) for i, x in enumerate(xs)] for xs in (ps, *others)]


def _laid_out_like(p: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """The gradient with its parameter's strides: fused kernels walk both by memory, not by index,
    and a convolution's gradient often comes in another order."""
    return g if isinstance(p, Piece) or g.stride() == p.stride() else torch.empty_like(p).copy_(g)


def _adam(d: optim.Adam, ps: list, gs: list, ms: list, count: Any, lr: Any) -> None:
    step = torch._fused_adamw_ if d.decoupled else torch._fused_adam_
    count.add_(1)
    step(
        ps, gs, ms[0], ms[1], [], [count] * len(ps), lr=lr, beta1=d.b1, beta2=d.b2,
        weight_decay=d.weight_decay, eps=d.eps, amsgrad=False, maximize=False,
    )  # fmt: skip


def _sgd(d: optim.SGD, ps: list, gs: list, ms: list, count: Any, lr: Any) -> None:
    count.add_(1)
    if d.weight_decay:
        gs = torch._foreach_add(gs, ps, alpha=d.weight_decay)
    if d.momentum:
        torch._foreach_mul_(ms[0], d.momentum)
        torch._foreach_add_(ms[0], gs)
        gs = ms[0] if not d.nesterov else torch._foreach_add(gs, ms[0], alpha=d.momentum)
    torch._foreach_sub_(ps, torch._foreach_mul(gs, lr))
