"""The data of each posterior: real where they are published, else made by one fixed seed.

Real are the eight schools (Rubin 1981), and the hares and lynxes of the Hudson's Bay Company, 1900
to 1920 (Elton & Nicholson 1942). All others have the shape of posteriordb's and are drawn from
their own model at `TRUTH`, so that nothing has to be fetched.
"""

from __future__ import annotations

import numpy as np

Arrays = dict[str, np.ndarray]
AR_ORDER, AR_LENGTH = 5, 100
GARCH_LENGTH, GARCH_START = 120, 0.25  # moments; the first variance
HMM_LENGTH = 100
MIXTURE_SIZE = 400

TRUTH = {
    "kidiq": {"beta": np.array([85.0, 6.0, 0.6, -0.5]), "sigma": np.array(18.0)},
    "wells": {"beta": np.array([0.2, -0.9, 0.5])},
    "ar": {
        "alpha": np.array(0.5), "beta": np.array([0.5, -0.2, 0.1, 0.1, 0.2]),
        "sigma": np.array(0.5),
    },
    "garch": {
        "mu": np.array(5.0), "alpha0": np.array(0.5), "alpha1": np.array(0.4),
        "beta1": np.array(0.3),
    },
    "gp": {"rho": np.array(5.5), "alpha": np.array(2.0), "sigma": np.array(0.5)},
    "mixture": {
        "mu": np.array([-2.0, 2.0]), "sigma": np.array([0.8, 1.2]), "theta": np.array(0.4),
    },
    "hmm": {"mu": np.array([3.0, 6.0]), "stay": np.array([0.8, 0.7])},
    "lkj": {
        "scale": np.array([0.7, 1.0, 1.5]),
        "factor": np.linalg.cholesky(
            np.array([[1.0, 0.6, -0.2], [0.6, 1.0, 0.1], [-0.2, 0.1, 1.0]])
        ),
    },
}  # fmt: skip


def _single(**arrays: np.ndarray) -> Arrays:
    return {n: np.asarray(v, np.float32) for n, v in arrays.items()}


def schools() -> Arrays:
    """Effects of coaching in eight schools, and their standard errors (points of the SAT)."""
    y = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
    return _single(y=y, scale=[15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def pelts() -> Arrays:
    """Thousands of pelts of hares and lynxes, [21, 2], the years 1900 to 1920."""
    hare = [30.0, 47.2, 70.2, 77.4, 36.3, 20.6, 18.1, 21.4, 22.0, 25.4, 27.1, 40.3, 57.0, 76.6,
            52.3, 19.5, 11.2, 7.6, 14.6, 16.2, 24.7]  # fmt: skip
    lynx = [4.0, 6.1, 9.8, 35.2, 59.4, 41.7, 19.0, 13.0, 8.3, 9.1, 7.4, 8.0, 12.3, 19.5,
            45.7, 51.1, 29.7, 15.8, 9.7, 10.1, 8.6]  # fmt: skip
    return _single(pelts=np.stack([hare, lynx], -1))


def kidiq() -> Arrays:
    """Test scores of 434 children, whether the mother finished school, her IQ, their product."""
    rng, truth = np.random.default_rng(1), TRUTH["kidiq"]
    school = (rng.random(434) < 0.79) - 0.5
    iq = rng.normal(0.0, 15.0, 434)
    x = np.stack([np.ones(434), school, iq, school * iq], -1)
    return _single(x=x, y=x @ truth["beta"] + rng.normal(0.0, truth["sigma"], 434))


def wells() -> Arrays:
    """Whether 500 households changed their well: distance (100 m) and arsenic of the old one."""
    rng = np.random.default_rng(2)
    x = np.stack([np.ones(500), rng.gamma(1.5, 0.32, 500), 0.5 + rng.gamma(1.2, 0.9, 500)], -1)
    chance = 1 / (1 + np.exp(-x @ TRUTH["wells"]["beta"]))
    return _single(x=x, y=rng.random(500) < chance)


def ar() -> Arrays:
    """A series, and in `first` the values before it, the latest in front."""
    rng, truth = np.random.default_rng(3), TRUTH["ar"]
    y = np.zeros(AR_ORDER + AR_LENGTH)
    for t in range(AR_ORDER, len(y)):
        past = y[t - AR_ORDER : t][::-1]
        y[t] = truth["alpha"] + past @ truth["beta"] + rng.normal(0.0, truth["sigma"])
    return _single(y=y[AR_ORDER:], first=y[:AR_ORDER][::-1])


def garch() -> Arrays:
    """A series whose variance remembers."""
    rng, truth = np.random.default_rng(4), TRUTH["garch"]
    y, variance = np.zeros(GARCH_LENGTH), GARCH_START
    for t in range(GARCH_LENGTH):
        y[t] = rng.normal(truth["mu"], np.sqrt(variance))
        shock = truth["alpha1"] * (y[t] - truth["mu"]) ** 2
        variance = truth["alpha0"] + shock + truth["beta1"] * variance
    return _single(y=y)


def gp() -> Arrays:
    """15 noisy values of a smooth function at `x`."""
    rng, truth = np.random.default_rng(5), TRUTH["gp"]
    x = np.linspace(-10.0, 10.0, 15)
    square = ((x[:, None] - x) / truth["rho"]) ** 2
    cov = truth["alpha"] ** 2 * np.exp(-0.5 * square) + truth["sigma"] ** 2 * np.eye(15)
    return _single(x=x, y=np.linalg.cholesky(cov) @ rng.normal(size=15))


def mixture() -> Arrays:
    """Numbers of two overlapping kinds."""
    rng, truth = np.random.default_rng(6), TRUTH["mixture"]
    kind = (rng.random(MIXTURE_SIZE) > truth["theta"]).astype(int)
    return _single(y=rng.normal(truth["mu"][kind], truth["sigma"][kind]))


def hmm() -> Arrays:
    """A series with two states that overlap."""
    rng, truth = np.random.default_rng(7), TRUTH["hmm"]
    y, state = np.zeros(HMM_LENGTH), 0
    for t in range(HMM_LENGTH):
        y[t] = rng.normal(truth["mu"][state], 1.0)
        state = state if rng.random() < truth["stay"][state] else 1 - state
    return _single(y=y)


def lkj() -> Arrays:
    """60 correlated triples."""
    rng, truth = np.random.default_rng(8), TRUTH["lkj"]
    return _single(y=rng.normal(size=(60, 3)) @ truth["factor"].T * truth["scale"])
