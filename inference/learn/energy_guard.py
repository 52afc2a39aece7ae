"""What watches over the learning of an energy, and its gain on held-out data.

    gain = mean over held-out x of -E(x), less log Z,    log Z = log (1/N) sum_j exp(-E(x_j))

x_j ~ base: how many nats per datum the tilt adds to the base's log-likelihood. A gap between the
energies of data and of draws is no criterion: near 0 for a good model and for one that learns
nothing. The gain is, as long as enough draws carry it; else it is too high.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

from probgen.engine.bound import Bound
from probgen.engine.learner import Judge
from probgen.errors import AlgorithmError
from probgen.inference.learn.contrast import WHO, Contrast
from probgen.inference.learn.negative import weighed
from probgen.inference.objectives.elbo import ELBO
from probgen.language.declared import declaration
from probgen.language.kinds import Many, NonNegative, Positive, Share
from probgen.language.model import arguments

CARRIERS = 10  # draws that must carry a log Z for its gain to be believed
ROUGH = ("relu", "leaky_relu")  # activations under which the force of an energy jumps


@declaration
class EnergyGuard:
    """Watches over `MaximumLikelihood`; says what goes wrong, and when to go back.

    Where held-out data are given (`fit(validation=...)`), `gain`, `importance_share` and, for a
    base whose density is known, `log_likelihood` are computed on them, the best state by the
    criterion is kept and returned, and a fit that gets much worse goes back to it: with new chains,
    at half the step.

    Args:
        criterion: "gain", which in a joint fit (`bound=`) is the held-out bound less log Z, since
            there the base moves; "log_likelihood" (base plus gain; for a base that is learned too),
            or None: the last state is returned.
        max_drop: nats, or a quarter of the best where that is more, by which the criterion may fall
            below its best before the fit goes back.
        max_gap: nats between the mean energies of data and draws beyond which it goes back.
        min_acceptance, min_movement, min_share: what is said below, once: the share of steps that a
            Metropolis test accepts, how far chains move in standard deviations, the share of
            weighted draws that carries log Z.
        gain_draws: N, of the base, for each batch of held-out data.
    """

    criterion: Literal["gain", "log_likelihood"] | None = "gain"
    max_drop: Positive = 1.0
    max_gap: Positive = 1000.0
    min_acceptance: Share = dataclasses.field(default=0.1, kw_only=True)
    min_movement: NonNegative = dataclasses.field(default=0.01, kw_only=True)
    min_share: Share = dataclasses.field(default=0.05, kw_only=True)
    gain_draws: Many = dataclasses.field(default=2000, kw_only=True)

    def held_out(self, contrast: Contrast, elbo: ELBO | None = None) -> Callable | None:
        """(bound, params, batch, key) -> held-out metrics; None where there is no log Z that all
        data share, or a base that draws nothing."""
        bound, ops = contrast.bound, contrast.bound.backend.ops
        rows = set(arguments(bound.model.program)) - set(bound.constants)
        if rows or not contrast.has_draws:
            return None

        def measure(bound: Bound, params: Mapping, batch: Mapping, key: Any) -> dict:
            k_data, k_draw, k_sums = bound.backend.split(key, 3)
            data = contrast.data(params, batch, k_data)
            _, energy, log_base = contrast.sums(params, data, batch, k_sums)
            values = contrast.base_draws(params, k_draw, self.gain_draws)
            log_z, share, _ = weighed(ops, -contrast.sums(params, values, {}, k_sums)[1])
            gain = -ops.mean(energy) - log_z
            found = {"energy_data": ops.mean(energy), "gain": gain, "importance_share": share}
            if contrast.has_density:
                found["log_likelihood"] = ops.mean(log_base) + gain
            if elbo is not None:
                found["bound"] = elbo.evaluate(bound, params, batch, k_data)["elbo"] - log_z
            return found

        return measure

    def judge(self, contrast: Contrast, advice: str) -> Judge | None:
        """How the best state is told, by the criterion.

        Raises:
            AlgorithmError: a log-likelihood is asked for, and the base has none.
        """
        name = self.criterion
        if name is None or self.held_out(contrast) is None:
            return None
        if name == "log_likelihood" and not contrast.has_density:
            raise AlgorithmError(
                f"{WHO}: got EnergyGuard(criterion='log_likelihood') for "
                f"{contrast.bound.model.name!r}, whose base gives the data no density of a known "
                "constant, expected criterion='gain'."
            )

        told = "bound" if contrast.is_joint else name

        def value(found: Mapping[str, float]) -> float | None:
            carried = found["importance_share"] * self.gain_draws >= CARRIERS
            return found[told] if carried and np.isfinite(found[told]) else None

        def watch(found: Mapping[str, float], best: float) -> str | None:
            if not found[told] < best - max(self.max_drop, abs(best) / 4):
                return None
            return (
                f"the {told.replace('_', '-')} on held-out data fell from {best:.3g} to "
                f"{found[told]:.3g} nats: the density gets worse, whatever its samples look like; "
                f"{advice}"
            )

        return Judge(told, value, watch)

    def watch(self, metrics: Mapping[str, np.ndarray], advice: str) -> str | None:
        """What of a chunk says that the energy blew up."""
        gap = late(metrics["energy_data"]) - late(metrics["energy_samples"])
        if abs(gap) <= self.max_gap:
            return None
        what = (
            "the chains find regions of low energy where no data are"
            if gap > 0
            else "the energy grew steeper than the chains can follow"
        )
        return (
            f"the energies of data and draws lie {abs(gap):.3g} nats apart, draws "
            f"{'below' if gap > 0 else 'above'}, expected at most {self.max_gap:g}: {what}; "
            f"{advice}"
        )

    def remarks(self, metrics: Mapping[str, Any], cure: str) -> dict[str, str]:
        """What is not as it should be, by name.

        Args:
            metrics: of a chunk, or on held-out data.
            cure: the sampler's own.
        """
        out: dict[str, str] = {}
        rate, moved, share = (
            late(metrics[n]) if n in metrics else np.inf
            for n in ("acceptance", "movement", "importance_share")
        )
        if rate < self.min_acceptance:
            out["acceptance"] = (
                f"a Metropolis test accepts {rate:.2g} of the chain's steps, expected at least "
                f"{self.min_acceptance:g}: chains do not follow the energy; {cure}"
            )
        if moved < self.min_movement:
            out["movement"] = (
                f"chains end {moved:.2g} standard deviations from where they start, expected at "
                f"least {self.min_movement:g}: the draws are the starts; raise the sampler's "
                "step_size or its number of steps"
            )
        if share < self.min_share and "gain" in metrics:
            out["share of the gain"] = (
                f"{share:.2g} of {self.gain_draws} draws of the base carry the gain on held-out "
                f"data, expected at least {self.min_share:g}: it is too high; raise gain_draws of "
                "EnergyGuard, and see log_partition for log Z"
            )
        elif share < self.min_share:
            out["importance share"] = (
                f"{share:.2g} of the weighted draws carry log Z, expected at least "
                f"{self.min_share:g}: its gradient is that of a few draws; raise num_draws of "
                "ImportanceSampling, or take chains, such as Langevin(...)"
            )
        return out


def late(values: Any) -> float:
    """Mean over the last quarter of a chunk, or the number itself."""
    flat = np.atleast_1d(np.asarray(values, np.float64))
    return float(flat[-max(1, len(flat) // 4) :].mean())


def advice(regularizers: tuple, bound: Bound) -> str:
    """What helps, in the order in which practitioners found it to."""
    known = ", ".join(type(r).__name__ for r in regularizers)
    penalty = (
        f"raise the penalties ({known})"
        if known
        else "add a penalty, regularizers=(EnergyMagnitude(0.02),)"
    )
    frozen = bound.frozen()
    rough = sorted({
        f"{a} of {n!r}" for n, net in bound.structure.nets.items() if n not in frozen
        for a in activations(net) if a in ROUGH
    })  # fmt: skip
    smooth = [f"smooth activations, silu or softplus, in place of {', '.join(rough)}"]
    steps = "more steps of the chain for each update, or a lower learning rate"
    return "what helps, in this order: " + "; ".join([penalty, *(smooth if rough else []), steps])


def activations(net: Any) -> Iterator[str]:
    """Names of the activations in a net's declaration."""
    if isinstance(net, str):
        yield net
    elif isinstance(net, tuple | list):
        for each in net:
            yield from activations(each)
    elif dataclasses.is_dataclass(net):
        for field in dataclasses.fields(net):
            yield from activations(getattr(net, field.name))
