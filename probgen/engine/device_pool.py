"""The devices of one process as workers: a thread for each, for `executor=`."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

from probgen.backends import resolve
from probgen.backends.own_device import own
from probgen.backends.protocol import Backend


class Devices(ThreadPoolExecutor):
    """All devices of this process, side by side, for what takes an `executor=`.

        with pg.Devices() as devices:
            table = pg.evaluate(fitted, data, [IWAE(64)], seed=0, executor=devices)

    Chunks of data (`evaluate`) or of samples (`generate`) go to whichever device is free, and so do
    chains (`infer`). No number changes: results are those of one device of the kind. A device keeps
    a copy of the parameters. On a CPU there is one, unless JAX is told to make more of it
    (`XLA_FLAGS=--xla_force_host_platform_device_count=4`), to try programs. Give the verb the same
    `backend`.

    Args:
        backend, device: whose devices, and of which kind, as `evaluate` takes them.

    Raises:
        BackendError: the backend or a device of that kind is not there.
    """

    def __init__(self, backend: str | Backend = "auto", device: str = "auto"):
        found, turns = resolve(backend, device), itertools.count()
        count = found.num_local_devices
        super().__init__(count, "probgen-device", lambda: own.set(next(turns)))
