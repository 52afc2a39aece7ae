"""One Stan program's chains and densities, in a Python that has PyStan; `stan_chains` asks it.

    PYTHON stan_worker.py < job.json > result.json      draws go to job["draws"], an npz file

PyStan alone is needed here, nothing of probgen. It keeps programs once they are compiled, for which
it allows five minutes: where that is too short, run again.
"""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import sys
from importlib.metadata import version

import httpstan.cache
import httpstan.services_stub
import numpy as np
import stan

STATS = ("lp__", "accept_stat__", "stepsize__", "treedepth__", "n_leapfrog__", "divergent__")


def cpu_of_children() -> float:
    """Seconds of all processes that have ended: compilers, and chains after a shutdown."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def drawn(fit: stan.fit.Fit, name: str, num_chains: int) -> np.ndarray:
    """[chain, draw, ...]; PyStan has draws last, chains taking turns."""
    flat = np.moveaxis(np.asarray(fit[name]), -1, 0)
    shape = () if name.endswith("__") else fit.dims[fit.param_names.index(name)]
    return np.swapaxes(flat.reshape(-1, num_chains, *shape), 0, 1)


def main(job: dict) -> dict:
    """Log densities at the job's points, up to one constant, and CPU seconds of the chains."""
    model = stan.build(job["program"], data=job["data"], random_seed=job["seed"])
    compiled = cpu_of_children()
    free = [model.unconstrain_pars(p) for p in job["points"]]
    densities = [model.log_prob(u, adjust_transform=False) for u in free]
    if job["settings"]:
        # Chains that were run before are not taken from where PyStan keeps them.
        runs = httpstan.cache.model_directory(model.model_name) / "fits"
        shutil.rmtree(runs, ignore_errors=True)
        chains = job["settings"]["num_chains"]
        init = [dict(job["init"]) for _ in range(chains)]
        fit = model.sample(**job["settings"], init=init)
        draws = {n: drawn(fit, n, chains) for n in (*job["sites"], *STATS)}
        np.savez(job["draws"], **draws)
    httpstan.services_stub.executor.shutdown()
    versions = f"PyStan {version('pystan')}, httpstan {version('httpstan')}"
    seconds = cpu_of_children() - compiled
    return {"stan": versions, "log_density": densities, "seconds": seconds}


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        result = main(json.load(sys.stdin))
    json.dump(result, sys.stdout)
