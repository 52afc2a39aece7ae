"""What torch finds on this machine: devices, and whether inductor compiles. For `doctor`."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator

import pyro  # noqa: F401 - that it can be imported is part of the finding
import torch

from probgen.backends.torch.backend import TorchBackend, has_cuda
from probgen.backends.torch.compile import Compiled


def devices() -> tuple[bool, str]:
    """(True, the devices by name)."""
    names = [f"cpu ({torch.get_num_threads()} threads)"]
    if has_cuda():
        for i in range(torch.cuda.device_count()):
            names.append(f"cuda:{i} ({torch.cuda.get_device_name(i)})")
    return True, ", ".join(names)


def compiles() -> tuple[bool, str]:
    """Whether inductor turns a small graph into machine code that gives the right numbers.

    The constant is new each time, so that no kernel from an earlier call is found on disk.
    """
    shift = time.time() % 1.0
    backend = TorchBackend(compile="inductor")
    x = torch.linspace(-1.0, 1.0, 64, device=backend.device)

    def small(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x * 2.0 + shift).sum()

    compiled = Compiled(small, backend.device, backend.policy, None)
    began = time.perf_counter()
    with _quiet():  # what the backend would log is said below
        value = float(compiled(x))
    seconds = time.perf_counter() - began
    if compiled.route != "inductor":
        return False, (
            f"no ({compiled.reason[:160]}); graphs are replayed instead, which is slower; inductor "
            "needs a C++ compiler (on Debian: apt-get install g++ python3-dev)"
        )
    if abs(value - float(small(x))) > 1e-3:
        return False, f"wrongly: got {value:g}, expected {float(small(x)):g}"
    return True, f"yes, by inductor ({seconds:.1f} s for a first small graph)"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    log = logging.getLogger("probgen")
    before = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = before


LOOKS = (("devices", devices), ("compiles", compiles))
