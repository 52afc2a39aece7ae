"""For `test_declarations`: valid instances, and what they rightly accept."""

import numpy as np

import probgen as pg
from probgen import dist, evaluation, inference, models, nets, optim
from probgen.evaluation import page
from probgen.inference import ood
from probgen.models import likelihoods
from studies.ddgan import digits as ddgan_digits
from studies.ddgan import study as ddgan
from studies.likelihood_regret import study
from studies.rbm import rbm
from studies.self_adversarial_ebm import digits as self_adversarial_digits
from studies.self_adversarial_ebm import study as self_adversarial

NORMAL = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
NET = nets.MLP((3,), out=2)
ENERGY = nets.MLPEnergy((3,))
ENCODER = nets.MLP((3,), out=2, heads=("loc", "log_scale"))
VAE = models.VAE(NORMAL, NET, dist.Bernoulli, ENCODER)
FITTED = pg.Fitted(VAE, {})
_CONTEXT, _DENOISER = nets.ContextEmbedding((3, 2)), nets.MLPDenoiser(2, (3,))
CONDITIONAL = pg.Fitted(
    models.Diffusion(_DENOISER, (2,), condition=_CONTEXT),
    {
        "denoiser": _DENOISER.init(np.random.default_rng(0), (2,), (), (3, 2)),
        "condition": _CONTEXT.init(np.random.default_rng(0), (3, 2)),
    },
)
X = np.zeros((4, 2), np.float32)
PICTURES = np.zeros((2, 3, 3, 1))
RBM_PARTS = (np.zeros((2, 3)), np.zeros(2), np.zeros(3))
LOG_Z = inference.LogPartition(
    estimate=0.0, standard_error=0.1, method=inference.AIS(), start="a Gaussian", num_weights=16,
    lower_bound=-0.2,
)  # fmt: skip


class Module:
    """Stands for a module of another library."""

    init = apply = named_parameters = named_buffers = __call__ = batch_decode = lambda *_: None


