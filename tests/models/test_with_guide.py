"""A model of a family takes another guide, automatic or by hand, in place of its own."""

import numpy as np
import pytest

import probgen as pg
from probgen import dist, nets
from probgen.engine.bind import bind
from probgen.errors import AlgorithmError, DeclarationError
from probgen.inference import DDIM, ELBO, IWAE, SVI, AutoNormal, Guide, ImportanceWeightedELBO
from probgen.language import memory
from probgen.models import VAE, Diffusion, Generator, NoiseSchedule
from probgen.models.likelihoods import Normal
from probgen.trees import tree_map

W, SCALE = np.array([[1.0, -0.5]], "float32"), 0.5
RNG = np.random.default_rng(0)
X = (RNG.normal(size=(12, 1)) @ W + SCALE * RNG.normal(size=(12, 2))).astype("float32")
PARTS = (dist.Normal(0, 1).expand([1]).to_event(1), nets.MLP(hidden=(), out=(2,)), Normal(SCALE))
DECODER = {"decoder": {"out": {"weight": W, "bias": np.zeros(2, "float32")}}}
ENCODER = nets.MLP(hidden=(4,), out=1, heads=("loc", "log_scale"))


# Whatever the model; that the guide is saved with it is below.
@pytest.mark.repeated(
    "test_auto_guides.py::test_latents_of_single_data_have_parameters_of_their_own"
)
def test_a_generator_with_an_automatic_guide_has_the_posterior_of_each_datum(b, tmp_path):
    """x = W z + noise with W known: z | x is normal, and its bound is log p(x) itself."""
    model = Generator(*PARTS).with_guide(AutoNormal())
    fitted = pg.fit(
        model, X, SVI(ELBO(), pg.Adam(pg.CosineDecay(0.05, 500))), num_steps=500, init=DECODER,
        freeze=("decoder",), batch_size=None, seed=0, backend=b, progress_bar=False,
    )  # fmt: skip
    precision = 1 + (W @ W.T)[0, 0] / SCALE**2
    loc, log_scale = (fitted.params[f"guide/z/{k}"]["value"][:, 0] for k in ("loc", "log_scale"))
    exact = (X @ W[0]) / SCALE**2 / precision
    np.testing.assert_allclose(loc, exact, atol=0.25 * precision**-0.5)
    np.testing.assert_allclose(np.exp(log_scale) * precision**0.5, 1.0, atol=0.25)
    fitted.save_pretrained(tmp_path / "fit")
    again = pg.Fitted.from_pretrained(tmp_path / "fit")
    assert again.model == model and again.model.guide == AutoNormal()
    how = {"inputs": {"row": np.arange(12)}, "seed": 0, "backend": b, "progress_bar": False}
    cov = W.T @ W + SCALE**2 * np.eye(2)
    want = (
        -0.5 * ((X @ np.linalg.inv(cov)) * X).sum(1) - 0.5 * np.linalg.slogdet(2 * np.pi * cov)[1]
    )
    found = pg.evaluate(again, X, [IWAE(200)], **how)["IWAE(200)"]["estimate"].values
    np.testing.assert_allclose(found, want, atol=0.05)


def test_a_vae_leaves_its_encoder_for_the_guide_that_it_is_given(b, tmp_path):
    vae = VAE(*PARTS, encoder=ENCODER)

    @vae.with_guide
    def by_hand(x):
        with pg.data_plate():
            pg.sample("z", dist.Normal(0.0 * x[..., :1], 1.0).to_event(1))

    rows = {"x": X, "row": np.arange(12)}
    for model, more in ((by_hand, set()), (vae.with_guide(AutoNormal()), {"loc", "log_scale"})):
        data = rows if more else {"x": X}
        bound, params = bind(model, b, data=data, num_data=12)
        assert set(params) == {"decoder", *(f"guide/z/{k}" for k in more)}
        assert (model.name, model.formula()) == ("VAE", vae.formula())
        drawn = bound.trace_guide(params, {k: b.asarray(v) for k, v in data.items()}, key=b.key(0))
        assert drawn["z"].log_prob.shape == (12,)
    params, shapes = tree_map(b.to_numpy, params), {"x": (2,), "row": ()}
    kinds = {"x": "float32", "row": "int64"}
    fitted = pg.Fitted(model, params, info={"num_data": 12}, shapes=shapes, dtypes=kinds)
    fitted.save_pretrained(tmp_path / "fit")
    again = pg.Fitted.from_pretrained(tmp_path / "fit")
    assert again.model == model and again.model.guide == AutoNormal()


