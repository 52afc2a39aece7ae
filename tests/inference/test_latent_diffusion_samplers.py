"""A diffusion's samplers on what has one as the prior of its latent: z by them, x given z.

With an exact denoiser of Gaussian z, DDIM draws z of known variances V along the axes u, and a
linear decoder W leads them on: (u' z, x) has the covariance [V, V u' W; ., W' u V u' W + s^2 I].
"""

import dataclasses

import numpy as np
import pytest
from flow_cases import exact_diffusion
from test_ddim import STEPS, variances

import probgen as pg
from probgen import dist, nets
from probgen.engine.bind import bind
from probgen.errors import AlgorithmError, DataError, ShapeError
from probgen.inference import (
    DDIM,
    Ancestral,
    DDIMInverse,
    Denoising,
    DenoisingELBO,
    Inpaint,
    ProbabilityFlow,
)
from probgen.models import VAE, Diffusion, Generator, NoiseSchedule, likelihoods
from probgen.trees import tree_map

WEIGHT = np.random.default_rng(1).normal(size=(3, 2)).astype("float32")
SCALE = 0.5
NORMAL = likelihoods.Normal(scale=SCALE)
DECODER = {"out": {"weight": WEIGHT, "bias": np.zeros(2, "float32")}}


def decoded(latent):
    return Generator(latent, nets.MLP((), 2), NORMAL)


def joint(v, u, weight):
    """The covariance of (u' z, x) for z of variances v along u."""
    axes = np.concatenate([np.eye(len(v)), u.T @ weight], axis=1)
    return axes.T @ (v[:, None] * axes) + np.diag([0.0] * len(v) + [SCALE**2] * weight.shape[1])


def test_draws_have_the_covariance_of_the_prior_s_through_the_decoder(b):
    prior, u, lam = exact_diffusion(3, steps=STEPS)
    fitted = pg.Fitted(decoded(prior), {"decoder": DECODER}, shapes={"x": (2,)})
    n = 4000
    draws = pg.generate(fitted, n, method=DDIM(4), chunk_size=n, seed=0, backend=b)
    found = np.cov(np.concatenate([draws["z"] @ u, draws["x"]], axis=1).T)
    want = joint(variances(prior.model, lam, 4, 0.0), u, WEIGHT)
    error = np.sqrt((np.outer(np.diag(want), np.diag(want)) + want**2) / n)
    assert (np.abs(found - want) < 6 * error).all()
    # Four leaps are another law than the chain's, which is drawn without a method.
    assert (np.abs(found - joint(lam, u, WEIGHT)) > 10 * error).any()
    assert "4 steps" in draws.note and "of the latent, by its prior" in draws.note


def test_z_is_what_the_sampler_draws_of_the_prior_by_itself(b):
    """From the same start, with the same condition and guidance; below one more decoder too."""
    model = Diffusion(
        nets.MLPDenoiser(2, hidden=(4,)), (2,), NoiseSchedule(20),
        condition=nets.ClassEmbedding(2, 4),
    )  # fmt: skip
    y = np.arange(5) % 2
    bound = bind(model, b, data={"x": np.zeros((1, 2), "float32"), "condition": y[:1]})
    own = tree_map(b.to_numpy, bound[1])
    prior = pg.Fitted(
        model, own, shapes={"x": (2,), "condition": ()}, dtypes={"condition": "int64"}
    )
    vae = VAE(model, nets.MLP((), 3), NORMAL, nets.MLP((), 2, heads=("loc", "log_scale")))
    params = {f"prior/{k}": v for k, v in own.items()}
    params["decoder"] = {"out": {"weight": WEIGHT.T, "bias": np.zeros(3, "float32")}}
    whole = pg.Fitted(vae, params, shapes={"x": (3,)})
    deep = pg.Fitted(decoded(whole), {"decoder": DECODER}, shapes={"x": (2,)})
    start = np.random.default_rng(0).normal(size=(5, 2))
    how = {"seed": 0, "backend": b, "inputs": {"condition": y}, "return_chain": True}
    method = DDIM(3, guidance_scale=3.0)
    want = pg.generate(prior, 5, method=method, start=start, **how)
    for fitted, site in ((whole, "z"), (deep, "prior/z")):
        at = {site.removesuffix("z") + "prior/x_20": start}
        found = pg.generate(fitted, 5, method=method, start=at, **how)
        np.testing.assert_allclose(found[site], want["x"], atol=1e-6)
        np.testing.assert_allclose(found.chain[site], want.chain["x"], atol=1e-6)
        assert "guidance 3" in found.note
    assert found["z"].shape == (5, 3) and found["x"].shape == (5, 2)
    with pytest.raises(DataError, match="start of .'x_20'., expected 'prior/prior/x_20'"):
        pg.generate(deep, 5, method=method, start={"x_20": start}, **how)
    other = pg.generate(whole, 5, method=DDIM(3), start=start, **how)
    assert np.abs(other["z"] - want["x"]).max() > 1e-3  # guidance is seen


