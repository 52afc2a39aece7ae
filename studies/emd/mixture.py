"""Which modes a student finds: one dimension, two modes, both scores exact (checks A2 and A3).

    teacher   w N(-1.5, 0.2^2) + (1 - w) N(1.5, 0.2^2), diffused: known at every level
    student   an MLP of one normal number, started on the left mode alone
    p_t(x)    E_z N(alpha g(z), sigma^2), by quadrature over z

The right mode is seen through noise alone, so that the range of levels decides everything: with
little noise neither way gets there, with much both do. Numbers are stated with their range, and
with the student's net: from some starts of a net with silu one step gets there too, only later than
many; from none with tanh in this length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from scipy.stats import norm

import probgen as pg
from probgen import dist, nets, ops
from probgen.engine.bind import bind
from probgen.inference import EMDistillation
from probgen.inference.learn.em_distillation_scores import cosine
from probgen.language.declared import declaration
from probgen.language.kinds import Count, Many, OpenShare, Share, Width, between
from probgen.nets.base import Activation
from probgen.records.store import flatten

MEAN, SD = 1.5, 0.2
SLOW = pg.Adam(1e-3, b1=0.0, b2=0.99)


@declaration
class Settings:
    """Sizes of this part.

    Args:
        weight: of the left mode.
        times: range of levels; num_levels: how many there are in it.
        num_steps, batch_size: of the distillation. hidden, activation: of the generator.
        num_nodes: of the quadrature, from -5 to 5.
        repeats: gradients whose variance is taken.
    """

    weight: OpenShare = 0.5
    times: tuple[Share, Share] = (0.05, 0.30)
    num_levels: Annotated[int, between(2, 1000)] = 8
    num_steps: Count = 2000
    batch_size: Many = 512
    hidden: tuple[Width, ...] = (64, 64)
    activation: Activation = "tanh"
    num_nodes: Many = 161
    repeats: Many = 200

    @property
    def net(self) -> Any:
        return nets.MLP(self.hidden, out=1, activation=self.activation, in_ndim=1)

    @property
    def student(self) -> Any:
        net = self.net

        @pg.model
        def student():  # type: ignore[no-untyped-def]
            with pg.data_plate():
                z = pg.sample("z", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
                pg.deterministic("x", pg.net("g", net)(z))

        return student

    def teacher_score(self) -> Callable:
        """(x, t) -> grad log q_t(x)."""
        logs = np.log([self.weight, 1.0 - self.weight])

        def score(x: Any, t: Any) -> Any:
            alpha, sigma = cosine(t)
            variance = (alpha * SD) ** 2 + sigma**2
            left, right = ((x - sign * alpha * MEAN) / variance for sign in (-1.0, 1.0))
            # The log odds of the right mode are linear in x.
            odds = float(logs[1] - logs[0]) + 2.0 * alpha * MEAN * x / variance
            share = ops.sigmoid(odds)
            return -(share * right + (1.0 - share) * left)

        return score

    def student_score(self) -> Callable:
        """(params, x, t) -> grad log p_t(x)."""
        net = self.net
        nodes = np.linspace(-5.0, 5.0, self.num_nodes, dtype=np.float32)[:, None]
        masses = np.log(norm.pdf(nodes[:, 0]) / norm.pdf(nodes).sum()).astype(np.float32)

        def score(params: Any, x: Any, t: Any) -> Any:
            alpha, sigma = cosine(t)
            g = net.apply(params["g"], ops.asarray_like(nodes, x))[:, 0]
            off = (alpha * g[None, :] - x) / sigma
            logs = ops.asarray_like(masses, x) - 0.5 * off * off
            weights = ops.exp(logs - ops.logsumexp(logs, axis=-1, keepdims=True))
            return ops.sum(weights * off, axis=-1, keepdims=True) / sigma

        return score

    def level(self, u: Any) -> Any:
        """One of the levels, of a uniform number."""
        low, high = self.times
        return low + (high - low) * ops.floor(self.num_levels * u) / (self.num_levels - 1)

    def learn(self, num_chain_steps: int, **options: Any) -> EMDistillation:
        """The algorithm; z stays unless told otherwise, as in the check."""
        return EMDistillation(
            self.teacher_score(), SLOW, student_score=self.student_score(), times=self.level,
            num_steps=num_chain_steps, **{"gamma_z": 0.0, **options},
        )  # fmt: skip


def left_mode(
    settings: Settings, seed: int, backend: str, mean: float = -MEAN, sd: float = SD
) -> pg.Fitted:
    """The generator fitted to one mode alone, by regression of mean + sd z."""

    def loss(bound: Any, params: Any, batch: Any, key: Any) -> Any:
        sites = bound.trace(params, batch, key=key, batch_size=bound.num_draws, condition=False)
        off = sites["x"].value - (mean + sd * sites["z"].value)
        return ops.mean(off * off)

    algorithm = pg.GradientLearner(loss, pg.Adam(pg.CosineDecay(1e-2, 300)), needs_data=False)
    return pg.fit(
        settings.student, None, algorithm, num_steps=300, batch_size=512, seed=seed,
        backend=backend, device="cpu", progress_bar=False,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Student:
    """One distillation.

    Attributes:
        right: mass of its draws right of 0; wanted: the teacher's; half: of the 95 % interval of
            `right` over the draws.
        kl: KL(q || p), nats, p by a kernel estimate of its draws (bandwidth 0.05).
        raw, raw_kl: the same of the last weights, not averaged.
        x: draws.
    """

    fitted: pg.Fitted
    right: float
    wanted: float
    half: float
    kl: float
    raw: float
    raw_kl: float
    x: np.ndarray


def distil(
    settings: Settings, num_chain_steps: int, seed: int, backend: str, **options: Any
) -> Student:
    """From the left mode to both, or not."""
    start = left_mode(settings, seed, backend)
    fitted = pg.fit(
        settings.student, None, settings.learn(num_chain_steps, **options), init=start.params,
        num_steps=settings.num_steps, batch_size=settings.batch_size, seed=seed, ema_decay=0.99,
        backend=backend, device="cpu", progress_bar=False,
    )  # fmt: skip
    x, last = (
        np.asarray(pg.generate(f, 20_000, seed=seed, backend=backend)["x"])[:, 0]
        for f in (fitted, fitted.raw)
    )
    right = float((x > 0).mean())
    return Student(
        fitted, right, 1.0 - settings.weight, half_interval(right, len(x)), divergence(settings, x),
        float((last > 0).mean()), divergence(settings, last), x,
    )  # fmt: skip


def half_interval(share: float, num: int) -> float:
    """Half of the 95 % interval of a share of `num` draws."""
    return 1.96 * float(np.sqrt(share * (1.0 - share) / num))


def divergence(settings: Settings, x: np.ndarray, bandwidth: float = 0.05) -> float:
    """KL(q_0 || p), nats: p a Gaussian kernel estimate on a grid, no lower than 1e-300."""
    grid = np.linspace(-3.0, 3.0, 1201)
    step = grid[1] - grid[0]
    q = density(settings, grid)
    counts, _ = np.histogram(x, np.append(grid - step / 2, grid[-1] + step / 2))
    kernel = norm.pdf(grid, 0.0, bandwidth)
    p = np.convolve(counts / len(x), kernel, "same")
    some = q > 1e-12
    return float(np.sum(q[some] * np.log(q[some] / np.maximum(p[some], 1e-300))) * step)


def density(settings: Settings, x: np.ndarray) -> np.ndarray:
    """q_0(x)."""
    left, right = norm.pdf(x, -MEAN, SD), norm.pdf(x, MEAN, SD)
    return settings.weight * left + (1.0 - settings.weight) * right


def gradient_variance(
    settings: Settings, num_chain_steps: int, params: Any, backend: str, **options: Any
) -> dict[str, float]:
    """Trace of the covariance of a batch's gradient, by the kind of cancellation, over `repeats`
    steps of size 1 from the same place."""
    out = {}
    for kind in ("none", "last", "full", "anchored"):
        algorithm = dataclasses.replace(
            settings.learn(num_chain_steps, noise_cancellation=kind, **options),
            optimizer=pg.SGD(1.0), times=(0.05, 0.6),
        )  # fmt: skip
        b = pg.backends.load(backend, "cpu")
        bound, given = bind(
            settings.student, b, params=params, num_draws=settings.batch_size,
            num_steps=settings.repeats,
        )  # fmt: skip
        learner = algorithm.bind(bound)
        before = flatten(b.tree_map(b.to_numpy, given))

        def one(state: Any, key: Any, learner: Any = learner) -> Any:
            return learner.update(state, {}, key)[0]["params"]

        state, moved = learner.init(b.copy(given), b.key(0), {}, None), []
        for k in range(settings.repeats):
            after = flatten(b.tree_map(b.to_numpy, one(b.copy(state), b.key(k))))
            moved.append(np.concatenate([(after[n] - before[n]).ravel() for n in sorted(before)]))
        out[kind] = float(np.var(np.stack(moved).astype(np.float64), axis=0, ddof=1).sum())
    return out
