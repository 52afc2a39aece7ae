"""Chains of MALA that go on with the step size that an earlier run learned, on both backends.

A step of size h from x ends at x + sqrt(2 h) xi + O(h), xi ~ N(0, I): where it ends shows h.
"""

import numpy as np
import pytest
import xarray
from executor_cases import Fragile
from infer_cases import assert_mean, quick
from test_infer_path import count_pieces, killed
from test_infer_warm_start import hmc, infer
from test_place import Stopped

from probgen.errors import AlgorithmError, DataError
from probgen.inference import NUTS, Langevin

SIZES = np.array([1e-6, 1e-6, 4e-6])  # of both coordinates of "b", and of "c"


@pytest.fixture(scope="module")
def small(backend_name):
    return quick(backend_name)


def mala(**options):
    sizes = {"num_steps": 1, "num_warmup": 40, "num_chains": 4, "metropolis": True}
    return Langevin(**{"step_size": 0.3, "adapt_step_size": True, **sizes, **options})


@pytest.fixture(scope="module")
def draws(small):
    return infer(small, mala(num_chains=400))


def changed(tree, sizes):
    """The draws with other step sizes."""
    group = tree.sampling_state.to_dataset()
    tree = tree.copy()
    tree["sampling_state"] = xarray.DataTree(group.assign(step_size=group.step_size * 0 + sizes))
    return tree


def at(tree):
    return tree.sampling_state.position.values.astype(np.float64)


# The plain call gives a step too, one for both sites.
PLAIN = pytest.param(
    {},
    1,
    marks=pytest.mark.repeated("test_a_chain_moves_by_the_step_that_it_had_whatever_is_given"),
)


@pytest.mark.parametrize(
    ("given", "heat"),
    [PLAIN, ({"step_size": {"b": 0.1, "c": 9.0}}, 1), ({"noise_size": 0.9}, 0.81 / 0.6)],
)
def test_a_chain_moves_by_the_step_that_it_had_whatever_is_given(small, draws, given, heat):
    """And at the temperature of what is given, whose noise goes with the root of the step."""
    before = changed(draws, SIZES)
    after = infer(small, mala(num_warmup=0, num_chains=400, **given), warm_start=before)
    z = (at(after) - at(before)) / np.sqrt(2 * heat * SIZES)
    found, error = z.T @ z / len(z), 1 / np.sqrt(len(z))
    assert abs(np.diag(found) - 1).max() < 5 * error * np.sqrt(2)
    np.testing.assert_allclose(after.sampling_state.step_size.values, 0 * z + SIZES, rtol=1e-6)


def test_a_warm_up_starts_from_the_step_that_is_given(small, draws):
    """Steps that are all accepted: after one of dual averaging log h has grown by log 10 and
    (1 - 0.574) / 11 / 0.05, of each chain from its own step."""
    own = np.geomspace(1e-8, 1e-6, 400)[:, None]
    one = mala(num_warmup=1, num_chains=400, thinning=1)
    after = infer(small, one, warm_start=changed(draws, own)).sampling_state
    grown = 10 * np.exp(0.426 / 11 / 0.05)
    np.testing.assert_allclose(after.step_size.values, grown * own * np.ones(3), rtol=1e-3)


@pytest.mark.repeated(
    "test_kernels.py::test_a_tested_kernel_keeps_the_power_of_the_density_that_it_names"
)
def test_what_goes_on_without_a_warm_up_has_the_law_and_the_acceptance(small):
    first = infer(small, mala(num_steps=1000, num_warmup=300, step_size=1e-3))
    step = first.sampling_state.step_size.values
    assert (step == step[0, 0]).all() and 0.3 < step[0, 0] < 3
    more = infer(small, mala(num_steps=1000, num_warmup=0, step_size=1e-3), warm_start=first)
    np.testing.assert_allclose(more.sampling_state.step_size.values, step, rtol=1e-6)
    assert more.sampling_state.attrs["transitions"] == 2300
    for tree in (first, more):
        assert abs(float(tree.sample_stats.acceptance_rate.mean()) - 0.574) < 0.1
    b = np.concatenate([first.posterior.b.values, more.posterior.b.values], 1)
    assert_mean(b[..., 0], 0.0, "b")
    assert_mean(b[..., 0] ** 2, 1.0, "b^2")


def test_what_one_backend_learned_serves_the_other(backend_name, draws):
    other = {"torch": "jax", "jax": "torch"}[backend_name]
    pytest.importorskip(other)
    after = infer(quick(other), mala(num_warmup=0), warm_start=changed(draws, SIZES))
    np.testing.assert_allclose(at(after), at(draws)[:4], atol=0.05)
    np.testing.assert_allclose(after.sampling_state.step_size[0], SIZES, rtol=1e-6)


def test_killed_it_goes_on_to_the_same_bits(small, draws, tmp_path, monkeypatch):
    method = mala(num_warmup=20, num_steps=20)
    whole = infer(small, method, warm_start=draws)
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        count_pieces(patched, 4, killed)
        infer(small, method, warm_start=draws, path=tmp_path / "chains")
    for _ in range(2):  # goes on, and is read
        found = infer(small, method, warm_start=draws, path=tmp_path / "chains")
        for group in ("posterior", "sampling_state"):
            xarray.testing.assert_identical(found[group].dataset.drop_attrs(),
                                            whole[group].dataset.drop_attrs())  # fmt: skip


def test_chains_of_workers_have_a_step_each(small, draws):
    alone = infer(small, mala(), executor=Fragile())
    steps = alone.sampling_state.step_size.values
    assert len(np.unique(steps[:, 0])) == 4 and (steps == steps[:, :1]).all()
    for there in (Fragile(), None):
        after = infer(small, mala(num_warmup=0), warm_start=alone, executor=there)
        np.testing.assert_allclose(after.sampling_state.step_size.values, steps, rtol=1e-6)


def test_a_step_that_nobody_learned_is_refused(small, draws):
    with pytest.raises(AlgorithmError, match="num_warmup=0, expected some num_warmup to learn a"):
        infer(small, mala(num_warmup=0))
    for other in (hmc("probgen", num_chains=4), Langevin(0.1)):
        with pytest.raises(AlgorithmError, match="a warm_start without a step size of Langevin"):
            infer(small, mala(num_warmup=0), warm_start=infer(small, other))
    with pytest.raises(AlgorithmError, match="without mass matrices, expected that of NUTS"):
        infer(small, NUTS(num_chains=4), warm_start=draws)
    with pytest.raises(DataError, match="not as pg.infer wrote it.*damaged"):
        infer(small, mala(), warm_start=changed(draws, -SIZES))
