"""What a run of chains leaves for the next one: the group `sampling_state` of its draws.

    position     [chain, coordinate]     where each chain ended, on the real line
    step_size    [chain]                 of NUTS and HMC; [chain, coordinate] of Langevin, where
                                         it is learned
    inv_metric   [chain, coordinate]     the diagonal of the inverse mass matrix M^-1; of its dense
                                         blocks "inv_metric_block_0"..., [chain, n, n]

A coordinate is called by its site and place, "theta[2]". All is numpy's and says nothing of the
backend, so that a warm-up on one serves the other. Names are ArviZ's (`inv_metric`) and PyMC's
(`sampling_state`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from probgen.backends.chains import Chains, WarmStart
from probgen.backends.layout import Layout
from probgen.engine.markov import OF_KERNEL, RunsPosterior
from probgen.engine.target import Sampler
from probgen.errors import AlgorithmError, DataError

GROUP = "sampling_state"
DIRECTIONS, GAINS = "inv_metric_directions", "inv_metric_gains"


@runtime_checkable
class GoesOn(Protocol):
    """A sampler whose chains can go on from what others learned (`Pieces.warm`): NUTS, HMC,
    Langevin.

    `check_warm_start` refuses what does not fit the method; `shapes` are those of the latents on
    the real line. `mass_blocks(shapes)` are the names of sites in each dense block.
    """

    def check_warm_start(self, warm: WarmStart, shapes: Mapping[str, tuple]) -> None: ...
    def mass_blocks(self, shapes: Mapping[str, tuple]) -> tuple[tuple[str, ...], ...]: ...


def goes_on(sampler: Sampler) -> bool:
    """Whether chains of the sampler end somewhere from which others may go on."""
    return not isinstance(sampler, RunsPosterior) or isinstance(sampler, GoesOn)


def to_dataset(sampler: Sampler, chains: Chains, before: int) -> Any:
    """The group of a run, an xarray Dataset; its chains had made `before` transitions before it."""
    from xarray import Dataset

    shapes = {n: v.shape[2:] for n, v in chains.free.items()}
    blocks = sampler.mass_blocks(shapes) if isinstance(sampler, GoesOn) else ()
    layout = Layout(shapes, blocks)
    position = layout.pack({n: v[:, -1] for n, v in chains.free.items()})
    labels = _labels(layout)
    variables: dict[str, Any] = {"position": (("chain", "coordinate"), position)}
    coords: dict[str, Any] = {"chain": np.arange(len(position)), "coordinate": labels}
    at = 0
    for i, size in enumerate(layout.block_sizes if chains.learned else ()):
        for dim in (f"block_{i}", f"block_{i}_bis"):
            coords[dim] = labels[at : at + size]
        at += size
    for name, value in chains.learned.items():
        variables[name] = (_dims(name, value), value)
    draws = next(iter(chains.free.values())).shape[1]
    attributes = {
        "sites": json.dumps(shapes),
        "blocks": json.dumps(blocks),
        "transitions": before + chains.num_warmup + draws * sampler.thinning,
        "method": repr(sampler),
        "inference_library": "probgen",
    }
    return Dataset(variables, coords, attributes)


def _dims(name: str, value: np.ndarray) -> tuple[str, ...]:
    if name.startswith("inv_metric_block_"):
        block = name.removeprefix("inv_metric_")
        return ("chain", block, f"{block}_bis")
    whole = {DIRECTIONS: ("chain", "coordinate", "direction"), GAINS: ("chain", "direction")}
    return whole.get(name, ("chain", "coordinate")[: value.ndim])


def _labels(layout: Layout) -> np.ndarray:
    """ "theta[0, 2]" of each coordinate, in their order."""
    found = []
    for n in layout.names:
        shape = layout.shapes[n]
        places = [f"[{', '.join(map(str, i))}]" for i in np.ndindex(*shape)] if shape else [""]
        found += [n + place for place in places]
    return np.array(found)


def from_draws(draws: Any) -> WarmStart:
    """What the draws of `infer` leave.

    Args:
        draws: the DataTree that `infer` returned, or one that was read from a file.

    Raises:
        DataError: it is none, has no such group, or numbers in it are not what they were.
    """
    children = getattr(draws, "children", None)
    if children is None or GROUP not in children:
        what = type(draws).__name__ if children is None else f"groups {sorted(children)}"
        raise DataError(
            f"infer: got {what} as warm_start, expected the draws of an earlier pg.infer, a "
            f"DataTree with the group {GROUP!r}, which those of chains have; other starting "
            "values are given as init_strategy={'site': value}."
        )
    group = draws[GROUP].to_dataset()
    try:
        return _read(group)
    except (KeyError, ValueError, TypeError, np.linalg.LinAlgError) as error:
        raise DataError(
            f"infer: the group {GROUP!r} of warm_start is not as pg.infer wrote it "
            f"({type(error).__name__}: {error}); it is damaged or was changed."
        ) from error


def _read(group: Any) -> WarmStart:
    shapes = {n: tuple(s) for n, s in json.loads(group.attrs["sites"]).items()}
    blocks = tuple(tuple(names) for names in json.loads(group.attrs["blocks"]))
    layout = Layout(shapes, blocks)
    arrays = {str(n): np.asarray(v.values) for n, v in group.data_vars.items()}
    position = arrays.pop("position")
    num = len(position)
    forms = {"step_size": (num,), "inv_metric": (num, layout.dim)}
    forms |= {f"inv_metric_block_{i}": (num, n, n) for i, n in enumerate(layout.block_sizes)}
    if GAINS in arrays:
        rank = arrays[GAINS].shape[-1]
        forms |= {DIRECTIONS: (num, layout.dim, rank), GAINS: (num, rank)}
    if set(arrays) == OF_KERNEL:
        forms = {"step_size": (num, layout.dim)}
    forms = forms if arrays else {}
    found = {n: v.shape for n, v in arrays.items()}
    if position.shape != (num, layout.dim) or num == 0 or found != forms:
        raise ValueError(f"got arrays of {found} and {position.shape}, expected {forms}")
    if not all(np.isfinite(v).all() for v in (position, *arrays.values())):
        raise ValueError("got NaN or infinity")
    if not all((arrays[n] > 0).all() for n in ("step_size", "inv_metric") if n in arrays):
        raise ValueError("got a step size or a variance of 0 or less")
    for i in range(len(blocks) if arrays else 0):
        np.linalg.cholesky(arrays[f"inv_metric_block_{i}"].astype(np.float64))
    free = layout.unpack(position, np.reshape)
    return WarmStart(free, arrays, blocks, int(group.attrs["transitions"]))


def check(warm: WarmStart, sampler: Sampler, shapes: Mapping[str, tuple]) -> None:
    """Refuses what chains of the sampler cannot go on from.

    Args:
        shapes: of each latent of this call on the real line.

    Raises:
        AlgorithmError: other latents or shapes, fewer chains, another kind of mass matrix, or a
            sampler that does not go on.
    """
    who = type(sampler).__name__
    if not goes_on(sampler):
        raise AlgorithmError(
            f"infer: got warm_start with {who}, which has no chains that go on, expected a sampler "
            "that moves chains, such as NUTS(); leave warm_start out."
        )
    theirs = {n: v.shape[1:] for n, v in warm.free.items()}
    if set(theirs) != set(shapes):
        raise AlgorithmError(
            f"infer: got a warm_start of the latents {sorted(theirs)}, expected those of this "
            f"model and data, {sorted(shapes)}."
        )
    for name in sorted(shapes):
        if theirs[name] != tuple(shapes[name]):
            sizes = math.prod(theirs[name]), math.prod(shapes[name])
            raise AlgorithmError(
                f"infer: warm_start has {sizes[0]} numbers {theirs[name]} of {name!r} on the real "
                f"line, expected {sizes[1]}, {tuple(shapes[name])}, as this model and data have; "
                "what is learned of single data serves no other number of them."
            )
    if warm.num_chains < sampler.num_chains:
        raise AlgorithmError(
            f"infer: got a warm_start of {warm.num_chains} chains for num_chains="
            f"{sampler.num_chains}, expected at least as many; of more the first ones go on."
        )
    if isinstance(sampler, GoesOn):
        sampler.check_warm_start(warm, shapes)
