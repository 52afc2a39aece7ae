"""Doors to other libraries.

to_pyro, to_numpyro, from_pyro, from_numpyro, params_of     programs: `native`
from_diffusers, sampler_of, to_diffusers                    diffusion models: `diffusers`
"""

from probgen.interop.diffusers import from_diffusers, sampler_of, to_diffusers
from probgen.interop.native import (
    NativeModel,
    from_numpyro,
    from_pyro,
    params_of,
    to_numpyro,
    to_pyro,
)

__all__ = [
    "NativeModel", "from_diffusers", "from_numpyro", "from_pyro", "params_of", "sampler_of",
    "to_diffusers", "to_numpyro", "to_pyro",
]  # fmt: skip
