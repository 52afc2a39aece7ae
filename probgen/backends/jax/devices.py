"""Where arrays lie: on one device, or over a mesh of them, in one process or in many.

    OneDevice      all there is on one device
    DeviceMesh     a global program: parameters in full on each device, rows of a batch split

XLA's partitioner runs a program over a mesh and gives what one device gives, up to the order of
sums, so that what is said here of places is a matter of cost and never of results. Processes that
`jax.distributed` joined run the same program side by side, each with its own devices.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from probgen.errors import BackendError

Tree = Any
DATA = "data"  # the mesh's one axis
SMALL = 2**14  # numbers of a parameter below which it is kept in full everywhere


class OneDevice:
    """Everything on one device."""

    num_devices = num_processes = 1
    process = 0

    def __init__(self, device: Any):
        self.device = device
        self.mark = ""

    def put(self, tree: Tree) -> Tree:
        """A tree of arrays where they belong."""
        return jax.device_put(tree, self.device)

    def key(self, seed: int) -> Any:
        """The key of a seed."""
        return self.put(jax.random.key(seed))

    def read(self, x: Any) -> np.ndarray:
        """An array as numpy's."""
        return np.asarray(x)

    def spread(self, tree: Tree, axis: int = 0, num_rows: int | None = None) -> Tree:
        """A tree of rows, over the devices by that axis."""
        return tree

    def kept(self, tree: Tree) -> Tree:
        """A state at the end of a step, where `put` puts it."""
        return tree

    def everywhere(self, tree: Tree) -> Tree:
        """A tree in full on each device."""
        return tree

    def share(self, data: bytes) -> bytes:
        """What the first process gives."""
        return data

    def gather(self, numbers: np.ndarray) -> np.ndarray:
        """[processes, ...] what each process gives."""
        return numbers[None]


class DeviceMesh(OneDevice):
    """A mesh of one axis.

    Args:
        devices: of all processes.
        num_rows: of a batch: arrays whose leading axis is as long are split along it.
        shard_parameters: whether large arrays of a state are split over the devices too.
    """

    def __init__(self, devices: list, num_rows: int, shard_parameters: bool):
        super().__init__(devices[0])
        self.mesh = Mesh(np.array(devices), (DATA,))
        self.num_devices, self.num_rows = len(devices), num_rows
        self.num_processes, self.process = jax.process_count(), jax.process_index()
        self.shard_parameters = shard_parameters
        # Programs hold devices, and a mesh prints as its size alone.
        self.mark = ",".join(str(d.id) for d in devices)

    def _sharding(self, *axes: str | None) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def _of(self, shape: tuple[int, ...]) -> NamedSharding:
        """Of an array of a state: in full, or split along its longest axis that can be."""
        axes: list[str | None] = [None] * len(shape)
        fits = [i for i, n in enumerate(shape) if n % self.num_devices == 0]
        if self.shard_parameters and fits and np.prod(shape) >= SMALL:
            axes[max(fits, key=lambda i: shape[i])] = DATA
        return self._sharding(*axes)

    def put(self, tree: Tree) -> Tree:
        return jax.tree.map(self._put, tree)

    def _put(self, x: Any) -> jax.Array:
        sharding = self._of(np.shape(x))
        if isinstance(x, jax.Array) and x.sharding == sharding:
            return x
        if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(self._put(jax.random.key_data(x)))
        if isinstance(x, jax.Array) and x.sharding.device_set == sharding.device_set:
            return jax.device_put(x, sharding)
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])

    def read(self, x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            x = jax.jit(lambda x: x, out_shardings=self._sharding())(x)
        return np.asarray(x)

    def spread(self, tree: Tree, axis: int = 0, num_rows: int | None = None) -> Tree:
        num_rows = num_rows or self.num_rows
        if num_rows % self.num_devices:
            return tree
        by_rows = self._sharding(*[None] * axis, DATA)

        def one(x: Any) -> Any:
            fits = isinstance(x, jax.core.Tracer) and x.ndim > axis
            if not fits or x.shape[axis] != num_rows:
                return x
            return jax.lax.with_sharding_constraint(x, by_rows)

        return jax.tree.map(one, tree)

    def kept(self, tree: Tree) -> Tree:
        return jax.tree.map(
            lambda x: jax.lax.with_sharding_constraint(x, self._of(np.shape(x))), tree
        )

    def everywhere(self, tree: Tree) -> Tree:
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, self._sharding()), tree)

    def share(self, data: bytes) -> bytes:
        if self.num_processes == 1:
            return data
        size = int(self._from_first(np.array(len(data), np.int32)))
        room = np.zeros(size, np.uint8)
        if self.process == 0:
            room[:] = np.frombuffer(data, np.uint8)
        return self._from_first(room).tobytes() if size else b""

    @staticmethod
    def _from_first(x: np.ndarray) -> np.ndarray:
        return np.asarray(multihost_utils.broadcast_one_to_all(x)).astype(x.dtype)

    def gather(self, numbers: np.ndarray) -> np.ndarray:
        if self.num_processes == 1:
            return numbers[None]
        return np.asarray(multihost_utils.process_allgather(numbers))


def mesh_of(first: Any, devices: int | str, num_rows: int, shard_parameters: bool) -> DeviceMesh:
    """The mesh over so many devices of the first one's platform.

    Raises:
        BackendError: there are fewer; of several processes other than all, or more in one of them
            than in another.
    """
    there = jax.devices(first.platform)
    count = len(there) if devices == "all" else int(devices)
    many = jax.process_count()
    if count > len(there):
        raise BackendError(
            f"devices: got {count}, and JAX sees {len(there)} of the platform {first.platform!r}, "
            "expected as many at most; devices='all' takes those that are there (on a CPU "
            "XLA_FLAGS=--xla_force_host_platform_device_count=N makes N of it)."
        )
    if many > 1 and count != len(there):
        raise BackendError(
            f"devices: got {count} of the {len(there)} devices of {many} processes, expected all "
            "of them, since every process takes part; give devices='all'."
        )
    each = [sum(d.process_index == i for d in there) for i in range(many)]
    if len(set(each)) > 1:
        raise BackendError(
            f"devices: got {each} devices in the {many} processes, expected as many in each of "
            "them; start all with the same devices (CUDA_VISIBLE_DEVICES, or on a CPU XLA_FLAGS)."
        )
    return DeviceMesh(there[:count], num_rows, shard_parameters)


def is_lost(error: Exception) -> bool:
    """Whether another process does not answer; XLA says so in words alone."""
    said = str(error).lower()
    return isinstance(error, RuntimeError | ValueError) and any(w in said for w in _LOST)


_LOST = "gloo", "nccl", "coordination service"

# Where the rows of a chunk of steps lie while it is traced; of anything else, on one device.
placing: ContextVar[OneDevice] = ContextVar("placing", default=OneDevice(None))  # noqa: B039
