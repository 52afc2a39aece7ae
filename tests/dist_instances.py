"""The registry of `test_dist_edges.py`: a family, arguments, scipy's log density, values to try."""

from typing import NamedTuple

import numpy as np
import scipy.special as sp
import scipy.stats as st

from probgen import dist

INF = np.inf


class Instance(NamedTuple):
    """A family with arguments; `reference(**arguments)` is the log density; values to try.

    Arguments and values are rounded to float32 before either side sees them.
    """

    family: str
    arguments: dict
    reference: object
    values: object
    event_ndim: int = 0


def _scipy(law, **names):
    """The log density of scipy's `law` by our arguments; names: scipy's -> a function of ours."""

    def reference(**arguments):
        frozen = law(**{k: f(arguments) for k, f in names.items()})
        return frozen.logpmf if hasattr(frozen.dist, "pmf") else frozen.logpdf

    return reference


def _get(name, power=1):
    return lambda a: a[name] ** power


def _prob(a):
    return a["probs"] if "probs" in a else sp.expit(a["logits"])


GAMMA = _scipy(st.gamma, a=_get("concentration"), scale=_get("rate", -1))
INVERSE = _scipy(st.invgamma, a=_get("concentration"), scale=_get("rate"))
BETA = _scipy(st.beta, a=_get("concentration1"), b=_get("concentration0"))
BINOMIAL = _scipy(st.binom, n=_get("total_count"), p=_prob)
NEGATIVE = _scipy(st.nbinom, n=_get("total_count"), p=lambda a: 1 - _prob(a))
WEIBULL = _scipy(st.weibull_min, c=_get("concentration"), scale=_get("scale"))
STUDENT = _scipy(st.t, df=_get("df"), loc=_get("loc"), scale=_get("scale"))
LOC_SCALE = {"loc": _get("loc"), "scale": _get("scale")}
PAIR = ("concentration1", "concentration0")


def _relaxed(temperature, **a):
    """Maddison, Mnih & Teh 2017, equation 10; its limits at 0 and 1."""
    t, odds = temperature, _prob(a) / (1 - _prob(a))

    def log_prob(x):
        top, rest = np.log(t * odds), np.where((x < 0) | (x > 1), np.nan, x)
        power = -(t + 1) * (np.log(rest) + np.log1p(-rest))
        ends = np.logaddexp(np.log(odds) - t * np.log(rest), -t * np.log1p(-rest))
        limit = np.where(x == 0, -np.log(odds), np.log(odds)) if t == 1 else INF * np.sign(1 - t)
        inner = np.where((x == 0) | (x == 1), limit, top + power - 2 * ends)
        return np.where((x < 0) | (x > 1), -INF, inner)

    return log_prob


def _multinomial(total_count, probs):
    """Weights need not sum to one."""
    p = np.asarray(probs, float) / np.sum(probs)

    def log_prob(x):
        inside = (x >= 0).all(-1) & (x == np.floor(x)).all(-1) & (x.sum(-1) == total_count)
        x = np.where(inside[..., None], x, 0)
        terms = sp.xlogy(x, p) - sp.gammaln(x + 1)
        return np.where(inside, sp.gammaln(total_count + 1) + terms.sum(-1), -INF)

    return log_prob


def _categorical(probs):
    p = np.asarray(probs, float) / np.sum(probs)
    return lambda x: np.log(p)[x.astype(int)]


def _dirichlet(concentration):
    a = np.asarray(concentration, float)

    def log_prob(x):
        x = x / x.sum(-1, keepdims=True)
        return sp.gammaln(a.sum()) - sp.gammaln(a).sum() + sp.xlogy(a - 1, x).sum(-1)

    return log_prob


def _dirichlet_multinomial(concentration, total_count):
    a = np.asarray(concentration, float)
    return lambda x: st.dirichlet_multinomial(a, int(total_count)).logpmf(x.astype(int))


def _kumaraswamy(concentration1, concentration0):
    a, b = concentration1, concentration0

    def log_prob(x):
        inside = (x >= 0) & (x <= 1)
        x = np.where(inside, x, 0.5)
        found = np.log(a * b) + sp.xlogy(a - 1, x) + sp.xlog1py(b - 1, -(x**a))
        return np.where(inside, found, -INF)

    return log_prob


def _zero_inflated(rate, gate):
    def log_prob(x):
        rest = np.log1p(-gate) + st.poisson(rate).logpmf(x)
        return np.where(x == 0, np.logaddexp(np.log(gate), rest), rest)

    return log_prob


