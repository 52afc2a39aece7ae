"""Is the inference itself right? Calibration of posteriors, kernels, predictions and intervals.

sbc, sbc_from            simulation-based calibration of samplers, guides and fits
vsbc, symmetry           bias of variational posteriors
geweke, geweke_model     transition kernels against the joint law they claim to keep
diagnose                 R-hat, effective sample sizes and Monte Carlo errors of chains
divergences              which scalars tell divergent draws from the others
predictive_check         data replicated by the fitted model against the observed ones
interval_coverage        how often intervals hold the truth
"""

from probgen.evaluation.calibration.chains import Diagnosis, diagnose
from probgen.evaluation.calibration.coverage import Coverage, interval_coverage
from probgen.evaluation.calibration.divergent import Divergences, divergences
from probgen.evaluation.calibration.geweke import Geweke, geweke, geweke_model
from probgen.evaluation.calibration.predictive import (
    PredictiveCheck,
    posterior_predictive,
    predictive_check,
)
from probgen.evaluation.calibration.ranked import SBC
from probgen.evaluation.calibration.sbc import sbc, sbc_from
from probgen.evaluation.calibration.uniformity import (
    Envelope,
    chi_square,
    ecdf_test,
    envelope,
    ranks,
)
from probgen.evaluation.calibration.vsbc import VSBC, Symmetry, symmetry, vsbc
from probgen.inference.sample.guide import Guide

__all__ = [
    "SBC", "VSBC", "Coverage", "Diagnosis", "Divergences", "Envelope", "Geweke", "Guide",
    "PredictiveCheck", "Symmetry", "chi_square", "diagnose", "divergences", "ecdf_test", "envelope",
    "geweke", "geweke_model", "interval_coverage", "posterior_predictive", "predictive_check",
    "ranks", "sbc", "sbc_from", "symmetry", "vsbc",
]  # fmt: skip
