"""The auto-encoder of a latent diffusion of diffusers: pictures in [0, 1] and its scaled latents.

With mean m and log variance v by its encoder of 2 x - 1, and its factor s (`scaling_factor`),

    q(z | x) = N(s m, s^2 exp v)            x = clip((decoder(z / s) + 1) / 2, 0, 1)

z [h, w, c] is what the U-Net was trained on; a picture [H, W, 3] has the range and the axes of a
pipeline's output_type="np".

Source: Rombach et al. 2022, arXiv:2112.10752, section 3.1 and appendix G.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

from probgen.language import ops
from probgen.language.declared import declaration
from probgen.language.kinds import Positive, Width, having
from probgen.nets.adapters import TorchNet, with_one_batch_axis
from probgen.nets.base import Array, Key, Params, Shape

MODULE = having("a module of torch", "named_parameters", "named_buffers")
LOG_VARIANCE = (-30.0, 20.0)  # where theirs is clipped


@declaration(eq=False)
class DiffusersEncoder:
    """f(x [..., H, W, 3]) -> {"loc", "log_scale"} of z, [..., h, w, c] each, on torch.

    Args:
        module: the `encoder` of an `AutoencoderKL`.
        last: its `quant_conv`, or None.
        scale: s, its `scaling_factor`.
    """

    module: Annotated[Any, MODULE]
    last: Annotated[Any, MODULE] | None = None
    scale: Positive = 1.0
    framework: ClassVar = "torch"

    @property
    def in_ndim(self) -> int:
        return 3

    def init(self, key: Key, *shapes: Shape) -> Params:
        return _weights(self, key)

    def apply(self, params: Params, x: Array) -> dict[str, Array]:
        def heads(x: Array) -> dict[str, Array]:
            moments = _through(self, params, ("module", "last"), _channels_first(2.0 * x - 1.0))
            moments = _channels_last(moments)
            c = moments.shape[-1] // 2
            log_variance = ops.clip(moments[..., c:], *LOG_VARIANCE)
            log_scale = 0.5 * log_variance + math.log(self.scale)
            return {"loc": self.scale * moments[..., :c], "log_scale": log_scale}

        return with_one_batch_axis(heads, (x,), 3)

    def __identity__(self) -> dict[str, Any]:
        return _content(self)

    def __repr__(self) -> str:  # a module's own is pages long
        return f"DiffusersEncoder({type(self.module).__name__}, scale={self.scale:g})"


@declaration(eq=False)
class DiffusersDecoder:
    """f(z [..., h, w, c]) -> a picture [..., H, W, 3] in [0, 1], on torch.

    Args:
        module: the `decoder` of an `AutoencoderKL`.
        first: its `post_quant_conv`, or None.
        scale: s, its `scaling_factor`.
        out: (H, W, 3), the shape of a picture.
    """

    module: Annotated[Any, MODULE]
    first: Annotated[Any, MODULE] | None = None
    scale: Positive = 1.0
    out: tuple[Width, ...] = (512, 512, 3)
    framework: ClassVar = "torch"

    @property
    def in_ndim(self) -> int:
        return 3

    def init(self, key: Key, *shapes: Shape) -> Params:
        return _weights(self, key)

    def apply(self, params: Params, z: Array) -> Array:
        def picture(z: Array) -> Array:
            y = _through(self, params, ("first", "module"), _channels_first(z / self.scale))
            return ops.clip(0.5 * _channels_last(y) + 0.5, 0.0, 1.0)

        return with_one_batch_axis(picture, (z,), 3)

    def __identity__(self) -> dict[str, Any]:
        return _content(self)

    def __repr__(self) -> str:  # a module's own is pages long
        return f"DiffusersDecoder({type(self.module).__name__}, out={self.out})"

    def out_shape(self, *shapes: Shape) -> Shape:
        return self.out


# ---- what both do --------------------------------------------------------------------------------


def _parts(net: Any) -> dict[str, TorchNet]:
    """Their modules by our names, those that they have."""
    given = {name: getattr(net, name, None) for name in ("module", "first", "last")}
    return {name: TorchNet(part) for name, part in given.items() if part is not None}


def _weights(net: Any, key: Key) -> Params:
    return {name: part.init(key) for name, part in _parts(net).items()}


def _through(net: Any, params: Params, names: tuple[str, ...], x: Array) -> Array:
    parts = _parts(net)
    for name in names:
        if name in parts:
            x = parts[name].call(params[name], x)
    return x


def _content(net: Any) -> dict[str, Any]:
    parts = {name: part.__identity__() for name, part in _parts(net).items()}
    return {**parts, "scale": net.scale}


def _channels_first(x: Array) -> Array:
    return ops.transpose(x, (0, 3, 1, 2))


def _channels_last(x: Array) -> Array:
    return ops.transpose(x, (0, 2, 3, 1))
