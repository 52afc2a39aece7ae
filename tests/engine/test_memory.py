"""Memory: a fit from a stream of any length keeps a flat resident size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from probgen import backends
from probgen.data.sources import as_source
from probgen.engine.batches import STACKED_BYTES, Feed

pytest.importorskip("psutil")
HERE = Path(__file__).resolve().parents[1]  # where the helpers of tests lie


def test_a_stream_of_420_mib_adds_less_than_60_after_its_first_quarter(backend_name):
    paths = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, HERE / "memory_run.py", backend_name],
        env={**os.environ, "PYTHONPATH": paths, "MALLOC_TRIM_THRESHOLD_": "100000"},
        capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["steps"] == 220
    warm = [size for step, size in said["sizes"] if step <= 55]
    rest = [size for step, size in said["sizes"] if step > 55]
    assert warm and max(rest) - max(warm) < 60, said["sizes"]


@pytest.mark.parametrize("kind", ["stream", "map-style"])
def test_what_is_stacked_at_a_time_is_bounded_whatever_the_chunk(backend, kind):
    rows = np.zeros((64, 2**16), np.float32)  # 16 MiB a batch of 64

    def stream():
        for _ in range(9):
            yield rows

    data = stream if kind == "stream" else [rows[0]] * 640
    source = as_source(data, batch_size=64, seed=0)
    feed = Feed(source, backend, lambda batch: None)
    assert feed.max_steps * rows.nbytes <= STACKED_BYTES
    batches, indices, count = feed.chunk(0, feed.max_steps)
    assert count == feed.max_steps and indices is None
    assert tuple(batches["x"].shape) == (count, *rows.shape)


def test_data_that_fit_are_moved_to_the_device_once():
    name = next(n for n, there in backends.available().items() if there)
    source = as_source(np.zeros((100, 3), np.float32), batch_size=10, seed=0)
    feed = Feed(source, backends.load(name, "cpu"), lambda batch: None)
    (one, first, _), (two, second, _) = feed.chunk(0, 5), feed.chunk(5, 5)
    assert one is two and feed.max_steps is None
    assert first.shape == (5, 10) and not np.array_equal(first, second)
    assert sorted(np.concatenate([first, second]).ravel()) == list(range(100))
