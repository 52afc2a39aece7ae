"""A folder of pictures, masks and captions: what belongs together stays together."""

import numpy as np
import pytest
from PIL import Image

from probgen import data
from probgen.errors import DataError, DeclarationError

RED, BLUE = (255, 0, 0), (0, 0, 255)


def picture(path, size=(12, 8), color=RED):
    Image.new("RGB", size, color).save(path)


def mask(path, size=(12, 8), box=(5, 2, 8, 6), white=255):
    made = Image.new("L", size)
    made.paste(white, box)
    path.parent.mkdir(exist_ok=True)
    made.save(path)


@pytest.fixture
def folder(tmp_path):
    """Two pictures: b blue with its mask beside it, a red with its own in masks/."""
    picture(tmp_path / "b.png", color=BLUE)
    picture(tmp_path / "a.jpg")
    mask(tmp_path / "b_mask.png", box=(0, 0, 4, 4))
    mask(tmp_path / "masks" / "a.png")
    (tmp_path / "a.txt").write_text("a photo\nof a  toy ", "utf-8")
    (tmp_path / "notes.md").write_text("not a picture")
    return tmp_path


def test_rows_are_in_the_order_of_names_with_their_own_masks_and_captions(folder):
    found = data.load_captioned_folder(folder)
    assert found["x"].shape == (2, 8, 12, 3) and found["x"].dtype == np.float32
    np.testing.assert_allclose(found["x"][:, 0, 0], [[1, -1, -1], [-1, -1, 1]], atol=0.02)
    assert found["captions"] == ("a photo of a toy", "")
    want = np.zeros((2, 8, 12, 1), np.float32)
    want[0, 2:6, 5:8], want[1, :4, :4] = 1, 1
    np.testing.assert_array_equal(found["mask"], want)


def test_a_mask_is_cut_and_resized_with_its_picture(tmp_path):
    """White under the mask and black elsewhere stays so, and the middle is what is kept."""
    made = Image.new("RGB", (40, 20))
    made.paste((255, 255, 255), (16, 4, 24, 12))
    made.save(tmp_path / "a.png")
    mask(tmp_path / "a_mask.png", (40, 20), (16, 4, 24, 12))
    found = data.load_captioned_folder(tmp_path, 10)
    np.testing.assert_array_equal(found["x"][..., :1] > 0, found["mask"] == 1)
    assert found["mask"][0, 2:6, 3:7].all() and found["mask"].sum() == 16
    assert data.load_captioned_folder(tmp_path, (20, 10))["x"].shape == (1, 20, 10, 3)


def test_masks_may_be_left_out(tmp_path):
    picture(tmp_path / "a.png")
    found = data.load_captioned_folder(tmp_path)
    assert found["mask"] is None and found["captions"] == ("",)


def test_what_does_not_fit_is_refused_by_name(folder):
    def refused(words, size=None):
        with pytest.raises((DataError, DeclarationError), match=words):
            data.load_captioned_folder(folder, size)

    refused("size", size=0)
    mask(folder / "b_mask.png", size=(8, 12))
    refused(r"b_mask.png is \(8, 12\) .* b.png is \(12, 8\)")
    mask(folder / "b_mask.png", white=0)
    refused(r"b_mask.png is empty \(black\)")
    mask(folder / "b_mask.png", box=(0, 0, 12, 8))
    refused(r"b_mask.png is full \(white\)")
    mask(folder / "b_mask.png", box=(0, 0, 1, 8))
    refused(r"b_mask.png is empty \(black\) everywhere once it is cut", size=8)
    mask(folder / "masks" / "b.png")
    refused("two masks of 'b'")
    (folder / "masks" / "b.png").unlink()
    (folder / "b_mask.png").unlink()
    refused("masks of 1 of 2 pictures, none of 'b'")
    mask(folder / "c_mask.png")
    refused("c_mask.png is the mask of no picture")
    (folder / "c_mask.png").unlink()
    mask(folder / "b_mask.png")
    picture(folder / "a.png", size=(12, 9))
    refused("two pictures named 'a'")
    (folder / "a.jpg").unlink()
    refused(r"b.png is \(12, 8\) .*a.png is \(12, 9\), expected one size; pass size=")
    refused(r"mask .*a.png is \(12, 8\)", size=8)
    (folder / "a.png").write_bytes(b"no picture")
    refused("a.png cannot be read")


def test_a_caption_that_is_no_text_and_a_folder_without_pictures_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds no pictures"):
        data.load_captioned_folder(tmp_path)
    with pytest.raises(DataError, match="expected a folder"):
        data.load_captioned_folder(tmp_path / "none")
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"a.txt is no UTF-8"):
        data.load_captioned_folder(tmp_path)
