"""Doors to Pyro and NumPyro: our models in their tools, their programs in our four verbs.

    to_pyro(model)  to_numpyro(model)      -> (model_fn, guide_fn or None), plain callables
    from_pyro(fn)   from_numpyro(fn)       -> a `Model` that runs on that backend alone

Going out, every site, plate and parameter is the framework's own primitive and its handlers decide
every value, so `SVI`, `Predictive`, `MCMC`, `condition`, `replay` and automatic guides work. Sites
in the data plate carry the scale num_data / batch size: a native ELBO is num_data times ours, which
is per datum. Coming in, sites, plates and `param`s of the native program become ours. The code that
knows a framework is in `probgen.backends.torch.native` and its twin.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from probgen.backends import available, load
from probgen.engine.bind import bind
from probgen.engine.fitted import Fitted
from probgen.errors import AlgorithmError, BackendError, DeclarationError
from probgen.language.model import Model, arguments, call_arguments
from probgen.language.run import DATA_PLATE, Run, current, running
from probgen.records import store
from probgen.trees import tree_like, tree_map

__all__ = ["NativeModel", "from_numpyro", "from_pyro", "params_of", "to_numpyro", "to_pyro"]

_LIBRARY = {"torch": "Pyro", "jax": "NumPyro"}


def _side(which: str) -> Any:
    """The adapter of a framework, or an error that says which extra to install."""
    if not available()[which]:
        raise BackendError(
            f"{_LIBRARY[which]} is not installed, expected it for this program; install it with: "
            f"pip install 'probgen[{which}]'"
        )
    return importlib.import_module(f"probgen.backends.{which}.native")


# ---- going out -----------------------------------------------------------------------------------


def to_pyro(
    model: Model | Fitted,
    params: Mapping | None = None,
    *,
    trainable: bool | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[Callable, Callable | None]:
    """The model and its guide as plain Pyro programs.

    Both are called as `model_fn(batch=None, *, num_data=None, batch_size=None, **inputs)`:

        batch: a dict of arrays by name, one row a datum (observed sites and per-datum inputs), or
            one array, which observes "x"; what it leaves out is latent.
        num_data: size of the whole data set; sites in the data plate are scaled by
            num_data / batch size. None: no scale.
        batch_size: how many data, when `batch` is empty (draws from the prior).
        inputs: what the program conditions on and all data share.

    `model_fn` returns the values of its sites by name.

    Args:
        model: a declaration, or a `Fitted` (whose parameters are then `params`).
        params: net name -> tree. Given: constants of the programs. None: every leaf is registered
            with `pyro.param` under "net/path/to/leaf" and starts as the declaration says, so that
            `pyro.infer.SVI` trains it; `params_of` reads the result back.
        trainable: registers the parameters even though they are given (they are the start), or
            False to keep freshly drawn ones constant. Nets that the model declares frozen are never
            registered.
        seed: of the initial parameters.
        device: where arrays go.

    Raises:
        BackendError: Pyro is not installed.
    """
    return _to_native("torch", model, params, trainable, seed, device)


def to_numpyro(
    model: Model | Fitted,
    params: Mapping | None = None,
    *,
    trainable: bool | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[Callable, Callable | None]:
    """The model and its guide as plain NumPyro programs; see `to_pyro` for arguments and calls."""
    return _to_native("jax", model, params, trainable, seed, device)


def params_of(named: Mapping[str, Any]) -> dict:
    """Parameters by net, as `Fitted` and the verbs take them, from native names "net/path/to/leaf".

    Args:
        named: `dict(pyro.get_param_store().items())`, or `svi.get_params(state)` of NumPyro.
    """

    def as_numpy(value: Any) -> np.ndarray:
        return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)

    return store.unflatten({name: as_numpy(value) for name, value in named.items()})


@dataclasses.dataclass
class _Outside:
    """One model on its way out: what the model's and the guide's callables share."""

    side: Any
    backend: Any
    model: Model
    start: Mapping
    constants: Mapping
    trainable: bool
    seed: int
    known: dict[tuple, tuple[dict, Any, Any]] = dataclasses.field(default_factory=dict)

    def structure(self, rows: Mapping, constants: Mapping) -> tuple[dict, Any, Any]:
        """(parameters as numpy, nets of the model, nets of the guide); found once per shapes."""
        key = tuple((k, tuple(v.shape[1:])) for k, v in sorted(rows.items()))
        if key not in self.known:
            # Of the shapes alone: inside `jit` the values are not there to look at.
            blank = {k: _blank(v, 1) for k, v in rows.items()}
            fixed = {k: _blank(v) if hasattr(v, "shape") else v for k, v in constants.items()}
            with self.side.apart():
                bound, params = bind(
                    self.model, self.backend, data=blank, constants=fixed, params=self.start,
                    seed=self.seed, is_blank=True,
                )  # fmt: skip
                params = tree_map(self.backend.to_numpy, params)
            guide = bound.guide_structure
            nets = set(guide.nets) if guide is not None else set()
            self.known[key] = (params, set(bound.structure.nets), nets)
        return self.known[key]

    def parameters(self, rows: Mapping, constants: Mapping, is_guide: bool) -> dict:
        """The tree that a run reads: registered with the framework where it is to be learned."""
        params, model_nets, guide_nets = self.structure(rows, constants)
        used, frozen = (guide_nets if is_guide else model_nets), self.model.frozen()
        out = {}
        for name in sorted(used & set(params)):
            tree = params[name]
            if not self.trainable or name in frozen:
                out[name] = tree_map(self.backend.asarray, tree)
                continue
            leaves = store.flatten({name: tree})
            registered = [self.side.param(k, self.backend.asarray(v)) for k, v in leaves.items()]
            out[name] = tree_like(tree, registered)
        return out

    def callable(self, is_guide: bool) -> Callable:
        """The native program (or guide)."""
        program = self.model.guide if is_guide else self.model.program
        what = f"guide of {self.model.name!r}" if is_guide else f"model {self.model.name!r}"

        def fn(
            batch: Any = None,
            *,
            num_data: Any = None,
            batch_size: int | None = None,
            **inputs: Any,
        ) -> dict:
            b = self.backend
            given = batch if isinstance(batch, Mapping) else {} if batch is None else {"x": batch}
            rows = {k: b.asarray(v) for k, v in given.items()}
            constants = {
                k: b.asarray(v) if isinstance(v, np.ndarray | list) else v
                for k, v in {**self.constants, **inputs}.items()
            }
            size = batch_size or next((int(v.shape[0]) for v in rows.values()), None)
            params = self.parameters(rows, constants, is_guide)
            names = arguments(program)  # type: ignore[arg-type]
            values = {k: v for k, v in rows.items() if is_guide or k not in names}
            scale = None if num_data is None or size is None else num_data / size
            lower = self.side.NativeLowering(b, values, scale)
            run = Run(lower, params, size, is_native=True)
            lower.run = run
            # A guide's draw of what is observed is not a term of the bound.
            hidden = list(values) if is_guide else []
            with self.side.hiding(hidden), running(run):
                program(**call_arguments(program, {**constants, **rows}, what))  # type: ignore
            return dict(run.values)

        fn.__name__ = f"{self.model.name}_guide" if is_guide else self.model.name
        fn.__doc__ = f"{what} as a native program; see probgen.interop.to_pyro."
        return fn


def _blank(x: Any, rows: int | None = None) -> np.ndarray:
    shape = tuple(x.shape)
    shape = (rows, *shape[1:]) if rows is not None else shape
    return np.zeros(shape, str(x.dtype).removeprefix("torch."))


def _to_native(
    which: str,
    model: Model | Fitted,
    params: Mapping | None,
    trainable: bool | None,
    seed: int,
    device: str,
) -> tuple[Callable, Callable | None]:
    side = _side(which)
    constants: Mapping = {}
    if isinstance(model, Fitted):  # its parts, from here on
        params = model.params if params is None else params
        constants, model = model.constants, model.model
    if not isinstance(model, Model):
        raise AlgorithmError(
            f"to_{_LIBRARY[which].lower()}: got {type(model).__name__}, expected a model or a "
            "Fitted; declare a model first, or decorate a function with @pg.model."
        )
    is_trainable = params is None if trainable is None else trainable
    out = _Outside(
        side, load(which, device), model, params or {}, constants, is_trainable, seed
    )  # fmt: skip
    return out.callable(False), None if model.guide is None else out.callable(True)


# ---- coming in -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class NativeModel(Model):
    """A Pyro or NumPyro program as a model of its own backend.

    Its sites are the program's `sample`, `factor` and `deterministic` statements, its parameters
    the `param` statements (stored unconstrained: a param with a constraint is its transform). The
    plate called `data_plate` is the data plate; its size must come from the data, as in
    `plate("data", len(x))` or `plate("data", N, subsample_size=len(x))`, whose native scale is left
    to the algorithm, as everywhere. A site observed by `obs=` is observed here too, and data under
    a site's name observe it without.
    """

    fn: Callable
    guide_fn: Callable | None
    which: str
    data_plate: str = DATA_PLATE

    @property
    def name(self) -> str:
        return getattr(self.fn, "__name__", type(self.fn).__name__)

    @property
    def backend(self) -> str:
        """The only backend that it runs on."""
        return self.which

    @property
    def program(self) -> Callable:
        return self._wrap(self.fn)

    @property
    def guide(self) -> Callable | None:  # type: ignore[override]
        return None if self.guide_fn is None else self._wrap(self.guide_fn)

    def _wrap(self, fn: Callable) -> Callable:
        def program(**inputs: Any) -> Any:
            run = current(f"from_{_LIBRARY[self.which].lower()}")
            side = _side(self.which)
            if not isinstance(run.lower, side.Lowering):
                raise BackendError(
                    f"model {self.name!r}: got another backend, expected backend="
                    f"{self.which!r}, since it is a native {_LIBRARY[self.which]} program; pass "
                    f"backend={self.which!r}, or write it in probgen's words to run it on both."
                )
            return side.run_native(fn, run, inputs, self.data_plate)

        program.__signature__ = _signature(fn)  # type: ignore[attr-defined]
        program.__name__ = self.name
        return program

    def __repr__(self) -> str:
        return f"pg.from_{_LIBRARY[self.which].lower()}({self.name})"


def _signature(fn: Callable) -> inspect.Signature:
    """Of a function, or of a module's `forward`; refused when it has *args."""
    target = getattr(fn, "forward", fn)
    arguments(target)
    return inspect.signature(target)


