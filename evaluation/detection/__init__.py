"""Do scores tell data apart? ROC and PR curves, AUROC, AUPR, FPR, with intervals and tests.

Plain arrays of scores in, numbers with intervals out; larger = stranger, OOD positive, everywhere.
"""

from probgen.evaluation.detection.compare import compare
from probgen.evaluation.detection.counts import Metric
from probgen.evaluation.detection.delong import DeLong, PairedTest, delong, delong_test
from probgen.evaluation.detection.figures import auroc_figure, histogram_figure, roc_figure
from probgen.evaluation.detection.intervals import Estimate, bootstrap_interval, holm
from probgen.evaluation.detection.records import Detection, detection
from probgen.evaluation.detection.roc import (
    PrCurve,
    RocBand,
    RocCurve,
    auroc,
    average_precision,
    fpr_at_tpr,
    pr_curve,
    roc_band,
    roc_curve,
)
from probgen.evaluation.detection.scores import Scores, as_scores
from probgen.evaluation.detection.tables import (
    BetweenRuns,
    ChanceTest,
    Comparison,
    DetectionTable,
    Verdict,
    between_runs,
)

__all__ = [
    "compare",
    "detection",
    "between_runs",
    "Detection",
    "DetectionTable",
    "ChanceTest",
    "Comparison",
    "Verdict",
    "BetweenRuns",
    "Estimate",
    "Metric",
    "auroc",
    "average_precision",
    "fpr_at_tpr",
    "roc_curve",
    "pr_curve",
    "roc_band",
    "RocCurve",
    "PrCurve",
    "RocBand",
    "bootstrap_interval",
    "holm",
    "delong",
    "delong_test",
    "DeLong",
    "PairedTest",
    "as_scores",
    "Scores",
    "roc_figure",
    "histogram_figure",
    "auroc_figure",
]
