"""The one loop behind all samplers of a diffusion: a table, a row for each call of the network.

With n what the network says at x and at the row's time, and x_0 the datum that this implies:

    x' = A x + B n + M m + K (clip(x_0) - x_0) + S xi,    m' = D x + E n,    xi ~ N(0, I)

The columns are computed beforehand in float64, and those that a sampler has no use for are left
out, so that nothing is computed for them. One scan over the rows: its step is compiled once,
whatever their number, and another table of the same form compiles nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from probgen.backends.protocol import Backend
from probgen.engine.bound import Bound
from probgen.engine.target import START, Kernel, Target
from probgen.errors import AlgorithmError
from probgen.inference.sample.start_codes import check_nulls, nulls_by_call, start_rows
from probgen.inference.sample.within_prior import Drawn, given_prior, innermost
from probgen.language.capabilities import Denoises, MakesPairs, embedded, prior_of
from probgen.language.model import capability, family_of

Array = Any
Columns = dict[str, np.ndarray]  # [calls] each, by the names in `recursion`


class OneDraw:
    """What these are as a `Sampler`: one independent draw a sample, for `pg.generate` alone."""

    num_chains = 1
    num_warmup = 0
    num_draws = 1
    thinning = 1

    def kernel(self, backend: Backend, target: Target, num_calls: int | None = None) -> Kernel:
        """Refused: it follows a model, and climbs no density.

        Raises:
            AlgorithmError: always.
        """
        raise AlgorithmError(
            f"{type(self).__name__}: got a target to move chains on (pg.infer and learners), "
            "expected a sampler such as Langevin(1e-2); this one is for pg.generate."
        )

    def cure(self) -> str:
        """What to do where draws are NaN or infinite."""
        return "look at the parameters for NaN, and at the scales of the model's distributions"


class Reverse(OneDraw):
    """A sampler of a diffusion that is a table: `columns(model)` gives it; of a diffusion alone, or
    of one that is the prior of a latent, such as a VAE's."""

    guidance_scale: float = 1.0
    clip_sample_range: float | None = None
    of_priors = True  # it draws what has a diffusion as the prior of its latent, too
    is_one_piece = True  # a step is compiled as it is; else its parts have been

    def columns(self, model: Any) -> Columns:
        """The table, float64, the noisiest row first.

        Raises:
            AlgorithmError: the model's chain has no such steps.
        """
        raise NotImplementedError

    def step(self, bound: Bound) -> Callable:
        """(params, inputs, carry, row, key) -> carry: "x", "m" where the table has one; the carry
        that it is given has what is `beside` too."""
        return recursion(bound, self.guidance_scale, self.clip_sample_range)

    def beside(self, bound: Bound, batch: Mapping) -> dict[str, Array]:
        """Arrays that each step reads, the same at all."""
        return {}

    def along(self, bound: Bound, batch: Mapping) -> dict[str, Array]:
        """What a call finds among its inputs in place of what is the same at all calls, [calls,
        ...] by name: the null text of each step, where the draws start with such."""
        return nulls_by_call(bound, batch)

    def carried(self, bound: Bound, inputs: Mapping, x: Array) -> dict[str, Array]:
        """What a carry has beside x before the first call, from `embedded` inputs."""
        return {}

    def draws_of(self, bound: Bound) -> Callable:
        """(params, batch, key, num_samples) -> {"x": [num_samples, *shape]} of a diffusion; "z"
        beside "x" where that is the prior of z.

        Raises:
            AlgorithmError: there is no diffusion, or `columns` refuses it.
        """
        draws = self._draws(bound, keep=False)
        return lambda *given: draws(*given)[0]

    def path_of(self, bound: Bound) -> Callable:
        """As `draws_of`, and what the diffusion draws after each call of the net too, by name,
        [calls, num_samples, *shape].

        Raises:
            AlgorithmError: as `draws_of`.
        """
        return self._draws(bound, keep=True)

    def _draws(self, bound: Bound, keep: bool) -> Callable:
        if self.of_priors and prior_of(bound.model) is not None:
            return given_prior(bound, lambda part: self._draws(part, keep))
        bound = require_denoiser(bound, type(self).__name__)
        columns = self.columns(bound.model)
        run = runner(
            bound, self.step(bound), columns, keep=keep, is_one_piece=self.is_one_piece,
            carried=lambda inputs, x: self.carried(bound, inputs, x),
        )  # fmt: skip

        def draws(params: Mapping, batch: Mapping, key: Any, num_samples: int) -> Drawn:
            more = self.beside(bound, batch), self.along(bound, batch)
            found = run(params, batch, batch.get(START), key, num_samples, *more)
            x, path = found if keep else (found, None)
            return {"x": x}, {"x": path} if keep else {}

        return draws

    def times(self, model: Any) -> tuple[float, ...]:
        """The steps at which the network is asked, the noisiest first."""
        return tuple(float(t) for t in self.columns(innermost(model)[0])["time"])

    def num_calls(self, model: Any) -> int:
        """How often the network is called for a sample."""
        return len(self.columns(innermost(model)[0])["time"])

    def start_rows(self, model: Any, start: Any, num_samples: int) -> dict[str, np.ndarray]:
        """What the draws start from, by name, one row a sample.

        Raises:
            DataError: another site's values, or no numbers; null texts of another number of steps,
                or for a sampler that asks for none.
            ShapeError: another number of rows, or of another shape.
        """
        model, prefix = innermost(model)
        site, guides = prefix + start_site(model), getattr(self, "sampler", self)
        return start_rows(
            model, site, start, num_samples, self.num_calls(model), guides.guidance_scale
        )


