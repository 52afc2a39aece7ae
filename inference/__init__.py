"""Algorithms: what learns parameters, infers latents and estimates likelihoods."""

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
from probgen.inference.regret import LikelihoodRegret
from probgen.inference.svi import SVI
from probgen.inference.weights import CyclicalWarmup, LinearWarmup, SigmoidWarmup

__all__ = [
    "ELBO",
    "HMC",
    "IWAE",
    "PI",
    "SVI",
    "CapacityELBO",
    "CollapseReport",
    "ControlledELBO",
    "CyclicalWarmup",
    "Denoising",
    "DenoisingELBO",
    "ImportanceWeightedELBO",
    "IncrementalPI",
    "Langevin",
    "LikelihoodRegret",
    "LinearWarmup",
    "MaximumLikelihood",
    "NUTS",
    "ProbabilityFlow",
    "RampSetPoint",
    "SigmoidWarmup",
    "StepSetPoint",
]
