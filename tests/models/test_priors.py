"""Any density can be a latent's prior: mixtures, and a diffusion of a thousand steps.

Laws: a chain's bound by its forward process is the bound of all its steps in closed form; a sketch
shows the structure of the whole; what is drawn through a prior's own loop has the prior's law.
"""

import dataclasses
import math
import time

import numpy as np
import pytest
import scipy.stats as st
from at_once import at_once
from flow_cases import exact_diffusion

import probgen as pg
from probgen import dist, nets, ops
from probgen.engine.bind import bind
from probgen.errors import AlgorithmError
from probgen.inference import (
    ELBO,
    IWAE,
    SVI,
    DenoisingELBO,
    Quadrature,
    UnnormalizedBound,
    log_partition,
)
from probgen.inference.objectives import terms
from probgen.models import EBM, VAE, Diffusion, NoiseSchedule, Tilted, likelihoods
from probgen.models.random_step import RandomStep
from probgen.trees import tree_map


def with_prior(latent, d=2):
    return VAE(
        latent=latent, decoder=nets.MLP((4,), 3), likelihood=dist.Normal,
        encoder=nets.MLP((4,), d, heads=("loc", "log_scale")),
    )  # fmt: skip


def chain(steps):
    return Diffusion(nets.MLPDenoiser(2, hidden=(4,)), (2,), NoiseSchedule(steps))


X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def test_a_latent_behind_a_thousand_steps_binds_within_a_second(b):
    """The structure is that of the whole chain, read off three of its steps."""
    bind(with_prior(chain(10)), b, data={"x": X})  # imports, and what is compiled once
    began = time.process_time()
    bound, params = bind(with_prior(chain(1000)), b, data={"x": X})
    assert time.process_time() - began < 1.0
    steps = [f"prior/x_{t}" for t in range(1000, 0, -1)]
    assert bound.latents == (*steps, "z") and bound.is_normalized
    assert {"prior/denoiser", "decoder", "encoder"} <= set(params)
    small, _ = bind(with_prior(chain(3)), b, data={"x": X})
    for name in ("z", "prior/x_1", "prior/x_2"):
        found, want = (x.structure.sites[name] for x in (bound, small))
        assert (found.plates, found.event_shape, found.family, found.noise_shape) == (
            want.plates, want.event_shape, want.family, want.noise_shape
        )  # fmt: skip
    assert set(bound.guide_structure.sites) == {*steps, "z"}


def test_the_random_step_is_bound_when_it_is_asked_for_and_once(b, monkeypatch):
    runs, bound_of = [], RandomStep._bound
    monkeypatch.setattr(RandomStep, "_bound", lambda *a: runs.append(1) or bound_of(*a))
    bound, _ = bind(with_prior(chain(1000)), b, data={"x": X})
    assert not runs
    short = bound.by_steps("test", is_mean=True)
    assert runs and isinstance(short.model.prior(), RandomStep)
    assert dataclasses.replace(bound, num_steps=3).by_steps("test", is_mean=True) is short


def test_what_is_sketched_has_the_structure_of_the_whole_run(b):
    """Ten steps by three, and by all ten: under a VAE that is tilted, and under a fitted one."""
    bound, params = bind(Tilted(with_prior(chain(10)), nets.MLPEnergy((4,))), b, data={"x": X})
    whole = {}

    def run(params, batch, key):
        sites = bound.trace(params, batch, key=key)
        for name, site in sites.items():
            whole[name] = (*site.fn.event_shape,) if site.kind == "sample" else None
        return [s.value for s in sites.values()]

    at_once(b, run, params, {"x": b.asarray(X)}, b.key(0))
    assert list(whole) == list(bound.structure.sites)
    for name, shape in whole.items():
        assert shape is None or shape == bound.structure.sites[name].event_shape
    held = tree_map(b.to_numpy, {n: net for n, net in params.items() if n != "energy"})
    base = pg.Fitted(with_prior(chain(10)), held, shapes={"x": (3,)})
    found = bind(Tilted(base, nets.MLPEnergy((4,))), b, data={"x": X})[0].structure.sites
    assert [(n, v.event_shape) for n, v in found.items()] == [
        (n, v.event_shape) for n, v in bound.structure.sites.items()
    ]


def linear_vae(prior):
    """Whose decoder, and whose guide given x, are linear: its bound has a closed form."""
    return VAE(
        latent=prior, decoder=nets.MLP((), 3), likelihood=likelihoods.Normal(scale=0.5),
        encoder=nets.MLP((), 2, heads=("loc", "log_scale")),
    )  # fmt: skip


def short_fit(prior, b, num_steps=10):
    """By `SVI(ELBO())`, whose prior stays what it was."""
    fitted = pg.fit(linear_vae(prior), X, SVI(ELBO(), pg.Adam(3e-2)), num_steps=num_steps,
                    batch_size=4, seed=0, backend=b, progress_bar=False)  # fmt: skip
    for name, net in prior.params.items():
        for leaf, value in net.items():
            np.testing.assert_array_equal(fitted.params[f"prior/{name}"][leaf], value)
    decoder = {k: np.float64(v) for k, v in fitted.params["decoder"]["out"].items()}
    return fitted, decoder["weight"], decoder["bias"]


