"""Features of every kind on both backends, the digit classifier, and the record that holds all."""

import json

import numpy as np
import pytest

from probgen import nets
from probgen.data import digits, mnist5k, split
from probgen.errors import AlgorithmError, DataError, DeclarationError, ShapeError, UnknownName
from probgen.evaluation.samples import (
    Features,
    as_features,
    digit_classifier,
    frechet_distance,
    memorisation,
    mode_figure,
    pca_features,
    quality_figure,
    sample_quality,
)
from probgen.evaluation.samples.digit_classifier import DigitClassifier

X = np.random.default_rng(0).standard_normal((30, 4, 4, 1)).astype(np.float32)


# ---- features ------------------------------------------------------------------------------------


def test_features_go_through_in_batches_of_bounded_size():
    sizes = []

    def fn(x):
        sizes.append(len(x))
        return x.reshape(len(x), -1) ** 2

    got = Features("squares", fn, batch_size=8)(X)
    assert sizes == [8, 8, 8, 6]
    np.testing.assert_array_equal(got, (X**2).reshape(30, -1))
    assert got.dtype == np.float64
    assert as_features(None)(X).shape == (30, 16) and as_features(None).name == "raw"
    assert as_features(fn).name == "fn" and as_features(fn, name="mine").name == "mine"


def test_a_declared_net_gives_the_same_features_on_both_backends(b):
    net = nets.MLP(hidden=(8,), out=3, activation="tanh", in_ndim=3)
    params = net.init(np.random.default_rng(1), (4, 4, 1))
    got = as_features(net, params=params, backend=b, batch_size=7)(X)
    first, last = params["layer0"], params["out"]
    h = np.tanh(X.reshape(30, -1) @ first["weight"] + first["bias"])
    np.testing.assert_allclose(got, h @ last["weight"] + last["bias"], rtol=1e-5, atol=1e-5)
    with pytest.raises(AlgorithmError, match="without parameters"):
        as_features(net, backend=b)
    heads = nets.MLP(hidden=(), out=2, heads=("a", "b"), in_ndim=3)
    tree = heads.init(np.random.default_rng(1), (4, 4, 1))
    with pytest.raises(AlgorithmError, match="heads"):
        as_features(heads, params=tree, backend=b)(X)


def test_a_torch_module_gives_its_own_features():
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    with pytest.raises(AlgorithmError, match="training mode"):
        as_features(module)
    with torch.no_grad():
        expected = module.eval()(torch.as_tensor(X)).numpy()
    got = as_features(module, batch_size=4, device="cpu")
    assert got.name == "Sequential"
    np.testing.assert_allclose(got(X), expected, rtol=1e-5, atol=1e-6)


def test_flax_and_equinox_modules_and_jax_functions_give_their_own_features():
    jax = pytest.importorskip("jax")
    linen, equinox = pytest.importorskip("flax.linen"), pytest.importorskip("equinox")
    flat = X.reshape(30, -1)
    module = linen.Dense(3)
    variables = module.init(jax.random.key(0), flat[:1])
    expected = module.apply(variables, flat)
    np.testing.assert_allclose(as_features(module, params=variables)(flat), expected, atol=1e-5)
    with pytest.raises(AlgorithmError, match="without parameters"):
        as_features(module)
    linear = equinox.nn.Linear(16, 3, key=jax.random.key(1))
    expected = jax.vmap(linear)(flat)
    np.testing.assert_allclose(as_features(linear, batch_size=9)(flat), expected, atol=1e-5)
    function = jax.jit(lambda x: jax.numpy.tanh(x))
    np.testing.assert_allclose(as_features(function, name="t")(flat), np.tanh(flat), atol=1e-6)


def test_pca_features_are_the_scores_of_the_reference():
    flat = np.random.default_rng(0).standard_normal((200, 6)) * [5, 3, 1, 0.1, 0.1, 0.1]
    scores = pca_features(flat, 3)(flat)
    assert pca_features(flat, 3).name == "pca3"
    top = np.linalg.eigvalsh(np.cov(flat.T))[::-1][:3]
    np.testing.assert_allclose(np.cov(scores.T), np.diag(top), atol=1e-10)
    np.testing.assert_allclose(scores.mean(0), 0, atol=1e-12)
    with pytest.raises(AlgorithmError, match="at most 6"):
        pca_features(flat, 7)
    with pytest.raises(ShapeError, match="expected 6"):
        pca_features(flat, 3)(flat[:, :5])


