"""Algorithms: what learns parameters, infers latents and estimates likelihoods."""

from probgen.inference.collapse import CollapseReport
from probgen.inference.control import (
    PI,
    CapacityELBO,
    ControlledELBO,
    IncrementalPI,
    RampSetPoint,
    StepSetPoint,
)
from probgen.inference.elbo import ELBO, ImportanceWeightedELBO
from probgen.inference.svi import SVI
from probgen.inference.weights import CyclicalWarmup, LinearWarmup, SigmoidWarmup

__all__ = [
    "ELBO",
    "PI",
    "SVI",
    "CapacityELBO",
    "CollapseReport",
    "ControlledELBO",
    "CyclicalWarmup",
    "ImportanceWeightedELBO",
    "IncrementalPI",
    "LinearWarmup",
    "RampSetPoint",
    "SigmoidWarmup",
    "StepSetPoint",
]
