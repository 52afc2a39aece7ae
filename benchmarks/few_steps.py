"""Draws in few steps: a denoising diffusion GAN against its long chain, and EM distillation.

    draws           of 2 numbers by `pg.generate`: `ImplicitDiffusion` in 4 steps, `OneStep`, and
                    `Diffusion` in 50 steps of `DDIM` and in 1,000, perceptrons of three layers of
                    128 on all sides, weights at random; blocks of about the same time, so that a
                    call's own cost weighs on all alike
    distillation    an update of `EMDistillation`, K = 8 steps of (eps, z) on batches of 128, Adam,
                    by `pg.fit` a chunk at a time, against an eager loop on torch and a jitted scan
                    on JAX

By hand is what the paper says and no more: our history's other numbers, the guard and the looks at
the bias every 50 updates are ours alone. All start from the same weights. The losses of the first
blocks, update by update, are held to each other; the score starts from other weights than the
teacher, so that they are no small differences.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from fitting import NUM_STEPS, STEPS, Held
from harness import Agreement, Contest, Setting, Side, Target
from unet_by_hand import waves

import probgen as pg
from probgen import backends, nets
from probgen.engine.bind import bind
from probgen.inference import DDIM, EMDistillation
from probgen.models import Diffusion, ImplicitDiffusion, NoiseSchedule, OneStep
from probgen.trees import tree_leaves, tree_map

HIDDEN, WAVES, TOTAL = (128, 128, 128), 16, 1000
LONG = Diffusion(nets.MLPDenoiser(2, HIDDEN, WAVES), (2,), NoiseSchedule(TOTAL), "v_prediction")
SHORT = ImplicitDiffusion(nets.LatentDenoiser(2, HIDDEN, WAVES), (2,), latent_dim=2)
CHUNK = 1000  # draws at a time, and all of them where a run is tiny
DDGAN, EMD, LEAPS, CHAIN = "DDGAN, 4", "EMD, 1", "DDIM, 50", "chain of 1,000"
MANY = {DDGAN: 200_000, EMD: 400_000, LEAPS: 20_000, CHAIN: 1000}  # draws of a block

BATCH, K, GE, GZ, TIMES = 128, 8, 0.16, 1.6e-5, (0.05, 0.9)
BETA, RATE, SCORE_RATE = (0.0, 0.99), 1e-4, 3e-4


@functools.cache
def weights(model: Any, seed: int = 0) -> Any:
    """Parameters at random, numpy."""
    name = next(n for n, there in backends.available().items() if there)
    b = backends.load(name, "cpu")
    return tree_map(b.to_numpy, bind(model, b, num_draws=CHUNK, seed=seed)[1])


# ---- draws ---------------------------------------------------------------------------------------


def draws(setting: Setting, b: Any, name: str) -> Contest:
    """Samples a second of all."""
    last: dict[str, np.ndarray] = {}

    def side(who: str, model: Any, method: Any = None) -> Side:
        given = (weights(LONG), {}) if who == EMD else (weights(model), {"x": (2,)})
        fitted = pg.Fitted(model, given[0], shapes=given[1])
        num = CHUNK if setting.tiny else MANY[who]

        def block() -> None:
            found = pg.generate(
                fitted, num, method=method, seed=0, chunk_size=CHUNK, backend=b
            )["x"]  # fmt: skip
            if found.shape != (num, 2) or not np.isfinite(found).all():
                raise SystemExit(f"{name}: {who} drew shapes {found.shape}, or no finite numbers")
            last[who] = found

        return Side(block, num)

    def alike() -> Agreement:
        counts = [sum(v.size for v in tree_leaves(weights(m))) for m in (SHORT, LONG)]
        return Agreement("number of weights, relative", abs(counts[0] / counts[1] - 1.0), 0.01)

    teacher = pg.Fitted(LONG, weights(LONG), shapes={"x": (2,)})
    sides = {
        DDGAN: side(DDGAN, SHORT), EMD: side(EMD, OneStep(teacher)),
        LEAPS: side(LEAPS, LONG, DDIM(50)), CHAIN: side(CHAIN, LONG),
    }  # fmt: skip
    asked = {DDGAN: 200.0, EMD: None, LEAPS: None}
    targets = [Target(who, CHAIN, ratio, alike) for who, ratio in asked.items()]
    return Contest(name, "samples", sides, targets)


# ---- distillation --------------------------------------------------------------------------------


class Fit(NamedTuple):
    """One side: `block()` makes STEPS updates; `losses` has an array [STEPS, 2] a block, of the
    student and of its score."""

    block: Callable[[], None]
    losses: list[np.ndarray]


def declared(b: Any) -> Fit:
    """`pg.fit` of the declaration."""
    teacher = pg.Fitted(LONG, weights(LONG), shapes={"x": (2,)})
    b1, b2 = BETA
    learn = EMDistillation(
        teacher, pg.Adam(RATE, b1=b1, b2=b2), pg.Adam(SCORE_RATE, b1=b1, b2=b2), num_steps=K,
        gamma_eps=GE, gamma_z=GZ, times=TIMES,
    )  # fmt: skip
    losses: list[np.ndarray] = []

    class Kept(Held):
        def on_chunk(self, progress: Any, metrics: Any) -> None:
            losses.append(np.stack([metrics["loss"], metrics["loss_score"]], 1))
            super().on_chunk(progress, metrics)

    extras = {"student_score/denoiser": weights(LONG, 1)["denoiser"]}
    start = pg.Fitted(OneStep(teacher), teacher.params, shapes=teacher.shapes, extras=extras)
    held = Kept(lambda callback: pg.fit(
        start, None, learn, num_steps=NUM_STEPS, batch_size=BATCH, seed=0, backend=b,
        progress_bar=False, callbacks=[callback],
    ))  # fmt: skip
    return Fit(held.advance, losses)


def layers(seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """(weight [in, out], bias) in order."""
    p = weights(LONG, seed)["denoiser"]["mlp"]
    return [(p[n]["weight"], p[n]["bias"]) for n in ("layer0", "layer1", "layer2", "out")]


def torch_loop(device: str) -> Fit:
    """Eager, with fused Adam."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Net(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(*w.shape) for w, _ in layers())
            for layer, (w, bias) in zip(self.layers, layers(seed), strict=True):
                layer.load_state_dict(
                    {"weight": torch.tensor(w.T.copy()), "bias": torch.tensor(bias.copy())}
                )

        def forward(self, x: Any, t: Any) -> Any:
            h = torch.cat([x, waves(torch, t, WAVES)], -1)
            for layer in self.layers[:-1]:
                h = F.silu(layer(h))
            return self.layers[-1](h)

    teacher, phi, theta = (Net(seed).to(device) for seed in (0, 1, 0))
    table = {
        k: torch.tensor(v, dtype=torch.float32, device=device) for k, v in LONG.table().items()
    }
    star = OneStep(LONG).step
    a_star, s_star = (float(table[k][star]) for k in ("signal", "noise"))
    at_star = torch.full((BATCH,), float(star), device=device)
    adam = functools.partial(torch.optim.Adam, betas=BETA, fused=True)
    of_theta, of_phi = adam(theta.parameters(), RATE), adam(phi.parameters(), SCORE_RATE)
    losses: list[np.ndarray] = []

    def normal() -> Any:
        return torch.randn(BATCH, 2, device=device)

    def g(z: Any) -> Any:
        return a_star * z - s_star * theta(z, at_star)

    def update() -> Any:
        u = TIMES[0] + (TIMES[1] - TIMES[0]) * torch.rand(BATCH, device=device)
        t = (u * TOTAL).long()
        a, s, t = table["signal"][t][:, None], table["noise"][t][:, None], t.float()
        z, eps, push = normal(), normal(), torch.zeros(BATCH, 2, device=device)
        with torch.no_grad():
            x = g(z)
        score = F.mse_loss(phi(a * x + s * eps, t), a * eps - s * x)
        of_phi.zero_grad(set_to_none=True)
        score.backward()
        of_phi.step()
        for _ in range(K):
            x = g(z.requires_grad_())
            with torch.no_grad():
                x_t = a * x + s * eps
                drift = (a / s) * ((a * x_t - s * teacher(x_t, t)) - (a * x_t - s * phi(x_t, t)))
            (force,) = torch.autograd.grad(x, z, (a / s) * drift)
            with torch.no_grad():
                eps = eps + GE * (drift - eps) + math.sqrt(2 * GE) * normal()
                push = push + GE * (drift - push)
                z = z + GZ * (force - z) + math.sqrt(2 * GZ) * normal()
        loss = -((s / a) * push * g(z)).sum() / BATCH
        of_theta.zero_grad(set_to_none=True)
        loss.backward()
        of_theta.step()
        return torch.stack([0.5 * ((s / a) ** 2 * push**2).sum() / BATCH, score.detach()])

    def block() -> None:
        losses.append(torch.stack([update() for _ in range(STEPS)]).cpu().numpy())

    return Fit(block, losses)


