"""The U-Net of `nets.UNet` as users of torch and of JAX write it, with our parameters.

Two levels, one residual block each, attention in the middle: on torch modules with maps channel
first, on JAX functions of a tree of arrays with maps channel last.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

GROUPS, HEADS = 8, 4


def waves(xp: Any, t: Any, dim: int) -> Any:
    """[n, dim] of times [n], by numpy's functions or by torch's."""
    half = dim // 2
    angle = t[:, None] * xp.exp(xp.arange(half) * (-math.log(10_000.0) / (half - 1)))
    join = xp.cat if hasattr(xp, "cat") else xp.concatenate
    return join([xp.sin(angle), xp.cos(angle)], -1)


# ---- torch ---------------------------------------------------------------------------------------


def torch_unet(params: dict[str, Any], channels: tuple[int, int], device: str) -> Any:
    """A module (x [n, c, h, w], t [n]) -> [n, c, h, w] that holds a copy of our parameters."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    def filled(module: Any, p: dict) -> Any:
        weight = np.asarray(p.get("weight", p.get("scale")))
        weight = weight.transpose(3, 2, 0, 1) if weight.ndim == 4 else weight.T
        bias = np.asarray(p.get("bias", p.get("offset")))
        state = {"weight": weight, "bias": bias}
        module.load_state_dict({k: torch.tensor(v.copy()) for k, v in state.items()})
        return module

    def conv(p: dict, stride: int = 1) -> Any:
        side, _, cin, cout = p["weight"].shape
        return filled(nn.Conv2d(cin, cout, side, stride, side // 2), p)

    def dense(p: dict) -> Any:
        return filled(nn.Linear(*p["weight"].shape), p)

    def norm(p: dict) -> Any:
        return filled(nn.GroupNorm(GROUPS, len(p["scale"])), p)

    class Block(nn.Module):
        def __init__(self, p: dict):
            super().__init__()
            self.norm0, self.conv0 = norm(p["norm0"]), conv(p["conv0"])
            self.norm1, self.conv1 = norm(p["norm1"]), conv(p["conv1"])
            self.time = dense(p["time"])
            self.skip = conv(p["skip"]) if "skip" in p else nn.Identity()

        def forward(self, x: Any, emb: Any) -> Any:
            h = self.conv0(F.silu(self.norm0(x))) + self.time(emb)[:, :, None, None]
            return self.conv1(F.silu(self.norm1(h))) + self.skip(x)

    class Attention(nn.Module):
        def __init__(self, p: dict):
            super().__init__()
            self.norm, own = norm(p["norm0"]), p["self"]
            three = [own[k] for k in ("query", "key", "value")]
            joined = {k: np.concatenate([v[k] for v in three], -1) for k in ("weight", "bias")}
            self.qkv, self.out = dense(joined), dense(own["out"])

        def forward(self, x: Any) -> Any:
            n, c, h, w = x.shape
            tokens = self.norm(x).flatten(2).mT
            q, k, v = self.qkv(tokens).reshape(n, h * w, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, h * w, c)
            return x + self.out(y).mT.reshape(n, c, h, w)

    class UNet(nn.Module):
        def __init__(self, p: dict):
            super().__init__()
            self.layer0, self.layer1 = dense(p["time"]["layer0"]), dense(p["time"]["layer1"])
            self.first, self.down = conv(p["in"]), conv(p["down0_down"], 2)
            names = ("down0_block0", "down1_block0", "middle_block0", "middle_block1",
                     "up1_block0", "up1_block1", "up0_block0", "up0_block1")  # fmt: skip
            self.blocks = nn.ModuleList([Block(p[n]) for n in names])
            self.middle, self.up = Attention(p["middle_attention"]), conv(p["up1_up"])
            self.norm, self.last = norm(p["norm"]), conv(p["out"])

        def forward(self, x: Any, t: Any) -> Any:
            emb = F.silu(self.layer1(F.silu(self.layer0(waves(torch, t, channels[0])))))
            down0, down1, middle0, middle1, *up = self.blocks
            saved = [self.first(x)]
            saved.append(down0(saved[-1], emb))
            saved.append(self.down(saved[-1]))
            saved.append(down1(saved[-1], emb))
            x = middle1(self.middle(middle0(saved[-1], emb)), emb)
            for block in up[:2]:
                x = block(torch.cat([x, saved.pop()], 1), emb)
            x = self.up(F.interpolate(x, scale_factor=2.0))
            for block in up[2:]:
                x = block(torch.cat([x, saved.pop()], 1), emb)
            return self.last(F.silu(self.norm(x)))

    return UNet(params).to(device)


# ---- JAX -----------------------------------------------------------------------------------------


def jax_unet(p: dict[str, Any], x: Any, t: Any, width: int) -> Any:
    """(our parameters, x [n, h, w, c], t [n]) -> [n, h, w, c]."""
    import jax
    import jax.numpy as jnp

    silu = jax.nn.silu

    def conv(p: dict, x: Any, stride: int = 1) -> Any:
        pad = p["weight"].shape[0] // 2
        y = jax.lax.conv_general_dilated(
            x, p["weight"], (stride, stride), [(pad, pad)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        return y + p["bias"]

    def dense(p: dict, x: Any) -> Any:
        return x @ p["weight"] + p["bias"]

    def norm(p: dict, x: Any) -> Any:
        n, h, w, c = x.shape
        groups = x.reshape(n, h * w, GROUPS, c // GROUPS)
        mean = groups.mean((1, 3), keepdims=True)
        variance = groups.var((1, 3), keepdims=True)
        normal = (groups - mean) * jax.lax.rsqrt(variance + 1e-5)
        return normal.reshape(x.shape) * p["scale"] + p["offset"]

    def block(p: dict, x: Any) -> Any:
        h = conv(p["conv0"], silu(norm(p["norm0"], x))) + dense(p["time"], emb)[:, None, None, :]
        h = conv(p["conv1"], silu(norm(p["norm1"], h)))
        return h + (conv(p["skip"], x) if "skip" in p else x)

    def attend(p: dict, x: Any) -> Any:
        n, h, w, c = x.shape
        tokens, own = norm(p["norm0"], x).reshape(n, h * w, c), p["self"]
        q, k, v = (
            dense(own[name], tokens).reshape(n, h * w, HEADS, -1)
            for name in ("query", "key", "value")
        )
        y = jax.nn.dot_product_attention(q, k, v).reshape(n, h * w, c)
        return x + dense(own["out"], y).reshape(x.shape)

    emb = silu(dense(p["time"]["layer0"], waves(jnp, t, width)))
    emb = silu(dense(p["time"]["layer1"], emb))
    saved = [conv(p["in"], x)]
    saved.append(block(p["down0_block0"], saved[-1]))
    saved.append(conv(p["down0_down"], saved[-1], 2))
    saved.append(block(p["down1_block0"], saved[-1]))
    x = block(p["middle_block0"], saved[-1])
    x = block(p["middle_block1"], attend(p["middle_attention"], x))
    for i in range(2):
        x = block(p[f"up1_block{i}"], jnp.concatenate([x, saved.pop()], -1))
    x = conv(p["up1_up"], x.repeat(2, 1).repeat(2, 2))
    for i in range(2):
        x = block(p[f"up0_block{i}"], jnp.concatenate([x, saved.pop()], -1))
    return conv(p["out"], silu(norm(p["norm"], x)))
