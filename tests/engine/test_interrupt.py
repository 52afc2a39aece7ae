"""Ctrl-C, SIGTERM, a second process, a pipe that nobody reads: kept work ends well, or goes on."""

import errno
import os
import signal
import subprocess
import sys
import threading

import pytest
from fit_cases import assert_same_bits, binary_data, coins, quick, svi
from test_evaluate_chunks import Host, evaluate, same, values
from test_place import OUTSIDE, names

import probgen as pg
from probgen import progress
from probgen.engine.interrupt import asked_to_stop
from probgen.errors import SaveError, Terminated
from probgen.records import atomic

STEPS = 400  # four chunks


class At(pg.Callback):
    """Does something once so many steps are done."""

    def __init__(self, step, do):
        self.step, self.do, self.chunks = step, do, 0

    def on_chunk(self, progress, metrics):
        self.chunks += 1
        if progress.step == self.step:
            self.do()


def send(*numbers):
    def do():
        for number in numbers:
            os.kill(os.getpid(), number)

    return do


def fit(b, folder=None, *callbacks, **options):
    return pg.fit(coins, binary_data(), svi(), num_steps=STEPS, batch_size=16, seed=0, backend=b,
                  checkpoint=folder, callbacks=callbacks, **options)  # fmt: skip


@pytest.fixture(scope="module")
def b(backend_name):
    return quick(backend_name)


@pytest.fixture(scope="module")
def whole(b):
    return fit(b)


pytestmark = pytest.mark.usefixtures("usual_signals")


# ---- fit


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
)
def test_a_fit_that_is_asked_to_end_keeps_its_step_and_goes_on_to_the_bit(
    b, whole, number, error, tmp_path, caplog
):
    """No checkpoint was due (they are 1,000 steps apart): the one of step 200 is the signal's."""
    with pytest.raises(error, match="stopped at step 200 of 400.*the same call goes on") as raised:
        fit(b, tmp_path, At(200, send(number)))
    assert names(tmp_path) == ["step-000000200"]
    if number == signal.SIGTERM:
        assert raised.value.code == 128 + number and "stopped at step 200" in caplog.text
    count = At(0, None)
    assert_same_bits(fit(b, tmp_path, count).params, whole.params)
    assert count.chunks == 2


def test_asked_twice_it_ends_at_once(b, tmp_path):
    with pytest.raises(KeyboardInterrupt, match="at once"):
        fit(b, tmp_path, At(200, send(signal.SIGINT, signal.SIGINT)))
    assert names(tmp_path) == []


def test_what_is_not_kept_ends_at_once(b):
    with pytest.raises(KeyboardInterrupt):
        fit(b, None, At(100, send(signal.SIGINT)))


def test_a_signal_after_the_last_look_is_not_lost():
    with pytest.raises(KeyboardInterrupt), asked_to_stop(True) as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked


def test_a_signal_in_the_last_chunk_is_not_lost(b, whole, tmp_path):
    with pytest.raises(KeyboardInterrupt, match="step 400 of 400"):
        fit(b, tmp_path, At(400, send(signal.SIGINT)))
    assert_same_bits(fit(b, tmp_path).params, whole.params)


def test_who_handles_a_signal_in_a_way_of_their_own_still_does(b, whole, tmp_path):
    seen, before = [], signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *args: seen.append(args))
    try:
        fitted = fit(b, tmp_path, At(200, send(signal.SIGTERM)))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(seen) == 1
    assert_same_bits(fitted.params, whole.params)


def test_another_thread_leaves_signals_alone():
    with asked_to_stop(True):
        here, seen = signal.getsignal(signal.SIGINT), []

        def work():
            with asked_to_stop(True) as asked:
                seen.append((bool(asked), signal.getsignal(signal.SIGINT)))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert seen == [(False, here)]


