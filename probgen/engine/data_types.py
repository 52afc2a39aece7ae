"""Refuses data of the wrong type for their site; and what to do with data that do not fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probgen.engine.structure import SiteInfo
from probgen.errors import DataError

INDEXING = {"Categorical", "OrderedLogistic"}  # values are classes: integers
COUNTING = {  # integers and floats are both read
    "BetaBinomial", "Binomial", "DirichletMultinomial", "DiscreteUniform", "GammaPoisson",
    "Geometric", "Multinomial", "NegativeBinomial", "Poisson", "ZeroInflatedPoisson",
}  # fmt: skip


def check_types(sites: Mapping[str, SiteInfo], data: Mapping[str, Any]) -> None:
    """Refuses integers (an image of 0 ... 255) where a site wants floats, and floats for classes.

    Args:
        sites: of a program.
        data: values by name, arrays of numpy or a framework.

    Raises:
        DataError: names the site, its distribution, the type, and the cure.
    """
    for name, site in sites.items():
        if name not in data or site.declaration is None:
            continue
        family, kind = site.declaration.name, str(data[name].dtype).removeprefix("torch.")
        is_integer = kind.startswith(("int", "uint"))
        if family in INDEXING and not is_integer:
            raise DataError(
                f"data {name!r}: got numbers of type {kind}, expected integers, since the site's "
                f"distribution is {family}, whose values are classes; convert them with "
                ".astype('int32') (probgen.data.to_levels for images in [0, 1])."
            )
        if (is_integer or kind == "bool") and family not in INDEXING | COUNTING:
            cure = (
                ".astype('float32')"
                if kind == "bool"
                else "probgen.data.from_levels (then binarize for a Bernoulli) or dequantize for "
                "images of 0 ... 255, .astype('float32') for other numbers"
            )
            raise DataError(
                f"data {name!r}: got numbers of type {kind}, expected floats, since the site's "
                f"distribution is {family}; convert them with {cure}."
            )


def cure(family: str) -> str:
    """What to do with data outside the support of a distribution of that name."""
    if family in INDEXING:
        return (
            "Classes are counted from 0, as 0 ... K - 1: labels that run 1 ... K need "
            "labels - 1, and K must be the number of classes."
        )
    return (
        "Transform the data (probgen.data.binarize, to_levels, dequantize) or choose a "
        "likelihood whose support holds them."
    )


def cure_discrete(scan: Any) -> str:
    """What to do with a discrete latent where continuous ones are wanted."""
    if scan is None:
        return (
            "give it finitely many values (dist.Categorical up to a largest), which are summed out"
        )
    return (
        "give it finitely many values (dist.Categorical up to a largest), which are summed out "
        f"along the loop {scan[0]!r}"
    )
