"""Likelihood regret of 64 images, 100 Adam steps each, against one image at a time in plain torch.

The peer is the published procedure, written from its description: deep copy of the encoder, a new
default Adam with L2 of 5e-5, one z a step, then importance samples before and after. It is given
our noise, so the scores must be the same numbers; that is held in float64, for every image. It
encodes an image once for its samples, where the published code does so 200 times. A block of the
peer is 8 of the 64 images.
"""

import contextlib
import copy
import dataclasses
import zlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F
from fitting import LATENT, images, vae
from harness import Agreement, Contest, Setting, Side, Target
from scipy.stats import spearmanr
from vae_torch import networks

import probgen as pg
from probgen import backends
from probgen.inference import ELBO, SVI, LikelihoodRegret
from probgen.inference.regret.likelihood_regret import BEFORE
from probgen.trees import tree_map

STEPS, DRAWS, NUM_IMAGES, PEER_IMAGES = 100, 100, 64, 8
Scores = dict[str, np.ndarray]


def fitted(kind: str, tiny: bool) -> Any:
    """The benchmark's VAE, trained for a moment on the first backend that is there."""
    algorithm = SVI(ELBO(), pg.Adam(1e-3))
    steps = 20 if tiny else 400 if kind == "mlp" else 150
    return pg.fit(vae(kind), images(), algorithm, num_steps=steps, seed=0, backend="torch")


