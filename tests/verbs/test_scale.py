"""A million data over two workers: memory that does not grow with them, time that grows with them.

`python tests/verbs/test_scale.py SIZES...` prints the rows of docs/scale.md.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import probgen as pg
from probgen import dist, nets
from probgen.engine.fitted import Fitted
from probgen.inference import IWAE
from probgen.models import VAE, likelihoods

D, CHUNK, MIB = 16, 2000, 2**20


def fitted():
    """A VAE of synthetic data, 16 numbers each, 4 latents."""
    model = VAE(
        latent=dist.Normal(0, 1).expand([4]).to_event(1),
        decoder=nets.MLP(hidden=(64,), out=(D,)),
        likelihood=likelihoods.Normal(scale=0.5),
        encoder=nets.MLP(hidden=(64,), out=4, heads=("loc", "log_scale")),
    )
    rng = np.random.default_rng(0)
    params = {"decoder": model.decoder.init(rng, (4,)), "encoder": model.encoder.init(rng, (D,))}
    return Fitted(model, params, shapes={"x": (D,)})


def data(file, size):
    """Drawn to a file piece by piece, and mapped."""
    x = np.lib.format.open_memmap(file, "w+", np.float32, (size, D))
    for first in range(0, size, 100_000):
        part = x[first : first + 100_000]
        part[:] = np.random.default_rng(first).normal(size=part.shape)
    x.flush()
    return np.load(file, mmap_mode="r")


class Memory:
    """Peaks of what this process and its children hold for themselves (files that are mapped are
    the system's), MiB, looked at as chunks are kept."""

    def __init__(self):
        self.own = self.workers = 0.0

    def look(self):
        import psutil

        me = psutil.Process()
        self.own = max(self.own, _private(me))
        with contextlib.suppress(psutil.Error):
            for child in me.children(recursive=True):
                self.workers = max(self.workers, _private(child))


def _private(process):
    found = process.memory_info()
    return (found.rss - found.shared) / MIB


def row(size, folder, backend="jax"):
    """{size, seconds, cpu, own, workers, table}: of one evaluation in a fresh process; MiB."""
    from probgen.records.chunks import ChunkStore

    memory, real, count = Memory(), ChunkStore.write, [0]

    def write(self, *args):
        real(self, *args)
        count[0] += 1
        if count[0] % 5 == 0:
            memory.look()

    ChunkStore.write = write
    x = data(Path(folder) / "x.npy", size)
    with ProcessPoolExecutor(2, mp_context=_spawn()) as pool:
        options = {"seed": 0, "chunk_size": CHUNK, "backend": backend, "executor": pool,
                   "progress_bar": False}  # fmt: skip
        pg.evaluate(fitted(), x[: 2 * CHUNK], [IWAE(16)], **options)  # workers compile
        began, spent = time.perf_counter(), _cpu()
        table = pg.evaluate(fitted(), x, [IWAE(16)], path=Path(folder) / "table", **options)
        seconds, cpu = time.perf_counter() - began, _cpu() - spent
        memory.look()
    held = sum(v.nbytes for v in table["IWAE(16)"].data_vars.values()) / MIB
    return {"size": size, "seconds": seconds, "cpu": cpu, "own": memory.own,
            "workers": memory.workers, "table": held, "chunks": count[0]}  # fmt: skip


def _cpu():
    """Seconds of processors that this process and its children have had."""
    import psutil

    me = psutil.Process()
    return sum(sum(p.cpu_times()[:2]) for p in (me, *me.children(recursive=True)))


def _spawn():
    import multiprocessing

    return multiprocessing.get_context("spawn")


def measured(size):
    with tempfile.TemporaryDirectory() as folder:
        call = [sys.executable, __file__, str(size), folder]
        said = subprocess.run(call, check=True, capture_output=True, text=True).stdout
    return json.loads(said.splitlines()[-1])


@pytest.mark.slow
def test_a_million_data_in_flat_memory_and_linear_time():
    few, many = measured(100_000), measured(1_000_000)
    assert many["chunks"] == 500
    assert many["workers"] < few["workers"] + 40
    assert many["own"] - few["own"] < 3 * (many["table"] - few["table"]) + 40
    assert many["cpu"] < 12 * few["cpu"]


if __name__ == "__main__":
    if len(sys.argv) == 3 and not sys.argv[2].isdigit():
        print(json.dumps(row(int(sys.argv[1]), sys.argv[2])))
    else:
        for each in map(int, sys.argv[1:]):
            print(json.dumps(measured(each)), flush=True)
