"""The log density that samplers walk on: all latents of a bound model, on the whole real line.

With u the unconstrained latents and theta = T(u), where T is the bijection of each latent's support
(which may itself depend on other latents):

    log p(u | data) = sum of every site's log p(theta, data) + log |det dT/du| + const,   nats

All data are one batch, and nothing is scaled, unless they stand for more data than they are. Data
and inputs are arguments, so that what was compiled for one data set serves the next. No sampler
here: see `probgen.inference.sample`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from probgen.backends.chains import NUM_STARTS, Chains, Start
from probgen.engine.bound import Bound
from probgen.engine.combinations import probabilities
from probgen.engine.data_types import cure, cure_discrete
from probgen.engine.enumeration import check_supports, first_values, summed
from probgen.engine.messages import in_loops
from probgen.engine.target import Target
from probgen.errors import AlgorithmError, NonFiniteError, SupportError
from probgen.language.run import DATA_PLATE
from probgen.trees import tree_leaves, tree_map

Array = Any
Tree = Any
CHUNK_ELEMENTS = 2**22  # numbers that one chunk of draws may hold while they are mapped


class Point(NamedTuple):
    """One point of the posterior.

    Attributes:
        free: the latents on the real line, by site name.
        log_density: [] see above.
        values: latents (in their supports) and deterministic sites, [*plates, *event].
        log_likelihood: of each observed site, [*plates], nats.
        site_log_prob: [] of each site.
        outside: [] of each observed or given site, how many values lie outside its support.
    """

    free: dict[str, Array]
    log_density: Array
    values: dict[str, Array]
    log_likelihood: dict[str, Array]
    site_log_prob: dict[str, Array]
    outside: dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Posterior:
    """A bound model's latents given data.

    Attributes:
        bound: the model, with names of what is observed.
        num_rows: size of the data plate, or None when there are no data.
    """

    bound: Bound
    num_rows: int | None

    @property
    def scale(self) -> float:
        """How many data each row of the data plate stands for."""
        if self.num_rows is None or self.bound.num_data is None:
            return 1.0
        return self.bound.num_data / self.num_rows

    @property
    def latents(self) -> tuple[str, ...]:
        return self.bound.latents

    @property
    def observed(self) -> tuple[str, ...]:
        sites = self.bound.structure.sites
        latents = {*self.latents, *self.bound.enumerated}
        return tuple(n for n, s in sites.items() if s.kind == "sample" and n not in latents)

    def check(self) -> None:
        """Refuses a model that has no posterior to sample.

        Raises:
            AlgorithmError: no latents, or a discrete one.
        """
        name, sites = self.bound.model.name, self.bound.structure.sites
        if not self.latents and self.bound.enumerated:
            raise AlgorithmError(
                f"infer: all latents of {name!r}, {list(self.bound.enumerated)}, are discrete and "
                "summed out exactly, expected a continuous one to draw; fitted.encode(data) gives "
                "the probabilities of their values."
            )
        if not self.latents:
            raise AlgorithmError(
                f"infer: the data observe all sites of {name!r}, {sorted(self.observed)}, expected "
                "at least one latent to infer; leave its data out, or use pg.evaluate."
            )
        shared = [n for n in self.latents if sites[n].is_local]
        if self.scale != 1.0 and shared:
            raise AlgorithmError(
                f"infer: got num_data={self.bound.num_data} for {self.num_rows} rows of data and "
                f"the latents {shared} of {name!r}, one a datum, expected global ones alone, since "
                "each row would stand for several; leave num_data out."
            )
        for latent in self.latents:
            if sites[latent].is_discrete:
                raise AlgorithmError(
                    f"infer: latent {latent!r} of {name!r} is discrete "
                    f"({sites[latent].distribution}), expected continuous latents, since the "
                    "chains follow gradients; "
                    f"{cure_discrete(sites[latent].scan)}, or give it as data."
                )

    def point(
        self,
        params: Mapping,
        rows: Mapping[str, Array],
        free: Mapping[str, Array] | None = None,
        *,
        key: Any = None,
        given: Mapping[str, Array] | None = None,
        strategy: str = "init_to_uniform",
    ) -> Point:
        """The posterior at `free`; what `free` leaves out starts at `given`, or by the strategy."""
        bound, b = self.bound, self.bound.backend
        program = bound.model.program

        def run(free: Mapping, discrete: Mapping) -> tuple:
            return b.unconstrained(
                program,
                params,
                names=self.latents,
                free=free,
                given=given or {},
                strategy=strategy,
                values={**{n: rows[n] for n in bound.observed}, **discrete},
                inputs=bound.inputs(program, rows, f"model {bound.model.name!r}"),
                key=key,
                batch_size=self.num_rows,
            )

        if bound.enumerated:
            return self._summed_point(run, dict(free or {}), given or {})
        sites, free, log_det = run(free or {}, {})
        sums = {
            n: b.total(s.log_prob) * (self.scale if s.is_local else 1.0)
            for n, s in sites.items()
            if s.log_prob is not None
        }
        total: Any = 0.0
        for value in [*sums.values(), *self._volumes(log_det)]:
            total = total + value
        outside, likelihood = {}, {}
        for name in self.observed:
            fn, value = sites[name].fn, sites[name].value
            likelihood[name] = b.log_prob(fn, value)
            inside = b.in_support(fn, value)
            if inside is None:
                continue
            outside[name] = b.ops.sum(b.ops.where(inside, 0.0, 1.0))
            # A density need not look where its support ends: NumPyro's Uniform does not.
            if b.has_moving_support(fn):
                nowhere = b.ops.full_like(total, -np.inf)
                total = b.ops.where(outside[name] > 0, nowhere, total)
        for name, value in (given or {}).items():
            outside[name] = _moved_away(b.ops, sites[name].value, value)
        values = {
            n: s.value for n, s in sites.items() if n in self.latents or s.kind == "deterministic"
        }
        return Point(dict(free), total, values, likelihood, sums, outside)

    def _summed_point(self, run: Callable, free: dict, given: Mapping) -> Point:
        """`point` with the discrete latents summed out; their probabilities are among its values,
        as "<site>/probs"."""
        bound, b = self.bound, self.bound.backend
        ops = b.ops
        # Where each datum has latents of its own, each lies inside by its own value of them.
        is_each = all(bound.structure.sites[n].is_local for n in bound.enumerated)
        looped = in_loops(bound.structure, bound.enumerated)
        loops = {bound.structure.sites[n].scan for n in looped}
        if set(free) != set(self.latents):
            first = first_values(b, bound.structure, bound.enumerated, self.num_rows)
            free = dict(run(free, first)[1])

        def at(discrete: Mapping) -> tuple[dict, dict]:
            sites, _, log_det = run(free, discrete)
            sites, outside = dict(sites), {}
            for name in self.observed:
                fn, value = sites[name].fn, sites[name].value
                inside = b.in_support(fn, value)
                is_moving = b.has_moving_support(fn)
                # Along a long loop what lies outside is impossible moment by moment.
                if inside is None or (is_moving and bound.structure.sites[name].scan in loops):
                    continue
                bad = bound.structure.over_plates(ops, name, ops.where(inside, 0.0, 1.0))
                outside[name] = bad
                if is_moving:
                    # Of a datum that lies outside, this value of the latent is impossible.
                    log_prob = ops.where(bad > 0, -np.inf, sites[name].log_prob)
                    sites[name] = sites[name]._replace(log_prob=log_prob)
            check_supports(b, sites, self.latents, bound.enumerated, "infer")
            values = {n: sites[n].value for n in self.latents}
            return sites, {"log_det": log_det, "outside": outside, "values": values}

        found = summed(
            b, bound.structure, bound.enumerated, at, self.num_rows, "infer",
            is_whole=self.scale == 1.0, is_told=True,
        )  # fmt: skip
        sites, extra = found.sites, found.extra
        sums = {
            n: ops.sum(s.log_prob) * (self.scale if s.is_local else 1.0)
            for n, s in sites.items()
            if s.log_prob is not None
        }
        total: Any = 0.0
        for value in [
            *sums.values(),
            *self._volumes({n: v[0] for n, v in extra["log_det"].items()}),
        ]:
            total = total + value
        values = {n: v[0] for n, v in extra["values"].items()}
        values |= {n: s.value for n, s in sites.items() if s.kind == "deterministic"}
        for name in bound.enumerated:
            values[f"{name}/probs"] = probabilities(b, bound.structure, found, name)
        outside = {}
        for name, v in extra["outside"].items():
            each = v if is_each else ops.sum(ops.reshape(v, (v.shape[0], -1)), axis=-1)
            outside[name] = ops.sum(ops.min(each, axis=0))
        for name, value in given.items():
            outside[name] = _moved_away(ops, values[name], value)
        likelihood = {n: found.each.get(n, sites[n].log_prob) for n in self.observed}
        return Point(dict(free), total, values, likelihood, sums, outside)

    def _volumes(self, log_det: Mapping[str, Array]) -> list[Array]:
        """Of each latent, as often as its rows stand for data."""
        sites, ops = self.bound.structure.sites, self.bound.backend.ops
        return [ops.sum(v) * (self.scale if sites[n].is_local else 1.0) for n, v in log_det.items()]

    def each(self, fn: Callable) -> Callable:
        """fn(x, params, rows) at each x along a leading axis, that of chains."""
        return self.bound.backend.each(fn)

    def points(self, x: Mapping, params: Mapping, rows: Mapping) -> Point:
        """`point` at each of n positions, every field with that axis in front."""
        one = self.bound.backend.vmap(
            lambda free, params, rows: self.point(params, rows, free), in_axes=(0, None, None)
        )
        return one(dict(x), params, rows)

    def free_shapes(self, params: Any, rows: Any, key: Any, token: Any) -> dict[str, tuple]:
        """Of each latent on the real line."""
        b = self.bound.backend

        def feasible(params: Any, rows: Any, key: Any) -> dict[str, Array]:
            return self.point(params, rows, key=key, strategy="init_to_feasible").free

        found = b.compile(feasible, num_calls=1, token=token and (token, "feasible"))
        return {n: tuple(v.shape) for n, v in found(params, rows, key).items()}

    def target(self) -> Target:
        """What a sampler's kernel climbs: n chains of all latents on the real line, which start
        uniform in (-2, 2) there."""
        b = self.bound.backend

        def init(params: Mapping, rows: Mapping, key: Any, n: int) -> dict:
            k_form, k_draw = b.split(key, 2)
            free = self.point(params, rows, key=k_form, strategy="init_to_feasible").free
            keys = b.split(k_draw, len(free))
            return {
                name: 4.0 * b.uniform(k, (n, *value.shape)) - 2.0
                for k, (name, value) in zip(keys, sorted(free.items()), strict=True)
            }

        return Target(
            self.latents, init,
            lambda x, params, rows: self.points(x, params, rows).log_density, None,
            lambda x, params, rows: self.points(x, params, rows).values, False,
        )  # fmt: skip

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a latent's value, [*plates, *event]."""
        structure = self.bound.structure
        site = structure.sites[name]
        sizes = {**structure.plate_sizes, DATA_PLATE: self.num_rows or 1}
        # Plates are opened from the right: the outermost is an array's last plate axis.
        return (*(sizes[p] for p in site.plates[::-1]), *site.event_shape)

    def check_start(self, start: Start, is_warm: bool = False) -> None:
        """Refuses starting points of which one is not good; a warm start's are no tries.

        Raises:
            SupportError: data lie outside the support of their site, wherever the chains start, or
                a start does.
            NonFiniteError: no start has a finite log density and gradient; names the sites.
        """
        if start.ok.all():
            return
        chain = int(np.argmin(start.ok))
        name = self.bound.model.name
        outside = {n: int(v[chain]) for n, v in start.outside.items() if v[chain] > 0}
        if outside:
            site, count = next(iter(outside.items()))
            info = self.bound.structure.sites[site]
            if site in self.latents:
                raise SupportError(
                    f"infer: chain {chain} of {name!r} is told to start {site!r} outside the "
                    f"support of {info.family} ({info.mass}), expected a value inside, where "
                    "the other latents are; give one: "
                    f"init_strategy={{{site!r}: value}}."
                )
            if is_warm:
                raise SupportError(
                    f"data {site!r}: {count} values lie outside the support of {info.family} "
                    f"({info.mass}), where chain {chain} of warm_start stands, expected data that "
                    "are possible there; leave warm_start out."
                )
            raise SupportError(
                f"data {site!r}: {count} values lie outside the support of {info.family} "
                f"({info.mass}), at {NUM_STARTS} starting points of {name!r}. "
                f"{cure(info.family)} Or give starting values, if the support depends on latents: "
                "init_strategy={'site': value}."
            )
        bad = sorted(n for n, v in start.site_log_prob.items() if not np.isfinite(v[chain]))
        what = f"log probability of {', '.join(map(repr, bad))}" if bad else "gradient"
        if is_warm:
            raise NonFiniteError(
                f"infer: chain {chain} of {name!r} cannot go on from warm_start: the {what} is NaN "
                "or infinite there, expected a finite log density; leave warm_start out where data "
                "or model have changed that much."
            )
        raise NonFiniteError(
            f"infer: chain {chain} of {name!r} found no start: the {what} is NaN or infinite at "
            f"{NUM_STARTS} points, expected a finite log density; look at the data and priors of "
            "these sites, or give starting values: init_strategy={'site': value}."
        )

    def token(self, params: Any, rows: Any, key: Any) -> Any:
        """What identifies the posterior's computation at these shapes, for `backend.compile`."""
        b = self.bound.backend
        return b.fingerprint(
            lambda params, rows, key: self.point(params, rows, key=key), params, rows, key
        )

    def map_draws(
        self, what: str, chains: Chains, params: Any, rows: Any, token: Any, chunk: int | None
    ) -> dict[str, np.ndarray]:
        """A field of `Point` ("values", "log_likelihood") at every draw: [chain, draw, ...].

        `chunk` draws are worked through at a time, by default as many as memory easily holds; the
        last chunk is filled up, so that all have one shape.
        """
        b = self.bound.backend

        def one(free: Any, params: Any, rows: Any) -> Any:
            return getattr(self.point(params, rows, free), what)

        lead = next(iter(chains.free.values())).shape[:2]
        flat = {n: v.reshape(-1, *v.shape[2:]) for n, v in chains.free.items()}
        total = lead[0] * lead[1]
        if chunk is None:
            # The data's size stands for what a program makes of them on the way to what is asked.
            size = sum(int(np.prod(v.shape[1:])) for v in flat.values())
            kinds = {site.kind for site in self.bound.structure.sites.values()}
            if what != "values" or "deterministic" in kinds:
                size += sum(int(np.prod(np.shape(v))) for v in tree_leaves(rows))
            chunk = max(1, CHUNK_ELEMENTS // max(size, 1))
        if chunk < 1:
            raise AlgorithmError(f"infer: got chunk_size={chunk}, expected at least 1.")
        chunk = min(chunk, total)
        function = b.compile(
            one, num_calls=-(-total // chunk), over="leading", token=token and (token, what)
        )
        parts = []
        for start in range(0, total, chunk):
            index = np.minimum(np.arange(start, start + chunk), total - 1)
            out = function({n: b.asarray(v[index]) for n, v in flat.items()}, params, rows)
            parts.append(tree_map(lambda x, s=start: b.to_numpy(x)[: total - s], out))
        return {
            n: np.concatenate([p[n] for p in parts]).reshape(*lead, *parts[0][n].shape[1:])
            for n in parts[0]
        }


def _moved_away(ops: Any, back: Array, value: Array) -> Array:
    """How many numbers a bijection and its inverse do not bring back: past its bounds they give
    NaN, or another value."""
    same = ops.abs(back - value) <= 1e-3 * ops.abs(value) + 1e-6
    return ops.sum(ops.where(same, 0.0, 1.0))
