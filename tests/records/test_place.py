"""What is written is there whole or not at all, wherever the process is stopped.

A process is stopped at every call to the file system in turn: from the k-th on each call raises, so
that no cleaning up happens either, as if by a kill. Then the same is done again, undisturbed, and
must end as if nothing had happened, with nothing left beside it.
"""

import contextlib
import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from probgen.errors import SaveError
from probgen.evaluation.page.document import Report
from probgen.records import atomic, store
from probgen.records.checkpoint import Checkpoints
from probgen.records.chunks import ChunkStore
from probgen.records.evaluation import Evaluation
from probgen.records.history import History

OUTSIDE = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


class Stopped(BaseException):
    """The process is dead: nothing that it would still do happens."""


class Disk:
    """Counts the calls that change files; from the `stop`-th on, each stops the process.

    A call that writes has written half by then.
    """

    CALLS = ("open", "write", "ftruncate", "fsync", "mkdir", "replace", "rename", "unlink", "rmdir")

    def __init__(self, patch, stop):
        self.count, self.stop = 0, stop
        for name in self.CALLS:
            patch.setattr(os, name, self.counted(name, getattr(os, name)))
        patch.setattr(store, "save_file", self.counted("save_file", store.save_file))

    def counted(self, name, real):
        def call(*args, **options):
            self.count += 1
            if self.count >= self.stop:
                if self.count == self.stop and name == "write":
                    real(args[0], args[1][: len(args[1]) // 2])
                if self.count == self.stop and name == "save_file":
                    Path(args[1]).write_bytes(b"\x10\x00")
                raise Stopped
            return None if name == "fsync" else real(*args, **options)

        return call


def stop_everywhere(tmp_path, prepare, work, look, end):
    """Calls `work(folder)` stopped at each call in turn, `look(folder)`, then `work` and `end`."""
    for stop in range(1, 1000):
        folder = tmp_path / str(stop)
        folder.mkdir()
        prepare(folder)
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, stop)
            with contextlib.suppress(Stopped):
                work(folder)
        look(folder)
        work(folder)
        end(folder)
        if disk.count < stop:
            return stop
    raise AssertionError("the work does not end")


def names(folder):
    return sorted(p.name for p in folder.iterdir())


# ---- each kind that is kept


def write(value):
    arrays = {"model": {"w": np.full(3, value)}, "history": {"loss": np.arange(value)}}
    return lambda folder: store.write_folder(folder / "run", arrays, run_of(value))


def run_of(value):
    return {"kind": "run", "model": None, "model_name": "m", "info": {"value": value}, "inputs": {}}


def held_value(folder):
    arrays, config = store.read_folder(folder / "run", "run")
    value = config["info"]["value"]
    assert (arrays["model"]["w"] == value).all()
    return value


def test_a_model_is_the_old_one_or_the_new_one(tmp_path):
    def end(folder):
        assert held_value(folder) == 2 and names(folder) == ["run"]

    def look(folder):
        assert held_value(folder) in (1, 2)
        with pytest.raises(SaveError, match="what stood there before is untouched"):
            store.write_folder(folder / "run", {}, {"kind": "run", "value": {"a set"}})
        assert held_value(folder) in (1, 2)

    assert stop_everywhere(tmp_path, write(1), write(2), look, end) > 10


def test_a_model_that_is_written_for_the_first_time_is_there_or_not(tmp_path):
    def look(folder):
        if (folder / "run").exists():
            assert held_value(folder) == 2

    def end(folder):
        assert held_value(folder) == 2 and names(folder) == ["run"]

    assert stop_everywhere(tmp_path, lambda folder: None, write(2), look, end) > 10


class Numpy:
    """As much of a backend as checkpoints ask for."""

    to_numpy = staticmethod(np.asarray)


def checkpoints(folder):
    """A fit of three steps that keeps each; it goes on from what is kept."""
    with Checkpoints(folder / "kept", {"seed": 0}).held() as kept:
        found = kept.newest()
        w = found.arrays["w"] if found else np.zeros(2)
        for step in range(found.step if found else 0, 3):
            w = w * 2 + 1
            kept.save(step + 1, {"w": w}, History(), Numpy)


def test_checkpoints_are_never_lost_and_never_left_over(tmp_path):
    def end(folder):
        assert names(folder) == ["kept"]
        assert names(folder / "kept") == ["step-000000002", "step-000000003"]
        with Checkpoints(folder / "kept", {"seed": 0}).held() as kept:
            assert (kept.newest().arrays["w"] == 7).all()

    assert stop_everywhere(tmp_path, lambda f: None, checkpoints, lambda f: None, end) > 60


ROWS = [{"x": np.arange(3.0)}, {"x": np.arange(3.0, 6.0)}]


def evaluation(folder):
    """What `evaluate` does with a place: chunks, then the table; or the table that is there."""
    made = {"seed": 0}
    kept = ChunkStore(folder / "table", made)
    with kept.held():
        if not store.check_place(kept.table, "evaluation"):
            parts = []
            for first, rows in zip((0, 3), ROWS, strict=True):
                values = kept.read(first, rows)
                if values is None:
                    values = {"host": {"estimate": rows["x"] ** 2}}
                    kept.write(first, rows, values)
                parts.append(values["host"]["estimate"])
            Evaluation.from_values(
                {"host": {"estimate": np.concatenate(parts)}}, units={"host": "nats"},
                larger_is_stranger={"host": True}, info={"made": made},
            ).save(kept.table)  # fmt: skip
        kept.clear()


def test_a_table_and_its_chunks(tmp_path):
    def end(folder):
        assert names(folder) == ["table"]
        found = Evaluation.load(folder / "table")["host"]["estimate"].values
        np.testing.assert_array_equal(found, np.arange(6.0) ** 2)

    assert stop_everywhere(tmp_path, lambda f: None, evaluation, lambda f: None, end) > 50


def page(text):
    return lambda folder: Report("A page", lead=text).save(folder / "out" / "report.html")


def test_a_report_is_the_old_one_or_the_new_one(tmp_path):
    def look(folder):
        text = (folder / "out" / "report.html").read_text("utf-8")
        assert text.endswith("</html>\n") and ("old" in text) != ("new" in text)

    def end(folder):
        look(folder)
        assert "new" in (folder / "out" / "report.html").read_text("utf-8")
        assert names(folder / "out") == ["report.html", "report.json"]

    assert stop_everywhere(tmp_path, page("old"), page("new"), look, end) > 10


def test_what_is_removed_is_gone_at_once(tmp_path):
    def work(folder):
        atomic.remove(folder / "run")

    def look(folder):
        if (folder / "run").exists():
            assert held_value(folder) == 1

    def end(folder):
        assert names(folder) == []

    assert stop_everywhere(tmp_path, write(1), work, look, end) > 3


WRITE = """
import sys
import numpy as np
from probgen.records import store
for value in range(1, 100000):
    arrays = {"model": {"w": np.full(3, value)}, "history": {"loss": np.arange(3)}}
    said = {"model": None, "model_name": "m", "info": {"value": value}, "inputs": {}}
    store.write_folder(sys.argv[1], arrays, {"kind": "run", **said})
    print(value, flush=True)
"""


def test_a_process_that_is_really_killed_leaves_what_it_had_written(tmp_path):
    """SIGKILL at a random moment of a process that writes without end."""
    rng = np.random.default_rng()
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE, tmp_path / "run"], env=OUTSIDE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert process.stdout.readline() == "1\n"
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        said = process.communicate()[0].split()
        assert process.returncode == -9
        assert held_value(tmp_path) >= (
            int(said[-2]) if len(said) > 1 else 1
        )  # the last may be cut
    write(2)(tmp_path)
    assert held_value(tmp_path) == 2 and names(tmp_path) == ["run"]


