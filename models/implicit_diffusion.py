"""A diffusion of few large steps, each of them a generator with a latent of its own.

With a_t = 1 - beta_t and A_t = prod_{s <= t} a_s, t = 1 ... T, A_0 = 1,

    q(x_t | x_{t-1})       = N(sqrt(a_t) x_{t-1}, beta_t I)                          (forward)
    q(x_{t-1} | x_t, x_0)  = N(c0_t x_0 + ct_t x_t, v_t I)                        (its posterior)
    p(x_{t-1} | x_t)       = int p(z) q(x_{t-1} | x_t, G(x_t, z, t-1)) dz         (the program)

With a condition y, G(x_t, z, t-1, y), and the discriminator is shown y as well.

    c0_t = sqrt(A_{t-1}) beta_t / (1 - A_t),  ct_t = sqrt(a_t) (1 - A_{t-1}) / (1 - A_t),
    v_t = beta_t (1 - A_{t-1}) / (1 - A_t)

The true q(x_{t-1} | x_t) is Gaussian only where beta_t is small; a generator may have several
modes, so that four steps do what a Gaussian chain needs hundreds for. c0_1 = 1 and ct_1 = v_1 = 0:
the last step is the generator's output as it is, which has draws and no density.

Source: Xiao, Kreis & Vahdat 2022, arXiv:2112.07804.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import probgen as pg
from probgen import dist, ops
from probgen.errors import AlgorithmError
from probgen.language.capabilities import MUCH_LEFT, Pairs
from probgen.language.declared import declaration, require
from probgen.language.kinds import AnyNet, CountOrZero, Width
from probgen.language.model import Model, Sketch
from probgen.models.conditioning import check_condition, condition_rows, declared_context
from probgen.models.diffusion import check_output, check_range, times_like
from probgen.models.likelihoods import Implicit
from probgen.models.noise_schedule import NoiseSchedule

Array = Any


def _four_steps() -> NoiseSchedule:
    return NoiseSchedule(4, "vp_sde")


@declaration
class ImplicitDiffusion(Model):
    """The denoising diffusion GAN, learned by `Adversarial`.

    Args:
        generator: a net (x_t, z, t') -> an estimate of x_0, shaped like x_t; t' = t - 1, [batch],
            is the number of the step in 0 ... T-1. Without a latent it is called as (x_t, t'); with
            a condition it gets the context [batch, m, d] as a last input.
        shape: of one datum.
        latent_dim: size of z ~ N(0, I), drawn anew at each step; 0 is no latent, so that every step
            is Gaussian again.
        schedule: the noise, of a few steps that leave next to nothing of the datum.
        data_range: smallest and largest value of the data, where the generator's output has such,
            as a tanh has; data outside it are refused.
        condition: as of a `Diffusion`, a net from the input "condition", one row a datum, to the
            context, such as `nets.ClassEmbedding(10, 64)`. The discriminator gets the context as
            its last input, a constant to it: (x_{t-1}, x_t, t', context). There is no guidance,
            since no prediction without the condition is learned.

    Sites: "x_T", "z_T", "x_{T-1}", "z_{T-1}", ..., "z_1", "x". Nets: "generator" and, with a
    condition, "condition". The density of "x" is not known, not even up to a constant: no
    likelihood is offered.

    Raises (when bound to be learned):
        AlgorithmError: a schedule after whose last step more than 5 % of a datum's variance is
            left, while draws start from pure noise.
        ShapeError: the generator's output has another shape than x_t.
        SupportError: data outside `data_range`.
        DataError: a condition that its net does not know, such as a class out of range.
    """

    generator: AnyNet
    shape: tuple[Width, ...]
    latent_dim: CountOrZero = 100
    schedule: NoiseSchedule = dataclasses.field(default_factory=_four_steps)
    data_range: tuple[float, float] | None = None
    condition: AnyNet | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        low, high = self.data_range or (0.0, 1.0)
        require(low < high, self, "a smaller and a larger number", "data_range")

    def check_rows(self, rows: Mapping[str, Any]) -> None:
        check_condition(self.condition, rows)
        check_range(self, rows)

    def coefficients(self) -> dict[str, np.ndarray]:
        """Constants of each step, float64 [T], at index t' = t - 1.

        "signal" and "noise" of x_{t-1} given x_0; "keep" and "add" of x_t given x_{t-1}; "of_x0",
        "of_xt" and "std" of x_{t-1} given both.
        """
        beta, bar = self.schedule.betas(), self.schedule.alphas_bar()
        before = np.concatenate([[1.0], bar[:-1]])
        return {
            "signal": np.sqrt(before),
            "noise": np.sqrt(1.0 - before),
            "keep": np.sqrt(1.0 - beta),
            "add": np.sqrt(beta),
            "of_x0": np.concatenate([[1.0], (np.sqrt(before) * beta / (1.0 - bar))[1:]]),
            "of_xt": np.sqrt(1.0 - beta) * (1.0 - before) / (1.0 - bar),
            "std": np.sqrt(beta * (1.0 - before) / (1.0 - bar)),
        }

    @property
    def program(self) -> Any:
        # Two, since an argument of a program is an input that it needs.
        if self.condition is None:
            return lambda: self._chain(None)
        return lambda condition: self._chain(condition)

    def _chain(self, condition: Any) -> None:
        total, table = self.schedule.num_train_timesteps, self.coefficients()
        generate, rank = pg.net("generator", self.generator), len(self.shape)
        with pg.data_plate():
            x = pg.sample(f"x_{total}", _unit(self.shape))
            context = declared_context(self.condition, condition, x, rank)
            for t in range(total, 0, -1):
                z = pg.sample(f"z_{t}", _unit((self.latent_dim,))) if self.latent_dim else None
                times = times_like(x, float(t - 1), self.shape)
                guess = generate(*_inputs(x, z, times, context))
                check_output(self, guess)
                row = {k: float(v[t - 1]) for k, v in table.items()}
                mean = row["of_x0"] * guess + row["of_xt"] * x
                if t > 1:
                    step = dist.Normal(mean, row["std"]).to_event(rank)
                    x = pg.sample(f"x_{t - 1}", step)
            pg.sample("x", Implicit()(mean, rank))

    def generate(
        self, bound: Any, params: Any, key: Any, num_samples: int, batch: Any
    ) -> dict[str, Array]:
        """The program's chain as one loop, with T calls of the generator."""
        b, total = bound.backend, self.schedule.num_train_timesteps
        table = {k: b.asarray(v[::-1].copy()) for k, v in self.coefficients().items()}
        keys = b.split(key, total + 1)
        x = b.normal(keys[0], (num_samples, *self.shape))
        context = self.context(params, bound.program_inputs(batch), x)

        def step(x: Array, item: Any) -> tuple[Array, None]:
            row, t, k = item
            k_latent, k_noise = b.split(k, 2)
            z = b.normal(k_latent, (num_samples, self.latent_dim)) if self.latent_dim else None
            guess = self.guess(params, x, z, times_like(x, t, self.shape), context)
            return self.back(x, guess, b.normal(k_noise, tuple(x.shape)), row), None

        times = b.asarray(np.arange(total)[::-1].astype(np.float32))
        x, _ = b.scan(step, x, (table, times, keys[1:]))
        return {"x": x}

    def guess(
        self, params: Mapping, x_t: Array, z: Array | None, t: Array, context: Sequence[Array] = ()
    ) -> Array:
        """G's estimate of x_0 [n, *shape] at the steps t' [n]; z [n, latent_dim] or None."""
        net: Any = self.generator
        return net.apply(params["generator"], *_inputs(x_t, z, t, context))

    def context(self, params: Mapping, inputs: Mapping, x: Array) -> list[Array]:
        """The condition's context [n, m, d] beside x [n, *shape], in a list; none without one."""
        if self.condition is None:
            return []
        rows = condition_rows(self.condition, inputs["condition"], x, x.shape[0])
        return [self.condition.apply(params["condition"], rows)]

    def back(self, x_t: Array, x_0: Array, noise: Array, row: Mapping) -> Array:
        """x_{t-1} of q(. | x_t, x_0) from standard normal noise."""
        return row["of_x0"] * x_0 + row["of_xt"] * x_t + row["std"] * noise

    def pairs(self, bound: Any) -> Callable[[Mapping, Mapping, Any], Pairs]:
        """x_{t-1} of the forward process and of the program given the same x_t, t uniform.

        The forward noise is chained, so that real pairs (x_{t-1}, x_t) have their joint law. The
        strain is |x_t - sqrt(a_t) x'_{t-1}|^2 / (2 beta_t).
        """
        left = float(self.schedule.alphas_bar()[-1])
        if left > MUCH_LEFT:
            raise AlgorithmError(
                f"{self.name}: got {self.schedule!r}, after whose last step a share of {left:.2g} "
                f"of a datum's variance is left, expected at most {MUCH_LEFT:g}, since draws start "
                'from pure noise; take NoiseSchedule(4, "vp_sde"), or larger betas.'
            )
        b, total = bound.backend, self.schedule.num_train_timesteps
        table = {k: b.asarray(v) for k, v in self.coefficients().items()}

        def make(params: Mapping, batch: Mapping, key: Any) -> Pairs:
            x = batch["x"]
            size, shape = x.shape[0], tuple(x.shape)
            k_time, k_before, k_after, k_latent, k_noise = b.split(key, 5)
            t = b.randint(k_time, (size,), 0, total)
            lead = (size, *([1] * len(self.shape)))
            row = {k: ops.reshape(ops.take(v, t), lead) for k, v in table.items()}
            before = row["signal"] * x + row["noise"] * b.normal(k_before, shape)
            x_t = row["keep"] * before + row["add"] * b.normal(k_after, shape)
            z = b.normal(k_latent, (size, self.latent_dim)) if self.latent_dim else None
            times = 1.0 * t  # of the running kind
            context = self.context(params, bound.program_inputs(batch), x)
            guess = self.guess(params, x_t, z, times, context)
            fake = self.back(x_t, guess, b.normal(k_noise, shape), row)
            off = (x_t - row["keep"] * fake) / row["add"]
            strain = 0.5 * ops.sum(off * off, axis=tuple(range(1, len(shape))))
            labels = (times, *(ops.stop_gradient(v) for v in context))
            return Pairs(before, fake, (x_t,), labels, strain)

        return make

    def sketch(self) -> Sketch:
        total = self.schedule.num_train_timesteps
        if total <= 4:
            return Sketch(self)
        few = dataclasses.replace(self.schedule, num_train_timesteps=3)
        sites = {}
        for t in range(total, 0, -1):
            like = 3 if t == total else 2 if t > 1 else 1
            sites[f"x_{t}"] = f"x_{like}"
            sites |= {f"z_{t}": f"z_{like}"} if self.latent_dim else {}
        small = dataclasses.replace(self, schedule=few)
        return Sketch(small, f"3 of its {total} steps", sites)

    def formula(self) -> str:
        return (
            r"p_\theta(x_{0:T}) = \mathcal{N}(x_T; 0, I) \prod_{t=1}^{T} "
            r"\int p(z)\, q(x_{t-1} \mid x_t,\ x_0 = G_\theta(x_t, z, t))\, dz"
        )


def _inputs(x: Array, z: Array | None, t: Array, context: Sequence[Array]) -> tuple[Array, ...]:
    return (x, *(() if z is None else (z,)), t, *context)


def _unit(shape: tuple[int, ...]) -> Any:
    return dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape))
