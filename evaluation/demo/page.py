"""What the demo's page says: the sections, from the numbers that `digits` found.

Each function makes one section from a `Results`; a further one is one line in `demo_report`.
"""

from __future__ import annotations

import os
import platform
from typing import Any

import numpy as np

from probgen.evaluation import figures
from probgen.evaluation.demo.settings import Results
from probgen.evaluation.page import (
    Code,
    Figure,
    ImageRows,
    Number,
    Numbers,
    Paragraph,
    Report,
    Row,
    Section,
    Table,
    detection_blocks,
    histogram_blocks,
    image_blocks,
    verdict_blocks,
    verdicts,
)
from probgen.evaluation.page.drawing import figure_svg
from probgen.evaluation.page.model_blocks import model_blocks
from probgen.evaluation.page.section_blocks import warning_blocks
from probgen.evaluation.page.text import number

COLUMNS = 10
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def demo_report(results: Results, *, command: str) -> Report:
    """The page of the demo.

    Args:
        command: what to type for the same again.
    """
    info, s = results.fitted.info, results.settings
    report = Report(
        "A variational auto-encoder of handwritten digits",
        f"{s.num_train:,} digits of 28 × 28 black-and-white pixels to learn from, {s.num_held_out} "
        f"held out to judge by; declared once in probgen, run here on {info['backend']}.",
        facts={
            "command": command,
            "settings": vars(s),
            "info": {k: v for k, v in info.items() if k != "fallbacks"},
            "seconds": results.seconds,
            "cpu_seconds": results.cpu_seconds,
        },
    )
    for section in (
        _summary(results),
        _meaning(results),
        _model(results),
        _learning(results),
        _samples(results),
        _reconstructions(results),
        _units(results),
        _traversal(results),
        _each(results),
        _strangers(results),
        _again(results, command),
    ):
        report.add(section)
    return report


def _versions(results: Results) -> dict[str, str]:
    known = ("torch", "pyro", "jax", "numpyro")
    return {k: str(v) for k, v in results.fitted.info.items() if k in known}


def _summary(r: Results) -> Section:
    info = r.fitted.info
    versions = ", ".join(f"{k} {v}" for k, v in _versions(r).items())
    effective = float(np.median(r.effective))
    kl = float(r.kl_units.sum())
    return Section(
        "Summary",
        Numbers(
            [
                Number("Held-out ELBO", r.elbo[0], "nats per digit", r.elbo[1],
                       f"± is one standard error over {len(r.log_p_each)} digits"),
                Number("Estimate of log p(x)", r.log_p[0], "nats per digit", r.log_p[1],
                       f"importance-weighted, K = {r.settings.num_particles:,} particles; "
                       f"{_of_weights(r)}"),
                Number("ELBO, training digits", r.train_elbo[0], "nats", r.train_elbo[1]),
                Number("KL to the prior", kl, "nats", None,
                       f"{int(r.active.sum())} of {r.active.size} units active"),
                Number("Effective particles", effective, f"of {r.settings.num_particles:,}", None,
                       "median over held-out digits"),
                Number("Parameters", float(r.fitted.num_parameters()), "", None, "in two networks"),
                Number("Time", f"{sum(r.seconds.values()):.0f} s", "", None,
                       f"{r.cpu_seconds:.0f} s of processor time"),
                Number("Backend", str(info["backend"]), f"on {info['device']}", None, versions),
                Number("Steps", float(r.fitted.history.num_steps), "", None,
                       f"of {r.settings.batch_size} digits each"),
                Number("Seed", str(info["seed"]), "", None, "of split, fit and estimates"),
            ]
        ),
    )  # fmt: skip


def _of_weights(r: Results) -> str:
    """For how many digits the headline is a bound alone, which their k-hats tell."""
    if not r.num_bare:
        return "no digit's weights are too heavy"
    return f"for {r.num_bare:,} of {len(r.log_p_each):,} digits, whose weights are heavy, a bound"


