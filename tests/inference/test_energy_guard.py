"""The guard of maximum likelihood: what goes wrong in words, and the way back by the gain."""

import re

import numpy as np
import pytest
from fit_cases import assert_same_bits, quick

import probgen as pg
from probgen import dist, nets
from probgen.engine.bind import bind
from probgen.errors import AlgorithmError, DeclarationError, DivergedError, NonFiniteError
from probgen.inference import (
    EnergyGuard,
    EnergyMagnitude,
    Langevin,
    MaximumLikelihood,
    PersistentChains,
)
from probgen.inference.learn.energy_guard import advice
from probgen.models import EBM, VAE, Tilted

LINE = dist.Normal(0, 1).expand([1]).to_event(1)
MODEL = EBM(nets.MLPEnergy((4,), activation="relu"), LINE)
RNG = np.random.default_rng(0)
X, HELD_OUT = (RNG.normal(size=(n, 1)).astype(np.float32) * 0.5 + 1.0 for n in (400, 300))

# Two steps that go nowhere: data are contrasted with the base for ever, and the energy with them.
HOT = MaximumLikelihood(
    Langevin(1e-5, 2), optimizer=pg.Adam(0.02), guard=EnergyGuard(max_drop=0.5, gain_draws=1000),
    init=PersistentChains(1.0),
)  # fmt: skip
OPTIONS = dict(
    num_steps=100, batch_size=100, validation=HELD_OUT, eval_every=10, seed=0, max_retries=2,
    progress_bar=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def b(backend_name):
    return quick(backend_name)


@pytest.fixture(scope="module")
def hot(b):
    return pg.fit(MODEL, X, HOT, backend=b, **OPTIONS)


def exact_gain(b, fitted):
    """By a sum over a grid, nats."""
    axis = np.linspace(-6, 6, 4001, dtype=np.float32)[:, None]
    places = b.asarray(np.concatenate([HELD_OUT, axis]))
    params = b.tree_map(b.asarray, fitted.params["energy"])
    energy = b.to_numpy(MODEL.energy.apply(params, places)).astype(np.float64)
    base = -0.5 * axis[:, 0] ** 2 - 0.5 * np.log(2 * np.pi) + np.log(12 / 4000)
    return -energy[:300].mean() - np.logaddexp.reduce(base - energy[300:])


def test_a_fit_that_gets_worse_goes_back_and_returns_the_best_state(b, hot):
    gains = hot.history.validation["gain"]
    best = int(np.argmax(gains))
    assert 0 < best < len(gains) - 1 and gains.min() < gains.max() - 0.5
    assert abs(exact_gain(b, hot) - gains[best]) < 0.1  # three estimates of log Z by 1,000 draws
    words = " ".join(hot.history.events)
    assert re.search(
        r"the gain on held-out data fell from \S+ to \S+ nats: the density gets worse.*in this "
        r"order: add a penalty.*; smooth activations, silu or softplus, in place of relu of "
        r"'energy'; more steps of the chain.*or a lower learning rate: back to the best state \(of "
        r"step \d+, gain \S+\) with new chains, step size halved \(attempt 1 of 2\)",
        words,
    )
    step = hot.history.validation_steps[best]
    assert f"what is kept is the state of step {step}, gain {gains[best]:.3g}" in words
    assert "movement: chains end" in words  # and not once more
    assert words.count("movement:") == 1
    curves = {"energy_data", "energy_samples", "loss", "acceptance", "movement"}
    assert curves <= set(hot.history.keys())
    loglik = hot.history.validation["log_likelihood"]
    base = np.mean(-0.5 * HELD_OUT**2 - 0.5 * np.log(2 * np.pi))
    np.testing.assert_allclose(loglik - gains, base, rtol=1e-5)


def test_what_goes_on_getting_worse_is_stopped_and_the_best_is_kept(hot):
    """After two returns in a row the fit ends early, with a result and not with an error."""
    gains, steps = hot.history.validation["gain"], hot.history.validation_steps
    words = " ".join(hot.history.events)
    assert re.search(r"lowering the step size 2 times\. The fit ends\.", words)
    assert steps[-1] < 100 and hot.history.num_steps == steps[-1]
    assert hot.info["num_steps"] == steps[-1] and gains[-1] < gains.max()


def test_the_best_state_survives_a_kill(b, hot, tmp_path):
    """Stopped in the middle, after the best state, and resumed: the same bits, chains too."""
    best = hot.history.validation_steps[int(np.argmax(hot.history.validation["gain"]))]

    class Stop(pg.Callback):
        def on_chunk(self, progress, metrics):
            if progress.step == best + 10:
                raise KeyboardInterrupt

    kept = dict(checkpoint=tmp_path, checkpoint_every=10, backend=b)
    with pytest.raises(KeyboardInterrupt):
        pg.fit(MODEL, X, HOT, callbacks=[Stop()], **kept, **OPTIONS)
    resumed = pg.fit(MODEL, X, HOT, **kept, **OPTIONS)
    assert_same_bits(resumed.params, hot.params)
    assert_same_bits(resumed.extras, hot.extras)
    assert resumed.history.events == hot.history.events
    again = pg.fit(MODEL, X, HOT, **kept, **OPTIONS)  # finished: returned as it is
    assert_same_bits(again.params, hot.params)


def test_a_gap_without_bounds_goes_back_and_is_an_error_in_words(b):
    learn = MaximumLikelihood(
        Langevin(1e-4, 2), optimizer=pg.Adam(3.0), guard=EnergyGuard(max_gap=50.0),
        init=PersistentChains(1.0), regularizers=(EnergyMagnitude(1e-6),),
    )  # fmt: skip
    words = (
        r"energies of data and draws lie \S+ nats apart, draws above, expected at most 50: .*raise "
        r"the penalties \(EnergyMagnitude\).*back to the last good state with new chains"
    )
    options = {**OPTIONS, "validation": None, "num_steps": 10}
    with pytest.raises(DivergedError, match=words):
        pg.fit(MODEL, X, learn, backend=b, **options)


# ---- words, on numbers by hand ----


def test_what_is_amiss_is_said_by_name():
    guard, calm = EnergyGuard(), {"energy_data": np.ones(8), "energy_samples": np.ones(8)}
    assert guard.watch(calm, "") is None and guard.remarks(calm, "") == {}
    low = {**calm, "energy_samples": np.full(8, -2e3)}
    assert "draws below, expected at most 1000: the chains find regions" in guard.watch(low, "")
    bad = {"acceptance": np.full(4, 0.02), "movement": 0.001, "importance_share": 0.01}
    said = guard.remarks(bad, "lower the step")
    assert list(said) == ["acceptance", "movement", "importance share"]
    assert "accepts 0.02 of the chain's steps" in said["acceptance"]
    assert said["acceptance"].endswith("lower the step")
    assert "raise num_draws of ImportanceSampling, or take chains" in said["importance share"]
    assert "too high; raise gain_draws" in guard.remarks({**bad, "gain": 1.0}, "")[
        "share of the gain"
    ]  # fmt: skip


def test_a_gain_that_few_draws_carry_is_no_best_state(b):
    bound, _ = bind(MODEL, b, data={"x": X}, num_data=400)
    judge = HOT.bind(bound).judge
    found = {"gain": 9.0, "importance_share": 0.02}
    assert judge.value(found) == 9.0 and judge.value({**found, "importance_share": 0.001}) is None
    assert judge.watch(found, 9.4) is None  # a quarter of the best is more than max_drop
    small = {**found, "gain": 0.1}
    assert judge.watch(small, 0.55) is None and "fell from 0.65 to 0.1" in judge.watch(small, 0.65)
    assert advice((), bound).index("penalty") < advice((), bound).index("relu")
    smooth = EBM(nets.MLPEnergy((4,)), LINE)
    assert "relu" not in advice((), bind(smooth, b, data={"x": X}, num_data=400)[0])


def test_a_criterion_that_there_is_not_is_refused(b):
    with pytest.raises(DeclarationError, match="criterion.*'gain', 'log_likelihood'"):
        EnergyGuard(criterion="gap")
    encoder = nets.MLP((), out=1, heads=("loc", "log_scale"), in_ndim=1)
    vae = VAE(LINE, nets.MLP((), out=(1,)), pg.models.likelihoods.Normal(0.5), encoder)
    bound, params = bind(vae, b, data={"x": X}, num_data=400)
    fitted = pg.Fitted(vae, b.tree_map(b.to_numpy, params))
    learn = MaximumLikelihood(
        Langevin(0.1), space="noise", guard=EnergyGuard(criterion="log_likelihood")
    )
    with pytest.raises(AlgorithmError, match="no density of a known constant.*criterion='gain'"):
        pg.fit(Tilted(fitted, nets.MLPEnergy((4,))), X, learn, backend=b, **OPTIONS)


def test_a_fit_that_fails_from_the_start_is_an_error_with_validation_data_too(b):
    """There is a state to go back to, of which nothing was learned."""
    learn = MaximumLikelihood(Langevin(1e30, 2), guard=EnergyGuard(gain_draws=1000))
    with pytest.raises((NonFiniteError, DivergedError)):
        pg.fit(MODEL, X, learn, backend=b, **{**OPTIONS, "num_steps": 20})
