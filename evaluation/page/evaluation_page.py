"""`report`: one page that says how probable a model finds data, and what it can tell from them."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import probgen
from probgen.engine.fitted import Fitted
from probgen.evaluation.page.blocks import Code, Paragraph, Table
from probgen.evaluation.page.document import Report, Section
from probgen.evaluation.page.gathered import GatheredTables, gather
from probgen.evaluation.page.model_blocks import model_blocks
from probgen.evaluation.page.overfitting import overfitting_blocks
from probgen.evaluation.page.section_blocks import (
    detection_blocks,
    histogram_blocks,
    image_blocks,
    likelihood_blocks,
    measure_blocks,
    verdict_blocks,
)
from probgen.evaluation.page.verdict import join, verdicts
from probgen.language.declared import checked
from probgen.language.kinds import Count, OpenShare, PathLike, Text
from probgen.records.evaluation import Evaluation

VERSIONS = ("torch", "pyro", "jax", "numpyro")


@checked
def report(
    fitted: Fitted,
    in_table: Evaluation,
    out_tables: Mapping[str, Evaluation] | None = None,
    *,
    path: PathLike,
    name: Text = "the model's own data",
    images: Mapping[str, Any] | None = None,
    labels: Mapping[str, Text] | None = None,
    num_distinct: Mapping[str, Count] | None = None,
    train_table: Evaluation | None = None,
    title: str = "",
    command: str | None = None,
    notes: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    level: OpenShare = 0.95,
    seed: int = 0,
    progress_bar: bool = True,
) -> Path:
    """Writes one self-contained HTML page, and the same numbers as JSON beside it.

    Formula and graph of the model; likelihoods with errors and limits; where there are other sets,
    a verdict in words, AUROCs with intervals, ROC curves with bands; histograms; and of data that
    are pictures the strangest and the most ordinary.

    Args:
        fitted: the model, as `pg.fit` or `Fitted.from_pretrained` give it.
        in_table: `pg.evaluate` of data like the training data, held out from it.
        out_tables: {data set: `pg.evaluate` of it by the same measures}; none is fine.
        path: of the page; the JSON has the same name.
        name: what the in-distribution data are called.
        images: {data set: [n, h, w, 1 or 3] in [0, 1]}, one a datum, in the table's order; None for
            data that are no pictures.
        labels: {measure: a short name for the page}.
        num_distinct: {data set: how many of its data differ from each other}, where some are
            copies, which then count once in intervals and tests; counted in `images` where they are
            given, else all data are taken to differ. `assessment.count_distinct` counts.
        train_table: `pg.evaluate` of (some of) the training data by the same measures: the page
            then draws both and says whether the model has learned them by heart.
        title: of the page.
        command: what to type for the same again.
        notes: what was done to the data, or left out: sentences for the reader.
        settings: plain values for the JSON.
        level: of the intervals.
        seed: of the bootstrap.

    Raises:
        ProbgenError: tables, pictures or labels that do not belong together (see
            `gathered.gather`), scores from which nothing can be said (see `detection.compare`), a
            path that cannot be written.
    """
    gathered = gather(
        in_table, out_tables, name=name, images=images, labels=labels, num_distinct=num_distinct,
        train_table=train_table, level=level, seed=seed, progress_bar=progress_bar,
    )  # fmt: skip
    page = Report(
        title or f"What {fitted.model.name} makes of {name}",
        _lead(gathered),
        facts={
            "command": command,
            "notes": list(notes),
            "settings": {**(settings or {}), "level": level, "seed": seed},
            "num_distinct": {each: gathered.distinct(each) for each in gathered.tables},
            "versions": versions(fitted, gathered),
            "info": {k: v for k, v in fitted.info.items() if k != "fallbacks"},
        },
    )
    said = _of_the_model(fitted, gathered)
    if said:
        page.add(Section("Before all else", *(Paragraph(text) for text in said)))
    for section in sections(gathered, seed=seed):
        page.add(section)
    page.add(Section("The model", *model_blocks(fitted)))
    page.add(_again(fitted, gathered, command, notes))
    return page.save(path)


@checked
def sections(gathered: GatheredTables, *, seed: int = 0) -> list[Section]:
    """The page's sections that speak of the data; without other sets there is no verdict."""
    out = []
    if gathered.detection is not None:
        found = verdicts(gathered.detection, name=gathered.name, ordinary=gathered.ordinary())
        out.append(Section("Verdict", *verdict_blocks(gathered, found)))
    out.append(Section("Likelihood", *likelihood_blocks(gathered)))
    if gathered.train is not None:
        out.append(Section("Overfitting", *overfitting_blocks(gathered)))
    if gathered.detection is not None:
        out.append(Section("Detection", *detection_blocks(gathered, seed=seed)))
    out.append(Section("Every measure", *measure_blocks(gathered), *histogram_blocks(gathered)))
    if gathered.images:
        out.append(Section("Ordinary and strange", *image_blocks(gathered)))
    return out


def versions(fitted: Fitted, gathered: GatheredTables) -> dict[str, str]:
    """What the evaluation ran on, else what the fit ran on."""
    ran = {**fitted.info, **gathered.own.info}
    backend = {k: str(ran[k]) for k in ("backend", "device", *VERSIONS) if ran.get(k)}
    return {
        "probgen": probgen.__version__,
        **backend,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _of_the_model(fitted: Fitted, gathered: GatheredTables) -> list[str]:
    """What stands before every number: heavy weights of a likelihood, a code that has collapsed."""
    out = []
    for measure in gathered.likelihoods:
        count, size = gathered.own.bound_only(measure), gathered.own.num_data
        if gathered.own.bound(measure) and count:
            out.append(
                f"**{gathered.labels[measure]}** is a bound alone for {count:,} of {size:,} data "
                f"of {gathered.name}: the k-hats of their weights do not rule out too heavy a tail."
            )
    active = getattr(fitted.report, "active_units", {})
    dead = [name for name, on in active.items() if not np.any(on)]
    if dead:
        out.append(
            f"**The latent {join(dead)} has collapsed**: none of its units is active, so the model "
            "is one density for all data, and scores of its code say nothing."
        )
    return out


def _lead(gathered: GatheredTables) -> str:
    count = gathered.own.num_data
    own = f"{count:,} data of {gathered.name}"
    if not gathered.others:
        return f"How probable the model finds {own}, with errors."
    return (
        f"How probable the model finds {own}, and whether that, or another measure, tells them "
        f"from {join(list(gathered.others))}."
    )


def _again(
    fitted: Fitted, gathered: GatheredTables, command: str | None, notes: Sequence[str]
) -> Section:
    rows: list[list[str | float]] = [[k, v] for k, v in versions(fitted, gathered).items()]
    seed = gathered.own.info.get("seed")
    rows += [["seed", str(seed)]] if seed is not None else []
    return Section(
        "Again",
        *([Code(command, "command")] if command else []),
        *(Paragraph(text) for text in notes),
        Table(["part", "version"], rows, name="versions"),
        Paragraph("The numbers of this page are in the JSON file of the same name.", small=True),
    )
