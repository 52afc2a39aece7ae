"""Probabilistic PCA with encoders of every quality, for the tests of likelihood regret.

    z ~ N(0, I_d),  x | z ~ N(W z + c, s^2 I_D)
    P = I + W'W / s^2,  m*(x) = P^-1 W'(x - c) / s^2,  p(z | x) = N(m*, P^-1)

For q = N(m, diag v), in nats:

    KL(q || p(z | x)) = 1/2 [sum_j P_jj v_j + (m - m*)'P (m - m*) - d - sum_j log v_j - log|P|]

which is least at m = m*, v_j = 1 / P_jj. The regret at K = 1 is the difference of two such numbers.
"""

import dataclasses
import zlib
from unittest import mock

import numpy as np

import probgen as pg
from probgen import dist, nets, ops
from probgen.data.sources import ArraySource
from probgen.engine.fitted import Fitted
from probgen.inference.regret.likelihood_regret import LikelihoodRegret
from probgen.models import VAE, likelihoods
from probgen.trees import tree_map


def as_float64(x):
    """Data that the verbs leave in float64."""
    return ArraySource({"x": np.asarray(x, np.float64)}, batch_size=None, seed=0)


@dataclasses.dataclass(frozen=True)
class Saturating:
    """x -> clip(x A + a, -limit, limit) as `loc`, and a constant `log_scale`."""

    dim: int
    limit: float = 2.0

    def init(self, key, shape):
        return {
            "weight": key.normal(size=(shape[-1], self.dim)).astype(np.float32),
            "bias": np.zeros(self.dim, np.float32),
            "log_scale": np.zeros(self.dim, np.float32),
        }

    def apply(self, params, x):
        loc = ops.einsum("...i,ij->...j", x, params["weight"]) + params["bias"]
        loc = ops.clip(loc, -self.limit, self.limit)
        return {"loc": loc, "log_scale": loc * 0.0 + params["log_scale"]}


@dataclasses.dataclass(frozen=True)
class PPCA:
    """The model's numbers, its closed forms, and VAEs that declare it.

    `orthogonal`: W has orthogonal columns, so that the posterior is itself a diagonal Gaussian.
    """

    num_values: int = 16
    num_units: int = 4
    s2: float = 0.09
    orthogonal: bool = False

    @property
    def w(self):
        """[D, d]"""
        w = np.random.default_rng(3).normal(size=(self.num_values, self.num_units))
        w *= 0.5
        return np.linalg.qr(w)[0] * [2.0, 1.5, 1.0, 0.5][: self.num_units] if self.orthogonal else w

    @property
    def c(self):
        return np.linspace(-0.5, 0.5, self.num_values)

    @property
    def precision(self):
        """P, [d, d]"""
        return np.eye(self.num_units) + self.w.T @ self.w / self.s2

    @property
    def gain(self):
        """[D, d], m* = (x - c) gain."""
        return self.w @ np.linalg.inv(self.precision) / self.s2

    @property
    def best_variance(self):
        return 1.0 / np.diag(self.precision)

    def draw(self, count, *, seed=0, stretch=1.0):
        """[n, D] data, `stretch` times as far from the centre as the model has them."""
        rng = np.random.default_rng(seed)
        z = rng.normal(size=(count, self.num_units))
        noise = rng.normal(size=(count, self.num_values)) * self.s2**0.5
        return self.c + stretch * (z @ self.w.T + noise)

    def posterior_mean(self, x):
        return (np.asarray(x, np.float64) - self.c) @ self.gain

    def log_prob(self, x):
        """[n] log p(x), nats."""
        cov = self.w @ self.w.T + self.s2 * np.eye(self.num_values)
        d = np.asarray(x, np.float64) - self.c
        squares = np.einsum("ni,ij,nj->n", d, np.linalg.inv(cov), d)
        return -0.5 * squares - 0.5 * np.linalg.slogdet(2 * np.pi * cov)[1]

    def kl(self, x, loc, variance):
        """[n] KL(N(loc, diag variance) || p(z | x)), nats."""
        p, off = self.precision, loc - self.posterior_mean(x)
        quadratic = np.einsum("ni,ij,nj->n", off, p, off)
        volume = np.log(variance).sum(-1) + np.linalg.slogdet(p)[1]
        return 0.5 * ((np.diag(p) * variance).sum(-1) + quadratic - self.num_units - volume)

    def best_regret(self, x, loc, variance):
        """[n] the regret at K = 1 of a guide, section 10: its KL less that of the best diagonal."""
        p, off = self.precision, loc - self.posterior_mean(x)
        ratio = np.diag(p) * variance
        quadratic = np.einsum("ni,ij,nj->n", off, p, off)
        return 0.5 * ((ratio - 1 - np.log(ratio)).sum(-1) + quadratic)

    def fitted(self, *, limit=None, shift=0.0, widen=1.0, dtype=np.float64):
        """The VAE whose guide is the best diagonal one but for these faults.

        Args:
            limit: clips the mean; None for the linear encoder (an MLP without hidden layers).
            shift: added to each mean, in standard deviations of the best guide.
            widen: factor on each variance.
        """
        scale = np.sqrt(self.best_variance)
        bias = -self.c @ self.gain + shift * scale
        log_scale = np.log(scale) + 0.5 * np.log(widen)
        if limit is None:
            encoder = nets.MLP(hidden=(), out=self.num_units, heads=("loc", "log_scale"))
            weight = np.concatenate([self.gain, np.zeros_like(self.gain)], 1)
            given = {"out": {"weight": weight, "bias": np.concatenate([bias, log_scale])}}
        else:
            encoder = Saturating(self.num_units, limit)
            given = {"weight": self.gain, "bias": bias, "log_scale": log_scale}
        model = VAE(
            latent=dist.Normal(0, 1).expand([self.num_units]).to_event(1),
            decoder=nets.MLP(hidden=(), out=(self.num_values,)),
            likelihood=likelihoods.Normal(scale=float(np.sqrt(self.s2))),
            encoder=encoder,
        )
        params = {"decoder": {"out": {"weight": self.w.T, "bias": self.c}}, "encoder": given}
        return Fitted(
            model,
            tree_map(lambda a: np.asarray(a, dtype), params),
            shapes={"x": (self.num_values,)},
        )

    def guide(self, x, *, limit=None, shift=0.0, widen=1.0):
        """(loc, variance) that the encoder of `fitted` gives, [n, d] each."""
        loc = self.posterior_mean(x) + shift * np.sqrt(self.best_variance)
        if limit is not None:
            loc = np.clip(loc, -limit, limit)
        return loc, np.broadcast_to(self.best_variance * widen, loc.shape)


