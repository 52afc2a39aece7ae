"""The base of the study of subjects: that it is kept as it was learned; its scores take its draws.

Full length, and check H0 of the reproduction:  make reproduce NAME=hifi_tuner
"""

import numpy as np
import pytest

from probgen.backends import load
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
