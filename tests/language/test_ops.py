"""Laws of `probgen.ops`: each function against numpy or scipy, on torch and on JAX.

A new function joins with one line of CASES in `ops_cases.py`; convolutions have more laws of their
own in `test_ops_conv.py`.
"""

import inspect
import math
import subprocess
import sys

import numpy as np
import pytest
from ops_cases import CASES, LIBRARIES, NOT_SMOOTH, f32, normal, same

from probgen import ops
from probgen.errors import BackendError, ShapeError


@pytest.fixture(params=LIBRARIES, ids=["torch", "jax"], scope="module")
def lib(request):
    return request.param()


BY_ID = {"argvalues": CASES, "ids": [case[0] for case in CASES]}
RUNS: dict[tuple, object] = {}


def everything_of(lib, case):
    """`fn(xs)` -> (value, value of xs twice by vmap, gradients by xs): one program on JAX."""
    key = (lib.name, case[0])
    if key not in RUNS:
        smooth = not case[0].startswith(NOT_SMOOTH)
        places = [i for i, x in enumerate(case[3]) if x.dtype.kind == "f" and smooth]

        def fn(xs, twice):
            gradients = {i: lib.grad(scalar(case), i)(*xs) for i in places}
            return case[1](*xs), lib.vmap(case[1])(*twice), gradients

        run = lib.compile(fn)
        RUNS[key] = lambda xs: run(
            [lib.array(x) for x in xs], [lib.array(np.stack([x, x])) for x in xs]
        )
    return RUNS[key]


@pytest.mark.parametrize("case", **BY_ID)
def test_function_is_numpys_and_commutes_with_vmap(lib, case):
    value, mapped, _ = everything_of(lib, case)(case[3])
    want = case[2](*case[3])
    same(value, want)
    same(mapped, np.stack([want, want]))


@pytest.mark.parametrize("case", **BY_ID)
def test_function_is_traceable_and_the_trace_serves_other_values(lib, case):
    others = [x if x.dtype.kind != "f" or "solve" in case[0] else x[::-1].copy() if x.ndim else x
              for x in case[3]]  # fmt: skip
    if lib.name == "jax":  # what the other tests run is a trace
        everything_of(lib, case)(case[3])
        got = everything_of(lib, case)(others)[0]
    else:
        traced = lib.trace(lambda *a: case[1](*a), *(lib.array(x) for x in case[3]))
        got = traced(*(lib.array(x) for x in others))
    same(got, case[2](*others))


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
    gradients = everything_of(lib, case)(case[3])[2]
    for place, found in gradients.items():
        gradient = np.asarray(found, float)
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
    assert names <= {case[0].split("-")[0] for case in CASES} | {
        "asarray",
        "scan",
        "solve_ode",
    }  # test_ops_scan, test_odes


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
            fn(x[0, 0], w)
    w = lib.array(normal(3, 3, 3, 4))
    with pytest.raises(ShapeError, match="stride of at least 1"):
        ops.conv(x, w, stride=0)
    with pytest.raises(ShapeError, match="at least the"):
        ops.conv(x[:, :2, :2], w, padding=0)
    with pytest.raises(ShapeError, match="at least one pixel"):
        ops.conv_transpose(x[:, :1, :1], w, padding=2)


def test_importing_loads_no_framework():
    code = (
        "import sys; from probgen import nets, ops;"
        "sys.exit(', '.join({'torch', 'jax', 'pyro', 'numpyro', 'flax'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert not done.stderr.strip(), done.stderr


def test_importing_probgen_alone_loads_next_to_nothing():
    code = (
        "import sys, probgen; sys.exit(', '.join({'numpy', 'scipy', 'xarray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert not done.stderr.strip(), done.stderr


def test_group_norm_keeps_a_small_deviation_beside_a_large_mean(lib):
    """E x^2 - (E x)^2 would lose it: in float32 it is off by 1 at a mean of 1,000 and std 1."""
    x = normal(3, 64, 6) + f32(1000.0)
    group = x.astype(float).reshape(3, 64, 2, 3)
    centred = group - group.mean((1, 3), keepdims=True)
    expected = (centred / centred.std((1, 3), keepdims=True)).reshape(x.shape)
    same(ops.group_norm(lib.array(x), 2), expected, atol=2e-3)