def settled(num_steps, peak=3e-2, **options):
    """An Adam whose rate falls to zero, so that the search comes to rest; all data side by side."""
    optimizer = pg.Adam(pg.CosineDecay(peak, num_steps))
    options = {"rows_at_once": 512, **options}
    return LikelihoodRegret(num_steps=num_steps, optimizer=optimizer, **options)


def scored(b, fitted, x, measure, seed=0):
    """The measure's group of a table, as {quantity: [n, ...]}."""
    table = pg.evaluate(
        fitted, as_float64(x), [measure], seed=seed, backend=b, progress_bar=False,
        chunk_size=len(x),
    )  # fmt: skip
    return {name: values.values for name, values in table[measure.name].data_vars.items()}


def measure_key(b, measure, seed):
    """The key that `pg.evaluate(..., seed=seed)` gives to a measure."""
    return b.fold_in(b.key(seed), zlib.crc32(measure.noise_name.encode()) & 0x7FFFFFFF)


def searched(b, fitted, x, measure, *, seed=0):
    """(what `measure.finish` makes a table of, tau_hat as a tree of [n, ...] numpy), of one run by
    the noise of `pg.evaluate(..., seed=seed)`."""
    return searcher(b, fitted, x, measure, seed=seed)(fitted, x)


def searcher(b, fitted, x, measure, *, seed=0):
    """(fitted, x) -> what `searched` gives, for other parameters and data of the same shape."""
    minimise_rows = type(b).minimise_rows

    def with_tau(self, declared, loss, *, finish, **options):
        def both(tau, *rest):
            return {**finish(tau, *rest), "tau": tau}

        return minimise_rows(self, declared, loss, finish=both, **options)

    bound, _ = fitted.bind(b, {"x": x[:1]}, num_data=len(x))
    keys = b.row_keys(measure_key(b, measure, seed), np.arange(len(x)))
    device_function = measure.device_function(bound, len(x))

    def run(fitted, x):
        params = fitted.bind(b, {"x": x[:1]}, num_data=len(x))[1]
        with mock.patch.object(type(b), "minimise_rows", with_tau):
            values = tree_map(b.to_numpy, device_function(params, {"x": b.asarray(x)}, keys))
        return values, values.pop("tau")

    return run


def free_gaussian(tau):
    """(loc, variance) of a tau of search="posterior"."""
    return tau["tau/z/loc"]["value"], np.exp(2 * tau["tau/z/log_scale"]["value"])


def auroc(ordinary, strange):
    """P(strange > ordinary) + P(equal) / 2, over all pairs."""
    difference = np.asarray(strange)[:, None] - np.asarray(ordinary)[None, :]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))
