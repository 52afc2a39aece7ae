"""torch and JAX measure alike: the same weights and noise give the same numbers (`shared_noise`).

To 1e-8 nats in float64, in every quantity of a table, and to 1e-4 nats in float32 where no decision
hangs on a rounding (annealing accepts or refuses). Likelihood regret is in `test_regret_backends`.
"""

import dataclasses
import functools
import inspect

import numpy as np
import pytest
from ais_cases import waiting, waiting_data
from flow_cases import draws as gaussian_draws
from flow_cases import exact_diffusion
from scores_models_cases import Hierarchy
from shared_noise import agree, each_backend
from test_ais_partition import HILLS, hills_draws

import probgen as pg
from probgen import dist, inference, nets
from probgen.data.sources import ArraySource
from probgen.engine.bind import bind
from probgen.engine.fitted import Fitted
from probgen.inference import (
    AIS,
    ELBO,
    IWAE,
    DenoisingELBO,
    EnergyLogLikelihood,
    Gaussian,
    ProbabilityFlow,
    UnnormalizedBound,
    UnnormalizedLogDensity,
    bdmc,
    bits_per_dim,
    log_partition,
    ood,
)
from probgen.inference.likelihood.ais import latent_path
from probgen.inference.ood import (
    WAIC,
    BiasCorrected,
    CombinedTest,
    DoSE,
    ErrorReduction,
    GradientNorm,
    HierarchyRatio,
    InputComplexity,
    KLTerm,
    LikelihoodRatio,
    LPath,
    Mahalanobis,
    NegativeLogLikelihood,
    ReconstructionError,
    Restorer,
    Resultant,
    Typicality,
    downsampled,
)
from probgen.models import VAE, Tilted, likelihoods
from probgen.trees import tree_map
from studies.rbm.rbm import RBM, rbm_log_partition

pytestmark = pytest.mark.usefixtures("same_noise")

SHAPE, COUNT = (4, 4, 1), 5
WALK = AIS(6, num_chains=3, num_leapfrog=3, num_pilot_steps=10)
NLL = NegativeLogLikelihood(30, particles_at_once=12)  # two whole parts and a rest


def cast(fitted, dtype):
    return dataclasses.replace(
        fitted, params=tree_map(lambda a: np.asarray(a, dtype), fitted.params)
    )


def vae(likelihood, seed=0, guide_kind="diagonal"):
    """A VAE of 4 x 4 images with random tanh networks."""
    model = VAE(
        latent=dist.Normal(0, 1).expand([3]).to_event(1),
        decoder=nets.MLP(hidden=(7,), out=SHAPE, activation="tanh"),
        likelihood=likelihood,
        encoder=nets.MLP(hidden=(8,), out=3, heads=("loc", "log_scale"), activation="tanh"),
        guide_kind=guide_kind,
    )
    with each_backend(float64=False) as (b, _):
        example = {"x": levels_of(likelihood, 1)}
        params = b.tree_map(b.to_numpy, bind(model, b, data=example, seed=seed)[1])
    return Fitted(model, tree_map(lambda a: 1.3 * a, params), shapes={"x": SHAPE})


def levels_of(likelihood, count, seed=0):
    """Images that a likelihood may have."""
    rng = np.random.default_rng(seed)
    match type(likelihood).__name__:
        case "Bernoulli":
            return (rng.random((count, *SHAPE)) < 0.4).astype(np.float32)
        case "Categorical":
            return rng.integers(0, 4, (count, *SHAPE)).astype(np.int32)
        case "DiscretizedLogistic":
            return (rng.integers(0, 16, (count, *SHAPE)) / 15).astype(np.float32)
    return rng.normal(size=(count, *SHAPE)).astype(np.float32)


