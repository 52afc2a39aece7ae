"""torch and JAX give one regret for the same weights and the same noise (see `shared_noise`)."""

import numpy as np
import pytest
from floats import float64

import probgen as pg
from probgen import backends, dist, nets
from probgen.data.sources import ArraySource
from probgen.engine.bind import bind
from probgen.engine.fitted import Fitted
from probgen.inference.regret.likelihood_regret import LikelihoodRegret
from probgen.models import VAE, likelihoods
from probgen.trees import tree_map

pytest.importorskip("pyro")
pytest.importorskip("numpyro")

X = np.random.default_rng(0).normal(size=(5, 6))


def vae(guide_kind, hierarchical=False):
    decoder = {"hidden": (), "activation": "tanh"}
    encoder = {"hidden": (), "activation": "tanh", "heads": ("loc", "log_scale")}
    if not hierarchical:
        decoder["hidden"], encoder["hidden"] = (7,), (8,)
    latent = dist.Normal(0, 1).expand([3]).to_event(1)
    if hierarchical:
        latent = VAE(
            latent=dist.Normal(0, 1).expand([2]).to_event(1),
            decoder=nets.MLP(out=(3,), **decoder),
            likelihood=likelihoods.Normal(scale=0.8),
            encoder=nets.MLP(out=2, **encoder),
        )
    return VAE(
        latent=latent,
        decoder=nets.MLP(out=(6,), **decoder),
        likelihood=likelihoods.Normal(scale=0.5),
        encoder=nets.MLP(out=3, **encoder),
        guide_kind=guide_kind,
    )


MEASURES = {
    "guide": LikelihoodRegret(num_draws=10, num_steps=20),
    "rank 1, clipped": LikelihoodRegret(
        num_draws=10, num_steps=20, rank_1=True,
        optimizer=pg.AdamW(1e-2, weight_decay=0.1, clip_norm=1.0),
    ),
    "posterior, K = 5": LikelihoodRegret(
        search="posterior", num_draws=10, num_steps=20, num_particles=5, noise="independent",
        optimizer=pg.Adam(pg.CosineDecay(3e-2, 20)),
    ),
}  # fmt: skip
CASES = [
    # The guide's search is on each backend a plain loop, by its noise.
    pytest.param(
        "guide",
        "diagonal",
        False,
        id="guide",
        marks=pytest.mark.repeated("test_regret_batched.py::test_batched_equals_looped"),
    ),
    pytest.param(
        "rank 1, clipped",
        "diagonal",
        False,
        id="rank 1, clipped",
        marks=pytest.mark.repeated(
            "test_regret_batched.py::test_rank_1_is_the_exact_search_without_weight_decay"
        ),
    ),
    # The free Gaussians of one level are among those of two.
    pytest.param(
        "posterior, K = 5",
        "diagonal",
        False,
        id="posterior, K = 5",
        marks=pytest.mark.repeated("test_backends_agree_for_the_same_weights_and_noise"),
    ),
    # Full guides have a closed form on both backends in `test_regret_guides`.
    pytest.param("guide", "full", False, marks=pytest.mark.slow),
    ("posterior, K = 5", "diagonal", True),
]


@pytest.mark.parametrize(("which", "kind", "hierarchical"), CASES)
def test_backends_agree_for_the_same_weights_and_noise(same_noise, which, kind, hierarchical):
    """|difference| < 1e-8 nats in float64, in every number of the table; < 1e-3 in float32, where
    one case is enough."""
    model, measure = vae(kind, hierarchical), MEASURES[which]
    graph = backends.load("torch", "cpu", compile="graph")
    first = bind(model, graph, data={"x": X[:1].astype(np.float32)}, seed=0)[1]
    tables = {}
    precisions = [(np.float64, 1e-8)]
    if which == "guide" and kind == "diagonal" and not hierarchical:
        precisions.append((np.float32, 1e-3))
    for dtype, tolerance in precisions:
        params = tree_map(lambda a, d=dtype: 1.3 * graph.to_numpy(a).astype(d), first)
        fitted = Fitted(model, tree_map(np.asarray, params), shapes={"x": (6,)})
        data = ArraySource({"x": X.astype(dtype)}, batch_size=None, seed=0)
        for name in ("torch", "jax"):
            options = {"compile": "graph"} if name == "torch" else {}
            b = backends.load(name, "cpu", **options)
            if dtype == np.float64:
                # torch draws by JAX's numbers, so both are in float64 for either backend.
                with float64(*(backends.load(name, "cpu") for name in ("torch", "jax"))):
                    table = pg.evaluate(
                        fitted, data, [measure], seed=1, backend=b, progress_bar=False
                    )
            else:
                table = pg.evaluate(fitted, data, [measure], seed=1, backend=b, progress_bar=False)
            tables[name] = table[measure.name]
        for quantity in tables["torch"].data_vars:
            one, other = (tables[n][quantity].values for n in ("torch", "jax"))
            np.testing.assert_allclose(one, other, atol=tolerance, rtol=tolerance / 10)
        assert np.abs(tables["jax"]["estimate"].values).min() > 1e-4
        assert tables["jax"]["estimate"].values.mean() > 0.01
