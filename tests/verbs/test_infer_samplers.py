"""One posterior by every sampler: exact where the sampler is, biased by what theory says where not.
NUTS has `test_infer.py`.

mu ~ N(0, 1), y_i ~ N(mu, 1), n data: mu | y ~ N(sum y / (1 + n), 1 / (1 + n)).
"""

import numpy as np
import pytest
import scipy.stats
from infer_cases import assert_mean, assert_moments, quick
from test_place import Stopped, names

import probgen as pg
from probgen import dist, nets
from probgen.engine.chain_pieces import Pieces
from probgen.errors import AlgorithmError, UnknownName
from probgen.inference import HMC, NUTS, Guide, Langevin, khat

Y = np.array([0.3, 1.2, -0.4, 0.9, 2.0, 1.1, 0.2], np.float32)
MEAN, VARIANCE = float(Y.sum()) / 8, 1.0 / 8


@pg.model
def location():
    mu = pg.sample("mu", dist.Normal(0.0, 1.0))
    pg.deterministic("twice", 2.0 * mu)
    with pg.data_plate():
        pg.sample("y", dist.Normal(mu, 1.0))


@location.with_guide
def encoded(y):
    """The posterior itself: its mean is read off the data, as a VAE's encoder reads it."""
    pg.sample("mu", dist.Normal(y.sum() / 8.0, np.float32(VARIANCE**0.5)))


H = 0.05  # of a posterior with precision 8: a bias of 1 / (1 - 8 H / 2) = 25 %
LONG = {"num_warmup": 50, "num_steps": 400, "num_chains": 20}
METHODS = {
    "HMC": HMC(num_warmup=150, num_samples=200, num_chains=4, trajectory_length=1.6,
               target_accept_prob=0.97),
    "MALA": Langevin({"mu": 0.15}, metropolis=True, **LONG),
    "Langevin": Langevin(H, **LONG),
    "Guide": Guide(4000),
}  # fmt: skip


@pytest.fixture(scope="module")
def b(backend_name):
    return quick(backend_name)


def infer(b, method, data=None, **options):
    options = {"seed": 0, "backend": b, "progress_bar": False, **options}
    return pg.infer(encoded, {"y": Y} if data is None else data, method, **options)


# MALA has the law of other data below, and of rows that stand for more.
OTHER_DATA = pytest.mark.repeated("test_rows_of_data_may_stand_for_more")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=OTHER_DATA if name == "MALA" else ()) for name in METHODS],
)
def test_every_sampler_gives_the_posterior_that_theory_says(b, name):
    draws = infer(b, METHODS[name], log_likelihood=name == "MALA")
    variance = VARIANCE / (1.0 - H / VARIANCE / 2.0) if name == "Langevin" else VARIANCE
    method = METHODS[name]
    assert draws.posterior.mu.dims == ("chain", "draw")
    assert draws.posterior.mu.shape == (method.num_chains, method.num_draws)
    assert_moments(draws.posterior.mu.values[..., None], [MEAN], np.array([[variance]]), name)
    np.testing.assert_allclose(draws.posterior.twice, 2 * draws.posterior.mu, rtol=1e-5)
    assert draws.sample_stats.lp.dims == ("chain", "draw")
    if name == "HMC":
        assert "tree_depth" not in draws.sample_stats
        assert float(draws.sample_stats.n_steps.mean()) > 1.5
    if name == "MALA":
        mu = draws.posterior.mu.values[..., None]
        np.testing.assert_allclose(
            draws.log_likelihood.y, scipy.stats.norm.logpdf(Y, mu, 1.0), rtol=1e-4, atol=1e-5
        )
        assert 0.5 < float(draws.sample_stats.acceptance_rate.mean()) < 1.0
        assert not draws.sample_stats.diverging.values.any()
    if name == "Guide":
        weights = draws.sample_stats.log_weight.values
        exact = scipy.stats.multivariate_normal.logpdf(Y, np.zeros(7), np.eye(7) + 1.0)
        np.testing.assert_allclose(weights, exact, atol=1e-3)
        assert "guide" in draws.attrs["note"]


def test_what_was_compiled_for_a_sampler_serves_other_data_and_no_other_sampler(b):
    draws = infer(b, METHODS["MALA"], {"y": Y + 1.0}).posterior.mu.values
    assert_moments(draws[..., None], [MEAN + 7.0 / 8.0], np.array([[VARIANCE]]), "other data")
    tiny = infer(b, Langevin({"mu": 1e-4}, metropolis=True, **LONG))
    assert float(tiny.sample_stats.acceptance_rate.mean()) > 0.99


MALA_TOO = pytest.param(
    "MALA",
    marks=pytest.mark.repeated("test_infer_warm_step.py::test_killed_it_goes_on_to_the_same_bits"),
)