def with_normal():
    fitted = vae(likelihoods.Normal(0.5))
    x, known = (levels_of(fitted.model.likelihood, n, s) for n, s in ((COUNT, 0), (24, 1)))
    others = [vae(likelihoods.Normal(0.5), seed=s) for s in (1, 2)]

    # Settings are shared where they can be: what the scores compute on the device is compiled once.
    def measures(dtype):
        models = [cast(f, dtype) for f in others]
        likelihood, slopes = NegativeLogLikelihood(4), GradientNorm(known)
        return [
            ELBO(3), ELBO(1), IWAE(30, particles_at_once=12), NLL, ReconstructionError(4),
            KLTerm(4), KLTerm(3, analytic_kl=False), Mahalanobis(known),
            Mahalanobis(known, np.arange(24) % 2, shrinkage=0.1), LikelihoodRatio(models[0], 4),
            WAIC(models, 4), Typicality(known, 4), slopes, GradientNorm(known, "density"),
            GradientNorm(method="norm", num_particles=2, nets="guide"), BiasCorrected(None, 4),
            DoSE(known, (likelihood, ReconstructionError(4), KLTerm(4))),
            Resultant(known, 4, num_components=2), Resultant(known, 4, density="kde"),
            CombinedTest(known, (Typicality(known, 4), slopes)),
            LPath(known), LPath(known, "mahalanobis"),
        ]  # fmt: skip

    return fitted, {"x": x}, measures


def with_full_covariance():
    fitted = vae(likelihoods.Normal(0.5), guide_kind="full")
    x, known = (levels_of(fitted.model.likelihood, n, n) for n in (COUNT, 9))
    measures = [ELBO(3), IWAE(3), KLTerm(3), Mahalanobis(known)]
    return fitted, {"x": x}, lambda dtype: measures


def with_a_tilt():
    base = vae(likelihoods.Normal(0.5))
    model = Tilted(base, energy=nets.MLPEnergy((5,)), on="x")
    with each_backend(float64=False) as (b, _):
        example = {"x": levels_of(base.model.likelihood, 1)}
        params = b.tree_map(b.to_numpy, bind(model, b, data=example, seed=3)[1])
    fitted = Fitted(model, params, shapes={"x": SHAPE})
    measures = [UnnormalizedBound(IWAE(3)), UnnormalizedBound(ELBO(3))]
    return fitted, {"x": levels_of(base.model.likelihood, COUNT)}, lambda dtype: measures


def with_codes():
    fitted = vae(likelihoods.Bernoulli())
    measures = [InputComplexity(IWAE(3), ("png", "lzma")), BiasCorrected(None, 3)]
    return fitted, {"x": levels_of(fitted.model.likelihood, COUNT)}, lambda dtype: measures


def with_a_table():
    fitted = vae(likelihoods.Categorical(4))
    x, known = (levels_of(fitted.model.likelihood, n, n) for n in (COUNT, 30))
    measures = [BiasCorrected(known, 3), BiasCorrected(known, 3, stretch_contrast=True)]
    return fitted, {"x": x}, lambda dtype: measures


def with_lossy_images():
    inner = vae(likelihoods.DiscretizedLogistic(16))
    fitted = Fitted(Restorer(inner.model), inner.params, shapes={"x": SHAPE, "lossy": SHAPE})
    x = levels_of(inner.model.likelihood, COUNT)
    return fitted, {"x": x, "lossy": downsampled(x, 2)}, lambda dtype: [ErrorReduction()]


def with_a_hierarchy():
    case = Hierarchy()
    both = [HierarchyRatio(1, 4, 3, way, particles_at_once=3) for way in ("sample", "mode")]
    measures = [*both, ELBO(3), KLTerm(3)]
    return case.fitted(), {"x": case.draws(COUNT)}, lambda dtype: measures


def with_diffusion(kind):
    fitted, u, lam = exact_diffusion(4, steps=20, kind=kind)
    measures = [
        DenoisingELBO(2), DenoisingELBO(3, num_steps=7), ProbabilityFlow(4, divergence="exact"),
        ProbabilityFlow(4, divergence="hutchinson", num_probes=3, down_to="lowest_noise"),
    ]  # fmt: skip
    kept = measures if kind == "epsilon" else measures[1:3]
    return fitted, {"x": gaussian_draws(u, lam, COUNT)}, lambda dtype: kept


def with_energies():
    z = None

    def measures(dtype):
        nonlocal z
        with each_backend(float64=False) as (b, _):
            z = z or log_partition(HILLS, AIS(5, 20, 2, num_pilot_steps=10), seed=0, backend=b)
        return [UnnormalizedLogDensity(), EnergyLogLikelihood(z)]

    return HILLS, {"x": hills_draws(COUNT)}, measures


