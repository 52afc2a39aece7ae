"""Diffusions of larger pictures by their class: MNIST, and pictograms in colour.

    mnist5k      5,000 grey digits of 28 x 28 pixels, 4,000 to learn from
    pictograms   ten nouns of 16 x 16 pixels, each as three individuals, on four quiet scenes

Judged without a network: `right` is the share of samples whose nearest picture, among those that
were learned from, is of the class that was asked for (of held-out pictures: how good that judge
is); Frechet's distance is of 50 principal components. Samples are arrays, and never image files.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from typing import Any, Literal

import numpy as np

import probgen as pg
from probgen import nets
from probgen.backends import load
from probgen.backends.protocol import Backend
from probgen.evaluation.samples import frechet_distance
from probgen.inference import DDIM, Denoising
from probgen.language.declared import declaration
from probgen.language.kinds import Count, Many, OpenShare, Positive, Width, Widths
from probgen.models import Diffusion, NoiseSchedule

Data = Literal["mnist5k", "pictograms"]
SHAPES = {"mnist5k": (28, 28, 1), "pictograms": (16, 16, 3)}
NUM_TRAIN = {"mnist5k": 4000, "pictograms": 3000}
NUM_HELD_OUT = {"mnist5k": 1000, "pictograms": 500}
NOUNS = (
    "apple", "balloon", "butterfly", "cherries", "clock", "fish", "flamingo", "octopus", "penguin",
    "sunflower",
)  # fmt: skip
QUIET = ("sky", "night", "snow", "lawn")


@declaration
class Settings:
    """Sizes of a run; `quick()` is for tests of the functions.

    Args:
        hidden: of the denoiser where it is an MLP of all pixels.
        channels: of a U-Net in its place, for whoever has a GPU; None is the MLP.
        num_updates, batch_size, learning_rate, ema_decay: of the fit, Adam with half a cosine.
        num_calls: of the network, for a sample by DDIM.
        num_samples: that are judged.
    """

    hidden: tuple[Width, ...] = (512, 512, 512)
    channels: Widths | None = None
    num_updates: Count = 3000
    batch_size: Many = 64
    learning_rate: Positive = 1e-3
    ema_decay: OpenShare = 0.99
    num_calls: Many = 50
    num_samples: Many = 500

    @classmethod
    def quick(cls) -> Settings:
        """Seconds of work."""
        return cls((4,), num_updates=2, batch_size=8, num_calls=2, num_samples=100)

    def model(self, data: Data) -> Diffusion:
        """The declaration: of vectors for the MLP, of pictures for the U-Net.

        The MLP is narrower than a picture and cannot carry its noise, so that it tells x_0.
        """
        shape = SHAPES[data] if self.channels else (math.prod(SHAPES[data]),)
        net: Any = (
            nets.UNet(self.channels, attention_levels=(len(self.channels) - 1,))
            if self.channels
            else nets.MLPDenoiser(shape[0], self.hidden)
        )
        schedule = NoiseSchedule.rescaled(1000, "squaredcos_cap_v2")
        said: Any = "v_prediction" if self.channels else "sample"
        return Diffusion(net, shape, schedule, said, nets.ClassEmbedding(10, 32))


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """[n, h, w, c] in [-1, 1], and the class of each [n], 0 ... 9."""

    x: np.ndarray
    labels: np.ndarray


@functools.cache
def sets(data: Data, seed: int) -> tuple[Pictures, Pictures]:
    """(learned from, held out)."""
    counts = NUM_TRAIN[data], NUM_HELD_OUT[data]
    if data == "mnist5k":
        both = pg.data.split(pg.data.mnist5k(), counts, seed=seed, stratify=True)
        train, test = (
            Pictures(2.0 * s.images - 1.0, s.labels.astype(np.int64)) for s in both
        )  # fmt: skip
        return train, test
    return _pictograms(counts[0], 2 * seed), _pictograms(counts[1], 2 * seed + 1)


def _pictograms(count: int, seed: int) -> Pictures:
    """As large as the picture and of their own hue: mirrored or not, on one of four scenes."""
    drawn = pg.data.pictograms(
        count, seed, size=SHAPES["pictograms"][0], nouns=NOUNS, scenes=QUIET, hue=0.0,
        scale=(1.0, 1.0), words="noun",
    )  # fmt: skip
    known = [pg.data.pictogram_nouns().index(noun) for noun in NOUNS]
    return Pictures(drawn["x"], np.searchsorted(known, drawn["noun"]))


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One fit.

    Attributes:
        right: share of samples of averaged weights that look most like the class asked for, and
            the half of its 95 % interval; `raw_right` of the last weights; `judge` of held-out
            pictures.
        distance: Frechet's to held-out pictures, and half of its interval; `raw_distance`;
            `floor` of as many pictures that were learned from.
        seconds: of the fit, CPU; `per_thousand` samples.
        x, asked: samples [n, h, w, c] in [-1, 1] and their classes.
    """

    data: str
    seed: int
    right: tuple[float, float]
    raw_right: float
    judge: float
    distance: tuple[float, float]
    raw_distance: float
    floor: float
    seconds: float
    per_thousand: float
    fitted: pg.Fitted
    x: np.ndarray
    asked: np.ndarray


