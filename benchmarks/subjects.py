"""A step of learning a subject: `pg.fit` of a `Subject` by SVI, against loops by hand.

    8 draws of picture, step and noise from five pictures of 8 x 8 with masks, captions encoded,
    the error of the noise within the mask, its gradient in three rows of the context, Adam

The network is that of `studies.hifi_tuner`, a transformer of three layers over 16 patches, with
weights at random. By hand are an eager torch loop, the network in torch's own functions, and one
jitted scan on JAX; captions are encoded once. All are held to one mean loss before the rows move.

A third contest is the same on the latents of a small Stable Diffusion, brought in by
`pg.from_diffusers`, against diffusers' network in a loop of its own, captions encoded once (the
script that diffusers ships encodes them in each step, since what it learns goes through the
encoder). It needs diffusers, and is left out without it.
"""

import functools
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from fitting import NUM_STEPS, STEPS, Held
from harness import Agreement, Contest, Setting, Side, Target
from unet_by_hand import waves

import probgen as pg
from probgen import backends, nets
from probgen.inference import ELBO, SVI
from probgen.models import Diffusion, NoiseSchedule, Subject
from probgen.trees import tree_map

SIDE, PATCH, WIDTH, HEADS, LENGTH, LAYERS, N, DRAWS, TOTAL = 8, 2, 64, 4, 10, 3, 3, 8, 50
WORDS, RATE, PRIOR = ("a", "disk", "on", "grass"), 5e-3, 0.03
TEXT = nets.TextEncoder(WORDS, length=LENGTH, dim=WIDTH)
DENOISER = nets.PatchTransformer(PATCH, WIDTH, LAYERS)
SHAPE = (SIDE, SIDE, 3)
MODEL = Diffusion(
    DENOISER, SHAPE, NoiseSchedule(TOTAL, "clipped_cosine"), "v_prediction", condition=TEXT
)


@functools.cache
def weights() -> Any:
    """Parameters of which none is zero, numpy."""
    rng = np.random.default_rng(0)
    fresh = {
        "denoiser": DENOISER.init(rng, SHAPE, (), (LENGTH, WIDTH)),
        "condition": TEXT.init(rng, (LENGTH,)),
    }
    return tree_map(
        lambda v: (v + 0.02 * rng.normal(size=np.shape(v))).astype(np.float32), fresh
    )  # fmt: skip


