"""Readers of standard files, against files written here byte by byte as their formats say.

Each format has a round trip, its damage modes (missing, empty, truncated anywhere, foreign), and
the promise that nothing in a file is executed. A damaged file gives a DataError that names it.
"""

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from probgen.data import (
    load_cifar,
    load_idx,
    load_image_folder,
    load_npz,
    load_svhn,
    read_idx,
)
from probgen.errors import DataError

RNG = np.random.default_rng(0)
CODES = {"u1": 8, "i1": 9, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(array: np.ndarray) -> bytes:
    code = CODES[array.dtype.str[1:]]
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def cifar_bytes(labels: np.ndarray, images: np.ndarray) -> bytes:
    """labels [n, 1 or 2], images [n, 32, 32, 3] uint8 -> records."""
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([labels.astype(np.uint8), planes], axis=1).tobytes()


@pytest.fixture
def pixels() -> np.ndarray:
    return RNG.integers(256, size=(6, 32, 32, 3), dtype=np.uint8)


class Bomb:
    """Unpickling this writes a file: the proof that something was executed."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


# IDX


@pytest.mark.parametrize("dtype", list(CODES))
@pytest.mark.parametrize("zipped", [False, True])
def test_idx_gives_back_what_was_written(tmp_path, dtype, zipped):
    array = RNG.integers(0, 100, size=(3, 4, 5)).astype(dtype)
    raw = idx_bytes(array)
    path = write(tmp_path / "a-idx3", gzip.compress(raw) if zipped else raw)
    got = read_idx(path)
    assert got.dtype == np.dtype(dtype) and got.dtype.isnative
    np.testing.assert_array_equal(got, array)


def test_idx_images_come_with_their_labels(tmp_path):
    images = RNG.integers(256, size=(5, 4, 3), dtype=np.uint8)
    labels = np.arange(5, dtype=np.uint8)
    made = load_idx(
        write(tmp_path / "train-images-idx3-ubyte.gz", gzip.compress(idx_bytes(images))),
        write(tmp_path / "train-labels-idx1-ubyte", idx_bytes(labels)),
    )
    np.testing.assert_array_equal(np.rint(made.images[..., 0] * 255), images)
    np.testing.assert_array_equal(made.labels, labels)
    assert made.images.dtype == np.float32 and made.name == "train-images-idx3-ubyte"


@pytest.mark.parametrize("zipped", [False, True])
@given(data=st.data())
def test_idx_cut_off_anywhere_is_refused(tmp_path_factory, zipped, data):
    whole = idx_bytes(np.arange(60, dtype=np.uint8).reshape(5, 4, 3))
    whole = gzip.compress(whole) if zipped else whole
    # The last eight bytes of a gzip file are its checksum and length, which reading stops before.
    cut = data.draw(st.integers(0, len(whole) - (9 if zipped else 1)))
    path = write(tmp_path_factory.mktemp("idx") / "cut", whole[:cut])
    with pytest.raises(DataError, match="cut"):
        read_idx(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (idx_bytes(np.zeros((2, 2, 2), np.uint8)) + b"x", "more than 8"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "not an IDX file"),
        (b"\0\0\x07\x01" + bytes(20), "not an IDX file"),
        (b"\0\0\x08\x00" + bytes(20), "dimensions"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, *[2**32 - 1] * 3) + bytes(99), "only 99"),
        (struct.pack(">BBBB1I", 0, 0, 8, 1, 0), "declares the shape"),
        (b"", "empty"),
    ],
)
def test_idx_damage_is_named(tmp_path, content, words):
    with pytest.raises(DataError, match=words) as caught:
        read_idx(write(tmp_path / "damaged", content))
    assert "damaged" in str(caught.value)


def test_idx_of_the_wrong_kind(tmp_path):
    images = write(tmp_path / "images", idx_bytes(np.zeros((5, 4, 3), np.uint8)))
    labels = write(tmp_path / "labels", idx_bytes(np.zeros(4, np.uint8)))
    with pytest.raises(DataError, match="labels="):
        load_idx(labels)
    with pytest.raises(DataError, match=r"expected integers \[5\]"):
        load_idx(images, labels)
    with pytest.raises(DataError, match="does not exist"):
        load_idx(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is a folder"):
        load_idx(tmp_path)


# npz


def test_npz_gives_back_what_was_written(tmp_path):
    x, y = RNG.normal(size=(4, 3)), np.arange(4)
    np.savez_compressed(tmp_path / "two.npz", x_train=x, y_train=y)
    np.testing.assert_array_equal(load_npz(tmp_path / "two.npz", "x_train"), x)
    np.testing.assert_array_equal(load_npz(str(tmp_path / "two.npz"), key="y_train"), y)
    np.savez(tmp_path / "one.npz", x)
    np.testing.assert_array_equal(load_npz(tmp_path / "one.npz"), x)


def test_npz_key_must_be_known(tmp_path):
    np.savez(tmp_path / "two.npz", a=np.zeros(2), b=np.zeros(2))
    with pytest.raises(DataError, match=r"'a', 'b'.*key="):
        load_npz(tmp_path / "two.npz")
    with pytest.raises(DataError, match="no array 'c'"):
        load_npz(tmp_path / "two.npz", "c")


@given(data=st.data())
def test_npz_cut_off_anywhere_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("npz") / "cut.npz"
    np.savez_compressed(path, x=np.arange(100.0))
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(DataError, match=r"cut\.npz"):
        load_npz(path)


@given(data=st.data())
def test_npz_with_a_changed_byte_is_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("npz") / "flip.npz"
    np.savez_compressed(path, x=np.arange(100.0))
    whole = bytearray(path.read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    try:
        load_npz(path)
    except DataError as error:
        assert "flip.npz" in str(error)


def test_the_log_says_what_was_read(tmp_path, caplog):
    """IDX has no checksum: a damaged byte gives other pictures, which the log then tells apart."""
    pixels = np.arange(3 * 2 * 2, dtype=np.uint8).reshape(3, 2, 2)
    head = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in pixels.shape)
    labels = bytes([0, 0, 8, 1]) + (3).to_bytes(4, "big") + bytes([0, 1, 1])
    write(tmp_path / "labels", labels)
    lines = []
    for body in (pixels.tobytes(), pixels.tobytes()[:-1] + b"\xff"):
        write(tmp_path / "images", head + body)
        with caplog.at_level("INFO", logger="probgen"):
            load_idx(tmp_path / "images", tmp_path / "labels")
        lines.append(caplog.messages[-1])
    assert "3 images of 2 x 2 x 1, values 0 to 0.0431" in lines[0]
    assert "2 labels from 0 to 1, 1 to 2 of each" in lines[0]
    assert "values 0 to 1," in lines[1]


def test_npz_never_runs_a_pickle(tmp_path):
    target = tmp_path / "executed"
    array = np.empty(1, dtype=object)
    array[0] = Bomb(target)
    np.savez(tmp_path / "objects.npz", x=array)
    write(tmp_path / "raw.npz", pickle.dumps(Bomb(target)))
    np.save(tmp_path / "single.npy", np.zeros(3))
    for name, words in [("objects.npz", "objects"), ("raw.npz", "zip"), ("single.npy", ".npy")]:
        with pytest.raises(DataError, match=words):
            load_npz(tmp_path / name)
    assert not target.exists()


# CIFAR


def test_cifar10_file_and_folder(tmp_path, pixels):
    labels = np.arange(6)[:, None]
    for k in range(1, 6):
        write(tmp_path / f"data_batch_{k}.bin", cifar_bytes(labels, pixels))
    write(tmp_path / "test_batch.bin", cifar_bytes(labels[::-1], pixels))
    one = load_cifar(tmp_path / "test_batch.bin")
    np.testing.assert_array_equal(np.rint(one.images * 255), pixels)
    np.testing.assert_array_equal(one.labels, np.arange(6)[::-1])
    train = load_cifar(tmp_path)
    assert len(train) == 30 and train.name == "cifar10"
    np.testing.assert_array_equal(load_cifar(tmp_path, split="test").labels, one.labels)
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_3\.bin"):
        load_cifar(tmp_path)


def test_cifar100_has_fine_and_coarse_labels(tmp_path, pixels):
    labels = np.stack([np.arange(6), np.arange(90, 96)], axis=1)
    write(tmp_path / "train.bin", cifar_bytes(labels, pixels))
    for path in (tmp_path, tmp_path / "train.bin"):
        np.testing.assert_array_equal(load_cifar(path).labels, labels[:, 1])
        np.testing.assert_array_equal(load_cifar(path, coarse=True).labels, labels[:, 0])
    np.testing.assert_array_equal(np.rint(load_cifar(tmp_path).images * 255), pixels)


def test_cifar_kind_is_told_by_length_when_the_name_says_nothing(tmp_path, pixels):
    ten = write(tmp_path / "a", cifar_bytes(np.zeros((6, 1)), pixels))
    hundred = write(tmp_path / "b", cifar_bytes(np.zeros((6, 2)), pixels))
    assert load_cifar(ten).name == "cifar10" and load_cifar(hundred).name == "cifar100"


def test_cifar_damage_is_named(tmp_path, pixels):
    good = cifar_bytes(np.zeros((6, 1)), pixels)
    cases = [
        ("cut.bin", good[:-1], {}, "multiple of 3073"),
        ("test_batch.bin", good[:-1], {}, "multiple of 3073"),
        ("label.bin", bytes([11]) + good[1:], {}, "label 11"),
        ("hundred.bin", good, {"num_classes": 100}, "multiple of 3074"),
        ("coarse.bin", good, {"coarse": True}, "coarse"),
        ("data_batch_1.bin", pickle.dumps({"data": [1, 2, 3]}, protocol=4), {}, "pickle"),
        ("empty.bin", b"", {}, "empty"),
    ]
    for name, content, options, words in cases:
        with pytest.raises(DataError, match=words) as caught:
            load_cifar(write(tmp_path / name, content), **options)
        assert name in str(caught.value)


def test_cifar_pickles_are_never_opened(tmp_path):
    target = tmp_path / "executed"
    write(tmp_path / "data_batch_1", pickle.dumps(Bomb(target)))
    with pytest.raises(DataError, match="pickle"):
        load_cifar(tmp_path)
    with pytest.raises(DataError, match="binary version"):
        load_cifar(tmp_path / "data_batch_1")
    with pytest.raises(DataError, match="split='valid'"):
        load_cifar(tmp_path, split="valid")
    assert not target.exists()


# SVHN


def test_svhn_gives_back_what_was_written(tmp_path, pixels):
    y = np.array([1, 2, 10, 4, 9, 10], dtype=np.uint8)[:, None]
    scipy.io.savemat(tmp_path / "a.mat", {"X": np.moveaxis(pixels, 0, 3), "y": y})
    made = load_svhn(tmp_path / "a.mat")
    np.testing.assert_array_equal(np.rint(made.images * 255), pixels)
    np.testing.assert_array_equal(made.labels, [1, 2, 0, 4, 9, 0])


def test_svhn_damage_is_named(tmp_path, pixels):
    x, y = np.moveaxis(pixels, 0, 3), np.ones((6, 1), np.uint8)
    cases = [
        ({"X": x}, "y nothing"),
        ({"X": x.astype(float), "y": y}, "float64"),
        ({"X": x, "y": y[:5]}, "5 labels"),
        ({"X": x, "y": y * 11}, "11"),
        ({"X": x[..., 0], "y": y}, "expected X uint8"),
    ]
    for content, words in cases:
        scipy.io.savemat(tmp_path / "a.mat", content)
        with pytest.raises(DataError, match=words):
            load_svhn(tmp_path / "a.mat")
    write(tmp_path / "b.mat", b"\x89HDF\r\n\x1a\n" + bytes(600))
    write(tmp_path / "c.mat", b"nonsense " * 60)
    for name in ("b.mat", "c.mat", "missing.mat"):
        with pytest.raises(DataError, match=name):
            load_svhn(tmp_path / name)


@given(data=st.data())
def test_svhn_cut_off_anywhere_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("svhn") / "cut.mat"
    x = np.arange(4 * 4 * 3 * 2, dtype=np.uint8).reshape(4, 4, 3, 2)
    scipy.io.savemat(path, {"X": x, "y": np.ones((2, 1), np.uint8)}, do_compression=True)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(DataError, match=r"cut\.mat"):
        load_svhn(path)


# Image folders


@pytest.fixture
def folder(tmp_path, pixels) -> Path:
    for k, image in enumerate(pixels):
        place = tmp_path / ("cat" if k % 2 else "ant")
        place.mkdir(exist_ok=True)
        Image.fromarray(image).save(place / f"{k}.png")
    (tmp_path / "readme.txt").write_text("passed over")
    return tmp_path


def test_folder_gives_back_what_was_written(folder, pixels, caplog):
    with caplog.at_level("INFO", logger="probgen"):
        made = load_image_folder(folder)
    assert f"{len(made)} images" in caplog.messages[-1]
    np.testing.assert_array_equal(np.rint(made.images * 255), pixels[[0, 2, 4, 1, 3, 5]])
    np.testing.assert_array_equal(made.labels, [0, 0, 0, 1, 1, 1])
    assert made.classes == ("ant", "cat")
    assert load_image_folder(folder, labels_from_folders=False).labels is None


def test_folder_resizes_a_centred_window(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200  # the middle third is what a square window sees
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(np.full((10, 10, 3), 200, np.uint8)).save(tmp_path / "small.jpg")
    made = load_image_folder(tmp_path, 8, labels_from_folders=False)
    assert made.images.shape == (2, 8, 8, 3)
    assert abs(made.images * 255 - 200).max() < 20  # black, if it saw the rest
    assert load_image_folder(tmp_path, (4, 6), False).images.shape == (2, 4, 6, 3)


def test_folder_of_grey_images_has_one_channel(tmp_path):
    grey = RNG.integers(256, size=(5, 5), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "b.png")
    made = load_image_folder(tmp_path, labels_from_folders=False)
    assert made.images.shape == (2, 5, 5, 1)
    np.testing.assert_array_equal(np.rint(made.images[..., 0] * 255), [grey, grey])
    assert load_image_folder(tmp_path, None, False, channels=3).images.shape == (2, 5, 5, 3)
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(tmp_path / "c.png")
    mixed = load_image_folder(tmp_path, labels_from_folders=False).images
    assert mixed.shape == (3, 5, 5, 3) and (mixed[0, ..., 0] == mixed[0, ..., 2]).all()


def test_folder_applies_the_orientation_that_a_camera_stored(tmp_path):
    image = Image.fromarray(RNG.integers(256, size=(4, 6, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(tmp_path / "a.png", exif=exif)
    assert load_image_folder(tmp_path, labels_from_folders=False).images.shape == (1, 6, 4, 3)


def test_folder_damage_is_named(folder, tmp_path_factory):
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "cat" / "odd.png")
    with pytest.raises(DataError, match=r"odd\.png is \[9, 9\].*size="):
        load_image_folder(folder)
    (folder / "cat" / "odd.png").unlink()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(folder / "stray.png")
    with pytest.raises(DataError, match=r"stray\.png lies in no class folder"):
        load_image_folder(folder)
    (folder / "stray.png").unlink()
    whole = (folder / "ant" / "0.png").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"GIF89a" + whole, b"\x89PNG\r\n\x1a\n"):
        write(folder / "ant" / "0.png", content)
        with pytest.raises(DataError, match=r"0\.png cannot be read"):
            load_image_folder(folder)
    with pytest.raises(DataError, match="none of them"):
        load_image_folder(tmp_path_factory.mktemp("bare"))
    with pytest.raises(DataError, match="expected a folder"):
        load_image_folder(folder / "readme.txt")
    with pytest.raises(DataError, match="channels=2"):
        load_image_folder(folder, channels=2)
