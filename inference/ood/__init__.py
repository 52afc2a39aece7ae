"""Scores that tell strange data from ordinary ones, as measures for `pg.evaluate`.

Each says in its docstring what it assumes and where the literature found it to fail. Estimates are
turned so that larger means stranger. How well a score separates two sets is not here: see
`probgen.evaluation.detection`.
"""

from probgen.inference.ood.bias_corrected import BiasCorrected
from probgen.inference.ood.codecs import available_codecs
from probgen.inference.ood.combined import CombinedTest
from probgen.inference.ood.complexity import InputComplexity
from probgen.inference.ood.dose import DoSE
from probgen.inference.ood.elbo_terms import KLTerm, NegativeLogLikelihood, ReconstructionError
from probgen.inference.ood.error_reduction import ErrorReduction, Restorer, downsampled
from probgen.inference.ood.gradient import GradientNorm, layer_names
from probgen.inference.ood.hierarchy import HierarchyRatio
from probgen.inference.ood.lpath import LPath
from probgen.inference.ood.mahalanobis import Mahalanobis
from probgen.inference.ood.ratio import LikelihoodRatio, fit_background, perturbed
from probgen.inference.ood.reference import Reference
from probgen.inference.ood.resultant import Resultant
from probgen.inference.ood.typicality import BatchTypicality, Typicality, batch_typicality
from probgen.inference.ood.waic import WAIC

__all__ = [
    # of one model, by one pass
    "BatchTypicality",
    "BiasCorrected",
    "CombinedTest",
    "DoSE",
    "GradientNorm",
    "KLTerm",
    "LPath",
    "Mahalanobis",
    "NegativeLogLikelihood",
    "ReconstructionError",
    "Reference",
    "Typicality",
    "batch_typicality",
    "layer_names",
    # several models, codecs or hierarchies
    "ErrorReduction",
    "HierarchyRatio",
    "InputComplexity",
    "LikelihoodRatio",
    "Resultant",
    "Restorer",
    "WAIC",
    "available_codecs",
    "downsampled",
    "fit_background",
    "perturbed",
]
