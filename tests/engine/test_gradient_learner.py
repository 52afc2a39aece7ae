"""One place that updates: losses of one's own, groups of optimisers, frozen nets, penalties."""

import dataclasses

import numpy as np
import pytest
from fit_cases import assert_same_bits, binary_data, coins, quick, small_vae, svi

import probgen as pg
from probgen import dist, nets
from probgen.errors import (
    AlgorithmError,
    DataError,
    DivergedError,
    NonFiniteError,
    ShapeError,
    UnknownName,
)
from probgen.inference import ELBO, SVI


@pytest.fixture(scope="module")
def b(backend_name):
    return quick(backend_name)


def fit(b, model, algorithm, **options):
    options = {"num_steps": 3, "batch_size": 16, "seed": 0, "backend": b, **options}
    return pg.fit(model, binary_data(), algorithm, progress_bar=False, **options)


@dataclasses.dataclass(frozen=True)
class Ridge:
    """Four logits with a Gaussian prior of variance 1 / rate on them."""

    rate: float

    def init(self, key, *shapes):
        return {"value": np.ones(4, "f")}

    def apply(self, params):
        return params["value"]

    def penalty(self, params):
        return 0.5 * self.rate * pg.ops.sum(params["value"] ** 2)


def minus_log_prob(bound, params, batch, key):
    return -pg.ops.mean(bound.trace(params, batch)["x"].log_prob)


def test_a_loss_of_ones_own_is_an_algorithm_and_a_nets_penalty_joins_it(b):
    """One step of SGD(1) at logits w: w' = w - (sigmoid(w) - mean of x) - rate w."""

    @pg.model
    def ridge():
        with pg.data_plate():
            pg.sample("x", dist.Bernoulli(logits=pg.net("w", Ridge(0.25))()).to_event(1))

    options = dict(num_steps=1, batch_size=64)
    fitted = fit(b, ridge, pg.GradientLearner(minus_log_prob, pg.SGD(1.0)), **options)
    w = 1.0 - (1 / (1 + np.exp(-1.0)) - binary_data().mean(0)) - 0.25
    np.testing.assert_allclose(fitted.params["w"]["value"], w, rtol=1e-5)
    np.testing.assert_allclose(fitted.history["penalty"], [0.5], rtol=1e-6)


def test_each_group_moves_by_its_own_optimiser(b):
    """SGD has no state that mixes nets: each net moves as it would alone under its own rate."""
    model = small_vae(hidden=())
    start = fit(b, model, SVI(ELBO(), pg.SGD(1e-30)), num_steps=1)
    groups = pg.Groups({"decoder": pg.SGD(0.1)}, rest=pg.SGD(0.02))
    runs = [fit(b, model, SVI(ELBO(), o), num_steps=1) for o in (groups, pg.SGD(0.1))]
    for net, share in (("decoder", 1.0), ("encoder", 0.2)):
        moved, whole = (
            r.params[net]["out"]["weight"] - start.params[net]["out"]["weight"] for r in runs
        )
        assert np.abs(whole).max() > 1e-4
        np.testing.assert_allclose(moved, share * whole, rtol=1e-3, atol=1e-7)


def test_groups_of_one_optimiser_are_that_optimiser_and_go_on_after_a_resume(b, tmp_path):
    one, other = pg.Adam(1e-2), pg.Adam(1e-2)
    groups = SVI(ELBO(), pg.Groups({"decoder": one, "encoder": other}))
    whole = fit(b, small_vae(hidden=()), groups)
    assert_same_bits(whole.params, fit(b, small_vae(hidden=()), SVI(ELBO(), one)).params)
    fit(b, small_vae(hidden=()), groups, num_steps=2, checkpoint=tmp_path)
    assert_same_bits(whole.params, fit(b, small_vae(hidden=()), groups, checkpoint=tmp_path).params)


@pytest.mark.parametrize(
    ("groups", "error", "match"),
    [
        (pg.Groups({"decodr": pg.Adam()}, rest=pg.Adam()), UnknownName, "decodr.*decoder"),
        (pg.Groups({"decoder": pg.Adam()}), AlgorithmError, r"no optimiser for the nets \['enc"),
    ],
)
def test_groups_that_do_not_fit_the_nets_are_refused(b, groups, error, match):
    with pytest.raises(error, match=match):
        fit(b, small_vae(), SVI(ELBO(), groups))


