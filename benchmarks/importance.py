"""Importance-weighted log-likelihoods, 1,000 particles an image, per datum with error and k-hat.

Peers: the published likelihood-regret code's way, which encodes 200 copies of the image for every
200 particles, one image at a time; and a loop by hand on the same framework that encodes a batch
once and decodes blocks of particles. Ours does the k-hat of every image besides.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fitting import LATENT
from harness import Agreement, Contest, Setting, Side, Target
from regret import fitted, scored
from vae_torch import networks

from probgen import backends
from probgen.engine.measure import EvaluationContext
from probgen.inference import IWAE

PARTICLES, NUM_IMAGES, PEER_IMAGES = 1000, 100, 8


class Ours:
    """`pg.evaluate`'s measure, a chunk of images a block."""

    def __init__(self, fit: Any, x: np.ndarray, backend: str, setting: Setting):
        how = {"compile": "graph"} if setting.tiny and backend == "torch" else {}
        b = backends.load(backend, setting.device, **how)
        context = EvaluationContext(
            fit, b, b.key(0), {"x": x}, num_data=len(x), chunk_size=len(x),
            num_chunks=1000 if not setting.tiny else 8,
        )  # fmt: skip
        self.function = context.function(IWAE(_particles(setting)))
        self.x, self.estimate, self.error = x, np.zeros(0), np.zeros(0)

    def block(self) -> None:
        out = self.function({"x": self.x}, np.arange(len(self.x)))
        self.estimate, self.error = out["estimate"], out["standard_error"]


class Torch:
    """By hand on torch: `copies` particles at a time for one image, or for all at once."""

    def __init__(self, fit: Any, x: np.ndarray, setting: Setting, copies: bool):
        self.encoder, self.decoder = networks("mlp", setting.device, fit.params)
        self.x = torch.tensor(x, device=setting.device).reshape(-1, 784)
        self.particles, self.copies = _particles(setting), copies
        self.count = (2 if setting.tiny else PEER_IMAGES) if copies else len(x)
        self.estimate = np.zeros(0)

    def log_w(self, x: Any, loc: Any, log_scale: Any, shape: tuple[int, ...]) -> Any:
        eps = torch.randn(*shape, LATENT, device=x.device)
        z = loc + eps * log_scale.exp()
        logits = self.decoder(z)
        log_p = -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none")
        return log_p.sum(-1) + (0.5 * eps * eps + log_scale - 0.5 * z * z).sum(-1)

    @torch.no_grad()
    def block(self) -> None:
        size = min(200 if self.copies else 100, self.particles)
        rounds = self.particles // size
        if self.copies:
            found = []
            for x in self.x[: self.count]:
                repeated = x.expand(size, 784)
                parts = [
                    self.log_w(repeated, *self.encoder(repeated), (size,)) for _ in range(rounds)
                ]
                found.append(torch.logsumexp(torch.cat(parts), 0))
            total = torch.stack(found)
        else:
            loc, log_scale = self.encoder(self.x)
            shape = (size, len(self.x))
            parts = [self.log_w(self.x, loc, log_scale, shape) for _ in range(rounds)]
            total = torch.logsumexp(torch.cat(parts), 0)
        self.estimate = (total - np.log(size * rounds)).double().cpu().numpy()


class Jax:
    """By hand on JAX: one jitted scan over blocks of particles for all images."""

    def __init__(self, fit: Any, x: np.ndarray, setting: Setting):
        import jax
        import jax.numpy as jnp

        e, d = (jax.tree.map(jnp.asarray, fit.params[n]) for n in ("encoder", "decoder"))
        flat, particles = jnp.asarray(x.reshape(len(x), 784)), _particles(setting)
        size = min(100, particles)

        def dense(p: Any, h: Any) -> Any:
            return h @ p["weight"] + p["bias"]

        @jax.jit
        def run(key: Any, x: Any) -> Any:
            out = dense(e["out"], jax.nn.relu(dense(e["layer0"], x)))
            loc, log_scale = out[:, :LATENT], out[:, LATENT:]

            def part(carry: Any, key: Any) -> Any:
                eps = jax.random.normal(key, (size, len(x), LATENT))
                z = loc + eps * jnp.exp(log_scale)
                logits = dense(d["out"], jax.nn.relu(dense(d["layer0"], z)))
                # NumPyro's formula, as ours: of softplus XLA makes a slower loop.
                entropy = jnp.maximum(logits, 0) + jnp.log1p(jnp.exp(-jnp.abs(logits)))
                log_p = (x * logits - entropy).sum(-1)
                return carry, log_p + (0.5 * eps * eps + log_scale - 0.5 * z * z).sum(-1)

            keys = jax.random.split(key, particles // size)
            log_w = jax.lax.scan(part, 0, keys)[1].reshape(-1, len(x))
            return jax.nn.logsumexp(log_w, 0) - jnp.log(len(log_w))

        self.run, self.x, self.key, self.estimate = run, flat, jax.random.key(1), np.zeros(0)

    def block(self) -> None:
        self.estimate = np.asarray(self.run(self.key, self.x), np.float64)


def _particles(setting: Setting) -> int:
    return 100 if setting.tiny else PARTICLES


def agree(ours: Ours, peer: Any) -> Agreement:
    """Mean over images of the training kind: difference in standard errors of both sides'
    particles; on the others a few particles carry the weight, and no error is to be trusted."""
    count = min(len(peer.estimate), len(ours.estimate) // 2)
    off = ours.estimate[:count] - peer.estimate[:count]
    error = np.sqrt(2.0 * (ours.error[:count] ** 2).sum()) / count
    return Agreement("mean, s.e.", float(abs(off.mean()) / error), 5.0)


def contests(setting: Setting, only: str = "") -> Iterator[Contest]:
    name = "importance weights, mlp"
    if only not in name:
        return
    torch.set_num_threads(setting.threads)
    torch.manual_seed(0)
    fit, x = fitted("mlp", setting.tiny), scored(8 if setting.tiny else NUM_IMAGES)
    ours = {f"probgen {n}": Ours(fit, x, n.lower(), setting) for n in ("torch", "JAX")}
    peers: dict[str, Any] = {
        "copies re-encoded, torch": Torch(fit, x, setting, copies=True),
        "by hand, torch": Torch(fit, x, setting, copies=False),
        "by hand, JAX": Jax(fit, x, setting),
    }
    blocks: dict[str, tuple[Callable, int]] = {n: (s.block, len(x)) for n, s in ours.items()}
    blocks |= {n: (s.block, getattr(s, "count", len(x))) for n, s in peers.items()}
    asked = [
        ("probgen torch", "copies re-encoded, torch", 1.5),
        ("probgen JAX", "copies re-encoded, torch", None),
        ("probgen torch", "by hand, torch", 0.95),
        ("probgen JAX", "by hand, JAX", 0.95),
    ]
    targets = [Target(a, p, goal, partial(agree, ours[a], peers[p])) for a, p, goal in asked]
    yield Contest(name, "images", {n: Side(*b) for n, b in blocks.items()}, targets)
