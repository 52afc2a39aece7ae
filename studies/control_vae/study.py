"""ControlVAE on digits and MNIST: fits at set points of the KL, and what is read off them.

Digits of 8x8 pixels, binarised above 0.5, 1437 to train and 360 to test, MLPs 64-128-2d with d = 8,
Bernoulli, Adam 1e-3, batches of 128; of MNIST 4000 and 1000, a width of 256 and d = 16. Fits are
kept for the process, since several checks look at the same one; pictures are in `figures`.

Source: Shao et al. 2020, arXiv:2004.05988.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

import probgen as pg
from probgen import dist, nets
from probgen.inference import ELBO, PI, SVI, ControlledELBO
from probgen.models import VAE

BATCH = 128
ROWS: dict[str, list[str]] = {}  # of the printed table, by backend


class Run(NamedTuple):
    """A fit and what the checks look at: means over the last 1000 steps, R and K on both sets."""

    fitted: pg.Fitted
    kl: float
    beta: float
    elbo: float
    train: dict
    test: dict

    @property
    def history(self) -> Any:
        """Of the fit."""
        return self.fitted.history


@functools.cache
def data(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(to train, to test) of "digits" or "mnist", binary."""
    images = {"digits": pg.data.digits, "mnist": pg.data.mnist5k}[name]().images
    x = (images > 0.5).astype(np.float32)
    x = x[np.random.default_rng(0).permutation(len(x))]
    size = {"digits": 1437, "mnist": 4000}[name]
    return x[:size], x[size:]


def vae(name: str) -> VAE:
    """The model of a data set."""
    shape = data(name)[0].shape[1:]
    width, d = {"digits": (128, 8), "mnist": (256, 16)}[name]
    return VAE(
        latent=dist.Normal(0, 1).expand([d]).to_event(1),
        decoder=nets.MLP(hidden=(width,), out=shape),
        likelihood=dist.Bernoulli,
        encoder=nets.MLP(hidden=(width,), out=d, heads=("loc", "log_scale")),
    )


@functools.cache
def run(backend_name: str, loss: ELBO, steps: int = 6000, name: str = "digits") -> Run:
    """A fit of `loss` and what is measured of it; a row of `table`."""
    train, test = data(name)
    fitted = pg.fit(
        vae(name), train, SVI(loss, pg.Adam(1e-3)), num_steps=steps, batch_size=BATCH,
        seed=0, backend=backend_name, progress_bar=False,
    )  # fmt: skip
    history = fitted.history
    kl, beta, elbo = (history.last(k, 1000) for k in ("kl", "kl_weight", "elbo"))
    measured = [measured_on(backend_name, fitted, x) for x in (train, test)]
    row = f"{kl:8.3f} {beta:7.3f} {measured[0]['log_prob']:9.2f} {measured[0]['elbo']:9.2f}"
    row += f" {measured[1]['kl']:8.3f} {measured[1]['log_prob']:9.2f} {measured[1]['elbo']:9.2f}"
    title = f"{name} {steps} " + title_of(loss)
    ROWS.setdefault(backend_name, []).append(f"{title:44s} {row}")
    return Run(fitted, kl, beta, elbo, *measured)


def title_of(loss: ELBO) -> str:
    """The loss in a word, for the table."""
    if not isinstance(loss, ControlledELBO):
        return f"fixed beta {loss.kl_weight}"
    c = loss.set_point if isinstance(loss.set_point, float | int) else loss.set_point.start
    return f"C {c:.2f} Ki {loss.controller.ki:g} beta >= {loss.controller.beta_min:g}"


def measured_on(backend_name: str, fitted: pg.Fitted, x: np.ndarray) -> dict:
    """K, R and the ELBO with beta = 1 on a whole set, by 64 draws for each datum."""
    b = pg.backends.load(backend_name, "cpu")
    bound, params = fitted.bind(b, {"x": x[:1]})
    evaluate = b.compile(functools.partial(ELBO(num_particles=64).evaluate, bound), num_calls=8)
    sums: dict[str, float] = {}
    for start in range(0, len(x), 500):
        rows = {"x": b.asarray(x[start : start + 500])}
        found = evaluate(params, rows, b.key(start))
        for key in ("kl", "log_prob", "elbo"):
            part = float(b.to_numpy(found[key])) * len(x[start : start + 500]) / len(x)
            sums[key] = sums.get(key, 0.0) + part
    return sums


def controlled(c: float, ki: float = 1e-3, **options: Any) -> ControlledELBO:
    """The bound with its KL held at c; `options` of the controller."""
    return ControlledELBO(set_point=float(c), controller=PI(ki=ki, **options))


def moving_mean(values: np.ndarray, width: int = 100) -> np.ndarray:
    """Of each `width` values in a row, [n - width + 1]."""
    total = np.cumsum(np.concatenate([[0.0], values]))
    return (total[width:] - total[:-width]) / width


def settling(history: Any, c: float) -> int:
    """The first step from which the 100-step mean of the KL stays within 5% of C."""
    outside = np.flatnonzero(np.abs(moving_mean(history["kl"]) - c) > 0.05 * c)
    return 100 + (outside[-1] + 1 if len(outside) else 0)


def table() -> str:
    """All fits so far, a line each."""
    head = (
        f"{'fit':44s} {'KL':>8} {'beta':>7} {'log p(x|z)':>9} {'ELBO':>9} | test: KL, log p, ELBO"
    )
    parts = []
    for backend_name, rows in ROWS.items():
        parts += [f"\nControlVAE on {backend_name}; nats per datum", head, *rows]
    return "\n".join(parts)
