"""Langevin dynamics on the energy of a perceptron, against loops by hand and torchebm.

p(x) = N(x; 0, I) exp(-E(x)) / Z on d numbers, E a perceptron d-256-256-1 (SiLU): each chain takes
1,000 steps of 0.02 from a draw of the base. What is timed of ours is the whole of `pg.generate`,
with the acceptance and divergence of the chains that its note tells; what of torchebm its `sample`.
A block is some seconds of work: as many chunks of so many chains one after another, which ours
draws in one call, since a call binds and traces once (0.04 s on JAX, 0.01 s on torch).

By hand are loops as an expert writes them: a jitted scan on JAX; on torch in place on one leaf,
weights frozen, and the same step by `torch.compile` with the noise drawn outside of it. All sides
are held to one law. torchebm is `pip install torchebm`; without it its ratios are left out.
"""

import functools
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from harness import Agreement, Contest, Setting, Side, Target

import probgen as pg
from probgen import backends, dist, nets
from probgen.engine.fitted import Fitted
from probgen.inference import Langevin
from probgen.models import EBM

STEP, STEPS, WIDTH = 0.02, 1000, 256
BY_HAND = 1 / 1.05
# (numbers, chains): chunks, and the ratios to torchebm that are asked of torch and of JAX
SIZES = {
    (64, 64): (8, {"torch": 2.5, "jax": 3.0}),
    (64, 512): (1, {"torch": 1.2, "jax": 1.4}),
    (784, 64): (2, {"torch": 1.5, "jax": 1.6}),
    (784, 512): (1, {"torch": 1.15, "jax": 1.15}),
}


class Run(NamedTuple):
    """One side: `block()` runs all chunks; `ends` are where chains ended, [chains, d] a run."""

    block: Callable[[], None]
    ends: list[np.ndarray]


class Work(NamedTuple):
    """What all sides do."""

    dim: int
    chains: int
    chunks: int
    steps: int
    device: str


def weights(dim: int) -> dict[str, dict[str, np.ndarray]]:
    """Of the perceptron, numpy: an energy that moves by some nats over the base."""
    rng, sizes = np.random.default_rng(0), [dim, WIDTH, WIDTH, 1]
    out = {}
    for i, name in enumerate(("layer0", "layer1", "out")):
        weight = rng.normal(size=sizes[i : i + 2]) * math.sqrt(2.0 / sizes[i])
        bias = 0.1 * rng.normal(size=sizes[i + 1])
        out[name] = {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}
    return out


def again(run: Callable[[int], np.ndarray], times: int) -> Run:
    """A side of a function of the seed, so many times a block, each with another seed."""
    ends: list[np.ndarray] = []

    def block() -> None:
        for _ in range(times):
            ends.append(run(len(ends)))

    return Run(block, ends)


def declared(work: Work, backend: str, **options: Any) -> Run:
    """`pg.generate` of the declaration."""
    b = backends.load(backend, work.device, **options)
    base = dist.Normal(0, 1).expand([work.dim]).to_event(1)
    model, params = EBM(nets.MLPEnergy((WIDTH, WIDTH)), base), {"energy": weights(work.dim)}
    fitted = Fitted(model, params, shapes={"x": (work.dim,)})
    method = Langevin(STEP, work.steps)

    def run(seed: int) -> np.ndarray:
        return pg.generate(
            fitted, work.chunks * work.chains, method=method, seed=seed, chunk_size=work.chains,
            backend=b,
        )["x"]  # fmt: skip

    return again(run, 1)


