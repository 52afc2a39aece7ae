"""Laws of `probgen.ops`: each function against numpy or scipy, on torch and on JAX.

A new function joins with one line of CASES. Convolutions are held to a plain numpy loop and to each
other as adjoints.
"""

import importlib
import inspect
import math
import subprocess
import sys

import numpy as np
import pytest
import scipy.linalg
import scipy.special as sp

from probgen import ops
from probgen.backends import jax_conv
from probgen.errors import BackendError, ShapeError

RNG = np.random.default_rng(0)


class Torch:
    """What the tests do with either framework, on torch."""

    name = "torch"

    def __init__(self):
        self.torch = pytest.importorskip("torch")
        self.module = importlib.import_module("probgen.backends.torch_ops")

    def array(self, x):
        return self.torch.as_tensor(np.array(x))

    def trace(self, fn, *xs):
        from torch.fx.experimental.proxy_tensor import make_fx

        return make_fx(fn)(*xs)

    def vmap(self, fn):
        return self.torch.func.vmap(fn)

    def grad(self, fn, argnums):
        return self.torch.func.grad(fn, argnums=argnums)

    def hessian(self, fn, x):
        return self.torch.func.hessian(fn)(x)


class Jax:
    """What the tests do with either framework, on JAX."""

    name = "jax"

    def __init__(self):
        self.jax = pytest.importorskip("jax")
        self.module = importlib.import_module("probgen.backends.jax_ops")

    def array(self, x):
        return self.jax.numpy.asarray(x)

    def trace(self, fn, *xs):
        return self.jax.jit(fn)

    def vmap(self, fn):
        return self.jax.vmap(fn)

    def grad(self, fn, argnums):
        return self.jax.grad(fn, argnums=argnums)

    def hessian(self, fn, x):
        return self.jax.hessian(fn)(x)


@pytest.fixture(params=[Torch, Jax], ids=["torch", "jax"], scope="module")
def lib(request):
    return request.param()


def f32(x):
    return np.asarray(x, np.float32) if np.asarray(x).dtype.kind == "f" else np.asarray(x)


def normal(*shape):
    return f32(RNG.normal(size=shape))


def uniform(*shape):
    return f32(RNG.uniform(0.05, 0.95, size=shape))


def spd(*shape):
    a = RNG.normal(size=(*shape, shape[-1]))
    return f32(a @ a.swapaxes(-1, -2) + np.eye(shape[-1]))


def same(got, expected, rtol=2e-5, atol=2e-5):
    expected = np.asarray(expected)
    assert tuple(got.shape) == expected.shape
    np.testing.assert_allclose(np.asarray(got), expected, rtol=rtol, atol=atol)


X, Y, U = normal(3, 4, 5), normal(4, 5), uniform(3, 4)
IDX = np.array([[0, 2], [1, 1], [2, 0]])
SPD, LOW = spd(3, 4), np.tril(spd(4))
MASK = X > 0

ELEMENTWISE = [
    ("exp", np.exp, X),
    ("expm1", np.expm1, X),
    ("log", np.log, U),
    ("log1p", np.log1p, U),
    ("sqrt", np.sqrt, U),
    ("square", np.square, X),
    ("abs", np.abs, X),
    ("sign", np.sign, X),
    ("sin", np.sin, X),
    ("cos", np.cos, X),
    ("tanh", np.tanh, X),
    ("sigmoid", sp.expit, X),
    ("log_sigmoid", sp.log_expit, 30 * X),
    ("logit", sp.logit, U),
    ("softplus", lambda x: np.logaddexp(x, 0), 30 * X),
    ("relu", lambda x: np.maximum(x, 0), X),
    ("silu", lambda x: x * sp.expit(x), X),
    ("gelu", lambda x: x * sp.ndtr(x), X),
    ("elu", lambda x: np.where(x > 0, x, np.expm1(x)), X),
    ("leaky_relu", lambda x: np.where(x > 0, x, 0.01 * x), X),
    ("erf", sp.erf, X),
    ("lgamma", sp.gammaln, 5 * U),
    ("floor", np.floor, 3 * X),
    ("round", np.round, np.array([0.5, 1.5, 2.5, -0.5, 0.2], np.float32)),
    ("isfinite", np.isfinite, f32([1.0, np.inf, np.nan])),
    ("isnan", np.isnan, f32([1.0, np.inf, np.nan])),
    ("zeros_like", np.zeros_like, X),
    ("ones_like", np.ones_like, X),
    ("stop_gradient", lambda x: x, X),
]
REDUCTIONS = [
    ("sum", np.sum),
    ("mean", np.mean),
    ("prod", np.prod),
    ("max", np.max),
    ("min", np.min),
    ("var", np.var),
    ("std", np.std),
    ("logsumexp", sp.logsumexp),
]
AXES = [(None, False), (1, False), ((0, -1), True), ((), False)]


