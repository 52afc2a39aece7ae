"""A model with its parameters: what `fit` returns, what is saved, what other models build on."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np

from probgen.backends import available, resolve
from probgen.backends.protocol import Backend
from probgen.engine.auto_guide import require_settled
from probgen.engine.bind import bind
from probgen.engine.bound import Bound, parameter_count
from probgen.engine.codes import codes, codes_by
from probgen.engine.fitted_files import SavedFit
from probgen.engine.target import AnyEncoder
from probgen.errors import AlgorithmError
from probgen.language.capabilities import Denoises, prior_of
from probgen.language.declared import argument, declaration
from probgen.language.kinds import Rule
from probgen.language.model import Model, capability
from probgen.language.viewed import Viewed
from probgen.records.codec import decodes
from probgen.records.history import History

PRIOR = "prior/"  # before the names of nets of the prior of a model's latent


@declaration(eq=False)
class Fitted(SavedFit, Viewed):
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

    def __repr__(self) -> str:
        ran = self.info.get("backend", "no backend")
        return f"Fitted({self.model!r}, {self.num_parameters():,} parameters, {ran})"


decodes("fitted", Fitted.__decode__)


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
