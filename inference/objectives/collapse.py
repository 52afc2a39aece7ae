"""Does the latent code carry anything? The report at the end of a fit by variational inference.

For a guide q(z | x), on a sample of M data, nats per datum:

    active unit      Var_x E_q[z_j] > 0.01                       (Burda et al. 2016)
    KL per unit      E_x KL(q(z_j | x) || p(z_j))
    information      E log q(z_i | x_i) - log (1/M) sum_j q(z_i | x_j)  <=  I_q(x; z)  <=  E_x KL

The lower bound on the information cannot exceed log M; the upper one is loose by the KL of the
aggregate posterior to the prior.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from probgen.backends.protocol import Site
from probgen.engine.bound import Bound
from probgen.inference.objectives.terms import Terms, compute, mean_of_units, per_datum
from probgen.progress import log

ACTIVE = 0.01
DRAWS = 32  # of the guide, for the mean of latents that others in the guide depend on
LOOKS = 64  # at the KL where one random step stands for a chain
ROWS = 100  # of the table of log q(z_i | x_j) at a time


@dataclasses.dataclass(frozen=True)
class CollapseReport:
    """What `Fitted.report` holds after a fit by SVI.

    Attributes:
        kl: latent site -> mean KL, nats per datum.
        kl_units: latent site -> [d] mean KL of each unit, nats; of latents whose KL splits into
            units, so not with a full covariance.
        active_units: latent site -> [d] True where the posterior mean moves with the data.
        information: (lower bound, upper bound) on I_q(x; z), nats, all latents together; None when
            a latent is global or stands in a plate of its own.
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
                each = np.sort(self.kl_units[name])[::-1]
                rest = f" and {each.size - 20} smaller" if each.size > 20 else ""
                lines.append("    KL per unit: " + " ".join(f"{v:.2f}" for v in each[:20]) + rest)
        if self.information is not None:
            (low, high), most = self.information, math.log(self.num_data)
            lines.append(
                f"  information I(x; z) between {low:.2f} and {high:.2f} "
                f"(the lower bound cannot exceed log {self.num_data} = {most:.2f})"
            )
        if self.kl_weight is not None:
            lines.append(f"  final KL weight {self.kl_weight:.3g}")
        return "\n".join([*lines, *(f"  warning: {w}" for w in self.warnings)])

    def __repr__(self) -> str:
        return self.text()


def unit_note(bound: Bound) -> str | None:
    """What `elbo` counts where log Z is left out of it; None where it is nats."""
    factors = bound.structure.factors
    if not factors:
        return None
    return (
        f"the elbo is the bound on log p(x) plus log Z, which the factors {factors} leave unknown, "
        "so its unit is nats + constant: compare it within this fit alone; log_partition estimates "
        "log Z"
    )


def collapse_report(
    bound: Bound, loss: Any, params: Any, batch: Any, key: Any, history: Any,
    latents: Collection[str] | None = None,
) -> CollapseReport:  # fmt: skip
    """Computes the report on one sample of data and logs its warnings.

    Args:
        latents: those of the code; others are noise of the estimate, over which the KL is averaged,
            with its standard error in a sentence. None: all.
    """
    latents = bound.latents if latents is None else latents
    b = bound.backend
    look = b.compile(lambda p, x, k: _look(bound, p, x, k), num_calls=1)
    seen = b.tree_map(b.to_numpy, look(params, batch, key))
    draws, noisy = [seen["kl"]], set(bound.latents) - set(latents)
    if noisy:
        again = b.compile(lambda p, x, k: _kl(bound, p, x, k)[0], num_calls=LOOKS)
        draws = [b.tree_map(b.to_numpy, again(params, batch, b.fold_in(key, i)))
                 for i in range(LOOKS)]  # fmt: skip
    kl = {n: float(np.mean([d[n] for d in draws])) for n in seen["kl"] if n in latents}
    active = {n: value > ACTIVE for n, value in seen["moves"].items() if n in latents}
    weight = float(history["kl_weight"][-1]) if "kl_weight" in history else None
    warnings = tuple(_warnings(loss, history, active))
    for sentence in warnings:
        log.warning("fit: %s", sentence)
    unit = unit_note(bound)  # the loop has logged it
    warnings = (*warnings, *((unit,) if unit else ()))
    if noisy:
        warnings = (*warnings, _noise_note(kl, draws))
    size = bound.batch_size(batch) or 1
    information = _information(bound, params, batch, seen["latents"], size)
    if information is not None:
        high = sum(kl.values())
        information = (min(information[0], high), high)  # one draw a datum is noisy, the KL is not
    units = {n: value for n, value in seen["units"].items() if n in latents}
    return CollapseReport(kl, units, active, information, weight, size, warnings)


