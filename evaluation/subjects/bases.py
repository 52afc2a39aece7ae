"""The model that a subject is learned in: a text-conditional diffusion, of pictures or of latents.

    pictures x01 in [0, 1]  ->  values of the base  ->  what its diffusion denoises
    x = low + (high - low) x01                          x itself, or the encoder's mean of z

A base is a folder: of `save_pretrained`, a `Diffusion` or a `VAE` around one; or of diffusers, a
Stable Diffusion, which is such a `VAE`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

import probgen as pg
from probgen import interop
from probgen.backends.protocol import Backend
from probgen.data.files import is_folder
from probgen.data.images import require
from probgen.engine.fitted import Fitted
from probgen.errors import DataError, DeclarationError, SaveError
from probgen.inference import DDIM
from probgen.language.capabilities import prior_of
from probgen.models import Diffusion
from probgen.nets.subject import SubjectTokens

PIPELINE, SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"
STEPS = 50  # of the sampler, where nothing is asked for and the chain has as many
KINDS = (
    "a Diffusion with nets.TextEncoder as its condition, or a VAE around one, saved by "
    "save_pretrained, or a Stable Diffusion's folder"
)


@dataclasses.dataclass(frozen=True, eq=False)
class TextBase:
    """A base as `base_of` finds it.

    Attributes:
        path: its folder.
        whole: the model of pictures.
        prior: its `Diffusion`, by itself; `whole` where that has no latent.
        span: smallest and largest value of the pictures that `whole` takes.
        notes: what was decided for it, a sentence each.
    """

    path: Path
    whole: Fitted
    prior: Fitted
    span: tuple[float, float]
    notes: tuple[str, ...]

    @property
    def text(self) -> Any:
        """Its condition net, with `tokens`."""
        return self.prior.model.condition  # type: ignore[attr-defined]

    @property
    def is_latent(self) -> bool:
        return self.prior is not self.whole

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of its pictures."""
        height, width, _ = self.whole.shapes["x"]
        return height, width

    @property
    def total(self) -> int:
        """Steps of the chain."""
        return self.prior.model.schedule.num_train_timesteps  # type: ignore[attr-defined]

    def codes(self, pictures: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """What the diffusion denoises, [n, ...], of pictures [n, h, w, 3] in [0, 1]."""
        low, high = self.span
        x = (low + (high - low) * pictures).astype(np.float32)
        return self.whole.encode({"x": x}, {"condition": ids})["z"] if self.is_latent else x

    def covers(self, masks: np.ndarray) -> np.ndarray:
        """Masks [n, h, w, 1] at the size of what is denoised; from half covered on it counts.

        Raises:
            DataError: latents without places, or so coarse that a mask is empty or full.
        """
        if not self.is_latent:
            return masks
        shape = self.prior.model.shape  # type: ignore[attr-defined]
        if len(shape) != 3:
            raise DataError(
                f"tune: got masks for latents of shape {shape}, expected latents [h, w, c], in "
                "which a mask has places; leave the masks out with --no-mask."
            )
        cover = np.stack([_shrunk(mask[..., 0], shape[:2]) for mask in masks])[..., None]
        for i, each in enumerate(cover, 1):
            if each.min() == each.max():
                raise DataError(
                    f"tune: got a mask of picture {i} that is {'full' if each.max() else 'empty'} "
                    f"at the size of the latents, {shape[0]} x {shape[1]}, expected some of both; "
                    "crop the picture to show the subject larger or smaller, or use --no-mask."
                )
        return cover

    def sampler(self, num_steps: int | None, guidance_scale: float) -> DDIM:
        """DDIM, of a pipeline with its scheduler's own options."""
        steps = min(STEPS, self.total) if num_steps is None else num_steps
        found = _scheduler(self.path)
        if found is None:
            return DDIM(steps, guidance_scale=guidance_scale)
        if found["_class_name"] == "DDIMScheduler":
            folder = (self.path / SCHEDULER).parent
            return interop.sampler_of(folder, steps, guidance_scale=guidance_scale)
        return DDIM(
            steps, guidance_scale=guidance_scale, spacing=found.get("timestep_spacing", "leading"),
            steps_offset=found.get("steps_offset", 0), lands="stride",
            set_alpha_to_one=found.get("set_alpha_to_one", False),
        )  # fmt: skip

    def around(self, prior: Fitted) -> Fitted:
        """The model of pictures with another diffusion, such as a personalised one."""
        return self.whole.with_prior(prior) if self.is_latent else prior

    def draw(
        self, model: Fitted, ids: np.ndarray, method: DDIM, *, each: int, seed: int, backend: Any
    ) -> np.ndarray:
        """[n, h, w, 3] in [0, 1], a picture of each caption's ids [n, L], `each` at a time."""
        low, high = self.span
        x = pg.generate(
            model, len(ids), method=method, inputs={"condition": ids}, seed=seed,
            chunk_size=each, backend=backend,
        )["x"]  # fmt: skip
        return np.clip((x - low) / (high - low), 0.0, 1.0)


def base_of(path: str | os.PathLike, backend: str | Backend = "auto") -> TextBase:
    """Opens a folder as a base that runs on a backend ("auto": the one that fitted it).

    Raises:
        SaveError: no folder, or one of neither kind.
        DeclarationError: a model without text, with a subject in it, or not of colour pictures.
    """
    folder = Path(path)
    if not is_folder(folder):
        raise SaveError(
            f"tune: got the base {str(path)!r}, which is no folder, expected {KINDS}; check --base."
        )
    is_pipeline = (folder / PIPELINE).is_file()
    loaded = pg.from_diffusers(folder) if is_pipeline else Fitted.from_pretrained(folder)
    name = loaded.resolve(backend).name
    whole = dataclasses.replace(loaded, info={**loaded.info, "backend": name})
    prior = whole if prior_of(whole.model) is None else whole.prior
    _check(folder, whole, prior)
    span, notes = _span(folder, whole)
    return TextBase(folder, whole, prior, span, (*notes, *_sampled(folder)))


def _check(folder: Path, whole: Fitted, prior: Fitted) -> None:
    condition = getattr(prior.model, "condition", None)
    if isinstance(condition, SubjectTokens):
        raise DeclarationError(
            f"tune: got the base {folder}, which has a learned subject in it already, expected the "
            "model that it was learned in; give that with --base."
        )
    if not (isinstance(prior.model, Diffusion) and hasattr(condition, "tokens")):
        kind = "no condition" if condition is None else f"the condition {type(condition).__name__}"
        raise DeclarationError(
            f"tune: got the base {folder}, a {whole.model.name} with {kind}, which reads no text, "
            f"expected {KINDS}; give such a model with --base."
        )
    shape = whole.shapes["x"]
    if len(shape) != 3 or shape[-1] != 3:
        raise DeclarationError(
            f"tune: got the base {folder} of data of shape {tuple(shape)}, expected pictures "
            "[height, width, 3]; use pg.fit(Subject(base), ...) from Python for other data."
        )


def _span(folder: Path, whole: Fitted) -> tuple[tuple[float, float], tuple[str, ...]]:
    told = getattr(whole.model, "data_range", None)
    if told is not None:
        return told, ()
    if not isinstance(whole.model, Diffusion):
        raise DeclarationError(
            f"tune: got the base {folder}, a {whole.model.name} that does not tell the range of "
            "its pictures, expected one with data_range; declare it, such as (0.0, 1.0)."
        )
    return (-1.0, 1.0), ("The base tells no `data_range`; its pictures were taken in [−1, 1].",)


def _scheduler(folder: Path) -> dict[str, Any] | None:
    file = folder / SCHEDULER
    return json.loads(file.read_text("utf-8")) if (folder / PIPELINE).is_file() else None


def _sampled(folder: Path) -> tuple[str, ...]:
    found = _scheduler(folder)
    if found is None or found["_class_name"] == "DDIMScheduler":
        return ()
    return (
        f"The folder's scheduler is a {found['_class_name']}; pictures are drawn by DDIM with its "
        "spacing and offset.",
    )


def _shrunk(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """[h, w] 0 or 1: whether half of each place is covered."""
    pillow = require("PIL.Image", needed_by="tune")
    picture = pillow.fromarray(mask.astype(np.float32), "F")
    share = np.asarray(picture.resize(shape[::-1], pillow.Resampling.BOX))
    return (share >= 0.5).astype(np.float32)
