"""A generative model tilted by an energy: p(x, z) exp(-E(x)) / Z."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from typing import Any, Literal

import probgen as pg
from probgen.engine.fitted import Fitted
from probgen.errors import UnknownName
from probgen.language.capabilities import DrawsMean
from probgen.language.declared import declaration, require
from probgen.language.kinds import AnyNet, Text
from probgen.language.model import Model, Sketch, capability, family_of
from probgen.models.energies import tilt


@declaration
class Tilted(Model):
    """The base's density times exp(-E_theta) of one of its sites.

    Args:
        base: a `Fitted` (its parameters are carried along and stay frozen) or a declaration.
        energy: a net from that site's value to a number per datum.
        on: the site; "x" tilts the data.
        through: "sample" tilts the base's own density of `on`. "mean" tilts a generator without its
            noise, p(z) exp(-E(E[x | z])) / Z: draws are decoder means, and x has no density, so
            that no likelihood of data exists and every measure of one refuses.
        net_name: name of the energy's parameters; None is "energy", or "energy_2" and so on over a
            base that has one: tilts of tilts, products of densities, need no names.

    What each learns and is scored by (MaximumLikelihood; chains in noise space):

        through="mean"          no density of x: draws, and no likelihood
        through="sample", "x"   log p(x) >= bound of the base - E(x) - log Z; exact over a flow
        through="sample", "z"   E_q[log p(x | z) - e(z)] - KL - log Z; e reads z ~ q(z | x)

    A base given as `Fitted` is frozen: no parameter or buffer of it moves.

    Sites: the base's, and the factor "tilt" (or `net_name`'s own) = -E. Nets: the base's, "energy".

    Raises (when bound): UnknownName: no site `on`. ShapeError: an energy that is not one number per
    datum.

    Sources: Xiao et al. 2021, arXiv:2010.00654 (VAEBM); Xiao, Yan & Amit 2020, arXiv:2006.08100
    (exponential tilting of a generator).
    """

    base: Model | Fitted
    energy: AnyNet
    on: Text = "x"
    through: Literal["sample", "mean"] = dataclasses.field(default="sample", kw_only=True)
    net_name: Text | None = dataclasses.field(default=None, kw_only=True)

    is_normalized = False

    def __post_init__(self) -> None:
        if self.through == "mean":
            can = capability(self.model, DrawsMean) is not None and self.on == "x"
            require(can, self, 'a generator (a VAE, say) tilted on="x" by its mean', "through")

    @property
    def model(self) -> Model:
        """The base's declaration."""
        return self.base.model if isinstance(self.base, Fitted) else self.base

    def fitted_params(self) -> dict:
        own = dict(self.base.params) if isinstance(self.base, Fitted) else {}
        return {**self.model.fitted_params(), **own}

    def frozen(self) -> frozenset[str]:
        own = frozenset(self.base.params) if isinstance(self.base, Fitted) else frozenset()
        return own | self.model.frozen()

    def check_rows(self, rows: Any) -> None:
        self.model.check_rows(rows)

    @property
    def energy_name(self) -> str:
        """Name of the energy's parameters: `net_name`, or the first that the base leaves free."""
        if self.net_name is not None:
            return self.net_name
        own = self.base.params if isinstance(self.base, Fitted) else ()
        taken = {*getattr(family_of(self.model), "energy_names", ()), *own}
        names = itertools.chain(["energy"], (f"energy_{k}" for k in itertools.count(2)))
        return next(n for n in names if n not in taken)

    @property
    def energy_names(self) -> tuple[str, ...]:
        """Those of all energies, the base's first."""
        return (*getattr(family_of(self.model), "energy_names", ()), self.energy_name)

    @property
    def program(self) -> Any:
        model, name = self.model, self.energy_name
        factor = "tilt" if name == "energy" else f"tilt_{name}"
        base = model.program

        def program(**inputs: Any) -> None:
            if self.through == "mean":
                with pg.data_plate():
                    values = {"x": capability(model, DrawsMean).draw_mean(**inputs)}
            else:
                values = pg.submodel("", model, **inputs)
            if self.on not in values:
                raise UnknownName(
                    f"Tilted: got on={self.on!r}, expected a site of the base: {sorted(values)}."
                )
            with pg.data_plate():
                tilt(factor, name, self.energy, values[self.on], "Tilted")

        program.__signature__ = inspect.signature(base)  # type: ignore[attr-defined]
        return program

    def sketch(self) -> Sketch:
        inner = self.model.sketch()
        if not inner.left_out:
            return Sketch(self)
        base: Any = inner.model
        if isinstance(self.base, Fitted):
            base = dataclasses.replace(self.base, model=inner.model)
        return inner.within(dataclasses.replace(self, base=base))

    @property
    def guide(self) -> Any:  # type: ignore[override]
        return self.model.guide if self.through == "sample" else None

    def formula(self) -> str:
        if self.through == "mean":
            return r"p_\theta(z) = \frac{1}{Z_\theta}\ p(z)\ e^{-E_\theta(\mathbb{E}[x \mid z])}"
        inner = self.model.formula() or r"p(x, z)"
        head = inner.split("=", 1)[-1].split(r",\qquad")[0].strip()
        return rf"p_\theta(x, z) = \frac{{1}}{{Z_\theta}}\ {head}\ e^{{-E_\theta({self.on})}}"
