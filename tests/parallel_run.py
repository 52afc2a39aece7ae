"""Processes for test_devices.py: two of Gloo, one of four XLA devices, two of jax.distributed.

Each function is the whole of a process; what goes wrong in it is its error.
"""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
from fit_cases import binary_data, small_vae, svi
from parallel_cases import ROWS, assert_same, fitted, numbers

import probgen as pg
from probgen import backends
from probgen.engine import loop, together
from probgen.errors import BackendError, Terminated
from probgen.inference import HMC
from probgen.trees import tree_leaves


def gloo(rank, folder, names, checks):
    """One of two processes."""
    b = _torch(rank, folder)
    in_full = _done_in_full()
    for name in names:
        many = numbers(fitted(name, b, devices="all"))
        assert not HEAVY & in_full, f"{name}: each process does the whole of {in_full}"
        if rank == 0:
            assert_same(numbers(fitted(name, b)), many, name)
    for check in checks:
        check(b, folder)


HEAVY = {"aten::mm", "aten::addmm", "aten::bmm", "aten::convolution", "aten::convolution_backward"}


def _done_in_full():
    """Names of operators that no process has a part of, as they come."""
    from probgen.backends.torch import split

    seen, original = set(), split._on_whole

    def watched(func, args, kwargs):
        seen.add(func.name().partition(".")[0])
        return original(func, args, kwargs)

    split._on_whole = watched
    return seen


def _torch(rank, folder):
    import torch
    import torch.distributed as dist

    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    return backends.load("torch", "cpu", compile="graph")


def xla(num, folder, names, checks):
    """One process of so many devices of the host."""
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={num}"
    )
    import compiling
    import jax

    compiling.hasten()
    jax.config.update("jax_enable_x64", True)
    b = backends.load("jax", "cpu")
    assert len(jax.devices()) == num
    gathered = _gathered()
    for name in names:
        one, many = numbers(fitted(name, b)), numbers(fitted(name, b, devices="all"))
        assert not gathered, f"{name}: each device computes with all of {gathered}"
        assert_same(one, many, name)
    for check in checks:
        check(b, folder)


def _gathered():
    """Arrays that a gradient has every device bring together, as programs are compiled."""
    from jax._src import compiler

    seen, original = [], compiler.backend_compile_and_load

    def watched(*args, **kwargs):
        program = original(*args, **kwargs)
        lines = program.hlo_modules()[0].to_string().splitlines()
        seen.extend(line for line in lines if " all-gather(" in line and "jvp(" in line)
        return program

    compiler.backend_compile_and_load = watched
    return seen


def jax_process(rank, port, folder, names, checks):
    """One of two processes of jax.distributed, with a device each."""
    b = _joined(rank, port)
    found = {name: numbers(fitted(name, b, devices="all")) for name in names}
    for name, many in found.items():
        np.savez(Path(folder) / f"{name}-{rank}.npz", **many)
    for check in checks:
        check(b, folder)
    for name in names[rank::2]:  # a half each, and nobody waits for the other meanwhile
        assert_same(numbers(fitted(name, b)), found[name], name)
    import jax

    jax.distributed.shutdown()


def _joined(rank, port):
    import compiling
    import jax

    compiling.hasten()
    jax.config.update("jax_enable_x64", True)
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
    return backends.load("jax", "cpu")


# ---- checks, in each process ----


def vae(b, steps, **options):
    settings = {"batch_size": ROWS, "seed": 1, "progress_bar": False, "checkpoint_every": 2}
    return pg.fit(
        small_vae(), binary_data(40), svi(), num_steps=steps, backend=b, **{**settings, **options}
    )


def resumes_on_another_number(b, folder):
    """Three steps on all devices, the rest on one, and the other way round."""
    place = Path(folder)
    vae(b, 3, devices="all", checkpoint=place / "all")
    wrote = sorted(p.name for p in (place / "all").glob("step-*"))
    assert wrote == ["step-000000002", "step-000000003"], wrote
    mine = place / f"one{b.over('all', ROWS).process}"
    vae(b, 3, checkpoint=mine)
    whole = numbers(vae(b, 6))
    assert_same(whole, numbers(vae(b, 6, devices="all", checkpoint=place / "all")), "all to all")
    if b.over("all", ROWS).process == 0:
        assert_same(whole, numbers(vae(b, 6, checkpoint=mine)), "one to one")
        again = vae(b, 8, checkpoint=place / "all")
        assert_same(numbers(vae(b, 8)), numbers(again), "all to one")


