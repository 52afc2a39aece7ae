"""Data of a program without a data plate: one value of each site, which a fit takes as one row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from probgen.backends.protocol import Backend
from probgen.data.sources import as_arrays
from probgen.engine.probing import Probe
from probgen.errors import ProbgenError
from probgen.language.model import Model
from probgen.language.seeds import named
from probgen.trees import tree_map


def one_value(
    model: Model, b: Backend, data: Any, names: Any, inputs: Mapping[str, Any], params: Any,
    seed: int,
) -> dict[str, np.ndarray] | None:  # fmt: skip
    """The data as one row, [1, *plates, *event] by site; None where they are rows already.

    Args:
        inputs: what the program conditions on; all of it is shared.
    """
    is_held = isinstance(data, np.ndarray | list) or (
        isinstance(data, Mapping) and all(isinstance(v, np.ndarray | list) for v in data.values())
    )
    if not is_held or (model.backend and model.backend != b.name):
        return None
    try:
        arrays = as_arrays(data, names=names)
    except ProbgenError:  # said where the data are taken
        return None
    fixed = {k: b.asarray(v) if isinstance(v, np.ndarray | list) else v for k, v in inputs.items()}
    started = tree_map(b.asarray, {**model.fitted_params(), **(params or {})})

    def initialise(name: str, declaration: Any, shapes: Any) -> Any:
        return declaration.init(named(seed, name), *shapes)

    probe = Probe(model, b, started, fixed, b.key(seed), initialise)
    if not probe.observes_once(arrays):
        return None
    return {k: v[None] for k, v in arrays.items()}
