"""Parameters that somebody gives, held against those that would be drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from probgen.backends.protocol import Backend
from probgen.errors import NonFiniteError, ShapeError
from probgen.records.store import flatten
from probgen.trees import tree_like, tree_map

Tree = Any


def like(backend: Backend, where: str, tree: Tree, fresh: Tree) -> Tree:
    """`tree` as numpy arrays in the containers of `fresh`.

    Args:
        where: of whom they are, for the message.
        tree: arrays of a framework or numpy's.
        fresh: as they are drawn.

    Raises:
        ShapeError: other names, shapes or kinds of numbers; NonFiniteError: NaN or infinity.
    """
    model = tree_map(backend.to_numpy, fresh)
    arrays, drawn = flatten(tree_map(backend.to_numpy, tree)), flatten(model)
    want, got = _form(drawn), _form(arrays)
    if want != got:
        wrong = sorted(k for k in {*want, *got} if want.get(k) != got.get(k))[:3]
        raise ShapeError(
            f"{where}: "
            + "; ".join(
                f"{k or 'its array'} is {got.get(k)}, expected {want.get(k)}" for k in wrong
            )
            + "; were they made by another declaration?"
        )
    for name, value in arrays.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise NonFiniteError(f"{where}: {name} holds NaN or infinity, expected finite numbers.")
    return tree_like(model, [arrays[name] for name in drawn])


def _form(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    return {k: f"{v.dtype.kind}{list(v.shape)}" for k, v in arrays.items()}
