"""Each posterior declared once; `POSTERIORS` has it with its data and the settings of its chains.

The names and priors are those of posteriordb's Stan programs (in words: `Posterior.about`). What is
discrete is declared, and summed out by `infer`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

import probgen as pg
from probgen import dist, ops
from probgen.inference import NUTS
from studies.posteriors import data

Point = dict[str, np.ndarray]
PAIRS = ((1, 0), (2, 0), (2, 1))  # of the correlations


def flat(support: str, shape: tuple[int, ...] = ()) -> Any:
    """1 everywhere in the support."""
    return dist.ImproperUniform(support, shape)


def positive_normal(loc: float, scale: float) -> Any:
    """N(loc, scale^2) above 0, up to its constant."""
    log_density = lambda v: -0.5 * ((v - loc) / scale) ** 2  # noqa: E731
    return dist.Density(log_density, support="positive", is_normalized=False)


def ordered_normal(loc: Any, scale: float) -> Any:
    """Independent N(loc_k, scale^2), given that they ascend; up to its constant."""

    def log_density(v):
        return -0.5 * ops.sum(((v - ops.asarray_like(np.array(loc), v)) / scale) ** 2, axis=-1)

    return dist.Density(
        log_density, event_shape=(len(loc),), support="ordered_vector", is_normalized=False
    )


# ---- hierarchies and regressions ----


@pg.model
def schools_centred(scale: Any) -> None:
    """y_j ~ N(theta_j, scale_j^2),  theta_j ~ N(mu, tau^2)."""
    mu = pg.sample("mu", dist.Normal(0.0, 5.0))
    tau = pg.sample("tau", dist.HalfCauchy(5.0))
    with pg.data_plate():
        theta = pg.sample("theta", dist.Normal(mu, tau))
        pg.sample("y", dist.Normal(theta, scale))


@pg.model
def schools_noncentred(scale: Any) -> None:
    """theta_j = mu + tau z_j,  z_j ~ N(0, 1)."""
    mu = pg.sample("mu", dist.Normal(0.0, 5.0))
    tau = pg.sample("tau", dist.HalfCauchy(5.0))
    with pg.data_plate():
        z = pg.sample("z", dist.Normal(0.0, 1.0))
        theta = pg.deterministic("theta", mu + tau * z)
        pg.sample("y", dist.Normal(theta, scale))


@pg.model
def kidiq(x: Any) -> None:
    """y ~ N(x beta, sigma^2) with an interaction, beta flat."""
    beta = pg.sample("beta", flat("real", (4,)))
    sigma = pg.sample("sigma", dist.HalfCauchy(2.5))
    with pg.data_plate():
        pg.sample("y", dist.Normal(x @ beta, sigma))


@pg.model
def wells(x: Any) -> None:
    """y ~ Bernoulli(logit^-1 x beta), beta flat."""
    beta = pg.sample("beta", flat("real", (3,)))
    with pg.data_plate():
        pg.sample("y", dist.Bernoulli(logits=x @ beta))


@pg.model
def gp(x: Any) -> None:
    """y ~ N(0, alpha^2 exp(-|x - x'|^2 / (2 rho^2)) + sigma^2 I)."""
    rho = pg.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pg.sample("alpha", dist.HalfNormal(2.0))
    sigma = pg.sample("sigma", dist.HalfNormal(1.0))
    square = ((ops.expand_dims(x, 1) - x) / rho) ** 2
    cov = alpha**2 * ops.exp(-0.5 * square) + sigma**2 * ops.eye_like(x.shape[0], x)
    pg.sample("y", dist.MultivariateNormal(ops.zeros_like(x), scale_tril=ops.cholesky(cov)))


@pg.model
def lkj() -> None:
    """y ~ N(0, D R D),  D = diag(scale),  R = L L' ~ LKJ(2)."""
    scale = pg.sample("scale", dist.LogNormal(0.0, 1.0).expand([3]).to_event(1))
    factor = pg.sample("factor", dist.LKJCholesky(3, 2.0))
    pg.deterministic("rho", ops.stack([ops.sum(factor[i] * factor[j]) for i, j in PAIRS]))
    tril = ops.expand_dims(scale, 1) * factor
    with pg.data_plate():
        pg.sample("y", dist.MultivariateNormal(ops.zeros_like(scale), scale_tril=tril))


# ---- time ----


@pg.model
def ar(first: Any) -> None:
    """y_t ~ N(alpha + sum_k beta_k y_{t-k}, sigma^2), given the values before."""
    alpha = pg.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pg.sample("beta", dist.Normal(0.0, 10.0).expand([data.AR_ORDER]).to_event(1))
    sigma = pg.sample("sigma", dist.HalfCauchy(2.5))

    def step(past, _):
        y = pg.sample("y", dist.Normal(alpha + ops.sum(beta * past), sigma))
        return ops.concatenate([ops.reshape(y, (1,)), past[:-1]]), None

    pg.scan("t", step, first, length=data.AR_LENGTH)


@pg.model
def garch() -> None:
    """y_t ~ N(mu, v_t),  v_{t+1} = alpha0 + alpha1 (y_t - mu)^2 + beta1 v_t, of finite variance."""
    mu = pg.sample("mu", flat("real"))
    alpha0 = pg.sample("alpha0", flat("positive"))
    alpha1 = pg.sample("alpha1", dist.Uniform(0.0, 1.0))
    beta1 = pg.sample("beta1", dist.Uniform(0.0, 1.0 - alpha1))

    def step(v, _):
        y = pg.sample("y", dist.Normal(mu, ops.sqrt(v)))
        return alpha0 + alpha1 * (y - mu) ** 2 + beta1 * v, None

    pg.scan("t", step, data.GARCH_START, length=data.GARCH_LENGTH)


@pg.model
def hmm() -> None:
    """z_t stays in its state with probability stay[z_t],  y_t ~ N(mu[z_t], 1),  mu_0 < mu_1."""
    mu = pg.sample("mu", ordered_normal([3.0, 6.0], 1.0))
    stay = pg.sample("stay", dist.Uniform(0.0, 1.0).expand([2]).to_event(1))
    moves = ops.stack([ops.stack([stay[0], 1 - stay[0]]), ops.stack([1 - stay[1], stay[1]])])

    def step(probs, _):
        z = pg.sample("z", dist.Categorical(probs=probs))
        pg.sample("y", dist.Normal(mu[z], 1.0))
        return ops.take(moves, z), None

    pg.scan("t", step, np.float32([0.5, 0.5]), length=data.HMM_LENGTH)


@pg.model
def mixture() -> None:
    """z ~ Bernoulli(1 - theta),  y ~ N(mu[z], sigma[z]^2),  mu_0 < mu_1."""
    mu = pg.sample("mu", ordered_normal([0.0, 0.0], 2.0))
    sigma = pg.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = pg.sample("theta", dist.Beta(5.0, 5.0))
    with pg.data_plate():
        z = pg.sample("z", dist.Categorical(probs=ops.stack([theta, 1.0 - theta])))
        pg.sample("y", dist.Normal(mu[z], sigma[z]))


@pg.model
def lotka_volterra() -> None:
    """u' = (alpha - beta v) u,  v' = (delta u - gamma) v, on the log scale; pelts ~ LogNormal."""
    alpha, gamma = (pg.sample(n, positive_normal(1.0, 0.5)) for n in ("alpha", "gamma"))
    beta, delta = (pg.sample(n, positive_normal(0.05, 0.05)) for n in ("beta", "delta"))
    start = pg.sample("start", dist.LogNormal(np.log(10.0), 1.0).expand([2]).to_event(1))
    sigma = pg.sample("sigma", dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1))

    def field(_, log_z):
        hare, lynx = ops.exp(log_z[0]), ops.exp(log_z[1])
        return ops.stack([alpha - beta * lynx, delta * hare - gamma])

    log_z = ops.solve_ode(field, ops.log(start), np.arange(21.0, dtype="float32"), num_steps=6)
    pg.sample("pelts", dist.LogNormal(log_z, sigma).to_event(2))


# ---- all of them ----


@dataclasses.dataclass(frozen=True)
class Posterior:
    """A declaration with its data.

    Attributes:
        model, data, inputs: as `pg.infer` takes them.
        sites: whose scalars are compared.
        points: two points inside of the support, at which densities are compared.
        method: NUTS's defaults, or the settings that Stan's users take here.
        stan_diverges: whether Stan's chains diverge here too.
    """

    model: Any
    data: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray]
    sites: tuple[str, ...]
    points: tuple[Point, Point]
    method: NUTS = dataclasses.field(default_factory=NUTS)
    stan_diverges: bool = False


