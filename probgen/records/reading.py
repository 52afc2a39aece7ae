"""Reading files of a run folder that may be damaged, foreign, or made to do harm.

Only regular files are opened (a link to a pipe or a device would never end), only as much is read
as stands there, and nothing is executed. `config.json` carries a checksum of its own content: of
its values, so that a formatter may set it anew, while no number changes unseen. Arrays are read by
the shapes in their file's header, once these are known to be what the file holds.

What may stand in a folder of each kind is said in `forms`. Every refusal is a `SaveError`.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from probgen.errors import SaveError

log = logging.getLogger("probgen")
FORMAT = "probgen"
VERSION = 2  # 1 had no checksum of the config, and named arrays of tables by place
TEXT_BYTES = 1 << 24  # of a config, and of a header of arrays
TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip


def open_regular(file: Path, what: str) -> io.BufferedReader:
    """A file opened for reading, once it is known to be one.

    Raises:
        SaveError: not there, may not be read, or a folder, pipe, device or socket.
    """
    try:
        # Without O_NONBLOCK opening a pipe waits for a writer.
        handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise SaveError(f"{file}: cannot be read ({error}), expected {what}.") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise SaveError(
            f"{file}: got no regular file (a folder, pipe or device), expected {what}; put the "
            "file itself in its place."
        )
    return os.fdopen(handle, "rb")


# ---- config.json


def sealed(config: Mapping[str, Any]) -> str:
    """The text of a config, with its checksum.

    Raises:
        SaveError: it is larger than what is read back.
        TypeError, ValueError: it is no JSON.
    """
    plain = json.loads(json.dumps(config))
    text = json.dumps({**plain, "checksum": checksum(plain)}, indent=1) + "\n"
    if len(text) > TEXT_BYTES:
        raise SaveError(
            f"config.json: got {len(text):,} bytes of settings, expected at most {TEXT_BYTES:,}; "
            "keep large arrays in parameters or data."
        )
    return text


def checksum(config: Mapping[str, Any]) -> str:
    """SHA-256 of a config's values but for the checksum itself: order and spaces do not count, and
    neither does the way a number is written (1 or 1.0)."""
    rest = {k: _plain(v) for k, v in config.items() if k != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def read_json(file: Path, what: str) -> Any:
    """The JSON in a file of at most `TEXT_BYTES`.

    Raises:
        SaveError: no regular file, larger, or no JSON.
    """
    with open_regular(file, what) as stream:
        try:
            text = stream.read(TEXT_BYTES + 1)
            if len(text) > TEXT_BYTES:
                raise ValueError(f"more than {TEXT_BYTES:,} bytes")
            return json.loads(text.decode("utf-8"))
        except (ValueError, OSError, RecursionError) as error:
            raise SaveError(f"{file}: cannot be read as JSON ({error}).") from error


def read_header(folder: Path) -> dict:
    """The config of a folder of probgen's, of which no more is known than that it is one."""
    file = folder / "config.json"
    if not os.path.lexists(file):
        raise SaveError(f"{folder}: has no config.json, expected a folder written by probgen.")
    config = read_json(file, "the JSON of a run")
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise SaveError(
            f"{folder}: got the config of another program, expected format {FORMAT!r}; "
            "this folder was not written by probgen."
        )
    version = config.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise SaveError(
            f"{folder}: got format version {version!r}, expected 1 to {VERSION}; install a newer "
            "probgen, or restore the folder from a copy."
        )
    if not isinstance(config.get("sha256"), dict):
        raise SaveError(f"{file}: lists no files; it is damaged.")
    for name in config["sha256"]:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise SaveError(f"{file}: names the file {name!r}, which is not allowed.")
    return config


def check_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Compares a config with its checksum; one without is taken with a warning.

    Raises:
        SaveError: a value is another one than was written.
    """
    file = folder / "config.json"
    if "checksum" not in config:
        log.warning(
            "%s: carries no checksum (written by probgen 0.1, or edited), so that damage to it "
            "would not be seen; save it again to have one.", file,
        )  # fmt: skip
    elif config["checksum"] != checksum(config):
        raise SaveError(
            f"{file}: its content is not what its checksum says; it was damaged or edited. Restore "
            'it from a copy; if you edited it on purpose, remove its "checksum", and it is taken '
            "as it is, with a warning."
        )


# ---- arrays


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    with open_regular(file, "the run's arrays") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_arrays(file: Path, wanted: Any) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file whose SHA-256 is `wanted`.

    Raises:
        SaveError: another content, another format, or types that numpy does not have.
    """
    with open_regular(file, "the run's arrays") as stream:
        try:
            if hashlib.file_digest(stream, "sha256").hexdigest() != wanted:
                size = os.fstat(stream.fileno()).st_size
                raise SaveError(
                    f"{file}: its content ({size} bytes) is not what config.json says it is; the "
                    "file is truncated or damaged. Restore it from a copy, or remove the folder "
                    "and make it again."
                )
            stream.seek(0)
            return _arrays(stream, file)
        except OSError as error:
            raise SaveError(f"{file}: cannot be read ({error}).") from error


def _arrays(stream: io.BufferedReader, file: Path) -> dict[str, np.ndarray]:
    def damaged(why: str) -> SaveError:
        return SaveError(f"{file}: is not a safetensors file of probgen ({why}).")

    size = os.fstat(stream.fileno()).st_size
    head = stream.read(8)
    (length,) = struct.unpack("<Q", head) if len(head) == 8 else (size,)
    if length > min(size - 8, TEXT_BYTES):
        raise damaged("its header is longer than the file")
    try:
        header = json.loads(stream.read(length).decode("utf-8"))
        header.pop("__metadata__", None)
        entries = [
            (first, stop, name, entry["dtype"], entry["shape"])
            for name, entry in header.items()
            for first, stop in [entry["data_offsets"]]
        ]
        entries.sort(key=lambda e: e[:2])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise damaged(f"its header cannot be read: {error!r}") from error
    # First the shapes: nothing is made before they are known to be what the file holds.
    end = 0
    for first, stop, name, kind, shape in entries:
        if not isinstance(kind, str) or kind not in TYPES:
            raise SaveError(
                f"{file}: holds {name!r} of type {kind!r}, expected one of {', '.join(TYPES)}; "
                "convert it before it is saved."
            )
        counts = [first, stop, *shape] if isinstance(shape, list) else [None]
        if not all(type(n) is int and n >= 0 for n in counts) or len(shape) > 32:
            raise damaged(f"{name!r} has the shape {shape!r}")
        if first != end or stop - first != math.prod(shape) * np.dtype(TYPES[kind]).itemsize:
            raise damaged(f"{name!r} of shape {shape} is not what is stored for it")
        end = stop
    if end != size - 8 - length:
        raise damaged("it holds more or less than its header says")
    arrays = {}
    for _, _, name, kind, shape in entries:
        try:
            array = np.empty(shape, np.dtype(TYPES[kind]))
        except (MemoryError, ValueError) as error:
            raise damaged(f"{name!r} of shape {shape} has no room in memory") from error
        into: Any = array.reshape(-1).view(np.uint8)  # of the same memory
        if stream.readinto(into) != array.nbytes:
            raise damaged("it ends early")
        if kind == "BOOL" and (array.view(np.uint8) > 1).any():
            raise damaged(f"{name!r} holds more than True and False")
        arrays[name] = array
    return {name: arrays[name] for name in header}
