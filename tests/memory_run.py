"""A fit from a stream: `python memory_run.py BACKEND` prints MiB as JSON, for test_memory.py."""

import json
import sys

import numpy as np
import psutil

import probgen as pg
from probgen import backends, dist, nets
from probgen.inference import ELBO, SVI

DIM, SIZE, BATCHES = 2000, 250, 220  # a batch is 1.9 MiB, all of them 420 MiB


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
    rng = np.random.default_rng(0)
    for _ in range(BATCHES):
        yield {"x": rng.standard_normal((SIZE, DIM), dtype=np.float32)}


if __name__ == "__main__":
    name = sys.argv[1]
    options = {"compile": "graph"} if name == "torch" else {}
    watch = Watch()
    fitted = pg.fit(
        wide, stream, SVI(ELBO(), pg.Adam(1e-2)), num_steps=BATCHES, seed=0, callbacks=[watch],
        backend=backends.load(name, "cpu", **options),
    )  # fmt: skip
    print(json.dumps({"sizes": watch.sizes, "steps": fitted.info["num_steps"]}))