def from_pyro(
    fn: Callable, guide: Callable | None = None, *, data_plate: str = DATA_PLATE
) -> NativeModel:
    """A Pyro program (and guide) as a model for the four verbs, on backend="torch".

    Args:
        fn: a function or `PyroModule`, called with its arguments by name: inputs, or data.
        guide: likewise; None for a model to sample or `infer`.
        data_plate: name of the plate whose axis is that of the data.

    Raises:
        DeclarationError: not a callable, or one with *args. When it runs: BackendError for what
        has no counterpart here (`pyro.module`, sequential plates, a `poutine.scale` of its own).
    """
    return _from_native("torch", fn, guide, data_plate)


def from_numpyro(
    fn: Callable, guide: Callable | None = None, *, data_plate: str = DATA_PLATE
) -> NativeModel:
    """A NumPyro program (and guide) as a model for the four verbs, on backend="jax"; see
    `from_pyro`. `flax_module` and the like work: their parameters are `param` statements."""
    return _from_native("jax", fn, guide, data_plate)


def _from_native(which: str, fn: Any, guide: Any, data_plate: str) -> NativeModel:
    who = f"from_{_LIBRARY[which].lower()}"
    for each in (fn, guide) if guide is not None else (fn,):
        if not callable(each) or isinstance(each, Model):
            raise DeclarationError(
                f"{who}: got {type(each).__name__}, expected a {_LIBRARY[which]} program (a "
                "function); give a probgen model to the verbs directly."
            )
        _signature(each)
    return NativeModel(fn, guide, which, data_plate)
