"""A fit from a stream, whose process says how large it is, for test_memory.py."""

import ctypes
import json
import sys
from pathlib import Path

import numpy as np
import psutil

import probgen as pg
from probgen import backends, dist, nets
from probgen.inference import ELBO, SVI

DIM, SIZE, BATCHES = 2000, 250, 110  # a batch is 1.9 MiB, all of them 210 MiB


@pg.model
def wide():
    loc = pg.net("loc", nets.Parameter((DIM,)))()
    with pg.data_plate():
        pg.sample("x", dist.Normal(loc, 1.0).to_event(1))


@wide.with_guide
def wide():
    """Nothing to draw."""


class Watch(pg.Callback):
    def __init__(self):
        self.sizes = []

    def on_chunk(self, progress, metrics):
        self.sizes.append((progress.step, psutil.Process().memory_info().rss / 2**20))


def stream():
    rows = np.random.default_rng(0).standard_normal((SIZE, DIM), dtype=np.float32)
    for i in range(BATCHES):
        yield {"x": rows + np.float32(i % 7)}  # new memory each time


def run(name, out):
    """Writes {"sizes": [[step, MiB], ...], "steps": number of steps} to the file `out`."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(-1, 100_000)  # glibc gives back what is freed
    options = {"compile": "graph"} if name == "torch" else {}
    watch = Watch()
    fitted = pg.fit(
        wide, stream, SVI(ELBO(), pg.Adam(1e-2)), num_steps=BATCHES, seed=0, callbacks=[watch],
        backend=backends.load(name, "cpu", **options),
    )  # fmt: skip
    Path(out).write_text(json.dumps({"sizes": watch.sizes, "steps": fitted.info["num_steps"]}))
