"""NaN and infinity: found with their term and step, rolled back, never returned."""

import re

import numpy as np
import pytest
from compilations import Compilations
from fit_cases import assert_same_bits, binary_data, coins, leaves, quick

import probgen as pg
from probgen import dist, nets
from probgen.engine.bind import bind
from probgen.engine.explain import explain
from probgen.engine.guard import Guard, lower_step
from probgen.engine.learner import Learner
from probgen.errors import NonFiniteError
from probgen.inference import ELBO, SVI
from probgen.records.history import History


@pytest.fixture(scope="module")
def b(backend_name):
    return quick(backend_name)


@pg.model
def steep():
    """log p(x) = -exp(w)^2 x^2 / 2 + w + ...: one step too far in w, and it overflows."""
    w = pg.net("w", nets.Parameter(()))()
    with pg.data_plate():
        pg.sample("x", dist.Normal(0.0, pg.ops.exp(-w)).expand([4]).to_event(1))


@steep.with_guide
def steep():
    """Nothing to draw."""


def test_a_step_too_large_is_taken_back_and_tried_at_half_until_it_holds(b):
    """At rate 400 descent on `steep` leaves the range of float32; at 400 / 2^k it stays."""
    data = np.full((32, 4), 0.5, np.float32)
    fitted = pg.fit(
        steep, data, SVI(ELBO(), pg.SGD(400.0)), num_steps=6, batch_size=32, seed=0, backend=b,
        max_retries=12,
    )  # fmt: skip
    events = fitted.history.events
    assert events and "log_prob/x" in events[0] and "at step" in events[0]
    assert "step size halved (attempt 1 of 12)" in events[0]
    assert all(np.isfinite(v).all() for v in leaves(fitted.params).values())
    assert np.isfinite(fitted.history["elbo"]).all()
    assert fitted.history.num_steps == 6


def test_a_start_that_no_learning_rate_mends_is_told_apart(b):
    """Before: four halvings of the step, and the advice to lower the learning rate."""

    @pg.model
    def model():
        w = pg.net("w", nets.Parameter(()))()  # 0
        with pg.data_plate():
            pg.sample("x", dist.Normal(pg.ops.sqrt(w), 1.0).expand([4]).to_event(1))

    with pytest.raises(
        NonFiniteError, match="the gradient at step 0 is .*initial param.*out_scale=0.01"
    ):
        pg.fit(
            model, np.ones((8, 4), np.float32), SVI(ELBO(), pg.SGD(1e-3)), num_steps=4, seed=0,
            batch_size=8, backend=b, progress_bar=False,
        )  # fmt: skip


def test_a_term_that_stays_nan_is_an_error_that_names_it(b):
    @pg.model
    def broken():
        w = pg.net("w", nets.Parameter(()))()
        with pg.data_plate():
            x = pg.sample("x", dist.Normal(w, 1.0).expand([4]).to_event(1))
            pg.factor("hole", pg.ops.log(pg.ops.sum(x, axis=-1) * 0.0 - 1.0))

    @broken.with_guide
    def broken():
        pass

    with pytest.raises(NonFiniteError, match="log_prob/hole at step 0 is NaN.*initial parameters"):
        pg.fit(
            broken, binary_data(), SVI(ELBO(), pg.Adam()), num_steps=5, batch_size=16, seed=0,
            backend=b, max_retries=2,
        )  # fmt: skip


class Trap:
    """An algorithm that adds its gradient 1 and breaks whenever the parameter passes `limit`.

    It is made of two kinds of numbers only, so what a roll-back must restore is known exactly.
    """

    def __init__(self, limit, where="metric"):
        self.limit, self.where = limit, where

    def bind(self, bound):
        b, optimizer = bound.backend, bound.backend.optimizer(pg.SGD(1.0))

        def init(params, key, batch, extras):
            return {"params": params, "opt": optimizer.init(params), "seen": b.asarray(0.0)}

        def update(state, batch, key):
            ops, p = b.ops, state["params"]["logits"]
            value = ops.sum(leaf(p)) / 4
            bad = ops.where(value < -self.limit, value * np.nan, value)
            metric = bad if self.where == "metric" else value
            grads = b.tree_map(lambda x: x * 0.0 + 1.0, state["params"])
            seen = state["seen"] + (1.0 if self.where == "metric" else 1.0 + 0.0 * bad)
            params, opt = optimizer.update(grads, state["opt"], state["params"])
            return {"params": params, "opt": opt, "seen": seen}, {"value/p": metric}

        return Learner(init, update)


def leaf(tree):
    from probgen.trees import tree_leaves

    return tree_leaves(tree)[0]


class Keep(pg.Callback):
    """The parameters after every chunk."""

    def __init__(self):
        self.params = []

    def on_chunk(self, progress, metrics):
        self.params.append(leaves(progress.params()))


@pytest.mark.parametrize("where", ["metric", "state"])
def test_roll_back_restores_the_last_good_state_to_the_bit(b, where, tmp_path):
    """Chunks of two steps: -1, -2 | -3, -4 | ... with a wall at -4.6: the third chunk is retried.

    Full steps would visit -4 (fine), -5 (bad). Halved they visit -4, -4.5, then are at -5: the
    retry of the third chunk passes; the fourth needs more, and cannot ever: the wall is passed.
    """
    keep = Keep()
    options = dict(
        batch_size=16, seed=0, backend=b, callbacks=[keep], checkpoint=tmp_path, checkpoint_every=2
    )
    fitted = pg.fit(coins, binary_data(), Trap(4.6, where), num_steps=6, **options)
    start = leaf(pg.fit(coins, binary_data(), Trap(99), num_steps=1, batch_size=16, seed=0,
                        backend=b).params["logits"]) + 1.0  # fmt: skip
    for after, moved in zip(keep.params, (2.0, 4.0, 5.0), strict=True):
        np.testing.assert_array_equal(leaf(after), start - np.float32(moved))
    (event,) = fitted.history.events
    named = "value/p at step 5" if where == "metric" else "learner/seen after step 5"
    assert event.startswith(named), event


