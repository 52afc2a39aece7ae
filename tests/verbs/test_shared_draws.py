"""Measures of one number of draws share them, and none changes the numbers of another."""

import gc
import weakref

import numpy as np
import pytest
from measure_cases import context_of
from test_evaluate_chunks import X, evaluate, same, vae, values

from probgen import backends, nets
from probgen.inference import ELBO, IWAE
from probgen.inference.likelihood.guide_terms import GuideTerms, weights_of
from probgen.inference.ood import (
    KLTerm,
    LikelihoodRatio,
    NegativeLogLikelihood,
    ReconstructionError,
)

K = 30  # a whole part of 25 and a rest
FIVE = [IWAE(K), NegativeLogLikelihood(K), ELBO(K), ReconstructionError(K), KLTerm(K)]


@pytest.fixture(scope="module")
def five(b):
    return evaluate(b, FIVE)


def test_no_measure_changes_another_to_the_bit(b, five):
    """Alone, in reverse, and with others beside them that draw more, or by another model."""
    reverse = evaluate(b, [ELBO(3), *FIVE[::-1], LikelihoodRatio(vae(2.0), K)])
    for measure in FIVE:
        same(values(reverse, measure.name), values(five, measure.name))
    for measure in FIVE[2:4]:
        same(values(evaluate(b, [measure]), measure.name), values(five, measure.name))


def test_all_are_of_the_same_draws(b, five):
    """ELBO(K) is the mean of IWAE(K)'s log weights, and what reconstruction and KL add up to."""
    found = {m.name: values(five, m.name) for m in FIVE}
    terms = context_of(vae(), b, X).function(GuideTerms(K))({"x": X}, np.arange(len(X)))
    log_w = weights_of(terms)
    assert log_w.shape == (len(X), K) and log_w.dtype == np.float64
    np.testing.assert_allclose(found[f"ELBO({K})"]["estimate"], log_w.mean(1), rtol=1e-5)
    error = log_w.std(1, ddof=1) / np.sqrt(K)
    np.testing.assert_allclose(found[f"ELBO({K})"]["standard_error"], error, rtol=1e-4)
    iwae = np.log(np.exp(log_w - log_w.max(1, keepdims=True)).mean(1)) + log_w.max(1)
    np.testing.assert_allclose(found[f"IWAE({K})"]["estimate"], iwae, rtol=1e-5)
    summed = found[f"ReconstructionError({K})"]["estimate"] + terms["kl"].mean(1)
    np.testing.assert_allclose(summed, -log_w.mean(1), rtol=1e-5)
    closed, drawn = found[f"KLTerm({K})"]["estimate"], terms["kl"]
    off = (drawn.mean(1) - closed) / (drawn.std(1, ddof=1) / np.sqrt(K))
    assert (np.abs(off) < 6.0).all() and np.ptp(terms["closed_kl"], axis=1).max() < 1e-5


def test_encoder_and_decoder_run_as_often_for_five_scores_as_for_one(b, monkeypatch):
    """Calls of the nets while an evaluation is traced, or run: one chunk, one part of 25."""
    calls = []
    apply = nets.MLP.apply

    def counted(self, *args, **options):
        calls.append("encoder" if self.heads else "decoder")
        return apply(self, *args, **options)

    monkeypatch.setattr(nets.MLP, "apply", counted)

    def count(measures):
        backends.forget()
        calls.clear()
        evaluate(b, measures, chunk_size=len(X))
        return {net: calls.count(net) for net in ("encoder", "decoder")}

    one = count([IWAE(7)])
    five = [IWAE(7), NegativeLogLikelihood(7), ELBO(7), ReconstructionError(7), KLTerm(7, False)]
    assert count(five) == one and min(one.values()) > 0


def test_a_chunk_is_put_on_the_device_once_for_all_measures(b, monkeypatch):
    """As often for five measures as for one."""
    moved, real = [], type(b).asarray

    def asarray(self, x, *args, **options):
        if isinstance(x, np.ndarray) and x.shape[1:] == X.shape[1:] and x.ndim == X.ndim:
            moved.append(len(x))
        return real(self, x, *args, **options)

    monkeypatch.setattr(type(b), "asarray", asarray)
    evaluate(b, FIVE)
    chunks = len(moved)
    moved.clear()
    evaluate(b, FIVE[:1])
    assert chunks == len(moved) > 0


def test_a_closed_context_is_freed_at_once(b):
    """What is kept of its measures holds no parameters until some collector comes."""
    context = context_of(vae(), b, X)
    context.function(NegativeLogLikelihood(2))({"x": X}, np.arange(len(X)))
    held = weakref.ref(context)
    gc.disable()
    try:
        context.close()
        del context
        assert held() is None
    finally:
        gc.enable()
