"""The same compiled call gives one result to the bit, however often and however busy the machine.

A step, a measure or a chain computed again from the same input in a process of its own, on all
cores, beside others that keep them busy: a race shows as a second result (`repeat_run.py`).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[1]  # where the helpers of tests lie
ONE_CORE = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "XLA_FLAGS")


@pytest.fixture
def load():
    """Two processes that do nothing, without end."""
    idle = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    yield
    for process in idle:
        process.kill()
        process.wait()


def repeated(backend_name, which, calls, seconds):
    """{case: (calls, different results)}, computed in a process that may use every core."""
    environment = {k: v for k, v in os.environ.items() if k not in ONE_CORE}
    # Threads of torch that wait by spinning take the core from the one that they wait for.
    environment["OMP_WAIT_POLICY"] = "PASSIVE"
    words = [sys.executable, str(HERE / "repeat_run.py"), backend_name, which, str(calls)]
    run = subprocess.run(
        [*words, str(seconds)], env=environment, text=True, capture_output=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    print(run.stdout)
    lines = [line.rsplit(": ", 1) for line in run.stdout.splitlines() if ": " in line]
    return {case: tuple(int(w) for w in said.split() if w.isdigit()) for case, said in lines}


# What raced in XLA were its sums, which have tests of their own.
OF_XLA = pytest.mark.repeated("test_jax_sums.py::test_a_sum_of_a_broadcast_has_one_result")


@pytest.mark.parametrize(
    "backend_name", ["torch", pytest.param("jax", marks=OF_XLA)], indirect=True
)
def test_a_call_gives_one_result(backend_name):
    """The load is that of the other tests."""
    found = repeated(backend_name, "quick", 1000, 0.5)
    assert len(found) == 2 and all(results == 1 for _, results in found.values()), found


@pytest.mark.slow
def test_ten_thousand_calls_give_one_result_under_load(backend_name, load):
    """Every learner, measure and sampler: 10,000 calls of it, or two minutes of them."""
    found = repeated(backend_name, "all", 10_000, 120.0)
    assert len(found) > 25 and all(results == 1 for _, results in found.values()), found