def reduction_cases():
    for name, fn in REDUCTIONS:
        for axis, keepdims in AXES:
            kw = {"axis": axis, "keepdims": keepdims}
            ref = fn
            if name == "logsumexp" and axis == ():
                ref = lambda x, axis, keepdims: x  # noqa: E731 - scipy has no empty axes
            yield f"{name}-{kw}", partial_of(getattr(ops, name), kw), partial_of(ref, kw), (X,)
    for name in ("any", "all"):
        for axis in (None, 0, (1, 2)):
            kw = {"axis": axis}
            yield (
                f"{name}-{kw}",
                partial_of(getattr(ops, name), kw),
                partial_of(getattr(np, name), kw),
                (MASK,),
            )


def partial_of(fn, kwargs):
    return lambda *xs: fn(*xs, **kwargs)


def lower_solve(a, b):
    return scipy.linalg.solve_triangular(a.astype(float), b.astype(float), lower=True)


# (id, our call, numpy's call, the arrays)
NAN = f32([[np.nan, 1.0, -2.0], [np.inf, -np.inf, 0.0]])
CASES = [
    *((n, getattr(ops, n), fn, (x,)) for n, fn, x in ELEMENTWISE),
    *reduction_cases(),
    ("var-ddof", lambda x: ops.var(x, 1, ddof=1), lambda x: np.var(x, 1, ddof=1), (X,)),
    ("std-ddof", lambda x: ops.std(x, 1, ddof=1), lambda x: np.std(x, 1, ddof=1), (X,)),
    ("sum-scalar", ops.sum, np.sum, (f32(2.0),)),
    ("max-scalar", ops.max, np.max, (f32(2.0),)),
    ("var-scalar", ops.var, np.var, (f32(2.0),)),
    ("sum-empty", lambda x: ops.sum(x, 0), lambda x: np.sum(x, 0), (normal(0, 3),)),
    ("prod-empty", lambda x: ops.prod(x, 0), lambda x: np.prod(x, 0), (normal(0, 3),)),
    ("mean-int", ops.mean, np.mean, (IDX,)),
    ("max-nan", lambda x: ops.max(x, 1), lambda x: np.max(x, 1), (NAN,)),
    ("min-nan", lambda x: ops.min(x, 1), lambda x: np.min(x, 1), (NAN,)),
    ("sign-nan", ops.sign, np.sign, (NAN,)),
    ("clip-nan", lambda x: ops.clip(x, -1, 1), lambda x: np.clip(x, -1, 1), (NAN,)),
    ("clip-low", lambda x: ops.clip(x, -0.5), lambda x: np.maximum(x, -0.5), (X,)),
    ("clip-high", lambda x: ops.clip(x, None, 0.5), lambda x: np.minimum(x, 0.5), (X,)),
    ("clip-array", ops.clip, np.clip, (X, Y - 1, Y + 1)),
    ("maximum", ops.maximum, np.maximum, (X, Y)),
    ("maximum-nan", lambda x: ops.maximum(0.0, x), lambda x: np.maximum(0.0, x), (NAN,)),
    ("minimum", ops.minimum, np.minimum, (X, Y)),
    ("minimum-nan", lambda x: ops.minimum(x, 0.0), lambda x: np.minimum(x, 0.0), (NAN,)),
    ("where", ops.where, np.where, (MASK, X, Y)),
    (
        "where-number",
        lambda m, x: ops.where(m, x, 0.0),
        lambda m, x: np.where(m, x, f32(0.0)),
        (MASK, X),
    ),
    ("softmax", lambda x: ops.softmax(x, 1), lambda x: sp.softmax(x, 1), (X,)),
    ("log_softmax", ops.log_softmax, lambda x: sp.log_softmax(x, -1), (X,)),
    ("logsumexp-empty", lambda x: ops.logsumexp(x, 0), lambda x: x[0], (f32([[-np.inf, 3.0]]),)),
    ("cumsum", lambda x: ops.cumsum(x, 1), lambda x: np.cumsum(x, 1), (X,)),
    ("argmax", ops.argmax, np.argmax, (X,)),
    ("argmax-axis", lambda x: ops.argmax(x, 1), lambda x: np.argmax(x, 1), (X,)),
    ("concatenate", lambda x, y: ops.concatenate([x, y], 1), lambda x, y: np.concatenate([x, y], 1),
     (X, normal(3, 2, 5))),
    ("stack", lambda x, y: ops.stack([x, y], -1), lambda x, y: np.stack([x, y], -1), (Y, Y + 1)),
    ("reshape", lambda x: ops.reshape(x, (5, -1)), lambda x: x.reshape(5, -1), (X,)),
    ("reshape-int", lambda x: ops.reshape(x, -1), lambda x: x.reshape(-1), (X,)),
    ("transpose", lambda x: ops.transpose(x, (2, 0, 1)), lambda x: x.transpose(2, 0, 1), (X,)),
    ("transpose-all", ops.transpose, np.transpose, (X,)),
    ("broadcast_to", lambda x: ops.broadcast_to(x, (3, 4, 5)),
     lambda x: np.broadcast_to(x, (3, 4, 5)), (Y,)),
    ("expand_dims", lambda x: ops.expand_dims(x, -1), lambda x: x[..., None], (X,)),
    ("squeeze", ops.squeeze, np.squeeze, (normal(1, 3, 1),)),
    ("squeeze-axis", lambda x: ops.squeeze(x, 0), lambda x: np.squeeze(x, 0), (normal(1, 3, 1),)),
    ("flip", ops.flip, np.flip, (X,)),
    ("flip-axis", lambda x: ops.flip(x, (0, -1)), lambda x: np.flip(x, (0, -1)), (X,)),
    ("full_like", lambda x: ops.full_like(x, 2.5), lambda x: np.full_like(x, 2.5), (X,)),
    ("asarray_like", lambda x: ops.asarray_like([1, 2], x), lambda x: f32([1.0, 2.0]), (X,)),
    ("arange_like", lambda x: ops.arange_like(3, x), lambda x: f32([0.0, 1.0, 2.0]), (X,)),
    ("eye_like", lambda x: ops.eye_like(3, x), lambda x: np.eye(3, dtype="f"), (X,)),
    ("cast-bool", lambda x: ops.cast(x, "bool"), lambda x: x.astype(bool), (f32([0.0, 2.0]),)),
    ("cast-int", lambda x: ops.cast(x, "int32"), lambda x: x.astype("int32"), (f32([0.7, -2.7]),)),
    ("cast-float", lambda x: ops.cast(x, "float32"), f32, (IDX,)),
    ("take", ops.take, lambda t, i: np.take(t, i, 0), (X, IDX)),
    ("take-axis", lambda t, i: ops.take(t, i, -2), lambda t, i: np.take(t, i, -2), (X, IDX)),
    ("take_along_axis", lambda x, i: ops.take_along_axis(x, i, 1),
     lambda x, i: np.take_along_axis(x, i, 1), (U, IDX)),
    ("one_hot", lambda i: ops.one_hot(i, 3), lambda i: np.eye(3, dtype="f")[i], (IDX,)),
    ("matmul", ops.matmul, np.matmul, (X, normal(5, 2))),
    ("matmul-vector", ops.matmul, np.matmul, (X, normal(5))),
    ("einsum", lambda a, b: ops.einsum("nij,jk->nik", a, b),
     lambda a, b: np.einsum("nij,jk->nik", a, b), (X, normal(5, 2))),
    ("tril", ops.tril, np.tril, (X,)),
    ("tril-1", lambda x: ops.tril(x, -1), lambda x: np.tril(x, -1), (X,)),
    ("diagonal", ops.diagonal, lambda x: np.diagonal(x, 0, -2, -1), (X,)),
    ("cholesky", ops.cholesky, np.linalg.cholesky, (SPD,)),
    ("solve_triangular", ops.solve_triangular, lower_solve, (LOW, normal(4, 2))),
    ("solve_triangular-vector", ops.solve_triangular, lower_solve, (LOW, normal(4))),
    ("solve_triangular-upper", lambda a, b: ops.solve_triangular(a, b, lower=False),
     lambda a, b: np.linalg.solve(a.astype(float), b), (LOW.T.copy(), normal(4, 2))),
    ("solve_triangular-many", ops.solve_triangular,
     lambda a, b: np.stack([lower_solve(a, v) for v in b]), (LOW, normal(3, 4, 2))),
    ("solve_triangular-batch", ops.solve_triangular,
     lambda a, b: np.stack([lower_solve(m, v) for m, v in zip(a, b, strict=True)]),
     (np.tril(SPD), normal(3, 4, 2))),
    ("upsample_nearest", lambda x: ops.upsample_nearest(x, 2),
     lambda x: x.repeat(2, 1).repeat(2, 2), (normal(2, 3, 4, 2),)),
    ("avg_pool", ops.avg_pool,
     lambda x: x[:, :4, :4].reshape(2, 2, 2, 2, 2, 3).mean((2, 4)), (normal(2, 5, 4, 3),)),
    ("avg_pool-overlap", lambda x: ops.avg_pool(x, 2, 1),
     lambda x: (x[:, 1:, 1:] + x[:, :-1, 1:] + x[:, 1:, :-1] + x[:, :-1, :-1]) / 4,
     (normal(2, 5, 4, 3),)),
    ("conv", ops.conv, lambda x, w: conv_loop(x, w, 1, 1),
     (normal(2, 5, 4, 3), normal(3, 3, 3, 2))),
    ("conv_transpose", lambda x, w: ops.conv_transpose(x, w, 2),
     lambda x, w: conv_transpose_loop(x, w, 2, 1), (normal(2, 3, 2, 3), normal(4, 4, 3, 2))),
]  # fmt: skip
NOT_SMOOTH = (
    "floor", "round", "is", "any", "all", "argmax", "cast", "one_hot", "zeros", "ones",
    "stop_gradient", "sign", "full", "asarray", "arange", "eye", "max-nan", "min-nan", "clip-nan",
    "maximum-nan", "minimum-nan", "prod-empty", "sum-empty", "std-{'axis': ()", "logsumexp-empty",
)  # fmt: skip


