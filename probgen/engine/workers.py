"""Work in pieces over the workers of any `concurrent.futures.Executor`.

What a worker needs of the work (model, parameters, settings) is sent once, as bytes, and stays
there ready (bound, compiled), found again by its content; a piece is then its rows and numbers. A
worker that does not have it says so and is sent it, one that took the place of a killed one too. A
worker whose probgen, libraries or model are others by their content is refused: no table is mixed.

Every piece has one result, whoever computed it and how often it was begun: what was on a worker
that died is done again by Dask itself, or by the next pool where the pool ended with its worker.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import importlib.util
import json
import pickle
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

from probgen.errors import WorkerError
from probgen.language.kinds import Rule
from probgen.progress import log
from probgen.records.entries import differences
from probgen.version import __version__

Pool = Annotated[
    Any,
    Rule(
        "an executor, an object with submit() such as concurrent.futures gives, or a function "
        "without arguments that makes one",
        lambda v: not isinstance(v, type) and (callable(v) or callable(getattr(v, "submit", None))),
        alone=True,
    ),
]
TRIES = 3  # pools that may break while a piece is there
KEPT = 4  # works that a worker's thread keeps ready
ROOM = 64  # pieces that are sent ahead where a pool does not tell its size
_PACKAGES = ("probgen", "probgen.models", "probgen.inference", "probgen.evaluation")


class Work(Protocol):
    """What a worker is sent once; pickle, or cloudpickle where it is installed, must take it."""

    def made(self) -> dict[str, Any]:
        """What results depend on, by name, JSON: the same on the worker, or it is refused."""

    def start(self) -> Callable:
        """Makes it ready, and gives the function of a piece, whose result pickle takes."""


class Ticket(NamedTuple):
    """What comes with every piece: whose it is."""

    house: str
    token: str


class _Piece(NamedTuple):
    """A piece on its way.

    pays: it brings what the worker needs; pool: the number of the pool that it is in; tries: how
    many pools broke while it was there.
    """

    name: Any
    args: tuple
    pays: bool = False
    pool: int = 0
    tries: int = 0


def each(
    pool: Executor | Callable[[], Executor] | None, work: Work, here: Callable,
    pieces: Iterable[tuple[Any, tuple]],
) -> Iterator[tuple[Any, Any]]:  # fmt: skip
    """(name, result) of each piece, once: in order by `here`, or as they come from the workers.

    Args:
        pool: an executor; a function that makes one, which is asked again where a pool breaks; or
            None.
        work: what the workers are sent.
        here: the function of a piece in this process.
        pieces: (name, arguments), asked for as there is room, so that few are in memory at once.

    Raises:
        WorkerError: the work cannot be pickled; a worker has another probgen or model; a pool that
            broke and cannot be made anew, or broke again and again.
    """
    if pool is None:
        for name, args in pieces:
            yield name, here(*args)
        return
    yield from _Crew(pool, work).run(iter(pieces))


class _Crew:
    """The workers of a pool, and of those that are made after it."""

    def __init__(self, pool: Any, work: Work):
        made = work.made()
        self.payload = _pickled(work, made)
        mark = json.dumps([type(work).__qualname__, made], sort_keys=True)
        self.ticket = Ticket(house(), hashlib.sha256(mark.encode()).hexdigest())
        self.make = None if hasattr(pool, "submit") else pool
        self.executor = pool if self.make is None else self.make()
        self.room = self.to_pay = _room(self.executor)
        self.pools = self.done = 0
        self.again: deque[_Piece] = deque()

    def run(self, pieces: Iterator[tuple[Any, tuple]]) -> Iterator[tuple[Any, Any]]:
        there: dict[Future, _Piece] = {}
        try:
            while True:
                while len(there) < self.room and (piece := self._next(pieces)) is not None:
                    there |= self._submit(piece)
                if not there:
                    return
                concurrent.futures.wait(there, return_when="FIRST_COMPLETED")
                # What is done first: it counts, whatever became of the pool.
                for future in sorted(filter(Future.done, there), key=_has_failed):
                    piece = there.pop(future)
                    for result in self._result(future, piece):
                        self.done += 1
                        yield piece.name, result
        finally:
            for future in there:
                future.cancel()

    def _next(self, pieces: Iterator[tuple[Any, tuple]]) -> _Piece | None:
        if self.again:
            return self.again.popleft()
        found = next(pieces, None)
        return None if found is None else _Piece(*found)

    def _submit(self, piece: _Piece) -> dict[Future, _Piece]:
        """The piece by its future; none where the pool is broken and the piece waits."""
        # The first ones of a pool bring what its workers need.
        piece = piece._replace(pool=self.pools, pays=piece.pays or self.to_pay > 0)
        self.to_pay -= 1
        try:
            payload = self.payload if piece.pays else None
            # With the tries Dask does not take the result of another try for this one's.
            tries = (piece.pays, piece.pool)
            return {
                self.executor.submit(run_piece, self.ticket, payload, tries, *piece.args): piece
            }
        except BrokenExecutor as error:
            self._mend(error, piece)
            return self._submit(self.again.pop())
        except RuntimeError as error:
            raise WorkerError(
                f"executor: takes no work ({_short(error)}), expected one that is open; make it "
                "again, and keep it open until the call returns."
            ) from error

    def _result(self, future: Future, piece: _Piece) -> Iterator[Any]:
        """The result; none where the piece is to be done again."""
        try:
            result = future.result()
        except BrokenExecutor as error:
            self._mend(error, piece)
            return
        except concurrent.futures.CancelledError as error:
            raise WorkerError(
                f"executor: piece {piece.name} was cancelled with {self.done} done, as when an "
                "executor or its cluster is closed, expected one that stays open until the call "
                "returns."
            ) from error
        except (ImportError, AttributeError, pickle.UnpicklingError) as error:
            raise WorkerError(
                f"executor: a worker cannot read its work ({_short(error)}), expected workers with "
                f"probgen {__version__} and the modules of your model; install the same there."
            ) from error
        except Exception as error:
            if type(error).__name__ != "KilledWorker":  # of Dask, after some tries of its own
                raise
            raise self._ends_workers(piece, error) from error
        if isinstance(result, str) and result == MISSING:
            self.again.appendleft(piece._replace(pays=True))
        else:
            yield result

    def _mend(self, error: BaseException, piece: _Piece) -> None:
        """Has the piece done again, by another pool than the one that broke with it."""
        if self.make is None:
            raise WorkerError(
                f"executor: the pool broke, as when a worker is killed ({_short(error)}), with "
                f"{self.done} pieces done, expected one that stays; give a function that makes a "
                "pool, such as executor=lambda: ProcessPoolExecutor(2), which is then asked again, "
                "or make another and call again: a path keeps what is done."
            ) from error
        if piece.tries + 1 == TRIES:
            raise self._ends_workers(piece, error) from error
        if piece.pool == self.pools:  # the first to tell of it
            log.warning("executor: a worker ended (%s); a new pool goes on", _short(error))
            self.executor, self.pools = self.make(), self.pools + 1
            self.to_pay = self.room
        self.again.append(piece._replace(tries=piece.tries + 1))

    def _ends_workers(self, piece: _Piece, error: BaseException) -> WorkerError:
        return WorkerError(
            f"executor: workers ended again and again with piece {piece.name} among their work "
            f"({_short(error)}), expected them to live through it; mostly it is memory: give a "
            "smaller chunk_size, or fewer workers on a machine."
        )


# ---- on the worker

MISSING = "probgen: this worker has not been sent the work"


class _Ready(threading.local):
    """Functions of works by their token, the last ones used; a thread has its own, since what is
    ready holds the chunk that it is at."""

    def __init__(self) -> None:
        self.functions: OrderedDict[str, Callable] = OrderedDict()


_ready = _Ready()


def run_piece(ticket: Ticket, payload: bytes | None, tries: tuple, *args: Any) -> Any:
    """The result of a piece, or `MISSING` where this worker lacks the work and gets none.

    Raises:
        WorkerError: this worker's probgen, libraries or model are not the caller's.
    """
    if ticket.house != house():
        raise WorkerError(
            f"executor: a worker has another probgen ({house()}, expected {ticket.house}); install "
            "the same one there, and start its workers again."
        )
    ready = _ready.functions
    if ticket.token not in ready:
        if payload is None:
            return MISSING
        work, wanted = pickle.loads(payload)
        differs = differences(work.made(), wanted)
        if differs:
            raise WorkerError(
                f"executor: a worker has another {', another '.join(differs)}; see that it has "
                "the same libraries, settings and modules of yours, and start the workers again."
            )
        ready[ticket.token] = work.start()
        while len(ready) > KEPT:
            ready.popitem(last=False)
    ready.move_to_end(ticket.token)
    return ready[ticket.token](*args)


@functools.cache
def house() -> str:
    """This process's probgen: its version, and a hash of its source."""
    files = set()
    for package in _PACKAGES:
        found = importlib.util.find_spec(package)
        for root in map(Path, (found and found.submodule_search_locations) or ()):
            at = "/".join(package.split(".")[1:])
            files |= {(f"{at}/{p.relative_to(root)}".lstrip("/"), p) for p in root.rglob("*.py")}
    digest = hashlib.sha256()
    for name, file in sorted(files):
        digest.update(name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return f"{__version__}, source {digest.hexdigest()[:8]}"


# ---- what is sent, and where to


def _pickled(work: Work, made: Mapping[str, Any]) -> bytes:
    """The work with what it is by its content, for `pickle.loads`.

    Raises:
        WorkerError: it cannot be pickled.
    """
    try:
        import cloudpickle as pickles  # which also takes functions of a notebook
    except ImportError:
        pickles = pickle
    try:
        return pickles.dumps((work, made))
    except Exception as error:
        cure = "keep open files, locks and generators out of it"
        if pickles is pickle:
            cure = "pip install 'probgen[cluster]', whose cloudpickle takes functions too"
        raise WorkerError(
            f"executor: the work cannot be sent to workers ({_short(error)}), expected a model, "
            f"measures and inputs that can be pickled; {cure}."
        ) from error


def _room(executor: Any) -> int:
    """How many pieces are sent ahead: two a worker, where their number can be had."""
    client: Any = getattr(executor, "_client", None)  # of Dask
    if hasattr(client, "nthreads"):
        return max(ROOM, 2 * sum(client.nthreads().values()))
    for name in ("num_workers", "_max_workers"):  # of MPI, of the standard library's and loky's
        count = getattr(executor, name, None)
        if isinstance(count, int) and count > 0:
            return 2 * count
    return ROOM


def _has_failed(future: Future) -> bool:
    return future.cancelled() or future.exception() is not None


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