CASES = {
    "a VAE": with_normal,
    "a full covariance": with_full_covariance,
    "a tilted VAE": with_a_tilt,
    "codes": with_codes,
    "a table": with_a_table,
    "lossy images": with_lossy_images,
    "a hierarchy": with_a_hierarchy,
    "diffusion": lambda: with_diffusion("epsilon"),
    "diffusion by v": lambda: with_diffusion("v_prediction"),
    "energies": with_energies,
}


@functools.cache
def tables(case, dtype):
    """Both tables, as {measure: {quantity: [n, ...]}}."""
    fitted, data, make = CASES[case]()
    is_double = dtype == np.float64
    arrays = {k: v.astype(dtype) if v.dtype == np.float32 else v for k, v in data.items()}
    measures, found = make(dtype), []
    with each_backend(float64=is_double) as both:
        for b in both:
            source = ArraySource(arrays, batch_size=None, seed=0)
            table = pg.evaluate(
                cast(fitted, dtype), source, measures, seed=1, backend=b, chunk_size=3,
                progress_bar=False,
            )  # fmt: skip
            found.append(
                {m: {q: v.values for q, v in table[m].data_vars.items()} for m in table.names}
            )
    return found


# Prediction types are held to closed forms on both backends in `test_flow_likelihood`.
BY_V = pytest.param("diffusion by v", marks=pytest.mark.slow)
# What is a closed form on both backends in another file, measure by measure.
KNOWN = [
    pytest.param("a VAE", marks=pytest.mark.repeated(
        "test_scores_onepass.py::test_the_parts_are_closed_forms_where_the_guide_is_the_posterior"
    )),
    pytest.param("diffusion", marks=pytest.mark.repeated(
        "test_flow_likelihood_elbo.py::"
        "test_the_bound_is_its_closed_form_and_below_the_chain_s_density"
    )),
    pytest.param("a hierarchy", marks=pytest.mark.repeated(
        "test_scores_models.py::test_the_ratio_in_a_hierarchy_is_its_closed_form"
    )),
    pytest.param("energies", marks=pytest.mark.repeated(
        "test_ais_partition.py::test_energies_give_a_density_that_is_labelled"
    )),
    pytest.param("a tilted VAE", marks=pytest.mark.repeated(
        "test_unnormalized_bound.py::test_a_tilt_of_the_latent_is_that_of_quadrature"
    )),
    pytest.param("lossy images", marks=pytest.mark.repeated(
        "test_scores_models_codes.py::test_the_error_reduction_is_the_one_computed_by_hand"
    )),
    pytest.param("a table", marks=pytest.mark.repeated(
        "test_scores_onepass_bias.py::test_the_correction_of_levels_is_their_mean_probability"
    )),
]  # fmt: skip


@pytest.mark.parametrize("case", [*KNOWN, BY_V, "a full covariance", "codes"])
def test_backends_agree_for_the_same_weights_and_noise(case):
    one, other = tables(case, np.float64)
    assert list(one) == list(other)
    for measure in one:
        agree(one[measure], other[measure], atol=1e-8, rtol=1e-9, what=measure)
        assert np.ptp(one[measure]["estimate"]) > 1e-3, measure


# Not annealing; the slow ones share their parts with the others.
SLOW = [pytest.param(c, marks=pytest.mark.slow) for c in ("a VAE", "a hierarchy", "a table")]
ALIKE = [
    pytest.param(c, marks=pytest.mark.repeated("test_backends_agree_in_single_precision"))
    for c in ("a full covariance", "energies")
]
FLOAT32 = [*SLOW, BY_V, *ALIKE, "codes"]


@pytest.mark.parametrize("case", FLOAT32)
def test_backends_agree_in_single_precision(case):
    """Estimates and their errors, to 1e-4 nats and what 24 bits leave of a large number."""
    one, other = tables(case, np.float32)
    for measure in one:
        for kept in ("estimate", "standard_error"):
            if kept in one[measure]:
                np.testing.assert_allclose(
                    one[measure][kept], other[measure][kept], atol=1e-4, rtol=1e-6, err_msg=measure
                )


# ---- estimates that are no tables ---------------------------------------------------------------


def of_both(run):
    """What `run(backend)` gives on each, in float64."""
    with each_backend(float64=True) as both:
        return [run(b) for b in both]


def numbers(record, *names):
    """Those attributes of a record that are set."""
    return {n: getattr(record, n) for n in names if getattr(record, n) is not None}


