"""probgen: deep generative models declared as probabilistic programs, on Pyro or NumPyro.

Four verbs: `fit` (which parameters?), `infer` (which latents, given data?), `generate` (what does
it produce?), `evaluate` (how good is it, per datum, with what error?). Importing this loads no
framework; a backend is loaded when a verb runs.
"""

from __future__ import annotations

import importlib
from typing import Any

from probgen.backends import xla_flags as _xla_flags
from probgen.language import viewed as _viewed
from probgen.version import __version__ as __version__

_HOMES = {
    "backends": "probgen.backends",
    "callbacks": "probgen.engine.callbacks",
    "data": "probgen.data",
    "dist": "probgen.language.dist",
    "errors": "probgen.errors",
    "nets": "probgen.nets",
    "ops": "probgen.language.ops",
    "optim": "probgen.language.optim",
}
_NAMES = {
    **dict.fromkeys(
        ("sample", "factor", "deterministic", "plate", "data_plate", "net", "submodel", "subguide"),
        "probgen.language.program",
    ),
    **dict.fromkeys(("model", "Model"), "probgen.language.model"),
    **dict.fromkeys(
        ("to_pyro", "to_numpyro", "from_pyro", "from_numpyro", "params_of"), "probgen.interop"
    ),
    **dict.fromkeys(
        ("Adam", "AdamW", "SGD", "CosineDecay", "ExponentialDecay", "LinearWarmup"),
        "probgen.language.optim",
    ),
    **dict.fromkeys(("EarlyStopping", "TensorBoard", "Callback"), "probgen.engine.callbacks"),
    "ProbgenError": "probgen.errors",
    "fit": "probgen.verbs.fit",
    "infer": "probgen.verbs.infer",
    "generate": "probgen.verbs.generate",
    "evaluate": "probgen.verbs.evaluate",
    "Evaluation": "probgen.records.evaluation",
    "Fitted": "probgen.engine.fitted",
    "History": "probgen.records.history",
}

_ROOMS = ("evaluation", "inference", "models")

__all__ = sorted([*_HOMES, *_NAMES])


_xla_flags.protect()  # before anybody starts JAX
_viewed.set_views(lambda: importlib.import_module("probgen.views"))


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return importlib.import_module(_HOMES[name])
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"probgen.{name}")
    raise AttributeError(f"module 'probgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
