"""Array functions on torch tensors and JAX arrays alike: what models need beyond operators.

    ops.logsumexp(x, axis=-1)        # x decides who computes: torch or JAX

A function looks at the type of its array arguments, never at their values, so it is traceable by
jax.jit and jax.vmap, and by torch's dispatch modes and torch.func. Axes, `keepdims`, `ddof` and the
way of NaN (clip, maximum and max propagate it) are numpy's on both. Numpy arrays and Python numbers
beside a framework's array follow it: a float takes its dtype and device, integers and booleans keep
their kind. Images are channel-last [..., h, w, c].

Nothing is computed here and no framework is imported: `probgen/backends/torch/ops.py` and
`probgen/backends/jax/ops.py` hold one function for each name below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from probgen.errors import ShapeError
from probgen.language.odes import solve_ode as solve_ode
from probgen.language.ops_modules import ops_for as ops_for
from probgen.language.ops_modules import running_ops as running_ops
from probgen.language.recursions import scan as scan

Array = Any
ArrayLike = Any
Axis = int | tuple[int, ...] | None

# ---- elementwise ---------------------------------------------------------------------------------


def _elementwise(name: str, formula: str) -> Callable[[ArrayLike], Array]:
    def function(x: ArrayLike) -> Array:
        return getattr(ops_for(x), name)(x)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"{formula}, elementwise; the shape of `x`."
    return function


exp = _elementwise("exp", "e^x")
expm1 = _elementwise("expm1", "e^x - 1, accurate near 0")
log = _elementwise("log", "Natural logarithm")
log1p = _elementwise("log1p", "log(1 + x), accurate near 0")
sqrt = _elementwise("sqrt", "Square root")
square = _elementwise("square", "x^2")
abs = _elementwise("abs", "|x|")
sign = _elementwise("sign", "-1, 0 or 1 (NaN stays NaN)")
sin = _elementwise("sin", "Sine")
cos = _elementwise("cos", "Cosine")
tanh = _elementwise("tanh", "Hyperbolic tangent")
sigmoid = _elementwise("sigmoid", "1 / (1 + e^-x)")
log_sigmoid = _elementwise("log_sigmoid", "log sigmoid(x) = -softplus(-x)")
logit = _elementwise("logit", "log(x / (1 - x)), the inverse of sigmoid")
softplus = _elementwise("softplus", "log(1 + e^x)")
relu = _elementwise("relu", "max(x, 0), with derivative 0 at 0")
silu = _elementwise("silu", "x sigmoid(x)")
gelu = _elementwise("gelu", "x Phi(x), with the exact normal distribution function")
elu = _elementwise("elu", "x if x > 0 else e^x - 1")
erf = _elementwise("erf", "Error function")
erfc = _elementwise("erfc", "1 - erf(x), accurate for large x")
lgamma = _elementwise("lgamma", "log |Gamma(x)|")
i0e = _elementwise("i0e", "e^-|x| I0(x), the scaled modified Bessel function of order 0")
floor = _elementwise("floor", "Largest integer <= x, same dtype")
round = _elementwise("round", "Nearest integer, halves to even, same dtype")
isfinite = _elementwise("isfinite", "True where x is neither infinite nor NaN")
isnan = _elementwise("isnan", "True where x is NaN")
zeros_like = _elementwise("zeros_like", "0")
ones_like = _elementwise("ones_like", "1")
stop_gradient = _elementwise("stop_gradient", "x, as a constant to every derivative")


def leaky_relu(x: ArrayLike, slope: float = 0.01) -> Array:
    """x where x > 0, else slope x."""
    return ops_for(x).leaky_relu(x, slope)


def where(condition: ArrayLike, x: ArrayLike, y: ArrayLike) -> Array:
    """x where the condition holds, else y; the three broadcast.

    A NaN or infinite derivative of the branch not taken still poisons the gradient: make the
    argument safe first, `where(ok, log(where(ok, x, 1.0)), 0.0)`.
    """
    return ops_for(x, y, condition).where(condition, x, y)


def clip(x: ArrayLike, low: ArrayLike | None = None, high: ArrayLike | None = None) -> Array:
    """min(max(x, low), high); a bound of None is no bound, NaN stays NaN."""
    return ops_for(x, low, high).clip(x, low, high)


def maximum(x: ArrayLike, y: ArrayLike) -> Array:
    """Elementwise maximum; NaN if either is. At a tie the gradient is shared in halves."""
    return ops_for(x, y).maximum(x, y)


def minimum(x: ArrayLike, y: ArrayLike) -> Array:
    """Elementwise minimum; NaN if either is. At a tie the gradient is shared in halves."""
    return ops_for(x, y).minimum(x, y)


def cast(x: ArrayLike, dtype: str) -> Array:
    """`x` as "float32", "float64", "int32", "int64" or "bool".

    JAX without its x64 switch gives the 32-bit kind for a 64-bit name.
    """
    return ops_for(x).cast(x, dtype)


# ---- reductions: axis None (all), an int or a tuple ----------------------------------------------


def _reduction(name: str, formula: str) -> Callable[..., Array]:
    def function(x: ArrayLike, axis: Axis = None, keepdims: bool = False) -> Array:
        return getattr(ops_for(x), name)(x, axis=axis, keepdims=keepdims)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"{formula} over `axis` (None: all axes), which goes unless `keepdims`."
    return function


sum = _reduction("sum", "Sum")
mean = _reduction("mean", "Mean")
prod = _reduction("prod", "Product")
max = _reduction("max", "Maximum")
min = _reduction("min", "Minimum")
any = _reduction("any", "Whether any is true")
all = _reduction("all", "Whether all are true")
logsumexp = _reduction("logsumexp", "log sum e^x")


def var(x: ArrayLike, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Array:
    """Sum of squared deviations over (count - ddof)."""
    return ops_for(x).var(x, axis=axis, ddof=ddof, keepdims=keepdims)


def std(x: ArrayLike, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Array:
    """Square root of `var`."""
    return ops_for(x).std(x, axis=axis, ddof=ddof, keepdims=keepdims)


def softmax(x: ArrayLike, axis: int = -1) -> Array:
    """e^x / sum e^x along `axis`."""
    return ops_for(x).softmax(x, axis)


def log_softmax(x: ArrayLike, axis: int = -1) -> Array:
    """x - logsumexp(x) along `axis`."""
    return ops_for(x).log_softmax(x, axis)


def cumsum(x: ArrayLike, axis: int) -> Array:
    """Running sum along `axis`, its own term included."""
    return ops_for(x).cumsum(x, axis)


def argmax(x: ArrayLike, axis: int | None = None) -> Array:
    """Index of the maximum along `axis` (None: in the flattened array), integers."""
    return ops_for(x).argmax(x, axis)


# ---- shape ---------------------------------------------------------------------------------------


def concatenate(arrays: Sequence[ArrayLike], axis: int = 0) -> Array:
    """Arrays joined along an axis that they have."""
    return ops_for(arrays).concatenate(arrays, axis)


def stack(arrays: Sequence[ArrayLike], axis: int = 0) -> Array:
    """Arrays of one shape joined along a new axis."""
    return ops_for(arrays).stack(arrays, axis)


def reshape(x: ArrayLike, shape: int | Sequence[int]) -> Array:
    """The same numbers, last axis fastest, in another shape; one size may be -1."""
    return ops_for(x).reshape(x, shape)


def transpose(x: ArrayLike, axes: Sequence[int] | None = None) -> Array:
    """Axis i of the result is axis axes[i] of `x`; None reverses them."""
    return ops_for(x).transpose(x, axes)


def broadcast_to(x: ArrayLike, shape: Sequence[int]) -> Array:
    """`x` repeated to `shape` by numpy's rule."""
    return ops_for(x).broadcast_to(x, shape)


