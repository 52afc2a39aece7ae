"""`probgen demo`: a small model of digits, trained, sampled, judged, and held against strangers."""

from probgen.evaluation.demo.digits import run
from probgen.evaluation.demo.settings import Settings

__all__ = ["Settings", "run"]
