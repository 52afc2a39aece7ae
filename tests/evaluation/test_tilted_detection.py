"""A tilted VAE scored on digits against letters: what the tilt does to an AUROC.

One small VAE of 8x8 pictures, as it starts; both backends read its weights. A tilt's score is its
bound, nats + constant, so laws are about differences: no energy changes nothing, an energy that
was learned from letters tells them better than the VAE alone by DeLong's paired test, its negative
worse, and the constant of either cancels.
"""

import numpy as np
import pytest

import probgen as pg
from probgen import dist, evaluation, nets
from probgen.errors import AlgorithmError
from probgen.evaluation.detection import auroc, delong, delong_test
from probgen.inference import ELBO, IWAE, UnnormalizedBound
from probgen.models import VAE, Tilted

OWN, WHOLE = IWAE(8), UnnormalizedBound(IWAE(8))
NUM = 300  # held-out data of each set


@pytest.fixture(scope="module")
def sets():
    """Ink of 8x8 digits and letters: (digits to fit to, letters to learn from, digits, letters)."""
    digits = np.asarray(pg.data.digits().images > 0.5, np.float32).reshape(-1, 64)
    letters = pg.data.letters(8, seed=0, per_letter=14).images
    letters = np.asarray(letters > 0.5, np.float32).reshape(-1, 64)
    rng = np.random.default_rng(0)
    digits, letters = rng.permutation(digits), rng.permutation(letters)
    return digits[NUM:], letters[NUM:], digits[:NUM], letters[:NUM]


@pytest.fixture(scope="module")
def vae():
    prior = dist.Normal(0.0, 1.0).expand([6]).to_event(1)
    encoder = nets.MLP((48,), out=6, heads=("loc", "log_scale"))
    decoder, rng = nets.MLP((48,), out=64), np.random.default_rng(0)
    params = {"encoder": encoder.init(rng, (64,)), "decoder": decoder.init(rng, (6,))}
    return pg.Fitted(VAE(prior, decoder, dist.Bernoulli, encoder), params, shapes={"x": (64,)})


@pytest.fixture(scope="module")
def weight(sets):
    """[64], and an offset: of letters against digits, by logistic regression on what is not held
    out, so that the energy x . w + c is log odds of a letter."""
    from sklearn.linear_model import LogisticRegression

    x = np.concatenate([sets[0], sets[1]])
    is_letter = np.repeat([0, 1], [len(sets[0]), len(sets[1])])
    found = LogisticRegression(C=0.1, max_iter=300).fit(x, is_letter)
    return found.coef_[0].astype(np.float32), float(found.intercept_[0])


def tilted(vae, weight, offset=0.0, through="sample"):
    """The VAE tilted by the energy x . weight + offset."""
    model = Tilted(vae, nets.MLPEnergy(()), through=through)
    energy = {"out": {"weight": weight[:, None], "bias": np.float32([offset])}}
    return pg.Fitted(model, {**vae.params, "energy": energy}, shapes={"x": (64,)})


def scores(fitted, measure, sets, b):
    """(of digits, of letters), larger = stranger; and the table."""
    x = np.concatenate(sets[2:])
    table = pg.evaluate(fitted, x, [measure], seed=0, backend=b, progress_bar=False)
    strange = table.strangeness(measure.name)
    return (strange[:NUM], strange[NUM:]), table


@pytest.fixture
def own(vae, sets, b):
    return scores(vae, OWN, sets, b)[0]


@pytest.mark.repeated("test_an_energy_that_knows_letters_tells_them_better_and_its_negative_worse")
def test_no_energy_is_the_vae_itself(vae, sets, own, b):
    found, table = scores(tilted(vae, np.zeros(64, np.float32)), WHOLE, sets, b)
    assert table.units[WHOLE.name] == "nats + constant"
    assert auroc(*found) == auroc(*own)
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(own), rtol=1e-5)


def test_an_energy_that_knows_letters_tells_them_better_and_its_negative_worse(
    vae, sets, weight, own, b
):
    """By DeLong's paired test on the same draws; each score is the VAE's own less the energy."""
    w, c = weight
    plain = delong(*own)
    for sign in (1.0, -1.0):
        found, _ = scores(tilted(vae, sign * w, sign * c), WHOLE, sets, b)
        for tilt, base, x in zip(found, own, sets[2:], strict=True):
            np.testing.assert_allclose(tilt, base + sign * (x @ w + c), rtol=1e-4, atol=1e-3)
        test = delong_test(delong(*found), plain)
        assert sign * test.difference > 3 * test.standard_error
    moved, _ = scores(tilted(vae, w, c + 50.0), WHOLE, sets, b)
    first, _ = scores(tilted(vae, w, c), WHOLE, sets, b)
    assert auroc(*moved) == pytest.approx(auroc(*first), abs=1e-3)  # ties of rounding alone


def test_a_page_of_a_tilt_claims_differences_and_no_size(vae, sets, weight, tmp_path):
    """Its tables against letters: how well they are told, in nats up to a constant; on one backend,
    as a page reads tables alone."""
    fitted = tilted(vae, *weight)
    found, both = scores(fitted, WHOLE, sets, "jax")
    parts = [
        pg.Evaluation.from_values(
            {WHOLE.name: {"estimate": both[WHOLE.name]["estimate"].values[rows]}},
            units=both.units, larger_is_stranger={WHOLE.name: False},
        )
        for rows in (slice(NUM), slice(NUM, None))
    ]  # fmt: skip
    path = evaluation.report(
        fitted, parts[0], {"letters": parts[1]}, path=tmp_path / "page.html", name="digits",
        progress_bar=False,
    )  # fmt: skip
    text = path.read_text("utf-8")
    assert "(300 against 300 digits): IWAE is better than chance." in text
    assert f"{auroc(*found):.3f}" in text
    for words in ("IWAE + constant", "nats + constant", "and the size says nothing"):
        assert words in text
    assert "bits per dim" not in text


def test_a_tilt_of_decoder_means_prints_no_likelihood(vae, sets, weight, b):
    """It is a law of pictures without a density; it has draws, and nothing scores data by it."""
    fitted = tilted(vae, weight[0], through="mean")
    for measure in (OWN, ELBO(2), WHOLE, UnnormalizedBound(ELBO(2))):
        with pytest.raises(AlgorithmError, match="no guide|no density|up to a constant"):
            scores(fitted, measure, sets, b)
