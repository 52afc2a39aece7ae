"""Going out: our models in Pyro's and NumPyro's own tools.

Laws: for the same draws, the native ELBO of `to_pyro` / `to_numpyro` is num_data times ours; native
training lowers its loss; native samplers find the posterior.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

import probgen as pg
from probgen import backends, dist, nets
from probgen.engine.bind import bind
from probgen.engine.fitted import Fitted
from probgen.inference import ELBO, SVI
from probgen.inference.objectives.elbo import report_terms
from probgen.inference.objectives.terms import compute
from probgen.models import VAE, Tilted
from probgen.trees import tree_items

N, BATCH = 40, 8
RNG = np.random.default_rng(0)
DIGITS = (RNG.random((N, 6)) < 0.4).astype(np.float32)
ROWS = {"x": DIGITS[:BATCH]}


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


def make_vae(**options) -> VAE:
    return VAE(
        latent=dist.Normal(0, 1).expand([2]).to_event(1),
        decoder=nets.MLP(hidden=(7,), out=6),
        likelihood=dist.Bernoulli,
        encoder=nets.MLP(hidden=(7,), out=2, heads=("loc", "log_scale")),
        **options,
    )


@pg.model
def hierarchy():
    """A global mean, a latent per datum, a factor and an observation."""
    mu = pg.sample("mu", dist.Normal(0.0, 2.0))
    with pg.data_plate():
        z = pg.sample("z", dist.Normal(mu, 1.0).expand([2]).to_event(1))
        pg.factor("tilt", -0.1 * (z * z).sum(-1))
        f = pg.net("decoder", nets.MLP(hidden=(4,), out=6))(z)
        pg.sample("x", dist.Bernoulli(logits=f).to_event(1))


@hierarchy.with_guide
def hierarchy_with_guide(x):
    raw = pg.net("mean", nets.Parameter((2,)))()
    pg.sample("mu", dist.Normal(raw[0] + 0.3, 0.5))
    with pg.data_plate():
        h = pg.net("encoder", nets.MLP(hidden=(4,), out=2))(x)
        pg.sample("z", dist.Normal(h, 0.4).to_event(1))


MODELS = {
    "vae": make_vae(),
    "vae full": make_vae(guide_kind="full"),
    "global and factor": hierarchy_with_guide,
}


# Neither library has a closed form of a full Gaussian against a diagonal one; we have.
CASES = [(n, a) for n in MODELS for a in (False, True) if not (a and n == "vae full")]


def ours(backend, model, analytic: bool) -> tuple[float, dict, dict]:
    """Our ELBO per datum on the minibatch, the draws it used, and the parameters."""
    bound, params = bind(model, backend, data=ROWS, num_data=N)
    rows = {k: backend.asarray(v) for k, v in ROWS.items()}

    def both(params, rows, key):
        terms = compute(bound, params, rows, key, analytic_kl=analytic)
        return report_terms(bound, terms)["elbo"], terms.latents

    value, latents = backend.compile(both, num_calls=1)(params, rows, backend.key(3))
    return float(value), latents, params


# ---- going out: the bound ------------------------------------------------------------------------


@pytest.mark.parametrize("name, analytic", CASES)
def test_pyro_elbo_is_num_data_times_ours(torch, name, analytic):
    """Same draws (replayed), minibatch of 8 out of 40; closed KLs are Pyro's mean-field ones."""
    import pyro
    from pyro import poutine
    from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

    model = MODELS[name]
    value, latents, params = ours(torch, model, analytic)
    model_fn, guide_fn = pg.to_pyro(model, params)

    class Fixed(poutine.messenger.Messenger):
        def _pyro_sample(self, msg):
            if msg["name"] in latents:
                msg["value"] = latents[msg["name"]]

    def guide(batch, num_data):
        with Fixed():
            guide_fn(batch, num_data=num_data)

    def program(batch, num_data):
        model_fn(batch, num_data=num_data)

    elbo = TraceMeanField_ELBO() if analytic else Trace_ELBO()
    native = -elbo.loss(program, guide, ROWS, N)
    assert dict(pyro.get_param_store()) == {}
    np.testing.assert_allclose(native / N, value, rtol=1e-5)


