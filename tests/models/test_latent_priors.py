"""Priors of a latent, fitted behind a frozen VAE and with it, where everything is Gaussian.

An affine encoder makes of data N(m, C) the codes N(A m + c, A C A' + S), exactly; a denoiser that
is affine at each step makes of the chain a Gaussian, whose moments follow step by step.
"""

import dataclasses
import re
from dataclasses import dataclass

import numpy as np
import pytest

import probgen as pg
from probgen import dist, nets, ops
from probgen.engine.bind import bind
from probgen.errors import AlgorithmError, DeclarationError, SupportError
from probgen.inference import (
    DDIM,
    ELBO,
    SVI,
    Denoising,
    ImportanceSampling,
    Langevin,
    log_partition,
)
from probgen.models import EBM, VAE, Diffusion, Generator, NoiseSchedule, Tilted, likelihoods
from probgen.trees import tree_leaves

STEPS = 25
NORMAL = dist.Normal(0, 1).expand([2]).to_event(1)
FROZEN = ("encoder", "decoder")
RNG = np.random.default_rng(0)
A = RNG.normal(size=(3, 2)).astype("f") * 0.6
D = RNG.normal(size=(2, 3)).astype("f")
ROOT = RNG.normal(size=(3, 3)) * 0.7
MEAN = np.array([0.5, -1.0, 0.3])
SCALE = np.array([0.3, 0.2])
X = (MEAN + RNG.normal(size=(4000, 3)) @ ROOT.T).astype("f")
NETS = {
    "encoder": {"out": {"weight": np.concatenate([A, 0 * A], 1),
                        "bias": np.array([0.1, -0.2, *np.log(SCALE)], "f")}},
    "decoder": {"out": {"weight": D, "bias": np.array([0.2, 0.0, -0.3], "f")}},
}  # fmt: skip


@dataclass(frozen=True)
class AffineDenoiser:
    """x W_t + b_t, a matrix for each step: the exact form for Gaussian data."""

    def init(self, key, *shapes):
        return {"w": np.zeros((STEPS, 2, 2), "f"), "b": np.zeros((STEPS, 2), "f")}

    def apply(self, params, x, t):
        at = ops.cast(t, "int32")
        w, b = ops.take(params["w"], at), ops.take(params["b"], at)
        return ops.sum(x[..., None] * w, axis=-2) + b


def vae(latent, likelihood=likelihoods.Normal(0.5)):
    """The declaration whose prior is one argument."""
    encoder = nets.MLP((), 2, heads=("loc", "log_scale"))
    return VAE(latent, nets.MLP((), out=(3,)), likelihood, encoder)


def diffusion():
    return Diffusion(AffineDenoiser(), (2,), NoiseSchedule.rescaled(STEPS))


def fit(model, algorithm, b, **options):
    settings = {"num_steps": 800, "batch_size": 512, "ema_decay": 0.98, "seed": 0}
    return pg.fit(model, X, algorithm, backend=b, progress_bar=False, **{**settings, **options})


def codes_law():
    """(mean, covariance) of z ~ q(z | x) over the data at hand."""
    weight, bias = NETS["encoder"]["out"]["weight"][:, :2], NETS["encoder"]["out"]["bias"][:2]
    z = X.astype(np.float64) @ weight + bias
    return z.mean(0), np.cov(z.T, bias=True) + np.diag(SCALE**2)


def best_denoiser():
    """W_t, b_t of E[eps | z_t] for the codes' law, [T, 2, 2] and [T, 2]."""
    mean, cov = codes_law()
    table = diffusion().table()
    w = np.stack([
        n * np.linalg.inv(a * a * cov + n * n * np.eye(2))
        for a, n in zip(table["signal"], table["noise"], strict=True)
    ])  # fmt: skip
    return w, -np.einsum("tij,tj->ti", w, table["signal"][:, None] * mean)


def chain_law(w, b):
    """(mean, covariance) of the chain's z_0 with these affine denoisers."""
    table, mean, cov = diffusion().table(), np.zeros(2), np.eye(2)
    for t in reversed(range(STEPS)):
        row = {k: v[t] for k, v in table.items()}
        k = row["of_x0"] / row["signal"]
        gain = (k + row["of_xt"]) * np.eye(2) - k * row["noise"] * w[t].T
        mean = gain @ mean - k * row["noise"] * b[t]
        cov = gain @ cov @ gain.T + row["std"] ** 2 * np.eye(2)
    return mean, cov


@pytest.fixture(scope="module")
def fits():
    """Of each backend, once: the prior learned by denoising behind the frozen nets."""
    return {}


def learned(fits, b):
    if b.name not in fits:
        learn = Denoising(pg.Adam(pg.CosineDecay(0.05, 800)))
        fits[b.name] = fit(vae(diffusion()), learn, b, init=NETS, freeze=FROZEN)
    return fits[b.name]


def own(fitted):
    net = fitted.params["prior/denoiser"]
    return net["w"].astype(np.float64), net["b"].astype(np.float64)


