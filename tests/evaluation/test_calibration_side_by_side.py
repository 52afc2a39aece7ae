"""Our own NUTS is calibrated: chains of many data sets, which move side by side.

At length, with more models, in `tests/studies/test_nuts_calibration.py`.
"""

import dataclasses

import numpy as np
import pytest

import probgen as pg
from probgen import dist
from probgen.engine.chain_pieces import Pieces
from probgen.engine.markov import draw_posterior
from probgen.evaluation.calibration import methods, sbc, study
from probgen.evaluation.calibration.side_by_side import draw_side_by_side, goes_side_by_side
from probgen.inference import NUTS, Langevin

FIXED = NUTS(
    num_warmup=0, num_samples=10, num_chains=2, max_tree_depth=3, step_size=0.3, engine="probgen",
    adapt_step_size=False, adapt_mass_matrix=False,
)  # fmt: skip


@pg.model
def coins():
    p = pg.sample("p", dist.Kumaraswamy(0.7, 1.5))
    slope = pg.sample("slope", dist.Normal(0.0, 1.0))
    with pg.data_plate():
        pg.sample("heads", dist.Bernoulli(p))
        pg.sample("x", dist.Normal(slope, 1.0))


def test_chains_are_those_of_each_data_set_by_itself(b, monkeypatch):
    """To rounding: a study draws those of all its sets at once, chains 2 i and 2 i + 1 of the i-th;
    the last of all is asked."""
    seen = []

    def drawn(*given):
        seen.append((given, draw_side_by_side(*given)))
        return seen[-1][1]

    monkeypatch.setattr(methods, "draw_side_by_side", drawn)
    result = sbc(
        coins, FIXED, observed=("heads", "x"), num_data=2, num_simulations=20, num_draws=9,
        thinning=1, seed=0, backend=b, progress_bar=False,
    )  # fmt: skip
    (((method, posterior, params, sets, key, *_), found),) = seen
    assert len(sets) == len(found) == 20 and result.ranks.shape == (20, 4)
    num = method.num_chains
    all_of_them = dataclasses.replace(method, num_chains=20 * num)
    only = Pieces(only=20 * num - 1)
    alone = draw_posterior(all_of_them, posterior, params, sets[-1], key, None, False, only)
    for name, v in alone.free.items():
        np.testing.assert_allclose(found[-1].free[name][-1], v[0], atol=1e-3)
        assert np.ptp(v) > 0.1


@pytest.mark.parametrize(
    ("method", "is_so"),
    [
        (FIXED, True),
        (dataclasses.replace(FIXED, engine=None), None),
        (dataclasses.replace(FIXED, init_strategy={"p": 0.5}), False),
        (Langevin(0.1), False),
    ],
)
def test_what_moves_side_by_side(b, method, is_so):
    expected = b.hmc_engines[0] == "probgen" if is_so is None else is_so
    assert goes_side_by_side(method, b) is expected


@pytest.mark.repeated("test_chains_are_those_of_each_data_set_by_itself")
def test_our_own_chains_are_calibrated(b):
    """The Jacobian of a bounded support takes part."""
    method = NUTS(num_warmup=40, num_chains=1, max_tree_depth=3, engine="probgen")
    result = sbc(
        coins, method, observed=("heads", "x"), num_data=2, num_simulations=128, num_draws=19,
        thinning=2, seed=3, backend=b, progress_bar=False,
    )  # fmt: skip
    assert result.adjusted.min() > 0.001, result
    assert result.autocorrelation.max() < 0.3 and not result.still.any()


@pytest.mark.slow
def test_the_last_simulations_are_filled_up(monkeypatch):
    """Parts of one length: 21 of at most 10 are three of seven; their ranks do not hang on that."""
    jax = pytest.importorskip("jax") and pg.backends.load("jax", "cpu")
    sizes = []

    def drawn(method, posterior, params, sets, *rest):
        sizes.append(len(sets))
        return draw_side_by_side(method, posterior, params, sets, *rest)

    monkeypatch.setattr(study, "SIDE_BY_SIDE", 10)
    monkeypatch.setattr(study, "draw_side_by_side", drawn)
    options = {"observed": ("heads", "x"), "num_data": 2, "num_draws": 9, "thinning": 1, "seed": 0}
    for num in (21, 20):
        result = sbc(coins, FIXED, num_simulations=num, backend=jax, progress_bar=False, **options)
        assert result.ranks.shape == (num, 4)
    assert sizes == [7, 7, 7, 10, 10]