REGISTRY = [
    # nets
    nets.Dense(2), nets.Conv(2), nets.ConvTranspose(2), nets.Upsample(2), nets.Embedding(3, 2),
    nets.Parameter((2,)), nets.Reshape((-1,)), nets.TimeEmbedding(8), nets.GroupNorm(2),
    nets.LayerNorm(), nets.SpectralNorm(nets.Dense(2)), nets.WeightNorm(nets.Dense(2)),
    nets.SelfAttention(), nets.CrossAttention(), nets.AttentionBlock(), nets.TransformerLayer(),
    nets.MapReplacement({}, np.array([True])), nets.TextEncoder(("word",)), nets.PatchTransformer(),
    nets.LowRank(NET),
    nets.Sequential((nets.Dense(2), "silu")),
    nets.MADE(), nets.LocScale(),
    nets.ResidualBlock(4), nets.MLP(), nets.MLPEnergy(), nets.MLPDenoiser(2), nets.ConvEncoder(),
    nets.ClassEmbedding(3, 2), nets.ContextEmbedding((2,)),
    nets.SubjectTokens(nets.ContextEmbedding((3, 2)), 2),
    nets.ConvDecoder(), nets.ConvEnergy(), nets.UNet(),
    nets.EfficientNetLite(), nets.Unshuffled(NET),
    nets.LatentDenoiser(2), nets.LatentUNet(), nets.LatentBlock(4), nets.LatentGroupNorm(),
    nets.TimedDiscriminator(), nets.ConvDiscriminator(),
    nets.ResidualEnergy(), nets.SumOfEnergies((ENERGY, ENERGY)), nets.ScaledEnergy(ENERGY, 0.5),
    nets.adapters.TorchNet(Module()), nets.adapters.FlaxNet(Module()),
    nets.adapters.NnxNet(Module()), nets.adapters.EquinoxNet(Module(), 1),
    nets.DiffusersUNet(Module()), nets.GivenContext(),
    nets.DiffusersTextEncoder(Module(), Module()),
    nets.DiffusersEncoder(Module()), nets.DiffusersDecoder(Module()),
    # geometry of pictures
    pg.data.Similarity(),
    # optimisers and their schedules
    optim.Schedule(), pg.CosineDecay(0.1, 10), pg.ExponentialDecay(0.1, 0.5, 10),
    pg.LinearWarmup(0.1, 10), optim.OptimizerDeclaration(), pg.Adam(), pg.AdamW(), pg.SGD(),
    pg.Groups({"decoder": pg.Adam()}),
    # models, and parts of distributions
    dist.BijectTo("simplex"),
    models.NoiseSchedule(), models.Diffusion(NET, (2,)),
    models.DiffusionMap(models.Diffusion(NET, (2,))), models.EBM(ENERGY, NORMAL),
    models.InverseProblem(models.Diffusion(NET, (2,)), len),
    models.Generator(NORMAL, NET, dist.Bernoulli), models.GaussianMixture(2, 2),
    models.Flow(2), models.Coupling(), models.MaskedAutoregressive(), models.flow.layers.Layer(),
    models.Affine(), models.Spline(), models.flow.maps.ElementMap(),
    models.Tilted(models.EBM(ENERGY, NORMAL), ENERGY),
    models.GradientFlowGenerator(ENERGY, NORMAL), models.ImplicitDiffusion(NET, (2,)),
    models.OneStep(models.Diffusion(NET, (2,))), models.Subject(CONDITIONAL, 2),
    VAE,
    likelihoods.Likelihood(), likelihoods.Bernoulli(), likelihoods.Normal(),
    likelihoods.DiscretizedLogistic(), likelihoods.Categorical(), likelihoods.Implicit(),
    # losses, their weights and controllers
    inference.objectives.kl_weights.KLWeight(), inference.LinearWarmup(10),
    inference.CyclicalWarmup(10), inference.SigmoidWarmup(10),
    inference.objectives.control.SetPoint(), inference.StepSetPoint(),
    inference.RampSetPoint(), inference.PI(), inference.IncrementalPI(), inference.ELBO(),
    inference.ImportanceWeightedELBO(), inference.ControlledELBO(), inference.CapacityELBO(),
    # learners, chains and methods
    pg.GradientLearner(len), inference.SVI(inference.ELBO()), inference.Denoising(),
    inference.EMDistillation(FITTED), inference.StepwiseMAP(FITTED),
    inference.EM(inference.Langevin(0.1)), inference.Enumerate(), inference.ExactGaussian(),
    inference.AutoNormal(), inference.AutoMultivariateNormal(),
    inference.AutoLowRankMultivariateNormal(), inference.AutoLaplaceApproximation(),
    inference.MaximumLikelihood(inference.Langevin(0.1)), inference.Langevin(0.1),
    inference.Adversarial(NET),
    inference.ImportanceSampling(), inference.ChainStart(), inference.PersistentChains(),
    inference.ReplayBuffer(), inference.Regularizer(), inference.EnergyMagnitude(),
    inference.GradientPenalty(), inference.SpectralPenalty(), inference.EnergyGuard(),
    inference.Until(), inference.NUTS(), inference.HMC(),
    inference.sample.hamiltonian_method.HamiltonianMethod(),
    inference.Ancestral(), inference.DDIM(), inference.DDIMInverse(), inference.DPMSolver(),
    inference.PivotalInversion(), inference.NullTextInversion(),
    inference.AttentionControl(inference.DDIM(), np.array([True, False])),
    inference.ReferenceGuided(inference.DDIM(guidance_scale=2.0), X, X == 0),
    inference.ProbabilityFlowODE(), inference.Inpaint(inference.DDIM(), X > 0, X),
    inference.GradientFlow(0.1), inference.Noise(), inference.AnnealingPath(0.5),
    inference.AIS().settings, rbm.RBM(*RBM_PARTS), inference.Gaussian(0.0, 1.0),
    # measures
    inference.AIS(), inference.Quadrature(), inference.IWAE(),
    inference.DenoisingELBO(), inference.ProbabilityFlow(),
    inference.LikelihoodRegret(), inference.UnnormalizedLogDensity(),
    inference.UnnormalizedBound(inference.IWAE()), inference.Invertibility(),
    inference.EnergyLogLikelihood(LOG_Z),
    # scores
    ood.BiasCorrected(X), ood.CombinedTest(X), ood.InputComplexity(), ood.DoSE(X),
    ood.ErrorReduction(), ood.GradientNorm(X), ood.HierarchyRatio(), ood.LPath(X),
    ood.Mahalanobis(X), ood.NegativeLogLikelihood(), ood.ReconstructionError(),
    ood.KLTerm(), ood.LikelihoodRatio(FITTED), ood.Resultant(X), ood.Typicality(X),
    ood.WAIC([FITTED, FITTED]), ood.error_reduction.Restorer(VAE),
    ood.bias_corrected.ValueLogProbs("x"), ood.bias_corrected.BestNormal("x"),
    ood.gradient.LayerNorms(), ood.lpath.PathNorms(), ood.moments.GuideMoments(),
    inference.likelihood.guide_terms.GuideTerms(2),
    # what evaluations are made from
    FITTED, evaluation.demo.Settings(), study.Settings(), self_adversarial.Settings(),
    self_adversarial_digits.Settings(), ddgan.Settings(), ddgan_digits.Settings(),
    evaluation.detection.Metric(), inference.Guide(),
    evaluation.posteriors.FitThenDraw(inference.SVI(inference.ELBO())),
    evaluation.samples.features.Features("raw", np.asarray),
    # what pages are made of
    page.Paragraph("text"), page.Folded("line", ("text",)), page.Number("mean", 1.0),
    page.Numbers(()), page.Table(("head",), ()), page.Figure("<svg/>", "caption", "words"),
    page.Formula("x"), page.Code("text"), page.Row("label", PICTURES),
    page.ImageRows((page.Row("label", PICTURES),), "caption", "words"),
]  # fmt: skip

