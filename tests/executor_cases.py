"""What the workers of a pool are sent in tests: a model, measures that count or end their worker.

Workers import this file, so that what is sent is found there by name.
"""

import os
import signal
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from pathlib import Path

import children
import numpy as np
from test_evaluate_chunks import X, vae

import probgen as pg

__all__ = ["X", "Ends", "Fragile", "Spoilt", "evaluate", "pool", "same", "vae", "values"]


def pool():
    """A process, a fork of one that has imported the frameworks."""
    return ProcessPoolExecutor(1, mp_context=children.FORKS)


class Ends:
    """The sum of a datum, and the process that computed it. Once, at datum 4, it ends that process
    as the system does where memory runs out; `file` says that it has."""

    name, unit, larger_is_stranger = "ends", "nats", False

    def __init__(self, file):
        self.file = str(file)

    def __identity__(self):
        return self.name

    def bind_measure(self, context):
        def run(rows, ids):
            if 4 in ids and not Path(self.file).exists():
                Path(self.file).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            with open(f"{self.file}.log", "a") as log:
                log.write(f"{ids[0]}\n")
            return {"estimate": rows["x"].sum(1)}

        return run

    def scored(self):
        """The first data of the chunks that were scored, one entry each time."""
        return [int(line) for line in Path(f"{self.file}.log").read_text().split()]


class Spoilt:
    """NaN at datum 9."""

    name, unit, larger_is_stranger = "spoilt", "nats", False

    def bind_measure(self, context):
        return lambda rows, ids: {"estimate": np.where(ids == 9, np.nan, 0.0)}


class Fragile(Executor):
    """Runs what it is given at once, and is broken from the `stop`-th piece on."""

    def __init__(self, stop=None):
        self.stop, self.count = stop, 0

    def submit(self, fn, *args):
        future = Future()
        self.count += 1
        if self.stop is not None and self.count >= self.stop:
            future.set_exception(BrokenExecutor("a process ended"))
            return future
        try:
            future.set_result(fn(*args))
        except Exception as error:
            future.set_exception(error)
        return future


def evaluate(b, measures, **options):
    options = {"seed": 0, "chunk_size": 2, "progress_bar": False, **options}
    fitted = options.pop("fitted", None) or vae()
    return pg.evaluate(fitted, options.pop("data", X), measures, backend=b, **options)


def values(table):
    return {f"{n}/{q}": v.values for n in table for q, v in table[n].data_vars.items()}


def same(one, other):
    one, other = values(one), values(other)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
