"""The flags by which the tests' programs are compiled in a hurry give way to the user's."""

import sys
import threading

import compiling
import pytest

from probgen.backends import xla_flags

HASTE = (
    "--xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE --xla_backend_optimization_level=0"
    " --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false"
    " --xla_disable_hlo_passes=hlo-verifier --xla_cpu_parallel_codegen_split_count=1"
)


@pytest.mark.parametrize(
    "said, expected",
    [
        ("", HASTE),
        ("--xla_a=1", f"{HASTE} --xla_a=1"),
        ("--xla_backend_optimization_level=3", f"{HASTE} --xla_backend_optimization_level=3"),
        ("flags.txt", "flags.txt"),
    ],
)
def test_the_users_flags_come_last(said, expected, monkeypatch):
    monkeypatch.setattr(xla_flags, "is_known", lambda flag: True)
    environment = {"XLA_FLAGS": said}
    for _ in range(2):
        compiling.hasten(environment)
        assert environment["XLA_FLAGS"] == expected


def test_a_flag_that_jaxlib_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setattr(xla_flags, "is_known", lambda flag: "split_count" not in flag)
    environment = {"JAX_ENABLE_COMPILATION_CACHE": "true"}
    compiling.hasten(environment)
    assert environment == {
        "XLA_FLAGS": HASTE.rsplit(" ", 1)[0],
        **compiling.JAX,
        "JAX_ENABLE_COMPILATION_CACHE": "true",
    }


def test_a_context_serves_one_thread_for_a_while(monkeypatch):
    monkeypatch.setattr(compiling, "PROGRAMS", 3)
    make, other = compiling.kept(object), []
    first, *rest = [make() for _ in range(7)]
    assert [one is first for one in rest] == [True, True, False, False, False, False]
    assert rest[2] is rest[4] and rest[5] not in rest[:5]
    thread = threading.Thread(target=lambda: other.append(make()))
    thread.start()
    thread.join()
    assert other[0] not in [first, *rest]


def test_jax_writes_its_programs_down_in_one_context():
    """If a name of JAX's moves, tests take a fifteenth longer: then this says so."""
    jax = pytest.importorskip("jax")
    compiling.keep_contexts()
    mlir = sys.modules["jax._src.interpreters.mlir"]
    make = mlir.make_ir_context
    compiling.keep_contexts()
    assert mlir.make_ir_context is make
    make.own.left = 0
    lowered = jax.jit(lambda x: 3 * x).lower(2.0)
    assert make.own.left == compiling.PROGRAMS - 1 and lowered.compile()(2.0) == 6.0
