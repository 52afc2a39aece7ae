"""For `test_declarations`: valid instances, and what they rightly accept."""

import probgen as pg
from probgen import dist, models, nets, optim
from probgen.models import likelihoods

NORMAL = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
NET = nets.MLP((3,), out=2)
ENERGY = nets.MLPEnergy((3,))
ENCODER = nets.MLP((3,), out=2, heads=("loc", "log_scale"))


class Module:
    """Stands for a module of another library."""

    init = apply = named_parameters = named_buffers = __call__ = lambda *_: None


REGISTRY = [
    # nets
    nets.Dense(2), nets.Conv(2), nets.ConvTranspose(2), nets.Upsample(2), nets.Embedding(3, 2),
    nets.Parameter((2,)), nets.Reshape((-1,)), nets.TimeEmbedding(8), nets.GroupNorm(2),
    nets.LayerNorm(), nets.SpectralNorm(nets.Dense(2)), nets.SelfAttention(),
    nets.CrossAttention(), nets.AttentionBlock(), nets.Sequential((nets.Dense(2), "silu")),
    nets.ResidualBlock(4), nets.MLP(), nets.MLPEnergy(), nets.MLPDenoiser(2), nets.ConvEncoder(),
    nets.ConvDecoder(), nets.ConvEnergy(), nets.UNet(),
    nets.adapters.TorchNet(Module()), nets.adapters.FlaxNet(Module()),
    nets.adapters.EquinoxNet(Module(), 1),
    # optimisers and their schedules
    optim.Schedule(), pg.CosineDecay(0.1, 10), pg.ExponentialDecay(0.1, 0.5, 10),
    pg.LinearWarmup(0.1, 10), optim.OptimizerDeclaration(), pg.Adam(), pg.AdamW(), pg.SGD(),
    # models
    models.NoiseSchedule(), models.Diffusion(NET, (2,)), models.EBM(ENERGY, NORMAL),
    models.Generator(NORMAL, NET, dist.Bernoulli),
    models.Tilted(models.EBM(ENERGY, NORMAL), ENERGY),
    models.VAE(NORMAL, NET, dist.Bernoulli, ENCODER),
    likelihoods.Likelihood(), likelihoods.Bernoulli(), likelihoods.Normal(),
    likelihoods.DiscretizedLogistic(), likelihoods.Categorical(),
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
    "BelowOne": {"zero"},
    "Size": {"zero"},
    "CountOrZero": {"zero"},
    "Axes": {"zero"},
    "Text": {"text"},
    # No entries: one affine map, the shape of a number, no attention.
    "tuple[Width, ...]": {"empty"},
    "tuple[Size, ...]": {"empty"},
    "tuple[Axes, ...]": {"empty"},
    "Shape": {"empty"},
    "tuple[Annotated[int, between(-1, 10 ** 6)], ...]": {"empty"},
    "Heads": {"none"},
    "EventAxes": {"none", "zero", "empty"},
}
# By (class, field): what several fields say together.
TOGETHER = {
    ("SGD", "nesterov"): set(),  # needs momentum
    ("VAE", "encoder"): set(),  # a Generator's place in the order of arguments
}


def rightly(owner, field):
    """The labels of what this field may be."""
    key = (type(owner).__name__, field.name)
    parts = str(field.type).split(" | ")
    return TOGETHER.get(key, set().union(*(RIGHTLY.get(part, set()) for part in parts)))
