"""Estimates of log p(x) through `pg.evaluate` against probabilistic PCA, where it is exact.

    log p(x) - E[ELBO] = KL(q(z | x) || p(z | x)),    E[L_K] <= E[L_(K+1)] -> log p(x)

16 values of 4 latents (`regret_cases.PPCA`); the guide is the best diagonal Gaussian, whose gap is
its own KL, and one that is off by half a standard deviation.
"""

import numpy as np
import pytest
from floats import float64
from regret_cases import PPCA, as_float64

import probgen as pg
from probgen.inference import ELBO, IWAE

MODEL, COUNT = PPCA(), 400
X = MODEL.draw(COUNT)


def estimates(b, fitted, measures, *, x=X, seed=0):
    """[n] estimates and standard errors of each measure."""
    table = pg.evaluate(
        fitted, as_float64(x), measures, seed=seed, backend=b, chunk_size=200, progress_bar=False
    )
    groups = [table[m.name] for m in measures]
    none = np.full(len(x), np.nan)
    return [(g["estimate"].values, g.get("standard_error", none)) for g in groups]


def error(values):
    """Standard error of the mean over data."""
    return values.std(ddof=1) / np.sqrt(len(values))


@pytest.mark.parametrize("faults", [{}, {"shift": 0.5, "widen": 1.3}], ids=["best", "off"])
def test_a_thousand_particles_give_log_p(b, faults):
    """|mean L_1000 - log p| < .01 nats; each of the standard errors that are given covers."""
    with float64(b):
        ((value, own),) = estimates(b, MODEL.fitted(**faults), [IWAE(1000, 250)])
    off = value - MODEL.log_prob(X)
    assert abs(off.mean()) < 0.01
    assert abs(off.mean()) < 4 * error(off) + 0.002  # its bias, Var w / 2 K
    given = ~np.isnan(own)
    missed = (np.abs(off) > 1.96 * own).sum()
    assert missed <= 0.07 * given.sum() + 4.5 * np.sqrt(0.07 * given.sum())
    assert np.ptp(MODEL.log_prob(X)) > 5  # and not since all are alike


@pytest.mark.parametrize("faults", [{}, {"shift": 0.5, "widen": 1.3}], ids=["best", "off"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_gap_of_one_particle_is_the_divergence_of_the_guide(b, faults, dtype):
    """log p - ELBO = KL(q || p(z | x)) within 3 SE, by one draw a datum and by a hundred."""
    kl = MODEL.kl(X, *MODEL.guide(X, **faults))
    assert kl.mean() > 0.1
    fitted = MODEL.fitted(**faults, dtype=dtype)
    measures = [ELBO(1), IWAE(1), ELBO(100)]
    if dtype == np.float64:
        with float64(b):
            found = estimates(b, fitted, measures)
    else:
        table = pg.evaluate(
            fitted, X.astype(dtype), measures, seed=0, backend=b, progress_bar=False
        )
        found = [(table[m.name]["estimate"].values, None) for m in measures]
    for value, _ in found:
        off = MODEL.log_prob(X) - value - kl
        assert abs(off.mean()) < 3 * error(off), (off.mean(), error(off))
    many = MODEL.log_prob(X) - found[2][0]
    assert error(many) < 0.02 < 0.05 * kl.mean() + 0.02  # sharp enough to tell a gap from none


def test_the_bound_rises_with_the_number_of_particles(b):
    """Monotone in K within Monte Carlo error, strictly where the bound is loose; below log p."""
    counts = (1, 10, 100, 1000)
    with float64(b):
        fitted = MODEL.fitted(shift=0.5, widen=1.3)
        found = estimates(b, fitted, [IWAE(k, 250) for k in counts])
    values = np.array([value for value, _ in found])
    steps = np.diff(values, axis=0)
    errors = np.array([error(s) for s in steps])
    assert (steps.mean(1) > -3 * errors).all()
    assert (steps[:2].mean(1) > 3 * errors[:2]).all()
    off = MODEL.log_prob(X) - values
    assert all(o.mean() > -3 * error(o) for o in off)
