"""What verbs return of a program's sites: samples in front of every array, and nothing but numbers.

A run on a batch of n samples gives values [*plates, *event] with the data plate somewhere among the
plates, or without any of them where a site is computed from constants. No drawing here.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from probgen.engine.structure import SiteInfo
from probgen.errors import DataError, NonFiniteError, ShapeError
from probgen.language.run import DATA_PLATE


def data_axis(site: SiteInfo, shape: tuple[int, ...], count: int) -> int | None:
    """Which axis of a site's value of that shape is the data's, from a run on `count` data.

    A deterministic value may have any shape: its data axis is the one that differs from the run on
    one datum that bound the model.
    """
    if site.kind == "sample" and not site.is_fixed:
        if not site.is_local:
            return None
        # Plates are opened from the right: the first one lies next to the event.
        return len(shape) - len(site.event_shape) - 1 - site.plates.index(DATA_PLATE)
    if count > 1 and len(shape) == len(site.shape):
        grown = [i for i, (now, one) in enumerate(zip(shape, site.shape, strict=True)) if now > one]
        return grown[0] if grown else None
    return 0 if site.is_local and shape[:1] == (count,) else None


def samples_first(site: SiteInfo, value: np.ndarray, count: int) -> np.ndarray:
    """[count, *plates, *event] of one run on `count` data; what all data share is repeated."""
    axis = data_axis(site, value.shape, count)
    if axis is None:
        return np.broadcast_to(value, (count, *value.shape)).copy()
    return np.moveaxis(value, axis, 0)


def without_data_axis(site: SiteInfo, values: np.ndarray) -> np.ndarray:
    """[count, *plates, *event] of `count` runs on one datum each, whose values were stacked."""
    axis = data_axis(site, values.shape[1:], 1)
    return values if axis is None else values.take(0, axis + 1)


def check_draws(
    who: str, values: Mapping[str, np.ndarray], sites: Mapping[str, SiteInfo], lead: int, cure: str
) -> None:
    """Refuses draws that are NaN or infinite; computed values may be infinite (the log of 0).

    Args:
        who: the verb and what drew, for the message.
        values: [*draws, ...] by site.
        sites: of the model.
        lead: how many axes are draws.
        cure: what to do.

    Raises:
        NonFiniteError: names the site, and how many of how many draws.
    """
    # What was drawn before what was computed from it.
    for name in sorted(values, key=lambda n: sites[n].kind == "deterministic"):
        value = values[name]
        if value.dtype.kind != "f":
            continue
        computed = sites[name].kind == "deterministic"
        bad = np.isnan(value) if computed else ~np.isfinite(value)
        if not bad.any():
            continue
        total = int(np.prod(value.shape[:lead]))
        count = int(bad.reshape(total, -1).any(1).sum())
        raise NonFiniteError(
            f"{who}: {count} of {total} draws of site {name!r} are NaN or infinite, expected "
            f"finite numbers; {cure}."
        )


def warn_outside(who: str, is_outside: np.ndarray, cure: str) -> None:
    """Says that chains stand where the density is 0 or no number: that is no draw of the model.

    Args:
        who: the verb, for the message.
        is_outside: of each draw.
        cure: the sampler's own.
    """
    if is_outside.any():
        warnings.warn(
            f"{who}: {int(is_outside.sum())} of {is_outside.size} draws lie where the density is "
            "0 or no number, outside its support, and are no draws of it; give the site a "
            "distribution of that support (positive, an interval, a dist.Transformed), within "
            f"which chains then move, or {cure}.",
            stacklevel=3,
        )


def latents_of(
    model: str, names: Sequence[str], draws: Any, num_draws: int | None, who: str
) -> dict[str, np.ndarray]:  # fmt: skip
    """Latents by site name, [chain, draw, ...], from what `pg.infer` returns or a dict of arrays.

    Args:
        model: its name, for messages.
        names: which latents are wanted.
        num_draws: at most so many in all, evenly spread; None takes all.
        who: the verb.

    Raises:
        DataError: draws without one of them. ShapeError: without the axes of chains and draws.
    """
    if hasattr(draws, "children") and "posterior" in draws.children:
        known = {k: v.values for k, v in draws["posterior"].data_vars.items()}
    elif isinstance(draws, Mapping):
        known = {k: np.asarray(v) for k, v in draws.items()}
    else:
        raise DataError(
            f"{who}: got draws of type {type(draws).__name__}, expected what pg.infer returns, or "
            "a dict of arrays [chain, draw, ...]."
        )
    out = {}
    for name in names:
        # ArviZ's trees have no "/" in names.
        value = known.get(name, known.get(name.replace("/", ".")))
        if value is None:
            raise DataError(
                f"{who}: got draws of {sorted(known)}, expected the latent {name!r} of {model!r} "
                "among them."
            )
        out[name] = value
    if not out:
        return {}
    leads = {v.shape[:2] for v in out.values()}
    if len(leads) != 1 or len(next(iter(leads))) < 2 or 0 in next(iter(leads)):
        raise ShapeError(
            f"{who}: got draws of shapes { {n: v.shape for n, v in out.items()} }, expected "
            "[chain, draw, ...] of the same chains and draws for all latents."
        )
    chains, count = next(iter(leads))
    if num_draws is not None:
        per_chain = min(count, max(1, num_draws // chains))
        index = np.linspace(0, count - 1, per_chain).round().astype(np.int64)
        out = {n: v[:, index] for n, v in out.items()}
    return out