def _made(
    model: Any, arrays: dict, sites: str, point: Point, other: Point | None = None,
    inputs: str = "", **more: Any,
) -> Posterior:  # fmt: skip
    """Where nothing else is said, the other point is a tenth away."""
    given = {n: arrays[n] for n in inputs.split()}
    seen = {n: v for n, v in arrays.items() if n not in given}
    other = {n: 1.1 * v for n, v in point.items()} | (other or {})
    return Posterior(model, seen, given, tuple(sites.split()), (point, other), **more)


_SCHOOLS = {"mu": np.array(4.0), "tau": np.array(3.0)}
_EFFECTS = np.linspace(-1.0, 1.5, 8)
_CYCLE = {
    "alpha": np.array(0.55), "beta": np.array(0.028), "gamma": np.array(0.8),
    "delta": np.array(0.024), "start": np.array([34.0, 5.9]), "sigma": np.array([0.25, 0.25]),
}  # fmt: skip
_CAREFUL = NUTS(target_accept_prob=0.95)
_FUNNEL = NUTS(num_warmup=2000, num_samples=10_000, target_accept_prob=0.99)
_OTHER_FACTOR = np.linalg.cholesky(0.7 * np.eye(3) + 0.3)


def _posteriors() -> dict[str, Posterior]:
    truth = data.TRUTH
    return {
        "eight_schools_centred": _made(
            schools_centred, data.schools(), "mu tau theta",
            {**_SCHOOLS, "theta": 4.0 + 3.0 * _EFFECTS}, inputs="scale",
            method=_FUNNEL, stan_diverges=True,
        ),
        "eight_schools_noncentred": _made(
            schools_noncentred, data.schools(), "mu tau theta z", {**_SCHOOLS, "z": _EFFECTS},
            inputs="scale", method=_CAREFUL,
        ),
        "kidiq": _made(kidiq, data.kidiq(), "beta sigma", truth["kidiq"], inputs="x"),
        "wells": _made(wells, data.wells(), "beta", truth["wells"], inputs="x"),
        "gp": _made(gp, data.gp(), "rho alpha sigma", truth["gp"], inputs="x"),
        "lkj": _made(
            lkj, data.lkj(), "scale rho", truth["lkj"], {"factor": _OTHER_FACTOR},
        ),
        "ar": _made(ar, data.ar(), "alpha beta sigma", truth["ar"], inputs="first"),
        "garch": _made(garch, data.garch(), "mu alpha0 alpha1 beta1", truth["garch"]),
        "hmm": _made(hmm, data.hmm(), "mu stay", truth["hmm"]),
        "mixture": _made(mixture, data.mixture(), "mu sigma theta", truth["mixture"]),
        "lotka_volterra": _made(
            lotka_volterra, data.pelts(), "alpha beta gamma delta start sigma", _CYCLE,
            method=NUTS(init_strategy={n: float(v) for n, v in _CYCLE.items() if not v.ndim}),
        ),
    }  # fmt: skip


POSTERIORS = _posteriors()
