"""Readers of image sets on disk: CIFAR's binary version, SVHN's `.mat`, folders of PNG and JPEG.

All give `Images` with float32 [n, h, w, c] in [0, 1]. CIFAR's and SVHN's other distributions
(Python pickles, HDF5) are refused by name: a pickle can run code.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from probgen.data.files import PathLike, existing_file, is_folder
from probgen.data.images import Images, require, told
from probgen.errors import DataError
from probgen.language.declared import argument

_LOG = logging.getLogger("probgen.data")
_PIXELS = 3 * 32 * 32
_CIFAR10_TRAIN = tuple(f"data_batch_{k}.bin" for k in range(1, 6))
EXTENSIONS = (".png", ".jpg", ".jpeg")


def load_cifar(
    path: PathLike, *, split: str = "train", num_classes: int | None = None, coarse: bool = False
) -> Images:
    """CIFAR-10 or CIFAR-100, binary version: a `.bin` file, or the folder that holds them.

    A record is 1 label byte (CIFAR-10) or 2, coarse and fine (CIFAR-100), then 3072 bytes: the red,
    green and blue planes of 32x32 pixels.

    Args:
        path: a file, or a folder with `data_batch_1.bin ... data_batch_5.bin` and `test_batch.bin`
            (CIFAR-10) or `train.bin` and `test.bin` (CIFAR-100).
        split: "train" or "test", for a folder.
        num_classes: 10 or 100; None reads it from the file's name, else its length.
        coarse: the 20 coarse labels of CIFAR-100.

    Raises:
        DataError: missing, truncated, damaged or foreign files.

    Source: Krizhevsky 2009; the layout is on the data set's page, "Binary version".
    """
    path = Path(argument("load_cifar", PathLike, path=path))
    paths = _cifar_folder(path, split) if is_folder(path) else [existing_file(path, "load_cifar")]
    kinds, pixels, labels = zip(
        *(_cifar_file(file, num_classes, coarse) for file in paths), strict=True
    )
    if len(set(kinds)) > 1:
        raise DataError(f"load_cifar: {path} mixes CIFAR-10 and CIFAR-100 files; keep one of them.")
    images = np.concatenate(pixels)
    return told(Images(images, np.concatenate(labels), f"cifar{kinds[0]}"), path)


def load_svhn(path: PathLike) -> Images:
    """Street View House Numbers, cropped digits ("format 2"): `train_32x32.mat` and its like.

    The file's class 10 is the digit 0, and comes back as label 0.

    Raises:
        DataError: missing, damaged or foreign file.

    Source: Netzer et al. 2011.
    """
    path = existing_file(path, "load_svhn")
    loadmat = require("scipy.io", needed_by="load_svhn").loadmat
    try:
        content = loadmat(path, variable_names=["X", "y"])
    except Exception as error:  # scipy's reader lets almost any exception out on damaged bytes
        raise DataError(
            f"load_svhn: {path} cannot be read as a MATLAB 5 file ({type(error).__name__}: "
            f"{error}), expected SVHN's cropped digits such as train_32x32.mat; fetch it again."
        ) from error
    x, y = content.get("X"), content.get("y")
    if x is None or y is None or x.ndim != 4 or x.shape[2] != 3 or x.dtype != np.uint8:
        raise DataError(
            f"load_svhn: {path} holds X {_describe(x)} and y {_describe(y)}, expected X uint8 "
            f"[32, 32, 3, n] and y [n, 1]; is it the cropped-digits version?"
        )
    labels = np.asarray(y).ravel()
    if len(labels) != x.shape[3] or not np.isin(labels, np.arange(1, 11)).all():
        raise DataError(
            f"load_svhn: {path} has {x.shape[3]} images and {len(labels)} labels with values "
            f"{np.unique(labels)[:12]}, expected one of 1 ... 10 per image; the file is damaged."
        )
    images = np.moveaxis(x, 3, 0).astype(np.float32) / np.float32(255)
    found = Images(images, labels.astype(np.int64) % 10, "svhn", tuple("0123456789"))
    return told(found, path)


def load_image_folder(
    path: PathLike,
    size: int | tuple[int, int] | None = None,
    labels_from_folders: bool = True,
    *,
    channels: int | None = None,
) -> Images:
    """PNG and JPEG files under a folder, in the order of their paths.

    EXIF orientation is applied; transparency is dropped; files of other kinds are passed over and
    counted in the log.

    Args:
        path: with `labels_from_folders`, one subfolder per class; else any tree.
        size: side, or (height, width): the largest centred window of that aspect is resized.
            None asks that all files have one size.
        labels_from_folders: labels index the subfolders' names, sorted.
        channels: 1 or 3; None gives 1 when every file is grey, else 3.

    Raises:
        DataError: no images, files of unequal size, a damaged file (by name), a stray file that
            is in no class folder.
    """
    root = Path(argument("load_image_folder", PathLike, path=path))
    if not is_folder(root):
        raise DataError(f"load_image_folder: got {root}, expected a folder; check the path.")
    if channels not in (None, 1, 3):
        raise DataError(f"load_image_folder: got channels={channels}, expected 1, 3 or None.")
    files = _image_files(root)
    classes, labels = _folder_labels(root, files) if labels_from_folders else ((), None)
    window = (size, size) if isinstance(size, int) else size
    pixels = [_read_image(file, window, channels) for file in files]
    depth = channels or max(array.shape[2] for array in pixels)
    for file, array in zip(files, pixels, strict=True):
        if array.shape[:2] != pixels[0].shape[:2]:
            raise DataError(
                f"load_image_folder: {file} is {list(array.shape[:2])} (height, width) and "
                f"{files[0]} is {list(pixels[0].shape[:2])}, expected one size; pass size=."
            )
    images = np.stack([np.broadcast_to(array, (*array.shape[:2], depth)) for array in pixels])
    return told(Images(images, labels, root.name, classes), root)


def _cifar_folder(folder: Path, split: str) -> list[Path]:
    if split not in ("train", "test"):
        raise DataError(f"load_cifar: got split={split!r}, expected 'train' or 'test'.")
    ten = _CIFAR10_TRAIN if split == "train" else ("test_batch.bin",)
    present = [name for name in ten if (folder / name).is_file()]
    hundred = folder / f"{split}.bin"
    if present and hundred.is_file():
        raise DataError(
            f"load_cifar: {folder} holds files of CIFAR-10 and of CIFAR-100, expected one of them; "
            f"name the file instead of the folder."
        )
    if hundred.is_file():
        return [existing_file(hundred, "load_cifar")]
    if len(present) == len(ten):
        return [existing_file(folder / name, "load_cifar") for name in ten]
    absent = [name for name in ten if name not in present]
    pickled = (folder / "data_batch_1").is_file() or (folder / "train").is_file()
    hint = "these are the Python (pickle) files, which are never opened: " if pickled else ""
    raise DataError(
        f"load_cifar: {folder} lacks {absent} (or {split}.bin of CIFAR-100), expected CIFAR's "
        f"binary version; {hint}fetch the archive named 'binary version'."
    )


def _cifar_file(
    path: Path, num_classes: int | None, coarse: bool
) -> tuple[int, np.ndarray, np.ndarray]:
    """The number of classes, images [n, 32, 32, 3] and labels [n] of one file."""
    raw = np.fromfile(path, dtype=np.uint8)
    kind = num_classes or _cifar_kind(path, raw.size)
    if kind not in (10, 100) or (coarse and kind == 10):
        raise DataError(
            f"load_cifar: got num_classes={kind} and coarse={coarse} for {path}, expected 10 or "
            f"100, and coarse labels only with 100."
        )
    head = 1 if kind == 10 else 2
    if raw.size % (head + _PIXELS):
        pickled = raw[:1].tobytes() == b"\x80"
        hint = "it looks like the Python (pickle) version, never opened here: " if pickled else ""
        raise DataError(
            f"load_cifar: {path} has {raw.size} bytes, expected a multiple of {head + _PIXELS} "
            f"(CIFAR-{kind} records); {hint}fetch the binary version again."
        )
    records = raw.reshape(-1, head + _PIXELS)
    limits = [10] if kind == 10 else [20, 100]
    for column, limit in enumerate(limits):
        if records[:, column].max() >= limit:
            raise DataError(
                f"load_cifar: {path} has the label {records[:, column].max()}, expected below "
                f"{limit}; it is damaged or of another kind: try num_classes=, or fetch it again."
            )
    planes = records[:, head:].reshape(-1, 3, 32, 32)
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1)).astype(np.float32) / np.float32(255)
    return kind, images, records[:, 0 if coarse else head - 1].astype(np.int64)


def _cifar_kind(path: Path, length: int) -> int:
    if path.name in (*_CIFAR10_TRAIN, "test_batch.bin"):
        return 10
    if path.name in ("train.bin", "test.bin"):
        return 100
    fits = [kind for kind, head in ((10, 1), (100, 2)) if length % (head + _PIXELS) == 0]
    if len(fits) != 1:
        raise DataError(
            f"load_cifar: {path} has {length} bytes, expected a multiple of 3073 (CIFAR-10) or of "
            f"3074 (CIFAR-100) and not of both; pass num_classes=, or fetch the binary version."
        )
    return fits[0]


def _image_files(root: Path) -> list[Path]:
    every = sorted(file for file in root.rglob("*") if file.is_file() and file.name[0] != ".")
    files = [file for file in every if file.suffix.lower() in EXTENSIONS]
    if not files:
        raise DataError(
            f"load_image_folder: {root} holds {len(every)} files and none of them is one of "
            f"{list(EXTENSIONS)}; check the path, or convert the images."
        )
    if len(files) < len(every):
        _LOG.info("%s: passed over %d files that are not images", root, len(every) - len(files))
    return files


def _folder_labels(root: Path, files: list[Path]) -> tuple[tuple[str, ...], np.ndarray]:
    names = []
    for file in files:
        parts = file.relative_to(root).parts
        if len(parts) == 1:
            raise DataError(
                f"load_image_folder: {file} lies in no class folder, expected {root}/CLASS/image; "
                f"move it, or pass labels_from_folders=False."
            )
        names.append(parts[0])
    classes = tuple(sorted(set(names)))
    return classes, np.array([classes.index(name) for name in names], dtype=np.int64)


def _read_image(file: Path, window: tuple[int, int] | None, channels: int | None) -> np.ndarray:
    """[h, w, 1 or 3] float32 in [0, 1]."""
    picture = opened_image(file, channels, needed_by="load_image_folder")
    if window is not None:
        picture = fitted_image(picture, window)
    pixels = np.asarray(picture, dtype=np.float32) / np.float32(255)
    return pixels.reshape(*pixels.shape[:2], -1)


def opened_image(file: Path, channels: int | None, *, needed_by: str) -> Any:
    """A PNG or JPEG as a Pillow image, turned as its EXIF says: grey for 1 channel, RGB for 3.

    Raises:
        DataError: a damaged file, by name.
    """
    pillow = require("PIL.Image", needed_by=needed_by)
    try:
        with pillow.open(file, formats=("PNG", "JPEG")) as opened:
            picture = require("PIL.ImageOps", needed_by=needed_by).exif_transpose(opened)
            deep = picture.mode.startswith("I")  # 16-bit grey, which convert("L") would clip
            if deep:
                levels = np.asarray(picture, dtype=np.float32) / np.float32(257)
                picture = pillow.fromarray(np.rint(levels).astype(np.uint8))
            grey = channels == 1 or (channels is None and picture.mode in ("1", "L", "LA"))
            return picture.convert("L" if grey else "RGB")
    except Exception as error:  # Pillow's decoders let almost anything out on damaged bytes
        raise DataError(
            f"{needed_by}: {file} cannot be read ({error}), expected a whole PNG or JPEG "
            f"file; replace or remove it."
        ) from error


def fitted_image(picture: Any, window: tuple[int, int]) -> Any:
    """The largest centred window of the aspect of (height, width), resized to it."""
    pillow = require("PIL.Image", needed_by="fitted_image")
    fit = require("PIL.ImageOps", needed_by="fitted_image").fit
    return fit(picture, window[::-1], method=pillow.Resampling.BICUBIC)


def _describe(value: Any) -> str:
    return "nothing" if value is None else f"{value.dtype} {list(value.shape)}"
