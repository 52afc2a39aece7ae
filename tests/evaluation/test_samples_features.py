"""`features=` means one thing in every measure; what is printed says what was compared."""

import numpy as np
import pytest

from probgen import nets
from probgen.data import digits, split
from probgen.errors import DataError, UnknownName
from probgen.evaluation.samples import (
    as_features,
    c2st,
    count_classes,
    count_modes,
    digit_classifier,
    frechet_distance,
    kid,
    memorisation,
    mmd_test,
    pca_features,
    prdc,
    sample_quality,
    sliced_wasserstein,
)
from probgen.evaluation.samples.modes import expected_hits
from probgen.verbs.generate import Samples

RNG = np.random.default_rng(0)
X, Y, T = (RNG.standard_normal((120, 2, 3)) * [3, 1, 0.1] + s for s in (0.0, 0.3, 0.0))
JUDGES = {
    "frechet": frechet_distance, "kid": kid, "prdc": prdc, "mmd": mmd_test, "c2st": c2st,
    "sliced": sliced_wasserstein,
    "memorisation": lambda x, y, **k: memorisation(y, x, T, num_resamples=100, **k),
}  # fmt: skip


def numbers(found):
    each = found if isinstance(found, tuple) else [found]
    return [number for e in each for number in (e.value, e.standard_error)]


def second(x):
    """A function of the data that forgets most of them."""
    return x.reshape(len(x), -1)[:, :2] ** 2


@pytest.mark.parametrize("judge", JUDGES.values(), ids=JUDGES)
def test_features_are_applied_to_real_and_fake_alike(judge):
    kinds = [
        (second, second, "second"),
        (as_features(second, name="mine"), second, "mine"),
        (pca_features(T, 3), pca_features(T, 3), "pca3"),
        ("pca3", pca_features(X, 3), "pca3"),
        ("raw", lambda x: x, "raw"),
        (None, lambda x: x, "raw"),
    ]
    for features, function, name in kinds:
        got = judge(X, Y, features=features)
        if judge is JUDGES["memorisation"]:
            wanted = memorisation(function(Y), function(X), function(T), num_resamples=100)
        else:
            wanted = judge(function(X), function(Y))
        assert numbers(got) == pytest.approx(numbers(wanted)), name
        assert f"[{name}]" in str(got)
    assert numbers(judge(X, Y, features=second)) != pytest.approx(numbers(judge(X, Y)))


def test_a_network_is_a_feature_function_of_every_measure(b):
    net = nets.MLP(hidden=(), out=2, in_ndim=2)
    params = net.init(np.random.default_rng(1), (2, 3))
    features = as_features(net, params=params, backend=b, name="net")
    weight, bias = params["out"]["weight"], params["out"]["bias"]
    a, c = (v.reshape(len(v), -1) @ weight + bias for v in (X, Y))
    assert numbers(kid(X, Y, features=features)) == pytest.approx(numbers(kid(a, c)), rel=1e-3)
    module = pytest.importorskip("torch").nn.Flatten().eval()
    assert numbers(kid(X, Y, features=module)) == pytest.approx(numbers(kid(X, Y)), rel=1e-3)


def test_digit_net_by_name_is_the_classifier_of_that_size():
    real, fake = split(digits(), (100, 100), seed=0)
    got = kid(real, fake, features="digit-net")
    assert got == kid(real, fake, features=digit_classifier("digits"))
    assert got.name == "KID[digit-net]"
    assert sample_quality(real, fake, features="pca5", seed=0, num_permutations=19, num_dealings=1)[
        "KID"
    ] == kid(real, fake, features=pca_features(real, 5), seed=0)


@pytest.mark.parametrize("judge", JUDGES.values(), ids=JUDGES)
def test_a_name_that_is_no_feature_function_is_refused(judge):
    with pytest.raises(UnknownName, match="got 'inception'.*'digit-net'.*name='inception'"):
        judge(X, Y, features="inception")


def test_the_components_of_no_set_are_refused():
    with pytest.raises(UnknownName, match=r"pca_features\(train, 20\)"):
        as_features("pca20")


@pytest.mark.parametrize("judge", JUDGES.values(), ids=JUDGES)
def test_samples_by_name_are_refused_with_the_word_to_say(judge):
    made = Samples({"x": Y, "z": Y[:, 0]})
    with pytest.raises(DataError, match=r'Samples with .*say samples\["x"\]'):
        judge(X, made)
    with pytest.raises(DataError, match=r'dict with .*say samples\["y"\]'):
        judge({"y": X}, Y)


def test_samples_by_name_are_refused_by_the_record_and_the_counts():
    made = Samples({"x": Y})
    for call in (
        lambda: sample_quality(X, made, seed=0),
        lambda: count_classes(made, lambda x: x),
        lambda: count_modes(made, Y[:2], sd=1.0),
        lambda: as_features(second)(made),
    ):
        with pytest.raises(DataError, match=r'say samples\["x"\]'):
            call()