def jax_loop() -> Fit:
    """One jitted scan of a block of updates."""
    import jax
    import jax.numpy as jnp
    import optax

    table = {k: jnp.asarray(v, jnp.float32) for k, v in LONG.table().items()}
    star = OneStep(LONG).step
    a_star, s_star = table["signal"][star], table["noise"][star]
    of_theta, of_phi = (optax.adam(r, *BETA) for r in (RATE, SCORE_RATE))
    teacher = [(jnp.asarray(w), jnp.asarray(bias)) for w, bias in layers()]
    losses: list[np.ndarray] = []

    def net(p: Any, x: Any, t: Any) -> Any:
        h = jnp.concatenate([x, waves(jnp, t, WAVES)], -1)
        for w, bias in p[:-1]:
            h = jax.nn.silu(h @ w + bias)
        return h @ p[-1][0] + p[-1][1]

    def g(theta: Any, z: Any) -> Any:
        return a_star * z - s_star * net(theta, z, jnp.full((BATCH,), float(star)))

    def update(carry: Any, _: Any) -> tuple[Any, Any]:
        theta, phi, theta_state, phi_state, key = carry
        key, k_t, k_z, k_eps, k_chain = jax.random.split(key, 5)
        u = TIMES[0] + (TIMES[1] - TIMES[0]) * jax.random.uniform(k_t, (BATCH,))
        t = (u * TOTAL).astype(int)
        a, s, t = table["signal"][t][:, None], table["noise"][t][:, None], t.astype(float)
        z, eps = jax.random.normal(k_z, (BATCH, 2)), jax.random.normal(k_eps, (BATCH, 2))
        x = g(theta, z)

        def of_score(p: Any) -> Any:
            return jnp.mean((net(p, a * x + s * eps, t) - (a * eps - s * x)) ** 2)

        score, slope = jax.value_and_grad(of_score)(phi)
        change, phi_state = of_phi.update(slope, phi_state)
        phi = optax.apply_updates(phi, change)

        def step(at: Any, k: Any) -> tuple[Any, None]:
            z, eps, push = at
            n, m = jax.random.normal(k, (2, BATCH, 2))
            x, pull = jax.vjp(lambda z: g(theta, z), z)
            x_t = a * x + s * eps
            drift = (a / s) * (
                (a * x_t - s * net(teacher, x_t, t)) - (a * x_t - s * net(phi, x_t, t))
            )
            (force,) = pull((a / s) * drift)
            eps = eps + GE * (drift - eps) + math.sqrt(2 * GE) * n
            z = z + GZ * (force - z) + math.sqrt(2 * GZ) * m
            return (z, eps, push + GE * (drift - push)), None

        (z, _, push), _ = jax.lax.scan(step, (z, eps, 0.0 * eps), jax.random.split(k_chain, K))
        slope = jax.grad(lambda p: -((s / a) * push * g(p, z)).sum() / BATCH)(theta)
        change, theta_state = of_theta.update(slope, theta_state)
        theta = optax.apply_updates(theta, change)
        found = jnp.stack([0.5 * ((s / a) ** 2 * push**2).sum() / BATCH, score])
        return (theta, phi, theta_state, phi_state, key), found

    whole = jax.jit(lambda carry: jax.lax.scan(update, carry, length=STEPS), donate_argnums=0)
    theta, phi = (jax.tree.map(jnp.array, layers(seed)) for seed in (0, 1))
    carry = (theta, phi, of_theta.init(theta), of_phi.init(phi), jax.random.key(0))

    def block() -> None:
        nonlocal carry
        carry, found = whole(carry)
        losses.append(np.asarray(found))

    return Fit(block, losses)


