"""Global latents come from the fitted guide or the prior, anew for each sample; all sites show."""

import numpy as np
import pytest

import probgen as pg
from probgen import dist, nets
from probgen.engine.fitted import Fitted
from probgen.errors import AlgorithmError, DataError, ProbgenError
from probgen.inference import ELBO, SVI, Langevin

N = 1500


def within(values, mean, num_errors=5.0):
    values = np.asarray(values, np.float64)
    error = values.std() / np.sqrt(len(values))
    assert abs(values.mean() - mean) < num_errors * error, (values.mean(), mean, error)


@pg.model
def regression(x):
    w = pg.sample("w", dist.Normal(0.0, 10.0))
    pg.deterministic("twice", 2.0 * w)
    with pg.data_plate():
        y = pg.sample("y", dist.Normal(w * x, 0.1))
        pg.deterministic("pair", pg.ops.stack([y, x + 0.0 * y], axis=-1))


@regression.with_guide
def regression():
    scale = pg.ops.exp(pg.net("log_scale", nets.Parameter(()))())
    pg.sample("w", dist.Normal(pg.net("loc", nets.Parameter(()))(), scale))


PARAMS = {
    "loc": {"value": np.float32(2.0)}, "log_scale": {"value": np.float32(np.log(0.3))},
}  # fmt: skip
FITTED = Fitted(regression, PARAMS, shapes={"y": (), "x": ()})
X = np.where(np.arange(N) % 2, 3.0, -1.0).astype(np.float32)


@pytest.mark.parametrize(
    ("predictive", "mean", "sd", "note"),
    [(None, 2.0, 0.3, "posterior predictive: globals w from the guide"),
     ("prior", 0.0, 10.0, "prior predictive: globals w from the prior")],
)  # fmt: skip
def test_the_predictive_has_its_closed_form(b, predictive, mean, sd, note):
    """w ~ N(m, s), y = w x + e: mean m x, variance s^2 x^2 + 0.01, independent over samples."""
    draws = pg.generate(
        FITTED, N, seed=0, predictive=predictive, inputs={"x": X}, backend=b, chunk_size=1000
    )
    assert draws.note == note
    assert {n: v.shape for n, v in draws.items()} == {
        "w": (N,), "twice": (N,), "y": (N,), "pair": (N, 2),
    }  # fmt: skip
    np.testing.assert_allclose(draws["twice"], 2.0 * draws["w"], rtol=1e-6)
    np.testing.assert_allclose(draws["pair"], np.stack([draws["y"], X], -1), rtol=1e-5)
    within(draws["w"], mean)
    within((draws["w"] - mean) ** 2, sd**2)
    within((draws["y"] - mean * X) / X, 0.0)
    spread = np.sqrt((sd * X) ** 2 + 0.01)
    within(((draws["y"] - mean * X) / spread) ** 2, 1.0)
    within((draws["y"] - draws["w"] * X) ** 2, 0.01)
    # Samples are independent: one global for many would make neighbours equal.
    z = (draws["w"] - mean) / sd
    within(z[1:] * z[:-1], 0.0)