@pytest.mark.parametrize("name, analytic", CASES)
def test_numpyro_elbo_is_num_data_times_ours(jax, name, analytic):
    from jax import jit, random
    from numpyro import handlers
    from numpyro.infer import Trace_ELBO, TraceMeanField_ELBO

    model = MODELS[name]
    value, latents, params = ours(jax, model, analytic)
    model_fn, guide_fn = pg.to_numpyro(model, params)

    def guide(batch, num_data):
        with handlers.substitute(data=latents):
            guide_fn(batch, num_data=num_data)

    def program(batch, num_data):
        model_fn(batch, num_data=num_data)

    elbo = TraceMeanField_ELBO() if analytic else Trace_ELBO()
    native = -jit(lambda key: elbo.loss(key, {}, program, guide, ROWS, N))(random.key(0))
    np.testing.assert_allclose(float(native) / N, value, rtol=1e-5)


def test_pyro_particles_are_vectorised_through_our_program(torch):
    """Trace_ELBO with vectorised particles estimates the same bound: within 5 s.e. of ours."""
    import torch as framework
    from pyro.infer import Trace_ELBO

    model = make_vae()
    _, _, params = ours(torch, model, False)
    model_fn, guide_fn = pg.to_pyro(model, params)
    framework.manual_seed(1)
    many = Trace_ELBO(num_particles=200, vectorize_particles=True, max_plate_nesting=1)
    one = Trace_ELBO()
    singles = np.array([one.loss(model_fn, guide_fn, ROWS) for _ in range(200)])
    joint = many.loss(model_fn, guide_fn, ROWS)
    se = singles.std() * math.sqrt(2 / 200)
    assert abs(joint - singles.mean()) < 5 * se


# ---- going out: training and sampling ------------------------------------------------------------


