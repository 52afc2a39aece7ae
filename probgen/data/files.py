"""Readers of the two plain array formats that data sets come in: IDX (MNIST's) and `.npz`.

Bytes are checked against the header before anything is built from them, and nothing in a file is
ever executed: no pickle. Every failure is a DataError that names the file.
"""

import gzip
import math
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format

from probgen.data.images import Images, told
from probgen.errors import DataError
from probgen.language.declared import argument
from probgen.language.memory import ask

PathLike = str | os.PathLike[str]

_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CHUNK = 1 << 20


def load_idx(path: PathLike, labels: PathLike | None = None) -> Images:
    """MNIST-like images from an IDX file, with their labels from a second one.

    Args:
        path: images of unsigned bytes, [n, h, w] or [n, h, w, c]; may be gzipped.
        labels: integers [n]; may be gzipped.

    Returns:
        images [n, h, w, c] float32 in [0, 1], value / 255.

    Raises:
        DataError: a file is missing, damaged, truncated, too long, or of another kind.

    Source: the format is described at the end of LeCun's MNIST page.
    """
    path = existing_file(path, "load_idx")
    pixels = read_idx(path)
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4):
        cure = "pass it as labels=" if pixels.ndim == 1 else "read_idx(path) gives the bare array"
        raise DataError(
            f"load_idx: {path} holds {pixels.dtype} {list(pixels.shape)}, expected images of "
            f"unsigned bytes [n, h, w] or [n, h, w, c]; {cure}."
        )
    images = pixels.reshape(*pixels.shape[:3], -1).astype(np.float32) / np.float32(255)
    classes = (
        None if labels is None else _idx_labels(existing_file(labels, "load_idx"), len(images))
    )
    return told(Images(images, classes, path.name.removesuffix(".gz")), path)


def read_idx(path: PathLike) -> np.ndarray:
    """The array in an IDX file, as stored (native byte order); `.gz` is seen by its first bytes.

    Raises:
        DataError: as `load_idx`.
    """
    path = existing_file(path, "read_idx")
    try:
        with _opened(path) as stream:
            dtype, shape = _idx_header(stream, path)
            expected = math.prod(shape) * dtype.itemsize
            body = _read_at_most(stream, expected + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"read_idx: {path} is damaged or cut off inside its compression ({error}), expected a "
            f"whole gzip file; fetch it again."
        ) from error
    if len(body) != expected:
        got = f"only {len(body)}" if len(body) < expected else f"more than {expected}"
        raise DataError(
            f"read_idx: {path} holds {got} bytes of data, expected {expected} for the shape "
            f"{list(shape)} in its header; the file is truncated or damaged: fetch it again."
        )
    return np.frombuffer(body, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def load_npz(path: PathLike, key: str | None = None) -> np.ndarray:
    """One array of a `.npz` archive, as stored; pickled objects are refused.

    Args:
        path: an archive as `numpy.savez` and `numpy.savez_compressed` write it.
        key: which array; may be left out when there is only one.

    Raises:
        DataError: the file is missing, damaged or not an archive, the key is not in it, there are
            several arrays and no key, or the array needs pickle.
    """
    path = existing_file(path, "load_npz")
    with path.open("rb") as stream:
        if stream.read(6) == b"\x93NUMPY":
            raise DataError(
                f"load_npz: {path} is a single .npy array, expected a .npz archive; read it with "
                f"numpy.load(path, allow_pickle=False)."
            )
    try:
        # Our own handle: numpy leaves its own open when the archive is damaged.
        with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            name = _npz_entry(archive, key, path)
            size = archive.getinfo(name).file_size
            with archive.open(name) as entry:
                return _npy(entry, size, f"load_npz: {path}, {name}")
    except DataError:
        raise
    except Exception as error:  # zip and header parsers let almost anything out on damaged bytes
        raise DataError(
            f"load_npz: {path} is damaged or truncated ({error}), expected a whole .npz archive; "
            f"fetch or save it again."
        ) from error


def load_npy(path: PathLike) -> np.ndarray:
    """The array of a `.npy` file, as stored; pickled objects are refused.

    Raises:
        DataError: missing, damaged, truncated, of another kind, or larger than memory.
    """
    path = existing_file(path, "load_npy")
    try:
        with path.open("rb") as stream:
            return _npy(stream, path.stat().st_size, f"load_npy: {path}")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"load_npy: {path} cannot be read as a .npy array ({error}), expected plain numbers; "
            "save them with numpy.save."
        ) from error


def npz_names(path: PathLike) -> list[str]:
    """Names of the arrays in a `.npz` archive.

    Raises:
        DataError: missing, damaged, truncated, or no archive.
    """
    path = existing_file(path, "load_npz")
    try:
        with zipfile.ZipFile(path) as archive:
            return _npz_names(archive)
    except Exception as error:  # as in `load_npz`
        raise DataError(
            f"load_npz: {path} is damaged, truncated or no archive ({error}), expected a whole "
            ".npz; fetch or save it again."
        ) from error


