"""Whether a model knows its training data better than others of their kind: the section of a page.

    d = mean_train log p - mean_held-out log p,     error^2 = sd_train^2 / n + sd_held-out^2 / m

An error that all data share, such as that of log Z, is in both means and leaves d alone, so that
measures in "nats + constant" serve as well as nats. Two histograms that overlap are what a model
that has not learned by heart shows; d says by how many nats they do not.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from probgen.evaluation import figures
from probgen.evaluation.page.blocks import Block, Figure, Paragraph
from probgen.evaluation.page.drawing import figure_svg
from probgen.evaluation.page.gathered import GatheredTables
from probgen.evaluation.page.record import Record
from probgen.evaluation.page.text import with_error
from probgen.records.evaluation import Evaluation

Z = 1.959963984540054  # of 95 %


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much likelier training data are than held-out data, nats per datum.

    Attributes:
        nats: the difference of the means of log p, or of its bound.
        error: its standard error over data.
        verdict: "overfits", "held-out data are likelier" or "no difference shown", at 95 %; "not
            comparable" where a datum has density zero, so that there are no means.
    """

    nats: float
    error: float

    @property
    def verdict(self) -> str:
        if not math.isfinite(self.nats) or math.isnan(self.error):
            return "not comparable"
        if abs(self.nats) <= Z * self.error:
            return "no difference shown"
        return "overfits" if self.nats > 0 else "held-out data are likelier"

    def text(self, measure: str, name: str) -> str:
        """A sentence or two for the page."""
        if self.verdict == "not comparable":
            return (
                f"**{measure}**: some data have density zero or infinite, so that the means of "
                f"training data and {name} do not compare; look at the single data."
            )
        size = with_error(abs(self.nats), self.error)
        if self.verdict == "no difference shown":
            return (
                f"**{measure}**: training data and {name} do not differ beyond their errors "
                f"({with_error(self.nats, self.error)} nats): no overfitting is shown. One of less "
                f"than {Z * self.error:.2g} nats would mostly not be seen with so many "
                "data."
            )
        if self.verdict == "overfits":
            return (
                f"**{measure}**: training data are **{size} nats likelier** than {name}, beyond "
                "the errors: the model overfits by that much; stop earlier, or penalise it."
            )
        return (
            f"**{measure}**: {name} are {size} nats likelier than training data, beyond the "
            "errors: no overfitting, and the two sets are not draws of one law; look at how they "
            "were split."
        )


def difference(train: Evaluation, held_out: Evaluation, measure: str) -> Difference:
    """Of one measure of likelihood on two tables."""
    x, y = (-t.strangeness(measure) for t in (train, held_out))
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return Difference(math.nan, math.nan)
    error = math.sqrt(sum(v.var(ddof=1) / len(v) if len(v) > 1 else math.inf for v in (x, y)))
    return Difference(float(x.mean() - y.mean()), error)


def overfitting_blocks(gathered: GatheredTables) -> list[Block]:
    """Histograms of training and held-out data by each likelihood, and what they say."""
    train, own = gathered.train, gathered.own
    if train is None:
        return []
    blocks: list[Block] = []
    found = {}
    for measure in gathered.likelihoods:
        label, unit = gathered.labels[measure], own.units[measure]
        found[label] = each = difference(train, own, measure)
        blocks.append(Paragraph(each.text(label, gathered.name)))
        values = {"training data": train, gathered.name: own}
        drawn = figures.overlaid(
            {k: np.asarray(t[measure]["estimate"].values) for k, t in values.items()},
            x_label=f"{label}, {unit}", y_label="% of set",
        )  # fmt: skip
        caption = (
            f"Spread of {label} over training data (filled, n = {train.num_data:,}) and "
            f"{gathered.name} (line, n = {own.num_data:,})."
        )
        blocks.append(Figure(figure_svg(drawn), caption, f"Histograms of {label} on both sets."))
    if not found:
        return [Paragraph("No measure here is a likelihood, by which overfitting could be seen.")]
    record = {k: {**dataclasses.asdict(v), "verdict": v.verdict} for k, v in found.items()}
    return [*blocks, Record({"overfitting": record})]
