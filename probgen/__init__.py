"""probgen: deep generative models declared as probabilistic programs, on Pyro or NumPyro.

Four verbs: `fit` (which parameters?), `infer` (which latents, given data?), `generate` (what does
it produce?), `evaluate` (how good is it, per datum, with what error?). Importing this loads no
framework; a backend is loaded when a verb runs.
"""

from __future__ import annotations

import difflib
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
    "interop": "probgen.interop",
    "nets": "probgen.nets",
    "ops": "probgen.language.ops",
    "optim": "probgen.language.optim",
}
_NAMES = {
    **dict.fromkeys(
        ("sample", "factor", "deterministic", "plate", "data_plate", "net", "submodel", "subguide"),
        "probgen.language.program",
    ),
    "ROW": "probgen.language.run",
    "scan": "probgen.language.series",
    **dict.fromkeys(("model", "Model"), "probgen.language.model"),
    **dict.fromkeys(
        (
            "to_pyro",
            "to_numpyro",
            "from_pyro",
            "from_numpyro",
            "params_of",
            "from_diffusers",
            "to_diffusers",
        ),
        "probgen.interop",
    ),
    **dict.fromkeys(
        ("Adam", "AdamW", "SGD", "Groups", "CosineDecay", "ExponentialDecay", "LinearWarmup"),
        "probgen.language.optim",
    ),
    **dict.fromkeys(("EarlyStopping", "TensorBoard", "Callback"), "probgen.engine.callbacks"),
    "Learner": "probgen.engine.learner",
    "GradientLearner": "probgen.engine.gradient",
    "ProbgenError": "probgen.errors",
    "compare": "probgen.evaluation.posteriors",
    "divergences": "probgen.evaluation.calibration",
    "fit": "probgen.verbs.fit",
    "infer": "probgen.verbs.infer",
    "generate": "probgen.verbs.generate",
    "evaluate": "probgen.verbs.evaluate",
    "merge": "probgen.verbs.tables",
    "Evaluation": "probgen.records.evaluation",
    "Fitted": "probgen.engine.fitted",
    "Devices": "probgen.engine.device_pool",
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
    raise AttributeError(f"module 'probgen' has no attribute {name!r}{_way_to(name)}")


_WAYS = {
    "param": "pg.net(name, nets.Parameter(shape))",
    "module": "pg.net(name, declaration)",
    "observe": "pg.sample(name, dist, obs=value), or the data of a verb",
    "Trace_ELBO": "probgen.inference.ELBO",
    "TraceMeanField_ELBO": "probgen.inference.ELBO",
    "MCMC": "pg.infer(model, data, NUTS(), seed=0)",
    "Predictive": "pg.generate(fitted, num_samples, seed=0)",
}


def _way_to(name: str) -> str:
    """Where a name that is sought here is, or what is used in its place; "" when nobody knows."""
    if name.startswith("_"):
        return ""
    found = [r for r in _ROOMS if name in importlib.import_module(f"probgen.{r}").__all__]
    way = _WAYS.get(name) or (f"probgen.{found[0]}.{name}" if found else "")
    if way:
        return f"; it is {way}." if found else f"; use {way}."
    close = difflib.get_close_matches(name, __all__, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
