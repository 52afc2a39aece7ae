"""Folders that transformers' `save_pretrained` wrote, and pictures as its networks take them.

    opened(folder, ("SamModel",), who, local_files_only)    the first of these classes, from it

Pictures are [n, h, w, 3] in [0, 1], and reach a network in bytes, through the folder's own
preparation (size, mean, scale), which wants them so. Nothing is fetched unless that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from probgen.errors import BackendError, DataError, DeclarationError, ShapeError

BATCH = 8


def opened(folder: Any, classes: tuple[str, ...], who: str, local_files_only: bool = True) -> Any:
    """A network, tokenizer or preparation of a folder, of the first of `classes` that there is.

    Raises:
        DeclarationError: no folder here; or it does not hold one of them.
        BackendError: transformers is not installed, or has none of these classes.
    """
    if local_files_only and not Path(folder).is_dir():
        raise DeclarationError(
            f"{who}: got {str(folder)!r}, which is no folder here, expected one that "
            "save_pretrained of transformers wrote; a name on the Hub is fetched only with "
            "local_files_only=False."
        )
    library = _library(who)
    found = next((getattr(library, name) for name in classes if hasattr(library, name)), None)
    if found is None:
        raise BackendError(
            f"{who}: this version of transformers has none of {', '.join(classes)}, expected a "
            "newer one; install it with: pip install 'probgen[diffusers]'"
        )
    try:
        return found.from_pretrained(folder, local_files_only=local_files_only)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise DeclarationError(
            f"{who}: got {str(folder)!r}, which does not hold a {found.__name__} ({first}), "
            "expected what its save_pretrained writes."
        ) from error


def network(
    folder: Any, kind: str, who: str, device: str, local_files_only: bool
) -> tuple[Any, Callable]:
    """(a network of a folder in evaluation mode, what makes tensors for it of numpy arrays).

    Raises:
        DeclarationError: the folder is of another network.
    """
    import torch

    model = opened(folder, (kind,), who, local_files_only).to(device).eval().requires_grad_(False)
    named = getattr(model.config, "architectures", None)
    if named and kind not in named:
        raise DeclarationError(
            f"{who}: got {str(folder)!r} of a {', '.join(named)}, expected a {kind}."
        )
    return model, lambda array: torch.as_tensor(np.asarray(array)).to(device)


def pictures_of(x: Any, who: str) -> np.ndarray:
    """Pictures as bytes, uint8 [n, h, w, 3].

    Raises:
        ShapeError: no pictures of three colours; DataError: values outside [0, 1], or NaN.
    """
    x = np.asarray(x)
    if x.ndim != 4 or x.shape[-1] != 3:
        raise ShapeError(
            f"{who}: got pictures of shape {x.shape}, expected [n, h, w, 3] with the colours last."
        )
    if x.size and not (x.min() >= 0.0 and x.max() <= 1.0):
        raise DataError(
            f"{who}: got pictures from {x.min():g} to {x.max():g}, expected them in [0, 1]; divide "
            "bytes by 255, and move [-1, 1] by (x + 1) / 2."
        )
    return np.rint(255.0 * x).astype(np.uint8)


def in_batches(x: Any, who: str, size: int = BATCH) -> Iterator[list[np.ndarray]]:
    """Pictures as bytes, `size` at a time, each batch a list of them."""
    rows = pictures_of(x, who)
    for start in range(0, len(rows), size):
        yield list(rows[start : start + size])


def _library(who: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise BackendError(
            f"{who}: transformers is not installed, expected it to open a folder of its networks; "
            "install it with: pip install 'probgen[diffusers]'"
        ) from error
    return transformers