def _ordered(predictor, cutpoints):
    at = np.asarray(cutpoints, float) - predictor
    inner = np.log(sp.expit(at[1:]) - sp.expit(at[:-1]))  # of numbers that do not cancel in float64
    table = np.concatenate([[-np.logaddexp(0, -at[0])], inner, [-np.logaddexp(0, at[-1])]])
    return lambda x: table[x.astype(int)]


def _folded(base_dist):
    a = dict(base_dist.arguments)
    law = st.norm(a["loc"], a["scale"])
    return lambda x: np.where(x < 0, -INF, np.logaddexp(law.logpdf(x), law.logpdf(-x)))


def _truncated(loc=0.0, scale=1.0, low=-INF, high=INF):
    return st.truncnorm((low - loc) / scale, (high - loc) / scale, loc, scale).logpdf


def _von_mises(loc, concentration):
    log_i0 = np.log(sp.i0e(concentration))
    return lambda x: concentration * (np.cos(x - loc) - 1) - np.log(2 * np.pi) - log_i0


def _multivariate_t(df, loc, scale_tril):
    tril = np.asarray(scale_tril, float)
    return st.multivariate_t(loc, tril @ tril.T, df=df).logpdf


def _around(mean, sd):
    """Counts at the mean, near and far."""
    x = np.round(mean + sd * np.array([-30, -3, -1, 0, 1, 3, 30, 300]))
    return x[x >= 0]


def _three(a, b, c):
    return np.array([[1, 0, 0], [0, 0, 1], [a, b, c]], float)


TAIL = [-1e4, -50.0, -5.0, 0.0, 5.0, 50.0, 1e4]
UP = [-1.0, 0.0, 1e-30, 1e-3, 1.0, 30.0, 1e4]
UNIT = [-0.1, 0.0, 1e-20, 1e-3, 0.5, 0.999, 1.0, 1.5]
COUNT = [-1.0, 0.0, 0.5, 1.0, 2.0, 30.0, 1e3, 1e6]
SIMPLEX = np.array([[0.2, 0.5, 0.3], [1e-6, 0.5, 0.499999]])

