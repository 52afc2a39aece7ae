"""WAIC over an ensemble of models: Var_m[log p_m(x)] - mean_m[log p_m(x)], nats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from probgen.engine.fitted import Fitted
from probgen.engine.measure import EvaluationContext, Function, Rows, Values
from probgen.inference.likelihood.interval import Weighted
from probgen.inference.ood.other_models import bind_other, shown, weighted, with_error
from probgen.language.declared import declaration
from probgen.language.kinds import Many, Rule

at_least_two = Rule(
    "(at least two, since it is their disagreement that is measured; fit the same model with "
    "several seeds)",
    lambda v: len(v) >= 2,
)


@declaration
class WAIC(Weighted):
    """Spread of an ensemble's log-likelihoods about a datum, less their mean.

        -(mean_m log p_m(x) - Var_m[log p_m(x)]),   the variance with divisor M - 1

    Nats by convention, larger is stranger. Assumes that models fitted apart disagree about what
    they have not seen. Var is in nats squared and the mean in nats: on images of thousands of
    values it is the variance that decides, so both are given.

    Fails: models of one kind tend to be wrong together, and then it ranks as the likelihood does,
    errors of estimation included (arXiv:2107.06908). The Monte Carlo error of each log p_m adds to
    the variance, hence to the estimate, where it differs between models.

    Args:
        models: the whole ensemble, independently trained; the evaluated model counts only if it is
            one of them. Five in the paper.
        num_particles: K of each log-likelihood.
        particles_at_once: for memory.

    Gives per datum: `estimate`; `standard_error` from Monte Carlo alone, not from the choice of
    models; `mean`, `variance`; `log_prob` [n, M]; `khat`, the largest.

    Raises: DeclarationError: fewer than two models. When bound: AlgorithmError: a model without a
        guide. ShapeError, SupportError: a model that does not fit the data.

    Source: Choi, Jang & Alemi 2018, arXiv:1810.01392.
    """

    models: Annotated[Sequence[Fitted], at_least_two]
    num_particles: Many = 1000
    particles_at_once: Many = 25

    unit = "nats"
    larger_is_stranger = True
    of_bound = ""

    def __repr__(self) -> str:
        return (
            f"WAIC(models=[{', '.join(map(shown, self.models))}], "
            f"num_particles={self.num_particles}, particles_at_once={self.particles_at_once})"
        )

    @property
    def name(self) -> str:
        return f"WAIC({len(self.models)} models, {self.num_particles})"

    def bind_measure(self, context: EvaluationContext) -> Function:
        """All models' estimates, chunk by chunk."""
        k, at_once = self.num_particles, self.particles_at_once
        checks = [
            bind_other(context, self.name, f"model {i}", each) for i, each in enumerate(self.models)
        ]
        members = [weighted(context.at(each), k, at_once) for each in self.models]

        def measure(rows: Rows, ids: np.ndarray) -> Values:
            for check in checks:
                check(rows)
            found = [member(rows, ids) for member in members]
            log_prob = np.stack([f["estimate"] for f in found], axis=1)
            mean, count = log_prob.mean(1), log_prob.shape[1]
            variance = log_prob.var(1, ddof=1)
            # d(Var - mean) / d(log p_m)
            slopes = 2.0 * (log_prob - mean[:, None]) / (count - 1) - 1.0 / count
            values = {
                "estimate": variance - mean,
                "mean": mean,
                "variance": variance,
                "log_prob": log_prob,
                "khat": np.fmax.reduce([f["khat"] for f in found]),
            }
            return with_error(values, list(slopes.T), [f["log_w"] for f in found])

        return measure