# ---- one process at a time

HOLD = """
import sys, time
from probgen.records import atomic
with atomic.held(atomic.at(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds tmp_path/run."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "run"], env=OUTSIDE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_other_process_is_named_and_its_end_frees_the_place(other, tmp_path):
    with pytest.raises(
        SaveError, match=rf"another run is writing to \(process {other.pid} on .*20"
    ):
        write(1)(tmp_path)
    assert names(tmp_path) == [".run.lock"]
    other.kill()
    other.wait()
    write(1)(tmp_path)
    assert held_value(tmp_path) == 1 and names(tmp_path) == ["run"]


def test_another_thread_is_another_run_and_the_same_one_is_not(tmp_path):
    said = []

    def work():
        try:
            write(1)(tmp_path)
        except SaveError as error:
            said.append(str(error))

    with atomic.held(tmp_path / "run"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        write(2)(tmp_path)
    assert "this very process" in said[0] and held_value(tmp_path) == 2


FORK = """
import os, sys
from probgen.records import atomic, store
at, (reads, writes) = atomic.at(sys.argv[1]), os.pipe()
with atomic.held(at):
    child = os.fork()
    if not child:
        os.read(reads, 1)
        sys.exit(7)  # unwinds the block above
with atomic.held(at):
    os.write(writes, b".")
    assert os.waitpid(child, 0)[1] == 7 << 8
    assert (at.parent / ".run.lock").exists(), "the child took its parent's lock away"
"""


def test_a_forked_child_neither_keeps_the_place_nor_frees_it(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FORK, tmp_path / "run"], env=OUTSIDE, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert names(tmp_path) == []


def test_a_file_system_without_locks_is_said_and_written(tmp_path, monkeypatch, caplog):
    def none(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    write(1)(tmp_path)
    assert "has no locks" in caplog.text and names(tmp_path) == ["run"]


# ---- links, folders that may not be written, names


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "run")
    for value in (1, 2):
        store.write_folder(tmp_path / "link", {"model": {"w": np.zeros(1)}}, run_of(value))
        assert (tmp_path / "link").is_symlink() and names(tmp_path / "disk") == ["run"]
        assert store.read_folder(tmp_path / "link", "run")[1]["info"]["value"] == value
    (tmp_path / "page.html").symlink_to(tmp_path / "disk" / "page.html")
    Report("A page").save(tmp_path / "page.html")
    assert (tmp_path / "page.html").is_symlink() and (tmp_path / "disk" / "page.html").exists()


@pytest.mark.parametrize("path", ["a\0b", 3, "x" * 5000, "/proc/none/run"])
def test_a_path_that_can_be_none_is_said(path):
    with pytest.raises(SaveError, match="expected the name of a file|could not be written"):
        store.write_folder(path, {}, {})
