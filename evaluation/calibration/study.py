"""A model as a world to simulate: truths from its prior, data from its likelihood, then draws.

    theta ~ p(theta),   y ~ p(y | theta),   theta_1 .. theta_L ~ the method's posterior given y

One compiled simulator and one compiled density serve all simulated data sets. What is compared is
every scalar of every latent, and two quantities that look at data and latents together,
log p(y | theta) and log p(theta, y) (nats): latents alone cannot tell a method that ignores its
data and returns the prior. No statistics here: see `sbc`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from probgen.backends.protocol import Backend
from probgen.data.sources import as_arrays
from probgen.engine.batches import merge_inputs
from probgen.engine.bind import bind
from probgen.engine.bound import Bound
from probgen.engine.fitted import Fitted
from probgen.engine.posterior import Posterior
from probgen.errors import AlgorithmError, ShapeError, UnknownName
from probgen.language.dist import did_you_mean
from probgen.language.kinds import Count, between
from probgen.language.model import Model
from probgen.verbs.sampling import start

Values = dict[str, np.ndarray]
Simulations = Annotated[int, between(20, 10**7)]  # fewer make no test
Thinning = Count | Literal["auto"]
SIDE_BY_SIDE = 128  # data sets, at most, whose chains move together
LOG_LIKELIHOOD, LOG_JOINT = "log likelihood", "log joint"


class Round(NamedTuple):
    """One simulation: truth of each scalar quantity, and its draws [chain, draw]."""

    truth: dict[str, float]
    draws: Values


class Sampler(NamedTuple):
    """(data, key, seed) -> draws of the latents [chain, draw, ...] by name; and, where that can be,
    the same of many data sets by one key: (data sets, key) -> list of draws."""

    one: Callable[..., Values]
    many: Callable[..., list[Values]] | None = None


def scalars(values: Mapping[str, np.ndarray], lead: int) -> Values:
    """Each scalar of each array by name, with `lead` axes kept: "w[0, 2]"; a lone one is "w"."""
    out: Values = {}
    for name, value in values.items():
        value = np.asarray(value)
        shape = value.shape[lead:]
        flat = value.reshape(*value.shape[:lead], -1)
        for j, index in enumerate(np.ndindex(*shape)):
            label = f"{name}[{', '.join(map(str, index))}]" if flat.shape[-1] > 1 else name
            out[label] = flat[..., j]
    return out


class Study:
    """A model bound for simulation.

    Args:
        model: a declaration, or a `Fitted` (whose parameters are held).
        observed: the sites that stand for data; None is the site "x".
        num_data: rows of a simulated data set.
        inputs: what the program conditions on; arrays of `num_data` rows have one row a datum.
        quantities: further functions (theta, data) -> number, of dicts of arrays, by name.

    Raises:
        AlgorithmError: the density is not normalised, so that it has no prior draws; no latents; no
            parameters for a net.
        UnknownName: an observed site that the model does not have.
    """

    def __init__(
        self,
        model: Model | Fitted,
        *,
        observed: tuple[str, ...] | None,
        num_data: int,
        inputs: Mapping[str, Any] | None,
        seed: int,
        backend: str | Backend,
        device: str,
        quantities: Mapping[str, Callable] | None = None,
        who: str = "sbc",
    ):
        b, declared, given, constants = start(model, backend, device)
        shared, per_datum = merge_inputs(declared, {}, inputs, size=num_data)
        constants = {**constants, **shared}
        self.who, self.backend, self.num_data = who, b, num_data
        self.quantities = dict(quantities or {})
        prior, params = bind(
            declared, b, data=per_datum, constants=constants, params=given, seed=seed,
            num_data=num_data,
        )  # fmt: skip
        self.params = params
        self._check(prior, given)
        names = self._observed(prior, observed)
        self.inputs = {k: b.asarray(v) for k, v in per_datum.items()}
        self._families = {n: prior.structure.sites[n].family for n in names}
        self._draw = b.compile(lambda p, rows, key: self._run(prior, p, rows, key))
        self._names = names
        first = self._data(self._draw(params, self.inputs, b.key(seed)))
        self.bound, _ = bind(
            declared, b, data={**first, **per_datum}, constants=constants, params=given, seed=seed,
            num_data=num_data,
        )  # fmt: skip
        self.posterior = Posterior(self.bound, num_data)
        self._density = b.compile(self._log_densities, over="leading")

    def _check(self, bound: Bound, given: Any) -> None:
        if not bound.is_normalized:
            raise AlgorithmError(
                f"{self.who}: the density of {bound.model.name!r} is known up to a constant "
                f"(factors {bound.structure.factors}), so it has no prior draws to calibrate "
                "against; write it with pg.sample alone."
            )
        missing = sorted(set(bound.structure.nets) - {*bound.model.fitted_params(), *(given or {})})
        if missing:
            raise AlgorithmError(
                f"{self.who}: the nets {missing} of {bound.model.name!r} have no parameters, "
                "expected fitted ones; give what pg.fit returns."
            )

    def _observed(self, bound: Bound, observed: tuple[str, ...] | None) -> tuple[str, ...]:
        names = [n for n, s in bound.structure.sites.items() if s.kind == "sample"]
        chosen = ("x",) if observed is None else tuple(observed)
        if isinstance(observed, str) or not chosen:
            raise AlgorithmError(
                f"{self.who}: got observed={observed!r}, expected a tuple of site names, such as "
                f"('{names[-1]}',)."
            )
        for name in chosen:
            if name not in names:
                if observed is None:
                    raise UnknownName(
                        f"{self.who}: got no observed=, and {bound.model.name!r} has no site 'x' "
                        "that would stand for the data by default, expected the names of its data "
                        f"among {names}; say which sites are data, observed=({names[-1]!r},), say."
                    )
                raise UnknownName(
                    f"{self.who}: got observed={chosen} with {name!r}, expected some of {names}"
                    f"{did_you_mean(name, names)}; say which sites are data: observed=(...)."
                )
        if not set(bound.latents) - set(chosen):
            raise AlgorithmError(
                f"{self.who}: the sites {sorted(chosen)} are all that {bound.model.name!r} has, "
                "expected at least one latent to infer; name fewer sites as observed."
            )
        return chosen

    def _run(self, bound: Bound, params: Any, rows: Any, key: Any) -> dict[str, Any]:
        sites = bound.trace(params, rows, key=key, batch_size=self.num_data, condition=False)
        return {
            n: s.value
            for n, s in sites.items()
            if s.kind == "sample" and not bound.structure.sites[n].is_fixed
        }

    def _data(self, values: Mapping[str, Any]) -> Values:
        """The observed sites as a user would give them: floats, except for classes and counts."""
        out = {}
        for name in self._names:
            value = self.backend.to_numpy(values[name])
            indexing = self._families[name] in ("Categorical", "OrderedLogistic")
            out[name] = np.asarray(value, np.int32 if indexing else np.float32)
        return as_arrays(out)

    def simulate(self, key: Any) -> tuple[Values, Values]:
        """(latents, data) from prior and model, numpy."""
        values = self._draw(self.params, self.inputs, key)
        latents = {n: self.backend.to_numpy(values[n]) for n in self.bound.latents}
        return latents, self._data(values)

    def rows(self, data: Values) -> dict[str, Any]:
        """Data, inputs of each datum and shared inputs, on the backend."""
        b = self.backend
        shared = {k: v for k, v in self.bound.constants.items() if hasattr(v, "shape")}
        return {**shared, **{k: b.asarray(v) for k, v in data.items()}, **self.inputs}

    def _log_densities(self, latents: Mapping, params: Any, rows: Any) -> tuple[Any, Any]:
        """(log p(y | theta), log p(theta, y)), each [], in the latents' own coordinates."""
        sites = self.bound.trace(params, rows, latents, batch_size=self.num_data)
        ops = self.backend.ops
        sums = {n: ops.sum(s.log_prob) for n, s in sites.items() if s.kind == "sample"}
        likelihood = sum(v for n, v in sums.items() if n not in self.bound.latents)
        return likelihood, sum(sums.values())

    def log_densities(self, latents: Values, data: Values) -> tuple[np.ndarray, np.ndarray]:
        """log p(y | theta) and log p(theta, y) for latents [S, ...], each [S], nats."""
        b = self.backend
        held = {n: b.asarray(v) for n, v in latents.items()}
        both = self._density(held, self.params, self.rows(data))
        return tuple(np.asarray(b.to_numpy(v), np.float64) for v in both)  # type: ignore

    def in_parts(
        self, sampler: Sampler, seeds: Sequence[tuple[Any, int]], num_draws: int
    ) -> Iterator[Round]:
        """A simulation for each (key, seed); side by side in parts of one length, the last of which
        is filled up, so that it compiles nothing."""
        num = len(seeds)
        size = 1 if sampler.many is None else -(-num // -(-num // SIDE_BY_SIDE))
        for at in range(0, num, size):
            part = seeds[at : at + size]
            filled = [*part, *[part[-1]] * (size - len(part))]
            keys, own = zip(*filled, strict=True)
            yield from islice(self.rounds(sampler, keys, own, num_draws), len(part))

    def rounds(
        self, sampler: Sampler, keys: Sequence[Any], seeds: Sequence[int], num_draws: int
    ) -> Iterator[Round]:
        """Simulations: of each, truth and `num_draws` draws of every quantity."""
        split = [self.backend.split(key, 2) for key in keys]
        worlds = [self.simulate(key_world) for key_world, _ in split]
        data = [made for _, made in worlds]
        draws: Iterable[Values]
        if sampler.many is not None:
            draws = sampler.many(data, split[0][1])
        else:
            draws = (
                sampler.one(made, key, seed)
                for made, (_, key), seed in zip(data, split, seeds, strict=True)
            )
        for (truth, made), found in zip(worlds, draws, strict=True):
            yield self._round(truth, made, found, num_draws)

    def _round(self, truth: Values, data: Values, found: Values, num_draws: int) -> Round:
        lead = next(iter(found.values())).shape[:2]
        draws = {}
        for name, value in found.items():
            shape = truth[name].shape
            # A guide's particles stand in front of as many singleton axes as plates are deep.
            if value.size != int(np.prod([*lead, *shape])) or value.shape[:2] != lead:
                raise ShapeError(
                    f"{self.who}: got draws of {name!r} of shape {value.shape}, expected (chains, "
                    f"draws, {', '.join(map(str, shape))}); one value for each draw."
                )
            draws[name] = value.reshape(*lead, *shape)
        if lead[0] * lead[1] < num_draws:
            raise ShapeError(
                f"{self.who}: got {lead[0]} x {lead[1]} draws, expected at least {num_draws}; "
                "let the method draw more, or ask for fewer: num_draws=..."
            )
        flat = {n: v.reshape(-1, *v.shape[2:]) for n, v in draws.items()}
        both = {n: np.concatenate([truth[n][None], v]) for n, v in flat.items()}
        likelihood, joint = self.log_densities(both, data)
        extra = {LOG_LIKELIHOOD: likelihood, LOG_JOINT: joint}
        for name, fn in self.quantities.items():
            theta = ({n: v[i] for n, v in both.items()} for i in range(len(likelihood)))
            extra[name] = np.array([float(fn(t, data)) for t in theta])
        known = {k: float(v) for k, v in scalars(truth, 0).items()}
        known |= {k: float(v[0]) for k, v in extra.items()}
        given = scalars(draws, 2) | {k: v[1:].reshape(lead) for k, v in extra.items()}
        return Round(known, given)
