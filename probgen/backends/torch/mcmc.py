"""Pyro's NUTS and HMC over a compiled potential, and what they need of a program.

The potential and its gradient are one graph over flat vectors (`compile`); Pyro, which asks
autograd for gradients, gets the stored one. Chains run one after another, each from its own seed,
and the caller's random state is as it was afterwards. Pyro's parameter store is not used.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer.mcmc import HMC, NUTS

from probgen.backends import keys
from probgen.backends.chains import Chains, LogDensity, Start, find_start
from probgen.backends.free import FreeHands
from probgen.backends.protocol import Site
from probgen.backends.torch import random
from probgen.backends.torch.lowering import Lowering, broadcast_plates, run_program

LEAPFROGS = 7  # of a usual NUTS transition, to judge whether compilation pays
_SHOWN_EVERY = 10


class FreeLowering(FreeHands, Lowering):
    """Runs a program whose latents are given on the real line, and keeps the log Jacobians."""

    broadcast_plates = staticmethod(broadcast_plates)

    def __init__(
        self, device: str, values: Mapping[str, Any], key: Any, names: tuple[str, ...],
        free: Mapping[str, Any], given: Mapping[str, Any], strategy: str,
    ):  # fmt: skip
        super().__init__(device, values, key, None)
        self.names, self.free, self.given, self.strategy = names, dict(free), given, strategy
        self.log_det: dict[str, Any] = {}

    def _start(self, name: str, fn: Any, transform: Any, lead: tuple = ()) -> torch.Tensor:
        shape = torch.Size((*lead, *self.batch_of(fn), *fn.event_shape))
        if name in self.given:
            return transform.inv(self.in_time(self.given[name], fn, lead).expand(shape))
        if self.strategy == "init_to_feasible":
            return torch.zeros(transform.inverse_shape(shape), device=self.device)
        if self.strategy == "init_to_uniform":
            key = keys.fold_in(self.key, zlib.crc32(name.encode()))
            free_shape = tuple(transform.inverse_shape(shape))
            return 4.0 * random.noise("uniform", key, free_shape, self.device) - 2.0
        if self.strategy == "init_to_mean":
            try:
                return transform.inv(fn.mean.expand(shape))
            except NotImplementedError:
                pass  # no closed form: the median stands in, as in Pyro
        first, draws = self.key, []
        for i in range(1 if self.strategy == "init_to_sample" else 15):
            self.key = keys.fold_in(first, i)
            draws.append(transform.inv(self._draw(name, fn).expand(shape)))
        self.key = first
        return torch.stack(draws).median(0).values


def unconstrained(
    device: str, program: Callable, params: Mapping, *, names: tuple[str, ...],
    free: Mapping[str, Any], given: Mapping[str, Any], strategy: str, values: Mapping[str, Any],
    inputs: Mapping[str, Any], key: Any, batch_size: int | None,
) -> tuple[dict[str, Site], dict[str, Any], dict[str, Any]]:  # fmt: skip
    """(sites, latents on the real line, log |det| of each one's bijection, as a log_prob)."""
    lower = FreeLowering(device, values, key, names, free, given, strategy)
    _, sites = run_program(program, dict(params), lower, inputs, batch_size, None)
    return sites, lower.free, lower.log_det


class _Stored(torch.autograd.Function):
    """A value whose gradient is already known: what Pyro's integrator asks autograd for."""

    @staticmethod
    def forward(ctx: Any, function: Callable, names: tuple[str, ...], *z: Any) -> Any:
        value, grads = function(dict(zip(names, z, strict=True)))
        ctx.grads = [grads[n] for n in names]
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Any) -> Any:
        return (None, None, *(upstream * g for g in ctx.grads))


