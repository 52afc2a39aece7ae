"""The posteriors of the benchmark as native programs: one text, of Pyro and of NumPyro."""

import functools
import importlib
from collections.abc import Callable
from typing import Any


def eight_schools(p: Any, d: Any, scale: Any, y: Any) -> None:
    mu = p.sample("mu", d.Normal(0.0, 5.0))
    tau = p.sample("tau", d.HalfCauchy(5.0))
    with p.plate("schools", len(y)):
        theta = p.sample("theta", d.Normal(0.0, 1.0))
        p.sample("y", d.Normal(mu + tau * theta, scale), obs=y)


def logistic_regression(p: Any, d: Any, covariates: Any, y: Any) -> None:
    weights = p.sample("weights", d.Normal(0.0, 1.0).expand([20]).to_event(1))
    with p.plate("data", len(y)):
        p.sample("y", d.Bernoulli(logits=covariates @ weights), obs=y)


def gaussian(p: Any, d: Any, tril: Any) -> None:
    p.sample("x", d.MultivariateNormal(0 * tril[0], scale_tril=tril))


PROGRAMS = {
    "eight schools": eight_schools,
    "logistic 1000 x 20": logistic_regression,
    "Gaussian 100-d": gaussian,
}


def twin(library: str, name: str) -> Callable[..., None]:
    """The program of "pyro" or "numpyro", of the arrays by name."""
    modules = (importlib.import_module(m) for m in (library, f"{library}.distributions"))
    return functools.partial(PROGRAMS[name], *modules)