@pytest.mark.parametrize("name", [MALA_TOO, "Guide"])
def test_killed_again_and_again_the_draws_are_those_of_one_run(b, name, tmp_path, monkeypatch):
    method = {"MALA": Langevin(0.1, 47, metropolis=True, num_warmup=9, thinning=3),
              "Guide": Guide(41)}[name]  # fmt: skip
    whole = infer(b, method)
    real = Pieces.add
    for stop in (1, 5, 14):

        def add(self, *args, stop=stop):
            real(self, *args)
            if len(self.parts) == stop:
                raise Stopped

        with monkeypatch.context() as patched, pytest.raises(Stopped):
            patched.setattr(Pieces, "add", add)
            infer(b, method, path=tmp_path / "chains")
    for _ in ("goes on", "reads"):
        again = infer(b, method, path=tmp_path / "chains")
        for group in ("posterior", "sample_stats"):
            for n, value in whole[group].dataset.items():
                np.testing.assert_array_equal(again[group].dataset[n], value, err_msg=n)
    assert whole.posterior.mu.shape == (method.num_chains, method.num_draws)
    assert names(tmp_path) == ["chains"]


def test_rows_of_data_may_stand_for_more(b):
    """Each of 7 rows counts 3 times: mu | y ~ N(3 sum y / 22, 1 / 22); likelihoods stay those of
    the rows."""
    method = Langevin(0.05, metropolis=True, **LONG)
    draws = infer(b, method, num_data=21, log_likelihood=True)
    mean, variance = 3 * float(Y.sum()) / 22, 1.0 / 22
    assert_moments(draws.posterior.mu.values[..., None], [mean], np.array([[variance]]), "mu")
    assert draws.log_likelihood.y.shape[2:] == (7,)


def test_num_data_is_the_size_of_a_plate_that_nothing_tells(b):
    draws = infer(b, Langevin(0.3, 300, metropolis=True, num_chains=20, num_warmup=50), {},
                  num_data=3)  # fmt: skip
    assert draws.posterior.y.shape == (20, 300, 3)
    assert_mean(draws.posterior.y.values[..., 1] ** 2, 2.0, "y ~ N(0, 2)")


def test_what_does_not_fit_is_refused(b):
    @pg.model
    def local():
        with pg.data_plate():
            z = pg.sample("z", dist.Normal(0.0, 1.0))
            pg.sample("y", dist.Normal(z, 1.0))

    for model, options, said in (
        (encoded, {"num_data": 5}, "num_data=5.*with 7 data"),
        (local, {"num_data": 14}, "num_data=14.*'z'.*one a datum"),
        (local, {"method": Guide(2)}, "has no guide"),
        (encoded, {"method": Langevin({"nu": 0.1})}, "step sizes of .'nu'.*'mu'"),
        (encoded, {"method": NUTS(step_size={"mu": 0.1})}, "by site, expected one number"),
    ):
        options = {"method": METHODS["MALA"], "seed": 0, "backend": b, **options}
        with pytest.raises((AlgorithmError, UnknownName), match=said):
            pg.infer(model, {"y": Y}, **options)


def test_a_vae_infers_by_its_encoder(b):
    """Of a linear VAE the guide's draws, weighted, have the exact posterior's mean."""
    vae = pg.models.VAE(
        latent=dist.Normal(0, 1).expand([1]).to_event(1), decoder=nets.MLP((), out=2),
        likelihood=pg.models.likelihoods.Normal(scale=0.5),
        encoder=nets.MLP((), out=1, heads=("loc", "log_scale")),
    )  # fmt: skip
    x = np.float32([[0.8, -1.1]])
    with pytest.raises(AlgorithmError, match="no parameters"):
        pg.infer(vae, x, Guide(2), seed=0, backend=b)
    weight, bias = np.float32([[1.0, -0.6]]), np.float32([0.1, 0.0])
    precision = 1.0 + 4.0 * (weight[0] ** 2).sum()
    gain = 4.0 * weight[0] / precision
    # The posterior but for a shift and a spread, which the weights mend.
    encoder = {
        "weight": np.stack([gain, 0.0 * gain], 1),
        "bias": np.float32([0.1 - gain @ bias, 0.2 - 0.5 * np.log(precision)]),
    }
    params = {"decoder": {"out": {"weight": weight, "bias": bias}}, "encoder": {"out": encoder}}
    fitted = pg.Fitted(vae, params, info={"backend": b.name}, shapes={"x": (2,)})
    draws = pg.infer(fitted, x, Guide(4000), seed=0, backend=b, progress_bar=False)
    z, log_w = draws.posterior.z.values[0, :, 0, 0], draws.sample_stats.log_weight.values[0]
    exact = gain @ (x[0] - bias)
    assert khat(log_w) < 0.7
    w = np.exp(log_w - log_w.max())
    mean = (w * z).sum() / w.sum()
    error = np.sqrt((w**2 * (z - mean) ** 2).sum()) / w.sum()
    assert abs(mean - exact) < 5 * error + 1e-4, (mean, exact, error)