def test_pyro_svi_trains_registered_parameters(torch):
    import pyro
    from pyro.infer import SVI as PyroSVI
    from pyro.infer import Trace_ELBO

    model = make_vae()
    model_fn, guide_fn = pg.to_pyro(model)
    svi = PyroSVI(model_fn, guide_fn, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    losses = [svi.step({"x": DIGITS}) for _ in range(150)]
    assert np.mean(losses[-20:]) < np.mean(losses[:20]) - 5 * np.std(losses[-20:]) / math.sqrt(20)
    learned = pg.params_of(dict(pyro.get_param_store().items()))
    assert set(learned) == {"decoder", "encoder"}
    bound, start = bind(model, torch, data=ROWS)
    trained = {k: torch.tree_map(torch.asarray, v) for k, v in learned.items()}

    def elbo(params):
        batch = {"x": torch.asarray(DIGITS)}
        return float(ELBO(num_particles=50).evaluate(bound, params, batch, torch.key(0))["elbo"])

    assert elbo(trained) > elbo(start) + 0.1


def test_pyro_starts_where_the_declaration_does(torch):
    """params=None registers the same numbers that `bind` draws, by name "net/path"."""
    import pyro

    model = make_vae()
    model_fn, _ = pg.to_pyro(model, seed=5)
    with pyro.poutine.trace() as tr:
        model_fn(ROWS)
    names = {n for n, node in tr.trace.nodes.items() if node["type"] == "param"}
    _, start = bind(model, torch, data=ROWS, seed=5)
    assert names and all(n.startswith("decoder/") for n in names)
    got = pg.params_of({n: tr.trace.nodes[n]["value"] for n in names})
    for (path, leaf), (_, expected) in zip(
        tree_items(got["decoder"]), tree_items(start["decoder"]), strict=True
    ):
        np.testing.assert_array_equal(leaf, torch.to_numpy(expected), err_msg=str(path))


def test_numpyro_svi_trains_registered_parameters(jax):
    import numpyro
    from numpyro.infer import SVI as NumpyroSVI
    from numpyro.infer import Trace_ELBO

    model_fn, guide_fn = pg.to_numpyro(make_vae())
    svi = NumpyroSVI(model_fn, guide_fn, numpyro.optim.Adam(0.02), Trace_ELBO())
    result = svi.run(jax.key(0), 150, {"x": DIGITS}, progress_bar=False)
    losses = np.asarray(result.losses)
    assert losses[-20:].mean() < losses[:20].mean() - 5 * losses[-20:].std() / math.sqrt(20)
    learned = pg.params_of(result.params)
    assert set(learned) == {"decoder", "encoder"}
    draws = numpyro.infer.Predictive(model_fn, params=result.params, num_samples=5)(
        jax.key(1), batch_size=7
    )
    assert draws["x"].shape == (5, 7, 6)


def test_a_minibatch_step_of_numpyro_svi_is_jittable(jax):
    import jax as framework
    import numpyro
    from numpyro.infer import SVI as NumpyroSVI
    from numpyro.infer import TraceMeanField_ELBO

    model_fn, guide_fn = pg.to_numpyro(hierarchy_with_guide)
    svi = NumpyroSVI(
        model_fn, guide_fn, numpyro.optim.Adam(0.02), TraceMeanField_ELBO(), num_data=N
    )
    state = svi.init(jax.key(0), ROWS)
    step = framework.jit(svi.update)
    losses = []
    for i in range(100):
        rows = {"x": DIGITS[np.arange(i, i + BATCH) % N]}
        state, loss = step(state, rows)
        losses.append(float(loss))
    assert np.mean(losses[-20:]) < np.mean(losses[:20])


def test_fitted_models_go_out_as_constants_and_can_be_predicted_from(torch):
    import pyro
    from pyro.infer import Predictive

    fitted = pg.fit(
        make_vae(), DIGITS, SVI(ELBO(), pg.Adam(1e-2)), num_steps=5, batch_size=BATCH,
        backend=torch, seed=0, progress_bar=False,
    )  # fmt: skip
    model_fn, guide_fn = pg.to_pyro(fitted)
    draws = Predictive(model_fn, guide=guide_fn, num_samples=3)({"x": DIGITS[:4]})
    assert dict(pyro.get_param_store()) == {}
    assert draws["z"].shape == (3, 4, 2)
    prior = Predictive(model_fn, num_samples=3)(batch_size=4)
    assert prior["x"].shape == (3, 4, 6)


def test_frozen_parts_are_never_registered(jax):
    from numpyro import handlers

    _, params = bind(make_vae(), jax, data=ROWS)
    fixed = Fitted(make_vae(), jax.tree_map(jax.to_numpy, params))
    model_fn, _ = pg.to_numpyro(Tilted(fixed, nets.MLPEnergy(hidden=(4,))))
    with handlers.trace() as trace, handlers.seed(rng_seed=0):
        model_fn(ROWS)
    names = {n for n, m in trace.items() if m["type"] == "param"}
    assert names and all(n.startswith("energy/") for n in names)


def conjugate(y: np.ndarray) -> tuple[float, float]:
    """Posterior mean and sd of mu ~ N(0, 2), y ~ N(mu, 1)."""
    precision = 1 / 4 + len(y)
    return float(y.sum() / precision), precision**-0.5


@pg.model
def normal_mean(offset=0.0):
    mu = pg.sample("mu", dist.Normal(0.0, 2.0))
    with pg.data_plate():
        pg.sample("y", dist.Normal(mu + offset, 1.0))


def test_numpyro_mcmc_runs_on_our_program_and_has_its_posterior(jax):
    from numpyro.infer import MCMC, NUTS

    y = RNG.normal(1.0, 1.0, 20).astype(np.float32)
    model_fn, guide_fn = pg.to_numpyro(normal_mean)
    assert guide_fn is None
    mcmc = MCMC(NUTS(model_fn), num_warmup=200, num_samples=1500, progress_bar=False)
    mcmc.run(jax.key(0), {"y": y + 3.0}, offset=3.0)
    draws = np.asarray(mcmc.get_samples()["mu"], float)
    mean, sd = conjugate(y)
    se = sd / math.sqrt(len(draws) / 4)  # NUTS on a Gaussian: at least a quarter is effective
    assert abs(draws.mean() - mean) < 5 * se
    assert abs(draws.std() - sd) < 5 * se


def test_pyro_mcmc_runs_on_our_program_and_has_its_posterior(torch):
    import pyro
    from pyro.infer import MCMC, NUTS

    y = RNG.normal(1.0, 1.0, 20).astype(np.float32)
    model_fn, _ = pg.to_pyro(normal_mean)
    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(model_fn), num_samples=300, warmup_steps=100, disable_progbar=True)
    mcmc.run({"y": y})
    draws = mcmc.get_samples()["mu"].numpy()
    mean, sd = conjugate(y)
    assert abs(draws.mean() - mean) < 5 * sd / math.sqrt(len(draws) / 4)


