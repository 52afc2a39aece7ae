"""EM for generators without an encoder, on scikit-learn's digits, held against what is known.

    factors   x = W z + b + s xi        chains a datum; the maximum in closed form (PPCA)
    mixture   ten Gaussians             exact E-steps, closed M-steps; scikit-learn's own EM
    decoder   x ~ Bernoulli(f(z))       chains a datum; a VAE with the same decoder: `decoder`

The first two have a known answer, and are here; pictures are in `figures`.

Sources: Tipping & Bishop 1999 (PPCA); Dempster, Laird & Rubin 1977; Han et al. 2017,
arXiv:1606.08571 (chains a datum under a generator).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from typing import Any, Literal

import numpy as np

import probgen as pg
from probgen import dist, nets
from probgen.inference import ELBO, EM, Enumerate, Langevin
from probgen.language.declared import declaration
from probgen.language.kinds import Count, Many, Positive, Width
from probgen.models import VAE, GaussianMixture, Generator, likelihoods

NUM_TRAIN = 1437


@declaration
class Settings:
    """Sizes of the study. `quick()` is for tests of the functions, not for numbers.

    Args:
        num_factors, factor_steps: of the linear generator, on all data at once.
        num_components, num_features, mixture_steps: of the mixture, on that many principal
            components.
        latent_dim, hidden: of the decoder, an MLP with silu.
        step_size, num_steps: h and K of the decoder's chains, tested, at each visit of a datum.
        num_updates, batch_size, learning_rate: of decoder and VAE, Adam with half a cosine.
        levels, num_chains: of AIS. num_judged: of data learned from, and of held-out ones.
        num_samples: that are judged.
    """

    num_factors: Width = 8
    factor_steps: Count = 1500
    num_components: Many = 10
    num_features: Width = 10
    mixture_steps: Count = 100
    latent_dim: Width = 8
    hidden: tuple[Width, ...] = (64,)
    step_size: Positive = 0.05
    num_steps: Many = 20
    num_updates: Count = 4000
    batch_size: Many = 128
    learning_rate: Positive = 3e-3
    levels: Many = 200
    num_chains: Many = 4
    num_judged: Many = 200
    num_samples: Many = 1000

    @classmethod
    def quick(cls) -> Settings:
        """Seconds of work."""
        return cls(
            2, factor_steps=4, num_components=3, num_features=2, mixture_steps=4, latent_dim=2,
            hidden=(4,), num_steps=2, num_updates=4, batch_size=32, levels=10, num_chains=2,
            num_judged=8, num_samples=32,
        )  # fmt: skip

    @property
    def generator(self) -> Generator:
        """The decoder alone."""
        return Generator(standard(self.latent_dim), self._decoder(), likelihoods.Bernoulli())

    @property
    def vae(self) -> VAE:
        """The same with an encoder of the same size."""
        encoder = nets.MLP(
            self.hidden, self.latent_dim, heads=("loc", "log_scale"), activation="silu"
        )
        return VAE(standard(self.latent_dim), self._decoder(), likelihoods.Bernoulli(), encoder)

    def _decoder(self) -> Any:
        return nets.MLP(self.hidden, out=(8, 8, 1), activation="silu")


def standard(size: int) -> Any:
    """N(0, I)."""
    return dist.Normal(0, 1).expand([size]).to_event(1)


@functools.cache
def data(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(digits to learn from, digits held out), [n, 8, 8, 1] grey; a split of its own a seed."""
    train, test = pg.data.split(pg.data.digits(), (NUM_TRAIN, 360), seed=seed, stratify=True)
    return train.images, test.images


def flat(images: np.ndarray) -> np.ndarray:
    """[n, 64]."""
    return images.reshape(len(images), -1)


def gaussian_log_p(x: np.ndarray, mean: np.ndarray, cov: np.ndarray) -> float:
    """Mean log density of data under a Gaussian, nats."""
    off = x.astype(np.float64) - mean
    squares = np.einsum("ni,ij,nj->n", off, np.linalg.inv(cov), off).mean()
    return float(-0.5 * (squares + np.linalg.slogdet(cov)[1] + len(cov) * math.log(2 * math.pi)))


# ---- a linear generator: probabilistic PCA -------------------------------------------------------


def ppca(x: np.ndarray, num_factors: int) -> np.ndarray:
    """Covariance of the maximum-likelihood factor model. Tipping & Bishop 1999, equations 7, 8."""
    values, vectors = np.linalg.eigh(np.cov(x.astype(np.float64).T, bias=True))
    noise = values[:-num_factors].mean()
    top = vectors[:, -num_factors:]
    return (top * (values[-num_factors:] - noise)) @ top.T + noise * np.eye(len(values))


@dataclasses.dataclass(frozen=True, eq=False)
class Factors:
    """What chains a datum made of a linear generator.

    Attributes:
        log_p, best: of the data learned from, and at the maximum; `held_out`, `best_held_out`.
        off: |cov - cov of the maximum| / |cov of the maximum|, Frobenius.
        noise: the variance s^2, `best_noise` that of the maximum.
        eigenvalues: [2, 64] of both covariances.
        acceptance: of the chains, late in the fit.
    """

    fitted: pg.Fitted
    log_p: float
    best: float
    held_out: float
    best_held_out: float
    off: float
    noise: float
    best_noise: float
    eigenvalues: np.ndarray
    acceptance: float


