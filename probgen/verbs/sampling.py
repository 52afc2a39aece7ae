"""The chains of a call of `infer`: run here, or each by itself by workers.

One text for both: a `Sampling` is plain data, and `start` binds the model and its posterior.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from probgen.backends import resolve
from probgen.backends.chains import Chains, WarmStart
from probgen.backends.protocol import Backend
from probgen.data.checks import on_device
from probgen.engine import provenance
from probgen.engine.bind import bind
from probgen.engine.chain_pieces import Pieces
from probgen.engine.data_support import check_plain
from probgen.engine.explain import explain
from probgen.engine.fitted import AnyModel, Fitted
from probgen.engine.markov import draw_posterior
from probgen.engine.posterior import Posterior
from probgen.engine.target import Sampler
from probgen.errors import AlgorithmError, NonFiniteError
from probgen.language.model import Model

WARM = 0x3A12  # by what the key of chains that go on is told from that of chains that begin


def start(
    model: AnyModel, backend: str | Backend, device: str
) -> tuple[Backend, Model, Any, dict[str, Any]]:
    """(backend, declaration, parameters, constants); JAX, where nothing says otherwise."""
    if isinstance(model, Fitted):
        b = model.resolve(backend, device)
        return b, model.model, model.params, dict(model.constants)
    return resolve(backend, device, prefer=model.backend or "jax"), model, None, {}


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Chains as `infer` is asked for them; see there.

    Attributes:
        given: parameters of nets, or None.
        rows: data and inputs with one row a datum.
        backend, device: as `backends.resolve` takes them; a worker finds its own device.
        warm: where the chains go on from, if not anew.
    """

    model: Model
    method: Sampler
    given: Mapping[str, Any] | None
    constants: dict[str, Any]
    rows: dict[str, np.ndarray]
    num_data: int | None
    seed: int
    backend: str | Backend
    device: str
    warm: WarmStart | None = None

    def made(self) -> dict[str, Any]:
        """What the draws depend on."""
        return provenance.of_posterior(
            self.model, self.method, resolve(self.backend, self.device), seed=self.seed,
            rows=self.rows, constants=self.constants,
            params={**self.model.fitted_params(), **(self.given or {})}, num_data=self.num_data,
            warm=self.warm,
        )  # fmt: skip

    def start(self) -> Walker:
        """It, ready to run chains."""
        walker = Walker(self, resolve(self.backend, self.device))
        walker.place()
        return walker


class Walker:
    """A sampling on a backend: the number of a chain -> its draws, "free", "stats" and what it
    "learned" by name."""

    def __init__(self, sampling: Sampling, backend: Backend):
        self.sampling, self.backend = sampling, backend
        self.bound, self.params = bind(
            sampling.model, backend, data=sampling.rows, constants=sampling.constants,
            params=sampling.given, seed=sampling.seed, whole=True, num_data=sampling.num_data,
        )  # fmt: skip
        self.posterior = Posterior(self.bound, self.bound.num_rows)

    def place(self) -> None:
        """Puts the data on the device, and looks whether they lie in their supports."""
        everything = {**self.sampling.constants, **self.sampling.rows}
        arrays = {k: v for k, v in everything.items() if isinstance(v, np.ndarray)}
        # Everything that is an array is an argument, so that other data need no other program.
        self.placed = on_device(self.backend, arrays)
        self.key = self.backend.key(self.sampling.seed)
        check_plain(self.bound, self.params, self.sampling.rows, self.key)
        self.token = self.posterior.token(self.params, self.placed, self.key)

    def run(self, pieces: Pieces, progress_bar: bool) -> Chains:
        """The chains that the pieces say.

        Raises:
            NonFiniteError: no start has a finite density; says why.
        """
        posterior, params, placed, key = self.posterior, self.params, self.placed, self.key
        method, warm = self.sampling.method, self.sampling.warm
        if warm is not None:
            pieces.warm = warm.of(pieces.numbers(method.num_chains))
            # On the noise of the run before, chains would draw near to where those there went.
            key = self.backend.fold_in(self.backend.fold_in(key, WARM), warm.transitions)
        try:
            return draw_posterior(
                method, posterior, params, placed, key, self.token, progress_bar, pieces
            )
        except NonFiniteError as error:
            why = explain(self.bound, params, placed, key, posterior.num_rows)
            raise NonFiniteError(f"{str(error).rstrip('.')}{why}.") from error

    def __call__(self, chain: int) -> dict[str, dict[str, np.ndarray]]:
        found = self.run(Pieces(only=chain), False)
        if any(len(v) != 1 for v in found.free.values()):
            name = type(self.sampling.method).__name__
            raise AlgorithmError(
                f"infer: {name} ran all its chains where one was asked for, expected a `draws` "
                "that runs those of pieces.numbers(num_chains); leave executor out."
            )
        one = {"free": found.free, "stats": found.stats, "learned": found.learned}
        return {g: {n: v[0] for n, v in values.items()} for g, values in one.items() if values}
