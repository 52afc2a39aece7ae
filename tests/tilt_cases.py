"""Bases, energies and tilts with a truth in numpy, for exponential tilting and VAEBM."""

from dataclasses import dataclass

import numpy as np
import scipy.stats as st
from coupling_cases import flow

import probgen as pg
from probgen import dist, nets, ops
from probgen.models import VAE, Tilted, likelihoods

# ---- energies


@dataclass(frozen=True)
class Quadratic:
    """E(x) = (x - c)' Q (x - c) / 2."""

    def init(self, key, *shapes):
        (size,) = shapes[0]
        return {"q": np.eye(size, dtype=np.float32), "c": np.zeros(size, np.float32)}

    def apply(self, params, x):
        d = x - params["c"]
        return 0.5 * ops.sum((d @ params["q"]) * d, axis=-1)


@dataclass(frozen=True)
class Features:
    """E(v) = theta . (v, v^2 / 2, sin 2v) of one number, linear in its parameters."""

    def init(self, key, *shapes):
        return {"theta": key.normal(0, 0.1, 3).astype(np.float32)}

    def apply(self, params, v):
        return ops.sum(phi(v[..., 0], ops) * params["theta"], axis=-1)


def phi(v, lib=np):
    """[..., 3]."""
    return lib.stack([v, 0.5 * v * v, lib.sin(2.0 * v)], axis=-1)


# ---- a linear flow, and a bent one, of two numbers

A = np.array([[1.2, 0.0], [0.5, 0.6]], np.float32)
A_T, INVERSE = A.T.copy(), np.linalg.inv(A).T.astype(np.float32)
SHIFT = np.array([0.4, -0.3], np.float32)
STANDARD = dist.Normal(0, 1).expand([2]).to_event(1)


def _inverse(x):
    eps = (x - ops.asarray(SHIFT)) @ ops.asarray(INVERSE)
    return eps, 0.0 * eps[..., 0] - float(np.log(np.linalg.det(A)))


def _forward(eps):
    return eps @ ops.asarray(A_T) + ops.asarray(SHIFT)


@pg.model
def linear_flow():
    with pg.data_plate():
        pg.sample("x", dist.Transformed(STANDARD, _forward, _inverse))


def random_params(seed, **sizes):
    """{net: {layer: {"weight", "bias"}}} of normal numbers, from {net: [(in, out), ...]}."""
    rng = np.random.default_rng(seed)

    def layer(n, m):
        return {
            "weight": rng.normal(0, 0.5, (n, m)).astype(np.float32),
            "bias": rng.normal(0, 0.5, m).astype(np.float32),
        }

    names = ("layer0", "out")
    return {
        net: {k: layer(n, m) for k, (n, m) in zip(names, shapes, strict=True)}
        for net, shapes in sizes.items()
    }


BENT = pg.Fitted(
    flow, random_params(1, **{f"coupling_{i}": [(1, 8), (8, 2)] for i in range(3)}),
    shapes={"x": (2,)},
)  # fmt: skip
ENERGY = nets.MLPEnergy((6,), activation="tanh")
ENERGY_PARAMS = random_params(2, energy=[(2, 6), (6, 1)])["energy"]


def tilted_flow(scale=1.0, offset=0.0):
    """The bent flow tilted by scale * E + offset."""
    out = {k: v * np.float32(scale) for k, v in ENERGY_PARAMS["out"].items()}
    out["bias"] = out["bias"] * 0 + np.float32(offset) if not scale else out["bias"]
    params = {**BENT.params, "energy": {**ENERGY_PARAMS, "out": out}}
    return pg.Fitted(Tilted(BENT, ENERGY), params, shapes={"x": (2,)})


def energy(x):
    """E in numpy."""
    first, last = ENERGY_PARAMS["layer0"], ENERGY_PARAMS["out"]
    h = np.tanh(x @ first["weight"] + first["bias"])
    return (h @ last["weight"] + last["bias"])[..., 0]


# ---- a linear-Gaussian VAE of one latent and one number: x = W z + B + S eps

W, B, S = 0.9, 0.2, 0.6
Q_SLOPE, Q_SCALE = 0.7, 0.5  # q(z | x) = N(Q_SLOPE x, Q_SCALE^2), not the posterior


def _affine(weight, bias):
    return {"out": {"weight": np.float32([weight]), "bias": np.float32(bias)}}


LINEAR = pg.Fitted(
    VAE(
        dist.Normal(0, 1).expand([1]).to_event(1),
        nets.MLP((), out=(1,)),
        likelihoods.Normal(scale=S),
        nets.MLP((), out=1, heads=("loc", "log_scale")),
    ),
    {
        "decoder": _affine([W], [B]),
        "encoder": _affine([Q_SLOPE, 0.0], [0.0, np.log(Q_SCALE)]),
    },
    shapes={"x": (1,)},
)


def tilted_vae(theta, *, on="x", through="sample"):
    """The VAE tilted by `Features`."""
    model = Tilted(LINEAR, Features(), on=on, through=through)
    params = {**LINEAR.params, "energy": {"theta": np.float32(theta)}}
    return pg.Fitted(model, params, shapes={"x": (1,)})


GRID = np.linspace(-8, 8, 1601)
WEIGHT = st.norm.pdf(GRID) * (GRID[1] - GRID[0])  # of N(0, 1)


def negative_law(kind):
    """(values that the energy reads, their weights under the base) of a variant."""
    if kind == "z":
        return GRID, WEIGHT
    return B + (W if kind == "mean" else np.hypot(W, S)) * GRID, WEIGHT


def positive_law(kind, x):
    """[n, k] values that the energy reads of each datum, and their weights [k]."""
    if kind != "z":
        return x[:, None], np.ones(1)
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    return Q_SLOPE * x[:, None] + Q_SCALE * nodes, weights / weights.sum()


def log_z(theta, kind):
    """log of the base's mean of exp(-E)."""
    values, weights = negative_law(kind)
    return float(np.log(np.sum(weights * np.exp(-phi(values) @ theta))))


def objective(theta, kind, x):
    """E of data plus log Z: minus the gain of a tilt (a bound of it for "z")."""
    values, weights = positive_law(kind, x)
    return float(((phi(values) @ theta) @ weights).mean()) + log_z(theta, kind)