def _npz_names(archive: zipfile.ZipFile) -> list[str]:
    return [n.removesuffix(".npy") for n in archive.namelist()]


def _npy(stream: IO[bytes], size: int, where: str) -> np.ndarray:
    """An array whose header is held against what is stored, and against memory, before it is read.

    Args:
        size: bytes of the stream, header included.
    """
    version = npy_format.read_magic(stream)
    read = npy_format.read_array_header_1_0 if version[0] == 1 else npy_format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise DataError(
            f"{where} holds Python objects, expected plain arrays; such files can run code and are "
            "never opened here: save the data again as numbers."
        )
    expected = math.prod(shape) * dtype.itemsize
    if expected > size:
        raise DataError(
            f"{where} declares the shape {list(shape)}, {expected:,} bytes, and holds at most "
            f"{size:,}, expected as many; it is truncated or damaged: fetch or save it again."
        )
    ask(where, 2 * expected, "read a part of it with numpy.load(path, mmap_mode='r')", DataError)
    body = _read_at_most(stream, expected + 1)
    if len(body) != expected:
        raise DataError(
            f"{where} holds {len(body):,} bytes of data or more, expected {expected:,} for the "
            f"shape {list(shape)}; it is truncated or damaged: fetch or save it again."
        )
    array = np.frombuffer(body, dtype).reshape(shape[::-1] if fortran else shape)
    return array.T.copy(order="F") if fortran else array.copy()


def existing_file(path: PathLike, where: str) -> Path:
    """The path, once it is known to be a file that is not empty.

    Raises:
        DeclarationError: no path. DataError: nothing there, a folder, a device, or an empty file.
    """
    path = Path(argument(where, PathLike, path=path))
    if not is_there(path) or not path.is_file():
        got = "does not exist"
        if is_there(path):
            got = "is a folder" if path.is_dir() else "is a device or a pipe"
        raise DataError(
            f"{where}: {path} {got}, expected a file; check the path (it is read from "
            f"{Path.cwd()})."
        )
    if path.stat().st_size == 0:
        raise DataError(f"{where}: {path} is empty, expected data; fetch it again.")
    return path


def is_there(path: Path) -> bool:
    """Whether something stands there; a name that can be none (a NUL, too long) is not there."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether a folder stands there."""
    return is_there(path) and path.is_dir()


def _npz_entry(archive: zipfile.ZipFile, key: str | None, path: Path) -> str:
    names = _npz_names(archive)
    if key is None and len(names) != 1:
        raise DataError(
            f"load_npz: {path} holds {len(names)} arrays {names}, expected one, or a key that says "
            f"which; pass key=."
        )
    if key is not None and key not in names:
        raise DataError(f"load_npz: {path} has no array {key!r}, expected one of {names}.")
    chosen = names[0] if key is None else key
    return archive.namelist()[names.index(chosen)]


def _idx_labels(path: Path, count: int) -> np.ndarray:
    labels = read_idx(path)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != count:
        raise DataError(
            f"load_idx: the labels file {path} holds {labels.dtype} {list(labels.shape)}, expected "
            f"integers [{count}], one per image; is it the labels file of the same set?"
        )
    return labels.astype(np.int64)


def _idx_header(stream: IO[bytes], path: Path) -> tuple[np.dtype, tuple[int, ...]]:
    magic = stream.read(4)
    if (
        len(magic) < 4
        or magic[:2] != b"\0\0"
        or magic[2] not in _IDX_TYPES
        or not 1 <= magic[3] <= 8
    ):
        raise DataError(
            f"read_idx: {path} starts with the bytes {magic.hex(' ')!r}, expected 00 00, a type "
            f"code (08, 09, 0b, 0c, 0d, 0e) and 1 to 8 dimensions: it is not an IDX file; check "
            f"which file this is."
        )
    raw = stream.read(4 * magic[3])
    if len(raw) < 4 * magic[3]:
        raise DataError(
            f"read_idx: {path} ends inside its header, expected {magic[3]} dimension sizes; it is "
            f"truncated: fetch it again."
        )
    shape = struct.unpack(f">{magic[3]}I", raw)
    if 0 in shape:
        raise DataError(f"read_idx: {path} declares the shape {list(shape)}, expected data in it.")
    return np.dtype(_IDX_TYPES[magic[2]]), shape


def _opened(path: Path) -> IO[bytes]:
    with path.open("rb") as stream:
        zipped = stream.read(2) == b"\x1f\x8b"
    opened: Any = gzip.open(path, "rb") if zipped else path.open("rb")  # noqa: SIM115 - handed on
    return opened


def _read_at_most(stream: IO[bytes], limit: int) -> bytes:
    # In chunks: a damaged header may ask for more than the machine's memory in one read.
    parts, total = [], 0
    while total < limit and (part := stream.read(min(_CHUNK, limit - total))):
        parts.append(part)
        total += len(part)
    return b"".join(parts)
