"""What the tests of `probgen.ops` share: both frameworks under one set of verbs, and the registry.

A case is (id, our call, numpy's call, the arrays). A new function joins with one line of CASES; its
name ends at the first hyphen of the id.
"""

import functools
import importlib

import numpy as np
import pytest
import scipy.linalg
import scipy.special as sp

from probgen import ops

RNG = np.random.default_rng(0)


class Torch:
    """What the tests do with either framework, on torch."""

    name = "torch"

    def __init__(self):
        self.torch = pytest.importorskip("torch")
        self.module = importlib.import_module("probgen.backends.torch.ops")

    def array(self, x):
        return self.torch.as_tensor(np.array(x))

    def trace(self, fn, *xs):
        from torch.fx.experimental.proxy_tensor import make_fx

        return make_fx(fn)(*xs)

    def compile(self, fn):
        return fn

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
        self.module = importlib.import_module("probgen.backends.jax.ops")

    def array(self, x):
        return self.jax.device_put(x)  # without a program for each shape

    def trace(self, fn, *xs):
        return self.jax.jit(fn)

    def compile(self, fn):
        return self.jax.jit(fn)

    def vmap(self, fn):
        return self.jax.jit(self.jax.vmap(fn))

    def grad(self, fn, argnums):
        return self.jax.jit(self.jax.grad(fn, argnums=argnums))

    def hessian(self, fn, x):
        return self.jax.jit(self.jax.hessian(fn))(x)


LIBRARIES = [Torch, Jax]


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
    ("erfc", sp.erfc, X),
    ("i0e", sp.i0e, 8 * X),
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
    ("put", lambda x, r: ops.put(x, np.array([2, 0]), r),
     lambda x, r: np.stack([r[1], x[1], r[0]]), (normal(3, 2), normal(2, 2))),
    ("grad", lambda x: ops.grad(lambda y: ops.sum(y**3 * x))(x), lambda x: 3 * x**3, (X,)),
    ("grad-of-grad", lambda x: ops.grad(lambda y: ops.sum(ops.grad(lambda z: ops.sum(ops.exp(
        z * y)))(y)))(x), lambda x: (1 + 2 * x**2) * np.exp(x**2), (X / 4,)),
    ("slogdet", lambda x: ops.slogdet(x)[1], lambda x: np.linalg.slogdet(x)[1], (SPD,)),
    ("slogdet-sign", lambda x: ops.slogdet(-x)[0], lambda x: np.linalg.slogdet(-x)[0], (SPD,)),
    ("pad", lambda x: ops.pad(x, ((1, 0), (0, 2)), 0.5),
     lambda x: np.pad(x, ((1, 0), (0, 2)), constant_values=0.5), (normal(3, 2),)),
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
    ("group_norm", lambda x: ops.group_norm(x, 2), lambda x: in_groups(x)[0], (normal(2, 3, 6),)),
    ("group_norm-scaled", lambda x, s, o: ops.group_norm(x, 2, 1e-5, s, o),
     lambda x, s, o: in_groups(x)[0] * s + o, (normal(2, 3, 6), normal(6), normal(6))),
    ("group_norm-grad", lambda x: ops.grad(lambda y: ops.sum(ops.group_norm(y, 2) ** 3))(x),
     lambda x: in_groups(x)[1], (normal(2, 3, 6),)),
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


def in_groups(x):
    """(y, x with mean 0 and variance 1 in two groups, and d sum y^3 / dx), x [n, pixels, 6]."""
    each = x.astype(float).reshape(*x.shape[:2], 2, 3)
    mean = functools.partial(np.mean, axis=(1, 3), keepdims=True)
    std = np.sqrt(mean((each - mean(each)) ** 2) + 1e-5)
    y = (each - mean(each)) / std
    slope = (3 * y**2 - mean(3 * y**2) - y * mean(3 * y**3)) / std
    return y.reshape(x.shape), slope.reshape(x.shape)


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