def conv_loop(x, w, stride, padding):
    """y[i] = sum_a x[i stride + a - padding] w[a], pixel by pixel."""
    kh, kw, _, cout = w.shape
    x = np.pad(x.astype(float), ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)))
    ho, wo = (x.shape[1] - kh) // stride + 1, (x.shape[2] - kw) // stride + 1
    y = np.zeros((x.shape[0], ho, wo, cout))
    for i in range(ho):
        for j in range(wo):
            patch = x[:, i * stride : i * stride + kh, j * stride : j * stride + kw]
            y[:, i, j] = np.einsum("nabc,abcd->nd", patch, w)
    return y


def conv_transpose_loop(x, w, stride, padding):
    """y[i stride + a - padding] += x[i] w[a], pixel by pixel."""
    n, h, wd, _ = x.shape
    kh, kw, _, cout = w.shape
    y = np.zeros((n, (h - 1) * stride + kh, (wd - 1) * stride + kw, cout))
    for i in range(h):
        for j in range(wd):
            y[:, i * stride : i * stride + kh, j * stride : j * stride + kw] += np.einsum(
                "nc,abcd->nabd", x[:, i, j].astype(float), w
            )
    return y[:, padding : y.shape[1] - padding, padding : y.shape[2] - padding]


def run(lib, case):
    return case[1](*(lib.array(x) for x in case[3]))


