"""Makes probgen/data/pictograms.npz: one noun a row, drawn three times, 32 x 32 pixels with alpha.

    apt-get download fonts-noto-color-emoji && dpkg-deb -x fonts-noto-color-emoji_*.deb noto
    npm pack emoji-datasource-twitter@16.0.0 @lobehub/fluent-emoji-3d@1.1.0
    python tools/build_pictograms.py noto/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf \
        emoji-datasource-twitter-16.0.0.tgz lobehub-fluent-emoji-3d-1.1.0.tgz

All three draw the same Unicode characters: the same noun, three individuals. Licences and authors:
probgen/data/pictograms.NOTICE.txt. Needs fonttools and Pillow with WebP.
"""

from __future__ import annotations

import io
import sys
import tarfile
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont
from PIL import Image

TARGET = Path(__file__).resolve().parent.parent / "probgen" / "data" / "pictograms.npz"
SIZE = 32

# Nouns that are the character's own name in lower case, and those that are shorter than it.
PLAIN = """\
dog cat octopus fish penguin snail elephant horse turtle butterfly crab duck owl parrot flamingo
pig sheep mouse kangaroo hedgehog dolphin rooster strawberry banana cherries pineapple watermelon
pear lemon carrot broccoli tomato mushroom hamburger doughnut cupcake avocado bread teapot
guitar rocket umbrella crown cactus bicycle automobile bus tractor helicopter sailboat anchor
balloon key bell candle microscope telescope trumpet violin chair trophy hammer broom toolbox
lobster scorpion accordion canoe ladder magnet bucket
"""
SHORTER = {
    "rabbit": "RABBIT", "bee": "HONEYBEE", "ladybird": "LADY BEETLE", "whale": "SPOUTING WHALE",
    "camel": "DROMEDARY CAMEL", "frog": "FROG FACE", "dinosaur": "SAUROPOD", "apple": "RED APPLE",
    "aubergine": "AUBERGINE", "hat": "TOP HAT", "clock": "ALARM CLOCK", "gift": "WRAPPED PRESENT",
    "teddy": "TEDDY BEAR", "bulb": "ELECTRIC LIGHT BULB", "camera": "CAMERA", "ship": "SHIP",
    "backpack": "SCHOOL SATCHEL", "cheese": "CHEESE WEDGE", "boot": "WOMANS BOOTS",
    "drum": "DRUM WITH DRUMSTICKS", "sofa": "COUCH AND LAMP",
    "robot": "ROBOT FACE", "tulip": "TULIP", "sunflower": "SUNFLOWER",
}  # fmt: skip


def of_font(path: Path) -> Callable[[int], bytes | None]:
    """PNG of a code point in a colour font with bitmaps (tables CBDT, cmap)."""
    font = TTFont(path)
    names, strike = font.getBestCmap(), font["CBDT"].strikeData[0]
    return lambda code: strike[names[code]].imageData if names.get(code) in strike else None


def of_archive(path: Path, folder: str, suffix: str) -> Callable[[int], bytes | None]:
    """The file of a code point in a package, whose name is its hexadecimal number."""
    archive = tarfile.open(path)  # noqa: SIM115, read until the process ends
    members = {member.name: member for member in archive.getmembers()}

    def read(code: int) -> bytes | None:
        for name in (f"{code:04x}", f"{code:04x}-fe0f"):
            member = members.get(f"package/{folder}/{name}{suffix}")
            if member is not None:
                return archive.extractfile(member).read()  # type: ignore[union-attr]
        return None

    return read


def squared(data: bytes) -> np.ndarray:
    """[32, 32, 4] uint8, the picture in the middle of a square; nothing where it is transparent."""
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    side = max(picture.size)
    square = Image.new("RGBA", (side, side))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    pixels = np.array(square.resize((SIZE, SIZE), Image.Resampling.LANCZOS))
    pixels[pixels[..., 3] < 8] = 0
    return pixels


def main(font: Path, twitter: Path, fluent: Path) -> None:
    """Writes the file and says what it holds."""
    sources = (
        of_font(font),
        of_archive(twitter, "img/twitter/64", ".png"),
        of_archive(fluent, "assets", ".webp"),
    )
    characters = {noun: noun.upper() for noun in PLAIN.split()} | SHORTER
    nouns, pictures = [], []
    for noun in sorted(characters):
        code = ord(unicodedata.lookup(characters[noun]))
        found = [source(code) for source in sources]
        if None in found:
            print(f"left out: {noun}, which not all three have")
            continue
        nouns.append(noun)
        pictures.append(np.stack([squared(data) for data in found if data is not None]))
    np.savez_compressed(TARGET, nouns=np.array(nouns), rgba=np.stack(pictures))
    print(f"{len(nouns)} nouns, {TARGET.stat().st_size / 1e6:.2f} MB: {' '.join(nouns)}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
