"""Features of natural pictures: EfficientNet-Lite0's, learned on the classes of ImageNet.

A frozen network for Frechet distances, KID and PRDC of pictures, and in the place of DINO's and
CLIP's for the likeness of a subject. It is neither of them nor Inception: numbers compare with
numbers by the same features only, so its name stands in every result.

Source: Tan & Le 2019, arXiv:1905.11946; `probgen.interop.efficientnet_lite0` for the weights.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np

from probgen import backends
from probgen.data.images import require
from probgen.evaluation.samples.features import Features, as_features
from probgen.interop.efficientnet import efficientnet_lite0
from probgen.interop.transformers_folder import pictures_of
from probgen.language.declared import checked
from probgen.language.kinds import Count, PathLike, between

WHO = "efficientnet_features"


@checked
def efficientnet_features(
    size: Annotated[int, between(32, 10_000)] = 128,
    *,
    path: PathLike | None = None,
    backend: str | backends.Backend = "auto",
    device: str = "auto",
    batch_size: Count = 32,
) -> Features:
    """A feature function of pictures [n, h, w, 3] in [0, 1], to [n, 1280].

    Args:
        size: side that pictures are resized to (bicubic), pixels; the network learned at 224, and
            costs about 10 ms a picture on a CPU core at 128.
        path: of the weights; None takes those of the installed package.
        backend, device: that the network runs on.
        batch_size: pictures at a time.

    Raises:
        DataError: the weights are not installed, or are no such file.
        ShapeError, DataError (by the function): other shapes than pictures'; values outside [0, 1].
    """
    net, params = efficientnet_lite0(path)
    name = f"efficientnet-lite0-{size}"
    run = as_features(
        net, name=name, params=params, backend=backend, device=device, batch_size=batch_size
    )
    return Features(name, lambda x: run(_prepared(x, size)), batch_size)


def _prepared(x: Any, size: int) -> np.ndarray:
    """[n, size, size, 3] float32 as the network takes them, (255 u - 127) / 128."""
    pictures = pictures_of(x, WHO)
    if pictures.shape[1:3] != (size, size):
        pillow = require("PIL.Image", needed_by=WHO)
        pictures = np.stack(
            [
                np.asarray(pillow.fromarray(each).resize((size, size), pillow.Resampling.BICUBIC))
                for each in pictures
            ]
        )
    return (pictures.astype(np.float32) - 127.0) / 128.0
