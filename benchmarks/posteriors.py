"""The posteriors of the benchmark, declared once, and their data."""

from typing import Any

import numpy as np

import probgen as pg
from probgen import dist


@pg.model
def eight_schools(scale: Any) -> None:
    mu = pg.sample("mu", dist.Normal(0, 5))
    tau = pg.sample("tau", dist.HalfCauchy(5))
    with pg.data_plate():
        theta = pg.sample("theta", dist.Normal(0, 1))
        pg.sample("y", dist.Normal(mu + tau * theta, scale))


@pg.model
def logistic_regression(covariates: Any) -> None:
    weights = pg.sample("weights", dist.Normal(0, 1).expand([20]).to_event(1))
    with pg.data_plate():
        pg.sample("y", dist.Bernoulli(logits=covariates @ weights))


@pg.model
def gaussian(tril: Any) -> None:
    pg.sample("x", dist.MultivariateNormal(0 * tril[0], scale_tril=tril))


def schools_data() -> dict[str, np.ndarray]:
    y = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
    scale = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]
    return {"scale": np.array(scale, np.float32), "y": np.array(y, np.float32)}


def logistic_data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 20))
    y = rng.random(1000) < 1 / (1 + np.exp(-x @ rng.normal(size=20)))
    return {"covariates": x.astype(np.float32), "y": y.astype(np.float32)}


def gaussian_data() -> dict[str, np.ndarray]:
    i = np.arange(100)
    tril = np.linalg.cholesky(0.9 ** np.abs(i[:, None] - i))
    return {"tril": tril.astype(np.float32)}


# name: (declaration, data and inputs)
POSTERIORS: dict[str, Any] = {
    "eight schools": (eight_schools, schools_data()),
    "logistic 1000 x 20": (logistic_regression, logistic_data()),
    "Gaussian 100-d": (gaussian, gaussian_data()),
}


def split(arrays: dict[str, np.ndarray]) -> tuple[dict, dict]:
    """(data, inputs) as `pg.infer` takes them."""
    data = {k: v for k, v in arrays.items() if k == "y"}
    return data, {k: v for k, v in arrays.items() if k not in data}