# ---- what is printed -----------------------------------------------------------------------------


def test_results_print_as_one_line_a_number():
    for found, names in (
        (frechet_distance(X, Y), ["FD[raw] = ", "FD_inf[raw] = "]),
        (prdc(X, Y), [f"{n}[raw] = " for n in ("precision", "recall", "density", "coverage")]),
        (mmd_test(X, Y), ["MMD2[raw] = "]),
    ):
        lines = [line for line in str(found).split("\n") if not line.startswith("  note:")]
        assert repr(found) == str(found)
        assert [line[: len(name)] for line, name in zip(lines, names, strict=True)] == names
        assert all(" ± " in line and "95 % [" in line and "n 120/120" in line for line in lines)
    test = mmd_test(X, Y)
    assert str(test).endswith(f"p = {test.details['p_value']:.2g}")
    assert "; p = " in str(c2st(X, Y)) and "; p = " not in str(kid(X, Y))


@pytest.mark.parametrize("name", sorted(set(JUDGES) - {"memorisation"}))
def test_a_set_compared_with_itself_is_said(name):
    """The error is one of independent draws: MMD^2 of a set and itself is below 0 by many."""
    shuffled = np.random.default_rng(1).permutation(X)
    assert "both sets are the same data" in str(JUDGES[name](X, shuffled))
    assert "same data" not in str(JUDGES[name](X, Y))
    moved = shuffled.copy()
    moved[3, 0, 0] += 1e-9
    assert "same data" not in str(JUDGES[name](X, moved))


def test_the_record_says_once_that_both_sets_are_the_same():
    found = sample_quality(X, X.copy(), seed=0, num_permutations=19, num_dealings=1)
    (note,) = [n for n in found.notes if "same data" in n]
    assert note.startswith("FD[raw], FD_inf[raw], KID[raw], precision[raw]")


# ---- how many modes equal laws hit ---------------------------------------------------------------


@pytest.mark.parametrize("least", [1, 20])
def test_expected_hits_are_those_of_the_multinomial(least):
    law = np.array([0.12, 0.10, 0.08, 0.05, 0.01, 0.0])
    rng = np.random.default_rng(0)
    hits = (rng.multinomial(270, [*law, 1 - law.sum()], size=20_000)[:, :-1] >= least).sum(1)
    error = hits.std() / len(hits) ** 0.5
    assert abs(expected_hits(law, 270, least) - hits.mean()) < 4 * error
    assert error < 0.01


def test_modes_hit_are_held_against_equal_laws_of_that_size():
    """Ten modes, 270 samples, 98.9 % of them good: 9.3 of them get 20, not 10."""
    rng, centres = np.random.default_rng(0), 10.0 * np.eye(10)[:, :2] + np.arange(10)[:, None] * 50
    runs = []
    for _ in range(400):
        at = rng.integers(10, size=270)
        runs.append(count_modes(centres[at] + rng.standard_normal((270, 2)), centres, sd=1.0))
    strict = np.array([run.hit_strictly.value for run in runs])
    expected = runs[0].hit_strictly.expected
    assert abs(strict.mean() - expected) < 4 * strict.std() / 20
    assert 9.0 < expected < 9.5
    assert runs[0].hit.expected == pytest.approx(10, abs=1e-6)


def test_classes_hit_are_held_against_as_many_real_ones():
    """The classifier is sure of six tenths of the real data: of 270 about 2 classes get 20."""
    rng = np.random.default_rng(0)

    def made(n, sure):
        p = np.full((n, 10), 0.02 / 9)
        p[np.arange(n), rng.integers(10, size=n)] = 0.98
        return np.where(rng.random((n, 1)) < sure, p, 0.1)

    real, fake = made(2000, 0.6), made(270, 1.0)
    found = count_classes(fake, lambda x: x, real=real)
    assert found.hit_strictly.expected == pytest.approx(
        expected_hits(np.full(10, 0.06), 270, 20), abs=0.6
    )
    alone = count_classes(fake, lambda x: x)
    assert alone.hit_strictly.expected == pytest.approx(expected_hits(np.full(10, 0.1), 270, 20))
    bad = np.full((30, 10), 0.1)  # no good sample, and nothing to say how many to expect
    assert count_classes(bad, lambda x: x).hit.expected is None
    assert count_classes(bad, lambda x: x, real=real).hit.expected == pytest.approx(8.4, abs=0.3)


def test_real_digits_are_within_their_errors_of_equal_laws():
    """Held-out digits against their own classifier, at the n of a small test set."""
    net = digit_classifier("digits")
    _, test = split(digits(), 0.8, seed=0, stratify=True)
    found = count_classes(test.images[:270], net, real=test.images)
    for each in (found.hit, found.hit_strictly):
        assert abs(each.value - each.expected) < 3 * max(each.standard_error, 0.1)
    assert 7 < found.hit_strictly.expected < 9.5