def same_losses(ours: Fit, peer: Fit) -> Agreement:
    """Logs of the losses of the first block, pair by pair, so that what learning does cancels."""
    a, c = (np.log(side.losses[0]) for side in (ours, peer))
    off = a - c
    error = np.abs(off.mean(0)) / (off.std(0, ddof=1) / len(off) ** 0.5)
    return Agreement("log losses of both nets, s.e.", float(error.max()), 6.0)


def distillation(b: Any, name: str, who: str, peer: Fit) -> Contest:
    fits = {"probgen": declared(b), who: peer}
    sides = {n: Side(fit.block, STEPS) for n, fit in fits.items()}
    same = functools.partial(same_losses, *fits.values())
    return Contest(name, "updates", sides, [Target("probgen", who, 1 / 1.05, same)])


# ---- rows ----------------------------------------------------------------------------------------


def contests(setting: Setting, only: str = "") -> Iterator[Contest]:
    """Both, on torch and on JAX."""
    there = backends.available()
    for kind in (n for n in ("torch", "JAX") if there[n.lower()]):
        options = {"compile": "graph" if setting.tiny else "inductor"} if kind == "torch" else {}
        b = backends.load(kind.lower(), setting.device, **options)
        if only in (name := f"DDGAN, {kind}"):
            yield draws(setting, b, name)
        if only in (name := f"EM distillation, {kind}"):
            if kind == "torch":
                import torch

                torch.set_num_threads(setting.threads)
                torch.manual_seed(0)
                yield distillation(b, name, "eager by hand", torch_loop(setting.device))
            else:
                yield distillation(b, name, "jit + scan by hand", jax_loop())