def module(work: Work) -> Any:
    """The perceptron as torch's users have it, frozen."""
    import torch
    from torch import nn

    layers = [nn.Linear(work.dim, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU()]
    net = nn.Sequential(*layers, nn.Linear(WIDTH, 1)).requires_grad_(False)
    for linear, p in zip(net[::2], weights(work.dim).values(), strict=True):
        linear.weight.copy_(torch.as_tensor(p["weight"].T.copy()))
        linear.bias.copy_(torch.as_tensor(p["bias"]))
    return net.to(work.device)


def by_torch(work: Work) -> Run:
    """Eager: weights frozen, one leaf, written in place; the base's slope, x, in closed form."""
    import torch

    net, size = module(work), (work.chains, work.dim)
    one = torch.ones(work.chains, 1, device=work.device)

    def run(seed: int) -> np.ndarray:
        torch.manual_seed(seed)
        leaf = torch.randn(size, device=work.device).requires_grad_(True)
        x, noise = leaf.detach(), torch.empty(size, device=work.device)
        for _ in range(work.steps):
            (slope,) = torch.autograd.grad(net(leaf), leaf, one)
            x.mul_(1 - STEP).sub_(slope, alpha=STEP)
            x.add_(noise.normal_(), alpha=math.sqrt(2 * STEP))
        return x.cpu().numpy()

    return again(run, work.chunks)


def by_compiled_torch(work: Work) -> Run:
    """The step through `torch.compile`, which is slow at drawing: the noise is an argument."""
    import torch

    net, size = module(work), (work.chains, work.dim)
    slope = torch.func.grad(lambda x: net(x).sum() + 0.5 * (x * x).sum())

    @torch.compile
    def step(x: Any, noise: Any) -> Any:
        return x - STEP * slope(x) + math.sqrt(2 * STEP) * noise

    @torch.no_grad()
    def run(seed: int) -> np.ndarray:
        torch.manual_seed(seed)
        x, noise = (torch.randn(size, device=work.device) for _ in range(2))
        for _ in range(work.steps):
            x = step(x, noise.normal_())
        return x.cpu().numpy()

    return again(run, work.chunks)


def by_torchebm(work: Work) -> Run:
    """torchebm's sampler on its own kind of model."""
    import torch
    from torchebm.core import BaseModel
    from torchebm.samplers import LangevinDynamics

    class Energy(BaseModel):
        def __init__(self) -> None:
            super().__init__(device=work.device)
            self.net = module(work)

        def forward(self, x: Any) -> Any:
            return self.net(x).squeeze(-1) + 0.5 * (x * x).sum(-1)

    sampler = LangevinDynamics(Energy(), step_size=STEP, noise_scale=1.0, device=work.device)

    def run(seed: int) -> np.ndarray:
        torch.manual_seed(seed)
        x = sampler.sample(dim=work.dim, n_samples=work.chains, n_steps=work.steps)
        return x.cpu().numpy()

    return again(run, work.chunks)


def by_jax(work: Work) -> Run:
    """One jitted scan over the steps of all chains."""
    import jax
    import jax.numpy as jnp

    p = jax.tree.map(jnp.asarray, weights(work.dim))

    def energy(p: Any, x: Any) -> Any:
        for name in ("layer0", "layer1"):
            x = jax.nn.silu(x @ p[name]["weight"] + p[name]["bias"])
        return (x @ p["out"]["weight"] + p["out"]["bias"])[0]

    slope = jax.vmap(jax.grad(lambda x, p: energy(p, x) + 0.5 * (x * x).sum()), (0, None))

    @jax.jit
    def whole(p: Any, key: Any) -> Any:
        start, key = jax.random.split(key)

        def step(x: Any, key: Any) -> tuple[Any, None]:
            noise = jax.random.normal(key, x.shape)
            return x - STEP * slope(x, p) + math.sqrt(2 * STEP) * noise, None

        x = jax.random.normal(start, (work.chains, work.dim))
        return jax.lax.scan(step, x, jax.random.split(key, work.steps))[0]

    return again(lambda seed: np.asarray(whole(p, jax.random.key(seed))), work.chunks)


def told(ends: list[np.ndarray], dim: int) -> np.ndarray:
    """(E, x'x / 2) of each end, [2, n]."""
    x = h = np.concatenate(ends)
    p = weights(dim)
    for name in ("layer0", "layer1"):
        h = h @ p[name]["weight"] + p[name]["bias"]
        h = h / (1 + np.exp(-h))
    return np.stack([(h @ p["out"]["weight"])[:, 0] + p["out"]["bias"], 0.5 * (x * x).sum(1)])


def same_law(ours: Run, peer: Run, dim: int) -> Agreement:
    """Means of the energies of net and base at all ends, in standard errors: the larger gap."""
    a, c = told(ours.ends, dim), told(peer.ends, dim)
    error = np.hypot(*(v.std(1, ddof=1) / math.sqrt(v.shape[1]) for v in (a, c)))
    gap = np.abs(a.mean(1) - c.mean(1)) / error
    return Agreement("energies of net and base, s.e.", float(gap.max()), 5.0)


def contests(setting: Setting, only: str = "") -> Iterator[Contest]:
    """Each size on each framework that is here."""
    there = backends.available()
    has_peer = importlib.util.find_spec("torchebm") is not None and there["torch"]
    if not has_peer:
        print("Langevin: torchebm is left out; pip install torchebm", file=sys.stderr)
    for backend in (n for n in ("torch", "jax") if there[n]):
        for (dim, chains), (chunks, asked) in SIZES.items():
            name = f"Langevin, {dim} numbers, {chains} chains, {backend}"
            if only not in name:
                continue
            chunks, steps = (1, 5) if setting.tiny else (chunks, STEPS)
            work = Work(dim, chains, chunks, steps, setting.device)
            if backend == "torch":
                sides = {
                    "probgen, compiled": declared(work, backend, compile="inductor"),
                    "probgen, graph only": declared(work, backend, compile="graph"),
                    "eager by hand": by_torch(work),
                    "compiled by hand": by_compiled_torch(work),
                }
                if setting.tiny:
                    del sides["probgen, compiled"], sides["compiled by hand"]
            else:
                sides = {"probgen": declared(work, backend), "jit + scan by hand": by_jax(work)}
            hands = dict.fromkeys((s for s in sides if "by hand" in s), BY_HAND)
            if has_peer:
                sides["torchebm"] = by_torchebm(work)
                hands["torchebm"] = asked[backend]
            best, *rest = (s for s in sides if "probgen" in s)
            targets = [
                Target(us, peer, ratio if us == best else None, functools.partial(
                    same_law, sides[us], sides[peer], dim))
                for us in (best, *rest) for peer, ratio in hands.items()
            ]  # fmt: skip
            units = chunks * chains * steps
            blocks = {side: Side(run.block, units) for side, run in sides.items()}
            yield Contest(name, "steps of a chain", blocks, targets)
