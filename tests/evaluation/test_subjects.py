"""Scores of pictures of a subject against cosines by hand, and a table that claims no luck."""

import numpy as np
import pytest

from probgen import errors
from probgen.evaluation.subjects import (
    compare_methods,
    crops,
    diversity,
    leak,
    prompt_fidelity,
    subject_fidelity,
)


def flat(x):
    return np.asarray(x).reshape(len(x), -1)


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


class TestScores:
    def test_they_are_mean_cosines(self):
        rng = np.random.default_rng(0)
        a, b, t = rng.normal(size=(4, 3)), rng.normal(size=(5, 3)) + 1.0, rng.normal(size=(4, 3))
        want = [np.mean([cosine(x, y) for y in b]) for x in a]
        np.testing.assert_allclose(subject_fidelity(a, b, flat), want)
        m = b.mean(axis=0)
        want = [np.mean([cosine(x - m, y - m) for y in b]) for x in a]
        np.testing.assert_allclose(subject_fidelity(a, b, flat, center=b), want)
        want = [cosine(x, y) for x, y in zip(a, t, strict=True)]
        np.testing.assert_allclose(prompt_fidelity(a, t, flat, flat), want)
        want = [1 - cosine(a[0], a[2]), 1 - cosine(a[1], a[3])] * 2
        np.testing.assert_allclose(diversity(a, ["p", "q", "p", "q"], flat), want)
        np.testing.assert_array_equal(leak(a, 1, lambda x: np.array([1, 0, 1, 2])), [1, 0, 1, 0])

    def test_a_crop_shows_the_subject_and_nothing_else(self):
        picture, mask = np.full((1, 8, 8, 3), 0.5), np.zeros((1, 8, 8, 1))
        picture[0, 2:4, 3:7], mask[0, 2:4, 3:7] = (0.1, 0.2, 0.3), 1.0
        (found,) = crops(picture, mask, 4)
        np.testing.assert_allclose(
            found[1:3], np.broadcast_to((0.1, 0.2, 0.3), (2, 4, 3)), atol=1e-6
        )
        np.testing.assert_allclose(found[[0, 3]], 1.0, atol=1e-6)

    def test_prompts_and_labels_that_do_not_fit_the_pictures_are_refused(self):
        a = np.ones((3, 2))
        for score in (diversity, lambda *given: prompt_fidelity(*given, flat)):
            with pytest.raises(errors.ShapeError, match="got 2 prompts for 3 pictures"):
                score(a, ["p", "p"], flat)
        with pytest.raises(errors.ShapeError, match=r"labels of shape \[3, 2\] for 3 pictures"):
            leak(a, 1, lambda x: np.eye(3)[:, :2])
        with pytest.raises(errors.DataError, match="the scene 'grass' for labels of type int"):
            leak(a, "grass", lambda x: np.array([0, 1, 2]))

    def test_what_has_no_direction_is_refused(self):
        zero, some = np.zeros((2, 3)), np.ones((2, 3))
        with pytest.raises(errors.DataError, match="some that are 0"):
            subject_fidelity(zero, some, flat)
        with pytest.raises(errors.NonFiniteError, match="NaN or infinity"):
            subject_fidelity(some * np.nan, some, flat)
        with pytest.raises(errors.ShapeError, match="2 prompts for 3"):
            prompt_fidelity(np.ones((3, 2)), some, flat, flat)
        with pytest.raises(errors.DataError, match="one picture of the prompt"):
            diversity(some, ["p", "q"], flat)
        with pytest.raises(errors.ShapeError, match="one for each"):
            crops(np.ones((1, 4, 4, 3)), np.ones((1, 5, 4, 1)), 4)
        with pytest.raises(errors.DataError, match="mask 0, which is empty"):
            crops(np.ones((1, 4, 4, 3)), np.zeros((1, 4, 4, 1)), 4)


PROMPTS = [f"p{i}" for i in range(12) for _ in range(4)]


def drawn(rng, gain=0.0):
    """Scores that share a prompt's difficulty, four pictures a prompt."""
    hard = np.repeat(np.random.default_rng(99).normal(size=12), 4)
    return {"subject": hard + gain + 0.5 * rng.normal(size=48)}


class TestTable:
    def test_equal_methods_have_a_winner_no_more_often_than_alpha(self):
        rng, won = np.random.default_rng(0), 0
        for _ in range(300):
            table = compare_methods({m: drawn(rng) for m in "abc"}, PROMPTS)
            won += table.winners["subject"] is not None
        assert won / 300 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)

    def test_a_better_method_wins_though_prompts_differ_more_than_methods(self):
        rng = np.random.default_rng(1)
        table = compare_methods({"a": drawn(rng), "b": drawn(rng, 0.6)}, PROMPTS)
        pair = table.pair("subject", "b", "a")
        assert table.winners == {"subject": "b"} and pair.low < 0.6 < pair.high
        # Unpaired, the prompts' own spread would have hidden it.
        assert table.cells["b", "subject"].low < table.cells["a", "subject"].high
        assert "| b |" in table.text() and "*" in table.text()
        again = compare_methods(
            {"a": drawn(rng), "b": drawn(rng, 0.6)}, PROMPTS, smaller=["subject"]
        )
        assert again.winners == {"subject": "a"}

    def test_equal_differences_claim_no_certainty(self):
        table = compare_methods(
            {"a": {"leak": np.ones(5)}, "b": {"leak": np.zeros(5)}}, list("vwxyz"),
            smaller=("leak",),
        )  # fmt: skip
        assert table.pairs[0].p_holm == 2.0**-4 and table.winners == {"leak": None}

    def test_bad_input(self):
        one = {"s": np.ones(48)}
        with pytest.raises(errors.DataError, match="1 different prompts, expected at least 5"):
            compare_methods({"a": one}, ["p"] * 48)
        with pytest.raises(errors.ShapeError, match="one number a picture"):
            compare_methods({"a": {"s": np.ones(3)}}, PROMPTS)
        with pytest.raises(errors.UnknownName, match="as of the first method"):
            compare_methods({"a": one, "b": {"t": np.ones(48)}}, PROMPTS)
        with pytest.raises(errors.NonFiniteError, match="NaN or infinity in 's' of 'a'"):
            compare_methods({"a": {"s": np.full(48, np.nan)}}, PROMPTS)
