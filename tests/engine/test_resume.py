"""Checkpoints: a fit, killed and resumed, ends where an uninterrupted one does, to the bit."""

import errno
import os
import signal
import time

import children
import numpy as np
import pytest
from fit_cases import are_same_bits, assert_same_bits, binary_data, coins, quick, small_vae, svi
from resume_run import NUM_STEPS, run

import probgen as pg
from probgen.errors import SaveError
from probgen.records.checkpoint import Checkpoints
from probgen.records.store import read_folder


@pytest.fixture(scope="module")
def b(backend_name):
    return quick(backend_name)


def steps_in(folder):
    return sorted(int(p.name[5:]) for p in folder.glob("step-*"))


# ---- killed ----


def kill_at_a_random_moment(process, folder, rng):
    """SIGKILL between 0 and 0.25 s after the process has written a checkpoint of its own."""
    before, deadline = steps_in(folder), time.monotonic() + 1200
    while steps_in(folder) == before and process.is_alive():
        assert time.monotonic() < deadline, "no checkpoint in twenty minutes"
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.25))
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def check_killed_and_resumed(backend, compile, tmp_path, kills, case="vae"):
    """Killed so often in processes of their own, then run to its end in this one."""
    rng = np.random.default_rng()  # another moment every time
    folder, said, killed = tmp_path / "checkpoints", tmp_path / "said", []
    for _ in range(kills):
        process = children.start(run, backend, compile, case, folder, 0.05, said=said)
        was_killed = kill_at_a_random_moment(process, folder, rng)
        assert was_killed or process.exitcode == 0, children.error(said)
        if not was_killed:
            break
        killed.append(steps_in(folder)[-1])
    assert killed and killed == sorted(killed) and killed[0] < NUM_STEPS
    whole, resumed = run(backend, compile, case), run(backend, compile, case, folder)
    assert_same_bits(whole.params, resumed.params)
    assert_same_bits(whole.extras, resumed.extras)
    for name in whole.history:
        np.testing.assert_array_equal(whole.history[name], resumed.history[name], err_msg=name)
    assert whole.history.validation_steps == resumed.history.validation_steps
    for name, found in whole.history.validation.items():
        np.testing.assert_array_equal(found, resumed.history.validation[name], err_msg=name)


def test_killed_again_and_again_it_ends_as_if_nothing_had_happened(backend_name, tmp_path):
    check_killed_and_resumed(backend_name, "graph", tmp_path, kills=2)


@pytest.mark.repeated("test_em.py::test_em_stopped_and_resumed_is_the_uninterrupted_run")
def test_chains_of_each_datum_survive_a_kill(backend_name, tmp_path):
    check_killed_and_resumed(backend_name, "graph", tmp_path, kills=1, case="em")


@pytest.mark.slow
def test_killed_while_compiled_by_inductor_too(tmp_path):
    pytest.importorskip("torch")
    check_killed_and_resumed("torch", "inductor", tmp_path, kills=2)


# ---- stopped and resumed in one process: every step, everything else ----


def fit(b, steps, folder=None, model=coins, **options):
    options = {"batch_size": 16, "seed": 0, "backend": b, "checkpoint_every": 4, **options}
    data = options.pop("data", binary_data())
    algorithm = options.pop("algorithm", svi())
    return pg.fit(model, data, algorithm, num_steps=steps, checkpoint=folder, **options)


# Past a checkpoint and before the next: the other two are at one, and before all.
STOPS = [
    7,
    *(
        pytest.param(
            stop,
            marks=pytest.mark.repeated("test_resumed_at_any_step_it_is_the_uninterrupted_run"),
        )
        for stop in (1, 4)
    ),
]


