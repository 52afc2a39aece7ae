"""Coming in: native Pyro and NumPyro programs have their own density, and learn, in our verbs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats as st
from at_once import at_once, terms_of

import probgen as pg
from probgen import backends, dist
from probgen.engine.bind import bind
from probgen.errors import BackendError, DeclarationError, ShapeError
from probgen.inference import ELBO, SVI
from probgen.models import Generator
from probgen.nets import MLP
from probgen.trees import tree_leaves

N, BATCH = 40, 8
RNG = np.random.default_rng(0)
DIGITS = (RNG.random((N, 6)) < 0.4).astype(np.float32)


@pytest.fixture
def torch():
    pytest.importorskip("pyro", reason="pyro is not installed: pip install 'probgen[torch]'")
    import pyro
    import torch

    pyro.clear_param_store()
    yield backends.load("torch", "cpu", compile="graph")
    pyro.clear_param_store()
    torch.manual_seed(0)


@pytest.fixture
def jax():
    pytest.importorskip("numpyro", reason="numpyro is not installed: pip install 'probgen[jax]'")
    return backends.load("jax", "cpu")


def pyro_regression():
    import pyro
    import pyro.distributions as pd
    import torch as framework
    from torch.distributions import constraints

    def model(x, y=None):
        w = pyro.sample("w", pd.Normal(framework.zeros(3), 1.0).to_event(1))
        noise = pyro.param("noise", framework.tensor(0.8), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("y", pd.Normal(x @ w, noise), obs=y)

    def guide(x, y=None):
        loc = pyro.param("loc", lambda: framework.zeros(3))
        scale = pyro.param("scale", framework.full((3,), 0.3), constraint=constraints.positive)
        pyro.sample("w", pd.Normal(loc, scale).to_event(1))

    return model, guide


def numpyro_regression():
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as nd
    from numpyro.distributions import constraints

    def model(x, y=None):
        w = numpyro.sample("w", nd.Normal(jnp.zeros(3), 1.0).to_event(1))
        noise = numpyro.param("noise", jnp.array(0.8), constraint=constraints.positive)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", nd.Normal(x @ w, noise), obs=y)

    def guide(x, y=None):
        loc = numpyro.param("loc", lambda key: jnp.zeros(3))
        scale = numpyro.param("scale", jnp.full((3,), 0.3), constraint=constraints.positive)
        numpyro.sample("w", nd.Normal(loc, scale).to_event(1))

    return model, guide


X = RNG.normal(size=(60, 3)).astype(np.float32)
Y = (X @ np.array([1.0, -0.5, 0.3]) + 0.5 * RNG.normal(size=60)).astype(np.float32)


def native_regression(name):
    if name == "torch":
        return pg.from_pyro(*pyro_regression())
    return pg.from_numpyro(*numpyro_regression())


def test_a_native_regression_has_its_own_density_here(backend):
    model = native_regression(backend.name)
    bound, params = bind(model, backend, data={"x": X, "y": Y}, num_data=60)
    assert bound.observed == ("y",) and bound.latents == ("w",)
    w = RNG.normal(size=3).astype(np.float32)
    rows = {"x": backend.asarray(X), "y": backend.asarray(Y)}
    assert bound.structure.sites["y"].is_local and not bound.structure.sites["w"].is_local
    sites = terms_of(backend, bound.trace, params, rows, {"w": backend.asarray(w)})
    np.testing.assert_allclose(sites["y"][1], st.norm(X @ w, 0.8).logpdf(Y), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(float(sites["w"][1]), st.norm.logpdf(w).sum(), rtol=1e-5)


def test_svi_fits_a_native_regression(backend):
    """The mean-field bound's optimum for w is the ridge solution at the noise it found."""
    model = native_regression(backend.name)
    run_on = backends.load("torch", "cpu", compile="graph") if backend.name == "torch" else backend
    fitted = pg.fit(
        model, {"x": X, "y": Y}, SVI(ELBO(), pg.Adam(pg.CosineDecay(0.05, 800))), num_steps=800,
        batch_size=None, backend=run_on, seed=0, progress_bar=False,
    )  # fmt: skip
    assert set(fitted.params) == {"loc", "scale", "noise"}
    noise = np.exp(fitted.params["noise"])
    ridge = np.linalg.solve(X.T @ X / noise**2 + np.eye(3), X.T @ Y / noise**2)
    sd = np.sqrt(np.diag(np.linalg.inv(X.T @ X / noise**2 + np.eye(3))))
    np.testing.assert_array_less(abs(fitted.params["loc"] - ridge), 0.5 * sd)
    assert 0.3 < noise < 0.8
    assert fitted.history["elbo"][-50:].mean() > fitted.history["elbo"][:50].mean()