def _meaning(r: Results) -> Section:
    gap, over = r.log_p[0] - r.elbo[0], r.train_elbo[0] - r.elbo[0]
    pixels = r.held_out[0].size
    return Section(
        "What the numbers mean",
        Paragraph(
            "**log p(x)** is the logarithm of the probability that the model gives to a digit it "
            f"has never seen, all {pixels} pixels of it; larger is better. To guess each pixel by "
            f"the toss of a coin gives {number(-pixels * np.log(2))}; to guess it by the share of "
            f"ink, {100 * r.held_out.mean():.0f} %, gives {number(_by_share(r))}."
        ),
        Paragraph(
            "**The ELBO** is a lower bound on it, and what training raises. **The importance-"
            f"weighted estimate** draws K = {r.settings.num_particles:,} codes for each digit and "
            "averages their weights; it too is low on average, and closes in on log p(x) as K "
            f"grows. The {gap:.1f} nats between the two are the price of the encoder: a simple "
            "Gaussian, guessed in one pass, for digits that it has not seen. Half of the digits "
            f"rest on fewer than {np.median(r.effective):.0f} effective particles, so their "
            "estimates are still somewhat low."
        ),
        Paragraph(
            "**Overfitting** shows as the distance between training and held-out digits, here "
            f"{over:.1f} nats: {r.settings.num_train:,} digits are few. A standard error speaks of "
            "other held-out digits, not of other training runs."
        ),
    )


def _by_share(r: Results) -> float:
    """log p(x) of a held-out digit when each pixel is ink with the share of ink, nats."""
    p = float(r.held_out.mean())
    return r.held_out[0].size * (p * np.log(p) + (1 - p) * np.log1p(-p))


def _model(r: Results) -> Section:
    return Section(
        "The model",
        *model_blocks(r.fitted),
        text="What was declared: the density, the approximate posterior that the encoder gives, "
        "and the graph of both.",
    )


