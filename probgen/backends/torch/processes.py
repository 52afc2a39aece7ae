"""The processes that `torchrun` started, as one: their group, and what they tell each other."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from probgen.backends.torch import split_products, split_rules
from probgen.backends.torch.split import World
from probgen.errors import BackendError

RULES = split_rules, split_products  # which say so themselves as they are read
START = "torchrun --nproc-per-node N program.py"


def world_of(device: str, devices: int | str, num_rows: int) -> tuple[World, str]:
    """(the group that all processes are, this one's device).

    The group is the one that there is, or is made of what torchrun left in the environment: by NCCL
    on GPUs, else by Gloo.

    Raises:
        BackendError: another number of processes than devices; processes that never came.
    """
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if not dist.is_available():
        raise BackendError(
            "devices: this build of torch has no torch.distributed, expected one that has, such as "
            "those of pip; or devices=None."
        )
    if not dist.is_initialized() and asked > 1:
        kind = "nccl" if device.startswith("cuda") else "gloo"
        if kind == "nccl":
            torch.cuda.set_device(_own(device))
        try:
            _join(kind)
        except (RuntimeError, ValueError) as error:
            said = " ".join(str(error).split())[:200]
            raise BackendError(
                f"devices: found no group of {asked} processes ({said}), expected all that "
                f"WORLD_SIZE={asked} counts in a call with devices=; start them as {START}, and "
                "see what the others said, or did in its place."
            ) from error
    size = dist.get_world_size() if dist.is_initialized() else 1
    if devices not in ("all", size):
        raise BackendError(
            f"devices: got {devices} in a group of {size} process(es), expected one process for "
            f"each device on torch; start the program as {START}, or give devices='all'."
        )
    if size == 1:
        return World(0, 1, "", num_rows), device
    group: Any = dist.group.WORLD
    return World(dist.get_rank(), size, group.group_name, num_rows), _own(device)


def _join(kind: str) -> None:
    # Processes that torchrun starts again find what those before them left in its store.
    store, rank, size = next(dist.rendezvous("env://"))
    start = f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    store = dist.PrefixStore(start, store)
    dist.init_process_group(kind, store=store, rank=rank, world_size=size)


def _own(device: str) -> str:
    """This process's device among its machine's."""
    if not device.startswith("cuda"):
        return device
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


def share(world: World, device: str, data: bytes) -> bytes:
    """What the first process gives."""
    if world.size == 1:
        return data
    size = torch.tensor([len(data)], device=_wire(device))
    dist.broadcast(size, 0)
    room = torch.zeros(int(size), dtype=torch.uint8, device=_wire(device))
    if world.rank == 0 and data:
        room.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    if len(room):
        dist.broadcast(room, 0)
    return room.cpu().numpy().tobytes()


def gather(world: World, device: str, numbers: np.ndarray) -> np.ndarray:
    """[processes, ...] what each of them gives."""
    if world.size == 1:
        return numbers[None]
    own = torch.as_tensor(np.array(numbers)).to(_wire(device))
    found = [torch.empty_like(own) for _ in range(world.size)]
    dist.all_gather(found, own)
    return torch.stack(found).cpu().numpy()


def is_lost(error: Exception) -> bool:
    """Whether another process does not answer; Gloo says so in words alone."""
    said = str(error).lower()
    in_words = isinstance(error, RuntimeError) and ("gloo" in said or "nccl" in said)
    return in_words or isinstance(error, dist.DistError)


def _wire(device: str) -> str:
    """Where tensors must lie to be sent: NCCL sends those of a GPU alone."""
    return device if dist.get_backend() == "nccl" else "cpu"
