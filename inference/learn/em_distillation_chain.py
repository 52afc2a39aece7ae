"""The E-step of EM distillation: a chain over data noise and the generator's latents at once.

Its law is q_t(x) p_t(z | x), q_t the teacher's, p_t the student's, x = alpha g(z) + sigma eps. With
the position (eps, z), D = grad log q_t - grad log p_t at x, and J the Jacobian of g,

    eps' = eps + ge (sigma D - eps) + sqrt(2 ge) n
    z' = z + gz (alpha J^T D - z) + sqrt(2 gz) m

by the kernel of `Langevin` on a target of which a drift is known. A third coordinate goes along,
`push`, with eps' drift and none of its noise, from 0: it is ge sum_i (1 - ge)^(K-1-i) sigma D(x_i),
and eps - push is the decayed first noise and what was injected since, which is what cancellation
takes away. Where z stays there is no derivative at all; else one product J^T v a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import probgen as pg
from probgen.engine.bound import Bound
from probgen.engine.target import Target
from probgen.errors import AlgorithmError
from probgen.inference.learn.em_distillation_scores import WHO, Scores
from probgen.inference.sample.hamiltonian import normals
from probgen.inference.sample.langevin import Langevin
from probgen.language.capabilities import DrawsMean
from probgen.language.model import capability
from probgen.language.run import DATA_PLATE, NOT_NORMAL

Array = Any
Tree = Any
OWN = ("eps", "push")


class Ends(NamedTuple):
    """What a chain leaves: `start` and `z`, the latents' noise at first and at last, `eps`, `push`,
    and `before`, eps - push one step before the last."""

    start: dict
    z: dict
    eps: Array
    push: Array
    before: Array


class Generator:
    """x = g(z) of a bound student, z the standard normal noise of its latents, by site.

    Raises:
        AlgorithmError: no site "x" that is a function of latents alone; latents that all data
            share, in a further plate, or that are no function of normal noise.
    """

    def __init__(self, bound: Bound):
        self.bound, sites = bound, bound.structure.sites
        name, drawn = bound.model.name, capability(bound.model, DrawsMean)
        self.is_mean = drawn is not None
        x = sites.get("x")
        if x is None or bound.observed or not (self.is_mean or x.kind == "deterministic"):
            raise AlgorithmError(
                f"{WHO}: the student {name!r} has the sites {sorted(sites)} and data for "
                f"{sorted(bound.observed)}, expected x = g(z) and no data: a "
                'pg.deterministic("x", ...) of latents, a Generator (of which the mean is taken), '
                "or models.OneStep(teacher); fit it with data=None, batch_size=n, or with rows of "
                "its condition alone."
            )
        self.latents = tuple(n for n in bound.latents if n != "x")
        for n in (*self.latents, *bound.enumerated):
            site = sites[n]
            if site.noise_shape is None:
                raise AlgorithmError(NOT_NORMAL.format(name=n, kind=site.family))
            if site.plates != (DATA_PLATE,) or n in OWN:
                raise AlgorithmError(
                    f"{WHO}: the latent {n!r} of {name!r} stands in the plates "
                    f"{list(site.plates)}, expected the data plate alone, one latent a datum, and "
                    f"a name other than {OWN}."
                )
        if not self.latents:
            raise AlgorithmError(f"{WHO}: the student {name!r} has no latent, expected x = g(z).")
        self.shapes = {n: tuple(sites[n].noise_shape or ()) for n in self.latents}
        self.shape = tuple(x.shape[1:]) if not self.is_mean else drawn.event_shape()
        self.size = sum(math.prod(s) for s in self.shapes.values())

    def draw(self, key: Any, num: int) -> tuple[dict, Array]:
        """z by site and eps like x, both N(0, I)."""
        shapes = {n: (num, *shape) for n, shape in {**self.shapes, "eps": self.shape}.items()}
        z = normals(self.bound.backend, key, shapes)
        return z, z.pop("eps")

    def __call__(self, params: Mapping, batch: Mapping, z: Mapping) -> Array:
        """g(z), [n, *shape]."""
        bound, num = self.bound, next(iter(z.values())).shape[0]
        if not self.is_mean:
            sites = bound.trace(params, batch, noise=z, batch_size=num, condition=False)
            return sites["x"].value
        model = capability(bound.model, DrawsMean)
        none = bound.backend.ops.zeros_like(z[self.latents[0]].reshape((num, -1))[:, :0])

        def program() -> None:
            with pg.data_plate():
                model.draw_mean()

        noise = {**z, "x": none}
        return bound.backend.trace(program, params, noise=noise, batch_size=num)["x"].value


def target_of(bound: Bound, g: Generator, scores: Scores, moves: bool) -> Target:
    """What the chain climbs, by a drift; its arguments are (weights, fixed), where `weights` are
    those of `Scores` and `fixed` has the level, the condition, what the scores make of it (`seen`)
    and, where z stays, x_0 = g(z)."""
    b, ops = bound.backend, bound.backend.ops
    names = (*OWN, *g.latents) if moves else OWN

    def drift(at: Mapping, weights: Mapping, fixed: Mapping) -> dict:
        level, batch = fixed["level"], fixed["batch"]
        signal, noise = level["signal"], level["noise"]

        def pushed(x: Array) -> Array:
            x_t = signal * x + noise * at["eps"]
            return ops.stop_gradient(scores.push(x_t, level, weights, fixed["seen"]))

        if not moves:
            push = pushed(fixed["x"])
            return {"eps": push - at["eps"], "push": push - at["push"]}

        def pulled(z: Mapping) -> tuple[Array, Array]:
            x = g(weights["student"], batch, z)
            push = pushed(ops.stop_gradient(x))
            return ops.sum((signal / noise) * push * x), push

        z = {n: at[n] for n in g.latents}
        (_, push), force = b.value_and_grad(pulled, has_aux=True)(z)
        of_z = {n: force[n] - z[n] for n in g.latents}
        return {"eps": push - at["eps"], "push": push - at["push"], **of_z}

    def init(weights: Mapping, fixed: Mapping, key: Any, num: int) -> dict:
        z, eps = g.draw(key, num)
        return {"eps": eps, "push": 0.0 * eps, **(z if moves else {})}

    def values(at: Mapping, weights: Mapping, fixed: Mapping) -> dict:
        x = g(weights["student"], fixed["batch"], at) if moves else fixed["x"]
        return {"x": fixed["level"]["signal"] * x + fixed["level"]["noise"] * at["eps"]}

    return Target(names, init, None, drift, values, False)


def chain_of(bound: Bound, given: Any, g: Generator, scores: Scores) -> Callable:
    """(start, key, weights, fixed) -> `Ends` after K steps; `start` is {"eps", "z"}."""
    b, moves = bound.backend, given.gamma_z > 0
    target = target_of(bound, g, scores, moves)
    steps = {"eps": given.gamma_eps, "push": given.gamma_eps}
    sizes = {"eps": math.sqrt(2.0 * given.gamma_eps), "push": 0.0}
    if moves:
        steps.update(dict.fromkeys(g.latents, given.gamma_z))
        sizes.update(dict.fromkeys(g.latents, math.sqrt(2.0 * given.gamma_z)))
    total = given.num_steps * (bound.num_steps or 1)
    kernel = Langevin(steps, given.num_steps, sizes).kernel(b, target, total)
    move: Any = kernel.move

    def run(start: Mapping, key: Any, weights: Mapping, fixed: Mapping) -> Ends:
        z = start["z"]
        at = {"eps": start["eps"], "push": 0.0 * start["eps"], **(z if moves else {})}

        def step(carry: tuple, k: Any) -> tuple[tuple, None]:
            at, _ = carry
            return (move(k, at, weights, fixed), at["eps"] - at["push"]), None

        # One body for all steps, so that the last one is not compiled by itself.
        (at, before), _ = b.scan(step, (at, at["push"]), b.split(key, given.num_steps))
        end = {n: at[n] for n in g.latents} if moves else z
        return Ends(z, end, at["eps"], at["push"], before)

    return run
