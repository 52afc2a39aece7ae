"""A second call of a verb compiles nothing, whatever learns, draws or measures: other data, another
seed, everything declared anew, as by a user who runs a cell of a notebook again. Where fits or
chains are dear, their own tests hold it too: `Adversarial`, `EMDistillation`, `DiffusionMap`."""

import functools

import numpy as np
import pytest
from compilations import Compilations
from emd_cases import small_teacher

import probgen as pg
from probgen import backends, dist, nets, ops
from probgen.engine.codes import codes_by
from probgen.inference import (
    AIS,
    DDIM,
    ELBO,
    EM,
    HMC,
    IWAE,
    NUTS,
    SVI,
    Ancestral,
    AutoNormal,
    DDIMInverse,
    Denoising,
    DenoisingELBO,
    DPMSolver,
    Enumerate,
    ImportanceWeightedELBO,
    Inpaint,
    Langevin,
    LikelihoodRegret,
    MaximumLikelihood,
    ProbabilityFlow,
    ProbabilityFlowODE,
)  # fmt: skip
from probgen.models import (
    EBM,
    VAE,
    Diffusion,
    GaussianMixture,
    Generator,
    ImplicitDiffusion,
    NoiseSchedule,
    OneStep,
    likelihoods,
)  # fmt: skip

ROUTE = {"torch": {"compile": "graph"}, "jax": {}}


def standard(d):
    return dist.Normal(0, 1).expand([d]).to_event(1)


def data(seed):
    return np.random.default_rng(seed).normal(size=(32, 3)).astype("float32")


def mean_of_normals():
    @pg.model
    def program():
        mean = pg.sample("mean", dist.Normal(0.0, 1.0))
        with pg.data_plate():
            pg.sample("x", dist.Normal(mean, 1.0))

    return program


@pg.model
def shares():
    """An end of a support is computed, and lies elsewhere in each run that binds the program."""
    first = pg.sample("first", dist.Uniform(0.0, 1.0))
    second = pg.sample("second", dist.Uniform(0.0, 1.0 - first))
    with pg.data_plate():
        pg.sample("x", dist.Normal(first - second, 1.0))


@pg.model
def garch():
    """x_t ~ N(0, v_t),  v_{t+1} = 0.1 + first x_t^2 + second v_t, of finite variance."""
    first = pg.sample("first", dist.Uniform(0.0, 1.0))
    second = pg.sample("second", dist.Uniform(0.0, 1.0 - first))

    def step(v, _):
        x = pg.sample("x", dist.Normal(0.0, ops.sqrt(v)))
        return 0.1 + first * x**2 + second * v, None

    pg.scan("t", step, 1.0, length=32)


def vae():
    return VAE(
        standard(2), nets.MLP((4,), 3), likelihoods.Normal(0.5),
        nets.MLP((4,), 2, heads=("loc", "log_scale")),
    )  # fmt: skip


def energy():
    return EBM(nets.MLPEnergy((4,)), standard(3))


def diffusion():
    return Diffusion(nets.MLPDenoiser(3, hidden=(4,)), (3,), NoiseSchedule.rescaled(30))


def implicit():
    return ImplicitDiffusion(nets.LatentDenoiser(3, (4,), 4), (3,), latent_dim=2)


def factors():
    return Generator(standard(1), nets.MLP((), 3, in_ndim=1), likelihoods.Normal("learned"))


def mixture():
    return GaussianMixture(2, 3, covariance="diagonal")


def fit(b, seed, model, algorithm, size=8):
    return pg.fit(model, data(seed), algorithm, num_steps=3, batch_size=size, seed=seed, backend=b,
                  progress_bar=False)  # fmt: skip


def infer(b, seed, method, model=None):
    x = {"x": data(seed)[:, 0]}
    model = model or mean_of_normals()
    return pg.infer(model, x, method, seed=seed, backend=b, progress_bar=False)


@functools.cache
def fitted(name, what):
    """A model to draw from or to score, fitted once."""
    b = backends.load(name, "cpu", **ROUTE[name])
    model, learn = {
        "vae": (vae, SVI(ELBO())), "diffusion": (diffusion, Denoising()),
        "energy": (energy, MaximumLikelihood(Langevin(0.1, 2))),
    }[what]  # fmt: skip
    return fit(b, 0, model(), learn)


def generate(b, seed, what, method):
    return pg.generate(fitted(b.name, what), 7, method=method, seed=seed, backend=b)


TEACHER = small_teacher(steps=201)


def score_diffusion(b, seed):
    """By every step, by one random step, and by the flow's two solvers."""
    flows = [ProbabilityFlow(4), ProbabilityFlow(tolerance=100.0)]
    measures = [DenoisingELBO(2, num_steps=5), ELBO(), *flows]
    return pg.evaluate(TEACHER, data(seed)[:, :2], measures, seed=seed, backend=b,
                       progress_bar=False)  # fmt: skip


