"""Scores that tell strange data from ordinary ones, as measures for `pg.evaluate`.

Each says in its docstring what it assumes and where the literature found it to fail. Estimates are
turned so that larger means stranger. How well a score separates two sets is not here: see
`probgen.evaluation.detection`.
"""

from probgen.inference.scores.bias_corrected import BiasCorrected
from probgen.inference.scores.codecs import available_codecs
from probgen.inference.scores.combined import CombinedTest
from probgen.inference.scores.complexity import InputComplexity
from probgen.inference.scores.dose import DoSE
from probgen.inference.scores.error_reduction import ErrorReduction, Restorer, downsampled
from probgen.inference.scores.gradient import GradientNorm, layer_names
from probgen.inference.scores.hierarchy import HierarchyRatio
from probgen.inference.scores.lpath import LPath
from probgen.inference.scores.mahalanobis import Mahalanobis
from probgen.inference.scores.parts import KLTerm, NegativeLogLikelihood, ReconstructionError
from probgen.inference.scores.ratio import LikelihoodRatio, fit_background, perturbed
from probgen.inference.scores.reference import Reference
from probgen.inference.scores.resultant import Resultant
from probgen.inference.scores.typicality import BatchTypicality, Typicality, batch_typicality
from probgen.inference.scores.waic import WAIC

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