def _noise_note(names: Collection[str], draws: list) -> str:
    errors = {n: np.std([d[n] for d in draws], ddof=1) / math.sqrt(len(draws)) for n in names}
    each = ", ".join(f"{n} to {error:.2g}" for n, error in errors.items())
    return (
        "the KL goes through a long chain, of which one random step stands for all: its mean over "
        f"{len(draws)} draws has the standard error, {each} nats"
    )


def _look(bound: Bound, params: Mapping, batch: Mapping, key: Any) -> dict[str, dict]:
    """KLs, KLs per unit, the variance of the posterior means over the data, and one draw."""
    ops = bound.backend.ops
    kl, terms = _kl(bound, params, batch, key)
    units = {n: mean_of_units(ops, v) for n, v in terms.kl_units.items()}
    return {
        "kl": kl,
        "units": units,
        "moves": _moves(bound, params, batch, key),
        "latents": terms.latents,
    }


def _kl(bound: Bound, params: Mapping, batch: Mapping, key: Any) -> tuple[dict, Terms]:
    terms = compute(bound, params, batch, key, analytic_kl=True)
    return {n: per_datum(bound, terms, {n: v}) for n, v in terms.kl.items()}, terms


def _moves(bound: Bound, params: Mapping, batch: Mapping, key: Any) -> dict[str, Any]:
    """Var_x E_q[z_j | x] of each local latent, [d], without bias.

    A latent low in a hierarchy has its mean given those above it, and some distributions tell no
    mean at all: both are averaged over draws, and what these add to the variance is taken off.
    """
    ops = bound.backend.ops
    size = bound.batch_size(batch)
    guide = bound.trace_guide(params, batch, key=key, num_particles=DRAWS)
    out = {}
    for name, site in guide.items():
        if name not in bound.latents or not site.is_local:
            continue
        means = _mean(bound, name, site)
        if means.ndim < 3 or tuple(means.shape[:2]) != (DRAWS, size):
            continue
        means = ops.reshape(means, (DRAWS, size, -1))
        within = ops.mean(ops.var(means, axis=0, ddof=1), axis=0)
        out[name] = ops.var(ops.mean(means, axis=0), axis=0) - within / DRAWS
    return out


def _mean(bound: Bound, name: str, site: Site) -> Any:
    if not bound.structure.sites[name].is_discrete:
        try:
            return bound.backend.mean(site.fn)
        except NotImplementedError:
            pass
    return site.value * 1.0


def _warnings(loss: Any, history: Any, active: dict) -> list[str]:
    out = []
    last, target = loss.final_weight(history.num_steps)
    if last is not None and abs(last - target) > 1e-3 * abs(target):
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
    if "set_point" in history and "kl" in history:
        kl, wanted = history.last("kl"), history.last("set_point")
        if abs(kl - wanted) > 0.05 * wanted:
            out.append(
                f"the KL ended at {kl:.2f} nats, expected the set point {wanted:.2f}, with the "
                f"weight at {history.last('kl_weight'):.3g}; train longer, or choose a set point "
                "that lies between the KLs at the two limits of the weight."
            )
    return out


def _information(
    bound: Bound, params: Any, batch: Any, latents: dict, size: int
) -> tuple[float, float] | None:
    """(the lower bound on I_q(x; z), log M)."""
    b, names = bound.backend, bound.latents
    plain = all(bound.structure.sites[n].is_local for n in names) and all(
        latents[n].shape[:1] == (size,) for n in names
    )
    if size < 2 or not names or not plain:
        return None

    def log_q(params: Any, batch: Any, part: dict) -> Any:
        """[R, M] log q(z_i | x_j), for R draws and all the data."""
        spread = {n: b.ops.expand_dims(z, 1) for n, z in part.items()}
        rows = next(iter(spread.values())).shape[0]
        guide = bound.trace_guide(params, batch, latents=spread, num_particles=rows)
        return sum(guide[n].log_prob for n in names)

    height = min(size, ROWS)
    table = b.compile(log_q, num_calls=-(-size // height))
    total = 0.0
    for start in range(0, size, height):
        first = min(start, size - height)  # the last part has rows that were seen: one program
        part = {n: b.asarray(latents[n][first : first + height]) for n in names}
        rows = b.to_numpy(table(params, batch, part)).astype(np.float64)
        own = rows[np.arange(height), first + np.arange(height)]
        total += float((own - np.logaddexp.reduce(rows, axis=1))[start - first :].sum())
    return total / size + math.log(size), math.log(size)


__all__ = ["CollapseReport", "collapse_report"]