def check(run):
    one, other = of_both(run)
    agree(one, other, atol=1e-8, rtol=1e-9)
    return one


@pytest.mark.repeated("test_ais_bracket.py::test_bounds_lie_on_either_side_of_the_truth")
def test_both_sides_of_a_bracket_agree():
    """Forward and reverse, on the data that both backends simulate alike."""
    fitted = cast(vae(likelihoods.Normal(0.5)), np.float64)

    def run(b):
        out = bdmc(fitted, 3, WALK, seed=2, backend=b, progress_bar=False)
        names = ("forward", "reverse", "forward_error", "reverse_error", "acceptance_rate")
        return {**numbers(out, *names), **out.data}

    found = check(run)
    assert np.ptp(found["forward"]) > 0.1 and np.ptp(found["x"]) > 1.0


LOG_Z = ("estimate", "standard_error", "effective_share", "reverse", "reverse_error")


@pytest.mark.repeated(
    "test_ais_partition.py::test_log_z_of_a_mixture_is_that_of_quadrature_from_any_start"
)
def test_log_z_agrees():
    """From a Gaussian, both ways; the walk from a base of the model, in noise, is a bracket's."""
    base, samples = Gaussian([1.0, 1.0], 5.0), hills_draws(12)
    method = AIS(8, 12, 3, num_pilot_steps=10)

    def run(b):
        out = log_partition(HILLS, method, base=base, samples=samples, seed=0, backend=b)
        return numbers(out, *LOG_Z, "acceptance_rate")

    found = check(run)
    assert "reverse" in found and found["standard_error"] > 0.1


@pytest.mark.repeated(
    "test_ais_partition.py::test_a_small_boltzmann_machine_has_the_log_z_of_its_states"
)
def test_log_z_of_a_boltzmann_machine_agrees():
    rng = np.random.default_rng(0)
    machine = RBM(rng.normal(size=(5, 4)), rng.normal(size=5), rng.normal(size=4))
    found = check(
        lambda b: numbers(rbm_log_partition(machine, AIS(8, 12), seed=0, backend=b), *LOG_Z)
    )
    assert 0.01 < found["standard_error"] < 1.0


def test_paths_of_latents_off_the_real_line_agree():
    """A gamma's draw is no function of noise; the path's densities at given places are compared,
    with the Jacobian of its bijection, and where it puts a value on the real line."""
    x, u = waiting_data(4), np.random.default_rng(0).normal(size=(3, 4))

    def run(b):
        bound, params = Fitted(waiting, {}, shapes={"x": ()}).bind(b, {"x": x})
        path = latent_path(bound, "prior", "AIS")

        def found(u, rate, batch):
            base, delta = path.terms({"rate": u}, params, batch)
            place = path.enter({"rate": rate}, params, batch)["rate"]
            return {"base": base, "delta": delta, "place": place}

        out = b.compile(found)(b.asarray(u), b.asarray(np.exp(u)), {"x": b.asarray(x)})
        return {n: b.to_numpy(v) for n, v in out.items()}

    np.testing.assert_allclose(check(run)["place"], u, atol=1e-8)


def test_bits_per_dim_agree():
    one, other = tables("codes", np.float64)
    value, same = (
        bits_per_dim(
            -t["BiasCorrected(3)"]["nll"], 16, levels=2, dequantisation="none",
            standard_error=t["BiasCorrected(3)"]["standard_error"],
        )
        for t in (one, other)
    )  # fmt: skip
    names = ("value", "standard_error", "offset")
    agree(numbers(value, *names), numbers(same, *names), atol=1e-8, rtol=1e-9)
    assert value.value.min() > 0.1


def test_every_measure_is_compared():
    """A new one joins `CASES`, or has a test of its own."""
    elsewhere = {"LikelihoodRegret", "Invertibility", "AIS"}  # the last in a bracket, above
    known = {
        name
        for place in (inference, ood)
        for name, each in inspect.getmembers(place, inspect.isclass)
        if hasattr(each, "larger_is_stranger") and not issubclass(each, ELBO)
    }
    known |= {"ELBO"}  # whose descendants weigh the loss, and measure alike
    compared = {type(m).__name__ for make in CASES.values() for m in make()[2](np.float32)}
    assert known == compared | elsewhere
