"""Likelihood regret, as published and on other data: the acceptance checks of its reproduction.

    make reproduce NAME=likelihood_regret                                        everything
    make reproduce NAME=likelihood_regret ARGS="-k 'likelihood_regret and jax'"  one of them
    FIGURES=docs/figures make reproduce NAME=likelihood_regret                   draws the figures

MNIST: 4500 digits to train, 8 grey levels, MLPs 200-200 with 16 latent units, 15 epochs, 80 images
a set; the official search (100 steps of Adam at 2e-4 on a copy of the encoder). Every AUROC is
printed with its 95 % interval. The laws of the score itself are in `test_regret_*.py`.
"""

import dataclasses
import functools
import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from fit_cases import quick

from probgen.errors import DataError, DeclarationError
from probgen.evaluation.detection import compare
from probgen.inference import ood
from studies.likelihood_regret.data_sets import (
    Pair,
    digits_pair,
    letters_pair,
    patches_pair,
    plain_letters,
    shifted,
    small_digits_pair,
)
from studies.likelihood_regret.study import (
    Run,
    Settings,
    declare,
    dots,
    figures,
    learn,
    run,
    spread,
)
from studies.likelihood_regret.suite import Suite, measures_of, run_suite

REGRETS = ("LR_E, K=1", "LR_Z, K=1")
SEEDS = (0, 1, 2)
FEW = ("letters", "shift 6px", "black", "held-out digits")


def of_sets(pair: Pair, names, n: int | None = None) -> Pair:
    """Some of the sets, and the first n of each."""
    outside = {name: pair.outside[name][:n] for name in names}
    return dataclasses.replace(pair, inside=pair.inside[:n], outside=outside)


@functools.cache
def digits() -> Pair:
    return digits_pair(4500, 200, 80, 8, seed=0)


@functools.cache
def main(backend_name: str) -> Run:
    found = run(digits(), Settings(), seed=0, backend=backend_name)
    print(f"\nMNIST on {backend_name}, seed 0\n{found.table}\nseconds {rounded(found.seconds)}")
    return found


@functools.cache
def more_seeds(backend_name: str) -> list[Run]:
    """The runs of all seeds on few sets; the first is the main one's."""
    first = main(backend_name)
    pair = of_sets(digits(), FEW)
    scored = {m: (i, {s: out[s] for s in FEW}) for m, (i, out) in first.scored.items()}
    table = compare(scored, num_distinct=pair.num_distinct, seed=0, show_progress=False)
    others = [run(pair, Settings(), seed=s, backend=backend_name) for s in SEEDS[1:]]
    return [dataclasses.replace(first, scored=scored, table=table), *others]


@functools.cache
def suite(backend_name: str) -> Suite:
    """Everything, by 50 images a set and K = 50, with an ensemble of five VAEs for WAIC."""
    names = [s for s in digits().outside if s != "letters anywhere"]
    pair, settings = of_sets(digits(), names, 50), dataclasses.replace(Settings(), num_particles=50)
    first = main(backend_name)
    model = declare(pair, settings)
    others = [
        learn(model, pair.train, settings, seed=s, backend=backend_name) for s in range(11, 15)
    ]
    found = run_suite(first, [first.fitted, *others], pair, settings, seed=0, backend=backend_name)
    print(f"\nThe suite on {backend_name}\n{found.table}\nseconds {rounded(found.seconds)}")
    print(f"batches of 10 that the typicality test rejects at 0.05: {found.rejected}")
    return found


@pytest.fixture(params=["jax" if importlib.util.find_spec("numpyro") else "torch"])
def one_backend(request):
    """For what need not be run twice: JAX, the faster one here, or torch where that is missing."""
    return request.param


def rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {k: round(v, 1) for k, v in seconds.items()}


def area(table, measure: str, data_set: str) -> float:
    return table.cell(measure, data_set).auroc.value


def chance_error(n: int) -> float:
    """Standard error of an AUROC whose truth is 1/2: sqrt((2 n + 1) / (12 n^2))."""
    return float(np.sqrt((2 * n + 1) / (12 * n**2)))


# ---- in minutes: the reproduction ----------------------------------------------------------------


@pytest.mark.slow
def test_likelihood_regret_repairs_the_likelihood_on_digits(backend_name):
    """Check 9: letters and black images are likelier than digits, and their regret is larger."""
    table = main(backend_name).table
    assert area(table, "NLL, K=200", "letters") < 0.5
    assert area(table, "NLL, K=200", "black") < 0.1
    for label in REGRETS:
        assert area(table, label, "letters") >= 0.75
        assert area(table, label, "black") >= 0.95
        assert area(table, label, "inverted") >= 0.99
        assert area(table, label, "noise") >= 0.99


