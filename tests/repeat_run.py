"""One compiled call again and again: `python repeat_run.py BACKEND CASES CALLS SECONDS`.

Every case is a function without arguments that computes anew, from the same input, what a learner's
step, a measure or a sampler gives. Prints a line a case, "name: CALLS calls, N results", until that
many calls or seconds; more than one result is a race. CASES is "quick", "all", or a case's name.
"""

import hashlib
import sys
import time

import numpy as np

import probgen as pg
from probgen import backends, dist, nets
from probgen.engine.bind import bind
from probgen.engine.fitted import Fitted
from probgen.engine.measure import EvaluationContext
from probgen.inference import (
    AIS,
    ELBO,
    HMC,
    IWAE,
    NUTS,
    SVI,
    CapacityELBO,
    ControlledELBO,
    Denoising,
    DenoisingELBO,
    ImportanceWeightedELBO,
    Langevin,
    LikelihoodRegret,
    MaximumLikelihood,
    ProbabilityFlow,
    UnnormalizedLogDensity,
    log_partition,
    ood,
)
from probgen.models import EBM, VAE, Diffusion, likelihoods
from probgen.trees import tree_leaves

DIM, ROWS = 64, 256  # large enough that XLA and torch share a sum among their threads
X = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype("float32")
KNOWN = X[::2] + 0.1

VAE_64 = VAE(
    latent=dist.Normal(0, 1).expand([4]).to_event(1),
    decoder=nets.MLP((64,), out=(DIM,), activation="tanh"),
    likelihood=likelihoods.Normal(0.5),
    encoder=nets.MLP((64,), out=4, heads=("loc", "log_scale"), activation="tanh"),
)
ENERGY = EBM(nets.MLPEnergy((32,)), dist.Normal(0.0, 1.0).expand([DIM]).to_event(1))
DIFFUSION = Diffusion(nets.MLP((64,), out=(DIM,)), (DIM,))
CHAIN = Langevin(1e-3, 10)


@pg.model
def regression(covariates):
    weights = pg.sample("weights", dist.Normal(0, 1).expand([DIM]).to_event(1))
    with pg.data_plate():
        pg.sample("y", dist.Normal(covariates @ weights, 1.0))


@pg.model
def mean_of_all():
    centre = pg.sample("centre", dist.Normal(0, 1).expand([DIM]).to_event(1))
    with pg.data_plate():
        pg.sample("x", dist.Normal(centre, 1.0).to_event(1))


@mean_of_all.with_guide
def mean_of_all():
    loc = pg.net("loc", nets.Parameter((DIM,)))()
    pg.sample("centre", dist.Normal(loc, 0.1).to_event(1))


LEARNERS = {
    "ELBO": (VAE_64, SVI(ELBO())),
    "ELBO(3, analytic_kl=True)": (VAE_64, SVI(ELBO(3, analytic_kl=True))),
    "ELBO(3, analytic_kl=False)": (VAE_64, SVI(ELBO(3, analytic_kl=False))),
    "ELBO of a global latent": (mean_of_all, SVI(ELBO())),
    "ImportanceWeightedELBO(5)": (VAE_64, SVI(ImportanceWeightedELBO(5))),
    "ControlledELBO": (VAE_64, SVI(ControlledELBO())),
    "CapacityELBO": (VAE_64, SVI(CapacityELBO())),
    "Denoising": (DIFFUSION, Denoising()),
    "MaximumLikelihood": (ENERGY, MaximumLikelihood(CHAIN)),
}

OF_A_VAE = [
    ELBO(3), ELBO(3, analytic_kl=False), IWAE(20), ood.NegativeLogLikelihood(20),
    ood.ReconstructionError(4), ood.KLTerm(4), ood.Mahalanobis(KNOWN),
    ood.Typicality(KNOWN, 4), ood.GradientNorm(KNOWN),
    ood.BiasCorrected(None, 4), ood.LPath(KNOWN),
    ood.Resultant(KNOWN, 4, image_shape=(8, 8, 1)),
    LikelihoodRegret(search="posterior", num_draws=10, num_steps=5),
    LikelihoodRegret(num_draws=10, num_steps=3), AIS(4, num_chains=3, num_pilot_steps=10),
]  # fmt: skip
OF_A_DIFFUSION = [DenoisingELBO(2, num_steps=5), ProbabilityFlow(4)]

QUICK = ("learner ELBO(3, analytic_kl=True)", "measure ELBO(3)")


