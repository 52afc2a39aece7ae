"""The time-conditional U-Net of diffusion models, with optional attention to a context.

Down: at each level `num_blocks` residual blocks, then a strided convolution but for the last. A
middle of block, attention, block. Up: at each level num_blocks + 1 blocks, each joined with the
map that the way down left, then upsampling. Source: Ho, Jain & Abbeel 2020, arXiv:2006.11239;
attention to a context as in Rombach et al. 2022, arXiv:2112.10752.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from probgen.errors import ShapeError
from probgen.language import ops
from probgen.language.declared import declaration, require
from probgen.language.kinds import Positive, Size, Width, Widths, between
from probgen.nets.attention import CrossAttention, SelfAttention
from probgen.nets.attention_maps import MapReplacement, for_layers
from probgen.nets.base import Activation, Array, Key, Params, Shape, activation, check_last
from probgen.nets.blocks import ResidualBlock
from probgen.nets.layers import Conv, Upsample
from probgen.nets.norms import GroupNorm, LayerNorm, groups_for
from probgen.nets.time import TimeEmbedding


@declaration
class AttentionBlock:
    """x' = x + self-attention(norm x), then x' + cross-attention(norm x', context) if there is one.

    On images [..., h, w, c], whose pixels are the tokens; the context is [..., m, d]. Both paths
    start at zero, so the block starts as the identity.
    """

    num_heads: Width = 4
    num_groups: Width = 8

    def _norm(self, channels: int) -> GroupNorm:
        return GroupNorm(groups_for(channels, self.num_groups))

    def init(self, key: Key, *shapes: Shape) -> Params:
        h, w, c = shapes[0]
        tokens = (h * w, c)
        params = {
            "norm0": self._norm(c).init(key, shapes[0]),
            "self": SelfAttention(self.num_heads, out_scale=0.0).init(key, tokens),
        }
        if len(shapes) == 2:
            params["norm1"] = LayerNorm().init(key, (c,))
            cross = CrossAttention(self.num_heads, out_scale=0.0)
            params["cross"] = cross.init(key, tokens, shapes[1])
        return params

    def apply(
        self,
        params: Params,
        x: Array,
        context: Array | None = None,
        return_maps: bool = False,
        replace: MapReplacement | None = None,
    ) -> Any:
        """The image, and with `return_maps` the context's maps in use, [..., heads, h w, m], or
        None; `replace` has others for them, an array."""
        shape = tuple(x.shape)
        tokens_shape = (*shape[:-3], shape[-3] * shape[-2], shape[-1])
        normal = ops.reshape(self._norm(shape[-1]).apply(params["norm0"], x), tokens_shape)
        tokens = ops.reshape(x, tokens_shape)
        tokens = tokens + SelfAttention(self.num_heads).apply(params["self"], normal)
        maps = None
        if context is not None:
            normal = LayerNorm().apply(params["norm1"], tokens)
            cross = CrossAttention(self.num_heads)
            update, maps = cross.apply(
                params["cross"], normal, context, return_maps=True, replace=replace
            )
            tokens = tokens + update
        y = ops.reshape(tokens, shape)
        return (y, maps) if return_maps else y

    def out_shape(self, *shapes: Shape) -> Shape:
        return tuple(shapes[0])


@declaration
class UNet:
    """f(x [..., h, w, c], t [...], context [..., m, d] or none) -> [..., h, w, out].

    Times are given in steps (0 ... num_train_timesteps - 1), or in [0, 1] with `time_scale` 1000.
    The last convolution starts at zero, so the untrained output is zero.

    Attributes:
        channels: one number of channels a level, the finest first.
        out: output channels; None is those of the input.
        num_blocks: residual blocks a level.
        attention_levels: levels (0 is the finest) with attention; the middle always has it.
        num_heads: of every attention.
        num_groups: of every group norm; the largest common divisor with the channels is taken.
        time_scale: factor on the time.

    Raises:
        ShapeError: at `init`, if 2^(levels - 1) does not divide the sides of the image.
    """

    channels: Widths = (32, 64)
    out: Width | None = None
    num_blocks: Annotated[int, between(1, 1000)] = 1
    attention_levels: tuple[Size, ...] = ()
    num_heads: Width = 4
    num_groups: Width = 8
    activation: Activation = "silu"
    time_scale: Positive = 1.0

    def __post_init__(self) -> None:
        last = len(self.channels) - 1
        fits = all(level <= last for level in self.attention_levels)
        require(fits, self, f"levels among 0 ... {last}", "attention_levels", "channels")

    # One plan serves init and apply: (name, layer, kind), in order of execution.
    def _plan(self) -> Iterator[tuple[str, Any, str]]:
        first, deepest = self.channels[0], len(self.channels) - 1
        yield "in", Conv(first), "save"
        for level, c in enumerate(self.channels):
            for i in range(self.num_blocks):
                is_attended = level in self.attention_levels
                yield f"down{level}_block{i}", self._block(c), "block" if is_attended else "save"
                if is_attended:
                    yield f"down{level}_attention{i}", self._attention(), "attend_save"
            if level < deepest:
                yield f"down{level}_down", Conv(c, 3, 2, 1), "save"
        c = self.channels[-1]
        yield "middle_block0", self._block(c), "block"
        yield "middle_attention", self._attention(), "attend"
        yield "middle_block1", self._block(c), "block"
        for level in range(deepest, -1, -1):
            c = self.channels[level]
            for i in range(self.num_blocks + 1):
                yield f"up{level}_block{i}", self._block(c), "join"
                if level in self.attention_levels:
                    yield f"up{level}_attention{i}", self._attention(), "attend"
            if level:
                yield f"up{level}_up", Upsample(c), "plain"

    def _block(self, channels: int) -> ResidualBlock:
        return ResidualBlock(channels, self.num_groups, self.activation)

    def _attention(self) -> AttentionBlock:
        return AttentionBlock(self.num_heads, self.num_groups)

    def _time(self) -> TimeEmbedding:
        width = self.channels[0]
        return TimeEmbedding(width, 4 * width, time_scale=self.time_scale)

    def _is_timed(self, layer: Any) -> bool:
        return isinstance(layer, ResidualBlock)

    def init(self, key: Key, *shapes: Shape) -> Params:
        x, context = self._check(shapes)
        time = self._time()
        params = {"time": time.init(key, ())}
        emb = time.out_shape(())
        saved: list[Shape] = []
        for name, layer, kind in self._plan():
            if kind == "join":
                x = (*x[:2], x[2] + saved.pop()[2])
            extra = (emb,) if self._is_timed(layer) else context if "attend" in kind else ()
            params[name] = layer.init(key, x, *extra)
            x = layer.out_shape(x, *extra)
            if "save" in kind:
                saved.append(x)
        params["norm"] = self._norm(x[2]).init(key, x)
        params["out"] = Conv(self.out or shapes[0][2], init_scale=0.0).init(key, x)
        return params

    def _norm(self, channels: int) -> GroupNorm:
        return GroupNorm(groups_for(channels, self.num_groups))

    def apply(
        self,
        params: Params,
        x: Array,
        t: Array,
        context: Array | None = None,
        return_maps: bool = False,
        replace: MapReplacement | None = None,
    ) -> Any:
        """The output, and with `return_maps` a dict of the cross-attention maps in use by layer;
        `replace` has others for them."""
        check_last(self, x, params["in"]["weight"].shape[2], 3)
        self._check_context(params, context)
        # A time without leading axes serves all data.
        lead = tuple(x.shape[:-3])
        emb = self._time().apply(params["time"], ops.broadcast_to(ops.asarray_like(t, x), lead))
        attending = [] if context is None else self._attending()
        stored = for_layers(replace, attending)
        maps: dict[str, Any] = {}
        saved: list[Array] = []
        for name, layer, kind in self._plan():
            if kind == "join":
                x = ops.concatenate([x, saved.pop()], axis=-1)
            if "attend" in kind:
                x, maps[name] = layer.apply(params[name], x, context, True, stored.get(name))
            elif self._is_timed(layer):
                x = layer.apply(params[name], x, emb)
            else:
                x = layer.apply(params[name], x)
            if "save" in kind:
                saved.append(x)
        x = activation(self.activation)(self._norm(x.shape[-1]).apply(params["norm"], x))
        out = params["out"]["weight"].shape[-1]
        y = Conv(out).apply(params["out"], x)
        return (y, {name: maps[name] for name in attending}) if return_maps else y

    def _attending(self) -> list[str]:
        return [name for name, _, kind in self._plan() if "attend" in kind]

    def _check(self, shapes: tuple[Shape, ...]) -> tuple[Shape, tuple[Shape, ...]]:
        factor = 2 ** (len(self.channels) - 1)
        is_right = (
            len(shapes) in (2, 3)
            and len(shapes[0]) == 3
            and len(shapes[1]) == 0
            and all(len(s) == 2 for s in shapes[2:])
        )
        if not is_right or shapes[0][0] % factor or shapes[0][1] % factor:
            raise ShapeError(
                f"UNet.init: got event shapes {shapes}, expected (h, w, c), () and perhaps a "
                f"context (m, d), with {factor} dividing h and w for {len(self.channels)} levels; "
                "pad the images or use fewer levels."
            )
        return tuple(shapes[0]), tuple(tuple(s) for s in shapes[2:])

    def _check_context(self, params: Params, context: Array | None) -> None:
        is_expected = "cross" in params["middle_attention"]
        if is_expected != (context is not None):
            got, expected = ("no", "one") if is_expected else ("a", "none")
            raise ShapeError(
                f"UNet.apply: got {got} context, expected {expected} as declared by `init`; "
                "initialise with the shapes of all inputs that `apply` will get."
            )

    def out_shape(self, *shapes: Shape) -> Shape:
        return (*shapes[0][:2], self.out or shapes[0][2])
