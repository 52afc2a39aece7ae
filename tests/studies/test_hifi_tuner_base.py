"""The base of the study of subjects: that it is kept as it was learned; its scores take its draws.

Full length, and check H0 of the reproduction:  make reproduce NAME=hifi_tuner
"""

import numpy as np
import pytest

import probgen as pg
from probgen.backends import load
from studies.hifi_tuner import pictogram_base as pictograms
from studies.hifi_tuner.base import Settings, drawn, sanity, sprite_base


def test_the_base_is_read_from_its_folder_once_it_lies_there(tmp_path):
    pytest.importorskip("torch")
    live = load("torch", "cpu", compile="live")
    learned = sprite_base(tmp_path / "base", settings=Settings.quick(), backend=live)
    read = sprite_base(tmp_path / "base", settings=Settings(num_updates=10**6), backend=live)
    assert read.model == learned.model
    captions = ["a red blue green disk on sea", "a disk on night", ""]
    first, second = (drawn(base, captions, 3, backend=live) for base in (learned, read))
    np.testing.assert_array_equal(first, second)
    assert first.shape == (3, 8, 8, 3)
    found = sanity(read, 1, backend=live)
    assert set(found) == {"oracle", "oracle scene", "class only", "class only scene"}
    assert all(np.isfinite(value) for value in found.values())


def test_the_base_of_pictograms_never_sees_the_subject():
    """It is fitted to captions of the words it knows, the subject's among them, and never to it."""
    pytest.importorskip("torch")
    settings = pictograms.Settings.quick()
    made = settings.pictures(300, 0)
    said = set(" ".join(made["captions"]).split())
    assert {*pictograms.SUBJECT, "on", *pictograms.SCENES} <= said <= set(settings.text.vocabulary)
    nouns = pg.data.pictogram_nouns()
    is_octopus, is_flat = made["noun"] == nouns.index("octopus"), made["rendition"] == 1
    assert is_octopus.any() and is_flat.any() and not (is_octopus & is_flat).any()
    live = load("torch", "cpu", compile="live")
    base = pictograms.pictogram_base(settings=settings, backend=live)
    assert drawn(base, ["a flat octopus on snow"], backend=live).shape == (1, 8, 8, 3)


@pytest.mark.slow
def test_h0_naming_the_colours_draws_the_subject_and_scenes_are_those_asked_for(tmp_path):
    """Oracle error below 60 % of the class-only error (measured: 7 %), scenes right in 90 %."""
    found = sanity(sprite_base(tmp_path / "base", backend="torch"), backend="torch")
    assert found["oracle"] < 0.6 * found["class only"]
    assert min(found["oracle scene"], found["class only scene"]) > 0.9