def keeps_parameters_in_pieces(b, folder):
    """Large parameters split over the devices, of which there are checkpoints too."""
    model = small_vae(hidden=(160, 160))

    class Cut(pg.Callback):
        largest = 0

        def on_chunk(self, progress, metrics):
            for x in tree_leaves(progress._state):
                here = x.addressable_shards[0].data if b.name == "jax" else getattr(x, "local", x)
                self.largest = max(self.largest, int(np.prod(here.shape)))

    def fit(**options):
        return pg.fit(
            model, binary_data(40), svi(clip_norm=0.5), num_steps=3, batch_size=ROWS, seed=1,
            backend=b, progress_bar=False, **options,
        )  # fmt: skip

    place, look = Path(folder) / "pieces", Cut()
    found = fit(devices="all", shard_parameters=True, checkpoint=place, callbacks=[look])
    assert look.largest < 160 * 160, "all parameters in full"
    assert_same(numbers(fit()), numbers(found), "in pieces")
    if b.over("all", ROWS).process == 0:
        assert_same(numbers(found), numbers(fit(checkpoint=place)), "gathered")


def refuses_another_fit_elsewhere(b, folder):
    """Processes that do not run the same fit, or do not share a batch alike."""
    rank = b.over("all", ROWS).process
    place = Path(folder) / "another"
    for options, what in [
        ({"model": small_vae(hidden=(8 + rank,))}, "model"),
        ({"data": binary_data(40 + rank)}, "data"), ({"algorithm": svi(1e-2 + rank)}, "algorithm"),
        ({"seed": rank}, "seed"), ({"batch_size": ROWS * (1 + rank)}, "batch_size"),
        ({"num_steps": 1 + rank}, "number of steps"), ({"resume": rank == 0}, "resume"),
        ({"checkpoint": place if rank else None}, "checkpoint"),
        ({"checkpoint_every": 1 + rank}, "checkpoint_every"),
        ({"max_retries": rank}, "max_retries"),
        ({"validation": binary_data(8), "eval_every": 1 + rank}, "eval_every"),
        ({"shard_parameters": rank == 0}, "shard_parameters"),
    ]:  # fmt: skip
        fit = {"model": small_vae(), "data": binary_data(40), "algorithm": svi(), "num_steps": 1,
               "batch_size": ROWS, "seed": 0, "devices": "all", **options}  # fmt: skip
        raises(f"another {what}[, ].*in the processes \\[1\\]", pg.fit, **fit, backend=b)
    found, together.house = together.house, lambda: f"0.0.1, source {rank}"
    raises("another source of probgen in the processes \\[1\\]", vae, b, 1, devices="all")
    together.house = found
    raises("got batch_size=7 on 2 devices, expected a multiple", vae, b, 1, devices=2, batch_size=7)
    raises("devices: got 3", vae, b, 1, devices=3)


def scores_over_devices(b, folder):
    """`pg.Devices()`: each has chunks, and the table, samples and chains are those of one."""
    import jax
    from executor_cases import evaluate, same
    from executor_cases import vae as scored
    from infer_cases import C, Y, regression
    from test_evaluate_chunks import Noisy

    places = Places(Path(folder) / "places")
    whole = evaluate(b, [Noisy(), places], chunk_size=1)
    assert places.seen() == {"0"}
    method = HMC(
        num_warmup=0, num_samples=4, num_chains=2, num_steps=2, engine="probgen", step_size=0.1,
        adapt_step_size=False, adapt_mass_matrix=False,
    )  # fmt: skip

    def drawn(**options):
        return pg.generate(scored(), 8, seed=0, chunk_size=2, backend=b, **options)

    def chains(**options):
        return pg.infer(
            regression, {"y": Y}, method, inputs={"covariates": C}, seed=0, backend=b,
            progress_bar=False, **options,
        ).posterior.weights.values  # fmt: skip

    with pg.Devices(b) as devices:
        same(evaluate(b, [Noisy(), places], chunk_size=1, executor=devices), whole)
        assert places.seen() == {str(d.id) for d in jax.local_devices()}
        one, many = drawn(), drawn(executor=devices)
        for name in one:
            np.testing.assert_array_equal(one[name], many[name])
        np.testing.assert_allclose(chains(), chains(executor=devices), rtol=1e-9)


class Places:
    """Zero, and where it was computed, in a file."""

    name, unit, larger_is_stranger = "places", "nats", False

    def __init__(self, file):
        self.file = str(file)

    def __identity__(self):
        return self.name

    def seen(self):
        return set(Path(self.file).read_text().split())

    def bind_measure(self, context):
        def run(rows, ids):
            time.sleep(0.02)  # so that no device does all
            (device,) = context.backend.asarray(rows["x"]).devices()
            with open(self.file, "a") as file:
                file.write(f"{device.id}\n")
            return {"estimate": 0.0 * rows["x"].sum(1)}

        return run


def ends_together(b, folder):
    """SIGTERM to the second process ends both at one kept step, and the same call goes on."""
    rank, place, whole = b.over("all", ROWS).process, Path(folder), None
    real = loop.largest
    for name, moment in [("told", Told), ("late", ToldLate)]:
        look = moment() if rank else pg.Callback()
        try:
            vae(b, 8, devices="all", checkpoint=place / name, callbacks=[look])
        except Terminated as error:
            step = {"told": 4, "late": 6}[name]
            assert f"stopped at step {step} of 8, which is kept in" in str(error), error
        else:
            raise AssertionError(f"{name}: goes on after SIGTERM")
        finally:
            loop.largest = real
        whole = whole or numbers(vae(b, 8))
        assert_same(whole, numbers(vae(b, 8, devices="all", checkpoint=place / name)), name)