def test_bad_features_are_one_clear_error():
    with pytest.raises(ShapeError, match="one row a datum"):
        Features("sum", lambda x: x.sum())(X)
    with pytest.raises(DataError, match="NaN or infinity"):
        Features("log", lambda x: np.full((len(x), 2), np.nan))(X)
    with pytest.raises(DataError, match="got no data"):
        as_features(None)(X[:0])
    with pytest.raises(AlgorithmError, match="got int"):
        as_features(3)
    with pytest.raises(AlgorithmError, match="no network"):
        as_features(lambda x: x, params={})


# ---- the digit classifier ------------------------------------------------------------------------


MORE = pytest.mark.repeated("test_the_digit_classifier_is_accurate_on_digits_it_never_saw")
SEEDS = [0, pytest.param(1, marks=MORE), pytest.param(2, marks=MORE)]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_digit_classifier_is_accurate_on_digits_it_never_saw(seed):
    net = digit_classifier("digits", seed=seed)
    _, test = split(digits(), 0.8, seed=seed, stratify=True)
    assert net.num_test == len(test) == 359
    assert net.accuracy == np.mean(net.predict(test.images) == test.labels) >= 0.97
    assert net.accuracy_interval[0] < net.accuracy <= net.accuracy_interval[1]
    assert digit_classifier("digits", seed=seed) is net


@pytest.mark.repeated("test_the_digit_classifier_is_accurate_on_digits_it_never_saw")
def test_the_classifier_of_28x28_digits_has_the_accuracy_that_is_stated():
    """About .97: its 1,000 held-out digits leave a standard error of half a point."""
    net = digit_classifier("mnist5k")
    assert abs(net.accuracy - 0.97) < 0.02
    assert net.predict(mnist5k().images[:5]).shape == (5,)


def test_the_digit_classifier_is_the_same_for_the_same_seed():
    images = digits().images[:50]
    one, two = digit_classifier("digits", seed=0), DigitClassifier(digits(), 0)
    np.testing.assert_array_equal(one(images), two(images))
    assert not np.allclose(one(images), digit_classifier("digits", seed=1)(images))
    assert one(images).shape == (50, 64)
    # The features are those of the network whose probabilities it gives.
    last = one(images) @ one._net.coefs_[-1] + one._net.intercepts_[-1]
    p = np.exp(last - last.max(1, keepdims=True))
    np.testing.assert_allclose(
        p / p.sum(1, keepdims=True), one.probabilities(images[..., 0]), atol=1e-5
    )


def test_the_digit_classifier_refuses_other_pictures():
    net = digit_classifier("digits")
    with pytest.raises(ShapeError, match="expected \\[n, 8, 8, 1\\]"):
        net(np.zeros((2, 28, 28, 1)))
    with pytest.raises(DataError, match="about \\[0, 1\\]"):
        net(np.full((2, 8, 8, 1), 16.0))
    with pytest.raises(DeclarationError, match="got data='letters', expected one of 'digits'"):
        digit_classifier("letters")


# ---- all at once ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halves():
    return split(digits(), (500, 500, 700), seed=0)


# Each measure's level and power are in `test_samples.py`.
@pytest.mark.repeated("test_the_measures_are_those_of_the_features")
def test_equal_laws_are_within_their_errors_and_others_are_not(halves):
    real, same, train = halves
    net = digit_classifier("digits")
    good = sample_quality(
        real, same, features=net, classifier=net, train=train.images, seed=0, num_permutations=199
    )
    z = {e.name: (e.value - e.expected) / e.standard_error for e in good.estimates
         if e.expected is not None and e.standard_error > 0}  # fmt: skip
    assert len(z) >= 12 and max(map(abs, z.values())) < 4
    assert good["MMD2"].details["p_value"] > 0.001
    bad = np.array(same.images)
    bad[:250] = train.images[:250]  # copies
    bad[250:] = bad[250:] * 0.5  # faint
    poor = sample_quality(real, bad, features=net, classifier=net, train=train, seed=0)
    assert poor["FD_inf"].low > 0 and poor["KID"].low > 0 and poor["C2ST logistic"].low > 0.5
    assert poor["share of copies"].value == 0.5
    assert poor["MMD2[digit-net]"].details["p_value"] == 0.001
    assert poor["coverage"].value < good["coverage"].value


