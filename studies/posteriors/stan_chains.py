"""Stan's own NUTS on the same posteriors: programs of `stan/`, kept results in stan.json.

    python -m studies.posteriors.stan_chains PYTHON [NAME ...]     runs Stan anew (all: no name)
    python -m studies.posteriors.stan_chains                       the table of what is kept

PYTHON is an interpreter with PyStan 3 (`pip install pystan`, and a C++ compiler), which is none of
probgen's dependencies. Chains have the settings of `models`; they are an implementation of their
own, in float64, which the references and our divergences are held to.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from probgen.evaluation.posteriors import Moments, moments
from studies.posteriors import data
from studies.posteriors.models import POSTERIORS, Posterior
from studies.posteriors.reference import FIELDS, load, row

HERE = Path(__file__).parent
PATH = HERE / "stan.json"
SEED = 1  # Stan's seeds are positive
CONSTANTS = {"ar": {"order": data.AR_ORDER}, "garch": {"start": data.GARCH_START}}
ARRAYS = (*FIELDS, "ess", "rhat")


def program_data(name: str) -> dict[str, Any]:
    """The data block: arrays as they are for `pg.infer`, their length, what else is constant."""
    posterior = POSTERIORS[name]
    arrays = {
        n: v.astype(float).tolist() for n, v in {**posterior.data, **posterior.inputs}.items()
    }
    if name == "wells":
        arrays["y"] = [int(v) for v in arrays["y"]]
    length = len(next(iter(posterior.data.values())))
    return {**arrays, "n": length, **CONSTANTS.get(name, {})}


def settings(posterior: Posterior) -> dict[str, Any]:
    """Those of the posterior's NUTS in Stan's words."""
    method = posterior.method
    return {
        "num_chains": method.num_chains, "num_warmup": method.num_warmup,
        "num_samples": method.num_samples, "delta": method.target_accept_prob,
        "max_depth": method.max_tree_depth,
    }  # fmt: skip


def run(python: str, name: str, *, seed: int = SEED, chains: bool = True, **more: Any) -> tuple:
    """(what the worker tells, draws [chain, draw, ...] by name) of one posterior.

    Raises:
        CalledProcessError: the worker failed; what it said is on stderr.
    """
    posterior = POSTERIORS[name]
    start = posterior.method.init_strategy
    with tempfile.TemporaryDirectory() as folder:
        job = {
            "program": (HERE / "stan" / f"{name}.stan").read_text(encoding="utf-8"),
            "data": program_data(name), "seed": seed, "sites": posterior.sites,
            "points": [{n: v.tolist() for n, v in p.items()} for p in posterior.points],
            "init": {} if isinstance(start, str) else dict(start),
            "settings": settings(posterior) | more if chains else {},
            "draws": str(Path(folder) / "draws.npz"),
        }  # fmt: skip
        worker = [python, str(HERE / "stan_worker.py")]
        told = subprocess.run(worker, input=json.dumps(job), text=True, stdout=-1, check=True)
        draws = dict(np.load(job["draws"])) if chains else {}
    return json.loads(told.stdout), draws


def record(told: dict, draws: dict[str, np.ndarray], name: str) -> dict[str, Any]:
    """What is kept of a run."""
    found = moments({n: draws[n] for n in POSTERIORS[name].sites}).of(load(name).names)
    steps = draws["n_leapfrog__"]
    return {
        "stan": told["stan"], "seed": SEED, "settings": settings(POSTERIORS[name]),
        "names": list(found.names),
        **{f: [float(f"{v:.6g}") for v in getattr(found, f)] for f in ARRAYS},
        "log_density": told["log_density"], "diverged": int(draws["divergent__"].sum()),
        "leapfrogs": round(float(steps.mean()), 2),
        "step_size": round(float(draws["stepsize__"].mean()), 4),
        "acceptance_rate": round(float(draws["accept_stat__"].mean()), 4),
        "seconds": round(told["seconds"], 2),
    }  # fmt: skip


def kept() -> dict[str, dict]:
    """All that stan.json has, by posterior."""
    return json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}


def kept_moments(name: str) -> Moments:
    """Those of Stan's chains."""
    entry = kept()[name]
    return Moments(tuple(entry["names"]), **{f: np.array(entry[f]) for f in ARRAYS})


def write(python: str, name: str) -> None:
    """Puts one posterior's run in its place in the file."""
    entries = {**kept(), name: record(*run(python, name), name)}
    lines = [f"  {json.dumps(n)}: {json.dumps(entries[n])}" for n in POSTERIORS if n in entries]
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    names = sys.argv[2:] or list(POSTERIORS)
    for each in names if len(sys.argv) > 1 else ():
        write(sys.argv[1], each)
    for each, entry in kept().items():
        if each in names:
            print(row(each, "Stan", kept_moments(each), entry["diverged"], entry["seconds"]))
