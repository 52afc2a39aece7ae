"""A net is a net: inside and outside plates, with several inputs and particles, of either library.

`bind` runs program and guide once, so what it refuses or accepts needs no fit.
"""

import numpy as np
import pytest
from at_once import terms_of

import probgen as pg
from probgen import backends, dist, nets, ops
from probgen.engine.bind import bind
from probgen.errors import BackendError, DeclarationError
from probgen.inference import ELBO, IWAE, SVI
from probgen.models import VAE

X = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
PRIOR = dist.Normal(0, 1).expand([2]).to_event(1)
ENCODER = nets.MLP((8,), 2, heads=("loc", "log_scale"), in_ndim=1)


def encode(x):
    with pg.data_plate():
        q = pg.net("enc", ENCODER)(x)
        pg.sample("z", dist.Normal(q["loc"], ops.exp(q["log_scale"])).to_event(1))


def test_a_conditional_decoder_takes_particles_of_one_input(b):
    """p(x | z, c) by one net on z and c, of which z alone has particles: by hand and by a run."""

    @pg.model
    def conditional(c):
        with pg.data_plate():
            z = pg.sample("z", PRIOR)
            pg.sample("x", dist.Normal(pg.net("dec", nets.MLP((), 4))(z, c), 1.0).to_event(1))

    model = conditional.with_guide(encode)
    bound, params = bind(model, b, data={"x": X, "c": 2 * X})
    rows = {"x": b.asarray(X), "c": b.asarray(2 * X)}
    z = np.random.default_rng(1).normal(size=(3, 12, 2)).astype("float32")
    particles = {"z": b.asarray(z)}
    _, got = terms_of(b, bound.trace, params, rows, particles, num_particles=3)["x"]
    weight, bias = (b.to_numpy(params["dec"]["out"][k]) for k in ("weight", "bias"))
    c = np.broadcast_to(2 * X, (3, 12, 4))
    mean = np.concatenate([z, c], axis=-1) @ weight + bias
    want = -0.5 * ((X - mean) ** 2).sum(-1) - 2 * np.log(2 * np.pi)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    shapes = {"x": (4,), "c": (4,)}
    fitted = pg.Fitted(model, b.tree_map(b.to_numpy, params), shapes=shapes)
    scores = pg.evaluate(fitted, X, [IWAE(20)], inputs={"c": 2 * X}, seed=0, backend=b,
                         progress_bar=False)  # fmt: skip
    assert np.isfinite(scores["IWAE(20)"].estimate).all()


def test_in_ndim_holds_outside_the_data_plate(b):
    """A VampPrior: the encoder reads five pseudo-inputs of four numbers, and the data."""

    @pg.model
    def vamp():
        q = pg.net("enc", ENCODER)(pg.net("u", nets.Parameter((5, 4), 0.1))())
        each = dist.Normal(q["loc"], ops.exp(q["log_scale"])).to_event(1)
        with pg.data_plate():
            mixed = dist.MixtureSameFamily(dist.Categorical(logits=np.zeros(5, "float32")), each)
            z = pg.sample("z", mixed)
            pg.sample("x", dist.Normal(pg.net("dec", nets.MLP((), 4))(z), 1.0).to_event(1))

    bound, params = bind(vamp.with_guide(encode), b, data={"x": X})
    assert params["enc"]["layer0"]["weight"].shape == (4, 8)
    assert bound.structure.sites["z"].event_shape == (2,)


def linear_torch():
    torch = pytest.importorskip("torch")
    return torch.nn.Linear(2, 4)


def linear_nnx():
    nnx = pytest.importorskip("flax.nnx")
    return nnx.Linear(2, 4, rngs=nnx.Rngs(0))


def linear_linen():
    return pytest.importorskip("flax.linen").Dense(4)


OWN = [
    (linear_torch, nets.from_torch, "torch"),
    (linear_nnx, nets.from_flax, "jax"),
    (linear_linen, nets.from_flax, "jax"),
]


@pytest.mark.parametrize(("module", "wrap", "home"), OWN, ids=["torch", "nnx", "linen"])
def test_own_modules_fit_at_home_and_are_refused_in_words_elsewhere(module, wrap, home):
    """'auto' goes where the net runs; a fit changes its weights; bare, it says how to wrap it."""

    def vae(decoder):
        return VAE(latent=PRIOR, decoder=decoder, likelihood=dist.Normal, data_shape=(4,),
                   encoder=ENCODER)  # fmt: skip

    with pytest.raises(DeclarationError, match=r"from_torch\(module, in_ndim=1\), from_flax"):
        vae(module())
    net = wrap(module(), in_ndim=1)
    algorithm = SVI(ELBO(), pg.Adam(0.1))
    fitted = pg.fit(vae(net), X, algorithm, num_steps=2, seed=0, progress_bar=False)
    assert fitted.info["backend"] == home
    start = net.init(np.random.default_rng(0), (2,))
    assert set(fitted.params["decoder"]) == set(start)
    bias = fitted.params["decoder"]["bias"]
    assert np.abs(bias - start["bias"]).max() > 0.05
    other = {"torch": "jax", "jax": "torch"}[home]
    with pytest.raises(BackendError, match=f"backend='{home}'"):
        bind(vae(net), backends.load(other), data={"x": X})


def test_auto_follows_a_net_that_a_program_closes_over():
    net = nets.from_torch(linear_torch(), in_ndim=1)

    @pg.model
    def program():
        with pg.data_plate():
            z = pg.sample("z", PRIOR)
            pg.sample("x", dist.Normal(pg.net("dec", net)(z), 1.0).to_event(1))

    assert program.backend == "torch"
    assert pg.model(lambda: None).backend == ""


def test_an_nnx_module_computes_what_it_computes_by_itself():
    nnx = pytest.importorskip("flax.nnx")

    class Two(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(1)
            self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs), nnx.Linear(3, 1, rngs=rngs)])

        def __call__(self, x):
            return self.layers[1](nnx.relu(self.layers[0](x)))

    module, x = Two(), np.random.default_rng(0).normal(size=(3, 5, 2)).astype("float32")
    net = nets.from_flax(module, in_ndim=1)
    params = net.init(np.random.default_rng(0), (2,))
    x = backends.load("jax").asarray(x)
    np.testing.assert_allclose(net.apply(params, x), module(x), rtol=1e-5)
    drops = nets.from_flax(nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    with pytest.raises(DeclarationError, match=r"beside nnx.Param"):
        drops.init(np.random.default_rng(0), (2,))