def test_native_conditioning_and_replay_decide_our_sites(torch):
    """A handler outside observes a site of ours, and the rest follows."""
    import pyro
    import torch as framework

    model_fn, _ = pg.to_pyro(normal_mean)
    conditioned = pyro.condition(model_fn, data={"mu": framework.tensor(0.7)})
    with pyro.poutine.trace() as tr:
        conditioned(batch_size=3)
    assert tr.trace.nodes["mu"]["is_observed"] and not tr.trace.nodes["y"]["is_observed"]
    first = pyro.poutine.trace(model_fn).get_trace(batch_size=3)
    replayed = pyro.poutine.replay(model_fn, trace=first)
    again = pyro.poutine.trace(replayed).get_trace(batch_size=3)
    for name in ("mu", "y"):
        np.testing.assert_array_equal(
            again.nodes[name]["value"].numpy(), first.nodes[name]["value"].numpy()
        )


def test_automatic_guides_of_numpyro_fit_our_program(jax):
    import numpyro
    from numpyro.infer import SVI as NumpyroSVI
    from numpyro.infer import Trace_ELBO
    from numpyro.infer.autoguide import AutoNormal

    y = RNG.normal(1.0, 1.0, 30).astype(np.float32)
    model_fn, _ = pg.to_numpyro(normal_mean)
    guide = AutoNormal(model_fn)
    svi = NumpyroSVI(model_fn, guide, numpyro.optim.Adam(0.05), Trace_ELBO(num_particles=20))
    result = svi.run(jax.key(0), 600, {"y": y}, progress_bar=False)
    mean, sd = conjugate(y)
    assert abs(float(result.params["mu_auto_loc"]) - mean) < 0.25 * sd


@pytest.mark.parametrize("which", ["torch", "jax"])
def test_what_the_guide_draws_and_data_observe_is_no_term_of_the_bound(which, request):
    """With z given as data both bounds are the log joint."""
    b = request.getfixturevalue(which)
    rows = {**ROWS, "z": RNG.normal(size=(BATCH, 2)).astype(np.float32)}
    bound, params = bind(make_vae(), b, data=rows)
    arrays = {k: b.asarray(v) for k, v in rows.items()}
    value = float(ELBO().evaluate(bound, params, arrays, b.key(0))["elbo"])
    if which == "torch":
        from pyro.infer import Trace_ELBO

        native = -Trace_ELBO().loss(*pg.to_pyro(make_vae(), params), rows)
    else:
        from numpyro.infer import Trace_ELBO

        native = -Trace_ELBO().loss(b.key(0), {}, *pg.to_numpyro(make_vae(), params), rows)
    np.testing.assert_allclose(float(native) / BATCH, value, rtol=1e-5)
