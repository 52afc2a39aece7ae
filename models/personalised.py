"""A diffusion with a learned subject in it: from a fit of a `Subject` back to a `Diffusion`."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from probgen.engine.fitted import Fitted
from probgen.errors import AlgorithmError
from probgen.models.subject import NET, Subject, moved_offset


def personalised(learned: Fitted, seed: int | None = None) -> Fitted:
    """The base with the subject in it: a `Diffusion` that draws, inverts and is guided as any.

    Args:
        learned: what `pg.fit` made of a `Subject`.
        seed: of one draw of c_s from the guide, posterior="normal"; None takes its mean.

    Raises:
        AlgorithmError: of another model; rows that have not moved from their anchor, so that
            nothing was learned; a seed for a point.
    """
    subject: Any = learned.model
    if not isinstance(subject, Subject):
        raise AlgorithmError(
            f"personalised: got a fit of {subject.name!r}, expected one of a Subject."
        )
    rows = rows_of(learned, seed)
    base = subject.base
    params = {**base.params, "condition": {"net": base.params["condition"], "rows": rows}}
    model = dataclasses.replace(subject.diffusion, condition=subject.condition)
    return dataclasses.replace(base, model=model, params=params, raw_params=None, extras={})


def rows_of(learned: Fitted, seed: int | None = None) -> np.ndarray:
    """c_s, [n, d] or [steps, n, d]: the guide's mean, or a draw; see `personalised`."""
    subject: Any = learned.model
    offset = moved_offset(learned)
    if seed is not None:
        if subject.posterior == "point":
            raise AlgorithmError(
                f"personalised: got seed={seed} for a point estimate, expected a fit of "
                'Subject(..., posterior="normal"), which has draws; leave the seed out.'
            )
        scale = np.exp(np.asarray(learned.params[f"{NET}_log_scale"]["value"]))
        offset = offset + scale * np.random.default_rng(seed).standard_normal(offset.shape)
    return (subject.anchor_rows + offset).astype(np.float32)
