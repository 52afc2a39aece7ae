"""Processes that a test starts and may kill, each a fork of one that has imported what is slow.

The frameworks are imported there, not started: a fork has the threads and clients of its own.
"""

import multiprocessing
import traceback
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
# probgen before JAX, whose flag it sets.
FORKS.set_forkserver_preload(["probgen", "probgen.inference", "pyro", "numpyro", "optax"])


def start(function, *arguments, said):
    """The process of `function(*arguments)`; what an error said comes to stand in the file `said`.

    Args:
        function: of a module that can be imported.
    """
    process = FORKS.Process(target=_run, args=(function, arguments, str(said)), daemon=True)
    process.start()
    return process


def _run(function, arguments, said):
    try:
        function(*arguments)
    except BaseException:
        Path(said).write_text(traceback.format_exc())
        raise


def error(said):
    """What `start`'s file says; empty where there is none."""
    return Path(said).read_text() if Path(said).exists() else ""
