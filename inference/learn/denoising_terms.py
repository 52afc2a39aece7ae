"""At which noise levels a denoiser is trained, and what its error counts there.

With SNR = alpha_bar / (1 - alpha_bar), a loss is w |x_0 - x_0^|^2 for the estimate x_0^ of the
datum that the prediction is. Errors of the three kinds of prediction are multiples of each other,

    |eps - eps^|^2 = SNR |x_0 - x_0^|^2,        |v - v^|^2 = |x_0 - x_0^|^2 / (1 - alpha_bar),

so a weight w means the same whatever the net predicts:

    uniform    1 on the prediction's own error: SNR, 1 or 1 / (1 - alpha_bar) on that of x_0
    min_snr    w = min(SNR, gamma)
    edm        w = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2, sigma^2 = 1 / SNR
    flow_matching
               w = (1 + sqrt(SNR))^2, that of |u - u^|^2 for the velocity u = eps - x of the
               straight line (1 - s) x + s eps, s / (1 - s) = sigma
    elbo       w = c_t^2 / (2 std_t^2) of the chain's step (`denoising_elbo`), in nats

Sources: Hang et al. 2023, arXiv:2303.09556 (min_snr); Karras et al. 2022, arXiv:2206.00364, table 1
(edm); Lipman et al. 2023, arXiv:2210.02747 (flow_matching); Ho, Jain & Abbeel 2020,
arXiv:2006.11239 (uniform, elbo).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from probgen.backends.protocol import Backend
from probgen.inference.likelihood.denoising_elbo import step_weights

Array = Any
PARTS = 16  # of the way between two steps, within which the noise level is interpolated linearly


def steps(backend: Backend, model: Any) -> Callable:
    """(key, n) -> times [n], uniform on the steps, and "signal", "noise" and "bound", the weight of
    "elbo", [n] each."""
    ops, table = backend.ops, model.table()
    columns = {k: table[k] for k in ("signal", "noise")} | {"bound": step_weights(table)}
    arrays = {k: backend.asarray(v) for k, v in columns.items()}

    def draw(key: Any, n: int) -> tuple[Array, dict[str, Array]]:
        t = backend.randint(key, (n,), 0, len(table["signal"]))
        return 1.0 * t, {k: ops.take(v, t) for k, v in arrays.items()}

    return draw


def continuous_times(backend: Backend, model: Any) -> Callable:
    """(key, n) -> times [n], uniform from the first step to the last, and "signal" and "noise".

    The noise level at a fraction is that at which `ProbabilityFlow` asks for this fraction.
    """
    ops = backend.ops
    angles = model.schedule.angles(PARTS)
    table, last = backend.asarray(angles), len(angles) - 1

    def draw(key: Any, n: int) -> tuple[Array, dict[str, Array]]:
        place = backend.uniform(key, (n,)) * last
        cell = ops.clip(ops.floor(place), 0.0, last - 1.0)
        low, share = ops.cast(cell, "int32"), place - cell
        angle = ops.take(table, low) * (1.0 - share) + ops.take(table, low + 1) * share
        return place / PARTS, {"signal": ops.cos(angle), "noise": ops.sin(angle)}

    return draw


def weight(
    weighting: str, prediction_type: str, row: Mapping, *, gamma: float, sigma_data: float, ops: Any
) -> Array:
    """What the squared error of a prediction counts at a noise level; see the module. Where all
    count the same, "uniform", there is none."""
    snr = (row["signal"] / row["noise"]) ** 2
    of_x0 = {
        "min_snr": lambda: ops.minimum(snr, snr * 0.0 + gamma),
        "edm": lambda: snr + 1.0 / sigma_data**2,
        "flow_matching": lambda: (1.0 + row["signal"] / row["noise"]) ** 2,
        "elbo": lambda: row["bound"],
    }[weighting]()
    if prediction_type == "sample":
        return of_x0
    return of_x0 / snr if prediction_type == "epsilon" else of_x0 * row["noise"] ** 2
