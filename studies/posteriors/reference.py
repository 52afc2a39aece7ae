"""What the chains are held to: means and standard deviations, kept in reference.json.

    python -m studies.posteriors.reference [NAME ...]      makes them anew, all without a name

By quadrature (`quadrature`) where what is left to integrate has up to six dimensions, by importance
weights (`weighted`) in the eight of Lotka and Volterra's. No chain has a part in them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from probgen.evaluation.posteriors import Moments, PosteriorDifference, moments
from studies.posteriors.models import POSTERIORS
from studies.posteriors.quadrature import QUADRATURE
from studies.posteriors.weighted import weighted

PATH = Path(__file__).with_name("reference.json")
FIELDS = ("mean", "sd", "mean_error", "sd_error")


def load(name: str) -> Moments:
    """The kept reference; its errors are 0 where it is exact."""
    kept = json.loads(PATH.read_text(encoding="utf-8"))[name]
    found = {f: np.array(kept[f]) for f in FIELDS}
    unknown = np.full(len(kept["names"]), np.nan)
    return Moments(tuple(kept["names"]), ess=unknown, rhat=unknown, **found)


def row(name: str, who: str, found: Moments, diverged: int, seconds: float) -> str:
    """Of the page's table: a run's distance to the reference."""
    truth = load(name)
    off = PosteriorDifference.between(found, truth)
    i, j = off.worst_mean, off.worst_sd
    return (
        f"| {name} | {who} | {len(found.names)} | {off.mean[i]:+.3f} ± {off.mean_error[i]:.3f} "
        f"({truth.names[i]}) | {off.sd_ratio[j]:.3f} ± {off.sd_error[j]:.3f} ({truth.names[j]}) | "
        f"{found.rhat.max():.4f} | {found.ess.min():.0f} | {diverged} | {seconds:.0f} |"
    )


def make(name: str) -> tuple[Moments, str]:
    """The reference computed, and how."""
    posterior = POSTERIORS[name]
    arrays = {n: np.asarray(v, float) for n, v in {**posterior.data, **posterior.inputs}.items()}
    if name in QUADRATURE:
        found = QUADRATURE[name](**arrays)
        return moments({n: found[n] for n in posterior.sites}), "quadrature"
    return weighted(**arrays)


def write(name: str) -> None:
    """Puts one reference in its place in the file."""
    found, how = make(name)
    kept = json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}
    numbers = {f: [float(f"{v:.6g}") for v in getattr(found, f)] for f in FIELDS}
    kept[name] = {"how": how, "names": list(found.names), **numbers}
    ordered = {n: kept[n] for n in POSTERIORS if n in kept}
    lines = [f"  {json.dumps(n)}: {json.dumps(v)}" for n, v in ordered.items()]
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{name}: {how}")
    for row in zip(found.names, found.mean, found.sd, found.mean_error, strict=True):
        print("  {:<10} {:10.4f} {:10.4f} +- {:.2g}".format(*row))


if __name__ == "__main__":
    for each in sys.argv[1:] or POSTERIORS:
        write(each)
