"""Reference guidance on an exact denoiser: what is led, when and where."""

import numpy as np
import pytest
from null_cases import data, two_modes

import probgen as pg
from probgen.errors import DeclarationError, ShapeError
from probgen.inference import DDIM, PivotalInversion, ReferenceGuided

STEPS, START, STOP = 12, 9, 4
DDIM_4 = DDIM(STEPS, guidance_scale=3.0)
MASK = np.array([[1], [0]])  # the first row of numbers, all three
Y = np.array([2, 0])


def draw(b, method):
    how = {"inputs": {"condition": Y}, "seed": 0, "backend": b, "return_chain": True}
    found = pg.generate(two_modes(b), 2, method=method, **how)
    return found["x"], found.chain["x"]


def led(way, mask=MASK, inner_steps=3, start=START, stop=STOP):
    return ReferenceGuided(DDIM_4, way, mask, start, stop, inner_steps)


@pytest.fixture(scope="module")
def ways(b):
    x, y = data(2)
    return two_modes(b).encode(x, {"condition": y}, method=PivotalInversion(DDIM_4))["pivots"]


@pytest.fixture(scope="module")
def plain(b):
    return draw(b, DDIM_4)


@pytest.fixture(scope="module")
def found(b, ways):
    return {j: draw(b, led(ways[0], inner_steps=j)) for j in (1, 10)}


def test_without_inner_steps_or_window_it_is_the_sampler_to_the_bit(b, ways, plain):
    for none in (led(ways[0], inner_steps=0), led(ways[0], start=3, stop=4)):
        np.testing.assert_array_equal(draw(b, none)[1], plain[1])


def test_the_masked_part_comes_the_nearer_the_more_inner_steps(ways, plain, found):
    off = [((x - ways[0, 0]) ** 2)[:, 0].mean() for x, _ in (plain, *found.values())]
    assert off[2] < off[1] < off[0] and off[2] < 0.25 * off[0], off


def test_what_lies_before_the_window_or_outside_the_mask_is_the_samplers(plain, found):
    way, led_way = plain[1], found[10][1]  # [steps, samples, 2, 3]
    before = STEPS - START
    np.testing.assert_allclose(led_way[:before], way[:before], atol=1e-6)
    # Numbers of this denoiser do not see each other, so that what is not led stays as it was.
    np.testing.assert_allclose(led_way[:, :, 1], way[:, :, 1], atol=1e-5)
    assert (np.abs(led_way - way)[before:, :, 0].max(axis=(1, 2)) > 1e-3).all()


def test_a_led_step_begins_and_ends_at_the_pivots(b, ways, plain):
    at, everywhere = STEPS - START, np.ones((1, 1))
    how = {"start": START, "stop": START}
    # Led by the first draw's own way, and hardly: the leap is the sampler's own, from that x_t.
    own = np.concatenate([plain[1][::-1, 0], plain[1][:1, 0]])
    hardly = ReferenceGuided(DDIM_4, own, everywhere, **how, inner_steps=1, learning_rate=1e-9)
    np.testing.assert_allclose(draw(b, hardly)[1][at, 0], own[START - 1], atol=1e-5)
    # With as many inner steps as it takes it ends where the reference does.
    much = ReferenceGuided(DDIM_4, ways[0], MASK, **how, inner_steps=100, learning_rate=0.02)
    np.testing.assert_allclose(draw(b, much)[1][at, :, 0], [ways[0, START - 1, 0]] * 2, atol=5e-3)
    assert np.abs(np.diff(ways[0, START - 2 : START + 1, 0], axis=0)).max(1).min() > 0.02


def test_a_reference_and_a_mask_for_each_sample(b, ways):
    masks = np.array([[[1], [0]], [[0], [1]]])
    both, _ = draw(b, led(ways, masks, 1))
    for i in range(2):
        alone, _ = draw(b, led(ways[i], masks[i], 1))
        np.testing.assert_allclose(both[i], alone[i], atol=1e-5)


def test_what_does_not_fit_is_refused_in_words(b, ways):
    for wrong, word in [
        (led(ways[0, :5]), r"reference of shape \[5, 2, 3\], expected \[13, 2, 3\]"),
        (led(ways[[0, 0, 0]]), r"\[3, 13, 2, 3\]"),
        (led(ways[0], np.ones((3, 3))), r"mask of shape \[3, 3\], expected \[2, 3\]"),
    ]:
        with pytest.raises(ShapeError, match=word):
            draw(b, wrong)
    for fields, word in [
        ({"mask": 0 * MASK}, "not empty"),
        ({"mask": 0.5 * MASK}, "0 and 1"),
        ({"start": STEPS + 1}, "at most 12"),
    ]:
        with pytest.raises(DeclarationError, match=word):
            led(ways[0], **fields)
    with pytest.raises(DeclarationError, match="other than 1"):
        ReferenceGuided(DDIM(STEPS), ways[0], MASK, START, STOP)
