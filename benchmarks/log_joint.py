"""Value and gradient of a declared log joint on torch, against Pyro's handlers.

One declaration is run by probgen with its compiled graph and with the graph alone (no C++
compiler), by the function that `pg.infer` gives to its samplers; the same model, written for Pyro,
is differentiated as Pyro's own samplers do it. All are functions of the unconstrained latents, the
Jacobian of the map included.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyro
import torch
from harness import Agreement, Contest, Setting, Side, Target
from posteriors import POSTERIORS, split
from pyro.infer.mcmc.util import initialize_model
from twins import twin

from probgen import backends
from probgen.engine.bind import bind
from probgen.engine.posterior import Posterior

Latents = dict[str, np.ndarray]


def declared(name: str, device: str, compile: str) -> tuple[Callable, Latents]:
    """() -> (log density, gradient) of the declaration, and the point where it is taken."""
    model, arrays = POSTERIORS[name]
    b = backends.load("torch", device, compile=compile)
    data, inputs = split(arrays)
    # As pg.infer does: inputs with one row a datum go along with the data.
    per_datum, shared = (inputs, {}) if data else ({}, inputs)
    size = len(data["y"]) if data else None
    given = {**data, **per_datum}
    bound, params = bind(model, b, data=given, constants=shared, num_data=size, whole=True)
    posterior = Posterior(bound, size)
    rows = {k: b.asarray(v) for k, v in given.items()}

    def log_density(free: Any, params: Any, rows: Any) -> Any:
        return posterior.point(params, rows, free).log_density

    start = posterior.point(params, rows, key=b.key(1)).free
    both = b.compile(b.value_and_grad(log_density))
    point = {n: b.to_numpy(v) for n, v in start.items()}
    return functools.partial(both, start, params, rows), point


def by_handlers(name: str, device: str, point: Latents) -> Callable:
    """() -> (potential, its gradient) by Pyro, as `pyro.ops.integrator` takes it."""
    arguments = {k: torch.as_tensor(v, device=device) for k, v in POSTERIORS[name][1].items()}
    potential = initialize_model(twin("pyro", name), model_kwargs=arguments)[1]
    at = {n: torch.as_tensor(v, device=device) for n, v in point.items()}

    def both() -> Any:
        leaves = {n: v.detach().requires_grad_(True) for n, v in at.items()}
        value = potential(leaves)
        gradient = torch.autograd.grad(value, list(leaves.values()))
        return value.detach(), dict(zip(leaves, gradient, strict=True))

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
        torch.cuda.synchronize(device)


def agreement(ours: Callable, peer: Callable) -> Agreement:
    """Largest relative difference of value and gradient; the potential has the other sign."""
    (value, gradient), (potential, other) = ours(), peer()
    errors = [abs(float(value) + float(potential)) / abs(float(potential))]
    scale = max(float(g.abs().max()) for g in other.values())
    errors += [float((gradient[n] + g).abs().max()) / scale for n, g in other.items()]
    return Agreement("value and gradient, relative", max(errors), 1e-4)


def contests(setting: Setting, only: str = "") -> Iterator[Contest]:
    torch.set_num_threads(setting.threads)
    for name in POSTERIORS:
        if only not in f"log joint and gradient, {name}, torch":
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
