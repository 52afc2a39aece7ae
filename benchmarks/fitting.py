"""The VAEs of the benchmark, and `pg.fit` on them, a block of steps at a time.

    mlp     784-400-20-400-784
    conv    1-32-64 channels, 4 x 4 kernels of stride 2, and transposed back

5,000 binary images of 28 x 28 in batches of 128, Adam at 1e-3; the loss is the ELBO with the KL in
closed form, on every side. What is timed of ours is `pg.fit` itself: it runs in a thread of its own
that a callback holds between two chunks of steps, so a block is one chunk with all that goes with
it (rows of the shuffled order, the guard's copy and check, the history). Peers loop over their
update as their users do.
"""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from harness import Agreement, Contest, Setting, Side, Target

import probgen as pg
from probgen import backends, dist, nets
from probgen.data.sources import as_source
from probgen.engine.bind import bind
from probgen.inference import ELBO, SVI
from probgen.models import VAE

BATCH, LATENT, NUM_DATA = 128, 20, 5000
STEPS = 53  # a block; a prime, so that it is the one length of a chunk that divides NUM_STEPS
NUM_STEPS = STEPS * 1009


class Fit(NamedTuple):
    """One side that trains.

    Attributes:
        block: () -> None, so many steps.
        loss: (number of draws) -> the loss of the first batch, nats per datum, for fresh draws.
    """

    block: Callable[[], None]
    loss: Callable[[int], np.ndarray]


def images() -> np.ndarray:
    """Noisy blobs, [n, 28, 28, 1] in {0, 1}."""
    rng = np.random.default_rng(0)
    x, y, width = rng.uniform(6, 22, (3, NUM_DATA, 1, 1))
    rows, columns = np.mgrid[0:28, 0:28]
    blob = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * (2 + width / 8) ** 2))
    return (blob > rng.random(blob.shape) * 0.9).astype(np.float32)[..., None]


def vae(kind: str) -> VAE:
    """The declaration."""
    heads = ("loc", "log_scale")
    if kind == "mlp":
        decoder: Any = nets.MLP(hidden=(400,), out=(28, 28, 1))
        encoder: Any = nets.MLP(hidden=(400,), out=LATENT, heads=heads)
    else:
        decoder = nets.ConvDecoder(channels=(64, 32), out=(28, 28, 1))
        encoder = nets.ConvEncoder(channels=(32, 64), out=LATENT, heads=heads)
    latent = dist.Normal(0, 1).expand([LATENT]).to_event(1)
    return VAE(latent=latent, decoder=decoder, likelihood=dist.Bernoulli, encoder=encoder)


class Held(pg.Callback):
    """Runs a fit in a thread; `advance` lets it do one chunk of steps and holds it again."""

    def __init__(self, fit: Callable[[pg.Callback], Any]):
        self._fit, self._progress = fit, None
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        threading.Thread(target=self._run, daemon=True).start()
        self._wait()

    def _run(self) -> None:
        try:
            self._fit(self)
        except BaseException as error:  # shown by the thread that waits for the block
            self._error = error
        self._done.release()

    def on_start(self, progress: Any) -> None:
        self._progress = progress
        self._done.release()
        self._go.acquire()

    def on_chunk(self, progress: Any, metrics: Any) -> None:
        if len(metrics["loss"]) != STEPS:
            raise RuntimeError(f"a chunk of {len(metrics['loss'])} steps, expected {STEPS}")
        self._done.release()
        self._go.acquire()

    def advance(self) -> None:
        self._go.release()
        self._wait()

    def _wait(self) -> None:
        self._done.acquire()
        if self._error is not None:
            raise self._error

    def params(self) -> dict | None:
        """Current parameters; None before the first step."""
        return None if self._progress.step == 0 else self._progress.params()


def held_fit(model: Any, data: np.ndarray, b: Any, **more: Any) -> Held:
    """`pg.fit` by the ELBO, held before its first chunk."""
    return Held(
        lambda callback: pg.fit(
            *(model, data, SVI(ELBO(), pg.Adam(1e-3))),
            num_steps=NUM_STEPS,
            batch_size=BATCH,
            seed=0,
            backend=b,
            progress_bar=False,
            callbacks=[callback],
            **more,
        )
    )


def declared(kind: str, backend: str, setting: Setting, **options: Any) -> Fit:
    """`pg.fit` of the declaration."""
    b = backends.load(backend, setting.device, **options)
    held = held_fit(vae(kind), images(), b)
    loss, first = ELBO(), as_source(images(), batch_size=BATCH, seed=0).example()
    bound, initial = bind(vae(kind), b, data=first, num_data=NUM_DATA)
    rows = {k: b.asarray(v) for k, v in first.items()}
    evaluate = b.compile(lambda p, key: loss.evaluate(bound, p, rows, key)["elbo"], num_calls=50)

    def losses(count: int) -> np.ndarray:
        trained = b.tree_map(b.asarray, held.params() or initial)
        keys = b.split(b.key(7), count)
        return -np.array([float(evaluate(trained, keys[i])) for i in range(count)])

    return Fit(held.advance, losses)


def initial_params(kind: str) -> dict[str, Any]:
    """The parameters that our side starts from, numpy, canonical layouts; peers start there too."""
    from probgen.trees import tree_map

    name = next(n for n, there in backends.available().items() if there)
    b = backends.load(name, "cpu")
    _, params = bind(vae(kind), b, data={"x": images()[:1]}, num_data=NUM_DATA)
    return tree_map(b.to_numpy, params)


def batches(data: np.ndarray | None = None) -> Callable[[], np.ndarray]:
    """() -> indices [STEPS, batch] of the next block, in the shuffled order that `pg.fit` uses."""
    data = images() if data is None else data
    source, step = as_source(data, batch_size=BATCH, seed=0), [0]

    def following() -> np.ndarray:
        indices = source.schedule(step[0], STEPS)
        step[0] += STEPS
        return indices

    return following


def same_objective(ours: np.ndarray, peer: np.ndarray) -> Agreement:
    """Losses before any step, from equal parameters: means that differ by their noise alone."""
    error = np.hypot(ours.std(ddof=1) / len(ours) ** 0.5, peer.std(ddof=1) / len(peer) ** 0.5)
    return Agreement("loss at the start, s.e.", float(abs(ours.mean() - peer.mean()) / error), 5.0)


def same_training(ours: Fit, peer: Fit, draws: int) -> Agreement:
    """Losses after as many steps: a side that left out work would not have come as far."""
    a, b = ours.loss(draws).mean(), peer.loss(draws).mean()
    return Agreement("loss after training, relative", float(abs(a - b) / abs(b)), 0.03)


def versus(
    name: str,
    makers: dict[str, Callable[[], Fit]],
    asked: dict[tuple[str, str], Any],
    setting: Setting,
) -> Contest:
    """A contest of fits: images per second, one objective at the start, and one result after."""
    wanted = dict.fromkeys(side for pair in asked for side in pair)
    fits = {side: makers[side]() for side in wanted}
    draws = 10 if setting.tiny else 50
    for ours, peer in asked:
        check = same_objective(fits[ours].loss(draws), fits[peer].loss(draws))
        if not check.holds:
            raise SystemExit(f"{name}: {ours} and {peer} do not start alike: {check}")
    return Contest(
        name,
        "images",
        {side: Side(fit.block, STEPS * BATCH) for side, fit in fits.items()},
        [
            Target(
                *(ours, peer, ratio),
                partial(same_training, fits[ours], fits[peer], draws),
            )
            for (ours, peer), ratio in asked.items()
        ],
    )
