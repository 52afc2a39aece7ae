"""The data room: sets that need no network, readers of standard files, and sources for `fit`.

All images are numpy [n, h, w, c] float32 in [0, 1], those with captions and masks, made for
diffusions, in [-1, 1]. Importing this loads no deep-learning
framework; optional libraries are imported by the function that needs them.
"""

from probgen.data.alignment import Similarity, align_masks
from probgen.data.bundled import NATURAL, PHOTOGRAPHS, digits, faces, mnist5k, patches
from probgen.data.captioned_folder import Captioned, load_captioned_folder
from probgen.data.densities import (
    Density2D,
    checkerboard,
    gaussian_mixture,
    pinwheel,
    rings,
    two_moons,
)
from probgen.data.files import load_idx, load_npz, read_idx
from probgen.data.image_files import load_cifar, load_image_folder, load_svhn
from probgen.data.images import Images
from probgen.data.letters import letters
from probgen.data.pictograms import (
    PICTOGRAM_COLORS,
    PICTOGRAM_RENDITIONS,
    PICTOGRAM_SCENES,
    Pictograms,
    pictogram_nouns,
    pictograms,
)
from probgen.data.shapes import FACTORS, Shapes, shapes
from probgen.data.sources import ArraySource, LazySource, Source, as_arrays, as_source
from probgen.data.splits import split
from probgen.data.sprites import (
    SPRITE_COLORS,
    SPRITE_NOUNS,
    SPRITE_SCENES,
    Sprites,
    scene_templates,
    sprite_template,
    sprites,
)
from probgen.data.streams import StreamSource
from probgen.data.transforms import (
    binarize,
    constants,
    dequantize,
    from_levels,
    inverted,
    noise,
    to_levels,
)

__all__ = [
    "FACTORS",
    "NATURAL",
    "PHOTOGRAPHS",
    "PICTOGRAM_COLORS",
    "PICTOGRAM_RENDITIONS",
    "PICTOGRAM_SCENES",
    "SPRITE_COLORS",
    "SPRITE_NOUNS",
    "SPRITE_SCENES",
    "ArraySource",
    "Captioned",
    "Density2D",
    "Images",
    "LazySource",
    "Pictograms",
    "Shapes",
    "Similarity",
    "Source",
    "Sprites",
    "StreamSource",
    "align_masks",
    "as_arrays",
    "as_source",
    "binarize",
    "checkerboard",
    "constants",
    "dequantize",
    "digits",
    "faces",
    "from_levels",
    "gaussian_mixture",
    "inverted",
    "letters",
    "load_captioned_folder",
    "load_cifar",
    "load_idx",
    "load_image_folder",
    "load_npz",
    "load_svhn",
    "mnist5k",
    "noise",
    "patches",
    "pictogram_nouns",
    "pictograms",
    "pinwheel",
    "read_idx",
    "rings",
    "scene_templates",
    "shapes",
    "split",
    "sprite_template",
    "sprites",
    "to_levels",
    "two_moons",
]