def _learning(r: Results) -> Section:
    history = r.fitted.history
    window = max(1, history.num_steps // 100)
    averaged = f"means over {window} steps" if window > 1 else "every step"
    held, at = history.validation, np.asarray(history.validation_steps)

    def pair(metric: str, label: str) -> Any:
        x, y = figures.smooth(history[metric], window)
        shown = y[len(y) // 25 :]
        low = min(float(shown.min()), float(held[metric].min()))
        return figures.curves(
            [
                figures.Curve(x, y, "training", "blue"),
                figures.Curve(at, held[metric], "held out", "orange", points=True),
            ],
            x_label="step", y_label=label, bottom=low - 0.02 * abs(low),
        )  # fmt: skip

    numbers = {
        "steps": at, "held_out_elbo": held["elbo"], "held_out_kl": held["kl"],
        "training_elbo": figures.smooth(history["elbo"], window)[1],
    }  # fmt: skip
    return Section(
        "Learning curves",
        Figure(
            figure_svg(pair("elbo", "ELBO, nats per digit")),
            f"The bound. Training: {averaged}; held out: all "
            f"{r.settings.num_held_out} digits, one draw each.",
            "Learning curve of the ELBO for training and held-out digits.",
            numbers=numbers,
        ),
        Figure(
            figure_svg(pair("kl", "KL to the prior, nats per digit")),
            "What the code carries: the KL part of the bound, which is subtracted from the "
            "reconstruction's log-probability.",
            "Learning curve of the KL divergence for training and held-out digits.",
        ),
    )


def _rows(images: np.ndarray, label: str = "", columns: int = COLUMNS) -> list[Row]:
    whole = len(images) // columns * columns
    return [Row(label, images[i : i + columns]) for i in range(0, whole, columns)]


def _samples(r: Results) -> Section:
    return Section(
        "Samples",
        ImageRows(
            _rows(r.samples), "Each is a fresh z ~ N(0, I) decoded: the probability of ink.",
            f"{len(r.samples)} digits drawn from the model.", ink=True,
        ),
    )  # fmt: skip


def _reconstructions(r: Results) -> Section:
    rows = []
    for original, again in zip(_rows(r.originals), _rows(r.reconstructions), strict=True):
        rows += [Row("digit", original.images), Row("model", again.images)]
    return Section(
        "Reconstructions",
        ImageRows(
            rows, "Held-out digits, and what the decoder makes of the mean of their codes.",
            "Held-out digits above their reconstructions.", ink=True,
        ),
    )  # fmt: skip


def _units(r: Results) -> Section:
    order, pale = r.units, "" if r.active.all() else " Pale bars are not active."
    names = [str(i) if len(order) <= 20 or i % 5 == 0 else "" for i in order]
    return Section(
        "KL per unit",
        Figure(
            figure_svg(
                figures.bars(
                    r.kl_units[order], names, strong=r.active[order],
                    x_label="latent unit", y_label="KL, nats per digit",
                )
            ),
            f"How much each unit of the code says about a digit. Active is a unit where the mean "
            f"of its code moves with the digit (variance above 0.01).{pale}",
            "Bar chart of the KL divergence of each latent unit, largest first.",
            numbers={"kl_units": r.kl_units, "active": r.active},
        ),
        *_information(r),
    )  # fmt: skip


def _information(r: Results) -> list[Any]:
    report = r.fitted.report
    if report.information is None:
        return []
    low, _ = report.information
    text = (
        f"On {report.num_data} training digits the code holds at least {low:.2f} nats of "
        "information about the digit, and at most the KL of all its units together. The lower "
        f"bound cannot exceed log {report.num_data} = {np.log(report.num_data):.2f}."
    )
    return [Paragraph(text)]


def _traversal(r: Results) -> Section:
    rows = [
        Row(f"z{str(unit).translate(SUBSCRIPTS)}  {r.kl_units[unit]:.2f}", r.traversals[unit])
        for unit in r.units
    ]
    return Section(
        "Latent traversal",
        ImageRows(
            rows,
            f"A held-out digit's code with one unit moved from {number(r.steps[0])} to "
            f"{number(r.steps[-1])}, the other units kept. Rows are sorted by KL (the number at "
            "the left, nats): the upper ones change the digit most.",
            "Digits along each latent unit.", ink=True,
        ),
    )  # fmt: skip


def _each(r: Results) -> Section:
    best, worst = r.order[:COLUMNS], r.order[::-1][:COLUMNS]
    return Section(
        "Digit by digit",
        Figure(
            figure_svg(figures.histogram(r.log_p_each, x_label="log p(x), nats per digit",
                                         y_label="held-out digits")),
            "The estimate of each held-out digit. Much of the spread is simply how much ink a "
            "digit has: a likelihood is not a grade for beauty.",
            "Histogram of the estimated log-likelihood of held-out digits.",
            numbers={"log_p": r.log_p_each, "effective_particles": r.effective},
        ),
        ImageRows(
            [Row("likeliest", r.held_out[best]), Row("unlikeliest", r.held_out[worst])],
            "The held-out digits at the two ends.", "The likeliest and unlikeliest digits.",
            ink=True,
        ),
    )  # fmt: skip


def _strangers(r: Results) -> Section:
    gathered, s = r.strangers, r.settings
    assert gathered.detection is not None  # `demo_ood` always has other sets
    names = gathered.measures
    return Section(
        "What it has never seen",
        Paragraph(
            "Can the model tell that a picture is no digit? Of each set below a measure gives "
            "every picture a number. **Likelihood** is the plain one, minus the log-probability, "
            f"with K = {s.score_particles} particles. **Regret** is what the bound gains when the "
            "picture's own code is fitted to it anew (K = 1; the mean and scale of its code are "
            f"searched over in {s.num_search_steps} steps of Adam). **Ratio** compares with a "
            "second model, of digits of which a fifth of the pixels was made random. "
            "**Complexity** compares with the length of the picture as a file, PNG or WebP. All "
            "sets are black and white, as the digits are."
        ),
        *verdict_blocks(
            gathered, verdicts(gathered.detection, name=gathered.name, ordinary=gathered.ordinary())
        ),
        *detection_blocks(gathered, seed=int(r.fitted.info["seed"])),
        *histogram_blocks(gathered, names[:2]),
        *image_blocks(gathered, names[:2]),
        *warning_blocks(gathered),
    )


def _again(r: Results, command: str) -> Section:
    rows: list[list[str | float]] = [[k, v] for k, v in _versions(r).items()]
    rows += [["numpy", np.__version__], ["python", platform.python_version()]]
    rows += [["machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"]]
    rows += [["seconds", ", ".join(f"{k} {v:.1f}" for k, v in r.seconds.items())]]
    how = r.fitted.info.get("routes") or []
    if how:
        rows += [["compiled by", ", ".join(how)]]
    return Section(
        "Again",
        Code(command, "command"),
        Table(["part", "version"], rows, name="versions"),
        Paragraph(
            "Same seed, same backend, same machine: same numbers. The fitted model lies beside "
            "this page in `model/` and is read by `pg.Fitted.from_pretrained`, on either backend; "
            "the numbers of this page are in `report.json`. The held-out digits and the second "
            "model lie there too, so that data of your own can be held against them, in the folder "
            "of this page:",
            small=True,
        ),
        Code(
            "probgen evaluate model held_out_digits.npz --ood letters noise "
            "--background background",
            "try",
        ),
    )
