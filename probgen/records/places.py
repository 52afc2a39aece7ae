"""Where records stand: a local path, or an address such as "s3://bucket/scores".

An address is anything that fsspec opens. A folder goes there as it would stand here: its arrays
first and then `config.json`, which says what they are, so that a folder without one is not there
yet and is written again. What is read is fetched first, and then read as what stands here, with
every check. An address has no lock: one run at a time writes there, which nobody but its user sees
to; two of one evaluation would write the same, and of others the chunks would be refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from probgen.errors import SaveError
from probgen.records import atomic, reading

CONFIG = "config.json"


class Address:
    """A folder at an address; the part of `Path` that records use."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    def with_name(self, name: str) -> Address:
        return Address(f"{self.url.rpartition('/')[0]}/{name}")

    def __truediv__(self, name: str) -> Address:
        return Address(f"{self.url}/{name}")

    def __str__(self) -> str:
        return self.url

    def exists(self) -> bool:
        """Whether a whole folder is there."""
        return stands(self)

    def names(self) -> list[str]:
        """What is in it; nothing where it is not there."""
        with self._opened() as (fs, at):
            fs.invalidate_cache()
            try:
                return sorted(p.rstrip("/").rpartition("/")[2] for p in fs.ls(at, detail=False))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def header(self) -> Any:
        """Its config, with no more checks than that it is JSON."""
        with self._opened() as (fs, at):
            return json.loads(fs.cat_file(f"{at}/{CONFIG}")[: reading.TEXT_BYTES])

    def send(self, folder: Path) -> None:
        """Puts a local folder there."""
        with self._opened() as (fs, at):
            fs.makedirs(at, exist_ok=True)
            if fs.exists(f"{at}/{CONFIG}"):
                fs.rm_file(f"{at}/{CONFIG}")
            for file in sorted(folder.iterdir(), key=lambda p: (p.name == CONFIG, p.name)):
                fs.put_file(str(file), f"{at}/{file.name}")

    def fetch(self, folder: Path) -> None:
        """Gets its files into a local folder."""
        names = self.names()
        with self._opened() as (fs, at):
            for name in names:
                if name == CONFIG or name.endswith(".safetensors"):
                    fs.get_file(f"{at}/{name}", str(folder / name))

    def remove(self) -> None:
        """Takes it away."""
        with self._opened() as (fs, at):
            if fs.exists(at):
                fs.rm(at, recursive=True)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[Any, str]]:
        """The file system, and the path there."""
        try:
            import fsspec
        except ImportError as error:
            raise SaveError(
                f"{self}: got an address, which needs fsspec; pip install 'probgen[cluster]', or "
                "give a local path."
            ) from error
        try:
            yield fsspec.core.url_to_fs(self.url)
        except SaveError:
            raise
        except Exception as error:  # each kind of store has errors of its own
            raise SaveError(
                f"{self}: cannot be read or written ({type(error).__name__}: {error}), expected an "
                "address that fsspec opens; see that its package is installed (s3fs for s3://) and "
                "that you may write there."
            ) from error


Place = Path | Address


def at(path: str | os.PathLike | Address) -> Any:
    """The place that a path or an address means.

    Raises:
        SaveError: it can be none.
    """
    if isinstance(path, Address):
        return path
    return Address(path) if isinstance(path, str) and "://" in path else atomic.at(path)


def held(place: Place) -> Any:
    """`atomic.held`; of an address nothing is held."""
    return atomic.held(place) if isinstance(place, Path) else contextlib.nullcontext()


def remove(place: Place) -> None:
    """Takes a folder away."""
    if isinstance(place, Path):
        atomic.remove(place)
    else:
        place.remove()


def stands(place: Place) -> bool:
    """Whether a whole folder is there."""
    return CONFIG in names(place)


def names(place: Place) -> list[str]:
    """What is in a folder; nothing where it is not there."""
    if isinstance(place, Address):
        return place.names()
    return sorted(p.name for p in place.iterdir()) if place.is_dir() else []


@contextlib.contextmanager
def beside(address: Address) -> Iterator[Path]:
    """A local folder of the address's name; what is refused there is refused by the address."""
    with tempfile.TemporaryDirectory(prefix="probgen-") as folder:
        local = Path(folder) / address.name
        try:
            yield local
        except SaveError as error:
            raise type(error)(str(error).replace(str(local), str(address))) from error


def through(address: Address, read: Callable[[Path], Any]) -> Any:
    """What `read` makes of the folder, fetched.

    Raises:
        SaveError: it is not there.
    """
    with beside(address) as local:
        local.mkdir()
        address.fetch(local)
        if not (local / CONFIG).exists():
            raise SaveError(f"{address}: no such folder, expected one that probgen has written.")
        return read(local)