@functools.cache
def pictures() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures, masks and captions of one subject."""
    given = pg.data.sprites(
        5, 0, noun="disk", colors=("red", "blue", "green"), scene="grass", words="noun"
    )
    return given["x"], given["mask"], TEXT.tokens(given["captions"])


class Fit(NamedTuple):
    """One side: `block()` makes STEPS steps; `losses` has those of each block."""

    block: Callable[[], None]
    losses: list[np.ndarray]


def declared(base: pg.Fitted, x: Any, mask: Any, captions: Any, b: Any) -> Fit:
    """`pg.fit` of the declaration."""
    losses: list[np.ndarray] = []

    class Kept(Held):
        def on_chunk(self, progress: Any, metrics: Any) -> None:
            losses.append(-np.asarray(metrics["log_prob/x"]))
            super().on_chunk(progress, metrics)

    held = Kept(lambda callback: pg.fit(
        Subject(base, N, PRIOR, draws=DRAWS), {"x": x}, SVI(ELBO(), pg.Adam(RATE)),
        inputs={"condition": captions, "mask": mask}, num_steps=NUM_STEPS, seed=0, backend=b,
        progress_bar=False, callbacks=[callback],
    ))  # fmt: skip
    return Fit(held.advance, losses)


def of_sprites(b: Any) -> Fit:
    """Over the network of the study."""
    base = pg.Fitted(MODEL, weights(), shapes={"x": SHAPE, "condition": (LENGTH,)},
                     info={"backend": b.name})  # fmt: skip
    return declared(base, *pictures(), b)


def network(xp: Any, p: Any, x: Any, t: Any, context: Any, own: Any) -> Any:
    """The denoiser, by the functions of torch or of jax.numpy; `own` has what they do not share.

    Weights are [in, out], as ours.
    """

    def norm(q: Any, name: str, h: Any, time: Any) -> Any:
        both = (own.silu(time) @ q[f"time_{name}"]["weight"] + q[f"time_{name}"]["bias"])[:, None]
        scale, shift = both[..., :WIDTH], both[..., WIDTH:]
        return (1 + scale) * own.norm(h, q[name]) + shift

    def attend(q: Any, h: Any, source: Any) -> Any:
        def heads(name: str, v: Any) -> Any:
            v = v @ q[name]["weight"] + q[name]["bias"]
            return v.reshape(*v.shape[:2], HEADS, -1)

        y = own.attention(heads("query", h), heads("key", source), heads("value", source))
        return y.reshape(*h.shape[:2], WIDTH) @ q["out"]["weight"] + q["out"]["bias"]

    time = p["time"]
    emb = waves(xp, t, WIDTH) @ time["layer0"]["weight"] + time["layer0"]["bias"]
    emb = own.silu(emb) @ time["layer1"]["weight"] + time["layer1"]["bias"]
    n, k = x.shape[0], SIDE // PATCH
    h = own.swap(x.reshape(n, k, PATCH, k, PATCH, 3)).reshape(n, k * k, PATCH * PATCH * 3)
    h = h @ p["patches"]["weight"] + p["patches"]["bias"] + p["positions"].reshape(k * k, WIDTH)
    for i in range(LAYERS):
        q = p[f"layer{i}"]
        y = norm(q, "norm0", h, emb)
        h = h + attend(q["self"], y, y)
        h = h + attend(q["cross"], norm(q, "norm1", h, emb), context)
        y = norm(q, "norm2", h, emb) @ q["mlp_in"]["weight"] + q["mlp_in"]["bias"]
        h = h + own.gelu(y) @ q["mlp_out"]["weight"] + q["mlp_out"]["bias"]
    y = norm(p, "norm", h, emb) @ p["pixels"]["weight"] + p["pixels"]["bias"]
    return own.swap(y.reshape(n, k, k, PATCH, PATCH, 3)).reshape(n, SIDE, SIDE, 3)


class Own(NamedTuple):
    """What torch and JAX do not share."""

    silu: Callable
    gelu: Callable
    norm: Callable
    attention: Callable  # of [n, tokens, heads, d]
    swap: Callable


def of_torch() -> Own:
    import torch.nn.functional as F

    def attention(q: Any, k: Any, v: Any) -> Any:
        return F.scaled_dot_product_attention(*(a.transpose(1, 2) for a in (q, k, v))).transpose(
            1, 2
        )

    return Own(
        F.silu, F.gelu, lambda h, q: F.layer_norm(h, (WIDTH,), q["scale"], q["offset"]),
        attention, lambda v: v.permute(0, 1, 3, 2, 4, 5),
    )  # fmt: skip


def of_jax() -> Own:
    import jax
    import jax.numpy as jnp

    def norm(h: Any, q: Any) -> Any:
        mean, var = h.mean(-1, keepdims=True), h.var(-1, keepdims=True)
        return (h - mean) * jax.lax.rsqrt(var + 1e-5) * q["scale"] + q["offset"]

    def attention(q: Any, k: Any, v: Any) -> Any:
        maps = jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", q / math.sqrt(q.shape[-1]), k), -1)
        return jnp.einsum("nhqk,nkhd->nqhd", maps, v)

    return Own(
        jax.nn.silu, functools.partial(jax.nn.gelu, approximate=False), norm, attention,
        lambda v: v.transpose(0, 1, 3, 2, 4, 5),
    )  # fmt: skip


@functools.cache
def encoded() -> tuple[np.ndarray, np.ndarray]:
    """(contexts of the captions, the null's last rows), once."""
    b = backends.load(next(n for n, there in backends.available().items() if there), "cpu")
    params = tree_map(b.asarray, weights()["condition"])
    context = b.to_numpy(TEXT.apply(params, b.asarray(pictures()[2])))
    return context, b.to_numpy(TEXT.null(params))[-N:]


def torch_loop(device: str) -> Fit:
    """Eager, with fused Adam."""
    import torch

    own, table = of_torch(), MODEL.table()
    p = tree_map(lambda v: torch.tensor(v, device=device), weights()["denoiser"])
    x, mask, _ = (torch.tensor(v, device=device) for v in pictures())
    context, anchor = (torch.tensor(v, device=device) for v in encoded())
    signal, noise = (
        torch.tensor(table[k], dtype=torch.float32, device=device) for k in ("signal", "noise")
    )
    rows = anchor.clone().requires_grad_()
    optimizer = torch.optim.Adam([rows], RATE, fused=True)
    losses: list[np.ndarray] = []

    def step() -> Any:
        i = torch.randint(0, len(x), (DRAWS,), device=device)
        t = torch.randint(0, TOTAL, (DRAWS,), device=device)
        eps = torch.randn(DRAWS, *SHAPE, device=device)
        a, s = signal[t][:, None, None, None], noise[t][:, None, None, None]
        x_t = a * x[i] + s * eps
        given = torch.cat([context[i][:, :-N], rows.expand(DRAWS, N, WIDTH)], 1)
        v = network(torch, p, x_t, t.float(), given, own)
        error = ((mask[i] * (eps - (s * x_t + a * v))) ** 2).sum() / DRAWS
        optimizer.zero_grad(set_to_none=True)
        (error + PRIOR * ((rows - anchor) ** 2).sum()).backward()
        optimizer.step()
        return error.detach()

    def block() -> None:
        losses.append(torch.stack([step() for _ in range(STEPS)]).cpu().numpy())

    return Fit(block, losses)


def jax_loop() -> Fit:
    """One jitted scan of a block of steps."""
    import jax
    import jax.numpy as jnp
    import optax

    own, table, optimizer = of_jax(), MODEL.table(), optax.adam(RATE)
    p = jax.tree.map(jnp.asarray, weights()["denoiser"])
    x, mask, _ = pictures()
    x, mask = jnp.asarray(x), jnp.asarray(mask)
    context, anchor = (jnp.asarray(v) for v in encoded())
    signal, noise = (jnp.asarray(table[k], jnp.float32) for k in ("signal", "noise"))
    losses: list[np.ndarray] = []

    def loss(rows: Any, key: Any) -> Any:
        k_i, k_t, k_eps = jax.random.split(key, 3)
        i = jax.random.randint(k_i, (DRAWS,), 0, len(x))
        t = jax.random.randint(k_t, (DRAWS,), 0, TOTAL)
        eps = jax.random.normal(k_eps, (DRAWS, *SHAPE))
        a, s = signal[t][:, None, None, None], noise[t][:, None, None, None]
        x_t = a * x[i] + s * eps
        each = jnp.broadcast_to(rows, (DRAWS, N, WIDTH))
        given = jnp.concatenate([context[i][:, :-N], each], 1)
        v = network(jnp, p, x_t, t.astype(float), given, own)
        error = ((mask[i] * (eps - (s * x_t + a * v))) ** 2).sum() / DRAWS
        return error + PRIOR * ((rows - anchor) ** 2).sum(), error

    def step(carry: Any, _: Any) -> tuple[Any, Any]:
        rows, state, key = carry
        key, now = jax.random.split(key)
        (_, error), slope = jax.value_and_grad(loss, has_aux=True)(rows, now)
        change, state = optimizer.update(slope, state)
        return (rows + change, state, key), error

    whole = jax.jit(lambda carry: jax.lax.scan(step, carry, length=STEPS))
    carry = (anchor, optimizer.init(anchor), jax.random.key(0))

    def block() -> None:
        nonlocal carry
        carry, found = whole(carry)
        losses.append(np.asarray(found))

    return Fit(block, losses)


def same_losses(ours: Fit, peer: Fit) -> Agreement:
    """Means of the first block's losses, in standard errors of their difference."""
    a, c = ours.losses[0], peer.losses[0]
    error = math.sqrt((a.var(ddof=1) + c.var(ddof=1)) / len(a))
    return Agreement("mean loss, s.e.", float(abs(a.mean() - c.mean())) / error, 4.0)


# ---- Stable Diffusion ----------------------------------------------------------------------------


def small_unet() -> Any:
    """A U-Net of a text-conditional latent diffusion, weights at random."""
    import torch
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(32, 64),
        layers_per_block=1, cross_attention_dim=32, attention_head_dim=8, norm_num_groups=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


LATENT, TOKENS, SIZE = (8, 8, 4), 16, 32


@functools.cache
def latents() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Five latents, masks, the rows of captions, and the null's."""
    rng = np.random.default_rng(0)
    mask = (rng.random((5, 8, 8, 1)) < 0.4).astype(np.float32)
    x, rows, null = (
        rng.normal(size=s).astype(np.float32)
        for s in ((5, *LATENT), (5, TOKENS, SIZE), (TOKENS, SIZE))
    )
    return x, mask, rows, null


def scheduler() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip


def of_latents(b: Any, device: str) -> Fit:
    """Over the network that `from_diffusers` brings in."""
    x, mask, rows, null = latents()
    unet = small_unet().to(device)
    base = pg.from_diffusers(unet, scheduler(), num_tokens=TOKENS, null=null)
    return declared(base, x, mask, rows, b)


def diffusers_loop(device: str) -> Fit:
    """Textual inversion of the encoder's output rows, as a user of diffusers writes it."""
    import torch

    unet, noise_of = small_unet().to(device).requires_grad_(False), scheduler()
    x, mask, rows, null = (torch.tensor(v, device=device) for v in latents())
    x, mask = x.permute(0, 3, 1, 2).contiguous(), mask.permute(0, 3, 1, 2).contiguous()
    anchor = null[-N:]
    learned = anchor.clone().requires_grad_()
    optimizer = torch.optim.Adam([learned], RATE, fused=True)
    losses: list[np.ndarray] = []

    def step() -> Any:
        i = torch.randint(0, len(x), (DRAWS,), device=device)
        t = torch.randint(0, 1000, (DRAWS,), device=device)
        eps = torch.randn(DRAWS, *x.shape[1:], device=device)
        x_t = noise_of.add_noise(x[i], eps, t)
        given = torch.cat([rows[i][:, :-N], learned.expand(DRAWS, N, SIZE)], 1)
        predicted = unet(x_t, t, encoder_hidden_states=given).sample
        error = ((mask[i] * (eps - predicted)) ** 2).sum() / DRAWS
        optimizer.zero_grad(set_to_none=True)
        (error + PRIOR * ((learned - anchor) ** 2).sum()).backward()
        optimizer.step()
        return error.detach()

    def block() -> None:
        losses.append(torch.stack([step() for _ in range(STEPS)]).cpu().numpy())

    return Fit(block, losses)


def contests(setting: Setting, only: str = "") -> Iterator[Contest]:
    """A step on torch, on JAX, and on a small Stable Diffusion."""
    there = backends.available()
    for kind in (n for n in ("torch", "JAX") if there[n.lower()]):
        if only not in (name := f"subject, {kind}"):
            continue
        options = {"compile": "graph" if setting.tiny else "inductor"} if kind == "torch" else {}
        b = backends.load(kind.lower(), setting.device, **options)
        if kind == "torch":
            import torch

            torch.set_num_threads(setting.threads)
            torch.manual_seed(0)
        who = "eager by hand" if kind == "torch" else "jit + scan by hand"
        peer = torch_loop(setting.device) if kind == "torch" else jax_loop()
        fits = {"probgen": of_sprites(b), who: peer}
        yield contest(name, fits, 1 / 1.05)
    if only not in (name := "subject, diffusers"):
        return
    if not all(map(importlib.util.find_spec, ("diffusers", "torch"))):
        print("subjects: diffusers is left out; pip install diffusers", file=sys.stderr)
        return
    b = backends.load("torch", setting.device)
    yield contest(
        name,
        {
            "probgen": of_latents(b, setting.device),
            "diffusers": diffusers_loop(setting.device),
        },
        1.0,
    )


def contest(name: str, fits: dict[str, Fit], ratio: float) -> Contest:
    """Ours, the first, against the other."""
    sides = {n: Side(fit.block, STEPS) for n, fit in fits.items()}
    same = functools.partial(same_losses, *fits.values())
    return Contest(name, "steps", sides, [Target(*sides, ratio, same)])
