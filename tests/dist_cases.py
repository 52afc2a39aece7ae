"""The registry of `test_dist.py`: each family with arguments, reference, values and moments."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.special as sp
import scipy.stats as st

from probgen import dist


class Case(NamedTuple):
    """arguments of a family; reference log density; values to try; (mean, variance) if finite."""

    arguments: dict
    log_prob: Callable
    values: np.ndarray
    moments: tuple | None = None
    event_ndim: int = 0


def scipy_case(arguments: dict, frozen, moments: bool = True) -> Case:
    """A case whose reference is a frozen distribution of scipy."""
    log_prob = frozen.logpmf if hasattr(frozen.dist, "pmf") else frozen.logpdf
    values = np.asarray(frozen.rvs(size=50, random_state=np.random.default_rng(1)))
    finite = (frozen.mean(), frozen.var()) if moments else None
    return Case(arguments, log_prob, values, finite)


def _asymmetric_laplace(x, loc=0.4, scale=1.3, k=0.7):
    z = (x - loc) / scale
    return -np.log(scale * (k + 1 / k)) - np.where(z > 0, k, -1 / k) * z


def _folded(x):
    return np.logaddexp(st.norm(0.5, 1.2).logpdf(x), st.norm(0.5, 1.2).logpdf(-x))


def _kumaraswamy(x, a=2.0, b=3.5):
    return np.log(a * b) + (a - 1) * np.log(x) + (b - 1) * np.log1p(-(x**a))


def _soft_laplace(x, loc=0.2, scale=0.8):
    z = (x - loc) / scale
    return np.log(2 / np.pi) - np.log(scale) - np.logaddexp(z, -z)


def _relaxed_bernoulli(x, temperature=0.7, logit=0.4):
    inner = logit - temperature * (np.log(x) - np.log1p(-x))
    return np.log(temperature) + inner - np.log(x * (1 - x)) - 2 * np.logaddexp(0, inner)


def _lkj_2(x, eta=2.5):
    """A 2 x 2 correlation r has density (1 - r^2)^(eta - 1) / (2^(2 eta - 1) B(eta, eta))."""
    r = x[..., 1, 0]
    return (eta - 1) * np.log1p(-r * r) - (2 * eta - 1) * np.log(2) - np.log(sp.beta(eta, eta))


def _lkj_cholesky_2(x, eta=2.5):
    return _lkj_2(x, eta)  # for two dimensions the Jacobian from L[1, 0] to r is one


def _correlations(cholesky: bool) -> np.ndarray:
    r = np.linspace(-0.8, 0.9, 7)
    out = np.zeros((7, 2, 2))
    out[:, 0, 0] = 1
    if cholesky:
        out[:, 1, 0], out[:, 1, 1] = r, np.sqrt(1 - r * r)
    else:
        out[:, 0, 1] = out[:, 1, 0] = r
        out[:, 1, 1] = 1
    return out


RNG = np.random.default_rng(0)
LOC = np.array([0.3, -1.0, 0.5])
FACTOR = RNG.normal(size=(3, 2))
TRIL = np.tril(RNG.normal(size=(3, 3)) * 0.3) + np.diag([1.0, 0.8, 1.2])
COV = TRIL @ TRIL.T
LOW_RANK = FACTOR @ FACTOR.T + np.diag([0.5, 0.6, 0.7])
SIMPLEX = np.array([0.2, 0.5, 0.3])
COUNTS = RNG.multinomial(6, SIMPLEX, size=20).astype(float)
POINTS = RNG.normal(size=(20, 3))
A3 = np.array([1.5, 2.0, 4.0])
CUTS = np.array([-1.0, 0.2, 1.5])


def _ordered(x):
    upper = np.concatenate([sp.expit(CUTS - 0.3), [1.0]])
    lower = np.concatenate([[0.0], sp.expit(CUTS - 0.3)])
    return np.log(upper - lower)[x.astype(int)]


def _mixture(x):
    parts = [np.log(p) + st.norm(m, s).logpdf(x) for p, m, s in zip(SIMPLEX, LOC, A3, strict=True)]
    return sp.logsumexp(parts, axis=0)


def _zip(x):
    return np.where(
        x == 0,
        np.log(0.3 + 0.7 * np.exp(-2.5)),
        np.log(0.7) + st.poisson(2.5).logpmf(x),
    )


def _multi_t(x):
    return st.multivariate_t(LOC, COV, df=5.0).logpdf(x)


def _dirichlet_multinomial(x):
    return st.dirichlet_multinomial(A3, 6).logpmf(x.astype(int))


MIX = {
    "mixing_distribution": dist.Categorical(probs=SIMPLEX),
    "component_distribution": dist.Normal(LOC, A3),
}
MIX_MEAN = float(SIMPLEX @ LOC)
MIX_VAR = float(SIMPLEX @ (A3**2 + LOC**2)) - MIX_MEAN**2
MVN = st.multivariate_normal(LOC, COV)

CASES: dict[str, Case] = {
    "AsymmetricLaplace": Case(
        {"loc": 0.4, "scale": 1.3, "asymmetry": 0.7}, _asymmetric_laplace, np.linspace(-3, 3, 9),
        (0.4 + 1.3 * (1 - 0.7**2) / 0.7, 1.3**2 * (1 + 0.7**4) / 0.7**2),
    ),
    "Bernoulli": scipy_case({"probs": 0.3}, st.bernoulli(0.3)),
    "Beta": scipy_case({"concentration1": 2.0, "concentration0": 3.0}, st.beta(2, 3)),
    "BetaBinomial": scipy_case(
        {"concentration1": 2.0, "concentration0": 3.0, "total_count": 7}, st.betabinom(7, 2, 3)
    ),
    "Binomial": scipy_case({"total_count": 7, "probs": 0.3}, st.binom(7, 0.3)),
    "Categorical": Case(
        {"probs": SIMPLEX}, lambda x: np.log(SIMPLEX)[x.astype(int)], np.arange(3.0),
        (1.1, 0.5 + 4 * 0.3 - 1.1**2),
    ),
    "Cauchy": scipy_case({"loc": 0.5, "scale": 2.0}, st.cauchy(0.5, 2.0), moments=False),
    "Chi2": scipy_case({"df": 3.5}, st.chi2(3.5)),
    "Delta": Case({"v": 1.5}, lambda x: np.zeros_like(x), np.array([1.5, 1.5]), (1.5, 0.0)),
    "Dirichlet": Case(
        {"concentration": A3}, lambda x: st.dirichlet(A3).logpdf(x.T / x.T.sum(0)),
        st.dirichlet(A3).rvs(20, np.random.default_rng(3)),
        (A3 / 7.5, st.dirichlet(A3).var()), 1,
    ),
    "DirichletMultinomial": Case(
        {"concentration": A3, "total_count": 6}, _dirichlet_multinomial, COUNTS,
        (6 * A3 / 7.5, np.diag(st.dirichlet_multinomial(A3, 6).cov())), 1,
    ),
    "Exponential": scipy_case({"rate": 1.7}, st.expon(scale=1 / 1.7)),
    "FoldedDistribution": Case(
        {"base_dist": dist.Normal(0.5, 1.2)}, _folded, np.linspace(0.1, 3, 9),
        tuple(float(m) for m in st.foldnorm(0.5 / 1.2, scale=1.2).stats("mv")),
    ),
    "Gamma": scipy_case({"concentration": 2.5, "rate": 1.5}, st.gamma(2.5, scale=1 / 1.5)),
    "GammaPoisson": scipy_case(
        {"concentration": 3.0, "rate": 1.5}, st.nbinom(3.0, 1.5 / 2.5)
    ),
    "Geometric": scipy_case({"probs": 0.35}, st.geom(0.35, loc=-1)),
    "Gumbel": scipy_case({"loc": 0.5, "scale": 1.5}, st.gumbel_r(0.5, 1.5)),
    "HalfCauchy": scipy_case({"scale": 1.5}, st.halfcauchy(scale=1.5), moments=False),
    "HalfNormal": scipy_case({"scale": 1.5}, st.halfnorm(scale=1.5)),
    "InverseGamma": scipy_case({"concentration": 6.0, "rate": 2.0}, st.invgamma(6, scale=2)),
    "Kumaraswamy": Case(
        {"concentration1": 2.0, "concentration0": 3.5}, _kumaraswamy, np.linspace(0.1, 0.9, 9),
        (
            3.5 * sp.beta(1.5, 3.5),
            3.5 * sp.beta(2.0, 3.5) - (3.5 * sp.beta(1.5, 3.5)) ** 2,
        ),
    ),
    "LKJ": Case(
        {"dim": 2, "concentration": 2.5}, _lkj_2, _correlations(False), None, 2
    ),
    "LKJCholesky": Case(
        {"dim": 2, "concentration": 2.5}, _lkj_cholesky_2, _correlations(True), None, 2
    ),
    "Laplace": scipy_case({"loc": 0.5, "scale": 1.5}, st.laplace(0.5, 1.5)),
    "LogNormal": scipy_case({"loc": 0.3, "scale": 0.5}, st.lognorm(0.5, scale=math.exp(0.3))),
    "Logistic": scipy_case({"loc": 0.5, "scale": 1.5}, st.logistic(0.5, 1.5)),
    "LowRankMultivariateNormal": Case(
        {"loc": LOC, "cov_factor": FACTOR, "cov_diag": np.array([0.5, 0.6, 0.7])},
        st.multivariate_normal(LOC, LOW_RANK).logpdf, POINTS, (LOC, np.diag(LOW_RANK)), 1,
    ),
    "MixtureSameFamily": Case(MIX, _mixture, np.linspace(-5, 5, 9), (MIX_MEAN, MIX_VAR)),
    "Multinomial": Case(
        {"total_count": 6, "probs": SIMPLEX}, st.multinomial(6, SIMPLEX).logpmf, COUNTS,
        (6 * SIMPLEX, 6 * SIMPLEX * (1 - SIMPLEX)), 1,
    ),
    "MultivariateNormal": Case(
        {"loc": LOC, "covariance_matrix": COV}, MVN.logpdf, POINTS, (LOC, np.diag(COV)), 1
    ),
    "MultivariateStudentT": Case(
        {"df": 5.0, "loc": LOC, "scale_tril": TRIL}, _multi_t, POINTS,
        (LOC, np.diag(COV) * 5 / 3), 1,
    ),
    "NegativeBinomial": scipy_case({"total_count": 4.0, "probs": 0.4}, st.nbinom(4.0, 0.6)),
    "Normal": scipy_case({"loc": 0.5, "scale": 1.5}, st.norm(0.5, 1.5)),
    "OrderedLogistic": Case({"predictor": 0.3, "cutpoints": CUTS}, _ordered, np.arange(4.0)),
    "Pareto": scipy_case({"scale": 1.5, "alpha": 6.0}, st.pareto(6.0, scale=1.5)),
    "Poisson": scipy_case({"rate": 2.5}, st.poisson(2.5)),
    "RelaxedBernoulli": Case(
        {"temperature": np.array(0.7), "logits": np.array(0.4)}, _relaxed_bernoulli,
        np.linspace(0.1, 0.9, 9),
    ),
    "SoftLaplace": Case(
        {"loc": 0.2, "scale": 0.8}, _soft_laplace, np.linspace(-3, 3, 9),
        (0.2, (math.pi * 0.8 / 2) ** 2),
    ),
    "StudentT": scipy_case({"df": 7.0, "loc": 0.5, "scale": 1.5}, st.t(7.0, 0.5, 1.5)),
    "Uniform": scipy_case({"low": -1.0, "high": 2.5}, st.uniform(-1, 3.5)),
    "VonMises": Case(
        {"loc": 0.5, "concentration": 2.0}, st.vonmises(2.0, loc=0.5).logpdf, np.linspace(-3, 3, 9)
    ),
    "Weibull": scipy_case({"scale": 1.5, "concentration": 2.0}, st.weibull_min(2.0, scale=1.5)),
    "ZeroInflatedPoisson": Case(
        {"rate": 2.5, "gate": 0.3}, _zip, np.arange(7.0),
        (0.7 * 2.5, 0.7 * 2.5 + 0.3 * 0.7 * 2.5**2),
    ),
}  # fmt: skip

TORCH_ONLY = {
    "AffineBeta": {"concentration1": 2.0, "concentration0": 3.0, "loc": 0.0, "scale": 2.0},
    "ContinuousBernoulli": {"probs": 0.3},
    "FisherSnedecor": {"df1": 3.0, "df2": 4.0},
    "OneHotCategorical": {"probs": SIMPLEX},
    "Stable": {"stability": 1.5, "skew": 0.0},
}
JAX_ONLY = {
    "BetaProportion": {"mean": 0.3, "concentration": 4.0},
    "DiscreteUniform": {"low": 0, "high": 5},
    "Gompertz": {"concentration": 1.0},
    "TruncatedNormal": {"loc": 0.0, "scale": 1.0, "low": -1.0, "high": 1.0},
}
DISCRETE_INDEX = {"Categorical", "OrderedLogistic"}
