"""Putting a file or a folder in its place: whole or not at all, by one process at a time.

What is written stands beside its place first, is synced, and is then moved there. Beside NAME lie

    .NAME.new    what is being written; of a killed process, it is thrown away
    .NAME.old    what stood there before, between the two moves; it is moved back
    .NAME.gone   what is being removed; it is thrown away
    .NAME.lock   who is writing; the lock is the system's own and ends with its process, so that
                 a file that a killed one leaves behind blocks nobody

The next call that holds the place finds what is half-way and ends it (`settle`): wherever a
process was stopped, there is the old content or the new, and after the same call again nothing
else. Models, checkpoints, chunks, tables and reports are all written here. A symbolic link is
written through.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from probgen.errors import SaveError
from probgen.progress import log

PathLike = str | os.PathLike
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


class _Held(threading.local):
    """The lock files that this thread holds."""

    def __init__(self) -> None:
        self.files: set[Path] = set()


_held = _Held()
_handles: set[int] = set()


def at(path: PathLike) -> Path:
    """The place that a path means now: absolute, and behind all links.

    Asked once, at the door of a verb, so that a later `chdir` changes nothing.

    Raises:
        SaveError: it can be no path.
    """
    try:
        found = os.path.realpath(path)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            os.lstat(found)  # which knows a name that is too long
        return Path(found)
    except (TypeError, ValueError, OSError) as error:
        raise SaveError(
            f"got the path {path!r} ({error}), expected the name of a file or folder; choose "
            "another one."
        ) from error


@contextlib.contextmanager
def held(target: Path, *, inside: bool = False) -> Iterator[None]:
    """Within, no other process and no other thread writes to `target`, a place from `at`.

    What a killed process left half-way there is ended first. A thread that holds the place may
    hold it again.

    Args:
        target: the place.
        inside: it is a folder that stays, and is made here: the lock lies in it, so that the folder
            around it need not be writable.

    Raises:
        SaveError: another one holds it (says who), or nothing can be written there.
    """
    folder = target if inside else target.parent
    file = folder / (".lock" if inside else f".{target.name}.lock")
    if file in _held.files:
        yield
        return
    try:
        make_folder(folder)
        handle = _acquire(file, target)
    except OSError as error:
        raise not_written(target, error) from error
    _held.files.add(file)
    try:
        if not inside:
            with _told(target):
                settle(target)
        yield
    finally:
        _held.files.discard(file)
        _release(file, handle)


def put(target: Path, make: Callable[[Path], None]) -> None:
    """Puts at `target` what `make(fresh)` writes to the file or folder `fresh` and syncs.

    Raises:
        SaveError: it cannot be written; what stood there before is untouched.
    """
    fresh, old = _beside(target, "new"), _beside(target, "old")
    with held(target), _told(target):
        try:
            make(fresh)
            if target.is_dir():
                os.replace(target, old)
            os.replace(fresh, target)
            sync(target.parent)
        finally:
            settle(target)


def put_text(target: Path, text: str) -> None:
    """Puts a file of text in its place; see `put`."""
    put(target, lambda fresh: write_text(fresh, text))


def remove(target: Path) -> None:
    """Takes a file or folder away: at once for whoever looks, then piece by piece."""
    with held(target), _told(target):
        if os.path.lexists(target):
            _throw_away(target, _beside(target, "gone"))


def settle(target: Path) -> None:
    """Ends what a killed process left half-way; whoever calls it holds the place."""
    new, old, gone = (_beside(target, word) for word in ("new", "old", "gone"))
    for left in (new, gone):
        _delete(left)
    if os.path.lexists(old):
        if os.path.lexists(target):
            _throw_away(old, gone)
        else:
            os.replace(old, target)
            sync(target.parent)


def settle_within(folder: Path, names: str) -> None:
    """`settle` for every place in a folder that is held, of names such as "step-*"."""
    for word in ("new", "old", "gone"):
        for left in folder.glob(f".{names}.{word}"):
            settle(folder / left.name[1 : -len(word) - 1])
    for left in folder.glob(f".{names}.lock"):
        _delete(left)


def standing(target: Path) -> Path:
    """Where to read what is at `target`: what stood there before, between the two moves."""
    old = _beside(target, "old")
    return old if not target.exists() and old.exists() else target


def make_folder(folder: Path) -> None:
    """Makes a folder and those around it, so that they outlast a loss of power."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):  # another process was faster, or it is a file
        os.mkdir(folder)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(folder))
    sync(folder.parent)


def write_text(path: Path, text: str) -> None:
    """Writes and syncs a file, UTF-8."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        rest = memoryview(text.encode("utf-8"))
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def sync(path: Path) -> None:
    """Asks the system to have a file, or a folder's list of names, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _beside(target: Path, word: str) -> Path:
    return target.with_name(f".{target.name}.{word}")


def _throw_away(path: Path, gone: Path) -> None:
    """A folder is never half there under its own name: what is being removed has another."""
    os.replace(path, gone)
    _delete(gone)


def _delete(path: Path) -> None:
    """What the system will not part with now is no fault of the work, and is tried again."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        with contextlib.suppress(OSError):
            os.unlink(path)


@contextlib.contextmanager
def _told(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise not_written(target, error) from error


def not_written(target: Path, error: Exception) -> SaveError:
    """The error of a write that failed."""
    return SaveError(
        f"{target}: could not be written ({error}); what stood there before is untouched. "
        "Make room or choose another place that may be written, and try again."
    )


# ---- the lock


def _acquire(file: Path, target: Path) -> int:
    try:
        import fcntl
    except ImportError as error:
        raise SaveError(f"{target}: saving needs a system with flock, such as Linux.") from error
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            who = _who(handle)
            os.close(handle)
            raise SaveError(
                f"{target}: got a place that another run is writing to ({who}), expected one that "
                "is free; wait for it, stop it, or choose another place."
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(handle)
                raise
            log.warning("%s: its file system has no locks: let one process write there", target)
        # Whoever held it may have taken the file away since it was opened here.
        if _is_same(handle, file):
            _handles.add(handle)
            try:
                os.ftruncate(handle, 0)
                os.write(handle, _me().encode())
            except BaseException:
                _release(file, handle)
                raise
            return handle
        os.close(handle)


def _release(file: Path, handle: int) -> None:
    if handle not in _handles:
        return  # in a forked child: see `_let_go`
    try:
        with contextlib.suppress(OSError):
            os.unlink(file)
    finally:
        _handles.discard(handle)
        os.close(handle)


def _is_same(handle: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(file))
    except FileNotFoundError:
        return False


def _me() -> str:
    now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return f"process {os.getpid()} on {socket.gethostname()}, since {now}"


def _who(handle: int) -> str:
    found = os.pread(handle, 1000, 0).decode("utf-8", "replace").strip()
    mine = found.startswith(_me().partition(",")[0] + ",")
    return f"{found}: this very process" if mine else found or "one that has just begun"


def _let_go() -> None:
    """In a forked child: the lock is its parent's, and must not outlive it."""
    for handle in _handles:
        with contextlib.suppress(OSError):
            os.close(handle)
    _handles.clear()
    _held.files.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
