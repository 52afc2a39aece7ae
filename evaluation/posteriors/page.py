"""What people look at: the table in words, the intervals in a figure, the page that holds both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from probgen.errors import UnknownName
from probgen.evaluation.calibration.chains import MAX_RHAT
from probgen.evaluation.page import Block, Figure, Paragraph, Report, Section, Table, with_error
from probgen.evaluation.page.drawing import figure_svg
from probgen.evaluation.page.record import Record
from probgen.evaluation.page.verdict import join
from probgen.language.dist import did_you_mean
from probgen.views.axes import canvas, name_axes
from probgen.views.palette import COLOURS

SHOWN = 12  # scalars of the figure
NAMED = 4  # scalars that a sentence names
HUES = ("blue", "orange", "green", "plum", "teal", "red")
HEADER = (
    "method", "worst mean", "worst sd", "ELBO", "log evidence", "R-hat", "diverged", "ESS",
    "seconds", "ESS/s",
)  # fmt: skip
KEY = (
    "Worst mean: in the reference's standard deviations; worst sd: as a multiple of the "
    "reference's; ± is Monte Carlo error, of both. ELBO and log evidence in nats, of all data. "
    "Seconds are all that the method did, compilation and fit included."
)


def cells(found: Any, result: Any) -> list[str]:
    """A method's line."""
    if result.failure:
        return [result.name, "failed", *["–"] * 6, f"{result.seconds:.3g}", "–"]
    mean, sd = ("reference", "reference")
    if (far := result.difference) is not None:
        i, j = far.worst_mean, far.worst_sd
        mean = f"{with_error(far.mean[i], far.mean_error[i])} ({found.names[i]})"
        sd = f"{with_error(far.sd_ratio[j], far.sd_error[j])} ({found.names[j]})"
    return [
        result.name, mean, sd, _maybe(result.elbo, result.elbo_error),
        _maybe(result.log_evidence, result.log_evidence_error),
        "–" if math.isnan(result.rhat) else f"{result.rhat:.3f}",
        "–" if result.divergences is None else str(result.divergences),
        f"{result.ess:.0f}", f"{result.seconds:.3g}", f"{result.ess_per_second:.3g}",
    ]  # fmt: skip


def _maybe(value: float | None, error: float | None) -> str:
    return "–" if value is None else with_error(value, error)


def sentences(found: Any) -> list[str]:
    """What may be said of each method, failures and untrusted chains first."""
    said = []
    for result in found.results.values():
        said += [f"{result.name}: {s}" for s in _of(found, result)]
    return said


def _of(found: Any, result: Any) -> list[str]:
    if result.failure:
        return [f"failed. {result.failure}"]
    said = []
    if result.rhat >= MAX_RHAT:
        said.append(f"R-hat is {result.rhat:.3f}, so its chains have not met; draw more.")
    if result.divergences:
        said.append(f"{_count(result.divergences)} diverged: `pg.divergences` tells where.")
    if result.khat is not None and result.log_evidence is None:
        said.append(
            f"k-hat of its weights is {result.khat:.2f}: they say nothing of the evidence, of "
            "which the ELBO is a lower bound."
        )
    if result.difference is None or result.rhat >= MAX_RHAT:
        return said
    means, sds = found.differing(result.name)
    parts = [f"{what} of {_some(n)}" for what, n in (("means", means), ("sds", sds)) if n]
    if parts:
        level = f"Holm, {found.alpha:.0%}"
        said.append(f"differs beyond Monte Carlo error ({level}) in the {join(parts)}.")
    else:
        said.append("no mean or sd differs from the reference by more than Monte Carlo error.")
    return said


def _some(names: list[str]) -> str:
    more = [f"{len(names) - NAMED} more"] if len(names) > NAMED else []
    return join([*names[:NAMED], *more])


def _count(number: int) -> str:
    return f"{number} transition{'s' * (number != 1)}"


