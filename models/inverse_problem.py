"""Inverse problems: a prior of any family, seen through a declared likelihood.

x ~ prior,      y ~ likelihood(x);      wanted: p(x | y)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import probgen as pg
from probgen.engine.fitted import Fitted
from probgen.errors import UnknownName
from probgen.language.declared import declaration
from probgen.language.kinds import Text
from probgen.language.model import Model

Array = Any


@declaration
class InverseProblem(Model):
    """A prior of data and a likelihood of what was measured of them; `pg.infer` gives p(x | y).

        problem = InverseProblem(prior, lambda x: dist.Normal(x @ A, 0.1).to_event(1))
        draws = pg.infer(problem, {"y": y}, NUTS(500, 500), seed=0)

    Args:
        prior: a model, or what `pg.fit` gave, whose parameters are then held. Of a diffusion take
            `DiffusionMap(fitted)`, whose latents are the noise: chains on the hundreds of sites of
            the diffusion's own program hardly move.
        likelihood: x [*lead, *event] -> the distribution of one measurement, of `ops`.
        on: the prior's site x; data: the name of the measurements' site.

    Sites: the prior's and `data`. Nets: the prior's.

    Raises (when bound): UnknownName: the prior has no site `on`.
    """

    prior: Model | Fitted
    likelihood: Callable
    on: Text = "x"
    data: Text = "y"

    @property
    def model(self) -> Any:
        """The prior's declaration."""
        return self.prior.model if isinstance(self.prior, Fitted) else self.prior

    def fitted_params(self) -> dict:
        own = dict(self.prior.params) if isinstance(self.prior, Fitted) else {}
        return {**self.model.fitted_params(), **own}

    def frozen(self) -> frozenset[str]:
        own = frozenset(self.prior.params) if isinstance(self.prior, Fitted) else frozenset()
        return own | self.model.frozen()

    def check_rows(self, rows: Mapping[str, Any]) -> None:
        self.model.check_rows({k: v for k, v in rows.items() if k != self.data})

    @property
    def program(self) -> Any:
        def program(**inputs: Any) -> None:
            values = pg.submodel("", self.model, **inputs)
            if self.on not in values:
                raise UnknownName(
                    f"InverseProblem: got on={self.on!r}, expected a site of the prior: "
                    f"{sorted(values)}."
                )
            with pg.data_plate():
                pg.sample(self.data, self.likelihood(values[self.on]))

        program.__signature__ = inspect.signature(self.model.program)  # type: ignore[attr-defined]
        return program
