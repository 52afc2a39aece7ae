"""Training an energy by maximum likelihood with short Langevin chains, against loops by hand.

p(x) = N(x; 0, I) exp(-E(x)) / Z on 64 numbers, E a perceptron 64-128-128-1; 128 data an update, as
many chains of 40 steps from the base, a penalty on the energies' squares, Adam. What is timed of
ours is `pg.fit` itself, a chunk of steps with all that goes with it (the guard, acceptance and
movement of the chains, the history); peers loop over their update as their users do.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from fitting import NUM_STEPS, STEPS, Held
from harness import Agreement, Contest, Setting, Side, Target

import probgen as pg
from probgen import backends, dist, nets
from probgen.data.sources import as_source
from probgen.engine.bind import bind
from probgen.inference import EnergyMagnitude, Langevin, MaximumLikelihood
from probgen.models import EBM
from probgen.trees import tree_map

DIM, BATCH, NUM_DATA, CHAIN, STEP, PENALTY, RATE = 64, 128, 5000, 40, 0.01, 0.01, 1e-3
MODEL = EBM(nets.MLPEnergy((128, 128)), dist.Normal(0, 1).expand([DIM]).to_event(1))
LEARN = MaximumLikelihood(
    Langevin(STEP, CHAIN), optimizer=pg.Adam(RATE), regularizers=(EnergyMagnitude(PENALTY),)
)


class Fit(NamedTuple):
    """One side: `block()` makes STEPS updates; `gaps` are its losses so far, an array a block."""

    block: Callable[[], None]
    gaps: list[np.ndarray]


def data() -> np.ndarray:
    """Two clouds on a line through all axes, [n, 64]."""
    rng = np.random.default_rng(0)
    side = rng.choice([-1.0, 1.0], (NUM_DATA, 1))
    return (0.5 * side + 0.5 * rng.normal(size=(NUM_DATA, DIM))).astype(np.float32)


def initial(b: Any) -> Any:
    """The parameters that ours starts from, numpy."""
    _, params = bind(MODEL, b, data={"x": data()[:1]}, num_data=NUM_DATA)
    return tree_map(b.to_numpy, params)["energy"]


def rows() -> Callable[[], np.ndarray]:
    """() -> indices [STEPS, batch] of the next block, in the order that `pg.fit` uses."""
    source, step = as_source(data(), batch_size=BATCH, seed=0), [0]

    def following() -> np.ndarray:
        step[0] += STEPS
        return source.schedule(step[0] - STEPS, STEPS)

    return following


class Kept(Held):
    """Also keeps the losses."""

    gaps: list[np.ndarray]

    def on_chunk(self, progress: Any, metrics: Any) -> None:
        self.gaps.append(np.array(metrics["loss"]))
        super().on_chunk(progress, metrics)


def declared(b: Any) -> Fit:
    """`pg.fit` of the declaration."""
    gaps: list[np.ndarray] = []
    Kept.gaps = gaps
    held = Kept(
        lambda callback: pg.fit(
            *(MODEL, data(), LEARN),
            num_steps=NUM_STEPS, batch_size=BATCH, seed=0, backend=b, progress_bar=False,
            callbacks=[callback],
        )
    )  # fmt: skip
    return Fit(held.advance, gaps)


def by_torch(b: Any, device: str) -> Fit:
    """Eager torch, as public code of energies is written."""
    import torch
    from torch import nn

    layers = [nn.Linear(DIM, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 1)]
    energy = nn.Sequential(*layers).to(device)
    for module, p in zip(layers[::2], initial(b).values(), strict=True):
        module.load_state_dict(
            {
                "weight": torch.tensor(p["weight"].reshape(-1, module.out_features).T.copy()),
                "bias": torch.tensor(p["bias"].reshape(-1)),
            }
        )
    optimizer = torch.optim.Adam(energy.parameters(), lr=RATE, fused=True)
    x, following, gaps = torch.tensor(data(), device=device), rows(), []

    def chain() -> Any:
        y = torch.randn(BATCH, DIM, device=device)
        for _ in range(CHAIN):
            y.requires_grad_(True)
            (slope,) = torch.autograd.grad(energy(y).sum(), y)
            with torch.no_grad():
                y = y - STEP * (slope + y) + math.sqrt(2 * STEP) * torch.randn_like(y)
        return y.detach()

    def block() -> None:
        energy.requires_grad_(True)
        found = []
        for index in torch.as_tensor(following(), device=device):
            energy.requires_grad_(False)
            drawn, seen = chain(), x[index]
            energy.requires_grad_(True)
            on_data, on_draws = energy(seen)[:, 0], energy(drawn)[:, 0]
            gap = on_data.mean() - on_draws.mean()
            penalty = PENALTY * ((on_data**2).mean() + (on_draws**2).mean())
            optimizer.zero_grad()
            (gap + penalty).backward()
            optimizer.step()
            base = 0.5 * ((seen**2).sum(1).mean() - (drawn**2).sum(1).mean())
            found.append(gap.detach() + base)
        gaps.append(torch.stack(found).cpu().numpy())

    return Fit(block, gaps)


def by_jax(b: Any) -> Fit:
    """One jitted `lax.scan` over the updates of a block, another over the steps of a chain."""
    import jax
    import jax.numpy as jnp
    import optax

    names = list(initial(b))
    optimizer = optax.adam(RATE)
    x, following, gaps = jnp.asarray(data()), rows(), []

    def energy(p: Any, y: Any) -> Any:
        for name in names[:-1]:
            y = jax.nn.silu(y @ p[name]["weight"] + p[name]["bias"])
        return (y @ p[names[-1]]["weight"] + p[names[-1]]["bias"]).reshape(len(y))

    def chain(p: Any, key: Any) -> Any:
        start, key = jax.random.split(key)
        slope = jax.grad(lambda y: energy(p, y).sum() + 0.5 * (y**2).sum())

        def step(y: Any, k: Any) -> tuple[Any, None]:
            noise = jax.random.normal(k, y.shape)
            return y - STEP * slope(y) + math.sqrt(2 * STEP) * noise, None

        y = jax.random.normal(start, (BATCH, DIM))
        return jax.lax.scan(step, y, jax.random.split(key, CHAIN))[0]

    def loss(p: Any, seen: Any, drawn: Any) -> tuple[Any, Any]:
        on_data, on_draws = energy(p, seen), energy(p, drawn)
        gap = on_data.mean() - on_draws.mean()
        base = 0.5 * ((seen**2).sum(1).mean() - (drawn**2).sum(1).mean())
        return gap + PENALTY * ((on_data**2).mean() + (on_draws**2).mean()), gap + base

    def update(carry: Any, given: Any) -> tuple[Any, Any]:
        (p, opt), (index, key) = carry, given
        seen, drawn = x[index], chain(p, key)
        (_, gap), slope = jax.value_and_grad(loss, has_aux=True)(p, seen, drawn)
        moves, opt = optimizer.update(slope, opt)
        return (optax.apply_updates(p, moves), opt), gap

    @jax.jit
    def run(carry: Any, index: Any, key: Any) -> tuple[Any, Any]:
        return jax.lax.scan(update, carry, (index, jax.random.split(key, STEPS)))

    p = tree_map(jnp.asarray, initial(b))
    now = [(p, optimizer.init(p)), jax.random.key(1)]

    def block() -> None:
        now[1], key = jax.random.split(now[1])
        now[0], found = run(now[0], following(), key)
        gaps.append(np.asarray(found))

    return Fit(block, gaps)


def same_curve(ours: Fit, peer: Fit) -> Agreement:
    """Mean losses of each of the first two blocks, in standard errors: the larger difference.
    Later on the noise of the chains has led to other energies."""
    errors = []
    for a, c in zip(ours.gaps[:2], peer.gaps[:2], strict=True):
        spread = np.hypot(a.std(ddof=1), c.std(ddof=1)) / math.sqrt(len(a))
        errors.append(abs(a.mean() - c.mean()) / spread)
    return Agreement("losses of the first blocks, s.e.", float(np.max(errors)), 6.0)


def contests(setting: Setting, only: str = "") -> Iterator[Contest]:
    """An update of the energy on each framework that is here; at least 1 / 1.05 of the rate."""
    there = backends.available()
    for name in (n for n in ("torch", "jax") if there[n] and only in f"ebm {n}"):
        b = backends.load(name, setting.device)
        peer = by_jax(b) if name == "jax" else by_torch(b, setting.device)
        sides = {"probgen": declared(b), "by hand": peer}
        agreement = partial(same_curve, *sides.values())
        yield Contest(
            f"ebm {name}", "updates",
            {side: Side(fit.block, STEPS) for side, fit in sides.items()},
            [Target("probgen", "by hand", 1 / 1.05, agreement)],
        )  # fmt: skip
