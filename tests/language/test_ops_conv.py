"""Laws of the convolutions: a plain numpy loop, adjoints, two forms on JAX, second derivatives."""

import numpy as np
import pytest
from ops_cases import LIBRARIES, conv_loop, conv_transpose_loop, normal, same

from probgen import ops


@pytest.fixture(params=LIBRARIES, ids=["torch", "jax"], scope="module")
def lib(request):
    return request.param()


# (side, kernel, stride, padding, channels in and out)
CONVS = [
    (5 + 3 * (kernel % 2), kernel, stride, padding, cin, cout)
    for kernel, stride, padding in [
        (1, 1, 0), (3, 1, 1), (3, 1, 0), (3, 2, 1), (4, 2, 1), (4, 1, 2), (2, 2, 0), (5, 3, 2),
        (1, 2, 0), (3, 1, 2),
    ]
    for cin, cout in [(3, 2), (16, 1)]
]  # fmt: skip


@pytest.mark.parametrize(("h", "kernel", "stride", "padding", "cin", "cout"), CONVS)
def test_convolutions_are_their_loops(lib, h, kernel, stride, padding, cin, cout):
    x, w = normal(2, h, h + 1, cin), normal(kernel, kernel, cin, cout)
    a, b = lib.array(x), lib.array(w)
    for ours, loop in ((ops.conv, conv_loop), (ops.conv_transpose, conv_transpose_loop)):
        got = lib.compile(lambda a, b, fn=ours: fn(a, b, stride, padding))(a, b)
        same(got, loop(x, w, stride, padding), 1e-4, 1e-4)


@pytest.mark.parametrize("lead", [(), (2, 3), (2, 1, 3)])
def test_axes_before_an_image_are_kept(lib, lead):
    x, w = normal(*lead, 5, 6, 3), normal(3, 3, 3, 2)
    rows = x.reshape(-1, 5, 6, 3)
    for ours, loop in (
        (lambda a: ops.conv(a, lib.array(w), 2), conv_loop(rows, w, 2, 1)),
        (lambda a: ops.conv_transpose(a, lib.array(w), 2), conv_transpose_loop(rows, w, 2, 1)),
        (ops.upsample_nearest, rows.repeat(2, 1).repeat(2, 2)),
        (ops.avg_pool, rows[:, :4].reshape(-1, 2, 2, 3, 2, 3).mean((2, 4))),
    ):
        same(ours(lib.array(x)), loop.reshape(*lead, *loop.shape[1:]), 1e-4, 1e-4)


@pytest.mark.parametrize(("h", "kernel", "stride", "padding", "cin", "cout"), CONVS)
def test_transposed_convolution_is_the_adjoint(lib, h, kernel, stride, padding, cin, cout):
    """<conv(x, w), y> = <x, conv_transpose(y, w^T)>, where the strides fill the image."""
    h += -(h + 2 * padding - kernel) % stride
    x, w = normal(2, h, h, cin), normal(kernel, kernel, cin, cout)
    forward = lib.compile(lambda a, b: ops.conv(a, b, stride, padding))
    adjoint = lib.compile(lambda a, b: ops.conv_transpose(a, b, stride, padding))
    y = forward(lib.array(x), lib.array(w))
    z = normal(*y.shape)
    back = adjoint(lib.array(z), lib.array(w.swapaxes(2, 3)))
    left, right = np.sum(np.asarray(y) * z), np.sum(x * np.asarray(back))
    assert abs(left - right) < 1e-4 * (1 + np.linalg.norm(z) * np.linalg.norm(np.asarray(y)))


@pytest.mark.parametrize(("h", "kernel", "stride", "padding", "cin", "cout"), CONVS[:12])
def test_both_forms_of_a_jax_convolution_agree(h, kernel, stride, padding, cin, cout, monkeypatch):
    """The accelerator's `lax` form and the CPU's slices agree in values and gradients."""
    jax = pytest.importorskip("jax")
    from probgen.backends.jax import ops as jax_ops

    x, w = normal(2, h, h + 1, cin), normal(kernel, kernel, cin, cout)
    for fn in (ops.conv, ops.conv_transpose):

        def loss(x, w, fn=fn):
            return (jax.numpy.sin(fn(x, w, stride, padding))).sum()

        results = []
        for is_cpu in (True, False):
            monkeypatch.setattr(jax_ops, "_on_cpu", lambda is_cpu=is_cpu: is_cpu)
            # A new function each time, or jit would find the other form in its cache.
            both = jax.jit(lambda x, w, loss=loss: jax.value_and_grad(loss, (0, 1))(x, w))
            results.append(jax.tree.leaves(both(x, w)))
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


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_mapped_convolutions_on_jax_have_the_derivatives_of_their_slices(axes):
    """Value, gradient and Hessian-vector product, mapped over images, weights or both, in a loop;
    of a kernel in the image, and of one that reaches beyond it."""
    jax = pytest.importorskip("jax")
    from probgen.backends.jax.conv import conv_by_slices
    from probgen.backends.jax.convolve import convolve

    def everything(conv, x, w, u, v, pads):
        def loss(x, w):
            return jax.numpy.sin(conv(x, w, 1, pads)).sum()

        slope = jax.grad(loss, (0, 1))
        return loss(x, w), *jax.jvp(slope, (x, w), (u, v))

    def looped(conv, pads):
        def step(carry, args):
            return carry, jax.vmap(lambda *a: everything(conv, *a, pads), axes * 2)(*args)

        return lambda *args: jax.lax.scan(step, 0, jax.tree.map(lambda a: a[None], args))[1]

    def case(h, k, pads, cin, cout):
        sizes = ((2, h, h + 1, cin), (k, k, cin, cout))
        shapes = [s if at is None else (2, *s) for s, at in zip(sizes, axes, strict=True)] * 2
        return pads, [0.3 * normal(*s) for s in shapes]

    cases = [case(5, 3, (1, 1), 9, 8), case(2, 3, (2, 1), 3, 40)]

    def run(conv):
        return [jax.jit(looped(conv, pads))(*args) for pads, args in cases]

    for ours, slices in zip(
        *map(jax.tree.leaves, map(run, (convolve, conv_by_slices))), strict=True
    ):
        same(ours, slices, 1e-4, 1e-4)


@pytest.mark.parametrize(("cin", "cout"), [(3, 1), (1, 3)])
def test_kernels_of_one_channel_have_gradients_in_float64(cin, cout):
    """Their layout in memory is that of images too, which torch takes for it (in float64 alone)."""
    torch = pytest.importorskip("torch")
    x, w = normal(2, 5, 5, cin), normal(3, 3, cin, cout)

    def gradient(fn, kind):
        at = torch.tensor(w, dtype=kind, requires_grad=True)
        return torch.autograd.grad(fn(torch.tensor(x, dtype=kind), at).sin().sum(), at)[0]

    for fn in (ops.conv, ops.conv_transpose):
        found = gradient(fn, torch.float64)
        assert found.dtype == torch.float64
        same(found, gradient(fn, torch.float32), 1e-4, 1e-4)
