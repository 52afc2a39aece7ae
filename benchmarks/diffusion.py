"""A denoising training step and a DDIM run with a small U-Net, against loops by hand and diffusers.

    training    16 x 16 images, batches of 8, Adam at 1e-3: the noise predicted at a random step
    DDIM        four times 32 images in 50 steps, from the same noise on all sides

What is timed of ours is `pg.fit` itself, a chunk of steps at a time, and the whole of
`pg.generate`. By hand are an eager torch loop with fused Adam and maps channel first, the same
through `torch.compile`, and jitted scans on JAX; all start from our parameters and are held to one
prediction before training, one loss after it, and the same images. diffusers' sides are its
`UNet2DModel` in its own training loop and its `DDIMScheduler` loop; ours is that network brought in
by `pg.from_diffusers`. They need `pip install diffusers`, and are left out without it.
"""

import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import few_steps
import numpy as np
from fitting import NUM_STEPS, STEPS, Held
from fitting import images as blobs
from harness import Agreement, Contest, Setting, Side, Target
from unet_by_hand import jax_unet, torch_unet

import probgen as pg
from probgen import backends, nets
from probgen.engine.bind import bind
from probgen.inference import DDIM, Denoising
from probgen.models import Diffusion, NoiseSchedule
from probgen.trees import tree_map

CHANNELS, SIDE, BATCH, TOTAL = (32, 64), 16, 8, 1000
DRAWS, CHUNKS, LEAPS = 32, 4, 50
BY_HAND = 1 / 1.05

MODEL = Diffusion(nets.UNet(CHANNELS), (SIDE, SIDE, 1), NoiseSchedule(TOTAL))
BAR = MODEL.schedule.alphas_bar().astype(np.float32)


class Trained(NamedTuple):
    """A side that trains: a block of steps, and (x_t, t) -> its prediction, numpy channel last."""

    block: Callable[[], None]
    predict: Callable[[np.ndarray, np.ndarray], np.ndarray]


@functools.cache
def images() -> np.ndarray:
    """[n, 16, 16, 1] in [-1, 1]."""
    return 2.0 * blobs()[:, 6:22, 6:22] - 1.0