def test_the_record_has_an_error_and_an_n_for_every_number(halves):
    real, fake, _ = halves
    net = digit_classifier("digits")
    quality = sample_quality(
        real, fake, features=pca_features(real, 10), classifier=net, seed=3, num_permutations=99
    )
    for each in quality.estimates:
        assert np.isfinite(each.standard_error) and each.low <= each.value <= each.high
        assert each.n_fake > 0 and each.error_by
    text = repr(quality)
    assert "FD[pca10]" in text and "500/500" in text and "MMD2[pca10]: p =" in text
    frame = quality.to_pandas()
    assert list(frame.index) == [each.name for each in quality.estimates]
    assert frame.loc["KID[pca10]", "value"] == quality["KID"].value
    data = json.loads(json.dumps(quality.to_dict()))
    assert data["modes"]["names"] == list("0123456789") and data["n_real"] == 500
    with pytest.raises(UnknownName, match="no measure 'FID'"):
        quality["FID"]
    again = sample_quality(
        real, fake, features=pca_features(real, 10), classifier=net, seed=3, num_permutations=99
    )
    assert [e.value for e in again.estimates] == [e.value for e in quality.estimates]
    assert [e.standard_error for e in again.estimates] == [
        e.standard_error for e in quality.estimates
    ]


def test_the_measures_are_those_of_the_features(halves):
    real, fake, train = halves
    pca = pca_features(real, 5)
    options = {"features": pca, "seed": 0, "num_permutations": 19}
    quality = sample_quality(real, fake, train=train, **options)
    alone = frechet_distance(real, fake, features=pca, seed=0)
    assert quality["FD"] == alone.fd and quality["FD_inf"] == alone.fd_inf
    distance, copies = memorisation(fake, train, real, features=pca, seed=0)
    assert (quality[distance.name], quality["share of copies"]) == (distance, copies)
    named = as_features(None, name="pca5")
    assert frechet_distance(pca(real), pca(fake), features=named, seed=0) == alone
    assert quality.modes is None


def test_centres_count_modes_in_the_space_of_the_data():
    rng, centres = np.random.default_rng(0), np.array([[0.0, 0.0], [5.0, 5.0]])
    real = centres[rng.integers(2, size=300)] + rng.normal(0, 0.3, (300, 2))
    fake = centres[0] + rng.normal(0, 0.3, (300, 2))
    quality = sample_quality(real, fake, seed=0, centres=centres, sd=0.3, num_permutations=99)
    assert quality["modes hit"].value == 1 and quality["recall"].value < 0.6
    assert quality["KL of modes to truth"].value == pytest.approx(np.log(2))


def test_a_model_that_is_all_wrong_is_judged_by_everything_else():
    """Far from every centre: 0 modes, 0 good, no KL; FD and its like are as large as they are."""
    rng, centres = np.random.default_rng(0), np.array([[0.0, 0.0], [5.0, 5.0]])
    real = centres[rng.integers(2, size=300)] + rng.normal(0, 0.3, (300, 2))
    quality = sample_quality(
        real, real + 50, seed=0, centres=centres, sd=0.3, num_permutations=19, num_dealings=1
    )
    assert quality["modes hit"].value == 0 == quality.modes.good.value
    assert quality["FD"].value == pytest.approx(5000) and quality["precision"].value == 0
    assert quality.modes.kl is None and any("none of 300" in note for note in quality.notes)
    assert "none of 300" in repr(quality)
    json.dumps(quality.to_dict(), allow_nan=False)
    assert quality_figure(quality).axes


def test_figures_show_every_mode_and_every_measure(halves):
    real, fake, _ = halves
    net = digit_classifier("digits")
    quality = sample_quality(
        real, fake, features=net, classifier=net, seed=0, num_permutations=19, num_dealings=1
    )
    axes = mode_figure(quality.modes, what="digit").axes[0]
    heights = [patch.get_height() for patch in axes.patches]
    np.testing.assert_allclose(heights, 100 * quality.modes.counts / quality.modes.counts.sum())
    assert [t.get_text() for t in axes.get_xticklabels()] == list("0123456789")
    shown = [t.get_text() for t in quality_figure(quality).axes[0].get_yticklabels()]
    assert shown == [
        e.name for e in quality.estimates if e.expected is not None and e.standard_error > 0
    ]


def test_what_does_not_fit_is_one_clear_error(halves):
    real, fake, _ = halves
    with pytest.raises(AlgorithmError, match="500 real and 400 fake"):
        sample_quality(real.images, fake.images[:400], seed=0)
    with pytest.raises(ShapeError, match="resized and scaled alike"):
        sample_quality(real.images, fake.images[:, :7], seed=0)
    with pytest.raises(AlgorithmError, match="centres without sd"):
        sample_quality(real, fake, seed=0, centres=np.zeros((2, 64)))
    broken = np.array(fake.images)
    broken[7] = np.nan
    with pytest.raises(DataError, match="first in datum 7"):
        sample_quality(real, broken, seed=0)