def scored(count: int) -> np.ndarray:
    """Half images of the training kind, half noise of several densities."""
    rng = np.random.default_rng(1)
    noise = rng.random((count // 2, 28, 28, 1)) < rng.uniform(0.05, 0.5, (count // 2, 1, 1, 1))
    return np.concatenate([images()[: count - count // 2], noise.astype(np.float32)])


class Ours:
    """`pg.evaluate`'s measure on one backend, all images a block."""

    def __init__(self, fit: Any, x: np.ndarray, backend: str, setting: Setting, **options: Any):
        how = {"compile": "graph"} if setting.tiny and backend == "torch" else {}
        self.b = backends.load(backend, setting.device, **how)
        self.measure = LikelihoodRegret(num_steps=_steps(setting), num_draws=DRAWS, **options)
        self.bound, self.params = fit.bind(self.b, {"x": x[:1]}, num_data=len(x))
        # A thousand images to come: what a user of the measure compiles for.
        self.run = self.measure.device_function(self.bound, 1000 if not setting.tiny else len(x))
        self.batch = {"x": self.b.asarray(x)}
        name = zlib.crc32(self.measure.noise_name.encode())
        self.keys = self.b.row_keys(self.b.fold_in(self.b.key(0), name), np.arange(len(x)))
        self.scores = np.zeros(0)

    def block(self) -> None:
        out = self.run(self.params, self.batch, self.keys)
        values = {k: self.b.to_numpy(v) for k, v in out.items()}
        self.scores = self.measure.finish(values)["estimate"]

    def noise(self, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Our draws: [steps, n, d] of the steps, [draws, n, d] of the scoring, for the peer."""
        b, site = self.b, zlib.crc32(b"z")
        count = len(self.batch["x"])

        def eps(key: Any, *shape: int) -> np.ndarray:
            return b.to_numpy(b.normal(b.fold_in(key, site), (count, *shape, LATENT)))

        steps = [eps(b.fold_in(self.keys, t)) for t in range(num_steps)]
        whole = b.split(b.fold_in(self.keys, BEFORE), 2)[0]
        return np.stack(steps), eps(b.split(whole, 1)[0], DRAWS).swapaxes(0, 1)


class Serial:
    """One image at a time."""

    def __init__(self, kind: str, fit: Any, x: np.ndarray, noise: Any, setting: Setting):
        self.encoder, self.decoder = networks(kind, setting.device, fit.params)
        flat = torch.tensor(x, device=setting.device)
        self.x = flat.reshape(-1, 784) if kind == "mlp" else flat.reshape(-1, 1, 28, 28)
        self.encoder, self.decoder = self.encoder.to(flat.dtype), self.decoder.to(flat.dtype)
        self.decoder.requires_grad_(False)
        steps, draws = noise
        self.steps = torch.tensor(np.array(steps), device=setting.device)
        self.draws = torch.tensor(np.array(draws), device=setting.device)
        self.place, self.count = 0, 2 if setting.tiny else PEER_IMAGES

    def bound(self, encoder: Any, x: Any, eps: Any, exact_kl: bool) -> Any:
        loc, log_scale = encoder(x)
        z = loc + eps * log_scale.exp()
        target = x.expand(len(z), *x.shape[1:])
        logits = self.decoder(z)
        cross = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        if exact_kl:
            kl = -0.5 * (1 + 2 * log_scale - loc * loc - (2 * log_scale).exp()).sum(-1)
        else:
            kl = (-0.5 * eps * eps - log_scale + 0.5 * z * z).sum(-1)
        return -cross.flatten(1).sum(-1) - kl

    def score(self, i: int) -> float:
        x, copied = self.x[i : i + 1], copy.deepcopy(self.encoder).eval()
        with torch.no_grad():
            before = self.bound(copied, x, self.draws[:, i], False).mean()
        optimizer = torch.optim.Adam(copied.parameters(), lr=2e-4, weight_decay=5e-5)
        for eps in self.steps[:, i]:
            loss = -self.bound(copied, x, eps[None], True).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            return float(self.bound(copied, x, self.draws[:, i], False).mean() - before)

    def block(self) -> None:
        for _ in range(self.count):
            self.score(self.place % len(self.x))
            self.place += 1


def _steps(setting: Setting) -> int:
    return 5 if setting.tiny else STEPS


def ranks(ours: Ours, kind: str, fit: Any, x: np.ndarray, setting: Setting) -> Agreement:
    """1 - Spearman's correlation of our scores with the peer's, by our own noise."""
    peer = Serial(kind, fit, x, ours.noise(_steps(setting)), setting)
    theirs = np.array([peer.score(i) for i in range(len(x))])
    return Agreement("1 - Spearman", 1.0 - float(spearmanr(ours.scores, theirs)[0]), 1e-3)


@contextlib.contextmanager
def _float64() -> Iterator[None]:
    """Inside, float64 is the default of both frameworks."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with jax.enable_x64(True):
            yield
    finally:
        torch.set_default_dtype(before)


def values(ours: Ours, kind: str, fit: Any, x: np.ndarray, setting: Setting) -> Agreement:
    """The largest relative difference (to the score or to 1 nat) of any image, both in float64.

    In float32 a rounding that decides a ReLU or the sign of one of Adam's first steps moves a
    single image by up to 1e-2, and the peer itself by as much against its own float64; so there
    only the ranks of the scores are held to the peer's.
    """
    if ranks(ours, kind, fit, x, setting).error > 1e-3:
        return Agreement("relative, float64; ranks", np.inf, 1e-4)
    params = tree_map(lambda a: np.asarray(a, np.float64), fit.params)
    exact, x = dataclasses.replace(fit, params=params), x.astype(np.float64)
    with _float64():
        same = Ours(exact, x, ours.b.name, setting)
        same.block()
        peer = Serial(kind, exact, x, same.noise(_steps(setting)), setting)
        theirs = np.array([peer.score(i) for i in range(len(x))])
    error = np.abs(same.scores - theirs) / np.maximum(np.abs(theirs), 1.0)
    return Agreement("relative, float64; ranks", float(error.max()), 1e-4)


def contest(kind: str, setting: Setting) -> Contest:
    fit, x = fitted(kind, setting.tiny), scored(8 if setting.tiny else NUM_IMAGES)
    sides = {
        "probgen torch": Ours(fit, x, "torch", setting),
        "probgen JAX": Ours(fit, x, "jax", setting),
    }
    goals = {"mlp": (2.2, 3.5), "conv": (2.2, 1.5)}[kind]
    targets = list(zip(sides, goals, (values, values), strict=True))
    if kind == "mlp":
        sides["torch, rank 1"] = Ours(fit, x, "torch", setting, rank_1=True)
        sides["JAX, rank 1"] = Ours(fit, x, "jax", setting, rank_1=True)
        targets += [("torch, rank 1", 10.0, ranks), ("JAX, rank 1", 10.0, ranks)]
    for name in ("probgen torch", "probgen JAX"):
        sides[name.replace("probgen ", "posterior only, ")] = Ours(
            fit, x, sides[name].b.name, setting, search="posterior"
        )
    blank = (np.zeros((_steps(setting), len(x), LATENT), np.float32),) * 2
    serial = Serial(kind, fit, x, blank, setting)
    peer = "one at a time, torch"
    timed = {name: Side(side.block, len(x)) for name, side in sides.items()}
    timed[peer] = Side(serial.block, serial.count)
    return Contest(
        f"likelihood regret, {kind}",
        "images",
        timed,
        [
            Target(name, peer, goal, partial(check, sides[name], kind, fit, x, setting))
            for name, goal, check in targets
        ],
    )


def contests(setting: Setting, only: str = "") -> Iterator[Contest]:
    torch.set_num_threads(setting.threads)
    for kind in ("mlp", "conv"):
        if only in f"likelihood regret, {kind}":
            yield contest(kind, setting)