@functools.cache
def held_out() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x_t, t, eps) of 256 data."""
    rng = np.random.default_rng(1)
    t, eps = rng.integers(0, TOTAL, 256), rng.normal(size=(256, SIDE, SIDE, 1)).astype(np.float32)
    bar = BAR[t][:, None, None, None]
    return np.sqrt(bar) * images()[:256] + np.sqrt(1 - bar) * eps, t.astype(np.float32), eps


@functools.cache
def weights() -> Any:
    """Parameters that nothing is zero of, ours and numpy."""
    name = next(n for n, there in backends.available().items() if there)
    b, rng = backends.load(name, "cpu"), np.random.default_rng(0)
    params = bind(MODEL, b, data={"x": images()[:1]}, seed=0)[1]
    return tree_map(lambda v: b.to_numpy(v) + 0.02 * rng.normal(size=v.shape).astype(np.float32),
                    params)  # fmt: skip


def fitted(params: Any = None) -> pg.Fitted:
    """Ours with those parameters."""
    return pg.Fitted(MODEL, params or weights(), shapes={"x": (SIDE, SIDE, 1)})


# ---- training ------------------------------------------------------------------------------------


def declared(start: pg.Fitted, b: Any) -> Trained:
    """`pg.fit` that goes on from there."""
    held = Held(lambda callback: pg.fit(
        start, images(), Denoising(pg.Adam(1e-3)), num_steps=NUM_STEPS, batch_size=BATCH, seed=0,
        backend=b, progress_bar=False, callbacks=[callback],
    ))  # fmt: skip
    model: Any = start.model
    ask = b.compile(lambda p, x, t: model.predict(p, x, t, {}), num_calls=9)

    def predict(x: np.ndarray, t: np.ndarray) -> np.ndarray:
        params = tree_map(b.asarray, held.params() or start.params)
        return b.to_numpy(ask(params, b.asarray(x), b.asarray(t)))

    return Trained(held.advance, predict)


def torch_loop(net: Any, ask: Callable, device: str, is_compiled: bool = False) -> Trained:
    """A loop over shuffled rows with fused Adam; `ask` calls the net, channel first."""
    import torch
    import torch.nn.functional as F

    ask, plain = torch.compile(ask) if is_compiled else ask, ask
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)
    data = torch.tensor(images(), device=device).permute(0, 3, 1, 2).contiguous()
    bar = torch.tensor(BAR, device=device)
    signal, noise = bar.sqrt()[:, None, None, None], (1 - bar).sqrt()[:, None, None, None]
    order, at = torch.randperm(len(data)), 0

    def block() -> None:
        nonlocal order, at
        for _ in range(STEPS):
            if at + BATCH > len(data):
                order, at = torch.randperm(len(data)), 0
            x, at = data[order[at : at + BATCH]], at + BATCH
            t = torch.randint(0, TOTAL, (BATCH,), device=device)
            eps = torch.randn_like(x)
            loss = F.mse_loss(ask(signal[t] * x + noise[t] * eps, t.float()), eps)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    def predict(x: np.ndarray, t: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            given = torch.tensor(x, device=device).permute(0, 3, 1, 2)
            y = plain(given, torch.tensor(t, device=device))
        return y.permute(0, 2, 3, 1).cpu().numpy()

    return Trained(block, predict)


def jax_loop() -> Trained:
    """One jitted scan over the rows of a block, weights and Adam's state given back."""
    import jax
    import jax.numpy as jnp
    import optax

    data, bar = jnp.asarray(images()), jnp.asarray(BAR)
    optimizer = optax.adam(1e-3)

    def loss(p: Any, x: Any, key: Any) -> Any:
        k_time, k_noise = jax.random.split(key)
        t = jax.random.randint(k_time, (BATCH,), 0, TOTAL)
        eps = jax.random.normal(k_noise, x.shape)
        now = bar[t][:, None, None, None]
        x_t = jnp.sqrt(now) * x + jnp.sqrt(1 - now) * eps
        return jnp.mean((jax_unet(p, x_t, t.astype(float), CHANNELS[0]) - eps) ** 2)

    def step(carry: Any, rows: Any) -> tuple[Any, Any]:
        p, state, key = carry
        key, now = jax.random.split(key)
        value, slope = jax.value_and_grad(loss)(p, data[rows], now)
        change, state = optimizer.update(slope, state)
        return (optax.apply_updates(p, change), state, key), value

    whole = jax.jit(lambda carry, rows: jax.lax.scan(step, carry, rows), donate_argnums=0)
    params = jax.tree.map(jnp.array, weights()["denoiser"])
    carry, rng = (params, optimizer.init(params), jax.random.key(0)), np.random.default_rng(0)
    ask = jax.jit(functools.partial(jax_unet, width=CHANNELS[0]))

    def block() -> None:
        nonlocal carry
        carry, values = whole(carry, rng.integers(0, len(data), (STEPS, BATCH)))
        values.block_until_ready()

    return Trained(block, lambda x, t: np.asarray(ask(carry[0], x, t)))


def same_loss(ours: Trained, peer: Trained) -> Agreement:
    """Mean squared errors of the noise after training."""
    x, t, eps = held_out()
    a, b = (float(((side.predict(x, t) - eps) ** 2).mean()) for side in (ours, peer))
    return Agreement("loss after training, relative", abs(a - b) / b, 0.1)


def training(name: str, sides: dict[str, Trained], asked: dict[tuple[str, str], Any]) -> Contest:
    """A contest of fits; all predict the same before the first step."""
    x, t, _ = held_out()
    first = {side: trained.predict(x, t) for side, trained in sides.items()}
    for ours, peer in asked:
        off = np.abs(first[ours] - first[peer]).max() / np.abs(first[peer]).max()
        if not off < 1e-3:
            raise SystemExit(f"{name}: {ours} and {peer} do not start alike, by {off:.1e}")
    return Contest(
        name, "images", {s: Side(trained.block, STEPS * BATCH) for s, trained in sides.items()},
        [
            Target(*pair, ratio, functools.partial(same_loss, *(sides[s] for s in pair)))
            for pair, ratio in asked.items()
        ],
    )  # fmt: skip


