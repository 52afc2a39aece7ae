"""A subject, given by a few pictures, as a latent of a frozen text-conditional diffusion.

    c_s ~ N(a, I / (2 w))                                        rows of the context, [n, d]
    x_t = signal_t x_i + noise_t eps,     picture i, step t and eps drawn at random
    log pseudo-likelihood = -mean_k | M_i (eps_k - eps_theta(x_t, t, [c_i, c_s])) |^2

over k = 1 ... K draws; [c, c_s] is the caption's context with its last n rows replaced, a the null
context's last n rows or a word's, M a mask of the subject. The pseudo-likelihood is a Gaussian's of
variance 1/2 without its constant, its mean over draws counting as one observation, so that the MAP
estimate minimises

    mean_k | M (eps - eps_theta) |^2 + w | c_s - a |^2,

which is textual inversion with w = 0 and M = 1. A sum over elements, not a mean: w depends on it.

Sources: Wang et al. 2023, arXiv:2312.00079, section 3 (mask, anchor at the null text, a set of rows
for each step); Gal et al. 2022, arXiv:2208.01618 (textual inversion).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

import probgen as pg
from probgen import dist, nets, ops
from probgen.data.checks import check_masks
from probgen.engine.fitted import Fitted
from probgen.errors import AlgorithmError, NonFiniteError, ShapeError
from probgen.language.declared import declaration, require
from probgen.language.identity import identity
from probgen.language.kinds import CountOrZero, Many, NonNegative, Positive, Text, Width
from probgen.language.model import Model
from probgen.models.diffusion import Diffusion
from probgen.models.masked_error import masked_error, place_of, strata
from probgen.nets.subject import SubjectTokens
from probgen.trees import tree_map

Array = Any
NET = "subject"


@declaration
class Subject(Model):
    """Rows of context that stand for one subject, to be learned from a few pictures of it.

        subject = Subject(base, num_tokens=3, weight=0.03)
        learned = pg.fit(subject, {"x": pictures}, SVI(ELBO(), pg.Adam(5e-3)),
                         inputs={"condition": captions, "mask": masks}, num_steps=1000, seed=0)
        model = personalised(learned)
        pg.generate(model, 16, method=DDIM(50, guidance_scale=2.0),
                    inputs={"condition": prompts}, seed=0)

    Args:
        base: a fitted `Diffusion` with a condition; nothing of it moves.
        num_tokens: n, how many rows.
        weight: w of the prior; 0 is a flat one. The larger, the more faithful scenes stay to a
            prompt, and the less the subject to its pictures.
        anchor: a: "null", the null context's last rows; or a caption of one word, whose last row in
            use it is, n times.
        posterior: of the guide: "point" (MAP) or "normal", independent Gaussians: how sure the rows
            are, by SVI.
        times: the sampler's steps, the noisiest first, as `DDIM(50).times(base.model)` gives them:
            each has rows of its own, [steps, n, d], and t is one of them. `StepwiseMAP` learns
            them in the paper's order, from the one set of a first fit.
        draws: K in a step of a fit, in all and not for each picture.
        word: the subject's noun, which each caption must have; None, any caption will do.
        fixed_draws: a seed: the K draws are the same in every step, so that the density is a fixed
            one, for `infer` and any of its samplers; None draws them anew.
        init_scale: of "normal" at the start.

    The pictures are *one* datum, "x" [N, *shape]; inputs are "condition", a caption for each, and
    "mask" [N, *shape] or [N, h, w, 1], 1 where the subject is; without it all counts.

    Sites: "c_s"; "which", "time" and "noise", the K draws, of one law in program and guide; "x".

    Raises (when bound):
        DataError: a mask that is empty or full, or has other values than 0 and 1; a caption that
            the condition net refuses, that reaches into the last n rows, or lacks the word.
        ShapeError: a mask of another size, a caption for other than each picture.
        SupportError: pictures outside the base's `data_range`.
    """

    base: Fitted
    num_tokens: Width = 5
    weight: NonNegative = 0.0
    anchor: Text = "null"
    posterior: Literal["point", "normal"] = "point"
    times: tuple[float, ...] | None = None
    draws: Many = dataclasses.field(default=8, kw_only=True)
    word: Text | None = dataclasses.field(default=None, kw_only=True)
    fixed_draws: CountOrZero | None = dataclasses.field(default=None, kw_only=True)
    init_scale: Positive = dataclasses.field(default=0.01, kw_only=True)

    is_normalized = False

    @property
    def random_sites(self) -> tuple[str, ...]:  # type: ignore[override]
        return () if self.fixed_draws is not None else ("which", "time", "noise")

    def __post_init__(self) -> None:
        fits = isinstance(self.diffusion, Diffusion) and self.diffusion.condition is not None
        a_diffusion = "a fitted Diffusion with a condition (of a VAE around one, base=fitted.prior)"
        require(fits, self, a_diffusion, "base")
        whole = self.times is None or all(float(t).is_integer() for t in self.times)
        require(whole, self, "whole steps of the chain, as DDIM visits them", "times")
        require(len(self.anchor.split()) == 1, self, "'null' or one word", "anchor")
        _ = self.condition  # times that do not fall are refused there
        _ = self.anchor_rows  # here, since a program cannot leave its run to compute them

    @property
    def diffusion(self) -> Any:
        """The base's declaration."""
        return self.base.model

    @property
    def condition(self) -> SubjectTokens:
        """The condition net that the subject makes of the base's."""
        return SubjectTokens(self.diffusion.condition, self.num_tokens, self.times, self.word)

    def fitted_params(self) -> dict:
        return {**self.diffusion.fitted_params(), **self.base.params}

    def frozen(self) -> frozenset[str]:
        return frozenset(self.base.params) | self.diffusion.frozen()

    @functools.cached_property
    def anchor_rows(self) -> np.ndarray:
        """a, [n, d]."""
        b, net = self.base.resolve("auto"), self.diffusion.condition
        params = tree_map(b.asarray, self.base.params["condition"])
        if self.anchor == "null":
            require(hasattr(net, "null"), self, "a condition net with a null", "base", "anchor")
            context = np.asarray(b.to_numpy(net.null(params)))
            self._require_room(len(context))
            return context[-self.num_tokens :]
        require(hasattr(net, "tokens"), self, "'null' for a condition that is no text", "anchor")
        ids = net.tokens([self.anchor])
        context = np.asarray(b.to_numpy(net.apply(params, b.asarray(ids))))[0]
        self._require_room(len(context))
        last = int(net.lengths(ids)[0]) - 1
        return np.repeat(context[last : last + 1], self.num_tokens, axis=0)

    def _require_room(self, length: int) -> None:
        fewer = f"fewer rows than the {length} of the base's context, so that a prompt has some"
        require(self.num_tokens < length, self, fewer, "num_tokens")

    @property
    def anchors(self) -> np.ndarray:
        """a in the shape of c_s."""
        return np.broadcast_to(self.anchor_rows, self.rows_shape).copy()

    @property
    def rows_shape(self) -> tuple[int, ...]:
        """Of c_s."""
        lead = () if self.times is None else (len(self.times),)
        return (*lead, *self.anchor_rows.shape)

    def check_rows(self, rows: Mapping[str, Any]) -> None:
        """Refuses pictures, captions and masks that do not fit the base or each other."""
        if "x" in rows:
            x = np.asarray(rows["x"])
            # A fit makes one row of the one value that all pictures are.
            self.diffusion.check_rows({"x": x[0] if x.ndim > 1 + len(self.diffusion.shape) else x})
        if "condition" in rows:
            self._check_captions(np.asarray(rows["condition"]))
        if rows.get("mask") is not None:
            number = len(rows["condition"]) if "condition" in rows else len(rows["mask"])
            check_masks(rows["mask"], (number, *self.diffusion.shape), "Subject")

    def _check_captions(self, captions: np.ndarray) -> None:
        """Refuses what is not one caption for each picture, or not what the net reads."""
        net = self.condition
        if net.in_ndim is not None and captions.ndim != net.in_ndim + 1:
            raise ShapeError(
                f"Subject: got captions of shape {list(captions.shape)}, expected one for each "
                f"picture, {net.in_ndim} axes each and a first one for the pictures; repeat one "
                "that all share, np.repeat(caption[None], len(pictures), 0)."
            )
        net.check_values(captions)

    @property
    def program(self) -> Any:
        def program(condition: Array, mask: Array = None) -> None:
            a, n = self.anchors, len(self.rows_shape)
            if self.weight:
                law = dist.Normal(ops.asarray(a), 1.0 / math.sqrt(2.0 * self.weight))
                c_s = pg.sample("c_s", law.to_event(n))
            else:
                c_s = pg.sample("c_s", dist.ImproperUniform("real", self.rows_shape))
            away = ops.sqrt(ops.sum((c_s - ops.asarray_like(a, c_s)) ** 2, axis=(-2, -1)))
            pg.deterministic("distance", ops.mean(away))
            drawn = self._drawn()
            context = pg.net("condition", self.diffusion.condition)(condition)
            shape = (int(condition.shape[0]), *self.diffusion.shape)
            pg.sample("x", dist.Density(
                lambda x: -self.loss(self._ask, c_s, context, x, mask, *drawn),
                event_shape=shape, is_normalized=False,
            ))  # fmt: skip

        return program

    def _drawn(self) -> tuple[Array, Array, Array]:
        """The K draws: places in [0, 1) of picture and step, and the noise."""
        k, shape = self.draws, self.diffusion.shape
        if self.fixed_draws is not None:
            drawn = strata(k, shape, self.fixed_draws)
            return tuple(ops.asarray(v) for v in drawn)
        unit = dist.Uniform(0.0, 1.0).expand([k]).to_event(1)
        noise = dist.Normal(0.0, 1.0).expand([k, *shape]).to_event(1 + len(shape))
        return pg.sample("which", unit), pg.sample("time", unit), pg.sample("noise", noise)

    def _ask(self, x_t: Array, t: Array, context: Array) -> Array:
        return pg.net("denoiser", self.diffusion.denoiser)(x_t, t, context)

    @property
    def steps(self) -> np.ndarray:
        """Indices of the chain's steps that t is drawn from, the noisiest first."""
        total = self.diffusion.schedule.num_train_timesteps
        return np.arange(total)[::-1] if self.times is None else np.round(self.times).astype(int)

    def loss(
        self, ask: Callable, c_s: Array, context: Array, x: Array, mask: Array | None,
        which: Array, time: Array, noise: Array,
    ) -> Array:  # fmt: skip
        """mean_k | M (eps_k - eps_theta) |^2, a number: the sum over elements, without the prior.

        Args:
            ask: (x_t, t, context) -> the network's prediction.
            c_s: [n, d], or [steps, n, d] with `times`.
            context: [N, m, d] of the captions; x: [N, *shape]; mask: [N, *shape or with 1s], None.
            which, time: [K] in [0, 1), places of picture and step; noise: [K, *shape].
        """
        steps = self.steps
        picture = place_of(which, x.shape[0])
        index = place_of(time, len(steps))
        if self.times is not None:
            c_s = ops.take(c_s, index)
        return masked_error(
            self.diffusion, self.steps, ask, c_s, context, x, mask, picture, index, noise
        )

    def step_loss(self, bound: Any) -> Callable:
        """The objective of the rows of one step; see `capabilities.Stepwise`."""
        b, net = bound.backend, self.diffusion.denoiser

        def loss(
            params: Mapping, offset: Array, place: Array, batch: Mapping, key: Any
        ) -> tuple[Array, dict[str, Array]]:
            given = bound.program_inputs(batch)
            x = bound.values_of(batch)["x"]
            context = self.diffusion.condition.apply(params["condition"], given["condition"])
            k_picture, k_noise = b.split(key, 2)
            picture = b.randint(k_picture, (self.draws,), 0, x.shape[0])
            noise = b.normal(k_noise, (self.draws, *self.diffusion.shape))
            index = ops.broadcast_to(place, (self.draws,))
            denoising = masked_error(
                self.diffusion, self.steps,
                lambda *given: net.apply(params["denoiser"], *given),
                ops.asarray_like(self.anchor_rows, offset) + offset,
                context, x, given.get("mask"), picture, index, noise,
            )  # fmt: skip
            square = ops.sum(offset * offset)
            value = denoising + self.weight * square
            return value, {
                "loss": value, "denoising": denoising, "distance": ops.sqrt(square),
                "place": ops.cast(place, "float32"),
            }  # fmt: skip

        return loss

    def latent_of(self, learned: Fitted) -> np.ndarray:
        """c_s - a of a fit with one set of rows, [n, d].

        Raises:
            AlgorithmError: it is of another base, number of rows or anchor.
        """
        one: Any = learned.model
        same = isinstance(one, Subject) and one.times is None and one.num_tokens == self.num_tokens
        if not same or one.anchor != self.anchor or identity(one.base) != identity(self.base):
            raise AlgorithmError(
                "StepwiseMAP: got a start of another model, expected the fit of the same Subject "
                "with times=None: the same base, its parameters included, num_tokens and anchor."
            )
        return moved_offset(learned)

    @property
    def guide(self) -> Any:  # type: ignore[override]
        def guide() -> None:
            shape, n = self.rows_shape, len(self.rows_shape)
            offset = pg.net(NET, nets.Parameter(shape))()
            loc = ops.asarray_like(self.anchors, offset) + offset
            if self.posterior == "point":
                pg.sample("c_s", dist.Delta(loc, event_dim=n))
            else:
                start = math.log(self.init_scale)
                scale = ops.exp(pg.net(f"{NET}_log_scale", nets.Parameter(shape, start))())
                pg.sample("c_s", dist.Normal(loc, scale).to_event(n))
            if self.fixed_draws is None:
                self._drawn()

        return guide

    def formula(self) -> str:
        return (
            r"c_s \sim \mathcal{N}(a, \frac{1}{2 w} I),\qquad "
            r"\log \tilde p(x \mid c_s) = -\mathbb{E}\, \| M \odot (\epsilon - "
            r"\epsilon_\theta(x_t, t, [c, c_s])) \|^2"
        )


def moved_offset(learned: Fitted) -> np.ndarray:
    """c_s - a of a fit, the guide's mean.

    Raises:
        AlgorithmError: it is 0 to the bit, so that nothing was learned.
        NonFiniteError: it is NaN.
    """
    offset = np.asarray(learned.params[NET]["value"])
    if not np.isfinite(offset).all():
        raise NonFiniteError(
            "Subject: got rows c_s that are NaN or infinite, expected finite numbers; fit it again."
        )
    if not np.abs(offset).max() > 0:
        raise AlgorithmError(
            "Subject: got rows c_s that are their anchor to the bit, expected ones that a fit "
            "moved: nothing was learned; give the fit steps and a learning rate, and do not "
            f"freeze {NET!r}."
        )
    return offset