def test_frozen_nets_keep_their_bits_and_the_others_learn(b, tmp_path):
    start = fit(b, small_vae(hidden=()), svi(), num_steps=1)
    fitted = fit(b, start, svi(weight_decay=0.1), freeze=("decoder",), ema_decay=0.9)
    assert_same_bits(fitted.params["decoder"], start.params["decoder"])
    assert (fitted.params["encoder"]["out"]["bias"] != start.params["encoder"]["out"]["bias"]).any()
    groups = SVI(ELBO(), pg.Groups({"encoder": pg.Adam()}))  # a frozen net needs no optimiser
    fit(b, start, groups, freeze=("decoder",), num_steps=1, checkpoint=tmp_path)
    with pytest.raises(pg.ProbgenError, match="another freeze"):
        fit(b, start, groups, freeze=("encoder", "decoder"), num_steps=2, checkpoint=tmp_path)
    with pytest.raises(pg.ProbgenError, match="another freeze"):
        fit(b, start, svi(), num_steps=2, checkpoint=tmp_path)
    with pytest.raises(UnknownName, match="freeze: got 'decodr'"):
        fit(b, start, svi(), freeze=("decodr",))


def test_parameters_to_start_from_are_those_given(b):
    given = {"logits": {"value": np.float32([1, 2, 3, 4])}}
    stays = fit(b, coins, svi(), init=given, freeze=("logits",), num_steps=1)
    assert_same_bits(stays.params, given)
    with pytest.raises(UnknownName, match="init: got parameters of 'logit'.*did you mean"):
        fit(b, coins, svi(), init={"logit": given["logits"]})
    with pytest.raises(ShapeError, match=r"init\['logits'\]: value is f\[3\], expected f\[4\]"):
        fit(b, coins, svi(), init={"logits": {"value": np.zeros(3, "f")}})
    with pytest.raises(NonFiniteError, match=r"init\['logits'\]: value holds NaN"):
        fit(b, coins, svi(), init={"logits": {"value": np.full(4, np.nan, "f")}})


@pg.model
def line():
    with pg.data_plate():
        pg.sample("x", dist.Normal(pg.net("at", nets.Parameter(()))(), 1.0))


def off(bound, params, batch, key):
    """How far a datum, which is its own number, is from the number that it is given."""
    worst = pg.ops.max(pg.ops.abs(batch["x"] - batch[pg.ROW]))
    return 0.0 * params["at"]["value"], {"off": worst}


@pytest.mark.parametrize("kind", ["resident", "stacked", "items"])
def test_a_batch_has_the_numbers_of_its_rows_however_it_is_read(b, kind, monkeypatch):
    data = np.arange(20, dtype=np.float32)
    if kind == "stacked":
        monkeypatch.setattr("probgen.engine.batches.RESIDENT_BYTES", 0)
    learner = pg.GradientLearner(off, pg.SGD(1.0), needs_rows=True)
    given = [np.float32(v) for v in data] if kind == "items" else data
    fitted = pg.fit(line, given, learner, num_steps=7, batch_size=6, seed=0, backend=b)
    assert not fitted.history["off"].any()


def test_an_input_of_that_name_has_to_be_the_numbers_of_the_rows(b):
    @pg.model
    def line(row):
        with pg.data_plate():
            pg.sample("x", dist.Normal(pg.net("at", nets.Parameter(()))() + 0.0 * row, 1.0))

    x, learner = (
        np.arange(20, dtype=np.float32),
        pg.GradientLearner(off, pg.SGD(1.0), needs_rows=True),
    )
    settings = {"num_steps": 3, "batch_size": 6, "seed": 0, "backend": b}
    fitted = pg.fit(line, x, learner, inputs={pg.ROW: np.arange(20)}, **settings)
    assert not fitted.history["off"].any()
    with pytest.raises(DataError, match="entry 'row' that does not number the data, expected"):
        pg.fit(line, x, learner, inputs={pg.ROW: np.arange(20)[::-1]}, **settings)


def far(bound, metrics):
    worst = np.abs(metrics["first"]).max()
    return f"the first logit went to {worst:.2f}" if worst > 2.5 else None


def climbing(bound, params, batch, key):
    first = params["logits"]["value"][0]
    return -first, {"first": first}


def test_what_a_watch_says_takes_the_fit_back_and_halves_its_step(b):
    """Steps of 1 from 0 see 0, 1, 2, 3, which is too far; steps of a half 0, 0.5, 1, 1.5."""
    learner = pg.GradientLearner(climbing, pg.SGD(1.0), watch=far)
    fitted = fit(b, coins, learner, num_steps=4)
    assert fitted.history.events[0].startswith("the first logit went to 3.00: back to the last")
    np.testing.assert_allclose(fitted.history["first"], [0.0, 0.5, 1.0, 1.5])
    with pytest.raises(DivergedError, match=r"fit: the first logit went to 3.00\.$"):
        fit(b, coins, learner, num_steps=4, max_retries=0)
