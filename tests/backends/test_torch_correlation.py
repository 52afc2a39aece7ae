"""The map onto Cholesky factors of correlation matrices is torch's own, and a graph takes it."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pyro")


@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_map_its_inverse_and_its_volume_are_those_of_torch(size):
    from torch.distributions.transforms import CorrCholeskyTransform

    from probgen.backends.torch.correlation import CorrCholesky

    u = torch.as_tensor(np.random.default_rng(0).normal(size=(7, size * (size - 1) // 2)))
    ours, theirs = CorrCholesky(), CorrCholeskyTransform()
    y = ours(u)
    torch.testing.assert_close(y, theirs(u))
    torch.testing.assert_close(ours.inv(y), u)
    torch.testing.assert_close(ours.log_abs_det_jacobian(u, y), theirs.log_abs_det_jacobian(u, y))
    one = torch.func.jacrev(lambda v: ours(v)[torch.tril_indices(size, size, -1).unbind()])(u[0])
    volume = torch.linalg.slogdet(one)[1]
    torch.testing.assert_close(ours.log_abs_det_jacobian(u[0], y[0]), volume)


def test_a_graph_takes_its_gradient_over_many_chains():
    from torch.fx.experimental.proxy_tensor import make_fx

    from probgen.backends.torch.correlation import CorrCholesky

    def volume(v):
        t = CorrCholesky()
        y = t(v)
        return t.log_abs_det_jacobian(v, y) + y.sum()

    each = torch.vmap(torch.func.grad(volume))
    u = torch.as_tensor(np.random.default_rng(1).normal(size=(4, 6)))
    torch.testing.assert_close(make_fx(each)(u.clone())(u), each(u))