def test_a_prior_behind_a_frozen_vae_learns_the_law_of_its_codes(b, fits):
    """Of draws of the encoder, not of its means: the denoiser, and mean and covariance of samples
    to 5 standard errors of 4,000 and what the fit is short of the best."""
    fitted = learned(fits, b)
    for name in FROZEN:
        np.testing.assert_array_equal(fitted.params[name]["out"]["weight"],
                                      NETS[name]["out"]["weight"])  # fmt: skip
    (w, bias), (best_w, best_b) = own(fitted), best_denoiser()
    assert np.abs(w - best_w).max() < 0.1 and np.abs(bias - best_b).max() < 0.1
    drawn = pg.generate(fitted, 4000, seed=1, backend=b)
    assert drawn["x"].shape == (4000, 3)
    z, cov = drawn["z"].astype(np.float64), codes_law()[1]
    near, best = chain_law(w, bias), chain_law(best_w, best_b)
    error = np.sqrt(np.diag(cov) / 4000)
    assert (np.abs(z.mean(0) - near[0]) < 5 * error).all()
    spread = np.sqrt((near[1] ** 2 + np.outer(np.diag(near[1]), np.diag(near[1]))) / 4000)
    assert (np.abs(np.cov(z.T) - near[1]) < 5 * spread).all()
    # Against the best denoiser's chain, which in 25 steps has 0.7 of the codes' covariance.
    assert np.abs(near[0] - best[0]).max() < 0.05 and np.abs(near[1] - best[1]).max() < 0.06


def test_a_joint_fit_raises_the_bound_and_moves_all_nets(b):
    """Of a chain of 250 steps, of which one is drawn in place of all."""
    prior = Diffusion(nets.MLPDenoiser(2, (8,)), (2,), NoiseSchedule.rescaled(250))
    joint = fit(
        vae(prior), SVI(ELBO(), pg.Adam(1e-2)), b, init=NETS, num_steps=60, ema_decay=None
    )  # fmt: skip
    elbo = joint.history["elbo"]
    assert np.isfinite(elbo).all() and elbo[-10:].mean() > elbo[:3].mean() + 1.0
    for name in FROZEN:
        weights = [p[name]["out"]["weight"] for p in (joint.params, NETS)]
        assert np.abs(weights[0] - weights[1]).max() > 0.01
    assert np.abs(joint.params["prior/denoiser"]["mlp"]["out"]["weight"]).max() > 0.01
    # The report's KL is a mean of many such steps, and says its error.
    found = re.search(r"standard error, z to ([\d.]+) nats", joint.report.text())
    last, error = joint.history["kl/z"][-10:], float(found[1])
    assert abs(joint.report.kl["z"] - last.mean()) < 5 * np.hypot(error, last.std() / 10**0.5)
    assert set(joint.report.kl) == {"z"} and error < last.std()
    bound = bind(prior, b, data={"x": X[:1, :2]})[0]
    with pytest.raises(AlgorithmError, match=r"kl_weight=0.5 and free_bits=0 .*Denoising\("):
        SVI(ELBO(kl_weight=0.5)).bind(bound)


@dataclass(frozen=True)
class Well:
    """E(z) = |z - 2|^2 / 2: with a standard normal base z ~ N(1, 1/2)."""

    def init(self, key, *shapes):
        return {}

    def apply(self, params, z):
        return 0.5 * ops.sum((z - 2.0) ** 2, axis=-1)


def test_chains_of_an_energy_prior_alone_draw_the_latent_of_any_likelihood(b):
    """Black and white data have no gradients to climb, and need none: only z takes a chain."""
    model = Generator(EBM(Well(), NORMAL), nets.MLP((), out=(3,)), dist.Bernoulli)
    fitted = pg.Fitted(model, {**NETS, "prior/energy": {}}, shapes={"x": (3,)})
    walk = Langevin(0.1, num_steps=100, metropolis=True)
    drawn = pg.generate(fitted, 2000, method=walk, seed=0, backend=b)
    z, x = drawn["z"].astype(np.float64), drawn["x"].astype(np.float64)
    assert np.abs(z.mean(0) - 1.0).max() < 5 * np.sqrt(0.5 / 2000)
    assert np.abs(z.var(0) - 0.5).max() < 5 * 0.5 * np.sqrt(2 / 2000)
    p = 1 / (1 + np.exp(-(z @ D + NETS["decoder"]["out"]["bias"])))
    assert set(np.unique(x)) == {0.0, 1.0}
    assert np.abs((x - p).mean(0)).max() < 5 * 0.5 / np.sqrt(2000)


# Draws of the chain are those of `test_priors.py`; the constant is a mean over draws of any base.
@pytest.mark.repeated(
    "test_exponential_tilting.py::test_a_quadratic_tilt_of_a_linear_flow_is_gaussian"
)
def test_a_tilt_of_a_latent_diffusion_has_the_constant_of_its_gaussian(b):
    """log E exp(-|z - 2|^2 / 2) over z ~ N(m, C) of the chain: -log |I + C| / 2 - q / 2 with q the
    square of m - 2 in the metric I + C."""
    w, bias = (v.astype("f") for v in best_denoiser())
    params = {**NETS, "prior/denoiser": {"w": w, "b": bias}}
    base = pg.Fitted(vae(diffusion()), params, shapes={"x": (3,)})
    tilted = pg.Fitted(Tilted(base, Well(), on="z"), {**params, "energy": {}}, shapes={"x": (3,)})
    found = log_partition(tilted, ImportanceSampling(4000), seed=0, backend=b)
    mean, cov = chain_law(w, bias)
    wide = np.eye(2) + cov
    want = -0.5 * (np.linalg.slogdet(wide)[1] + (mean - 2) @ np.linalg.solve(wide, mean - 2))
    assert abs(float(found.estimate) - want) < 5 * float(found.standard_error)
    assert float(found.standard_error) < 0.1


