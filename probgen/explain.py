"""Which argument of which distribution left its domain: the end of an error about NaN, in words.

Only called where a computation has failed: the program (and the guide, whose draws it is given) run
once more on a few data, and every argument is held against `probgen.domains`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probgen.bound import Bound
from probgen.domains import CURE, problems
from probgen.errors import ProbgenError


def explain(
    bound: Bound, params: Mapping, batch: Mapping[str, Any], key: Any, batch_size: int | None = None
) -> str:
    """ "; site 'x': Gamma(concentration=...): got -0.5, expected ...", or "" where all is well.

    Args:
        params: parameters at which the computation failed.
        batch: the data, or some of them, on the backend; latents that no guide draws are the
            prior's.
        key: for the draws.
        batch_size: of the data plate, where the first array of the batch does not say it.
    """
    found: list[str] = []
    values: dict[str, Any] = {}
    size = batch_size or bound.batch_size(batch)
    programs = [(bound.model.guide, "guide"), (bound.model.program, "model")]
    for program, what in programs:
        if program is None:
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
    return "".join(f"; {each}" for each in found[:3]) + (f"; {CURE.rstrip('.')}" if found else "")