INSTANCES = [
    Instance(
        "AffineBeta",
        {**dict.fromkeys(PAIR, 1.0), "loc": -1.0, "scale": 2.0},
        lambda loc, scale, **a: st.beta(a[PAIR[0]], a[PAIR[1]], loc, scale).logpdf,
        [-1.5, -1.0, 0.0, 1.0, 1.5],
    ),
    Instance(
        "AsymmetricLaplace",
        {"loc": 0.0, "scale": 1.5, "asymmetry": 1.0},
        lambda loc, scale, asymmetry: st.laplace_asymmetric(asymmetry, loc, scale).logpdf,
        TAIL,
    ),
    Instance("Bernoulli", {"probs": 0.0}, _scipy(st.bernoulli, p=_prob), [0.0, 1.0]),
    Instance("Bernoulli", {"probs": 1.0}, _scipy(st.bernoulli, p=_prob), [0.0, 1.0]),
    Instance("Bernoulli", {"probs": 1e-7}, _scipy(st.bernoulli, p=_prob), [0.0, 1.0]),
    Instance(
        "Bernoulli",
        {"logits": 60.0},
        lambda logits: lambda x: -np.logaddexp(0, (1 - 2 * x) * logits),
        [0.0, 1.0],
    ),
    Instance("Beta", dict.fromkeys(PAIR, 1.0), BETA, UNIT),
    Instance("Beta", {PAIR[0]: 0.5, PAIR[1]: 2.0}, BETA, UNIT),
    Instance("Beta", {PAIR[0]: 3e5, PAIR[1]: 7e5}, BETA, [0.29, 0.299, 0.3, 0.3005, 0.5]),
    Instance(
        "BetaBinomial",
        {PAIR[0]: 2.0, PAIR[1]: 3.0, "total_count": 5},
        _scipy(st.betabinom, n=_get("total_count"), a=_get(PAIR[0]), b=_get(PAIR[1])),
        [-1.0, 0.0, 2.5, 5.0, 6.0],
    ),
    Instance(
        "BetaBinomial",
        {PAIR[0]: 3e4, PAIR[1]: 7e4, "total_count": 200_000},
        _scipy(st.betabinom, n=_get("total_count"), a=_get(PAIR[0]), b=_get(PAIR[1])),
        _around(6e4, 400),
    ),
    Instance(
        "BetaProportion",
        {"mean": 0.5, "concentration": 8.0},
        lambda mean, concentration: (
            st.beta(mean * concentration, (1 - mean) * concentration).logpdf
        ),
        UNIT,
    ),
    Instance("Binomial", {"total_count": 3, "probs": 0.0}, BINOMIAL, [0.0, 1.0, 3.0]),
    Instance("Binomial", {"total_count": 3, "probs": 1.0}, BINOMIAL, [0.0, 1.0, 3.0]),
    Instance("Binomial", {"total_count": 3, "logits": -40.0}, BINOMIAL, [-1.0, 0.0, 1.0, 3.0, 4.0]),
    Instance("Binomial", {"total_count": 1_000_000, "probs": 0.25}, BINOMIAL, _around(2.5e5, 433)),
    Instance("Categorical", {"probs": np.array([1.0, 3.0, 0.0])}, _categorical, [0.0, 1.0, 2.0]),
    Instance("Cauchy", {"loc": 0.0, "scale": 1.0}, _scipy(st.cauchy, **LOC_SCALE), [*TAIL, 1e25]),
    Instance("Chi2", {"df": 2.0}, _scipy(st.chi2, df=_get("df")), UP),
    Instance("Chi2", {"df": 2e6}, _scipy(st.chi2, df=_get("df")), [1.99e6, 2e6, 2.01e6]),
    Instance(
        "ContinuousBernoulli",
        {"probs": 0.25},
        lambda probs: (
            lambda x: np.where(
                (x < 0) | (x > 1),
                -INF,
                sp.xlogy(x, probs)
                + sp.xlog1py(1 - x, -probs)
                + np.log(2 * np.arctanh(1 - 2 * probs) / (1 - 2 * probs)),
            )
        ),
        [0.0, 0.5, 1.0],
    ),
    Instance("Delta", {"v": 1.5}, lambda v: lambda x: np.where(x == v, 0.0, -INF), [1.5, 1.0]),
    Instance(
        "Dirichlet",
        {"concentration": np.array([1.0, 1.0, 1.0])},
        _dirichlet,
        [*SIMPLEX, [0.0, 0.5, 0.5]],
        1,
    ),
    Instance("Dirichlet", {"concentration": np.array([2e5, 5e5, 3e5])}, _dirichlet, SIMPLEX, 1),
    Instance(
        "DirichletMultinomial",
        {"concentration": np.array([2.0, 0.5, 1.0]), "total_count": 3},
        _dirichlet_multinomial,
        3 * _three(0, 1, 0),
        1,
    ),
    Instance(
        "DirichletMultinomial",
        {"concentration": np.array([2e4, 5e4, 3e4]), "total_count": 100_000},
        _dirichlet_multinomial,
        1e5 * _three(0.2, 0.5, 0.3),
        1,
    ),
    Instance(
        "DiscreteUniform",
        {"low": 0, "high": 5},
        lambda low, high: st.randint(low, high + 1).logpmf,
        [-1.0, 0.0, 0.5, 5.0, 6.0],
    ),
    Instance("Exponential", {"rate": 2.0}, _scipy(st.expon, scale=_get("rate", -1)), UP),
    Instance(
        "FisherSnedecor",
        {"df1": 2.0, "df2": 4.0},
        _scipy(st.f, dfn=_get("df1"), dfd=_get("df2")),
        UP,
    ),
    Instance(
        "FisherSnedecor",
        {"df1": 2e6, "df2": 4e6},
        _scipy(st.f, dfn=_get("df1"), dfd=_get("df2")),
        [0.9, 1.0, 1.01],
    ),
    Instance(
        "FoldedDistribution", {"base_dist": dist.Normal(0.5, 1.25)}, _folded, [-1.0, 0.0, 1.0, 30.0]
    ),
    Instance("Gamma", {"concentration": 1.0, "rate": 2.0}, GAMMA, UP),
    Instance("Gamma", {"concentration": 0.001, "rate": 2.0}, GAMMA, UP),
    Instance("Gamma", {"concentration": 3.0, "rate": 2.0}, GAMMA, UP),
    Instance("Gamma", {"concentration": 1e6, "rate": 4.0}, GAMMA, [2.4e5, 2.49e5, 2.5e5, 2.51e5]),
    Instance(
        "GammaPoisson",
        {"concentration": 3.0, "rate": 0.5},
        lambda concentration, rate: st.nbinom(concentration, rate / (1 + rate)).logpmf,
        COUNT,
    ),
    Instance(
        "GammaPoisson",
        {"concentration": 1e6, "rate": 4.0},
        lambda concentration, rate: st.nbinom(concentration, rate / (1 + rate)).logpmf,
        _around(2.5e5, 560),
    ),
    Instance("Geometric", {"probs": 0.25}, _scipy(st.geom, p=_prob, loc=lambda a: -1), COUNT),
    Instance("Geometric", {"probs": 1.0}, _scipy(st.geom, p=_prob, loc=lambda a: -1), [0.0, 1.0]),
    Instance("Geometric", {"logits": -20.0}, _scipy(st.geom, p=_prob, loc=lambda a: -1), COUNT),
    Instance(
        "Gumbel",
        {"loc": 0.5, "scale": 1.5},
        _scipy(st.gumbel_r, **LOC_SCALE),
        [-50.0, -5.0, 0.0, 5.0, 1e4],
    ),
    Instance("HalfCauchy", {"scale": 1.5}, _scipy(st.halfcauchy, scale=_get("scale")), [*UP, 1e25]),
    Instance("HalfNormal", {"scale": 1.0}, _scipy(st.halfnorm, scale=_get("scale")), UP),
    Instance("InverseGamma", {"concentration": 2.0, "rate": 3.0}, INVERSE, [-1, 0, 1e-3, 1, 1e4]),
    Instance("InverseGamma", {"concentration": 1e6, "rate": 1e6}, INVERSE, [0.99, 1.0, 1.001]),
    *(
        Instance(
            "Gompertz",
            {"concentration": a, "rate": 2.0},
            _scipy(st.gompertz, c=_get("concentration"), scale=_get("rate", -1)),
            [-1.0, 0.0, 1e-6, 1.0, 3.0],
        )
        for a in (0.5, 1e4)
    ),
    *(
        Instance("RelaxedBernoulli", {"temperature": t, **given}, _relaxed, UNIT)
        for t, given in ((0.5, {"probs": 0.3}), (1.0, {"logits": 0.5}), (2.0, {"logits": -3.0}))
    ),
    Instance("Kumaraswamy", dict.fromkeys(PAIR, 1.0), _kumaraswamy, UNIT),
    Instance("Kumaraswamy", {PAIR[0]: 2.0, PAIR[1]: 300.0}, _kumaraswamy, UNIT),
    Instance(
        "Laplace",
        {"loc": 0.5, "scale": 1.5},
        lambda loc, scale: lambda x: -np.abs(x - loc) / scale - np.log(2 * scale),
        TAIL,
    ),
    Instance(
        "LogNormal",
        {"loc": 0.25, "scale": 0.5},
        lambda loc, scale: st.lognorm(scale, scale=np.exp(loc)).logpdf,
        [-1.0, 0.0, 1e-20, 1.0, 1e20],
    ),
    Instance("Logistic", {"loc": 0.5, "scale": 1.5}, _scipy(st.logistic, **LOC_SCALE), TAIL),
    Instance(
        "LowRankMultivariateNormal",
        {"loc": np.zeros(2), "cov_factor": np.ones((2, 1)), "cov_diag": np.ones(2)},
        lambda loc, cov_factor, cov_diag: (
            st.multivariate_normal(loc, cov_factor @ cov_factor.T + np.diag(cov_diag)).logpdf
        ),
        [[0.0, 1.0], [50.0, -50.0]],
        1,
    ),
    Instance(
        "MixtureSameFamily",
        {
            "mixing_distribution": dist.Categorical(probs=np.array([1.0, 3.0])),
            "component_distribution": dist.Exponential(np.array([1.0, 2.0])),
        },
        lambda **a: (
            lambda x: np.where(x < 0, -INF, np.logaddexp(np.log(0.25) - x, np.log(1.5) - 2 * x))
        ),
        [-1.0, 0.0, 1.0, 50.0],
    ),
    Instance(
        "Multinomial",
        {"total_count": 3, "probs": np.array([1.0, 3.0, 0.0])},
        _multinomial,
        [[1.0, 2.0, 0.0], [3.0, 0.0, 0.0], [0.0, 1.0, 2.0], [1.0, 1.0, 0.0], [1.5, 1.5, 0.0]],
        1,
    ),
    Instance(
        "Multinomial",
        {"total_count": 1_000_000, "probs": np.array([2.0, 5.0, 3.0])},
        _multinomial,
        1e6 * _three(0.2, 0.5, 0.3),
        1,
    ),
    Instance(
        "MultivariateNormal",
        {"loc": np.zeros(2), "scale_tril": np.array([[1.0, 0], [0.5, 2.0]])},
        lambda loc, scale_tril: st.multivariate_normal(loc, scale_tril @ scale_tril.T).logpdf,
        [[0.0, 1.0], [50.0, -50.0]],
        1,
    ),
    Instance(
        "MultivariateStudentT",
        {"df": 3e6, "loc": np.zeros(2), "scale_tril": np.array([[1.0, 0], [0.5, 2.0]])},
        _multivariate_t,
        [[0.0, 1.0], [50.0, -50.0]],
        1,
    ),
    Instance("NegativeBinomial", {"total_count": 0.5, "probs": 0.25}, NEGATIVE, COUNT),
    Instance(
        "NegativeBinomial", {"total_count": 3e5, "logits": 0.5}, NEGATIVE, _around(494616, 1100)
    ),
    Instance("Normal", {"loc": 0.5, "scale": 1.5}, _scipy(st.norm, **LOC_SCALE), TAIL),
    Instance(
        "OneHotCategorical",
        {"probs": np.array([1.0, 3.0, 0.0])},
        lambda probs: lambda x: _categorical(probs)(x.argmax(-1)),
        np.eye(3)[:2],
        1,
    ),
    Instance(
        "OrderedLogistic",
        {"predictor": 0.25, "cutpoints": np.array([-60.0, -1.0, 0.0, 50.0])},
        _ordered,
        [0.0, 1.0, 2.0, 3.0, 4.0],
    ),
    Instance(
        "Pareto",
        {"scale": 1.5, "alpha": 2.0},
        _scipy(st.pareto, b=_get("alpha"), scale=_get("scale")),
        [1.0, 1.5, 2.0, 1e4],
    ),
    Instance(
        "Poisson", {"rate": 0.0}, lambda rate: lambda x: np.where(x == 0, 0.0, -INF), [0.0, 1.0]
    ),
    Instance("Poisson", {"rate": 2.5}, _scipy(st.poisson, mu=_get("rate")), COUNT),
    Instance("Poisson", {"rate": 1e6}, _scipy(st.poisson, mu=_get("rate")), _around(1e6, 1e3)),
    Instance(
        "SoftLaplace",
        {"loc": 0.25, "scale": 0.75},
        lambda loc, scale: st.hypsecant(loc, scale).logpdf,
        [-50.0, 0.0, 50.0],
    ),
    Instance("StudentT", {"df": 3.0, "loc": 0.5, "scale": 1.5}, STUDENT, [*TAIL, 1e15]),
    Instance("StudentT", {"df": 1e7, "loc": 0.5, "scale": 1.5}, STUDENT, [-50.0, 0.0, 5.0]),
    Instance(
        "TruncatedNormal", {"low": -1.0, "high": 1.0}, _truncated, [-1.5, -1.0, 0.0, 1.0, 1.5]
    ),
    Instance(
        "TruncatedNormal", {"loc": 0.0, "scale": 1.0, "low": 8.0}, _truncated, [7.0, 8.0, 9.0, 20.0]
    ),
    Instance(
        "TruncatedNormal",
        {"loc": 0.5, "scale": 0.5, "low": -40.0, "high": -20.0},
        _truncated,
        [-40.0, -30.0, -20.5, -20.0, -19.0],
    ),
    Instance(
        "Uniform",
        {"low": 0.0, "high": 1.0},
        lambda low, high: st.uniform(low, high - low).logpdf,
        UNIT,
    ),
    Instance(
        "VonMises", {"loc": 0.5, "concentration": 2.0}, _von_mises, [-3.5, -np.pi, 0.0, np.pi, 4.0]
    ),
    Instance("VonMises", {"loc": 0.5, "concentration": 1e6}, _von_mises, [0.5, 0.501, 0.6]),
    Instance("Weibull", {"scale": 1.5, "concentration": 1.0}, WEIBULL, UP[:-1]),
    Instance("Weibull", {"scale": 1.5, "concentration": 2.0}, WEIBULL, UP[:-1]),
    Instance("ZeroInflatedPoisson", {"rate": 200.0, "gate": 0.0}, _zero_inflated, COUNT),
    Instance("ZeroInflatedPoisson", {"rate": 200.0, "gate": 0.25}, _zero_inflated, COUNT),
]
