"""Draws as an ArviZ DataTree: names that it allows, and names of plates for the axes."""

from __future__ import annotations

from typing import Any

import numpy as np

from probgen.engine.bound import Bound
from probgen.engine.posterior import Posterior
from probgen.errors import AlgorithmError
from probgen.language.run import DATA_PLATE


def check_names(bound: Bound) -> None:
    """Refuses names that the tree cannot hold side by side.

    Raises:
        AlgorithmError: two become one, or one is ArviZ's own name of an axis.
    """
    structure = bound.structure
    taken: dict[str, str] = {}
    names = {*structure.sites, *structure.plate_sizes, *structure.scans}
    for name in names:
        other = taken.setdefault(legal(name), name)
        if other != name:
            raise AlgorithmError(
                f"infer: {bound.model.name!r} has the sites or plates {sorted([name, other])}, "
                f"which results both call {legal(name)!r}, expected names that differ when '/' "
                "becomes '.'; rename one."
            )
    for name in names & {"chain", "draw"}:
        raise AlgorithmError(
            f"infer: {bound.model.name!r} has a site or plate {name!r}, which is ArviZ's name for "
            "an axis of all draws, expected another; rename it."
        )


def to_datatree(posterior: Posterior, groups: dict, attributes: dict[str, Any]) -> Any:
    """The tree of arrays by group and name: [chain, draw, *plates, *event] among draws, and
    [*plates, *event] in the groups that end in "data"."""
    from arviz_base import from_dict

    structure = posterior.bound.structure
    sizes = {**structure.plate_sizes, DATA_PLATE: posterior.num_rows}
    dims: dict[str, list[str]] = {}
    for group, values in groups.items():
        lead = 0 if group.endswith("data") else 2
        for name, value in values.items():
            if group == "sample_stats":
                continue
            shape = np.shape(value)[lead:]
            # "<latent>/probs" has the axes of the latent, and that of its values.
            site = structure.sites.get(name, structure.sites.get(name.removesuffix("/probs")))
            # Plates are opened from the right: the outermost is an array's last plate axis.
            plates = [] if site is None else list(site.plates[::-1])
            if site is None and shape[:1] == (posterior.num_rows,):
                plates = [DATA_PLATE]
            if tuple(sizes[p] for p in plates) != shape[: len(plates)]:
                plates = []  # a deterministic value need not have its plates' axes
            event = [f"{name}_dim_{i}" for i in range(len(shape) - len(plates))]
            if site is not None and site.scan is not None and event:
                event[0] = site.scan[0]
            if group != "log_likelihood":
                dims[legal(name)] = [legal(d) for d in [*plates, *event]]
    named = {group: {legal(n): v for n, v in values.items()} for group, values in groups.items()}
    kept = {group: values for group, values in named.items() if values}
    # ArviZ's conventions would warn of more chains than draws, which is the caller's choice.
    return from_dict(
        kept, dims=dims, attrs={"/": attributes, "posterior": attributes}, check_conventions=False
    )


def legal(name: str) -> str:
    """A site's name as xarray's trees allow it, where "/" separates groups."""
    return name.replace("/", ".")
