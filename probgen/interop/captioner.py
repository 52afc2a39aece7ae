"""A captioner: pictures to one sentence each, by BLIP, the likeliest word at a time.

Source: Li et al. 2022, arXiv:2201.12086.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from probgen.interop.transformers_folder import in_batches, network, opened

WHO = "blip_captioner"


def blip_captioner(
    folder: str | os.PathLike,
    *,
    max_tokens: int = 20,
    device: str = "cpu",
    local_files_only: bool = True,
) -> Callable[[Any], list[str]]:
    """A function from pictures [n, h, w, 3] in [0, 1] to n captions; the same ones at each call.

    Args:
        folder: of a `BlipForConditionalGeneration` with its processor (image processor and
            tokenizer), as their `save_pretrained` writes it.
        max_tokens: of a caption.
        device, local_files_only: as of `sam_segmenter`.

    Raises:
        DeclarationError: no folder, or of another network; BackendError: transformers is missing.
        ShapeError, DataError (by the function): other shapes than pictures'; values outside [0, 1].
    """
    kinds = ("BlipImageProcessorPil", "BlipImageProcessor")
    prepare = opened(folder, kinds, WHO, local_files_only)
    words = opened(folder, ("AutoTokenizer",), WHO, local_files_only)
    model, tensor = network(folder, "BlipForConditionalGeneration", WHO, device, local_files_only)

    def captions(pictures: Any) -> list[str]:
        found: list[str] = []
        for batch in in_batches(pictures, WHO):
            pixels = tensor(np.asarray(prepare(batch, return_tensors="np")["pixel_values"]))
            ids = model.generate(
                pixel_values=pixels, max_new_tokens=max_tokens, do_sample=False, num_beams=1
            )
            texts = words.batch_decode(ids.tolist(), skip_special_tokens=True)
            found += [text.strip() for text in texts]
        return found

    return captions
