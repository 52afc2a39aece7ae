"""`fit(..., devices=)`: many devices compute what one computes with the same batch, to rounding."""

import datetime
import functools
import importlib
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import children
import numpy as np
import parallel_run
import pytest
from fit_cases import binary_data, coins, quick, svi
from parallel_cases import CASES, assert_same, numbers

import probgen as pg
from probgen.backends.own_device import own
from probgen.engine import together
from probgen.errors import AlgorithmError, BackendError

QUICK_TORCH = [
    "free bits", "in parts", "global latents", "replay buffer", "denoising", "adversarial",
    "em by chains", "convolutions",
]  # fmt: skip
QUICK_JAX = ["denoising", "a user's em", "convolutions"]
MORE = ["iwae", "a drift"]
CHECKS = (
    parallel_run.resumes_on_another_number, parallel_run.refuses_another_fit_elsewhere,
    parallel_run.ends_together,
)  # fmt: skip


TORCH_CHECKS = (
    *CHECKS, parallel_run.keeps_no_memory_that_is_looked_at,
    parallel_run.tells_that_another_is_gone,
)  # fmt: skip


def run_all(function, *runs, folder, seconds=3600):
    """Processes side by side; the first error of one of them is the test's."""
    said = [folder / f"said-{i}" for i in range(len(runs))]
    processes = [
        children.start(function, *run, said=place) for run, place in zip(runs, said, strict=True)
    ]
    for process in processes:
        process.join(timeout=seconds)
    errors = [children.error(place) for place in said]
    for process in processes:
        process.kill()
    assert not any(errors), "\n".join(errors)
    assert [p.exitcode for p in processes] == [0] * len(runs)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def two_of_gloo(folder, names, checks=()):
    runs = [(rank, str(folder), names, checks) for rank in (0, 1)]
    run_all(parallel_run.gloo, *runs, folder=folder)


def test_two_processes_of_torch_compute_what_one_does(tmp_path):
    pytest.importorskip("torch")
    two_of_gloo(tmp_path, QUICK_TORCH, TORCH_CHECKS)


def test_four_devices_of_xla_compute_what_one_does(tmp_path):
    pytest.importorskip("jax")
    checks = (parallel_run.resumes_on_another_number, parallel_run.scores_over_devices)
    run_all(parallel_run.xla, (4, str(tmp_path), QUICK_JAX, checks), folder=tmp_path)


@pytest.mark.repeated("test_two_processes_of_torch_compute_what_one_does")
def test_so_do_more_learners_on_torch(tmp_path):
    pytest.importorskip("torch")
    two_of_gloo(tmp_path, MORE)


@pytest.mark.repeated("test_four_devices_of_xla_compute_what_one_does")
def test_so_do_more_learners_on_jax(tmp_path):
    pytest.importorskip("jax")
    run_all(parallel_run.xla, (4, str(tmp_path), MORE, ()), folder=tmp_path)


@pytest.mark.slow
def test_so_does_every_learner_on_torch(tmp_path):
    pytest.importorskip("torch")
    checks = (parallel_run.keeps_parameters_in_pieces,)
    two_of_gloo(tmp_path, sorted(set(CASES) - {*QUICK_TORCH, *MORE}), checks)


@pytest.mark.slow
def test_so_does_every_learner_on_jax(tmp_path):
    pytest.importorskip("jax")
    names = sorted(set(CASES) - {*QUICK_JAX, *MORE})
    checks = (parallel_run.keeps_parameters_in_pieces,)
    run_all(parallel_run.xla, (4, str(tmp_path), names, checks), folder=tmp_path)


@pytest.mark.slow
def test_two_processes_of_jax_compute_what_one_does(tmp_path):
    pytest.importorskip("jax")
    names, port = sorted(CASES), free_port()
    runs = [(rank, port, str(tmp_path), names, CHECKS) for rank in (0, 1)]
    run_all(parallel_run.jax_process, *runs, folder=tmp_path)
    for name in names:
        first, second = (np.load(tmp_path / f"{name}-{rank}.npz") for rank in (0, 1))
        for each in first:
            np.testing.assert_array_equal(first[each], second[each], err_msg=f"{name}: {each}")


@pytest.mark.slow
def test_a_killed_process_ends_the_others_with_an_error_and_all_go_on(backend_name, tmp_path):
    """SIGKILL of one of two once there is a checkpoint; then the same call in both."""
    from floats import float64

    (code, said), (killed, _) = two_processes(tmp_path, backend_name, kills=True)
    assert code and killed == -signal.SIGKILL
    assert re.search("BackendError: devices: process 0 of 2 has lost another one", said), said
    assert not (tmp_path / "out").exists()
    assert two_processes(tmp_path, backend_name) == [(0, "")] * 2
    b = quick(backend_name)
    with float64(b):
        whole = parallel_run.vae(b, parallel_run.STEPS)
    assert_same(numbers(whole), numbers(pg.Fitted.from_pretrained(tmp_path / "out")), "gone on")


def two_processes(folder, backend, kills=False):
    """[(exit code, what its error said)]"""
    (folder / "store").unlink(missing_ok=True)
    said, port = [folder / f"{kills}-{rank}" for rank in (0, 1)], free_port()
    run = parallel_run.to_be_killed
    both = [children.start(run, r, port, str(folder), backend, said=said[r]) for r in (0, 1)]
    if kills:
        end = time.monotonic() + 600
        while not list(folder.glob("kept/step-*")) and all(p.is_alive() for p in both):
            assert time.monotonic() < end
            time.sleep(0.01)
        both[1].kill()
    for process in both:
        process.join(timeout=600)
    is_over = [not process.is_alive() for process in both]
    for process in both:
        process.kill()
    assert all(is_over), "a process waits for one that has ended"
    return [(p.exitcode, children.error(place)) for p, place in zip(both, said, strict=True)]


