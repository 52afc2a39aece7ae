"""A diffusion's condition: one row a datum, or one for all, and the context that a net makes of it.

Classifier-free guidance extrapolates from the prediction without the condition to that with it,

    f_s(x_t, t, y) = f(x_t, t, null) + s (f(x_t, t, y) - f(x_t, t, null)),

so s = 0 is unconditional, 1 conditional, and beyond 1 the condition counts for more.

Source: Ho & Salimans 2022, arXiv:2207.12598.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import probgen as pg
from probgen import ops
from probgen.errors import AlgorithmError, ShapeError
from probgen.nets.attention_maps import has_maps

Array = Any


def condition_rows(net: Any, value: Any, x: Array, num_rows: int) -> Array:
    """A condition with a row for each of `num_rows` data; one that all share is repeated.

    Args:
        net: the condition net; its `in_ndim` says how many axes one datum's condition has. A net
            without takes rows only.
        value: [num_rows, *event] or [*event].
        x: an array of the backend.

    Raises:
        ShapeError: another number of rows.
    """
    shape, ndim = tuple(getattr(value, "shape", ())), getattr(net, "in_ndim", None)
    if isinstance(ndim, tuple):
        (ndim,) = ndim
    if ndim is None:
        ndim = len(shape) - 1
    lead, event = shape[: max(len(shape) - ndim, 0)], shape[max(len(shape) - ndim, 0) :]
    if lead == (num_rows,):
        return value
    if lead or len(event) != ndim:
        raise ShapeError(
            f"Diffusion: got a condition of shape {shape} beside a batch of {num_rows}, expected "
            f"one row a datum, or one condition of {ndim} axes for all; give as many rows in "
            "inputs={'condition': ...} as there are data (of generate: samples)."
        )
    if not hasattr(value, "shape") or not shape:
        flat = ops.zeros_like(ops.reshape(x, (-1,))[:1])
        whole = isinstance(value, int) or "int" in str(getattr(value, "dtype", ""))
        value = ops.reshape(ops.cast(flat, "int32") if whole else flat, ()) + value
    return ops.broadcast_to(value, (num_rows, *event))


def declared_context(net: Any, value: Any, x: Array, rank: int) -> list[Array]:
    """What a program gives its network beside x [*lead, *event], of `rank` axes of event: the
    context of the condition, by a net that is declared here, or nothing without one."""
    if net is None:
        return []
    return [pg.net("condition", net)(condition_rows(net, value, x, x.shape[x.ndim - rank - 1]))]


def null_of(net: Any, params: Any, context: Array, got: str = "guidance") -> Array:
    """The context of no condition, in the shape of `context`; `got` is what asks for it.

    Raises:
        AlgorithmError: the model has no unconditional branch.
    """
    if not hasattr(net, "null"):
        why = "no condition" if net is None else f"the condition net {net!r} without `null`"
        raise AlgorithmError(
            f"Diffusion: got {got} with {why}, so that there is no unconditional branch, expected "
            "a context of no condition, as condition=nets.ClassEmbedding(...) or "
            "nets.ContextEmbedding(...) has one: guidance without an unconditional branch is not "
            "defined; leave guidance_scale at 1."
        )
    return ops.broadcast_to(net.null(params["condition"]), tuple(context.shape))


def check_condition(net: Any, rows: Any) -> None:
    """Refuses conditions among `rows`, arrays by name, that the condition net does not know."""
    check = getattr(net, "check_values", None)
    if check is not None and "condition" in rows:
        check(np.asarray(rows["condition"]))


def guided(ask: Callable, context: Array, null: Array, scale: float) -> Array:
    """f(null) + scale (f(context) - f(null)), for f = `ask`.

    Two calls: on a CPU one of both together takes up to 1.35 times as long (a U-Net, 64 images).
    """
    away = ask(null)
    return away + scale * (ask(context) - away)


def require_maps(model: Any) -> None:
    """Refuses a diffusion that has no maps of a condition to read or replace.

    Raises:
        AlgorithmError: says whether the condition is missing, or the denoiser's maps.
    """
    name = type(model.denoiser).__name__
    if model.condition is None:
        got = "a model without a condition"
    elif not has_maps(model.denoiser):
        got = f"the denoiser {name}, which has no maps of a context to read or replace"
    else:
        return
    raise AlgorithmError(
        f"Diffusion.predict_with_maps: got {got}, expected a denoiser that reads its condition by "
        "cross-attention and whose `apply` takes return_maps and replace; declare nets.UNet or "
        "nets.PatchTransformer with condition=, or use `predict`."
    )