@pytest.mark.parametrize("stop", STOPS)
def test_resumed_at_any_step_it_is_the_uninterrupted_run(b, stop, tmp_path):
    options = dict(model=small_vae(), ema_decay=0.8)
    fit(b, stop, tmp_path, **options)
    resumed, whole = fit(b, 11, tmp_path, **options), fit(b, 11, **options)
    assert_same_bits(whole.params, resumed.params)
    np.testing.assert_array_equal(whole.history["elbo"], resumed.history["elbo"])
    assert resumed.info["num_steps"] == 11


def test_a_finished_run_is_returned_without_another_step(b, tmp_path):
    class Count(pg.Callback):
        chunks = 0

        def on_chunk(self, progress, metrics):
            Count.chunks += 1

    one = fit(b, 6, tmp_path)
    two = fit(b, 6, tmp_path, callbacks=[Count()])
    assert Count.chunks == 0
    assert_same_bits(one.params, two.params)


def test_a_run_that_was_stopped_early_stays_stopped(b, tmp_path):
    options = dict(validation=binary_data(8), eval_every=3)
    stop = pg.EarlyStopping("elbo", patience=2, min_delta=100.0)
    whole = fit(b, 40, tmp_path / "a", callbacks=[stop], **options)
    assert whole.info["num_steps"] == 9
    again = fit(b, 40, tmp_path / "a", callbacks=[stop], **options)
    assert again.info["num_steps"] == 9
    assert_same_bits(whole.params, again.params)
    fit(b, 6, tmp_path / "b", **options)  # interrupted one evaluation before
    resumed = fit(b, 40, tmp_path / "b", callbacks=[stop], **options)
    assert resumed.info["num_steps"] == 9
    assert_same_bits(whole.params, resumed.params)


def test_a_roll_back_is_remembered(b, tmp_path):
    """The lowered step size is a part of the state."""
    from test_guard import Trap

    options = dict(algorithm=Trap(4.6), checkpoint_every=2)
    whole = fit(b, 6, tmp_path / "a", **options)
    fit(b, 2, tmp_path / "b", **options)
    resumed = fit(b, 6, tmp_path / "b", **options)
    assert whole.history.events == resumed.history.events and len(whole.history.events) == 1
    assert_same_bits(whole.params, resumed.params)


# ---- the folder ----


def test_the_last_two_checkpoints_are_kept(b, tmp_path):
    fit(b, 12, tmp_path)
    assert steps_in(tmp_path) == [8, 12]
    _, config = read_folder(tmp_path / "step-000000012", "checkpoint")
    assert config["step"] == 12 and not config["finished"]


def test_leftovers_of_a_kill_while_writing_do_no_harm_and_go(b, tmp_path):
    fit(b, 6, tmp_path)
    left = tmp_path / ".step-000000008.new"
    left.mkdir()
    (left / "state.safetensors").write_bytes(b"half")
    resumed = fit(b, 12, tmp_path)
    assert_same_bits(resumed.params, fit(b, 12).params)
    assert not left.exists() and steps_in(tmp_path) == [8, 12]