BY_ID = {"argvalues": CASES, "ids": [case[0] for case in CASES]}


@pytest.mark.parametrize("case", **BY_ID)
def test_function_is_numpys(lib, case):
    same(run(lib, case), case[2](*case[3]))


@pytest.mark.parametrize("case", **BY_ID)
def test_function_is_traceable_and_the_trace_serves_other_values(lib, case):
    xs = [lib.array(x) for x in case[3]]
    traced = lib.trace(lambda *a: case[1](*a), *xs)
    others = [x if x.dtype.kind != "f" or "solve" in case[0] else x[::-1].copy() if x.ndim else x
              for x in case[3]]  # fmt: skip
    same(traced(*(lib.array(x) for x in others)), case[2](*others))


@pytest.mark.parametrize("case", **BY_ID)
def test_function_commutes_with_vmap(lib, case):
    xs = [np.stack([x, x]) for x in case[3]]
    got = lib.vmap(case[1])(*(lib.array(x) for x in xs))
    expected = case[2](*case[3])
    same(got, np.stack([expected, expected]))


def scalar(case):
    def fn(*xs):
        y = case[1](*xs)
        # A weight for each entry, so that a gradient in the wrong place shows.
        weights = np.cos(np.arange(math.prod(y.shape))).reshape(tuple(y.shape))
        return ops.sum(y * ops.asarray_like(weights, y))

    return fn


