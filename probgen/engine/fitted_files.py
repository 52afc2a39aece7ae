"""A fit in a folder, and as a part of another: what `Fitted` writes and reads.

Arrays are safetensors, the declaration is JSON; see `probgen.records`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from probgen.backends import available, resolve
from probgen.engine.bind import bind
from probgen.errors import ProbgenError, SaveError, ShapeError
from probgen.language.declared import argument
from probgen.language.kinds import PathLike
from probgen.language.model import Model
from probgen.nets.base import at_most
from probgen.records import forms, store
from probgen.records.codec import NotADeclaration, Pool, decode, encode
from probgen.records.history import History
from probgen.trees import tree_map

_INPUTS = forms.Fields(
    {"shapes": forms.Each((forms.Count,)), "dtypes": forms.Each(forms.NumberType),
     "constants": dict}
)  # fmt: skip


class SavedFit:
    """See the head of this file; the attributes are those of `Fitted`."""

    model: Model
    params: Mapping[str, Any]
    history: History
    info: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    constants: dict[str, Any]
    dtypes: dict[str, str]
    extras: dict[str, Any]
    raw_params: Mapping[str, Any] | None

    def _blank_rows(self) -> dict[str, np.ndarray]:
        raise NotImplementedError  # `Fitted` has it

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
    def from_pretrained(cls, path: str | os.PathLike, model: Model | None = None) -> Self:
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
        built: Any = cls._built(
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
    def __decode__(cls, data: Mapping, stored: Mapping[str, np.ndarray]) -> Self:
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
    ) -> Self:  # fmt: skip
        """A run from saved parts; parameters get the containers that the model's own have.

        Raises:
            SaveError: the parts do not fit each other, or hold NaN.
            ShapeError: they do not fit a model that the user gives, or another of its refusals.
        """
        seen = decode(inputs, stored)
        forms.check(seen, _INPUTS, f"{where}: inputs")
        forms.check_sizes(seen["shapes"].values(), len(arrays), f"{where}: inputs")
        _check_finite(arrays, where)
        make: Any = cls
        fitted = make(
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
