"""Bidirectional Monte Carlo: log p(x) from below and from above, on data that the model made.

    z0 ~ p(z),  x ~ p(x | z0)         z0 is an exact draw of p(z | x)
    forward   log (1/C) sum_c w_c     w of AIS chains from the start to p(z | x)
    reverse  -log (1/C) sum_c v_c     v of chains from z0 back, the same temperatures and step sizes

    E[forward] <= log p(x) <= E[reverse]

by Jensen's inequality, since E[w] = p(x) and E[v] = 1 / p(x). So much is promised in expectation,
and the mean gap bounds the mean error of either. One run's [forward, reverse] of one datum is no
interval: it may miss log p(x), or cross. What one run shows of all n data holds by Markov's
inequality, since prod_i w_i / p(x_i) and prod_i v_i p(x_i) have mean 1:

    mean log p(x_i) in [mean forward - log(2 / a) / n, mean reverse + log(2 / a) / n]

with probability 1 - a, whatever the tails. On real data there is no z0, and so no upper bound: the
gap found here is then a proxy.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from probgen.backends.protocol import Backend
from probgen.engine.batches import merge_inputs
from probgen.engine.fitted import AnyFitted
from probgen.errors import NonFiniteError, NotByRow
from probgen.inference.likelihood.ais import AIS, in_double, summary
from probgen.language.declared import checked
from probgen.language.kinds import Count, Inputs
from probgen.language.seeds import check_seed
from probgen.progress import bar


@dataclasses.dataclass(frozen=True, eq=False)
class Bracket:
    """Forward and reverse estimates of log p(x) for simulated data, nats.

    Attributes:
        forward, reverse: [n] lower and upper bounds in expectation, not in every draw.
        forward_error, reverse_error: [n] noise over chains, no intervals; that of the reverse is
            given z0, which all its chains share, and so leaves out the spread over z0.
        effective_chains: [n] of the forward weights.
        acceptance_rate: [n] mean over the forward run.
        data: the simulated data and latents by site, [n, *event].
        method: what ran.
        info: backend, seed, versions.
    """

    forward: np.ndarray
    reverse: np.ndarray
    forward_error: np.ndarray
    reverse_error: np.ndarray
    effective_chains: np.ndarray
    acceptance_rate: np.ndarray
    data: dict[str, np.ndarray]
    method: AIS
    info: dict[str, Any] = dataclasses.field(default_factory=dict)

    unit = "nats"

    @property
    def gap(self) -> np.ndarray:
        """[n] reverse - forward: at least 0 in expectation, not in every draw."""
        return self.reverse - self.forward

    @property
    def crossed(self) -> int:
        """Of how many data the run's reverse is below its forward estimate."""
        return int((self.gap < 0).sum())

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """What holds the mean of log p(x) over these data with probability `level` or more.

        A certain statement (Markov's inequality twice, half of 1 - level each), of the mean over
        the n data; for one datum it is 2 log(2 / (1 - level)) nats wider than its gap.
        """
        slack = math.log(2.0 / (1.0 - level)) / len(self.forward)
        return float(self.forward.mean()) - slack, float(self.reverse.mean()) + slack

    def mean(self, what: str = "gap") -> tuple[float, float]:
        """(mean over data of "forward", "reverse" or "gap", its standard error over data)."""
        x = getattr(self, what)
        error = float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else math.nan
        return float(x.mean()), error

    def to_dict(self) -> dict[str, Any]:
        """Numbers and lists only, for JSON."""
        rows = {n: getattr(self, n).tolist() for n in _ARRAYS}
        means = {
            n: dict(zip(("mean", "standard_error"), self.mean(n), strict=True))
            for n in ("forward", "reverse", "gap")
        }
        return {
            "method": self.method.name, "unit": self.unit, "num_simulations": len(self.forward),
            **means, "interval": list(self.interval()), "crossed": self.crossed,
            "per_datum": rows, "info": dict(self.info),
        }  # fmt: skip

    def __repr__(self) -> str:
        lines = [
            f"log p(x) of {len(self.forward)} simulated data by {self.method.name}, nats",
            f"{'':<10}{'mean':>12}{'s.e.':>10}  what it is",
        ]
        ways = {
            "forward": "a lower bound in expectation", "reverse": "an upper one in expectation",
            "gap": "bounds the mean error of either, in expectation; on real data a proxy",
        }  # fmt: skip
        for name, way in ways.items():
            mean, error = self.mean(name)
            lines.append(f"{name:<10}{mean:>12.3f}{error:>10.3f}  {way}")
        low, high = self.interval()
        lines += [
            f"this run: mean log p(x) of these data in [{low:.3f}, {high:.3f}] with probability "
            "95 % or more",
            "of one datum [forward, reverse] is no interval: it may miss log p(x), and it crosses "
            f"for {self.crossed} of {len(self.forward)}",
        ]
        return "\n".join(lines)


