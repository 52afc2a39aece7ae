"""Value and gradient of a declared log joint on torch, against Pyro's handlers.

One declaration is run by probgen with its compiled graph and with the graph alone (no C++
compiler); the same model, written for Pyro, is differentiated as Pyro's own samplers do it. All
are functions of the unconstrained latents, the Jacobian of the map included.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from harness import Agreement, Contest, Setting, Side, Target

import probgen as pg
from probgen import backends, dist, ops
from probgen.bound import bind

Latents = dict[str, np.ndarray]


# ---- the models, declared once ------------------------------------------------------------------


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


def _tril() -> np.ndarray:
    i = np.arange(100)
    return np.linalg.cholesky(0.9 ** np.abs(i[:, None] - i)).astype(np.float32)


@pg.model
def gaussian(tril: Any) -> None:
    pg.sample("x", dist.MultivariateNormal(0 * tril[0], scale_tril=tril))


# ---- their data, and their twins in Pyro --------------------------------------------------------


def schools_data() -> dict[str, np.ndarray]:
    y = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
    scale = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]
    return {"scale": np.array(scale, np.float32), "y": np.array(y, np.float32)}


def logistic_data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 20))
    y = rng.random(1000) < 1 / (1 + np.exp(-x @ rng.normal(size=20)))
    return {"covariates": x.astype(np.float32), "y": y.astype(np.float32)}


def pyro_eight_schools(scale: Any, y: Any) -> None:
    import pyro
    import pyro.distributions as pd

    mu = pyro.sample("mu", pd.Normal(0.0, 5.0))
    tau = pyro.sample("tau", pd.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", pd.Normal(0.0, 1.0))
        pyro.sample("y", pd.Normal(mu + tau * theta, scale), obs=y)


def pyro_logistic_regression(covariates: Any, y: Any) -> None:
    import pyro
    import pyro.distributions as pd

    weights = pyro.sample("weights", pd.Normal(0.0 * covariates[0], 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", pd.Bernoulli(logits=covariates @ weights), obs=y)


def pyro_gaussian(tril: Any) -> None:
    import pyro
    import pyro.distributions as pd

    pyro.sample("x", pd.MultivariateNormal(0 * tril[0], scale_tril=tril))


# name: (declaration, twin, data, the rest, latents that are positive)
MODELS: dict[str, tuple] = {
    "eight_schools": (eight_schools, pyro_eight_schools, schools_data, ("tau",)),
    "logistic_1000x20": (logistic_regression, pyro_logistic_regression, logistic_data, ()),
    "gaussian_100": (gaussian, pyro_gaussian, lambda: {"tril": _tril()}, ()),
}


# ---- the two sides ------------------------------------------------------------------------------


def declared(name: str, device: str, compile: str) -> tuple[Callable, Latents]:
    """() -> (log joint, gradient) of the declaration, and the point where it is taken."""
    model, _, data, positive = MODELS[name]
    b = backends.load("torch", device, compile=compile)
    arrays = data()
    rows = {k: v for k, v in arrays.items() if "y" in arrays}
    constants = {k: v for k, v in arrays.items() if k not in rows}
    bound, params = bind(
        model, b, data=rows, constants=constants, num_data=len(next(iter(arrays.values())))
    )
    rng = np.random.default_rng(1)
    sizes = {
        n: (bound.batch_size(rows),) * s.is_local + s.event_shape
        for n, s in bound.structure.sites.items()
        if n in bound.latents
    }
    point = {n: rng.normal(size=shape).astype(np.float32) for n, shape in sizes.items()}

    def log_joint(latents: Any, batch: Any) -> Any:
        values = {n: ops.exp(u) if n in positive else u for n, u in latents.items()}
        sites = bound.trace(params, batch, values)
        jacobian = sum(ops.sum(latents[n]) for n in positive)
        return sum(ops.sum(site.log_prob) for site in sites.values()) + jacobian

    both = b.compile(b.value_and_grad(log_joint))
    at = {n: b.asarray(v) for n, v in point.items()}
    batch = {n: b.asarray(v) for n, v in rows.items()}
    return functools.partial(both, at, batch), point


def by_handlers(name: str, device: str, point: Latents) -> Callable:
    """() -> (potential, its gradient) by Pyro, as `pyro.ops.integrator` takes it."""
    import torch
    from pyro.infer.mcmc.util import initialize_model

    _, twin, data, _ = MODELS[name]
    arguments = {k: torch.as_tensor(v, device=device) for k, v in data().items()}
    potential = initialize_model(twin, model_kwargs=arguments)[1]
    at = {n: torch.as_tensor(v, device=device) for n, v in point.items()}

    def both() -> Any:
        leaves = {n: v.detach().requires_grad_(True) for n, v in at.items()}
        value = potential(leaves)
        return value.detach(), dict(
            zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True)
        )

    return both


def repeat(fn: Callable, times: int, device: str) -> Side:
    """A block of `times` calls."""

    def block() -> None:
        for _ in range(times):
            fn()
        synchronize(device)

    return Side(block, times)


def synchronize(device: str) -> None:
    """Waits for torch's GPU, if it is one."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


def agreement(ours: Callable, peer: Callable) -> Agreement:
    """Largest relative difference of value and gradient; the potential has the other sign."""
    (value, gradient), (potential, other) = ours(), peer()
    errors = [abs(float(value) + float(potential)) / abs(float(potential))]
    scale = max(float(g.abs().max()) for g in other.values())
    errors += [float((gradient[n] + g).abs().max()) / scale for n, g in other.items()]
    return Agreement("value and gradient, relative", max(errors), 1e-4)


def contests(setting: Setting, only: str = "") -> Iterator[Contest]:
    import pyro
    import torch

    torch.set_num_threads(setting.threads)
    for name in MODELS:
        if only not in name:
            continue
        compiled, point = declared(name, setting.device, "graph" if setting.tiny else "inductor")
        graph, _ = declared(name, setting.device, "graph")
        handlers = by_handlers(name, setting.device, point)

        def unchecked(handlers: Callable = handlers) -> Any:
            with pyro.validation_enabled(False):
                return handlers()

        times = 5 if setting.tiny else 200
        sides = {
            "probgen, compiled": repeat(compiled, 5 * times, setting.device),
            "probgen, graph only": repeat(graph, times, setting.device),
            "Pyro handlers": repeat(handlers, times, setting.device),
            "Pyro handlers, validation off": repeat(unchecked, times, setting.device),
        }
        check = functools.partial(agreement, compiled, handlers)
        check_graph = functools.partial(agreement, graph, handlers)
        off = "Pyro handlers, validation off"
        yield Contest(
            f"log joint and gradient, {name}, torch",
            "calls",
            sides,
            [
                Target("probgen, compiled", "Pyro handlers", 15.0, check),
                Target("probgen, graph only", "Pyro handlers", 2.5, check_graph),
                Target("probgen, compiled", off, None, check),
                Target("probgen, graph only", off, None, check_graph),
            ],
        )
