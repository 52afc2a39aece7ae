"""A family with another guide keeps what it can do: each protocol, on a model that has it."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from fit_cases import quick

import probgen as pg
from probgen import dist, nets
from probgen.engine.bind import bind
from probgen.errors import AlgorithmError
from probgen.inference import EM, Adversarial, EMDistillation, ExactGaussian, Invertibility
from probgen.inference.learn.em_distillation_chain import Generator as Student
from probgen.inference.learn.em_distillation_scores import scores_of
from probgen.inference.ood.error_reduction import Restorer
from probgen.language import capabilities
from probgen.language.model import capability, family_of
from probgen.models import (
    VAE,
    Diffusion,
    DiffusionMap,
    Generator,
    GradientFlowGenerator,
    ImplicitDiffusion,
    NoiseSchedule,
    OneStep,
    Subject,
    Tilted,
)
from probgen.models.likelihoods import Normal

ROOT = Path(__file__).resolve().parents[2]
UNIT = dist.Normal(0, 1).expand([2]).to_event(1)
FEW = NoiseSchedule(4, "vp_sde")
X = np.random.default_rng(0).normal(size=(8, 2)).astype("f")
AFFINE = nets.MLP((), out=2, in_ndim=1)

diffusion = Diffusion(nets.MLPDenoiser(2, (4,)), (2,), FEW)
implicit = ImplicitDiffusion(nets.LatentDenoiser(2, (4,), 4), (2,), 3, FEW)
generator = Generator(UNIT, AFFINE, Normal())
flow = GradientFlowGenerator(nets.MLPEnergy((4,), activation="softplus"), UNIT, num_steps=1)
vae = VAE(UNIT, AFFINE, Normal(), encoder=nets.MLP((4,), 2, heads=("loc", "log_scale")))
text = nets.ContextEmbedding((3, 2))
told = Diffusion(nets.MLPDenoiser(2, (4,)), (2,), FEW, condition=text)
rows = {"condition": text.init(np.random.default_rng(0), (3, 2))}
subject = Subject(pg.Fitted(told, rows), 1)
CASES = {
    capabilities.Ancestral: implicit, capabilities.HasMean: vae, capabilities.TakesBack: flow,
    capabilities.DrawsMean: generator, capabilities.HasPrior: vae,
    capabilities.Maximises: generator, capabilities.Denoises: diffusion,
    capabilities.MakesPairs: implicit, capabilities.MapsAttention: diffusion,
    capabilities.Stepwise: subject,
}  # fmt: skip


def another(x):
    """z ~ N(0, I), whatever x."""
    with pg.data_plate():
        pg.sample("z", dist.Normal(0.0 * x, 1.0).to_event(1))


def chain(x):
    """The noise and the steps of `implicit`, x's value in place of theirs."""
    with pg.data_plate():
        for t in (4, 3, 2, 1):
            pg.sample(f"x_{t}", dist.Normal(0.0 * x, 1.0).to_event(1))
            pg.sample(f"z_{t}", dist.Normal(0.0, 1.0).expand([3]).to_event(1))


def test_another_guide_takes_no_capability_away_and_gives_none():
    declared = {
        c for _, c in inspect.getmembers(capabilities, inspect.isclass)
        if getattr(c, "_is_protocol", False) and c.__module__ == capabilities.__name__
    }  # fmt: skip
    assert declared == set(CASES)
    for protocol, model in CASES.items():
        assert capability(model, protocol) is model
        assert capability(model.with_guide(another), protocol) is model
        assert family_of(model.with_guide(another).with_guide(chain)) is model
    assert capability(diffusion.with_guide(another), capabilities.MakesPairs) is None


def test_a_capability_is_asked_for_in_one_way():
    """No file asks `isinstance` of a protocol: it would not see the family behind a guide."""
    names = "|".join(c.__name__ for c in CASES)
    asks = re.compile(rf"isinstance\([^()]*(\([^()]*\)[^()]*)*\b({names})\b")
    rooms = ("probgen", "models", "inference", "evaluation", "studies")
    found = {
        str(path.relative_to(ROOT)) for room in rooms for path in (ROOT / room).rglob("*.py")
        if asks.search(path.read_text())
    }  # fmt: skip
    assert found == {"probgen/language/model.py", "probgen/language/capabilities.py"}


@pytest.fixture(scope="module")
def b(backend_name):
    return quick(backend_name)


def test_who_asks_for_a_capability_finds_it_behind_another_guide(b):
    """M-step and mean of a generator, its draws without noise, both sides of EM distillation."""
    bound, params = bind(generator.with_guide(another), b, data={"x": X}, num_data=8)
    EM(ExactGaussian(), m_step="closed").bind(bound)
    with pytest.raises(AlgorithmError, match="knows no such M-step"):
        EM(ExactGaussian(), m_step="closed").bind(bind(model_without(), b, data={"x": X})[0])
    restorer = Restorer(vae.with_guide(another))
    z = b.asarray(X)
    np.testing.assert_array_equal(
        *(b.to_numpy(m.mean(bound, params, z)) for m in (restorer, generator))
    )
    tilted = Tilted(generator.with_guide(another), nets.MLPEnergy((4,)), through="mean")
    assert "x" in bind(tilted, b)[0].structure.sites
    teacher = pg.Fitted(diffusion.with_guide(diffusion.guide), bind(diffusion, b)[1])
    student, _ = bind(generator.with_guide(another), b, num_draws=4)
    assert Student(student).shape == (2,)
    assert scores_of(student, EMDistillation(teacher), (2,)).model is diffusion
    assert OneStep(teacher, log_snr=0.0).diffusion is DiffusionMap(teacher, 2).model is diffusion


def model_without():
    """The generator's program as a function, which knows no M-step."""
    return pg.model(generator.program).with_guide(another)


@pytest.mark.repeated("test_who_asks_for_a_capability_finds_it_behind_another_guide")
def test_pairs_and_the_way_back_are_those_of_the_family(b):
    """A discriminator of (x_{t-1}, x_t, t') is given them, and a flow's steps are taken back."""
    learner = Adversarial(nets.TimedDiscriminator((4,), 4), pg.SGD(0.1), pg.SGD(0.1))
    how = {"num_steps": 1, "batch_size": 8, "seed": 0, "backend": b, "progress_bar": False}
    fitted = pg.fit(implicit.with_guide(chain), X, learner, **how)
    assert np.isfinite(fitted.history["loss"]).all()
    guided = flow.with_guide(lambda x: None)
    fitted = pg.Fitted(guided, bind(flow, b, data={"x": X})[1], shapes={"x": (2,)})
    found = pg.evaluate(fitted, X[:2], [Invertibility()], seed=0, backend=b)
    assert (found["sharpness of the map"]["residual"].values < 1e-5).all()