def generate_steps(b, seed):
    """By a loop of the model's own, from weights that were not learned."""
    model = implicit()
    net = model.generator.init(np.random.default_rng(seed), (3,), (2,), ())
    return pg.generate(pg.Fitted(model, {"generator": net}), 7, seed=seed, backend=b)


def evaluate(b, seed):
    measures = [IWAE(4), AIS(2, 3, 1), LikelihoodRegret(num_steps=2, num_draws=2)]
    return pg.evaluate(fitted(b.name, "vae"), data(seed), measures, seed=seed, backend=b,
                       progress_bar=False)  # fmt: skip


# Long enough that torch compiles them too.
LONGER = {"engine": "probgen", "num_warmup": 60, "num_samples": 40, "num_chains": 2}
CALLS = {
    "NUTS": lambda b, s: infer(b, s, NUTS(num_warmup=5, num_samples=5, num_chains=1)),
    "our own NUTS": lambda b, s: infer(b, s, NUTS(**LONGER, step_size=1 + s, max_tree_depth=3)),
    "our own HMC": lambda b, s: infer(b, s, HMC(**LONGER | {"num_warmup": 58 + s}, num_steps=2)),
    "an end that moves": lambda b, s: infer(b, s, Langevin(0.01, 5, num_chains=2), shares),
    "MALA": lambda b, s: infer(b, s, Langevin(0.01, 5, metropolis=True, num_chains=2)),
    "maximum likelihood": lambda b, s: fit(b, s, energy(), MaximumLikelihood(Langevin(0.1, 2))),
    "denoising": lambda b, s: fit(b, s, diffusion(), Denoising()),
    "EM": lambda b, s: fit(b, s, mixture(), EM(Enumerate()), size=None),
    "EM by chains": lambda b, s: fit(b, s, factors(), EM(Langevin(0.05, 3))),
    "weights": lambda b, s: fit(b, s, vae(), SVI(ImportanceWeightedELBO(3))),
    "automatic guide": lambda b, s: pg.fit(
        mean_of_normals().with_guide(AutoNormal()), {"x": data(s)[:, 0]}, SVI(ELBO()), num_steps=3,
        batch_size=8, seed=s, backend=b, progress_bar=False,
    ),
    "chains of an energy": lambda b, s: generate(b, s, "energy", Langevin(0.1, 3)),
    "Heun": lambda b, s: generate(b, s, "diffusion", ProbabilityFlowODE(5)),
    "DPM-Solver": lambda b, s: generate(b, s, "diffusion", DPMSolver(5)),
    "ancestral in leaps": lambda b, s: generate(b, s, "diffusion", Ancestral(5)),
    "inpainting": lambda b, s: generate(
        b, s, "diffusion", Inpaint(DDIM(5), [1, 0, 0], data(s)[0], 2)
    ),
    "a model's own loop": generate_steps,
    "one step": lambda b, s: pg.generate(OneStep(TEACHER), 7, seed=s, backend=b),
    "inversion": lambda b, s: codes_by(
        DDIMInverse(5), fitted(b.name, "diffusion"), b, data(s), None
    ),
    "measures of a diffusion": score_diffusion,
    "three measures": evaluate,
}  # fmt: skip


# They go through what another case goes through: the same loop, with another step in it.
REPEATED = pytest.mark.repeated("test_a_second_call_compiles_nothing")
ALIKE = {
    "our own HMC", "MALA", "EM", "Heun", "DPM-Solver", "ancestral in leaps", "inpainting",
    "three measures",
}  # fmt: skip


@pytest.mark.parametrize(
    "call", [pytest.param(call, marks=REPEATED if call in ALIKE else ()) for call in CALLS]
)
def test_a_second_call_compiles_nothing(call, backend_name):
    b = backends.load(backend_name, "cpu", **ROUTE[backend_name])
    backends.forget()
    with Compilations(backend_name) as first:
        CALLS[call](b, 1)
    with Compilations(backend_name) as second:
        CALLS[call](b, 2)
    assert not second.names
    live = "NUTS", "a model's own loop"  # which are run as they are on torch
    assert first.names or (call in live and backend_name == "torch")


def test_a_second_call_compiles_no_loop_either():
    """One that torch compiles by itself, as it does where it runs often enough."""
    pytest.importorskip("torch")
    from probgen.backends.torch.scan_machine import machines

    b = backends.load("torch", "cpu")
    backends.forget()
    names = []
    for seed in (1, 2):
        with Compilations("torch") as seen:
            infer(b, seed, Langevin(0.01, 150, num_chains=1), garch)
        names.append(seen.names)
    assert names[0] and not names[1]
    assert 32 in {machine.form.length for machine in machines.values()}
