"""Attention maps as values: recorded in one pass, put into another (prompt-to-prompt).

With A the maps of the new pass, softmax(q k^T / sqrt(d)) [..., heads, n, m], and A* stored ones,

    used[..., i, j] = A[..., i, j] where column j is kept, else A*[..., i, j]

perhaps divided by the sums of their rows, which such a mixture does not leave at one. A column is
a row of the context: a token of a caption keeps its place, or takes where it looked before.

Source: Hertz et al. 2022, arXiv:2208.01626 (cross-attention control).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from probgen.errors import ShapeError, UnknownName
from probgen.language import ops
from probgen.language.declared import declaration, require
from probgen.language.wording import did_you_mean
from probgen.nets.base import Array


@declaration(eq=False)
class MapReplacement:
    """Stored maps for a net's `apply(..., replace=)`, all but the columns that stay its own.

        y, maps = unet.apply(params, x, t, context, return_maps=True)
        kept = np.array([word == "dog" for word in words])
        unet.apply(params, x, t, other, replace=nets.MapReplacement(maps, kept))

    Attributes:
        maps: by layer, as `return_maps` gives them, each [..., heads, n, m] with leading axes that
            broadcast to those of the new pass; layers left out are not changed. For one layer alone
            (`CrossAttention`, `AttentionBlock`) the array itself.
        columns_kept: [m] booleans, a context row each: which columns are those of the new pass.
        is_renormalized: whether each row is divided by its sum after that.

    Raises:
        DeclarationError: `columns_kept` that are no booleans on one axis.
        ShapeError (when used): maps of another number of heads, queries or context rows.
        UnknownName (when used): a layer that the net has not.
    """

    maps: Any
    columns_kept: np.ndarray
    is_renormalized: bool = False

    def __post_init__(self) -> None:
        kept = self.columns_kept
        fits = kept.ndim == 1 and kept.dtype == np.bool_
        require(fits, self, "[m] booleans, one for each row of the context", "columns_kept")

    def at(self, layer: str) -> MapReplacement | None:
        """What it says of one layer; None where that is left alone."""
        if layer not in self.maps:
            return None
        return MapReplacement(self.maps[layer], self.columns_kept, self.is_renormalized)

    def used(self, own: Array) -> Array:
        """The maps of a layer's new pass, [..., heads, n, m], with the stored columns in them."""
        stored, columns = tuple(getattr(self.maps, "shape", ())), own.shape[-1]
        if not _fits(stored, tuple(own.shape)) or self.columns_kept.shape != (columns,):
            raise ShapeError(
                f"MapReplacement: got maps of shape {stored or type(self.maps).__name__} and "
                f"{len(self.columns_kept)} columns_kept for a layer whose maps are "
                f"{tuple(own.shape)}, expected their last three axes, leading ones that broadcast "
                f"to theirs, and {columns} columns; record the maps with the same net, size of "
                "image and length of context."
            )
        mixed = ops.where(self.columns_kept, own, self.maps)
        return mixed / ops.sum(mixed, axis=-1, keepdims=True) if self.is_renormalized else mixed


def _fits(stored: tuple[int, ...], own: tuple[int, ...]) -> bool:
    """Whether stored maps have the last three axes of a pass, and broadcast to its leading ones."""
    lead = stored[:-3]
    return (
        stored[-3:] == own[-3:]
        and len(stored) <= len(own)
        and all(n in (1, m) for n, m in zip(lead, own[len(own) - len(stored) : -3], strict=True))
    )


def for_layers(replace: MapReplacement | None, layers: list[str]) -> dict[str, Any]:
    """What `replace` says of each of a net's layers with maps, None where that is nothing.

    Raises:
        UnknownName: it has a layer that is not among them, or does not go by layer.
    """
    if replace is None:
        return dict.fromkeys(layers)
    if not isinstance(replace.maps, Mapping):
        raise UnknownName(
            f"MapReplacement: got maps of type {type(replace.maps).__name__} for a net of several "
            f"layers, expected them by layer, of {', '.join(layers)}; give what return_maps gives."
        )
    for name in replace.maps:
        if name not in layers:
            raise UnknownName(
                f"MapReplacement: got maps of a layer {name!r}, expected some of "
                f"{', '.join(layers) or 'none, since this net reads no context'}"
                f"{did_you_mean(name, layers) or '; record them with the same net.'}"
            )
    return {name: replace.at(name) for name in layers}


def has_maps(net: Any) -> bool:
    """Whether a net's maps can be read and replaced: it says so by `has_maps`, or its `apply` takes
    `return_maps` and `replace`."""
    said = getattr(net, "has_maps", None)
    known = inspect.signature(net.apply).parameters
    return {"return_maps", "replace"} <= set(known) if said is None else bool(said)