def expand_dims(x: ArrayLike, axis: int) -> Array:
    """A new axis of size one, at place `axis` of the result."""
    return ops_for(x).expand_dims(x, axis)


def squeeze(x: ArrayLike, axis: Axis = None) -> Array:
    """Without the given axes of size one (None: without all of them)."""
    return ops_for(x).squeeze(x, axis)


def pad(x: ArrayLike, widths: Sequence[tuple[int, int]], value: float = 0.0) -> Array:
    """`x` with `value` around it: widths[i] = (before, after) on axis i."""
    return ops_for(x).pad(x, widths, value)


def flip(x: ArrayLike, axis: Axis = None) -> Array:
    """In reverse order along `axis`."""
    return ops_for(x).flip(x, axis)


# ---- arrays made after another one's kind --------------------------------------------------------


def asarray(value: ArrayLike) -> Array:
    """Numbers or a numpy array as an array of the running program's backend; arrays unchanged."""
    return ops_for(value).asarray(value)


def asarray_like(value: ArrayLike, like: Array) -> Array:
    """Numbers or a numpy array with the backend, dtype and device of `like`."""
    return ops_for(like).asarray_like(value, like)


def full_like(x: ArrayLike, value: ArrayLike) -> Array:
    """`value` everywhere, with the shape and dtype of `x`."""
    return ops_for(x).full_like(x, value)


