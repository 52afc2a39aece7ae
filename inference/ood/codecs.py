"""Lossless code lengths of images, in bits, by standard compressors.

An image of L levels is coded at the depth that holds them: two levels as a 1-bit image, up to 256
as 8 bits a value (the level itself, not a grey value), more as 16 bits. A code length includes the
format's own header, a constant that shifts every image of a shape alike.

    png        level 9, by Pillow            webp       lossless, the slowest effort, by Pillow
    jpeg2000   lossless (5/3 wavelet)        lzma, bz2, zlib   of the packed bytes, standard library
"""

from __future__ import annotations

import bz2
import hashlib
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Annotated

import numpy as np

from probgen.errors import DeclarationError, ShapeError, UnknownName
from probgen.language.dist import did_you_mean
from probgen.language.kinds import between

_kept: dict[tuple[str, int, tuple[int, ...], bytes], int] = {}  # one compression an image
_KEPT_AT_MOST = 1_000_000


def _pillow(levels: np.ndarray, num_levels: int, **options: object) -> bytes:
    """An image [h, w, c] as a file."""
    from PIL import Image

    if num_levels == 2 and levels.shape[-1] == 1 and options["format"] == "PNG":
        image = Image.fromarray(levels[..., 0].astype(bool))  # mode "1"
    elif levels.shape[-1] == 1:
        image = Image.fromarray(levels[..., 0].astype(np.uint8))
    else:
        image = Image.fromarray(levels.astype(np.uint8))
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def _png(levels: np.ndarray, num_levels: int) -> bytes:
    return _pillow(levels, num_levels, format="PNG", compress_level=9)


def _jpeg2000(levels: np.ndarray, num_levels: int) -> bytes:
    # Each resolution halves the image, and the encoder refuses more than there are.
    resolutions = max(1, min(6, int(np.log2(min(levels.shape[:2]))) + 1))
    return _pillow(
        levels, num_levels, format="JPEG2000", irreversible=False, num_resolutions=resolutions,
        no_jp2=True,
    )  # fmt: skip


def _webp(levels: np.ndarray, num_levels: int) -> bytes:
    return _pillow(
        levels, num_levels, format="WEBP", lossless=True, quality=100, method=6, exact=True
    )


def _packed(levels: np.ndarray, num_levels: int) -> bytes:
    if num_levels == 2:
        return np.packbits(levels.astype(bool)).tobytes()
    return levels.astype(np.uint8 if num_levels <= 256 else np.uint16).tobytes()


def _lzma(levels: np.ndarray, num_levels: int) -> bytes:
    data = _packed(levels, num_levels)
    # Without the container, whose check sums are longer than a small image; a dictionary no larger
    # than the image needs, since setting up the default of 64 MB takes 50 ms.
    preset = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}
    size = {"dict_size": max(4096, len(data))}
    return lzma.compress(data, format=lzma.FORMAT_RAW, filters=[preset | size])


CODECS: dict[str, Callable[[np.ndarray, int], bytes]] = {
    "png": _png,
    "jpeg2000": _jpeg2000,
    "webp": _webp,
    "lzma": _lzma,
    "bz2": lambda levels, num: bz2.compress(_packed(levels, num), 9),
    "zlib": lambda levels, num: zlib.compress(_packed(levels, num), 9),
}
_FEATURES = {"png": "zlib", "jpeg2000": "jpg_2000", "webp": "webp"}  # as Pillow calls them
_CHANNELS = {"png": (1, 2, 3, 4), "jpeg2000": (1, 2, 3, 4), "webp": (1, 3, 4)}


def available_codecs() -> tuple[str, ...]:
    """Names of the codecs that this installation has, Pillow's by how it was built."""
    from PIL import features

    return tuple(n for n in CODECS if n not in _FEATURES or features.check(_FEATURES[n]))


Levels = Annotated[int, between(2, 65536)]  # of an image's values


def check_codecs(who: str, codecs: tuple[str, ...]) -> None:
    """Refuses codecs that are unknown, or that this installation lacks.

    Raises:
        UnknownName: names those that are there. DeclarationError: none was given.
    """
    if not codecs:
        raise DeclarationError(f"{who}: got codecs=(), expected one or more of {list(CODECS)}.")
    for name in codecs:
        if name not in CODECS:
            raise UnknownName(
                f"{who}, codecs: got {name!r}, expected some of {list(CODECS)}"
                f"{did_you_mean(name, CODECS)}."
            )
        if name not in available_codecs():
            raise UnknownName(
                f"{who}: the codec {name!r} is not built into this Pillow, expected some of "
                f"{list(available_codecs())}; choose one, or install Pillow's own wheel."
            )


def code_bits(levels: np.ndarray, codec: str, num_levels: int) -> np.ndarray:
    """[n] length of each image's code in bits; an image is compressed once a process.

    Args:
        levels: [n, h, w, c] integers 0 ... num_levels - 1.
        codec: a name of `CODECS`.
        num_levels: decides the depth at which images are coded.

    Raises:
        ShapeError: the codec holds no images of so many channels or levels.
    """
    channels = _CHANNELS.get(codec)
    if channels and (num_levels > 256 or levels.shape[-1] not in channels):
        raise ShapeError(
            f"{codec}: got images of {levels.shape[-1]} channels and {num_levels} levels, expected "
            f"{' or '.join(map(str, channels))} channels of at most 256 levels; use 'lzma'."
        )
    small = np.ascontiguousarray(levels, np.uint8 if num_levels <= 256 else np.int32)
    return np.array([_bits(image, codec, num_levels) for image in small], np.int64)


def _bits(image: np.ndarray, codec: str, num_levels: int) -> int:
    mark = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
    token = (codec, num_levels, image.shape, mark)
    if token not in _kept:
        if len(_kept) >= _KEPT_AT_MOST:
            _kept.clear()
        _kept[token] = 8 * len(CODECS[codec](image, num_levels))
    return _kept[token]


def as_images(x: np.ndarray, image_shape: tuple[int, ...] | None, who: str) -> np.ndarray:
    """Data as [n, h, w, c].

    Args:
        x: [n, h, w, c], [n, h, w], or of any shape when `image_shape` tells one.
        image_shape: (h, w) or (h, w, c) of one image, for flat data.

    Raises:
        ShapeError: data that are no images, or do not fill `image_shape`.
    """
    shape = tuple(x.shape[1:]) if image_shape is None else tuple(image_shape)
    fits = int(np.prod(shape)) == int(np.prod(x.shape[1:]))
    if len(shape) not in (2, 3) or not fits:
        raise ShapeError(
            f"{who}: got data of shape {tuple(x.shape)} and image_shape={image_shape}, expected "
            "(number of data, height, width, channels), or flat data and image_shape=(height, "
            "width) or (height, width, channels)."
        )
    return x.reshape(len(x), *shape, *(1,) * (3 - len(shape)))