def central_difference(case, place):
    """Derivative of the numpy reference in float64 along one direction."""
    xs = [np.asarray(x, float) if x.dtype.kind == "f" else x for x in case[3]]
    direction = np.random.default_rng(1).normal(size=xs[place].shape)
    if case[0] == "cholesky":  # a symmetric argument has symmetric perturbations only
        direction = direction + direction.swapaxes(-1, -2)
    h = 1e-5

    def value(step):
        moved = [x + step * direction if i == place else x for i, x in enumerate(xs)]
        y = np.asarray(case[2](*moved), float)
        return np.sum(y * np.cos(np.arange(y.size)).reshape(y.shape))

    return direction, (value(h) - value(-h)) / (2 * h)


SMOOTH = [case for case in CASES if not case[0].startswith(NOT_SMOOTH)]


@pytest.mark.parametrize("case", SMOOTH, ids=[case[0] for case in SMOOTH])
def test_gradient_is_the_finite_difference_of_numpys(lib, case):
    xs = [lib.array(x) for x in case[3]]
    for place, x in enumerate(case[3]):
        if x.dtype.kind != "f":
            continue
        gradient = np.asarray(lib.grad(scalar(case), place)(*xs), float)
        direction, expected = central_difference(case, place)
        if case[0].startswith("solve_triangular"):  # only the triangle is read
            keep = np.triu if "upper" in case[0] else np.tril
            gradient = keep(gradient) if place == 0 else gradient
            direction, expected = check_triangle(case, place, direction, expected, keep)
        scale = 1 + np.linalg.norm(gradient) * np.linalg.norm(direction)
        assert abs(np.sum(gradient * direction) - expected) < 1e-4 * scale


def check_triangle(case, place, direction, expected, keep):
    if place:
        return direction, expected
    xs = [np.asarray(x, float) for x in case[3]]
    direction, h = keep(direction), 1e-5
    values = [case[2](xs[0] + step * direction, xs[1]) for step in (h, -h)]
    weights = np.cos(np.arange(values[0].size)).reshape(values[0].shape)
    return direction, np.sum((values[0] - values[1]) * weights) / (2 * h)


def test_product_has_its_gradient_at_zeros(lib):
    x = lib.array(f32([2.0, 0.0, 3.0]))
    same(lib.grad(ops.prod, 0)(x), f32([0.0, 6.0, 0.0]))


