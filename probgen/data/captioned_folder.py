"""A folder of pictures with captions and masks: one subject's photographs, or pairs to learn from.

    dog1.jpg   dog1_mask.png or masks/dog1.png   dog1.txt
    dog2.png   dog2_mask.png or masks/dog2.png   dog2.txt

Masks are optional for all pictures together, captions for each. A mask is white where the subject
is; it is cut and resized with its picture, and a pixel belongs to it from half white on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from probgen.data.files import PathLike, is_folder
from probgen.data.image_files import EXTENSIONS, fitted_image, opened_image
from probgen.errors import DataError
from probgen.language.declared import argument
from probgen.language.kinds import Width

WHO = "load_captioned_folder"


class Captioned(TypedDict):
    """Pictures with what is known about them.

    x: [n, h, w, 3] float32 in [-1, 1].
    mask: [n, h, w, 1] float32, 1 on the subject and 0 elsewhere, or None where no masks lie.
    captions: n texts, "" where none lies.
    """

    x: np.ndarray
    mask: np.ndarray | None
    captions: tuple[str, ...]


def load_captioned_folder(path: PathLike, size: int | tuple[int, int] | None = None) -> Captioned:
    """PNG and JPEG pictures in a folder, in the order of their names, with masks and captions.

    EXIF orientation is applied, transparency is dropped.

    Args:
        path: the folder; see the head of this file for what lies in it.
        size: side, or (height, width): the largest centred window of that aspect is resized. None
            asks that all pictures have one size.

    Raises:
        DataError: no folder, no pictures, a damaged file, or pictures of several sizes; a mask of
            another size than its picture, empty, full, or of no picture; two masks of a picture;
            masks of some pictures only; a caption that is no UTF-8 text.
    """
    root = Path(argument(WHO, PathLike, path=path))
    if not is_folder(root):
        raise DataError(f"{WHO}: got {root}, expected a folder; check the path.")
    size = argument(WHO, Width | tuple[Width, Width] | None, size=size)
    window = (size, size) if isinstance(size, int) else size
    files = _pictures(root)
    masks = _masks(root, files)
    opened = [opened_image(file, 3, needed_by=WHO) for file in files]
    _check_one_size(files, opened, window)
    x = np.stack([_pixels(picture, window) for picture in opened])
    covers = [
        _mask(mask, file, picture, window)
        for mask, file, picture in zip(masks, files, opened, strict=False)
    ]
    captions = tuple(_caption(file.with_suffix(".txt")) for file in files)
    return {"x": 2.0 * x - 1.0, "mask": np.stack(covers) if covers else None, "captions": captions}


def _pictures(root: Path) -> list[Path]:
    files = [file for file in sorted(root.iterdir()) if file.suffix.lower() in EXTENSIONS]
    files = [f for f in files if f.name[0] != "." and not f.stem.endswith("_mask") and f.is_file()]
    if not files:
        raise DataError(
            f"{WHO}: {root} holds no pictures, expected files that end in {', '.join(EXTENSIONS)}; "
            "check the path, or convert them."
        )
    stems = [file.stem for file in files]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice is not None:
        raise DataError(
            f"{WHO}: {root} holds two pictures named {twice!r}, expected one, so that mask and "
            "caption belong to one; rename one."
        )
    return files


def _masks(root: Path, files: list[Path]) -> list[Path]:
    """The mask of each picture, or none at all."""
    beside = {f.stem.removesuffix("_mask"): f for f in sorted(root.glob("*_mask.png"))}
    within = {f.stem: f for f in sorted((root / "masks").glob("*.png"))}
    stems = [file.stem for file in files]
    for name in (*beside, *within):
        if name not in stems:
            raise DataError(
                f"{WHO}: {beside.get(name) or within[name]} is the mask of no picture in {root}, "
                f"expected one of {', '.join(stems[:5])}; rename or remove it."
            )
    both = sorted(set(beside) & set(within))
    if both:
        raise DataError(
            f"{WHO}: got two masks of {both[0]!r}, {beside[both[0]]} and {within[both[0]]}, "
            "expected one; remove the other."
        )
    found = beside | within
    bare = [stem for stem in stems if stem not in found]
    if found and bare:
        raise DataError(
            f"{WHO}: got masks of {len(found)} of {len(stems)} pictures, none of {bare[0]!r}, "
            f"expected one of each, or none; add {bare[0]}_mask.png."
        )
    return [found[stem] for stem in stems] if found else []


def _check_one_size(files: list[Path], opened: list[Any], window: Any) -> None:
    for file, picture in zip(files, opened, strict=True):
        if window is None and picture.size != opened[0].size:
            raise DataError(
                f"{WHO}: {file} is {picture.size} (width, height) and {files[0]} is "
                f"{opened[0].size}, expected one size; pass size=."
            )


def _mask(file: Path, picture_file: Path, picture: Any, window: Any) -> np.ndarray:
    """[h, w, 1] float32, 0 or 1."""
    mask = opened_image(file, 1, needed_by=WHO)
    if mask.size != picture.size:
        raise DataError(
            f"{WHO}: the mask {file} is {mask.size} (width, height) and its picture "
            f"{picture_file.name} is {picture.size}, expected the same; make the mask of the "
            "picture as it is on disk."
        )
    cover = (_pixels(mask, window) >= 0.5).astype(np.float32)
    if cover.min() == cover.max():
        state = "empty (black)" if cover.max() == 0 else "full (white)"
        cut = "" if window is None else f" once it is cut to the middle and resized to {window}"
        raise DataError(
            f"{WHO}: the mask {file} is {state} everywhere{cut}, expected white where the subject "
            "is and black elsewhere; draw it anew, or leave all masks out."
        )
    return cover


def _pixels(picture: Any, window: Any) -> np.ndarray:
    """[h, w, c] float32 in [0, 1]."""
    picture = picture if window is None else fitted_image(picture, window)
    pixels = np.asarray(picture, dtype=np.float32) / np.float32(255)
    return pixels.reshape(*pixels.shape[:2], -1)


def _caption(file: Path) -> str:
    try:
        return " ".join(file.read_text("utf-8").split()) if file.is_file() else ""
    except UnicodeDecodeError as error:
        raise DataError(
            f"{WHO}: the caption {file} is no UTF-8 text ({error}); save it as one."
        ) from error
