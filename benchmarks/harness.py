"""How two sides are timed against each other, and how that is written down.

Both sides run in one process, on one pinned thread, by the CPU clock, so that a busy machine
disturbs little; each round runs a block of every side, in an order that rotates; a rate is the
median over rounds. A ratio is only ever taken within one contest, and stands beside a check that
both sides computed the same thing. `set_up` comes before the first import of a framework.

With more threads, or on a GPU, the clock is the wall's, and the machine should be idle.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Setting(NamedTuple):
    """How to run. `tiny` shrinks every row to a check that it works; its ratios say nothing."""

    threads: int = 1
    device: str = "cpu"
    rounds: int = 7
    tiny: bool = False

    @property
    def clock_name(self) -> str:
        return "cpu" if self.threads == 1 and self.device == "cpu" else "wall"

    @property
    def clock(self) -> Callable[[], float]:
        return time.process_time if self.clock_name == "cpu" else time.perf_counter


class Timed(NamedTuple):
    """What a block returns when it measured itself: a child process, or a rate such as ESS/s."""

    units: float
    seconds: float


class Side(NamedTuple):
    """One side: `block()` does `units` units of work, and returns only when they are done."""

    block: Callable[[], Timed | None]
    units: float = 1.0


class Agreement(NamedTuple):
    """A check that both sides compute one thing: `error`, of kind `what`, within `tolerance`."""

    what: str
    error: float
    tolerance: float

    @property
    def holds(self) -> bool:
        return self.error <= self.tolerance


class Target(NamedTuple):
    """ours / peer: at least that ratio of rates (None: for information), and their agreement."""

    ours: str
    peer: str
    at_least: float | None
    agreement: Callable[[], Agreement]


class Contest(NamedTuple):
    """Sides that do one work, and the ratios that are asked of them."""

    name: str
    unit: str
    sides: dict[str, Side]
    targets: list[Target]


def set_up(setting: Setting) -> None:
    """Pins the process and the thread counts; call it before torch or jax is imported."""
    if setting.device == "cpu":
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if setting.device == "cpu" and hasattr(os, "sched_setaffinity"):
        # XLA takes one thread a core it may run on, torch what OMP_NUM_THREADS says.
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, set(cores[-setting.threads :]))
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(setting.threads)


def orders(names: Sequence[str], rounds: int) -> Iterator[list[str]]:
    """The order of each round: rotated, so that no side always follows the same one."""
    for i in range(rounds):
        k = i % len(names)
        yield [*names[k:], *names[:k]]


def measure(
    sides: dict[str, Side], setting: Setting, clock: Callable[[], float] | None = None
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """(seconds per unit of each side and round, seconds of its first block, compilation in it)."""
    clock = clock or setting.clock
    first, spent = {}, {name: [] for name in sides}
    for name, side in sides.items():
        start = clock()
        side.block()
        first[name] = clock() - start
    for order in orders(list(sides), setting.rounds):
        for name in order:
            start = clock()
            timed = sides[name].block()
            seconds = clock() - start
            if timed is None:
                timed = Timed(sides[name].units, seconds)
            spent[name].append(timed.seconds / timed.units)
    return spent, first


def run(
    contest: Contest, setting: Setting, clock: Callable[[], float] | None = None
) -> list[dict[str, Any]]:
    """Times a contest; one entry of the table for each of its targets."""
    spent, first = measure(contest.sides, setting, clock)
    typical = {name: statistics.median(values) for name, values in spent.items()}
    rows = []
    for target in contest.targets:
        ours, peer = spent[target.ours], spent[target.peer]
        by_round = [p / o for o, p in zip(ours, peer, strict=True)]
        ratio = typical[target.peer] / typical[target.ours]
        agreement = target.agreement()
        rows.append(
            {
                "row": contest.name,
                "ours": target.ours,
                "peer": target.peer,
                "unit": contest.unit,
                "ours_rate": 1.0 / typical[target.ours],
                "peer_rate": 1.0 / typical[target.peer],
                "ratio": ratio,
                "ratio_low": min(by_round),
                "ratio_high": max(by_round),
                "target": target.at_least,
                "met": None if target.at_least is None else ratio >= target.at_least,
                "agreement": agreement._asdict() | {"holds": agreement.holds},
                "first_seconds": {n: round(first[n], 3) for n in (target.ours, target.peer)},
            }
        )
    return rows


def machine() -> dict[str, Any]:
    """The machine in general terms."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


HEADER = ("row", "ours", "peer", "ours /s", "peer /s", "ratio", "rounds", "target", "", "agrees")


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of the printed table."""
    verdict = {None: "", True: "met", False: "MISSED"}[row["met"]]
    agreement = row["agreement"]
    sign = "<=" if agreement["holds"] else "> !"
    return (
        row["row"],
        row["ours"],
        row["peer"],
        f"{row['ours_rate']:.4g}",
        f"{row['peer_rate']:.4g}",
        f"x{row['ratio']:.2f}",
        f"{row['ratio_low']:.2f}..{row['ratio_high']:.2f}",
        "" if row["target"] is None else f"{row['target']:g}",
        verdict,
        f"{agreement['what']} {agreement['error']:.1e} {sign} {agreement['tolerance']:.0e}",
    )


def table(rows: list[dict[str, Any]]) -> str:
    """All rows as a Markdown table, which also reads as text."""
    lines = [HEADER, *(cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    text = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    rule = "| " + " | ".join("-" * max(w, 3) for w in widths) + " |"
    return "\n".join([text[0], rule, *text[1:]])
