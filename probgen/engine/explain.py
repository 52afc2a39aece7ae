"""Which argument left its domain, or which datum has no density: the end of an error about NaN.

Only called where a computation has failed: the program (and the guide, whose draws it is given) run
once more on a few data, and every argument is held against `probgen.language.domains`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from probgen.engine.bound import Bound
from probgen.engine.messages import in_loops
from probgen.errors import NonFiniteError, ProbgenError
from probgen.language.dist import Deferred
from probgen.language.domains import CURE, constant, domain, problems

FEW = 12  # sites


def explain(
    bound: Bound,
    params: Mapping,
    batch: Mapping[str, Any],
    key: Any,
    batch_size: int | None = None,
    with_guide: bool = True,
) -> str:
    """ "; site 'x': Gamma(concentration=...): got -0.5, expected ...", or "; the datum at [3] of
    'x', 0.0, has the density 0 under Gamma ...", or "" where all is well.

    Args:
        params: parameters at which the computation failed.
        batch: the data, or some of them, on the backend; latents that no guide draws are the
            prior's.
        key: for the draws.
        batch_size: of the data plate, where the first array of the batch does not say it.
        with_guide: runs the guide first; else latents are the prior's.
    """
    found: list[str] = []
    values: dict[str, Any] = {}
    size = batch_size or bound.batch_size(batch)
    rows, batch = batch, bound.values_of(batch)
    programs = [(bound.model.guide, "guide"), (bound.model.program, "model")]
    for program, what in programs:
        if program is None or (what == "guide" and not with_guide):
            continue
        given = {n: batch[n] for n in bound.observed if n in batch} if what == "model" else {}
        inputs = bound.inputs(program, batch, f"{what} of {bound.model.name!r}")
        try:
            sites, read, drawn = bound.backend.arguments(
                program, params, values={**values, **given}, inputs=inputs, key=key, batch_size=size
            )
        except (ProbgenError, RuntimeError, ValueError, TypeError):
            # The error that is being explained stands; a sampler may well refuse a NaN.
            continue
        for name, declared in sites.items():
            found += [f"site {name!r} of the {what}: {p}" for p in problems(declared, read)]
        values = {n: v for n, v in drawn.items() if n in bound.latents}
    if found:
        return "".join(f"; {each}" for each in found[:3]) + f"; {CURE.rstrip('.')}"
    found = [*_without_density(bound, params, rows, key, size)]
    return "".join(f"; {each}" for each in found or _with_memory(bound, params, rows, values, size))


def _without_density(
    bound: Bound, params: Mapping, batch: Mapping[str, Any], key: Any, size: int | None
) -> Iterator[str]:
    """Which observed values have a density of 0, or an infinite one, at a draw of the latents."""
    b = bound.backend
    if not any(n in batch for n in bound.observed):
        return  # drawn values have a density

    def run(params: Any, batch: Any, key: Any) -> Any:
        sites = bound.trace(params, batch, key=key, batch_size=size)
        return {
            n: (sites[n].value, b.log_prob(sites[n].fn, sites[n].value)) for n in bound.observed
        }

    # As one program, where by itself each operation would be compiled; but not a chain of many
    # steps, whose operations are those of one.
    is_short = len(bound.structure.sites) <= FEW
    try:
        found = (b.compile(run, num_calls=1) if is_short else run)(params, batch, key)
        found = b.tree_map(b.to_numpy, found)
    except (ProbgenError, RuntimeError, ValueError, TypeError):
        return
    for name, (value, log_prob) in found.items():
        bad = np.argwhere(np.isinf(log_prob))
        if len(bad):
            where, info = tuple(bad[0].tolist()), bound.structure.sites[name]
            told = np.array2string(np.asarray(value[where]), threshold=8, separator=", ")
            place = f"the datum at {list(where)} of {name!r}" if where else f"the datum of {name!r}"
            what = "an infinite density" if log_prob[where] > 0 else "the density 0"
            more = f", as have {len(bad) - 1} more" if len(bad) > 1 else ""
            yield (
                f"{place}, {told}, has {what} under {info.family} ({info.mass}) at a draw of the "
                f"prior{more}: move it inside the support, or choose a distribution with mass there"
            )


def _with_memory(
    bound: Bound, params: Mapping, batch: Mapping[str, Any], values: Mapping[str, Any],
    size: int | None,
) -> Iterator[str]:  # fmt: skip
    """Whether a loop whose discrete latents are summed out knows of more than the moment before."""
    if not in_loops(bound.structure, bound.enumerated):
        return
    latents = {n: v for n, v in values.items() if n in bound.latents}

    def run(params: Any, batch: Any, latents: Any) -> Any:
        return bound.summed(params, batch, latents, batch_size=size, is_whole=True).is_markov

    try:
        is_markov = bound.backend.compile(run, num_calls=1)(params, batch, latents)
    except (ProbgenError, RuntimeError, ValueError, TypeError):
        return
    if not bound.backend.to_numpy(is_markov).all():
        yield MEMORY.format(names=list(in_loops(bound.structure, bound.enumerated)))


MEMORY = (
    "the discrete latents {names} are summed out along their loop, and a density in it, or after "
    "it, hangs on their values of an earlier past than the moment before: let the step's carry "
    "hold what is drawn at the moment alone (of two moments: one latent for each pair of values), "
    "or make the loop short"
)


def check_ancestral(
    bound: Bound, params: Mapping, batch: Mapping[str, Any], key: Any, count: int, draw: Callable
) -> Any:
    """`draw()`, unless an argument of a discrete site lay outside its domain in that very run.

    A float that is drawn with such an argument is NaN, and found by that; a count or a class is
    some number. Only models that compute such an argument run a second time.

    Raises:
        NonFiniteError: names the site, the argument, its value and its domain.
    """

    def refuse(cause: Exception | None) -> None:
        why = explain(bound, params, batch, key, count, with_guide=False)
        if why:
            raise NonFiniteError(f"generate: draws cannot be made{why}.") from cause

    try:
        values = draw()
    except RuntimeError as error:  # torch's samplers look at their arguments
        refuse(error)
        raise
    sites = bound.structure.sites.values()
    if any(s.is_discrete and _is_at_risk(s.declaration) for s in sites):
        refuse(None)
    return values


def _is_at_risk(declared: Any) -> bool:
    """Whether an argument is computed and has a domain that a float may leave unnoticed."""
    if not isinstance(declared, Deferred):
        return False
    return any(
        _is_at_risk(value)
        if isinstance(value, Deferred)
        else hasattr(value, "shape")
        and constant(value) is None
        and not domain(declared.name, name).nan_by_itself
        for name, value in declared.arguments
    )
