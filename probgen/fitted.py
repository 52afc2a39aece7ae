"""A model with its parameters: what `fit` returns, what is saved, and what other models build on."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from probgen import store
from probgen.backends import resolve
from probgen.backends.protocol import Backend
from probgen.bound import Bound, bind, parameter_count
from probgen.codec import NotADeclaration, decode, encode
from probgen.errors import SaveError, ShapeError
from probgen.history import History
from probgen.modelling import Model


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """A model and its parameters.

    Attributes:
        model: the declaration.
        params: nested dict of numpy arrays, one entry a net; the moving average of the parameters
            when the fit kept one (`ema_decay`).
        history: metrics of the fit.
        report: what the algorithm says at the end (a collapse report for a VAE), or None.
        info: what ran: backend, versions, device, seed, steps.
        shapes: shape of one datum of each observed site or input that the fit saw.
    """

    model: Model
    params: Mapping[str, Any]
    history: History = dataclasses.field(default_factory=History)
    report: Any = None
    info: dict[str, Any] = dataclasses.field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    constants: dict[str, Any] = dataclasses.field(default_factory=dict)

    def resolve(self, backend: str | Backend, device: str = "auto") -> Backend:
        """The backend that a verb should use: the one asked for, else the one that fitted."""
        if backend == "auto" and self.info.get("backend"):
            from probgen.backends import available

            name = self.info["backend"]
            if available().get(name):
                return resolve(name, device)
        return resolve(backend, device)

    def bind(
        self, backend: Backend, data: Mapping[str, Any] | None = None, **fields: Any
    ) -> tuple[Bound, dict]:
        """The model bound to a backend with these parameters."""
        rows = data
        if rows is None:
            rows = {k: np.zeros((1, *shape), np.float32) for k, shape in self.shapes.items()}
        return bind(
            self.model, backend, data=rows, constants=self.constants, params=self.params, **fields
        )

    def num_parameters(self) -> int:
        """Number of parameters of all nets."""
        return sum(parameter_count(self.params).values())

    def save_pretrained(self, path: str | os.PathLike) -> None:
        """Writes `model.safetensors`, `history.safetensors` and `config.json`, all or nothing.

        Raises:
            SaveError: the folder cannot be written; what stood there before is untouched.
        """
        try:
            declaration = encode(self.model)
        except NotADeclaration:
            declaration = None
        config = {
            "model": declaration,
            "model_name": self.model.name,
            "info": self.info,
            "shapes": {k: list(v) for k, v in self.shapes.items()},
            "constants": encode(
                {k: np.asarray(v) if not isinstance(v, int | float | str) else v
                 for k, v in self.constants.items()}
            ),
            "events": self.history.events,
        }  # fmt: skip
        arrays = {"model": store.flatten(self.params), "history": self.history.to_arrays()}
        store.write_folder(path, arrays, config)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike, model: Model | None = None) -> Fitted:
        """Reads what `save_pretrained` wrote, on either backend.

        Args:
            path: the folder.
            model: the declaration; needed when it is a function of yours, which no file holds.

        Raises:
            SaveError: missing, damaged, truncated or foreign folder; a model is needed.
            ShapeError: the given model's parameters have other shapes.
        """
        arrays, config = store.read_folder(path)
        if "model" not in arrays:
            raise SaveError(f"{path}: holds no model.safetensors, expected a saved run.")
        if model is None:
            if config.get("model") is None:
                raise SaveError(
                    f"{path}: its model {config.get('model_name')!r} is a function, which no file "
                    "holds; load it with from_pretrained(path, model=...)."
                )
            model = decode(config["model"])
        if not isinstance(model, Model):
            raise SaveError(f"{path}: its model is {type(model).__name__}, expected a declaration.")
        fitted = cls(
            model,
            store.unflatten(arrays["model"]),
            History.from_arrays(arrays.get("history", {}), config.get("events", ())),
            None,
            config.get("info", {}),
            {k: tuple(v) for k, v in config.get("shapes", {}).items()},
            decode(config.get("constants", {"dict": {}})),
        )
        fitted.check(str(path))
        return fitted

    def check(self, where: str = "fitted") -> None:
        """Refuses parameters whose names or shapes are not what the model draws for itself."""
        from probgen.backends import available

        there = [name for name, ok in available().items() if ok]
        if not there:
            return
        backend = resolve("auto", "cpu")
        rows = {k: np.zeros((1, *s), np.float32) for k, s in self.shapes.items()}
        _, fresh = bind(self.model, backend, data=rows, constants=self.constants)
        want = {k: np.shape(v) for k, v in store.flatten(_numpy(backend, fresh)).items()}
        got = {k: np.shape(v) for k, v in store.flatten(self.params).items()}
        if want != got:
            wrong = sorted(k for k in {*want, *got} if want.get(k) != got.get(k))[:3]
            raise ShapeError(
                f"{where}: parameters do not fit the model {self.model.name!r}: "
                + "; ".join(f"{k} is {got.get(k)}, expected {want.get(k)}" for k in wrong)
                + ". Was it saved from another declaration?"
            )

    def __saved_as__(self) -> dict:
        raise NotADeclaration("a Fitted is saved by its own model")

    def __repr__(self) -> str:
        ran = self.info.get("backend", "no backend")
        return f"Fitted({self.model!r}, {self.num_parameters():,} parameters, {ran})"


def _numpy(backend: Backend, tree: Any) -> Any:
    from probgen.trees import tree_map

    return tree_map(backend.to_numpy, tree)