# ---- DDIM ----------------------------------------------------------------------------------------


@functools.cache
def noise() -> np.ndarray:
    """x_T of all chunks."""
    return np.random.default_rng(2).normal(size=(CHUNKS * DRAWS, SIDE, SIDE, 1)).astype(np.float32)


def levels() -> np.ndarray:
    """The steps visited, "trailing"."""
    return np.round(np.arange(LEAPS, 0, -1) * (TOTAL / LEAPS)).astype(int) - 1


class Draws(NamedTuple):
    """A side that draws: all images once, a chunk at a time, and what it drew last."""

    block: Callable[[], None]
    last: list[np.ndarray]


def by_chunk(run: Callable[[np.ndarray], np.ndarray]) -> Draws:
    """A side of a function of a chunk's noise."""
    return drawing(lambda: np.concatenate([run(x) for x in np.split(noise(), CHUNKS)]))


def drawing(run: Callable[[], np.ndarray]) -> Draws:
    last = [np.zeros(0)]

    def block() -> None:
        last[0] = run()

    return Draws(block, last)


def generated(start: pg.Fitted, b: Any) -> Draws:
    """`pg.generate` with DDIM from given noise, which binds and traces once a call."""
    return drawing(lambda: pg.generate(
        start, len(noise()), method=DDIM(LEAPS), start=noise(), seed=0, chunk_size=DRAWS, backend=b,
    )["x"])  # fmt: skip


def torch_ddim(net: Any, device: str) -> Draws:
    """The loop by hand, without gradients."""
    import torch

    bar = [float(BAR[t]) for t in levels()]

    @torch.no_grad()
    def run(start: np.ndarray) -> np.ndarray:
        x = torch.tensor(start, device=device).permute(0, 3, 1, 2)
        for t, now, then in zip(levels(), bar, [*bar[1:], 1.0], strict=True):
            eps = net(x, torch.full((DRAWS,), float(t), device=device))
            clean = (x - (1 - now) ** 0.5 * eps) / now**0.5
            x = then**0.5 * clean + (1 - then) ** 0.5 * eps
        return x.permute(0, 2, 3, 1).cpu().numpy()

    return by_chunk(run)


def scheduler_ddim(net: Any, scheduler: Any, device: str) -> Draws:
    """diffusers' loop, as its pipeline runs it."""
    import torch

    @torch.no_grad()
    def run(start: np.ndarray) -> np.ndarray:
        x = torch.tensor(start, device=device).permute(0, 3, 1, 2)
        scheduler.set_timesteps(LEAPS)
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t).sample, t, x, eta=0.0).prev_sample
        return x.permute(0, 2, 3, 1).cpu().numpy()

    return by_chunk(run)


def jax_ddim() -> Draws:
    """One jitted scan."""
    import jax
    import jax.numpy as jnp

    now = BAR[levels()]
    rows = (jnp.asarray(levels(), jnp.float32), now, np.append(now[1:], np.float32(1.0)))

    @jax.jit
    def whole(p: Any, x: Any) -> Any:
        def step(x: Any, row: Any) -> tuple[Any, None]:
            t, now, then = row
            eps = jax_unet(p, x, jnp.full((DRAWS,), t), CHANNELS[0])
            clean = (x - jnp.sqrt(1 - now) * eps) / jnp.sqrt(now)
            return jnp.sqrt(then) * clean + jnp.sqrt(1 - then) * eps, None

        return jax.lax.scan(step, x, rows)[0]

    p = jax.tree.map(jnp.asarray, weights()["denoiser"])
    return by_chunk(lambda x: np.asarray(whole(p, x)))


def same_images(ours: Draws, peer: Draws) -> Agreement:
    a, b = ours.last[0], peer.last[0]
    return Agreement("images, relative", float(np.abs(a - b).max() / np.abs(b).max()), 1e-3)


