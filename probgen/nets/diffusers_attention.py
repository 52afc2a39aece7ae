"""Cross-attention maps of a module of diffusers, read and replaced for the time of one call.

A layer of theirs leaves its arithmetic to a processor. For the call another takes its place,

    A = softmax(scale q k^T),  what a replacement makes of A,  y = out(A v),

the same numbers as theirs to rounding, and theirs is put back whatever happens in between.

Source: Hertz et al. 2022, arXiv:2208.01626 (what such maps are for).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from probgen.errors import AlgorithmError
from probgen.language import ops
from probgen.nets.attention_maps import MapReplacement
from probgen.nets.base import Array

# Processors that compute the above and nothing else.
PLAIN = {"AttnProcessor", "AttnProcessor2_0", "SlicedAttnProcessor", "XFormersAttnProcessor"}
# What a layer may have beyond it, and must not have here.
FURTHER = (
    "spatial_norm", "group_norm", "norm_cross", "norm_q", "norm_k", "added_kv_proj_dim",
    "residual_connection",
)  # fmt: skip


def cross_attention(module: Any) -> dict[str, Any]:
    """Layers that read a context, by their name in the module."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if getattr(layer, "is_cross_attention", False) and hasattr(layer, "get_attention_scores")
    }


def require_plain(layers: Mapping[str, Any]) -> None:
    """Refuses layers that do more than attend, whose output would change.

    Raises:
        AlgorithmError: names the first and what it has.
    """
    for name, layer in layers.items():
        kind = type(layer.processor).__name__
        more = [each for each in FURTHER if getattr(layer, each, None)]
        if kind not in PLAIN or more or layer.rescale_output_factor != 1.0:
            raise AlgorithmError(
                f"DiffusersUNet: got the layer {name!r} with {', '.join([kind, *more])}, expected "
                "plain cross-attention, whose maps can be read and replaced; put the default "
                "processors back by unet.set_default_attn_processor(), or do without maps."
            )


@contextmanager
def watched(
    layers: Mapping[str, Any], stored: Mapping[str, MapReplacement | None], lead: tuple[int, ...]
) -> Iterator[dict[str, Array]]:
    """A dict that a call of the module within fills with the maps in use, [*lead, heads, n, m].

    Args:
        layers: of `cross_attention`.
        stored: by layer, maps for it, or None.
        lead: leading axes of the call, which the module sees as one.
    """
    require_plain(layers)
    own = {name: layer.processor for name, layer in layers.items()}
    maps: dict[str, Array] = {}
    try:
        for name, layer in layers.items():
            layer.processor = _Watching(name, stored[name], lead, maps)
        yield maps
    finally:
        for name, layer in layers.items():
            layer.processor = own[name]


class _Watching:
    """A processor in diffusers' sense."""

    def __init__(
        self, name: str, stored: MapReplacement | None, lead: tuple[int, ...], maps: dict
    ) -> None:
        self.name, self.stored, self.lead, self.maps = name, stored, lead, maps

    def __call__(
        self, attn: Any, hidden_states: Array, encoder_hidden_states: Array,
        attention_mask: Array | None = None, temb: Array | None = None,
    ) -> Array:  # fmt: skip
        given = encoder_hidden_states
        mask = attn.prepare_attention_mask(attention_mask, given.shape[1], given.shape[0])
        q, k, v = (
            attn.head_to_batch_dim(rows)
            for rows in (attn.to_q(hidden_states), attn.to_k(given), attn.to_v(given))
        )
        y = self._used(attn.get_attention_scores(q, k, mask), attn.heads) @ v
        y = attn.batch_to_head_dim(y)
        for layer in attn.to_out:  # a matrix, and a dropout that does nothing outside of training
            y = layer(y)
        return y

    def _used(self, own: Array, num_heads: int) -> Array:
        """Maps [data heads, n, m] after replacement, kept on the way."""
        maps = ops.reshape(own, (*self.lead, num_heads, *own.shape[1:]))
        maps = maps if self.stored is None else self.stored.used(maps)
        self.maps[self.name] = maps
        return ops.reshape(maps, tuple(own.shape))
