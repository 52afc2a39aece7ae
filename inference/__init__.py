"""Algorithms: what learns parameters, infers latents and estimates likelihoods.

Scores of what is strange, other than the likelihood and its regret, are in `ood`.
"""

import importlib
from typing import Any

from probgen.engine.chain_watch import Until
from probgen.engine.target import Kernel, Sampler, Target, climb, require_density, step_sizes
from probgen.inference.learn.adversarial import Adversarial
from probgen.inference.learn.auto_guides import (
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from probgen.inference.learn.chain_starts import ChainStart, PersistentChains, ReplayBuffer
from probgen.inference.learn.denoising import Denoising
from probgen.inference.learn.e_steps import Enumerate
from probgen.inference.learn.em import EM
from probgen.inference.learn.em_distillation import EMDistillation
from probgen.inference.learn.energy_guard import EnergyGuard
from probgen.inference.learn.gaussian_step import ExactGaussian
from probgen.inference.learn.maximum_likelihood import MaximumLikelihood
from probgen.inference.learn.negative import ImportanceSampling
from probgen.inference.learn.regularizers import (
    EnergyMagnitude,
    GradientPenalty,
    Regularizer,
    SpectralPenalty,
)
from probgen.inference.learn.stepwise import StepwiseMAP
from probgen.inference.learn.svi import SVI
from probgen.inference.likelihood.ais import AIS
from probgen.inference.likelihood.bits import BitsPerDim, bits_per_dim
from probgen.inference.likelihood.bracket import Bracket, bdmc
from probgen.inference.likelihood.denoising_elbo import DenoisingELBO
from probgen.inference.likelihood.energy_likelihood import (
    EnergyLogLikelihood,
    UnnormalizedLogDensity,
)
from probgen.inference.likelihood.importance import IWAE
from probgen.inference.likelihood.invertibility import Invertibility
from probgen.inference.likelihood.partition import LogPartition, log_partition
from probgen.inference.likelihood.partition_methods import Quadrature
from probgen.inference.likelihood.partition_paths import Gaussian
from probgen.inference.likelihood.probability_flow import ProbabilityFlow
from probgen.inference.likelihood.psis import khat, khat_limit, psis
from probgen.inference.likelihood.unnormalized import UnnormalizedBound
from probgen.inference.objectives.collapse import CollapseReport
from probgen.inference.objectives.control import PI, IncrementalPI, RampSetPoint, StepSetPoint
from probgen.inference.objectives.controlled import CapacityELBO, ControlledELBO
from probgen.inference.objectives.elbo import ELBO, ImportanceWeightedELBO
from probgen.inference.objectives.kl_weights import CyclicalWarmup, LinearWarmup, SigmoidWarmup
from probgen.inference.regret.likelihood_regret import LikelihoodRegret
from probgen.inference.sample.ancestral import DDIM, Ancestral
from probgen.inference.sample.annealing_path import AnnealingPath
from probgen.inference.sample.attention_control import AttentionControl
from probgen.inference.sample.flow_solvers import DPMSolver, ProbabilityFlowODE
from probgen.inference.sample.gradient_flow import GradientFlow
from probgen.inference.sample.guide import Guide
from probgen.inference.sample.inpaint import Inpaint
from probgen.inference.sample.inversion import DDIMInverse, PivotalInversion
from probgen.inference.sample.langevin import Langevin
from probgen.inference.sample.mcmc import HMC, NUTS
from probgen.inference.sample.noise import Noise
from probgen.inference.sample.null_text import NullTextInversion
from probgen.inference.sample.reference_guided import ReferenceGuided

__all__ = [
    "AIS",
    "Adversarial",
    "Ancestral",
    "AnnealingPath",
    "AttentionControl",
    "AutoLaplaceApproximation",
    "AutoLowRankMultivariateNormal",
    "AutoMultivariateNormal",
    "AutoNormal",
    "BitsPerDim",
    "Bracket",
    "CapacityELBO",
    "ChainStart",
    "CollapseReport",
    "ControlledELBO",
    "DDIM",
    "DDIMInverse",
    "DPMSolver",
    "CyclicalWarmup",
    "Denoising",
    "DenoisingELBO",
    "ELBO",
    "EM",
    "EMDistillation",
    "EnergyGuard",
    "EnergyLogLikelihood",
    "EnergyMagnitude",
    "Enumerate",
    "ExactGaussian",
    "Gaussian",
    "GradientFlow",
    "GradientPenalty",
    "Guide",
    "HMC",
    "IWAE",
    "ImportanceSampling",
    "ImportanceWeightedELBO",
    "IncrementalPI",
    "Inpaint",
    "Langevin",
    "Invertibility",
    "Kernel",
    "LikelihoodRegret",
    "LinearWarmup",
    "LogPartition",
    "MaximumLikelihood",
    "NUTS",
    "Noise",
    "NullTextInversion",
    "PI",
    "PersistentChains",
    "PivotalInversion",
    "ProbabilityFlow",
    "ProbabilityFlowODE",
    "Quadrature",
    "RampSetPoint",
    "ReferenceGuided",
    "Regularizer",
    "ReplayBuffer",
    "StepwiseMAP",
    "SVI",
    "Sampler",
    "SigmoidWarmup",
    "SpectralPenalty",
    "StepSetPoint",
    "Target",
    "UnnormalizedBound",
    "Until",
    "UnnormalizedLogDensity",
    "bdmc",
    "bits_per_dim",
    "climb",
    "khat",
    "khat_limit",
    "log_partition",
    "psis",
    "require_density",
    "step_sizes",
]


def __getattr__(name: str) -> Any:
    if name == "ood":
        return importlib.import_module("probgen.inference.ood")
    raise AttributeError(f"module 'probgen.inference' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "ood"]
