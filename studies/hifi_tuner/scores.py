"""What a drawn sprite is: how far from a subject, and in front of which scene. Numpy alone.

    subject_error(x)   min over places u of  mean over m of (x[u + m] - template)^2
    nearest_scene(x)   argmin over scenes of  mean over pixels of min(|x - scene|^2, cap)

The cap makes the object, which is far from every scene, count alike for all of them. On 8 x 8
pixels these stand for similarity to the subject (DINO) and to the prompt (CLIP-T).
"""

from __future__ import annotations

import numpy as np

from probgen.data import SPRITE_SCENES, scene_templates, sprite_template
from probgen.data.sprites import Colors

CAP = 0.3  # of a pixel's squared distance, summed over its colours


def subject_error(x: np.ndarray, noun: str, colors: Colors) -> np.ndarray:
    """[n] mean squared error to one individual within its outline, at its best place.

    Args:
        x: [n, 8, 8, 3] in [-1, 1].
        noun, colors: the individual, as of `data.sprites`.
    """
    return _errors(x, noun, colors).min((1, 2))


def places(x: np.ndarray, noun: str, colors: Colors) -> np.ndarray:
    """[n, 2] row and column of the box of one individual where it fits a picture best."""
    off = _errors(x, noun, colors)
    return np.stack(np.unravel_index(off.reshape(len(x), -1).argmin(1), off.shape[1:]), 1)


def _errors(x: np.ndarray, noun: str, colors: Colors) -> np.ndarray:
    """[n, places, places] mean squared error within the outline at each place of its box."""
    template, outline = sprite_template(noun, colors)
    windows = np.lib.stride_tricks.sliding_window_view(x, template.shape[:2], (1, 2))
    off = (np.moveaxis(windows, 3, -1) - template) ** 2  # [n, places, places, 6, 6, 3]
    return off[..., outline[..., 0], :].mean((-2, -1))


def nearest_scene(x: np.ndarray) -> np.ndarray:
    """[n] int64 into `SPRITE_SCENES`: the scene that most of a picture [n, 8, 8, 3] is like."""
    off = ((x[:, None] - scene_templates()) ** 2).sum(-1)
    return np.minimum(off, CAP).mean((2, 3)).argmin(1)


def scene_share(x: np.ndarray, scene: str) -> float:
    """Share of pictures in front of `scene`: accuracy of those asked for it, leak of others."""
    return float((nearest_scene(x) == SPRITE_SCENES.index(scene)).mean())
