"""The colour of a pictogram, in one word, and the same pictogram with its hue turned.

Turning is a rotation of the plane of chroma (I, Q) in the colour space YIQ, which keeps luma Y.
"""

from __future__ import annotations

import numpy as np

#: Words for colours, and below them the hues in degrees at which each starts; grey has none.
COLORS: tuple[str, ...] = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "grey")
_STARTS = np.array([15.0, 40.0, 70.0, 165.0, 250.0, 290.0, 345.0])  # of orange ... pink, red again
_GREY_BELOW = 0.03  # mean squared chroma
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)


def turned(rgb: np.ndarray, angle: float) -> np.ndarray:
    """Colours [..., 3] in [0, 1] with their hue turned by `angle`, radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])
    return np.clip(rgb @ (_FROM_YIQ @ turn @ _TO_YIQ).T, 0.0, 1.0)


def color_of(rgb: np.ndarray) -> int:
    """Which of `COLORS` pixels [m, 3] in [0, 1] have: the mean hue, weighted by chroma squared."""
    high, low = rgb.max(1), rgb.min(1)
    chroma = high - low
    if (chroma**2).mean() < _GREY_BELOW:
        return COLORS.index("grey")
    around = (chroma**2 * np.exp(1j * np.deg2rad(_hues(rgb, high, chroma)))).sum()
    hue = np.rad2deg(np.angle(around)) % 360.0
    return int(np.searchsorted(_STARTS, hue, side="right")) % len(_STARTS)


def _hues(rgb: np.ndarray, high: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """[m] degrees: red at 0, green at 120, blue at 240."""
    r, g, b = (rgb / np.maximum(chroma, 1e-6)[:, None]).T
    sector = np.select([high == rgb[:, 0], high == rgb[:, 1]], [g - b, 2.0 + b - r], 4.0 + r - g)
    return 60.0 * sector % 360.0
