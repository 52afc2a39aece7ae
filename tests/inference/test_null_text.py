"""Null-text inversion on an exact denoiser: guided draws lead back to the data that they are of."""

import numpy as np
import pytest
from denoiser_cases import exact
from null_cases import DIM, SCHEDULE, SHAPE, TABLE, data, two_modes

import probgen as pg
from probgen.errors import AlgorithmError, DataError, DeclarationError, ShapeError
from probgen.inference import DDIM, DDIMInverse, NullTextInversion, PivotalInversion

STEPS = 12
X, Y = data(3)
GUIDED = DDIM(STEPS, guidance_scale=4.0)


def encode(b, method, rows=slice(None)):
    return two_modes(b).encode(X[rows], {"condition": Y[rows]}, method=method)


def back(b, method, codes, **options):
    how = {"inputs": {"condition": Y}, "seed": 0, "backend": b}
    return pg.generate(two_modes(b), len(Y), method=method, start=codes, **how, **options)


def mse(x):
    return ((x - X) ** 2).mean((1, 2))


@pytest.fixture(scope="module")
def codes(b):
    return encode(b, NullTextInversion(GUIDED))


@pytest.fixture(scope="module")
def pivots(b):
    return encode(b, PivotalInversion(GUIDED))["pivots"]


def test_pivots_are_the_way_from_the_data_to_the_code(b, codes, pivots):
    assert pivots.shape == (3, STEPS + 1, *SHAPE)
    np.testing.assert_array_equal(pivots[:, 0], X)
    np.testing.assert_array_equal(pivots[:, -1], codes["x_60"])
    plain = encode(b, DDIMInverse(STEPS, "current"))["x_60"]
    other = encode(b, PivotalInversion(GUIDED, "current"))["x_60"]
    np.testing.assert_allclose(other, plain, atol=1e-6)
    assert np.abs(other - codes["x_60"]).max() > 1e-3


def test_null_texts_undo_what_guidance_does_to_the_round_trip(b, codes):
    plain = {"x_60": codes["x_60"]}
    off, two, four = (
        mse(back(b, DDIM(STEPS, guidance_scale=w), plain)["x"]) for w in (1.0, 2.0, 4.0)
    )
    assert (off < 2e-3).all() and (off < two).all() and (two < four).all()
    assert (20 * mse(back(b, GUIDED, codes)["x"]) < four).all()


def test_the_way_down_is_as_far_from_the_pivots_as_the_residuals_say(b, codes, pivots):
    way = back(b, GUIDED, codes, return_chain=True).chain["x"]  # [steps, n, ...]
    off = ((way.swapaxes(0, 1) - pivots[:, -2::-1]) ** 2).mean((2, 3))
    np.testing.assert_allclose(codes["residual"], off, rtol=2e-3, atol=1e-8)


def test_a_datum_within_its_tolerance_is_left_whatever_its_neighbours_need(b):
    # With 3e-3 at each step the data need steps of different numbers.
    method = NullTextInversion(GUIDED, "current", tolerance=3e-3, tolerance_growth=0.0)
    together = encode(b, method)
    alone = [encode(b, method, slice(i, i + 1)) for i in range(3)]
    for name, values in together.items():
        apart = np.concatenate([a[name] for a in alone])
        np.testing.assert_allclose(values, apart, rtol=1e-3, atol=1e-5)
    loose = encode(b, NullTextInversion(GUIDED, tolerance=1e3))
    null = TABLE[3].reshape(2, DIM)
    np.testing.assert_array_equal(loose["null"], np.broadcast_to(null, loose["null"].shape))


def test_what_does_not_fit_is_refused_in_words(b, codes):
    with pytest.raises(DataError, match="null texts of 12 steps .* calls the network 6 times"):
        back(b, DDIM(6, guidance_scale=4.0), codes)
    with pytest.raises(DataError, match="guidance_scale=1, which asks for none"):
        back(b, DDIM(STEPS), codes)
    with pytest.raises(ShapeError, match=r"expected \[3, num_steps, m, d\]"):
        back(b, GUIDED, {**codes, "null": codes["null"][:2]})
    with pytest.raises(ShapeError, match=r"\[3, 1, 6\] at a step, expected \[3, 2, 6\]"):
        back(b, GUIDED, {**codes, "null": codes["null"][:, :, :1]})
    with pytest.raises(DataError, match="got start of .'noise', 'x_60'."):
        back(b, GUIDED, {"x_60": codes["x_60"], "noise": X})
    fitted = pg.Fitted(exact(SCHEDULE, "epsilon", (1.0, 2.0)), {"denoiser": {}})
    with pytest.raises(AlgorithmError, match="NullTextInversion: .* has no null text"):
        fitted.encode(X[:, 0, :2], method=NullTextInversion(GUIDED))
    for wrong, word in [
        ({"sampler": DDIM(4, guidance_scale=1.0)}, "other than 1"),
        ({"sampler": DDIM(4, 0.5, 2.0)}, "eta=0"),
        ({"sampler": DDIM(200, guidance_scale=2.0)}, "above 0 at the sampler's last step"),
    ]:
        with pytest.raises(DeclarationError, match=word):
            NullTextInversion(**wrong)