def test_what_has_no_diffusion_or_no_such_draws_is_refused_in_words(b):
    params, how = {"decoder": DECODER}, {"seed": 0, "backend": b}
    unit = dist.Normal(0.0, 1.0).expand([3]).to_event(1)
    plain = pg.Fitted(decoded(unit), params, shapes={"x": (2,)})
    with pytest.raises(AlgorithmError, match=r"'Generator' has no denoiser.*VAE\(latent=Diffus"):
        pg.generate(plain, 3, method=DDIM(4), **how)
    latent = pg.Fitted(decoded(exact_diffusion(3, steps=STEPS)[0]), params, shapes={"x": (2,)})
    with pytest.raises(ShapeError, match=r"mask of shape \[2\], expected \[3\], that of one datum"):
        pg.generate(latent, 3, method=Inpaint(Ancestral(4), np.ones(2), np.ones(2)), **how)
    with pytest.raises(AlgorithmError, match="num_steps=61 .* has 60 steps"):
        pg.generate(latent, 3, method=DDIM(61), **how)


def test_a_code_is_completed_and_x_is_drawn_given_it(b):
    """Known numbers of z are as given, row by row; x is W' z and noise of the likelihood's size."""
    latent = pg.Fitted(
        decoded(exact_diffusion(3, steps=STEPS)[0]), {"decoder": DECODER}, shapes={"x": (2,)}
    )
    z = np.random.default_rng(0).normal(size=(400, 3)).astype("float32")
    method = Inpaint(DDIM(4), [1, 0, 1], z)
    drawn = pg.generate(latent, 400, method=method, seed=0, backend=b)
    np.testing.assert_array_equal(drawn["z"][:, [0, 2]], z[:, [0, 2]])
    assert np.abs(drawn["z"][:, 1] - z[:, 1]).max() > 0.5
    noise = drawn["x"] - drawn["z"] @ WEIGHT
    assert abs(noise.std() / SCALE - 1.0) < 5 / np.sqrt(2 * 800)


def test_a_model_with_another_guide_draws_as_it_does_without(b):
    """The guide that it has, given as another: the same draws and codes, and no refusal."""
    prior, _, _ = exact_diffusion(3, steps=8)
    own, params, start = prior.model, prior.params, np.ones((2, 3), "float32")
    guided = pg.Fitted(own.with_guide(own.guide), params, shapes={"x": (3,)})
    vae = VAE(prior, nets.MLP((), 2), NORMAL, nets.MLP((), 3, heads=("loc", "log_scale")))
    held = {"decoder": DECODER, **{f"prior/{k}": v for k, v in params.items()}}
    held["encoder"] = {"out": {"weight": np.zeros((2, 6), "f"), "bias": np.zeros(6, "f")}}
    of_guided = dataclasses.replace(vae, latent=guided)
    wholes = [pg.Fitted(m, held, shapes={"x": (2,)}) for m in
              (vae, of_guided.with_guide(vae.guide))]  # fmt: skip
    how = {"method": DDIM(2), "seed": 0, "backend": b}
    want, found = (pg.generate(f, 2, start=start, **how) for f in wholes)
    for name in ("z", "x"):
        np.testing.assert_array_equal(found[name], want[name])
    x, numbers = {"x": b.asarray(start)}, []
    for model in (own, guided.model):
        bound, p = bind(model, b, data={"x": start[:1]}, params=params)
        numbers += [
            DDIM(2).draws_of(bound)(p, {}, b.key(0), 2)["x"],
            DDIMInverse(2).codes_of(bound)(p, x)["x_8"],
        ]
        DenoisingELBO(2).device_function(bound)
        ProbabilityFlow(2).device_function(bound)
        Denoising().bind(bound)
    for a, c in zip(numbers[:2], numbers[2:], strict=True):
        np.testing.assert_array_equal(b.to_numpy(a), b.to_numpy(c))
