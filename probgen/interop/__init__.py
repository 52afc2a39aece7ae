"""Doors to other libraries.

to_pyro, to_numpyro, from_pyro, from_numpyro, params_of     programs: `native`
from_diffusers, sampler_of, to_diffusers                    diffusion models: `diffusers`
sam_segmenter, blip_captioner, dino_features, clip_features  functions of pictures, by networks of
                                                            transformers: a file each
efficientnet_lite0                                          a declared net with published weights
"""

from probgen.interop.captioner import blip_captioner
from probgen.interop.diffusers import from_diffusers, sampler_of, to_diffusers
from probgen.interop.efficientnet import efficientnet_lite0
from probgen.interop.image_features import ClipFeatures, clip_features, dino_features
from probgen.interop.native import (
    NativeModel,
    from_numpyro,
    from_pyro,
    params_of,
    to_numpyro,
    to_pyro,
)
from probgen.interop.segmenter import sam_segmenter

__all__ = [
    "ClipFeatures", "NativeModel", "blip_captioner", "clip_features", "dino_features",
    "efficientnet_lite0", "from_diffusers", "from_numpyro", "from_pyro", "params_of",
    "sam_segmenter", "sampler_of",
    "to_diffusers", "to_numpyro", "to_pyro",
]  # fmt: skip
