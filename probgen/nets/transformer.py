"""A transformer layer: tokens read from each other, from a context, and pass an MLP each.

    x = x + self-attention(norm x)
    x = x + cross-attention(norm x, context)        where there is a context
    x = x + mlp(norm x)

The norms stand before what they feed ("pre-norm"). Told a time's embedding e, each becomes an
adaptive one, (1 + a(e)) norm(x) + b(e), with a = b = 0 at first.

Source: Vaswani et al. 2017, arXiv:1706.03762; Xiong et al. 2020, arXiv:2002.04745 (pre-norm);
Peebles & Xie 2023, arXiv:2212.09748 (adaptive norms in a denoiser).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from probgen.errors import ShapeError
from probgen.language import ops
from probgen.language.declared import declaration
from probgen.language.kinds import NonNegative, Width
from probgen.nets.attention import CrossAttention, SelfAttention
from probgen.nets.attention_maps import MapReplacement
from probgen.nets.base import Activation, Array, Key, Params, Shape, activation, scale_before
from probgen.nets.layers import Dense
from probgen.nets.norms import LayerNorm


@declaration
class TransformerLayer:
    """(x [..., n, d], context [..., m, c] or none, time [..., e] or none) -> [..., n, d].

    Attributes:
        num_heads: of either attention.
        expansion: the MLP's hidden width over d.
        activation: the MLP's.
        out_scale: `init_scale` of the last layer of each of the three; 0 starts as the identity.

    Which of the inputs there are is known from their shapes at `init`, where tokens have two axes
    and a time's embedding one.

    Raises:
        ShapeError: inputs of other axes, or others than `init` was told of.
    """

    num_heads: Width = 4
    expansion: Width = 4
    activation: Activation = "gelu"
    out_scale: NonNegative = 1.0

    def init(self, key: Key, *shapes: Shape) -> Params:
        tokens, context, time = self._check(shapes)
        d, hidden = tokens[1], self.expansion * tokens[1]
        scale = scale_before(self.activation)
        params = {
            "norm0": LayerNorm().init(key, tokens),
            "self": SelfAttention(self.num_heads, out_scale=self.out_scale).init(key, tokens),
        }
        if context is not None:
            params["norm1"] = LayerNorm().init(key, tokens)
            cross = CrossAttention(self.num_heads, out_scale=self.out_scale)
            params["cross"] = cross.init(key, tokens, context)
        params["norm2"] = LayerNorm().init(key, tokens)
        params["mlp_in"] = Dense(hidden, init_scale=scale).init(key, (d,))
        params["mlp_out"] = Dense(d, init_scale=self.out_scale).init(key, (hidden,))
        if time is not None:
            for name in ("norm0", "norm1", "norm2"):
                if name in params:
                    params[f"time_{name}"] = Dense(2 * d, init_scale=0.0).init(key, time)
        return params

    def apply(
        self,
        params: Params,
        x: Array,
        *given: Array,
        return_maps: bool = False,
        mask: Array | None = None,
        replace: MapReplacement | None = None,
    ) -> Any:
        """The tokens, and with `return_maps` the context's maps in use, or None.

        Args:
            params, x, given: as declared.
            return_maps: whether the maps [..., heads, n, m] come along.
            mask: of the self-attention, booleans [..., n, n], true where a token may read.
            replace: an array of stored maps of the context, to be used in place of this pass's.
        """
        context, time = self._sort(params, given)
        own = SelfAttention(self.num_heads)
        x = x + own.apply(params["self"], normed(params, "norm0", x, time), mask=mask)
        maps = None
        if context is not None:
            cross, normal = CrossAttention(self.num_heads), normed(params, "norm1", x, time)
            update, maps = cross.apply(params["cross"], normal, context, True, replace=replace)
            x = x + update
        h = dense(params["mlp_in"], normed(params, "norm2", x, time))
        x = x + dense(params["mlp_out"], activation(self.activation)(h))
        return (x, maps) if return_maps else x

    def _check(self, shapes: Sequence[Shape]) -> tuple[Shape, Shape | None, Shape | None]:
        axes = tuple(len(s) for s in shapes)
        if axes not in ((2,), (2, 2), (2, 1), (2, 2, 1)):
            raise ShapeError(
                f"TransformerLayer.init: got event shapes {tuple(shapes)}, expected tokens (n, d), "
                "perhaps a context (m, c), perhaps a time's embedding (e,), in this order."
            )
        rest = list(shapes[1:])
        context = rest.pop(0) if 2 in axes[1:] else None
        return tuple(shapes[0]), context, rest.pop(0) if rest else None

    def _sort(self, params: Params, given: Sequence[Array]) -> tuple[Array | None, Array | None]:
        """The context and the time among the inputs, by what `init` was told of."""
        names = [
            n for n, part in (("a context", "cross"), ("a time", "time_norm0")) if part in params
        ]
        if len(given) != len(names):
            raise ShapeError(
                f"TransformerLayer.apply: got {len(given)} inputs beside the tokens, expected "
                f"{' and '.join(names) or 'none'}, as declared by `init`."
            )
        by_name = dict(zip(names, given, strict=True))
        return by_name.get("a context"), by_name.get("a time")

    def out_shape(self, *shapes: Shape) -> Shape:
        return tuple(shapes[0])


def dense(params: Params, x: Array) -> Array:
    """A dense layer of the size that its parameters have."""
    return Dense(params["weight"].shape[1]).apply(params, x)


def normed(params: Params, name: str, x: Array, time: Array | None) -> Array:
    """Layer norm `name` of tokens [..., n, d], adaptive where there is a time [..., e]."""
    y = LayerNorm().apply(params[name], x)
    if time is None:
        return y
    both = dense(params[f"time_{name}"], ops.silu(time))[..., None, :]
    d = x.shape[-1]
    return y * (1.0 + both[..., :d]) + both[..., d:]