def test_a_script_that_is_terminated_ends_with_the_usual_status_and_one_line():
    script = (
        "import os, signal\nfrom probgen.engine.interrupt import asked_to_stop\n"
        "with asked_to_stop(True) as asked:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    asked.stop('fit: stopped at step 3')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], env=OUTSIDE, capture_output=True)
    assert (done.returncode, done.stderr) == (143, b"fit: stopped at step 3\n")


# ---- evaluate


def test_an_evaluation_that_is_asked_to_end_keeps_its_chunks(b, tmp_path):
    def answer(rows):
        seen.append(len(rows["x"]))
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return rows["x"].sum(1)

    seen, path = [], tmp_path / "table"
    with pytest.raises(KeyboardInterrupt, match="stopped after 8 of 11 data.*the same again"):
        evaluate(b, [Host(answer=answer)], path=path)
    last = Host()
    table = evaluate(b, [last], path=path)
    assert len(last.seen) == 1 and names(tmp_path) == ["table"]
    same(values(table, "host"), values(evaluate(b, [Host()]), "host"))


# ---- two at a time


@pytest.mark.parametrize("resume", [True, False])
def test_a_second_fit_in_a_folder_is_refused_and_harms_nothing(b, resume, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(b, tmp_path, At(200, send(signal.SIGINT)))
    said, count = [], At(0, None)
    with atomic.held(tmp_path, inside=True):  # as a live fit does

        def second():
            try:
                fit(b, tmp_path, count, resume=resume)
            except SaveError as error:
                said.append(str(error))

        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "another run is writing to (process" in said[0] and not count.chunks
    assert names(tmp_path) == ["step-000000200"]


def test_a_second_evaluation_of_a_place_is_refused_before_it_measures(b, tmp_path):
    said, measure = [], Host()

    def second():
        try:
            evaluate(b, [measure], path=tmp_path / "table")
        except SaveError as error:
            said.append(str(error))

    with atomic.held(tmp_path / "table"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "another run is writing to (process" in said[0] and not measure.seen


# ---- where


def test_a_folder_that_may_not_be_written_is_said_before_the_first_step(b, tmp_path, monkeypatch):
    """Access as root would pass: the file system itself says no."""
    (tmp_path / "kept").mkdir()
    real, count, measure = os.open, At(0, None), Host()

    def read_only(path, flags, *args, **options):
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return real(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(SaveError, match="could not be written .*Read-only"):
        fit(b, tmp_path / "kept", count)
    with pytest.raises(SaveError, match="could not be written .*Read-only"):
        evaluate(b, [measure], path=tmp_path / "table")
    assert not count.chunks and not measure.seen


def test_a_relative_folder_is_where_it_was_when_the_fit_began(b, whole, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    fit(b, "kept", At(200, lambda: os.chdir("elsewhere")), checkpoint_every=200)
    assert names(tmp_path) == ["elsewhere", "kept"] and not names(tmp_path / "elsewhere")
    assert names(tmp_path / "kept") == ["step-000000200", "step-000000400"]


# ---- nobody reads


class Gone:
    """A terminal that is no longer there."""

    encoding = "utf-8"

    def __init__(self, error):
        self.error = error

    def isatty(self):
        return True

    def write(self, *text):
        raise self.error

    flush = fileno = write


@pytest.mark.parametrize(
    "error", [BrokenPipeError(), OSError(errno.ENOSPC, "full"), ValueError("closed file")], ids=repr
)
def test_a_terminal_that_is_gone_ends_no_work(b, whole, error, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Gone(error))
    fitted = fit(b, None, At(200, lambda: progress.log.warning("nobody hears this")))
    monkeypatch.undo()
    assert_same_bits(fitted.params, whole.params)


def test_lines_that_nobody_reads_end_no_work(tmp_path):
    script = (
        "import sys\nfrom probgen.progress import say\nfor i in range(20000): say(str(i))\n"
        "open(sys.argv[1], 'w').write('done')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "end"], env=OUTSIDE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.readline()
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 0)
    process.stderr.close()
    assert (tmp_path / "end").read_text() == "done"
