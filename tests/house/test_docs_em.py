"""The page on EM runs as it stands, and its numbers are the textbook's."""

import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "em.md").read_text("utf-8")


def loss_of_likelihood(x, params):
    """How much less likely data of mean zero are than under the best two factors, nats a datum."""
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    noise = values[:2].mean()
    top = vectors[:, 2:] * (values[2:] - noise)
    best = top @ vectors[:, 2:].T + noise * np.eye(4)
    layer, scale = params["decoder"]["out"], 1e-3 + np.log1p(np.exp(params["likelihood"]["value"]))
    cov = layer["weight"].T @ layer["weight"] + scale**2 * np.eye(4)
    ours = stats.multivariate_normal(layer["bias"], cov).logpdf(x).mean()
    return stats.multivariate_normal(np.zeros(4), best).logpdf(x).mean() - ours


def test_the_page_runs():
    pytest.importorskip("jax")
    program = "".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M))
    space: dict = {"__name__": "page"}
    exec(compile(program, "docs/em.md", "exec"), space)
    np.testing.assert_allclose(np.sort(space["p"]), [0.52, 0.80], atol=5e-3)
    assert (np.diff(space["log_likelihood"]) > -1e-6).all()
    assert space["shares"][1].max() > 0.9  # nine heads
    curve = space["clusters"].history["log_likelihood"]
    assert (np.diff(curve) > -1e-5).all()
    np.testing.assert_allclose(space["table"].mean("ELBO(1)")[0], curve[-1], atol=1e-3)
    x = space["iris"] - space["iris"].mean(0)
    assert 0 < loss_of_likelihood(x, space["ppca"].params) < 0.1
    assert (np.diff(space["pca_likelihood"]) > -1e-5).all()
    assert abs(loss_of_likelihood(x, space["pca"].params)) < 1e-3
    probs = space["of_group"].values
    assert probs.shape == (4, 300, 30, 2)
    np.testing.assert_allclose(probs.sum(-1), 1.0, atol=1e-5)
    means = np.sort(space["draws"].posterior["mean"].values, axis=-1)  # labels may be swapped
    middle = np.median(means.mean(1), axis=0)  # a chain may have stayed where a group is empty
    assert (np.abs(middle - [1.5, 4.9]) < 0.3).all()