def test_a_vae_behind_a_thousand_steps_is_fitted_and_scored(b):
    """The measure ELBO draws one step for a thousand, and its mean is the bound of all of them: in
    closed form for a linear VAE before a chain of Gaussians, to its standard error."""
    prior, u, lam = exact_diffusion(2, steps=1000)
    fitted, w, c = short_fit(prior, b)
    assert np.isfinite(fitted.history["elbo"]).all()
    assert list(fitted.report.kl) == ["z"]  # and not the noise of the estimate
    count = 500
    found = pg.evaluate(fitted, X, [ELBO(count)], seed=0, progress_bar=False)[f"ELBO({count})"]
    encoder = fitted.params["encoder"]["out"]
    loc, log_scale = np.split(X @ np.float64(encoder["weight"]) + encoder["bias"], 2, axis=1)
    var = np.exp(2 * log_scale)
    entropy = (0.5 * np.log(2 * np.pi * np.e * var)).sum(1)
    square = ((X - loc @ w - c) ** 2).sum(1) + var @ (w**2).sum(1)
    likelihood = -2.0 * square - 3 * (np.log(0.5) + 0.5 * np.log(2 * np.pi))
    # Along the axes u of the chain, E z^2 and the gain of x_0's estimate at each step.
    second = (loc @ u) ** 2 + var @ u**2
    table = {k: v[:, None] for k, v in prior.model.table().items()}
    gain = table["signal"] * lam / (table["signal"] ** 2 * lam + table["noise"] ** 2)
    weight = 0.5 * (table["of_x0"] / table["std"]) ** 2
    of_z2 = (weight * (1 - table["signal"] * gain) ** 2).sum(0)
    alone = (weight * (table["noise"] * gain) ** 2).sum()
    bar = table["signal"][-1, 0] ** 2
    prior_kl = 0.5 * (bar * second.sum(1) - 2 * (bar + np.log1p(-bar)))
    last = 2 * (np.log(table["std"][0, 0]) + 0.5 * np.log(2 * np.pi))
    exact = likelihood + entropy - prior_kl - second @ of_z2 - alone - last
    error = found["standard_error"].values
    off = found["estimate"].values - exact
    assert (np.abs(off) < 5 * error).all() and (error < 3.0).all()
    assert abs(off.sum()) < 4 * np.linalg.norm(error)
    with pytest.raises(AlgorithmError, match=r"chain of 1000 steps.*ELBO\(...\), a mean"):
        pg.evaluate(fitted, X, [IWAE(10)], seed=0)


@dataclasses.dataclass(frozen=True)
class Bowl:
    """E(z) = (a |z|^2 + 2 z_1) / 2."""

    def init(self, key, *shapes):
        raise NotImplementedError

    def apply(self, params, z):
        return 0.5 * params["a"] * ops.sum(z * z, axis=-1) + z[..., 0]


def test_a_vae_behind_a_fitted_energy_is_fitted_and_scored(b):
    """N(0, I) exp(-E) is N(-e_1 / (1 + a), I / (1 + a)), log Z = 1 / (2 + 2 a) - log(1 + a): the
    bound less log Z is log p(x), in mean weights over a hundred copies of each datum."""
    a = 3.0
    base = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
    prior = pg.Fitted(EBM(Bowl(), base), {"energy": {"a": np.float32(a)}}, shapes={"x": (2,)})
    found = log_partition(prior, Quadrature(101), seed=0, backend=b)
    assert abs(found.estimate - (0.5 / (1 + a) - np.log(1 + a))) < 1e-4
    fitted, w, c = short_fit(prior, b)
    assert any("nats + constant" in event for event in fitted.history.events)
    measure = UnnormalizedBound(IWAE(100))
    data = np.repeat(X, 100, 0)
    table = pg.evaluate(fitted, data, [measure], seed=0, progress_bar=False)
    assert table.units[measure.name] == "nats + constant"
    mean = np.array([-1 / (1 + a), 0.0]) @ w + c
    exact = st.multivariate_normal(mean, w.T @ w / (1 + a) + 0.25 * np.eye(3)).logpdf(X)
    scored = table[measure.name]["estimate"].values.reshape(4, 100) - found.estimate
    ratio = np.exp(scored - exact[:, None])
    assert (np.abs(ratio.mean(1) - 1.0) < 5 * ratio.std(1) / 10.0).all(), ratio.mean(1)
    assert (ratio.std(1) < 0.5).all()
    with pytest.raises(AlgorithmError, match="known up to a constant.*UnnormalizedBound"):
        pg.evaluate(fitted, X, [ELBO()], seed=0)


