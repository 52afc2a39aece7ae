"""Diffusion models: a Markov chain from noise to data whose steps are learned by denoising.

With alpha_bar_t = prod_{s <= t} (1 - beta_s), t = 0 ... T-1,

    x_t = sqrt(alpha_bar_t) x + sqrt(1 - alpha_bar_t) eps                       (forward)
    x_{t-1} ~ N(mu_theta(x_t, t), s_t^2 I),  x_T ~ N(0, I)                      (the program)

s_t^2 is beta~_t = beta_t (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t), that of q(x_{t-1} | x_t, x), or
beta_t, whatever is learned. Source: Ho, Jain & Abbeel 2020, arXiv:2006.11239.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

import probgen as pg
from probgen import dist, ops
from probgen.errors import ShapeError, SupportError
from probgen.language.declared import declaration, require
from probgen.language.kinds import AnyNet, Width
from probgen.language.model import Model, Sketch
from probgen.models.conditioning import (
    check_condition,
    condition_rows,
    declared_context,
    guided,
    null_of,
    require_maps,
)
from probgen.models.noise_schedule import NoiseSchedule
from probgen.models.random_step import RandomStep
from probgen.nets import MapReplacement

Array = Any


@declaration
class Diffusion(Model):
    """A diffusion prior over data of shape `shape`.

    Args:
        denoiser: a net (x_t, t) -> array like x_t; t is [batch], in 0 ... T-1. With a condition it
            gets the context [batch, m, d] as a third input.
        shape: of one datum.
        schedule: the noise.
        prediction_type: what the net predicts: "epsilon" (the noise), "sample" (x_0) or
            "v_prediction" (sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0).
        condition: a net from the program's input "condition", one row a datum, to the context, such
            as `nets.ClassEmbedding(10, 64)`; give it as inputs={"condition": y}. What a condition
            net may have more, such as a null for guidance: `probgen/nets/conditions.py`.
        data_range: smallest and largest value of the data, where they have any; data outside it are
            refused.
        variance_type: s_t^2 of the steps, by diffusers' names: "fixed_small" is beta~_t, right for
            data that are one point each; "fixed_large" is beta_t, right for data of smooth density
            and unit variance, such as codes of a VAE, whose bound it raises by some tenths of a nat
            a dimension. The net and its learning are the same for both, but for weighting="elbo".

    Sites: "x_T", "x_{T-1}", ..., "x_1", "x". Nets: "denoiser" and, with a condition, "condition".
    The forward process, which has no parameters, is its guide, so that it can be the prior of a
    latent. By itself learn it with `Denoising`, which draws one step a datum; a variational bound
    runs all T, or beyond 200 one random step that stands for all (`models/random_step.py`).

    Raises (when bound):
        ShapeError: the denoiser's output has another shape than x_t.
        UnknownName: the condition is missing; DataError: it has values of no meaning to its net.
        SupportError: data outside `data_range`.
    """

    denoiser: AnyNet
    shape: tuple[Width, ...]
    schedule: NoiseSchedule = dataclasses.field(default_factory=NoiseSchedule)
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    condition: AnyNet | None = None
    data_range: tuple[float, float] | None = None
    variance_type: Literal["fixed_small", "fixed_large"] = dataclasses.field(
        default="fixed_small", kw_only=True
    )

    def __post_init__(self) -> None:
        low, high = self.data_range or (0.0, 1.0)
        require(low < high, self, "a smaller and a larger number", "data_range")
        require(
            self.prediction_type != "epsilon" or not self.schedule.ends_in_noise, self,
            "'v_prediction' or 'sample' for a schedule whose last step has no signal, at which the "
            "noise tells nothing of the datum",
            "prediction_type", "schedule",
        )  # fmt: skip

    @property
    def program(self) -> Any:
        # Two, since an argument of a program is an input that it needs.
        if self.condition is None:
            return lambda: self._chain(None)
        return lambda condition: self._chain(condition)

    def _chain(self, condition: Any) -> None:
        total = self.schedule.num_train_timesteps
        table = self.table()
        with pg.data_plate():
            unit = dist.Normal(0.0, 1.0).expand(self.shape).to_event(len(self.shape))
            x = pg.sample(f"x_{total}", unit)
            context = self.context_of(condition, x)
            for t in reversed(range(total)):
                predicted = pg.net("denoiser", self.denoiser)(
                    x, times_like(x, t, self.shape), *context
                )
                check_output(self, predicted)
                row = {k: float(v[t]) for k, v in table.items()}
                loc = self.posterior_mean(x, predicted, row)
                step = dist.Normal(loc, row["std"]).to_event(len(self.shape))
                x = pg.sample(f"x_{t}" if t else "x", step)

    def context_of(self, condition: Any, x: Array) -> list[Array]:
        """What a program gives the denoiser beside x [*lead, *shape] and its times."""
        return declared_context(self.condition, condition, x, len(self.shape))

    @property
    def guide(self) -> Any:  # type: ignore[override]
        def guide(x: Array) -> None:
            with pg.data_plate():
                for t, beta in enumerate(self.schedule.betas()):
                    step = dist.Normal(math.sqrt(1.0 - beta) * x, math.sqrt(beta))
                    x = pg.sample(f"x_{t + 1}", step.to_event(len(self.shape)))

        return guide

    def check_rows(self, rows: Mapping[str, Any]) -> None:
        """Refuses data outside `data_range` and conditions that the condition net does not know."""
        check_condition(self.condition, rows)
        check_range(self, rows)

    def table(self) -> dict[str, np.ndarray]:
        """Per-step constants, [T] each: signal, noise, the posterior's mean, the step's std, and
        what that costs, the KL in nats a dimension of a posterior of the same mean.

        The std of the last step, t = 0, is a choice where it is "fixed_small": that of the step
        before it, at least sqrt(1/2) of the noise at t = 0. With the noise itself the bound of
        smooth data would be highest, by at most 0.16 nats a dimension.
        """
        beta, bar = self.schedule.betas(), self.schedule.alphas_bar()
        before = np.concatenate([[1.0], bar[:-1]])
        variance = beta * (1.0 - before) / (1.0 - bar)
        # At t = 0 the posterior variance is zero. Where betas grow the next one is above half of
        # beta_0; of "edm" in many steps it would be far below.
        variance[0] = max(variance[1], 0.5 * beta[0]) if len(variance) > 1 else beta[0]
        ratio = np.ones_like(beta)
        if self.variance_type == "fixed_large":
            ratio[1:], variance = variance[1:] / beta[1:], beta
        return {
            "signal": np.sqrt(bar),
            "noise": np.sqrt(1.0 - bar),
            "of_x0": np.sqrt(before) * beta / (1.0 - bar),
            "of_xt": np.sqrt(1.0 - beta) * (1.0 - before) / (1.0 - bar),
            "std": np.sqrt(variance),
            "std_kl": 0.5 * (ratio - 1.0 - np.log(ratio)),
        }

    def clean(self, x_t: Array, predicted: Array, row: dict[str, Any]) -> Array:
        """The estimate of x_0 from the net's prediction at one step."""
        if self.prediction_type == "sample":
            return predicted
        if self.prediction_type == "v_prediction":
            return row["signal"] * x_t - row["noise"] * predicted
        return (x_t - row["noise"] * predicted) / row["signal"]

    def noise_of(self, x_t: Array, predicted: Array, row: dict[str, Any]) -> Array:
        """The estimate of eps from the net's prediction at one step."""
        if self.prediction_type == "epsilon":
            return predicted
        if self.prediction_type == "v_prediction":
            return row["noise"] * x_t + row["signal"] * predicted
        return (x_t - row["signal"] * predicted) / row["noise"]

    def predict(
        self,
        params: Mapping,
        x_t: Array,
        t: Array,
        batch: Mapping,
        guidance_scale: float = 1.0,
        dropped: Array | None = None,
    ) -> Array:
        """What the net predicts, [n, *shape]: the one way in which the network is asked.

        Args:
            params: by net.
            x_t: [n, *shape].
            t: [n] index of the step, 0 ... T-1; a fraction lies between two steps.
            batch: the program's inputs by name, or what `embedded` makes of them.
            guidance_scale: s of classifier-free guidance: 0 unconditional, 1 conditional.
            dropped: [n] of which data the condition is left out.

        Raises:
            AlgorithmError: guidance or dropping of a model without an unconditional branch.
            ShapeError: the condition has another number of rows than x_t.
        """
        net: Any = self.denoiser
        plain = guidance_scale == 1.0 and dropped is None
        got = "dropped=" if dropped is not None else f"guidance_scale={guidance_scale:g}"
        if self.condition is None:
            if not plain:
                null_of(None, {}, x_t, got)
            return net.apply(params["denoiser"], x_t, t)
        if "context" not in batch:
            batch = self.embedded(params, batch, x_t, with_null=False)
        context = self.at_step(params, batch["context"], t)

        def ask(context: Array) -> Array:
            return net.apply(params["denoiser"], x_t, t, context)

        if plain:
            return ask(context)
        null = batch["null"] if "null" in batch else null_of(self.condition, params, context, got)
        if dropped is not None:
            each = ops.reshape(dropped, (-1, *[1] * (context.ndim - 1)))
            context = ops.where(each, null, context)
        if guidance_scale in (0.0, 1.0):
            return ask(context if guidance_scale else null)
        return guided(ask, context, null, guidance_scale)

    def predict_with_maps(
        self,
        params: Mapping,
        x_t: Array,
        t: Array,
        batch: Mapping,
        guidance_scale: float = 1.0,
        replace: MapReplacement | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """`predict`, and the denoiser's maps of the context that the conditional branch used.

        Args:
            params, x_t, t, batch, guidance_scale: as of `predict`.
            replace: stored maps by layer, used in the conditional branch alone.

        Returns:
            What the net predicts [n, *shape], and by layer [n, heads, pixels, m], for context rows
            m: which rows each pixel read. Of guidance the branch without the condition has none.

        Raises:
            AlgorithmError: a model without a condition, or with a denoiser that has no maps.
        """
        require_maps(self)
        if "context" not in batch:
            batch = self.embedded(params, batch, x_t, with_null=guidance_scale != 1.0)
        context, net = self.at_step(params, batch["context"], t), self.denoiser
        given: Any = net.apply(
            params["denoiser"], x_t, t, context, return_maps=True, replace=replace
        )
        if guidance_scale == 1.0:
            return given
        away = self.predict(params, x_t, t, batch, guidance_scale=0.0)
        return away + guidance_scale * (given[0] - away), given[1]

    def at_step(self, params: Mapping, context: Array, t: Array) -> Array:
        """The context at the steps t, of a condition net that has another at each (`at`)."""
        net: Any = self.condition
        return net.at(params["condition"], context, t) if hasattr(net, "at") else context

    def check_times(self, times: np.ndarray) -> None:
        """Refuses steps of a sampler for which the condition net has no context."""
        check = getattr(self.condition, "check_times", None)
        if check is not None:
            check(times)

    def embedded(
        self, params: Mapping, batch: Mapping, x_t: Array, with_null: bool = True
    ) -> dict[str, Array]:
        """`batch` with the context of its condition, and that of none, beside it: in a loop that
        asks `predict` often for the same data the condition net then runs once."""
        if self.condition is None:
            return dict(batch)
        rows = condition_rows(self.condition, batch["condition"], x_t, x_t.shape[0])
        found = {"context": self.condition.apply(params["condition"], rows)}
        if with_null and hasattr(self.condition, "null"):
            found["null"] = null_of(self.condition, params, found["context"])
        return {**batch, **found}

    def posterior_mean(self, x_t: Array, predicted: Array, row: dict[str, Any]) -> Array:
        """mu_theta(x_t, t): the mean of q(x_{t-1} | x_t, x_0) at the estimated x_0."""
        return row["of_x0"] * self.clean(x_t, predicted, row) + row["of_xt"] * x_t

    def target(self, x: Array, eps: Array, row: dict[str, Any]) -> Array:
        """What the net should predict for datum x and noise eps."""
        if self.prediction_type == "sample":
            return x
        if self.prediction_type == "v_prediction":
            return row["signal"] * eps - row["noise"] * x
        return eps

    def generate(
        self, bound: Any, params: Any, key: Any, num_samples: int, batch: Any
    ) -> dict[str, Array]:
        """Ancestral sampling by one loop over the steps; the same chain as the program's."""
        b = bound.backend
        total = self.schedule.num_train_timesteps
        self.check_times(np.arange(total))
        table = {k: b.asarray(v[::-1].copy()) for k, v in self.table().items()}
        keys = b.split(key, total + 1)
        x = b.normal(keys[0], (num_samples, *self.shape))
        inputs = self.embedded(params, bound.program_inputs(batch), x)

        def step(x: Array, item: Any) -> tuple[Array, None]:
            row, t, k = item
            predicted = self.predict(params, x, times_like(x, t, self.shape), inputs)
            loc = self.posterior_mean(x, predicted, row)
            return loc + row["std"] * b.normal(k, tuple(x.shape)), None

        times = b.asarray(np.arange(total)[::-1].astype(np.float32))
        x, _ = b.scan(step, x, (table, times, keys[1:]))
        return {"x": x}

    def sketch(self) -> Sketch:
        total = self.schedule.num_train_timesteps
        if total <= 4:
            return Sketch(self)
        few = dataclasses.replace(self.schedule, num_train_timesteps=3)
        small = dataclasses.replace(self, schedule=few)
        sites = {f"x_{t}": "x_3" if t == total else "x_2" for t in range(total, 1, -1)}
        return Sketch(small, f"3 of its {total} steps", {**sites, "x_1": "x_1"})

    def by_steps(self) -> Model | None:
        return RandomStep(self)

    def formula(self) -> str:
        given, y = ("", "") if self.condition is None else (r" \mid y", ", y")
        variance = r"\tilde\beta_t" if self.variance_type == "fixed_small" else r"\beta_t"
        return (
            rf"p_\theta(x_{{0:T}}{given}) = \mathcal{{N}}(x_T; 0, I) \prod_{{t=1}}^{{T}} "
            rf"\mathcal{{N}}(x_{{t-1}};\ \mu_\theta(x_t, t{y}),\ {variance} I)"
        )


def times_like(x: Array, t: Any, shape: tuple[int, ...]) -> Array:
    """The time t for each datum of x [*lead, *shape]: [*lead]."""
    lead = tuple(x.shape[: x.ndim - len(shape)])
    return ops.reshape(x, (*lead, -1))[..., 0] * 0.0 + t


def check_output(model: Any, predicted: Any) -> None:
    """Refuses what a net of `model` gives where it has not the shape of its data.

    Raises:
        ShapeError: names both shapes.
    """
    shape = tuple(getattr(predicted, "shape", ()))
    if shape[max(0, len(shape) - len(model.shape)) :] != model.shape:
        raise ShapeError(
            f"{model.name}: got a denoiser whose output for data of shape {model.shape} has the "
            f"shape {shape} (with the batch), expected that of x_t; set the net's `out`, or "
            "the `shape` of the data."
        )


def check_range(model: Any, rows: Mapping[str, Any]) -> None:
    """Refuses data "x" outside the `data_range` of `model`, where it has one.

    Raises:
        SupportError: names both ranges.
    """
    if model.data_range is None or "x" not in rows:
        return
    x, (low, high) = np.asarray(rows["x"]), model.data_range
    if x.size and not (x.min() >= low and x.max() <= high):
        raise SupportError(
            f"{model.name}: got data 'x' from {x.min():g} to {x.max():g}, expected them in the "
            f"declared data_range, {low:g} to {high:g}; scale them to it, or declare theirs."
        )