@pytest.mark.parametrize("damage", ["truncated", "no config", "empty", "not a checkpoint"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(b, damage, tmp_path, caplog):
    fit(b, 8, tmp_path)
    newest = tmp_path / "step-000000008"
    if damage == "truncated":
        content = (newest / "state.safetensors").read_bytes()
        (newest / "state.safetensors").write_bytes(content[:-3])
    elif damage == "not a checkpoint":
        fit(b, 2).save_pretrained(newest.with_name("other"))
        for path in newest.iterdir():
            path.unlink()
        newest.rmdir()
        os.replace(newest.with_name("other"), newest)
    else:
        for path in newest.iterdir():
            if damage == "empty" or path.name == "config.json":
                path.unlink()
    resumed = fit(b, 12, tmp_path)
    assert "step-000000008 is passed over" in caplog.text
    assert_same_bits(resumed.params, fit(b, 12).params)
    assert steps_in(tmp_path) == [8, 12]


def test_checkpoints_that_are_all_damaged_are_an_error_not_a_new_beginning(b, tmp_path):
    fit(b, 8, tmp_path)
    for folder in tmp_path.iterdir():
        (folder / "config.json").write_text("{")
    with pytest.raises(SaveError, match="2 checkpoints and none that can be read.*resume=False"):
        fit(b, 12, tmp_path)
    anew = fit(b, 12, tmp_path, resume=False)
    assert_same_bits(anew.params, fit(b, 12).params)
    assert steps_in(tmp_path) == [8, 12]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": 1}, r"another seed \(0, expected 1\)"),
        ({"batch_size": 8}, r"another batch_size \(16, expected 8\)"),
        ({"algorithm": svi(2e-2)}, "another algorithm .*0.01.*expected .*0.02"),
        ({"model": small_vae()}, r"another model \(pg.model\(coins\) .*expected VAE"),
        ({"ema_decay": 0.9}, r"another ema_decay \(None, expected 0.9\)"),
        ({"data": binary_data(64, 1)}, "another data .64 x .*expected 64 x"),
        ({"data": binary_data(65)}, "another data .64 x .*expected 65 x"),
        ({"gradient_accumulation": 2}, r"another accumulate \(1, expected 2\)"),
    ],
)
def test_a_checkpoint_of_another_fit_is_refused_and_the_difference_named(
    b, options, words, tmp_path
):
    fit(b, 4, tmp_path)
    with pytest.raises(SaveError, match=words):
        fit(b, 8, tmp_path, **options)
    assert steps_in(tmp_path) == [4]


def test_a_fit_that_starts_elsewhere_is_another_fit(b, tmp_path):
    start = fit(b, 3)
    fit(b, 4, tmp_path, model=start)
    resumed = fit(b, 8, tmp_path, model=start)
    assert_same_bits(resumed.params, fit(b, 8, model=start).params)
    with pytest.raises(SaveError, match="given parameters"):
        fit(b, 8, tmp_path, model=fit(b, 2))


def test_beginning_anew_lets_the_old_checkpoints_go_only_once_a_new_one_stands(
    b, tmp_path, monkeypatch
):
    fit(b, 12, tmp_path)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("probgen.records.atomic.os.fsync", full)
        with pytest.raises(SaveError, match="No space left"):
            fit(b, 6, tmp_path, resume=False, seed=1)
    assert steps_in(tmp_path) == [8, 12]
    fit(b, 6, tmp_path, resume=False, seed=1)
    assert steps_in(tmp_path) == [4, 6]
    assert_same_bits(fit(b, 9, tmp_path, seed=1).params, fit(b, 9, seed=1).params)


def test_a_full_disk_loses_nothing_of_the_last_checkpoint(b, tmp_path, monkeypatch):
    fit(b, 4, tmp_path)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("probgen.records.store.save_file", full)
        with pytest.raises(SaveError, match="No space left"):
            fit(b, 12, tmp_path)
    assert steps_in(tmp_path) == [4]
    assert_same_bits(fit(b, 12, tmp_path).params, fit(b, 12).params)


def test_a_place_that_cannot_hold_checkpoints_is_said_before_the_first_step(b, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="could not be written"):
        fit(b, 4, tmp_path / "file")


def test_other_folders_beside_the_checkpoints_are_left_alone(b, tmp_path):
    (tmp_path / "step-by-step").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    fit(b, 12, tmp_path)
    assert (tmp_path / "step-by-step").is_dir() and (tmp_path / "notes.txt").exists()
    assert len(Checkpoints(tmp_path, {})._folders()) == 2


def test_resumed_under_another_backend_it_is_another_fit(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("jax")
    fit(quick("torch"), 4, tmp_path)
    with pytest.raises(SaveError, match="another backend .torch, expected jax"):
        fit(quick("jax"), 8, tmp_path)


def test_without_a_folder_nothing_is_shared_between_runs(b):
    assert not are_same_bits(fit(b, 4).params, fit(b, 8).params)
