"""Multi-head attention, whose maps can be read, masked and replaced.

    maps = softmax(q k^T / sqrt(d)) [..., heads, queries, keys],  output = maps v

Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.
"""

from __future__ import annotations

import math

from probgen.errors import ShapeError
from probgen.language import ops
from probgen.language.declared import declaration
from probgen.language.kinds import NonNegative, Width
from probgen.nets.attention_maps import MapReplacement
from probgen.nets.base import Array, Key, Params, Shape, check_last, one_shape
from probgen.nets.layers import Dense

HIDDEN = -1e30  # a score of what a query may not read: its weight is 0 in either precision


@declaration
class CrossAttention:
    """Each of n tokens reads from m context tokens: [..., n, d], [..., m, c] -> [..., n, d].

    Attributes:
        num_heads: attention maps in parallel.
        head_dim: size of each head's queries, keys and values; None is d / num_heads.
        out_scale: `init_scale` of the last layer; 0 lets a residual block start as the identity.
    """

    num_heads: Width = 4
    head_dim: Width | None = None
    out_scale: NonNegative = 1.0

    def init(self, key: Key, *shapes: Shape) -> Params:
        (_, d), (_, context) = _token_shapes("CrossAttention", shapes, 2)
        inner = self.num_heads * self._size(d)
        return {
            "query": Dense(inner).init(key, (d,)),
            "key": Dense(inner).init(key, (context,)),
            "value": Dense(inner).init(key, (context,)),
            "out": Dense(d, init_scale=self.out_scale).init(key, (inner,)),
        }

    def _size(self, d: int) -> int:
        if self.head_dim is None and d % self.num_heads:
            raise ShapeError(
                f"attention: got tokens of size {d} for num_heads={self.num_heads}, expected a "
                "multiple of it; choose another number of heads, or give head_dim."
            )
        return self.head_dim or d // self.num_heads

    def apply(
        self,
        params: Params,
        x: Array,
        context: Array,
        return_maps: bool = False,
        mask: Array | None = None,
        replace: MapReplacement | None = None,
    ) -> Array | tuple[Array, Array]:
        """The tokens, and with `return_maps` also the maps in use, [..., heads, n, m].

        Args:
            params, x, context: as declared.
            return_maps: whether the maps come along; their rows sum to one unless replaced.
            mask: booleans [..., n, m], true where a query may read; each reads something.
            replace: stored maps, an array, to be used in place of those of this pass.
        """
        check_last(self, x, params["query"]["weight"].shape[0], 2)
        check_last(self, context, params["key"]["weight"].shape[0], 2)
        q, k, v = (
            self._heads(Dense(params[name]["weight"].shape[1]).apply(params[name], tokens))
            for name, tokens in (("query", x), ("key", context), ("value", context))
        )
        # Scaling q rather than the map: n d instead of n m products.
        scores = ops.einsum("...qhd,...khd->...hqk", q * (1 / math.sqrt(q.shape[-1])), k)
        if mask is not None:
            scores = ops.where(mask[..., None, :, :], scores, HIDDEN)
        maps = ops.softmax(scores, axis=-1)
        maps = maps if replace is None else replace.used(maps)
        y = ops.einsum("...hqk,...khd->...qhd", maps, v)
        y = ops.reshape(y, (*y.shape[:-2], y.shape[-2] * y.shape[-1]))
        y = Dense(x.shape[-1]).apply(params["out"], y)
        return (y, maps) if return_maps else y

    def _heads(self, x: Array) -> Array:
        return ops.reshape(x, (*x.shape[:-1], self.num_heads, x.shape[-1] // self.num_heads))

    def out_shape(self, *shapes: Shape) -> Shape:
        return _token_shapes("CrossAttention", shapes, 2)[0]


@declaration
class SelfAttention:
    """Each of n tokens reads from all of them: [..., n, d] -> [..., n, d].

    Without positions in the tokens it is equivariant under their permutation.

    Attributes:
        num_heads, head_dim, out_scale: as in `CrossAttention`.
    """

    num_heads: Width = 4
    head_dim: Width | None = None
    out_scale: NonNegative = 1.0

    def _cross(self) -> CrossAttention:
        return CrossAttention(self.num_heads, self.head_dim, self.out_scale)

    def init(self, key: Key, *shapes: Shape) -> Params:
        shape = one_shape(self, shapes, 2)
        return self._cross().init(key, shape, shape)

    def apply(
        self, params: Params, x: Array, return_maps: bool = False, mask: Array | None = None
    ) -> Array | tuple[Array, Array]:
        """The tokens, and with `return_maps` also the maps [..., heads, n, n], rows sum to one.

        `mask` as in `CrossAttention.apply`.
        """
        return self._cross().apply(params, x, x, return_maps, mask)

    def out_shape(self, *shapes: Shape) -> Shape:
        return one_shape(self, shapes, 2)


def _token_shapes(name: str, shapes: tuple[Shape, ...], number: int) -> list[Shape]:
    if len(shapes) != number or any(len(shape) != 2 for shape in shapes):
        raise ShapeError(
            f"{name}.init: got event shapes {shapes}, expected {number} like [tokens, size]; lay "
            "an image out as [h w, c] tokens first."
        )
    return [tuple(shape) for shape in shapes]
