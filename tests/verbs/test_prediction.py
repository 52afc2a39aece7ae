"""Prediction: at new inputs by posterior draws, from the prior, and by a guide's codes."""

import numpy as np
import pytest
from auto_guide_cases import COV, MEAN, C, regression

import probgen as pg
from probgen import dist, nets
from probgen.engine.bind import bind
from probgen.engine.fitted import Fitted
from probgen.errors import AlgorithmError, DataError
from probgen.models import VAE

RNG = np.random.default_rng(3)
W = RNG.multivariate_normal(MEAN, COV, size=(2, 2000)).astype("float32")
DRAWS = {"a": W[..., 0], "b": W[..., 1]}


def test_posterior_predictive_at_new_inputs(b):
    """y_s = c . w_s + noise for each draw: mean c . MEAN, covariance c COV c^T + I."""
    new = np.array([[1.0, 1.0], [1.0, -1.0], [3.0, 0.0]], "float32")
    found = pg.generate(
        regression, 2000, draws=DRAWS, inputs={"c": new}, seed=0, backend=b
    )  # fmt: skip
    assert found["y"].shape == (2000, 3) and "from the draws" in found.note
    np.testing.assert_array_equal(
        found["a"], DRAWS["a"].ravel()[np.linspace(0, 3999, 2000).round().astype(int)]
    )
    cov = new @ COV @ new.T + np.eye(3)
    error = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / 2000)
    assert (np.abs(found["y"].mean(0) - new @ MEAN) < 5 * np.sqrt(np.diag(cov) / 2000)).all()
    assert (np.abs(np.cov(found["y"].T) - cov) < 5 * error).all()


def test_prior_predictive_of_a_declared_program(b):
    """Each row has globals of its own: y = c . w + noise, w ~ N(0, I)."""
    found = pg.generate(
        regression, 1500, inputs={"c": np.tile(C[:1], (1500, 1))}, seed=0, backend=b
    )
    want = 1 + C[0] @ C[0]
    assert abs(found["y"].var() / want - 1) < 5 * np.sqrt(2 / 1500)
    assert "prior predictive" in found.note


def test_codes_of_a_linear_vae_and_back(b):
    """encode is the encoder's mean, reconstruct the decoder's at it."""
    vae = VAE(
        latent=dist.Normal(0, 1).expand([2]).to_event(1), decoder=nets.MLP((), 3),
        likelihood=dist.Normal, encoder=nets.MLP((), 2, heads=("loc", "log_scale")),
    )  # fmt: skip
    x = RNG.normal(size=(5, 3)).astype("float32")
    params = {
        n: {k: {w: b.to_numpy(v) for w, v in leaf.items()} for k, leaf in tree.items()}
        if n != "likelihood" else {k: b.to_numpy(v) for k, v in tree.items()}
        for n, tree in bind(vae, b, data={"x": x})[1].items()
    }  # fmt: skip
    fitted = Fitted(vae, params, info={"backend": b.name})
    enc, dec = params["encoder"]["out"], params["decoder"]["out"]
    z = (x @ enc["weight"] + enc["bias"])[:, :2]
    np.testing.assert_allclose(fitted.encode(x)["z"], z, rtol=1e-4, atol=1e-5)
    back = fitted.reconstruct(x)["x"]
    np.testing.assert_allclose(back, z @ dec["weight"] + dec["bias"], rtol=1e-4, atol=1e-5)


def test_what_cannot_be_predicted_is_refused_in_words(b):
    with pytest.raises(DataError, match="expected the latent 'b'"):
        pg.generate(regression, 2, draws={"a": W[..., 0]}, inputs={"c": C}, seed=0, backend=b)
    with pytest.raises(AlgorithmError, match="for 4000 draws, expected at most as many"):
        pg.generate(regression, 5000, draws=DRAWS, inputs={"c": C}, seed=0, backend=b)

    @pg.model
    def with_net():
        with pg.data_plate():
            pg.sample("x", dist.Normal(pg.net("mu", nets.Parameter())(), 1.0))

    with pytest.raises(AlgorithmError, match=r"nets \['mu'\] .* have no parameters"):
        pg.generate(with_net, 2, seed=0, backend=b)
