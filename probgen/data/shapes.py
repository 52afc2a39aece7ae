"""Coloured shapes on black with captions: a small world in which a caption can be checked.

Each picture holds one shape; four factors, drawn independently and uniformly, say which, and the
caption names all four: "a small red circle at the top left". Edges are anti-aliased by the signed
distance to the outline, so pixels are in [0, 1] and the area is right to a fraction of a pixel.
"""

from dataclasses import dataclass, replace

import numpy as np

from probgen.errors import DataError

#: The values of each factor; `Shapes.factors[name]` counts into these.
FACTORS: dict[str, tuple[str, ...]] = {
    "size": ("small", "large"),
    "color": ("red", "green", "blue", "yellow", "magenta", "cyan"),
    "shape": ("circle", "square", "triangle"),
    "position": ("top left", "top right", "bottom left", "bottom right", "center"),
}
_RGB = np.array(
    [
        [1, 0.1, 0.1],
        [0.1, 0.8, 0.1],
        [0.15, 0.3, 1],
        [1, 0.9, 0.1],
        [0.9, 0.1, 0.9],
        [0.1, 0.9, 0.9],
    ]
)
_CENTERS = np.array([[0.28, 0.28], [0.72, 0.28], [0.28, 0.72], [0.72, 0.72], [0.5, 0.5]])  # x, y
_RADII = np.array([0.11, 0.2])  # of the circle that the shape is inscribed in, share of the side
_JITTER = 0.04


@dataclass(frozen=True, eq=False)
class Shapes:
    """Pictures of shapes and what is known about them.

    Attributes:
        images: [n, s, s, 3] float32 in [0, 1].
        captions: n sentences, each a function of the factors.
        factors: "size", "color", "shape", "position": [n] int64 counting into `FACTORS`; "center"
            [n, 2] float32, the shape's centre (x, y) as a share of the side, y downwards.
        name: what to call the set.
    """

    images: np.ndarray
    captions: tuple[str, ...]
    factors: dict[str, np.ndarray]
    name: str = "shapes"

    def __len__(self) -> int:
        return len(self.images)

    def take(self, which: np.ndarray) -> "Shapes":
        """The rows that `which` picks: indices [m], or a boolean mask [n]."""
        rows = np.arange(len(self))[which]
        return replace(
            self,
            images=self.images[rows],
            captions=tuple(self.captions[row] for row in rows),
            factors={name: column[rows] for name, column in self.factors.items()},
        )


def shapes(count: int, size: int, seed: int) -> Shapes:
    """Draw `count` captioned pictures of `size` x `size` pixels.

    Raises:
        DataError: `count` is not positive, or `size` is below 12, where shapes blur into blobs.
    """
    if count < 1 or size < 12:
        raise DataError(
            f"shapes: got count={count} and size={size}, expected count >= 1 and size >= 12; "
            f"below 12 pixels the three shapes cannot be told apart."
        )
    rng = np.random.default_rng(seed)
    factors = {name: rng.integers(len(values), size=count) for name, values in FACTORS.items()}
    jitter = rng.uniform(-_JITTER, _JITTER, (count, 2))
    center = _CENTERS[factors["position"]] + jitter
    images = np.empty((count, size, size, 3), dtype=np.float32)
    for row in range(count):
        kind = FACTORS["shape"][factors["shape"][row]]
        cover = _coverage(kind, center[row], _RADII[factors["size"][row]], size)
        images[row] = cover[:, :, None] * _RGB[factors["color"][row]]
    captions = tuple(
        caption(*(int(factors[name][row]) for name in FACTORS)) for row in range(count)
    )
    table = {name: column.astype(np.int64) for name, column in factors.items()}
    return Shapes(images, captions, {**table, "center": center.astype(np.float32)})


def caption(size: int, color: int, shape: int, position: int) -> str:
    """The sentence for four factor values, in the order of `FACTORS`."""
    place = FACTORS["position"][position]
    where = "in the center" if place == "center" else f"at the {place}"
    words = FACTORS["size"][size], FACTORS["color"][color], FACTORS["shape"][shape]
    return f"a {' '.join(words)} {where}"


def _coverage(kind: str, center: np.ndarray, radius: float, size: int) -> np.ndarray:
    """[size, size]: the share of each pixel that the shape covers, from its signed distance."""
    grid = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(grid - center[0], grid - center[1])
    if kind == "circle":
        distance = np.hypot(x, y) - radius
    elif kind == "square":
        distance = np.maximum(abs(x), abs(y)) - radius / np.sqrt(2)
    else:  # equilateral, tip up: the largest of the distances to its three sides
        sides = np.deg2rad([90.0, 210.0, 330.0])
        distance = np.max([x * np.cos(a) + y * np.sin(a) for a in sides], axis=0) - radius / 2
    return np.clip(0.5 - distance * size, 0.0, 1.0)
