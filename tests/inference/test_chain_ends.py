"""Chains that end at NaN are an error in words; how the others went is in the note."""

import re

import numpy as np
import pytest

import probgen as pg
from probgen import dist, nets
from probgen.engine.fitted import Fitted
from probgen.errors import AlgorithmError, NonFiniteError
from probgen.inference import Langevin, MaximumLikelihood, PersistentChains


@pg.model
def bent():
    """A density whose drift grows with the cube of x: too large a step leaves the numbers."""
    with pg.data_plate():
        x = pg.sample("x", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
        w = pg.net("w", nets.Parameter(()))()
        pg.factor("tilt", -(1.0 + w) * 2.0 * (x[..., 1] - 0.5 * x[..., 0] ** 2) ** 2)


FITTED = Fitted(bent, {"w": {"value": np.zeros((), np.float32)}}, shapes={"x": (2,)})


def test_chains_that_end_at_nan_are_an_error_that_names_the_step(b):
    words = r"(\d+) of 200 draws of site 'x' are NaN or infinite.*lower the sampler's step_size, "
    with pytest.raises(NonFiniteError, match=words + "now 0.4, or test every step") as error:
        pg.generate(FITTED, 200, seed=0, method=Langevin(0.4, num_steps=60), backend=b)
    assert int(re.search(words, str(error.value)).group(1)) > 100


def test_the_note_says_how_the_chains_went(b):
    """Acceptance falls with the step; at a small one none diverges, at a large one some do."""
    found = []
    for step in (0.002, 0.2):
        method = Langevin(step, num_steps=30, metropolis=True)
        draws = pg.generate(FITTED, 200, seed=0, method=method, backend=b, return_chain=True)
        assert np.isfinite(draws["x"]).all() and draws.chain["x"].shape == (30, 200, 2)
        note = re.fullmatch(
            r"MALA, 30 steps of \S+, temperature 1: the density itself, acceptance (\d\.\d\d), "
            r"(\d+) of 200 chains diverged",
            draws.note,
        )
        found.append((float(note.group(1)), int(note.group(2))))
    assert found[0][0] > 0.8 > 0.5 > found[1][0]
    assert found[0][1] == 0 < found[1][1]
    plain = pg.generate(FITTED, 200, seed=0, method=Langevin(0.002, num_steps=30), backend=b)
    assert re.search(
        r"acceptance \d\.\d\d had steps been tested, 0 of 200 chains diverged", plain.note
    )
    assert plain.chain is None


def test_chains_that_leave_the_support_are_said_with_what_to_do(b):
    """A base on both sides, a factor that leaves the positive one: plain steps cross over."""

    @pg.model
    def half():
        with pg.data_plate():
            x = pg.sample("x", dist.Normal(0.0, 1.0))
            pg.factor("half", pg.ops.where(x > 0.0, 0.0 * x, -np.inf))

    words = "lie where the density is 0 .*dist.Transformed.*or lower the sampler's step_size"
    method = Langevin(0.1, num_steps=5)
    with pytest.warns(UserWarning, match=rf"generate: \d+ of 200 draws {words}") as said:
        draws = pg.generate(Fitted(half, {}), 200, seed=0, method=method, backend=b)
    count = int(re.search(r"(\d+) of 200", str(said[0].message)).group(1))
    assert count == (draws["x"] <= 0).sum() > 20
    method = Langevin(0.1, num_steps=60, num_chains=2)
    with pytest.warns(UserWarning, match=rf"infer: \d+ of 120 draws {words}"):
        chains = pg.infer(half, {}, method, num_data=1, seed=0, backend=b, progress_bar=False)
    assert "2 of 2 chains diverged" in chains.attrs["note"]


def test_learning_with_chains_that_leave_the_numbers_names_the_sampler(b):
    x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    learn = MaximumLikelihood(Langevin(0.5, num_steps=20))
    words = r"energy_samples \(of the ends of the chains: lower the sampler's step_size, now 0\.5"
    with pytest.raises(NonFiniteError, match=words):
        pg.fit(
            bent, x, learn, num_steps=4, batch_size=64, backend=b, seed=0, max_retries=1,
            progress_bar=False,
        )  # fmt: skip


def test_persistent_chains_under_inputs_of_each_datum_are_refused(b):
    @pg.model
    def tilted(c):
        with pg.data_plate():
            x = pg.sample("x", dist.Normal(c, 1.0))
            pg.factor("tilt", -pg.net("w", nets.Parameter(()))() * x)

    x = np.zeros(8, np.float32)
    with pytest.raises(AlgorithmError, match=r"init=PersistentChains and the inputs \['c'\]"):
        pg.fit(
            tilted, x, MaximumLikelihood(Langevin(0.1), init=PersistentChains()), num_steps=2,
            batch_size=8, inputs={"c": x}, backend=b, seed=0, progress_bar=False,
        )  # fmt: skip


def test_ancestral_draws_that_are_nan_are_an_error(b):
    @pg.model
    def broken():
        with pg.data_plate():
            x = pg.sample("x", dist.Normal(pg.net("w", nets.Parameter(()))(), 1.0))
            pg.deterministic("log of nothing", pg.ops.log(x * 0.0))

    with pytest.raises(NonFiniteError, match="7 of 7 draws of site 'x' are NaN.*parameters"):
        nan = {"w": {"value": np.float32(np.nan)}}
        pg.generate(Fitted(broken, nan), 7, seed=0, backend=b)
    zero = {"w": {"value": np.float32(0.0)}}
    draws = pg.generate(Fitted(broken, zero), 7, seed=0, backend=b)
    assert (draws["log of nothing"] == -np.inf).all()  # computed, not drawn: what the user asked
