"""Memory: a fit from a stream of any length keeps a flat resident size."""

import json

import children
import memory_run
import numpy as np
import pytest

from probgen import backends
from probgen.data.sources import as_source
from probgen.engine.batches import STACKED_BYTES, BatchFeed

pytest.importorskip("psutil")


def test_a_stream_of_210_mib_adds_less_than_60_after_its_first_quarter(backend_name, tmp_path):
    out, error = tmp_path / "sizes.json", tmp_path / "error"
    process = children.start(memory_run.run, backend_name, out, said=error)
    process.join(timeout=1200)
    assert process.exitcode == 0, children.error(error)
    said = json.loads(out.read_text())
    assert said["steps"] == 110
    warm = [size for step, size in said["sizes"] if step <= 27]
    rest = [size for step, size in said["sizes"] if step > 27]
    assert warm and max(rest) - max(warm) < 60, said["sizes"]


@pytest.mark.parametrize("kind", ["stream", "map-style"])
def test_what_is_stacked_at_a_time_is_bounded_whatever_the_chunk(backend, kind):
    rows = np.zeros((64, 2**16), np.float32)  # 16 MiB a batch of 64

    def stream():
        for _ in range(9):
            yield rows

    data = stream if kind == "stream" else [rows[0]] * 640
    source = as_source(data, batch_size=64, seed=0)
    feed = BatchFeed(source, backend, lambda batch: None)
    assert feed.max_steps * rows.nbytes <= STACKED_BYTES
    batches, indices, count = feed.chunk(0, feed.max_steps)
    assert count == feed.max_steps and indices is None
    assert tuple(batches["x"].shape) == (count, *rows.shape)


def test_data_that_fit_are_moved_to_the_device_once():
    name = next(n for n, there in backends.available().items() if there)
    source = as_source(np.zeros((100, 3), np.float32), batch_size=10, seed=0)
    feed = BatchFeed(source, backends.load(name, "cpu"), lambda batch: None)
    (one, first, _), (two, second, _) = feed.chunk(0, 5), feed.chunk(5, 5)
    assert one is two and feed.max_steps is None
    assert first.shape == (5, 10) and not np.array_equal(first, second)
    assert sorted(np.concatenate([first, second]).ravel()) == list(range(100))