@pytest.mark.parametrize("steps", [10, 1000])
def test_a_chain_has_no_automatic_guide_and_a_long_one_no_importance_weights(b, steps):
    chain = Diffusion(nets.MLPDenoiser(2, hidden=(4,)), (2,), NoiseSchedule(steps))
    with pytest.raises(AlgorithmError, match="forward process is its guide"):
        bind(chain.with_guide(AutoNormal()), b, data={"x": X}, num_data=12)
    if steps < 200:
        return
    vae = VAE(chain, *PARTS[1:], encoder=nets.MLP((4,), out=2, heads=("loc", "log_scale")))
    how = {"num_steps": 1, "seed": 0, "backend": b}
    learn = SVI(ImportanceWeightedELBO(4))
    with pytest.raises(AlgorithmError, match=r"1000 steps.*Denoising\(\) learns it by one step"):
        pg.fit(chain, X, learn, **how)
    with pytest.raises(AlgorithmError, match=r"ELBO\(...\), a mean, is learned and measured"):
        pg.fit(vae, X, learn, **how)
    fitted = pg.Fitted(chain, bind(chain, b, data={"x": X})[1], shapes={"x": (2,)})
    with pytest.raises(AlgorithmError, match=r"DenoisingELBO\(num_steps=...\) estimates"):
        pg.evaluate(fitted, X, [IWAE(4)], seed=0, backend=b)


def test_codes_stand_beside_a_long_chain_whose_steps_nobody_keeps(b, monkeypatch):
    """A VAE's codes are its encoder's means whatever the prior; draws keep z and x alone."""
    steps = 201
    chain = Diffusion(nets.MLPDenoiser(2, hidden=(4,)), (2,), NoiseSchedule(steps))
    vae = VAE(chain, *PARTS[1:], encoder=nets.MLP((), out=2, heads=("loc", "log_scale")))
    params = tree_map(b.to_numpy, bind(vae, b, data={"x": X})[1])
    fitted = pg.Fitted(vae, params, info={"backend": b.name}, shapes={"x": (2,)})
    out, onto = params["encoder"]["out"], params["decoder"]["out"]
    z = X @ out["weight"][:, :2] + out["bias"][:2]
    codes = fitted.encode(X)
    assert set(codes) == {"z"}
    np.testing.assert_allclose(codes["z"], z, atol=1e-5)
    np.testing.assert_allclose(
        fitted.reconstruct(X)["x"], z @ onto["weight"] + onto["bias"], atol=1e-5
    )
    how = {"seed": 0, "backend": b}
    with pytest.raises(AlgorithmError, match=r"infer, Guide: .* 201 steps.*fitted.encode\(data\)"):
        pg.infer(fitted, X, Guide(2), **how)
    own = {k.removeprefix("prior/"): v for k, v in params.items() if k.startswith("prior/")}
    alone = pg.Fitted(chain, own, info={"backend": b.name}, shapes={"x": (2,)})
    with pytest.raises(AlgorithmError, match=r"201 steps of its chain.*DDIMInverse\(50\)"):
        alone.encode(X)
    count = memory.SMALL // (8 * 4)  # of z and x, two numbers each
    monkeypatch.setattr(memory, "available", lambda: 0)
    for method in (None, DDIM(2)):
        with pytest.raises(DeclarationError, match="a size of 67.1 MB"):
            pg.generate(fitted, count, method=method, **how)
