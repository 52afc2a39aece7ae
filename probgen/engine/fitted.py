"""A model with its parameters: what `fit` returns, what is saved, what other models build on."""

from __future__ import annotations

import dataclasses
import html
import os
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np

from probgen.backends import available, resolve
from probgen.backends.protocol import Backend
from probgen.engine.auto_guide import require_settled
from probgen.engine.bind import bind
from probgen.engine.bound import Bound, parameter_count
from probgen.engine.codes import codes, codes_by
from probgen.engine.target import AnyEncoder
from probgen.errors import AlgorithmError, ProbgenError, SaveError, ShapeError
from probgen.language.capabilities import Denoises, prior_of
from probgen.language.declared import argument, declaration
from probgen.language.kinds import PathLike, Rule
from probgen.language.model import Model, capability
from probgen.language.viewed import Viewed
from probgen.nets.base import at_most
from probgen.records import forms, store
from probgen.records.codec import NotADeclaration, Pool, decode, decodes, encode
from probgen.records.history import History
from probgen.trees import tree_map

PRIOR = "prior/"  # before the names of nets of the prior of a model's latent
_INPUTS = forms.Fields(
    {"shapes": forms.Each((forms.Count,)), "dtypes": forms.Each(forms.NumberType),
     "constants": dict}
)  # fmt: skip


