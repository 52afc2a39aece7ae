"""A regression whose posterior is Gaussian and correlated, and what its automatic guides should be.

w ~ N(0, I),  y_n ~ N(c_n . w, 1):    precision I + C^T C, mean precision^-1 C^T y
"""

import numpy as np

import probgen as pg
from probgen import dist, ops

RNG = np.random.default_rng(0)
C = (RNG.normal(size=(20, 2)) @ [[1.0, 0.9], [0.0, 0.4]]).astype("float32")
Y = (C @ [1.0, -0.5] + RNG.normal(size=20)).astype("float32")
COV = np.linalg.inv(np.eye(2) + C.T @ C)
MEAN = COV @ C.T @ Y


@pg.model
def regression(c):
    """The two weights are two sites, so that their correlation goes between sites."""
    a, b = pg.sample("a", dist.Normal(0, 1)), pg.sample("b", dist.Normal(0, 1))
    with pg.data_plate():
        pg.sample("y", dist.Normal(c[..., 0] * a + c[..., 1] * b, 1.0))


@pg.model
def bent():
    """Supports: positive in a plate, an interval that depends on another latent, a simplex."""
    with pg.plate("groups", 2):
        rate = pg.sample("rate", dist.Gamma(2.0, 1.0))
    top = pg.sample("top", dist.LogNormal(0.0, 1.0))
    low = pg.sample("low", dist.Uniform(0.0, top))
    share = pg.sample("share", dist.Dirichlet(np.ones(3, "float32")))
    with pg.data_plate():
        z = pg.sample("z", dist.Normal(low, 1.0).expand([2]).to_event(1))
        pg.sample("x", dist.Normal(ops.sum(z, axis=-1) + share[0] + rate[0], 1.0))