class _Recorded:
    """What Pyro's kernels do not keep of a transition, kept; a mixin over `HMC` and `NUTS`."""

    energy = math.nan
    fixed_steps: int | None = None
    heuristic = True

    def _sample_r(self, name: str) -> Any:
        r, unscaled = super()._sample_r(name)  # type: ignore[misc]
        self.energy = float(self._potential_energy_last + self._kinetic_energy(unscaled))  # type: ignore[attr-defined]
        return r, unscaled

    def _find_reasonable_step_size(self, z: Any) -> float:
        return super()._find_reasonable_step_size(z) if self.heuristic else self.step_size  # type: ignore[misc, attr-defined]

    @property
    def num_steps(self) -> int:
        return self.fixed_steps or super().num_steps  # type: ignore[misc]

    @property
    def mean_acceptance(self) -> float:
        """Mean acceptance probability of the transitions since warm-up."""
        return self._mean_accept_prob  # type: ignore[attr-defined]

    @property
    def lp(self) -> float:
        return -float(self._potential_energy_last)  # type: ignore[attr-defined]


class _NUTS(_Recorded, NUTS):
    pass


class _HMC(_Recorded, HMC):
    pass


class _Layout:
    """Sites as flat vectors, one a block of the mass matrix: "0", "1"... and the rest.

    Pyro works through a dict of vectors, so the fewer the cheaper a leapfrog.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], dense_mass: Any):
        blocks = [] if isinstance(dense_mass, bool) else [tuple(block) for block in dense_mass]
        self.mass: Any = [(str(i),) for i in range(len(blocks))] if blocks else bool(dense_mass)
        taken = {n for block in blocks for n in block}
        rest = tuple(n for n in sorted(shapes) if n not in taken)
        self.blocks = {str(i): b for i, b in enumerate([*blocks, *([rest] if rest else [])])}
        self.shapes = shapes

    def pack(self, free: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            k: torch.cat([free[n].reshape(-1) for n in names]) for k, names in self.blocks.items()
        }

    def unpack(self, z: Mapping[str, Any]) -> dict[str, Any]:
        """[..., size] vectors as sites; tensors or numpy arrays."""
        out = {}
        for block, names in self.blocks.items():
            start = 0
            for n in names:
                size = math.prod(self.shapes[n])
                part = z[block][..., start : start + size]
                out[n] = part.reshape((*part.shape[:-1], *self.shapes[n]))
                start += size
        return out


def run(
    posterior: LogDensity, method: Any, params: Any, rows: Any, given: Any, key: keys.Key,
    shown: Callable, pieces: Any,
) -> Chains:  # fmt: skip
    """Draws of `method` (see `probgen.inference.sample.mcmc`) from the posterior."""
    b = posterior.bound.backend
    strategy = method.init_strategy if isinstance(method.init_strategy, str) else "init_to_uniform"
    chain_keys = [keys.fold_in(key, i) for i in pieces.numbers(method.num_chains)]

    def point(key: keys.Key, chain: int) -> Any:
        own = {n: v[chain] for n, v in given.items()}
        with torch.no_grad():
            return posterior.point(params, rows, key=key, given=own, strategy=strategy)

    first = point(chain_keys[0], 0)
    layout = _Layout({n: tuple(v.shape) for n, v in first.free.items()}, method.dense_mass)

    def potential(z: dict, params: Any, rows: Any) -> Any:
        return -posterior.point(params, rows, layout.unpack(z)).log_density

    calls = method.num_chains * (method.num_warmup + method.num_samples) * LEAPFROGS
    gradient = b.compile(b.value_and_grad(potential), num_calls=calls)

    def attempt(i: int) -> Start:
        tried = []
        for chain, k in enumerate(chain_keys):
            p = point(keys.fold_in(k, i), chain)
            value, grads = gradient(layout.pack(p.free), params, rows)
            ok = torch.isfinite(value) & all(bool(torch.isfinite(g).all()) for g in grads.values())
            ok = ok & (sum(p.outside.values()) == 0)
            tried.append(Start(p.free, ok, p.site_log_prob, p.outside))
        return b.tree_map(lambda *x: np.stack([b.to_numpy(v) for v in x]), *tried)

    starts = find_start(posterior, attempt)

    def moved(count: int) -> None:
        shown(count)
        pieces.pause(f"{len(pieces.parts)} of {len(chain_keys)} chains")

    for i, k in enumerate(chain_keys):
        if i < len(pieces.parts):
            shown(method.num_warmup + method.num_draws * method.thinning)
            continue
        z = layout.pack({n: b.asarray(v[i]) for n, v in starts.items()})
        with random.seeded(keys.mix(k.seed, 0xC4A1), b.device):  # type: ignore[arg-type]
            found = _chain(method, layout, lambda z: gradient(z, params, rows), z, moved)
        pieces.add({"free": found[0], "stats": found[1]})
    chains = pieces.parts
    draws = {k: np.stack([c["free"][k] for c in chains]) for k in layout.blocks}
    stats = {k: np.stack([c["stats"][k] for c in chains]) for k in sorted(chains[0]["stats"])}
    return Chains(layout.unpack(draws), stats, method.num_warmup)


def _chain(
    method: Any, layout: _Layout, gradient: Callable, z: dict[str, torch.Tensor], shown: Callable
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """One chain: (draws by block, statistics by name)."""
    names, calls = tuple(z), 0

    def potential(z: Mapping[str, torch.Tensor]) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return _Stored.apply(gradient, names, *(z[n] for n in names))

    kernel = _kernel(method, layout, potential)
    kernel.initial_params = z
    with pyro.validation_enabled(False):
        kernel.setup(method.num_warmup)
        _advance(kernel, z, method.num_warmup, shown)
        kept: list[dict[str, np.ndarray]] = []
        stats: list[dict[str, Any]] = []
        diverged, done, mean = 0, 0, 0.0
        for _ in range(method.num_draws):
            for _ in range(method.thinning):
                before = calls
                z = kernel.sample(z)
                done += 1
                # Pyro keeps a_n = a_(n-1) + (rate - a_(n-1)) / n only; its rounding is cut below.
                rate, mean = mean + done * (kernel.mean_acceptance - mean), kernel.mean_acceptance
            divergences = len(kernel.diagnostics()["divergences"])
            kept.append({k: v.detach().cpu().numpy().copy() for k, v in z.items()})
            stats.append({
                "lp": kernel.lp, "energy": kernel.energy, "diverging": divergences > diverged,
                "acceptance_rate": min(max(rate, 0.0), 1.0), "n_steps": calls - before,
                "step_size": float(kernel.step_size),
            })  # fmt: skip
            diverged = divergences
            if len(kept) % _SHOWN_EVERY == 0 or len(kept) == method.num_draws:
                count = (len(kept) - 1) % _SHOWN_EVERY + 1
                shown(count * method.thinning)
    draws = {k: np.stack([d[k] for d in kept]) for k in names}
    return draws, {k: np.array([s[k] for s in stats]) for k in stats[0]}


def _advance(kernel: Any, z: Any, count: int, shown: Callable) -> None:
    for i in range(count):
        kernel.sample(z)
        if (i + 1) % _SHOWN_EVERY == 0 or i + 1 == count:
            shown(i % _SHOWN_EVERY + 1)


def _kernel(method: Any, layout: _Layout, potential: Callable) -> Any:
    options = {
        "potential_fn": potential, "step_size": method.step_size, "full_mass": layout.mass,
        "adapt_step_size": method.adapt_step_size, "adapt_mass_matrix": method.adapt_mass_matrix,
        "target_accept_prob": method.target_accept_prob,
    }  # fmt: skip
    kernel: Any
    if method.algorithm == "NUTS":
        kernel = _NUTS(**options, max_tree_depth=method.max_tree_depth)
    else:
        kernel = _HMC(**options, trajectory_length=method.trajectory_length)
        kernel.fixed_steps = method.num_steps
    kernel.heuristic = method.find_heuristic_step_size is not False
    return kernel
