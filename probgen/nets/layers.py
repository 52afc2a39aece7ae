"""The linear layers and their like: dense, convolution, upsampling, embedding, constants.

No nonlinearity and no normalisation here. Every layer keeps the leading axes of its input.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from probgen.errors import ShapeError
from probgen.language import ops
from probgen.language.declared import declaration
from probgen.language.kinds import Axes, NonNegative, Size, Width, between
from probgen.nets.base import (
    Array,
    Key,
    Params,
    Shape,
    check_last,
    draw_weight,
    full,
    one_shape,
    zeros,
)


@declaration
class Dense:
    """y = x W + b over the last axis: [..., in] -> [..., out].

    Attributes:
        out: size of the output.
        bias: whether b is there.
        init_scale: weights start as normal with variance init_scale / in.
    """

    out: Width
    bias: bool = True
    init_scale: NonNegative = 1.0

    def init(self, key: Key, *shapes: Shape) -> Params:
        (size,) = one_shape(self, shapes, 1)
        params = {"weight": draw_weight(key, (size, self.out), size, self.init_scale)}
        return params | ({"bias": zeros(self.out)} if self.bias else {})

    def apply(self, params: Params, x: Array) -> Array:
        check_last(self, x, params["weight"].shape[0])
        y = ops.matmul(x, params["weight"])
        return y + params["bias"] if self.bias else y

    def out_shape(self, *shapes: Shape) -> Shape:
        one_shape(self, shapes, 1)
        return (self.out,)


@declaration
class Conv:
    """Convolution: [..., h, w, cin] -> [..., h', w', out].

    h' = (h + 2 padding - kernel) // stride + 1.

    Attributes:
        out: number of output channels.
        kernel: side of the square kernel.
        stride: step in both directions.
        padding: zeros on each side; None is (kernel - 1) // 2, which keeps h for odd kernels.
        bias: whether a bias is added.
        init_scale: weights start as normal with variance init_scale / (kernel^2 cin).
    """

    out: Width
    kernel: Width = 3
    stride: Width = 1
    padding: Size | None = None
    bias: bool = True
    init_scale: NonNegative = 1.0

    def init(self, key: Key, *shapes: Shape) -> Params:
        self.out_shape(*shapes)
        cin = shapes[0][-1]
        shape = (self.kernel, self.kernel, cin, self.out)
        params = {"weight": draw_weight(key, shape, self.kernel**2 * cin, self.init_scale)}
        return params | ({"bias": zeros(self.out)} if self.bias else {})

    def apply(self, params: Params, x: Array) -> Array:
        weight = params["weight"]
        check_last(self, x, weight.shape[2], 3)
        y = ops.conv(x, weight, self.stride, self.padding)
        return y + params["bias"] if self.bias else y

    def out_shape(self, *shapes: Shape) -> Shape:
        h, w, _ = one_shape(self, shapes, 3)
        pad = (self.kernel - 1) // 2 if self.padding is None else self.padding
        sizes = tuple((n + 2 * pad - self.kernel) // self.stride + 1 for n in (h, w))
        if min(sizes) < 1:
            raise ShapeError(
                f"Conv: got images of {h} x {w}, expected at least the kernel's {self.kernel} with "
                f"{pad} zeros on each side; use a smaller kernel or fewer strided layers."
            )
        return (*sizes, self.out)


@declaration
class ConvTranspose:
    """Transposed convolution: [..., h, w, cin] -> [..., h', w', out].

    h' = (h - 1) stride - 2 padding + kernel, so kernel 4, stride 2, padding 1 doubles h.

    Attributes:
        out: number of output channels.
        kernel: side of the square kernel.
        stride: step in the output.
        padding: cut off on each side; None is (kernel - 1) // 2.
        bias: whether a bias is added.
        init_scale: variance of the weights times their fan-in, (kernel / stride)^2 cin: the number
            of products that meet in one output pixel.
    """

    out: Width
    kernel: Width = 4
    stride: Width = 2
    padding: Size | None = None
    bias: bool = True
    init_scale: NonNegative = 1.0

    def init(self, key: Key, *shapes: Shape) -> Params:
        self.out_shape(*shapes)
        cin = shapes[0][-1]
        fan_in = math.ceil(self.kernel / self.stride) ** 2 * cin
        shape = (self.kernel, self.kernel, cin, self.out)
        params = {"weight": draw_weight(key, shape, fan_in, self.init_scale)}
        return params | ({"bias": zeros(self.out)} if self.bias else {})

    def apply(self, params: Params, x: Array) -> Array:
        weight = params["weight"]
        check_last(self, x, weight.shape[2], 3)
        y = ops.conv_transpose(x, weight, self.stride, self.padding)
        return y + params["bias"] if self.bias else y

    def out_shape(self, *shapes: Shape) -> Shape:
        h, w, _ = one_shape(self, shapes, 3)
        pad = (self.kernel - 1) // 2 if self.padding is None else self.padding
        sizes = tuple((n - 1) * self.stride - 2 * pad + self.kernel for n in (h, w))
        if min(sizes) < 1:
            raise ShapeError(
                f"ConvTranspose: got images of {h} x {w} and padding {pad}, expected an output of "
                "at least one pixel; use less padding or a larger kernel."
            )
        return (*sizes, self.out)


@declaration
class Upsample:
    """Each pixel as a block, then a convolution: [..., h, w, cin] -> [..., f h, f w, out].

    Free of the checkerboard that transposed convolutions can leave (Odena, Dumoulin & Olah 2016,
    "Deconvolution and Checkerboard Artifacts", Distill).

    Attributes:
        out: number of output channels.
        kernel: side of the convolution's kernel, odd.
        factor: f, blocks are f x f.
        init_scale: as in `Conv`.
    """

    out: Width
    kernel: Width = 3
    factor: Width = 2
    init_scale: NonNegative = 1.0

    def _conv(self) -> Conv:
        return Conv(self.out, self.kernel, init_scale=self.init_scale)

    def _grown(self, shapes: tuple[Shape, ...]) -> Shape:
        h, w, c = one_shape(self, shapes, 3)
        return h * self.factor, w * self.factor, c

    def init(self, key: Key, *shapes: Shape) -> Params:
        return self._conv().init(key, self._grown(shapes))

    def apply(self, params: Params, x: Array) -> Array:
        check_last(self, x, params["weight"].shape[2], 3)
        return self._conv().apply(params, ops.upsample_nearest(x, self.factor))

    def out_shape(self, *shapes: Shape) -> Shape:
        return self._conv().out_shape(self._grown(shapes))


@declaration
class Embedding:
    """A learned vector for each of `num` classes: integers [...] -> [..., dim].

    Vectors start as standard normal times sqrt(init_scale). Classes are 0 ... num - 1; outside them
    torch raises and JAX gives NaN.
    """

    num: Width
    dim: Width
    init_scale: NonNegative = 1.0

    def init(self, key: Key, *shapes: Shape) -> Params:
        return {"table": draw_weight(key, (self.num, self.dim), 1, self.init_scale)}

    def apply(self, params: Params, idx: Array) -> Array:
        return ops.take(params["table"], idx, axis=0)

    def out_shape(self, *shapes: Shape) -> Shape:
        return (*one_shape(self, shapes), self.dim)


@declaration
class Parameter:
    """A learned constant: `init(key)` takes no input shapes, `apply(params)` gives the array.

    Attributes:
        shape: its shape; () is a number.
        value: its first value, everywhere.
    """

    shape: Shape = ()
    value: float = 0.0

    def init(self, key: Key, *shapes: Shape) -> Params:
        return {"value": full(self.shape, self.value)}

    def apply(self, params: Params, *inputs: Any) -> Array:
        return params["value"]

    def out_shape(self, *shapes: Shape) -> Shape:
        return self.shape


@declaration
class Reshape:
    """The trailing `in_ndim` axes in another shape; one size of `out` may be -1.

    `Reshape((-1,))` flattens images [..., h, w, c] on their way to a dense layer.
    """

    out: tuple[Annotated[int, between(-1, 10**6)], ...]
    in_ndim: Axes = 3

    def init(self, key: Key, *shapes: Shape) -> Params:
        self.out_shape(*shapes)
        return {}

    def apply(self, params: Params, x: Array) -> Array:
        lead = len(x.shape) - self.in_ndim
        return ops.reshape(x, (*x.shape[:lead], *self.out_shape(tuple(x.shape[lead:]))))

    def out_shape(self, *shapes: Shape) -> Shape:
        shape = one_shape(self, shapes, self.in_ndim)
        total, known = math.prod(shape), math.prod(n for n in self.out if n != -1)
        free = total // known if self.out.count(-1) == 1 and known else 1
        result = tuple(free if n == -1 else n for n in self.out)
        if self.out.count(-1) > 1 or math.prod(result) != total:
            raise ShapeError(
                f"Reshape: got event shape {shape} for out={self.out}, expected {total} numbers in "
                "both, with at most one -1; correct `out`, or `in_ndim` if axes were miscounted."
            )
        return result
