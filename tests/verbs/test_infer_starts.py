"""Where chains start: one value for all or one for each, in the support, or refused in words."""

import numpy as np
import pytest
from infer_cases import quick, run

import probgen as pg
from probgen import dist
from probgen.errors import DataError, NonFiniteError, ShapeError, SupportError
from probgen.inference import HMC

STILL = {
    "num_warmup": 0, "num_samples": 1, "num_chains": 2, "step_size": 1e-5, "num_steps": 1,
    "adapt_step_size": False, "adapt_mass_matrix": False, "engine": "probgen",
}  # fmt: skip


@pytest.fixture(scope="module")
def small(backend_name):
    return quick(backend_name)


@pg.model
def mixed():
    pg.sample("a", dist.Normal(0.0, 1.0))
    pg.sample("rate", dist.Gamma(2.0, 1.0).expand([3]).to_event(1))
    pg.sample("p", dist.Dirichlet(np.ones(3, np.float32)))
    top = pg.sample("top", dist.Exponential(1.0))
    pg.sample("below", dist.Uniform(0.0, top))
    with pg.plate("groups", 4):
        pg.sample("g", dist.Normal(0.0, 1.0))


EACH, GROUPS, SIMPLEX = np.array([-3.0, 3.0]), np.arange(8.0).reshape(2, 4), [0.2, 0.3, 0.5]
ALL = {"a": EACH, "rate": 2.0, "g": GROUPS, "p": SIMPLEX, "top": 2.0, "below": [0.5, 1.5]}


def starts(small, **values):
    """{site: [chain, ...] where the chains were after one tiny step}."""
    draws = run(mixed, None, small, HMC(**STILL, init_strategy=values)).posterior
    return {n: draws[n].values[:, 0] for n in values}


def test_one_start_serves_all_chains_and_one_each_is_used(small):
    """A number or a vector for each chain; a vector for all; a number for all, of a vector too."""
    found = starts(small, **ALL)
    np.testing.assert_allclose(found["a"], EACH, atol=1e-3)
    np.testing.assert_allclose(found["rate"], np.full((2, 3), 2.0), rtol=1e-3)
    np.testing.assert_allclose(found["g"], GROUPS, atol=1e-3)
    np.testing.assert_allclose(found["p"], [SIMPLEX, SIMPLEX], atol=1e-3)
    np.testing.assert_allclose(found["top"], [2.0, 2.0], rtol=1e-3)
    np.testing.assert_allclose(found["below"], [0.5, 1.5], rtol=1e-3)


@pytest.mark.parametrize(
    ("values", "kind", "words"),
    [
        ({"a": "zero"}, DataError, "'a' the value 'zero'"),
        ({"a": np.nan}, DataError, "'a'.*finite number"),
        ({"rate": [[1.0], [1.0, 2.0]]}, DataError, "'rate'.*finite number"),
        ({"a": [[1.0], [2.0]]}, ShapeError, r"'a' an array of shape \(2, 1\).*\(2,\)"),
        ({"a": [1.0, 2.0, 3.0]}, ShapeError, r"shape \(3,\), expected \(\)"),
        ({"rate": np.ones(2)}, ShapeError, r"shape \(2,\), expected \(3,\)"),
        ({"rate": -1.0}, SupportError, r"'rate' outside the support of Gamma.*\[-1, -1\]"),
        ({"p": [1.0, 0.5, 0.5]}, SupportError, "'p' outside the support of Dirichlet.*sum to 2"),
        ({"top": [1.0, -1.0]}, SupportError, "'top' outside the support of Exponential"),
        # The program of the starts that are right, whose chains it is that are looked at.
        (
            {**ALL, "below": [0.5, 2.5]}, SupportError,
            "start 'below' outside the support of Uniform",
        ),
    ],
)  # fmt: skip
def test_a_start_that_is_none_is_refused(small, values, kind, words):
    with pytest.raises(kind, match=words):
        starts(small, **values)


def test_labels_from_one_are_told_from_what_they_are(small):
    """Classes are 0 ... K - 1; labels 1 ... K are refused, in infer and in fit, with the cure."""

    @pg.model
    def labels():
        bias = pg.sample("bias", dist.Normal(0.0, 1.0))
        with pg.data_plate():
            pg.sample("y", dist.Categorical(logits=bias * pg.ops.asarray(np.float32([0, 1, 2]))))

    @labels.with_guide
    def labels():
        pg.sample("bias", dist.Normal(0.0, 1.0))

    y = np.array([1, 2, 3, 3], np.int32)
    words = r"data 'y': 2 .*Categorical.*labels that run 1 \.\.\. K need labels - 1"
    with pytest.raises(SupportError, match=words):
        run(labels, {"y": y}, small, HMC(**STILL))
    with pytest.raises(SupportError, match=words):
        pg.fit(
            labels, {"y": y}, pg.inference.SVI(pg.inference.ELBO()), num_steps=1, batch_size=4,
            backend=small, seed=0, progress_bar=False,
        )  # fmt: skip


def test_a_draw_that_is_nan_is_never_returned(small):
    """A computed value may be infinite, as the log of nothing is; NaN is no number."""

    @pg.model
    def computed():
        a = pg.sample("a", dist.Normal(0.0, 1.0))
        pg.deterministic("low", pg.ops.log(0.0 * a))
        pg.deterministic("gone", pg.ops.log(0.0 * a) - pg.ops.log(0.0 * a))

    with pytest.raises(NonFiniteError, match="infer, HMC: 2 of 2 draws of site 'gone' are NaN"):
        run(computed, None, small, HMC(**STILL))


def test_a_datum_without_density_is_named(small):
    """0 belongs to the support of Gamma(3, .), where its density is 0: no start can have any."""

    @pg.model
    def waits():
        rate = pg.sample("rate", dist.Gamma(2.0, 1.0))
        with pg.data_plate():
            pg.sample("t", dist.Gamma(3.0, rate))

    words = r"no start.*datum at \[2\] of 't', 0.*density 0 under Gamma \(positive\)"
    with pytest.raises(NonFiniteError, match=words):
        run(waits, {"t": np.float32([1.0, 2.0, 0.0])}, small, HMC(**{**STILL, "engine": None}))


def test_supports_have_the_same_words_on_both_backends(small):
    @pg.model
    def counts():
        tilt = pg.sample("tilt", dist.Normal(0.0, 1.0))
        with pg.data_plate():
            weights = tilt * pg.ops.asarray(np.float32([0, 1, 2]))
            pg.sample("n", dist.Multinomial(total_count=3, logits=weights))

    words = r"'n': 1 of 2 .* Multinomial \(counts that sum to total_count\)"
    with pytest.raises(SupportError, match=words):
        run(counts, {"n": np.float32([[1, 1, 1], [1, 1, 2]])}, small, HMC(**STILL))