def factors(settings: Settings, seed: int, backend: str) -> Factors:
    """A linear generator by MALA chains a datum, beside its maximum likelihood."""
    x, test = (flat(images) for images in data(seed))
    q = settings.num_factors
    model = Generator(standard(q), nets.MLP((), out=64, in_ndim=1), likelihoods.Normal("learned"))
    optimizer = pg.Adam(pg.CosineDecay(2e-2, settings.factor_steps, final=2e-4))
    fitted = pg.fit(
        model, x, EM(Langevin(0.05, num_steps=10, metropolis=True), optimizer),
        num_steps=settings.factor_steps, batch_size=None, ema_decay=0.98, seed=seed,
        backend=backend, device="cpu", progress_bar=False,
    )  # fmt: skip
    layer = fitted.params["decoder"]["out"]
    w, b = (np.asarray(layer[k], np.float64) for k in ("weight", "bias"))
    noise = (1e-3 + np.log1p(np.exp(float(fitted.params["likelihood"]["value"])))) ** 2
    cov, best = w.T @ w + noise * np.eye(64), ppca(x, q)
    late = slice(-max(1, settings.factor_steps // 10), None)
    mean = x.mean(0)
    return Factors(
        fitted, gaussian_log_p(x, b, cov), gaussian_log_p(x, mean, best),
        gaussian_log_p(test, b, cov), gaussian_log_p(test, mean, best),
        float(np.linalg.norm(cov - best) / np.linalg.norm(best)), float(noise),
        float(np.linalg.eigvalsh(best)[0]),
        np.stack([np.linalg.eigvalsh(c)[::-1] for c in (cov, best)]),
        float(fitted.history["acceptance"][late].mean()),
    )  # fmt: skip


# ---- a mixture: exact E-steps --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """Textbook EM, beside scikit-learn's from the same start.

    Attributes:
        curve: [steps] log p of the data learned from, nats; largest_fall: of one step.
        log_p, theirs: of the data learned from, at the end; `held_out`, `theirs_held_out`.
        off: the largest difference of their means, component by component.
    """

    fitted: pg.Fitted
    curve: np.ndarray
    largest_fall: float
    log_p: float
    theirs: float
    held_out: float
    theirs_held_out: float
    off: float


def mixture(
    settings: Settings, seed: int, backend: str, covariance: Literal["full", "diagonal"] = "full"
) -> Mixture:
    """A mixture of Gaussians on principal components of digits."""
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture as Theirs

    k, d, small = settings.num_components, settings.num_features, 1e-3
    train, test = (flat(images) for images in data(seed))
    pca = PCA(d, svd_solver="full").fit(train)
    x, y = (pca.transform(v).astype(np.float32) for v in (train, test))
    model = GaussianMixture(k, d, covariance=covariance, min_variance=small)
    start = model.start(x, seed=seed)
    fitted = pg.fit(
        model, x, EM(Enumerate()), init=start, batch_size=None, num_steps=settings.mixture_steps,
        seed=seed, backend=backend, device="cpu", progress_bar=False,
    )  # fmt: skip
    cov = np.cov(x.T, bias=True) + small * np.eye(d)
    is_full = covariance == "full"
    one = np.linalg.inv(cov) if is_full else 1.0 / np.diag(cov)
    theirs = Theirs(
        k, covariance_type="full" if is_full else "diag", tol=0.0, reg_covar=small,
        max_iter=settings.mixture_steps, weights_init=np.ones(k) / k,
        means_init=start["means"]["table"], precisions_init=[one] * k,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the number of steps is chosen, not waited for
        theirs.fit(x.astype(np.float64))
    exact = ELBO()
    ours = [
        float(pg.evaluate(fitted, v, [exact], seed=0, backend=backend, device="cpu")[exact.name][
            "estimate"].mean()) for v in (x, y)
    ]  # fmt: skip
    curve = fitted.history["log_likelihood"]
    return Mixture(
        fitted, curve, float(max(0.0, -np.diff(curve).min())), ours[0], float(theirs.score(x)),
        ours[1], float(theirs.score(y)),
        float(np.abs(fitted.params["means"]["table"] - theirs.means_).max()),
    )  # fmt: skip


# ---- tables --------------------------------------------------------------------------------------


def table(rows: dict[str, list[Any]], names: tuple[str, ...]) -> str:
    """A line a quantity: means over seeds and their spread, for each column."""
    lines = [f"{'':<18}" + "".join(f"{title:>24}" for title in rows)]
    for name in names:
        cells = []
        for runs in rows.values():
            values = np.array([getattr(r, name) for r in runs])
            spread = values.std(ddof=1) if len(values) > 1 else math.nan
            cells.append(f"{values.mean():.4f} +- {spread:.4f}")
        lines.append(f"{name:<18}" + "".join(f"{c:>24}" for c in cells))
    return "\n".join(lines)


OF_FACTORS = ("log_p", "best", "held_out", "best_held_out", "off", "noise", "best_noise",
              "acceptance")  # fmt: skip
OF_MIXTURE = ("log_p", "theirs", "held_out", "theirs_held_out", "off", "largest_fall")
