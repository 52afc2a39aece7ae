"""Networks as declarations: frozen options with `init(key, *shapes)` and `apply(params, *inputs)`.

    net = nets.MLP(hidden=(256, 256), out=16, heads=("loc", "log_scale"))
    params = net.init(numpy.random.default_rng(0), (28, 28, 1))
    net.apply(params, images)                       # torch or JAX, whichever the images are

One declaration and one parameter layout run on both backends; importing this loads neither. See
`probgen/nets/base.py` for the protocol and the initial weights.
"""

from probgen.nets.adapters import from_equinox, from_flax, from_torch
from probgen.nets.attention import CrossAttention, SelfAttention
from probgen.nets.attention_maps import MapReplacement
from probgen.nets.base import ACTIVATIONS, Net, activation, count, out_shape
from probgen.nets.blocks import ResidualBlock, Sequential
from probgen.nets.conditions import ClassEmbedding, ContextEmbedding
from probgen.nets.conv import ConvDecoder, ConvEncoder, ConvEnergy
from probgen.nets.conv_discriminator import ConvDiscriminator
from probgen.nets.denoiser import MLPDenoiser
from probgen.nets.diffusers_text import DiffusersTextEncoder
from probgen.nets.diffusers_unet import DiffusersUNet, GivenContext
from probgen.nets.diffusers_vae import DiffusersDecoder, DiffusersEncoder
from probgen.nets.efficientnet import EfficientNetLite
from probgen.nets.energies import ScaledEnergy, SumOfEnergies
from probgen.nets.latent_blocks import LatentBlock, LatentGroupNorm
from probgen.nets.latent_denoiser import LatentDenoiser, TimedDiscriminator
from probgen.nets.latent_unet import LatentUNet
from probgen.nets.layers import (
    Conv,
    ConvTranspose,
    Dense,
    Embedding,
    Parameter,
    Reshape,
    Upsample,
)
from probgen.nets.loc_scale import LocScale
from probgen.nets.low_rank import LowRank
from probgen.nets.made import MADE
from probgen.nets.mlp import MLP, MLPEnergy
from probgen.nets.norms import GroupNorm, LayerNorm, SpectralNorm, power_iterate
from probgen.nets.patch_transformer import PatchTransformer
from probgen.nets.residual_energy import ResidualEnergy
from probgen.nets.subject import SubjectTokens
from probgen.nets.text_encoder import TextEncoder
from probgen.nets.time import TimeEmbedding
from probgen.nets.transformer import TransformerLayer
from probgen.nets.unet import AttentionBlock, UNet
from probgen.nets.unshuffled import Unshuffled
from probgen.nets.weight_norm import WeightNorm

__all__ = [
    # the protocol
    "Net", "count", "out_shape", "activation", "ACTIVATIONS",
    # layers
    "Dense", "Conv", "ConvTranspose", "Upsample", "Reshape", "Embedding", "Parameter",
    "LocScale", "TimeEmbedding", "GroupNorm", "LayerNorm", "SpectralNorm", "WeightNorm",
    "power_iterate",
    "SelfAttention", "CrossAttention", "AttentionBlock", "MapReplacement", "TransformerLayer",
    # compositions
    "Sequential", "ResidualBlock", "MLP", "MADE", "ConvEncoder", "ConvDecoder", "UNet",
    "PatchTransformer", "LowRank", "EfficientNetLite", "Unshuffled",
    "MLPDenoiser", "MLPEnergy", "ConvEnergy", "ResidualEnergy", "SumOfEnergies",
    "ScaledEnergy", "ClassEmbedding", "ContextEmbedding", "TextEncoder", "SubjectTokens",
    "LatentDenoiser", "LatentUNet", "LatentBlock", "LatentGroupNorm",
    "TimedDiscriminator", "ConvDiscriminator",
    # bring your own
    "from_torch", "from_flax", "from_equinox", "DiffusersUNet", "GivenContext",
    "DiffusersTextEncoder", "DiffusersEncoder", "DiffusersDecoder",
]  # fmt: skip
