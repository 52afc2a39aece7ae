"""How good are samples? Distances, tests, coverage and modes, over any feature function.

    sample_quality(real, fake, features=pca_features(real, 50), seed=0)

gives all of them in one table; each is also a function of its own. `features=` means one thing in
all of them: what is applied to both sets before they are compared, a function, a network or a name.
Every number comes as an `Estimate`, with its error and its n.
"""

from probgen.evaluation.samples.digit_classifier import DigitClassifier, digit_classifier
from probgen.evaluation.samples.estimate import Estimate
from probgen.evaluation.samples.features import Features, as_features, pca_features
from probgen.evaluation.samples.figures import mode_figure, quality_figure
from probgen.evaluation.samples.frechet import (
    Frechet,
    frechet_bias,
    frechet_distance,
    frechet_from_moments,
)
from probgen.evaluation.samples.image_net import efficientnet_features
from probgen.evaluation.samples.kid import kid
from probgen.evaluation.samples.mmd import gaussian_mmd2, mmd_test
from probgen.evaluation.samples.modes import ModeCount, count_classes, count_modes
from probgen.evaluation.samples.prdc import PRDC, expected_coverage, prdc
from probgen.evaluation.samples.quality import SampleQuality, sample_quality
from probgen.evaluation.samples.two_sample import c2st, memorisation, sliced_wasserstein

__all__ = [
    # all at once
    "SampleQuality", "sample_quality", "Estimate",
    # what is compared
    "Features", "as_features", "pca_features", "DigitClassifier", "digit_classifier",
    "efficientnet_features",
    # distances
    "Frechet", "frechet_distance", "frechet_from_moments", "frechet_bias",
    "kid", "gaussian_mmd2", "sliced_wasserstein",
    # coverage and modes
    "PRDC", "prdc", "expected_coverage", "ModeCount", "count_modes", "count_classes",
    # tests
    "mmd_test", "c2st", "memorisation",
    # figures
    "mode_figure", "quality_figure",
]  # fmt: skip
