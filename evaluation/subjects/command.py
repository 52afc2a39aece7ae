"""`probgen tune`: a folder of pictures of one subject in; the subject, pictures and a page out.

Everything that can be refused is refused before the first step of learning. What is made stands in
the out folder at once and whole: nothing is there of a run that was stopped.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from probgen.backends.protocol import Backend
from probgen.data import load_captioned_folder
from probgen.data.images import require
from probgen.engine.fitted import Fitted
from probgen.errors import AlgorithmError, DataError
from probgen.evaluation.page.text import slug
from probgen.evaluation.subjects.bases import TextBase, base_of
from probgen.evaluation.subjects.fidelity import Judge, fidelity_of, judge_of
from probgen.evaluation.subjects.folder import MODEL, PAGE, PICTURES, claim
from probgen.evaluation.subjects.learning import Given, Tuning, gain_of, learn, subject_of
from probgen.evaluation.subjects.page import WITH, WITHOUT, Tuned, page_of
from probgen.inference import DDIM
from probgen.interop import clip_features
from probgen.language.declared import checked
from probgen.language.kinds import Many, NonNegative, PathLike, Positive, Text, Width, not_empty
from probgen.language.seeds import check_seed
from probgen.models import Subject, personalised
from probgen.records import atomic


@checked
def tune(
    folder: PathLike,
    base: PathLike,
    prompts: Annotated[tuple[Text, ...], not_empty],
    *,
    word: Text | None = None,
    num_tokens: Width = 3,
    weight: NonNegative = 0.03,
    num_steps: Many = 1000,
    learning_rate: Positive = 5e-3,
    draws: Many = 8,
    stepwise: bool = False,
    masked: bool = True,
    num_images: Many = 4,
    sampler_steps: Many | None = None,
    guidance: float = 2.0,
    features: Any = None,
    text_features: Any = None,
    clip: PathLike | None = None,
    seed: int = 0,
    backend: str | Backend = "auto",
    out: PathLike = "runs/tune",
    overwrite: bool = False,
    command: str | None = None,
    say: Callable[[str], None] = logging.getLogger("probgen").info,
    progress_bar: bool = True,
) -> Path:
    """Learns a subject from a folder of pictures and draws it where prompts say.

    Writes the personalised model (`model/`, by `save_pretrained`), the drawn pictures
    (`pictures/`), `report.html` and `report.json`.

    Args:
        folder: pictures of the subject, with masks and captions where there are any; see
            `probgen.data.load_captioned_folder`. They are cut to the base's size.
        base: a folder of a text-conditional `Diffusion`, of a `VAE` around one, or of a Stable
            Diffusion of diffusers.
        prompts: what to draw, such as "a disk on grass".
        word: the subject's noun: "a WORD" is the caption of pictures without one, and each caption
            and prompt must have it.
        num_tokens, weight, draws: of `probgen.models.Subject`. The denoising error is a sum over
            elements, so larger pictures want a larger weight.
        num_steps, learning_rate: of Adam.
        stepwise: then also rows for each of the sampler's steps, `StepwiseMAP`.
        masked: the masks of the folder say where the residual counts; False leaves them out.
        num_images: of each prompt.
        sampler_steps: of DDIM; None is 50, or all steps of a shorter chain.
        guidance: w of classifier-free guidance away from the empty caption; 1 for none.
        features: pictures [n, h, w, 3] in [0, 1] -> [n, d], for subject fidelity; by default those
            of EfficientNet, where it is installed and pictures have 32 pixels or more.
        text_features: captions -> [n, d] in the same space, for prompt fidelity.
        clip: a folder of a CLIP of transformers, for both.
        seed: of learning and of drawing; with and without the subject pictures start from the same
            noise.
        backend: "auto" (the one that fitted the base), "torch" or "jax"; or a loaded one.
        out: a folder; new, empty, or of the same command before.
        overwrite: replace what another command of this kind left there.
        command: what the page says to type for the same again.
        say: gets a line of text after each part.

    Returns:
        The path of the page.

    Raises:
        ProbgenError: no pictures or base, a base that reads no text, a mask of another size than
            its picture, a picture without caption or word, a prompt with unknown words or too long,
            an out folder that holds something else or cannot be written.

    Source: Wang et al. 2023, arXiv:2312.00079, sections 3 and 4.
    """
    tuning = Tuning(
        word, num_tokens, weight, num_steps, learning_rate, draws, stepwise, masked, num_images,
        sampler_steps, guidance, check_seed(seed, "tune"),
    )  # fmt: skip
    prompts = tuple(dict.fromkeys(prompts))
    target = atomic.at(out)
    settings = {
        "folder": str(folder), "base": str(base), "prompts": list(prompts),
        "clip": None if clip is None else str(clip), "backend": getattr(backend, "name", backend),
        **dataclasses.asdict(tuning),
    }  # fmt: skip
    with atomic.held(target):
        claim(target, settings, (folder, base), overwrite=overwrite)
        found = base_of(base, backend)
        b = found.whole.resolve(backend)
        if clip is not None:
            features, text_features = clip_features(clip)
        judge = judge_of(found.size, features, text_features, b)
        name = found.whole.model.name
        say(f"base     {name}, {found.whole.num_parameters():,} parameters, on {b.name}")
        given = given_of(folder, found, tuning)
        masks = "no masks" if given.cover is None else "masks"
        say(f"data     {len(given.x)} pictures of {found.size[0]} x {found.size[1]}, {masks}")
        for note in found.notes:
            say(f"note     {note}")
        subject, method = subject_of(found, tuning), found.sampler(sampler_steps, guidance)
        ids = _asked(found, subject, method, prompts, given)
        result = _tuned(
            found, subject, given, tuning, method, prompts, ids, judge, b, say, progress_bar
        )
        page = page_of(result, settings, command)
        atomic.put(target, lambda fresh: _write(fresh, result, page))
    path = Path(out) / PAGE
    say(f"wrote    {path}, {path.with_suffix('.json')}, {Path(out) / PICTURES} and {MODEL}")
    return path


def given_of(folder: PathLike, base: TextBase, tuning: Tuning) -> Given:
    """The folder's pictures, captions and masks, as they are and as the diffusion sees them.

    Raises:
        DataError: as `load_captioned_folder`; a picture without a caption, and no word; a mask that
            is empty or full at the latents' size. Captions are refused as by the base's `tokens`.
    """
    loaded = load_captioned_folder(folder, base.size)
    captions = tuple(_caption(c, tuning.word, folder) for c in loaded["captions"])
    pictures = 0.5 * (loaded["x"] + 1.0)
    masks = loaded["mask"] if tuning.masked else None
    ids = base.text.tokens(captions)
    cover = None if masks is None else base.covers(masks)
    return Given(pictures, masks, captions, base.codes(pictures, ids), cover, ids)


def _caption(caption: str, word: str | None, folder: PathLike) -> str:
    if not caption and word is None:
        raise DataError(
            f"tune: got a picture without a caption in {folder}, expected NAME.txt beside each "
            "NAME.png, or the subject's noun, of which 'a NOUN' is the caption; give --word NOUN."
        )
    return caption or f"a {word}"


def _asked(
    base: TextBase, subject: Subject, method: DDIM, prompts: Sequence[str], given: Given
) -> np.ndarray:
    """Token ids of the prompts; refuses what learning or drawing would stumble over later."""
    ids = base.text.tokens(prompts)
    subject.condition.check_values(ids)
    subject.check_rows({"x": given.x, **given.inputs})
    method.columns(subject.diffusion)  # more steps than the chain has
    if method.guidance_scale != 1.0 and not hasattr(base.text, "null"):
        raise AlgorithmError(
            f"tune: got guidance={method.guidance_scale:g} of a base whose text has no null, "
            "expected 1; give --guidance 1."
        )
    return ids


def _tuned(
    base: TextBase, subject: Subject, given: Given, tuning: Tuning, method: DDIM,
    prompts: Sequence[str], ids: np.ndarray, judge: Judge, backend: Any,
    say: Callable[[str], None], progress_bar: bool,
) -> Tuned:  # fmt: skip
    """Learning, drawing and judging."""
    start, seconds = time.perf_counter(), {}
    fits = learn(
        subject, given, tuning, method, backend=backend, say=say, progress_bar=progress_bar
    )
    learned = personalised(fits[-1])
    gain = gain_of(fits[-1], given, seed=tuning.seed, backend=backend)
    seconds["learning"] = time.perf_counter() - start
    say(
        f"         denoising error {gain.without:.4g} -> {gain.with_it:.4g} "
        f"(less by {gain.gain:.3g} ± {gain.error:.1g}): {seconds['learning']:.0f} s"
    )
    start, each = time.perf_counter(), tuning.num_images
    say(f"draw     {each} pictures of {len(prompts)} prompts, with and without the subject")
    models: Mapping[str, Fitted] = {WITH: base.around(learned), WITHOUT: base.whole}
    drawn = {
        way: base.draw(model, np.repeat(ids, each, axis=0), method, each=each, seed=tuning.seed,
                       backend=backend)
        for way, model in models.items()
    }  # fmt: skip
    seconds["drawing"] = time.perf_counter() - start
    captions = [p for p in prompts for _ in range(each)]
    fidelity = fidelity_of(judge, drawn, captions, given.pictures)
    return Tuned(
        base, models[WITH], fits, given, tuning, method, tuple(prompts), drawn, gain, judge,
        fidelity, seconds,
    )  # fmt: skip


def _write(fresh: Path, result: Tuned, page: Any) -> None:
    """The out folder's content."""
    result.model.save_pretrained(fresh / MODEL)
    pillow = require("PIL.Image", needed_by="tune")
    each = result.tuning.num_images
    for i, prompt in enumerate(result.prompts):
        place = fresh / PICTURES / f"{i + 1:02d}-{slug(prompt)[:60]}"
        place.mkdir(parents=True)
        for way, pictures in result.drawn.items():
            for k, x in enumerate(pictures[i * each : (i + 1) * each], 1):
                picture = pillow.fromarray(np.round(255 * x).astype(np.uint8), "RGB")
                picture.save(place / f"{slug(way)}-{k:02d}.png")
    page.save(fresh / PAGE)
