"""Pyro's NUTS and HMC over a compiled potential.

The potential and its gradient are one graph over flat vectors (`compile`); Pyro, which asks
autograd for gradients, gets the stored one. Chains run one after another, each from its own seed,
and the caller's random state is as it was afterwards. Pyro's parameter store is not used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer.mcmc import HMC, NUTS

from probgen.backends import keys
from probgen.backends.chains import Chains, LogDensity, Start, find_start
from probgen.backends.layout import Layout
from probgen.backends.torch import random

LEAPFROGS = 7  # of a usual NUTS transition, to judge whether compilation pays
_SHOWN_EVERY = 10


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


class _Vectors:
    """Sites as flat vectors, one a block of the mass matrix: "0", "1"... and the rest.

    Pyro works through a dict of vectors, so the fewer the cheaper a leapfrog.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], dense_mass: Any):
        self.layout = Layout(shapes, dense_mass)
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

    def learned(self, kernel: Any) -> dict[str, np.ndarray]:
        """What a kernel moves by, as `WarmStart` has it."""
        metric = kernel.inverse_mass_matrix
        parts = [metric[(k,)].detach().cpu().numpy() for k in self.blocks]
        return {"step_size": np.asarray(float(kernel.step_size)), **self.layout.metric(parts)}

    def teach(self, kernel: Any, learned: Mapping[str, np.ndarray], z: Mapping[str, Any]) -> None:
        """Gives that to a kernel which is set up at z; warm-up then starts from it."""
        parts = self.layout.metric_parts(learned)
        like = next(iter(z.values()))
        kernel.mass_matrix_adapter.inverse_mass_matrix = {
            (k,): torch.as_tensor(v, dtype=like.dtype, device=like.device)
            for k, v in zip(self.blocks, parts, strict=True)
        }
        adapter = kernel._adapter
        adapter.step_size = float(learned["step_size"])
        if adapter.adapt_step_size and kernel._warmup_steps:
            adapter.reset_step_size_adaptation(z)


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

    warm = pieces.warm
    first = (
        point(chain_keys[0], 0).free if warm is None else {n: v[0] for n, v in warm.free.items()}
    )
    layout = _Vectors({n: tuple(v.shape) for n, v in first.items()}, method.dense_mass)

    def told(chain: int) -> Any:
        with torch.no_grad():
            own = {n: b.asarray(v[chain]) for n, v in warm.free.items()}
            return posterior.point(params, rows, own)

    def potential(z: dict, params: Any, rows: Any) -> Any:
        return -posterior.point(params, rows, layout.unpack(z)).log_density

    calls = method.num_chains * (method.num_warmup + method.num_samples) * LEAPFROGS
    gradient = b.compile(b.value_and_grad(potential), num_calls=calls)

    def attempt(i: int) -> Start:
        tried = []
        for chain, k in enumerate(chain_keys):
            p = point(keys.fold_in(k, i), chain) if warm is None else told(chain)
            value, grads = gradient(layout.pack(p.free), params, rows)
            ok = torch.isfinite(value) & all(bool(torch.isfinite(g).all()) for g in grads.values())
            ok = ok & (sum(p.outside.values()) == 0)
            tried.append(Start(p.free, ok, p.site_log_prob, p.outside))
        return b.tree_map(lambda *x: np.stack([b.to_numpy(v) for v in x]), *tried)

    starts = find_start(posterior, attempt, warm is not None)
    learned = [{n: v[i] for n, v in pieces.state.items()} for i in range(len(pieces.parts))]

    def so_far() -> dict[str, np.ndarray]:
        return {n: np.stack([one[n] for one in learned]) for n in learned[0]}

    def moved(count: int) -> None:
        shown(count)
        pieces.pause(f"{len(pieces.parts)} of {len(chain_keys)} chains")

    for i, k in enumerate(chain_keys):
        if i < len(pieces.parts):
            shown(method.num_warmup + method.num_draws * method.thinning)
            continue
        z = layout.pack({n: b.asarray(v[i]) for n, v in starts.items()})
        with random.seeded(keys.mix(k.seed, 0xC4A1), b.device):  # type: ignore[arg-type]
            own = None if warm is None else {n: v[i] for n, v in warm.learned.items()}
            found = _chain(method, layout, lambda z: gradient(z, params, rows), z, moved, own)
        learned.append(found[2])
        pieces.add({"free": found[0], "stats": found[1]}, so_far)
    chains = pieces.parts
    draws = {k: np.stack([c["free"][k] for c in chains]) for k in layout.blocks}
    stats = {k: np.stack([c["stats"][k] for c in chains]) for k in sorted(chains[0]["stats"])}
    return Chains(layout.unpack(draws), stats, method.num_warmup, so_far())


def _chain(
    method: Any, layout: _Vectors, gradient: Callable, z: dict[str, torch.Tensor], shown: Callable,
    learned: Mapping[str, np.ndarray] | None,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:  # fmt: skip
    """One chain: (draws by block, statistics by name, what it moved by at its end)."""
    names, calls = tuple(z), 0

    def potential(z: Mapping[str, torch.Tensor]) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return _Stored.apply(gradient, names, *(z[n] for n in names))

    kernel = _kernel(method, layout, potential)
    kernel.initial_params = z
    with pyro.validation_enabled(False):
        # A warm start brings the step size that setup would search for at a mass matrix of one.
        kernel.heuristic = kernel.heuristic and learned is None
        kernel.setup(method.num_warmup)
        if learned is not None:
            kernel.heuristic = method.find_heuristic_step_size is not False
            layout.teach(kernel, learned, z)
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
    told = {k: np.array([s[k] for s in stats]) for k in stats[0]}
    return draws, told, layout.learned(kernel)


def _advance(kernel: Any, z: Any, count: int, shown: Callable) -> None:
    for i in range(count):
        kernel.sample(z)
        if (i + 1) % _SHOWN_EVERY == 0 or i + 1 == count:
            shown(i % _SHOWN_EVERY + 1)


def _kernel(method: Any, layout: _Vectors, potential: Callable) -> Any:
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
