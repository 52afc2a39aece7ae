"""A segmenter: pictures to masks of what lies at a point or in a box, by Segment Anything.

    mask = 1 where the network's logit, brought to the picture's size, is above 0

Of the three masks that it gives for a prompt the one is taken whose overlap it rates highest.

Source: Kirillov et al. 2023, arXiv:2304.02643.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from probgen.errors import DeclarationError
from probgen.interop.transformers_folder import in_batches, network, opened

WHO = "sam_segmenter"
CENTRE = ((0.5, 0.5),)


def sam_segmenter(
    folder: str | os.PathLike,
    *,
    points: Sequence[tuple[float, float]] = CENTRE,
    box: tuple[float, float, float, float] | None = None,
    device: str = "cpu",
    local_files_only: bool = True,
) -> Callable[[Any], np.ndarray]:
    """A function from pictures [n, h, w, 3] in [0, 1] to masks [n, h, w], float32, 0 or 1.

    Args:
        folder: of a `SamModel` with its image processor, as their `save_pretrained` writes it.
        points: (x, y) that lie on what is sought, as shares of width and height, of all pictures.
        box: (left, top, right, bottom) around it, as shares, in place of the points.
        device: where it runs.
        local_files_only: False lets a name that is no folder here be asked of the Hub.

    Raises:
        DeclarationError: no folder, or of another network; places outside the picture.
        BackendError: transformers is not installed.
        ShapeError, DataError (by the function): other shapes than pictures'; values outside [0, 1].
    """
    places = np.asarray(points if box is None else np.reshape(box, (2, 2)), np.float64)
    if places.ndim != 2 or places.shape[1] != 2 or not ((places >= 0) & (places <= 1)).all():
        raise DeclarationError(
            f"{WHO}: got points={points!r}, box={box!r}, expected (x, y), or (left, top, right, "
            "bottom), as shares of width and height, 0 to 1."
        )
    kinds = ("SamImageProcessorPil", "SamImageProcessor")
    prepare = opened(folder, kinds, WHO, local_files_only)
    model, tensor = network(folder, "SamModel", WHO, device, local_files_only)

    def masks(pictures: Any) -> np.ndarray:
        parts = [_masks(model, prepare, tensor, batch, places, box is not None)
                 for batch in in_batches(pictures, WHO)]  # fmt: skip
        return np.concatenate([np.zeros((0, *np.shape(pictures)[1:3]), np.float32), *parts])

    return masks


def _masks(
    model: Any, prepare: Any, tensor: Callable, batch: list, places: np.ndarray, is_box: bool
) -> np.ndarray:
    """[n, h, w] of one batch of pictures of one size."""
    given = prepare(batch, return_tensors="np")
    sizes = np.asarray(given["reshaped_input_sizes"], np.float64)  # (height, width) as it sees them
    seen = places[None] * sizes[:, None, ::-1]
    if is_box:
        prompt = {"input_boxes": seen.reshape(-1, 1, 4)}
    else:
        prompt = {
            "input_points": seen[:, None],
            "input_labels": np.ones((len(seen), 1, len(places))),
        }
    prompt = {
        k: np.asarray(v, np.int64 if "labels" in k else np.float32) for k, v in prompt.items()
    }
    found = model(
        pixel_values=tensor(np.asarray(given["pixel_values"])),
        **{name: tensor(value) for name, value in prompt.items()},
    )
    best = found.iou_scores[:, 0].argmax(-1).tolist()
    kept = [logits[0, i][None, None] for logits, i in zip(found.pred_masks, best, strict=True)]
    sized = prepare.post_process_masks(kept, given["original_sizes"], given["reshaped_input_sizes"])
    return np.stack([np.asarray(mask[0, 0].cpu(), np.float32) for mask in sized])
