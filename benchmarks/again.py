"""The second call of a verb against the first: what a call compiles, the next one finds.

The VAE of 784-400-20 units: `pg.fit` of 20 steps, and `pg.evaluate` of 256 images by the ELBO and
IWAE, whole calls. The second call has other data and another seed; the first one begins with
`backends.forget()`. Both sides of a contest are ours.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import fitting
import numpy as np
from harness import Agreement, Contest, Setting, Side, Target

import probgen as pg
from probgen import backends
from probgen.inference import ELBO, IWAE, SVI
from probgen.trees import tree_leaves

STEPS, ROWS = 20, 256
ASKED = {
    ("fit", "jax"): 6.0,
    ("evaluate", "jax"): 10.0,
    ("fit", "torch"): 1.0,
    ("evaluate", "torch"): 0.95,  # tracing is a hundredth of a call there
}


def fitted(b: Any, data: np.ndarray, seed: int) -> Any:
    return pg.fit(
        fitting.vae("mlp"), data, SVI(ELBO(), pg.Adam(1e-3)),
        num_steps=STEPS, batch_size=fitting.BATCH, seed=seed, backend=b, progress_bar=False,
    )  # fmt: skip


def contests(setting: Setting, only: str = "") -> Iterator[Contest]:
    images = fitting.images()
    for backend in ("jax", "torch"):
        if not backends.available()[backend]:
            continue
        b = backends.load(backend, setting.device)
        start = fitted(b, images, 0)

        def fit(seed: int, b: Any = b) -> np.ndarray:
            weights = fitted(b, np.roll(images, seed, axis=0), seed).params["decoder"]
            return np.concatenate([np.ravel(w) for w in tree_leaves(weights)])

        def evaluate(seed: int, b: Any = b, start: Any = start) -> np.ndarray:
            rows, measures = np.roll(images, seed, axis=0)[:ROWS], [ELBO(), IWAE(16)]
            out = pg.evaluate(start, rows, measures, seed=seed, backend=b, progress_bar=False)
            return np.concatenate([out[m.name]["estimate"] for m in measures])

        for verb, run in (("fit", fit), ("evaluate", evaluate)):
            name = f"{verb} again, {backend}"
            if only in name:
                yield contest(name, run, ASKED[verb, backend])


def contest(name: str, run: Callable[[int], np.ndarray], at_least: float) -> Contest:
    """One verb, as `run(seed)`."""
    seed = [1]

    def second() -> None:
        seed[0] += 1
        run(seed[0])

    def first() -> None:
        backends.forget()
        run(1)

    ours, peer = "second call", "first call"
    return Contest(
        name, "calls", {peer: Side(first), ours: Side(second)},
        [Target(ours, peer, at_least, partial(same, run))],
    )  # fmt: skip


def same(run: Callable[[int], np.ndarray]) -> Agreement:
    """What a kept program gives, and one compiled anew."""
    kept = run(1)
    backends.forget()
    return Agreement("difference", float(np.abs(kept - run(1)).max()), 0.0)