def test_a_native_program_on_the_other_backend_is_refused(backend):
    other = "jax" if backend.name == "torch" else "torch"
    if not backends.available()[other]:
        pytest.skip(f"{other} is not installed")
    with pytest.raises(BackendError, match=f"expected backend=.{other}"):
        bind(native_regression(other), backend, data={"x": X, "y": Y})


def test_auto_backend_of_a_native_program_is_its_own(backend):
    fitted = pg.fit(
        native_regression(backend.name), {"x": X, "y": Y}, SVI(ELBO(), pg.Adam(0.02)),
        num_steps=2, seed=0, progress_bar=False, device="cpu",
    )  # fmt: skip
    assert fitted.info["backend"] == backend.name


def native_vae(name, plate_name="data"):
    """The VAE of test_native written natively, parameters as `param` statements."""
    if name == "torch":
        import pyro
        import pyro.distributions as pd
        import torch as framework

        def affine(label, h, out):
            w = pyro.param(f"{label}_w", lambda: 0.3 * framework.randn(h.shape[-1], out))
            return h @ w + pyro.param(f"{label}_b", framework.zeros(out))

        def model(x):
            with pyro.plate(plate_name, len(x)):
                z = pyro.sample("z", pd.Normal(framework.zeros(2), 1.0).to_event(1))
                h = framework.tanh(affine("d1", z, 7))
                logits = affine("d2", h, 6)
                pyro.sample("pixels", pd.Bernoulli(logits=logits).to_event(1), obs=x)

        def guide(x):
            with pyro.plate(plate_name, len(x)):
                h = framework.tanh(affine("e1", x, 7))
                loc, scale = affine("e2", h, 2), affine("e3", h, 2).exp()
                pyro.sample("z", pd.Normal(loc, scale).to_event(1))

        return pg.from_pyro(model, guide, data_plate=plate_name)
    import jax as framework
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as nd

    def affine(label, h, out):
        shape = (h.shape[-1], out)
        w = numpyro.param(f"{label}_w", lambda key: 0.3 * framework.random.normal(key, shape))
        return h @ w + numpyro.param(f"{label}_b", jnp.zeros(out))

    def model(x):
        with numpyro.plate(plate_name, x.shape[0]):
            z = numpyro.sample("z", nd.Normal(jnp.zeros(2), 1.0).to_event(1))
            h = jnp.tanh(affine("d1", z, 7))
            logits = affine("d2", h, 6)
            numpyro.sample("pixels", nd.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x):
        with numpyro.plate(plate_name, x.shape[0]):
            h = jnp.tanh(affine("e1", x, 7))
            loc, scale = affine("e2", h, 2), jnp.exp(affine("e3", h, 2))
            numpyro.sample("z", nd.Normal(loc, scale).to_event(1))

    return pg.from_numpyro(model, guide, data_plate=plate_name)


DATA = pytest.param(
    "data", marks=pytest.mark.repeated("test_a_native_vae_has_particles_and_generate_draws")
)


@pytest.mark.parametrize("plate_name", [DATA, "rows"])
def test_a_native_vae_learns_in_our_fit(backend, plate_name):
    run_on = backends.load("torch", "cpu", compile="graph") if backend.name == "torch" else backend
    model = native_vae(backend.name, plate_name)
    fitted = pg.fit(
        model, {"x": DIGITS}, SVI(ELBO(), pg.Adam(0.02)), num_steps=200, batch_size=BATCH,
        backend=run_on, seed=0, progress_bar=False,
    )  # fmt: skip
    elbo = fitted.history["elbo"]
    assert elbo[-50:].mean() > elbo[:10].mean() + 5 * elbo[-50:].std() / math.sqrt(50)
    assert {"kl/z", "log_prob/pixels", "kl_units/z"} <= set(fitted.history.keys())