# What is no mistake, by annotation as it is written; of "A | B" what either takes. All else must be
# refused.
NUMBERS = {"negative", "negative fraction", "fraction", "zero", "huge count"}  # a float may be any
ABOVE = {"fraction", "huge count"}  # a positive number may be large, and need not be whole
RIGHTLY = {
    "None": {"none"},
    "bool": {"true"},
    "float": NUMBERS,
    "Positive": ABOVE,
    "NonNegative": ABOVE | {"zero"},
    "StepSize": ABOVE,
    "NoiseSize": ABOVE | {"zero"},
    "Diagonal": ABOVE | {"array"},
    "BelowOne": {"zero"},
    "Size": {"zero"},
    "CountOrZero": {"zero"},
    "Axes": {"zero"},
    "Share": {"zero"},
    "str": {"text"},
    "Limit": {"fraction", "huge count", "huge", "infinity"},  # an end of a range, which may be open
    "Annotated[int, between(0, 10 ** 7)]": {"zero"},
    "Annotated[float, within(0, 2, '[)')]": {"zero"},
    "Annotated[float, within(-100, 100)]": NUMBERS - {"huge count"},
    "tuple[Annotated[tuple[Text, ...], not_empty], ...]": {"empty"},
    "Mapping[str, Any]": {"dict"},
    "dict[str, Any]": {"dict"},
    "Mapping": {"dict"},  # starting values by site, which only a model can judge
    "ReferenceData": {"array"},
    "np.ndarray": {"array"},
    "Annotated[Any, Rule('an array of numbers', _is_numbers, alone=True)]": {"array"},
    'Annotated[np.ndarray, Rule("above 0", lambda v: (v > 0).all())]': {"array"},
    "Text": {"text"},
    # No entries: one affine map, the shape of a number, no attention.
    "tuple[Width, ...]": {"empty"},
    "tuple[Size, ...]": {"empty"},
    "tuple[Axes, ...]": {"empty"},
    "Shape": {"empty"},
    "tuple[Regularizer, ...]": {"empty"},
    "SomeNames": {"none"},
    "tuple[Annotated[int, between(-1, 10 ** 6)], ...]": {"empty"},
    "Heads": {"none"},
    "Names": {"none", "empty"},
    "Annotated[tuple[Text, ...], distinct]": {"empty"},
    "Inputs": {"none", "dict"},
    "PathLike": {"text"},
    "Sequence[str]": {"empty"},
    "Sequence[Number]": {"empty"},
    "Sequence[Sequence[Cell]]": {"empty"},
    "Sequence[Any]": {"empty", "list of none"},
    "Sequence[SetVerdict]": {"empty"},
    "Sequence[DetectionTable]": {"empty"},
    "Measures": {"dict"},
    "Ways": {"true"},
    "Distinct": {"none"},
    "Moment": NUMBERS | {"array"},
    "Scales": {"array"},
    "mode_counting.Scales": {"array"},
    # NaN and infinity are shown as what they are.
    "Real": NUMBERS | {"huge", "infinity", "nan", "beyond floats"},
    "EventAxes": {"none", "zero", "empty"},
}
# By (class, field): what several fields say together.
TOGETHER = {
    ("SGD", "nesterov"): set(),  # needs momentum
    ("Langevin", "adapt_step_size"): set(),  # needs metropolis
    ("VAE", "encoder"): set(),  # a Generator's place in the order of arguments
    # The loss sets the weight itself.
    **{
        (loss, field): allowed
        for loss in ("ControlledELBO", "CapacityELBO")
        for field, allowed in (("kl_weight", set()), ("free_bits", {"zero"}))
    },
    # Beta starts inside its range, from beta_min on, at 50 for the incremental form.
    ("PI", "initial_beta"): (NUMBERS - {"negative", "negative fraction"}) | {"none"},
    ("PI", "beta_min"): NUMBERS,
    ("IncrementalPI", "beta_min"): NUMBERS - {"huge count"},
    ("IncrementalPI", "beta_max"): {"huge count", "huge", "infinity"},
    ("IncrementalPI", "initial_beta"): {"fraction", "huge count"},
    # The larger end of a range is 20, or 80.
    ("NoiseSchedule", "beta_min"): {"fraction"},
    ("NoiseSchedule", "sigma_min"): {"fraction"},
    ("Gaussian", "scale"): ABOVE | {"array"},
    ("Subject", "anchor"): set(),  # the base's condition is no text
    ("NullTextInversion", "learning_rate_decay"): {"zero"},  # which the last of 50 steps bears
    ("InputComplexity", "codecs"): set(),
    ("ErrorReduction", "codecs"): set(),
    ("MapReplacement", "columns_kept"): set(),  # booleans on one axis
    ("AttentionControl", "columns_kept"): set(),
    ("Mahalanobis", "labels"): {"none"},  # one a datum
    ("GradientNorm", "reference"): {"array"},  # which its method needs
    **{("RBM", part): set() for part in ("weight", "visible_bias", "hidden_bias")},  # sizes fit
}