def test_cholesky_of_an_indefinite_matrix_is_nan(lib):
    both = np.stack([np.eye(2), [[1.0, 2.0], [2.0, 1.0]]]).astype("f")
    got = np.asarray(ops.cholesky(lib.array(both)))
    np.testing.assert_array_equal(got[0], np.eye(2))
    assert np.isnan(got[1][np.tril_indices(2)]).all()


# ---- convolutions --------------------------------------------------------------------------------

CONVS = [
    (h, kernel, stride, padding, cin, cout)
    for h in (5, 8)
    for kernel, stride, padding in [
        (1, 1, 0), (3, 1, 1), (3, 1, 0), (3, 2, 1), (4, 2, 1), (4, 1, 2), (2, 2, 0), (5, 3, 2),
        (1, 2, 0), (3, 1, 2),
    ]
    for cin, cout in [(1, 4), (3, 2), (16, 1)]
]  # fmt: skip


@pytest.mark.parametrize(("h", "kernel", "stride", "padding", "cin", "cout"), CONVS)
def test_convolutions_are_their_loops(lib, h, kernel, stride, padding, cin, cout):
    x, w = normal(2, h, h + 1, cin), normal(kernel, kernel, cin, cout)
    a, b = lib.array(x), lib.array(w)
    same(ops.conv(a, b, stride, padding), conv_loop(x, w, stride, padding), 1e-4, 1e-4)
    expected = conv_transpose_loop(x, w, stride, padding)
    same(ops.conv_transpose(a, b, stride, padding), expected, 1e-4, 1e-4)


@pytest.mark.parametrize(("h", "kernel", "stride", "padding", "cin", "cout"), CONVS)
def test_transposed_convolution_is_the_adjoint(lib, h, kernel, stride, padding, cin, cout):
    """<conv(x, w), y> = <x, conv_transpose(y, w^T)>, where the strides fill the image."""
    h += -(h + 2 * padding - kernel) % stride
    x, w = normal(2, h, h, cin), normal(kernel, kernel, cin, cout)
    y = ops.conv(lib.array(x), lib.array(w), stride, padding)
    z = normal(*y.shape)
    back = ops.conv_transpose(lib.array(z), lib.array(w.swapaxes(2, 3)), stride, padding)
    left, right = np.sum(np.asarray(y) * z), np.sum(x * np.asarray(back))
    assert abs(left - right) < 1e-4 * (1 + np.linalg.norm(z) * np.linalg.norm(np.asarray(y)))


@pytest.mark.parametrize(("h", "kernel", "stride", "padding", "cin", "cout"), CONVS[:30])
def test_both_forms_of_a_jax_convolution_agree(h, kernel, stride, padding, cin, cout, monkeypatch):
    """The accelerator's `lax` form and the CPU's slices agree in values and gradients."""
    jax = pytest.importorskip("jax")
    from probgen.backends import jax_ops

    x, w = normal(2, h, h + 1, cin), normal(kernel, kernel, cin, cout)
    for fn in (jax_ops.conv, jax_ops.conv_transpose):

        def loss(x, w, fn=fn):
            return (jax.numpy.sin(fn(x, w, stride, padding))).sum()

        results = []
        for is_cpu in (True, False):
            monkeypatch.setattr(jax_ops, "_on_cpu", lambda is_cpu=is_cpu: is_cpu)
            results.append((fn(x, w, stride, padding), *jax.grad(loss, (0, 1))(x, w)))
        for slices, own in zip(*results, strict=True):
            same(slices, own, 1e-4, 1e-4)


def test_rectangular_kernels_pad_each_axis_by_its_own(lib):
    x, w = normal(1, 6, 6, 2), normal(1, 5, 2, 3)
    got = ops.conv(lib.array(x), lib.array(w))
    padded = np.pad(x, ((0, 0), (0, 0), (2, 2), (0, 0)))
    same(got, conv_loop(padded, w, 1, 0), 1e-4, 1e-4)
    expected = conv_transpose_loop(x, w, 1, 0)[:, :, 2:-2]
    same(ops.conv_transpose(lib.array(x), lib.array(w)), expected, 1e-4, 1e-4)


