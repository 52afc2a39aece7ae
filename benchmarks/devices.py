"""A step over two processes against a step of one with half the batch: what sharing costs.

The VAE of 784-400-20 units, or of convolutions, 2 n images a step over two processes (Gloo; on JAX
`jax.distributed`), and n in each of the two by itself, at the same time: both are timed with a
neighbour on the machine's memory. Each process keeps to a core of its own, where there are two.
The clock is the CPU's, all threads of the first process: what it computes, sends and receives, and
not how long it waits for the other.

JAX's Gloo asks for data again and again in a thread of its own, which is to have a core beside
those that compute. Where there is none it keeps the core from what has to take the data, for a tick
of the system's clock at each sum (4 ms here, and a step has one for each array). Here it runs when
no other thread wants the core, as if it had one; GLOO_IN_THE_WAY=1 leaves it as it is.

Dense layers send 2.6 MB of gradients a step: with 128 images a process computes for a few ms
between, so that row has no target, and shows what sending costs; 1,024 images are a step that is
worth sharing. What no way of sending can save is timed beside them, in two processes of their own:
one bare sum of as many numbers as the gradients have. `python benchmarks/devices.py BACKEND KIND
ROWS` prints ratios of pairs of blocks, by the wall clock too, and that least ratio.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
AT_LEAST = 1 / 1.15
STEPS = 53  # a block, as in fitting.py
# (kind, images of a process, steps a second asked of two processes relative to one)
ROWS = ("mlp", 128, None), ("mlp", 1024, AT_LEAST), ("conv", 128, AT_LEAST)


def serve(backend: str, kind: str, rows: int, rank: int, port: int) -> None:
    """One of the two processes: times blocks as it is asked on stdin."""
    if hasattr(os, "sched_setaffinity"):  # a core for each, as each would have a machine
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
    sys.path.insert(0, str(HERE))
    import fitting

    import probgen as pg
    from probgen import backends
    from probgen.inference import ELBO, SVI

    if backend == "jax":
        import jax

        jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
        there = unnamed_threads()
        jax.devices()
        if not os.environ.get("GLOO_IN_THE_WAY"):
            for thread in unnamed_threads() - there:
                with contextlib.suppress(ProcessLookupError):  # it has ended
                    os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
    else:
        import torch

        torch.set_num_threads(1)
        where = f"tcp://127.0.0.1:{port}"
        torch.distributed.init_process_group("gloo", where, rank=rank, world_size=2)
    if kind.startswith("sum"):
        block = bare_sum(backend, number_of(fitting.vae(kind.partition("-")[2])))
        block()  # JAX connects in its first sum, and gives up after half a minute
        return answer({"sum": block})
    b = backends.load(backend, "cpu")

    def fit(batch_size: int, callbacks: list, **options: Any) -> Any:
        return pg.fit(
            *(fitting.vae(kind), fitting.images(), SVI(ELBO(), pg.Adam(1e-3))),
            num_steps=fitting.NUM_STEPS, batch_size=batch_size, seed=0, backend=b,
            progress_bar=False, callbacks=callbacks, **options,
        )  # fmt: skip

    held = {
        "two": fitting.Held(lambda c: fit(2 * rows, [c], devices="all")),
        "half": fitting.Held(lambda c: fit(rows, [c])),
    }
    answer({name: fit.advance for name, fit in held.items()})


def unnamed_threads() -> set[int]:
    """Of this process, those to which nobody gave a name; none where that cannot be told."""
    tasks, names = Path("/proc/self/task"), {}
    for task in tasks.iterdir() if tasks.is_dir() else ():
        with contextlib.suppress(OSError):  # it has ended
            names[int(task.name)] = (task / "comm").read_text()
    return {thread for thread, name in names.items() if name == names[os.getpid()]}


def answer(blocks: dict[str, Callable[[], None]]) -> None:
    """Runs the block that is named on stdin and tells what it spent, again and again."""
    for line in sys.stdin:
        cpu, wall = time.process_time(), time.perf_counter()
        blocks[line.strip()]()
        spent = time.process_time() - cpu, time.perf_counter() - wall, STEPS
        print("spent", json.dumps(spent), flush=True)


def number_of(model: Any) -> int:
    """How many parameters a VAE of the benchmark has."""
    import fitting
    import numpy as np

    from probgen.trees import tree_leaves

    rng = np.random.default_rng(0)
    shapes = (model.decoder, (fitting.LATENT,)), (model.encoder, (28, 28, 1))
    return sum(x.size for net, shape in shapes for x in tree_leaves(net.init(rng, shape)))


def bare_sum(backend: str, size: int) -> Callable[[], None]:
    """As many sums over the processes as a block has steps, in the way that is shortest."""
    import fitting

    if backend == "torch":
        import torch

        x = torch.ones(size)

        def block() -> None:
            for _ in range(fitting.STEPS):
                torch.distributed.all_reduce(x, torch.distributed.ReduceOp.MAX)

        return block
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh, rows = Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data")

    def sums(x: Any) -> Any:
        def one(i: Any, x: Any) -> Any:
            return jax.lax.pcast(jax.lax.psum(x, "data") / 2, "data", to="varying")

        return jax.lax.fori_loop(0, fitting.STEPS, one, x)

    run = jax.jit(jax.shard_map(sums, mesh=mesh, in_specs=rows, out_specs=rows))
    x = jax.make_array_from_callback(
        (2 * size,), NamedSharding(mesh, rows), lambda at: np.ones(size, np.float32)
    )
    return lambda: run(x).block_until_ready()


class Pair:
    """The two processes."""

    def __init__(self, backend: str, kind: str, rows: int):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, __file__, backend, kind, str(rows)]
        pipe = subprocess.PIPE
        self.processes = [
            subprocess.Popen([*command, str(r), str(port)], stdin=pipe, stdout=pipe, text=True,
                             env={**os.environ, "PYTHONUNBUFFERED": "1"})
            for r in (0, 1)
        ]  # fmt: skip

    def block(self, name: str) -> tuple[float, float, int]:
        """(seconds of CPU, seconds, steps) of a block of the first, once both have ended it."""
        for process in self.processes:
            process.stdin.write(f"{name}\n")
            process.stdin.flush()
        first, _ = [self._spent(process) for process in self.processes]
        return first

    def _spent(self, process: subprocess.Popen) -> tuple[float, float, int]:
        for line in process.stdout:
            if line.startswith("spent "):
                return tuple(json.loads(line[6:]))
        raise RuntimeError("a process ended")

    def end(self) -> None:
        for process in reversed(self.processes):  # JAX's service is the first's
            process.kill()
            process.wait()


def contests(setting: Any, only: str = "") -> Iterator[Any]:
    from harness import Agreement, Contest, Side, Target, Timed

    from probgen import backends

    def same() -> Agreement:
        """That the numbers are those of one process is a test: tests/engine/test_devices.py."""
        return Agreement("not compared here", 0.0, 0.0)

    for backend in ("jax", "torch"):
        for kind, rows, asked in ROWS:
            name = f"a step over two processes, {kind}, {rows} images each, {backend}"
            if only not in name or not backends.available()[backend]:
                continue
            pair, bare = Pair(backend, kind, rows), Pair(backend, f"sum-{kind}", rows)

            def side(which: str, pair: Pair = pair) -> Side:
                def block() -> Timed:
                    cpu, _, steps = pair.block(which)
                    return Timed(steps, cpu)

                return Side(block)

            ours, peer = "two processes", "one, half the batch"
            target = Target(ours, peer, asked, same)
            sides = {ours: side("two"), peer: side("half"), "a bare sum": side("sum", bare)}
            yield Contest(name, "steps", sides, [target])
            pair.end()
            bare.end()


def main(backend: str, kind: str, rows: int) -> None:
    """Ratios of nine pairs of blocks, by the CPU clock and by the wall's."""
    pair, bare = Pair(backend, kind, rows), Pair(backend, f"sum-{kind}", rows)
    for which in ("two", "half"):
        pair.block(which)
    ratios, least = [], []
    for i in range(9):
        order = ("two", "half") if i % 2 else ("half", "two")
        found = {which: pair.block(which) for which in order}
        found["sum"] = bare.block("sum")
        least.append(1 + found["sum"][0] / found["half"][0])
        ratios.append([found["two"][k] / found["half"][k] for k in (0, 1)])
        print([round(r, 3) for r in ratios[-1]], round(found["half"][0] / found["half"][2], 5))
    pair.end()
    bare.end()
    least.sort()
    print("least by the cpu clock, half and a bare sum: median", round(least[4], 3), "from",
          round(least[0], 3), "to", round(least[-1], 3))  # fmt: skip
    for k, clock in enumerate(("cpu", "wall")):
        values = sorted(r[k] for r in ratios)
        print(clock, "median", round(values[4], 3), "from", round(values[0], 3), "to",
              round(values[-1], 3))  # fmt: skip


if __name__ == "__main__":
    backend, kind, *numbers = sys.argv[1:]
    (main if len(numbers) == 1 else serve)(backend, kind, *map(int, numbers))