def rightly(owner, field):
    """The labels of what this field may be; None for one that may be anything."""
    key = (type(owner).__name__, field.name)
    return TOGETHER[key] if key in TOGETHER else right_of(field.type)


def right_of(annotation):
    """The labels of what an annotation, as it is written, lets through; None for anything."""
    if annotation == "Any":
        return None
    parts = str(annotation).split(" | ")
    return set().union(*(RIGHTLY.get(part, set()) for part in parts))


# Frozen dataclasses that are no declarations: what functions return and others read, and data,
# which the rules of data judge.
RESULTS = {
    "Arrow", "BatchTypicality", "BetweenRuns", "BitsPerDim", "Bound", "Bracket", "ChainReport",
    "ChanceTest", "CollapseReport", "Comparison", "Coverage", "Curve", "Deferred", "Density2D",
    "Difference", "Detection", "DetectionTable", "Diagnosis", "Estimate", "Family",
    "Geweke", "Graph", "Guided", "Images", "Loaded", "LogPartition", "GatheredTables", "ModeCount",
    "NativeModel", "Need", "Node", "OntoMatrix", "Posterior", "PrCurve", "PredictiveCheck",
    "RandomStep", "Record", "Results", "RocBand", "RocCurve", "SBC", "SampleQuality", "Section",
    "SetVerdict", "Shapes", "Symmetry", "VSBC", "Verdict", "MethodTable", "Paired",
    "Fidelity", "Judge", "TextBase", "Tuned", "Tuning",
    "Drawing", "Sampling", "Scoring",
    "Divergences", "ManyPosteriors", "Mass", "MethodResult", "Moments",
    "PosteriorComparison", "PosteriorDifference",
}  # fmt: skip

# ---- functions ----------------------------------------------------------------------------------

TABLE = pg.Evaluation.from_values(
    {"m": {"estimate": np.arange(4.0)}}, units={"m": "nats"}, larger_is_stranger={"m": True}
)
FOUND = evaluation.detection.compare({"m": (np.arange(9.0), {"s": np.arange(5.0)})},
                                     num_resamples=100, show_progress=False)  # fmt: skip
TABLES = page.GatheredTables("x", {"x": TABLE}, {"m": "m"}, {}, None)
QUALITY = evaluation.samples.SampleQuality((), "raw", 0, 0, None, 0, {})
ONE = evaluation.samples.Estimate("one", 1.0, 0.1, 2, 2)
MODES = evaluation.samples.ModeCount(np.ones(2), np.ones(2) / 2, ONE, ONE, ONE, None, ("a", "b"))
PLACED = evaluation.detection.delong(np.arange(4.0), np.arange(5.0))
RANKED = evaluation.calibration.SBC.from_ranks(("a",), np.arange(50)[:, None] % 10, 9)
POINTS = {"real": X, "fake": X}
SCORES = {"in_scores": np.arange(4.0), "out_scores": np.arange(5.0)}
MOMENTS = {"mean1": 0.0, "cov1": 1.0, "mean2": 0.0, "cov2": 1.0}
SIMULATED = {"prior": len, "simulate": len}

