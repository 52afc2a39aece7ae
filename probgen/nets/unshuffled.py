"""An image network on blocks of pixels: fewer, richer pixels, at a fraction of the cost.

    y = shuffle(net(unshuffle(x)));   unshuffle: [h, w, c] -> [h / f, w / f, f^2 c]

Pixel (f i + a, f j + b, k) is entry (a f + b) c + k of block (i, j), and back.

Source: Shi et al. 2016, arXiv:1609.05158 (the shuffle).
"""

from __future__ import annotations

from typing import Annotated, Any

from probgen.errors import ShapeError
from probgen.language import ops
from probgen.language.declared import declaration
from probgen.language.kinds import AnyNet, between
from probgen.nets.base import Array, Key, Params, Shape


def unshuffle(x: Array, factor: int) -> Array:
    """x [..., h, w, c] -> [..., h / f, w / f, f f c]; f divides the sides."""
    *lead, h, w, c = x.shape
    blocks = ops.reshape(x, (*lead, h // factor, factor, w // factor, factor, c))
    return ops.reshape(_swap(blocks, len(lead)), (*lead, h // factor, w // factor, factor**2 * c))


def shuffle(y: Array, factor: int) -> Array:
    """y [..., h, w, f f c] -> [..., f h, f w, c]: the inverse of `unshuffle`."""
    *lead, h, w, c = y.shape
    blocks = ops.reshape(y, (*lead, h, w, factor, factor, c // factor**2))
    return ops.reshape(_swap(blocks, len(lead)), (*lead, h * factor, w * factor, c // factor**2))


def _swap(blocks: Array, lead: int) -> Array:
    """[*lead, a, b, c, d, e] with the axes b and c exchanged."""
    return ops.transpose(blocks, (*range(lead), *(lead + i for i in (0, 2, 1, 3, 4))))


@declaration
class Unshuffled:
    """f(x [..., h, w, c], ...) -> [..., h, w, out], by a net of images of factor x factor blocks.

    `nets.Unshuffled(nets.UNet((48, 96)))` denoises 24 x 24 pixels at the cost of 12 x 12.

    Attributes:
        net: of images [h / f, w / f, f^2 c] and of whatever further inputs there are; its output
            has channels that f^2 divides.
        factor: f.

    Raises:
        ShapeError: sides that f does not divide, or channels of the output.
    """

    net: AnyNet
    factor: Annotated[int, between(2, 64)] = 2

    def init(self, key: Key, *shapes: Shape) -> Params:
        self.out_shape(*shapes)
        return self.net.init(key, self._blocks(shapes[0]), *shapes[1:])

    def apply(self, params: Params, x: Array, *more: Any, **options: Any) -> Any:
        """The output, and with `return_maps` what the net gives beside it, of its blocks."""
        self._blocks(tuple(x.shape[-3:]))
        found = self.net.apply(params, unshuffle(x, self.factor), *more, **options)
        if options.get("return_maps"):
            y, maps = found
            return shuffle(y, self.factor), maps
        return shuffle(found, self.factor)

    def _blocks(self, shape: Shape) -> Shape:
        f = self.factor
        if len(shape) != 3 or shape[0] % f or shape[1] % f:
            raise ShapeError(
                f"Unshuffled: got an image of shape {tuple(shape)}, expected (h, w, c) with "
                f"factor={f} dividing h and w; pad the images or take another factor."
            )
        return shape[0] // f, shape[1] // f, f * f * shape[2]

    def out_shape(self, *shapes: Shape) -> Shape:
        own: Any = self.net
        h, w, c = own.out_shape(self._blocks(shapes[0]), *shapes[1:])
        if c % self.factor**2:
            raise ShapeError(
                f"Unshuffled: got a net with {c} output channels, expected a multiple of "
                f"{self.factor**2}; set its `out`, or leave it at that of its input."
            )
        return h * self.factor, w * self.factor, c // self.factor**2
