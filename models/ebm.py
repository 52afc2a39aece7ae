"""Energy-based models: a base density times exp(-E(x)), known up to its constant."""

from __future__ import annotations

from typing import Any

import probgen as pg
from probgen.language.declared import declaration
from probgen.language.kinds import AnyNet
from probgen.language.model import Distribution, Model
from probgen.models.energies import tilt


@declaration
class EBM(Model):
    """p(x) = base(x) exp(-E_theta(x)) / Z.

    Args:
        energy: a net from a datum to a number per datum (`nets.MLPEnergy`, `nets.ConvEnergy`).
        base: the density that carries the model's mass where the energy is flat.

    Sites: "x" (data), factor "tilt" = -E(x). Nets: "energy".

    Source: LeCun et al. 2006; the product with a base: Nijkamp et al. 2019, arXiv:1904.09770.
    """

    energy: AnyNet
    base: Distribution

    is_normalized = False
    energy_names = ("energy",)

    @property
    def program(self) -> Any:
        def program() -> None:
            with pg.data_plate():
                x = pg.sample("x", self.base)
                tilt("tilt", "energy", self.energy, x, "EBM")

        return program

    def formula(self) -> str:
        return r"p_\theta(x) = \frac{1}{Z_\theta}\, p_0(x)\, e^{-E_\theta(x)}"