def learn(settings: Settings, data: Data, seed: int, backend: Backend) -> pg.Fitted:
    """The conditional denoiser."""
    train = sets(data, seed)[0]
    model = settings.model(data)
    optimizer = pg.Adam(pg.CosineDecay(settings.learning_rate, settings.num_updates))
    return pg.fit(
        model, train.x.reshape(-1, *model.shape), Denoising(optimizer),
        inputs={"condition": train.labels}, num_steps=settings.num_updates,
        batch_size=settings.batch_size, ema_decay=settings.ema_decay, seed=seed, backend=backend,
        progress_bar=False,
    )  # fmt: skip


def draw(
    settings: Settings,
    data: Data,
    fitted: pg.Fitted,
    asked: np.ndarray,
    seed: int,
    backend: Backend,
) -> np.ndarray:
    """[n, h, w, c] in [-1, 1], a sample of each class that is asked for."""
    x = pg.generate(
        fitted, len(asked), inputs={"condition": asked}, method=DDIM(settings.num_calls), seed=seed,
        backend=backend,
    )["x"]  # fmt: skip
    return np.clip(np.asarray(x).reshape(-1, *SHAPES[data]), -1.0, 1.0)


def nearest(x: np.ndarray, known: Pictures) -> np.ndarray:
    """[n] class of the nearest known picture of each, by the distance of pixels."""
    a, b = x.reshape(len(x), -1), known.x.reshape(len(known.x), -1)
    return known.labels[((b**2).sum(1) - 2.0 * a @ b.T).argmin(1)]


def run(settings: Settings, data: Data, seed: int = 0, backend: str | Backend = "jax") -> Run:
    """Fitted, drawn and judged."""
    train, test = sets(data, seed)
    b = load(backend, "cpu") if isinstance(backend, str) else backend
    begun = time.process_time()
    fitted = learn(settings, data, seed, b)
    learned = time.process_time()
    asked = test.labels[: settings.num_samples]
    x = draw(settings, data, fitted, asked, seed, b)
    drawn = time.process_time()
    raw = draw(settings, data, fitted.raw, asked, seed, b)
    half, other = test.x[: len(asked)], train.x[: len(asked)]

    def distance(fake: np.ndarray) -> Any:
        return frechet_distance(half, fake, features="pca50").fd

    right = float((nearest(x, train) == asked).mean())
    found = distance(x)
    return Run(
        data, seed, (right, 1.96 * math.sqrt(right * (1 - right) / len(asked))),
        float((nearest(raw, train) == asked).mean()),
        float((nearest(test.x, train) == test.labels).mean()),
        (found.value, (found.high - found.low) / 2.0), distance(raw).value, distance(other).value,
        learned - begun, (drawn - learned) * 1000 / len(asked), fitted, x, asked,
    )  # fmt: skip


def table(runs: list[Run]) -> str:
    """A line a run."""
    lines = [
        "| run | right | last weights | held-out pictures | Frechet | last weights | pictures "
        "| fit, s | s per 1,000 |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for r in runs:
        lines.append(
            f"| {r.data}, seed {r.seed} | {r.right[0]:.3f} ± {r.right[1]:.3f} | {r.raw_right:.3f} "
            f"| {r.judge:.3f} | {r.distance[0]:.1f} ± {r.distance[1]:.1f} | {r.raw_distance:.1f} "
            f"| {r.floor:.1f} | {r.seconds:.0f} | {r.per_thousand:.1f} |"
        )
    return "\n".join(lines)