def test_a_native_vae_has_particles_and_generate_draws(backend):
    model = native_vae(backend.name)
    bound, params = bind(model, backend, data={"x": DIGITS})
    rows = {"x": backend.asarray(DIGITS[:BATCH])}

    def run(key):
        z = bound.trace_guide(params, rows, key=key, num_particles=5)["z"].value
        sites = bound.trace(params, rows, {"z": z}, num_particles=5)
        one = bound.trace(params, rows, {"z": z[2]})
        again = [bound.trace(params, rows, key=key)["z"].value for _ in range(2)]
        return z, sites["pixels"].log_prob, one["pixels"].log_prob, again

    z, log_prob, one, again = at_once(backend, run, backend.key(0))
    assert z.shape == (5, BATCH, 2) and log_prob.shape == (5, BATCH)
    np.testing.assert_allclose(log_prob[2], one, rtol=1e-5)
    np.testing.assert_array_equal(*again)


def test_native_draws_are_those_of_the_same_program_in_our_words(backend):
    """A draw is a function of (key, site), however the site was written."""

    @pg.model
    def same(x):
        with pg.data_plate():
            pg.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))

    rows = {"x": backend.asarray(DIGITS[:BATCH])}
    native, params = bind(native_vae(backend.name), backend, data={"x": DIGITS})
    own, _ = bind(same, backend, data={"x": DIGITS})
    key = backend.key(4)
    found = terms_of(backend, native.trace, params, rows, key=key)["z"][0]
    np.testing.assert_array_equal(found, terms_of(backend, own.trace, {}, rows, key=key)["z"][0])


def test_the_callers_param_store_is_not_touched(torch):
    import pyro

    before = pyro.param("loc", lambda: torch.asarray(np.full(3, 9.0, np.float32)))
    bind(native_regression("torch"), torch, data={"x": X, "y": Y})
    assert list(pyro.get_param_store().keys()) == ["loc"]
    np.testing.assert_array_equal(before.detach().numpy(), 9.0)


def test_pyro_modules_that_are_pyro_modules_train_and_plain_ones_are_refused(torch):
    import pyro
    import pyro.distributions as pd
    import torch as framework
    from pyro.nn import PyroModule

    class Mean(PyroModule):
        def __init__(self):
            super().__init__()
            self.linear = PyroModule[framework.nn.Linear](3, 1)

        def forward(self, x, y=None):
            mean = self.linear(x)[..., 0]
            with pyro.plate("data", len(x)):
                pyro.sample("y", pd.Normal(mean, 0.5), obs=y)

    bound, params = bind(pg.from_pyro(Mean()), torch, data={"x": X, "y": Y})
    assert set(params) == {"linear.weight", "linear.bias"}
    rows = {"x": torch.asarray(X), "y": torch.asarray(Y)}
    moved = torch.tree_map(lambda p: p * 0.0 + 0.5, params)
    sites = bound.trace(moved, rows)
    np.testing.assert_allclose(
        torch.to_numpy(sites["y"].log_prob), st.norm(X.sum(1) / 2 + 0.5, 0.5).logpdf(Y),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip

    net = framework.nn.Linear(3, 1)

    def plain(x, y=None):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("y", pd.Normal(net(x)[..., 0], 0.5), obs=y)

    with pytest.raises(BackendError, match="PyroModule"):
        bind(pg.from_pyro(plain), torch, data={"x": X, "y": Y})


def test_flax_modules_of_numpyro_train(jax):
    flax = pytest.importorskip("flax.linen", reason="flax is not installed: pip install flax")
    import numpyro
    import numpyro.distributions as nd
    from numpyro.contrib.module import flax_module

    def model(x, y=None):
        net = flax_module("net", flax.Dense(1), input_shape=(1, 3))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", nd.Normal(net(x)[..., 0], 0.5), obs=y)

    bound, params = bind(pg.from_numpyro(model), jax, data={"x": X, "y": Y})
    assert set(params) == {"net$params"}
    rows = {"x": jax.asarray(X), "y": jax.asarray(Y)}

    def loss(params):
        return -jax.ops.mean(bound.trace(params, rows)["y"].log_prob)

    grads = at_once(jax, jax.grad(loss), params)
    assert all(abs(g).max() > 0 for g in tree_leaves(grads))


def test_a_subsampled_native_plate_keeps_its_scale_for_us(backend):
    """plate("data", N, subsample_size=batch): the log-probability here is not scaled."""
    if backend.name == "torch":
        import pyro
        import pyro.distributions as pd

        def model(x):
            with pyro.plate("data", 1000, subsample_size=len(x)):
                pyro.sample("y", pd.Normal(0.0, 1.0), obs=x)

        native = pg.from_pyro(model)
    else:
        import numpyro
        import numpyro.distributions as nd

        def model(x):
            with numpyro.plate("data", 1000, subsample_size=x.shape[0]):
                numpyro.sample("y", nd.Normal(0.0, 1.0), obs=x)

        native = pg.from_numpyro(model)
    bound, params = bind(native, backend, data={"x": Y})
    sites = terms_of(backend, bound.trace, params, {"x": backend.asarray(Y[:5])})
    np.testing.assert_allclose(sites["y"][1], st.norm.logpdf(Y[:5]), rtol=1e-5)


def test_what_has_no_counterpart_is_refused_in_plain_words(backend):
    if backend.name == "torch":
        import pyro
        import pyro.distributions as pd

        def scaled(x):
            with pyro.poutine.scale(scale=0.1), pyro.plate("data", len(x)):
                pyro.sample("y", pd.Normal(0.0, 1.0), obs=x)

        def fixed(x):
            with pyro.plate("data", 60):
                pyro.sample("y", pd.Normal(0.0, 1.0))

        take = pg.from_pyro
    else:
        import numpyro
        import numpyro.distributions as nd

        def scaled(x):
            with numpyro.handlers.scale(scale=0.1), numpyro.plate("data", x.shape[0]):
                numpyro.sample("y", nd.Normal(0.0, 1.0), obs=x)

        def fixed(x):
            with numpyro.plate("data", 60):
                numpyro.sample("y", nd.Normal(0.0, 1.0))

        take = pg.from_numpyro
    with pytest.raises(BackendError, match=r"site 'y'.*scaled.*kl_weight"):
        bind(take(scaled), backend, data={"x": Y})
    with pytest.raises(ShapeError, match=r"plate 'data': got the size 60.*take it from the data"):
        bind(take(fixed), backend, data={"x": Y})
    with pytest.raises(DeclarationError, match="expected a .* program"):
        take(
            Generator(dist.Normal(0, 1).expand([2]).to_event(1), MLP(hidden=(), out=2), dist.Normal)
        )


def test_masks_of_a_native_program_count(torch):
    import pyro
    import pyro.distributions as pd

    def model(x):
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=x > 0):
            pyro.sample("y", pd.Normal(0.0, 1.0), obs=x)

    bound, params = bind(pg.from_pyro(model), torch, data={"x": Y})
    sites = bound.trace(params, {"x": torch.asarray(Y)})
    np.testing.assert_allclose(
        torch.to_numpy(sites["y"].log_prob), st.norm.logpdf(Y) * (Y > 0), rtol=1e-5
    )