def text(found: Any) -> str:
    """A Markdown table and what can be said of it."""
    rows = [list(HEADER), ["---"] * len(HEADER)]
    rows += [cells(found, r) for r in found.results.values()]
    title = f"{found.model}, {len(found.names)} scalars, on {found.backend}; reference: "
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([f"{title}{found.reference}", "", *lines, "", KEY, "", *sentences(found)])


def chosen(found: Any, names: Sequence[str] | None) -> list[str]:
    """The scalars asked for, or those that any method has farthest off, in their own order.

    Raises:
        UnknownName: one that is not compared.
    """
    for name in names or ():
        if name not in found.names:
            raise UnknownName(
                f"PosteriorComparison.plot: got the scalar {name!r}, expected some of "
                f"{list(found.names)[:SHOWN]}{did_you_mean(name, found.names)}."
            )
    if names is not None:
        return list(names)
    far = [np.abs(r.difference.mean) + np.abs(np.log(np.maximum(r.difference.sd_ratio, 1e-6)))
           for r in found.results.values() if r.difference is not None]  # fmt: skip
    worst = np.max(far, axis=0) if far else np.zeros(len(found.names))
    first = set(np.argsort(-worst, kind="stable")[:SHOWN].tolist())
    return [n for i, n in enumerate(found.names) if i in first]


def interval_figure(found: Any, names: Sequence[str] | None = None) -> Any:
    """Of each scalar a row: mean and two sds of every method, in the reference's sds about its
    mean; the grey band is the reference's own two."""
    shown = chosen(found, names)
    at = [found.names.index(n) for n in shown]
    others = [r for r in found.results.values() if r.difference is not None]
    height = 0.9 + len(shown) * max(0.3, 0.13 * (len(others) + 1))
    figure, axes = canvas((6.4, height))
    axes.axvspan(-2, 2, color=COLOURS["card"], zorder=0)
    axes.axvline(0, color=COLOURS["muted"], linewidth=0.9)
    spread = np.linspace(-0.28, 0.28, len(others)) if len(others) > 1 else np.zeros(1)
    for k, result in enumerate(others):
        y = np.arange(len(shown)) + spread[k]
        far = result.difference
        assert far is not None
        axes.errorbar(
            far.mean[at], y, xerr=2 * far.sd_ratio[at], fmt="o", markersize=4, linewidth=1.6,
            color=COLOURS[HUES[k % len(HUES)]], label=result.name,
        )  # fmt: skip
    axes.set_yticks(range(len(shown)), shown)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.grid(False, axis="y")
    title = f"mean ± 2 sd; grey: {found.reference}"
    name_axes(axes, "reference standard deviations about the reference's mean", title)
    if others:
        figure.legend(
            loc="outside lower center", ncols=min(3, len(others)), frameon=False, fontsize=9.5,
            labelcolor=COLOURS["ink"],
        )  # fmt: skip
    return figure


def report(found: Any) -> Report:
    """The page."""
    lead = (
        f"{len(found.results)} methods on {found.model!r}, {found.backend} on {found.device}, seed "
        f"{found.seed}. Reference: {found.reference}."
    )
    rows = [cells(found, r) for r in found.results.values()]
    blocks: list[Block] = [Table(list(HEADER), rows, caption=KEY, name="methods")]
    blocks += [Paragraph(s) for s in sentences(found)]
    page = Report(f"Posteriors of {found.model}", lead, {"seed": found.seed})
    page.add(Section("Methods", *blocks))
    figure = Figure(
        figure_svg(interval_figure(found)),
        "The scalars that a method has farthest off, at most twelve of them.",
        "Mean and two standard deviations of each method about the reference's mean", wide=True,
    )  # fmt: skip
    page.add(Section("Intervals", figure))
    table = found.to_pandas()
    said = [f"`{r.name}`: `{r.method}`" for r in found.results.values()]
    page.add(
        Section(
            "How it was made", *map(Paragraph, said),
            Record({"scalars": table.to_dict(orient="list")}),
        )
    )  # fmt: skip
    return page
