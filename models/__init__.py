"""Families of models, one a file: what is declared, in the order of its generative story."""

from probgen.models import likelihoods
from probgen.models.diffusion import Diffusion
from probgen.models.diffusion_map import DiffusionMap
from probgen.models.ebm import EBM
from probgen.models.flow import Affine, Coupling, Flow, MaskedAutoregressive, Spline
from probgen.models.generator import Generator
from probgen.models.gradient_flow import GradientFlowGenerator
from probgen.models.implicit_diffusion import ImplicitDiffusion
from probgen.models.inverse_problem import InverseProblem
from probgen.models.mixture import GaussianMixture
from probgen.models.noise_schedule import NoiseSchedule
from probgen.models.one_step import OneStep
from probgen.models.personalised import personalised
from probgen.models.subject import Subject
from probgen.models.tilted import Tilted
from probgen.models.vae import VAE

__all__ = [
    "EBM", "VAE", "Affine", "Coupling", "Diffusion", "DiffusionMap", "Flow", "GaussianMixture",
    "Generator", "GradientFlowGenerator", "ImplicitDiffusion", "InverseProblem",
    "MaskedAutoregressive", "NoiseSchedule", "OneStep", "Spline", "Subject", "Tilted",
    "likelihoods", "personalised",
]  # fmt: skip
