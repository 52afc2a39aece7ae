"""Features of pictures and captions by outside networks: DINO's, and CLIP's of both kinds.

    dino_features(folder)(pictures)      the class token behind the last layer
    clip_features(folder).images, .texts     the projections, in one space, each of length 1

so that an inner product of CLIP's is a cosine: of two pictures CLIP-I, of picture and caption
CLIP-T.

Sources: Caron et al. 2021, arXiv:2104.14294 (DINO); Radford et al. 2021, arXiv:2103.00020 (CLIP).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from probgen.errors import DataError
from probgen.interop.transformers_folder import in_batches, network, opened


class ClipFeatures(NamedTuple):
    """CLIP's two functions.

    Attributes:
        images: pictures [n, h, w, 3] in [0, 1] -> [n, d], rows of length 1.
        texts: n captions -> [n, d], rows of length 1. DataError: one longer than the encoder.
    """

    images: Callable[[Any], np.ndarray]
    texts: Callable[[Sequence[str]], np.ndarray]


def dino_features(
    folder: str | os.PathLike, *, device: str = "cpu", local_files_only: bool = True
) -> Callable[[Any], np.ndarray]:
    """A function from pictures [n, h, w, 3] in [0, 1] to features [n, d], float32.

    Args:
        folder: of a `ViTModel` (the form of DINO's) with its image processor, as their
            `save_pretrained` writes it.
        device, local_files_only: as of `sam_segmenter`.

    Raises:
        DeclarationError: no folder, or of another network; BackendError: transformers is missing.
        ShapeError, DataError (by the function): other shapes than pictures'; values outside [0, 1].
    """
    who = "dino_features"
    kinds = ("ViTImageProcessorPil", "ViTImageProcessor")
    prepare = opened(folder, kinds, who, local_files_only)
    model, tensor = network(folder, "ViTModel", who, device, local_files_only)

    def features(pictures: Any) -> np.ndarray:
        parts = [model(pixel_values=_pixels(prepare, tensor, batch)).last_hidden_state[:, 0]
                 for batch in in_batches(pictures, who)]  # fmt: skip
        return _rows(parts, model.config.hidden_size)

    return features


def clip_features(
    folder: str | os.PathLike, *, device: str = "cpu", local_files_only: bool = True
) -> ClipFeatures:
    """Functions from pictures and from captions to one space.

    Args:
        folder: of a `CLIPModel` with its processor (image processor and tokenizer), as their
            `save_pretrained` writes it.
        device, local_files_only: as of `sam_segmenter`.

    Raises:
        DeclarationError: no folder, or of another network; BackendError: transformers is missing.
        ShapeError, DataError (by the functions): other shapes than pictures'; values outside
            [0, 1]; captions that are no texts or too long.
    """
    who = "clip_features"
    kinds = ("CLIPImageProcessorPil", "CLIPImageProcessor")
    prepare = opened(folder, kinds, who, local_files_only)
    words = opened(folder, ("CLIPTokenizer",), who, local_files_only)
    model, tensor = network(folder, "CLIPModel", who, device, local_files_only)
    length, dim = model.config.text_config.max_position_embeddings, model.config.projection_dim

    def images(pictures: Any) -> np.ndarray:
        parts = [_projected(model.get_image_features(pixel_values=_pixels(prepare, tensor, batch)))
                 for batch in in_batches(pictures, who)]  # fmt: skip
        return _unit(_rows(parts, dim))

    def texts(captions: Sequence[str]) -> np.ndarray:
        captions = [captions] if isinstance(captions, str) else list(captions)
        if not captions:
            return np.zeros((0, dim), np.float32)
        ids = words(captions, padding="max_length", max_length=length, truncation=False)
        for caption, row in zip(captions, ids["input_ids"], strict=True):
            if len(row) > length:
                raise DataError(
                    f"{who}: got a caption of {len(row)} tokens with those of its start and end, "
                    f"{caption!r}, expected at most {length}, the encoder's length; shorten it."
                )
        given = {name: tensor(ids[name]) for name in ("input_ids", "attention_mask")}
        return _unit(_rows([_projected(model.get_text_features(**given))], dim))

    return ClipFeatures(images, texts)


def _pixels(prepare: Any, tensor: Callable, batch: list) -> Any:
    return tensor(np.asarray(prepare(batch, return_tensors="np")["pixel_values"]))


def _projected(output: Any) -> Any:
    """What is projected: an output's entry, or, in older versions, the output itself."""
    return getattr(output, "pooler_output", output)


def _rows(parts: list, dim: int) -> np.ndarray:
    arrays = [np.asarray(part.cpu(), np.float32) for part in parts]
    return np.concatenate([np.zeros((0, dim), np.float32), *arrays])


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
