"""Does the latent code carry anything? The report at the end of a fit by variational inference.

For a guide q(z | x), on a sample of the data, nats per datum:

    active unit      Var_x E_q[z_j] > 0.01                       (Burda et al. 2016)
    KL per unit      E_x KL(q(z_j | x) || p(z_j))
    information      E log q(z_i | x_i) - log (1/M) sum_j q(z_i | x_j)  <=  I_q(x; z)  <=  E_x KL

The lower bound on the information saturates at log M, M the number of data in the sample.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any

import numpy as np

from probgen.bound import Bound
from probgen.inference.terms import compute

log = logging.getLogger("probgen")
ACTIVE = 0.01


@dataclasses.dataclass(frozen=True)
class CollapseReport:
    """What `Fitted.report` holds after a fit by SVI.

    Attributes:
        kl: latent site -> mean KL, nats per datum.
        kl_units: latent site -> [d] mean KL of each unit, nats.
        active_units: latent site -> [d] True where the posterior mean moves with the data.
        information: (lower bound, upper bound) on I_q(x; z), nats, all latents together.
        kl_weight: the weight of the last step, or None.
        num_data: size of the sample that this was computed on.
        warnings: sentences; empty when all is well.
    """

    kl: dict[str, float]
    kl_units: dict[str, np.ndarray]
    active_units: dict[str, np.ndarray]
    information: tuple[float, float] | None
    kl_weight: float | None
    num_data: int
    warnings: tuple[str, ...] = ()

    def text(self) -> str:
        """The report as lines of text."""
        lines = [f"latent code, on {self.num_data} data (nats per datum)"]
        for name, kl in self.kl.items():
            line = f"  {name}: KL {kl:.2f}"
            if name in self.active_units:
                on = self.active_units[name]
                line += f", {int(on.sum())} of {on.size} units active"
            lines.append(line)
            if name in self.kl_units:
                sorted_kl = np.sort(self.kl_units[name])[::-1]
                lines.append("    KL per unit: " + " ".join(f"{v:.2f}" for v in sorted_kl[:20]))
        if self.information is not None:
            low, high = self.information
            lines.append(
                f"  information I(x; z) between {low:.2f} and {high:.2f} "
                f"(the lower bound cannot exceed log {self.num_data} = {math.log(self.num_data):.2f})"
            )
        if self.kl_weight is not None:
            lines.append(f"  final KL weight {self.kl_weight:.3g}")
        return "\n".join([*lines, *(f"  warning: {w}" for w in self.warnings)])

    def __repr__(self) -> str:
        return self.text()


def collapse_report(
    bound: Bound, loss: Any, params: Any, batch: Any, key: Any, history: Any
) -> CollapseReport:
    """Computes the report on one batch of data and logs its warnings."""
    b = bound.backend
    terms = compute(bound, params, batch, key, analytic_kl=True)
    guide = bound.trace_guide(params, batch, latents=terms.latents)
    size = bound.batch_size(batch) or 1
    kl, units, active = {}, {}, {}
    for name, value in terms.kl.items():
        kl[name] = float(np.mean(b.to_numpy(value)))
        if name in terms.kl_units:
            each = b.to_numpy(terms.kl_units[name])
            units[name] = each.reshape(-1, each.shape[-1]).mean(0)
            means = b.to_numpy(b.mean(guide[name].fn)).reshape(-1, each.shape[-1])
            active[name] = means.var(0) > ACTIVE
    weight = float(history["kl_weight"][-1]) if "kl_weight" in history else None
    warnings = tuple(_warnings(loss, history, kl, active))
    for sentence in warnings:
        log.warning("fit: %s", sentence)
    information = _information(bound, params, batch, terms, size)
    return CollapseReport(kl, units, active, information, weight, size, warnings)


def _warnings(loss: Any, history: Any, kl: dict, active: dict) -> list[str]:
    out = []
    last, target = loss.final_weight(history.num_steps)
    if last is not None and last < 0.999 * target:
        out.append(
            f"the warm-up of the KL weight did not finish: it ended at {last:.3g} of {target:.3g}, "
            "so the guide is not yet that of the bound; train longer or shorten the warm-up."
        )
    for name, on in active.items():
        if not on.any():
            out.append(
                f"the latent {name!r} has collapsed: none of its {on.size} units is active; try "
                "ControlledELBO(set_point=...), a warm-up of the KL weight, or free bits."
            )
    return out


def _information(
    bound: Bound, params: Any, batch: Any, terms: Any, size: int
) -> tuple[float, float] | None:
    b = bound.backend
    local = [n for n in terms.kl if terms.is_local[n]]
    plain = all(terms.latents[n].ndim >= 1 and terms.latents[n].shape[0] == size for n in local)
    if size < 2 or len(local) != len(terms.kl) or not local or not plain:
        return None
    own = bound.trace_guide(params, batch, latents=terms.latents)
    spread = {n: b.ops.expand_dims(z, 1) for n, z in terms.latents.items()}  # [M, 1, *event]
    every = bound.trace_guide(params, batch, latents=spread, num_particles=size)
    log_q = sum(b.to_numpy(own[n].log_prob).astype(np.float64) for n in local)
    table = sum(b.to_numpy(every[n].log_prob).astype(np.float64) for n in local)  # [M, M]
    mixture = np.logaddexp.reduce(table, axis=1) - math.log(size)
    upper = float(sum(np.mean(b.to_numpy(terms.kl[n])) for n in local))
    return float(np.mean(log_q - mixture)), upper
