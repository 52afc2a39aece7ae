"""Bidirectional Monte Carlo: forward and reverse AIS bracket the exact log p(x)."""

import json

import numpy as np
import pytest
from ais_cases import ppca, ppca_exact, within
from floats import float64

import probgen as pg
from probgen import dist
from probgen.engine.fitted import Fitted
from probgen.errors import AlgorithmError, DeclarationError, MissingSeed
from probgen.inference.likelihood.ais import AIS
from probgen.inference.likelihood.bracket import bdmc

FAST = AIS(30, num_chains=8, num_leapfrog=5)


def check_bracket(out, exact, is_tight=True):
    """Below and above in expectation, to 4.5 standard errors; and both weights unbiased, E[p_hat] =
    p forward and E[1 / p_hat] = 1 / p reverse, which a sign or an order that is wrong breaks. With
    few temperatures the tail that holds the mean is not seen, so that is asked where the bounds
    are tight, which they must then be."""
    for off in (out.forward - exact, exact - out.reverse):
        assert off.mean() < 4.5 * off.std() / len(off) ** 0.5
        if is_tight:
            assert abs(off.mean()) < 0.2
            within(np.exp(off), 1.0)
    return out.mean("gap")[0]


@pg.model
def waiting():
    """A rate off the real line, whose draws, unlike a gamma's, are compiled soon: of a waiting time
    p(x) = 1.5 / (1.5 + x)^2."""
    with pg.data_plate():
        pg.sample("x", dist.Exponential(pg.sample("rate", dist.Exponential(1.5))))


def test_bounds_lie_on_either_side_of_the_truth(b):
    """Of a rate off the real line; probabilistic PCA is below."""
    method, fitted = AIS(8, 8, 3, num_pilot_steps=20), Fitted(waiting, {}, shapes={"x": ()})
    out = bdmc(fitted, 200, method, seed=3, backend=b, chunk_size=200)
    exact = np.log(1.5) - 2.0 * np.log(1.5 + np.float64(out.data["x"]))
    assert 0 < check_bracket(out, exact) < 0.1


# Weights that are unbiased both ways close any gap; here they are those of several latents.
@pytest.mark.repeated("test_bounds_lie_on_either_side_of_the_truth")
def test_gap_closes_with_the_number_of_temperatures(b):
    """Probabilistic PCA of 16 values, 4 latents, noise 0.3, 8 chains. The gap falls as 1 / T: that
    of 15 temperatures, below, is some 30 times as large."""
    method = AIS(450, num_chains=8, num_leapfrog=2, num_pilot_steps=50)
    out = bdmc(ppca(), 60, method, seed=0, backend=b, progress_bar=False)
    assert -0.05 < check_bracket(out, ppca_exact(out.data["x"])) < 0.25


@pytest.mark.slow
def test_gap_falls_at_each_number_of_temperatures(b):
    """The sheet's check: below 0.1 nats at 1,000."""
    gaps = []
    for num_steps in (30, 100, 300, 1000):
        method = AIS(num_steps, num_chains=8, num_leapfrog=5)
        out = bdmc(ppca(), 200, method, seed=1, backend=b, chunk_size=200)
        gaps.append(check_bracket(out, ppca_exact(out.data["x"]), is_tight=num_steps == 1000))
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] < 0.1, gaps


def test_results_do_not_depend_on_the_chunks(b):
    """In float64: in float32 the rounding of another chunk now and then turns a Metropolis test."""
    method = AIS(15, num_chains=3, num_leapfrog=3, num_pilot_steps=20)
    with float64(b):
        whole = bdmc(ppca(), 6, method, seed=2, backend=b)
        parts = bdmc(ppca(), 6, method, seed=2, backend=b, chunk_size=3)
    for name in ("forward", "reverse", "gap"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-6)
    np.testing.assert_allclose(parts.data["x"], whole.data["x"], rtol=1e-9)
    assert np.ptp(whole.data["x"][:, 0]) > 0.1  # each datum has its own key
    assert whole.mean("gap")[0] > 2.0  # so few temperatures

    record = json.loads(json.dumps(whole.to_dict()))
    assert record["unit"] == "nats" and record["num_simulations"] == 6
    assert record["gap"]["mean"] == pytest.approx(whole.gap.mean())
    assert record["per_datum"]["forward"] == whole.forward.tolist()
    text = repr(whole)
    assert "6 simulated data by AIS(15" in text and "an upper one in expectation" in text
    assert f"{whole.forward.mean():.3f}" in text and "proxy" in text


def test_what_cannot_be_simulated_is_refused(backend):
    with pytest.raises(MissingSeed, match="bdmc"):
        bdmc(ppca(), 3, FAST, backend=backend)
    with pytest.raises(DeclarationError, match="expected a Fitted"):
        bdmc(ppca().model, 3, FAST, seed=0, backend=backend)
    with pytest.raises(DeclarationError, match="num_simulations=0"):
        bdmc(ppca(), 0, FAST, seed=0, backend=backend)
    with pytest.raises(AlgorithmError, match="has no guide"):
        bdmc(ppca(), 3, AIS(10, start="guide"), seed=0, backend=backend)
