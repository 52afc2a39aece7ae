"""Normalizing flows: the family, its layers, and the maps that they apply."""

from probgen.models.flow.flow import Flow
from probgen.models.flow.layers import Coupling, MaskedAutoregressive
from probgen.models.flow.maps import Affine, Spline

__all__ = ["Affine", "Coupling", "Flow", "MaskedAutoregressive", "Spline"]