@pytest.mark.repeated(
    "test_step_variances.py::test_of_normal_data_the_large_variances_have_the_exact_bound_and_the_exact_draws"
)
def test_the_forward_process_is_a_guide_with_the_bound_of_all_steps(b):
    """E_q[log p - log q] drawn through the guide, and the closed form of its KL terms."""
    fitted, u, lam = exact_diffusion(2, steps=6)
    x = ((np.random.default_rng(1).normal(size=(3, 2)) * np.sqrt(lam)) @ u.T).astype(np.float32)
    bound, params = fitted.bind(b, {"x": x})
    batch = {"x": b.asarray(x)}
    count = 4000

    def weights(params, batch, key):
        options = {"num_particles": count, "analytic_kl": False}
        return terms.log_weights(terms.compute(bound, params, batch, key, **options))

    log_w = at_once(b, weights, params, batch, b.key(0)).astype(np.float64)
    keys = b.row_keys(b.key(1), np.arange(300))
    many = {"x": b.asarray(np.repeat(x, 100, 0))}
    closed = at_once(b, DenoisingELBO(num_draws=8).device_function(bound), params, many, keys)
    closed = closed["estimate"]
    closed = closed.reshape(3, 100).astype(np.float64)
    error = np.hypot(log_w.std(0) / math.sqrt(count), closed.std(1) / 10.0)
    assert (np.abs(log_w.mean(0) - closed.mean(1)) < 5 * error).all(), (
        log_w.mean(0),
        closed.mean(1),
    )


def test_a_vae_draws_its_latents_by_the_chain_of_its_prior(b):
    """Their variances are those of the chain: v' = m_t^2 v + std_t^2 along each eigenvector."""
    prior, u, lam = exact_diffusion(2, steps=50)
    model = with_prior(prior)
    params = tree_map(b.to_numpy, bind(model, b, data={"x": X})[1])
    n = 4000
    fitted = pg.Fitted(model, params, shapes={"x": (3,)})
    z = pg.generate(fitted, n, seed=0, backend=b)["z"] @ u
    table, variance = prior.model.table(), np.ones(2)
    for t in reversed(range(50)):
        signal, noise = table["signal"][t], table["noise"][t]
        clean = signal * lam / (signal**2 * lam + noise**2)
        gain = table["of_x0"][t] * clean + table["of_xt"][t]
        variance = gain**2 * variance + table["std"][t] ** 2
    assert (np.abs(z.var(0) / variance - 1.0) < 5 * math.sqrt(2.0 / n)).all()


def test_a_mixture_is_a_prior_and_its_density_scipys(b):
    """log p(z) under the guide's draws; the KL, which has no closed form, is a draw's."""
    mixture = dist.MixtureSameFamily(
        dist.Categorical(probs=np.array([0.3, 0.7])),
        dist.Normal(np.array([[-2.0, 0.0], [1.0, 0.5]]), 0.5).to_event(1),
    )
    bound, params = bind(with_prior(mixture), b, data={"x": X})
    batch = {"x": b.asarray(X)}

    def run(params, batch, key):
        found = terms.compute(bound, params, batch, key)
        guide = bound.trace_guide(params, batch, key=key)["z"]
        return found.latents["z"], found.kl["z"], guide.log_prob

    z, kl, log_q = at_once(b, run, params, batch, b.key(0))
    parts = [st.norm.logpdf(z, m, 0.5).sum(-1) for m in ([-2.0, 0.0], [1.0, 0.5])]
    want = np.logaddexp(np.log(0.3) + parts[0], np.log(0.7) + parts[1])
    np.testing.assert_allclose(kl, log_q - want, rtol=1e-4, atol=1e-4)


def test_the_loop_that_samples_is_the_program(b):
    """For one key-free check: the program's log density of a chain is that of its transitions."""
    model = Diffusion(
        denoiser=nets.MLPDenoiser(out=2, hidden=(8,)),
        shape=(2,),
        schedule=NoiseSchedule(num_train_timesteps=3),
    )
    bound, params = bind(model, b, data={"x": np.zeros((1, 2), np.float32)}, seed=0)
    rng = np.random.default_rng(0)
    chain = {n: rng.normal(size=(4, 2)).astype(np.float32) for n in ("x_3", "x_2", "x_1", "x")}
    values = {n: b.asarray(v) for n, v in chain.items()}
    table, net = model.table(), bound.structure.nets["denoiser"]
    pairs = (("x_1", "x"), ("x_2", "x_1"), ("x_3", "x_2"))

    def run(params, values):
        sites = bound.trace(params, {"x": values["x"]}, values)
        noises = [
            net.apply(params["denoiser"], values[after], b.asarray(np.full(4, t, np.float32)))
            for t, (after, _) in enumerate(pairs)
        ]
        return [sites[before].log_prob for _, before in pairs], noises

    log_probs, noises = at_once(b, run, params, values)
    for t, (after, before) in enumerate(pairs):
        predicted = noises[t]
        row = {k: v[t] for k, v in table.items()}
        mean = model.posterior_mean(chain[after], predicted, row)
        scaled = (chain[before] - mean) / row["std"]
        expected = -0.5 * (scaled**2).sum(1) - 2 * math.log(row["std"]) - math.log(2 * math.pi)
        np.testing.assert_allclose(log_probs[t], expected, rtol=2e-4, atol=1e-4)
