"""A transformer over patches of an image as a denoiser, which reads a context by cross-attention.

    h = patches(x) W + positions;  h = layers(h, context, time);  y = pixels(norm(h, time) V)

with V = 0 at first. The layers are pre-norm, with norms that the time adapts (DiT's "adaLN", its
gates replaced by last layers that start at 0).

Source: Peebles & Xie 2023, arXiv:2212.09748.
"""

from __future__ import annotations

from typing import Any

from probgen.errors import ShapeError
from probgen.language import ops
from probgen.language.declared import declaration
from probgen.language.kinds import Positive, Width
from probgen.nets.attention_maps import MapReplacement, for_layers
from probgen.nets.base import (
    Activation,
    Array,
    Key,
    Params,
    Shape,
    check_last,
    draw_weight,
    numbered,
)
from probgen.nets.layers import Dense
from probgen.nets.norms import LayerNorm
from probgen.nets.time import TimeEmbedding
from probgen.nets.transformer import TransformerLayer, dense, normed
from probgen.nets.unshuffled import shuffle, unshuffle


@declaration
class PatchTransformer:
    """f(x [..., h, w, c], t [...], context [..., m, d] or none) -> [..., h, w, out].

    Times are given in steps (0 ... num_train_timesteps - 1), or in [0, 1] with `time_scale` 1000.
    The last layer starts at zero, so the untrained output is zero. One size of image: that of
    `init`, whose patches each have a learned position.

    Attributes:
        patch: side of a patch; a token each.
        width: size of a token.
        num_layers, num_heads, expansion, activation: of the transformer (`TransformerLayer`).
        out: output channels; None is those of the input.
        time_scale: factor on the time.

    Raises:
        ShapeError: sides that `patch` does not divide; an image of another size; a context where
            `init` was told of none, or none where there was one.
    """

    patch: Width = 1
    width: Width = 64
    num_layers: Width = 3
    num_heads: Width = 4
    expansion: Width = 4
    activation: Activation = "gelu"
    out: Width | None = None
    time_scale: Positive = 1.0

    def _names(self) -> list[str]:
        return [numbered("layer", i, self.num_layers) for i in range(self.num_layers)]

    def _layer(self) -> TransformerLayer:
        return TransformerLayer(self.num_heads, self.expansion, self.activation, out_scale=0.0)

    def _time(self) -> TimeEmbedding:
        return TimeEmbedding(max(self.width, 2), 2 * self.width, time_scale=self.time_scale)

    def init(self, key: Key, *shapes: Shape) -> Params:
        (h, w, c), context = self._check(shapes)
        grid, d = (h // self.patch, w // self.patch), self.width
        tokens, emb = (grid[0] * grid[1], d), self._time().out_shape(())
        params = {
            "time": self._time().init(key, ()),
            "patches": Dense(d).init(key, (self.patch**2 * c,)),
            "positions": draw_weight(key, (*grid, d), 1, 1.0),
        }
        for name in self._names():
            params[name] = self._layer().init(key, tokens, *context, emb)
        size = self.patch**2 * (self.out or c)
        params["norm"] = LayerNorm().init(key, tokens)
        params["time_norm"] = Dense(2 * d, init_scale=0.0).init(key, emb)
        params["pixels"] = Dense(size, init_scale=0.0).init(key, (d,))
        return params

    def apply(
        self,
        params: Params,
        x: Array,
        t: Array,
        context: Array | None = None,
        return_maps: bool = False,
        replace: MapReplacement | None = None,
    ) -> Any:
        """The output, and with `return_maps` a dict of the cross-attention maps in use by layer,
        [..., heads, patches, m]; `replace` has others for them."""
        self._check_inputs(params, x, context)
        # A time without leading axes serves all data.
        times = ops.broadcast_to(ops.asarray_like(t, x), tuple(x.shape[:-3]))
        time = self._time().apply(params["time"], times)
        given = (time,) if context is None else (context, time)
        attending = [] if context is None else self._names()
        stored, maps = for_layers(replace, attending), {}
        h = self._tokens(params, x)
        for name in self._names():
            h, maps[name] = self._layer().apply(
                params[name], h, *given, return_maps=True, replace=stored.get(name)
            )
        y = self._pixels(dense(params["pixels"], normed(params, "norm", h, time)), x)
        return (y, {name: maps[name] for name in attending}) if return_maps else y

    def _tokens(self, params: Params, x: Array) -> Array:
        """[..., n, width] patches row by row, with their positions."""
        blocks = unshuffle(x, self.patch)
        flat = ops.reshape(blocks, (*x.shape[:-3], -1, blocks.shape[-1]))
        places = ops.reshape(params["positions"], (-1, params["positions"].shape[-1]))
        return dense(params["patches"], flat) + places

    def _pixels(self, y: Array, x: Array) -> Array:
        """[..., n, p p out] as an image of the size of x."""
        p, (*lead, h, w, _) = self.patch, tuple(x.shape)
        return shuffle(ops.reshape(y, (*lead, h // p, w // p, y.shape[-1])), p)

    def _check(self, shapes: tuple[Shape, ...]) -> tuple[Shape, tuple[Shape, ...]]:
        axes = tuple(len(s) for s in shapes)
        fits = axes in ((3, 0), (3, 0, 2)) and not any(n % self.patch for n in shapes[0][:2])
        if not fits:
            raise ShapeError(
                f"PatchTransformer.init: got event shapes {shapes}, expected (h, w, c), () and "
                f"perhaps a context (m, d), with patch={self.patch} dividing h and w; pad the "
                "images or use smaller patches."
            )
        return tuple(shapes[0]), tuple(tuple(s) for s in shapes[2:])

    def _check_inputs(self, params: Params, x: Array, context: Array | None) -> None:
        p = self.patch
        check_last(self, x, params["patches"]["weight"].shape[0] // p**2, 3)
        rows, columns, _ = params["positions"].shape
        is_expected = "cross" in params[self._names()[0]]
        size = (rows * p, columns * p)
        if tuple(x.shape[-3:-1]) == size and is_expected == (context is not None):
            return
        got, expected = ("no" if c else "a" for c in (context is None, not is_expected))
        raise ShapeError(
            f"PatchTransformer.apply: got an image of {tuple(x.shape[-3:-1])} and {got} context, "
            f"expected {size} and {expected} context as declared by `init`; initialise with the "
            "shapes of all inputs that `apply` will get."
        )

    def out_shape(self, *shapes: Shape) -> Shape:
        return (*shapes[0][:2], self.out or shapes[0][2])