def drawn(name: str, sides: dict[str, Draws], asked: dict[tuple[str, str], Any]) -> Contest:
    return Contest(
        name, "images", {s: Side(side.block, CHUNKS * DRAWS) for s, side in sides.items()},
        [
            Target(*pair, ratio, functools.partial(same_images, *(sides[s] for s in pair)))
            for pair, ratio in asked.items()
        ],
    )  # fmt: skip


# ---- rows ----------------------------------------------------------------------------------------


def on_torch(setting: Setting, only: str) -> Iterator[Contest]:
    import torch

    torch.set_num_threads(setting.threads)
    torch.manual_seed(0)
    b = backends.load("torch", setting.device, compile="graph" if setting.tiny else "inductor")
    make = functools.partial(torch_unet, weights()["denoiser"], CHANNELS, setting.device)
    if only in (name := "denoising step, torch"):
        net = make()
        sides = {
            "probgen": declared(fitted(), b),
            "eager by hand": torch_loop(net, net, setting.device),
        }
        yield training(name, sides, {("probgen", "eager by hand"): BY_HAND})
    if not setting.tiny and only in (name := "denoising step, compiled torch"):
        net = make()
        peer = torch_loop(net, net, setting.device, True)
        sides = {"probgen": declared(fitted(), b), "compiled by hand": peer}
        yield training(name, sides, {("probgen", "compiled by hand"): None})
    if only in (name := "DDIM, torch"):
        yield drawn(
            name, {"probgen": generated(fitted(), b), "by hand": torch_ddim(make(),
            setting.device)}, {("probgen", "by hand"): BY_HAND},
        )  # fmt: skip


def against_diffusers(setting: Setting, only: str) -> Iterator[Contest]:
    import torch
    from diffusers import DDIMScheduler, UNet2DModel

    torch.manual_seed(0)
    scheduler = DDIMScheduler(TOTAL, timestep_spacing="trailing", clip_sample=False)
    b = backends.load("torch", setting.device, compile="graph" if setting.tiny else "inductor")

    def unet() -> Any:
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=SIDE, in_channels=1, out_channels=1, layers_per_block=1,
            block_out_channels=CHANNELS, norm_num_groups=8, down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
        ).to(setting.device)  # fmt: skip

    ours, theirs = pg.from_diffusers(unet(), scheduler), unet()
    if only in (name := "denoising step, diffusers"):
        loop = torch_loop(theirs, lambda x, t: theirs(x, t).sample, setting.device)
        yield training(
            name, {"probgen": declared(ours, b), "diffusers": loop},
            {("probgen", "diffusers"): 1.0},
        )  # fmt: skip
    if only in (name := "DDIM, diffusers"):
        yield drawn(
            name, {"probgen": generated(ours, b),
            "DDIMScheduler": scheduler_ddim(unet().eval(), scheduler, setting.device)},
            {("probgen", "DDIMScheduler"): 1.0},
        )  # fmt: skip


def on_jax(setting: Setting, only: str) -> Iterator[Contest]:
    b = backends.load("jax", setting.device)
    if only in (name := "denoising step, JAX"):
        yield training(
            name, {"probgen": declared(fitted(), b), "jit + scan by hand": jax_loop()},
            {("probgen", "jit + scan by hand"): BY_HAND},
        )  # fmt: skip
    if only in (name := "DDIM, JAX"):
        yield drawn(
            name, {"probgen": generated(fitted(), b), "jit + scan by hand": jax_ddim()},
            {("probgen", "jit + scan by hand"): BY_HAND},
        )  # fmt: skip


def contests(setting: Setting, only: str = "") -> Iterator[Contest]:
    """What draws in few steps; then torch, diffusers where it is installed, and JAX."""
    yield from few_steps.contests(setting, only)
    there = backends.available()
    if there["torch"]:
        yield from on_torch(setting, only)
        if importlib.util.find_spec("diffusers") is not None:
            yield from against_diffusers(setting, only)
        else:
            print("diffusion: diffusers is left out; pip install diffusers", file=sys.stderr)
    if there["jax"]:
        yield from on_jax(setting, only)
