"""Algorithms: what learns parameters, infers latents and estimates likelihoods.

Scores of what is strange, other than the likelihood and its regret, are in `scores`.
"""

import importlib
from typing import Any

from probgen.inference.ais import AIS
from probgen.inference.bits import BitsPerDim, bits_per_dim
from probgen.inference.bracket import Bracket, bdmc
from probgen.inference.collapse import CollapseReport
from probgen.inference.control import PI, IncrementalPI, RampSetPoint, StepSetPoint
from probgen.inference.controlled import CapacityELBO, ControlledELBO
from probgen.inference.denoising import Denoising
from probgen.inference.denoising_elbo import DenoisingELBO
from probgen.inference.elbo import ELBO, ImportanceWeightedELBO
from probgen.inference.flow_likelihood import ProbabilityFlow
from probgen.inference.kernels import Langevin
from probgen.inference.likelihood import IWAE
from probgen.inference.maximum_likelihood import MaximumLikelihood
from probgen.inference.mcmc import HMC, NUTS
from probgen.inference.partition import (
    EnergyLogLikelihood,
    Gaussian,
    LogPartition,
    UnnormalizedLogDensity,
    log_partition,
)
from probgen.inference.psis import khat, khat_limit, psis
from probgen.inference.rbm import RBM, rbm_log_partition
from probgen.inference.regret import LikelihoodRegret
from probgen.inference.svi import SVI
from probgen.inference.weights import CyclicalWarmup, LinearWarmup, SigmoidWarmup

__all__ = [
    "AIS",
    "BitsPerDim",
    "Bracket",
    "CapacityELBO",
    "CollapseReport",
    "ControlledELBO",
    "CyclicalWarmup",
    "Denoising",
    "DenoisingELBO",
    "ELBO",
    "EnergyLogLikelihood",
    "Gaussian",
    "HMC",
    "IWAE",
    "ImportanceWeightedELBO",
    "IncrementalPI",
    "Langevin",
    "LikelihoodRegret",
    "LinearWarmup",
    "LogPartition",
    "MaximumLikelihood",
    "NUTS",
    "PI",
    "ProbabilityFlow",
    "RBM",
    "RampSetPoint",
    "SVI",
    "SigmoidWarmup",
    "StepSetPoint",
    "UnnormalizedLogDensity",
    "bdmc",
    "bits_per_dim",
    "khat",
    "khat_limit",
    "log_partition",
    "psis",
    "rbm_log_partition",
]


def __getattr__(name: str) -> Any:
    if name == "scores":
        return importlib.import_module("probgen.inference.scores")
    raise AttributeError(f"module 'probgen.inference' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "scores"]
