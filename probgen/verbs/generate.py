"""`generate`: what does a model produce?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from probgen.backends.protocol import Backend
from probgen.bound import Bound
from probgen.errors import AlgorithmError
from probgen.fitted import Fitted
from probgen.seeds import check_seed
from probgen.trees import tree_map


class Sampler(Protocol):
    """A method of drawing from a model, such as `Langevin`: used where ancestral draws cannot be.

    `generate` gives (values by site, the chain or None); `note` says what the draws target.
    """

    def generate(
        self, bound: Bound, params: Any, key: Any, num_samples: int, space: str | None
    ) -> tuple[dict, dict | None]: ...

    def note(self) -> str: ...


class Samples(dict):
    """Draws by site name, numpy [num_samples, *event].

    Attributes:
        note: how they were made, and what they target where that is not the model itself.
        chain: positions along the chain, [steps, chains, ...], when they were asked for.
    """

    note: str = "ancestral"
    chain: dict[str, np.ndarray] | None = None

    def __repr__(self) -> str:
        shapes = ", ".join(f"{k}: {v.shape}" for k, v in self.items())
        return f"Samples({shapes}; {self.note})"


def generate(
    fitted: Fitted,
    num_samples: int,
    *,
    seed: int | None = None,
    method: Sampler | None = None,
    space: str | None = None,
    inputs: Mapping[str, Any] | None = None,
    chunk_size: int = 1000,
    return_chain: bool = False,
    backend: str | Backend = "auto",
    device: str = "auto",
) -> Samples:
    """Draws from a fitted model.

    Args:
        fitted: model and parameters.
        num_samples: how many data.
        seed: an integer.
        method: a sampler such as `Langevin(step_size, num_steps)`; needed for densities that are
            known up to a constant, which have no ancestral draws.
        space: where the sampler lives: "data" or "noise" (its default).
        inputs: arrays with one row per sample, or constants.
        chunk_size: samples drawn at a time, for memory.
        return_chain: also keep the sampler's positions, in `Samples.chain`.
        backend, device: those of the fit by default.

    Returns:
        `Samples`: a dict of every site's values.

    Raises:
        MissingSeed: there is no seed, or no integer.
        AlgorithmError: the density is not normalised and no method was given, or the reverse.
    """
    seed = check_seed(seed, "generate")
    if num_samples < 1 or chunk_size < 1:
        raise AlgorithmError(
            f"generate: got num_samples={num_samples}, chunk_size={chunk_size}, expected 1 or more."
        )
    if not isinstance(fitted, Fitted):
        raise AlgorithmError(
            f"generate: got {type(fitted).__name__}, expected a Fitted; parameters come from "
            "pg.fit or Fitted.from_pretrained."
        )
    b = fitted.resolve(backend, device)
    bound, params = fitted.bind(b)
    if method is None and not bound.is_normalized:
        raise AlgorithmError(
            f"generate: the density of {fitted.model.name!r} is known up to a constant, so it has "
            "no ancestral draws; give a method such as Langevin(step_size=1e-2, num_steps=100)."
        )
    rows = {k: np.asarray(v) for k, v in (inputs or {}).items()}
    key = b.key(seed)
    parts, chains = [], []
    for start in range(0, num_samples, chunk_size):
        count = min(chunk_size, num_samples - start)
        batch = {
            k: b.asarray(v[start : start + count] if v.shape[:1] == (num_samples,) else v)
            for k, v in rows.items()
        }
        values, chain = _draw(bound, params, b.fold_in(key, start), count, batch, method, space)
        parts.append(tree_map(b.to_numpy, values))
        if return_chain and chain is not None:
            chains.append(tree_map(b.to_numpy, chain))
    out = Samples({k: np.concatenate([p[k] for p in parts]) for k in parts[0]})
    out.note = "ancestral" if method is None else method.note()
    if chains:
        out.chain = {k: np.concatenate([c[k] for c in chains], axis=1) for k in chains[0]}
    return out


def _draw(
    bound: Bound, params: Any, key: Any, count: int, batch: Any, method: Any, space: str | None
) -> tuple[dict, Any]:
    b = bound.backend
    if method is not None:
        return method.generate(bound, params, key, count, space)
    if hasattr(bound.model, "generate"):
        return bound.model.generate(bound, params, key, count), None

    def run(params: Any, batch: Any, key: Any) -> dict:
        sites = bound.trace(params, batch, key=key, batch_size=count, condition=False)
        return {n: s.value for n, s in sites.items() if s.kind != "factor" and s.is_local}

    return b.compile(run, num_calls=1)(params, batch, key), None