def arange_like(n: int, like: Array) -> Array:
    """[n] the numbers 0 ... n - 1, with the dtype and device of `like`; see `cast` for indices."""
    return ops_for(like).arange_like(n, like)


def eye_like(n: int, like: Array) -> Array:
    """[n, n] identity matrix with the dtype and device of `like`."""
    return ops_for(like).eye_like(n, like)


def one_hot(idx: ArrayLike, n: int, like: Array | None = None) -> Array:
    """[*idx, n] one where the index is, else zero (all zero for an index outside 0 ... n - 1).

    The dtype is that of `like`, or the backend's default float.
    """
    return ops_for(idx, like).one_hot(idx, n, like)


# ---- indices and matrices ------------------------------------------------------------------------


def take(table: ArrayLike, idx: ArrayLike, axis: int = 0) -> Array:
    """Entries of `table` along `axis`: the axis is replaced by the axes of `idx`.

    Indices are 0 ... n - 1. Outside them torch raises, and JAX, which cannot, gives NaN.
    """
    return ops_for(table, idx).take(table, idx, axis)


def take_along_axis(x: ArrayLike, idx: ArrayLike, axis: int) -> Array:
    """x[..., idx[..., j, ...], ...]: one index for each position of the other axes."""
    return ops_for(x, idx).take_along_axis(x, idx, axis)


def put(x: ArrayLike, idx: ArrayLike, rows: ArrayLike) -> Array:
    """`x` with `rows` [m, ...] at the indices `idx` [m] of its first axis, each at most once.

    Indices are 0 ... n - 1. Outside them torch raises, and JAX, which cannot, leaves the row out.
    """
    return ops_for(x, rows).put(x, idx, rows)


def matmul(a: ArrayLike, b: ArrayLike) -> Array:
    """Matrix product over the last two axes; leading axes broadcast. The operator `@` is equal."""
    return ops_for(a, b).matmul(a, b)


def einsum(subscripts: str, *operands: ArrayLike) -> Array:
    """Einstein summation in numpy's notation."""
    return ops_for(*operands).einsum(subscripts, *operands)


def tril(x: ArrayLike, k: int = 0) -> Array:
    """The lower triangle of the last two axes, up to the k-th diagonal; zero above."""
    return ops_for(x).tril(x, k)


def diagonal(x: ArrayLike) -> Array:
    """[..., n] the main diagonal of the last two axes."""
    return ops_for(x).diagonal(x)


def cholesky(x: ArrayLike) -> Array:
    """[..., n, n] lower L with L L^T = x; NaN where x is not positive definite.

    NaN rather than an exception on both backends: a traced program cannot raise on a value.
    """
    return ops_for(x).cholesky(x)


def slogdet(x: ArrayLike) -> tuple[Array, Array]:
    """Sign and log |det| of [..., n, n]; (0, -inf) of a singular matrix."""
    return ops_for(x).slogdet(x)


def solve_triangular(a: ArrayLike, b: ArrayLike, lower: bool = True) -> Array:
    """x with a x = b for triangular a [..., n, n] and b [..., n, k], or one vector b [n].

    One matrix `a` [n, n] and a batch of b is one solve with many right-hand sides.
    """
    return ops_for(a, b).solve_triangular(a, b, lower)


# ---- calculus ------------------------------------------------------------------------------------