def runner(
    bound: Bound, one: Callable, columns: Columns, *, keep: bool = False,
    carried: Callable | None = None, is_one_piece: bool = True,
) -> Callable:  # fmt: skip
    """(params, batch, start or None, key, num_samples, beside={}, along={}) -> the x that the table
    leads to; with `keep` that and what it was after each call.

    Without a start it is N(0, I). Beside and along: `Reverse.beside` and `Reverse.along`.
    """
    model: Any = bound.model
    b, shape, calls = bound.backend, tuple(model.shape), len(columns["time"])
    if hasattr(model, "check_times"):
        model.check_times(columns["time"])
    table = {k: b.asarray(v) for k, v in columns.items()}
    one = b.compile(one, num_calls=calls) if is_one_piece else one
    loops: dict[int, Callable] = {}

    def loop(num_samples: int) -> Callable:
        def run(
            params: Mapping, inputs: Mapping, given: Mapping, table: Any, beside: Mapping, key: Any,
            along: Mapping,
        ) -> Any:  # fmt: skip
            k_start, k_steps = b.split(key, 2)
            x = given["x"] if given else b.normal(k_start, (num_samples, *shape))
            inputs = embedded(model, params, inputs, x)
            check_nulls(model, inputs, along)
            carry = {"x": x, "m": b.ops.zeros_like(x)} if "m" in table else {"x": x}
            carry |= {} if carried is None else carried(inputs, x)

            def step(carry: Any, item: Any) -> tuple[Any, Any]:
                row, k, now = item
                carry = one(params, {**inputs, **now}, {**carry, **beside}, row, k)
                return carry, carry["x"] if keep else None

            carry, path = b.scan(step, carry, (table, b.split(k_steps, calls), dict(along)))
            return (carry["x"], path) if keep else carry["x"]

        return b.compile(run, over="steps")

    def run(
        params: Mapping, batch: Mapping, start: Any, key: Any, num_samples: int,
        beside: Mapping = MappingProxyType({}), along: Mapping = MappingProxyType({}),
    ) -> Any:  # fmt: skip
        if num_samples not in loops:
            loops[num_samples] = loop(num_samples)
        inputs = dict(bound.program_inputs(batch))
        given = {} if start is None else {"x": start}
        return loops[num_samples](params, inputs, given, table, dict(beside), key, dict(along))

    return run


def recursion(
    bound: Bound, guidance_scale: float, clip: float | None, ask: Callable | None = None
) -> Callable:
    """One row: (params, inputs, carry, row, key) -> carry.

    `ask` is (params, x, t, inputs) -> n, `model.predict` by default.

    Columns: "time" of the call; "x" (A) and "net" (B); "m" (M) with "m_x" (D) and "m_net" (E);
    "clipped" (K) with "clean_x" and "clean_net", of which x_0 is made; "std" (S).
    """
    b, ops = bound.backend, bound.backend.ops
    model: Any = bound.model

    def predict(params: Mapping, x: Array, t: Array, inputs: Mapping) -> Array:
        return model.predict(params, x, t, inputs, guidance_scale)

    ask = ask or predict

    def step(params: Mapping, inputs: Mapping, carry: Mapping, row: Mapping, key: Any) -> dict:
        x = carry["x"]
        t = ops.broadcast_to(row["time"], (x.shape[0],))
        n = ask(params, x, t, inputs)
        out = {"x": row["x"] * x + row["net"] * n}
        if "m" in row:
            out["x"] = out["x"] + row["m"] * carry["m"]
            out["m"] = row["m_x"] * x + row["m_net"] * n
        if clip is not None:
            clean = row["clean_x"] * x + row["clean_net"] * n
            out["x"] = out["x"] + row["clipped"] * (ops.clip(clean, -clip, clip) - clean)
        if "std" in row:
            out["x"] = out["x"] + row["std"] * b.normal(key, tuple(x.shape))
        return out

    return step


def start_site(model: Any) -> str:
    """The name of the site where the reverse chain starts."""
    return f"x_{len(model.table()['signal'])}"


def require_denoiser(bound: Bound, who: str) -> Bound:
    """The same bound without another guide, if it has a denoiser and a noise schedule.

    Raises:
        AlgorithmError: it is of another family.
    """
    model: Any = family_of(bound.model)
    bound = dataclasses.replace(bound, model=model)
    if capability(model, Denoises) is None:
        is_latent = capability(innermost(model)[0], Denoises) is not None
        if capability(model, MakesPairs) is not None:
            raise AlgorithmError(
                f"{who}: the steps of {model.name!r} are draws of a generator, with no prediction "
                "to leap by, nor one without the condition to guide away from, expected a "
                "Diffusion; leave the method out, guidance too, and give inputs={'condition': y}."
            )
        raise AlgorithmError(
            f"{who}: the model {model.name!r} has no denoiser and noise schedule"
            + (
                " of its data, but of its latent alone, expected a Diffusion; what draws from the "
                "prior of a latent is Ancestral, DDIM, ProbabilityFlowODE and DPMSolver."
                if is_latent
                else ", expected a Diffusion, or a model with one as its latent's prior, such as "
                "VAE(latent=Diffusion(...)); leave the method out to draw from other models."
            )
        )
    return bound


def guided(guidance_scale: float) -> str:
    """What a note adds about guidance."""
    if guidance_scale in (0.0, 1.0):
        return "" if guidance_scale else "; guidance 0, without the condition"
    return (
        f"; guidance {guidance_scale:g}: more of what the condition asks for than its data have, "
        "and no law that is known"
    )