_ARRAYS = (
    "forward", "reverse", "forward_error", "reverse_error", "effective_chains", "acceptance_rate",
)  # fmt: skip


@checked
def bdmc(
    fitted: AnyFitted,
    num_simulations: Count = 100,
    method: AIS | None = None,
    *,
    seed: int | None = None,
    inputs: Inputs = None,
    chunk_size: Count = 100,
    backend: str | Backend = "auto",
    device: str = "auto",
    progress_bar: bool = True,
) -> Bracket:
    """Brackets log p(x) on data simulated from the model.

    Args:
        fitted: a normalised model with continuous local latents; with a guide if the method starts
            at it. Its `shapes` say which sites are data.
        num_simulations: how many x.
        method: `AIS(num_steps=..., num_chains=...)`.
        seed: an integer; results do not depend on `chunk_size`, except where a latent's draw is no
            function of noise (a gamma's, say), since its noise then belongs to the chunk.
        inputs: what the program conditions on: arrays with one row a simulation, or constants.
        chunk_size: data at a time.
        backend, device: those of the fit by default.

    Raises:
        MissingSeed; AlgorithmError: see `AIS`, or no simulations. NonFiniteError: an estimate is
        NaN.

    Source: Grosse, Ghahramani & Adams 2015, arXiv:1511.02543; Wu et al. 2017, arXiv:1611.04273.
    """
    method = AIS() if method is None else method
    seed = check_seed(seed, "bdmc")
    b = fitted.resolve(backend, device)
    constants, per_datum = merge_inputs(fitted.model, {}, inputs, size=num_simulations)
    fitted = dataclasses.replace(fitted, constants={**fitted.constants, **constants})
    blank = {k: v for k, v in fitted._blank_rows().items() if k not in per_datum}
    bound, params = fitted.bind(b, {**blank, **{k: v[:1] for k, v in per_datum.items()}})
    annealer = method.annealer(bound)

    def run(params: Any, given: Any, key: Any, size: int) -> tuple:
        k_data, k_pilot, k_forward, k_reverse = b.split(key, 4)
        sites = bound.trace(params, given, key=k_data, batch_size=size, condition=False)
        made = {n: sites[n].value for n in (*bound.observed, *bound.latents)}
        batch = {**given, **{n: made[n] for n in bound.observed}}
        table = annealer.step_sizes(params, batch, k_pilot)
        forward = annealer.forward(params, batch, k_forward, table)
        start = {
            n: b.ops.broadcast_to(made[n][None], (method.num_chains, *made[n].shape))
            for n in bound.latents
        }
        u = annealer.path.enter(start, params, batch)
        reverse = annealer.reverse(params, batch, k_reverse, table, u)
        return forward._asdict(), reverse._asdict(), made

    loops: dict[int, Any] = {}
    key, parts = b.key(seed), []
    with bar(num_simulations, wanted=progress_bar, unit="datum") as shown:
        for first in range(0, num_simulations, chunk_size):
            size = min(chunk_size, num_simulations - first)
            if size not in loops:
                loops[size] = b.compile(lambda p, g, k, size=size: run(p, g, k, size), over="steps")
            given = {k: b.asarray(v[first : first + size]) for k, v in per_datum.items()}
            try:
                rows = b.row_keys(key, np.arange(first, first + size))
                out = loops[size](params, given, rows)
            except NotByRow:
                out = loops[size](params, given, b.fold_in(key, first))
            parts.append(b.tree_map(b.to_numpy, out))
            shown(size)
    forward, reverse, data = b.tree_map(lambda *x: np.concatenate(x), *parts)
    return _bracket(forward, reverse, data, method, {"backend": b.name, "seed": seed, **b.info()})


def _bracket(forward: dict, reverse: dict, data: dict, method: AIS, info: dict) -> Bracket:
    low = summary(in_double(forward["log_w"], forward["log_w_rest"]))
    high = summary(in_double(reverse["log_w"], reverse["log_w_rest"]))
    for name, out in (("forward", low), ("reverse", high)):
        bad = np.flatnonzero(np.isnan(out["estimate"]))
        if len(bad):
            raise NonFiniteError(
                f"bdmc: the {name} estimate is NaN for {len(bad)} data, the first is {bad[0]}; "
                "look at the model's parameters for NaN."
            )
    return Bracket(
        low["estimate"], -high["estimate"], low["standard_error"], high["standard_error"],
        low["effective_chains"], forward["acceptance_rate"], data, method, info,
    )  # fmt: skip
