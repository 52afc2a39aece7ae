"""DDIM against its closed form: with an exact denoiser of Gaussian data it is a linear map.

Along an eigenvector of variance lam the net says eps = s / v x and x_0 = a lam / v x, with v = a^2
lam + s^2, so that a step multiplies the variance by ((a' a lam + e s) / v)^2 and adds sigma^2.
"""

import numpy as np
import pytest
from flow_cases import TYPES, exact_diffusion

import probgen as pg
from probgen import dist
from probgen.errors import AlgorithmError
from probgen.inference import DDIM, Ancestral

STEPS = 60


def variances(model, lam, num_steps, eta):
    bar = model.schedule.alphas_bar()
    visited = np.round(np.arange(1, num_steps + 1) * STEPS / num_steps).astype(int) - 1
    v = np.ones_like(lam)
    for i in reversed(range(num_steps)):
        now, then = bar[visited[i]], bar[visited[i - 1]] if i else 1.0
        sigma2 = eta**2 * (1 - then) / (1 - now) * (1 - now / then)
        a, s2 = np.sqrt(now), 1 - now
        to_eps = np.sqrt(max(1 - then - sigma2, 0.0)) * np.sqrt(s2)
        v = v * ((np.sqrt(then) * a * lam + to_eps) / (now * lam + s2)) ** 2 + sigma2
    return v


CASES = list(zip((4, 4, STEPS), (0.0, 1.0, 0.5), TYPES, strict=True))


@pytest.mark.parametrize("num_steps, eta, kind", CASES)
def test_draws_have_the_covariance_of_the_linear_map(b, num_steps, eta, kind):
    fitted, u, lam = exact_diffusion(3, steps=STEPS, kind=kind)
    n = 4000
    draws = pg.generate(fitted, n, method=DDIM(num_steps, eta), chunk_size=n, seed=0, backend=b)
    found = np.cov((draws["x"] @ u).T)
    want = variances(fitted.model, lam, num_steps, eta)
    # Var of an estimated covariance: (c_ii c_jj + c_ij^2) / n.
    error = np.sqrt((np.outer(want, want) + np.diag(want) ** 2) / n)
    assert (np.abs(found - np.diag(want)) < 6 * error).all()
    # A few leaps are another law than the data's, many are theirs: the test can tell them apart.
    off = np.abs(np.log(want / lam)).max()
    assert off > 2.0 if num_steps == 4 else off < 0.2
    assert f"{num_steps} steps" in draws.note


def test_ancestral_is_what_is_drawn_without_a_method(b):
    fitted, _, _ = exact_diffusion(3, steps=STEPS)
    how = {"seed": 0, "backend": b}
    named, plain = (pg.generate(fitted, 3, method=m, **how) for m in (Ancestral(), None))
    np.testing.assert_array_equal(named["x"], plain["x"])
    assert named.note == plain.note == "ancestral"


def test_what_has_no_such_draws_is_refused_in_words(b):
    fitted, _, _ = exact_diffusion(3, steps=STEPS)
    how = {"seed": 0, "backend": b}
    with pytest.raises(AlgorithmError, match="num_steps=61 .* has 60 steps"):
        pg.generate(fitted, 3, method=DDIM(61), **how)
    with pytest.raises(AlgorithmError, match="without a method, expected one whose chains"):
        pg.generate(fitted, 3, method=DDIM(5), space="noise", **how)

    @pg.model
    def plain():
        with pg.data_plate():
            pg.sample("x", dist.Normal(pg.sample("z", dist.Normal(0.0, 1.0)), 1.0))

    with pytest.raises(AlgorithmError, match="has no denoiser and noise schedule"):
        pg.generate(pg.Fitted(plain, {}), 3, method=DDIM(5), **how)
    with pytest.raises(AlgorithmError, match=r"this one is for pg\.generate"):
        pg.infer(plain, {"x": np.zeros(3, "float32")}, DDIM(5), **how)
