"""Densities of whole images, which a backend may take by other sums than its library's.

Against scipy, for events of one axis and of three, far out in the tails, where the
parameters are broadcast, and for the gradient.
"""

import numpy as np
import pytest
from at_once import at_once, terms_of
from scipy import stats
from scipy.special import expit, log_expit

import probgen as pg
from probgen import dist

RNG = np.random.default_rng(0)
EVENTS = [(6,), (2, 3, 1)]


def bernoulli(x, logits):
    """[n] sum over the event of x log s(l) + (1 - x) log s(-l), in float64."""
    v = logits.astype(np.float64)
    return (x * log_expit(v) + (1 - x) * log_expit(-v)).sum(tuple(range(1, x.ndim)))


def log_prob(b, declared, x, parameter):
    """([n] log p(x), its gradient in the parameter) of one site, as the backend traces it."""

    def program(parameter):
        with pg.data_plate():
            pg.sample("x", declared(parameter))

    def site(parameter):
        options = {"inputs": {"parameter": parameter}, "batch_size": len(x)}
        found = b.trace(program, {}, values={"x": data}, **options)["x"].log_prob
        return b.ops.sum(found), found

    data = b.asarray(x)
    (_, found), slope = at_once(b, b.value_and_grad(site, has_aux=True), b.asarray(parameter))
    return found, slope


@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_bernoulli_images(b, event):
    """sum log s(l)^x (1 - s(l))^(1 - x), with l from -90 to 90; its gradient is x - s(l)."""
    x = (RNG.uniform(size=(5, *event)) < 0.5).astype(np.float32)
    spread = np.float32([1, 1, 9, 30, 90]).reshape(5, *[1] * len(event))
    logits = np.clip(spread * RNG.normal(size=x.shape), -90, 90).astype(np.float32)
    found, slope = log_prob(b, lambda v: dist.Bernoulli(logits=v).to_event(len(event)), x, logits)
    np.testing.assert_allclose(found, bernoulli(x, logits), rtol=2e-6)
    np.testing.assert_allclose(slope, x - expit(logits.astype(np.float64)), atol=1e-6)


@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_normal_images_with_one_scale_for_all(b, event):
    x, loc = RNG.normal(size=(2, 5, *event)).astype(np.float32)
    found, slope = log_prob(b, lambda m: dist.Normal(m, 0.3).to_event(len(event)), x, loc)
    axes = tuple(range(1, x.ndim))
    x, loc = x.astype(np.float64), loc.astype(np.float64)
    np.testing.assert_allclose(found, stats.norm.logpdf(x, loc, 0.3).sum(axes), rtol=2e-6)
    np.testing.assert_allclose(slope, (x - loc) / 0.09, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_parameters_shared_by_all_data_count_for_each_of_them(b, event):
    """One row of logits, [*event], for five data; and a single number for a whole image."""
    x = (RNG.uniform(size=(5, *event)) < 0.5).astype(np.float32)
    shared = RNG.normal(size=event).astype(np.float32)
    for logits in (shared, np.full([1] * len(event), 0.7, np.float32)):
        found, _ = log_prob(
            b, lambda v: dist.Bernoulli(logits=v).expand(event).to_event(len(event)), x, logits
        )
        np.testing.assert_allclose(found, bernoulli(x, np.broadcast_to(logits, x.shape)), rtol=2e-6)


def test_drawn_binary_images_are_data_again(b):
    """Bernoulli draws are floats on either backend, so that samples can be given to a verb."""

    @pg.model
    def coins():
        with pg.data_plate():
            pg.sample("x", dist.Bernoulli(0.3).expand([4]).to_event(1))

    x, _ = terms_of(b, b.trace, coins.program, {}, key=b.key(0), batch_size=2000)["x"]
    assert x.dtype == np.float32 and set(np.unique(x)) == {0.0, 1.0}
    assert abs(x.mean() - 0.3) < 5 * np.sqrt(0.21 / x.size)