@pytest.mark.repeated("test_the_predictive_has_its_closed_form")
def test_what_svi_learned_is_what_is_generated(b):
    """y = 5 x + e: the fitted w is near 5, and so are draws at x = 1; the prior's are not."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=100).astype(np.float32)
    y = (5.0 * x + 0.1 * rng.normal(size=100)).astype(np.float32)
    fitted = pg.fit(
        regression, {"y": y}, SVI(ELBO(), pg.Adam(0.1)), num_steps=200, batch_size=100,
        inputs={"x": x}, backend=b, seed=0, progress_bar=False,
    )  # fmt: skip
    draws = pg.generate(fitted, 20, seed=0, inputs={"x": 1.0}, backend=b)
    assert np.abs(draws["y"] - 5.0).max() < 1.5 and "posterior predictive" in draws.note


@pg.model
def amortised():
    w = pg.sample("w", dist.Normal(0.0, 10.0))
    with pg.data_plate():
        z = pg.sample("z", dist.Normal(w, 1.0))
        pg.sample("y", dist.Normal(z, 0.1))


@amortised.with_guide
def amortised(y):
    pg.sample("w", dist.Normal(pg.ops.mean(y), 0.1))
    with pg.data_plate():
        pg.sample("z", dist.Normal(y, 0.1))


def test_a_guide_that_reads_the_data_gets_them(b):
    """w ~ N(mean of the data, 0.1); a sample's own z comes from its prior N(w, 1)."""
    fitted = Fitted(amortised, {}, shapes={"y": ()})
    y = np.array([6.0, 7.0, 8.0], np.float32)
    draws = pg.generate(fitted, N, seed=0, inputs={"y": y}, backend=b, chunk_size=N)
    within(draws["w"], 7.0)
    within((draws["w"] - 7.0) ** 2, 0.01)
    within((draws["z"] - draws["w"]) ** 2, 1.0)
    with pytest.raises(AlgorithmError, match=r"guide of 'amortised' reads \['y'\].*predictive='pr"):
        pg.generate(fitted, 3, seed=0, backend=b)
    assert "prior predictive" in pg.generate(fitted, 3, seed=0, predictive="prior", backend=b).note


@pg.model
def shapes(scale):
    with pg.data_plate():
        z = pg.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pg.deterministic("constant", pg.ops.asarray(np.arange(2.0, dtype=np.float32)))
        with pg.plate("parts", 3):
            pg.sample("k", dist.Normal(z[..., 0], scale))
    pg.deterministic("outside", z[..., 1] + 1.0)
    pg.deterministic("table", pg.ops.asarray(np.arange(4.0, dtype=np.float32)))


@pytest.mark.parametrize("num", [4, 5])
def test_samples_stand_in_front_whatever_the_site(b, num):
    """Across chunks, inside further plates, and where a constant is as long as a chunk."""
    draws = pg.generate(
        Fitted(shapes, {}), num, seed=0, inputs={"scale": 1e-7}, chunk_size=2, backend=b
    )
    assert draws.note == "ancestral"
    np.testing.assert_allclose(draws["k"], np.repeat(draws["z"][:, :1], 3, axis=1), atol=1e-6)
    np.testing.assert_array_equal(draws["table"], np.tile(np.arange(4.0), (num, 1)))
    np.testing.assert_array_equal(draws["constant"], np.tile(np.arange(2.0), (num, 1)))
    np.testing.assert_allclose(draws["outside"], draws["z"][:, 1] + 1.0)


NO_GUIDE = pg.model(regression.program)


@pytest.mark.parametrize(
    ("fitted", "options", "kind", "words"),
    [
        (FITTED, {"predictive": "both"}, ProbgenError, "predictive='both'"),
        (FITTED, {"predictive": "prior", "method": Langevin(0.1)}, AlgorithmError, "one of them"),
        (
            Fitted(NO_GUIDE, {}), {"predictive": "posterior"}, AlgorithmError,
            r"no guide and the globals \['w'\]",
        ),
        (Fitted(regression, {}), {}, AlgorithmError, r"nets \['loc', 'log_scale'\] of the guide"),
        (FITTED, {"inputs": {"x": 1.0, "w": 2.0}}, DataError, "got 'w', expected one of"),
        (FITTED, {"inputs": {"x": 1.0, "nonsense": 2.0}}, DataError, r"'nonsense'.*\['x'\]"),
        (
            Fitted(amortised, {}, shapes={"y": ()}),
            {"predictive": "prior", "inputs": {"y": np.zeros(3, np.float32)}}, DataError,
            "got 'y', a site of 'amortised'",
        ),
        (FITTED, {"space": "noise"}, AlgorithmError, "without a method"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(b, fitted, options, kind, words):
    options = {"inputs": {"x": 1.0}, **options} if fitted.model is not amortised else options
    with pytest.raises(kind, match=words):
        pg.generate(fitted, 3, seed=0, backend=b, **options)