def keeps_no_memory_that_is_looked_at(b, folder):
    """Sums over the processes stay what they are while anybody holds them; what nobody holds any
    more is written into again, also where a number of the same step is kept."""
    import torch

    from probgen.backends.torch import split_sums

    world, size = b.over("all", ROWS)._world, 2 * split_sums.SMALL
    own = split_sums.rooms.set({})

    def total(value, kind=torch.float64):
        terms = [torch.full((n,), value * (1 + world.rank), dtype=kind) for n in (size, 1)]
        return split_sums.add_up(terms, world)

    first, _ = total(1.0)
    second, number = total(2.0)
    assert (first == 3.0).all() and (second == 6.0).all() and number == 6.0
    single, _ = total(3.0, torch.float32)
    assert single.dtype is torch.float32 and (single == 9.0).all() and (second == 6.0).all()
    place = second.data_ptr()
    del second
    third, _ = total(4.0)
    assert third.data_ptr() == place and (third == 12.0).all() and number == 6.0
    split_sums.rooms.reset(own)


def tells_that_another_is_gone(b, folder):
    """One that ends in the midst of a fit."""
    import torch.distributed as dist

    if b.over("all", ROWS).process == 0:
        raises("process 0 of 2 has lost another one .*start all of them again", vae, b, 8,
               devices="all")  # fmt: skip
        return
    try:
        vae(b, 8, devices="all", callbacks=[Leaves()])
    except LookupError:
        dist.destroy_process_group()


class Leaves(pg.Callback):
    """An error of the user's own."""

    def on_chunk(self, progress, metrics):
        raise LookupError


class Told(pg.Callback):
    """SIGTERM between two chunks."""

    def on_chunk(self, progress, metrics):
        if progress.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)


class ToldLate(Told):
    """SIGTERM when the processes have just told each other that there was none."""

    def __init__(self):
        self.real, self.calls = loop.largest, 0
        loop.largest = self.largest

    def on_chunk(self, progress, metrics):
        self.calls = 2 * (progress.step == 4)

    def largest(self, backend, number):
        out = self.real(backend, number)
        self.calls -= 1
        if self.calls == 0:  # the second of this chunk: of callbacks, then of signals
            os.kill(os.getpid(), signal.SIGTERM)
        return out


def raises(words, fn, *args, **options):
    import re

    try:
        fn(*args, **options)
    except BackendError as error:
        assert re.search(words, str(error)), error
    else:
        raise AssertionError(f"no error: {words}")


# ---- killed ----


class Dies(pg.Callback):
    """Kills its process so long after the first chunk, whatever it does then, and leaves a file
    "began" with the step that the fit began at, and one "chunks" with a byte for each that ended.
    """

    def __init__(self, folder, seconds):
        self.folder, self.seconds = Path(folder), seconds

    def on_start(self, progress):
        (self.folder / "began").write_text(str(progress.step))

    def on_chunk(self, progress, metrics):
        if self.seconds is not None:
            with open(self.folder / "chunks", "a") as file:
                file.write(".")
            if progress.step == 2:
                kill = threading.Timer(self.seconds, os.kill, (os.getpid(), signal.SIGKILL))
                kill.daemon = True
                kill.start()
        time.sleep(0.03)


class Slow(pg.Callback):
    """So that there is a moment to end a process at."""

    def on_chunk(self, progress, metrics):
        time.sleep(0.02)


STEPS = 60


def to_be_killed(rank, port, folder, backend):
    """One of two processes, the second of which its test kills."""
    b = _joined(rank, port) if backend == "jax" else _torch(rank, folder)
    out = vae(b, STEPS, devices="all", checkpoint=Path(folder) / "kept", callbacks=[Slow()])
    if rank == 0:
        out.save_pretrained(Path(folder) / "out")
    if backend == "jax":
        import jax

        jax.distributed.shutdown()


def under_torchrun(folder, doomed):
    """A program that torchrun starts, and starts again after that process of it was killed."""
    import torch

    torch.set_default_dtype(torch.float64)
    is_doomed = (os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["RANK"]) == ("0", doomed)
    rng = np.random.default_rng()  # another moment every time
    callbacks = [Dies(folder, rng.uniform(0.0, 0.8) if is_doomed else None)]
    b = backends.load("torch", "cpu", compile="graph")
    out = vae(b, 60, devices="all", checkpoint=Path(folder) / "kept", callbacks=callbacks)
    if b.over("all", ROWS).process == 0:
        out.save_pretrained(Path(folder) / "out")
        (Path(folder) / "count").write_text(os.environ["TORCHELASTIC_RESTART_COUNT"])


if __name__ == "__main__":
    import sys

    under_torchrun(*sys.argv[1:])
