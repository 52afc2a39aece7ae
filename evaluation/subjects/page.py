"""What the page of `probgen tune` says: sources, how the subject was learned, and what it gives.

Each function makes one section from a `Tuned`; a further one is one line in `page_of`.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np

from probgen.engine.fitted import Fitted
from probgen.evaluation import figures
from probgen.evaluation.page import (
    Block,
    Code,
    Figure,
    Formula,
    ImageRows,
    Number,
    Numbers,
    Paragraph,
    Report,
    Row,
    Section,
    Table,
    with_error,
)
from probgen.evaluation.page.drawing import figure_svg
from probgen.evaluation.page.record import Record
from probgen.evaluation.subjects.bases import PIPELINE, TextBase
from probgen.evaluation.subjects.fidelity import PROMPT, SUBJECT, Fidelity, Judge
from probgen.evaluation.subjects.folder import KIND
from probgen.evaluation.subjects.learning import Gain, Given, Tuning
from probgen.inference import DDIM
from probgen.views.formula import latex

WITH, WITHOUT = "with the subject", "without it"
LEAST_SHOWN = 96  # pixels of a side
VERSIONS = ("torch", "pyro", "jax", "numpyro")


@dataclasses.dataclass(frozen=True, eq=False)
class Tuned:
    """All that a run of `tune` found.

    Attributes:
        model: of pictures, with the subject in it; fits: of the rows, the last one in use.
        drawn: by way, [prompts * num_images, h, w, 3] in [0, 1], prompt by prompt.
    """

    base: TextBase
    model: Fitted
    fits: list[Fitted]
    given: Given
    tuning: Tuning
    method: DDIM
    prompts: tuple[str, ...]
    drawn: Mapping[str, np.ndarray]
    gain: Gain
    judge: Judge
    fidelity: Fidelity | None
    seconds: Mapping[str, float]

    @property
    def info(self) -> Mapping[str, Any]:
        """What ran."""
        return self.fits[-1].info

    @property
    def distance(self) -> float:
        """|c_s - a|, the mean over steps."""
        offset = np.asarray(self.fits[-1].params["subject"]["value"])
        return float(np.sqrt((offset**2).sum((-2, -1))).mean())


def page_of(tuned: Tuned, settings: Mapping[str, Any], command: str | None) -> Report:
    """The page.

    Args:
        settings: what was asked for, for the JSON file.
        command: what to type for the same again, or None.
    """
    named = f"a {tuned.tuning.word}" if tuned.tuning.word else "a subject"
    n = len(tuned.given.x)
    report = Report(
        f"{named[0].upper()}{named[1:]}, learned from {n} picture{'s' if n > 1 else ''}",
        "A few rows of context that stand for one subject in a frozen text-conditional diffusion, "
        f"and what it then draws of {len(tuned.prompts)} prompt"
        f"{'s' if len(tuned.prompts) > 1 else ''}.",
        facts={
            "kind": KIND, "command": command, "settings": dict(settings),
            "info": {k: v for k, v in tuned.info.items() if k != "fallbacks"},
            "seconds": dict(tuned.seconds),
        },
    )  # fmt: skip
    for section in (
        _summary(tuned), _pictures(tuned), _sources(tuned), _learning(tuned), _fidelity(tuned),
        _again(tuned, command),
    ):  # fmt: skip
        report.add(section)
    return report


def _summary(t: Tuned) -> Section:
    g, info, s = t.gain, t.info, t.tuning
    versions = ", ".join(f"{k} {info[k]}" for k in VERSIONS if k in info)
    return Section(
        "Summary",
        Numbers(
            [
                Number("Denoising error, with the subject", g.with_it, "", None,
                       f"{with_error(g.without, None)} without it, on the pictures it was learned "
                       "from" + (", inside the masks" if t.given.cover is not None else "")),
                Number("Less by", g.gain, "", g.error, "± is one standard error over draws"),
                Number("Distance from the anchor", t.distance, "", None,
                       "of the learned rows; 0 would be nothing learned"),
                Number("Rows", float(s.num_tokens), "", None,
                       f"of each of {len(t.method.times(t.base.prior.model))} steps"
                       if s.stepwise else "of context, the same at all steps"),
                Number("Pictures", float(len(t.given.x)), "", None,
                       "no masks: all of a picture counts" if t.given.cover is None
                       else "with masks"),
                Number("Steps", float(sum(f.history.num_steps for f in t.fits)), "", None,
                       f"of {s.draws} draws each"),
                Number("Time", f"{sum(t.seconds.values()):.0f} s", "", None,
                       ", ".join(f"{k} {v:.0f} s" for k, v in t.seconds.items())),
                Number("Backend", str(info["backend"]), f"on {info['device']}", None, versions),
                Number("Seed", str(s.seed), "", None, "of learning and drawing"),
            ]
        ),
        *(Paragraph(note, small=True) for note in t.base.notes),
    )  # fmt: skip


def _pictures(t: Tuned) -> Section:
    each, blocks = t.tuning.num_images, list[Block]()
    for i, prompt in enumerate(t.prompts):
        rows = [_row(w, x[i * each : (i + 1) * each]) for w, x in t.drawn.items()]
        blocks.append(
            ImageRows(
                rows, f"**{prompt}**",
                f"{each} pictures of the prompt {prompt}, with the subject and without it.",
            )
        )  # fmt: skip
    return Section(
        "Pictures",
        *blocks,
        Record({"prompts": list(t.prompts), "sampler": repr(t.method)}),
        text=f"DDIM in {t.method.num_steps} steps, guidance {t.method.guidance_scale:g}. Pictures "
        "above one another start from the same noise, so that they differ by the subject alone.",
    )


def _row(label: str, pictures: np.ndarray) -> Row:
    """Small pictures are enlarged, so that the gaps between them are narrow beside them."""
    times = max(1, LEAST_SHOWN // min(pictures.shape[1:3]))
    return Row(label, pictures.repeat(times, axis=1).repeat(times, axis=2))


def _sources(t: Tuned) -> Section:
    rows = [_row("picture", t.given.pictures)]
    if t.given.masks is not None:
        rows.append(_row("mask", np.repeat(t.given.masks, 3, axis=-1)))
    counts = {c: t.given.captions.count(c) for c in t.given.captions}
    small = t.base.prior.model.shape  # type: ignore[attr-defined]
    text = "What the subject was learned from, cut and resized to the base's size."
    if t.base.is_latent and len(small) == 3:
        text += f" Learned in latents of {small[0]} × {small[1]}, to which masks are reduced."
    return Section(
        "Sources",
        ImageRows(rows, "Pictures, and where they count." if t.given.masks is not None else
                  "Pictures; all of each counts.", "The pictures that were given."),
        Table(["caption", "pictures"], [[c, n] for c, n in counts.items()], name="captions",
              wide=False),
        text=text,
    )  # fmt: skip


def _learning(t: Tuned) -> Section:
    first, w = t.fits[0].history, t.tuning.weight
    error, distance = -first["log_prob/x"], first["value/distance"]
    window = max(1, len(error) // 100)
    note = f"Means over {window} steps. " if window > 1 else ""
    blocks: list[Block] = [
        Formula(latex(t.fits[0]), "What was declared; its MAP estimate was taken."),
        _curve(error, window, "denoising error, a sum over elements",
               f"{note}The first term of the loss: how far the predicted noise is from the true "
               "one, at random steps and noise.", "denoising_error"),
        _curve(distance, window, "distance from the anchor",
               f"{note}How far the rows are from the null text's. The second term of the loss is "
               f"its square times w = {w:g}" + (": nothing holds them." if w == 0 else
               f", at the end {with_error(w * float(distance[-1]) ** 2, None)}."), "distance"),
    ]  # fmt: skip
    if len(t.fits) > 1:
        then = t.fits[1].history
        blocks += [
            _curve(then[name], max(1, len(then[name]) // 100), label, text, f"stepwise_{name}")
            for name, label, text in (
                ("denoising", "denoising error, step by step",
                 "Rows of each step of the sampler, the noisiest first: at each the error of that "
                 "step alone."),
                ("distance", "distance from the anchor, step by step",
                 "Each step's rows start from those of the step before."),
            )
        ]  # fmt: skip
    g = t.gain
    blocks.append(
        Paragraph(
            "At the same draws of steps and noise the denoising error is "
            f"{with_error(g.without, None)} with the anchor's rows and "
            f"{with_error(g.with_it, None)} with the learned ones, less by "
            f"{with_error(g.gain, g.error)}. This says that something was learned from these "
            "pictures, not how it looks elsewhere: that is for the eye, and for the fidelities."
        )
    )
    return Section("Learning", *blocks, Record({"gain": g._asdict()}))


def _curve(values: np.ndarray, window: int, label: str, caption: str, name: str) -> Figure:
    x, y = figures.smooth(np.asarray(values), window)
    drawn = figures.curves([figures.Curve(x, y, name)], x_label="step", y_label=label)
    return Figure(figure_svg(drawn), caption, f"Curve of the {label}.", numbers={name: y})


def _fidelity(t: Tuned) -> Section:
    found, judge = t.fidelity, t.judge
    if found is None:
        return Section("Fidelity", Paragraph(f"No scores here. {judge.why_not}"))
    names = [SUBJECT] if judge.texts is None else [SUBJECT, PROMPT]
    rows = [[way, *(_score(found, way, name) for name in names)] for way in found.scores]
    text = (
        f"Cosines of features of **{judge.name}**: subject fidelity with those of the sources (the "
        f"sources among themselves: {with_error(found.among_sources, None)}), prompt fidelity with "
        "those of the prompt. Another network gives other numbers. "
    )
    if found.table is None:
        text += "± is one standard error over pictures; fewer than five prompts are not tested."
    else:
        won = [f"{way} is higher in {s}" for s, way in found.table.winners.items() if way]
        text += "± is one standard error over prompts. " + (
            f"By paired tests over prompts (Holm), {'; '.join(won)}." if won else
            "No difference is significant (paired tests over prompts, Holm)."
        )  # fmt: skip
    missing = [Paragraph(judge.why_not, small=True)] if judge.why_not else []
    means = {w: {s: float(v.mean()) for s, v in each.items()} for w, each in found.scores.items()}
    return Section(
        "Fidelity",
        Paragraph(text), *missing,
        Table(["pictures", *names], rows, name="scores"),
        Record({"features": judge.name, "among_sources": found.among_sources, "means": means}),
    )  # fmt: skip


def _score(found: Fidelity, way: str, name: str) -> str:
    if found.table is not None:
        cell = found.table.cells[way, name]
        return with_error(cell.value, cell.standard_error)
    v = found.scores[way][name]
    return with_error(v.mean(), v.std(ddof=1) / np.sqrt(len(v)) if len(v) > 1 else None)


def _again(t: Tuned, command: str | None) -> Section:
    rows: list[list[str | float]] = [[k, str(t.info[k])] for k in VERSIONS if k in t.info]
    rows += [["numpy", np.__version__], ["python", platform.python_version()]]
    return Section(
        "Again",
        *([Code(command, "command")] if command else []),
        Paragraph("The personalised model lies beside this page, and is read by:", small=True),
        Code(_loading(t), "load"),
        Table(["part", "version"], rows, name="versions"),
    )


def _loading(t: Tuned) -> str:
    """A program that reads the model and draws from it."""
    is_pipeline = (t.base.path / PIPELINE).is_file()
    lines = ["import probgen as pg", "from probgen.inference import DDIM"]
    lines += ["import dataclasses", "from probgen.nets import SubjectTokens"] if is_pipeline else []
    lines += ["", f"method = {t.method!r}"]
    if is_pipeline:  # its modules are in no file of ours
        times = "method.times(base.prior.model)" if t.tuning.stepwise else "None"
        lines += [
            f"base = pg.from_diffusers({str(t.base.path)!r})",
            "net = SubjectTokens(",
            f"    base.prior.model.condition, {t.tuning.num_tokens}, {times}, {t.tuning.word!r}",
            ")",
            "prior = dataclasses.replace(base.prior.model, condition=net)",
            'model = pg.Fitted.from_pretrained("model", model=base.model.with_latent(prior))',
        ]
    else:
        lines.append('model = pg.Fitted.from_pretrained("model")')
    inner = "model.prior" if t.base.is_latent else "model"
    lines += [
        f"ids = {inner}.model.condition.net.tokens([{t.prompts[0]!r}])",
        'x = pg.generate(model, 1, method=method, inputs={"condition": ids}, seed=0)["x"]',
    ]
    return "\n".join(lines)