@pytest.mark.slow
def test_a_killed_process_costs_a_checkpoint_and_torchrun_goes_on(tmp_path):
    """SIGKILL of one of two processes at a random moment; the agent starts both again."""
    pytest.importorskip("torch")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "--max-restarts", "2", parallel_run.__file__, str(tmp_path),
        str(np.random.default_rng().integers(2)),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "count").read_text() == "1"
    began, done = int((tmp_path / "began").read_text()), 2 * len((tmp_path / "chunks").read_text())
    assert began >= done - 2, (began, done)  # a checkpoint every two steps
    from floats import float64

    b = quick("torch")
    with float64(b):
        whole = parallel_run.vae(b, 60)
    assert_same(numbers(whole), numbers(pg.Fitted.from_pretrained(tmp_path / "out")), "restarted")


@pytest.mark.gpu
def test_several_gpus_compute_what_one_does():
    """NCCL under torchrun, and a mesh of real devices."""
    torch = pytest.importorskip("torch")
    if torch.cuda.device_count() < 2:
        pytest.skip(f"{torch.cuda.device_count()} GPU here, expected two or more")
    program = Path(__file__).parents[1] / "parallel_gpus.py"
    for start in (["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"], []):
        command = [sys.executable, *start, str(program), "torch" if start else "jax"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stderr[-3000:]


# ---- one process ----


LOST = {
    "torch": [
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer",
        "NCCL communicator was aborted on rank 1.",
    ],
    "jax": [
        "UNKNOWN: Gloo AllGather failed: [gloo/transport/tcp/pair.cc:538] Connection reset by peer",
        "INTERNAL: NCCL operation ncclGroupEnd() failed: remote process exited or network error.",
        "UNAVAILABLE: The coordination service has stopped.",
    ],
}  # fmt: skip


@pytest.mark.parametrize("process", [0, 1])
def test_what_collectives_say_of_a_lost_process_is_said_in_our_words(backend_name, process):
    """Wherever processes speak with each other; what is another error, or is said where there is
    one process, stays what it is."""
    is_lost = quick(backend_name).is_lost

    def told(error, num_processes=2):
        def speak(_):
            raise error

        class Alone:
            gather = share = staticmethod(speak)
            versions = dict

        there = Alone()
        there.num_processes, there.process, there.is_lost = num_processes, process, is_lost
        return there

    lost = [RuntimeError(said) for said in LOST[backend_name]]
    if backend_name == "torch":
        lost.append(importlib.import_module("torch.distributed").DistStoreError("wait timeout"))
    for error in lost:
        for speak in (
            lambda b: together.agree(b, {"seed": 0}),
            lambda b: together.once(b, lambda: b"ours"),
            lambda b: together.once(b, lambda: 1 / 0),
        ):
            with pytest.raises(BackendError, match=f"process {process} of 2 has lost") as found:
                speak(told(error))
            assert str(error)[:60] in str(found.value)
    for error in (RuntimeError("shapes cannot be multiplied"), LookupError("gloo")):
        with pytest.raises(type(error), match=str(error)):
            together.agree(told(error), {"seed": 0})
    with pytest.raises(RuntimeError, match="gloo"), together.in_touch(told(None, 1)):
        raise RuntimeError("gloo")


@pytest.mark.parametrize("lacks", ["a partner", "RANK"])
def test_a_process_whose_partners_never_come_says_so(monkeypatch, lacks):
    dist = pytest.importorskip("torch.distributed")
    world = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**world, "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(lacks, raising=False)
    soon = functools.partial(dist.rendezvous, timeout=datetime.timedelta(seconds=0.5))
    monkeypatch.setattr(dist, "rendezvous", soon)
    with pytest.raises(BackendError, match="found no group of 2 processes .*expected all that"):
        fit(quick("torch"), devices="all")


def test_processes_with_unequal_numbers_of_devices_are_refused(monkeypatch):
    jax = pytest.importorskip("jax")
    there = [SimpleNamespace(process_index=i) for i in (0, 1, 1)]
    monkeypatch.setattr(jax, "devices", lambda platform: there)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(BackendError, match=r"got \[1, 2\] devices in the 2 processes, expected as"):
        quick("jax").over("all", 6)


def fit(b, **options):
    settings = {"num_steps": 2, "batch_size": 8, "seed": 0, "progress_bar": False, **options}
    return pg.fit(coins, binary_data(), svi(), backend=b, **settings)


def test_devices_are_workers_of_their_backend(backend_name):
    """One of a CPU; tests/parallel_run.py has four."""
    with pg.Devices(backend_name, "cpu") as devices:
        assert devices._max_workers == 1
        assert devices.submit(lambda: own.get()).result() == 0
    with pytest.raises(BackendError, match="expected 'auto', 'torch' or 'jax'"):
        pg.Devices("nonsense")


def test_one_device_by_number_is_one_device(backend_name):
    b = quick(backend_name)
    assert_same(numbers(fit(b)), numbers(fit(b, devices=1)), "one")


def test_more_devices_than_there_are_is_said_with_what_makes_them(backend_name):
    cure = {"torch": "torchrun --nproc-per-node", "jax": "xla_force_host_platform_device_count"}
    with pytest.raises(BackendError, match=f"devices: got 64.*{cure[backend_name]}"):
        fit(quick(backend_name), devices=64)


def test_parameters_are_split_over_several_devices_alone(backend_name):
    with pytest.raises(AlgorithmError, match="shard_parameters=True and devices=None, expected"):
        fit(quick(backend_name), shard_parameters=True)