@pytest.mark.slow
def test_likelihood_regret_finds_nothing_strange_in_more_digits(backend_name):
    """3 standard errors, for each of the scores: a leak of training data would show here."""
    table = main(backend_name).table
    for label in table.measures:
        gap = area(table, label, "held-out digits") - 0.5
        assert abs(gap) < 3 * chance_error(digits().num_each), label


@pytest.mark.slow
def test_likelihood_regret_weakens_with_more_particles(backend_name):
    """With few latent units the bound at K = 200 is nearly tight, whatever the guide."""
    scored = main(backend_name).scored
    for data_set in ("letters", "black"):
        one, many = (scored[f"LR_E, K={k}"][1][data_set].mean() for k in (1, 200))
        assert many < 0.5 * one


@pytest.mark.slow
def test_likelihood_regret_between_seeds(one_backend):
    """The claim of check 9 holds for every seed; the spread between seeds is printed apart."""
    runs = more_seeds(one_backend)
    print(f"\nMNIST on {one_backend}, {len(runs)} seeds of training\n{spread(runs)}")
    for each in runs:
        for label in REGRETS:
            assert area(each.table, label, "black") > area(each.table, "NLL, K=200", "black")
            assert area(each.table, label, "letters") >= 0.75


@pytest.mark.slow
def test_likelihood_regret_suite(backend_name):
    """Check 11 of the evaluation's sheet: every score runs, and the likelihood's shape is there."""
    table = suite(backend_name).table
    assert len(table.measures) == 26
    assert area(table, "NLL", "letters") < 0.5 and area(table, "NLL", "black") < 0.1
    for each in table.detections:
        assert each.auroc.lower <= each.auroc.value <= each.auroc.upper
        assert each.num_in == each.num_out == 50


@pytest.mark.slow
def test_likelihood_regret_in_reverse(one_backend):
    """Trained on letters, digits are the strange ones. No claim is made but that it is shown."""
    pair = letters_pair(4500, 200, 80, 8, seed=0)
    pair = of_sets(pair, ("digits", "inverted", "constant", "black", "held-out letters"))
    found = run(pair, Settings(), seed=0, backend=one_backend)
    print(f"\nLetters on {one_backend}\n{found.table}")
    assert area(found.table, "LR_Z, K=1", "inverted") >= 0.99
    assert abs(area(found.table, "LR_Z, K=1", "held-out letters") - 0.5) < 3 * chance_error(80)


@pytest.mark.slow
def test_likelihood_regret_on_natural_patches(one_backend):
    """Trained on what has more structure than the strange sets: where likelihoods fail most."""
    pair = patches_pair(4500, 200, 80, 8, seed=0)
    pair = of_sets(pair, ("faces", "digits", "noise", "constant", "held-out patches"))
    found = run(pair, Settings(), seed=0, backend=one_backend)
    print(f"\nNatural patches on {one_backend}\n{found.table}")
    assert area(found.table, "NLL, K=200", "constant") < 0.5
    assert abs(area(found.table, "LR_Z, K=1", "held-out patches") - 0.5) < 3 * chance_error(80)


@pytest.mark.slow
def test_likelihood_regret_on_small_digits(backend_name):
    """Check 8: 8x8 digits in 17 levels, MLPs 128-128, 8 latent units, 150 a set.

    The shift is along both axes, which is the larger; along one axis LR_1 has only been seen to do
    as well as the likelihood or better.
    """
    pair = small_digits_pair(1297, 200, 150, 17, seed=0)
    settings = dataclasses.replace(
        Settings(), hidden=(128, 128), latent_dim=8, num_epochs=60, num_particles=500
    )
    found = run(pair, settings, seed=0, backend=backend_name)
    print(f"\n8x8 digits on {backend_name}\n{found.table}\nseconds {rounded(found.seconds)}")
    for label in REGRETS:
        for data_set in ("inverted", "noise", "constant", "both axes 2px"):
            assert area(found.table, label, data_set) >= 0.98, (label, data_set)
        one_axis = area(found.table, label, "shift 2px")
        assert one_axis >= 0.9 and one_axis >= area(found.table, "NLL, K=500", "shift 2px") - 0.02
        gap = area(found.table, label, "held-out digits") - 0.5
        assert abs(gap) < 2 * chance_error(150)


@pytest.mark.slow
def test_likelihood_regret_figures(backend_name, tmp_path):
    """Histograms of likelihood and regret on letters and black images, and the AUROCs."""
    scored = main(backend_name).scored
    folder = Path(os.environ.get("FIGURES", tmp_path))
    chosen = figures(scored, ("letters", "black"), ("NLL, K=200", "LR_E, K=1"))
    names = {"NLL, K=200": "nll", "LR_E, K=1": "regret"}
    drawn = {names[k]: figure for k, figure in chosen.items()}
    chosen_sets = ("letters", "letters as MNIST", "constant", "shift 6px", "black")
    drawn["auroc"] = dots(scored, digits(), chosen_sets)
    for name, figure in drawn.items():
        path = folder / f"likelihood_regret_{name}.png"
        figure.savefig(path, dpi=90, facecolor="white")
        assert path.stat().st_size < 150_000