def learner(b, model, algorithm):
    """One step from the same state."""
    bound, params = bind(model, b, data={"x": X}, seed=0, num_data=10 * ROWS, num_steps=1000)
    learns = algorithm.bind(bound)
    batch = {"x": b.asarray(X)}
    state = learns.init(b.copy(params), b.key(1), batch)
    steps = b.run_steps(learns.update)
    indices = np.arange(2 * ROWS).reshape(2, ROWS) % ROWS

    def call():
        new, metrics = steps(b.copy(state), batch, indices, b.key(2), 0)
        return [b.to_numpy(leaf) for leaf in tree_leaves({"new": new["params"], "said": metrics})]

    return call


def measure(b, model, which, rows=ROWS):
    """What it says of the same data."""
    params = b.tree_map(b.to_numpy, bind(model, b, data={"x": X}, seed=0)[1])
    fitted = Fitted(model, params, shapes={"x": (DIM,)})
    data, ids = {"x": X[:rows]}, np.arange(rows)
    if which == "WAIC":
        which = ood.WAIC([fitted, fitted], 4)
    context = EvaluationContext(
        fitted, b, b.key(3), data, num_data=rows, chunk_size=rows, num_chunks=1000
    )
    function = context.function(which)

    def call():
        return list(function(dict(data), ids).values())  # another dict: nothing is kept of the last

    return call


def chain(b, method):
    def call():
        y = X[:, 0] + X[:, 1]
        draws = pg.infer(
            regression, {"y": y}, method, inputs={"covariates": X}, seed=0, backend=b,
            progress_bar=False,
        )  # fmt: skip
        return [draws.posterior["weights"].values]

    return call


def generated(b):
    params = b.tree_map(b.to_numpy, bind(ENERGY, b, data={"x": X}, seed=0)[1])
    fitted = Fitted(ENERGY, params, shapes={"x": (DIM,)})
    return lambda: [pg.generate(fitted, ROWS, method=CHAIN, space="data", seed=0, backend=b)["x"]]


def log_z(b):
    params = b.tree_map(b.to_numpy, bind(ENERGY, b, data={"x": X}, seed=0)[1])
    fitted = Fitted(ENERGY, params, shapes={"x": (DIM,)})
    method = AIS(4, 50, 2, num_pilot_steps=10)
    return lambda: [np.asarray(log_partition(fitted, method, seed=0, backend=b).estimate)]


def cases(b):
    """name -> what makes its call."""
    out = {f"learner {n}": lambda c=c: learner(b, *c) for n, c in LEARNERS.items()}
    for which in OF_A_VAE:
        few = isinstance(which, LikelihoodRegret | AIS | ood.LPath)
        out[f"measure {which.name}"] = lambda w=which, few=few: measure(
            b, VAE_64, w, 32 if few else ROWS
        )
    for which in OF_A_DIFFUSION:
        out[f"measure {which.name}"] = lambda w=which: measure(b, DIFFUSION, w, 32)
    out["measure WAIC"] = lambda: measure(b, VAE_64, "WAIC")
    out["measure UnnormalizedLogDensity"] = lambda: measure(b, ENERGY, UnnormalizedLogDensity())
    sizes = {"num_warmup": 5, "num_samples": 5, "num_chains": 2}
    out["chain NUTS"] = lambda: chain(b, NUTS(**sizes, max_tree_depth=4))
    out["chain HMC"] = lambda: chain(b, HMC(**sizes, num_steps=4))
    out["sampler Langevin"] = lambda: generated(b)
    out["log_partition"] = lambda: log_z(b)
    return out


def repeat(call, most, seconds):
    """(calls, different results): until `most` calls, or so many seconds, but at least ten."""
    found, calls, began = set(), 0, time.monotonic()
    while calls < most and (calls < 10 or time.monotonic() - began < seconds):
        digest = hashlib.sha256()
        for array in call():
            digest.update(np.ascontiguousarray(array).tobytes())
        found.add(digest.digest())
        calls += 1
    return calls, len(found)


def main(name, wanted, most, seconds):
    options = {"compile": "graph"} if name == "torch" and wanted == "quick" else {}
    b = backends.load(name, "cpu", **options)
    for case, make in cases(b).items():
        if wanted == "all" or wanted == case or (wanted == "quick" and case in QUICK):
            calls, found = repeat(make(), int(most), float(seconds))
            print(f"{case}: {calls} calls, {found} results", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