def native_mean(name):
    """mu ~ N(0, 2), y ~ N(mu, 1), written natively; y is observed by data under its name."""
    if name == "torch":
        import pyro
        import pyro.distributions as pd

        def model(offset):
            mu = pyro.sample("mu", pd.Normal(0.0, 2.0))
            with pyro.plate("data", len(offset)):
                pyro.sample("y", pd.Normal(mu + offset, 1.0))

        return pg.from_pyro(model)
    import numpyro
    import numpyro.distributions as nd

    def model(offset):
        mu = numpyro.sample("mu", nd.Normal(0.0, 2.0))
        with numpyro.plate("data", offset.shape[0]):
            numpyro.sample("y", nd.Normal(mu + offset, 1.0))

    return pg.from_numpyro(model)


def test_nuts_finds_the_posterior_of_a_native_program(backend):
    from probgen.inference import NUTS

    offset = np.linspace(-1, 1, 20).astype(np.float32)
    y = (offset + RNG.normal(1.0, 1.0, 20)).astype(np.float32)
    tree = pg.infer(
        native_mean(backend.name), {"y": y}, NUTS(num_warmup=100, num_samples=100, num_chains=8),
        inputs={"offset": offset}, backend=backend, seed=0, progress_bar=False,
    )  # fmt: skip
    draws = tree.posterior["mu"].values
    precision = 1 / 4 + 20
    mean, sd = float((y - offset).sum() / precision), precision**-0.5
    size = draws.size / 4  # of as many independent draws
    assert abs(draws.mean() - mean) < 5 * sd / math.sqrt(size)
    assert abs(draws.std() / sd - 1) < 5 / math.sqrt(2 * size)


def test_generate_draws_from_a_fitted_native_program(backend):
    fitted = pg.fit(
        native_regression(backend.name), {"x": X, "y": Y}, SVI(ELBO(), pg.Adam(0.02)),
        num_steps=2, seed=0, progress_bar=False, backend=backend,
    )  # fmt: skip
    assert pg.generate(fitted, 5, seed=0, inputs={"x": X[:5]})["y"].shape == (5,)