# ---- in seconds ----------------------------------------------------------------------------------


def runs_end_to_end(b):
    """Fits, scores, statistics and figures, on 12 small images a set; no number is worth a look."""
    pair = of_sets(small_digits_pair(300, 40, 12, 8, seed=1), ("letters", "black"))
    found = run(pair, Settings.quick(), seed=0, backend=b)
    assert found.table.data_sets == ("letters", "black")
    assert set(REGRETS) < set(found.table.measures) and len(found.table.measures) == 9
    # One log p(x) serves four scores: the complexity's is in bits.
    nll, bits = found.scored["NLL, K=4"], found.scored["-bits of PNG alone"]
    for s in ("letters", "black"):
        expected = nll[1][s] / np.log(2) + bits[1][s]
        np.testing.assert_allclose(found.scored["complexity (PNG)"][1][s], expected)
    suited = measures_of(found, [found.fitted, found.background], pair, Settings.quick())
    asked = {type(each).__name__ for each in suited.values()}
    known = {n for n in ood.__all__ if hasattr(getattr(ood, n), "larger_is_stranger")}
    assert asked - {"LikelihoodRegret"} == known - {"HierarchyRatio", "ErrorReduction"}
    assert len(suited) == 24  # those two, of other models, make the suite's 26
    assert spread([found, found]).sd.max() == 0
    assert set(figures(found.scored, ("letters",), ("NLL, K=4",))) == {"NLL, K=4"}
    assert dots(found.scored, pair, ("letters",)).axes
    assert found.table.cell("NLL, K=4", "black").distinct_out == 1


def test_the_study_runs_end_to_end():
    """On torch, which is the sooner to run so little."""
    pytest.importorskip("torch")
    runs_end_to_end(quick("torch"))


@pytest.mark.repeated("test_the_study_runs_end_to_end")
def test_the_study_runs_end_to_end_on_jax():
    pytest.importorskip("jax")
    runs_end_to_end(quick("jax"))


def test_letters_are_whole_and_near_the_middle():
    drawn = plain_letters(40, 28, 3, max_offset=3)
    assert drawn.shape == (40, 28, 28, 1) and drawn.min() == 0 and drawn.max() == 1
    border = np.ones((28, 28), bool)
    border[1:-1, 1:-1] = False
    assert drawn[:, border].max() == 0  # at most 24 pixels tall, at most 3 from the middle
    rows = np.arange(28)[:, None, None]
    ink = drawn.sum((1, 2, 3))
    middle = (drawn * rows).sum((1, 2, 3)) / ink
    assert np.abs(middle - 13.5).max() < 6 < np.abs(
        (plain_letters(40, 28, 3) * rows).sum((1, 2, 3)) / plain_letters(40, 28, 3).sum((1, 2, 3))
        - 13.5
    ).max()  # fmt: skip


def test_a_shift_moves_every_image_by_that_much():
    x = np.zeros((20, 9, 9, 1), np.float32)
    x[:, 4, 4] = 1
    moved = shifted(x, 3, 0)
    places = {tuple(np.argwhere(image)[0][:2]) for image in moved}
    assert places == {(1, 4), (7, 4), (4, 1), (4, 7)} and (moved.sum((1, 2, 3)) == 1).all()
    both = {tuple(np.argwhere(image)[0][:2]) for image in shifted(x, 3, 0, diagonally=True)}
    assert both == {(1, 1), (1, 7), (7, 1), (7, 7)}


def test_test_sets_have_no_training_data_and_one_size():
    pair = digits_pair(300, 40, 12, 8, seed=1)
    known = {image.tobytes() for image in pair.train}
    for held_out in (pair.reference, pair.inside, pair.outside["held-out digits"]):
        assert not known & {image.tobytes() for image in held_out}
    first, rest = pair.split(np.arange(len(pair.stacked)))
    assert first.tolist() == list(range(12)) and rest["letters"].tolist() == list(range(12, 24))
    with pytest.raises(DataError, match="expected one size"):
        dataclasses.replace(pair, inside=pair.inside[:5])
    with pytest.raises(DataError, match="at least 101"):
        patches_pair(10, 10, 101, 8, seed=0)
    with pytest.raises(
        DeclarationError, match="latent_dim=0, expected a whole number of at least 1"
    ):
        Settings(latent_dim=0)