@declaration(eq=False)
class Fitted(Viewed):
    """A model and its parameters.

    Attributes:
        model: the declaration.
        params: nested dict of numpy arrays, one entry a net; the moving average of the parameters
            when the fit kept one (`ema_decay`).
        history: metrics of the fit.
        report: what the algorithm says at the end (a collapse report for a VAE), or None.
        info: what ran: backend, versions, device, seed, steps.
        shapes: shape of one datum of each observed site or input that the fit saw.
        constants: inputs shared by all data.
        dtypes: type of each of `shapes`, float32 where not named.
        extras: what the algorithm has beside the model (a critic, chains), a tree of dicts of numpy
            arrays; it is saved, and a fit that goes on gives it back to the algorithm.
        raw_params: where `params` are a moving average, those of the last step; see `raw`.

    A model may be built on a `Fitted` (`Tilted(fitted, energy)`, `VAE(latent=fitted)`), and `fit`
    goes on from one.
    """

    model: Model
    params: Mapping[str, Any]
    history: History = dataclasses.field(default_factory=History)
    report: Any = None
    info: dict[str, Any] = dataclasses.field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    constants: dict[str, Any] = dataclasses.field(default_factory=dict)
    dtypes: dict[str, str] = dataclasses.field(default_factory=dict)
    extras: dict[str, Any] = dataclasses.field(default_factory=dict)
    raw_params: Mapping[str, Any] | None = None

    @property
    def raw(self) -> Fitted:
        """The same with the parameters of the last step in place of their moving average.

        Raises:
            AlgorithmError: the fit kept no average (`ema_decay`).
        """
        if self.raw_params is None:
            raise AlgorithmError(
                f"Fitted.raw: the fit of {self.model.name!r} kept no moving average beside its "
                "parameters, expected one with ema_decay; without, `params` are those of the last "
                "step."
            )
        return dataclasses.replace(self, params=self.raw_params, raw_params=None)

    @property
    def prior(self) -> Fitted:
        """The prior of the latent "z", where that is a model, by itself: its "x" is this "z".

        Raises:
            AlgorithmError: the latent's prior is no model, or there is none.
        """
        inner = prior_of(self.model)
        if inner is None:
            raise AlgorithmError(
                f"Fitted.prior: {self.model.name!r} has no latent whose prior is a model, expected "
                "one such as VAE(latent=Diffusion(...))."
            )
        own = {k.removeprefix(PRIOR): v for k, v in self.params.items() if k.startswith(PRIOR)}
        denoises = capability(inner, Denoises)
        if denoises is not None:
            shape = denoises.shape
        else:
            shape = self.bind(self.resolve("auto"))[0].structure.sites["z"].event_shape
        return Fitted(
            inner, own, info=self.info, shapes={**self.shapes, "x": tuple(shape)},
            constants=self.constants, dtypes={k: v for k, v in self.dtypes.items() if k != "x"},
        )  # fmt: skip

    def with_prior(self, prior: Fitted) -> Fitted:
        """The same around another prior of the latent "z", such as what a fit made of `prior`.

        Raises:
            AlgorithmError: as of `prior`.
        """
        _ = self.prior
        model: Any = self.model
        beside = {k: v for k, v in self.params.items() if not k.startswith(PRIOR)}
        x = {k: v for k, v in self.dtypes.items() if k == "x"}
        return Fitted(
            model.with_latent(prior.model),
            {**{f"{PRIOR}{k}": v for k, v in prior.params.items()}, **beside},
            info=prior.info, shapes={**prior.shapes, "x": self.shapes["x"]},
            constants=prior.constants, dtypes={**prior.dtypes, **x},
        )  # fmt: skip

    def resolve(self, backend: str | Backend, device: str = "auto") -> Backend:
        """The backend that a verb should use: the one asked for, else the one that fitted."""
        if backend == "auto" and self.info.get("backend"):
            name = self.info["backend"]
            if available().get(name):
                return resolve(name, device)
        return resolve(backend, device, prefer=self.model.backend)

    def bind(
        self,
        backend: Backend,
        data: Mapping[str, Any] | None = None,
        *,
        constants: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> tuple[Bound, dict]:
        """The model bound to a backend with these parameters.

        Args:
            backend: where it runs.
            data: rows; None stands for one datum of zeros, as the fit saw them.
            constants: inputs shared by all data, in place of the fit's.
        """
        require_settled(self.model, "Fitted")
        rows = self._blank_rows() if data is None else data
        shared = {**self.constants, **(constants or {})}
        return bind(self.model, backend, data=rows, constants=shared, params=self.params, **fields)

    def _blank_rows(self) -> dict[str, np.ndarray]:
        """One datum of zeros for each site or input, in shape and type as the fit saw them."""
        kinds = {k: self.dtypes.get(k, "float32") for k in self.shapes}
        return {k: np.zeros((1, *shape), kinds[k]) for k, shape in self.shapes.items()}

    def encode(
        self, data: Any, inputs: Mapping[str, Any] | None = None, *, method: Any = None
    ) -> dict[str, np.ndarray]:
        """Codes of data: the mean of each latent under the guide, [n, *event] by name; of a
        discrete latent that no guide draws the posterior probability of each value, [n, *event, K].
        Of a VAE with a chain of more than 200 steps as its prior, of z alone.

        Args:
            data: rows, as in `fit`.
            inputs: as in `fit`.
            method: another way than the guide's: `DDIMInverse(num_steps=50)` leads the data of a
                diffusion to the noise from which `pg.generate(..., DDIM(50), start=codes)` makes
                them again.

        Raises:
            AlgorithmError: no guide, global latents, a long chain's steps and no others, or a
                distribution without a known mean; a method for other models.
        """
        if method is not None:
            argument("encode", AnyEncoder, method=method)
            return codes_by(method, self, self.resolve("auto"), data, inputs)
        return codes(self, self.resolve("auto"), data, inputs, is_back=False)

    def reconstruct(
        self, data: Any, inputs: Mapping[str, Any] | None = None
    ) -> dict[str, np.ndarray]:
        """Means of the observed sites at the codes of data, [n, *event] by name; see `encode`."""
        return codes(self, self.resolve("auto"), data, inputs, is_back=True)

    def plot(self, names: Any = None) -> Any:
        """The fit's curves, a matplotlib figure; `names` chooses metrics (`History.plot`)."""
        return self.history.plot(names)

    def _repr_html_(self) -> str:
        """What a notebook shows: the printed line, and the model in plate notation."""
        return f"<pre>{html.escape(repr(self))}</pre>" + self.graph(form="svg")

    def num_parameters(self) -> int:
        """Number of parameters of all nets."""
        return sum(parameter_count(self.params).values())

    def save_pretrained(self, path: str | os.PathLike) -> None:
        """Writes `config.json` and the arrays as safetensors, all or nothing.

        Fitted parts of the model are saved with it. A model that is a function of yours is named
        only, and asked for again by `from_pretrained`. The report is not saved.

        Raises:
            SaveError: the folder cannot be written, or holds something else, or a parameter is NaN;
                what stood there before is untouched.
        """
        params = store.flatten(self.params)
        extras = store.flatten(self.extras)
        raw = store.flatten(self.raw_params or {})
        _check_finite({**params, **extras, **raw}, str(path))
        pool = Pool({f"model:{k}": v for k, v in params.items()})
        try:
            declaration = encode(self.model, pool)
        except NotADeclaration:
            pool, declaration = Pool({}), None
        config = {
            "kind": "run", "model": declaration, "model_name": self.model.name, "info": self.info,
            "inputs": self._encode_inputs(pool), "events": self.history.events,
        }  # fmt: skip
        arrays = {"model": params, "history": self.history.to_arrays()}
        if pool.added:
            arrays["parts"] = pool.added
        if extras:
            arrays["extras"] = extras
        if raw:
            arrays["raw"] = raw
        store.write_folder(path, arrays, config)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike, model: Model | None = None) -> Fitted:
        """Reads what `save_pretrained` wrote, on either backend; no code of the folder is run.

        Args:
            path: the folder.
            model: the declaration; needed when it is a function of yours, which no file holds.

        Raises:
            SaveError: missing, damaged, truncated or foreign folder; a model is needed.
            ShapeError: the given model's parameters have other names or shapes.
        """
        argument("from_pretrained", PathLike, path=path)
        arrays, config = store.read_folder(path, "run")
        stored = {f"model:{k}": v for k, v in arrays["model"].items()}
        stored |= arrays.get("parts", {})
        is_given = model is not None
        if model is None:
            if config["model"] is None:
                raise SaveError(
                    f"{path}: its model {config['model_name']!r} is a function, or holds one, "
                    "which no file does; load it with from_pretrained(path, model=...)."
                )
            model = decode(config["model"], stored)
        if not isinstance(model, Model):
            raise SaveError(f"{path}: its model is {type(model).__name__}, expected a declaration.")
        history = History.from_arrays(
            arrays.get("history", {}), config.get("events", ()), f"{path}/history.safetensors"
        )
        inputs, info = config["inputs"], config["info"]
        built = cls._built(
            model, arrays["model"], inputs, stored, info, history, str(path), is_given
        )
        extras = arrays.get("extras", {})
        _check_finite(extras, str(path))
        raw = arrays.get("raw")
        if raw is not None:
            _check_finite(raw, str(path))
            raw = store.fill(built.params, raw, f"{path}/raw.safetensors")
        return dataclasses.replace(built, extras=store.unflatten(extras), raw_params=raw)

    def __identity__(self) -> dict[str, Any]:
        """What tells it from another: `history`, `report`, `info`, `extras` and
        `raw_params` do not."""
        return {
            "model": self.model,
            "params": dict(sorted(store.flatten(self.params).items())),
            "constants": dict(sorted(self.constants.items())),
        }

    def _encode_inputs(self, pool: Pool) -> Any:
        """Shapes, types and shared inputs as JSON data."""
        constants = {
            k: v if isinstance(v, bool | int | float | str) else np.asarray(v)
            for k, v in self.constants.items()
        }
        return encode(
            {"shapes": dict(self.shapes), "dtypes": dict(self.dtypes), "constants": constants},
            pool,
        )

    def __encode__(self, pool: Pool) -> dict:
        """This run as a part of another one: JSON data, its arrays in the pool."""
        params = store.flatten(self.params)
        return {
            "model": encode(self.model, pool),
            "params": {name: pool.put(np.asarray(value)) for name, value in params.items()},
            "inputs": self._encode_inputs(pool),
            "info": self.info,
        }

    @classmethod
    def __decode__(cls, data: Mapping, stored: Mapping[str, np.ndarray]) -> Fitted:
        """The run that `__encode__` wrote."""
        model = decode(data["model"], stored)
        if not isinstance(model, Model):
            raise SaveError(f"config.json: a fitted part is {type(model).__name__}, not a model.")
        params = {name: stored[place] for name, place in data["params"].items()}
        info = dict(data["info"])
        return cls._built(model, params, data["inputs"], stored, info, History(), "config.json")

    @classmethod
    def _built(
        cls, model: Model, arrays: Mapping[str, np.ndarray], inputs: Any,
        stored: Mapping[str, np.ndarray], info: dict, history: History, where: str,
        is_given: bool = False,
    ) -> Fitted:  # fmt: skip
        """A run from saved parts; parameters get the containers that the model's own have.

        Raises:
            SaveError: the parts do not fit each other, or hold NaN.
            ShapeError: they do not fit a model that the user gives, or another of its refusals.
        """
        seen = decode(inputs, stored)
        forms.check(seen, _INPUTS, f"{where}: inputs")
        forms.check_sizes(seen["shapes"].values(), len(arrays), f"{where}: inputs")
        _check_finite(arrays, where)
        fitted = cls(
            model, store.unflatten(arrays), history, None, info, seen["shapes"], seen["constants"],
            seen["dtypes"],
        )  # fmt: skip
        try:
            with at_most(2**20 + sum(v.size for v in arrays.values())):
                fresh = fitted._fresh_params()
            if fresh is None:
                return fitted
            want, got = _types(store.flatten(fresh)), _types(arrays)
            if want != got:
                wrong = sorted(k for k in {*want, *got} if want.get(k) != got.get(k))[:3]
                raise ShapeError(
                    f"{where}: parameters do not fit the model {model.name!r}: "
                    + "; ".join(f"{k} is {got.get(k)}, expected {want.get(k)}" for k in wrong)
                    + ". Was it saved from another declaration?"
                )
        except SaveError:
            raise
        except ProbgenError as error:
            if is_given:
                raise
            raise SaveError(f"{where}: its parts do not fit each other: {error}") from error
        except Exception as error:
            raise SaveError(f"{where}: its model does not run ({error!r}).") from error
        return dataclasses.replace(fitted, params=store.fill(fresh, arrays, where))

    def _fresh_params(self) -> Any:
        """The parameters that the model draws for itself, numpy; None without a backend."""
        there = [name for name, ok in available().items() if ok]
        if not there:
            return None
        ran = self.info.get("backend")
        backend = resolve(ran if ran in there else "auto", "cpu")
        size = self.info.get("num_data")
        _, fresh = bind(
            self.model, backend, data=self._blank_rows(), constants=self.constants,
            num_data=size if isinstance(size, int) else None,
        )  # fmt: skip
        return tree_map(backend.to_numpy, fresh)

    def __repr__(self) -> str:
        ran = self.info.get("backend", "no backend")
        return f"Fitted({self.model!r}, {self.num_parameters():,} parameters, {ran})"


decodes("fitted", Fitted.__decode__)


def _types(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Type and shape of each array; float32 and float64 are one, since either may be fitted."""
    kinds = {k: str(np.asarray(v).dtype) for k, v in arrays.items()}
    floats = ("float32", "float64")
    return {
        k: f"{'float' if kinds[k] in floats else kinds[k]} {list(np.shape(v))}"
        for k, v in arrays.items()
    }


def _check_finite(arrays: Mapping[str, np.ndarray], where: str) -> None:
    """Parameters that are not finite give draws and densities that look like answers."""
    for name, value in arrays.items():
        if np.asarray(value).dtype.kind == "f" and not np.isfinite(value).all():
            raise SaveError(
                f"{where}: the parameters {name!r} hold NaN or infinity, expected finite numbers; "
                "fit the model again, or restore them from a copy."
            )


AnyFitted = Annotated[
    Fitted,
    Rule(
        "a Fitted: a model with parameters, as pg.fit or Fitted.from_pretrained give it", alone=True
    ),
]
AnyModel = Annotated[
    Model | Fitted,
    Rule("a declared model or a Fitted; of a function, decorate it with @pg.model", alone=True),
]