def test_giving_up_says_how_often_it_tried_and_leaves_the_last_checkpoint(b, tmp_path):
    from probgen.records.checkpoint import Checkpoints

    options = dict(batch_size=16, seed=0, backend=b, checkpoint=tmp_path, checkpoint_every=2)
    with pytest.raises(NonFiniteError, match=r"value/p at step \d.*lowering the step size 3 times"):
        pg.fit(coins, binary_data(), Trap(2.5), num_steps=20, max_retries=3, **options)
    kept = [p.name for p in Checkpoints(tmp_path, {})._folders()]
    assert kept and all(name < "step-000000010" for name in kept)


# ---- the parts ----


def test_the_first_bad_step_is_named_and_single_sites_before_sums(backend):
    nan, inf = np.nan, np.inf
    metrics = {
        "elbo": np.array([1.0, 2.0, nan, 4.0]), "kl/z": np.array([1.0, 2.0, 3.0, inf]),
        "log_prob/x": np.array([1.0, 2.0, -inf, 4.0]), "count": np.array([1, 2, 3, 4]),
        "kl_units/z": np.zeros((4, 2)),
    }  # fmt: skip
    guard = Guard(backend)
    assert guard.find_problem({}, metrics, start=10) == ("log_prob/x at step 12", 2)


def test_a_state_that_is_not_finite_is_found_also_among_large_numbers(backend):
    guard = Guard(backend)
    fine = {"w": backend.asarray(np.full(4, 3e38)), "n": backend.asarray(np.arange(3))}
    assert guard.find_problem(fine, {"elbo": np.zeros(2)}, start=0) is None
    for bad in (np.nan, np.inf, -np.inf):
        state = {"opt": {"m": backend.asarray(np.array([1.0, bad]))}, **fine}
        assert (
            guard.find_problem(state, {"elbo": np.zeros(2)}, start=4).text == "opt/m after step 5"
        )


def test_lowering_halves_every_step_scale_and_nothing_else(backend):
    one = backend.asarray(np.ones(()))
    state = {"opt": {"step_scale": one, "count": one}, "other": [{"step_scale": one}]}
    lowered, history = lower_step(state, 0, "elbo at step 3", 2, History()), History()
    values = {k: float(v) for k, v in leaves(lowered).items()}
    assert values == {"opt/count": 1.0, "opt/step_scale": 0.5, "other/0/step_scale": 0.5}
    with pytest.raises(NonFiniteError, match="2 times"):
        lower_step(state, 2, "elbo at step 3", 2, history)
    assert history.events == []


def test_a_held_out_metric_that_is_nan_is_said(b):
    held_out = np.full((4, 4), 1e30, np.float32)
    fitted = pg.fit(
        steep, np.ones((8, 4), np.float32), SVI(ELBO(), pg.Adam()), num_steps=2, batch_size=8,
        seed=0, backend=b, validation=held_out,
    )  # fmt: skip
    assert any("held-out data is NaN or infinite" in e for e in fitted.history.events)


def test_a_good_run_has_no_events(b):
    run = pg.fit(
        coins, binary_data(), SVI(ELBO(), pg.Adam()), num_steps=4, batch_size=16, seed=0, backend=b
    )
    again = pg.fit(
        coins, binary_data(), SVI(ELBO(), pg.Adam()), num_steps=4, batch_size=16, seed=0,
        backend=b, max_retries=0,
    )  # fmt: skip
    assert run.history.events == []
    assert_same_bits(run.params, again.params)


def walk(length):
    """z_t ~ N(z_{t-1}, scale), of which the last is the rate's logarithm of the data."""

    @pg.model
    def program():
        scale = pg.net("scale", nets.Parameter(()))()
        with pg.data_plate():
            z = 0.0
            for t in range(length):
                z = pg.sample(f"z{t}", dist.Normal(z, pg.ops.exp(scale)))
            pg.sample("x", dist.Gamma(2.0, pg.ops.exp(z)))

    return program


@pytest.mark.parametrize(
    "scale, x, said",
    [
        (np.nan, 1.0, "site 'z0' of the model: .*got nan"),
        (0.0, -1.0, "datum at .* density 0 under"),
    ],
)
def test_of_a_longer_chain_the_error_compiles_nothing_more(b, scale, x, said):
    """Before, JAX compiled all steps as one program: of a thousand, for many minutes."""
    compiled = []
    for length in (14, 20):
        data = {"x": np.full(3, 1.0, np.float32)}
        bound, params = bind(walk(length), b, data=data, seed=0)
        params = b.tree_map(lambda a: b.asarray(np.full(a.shape, scale, "f4")), params)
        with Compilations(b.name) as seen:
            text = explain(bound, params, {"x": b.asarray(np.full(3, x, "f4"))}, b.key(0))
        assert re.search(said, text)
        compiled.append(seen.names)
    assert not compiled[1]
