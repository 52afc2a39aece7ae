"""The flags by which the tests' programs are compiled in a hurry give way to the user's."""

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
