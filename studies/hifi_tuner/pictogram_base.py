"""The base that people look at: a diffusion of pictograms in quiet scenes, given their captions.

Eight nouns of three artists, in half of the pictures of another hue, on four drawn scenes. A U-Net
reads blocks of 2 x 2 pixels; noise levels and captions are as of `base`. The flat octopus is never
shown: its words are, so that the base could draw it, and it is the individual to be learned.
"""

from __future__ import annotations

from pathlib import Path

from probgen import nets
from probgen.backends.protocol import Backend
from probgen.data import (
    PICTOGRAM_COLORS,
    PICTOGRAM_RENDITIONS,
    PICTOGRAM_SCENES,
    Pictograms,
    pictograms,
)
from probgen.engine.fitted import Fitted
from probgen.language.declared import declaration
from probgen.language.kinds import CountOrZero, Many, OpenShare, Positive, Width, Widths
from probgen.models import Diffusion, NoiseSchedule
from studies.hifi_tuner.base import kept, learned

NOUNS = ("octopus", "penguin", "rocket", "teapot", "umbrella", "cactus", "crown", "fish")
SCENES = ("sky", "night", "snow", "lawn")
SUBJECT = ("octopus", "flat")


@declaration
class Settings:
    """Sizes of the base; `quick()` is for tests of the functions, not for numbers.

    Args:
        channels: of the U-Net, whose coarsest level has attention. dim, length: of the captions.
        size: side of a picture. num_noise_steps: T, of the schedule and of `DDIM`.
        num_pictures: that are drawn once and learned from.
        num_updates, batch_size, learning_rate, ema_decay: of the fit, Adam with half a cosine.
    """

    channels: Widths = (48, 96)
    dim: Width = 64
    length: Width = 12
    size: Width = 24
    num_noise_steps: Width = 50
    num_pictures: Width = 20_000
    num_updates: CountOrZero = 12_000
    batch_size: Many = 48
    learning_rate: Positive = 1e-3
    ema_decay: OpenShare = 0.999

    @classmethod
    def quick(cls) -> Settings:
        """Seconds of work."""
        return cls((4, 8), 8, size=8, num_noise_steps=3, num_pictures=16, num_updates=2,
                   batch_size=4)  # fmt: skip

    @property
    def text(self) -> nets.TextEncoder:
        """Words to rows of the context."""
        words = ("a", "on", *NOUNS, *PICTOGRAM_RENDITIONS, *PICTOGRAM_COLORS, *PICTOGRAM_SCENES)
        return nets.TextEncoder(words, length=self.length, dim=self.dim)

    @property
    def model(self) -> Diffusion:
        """Data in [-1, 1]."""
        unet = nets.UNet(self.channels, attention_levels=(len(self.channels) - 1,))
        return Diffusion(
            nets.Unshuffled(unet), (self.size, self.size, 3),
            NoiseSchedule(self.num_noise_steps, "clipped_cosine"), "v_prediction",
            condition=self.text, data_range=(-1.0, 1.0),
        )  # fmt: skip

    def pictures(self, count: int, seed: int) -> Pictograms:
        """What the base learns from: large objects, and the subject not among them."""
        return pictograms(
            count, seed, size=self.size, nouns=NOUNS, scenes=SCENES, scale=(0.65, 0.9),
            held_out=[SUBJECT],
        )  # fmt: skip


def pictogram_base(
    folder: str | Path | None = None,
    *,
    backend: str | Backend = "auto",
    seed: int = 0,
    settings: Settings | None = None,
) -> Fitted:
    """The base, read from `folder` where it lies there, else learned, and written there.

    Args:
        folder: where it is kept; None learns it anew, some 40 minutes of one CPU core.
        backend: that it is learned on; it is used on either.
        seed: of pictures and fit.
        settings: None for those of the study.

    Raises:
        SaveError: what lies in the folder is no saved fit.
    """
    settings = settings or Settings()

    def learn() -> Fitted:
        return learned(settings, settings.pictures(settings.num_pictures, seed), seed, backend)

    return kept(folder, learn)