# By room, each public function with what it cannot be called without.
FUNCTIONS = {
    "samples": {
        "sample_quality": {**POINTS, "seed": 0}, "as_features": {"fn": len},
        "pca_features": {"reference": X},
        "digit_classifier": {}, "efficientnet_features": {},
        "frechet_distance": POINTS, "frechet_from_moments": MOMENTS,
        "frechet_bias": {"covariance": 1.0, "n_real": 2, "n_fake": 2}, "kid": POINTS,
        "gaussian_mmd2": {**MOMENTS, "bandwidth": 1.0}, "sliced_wasserstein": POINTS,
        "prdc": POINTS, "expected_coverage": {"n_real": 20, "n_fake": 20},
        "count_modes": {"samples": X, "centres": X, "sd": 1.0},
        "count_classes": {"samples": X, "classifier": np.asarray}, "mmd_test": POINTS,
        "c2st": POINTS,
        "memorisation": {"fake": X, "train": X, "test": X}, "mode_figure": {"modes": MODES},
        "quality_figure": {"quality": QUALITY},
    },
    "page": {
        "count_distinct": {"values": X}, "detection_blocks": {"gathered": TABLES},
        "gather": {"in_table": TABLE}, "histogram_blocks": {"gathered": TABLES},
        "image_blocks": {"gathered": TABLES}, "likelihood_blocks": {"gathered": TABLES},
        "limits": {"table": FOUND}, "merged": {"folders": ["none"]},
        "report": {"fitted": FITTED, "in_table": TABLE, "path": "page.html"},
        "run": {"run_folder": "none", "data_word": "digits"}, "sections": {"gathered": TABLES},
        "split_table": {"table": TABLE, "sizes": {"x": 4}, "measures": ()},
        "summary": {"found": page.verdicts(FOUND)},
        "verdict_blocks": {"gathered": TABLES, "found": page.verdicts(FOUND)},
        "verdicts": {"table": FOUND}, "with_error": {"value": 1.0, "error": 0.1},
    },
    "detection": {
        "compare": {"measures": {"m": (X[:, 0], {"s": X[:, 1]})}}, "detection": SCORES,
        "between_runs": {"tables": (FOUND, FOUND)}, "auroc": SCORES, "average_precision": SCORES,
        "fpr_at_tpr": SCORES, "roc_curve": SCORES, "pr_curve": SCORES, "roc_band": SCORES,
        "bootstrap_interval": SCORES, "holm": {"p_values": [0.1]}, "delong": SCORES,
        "delong_test": {"first": PLACED, "second": PLACED}, "as_scores": SCORES,
        "roc_figure": {"measures": {"m": (X[:, 0], {"s": X[:, 1]})}},
        "histogram_figure": {"in_scores": X[:, 0], "out_scores": {"s": X[:, 0]}},
        "auroc_figure": {"table": FOUND},
    },
    "calibration": {
        "chi_square": {"values": np.arange(50) % 10, "num_draws": 9},
        "diagnose": {"draws": np.zeros((2, 50))}, "divergences": {"draws": {}},
        "ecdf_test": {"values": np.arange(50) % 10, "num_draws": 9},
        "envelope": {"num_simulations": 50, "num_draws": 9}, "geweke": {**SIMULATED, "step": len},
        "geweke_model": {"model": VAE, "method": inference.HMC()},
        "interval_coverage": {"draws": X, "truth": X[:, 0]},
        "posterior_predictive": {"model": VAE, "draws": {}, "data": X},
        "predictive_check": {"model": VAE, "draws": {}, "data": X},
        "ranks": {"draws": X, "truth": X[:, 0]}, "sbc": {"model": VAE, "method": inference.NUTS()},
        "sbc_from": {**SIMULATED, "posterior_draws": len},
        "symmetry": {"probabilities": np.linspace(0, 1, 30)}, "vsbc": {"result": RANKED},
    },
    "posteriors": {
        "compare": {"model": VAE, "data": X, "methods": {"guide": inference.Guide()}},
        "moments": {"draws": {"a": np.zeros((2, 50))}},
    },
}  # fmt: skip
