"""Masks laid on each other: known transforms are found again, and a collapse is not hidden."""

import dataclasses

import numpy as np
import pytest

from probgen.data import Similarity, align_masks
from probgen.errors import DataError, DeclarationError, ShapeError


def subject(rng, n=32):
    """A body with a head to one side, [n, n] booleans."""
    u, v = (np.mgrid[:n, :n] - (n - 1) / 2) / (n / 2)
    tall, wide = rng.uniform(0.18, 0.25), rng.uniform(0.35, 0.45)
    row, column = rng.uniform(-0.4, 0.4, 2) * [0.5, 0.7]
    head = ((u - row - 0.2) / 0.2) ** 2 + ((v - column) / 0.15) ** 2 < 1
    return ((u / tall) ** 2 + (v / wide) ** 2 < 1) | head


def random_similarity(rng):
    shift = tuple(rng.uniform(-0.25, 0.25, 2))
    return Similarity(rng.uniform(0.7, 1.4), rng.uniform(-np.pi / 6, np.pi / 6), shift)


def test_pictures_move_as_points_do():
    picture = np.random.default_rng(0).random((6, 8, 3)).astype("float32")
    down = Similarity(shift=(0.5, 0.0)).apply(picture)  # half of half the longer side: 2 pixels
    np.testing.assert_allclose(down[2:], picture[:-2], atol=1e-6)
    assert not down[:2].any()
    np.testing.assert_allclose(Similarity(shift=(0.5, 0)).apply(picture, None)[1], picture[0])
    square = picture[:, :6]
    turned = Similarity(angle=np.pi / 2).apply(square, None)
    np.testing.assert_allclose(turned, np.rot90(square), atol=1e-5)
    # The pixel of row 5 in column 0 is at (5/6, -5/6); a quarter turn takes it to (5/6, 5/6).
    corner = Similarity(angle=np.pi / 2).points(np.array([5 / 6, -5 / 6]))
    np.testing.assert_allclose(corner, [5 / 6, 5 / 6], atol=1e-12)
    np.testing.assert_allclose(turned[5, 5], square[5, 0], atol=1e-5)
    assert Similarity(1.3).apply(picture[..., 0] > 0.5).dtype == np.bool_


def test_known_transforms_are_found_again_in_nine_of_ten():
    """And better than where descent starts, by area and centroid."""
    rng, found, starts = np.random.default_rng(0), [], []
    for _ in range(20):
        reference, true = subject(rng), random_similarity(rng)
        target = true.apply(reference)
        found.append(align_masks(reference, target, num_steps=60).iou)
        starts.append(align_masks(reference, target, num_steps=0).iou)
    assert np.mean(np.array(found) >= 0.8) >= 0.9, found
    assert np.mean(np.array(starts) >= 0.8) <= 0.7
    off = [align_masks(reference, target), true]
    turns = [(s.scale, s.angle, *s.shift) for s in off]
    np.testing.assert_allclose(*turns, atol=0.1)


def test_a_one_sided_distance_keeps_a_collapse_and_a_symmetric_one_leaves_it():
    rng = np.random.default_rng(1)
    reference = subject(rng)
    target = random_similarity(rng).apply(reference)
    point = Similarity(0.02, 0.0, align_masks(reference, target, num_steps=0).shift)
    one_sided, symmetric = (
        align_masks(reference, target, distance=d, start=point) for d in ("one_sided", "symmetric")
    )
    assert one_sided.iou < 0.1 and one_sided.scale < 0.1
    assert symmetric.iou > 0.8


def test_the_overlap_is_that_of_the_moved_mask():
    rng = np.random.default_rng(2)
    reference, target = subject(rng), subject(rng)
    found = align_masks(reference[..., None].astype(float), target)
    moved = found.apply(reference)
    assert found.iou == (moved & target).sum() / (moved | target).sum()
    assert dataclasses.replace(found, iou=None).scale == found.scale


def test_what_is_no_mask_is_refused_in_words():
    mask = subject(np.random.default_rng(0))
    for wrong, error, word in [
        (mask[8:24], ShapeError, r"of \[16, 32\], expected one shape"),
        (0 * mask, DataError, "as target an empty one"),
        (0.5 * mask, DataError, "other numbers than 0 and 1"),
        (mask[0], ShapeError, r"shape \[32\], expected one mask"),
        ("mask", DeclarationError, "target='mask'"),
    ]:
        with pytest.raises(error, match=word):
            align_masks(mask, wrong)
    with pytest.raises(ShapeError, match="give pictures one by one"):
        Similarity().apply(np.zeros((2, 4, 4, 3)))