def test_what_denoising_would_not_teach_is_refused(fits):
    model = vae(diffusion())
    with pytest.raises(AlgorithmError, match=r"freeze=\('decoder', 'encoder'\)"):
        pg.fit(model, X, Denoising(), num_steps=1, batch_size=8, seed=0, progress_bar=False)
    prior = pg.Fitted(diffusion(), {"denoiser": AffineDenoiser().init(None)})
    with pytest.raises(AlgorithmError, match="give the Diffusion itself as latent="):
        pg.fit(
            vae(prior), X, Denoising(), num_steps=1, batch_size=8, seed=0, freeze=FROZEN,
            progress_bar=False,
        )  # fmt: skip
    with pytest.raises(AlgorithmError, match=r"latent=Diffusion"):
        pg.fit(
            vae(NORMAL), X, Denoising(), num_steps=1, batch_size=8, seed=0,
            progress_bar=False,
        )  # fmt: skip


def test_a_part_of_the_prior_may_stay_as_it_is(b):
    """The condition net frozen, the denoiser learned: the one to the bit, the other moved."""
    denoiser, words = nets.MLPDenoiser(2, hidden=(4,)), nets.ClassEmbedding(2, 3)
    prior = Diffusion(denoiser, (2,), NoiseSchedule.rescaled(STEPS), condition=words)
    rng = np.random.default_rng(0)
    start = {
        "prior/denoiser": denoiser.init(rng, (2,), (), (1, 3)),
        "prior/condition": words.init(rng, ()),
        **NETS,
    }
    frozen = (*FROZEN, "prior/condition")
    fitted = pg.fit(
        vae(prior), X[:8], Denoising(), inputs={"condition": np.arange(8) % 2}, init=start,
        freeze=frozen, num_steps=1, seed=0, backend=b, progress_bar=False,
    )  # fmt: skip
    for net, tree in start.items():
        same = map(np.array_equal, tree_leaves(tree), tree_leaves(fitted.params[net]))
        assert all(same) == (net != "prior/denoiser"), net


def test_the_prior_by_itself_draws_the_latents(b):
    """`Fitted.prior`: a fitted model of z whose own x it is, with the parameters that it has."""
    params = {"prior/denoiser": AffineDenoiser().init(None), **NETS}
    fitted = pg.Fitted(vae(diffusion()), params, info={"backend": b.name}, shapes={"x": (3,)})
    alone = fitted.prior
    assert alone.model is fitted.model.latent and alone.shapes == {"x": (2,)}
    assert set(alone.params) == {"denoiser"}
    start = RNG.normal(size=(4, 2)).astype("f")
    ways = {"method": DDIM(5), "start": start, "seed": 0, "backend": b}
    z = pg.generate(fitted, 4, **ways)["z"]
    np.testing.assert_array_equal(pg.generate(alone, 4, **ways)["x"], z)
    with pytest.raises(AlgorithmError, match="no latent whose prior is a model"):
        _ = alone.prior
    level = Generator(NORMAL, nets.MLP((), out=(2,)), likelihoods.Normal(0.5))
    inner = pg.Fitted(vae(level), {}, info={"backend": b.name}, shapes={"x": (3,)}).prior
    assert inner.model is level and inner.shapes == {"x": (2,)}


def test_a_computed_datum_is_reconstructed_as_the_decoder_has_it(b):
    """x = f(z) without noise: at the code's mean, x D' + d."""
    fitted = pg.Fitted(
        vae(NORMAL, likelihoods.Implicit()), NETS, info={"backend": b.name}, shapes={"x": (3,)}
    )
    z = fitted.encode(X[:5])["z"]
    expected = z @ D + NETS["decoder"]["out"]["bias"]
    np.testing.assert_allclose(fitted.reconstruct(X[:5])["x"], expected, rtol=1e-5, atol=1e-6)


def test_data_outside_the_declared_range_are_refused(b):
    model = dataclasses.replace(vae(NORMAL), data_range=(0.0, 1.0))
    fitted = pg.Fitted(model, NETS, info={"backend": b.name}, shapes={"x": (3,)})
    assert fitted.encode(np.full((2, 3), 0.5, "f"))["z"].shape == (2, 2)
    with pytest.raises(SupportError, match="declared data_range, 0 to 1"):
        fitted.encode(np.full((2, 3), 1.5, "f"))
    with pytest.raises(DeclarationError, match="a smaller and a larger number"):
        dataclasses.replace(model, data_range=(1.0, 0.0))