def grad(fn: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """x -> d fn(x) / dx, of the shape of `x`, for a function of one array that gives one number.

    May be taken again of what it gives, and stand in a program: a sum over data whose terms do not
    mix gives each datum's own gradient, grad(lambda x: sum(energy(x))).
    """
    return lambda x: ops_for(x).grad(fn)(x)


# ---- images, channel-last ------------------------------------------------------------------------


def conv(x: ArrayLike, weight: ArrayLike, stride: int = 1, padding: int | None = None) -> Array:
    """Convolution (cross-correlation): y[i] = sum_a x[i stride + a - padding] weight[a].

    Args:
        x: [..., h, w, cin] images.
        weight: [kh, kw, cin, cout].
        stride: step in both directions.
        padding: zeros added on each side; None is (k - 1) // 2 in each direction.

    Returns:
        [..., h', w', cout] with h' = (h + 2 padding - kh) // stride + 1.

    Raises:
        ShapeError: other axes, unequal channels, or a kernel larger than the padded image.
    """
    pad_h, pad_w = _check_conv("conv", x, weight, stride, padding)
    for size, k, pad in zip(x.shape[-3:-1], weight.shape[:2], (pad_h, pad_w), strict=True):
        if size + 2 * pad < k:
            raise ShapeError(
                f"conv: got an image axis of {size} with padding {pad}, expected at least the "
                f"kernel's {k}; use a smaller kernel, more padding or fewer strided layers."
            )
    return ops_for(x, weight).conv(x, weight, stride, padding)


def conv_transpose(
    x: ArrayLike, weight: ArrayLike, stride: int = 1, padding: int | None = None
) -> Array:
    """Transposed convolution: y[i stride + a - padding] += x[i] weight[a].

    The adjoint of `conv` with `weight` [kh, kw, cout, cin] and the same stride and padding.

    Args:
        x: [..., h, w, cin] images.
        weight: [kh, kw, cin, cout].
        stride: step in the output, in both directions.
        padding: rows and columns cut off on each side; None is (k - 1) // 2 in each direction.

    Returns:
        [..., h', w', cout] with h' = (h - 1) stride - 2 padding + kh.

    Raises:
        ShapeError: other axes, unequal channels, or nothing left after the cut.
    """
    pad_h, pad_w = _check_conv("conv_transpose", x, weight, stride, padding)
    for size, k, pad in zip(x.shape[-3:-1], weight.shape[:2], (pad_h, pad_w), strict=True):
        if (size - 1) * stride - 2 * pad + k < 1:
            raise ShapeError(
                f"conv_transpose: got padding {pad} for an image axis of {size} and kernel {k}, "
                f"expected an output of at least one pixel; use less padding."
            )
    return ops_for(x, weight).conv_transpose(x, weight, stride, padding)


def _check_conv(
    name: str, x: Array, weight: Array, stride: int, padding: int | None
) -> tuple[int, int]:
    """Refuse what the backends would refuse in their own words; the padding of either axis."""
    if len(x.shape) < 3 or len(weight.shape) != 4 or x.shape[-1] != weight.shape[2]:
        raise ShapeError(
            f"{name}: got x {tuple(x.shape)} and weight {tuple(weight.shape)}, expected "
            "[..., h, w, cin] and [kh, kw, cin, cout] of one cin; images are channel-last."
        )
    if stride < 1 or (padding is not None and padding < 0):
        raise ShapeError(
            f"{name}: got stride {stride} and padding {padding}, expected a stride of at least 1 "
            "and a padding of at least 0 (None: (k - 1) // 2)."
        )
    if padding is not None:
        return padding, padding
    return (weight.shape[0] - 1) // 2, (weight.shape[1] - 1) // 2


def upsample_nearest(x: ArrayLike, factor: int = 2) -> Array:
    """[..., h factor, w factor, c] each pixel of [..., h, w, c] as a block."""
    return ops_for(x).upsample_nearest(x, factor)


def avg_pool(x: ArrayLike, window: int = 2, stride: int | None = None) -> Array:
    """Mean over window x window blocks of [..., h, w, c], `stride` apart (None: the window).

    Rows and columns that do not fill a block are left out: h' = (h - window) // stride + 1.
    """
    return ops_for(x).avg_pool(x, window, stride)


def group_norm(
    x: ArrayLike, num_groups: int, epsilon: float = 1e-5, scale: ArrayLike | None = None,
    offset: ArrayLike | None = None,
) -> Array:  # fmt: skip
    """Of x [..., pixels, channels] each datum's groups of channels with mean 0 and variance 1 over
    a group's channels and pixels, then scale x + offset of each channel where they are given.

    Args:
        num_groups: must divide the channels.
        epsilon: added to the variance.
        scale, offset: [channels], both or none.
    """
    return ops_for(x).group_norm(x, num_groups, epsilon, scale, offset)
