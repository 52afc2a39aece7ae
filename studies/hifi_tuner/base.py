"""The frozen base of the 8 x 8 bed: a diffusion of sprites given their captions.

A transformer over patches of 2 x 2 pixels predicts v; 50 noise levels go from alpha_bar 0.995 to
0.001 in equal angles. They are the levels that `DDIM(50)` visits, all of them, so that "the t-th
step" means one thing to the base, the sampler, the inversion and step-wise embeddings. A tenth of
the captions is empty, which is what classifier-free guidance needs: the learner drops none itself.

Source: Wang et al. 2023, arXiv:2312.00079, for what is learned on top of it; numbers are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import probgen as pg
from probgen import nets
from probgen.backends.protocol import Backend
from probgen.data import SPRITE_COLORS, SPRITE_NOUNS, SPRITE_SCENES, Pictograms, Sprites, sprites
from probgen.data.sprites import Colors
from probgen.engine.fitted import Fitted
from probgen.inference import DDIM, Denoising
from probgen.language.declared import declaration
from probgen.language.kinds import CountOrZero, Many, OpenShare, Positive, Width
from probgen.models import Diffusion, NoiseSchedule
from studies.hifi_tuner.scores import nearest_scene, subject_error

SUBJECT: Colors = ("red", "blue", "green")


@declaration
class Settings:
    """Sizes of the base; `quick()` is for tests of the functions, not for numbers.

    Args:
        width, num_layers, patch: of the denoiser. length: L of the captions.
        num_noise_steps: T, of the schedule and of `DDIM`.
        num_pictures: that are drawn once and learned from.
        num_updates, batch_size, learning_rate, ema_decay: of the fit, Adam with half a cosine.
    """

    width: Width = 64
    num_layers: Width = 3
    patch: Width = 2
    length: Width = 10
    num_noise_steps: Width = 50
    num_pictures: Width = 40_000
    num_updates: CountOrZero = 9000
    batch_size: Many = 64
    learning_rate: Positive = 2e-3
    ema_decay: OpenShare = 0.999

    @classmethod
    def quick(cls) -> Settings:
        """Seconds of work."""
        return cls(8, 1, num_noise_steps=3, num_pictures=64, num_updates=2, batch_size=8)

    @property
    def text(self) -> nets.TextEncoder:
        """Words to rows of the context."""
        words = ("a", "on", *SPRITE_COLORS, *SPRITE_NOUNS, *SPRITE_SCENES)
        return nets.TextEncoder(words, length=self.length, dim=self.width)

    @property
    def model(self) -> Diffusion:
        """Data in [-1, 1]."""
        denoiser = nets.PatchTransformer(
            patch=self.patch, width=self.width, num_layers=self.num_layers
        )
        schedule = NoiseSchedule(self.num_noise_steps, "clipped_cosine")
        return Diffusion(
            denoiser, (8, 8, 3), schedule, "v_prediction", condition=self.text,
            data_range=(-1.0, 1.0),
        )  # fmt: skip


def sprite_base(
    folder: str | Path | None = None,
    *,
    backend: str | Backend = "auto",
    seed: int = 0,
    settings: Settings | None = None,
) -> Fitted:
    """The base, read from `folder` where it lies there, else learned, and written there.

    Args:
        folder: where it is kept; None learns it anew.
        backend: that it is learned on; it is used on either.
        seed: of pictures and fit.
        settings: None for those of the study.

    Raises:
        SaveError: what lies in the folder is no saved fit.
    """
    settings = settings or Settings()

    def learn() -> Fitted:
        return learned(settings, sprites(settings.num_pictures, seed), seed, backend)

    return kept(folder, learn)


def kept(folder: str | Path | None, learn: Callable[[], Fitted]) -> Fitted:
    """What lies in the folder, else what is learned, and written there; None keeps nothing."""
    if folder is not None and Path(folder).is_dir():
        return Fitted.from_pretrained(folder)
    fitted = learn()
    if folder is not None:
        fitted.save_pretrained(folder)
    return fitted


def learned(
    settings: Any, pictures: Sprites | Pictograms, seed: int, backend: str | Backend
) -> Fitted:
    """The model of `settings`, fitted to pictures and their captions as they say."""
    adam = pg.Adam(pg.CosineDecay(settings.learning_rate, settings.num_updates))
    return pg.fit(
        settings.model, pictures["x"], Denoising(adam, condition_dropout=0.0),
        inputs={"condition": settings.text.tokens(pictures["captions"])},
        num_steps=settings.num_updates, batch_size=settings.batch_size, seed=seed,
        ema_decay=settings.ema_decay, backend=backend, progress_bar=False,
    )  # fmt: skip


def drawn(
    base: Fitted,
    captions: list[str],
    seed: int = 0,
    *,
    guidance_scale: float = 2.0,
    backend: str | Backend = "auto",
) -> np.ndarray:
    """[n, 8, 8, 3] a picture of each caption, by DDIM."""
    model: Any = base.model
    tokens = model.condition.tokens(captions)
    method = DDIM(model.schedule.num_train_timesteps, guidance_scale=guidance_scale)
    samples = pg.generate(
        base, len(captions), method=method, seed=seed, inputs={"condition": tokens}, backend=backend
    )
    return samples["x"]


def sanity(
    base: Fitted, each: int = 16, seed: int = 0, *, backend: str | Backend = "auto"
) -> dict[str, float]:
    """Check H0: what naming the subject's colours gains, and whether scenes are what was asked for.

    Returns:
        "oracle", "class only": mean subject error of `each` pictures in each scene by captions with
        and without the subject's colours; "oracle scene", "class only scene": shares of those whose
        scene is the one named.
    """
    found = {}
    for name, words in (("oracle", f"a {' '.join(SUBJECT)} disk"), ("class only", "a disk")):
        captions = [f"{words} on {scene}" for scene in SPRITE_SCENES for _ in range(each)]
        x = drawn(base, captions, seed, backend=backend)
        asked = np.repeat(np.arange(len(SPRITE_SCENES)), each)
        found[name] = float(subject_error(x, "disk", SUBJECT).mean())
        found[f"{name} scene"] = float((nearest_scene(x) == asked).mean())
    return found