def test_convolution_has_second_derivatives(lib):
    """The Hessian of |conv(x)|^2 / 2 is C^T C: symmetric, and its form gives the value back."""
    x, w = lib.array(normal(18)), lib.array(normal(3, 3, 2, 3))

    def energy(x):
        return 0.5 * ops.sum(ops.square(ops.conv(ops.reshape(x, (1, 3, 3, 2)), w)))

    hessian, v = np.asarray(lib.hessian(energy, x)), np.asarray(x)
    same(hessian, hessian.T, 1e-4, 1e-4)
    np.testing.assert_allclose(0.5 * v @ hessian @ v, float(energy(x)), rtol=1e-4)


def test_convolution_of_few_outputs_takes_the_other_order():
    assert jax_conv._FEW_OUTPUTS * 2 <= 16  # so that CONVS meets both orders


# ---- dispatch ------------------------------------------------------------------------------------


def public(module):
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and callable(value)
        and not inspect.isclass(value)
        and getattr(value, "__module__", "").startswith("probgen")
    }


def test_every_function_is_on_both_backends(lib):
    names = public(ops) - {"ops_for"}
    missing = {name for name in names if not callable(getattr(lib.module, name, None))}
    assert not missing
    assert names <= {case[0].split("-")[0] for case in CASES} | {"asarray"}


def test_numbers_and_numpy_follow_the_array(lib):
    x = lib.array(f32([1.0, 2.0]))
    wide = np.array([3.0, 4.0])  # float64
    for y in (
        ops.maximum(wide, x),
        ops.concatenate([wide, x]),
        ops.where(np.array([True, False]), 0, x),
        ops.clip(x, 0, wide),
        ops.asarray_like(np.float64(3.0), x),
        ops.einsum("i,i->", wide, x),
        ops.solve_triangular(np.eye(2), x),
        ops.take(x, np.array([1, 0])),
    ):
        assert type(y).__module__.partition(".")[0] in {"torch", "jaxlib", "jax"}
        assert str(y.dtype).removeprefix("torch.") == "float32"


def test_ops_for_finds_the_backend_anywhere(lib):
    x = lib.array(f32([1.0]))
    for values in [(x,), (1.0, x), ([1.0, [x]],), (None, (np.ones(1), x))]:
        assert ops.ops_for(*values) is lib.module


def test_without_an_array_the_running_program_decides(lib):
    with pytest.raises(BackendError, match="at least one torch tensor or JAX array"):
        ops.exp(np.ones(2))
    with pytest.raises(BackendError):
        ops.concatenate([1.0, 2.0])
    token = ops.running_ops.set(lib.module)
    try:
        same(ops.exp(0.5), f32(np.exp(0.5)))
        same(ops.exp(np.ones(2)), np.exp(f32([1.0, 1.0])))
        same(ops.asarray([1.0, 2.0]), f32([1.0, 2.0]))
    finally:
        ops.running_ops.reset(token)


def test_wrong_images_are_refused(lib):
    x, w = lib.array(normal(2, 5, 5, 3)), lib.array(normal(3, 3, 2, 4))
    for fn in (ops.conv, ops.conv_transpose):
        with pytest.raises(ShapeError, match="of one cin"):
            fn(x, w)
        with pytest.raises(ShapeError, match="of one cin"):
            fn(x[0], w)
    w = lib.array(normal(3, 3, 3, 4))
    with pytest.raises(ShapeError, match="stride of at least 1"):
        ops.conv(x, w, stride=0)
    with pytest.raises(ShapeError, match="at least the"):
        ops.conv(x[:, :2, :2], w, padding=0)
    with pytest.raises(ShapeError, match="at least one pixel"):
        ops.conv_transpose(x[:, :1, :1], w, padding=2)


def test_importing_loads_no_framework():
    code = (
        "import sys, probgen.ops, probgen.nets;"
        "sys.exit(', '.join({'torch', 'jax', 'pyro', 'numpyro', 'flax'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert not done.stderr.strip(), done.stderr
