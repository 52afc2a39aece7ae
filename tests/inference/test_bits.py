"""Bits per dimension: the two published offsets, exact masses, and nothing guessed."""

import math

import numpy as np
import pytest

from probgen.errors import DataError, DeclarationError, ShapeError
from probgen.inference.likelihood.bits import bits_per_dim


@pytest.mark.parametrize("data_range, offset", [((0, 1), 8.0), ((-1, 1), 7.0), ((0, 256), 0.0)])
def test_bytes_have_the_offsets_of_the_literature(data_range, offset):
    """-log2 p / D + 8 on [0, 1], + 7 on [-1, 1]; none where a level is one wide."""
    nats, dims = np.array([1234.5, -17.0]), 784
    for way in ("uniform", "variational"):
        out = bits_per_dim(nats, dims, levels=256, data_range=data_range, dequantisation=way)
        np.testing.assert_allclose(out.value, -nats / (dims * math.log(2)) + offset, rtol=1e-14)
        assert out.kind == "mass" and out.offset == offset and "upper bound" in out.note


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (-1.0, 1.0), (-3.0, 5.0)])
def test_a_density_that_is_flat_on_each_level_has_the_mass_of_the_levels(low, high):
    """p(x) = P(level) / w is dequantised without loss, so that bits/dim are the entropy code's."""
    mass = np.array([0.5, 0.125, 0.25, 0.125])
    density = mass / ((high - low) / 4)
    out = bits_per_dim(
        np.log(density), 1, levels=4, data_range=(low, high), dequantisation="uniform"
    )
    np.testing.assert_allclose(out.value, [1.0, 3.0, 2.0, 3.0], rtol=1e-12)
    exact = bits_per_dim(np.log(mass), 1, levels=4, dequantisation="none")
    np.testing.assert_allclose(out.value, exact.value, rtol=1e-12)


def test_dequantisation_never_beats_the_mass():
    """E_u[log p(level + u)] + log w <= log P(level) by Jensen, here for p(x) = 2 x on 4 levels."""
    u = (np.arange(10_000) + 0.5) / 10_000
    for level in range(4):
        bound = bits_per_dim(
            np.log(2 * (level + u) / 4).mean(), 1,
            levels=4, data_range=(0, 1), dequantisation="uniform",
        )  # fmt: skip
        mass = ((level + 1) ** 2 - level**2) / 16
        exact = bits_per_dim(math.log(mass), 1, levels=4, dequantisation="none")
        assert exact.value < bound.value < exact.value + 0.5


def test_a_density_is_called_one():
    out = bits_per_dim(-3.0, 2, data_range=(0, 1), dequantisation="continuous")
    assert out.kind == "density" and out.value == pytest.approx(1.5 / math.log(2))
    assert "not comparable with a mass" in repr(out) and "bits/dim" in repr(out)
    mass = bits_per_dim(np.zeros(3), 2, levels=2, dequantisation="none")
    assert mass.kind == "mass" and repr(mass) == "0.0000 bits/dim (mean of 3): mass of 2 levels"


def test_errors_are_scaled_alike_and_the_offset_adds_none():
    out = bits_per_dim(
        np.zeros((2, 3)), 10, levels=256, data_range=(0, 1), dequantisation="uniform",
        standard_error=np.full(3, 0.5),
    )  # fmt: skip
    np.testing.assert_allclose(out.standard_error, np.full((2, 3), 0.05 / math.log(2)))
    assert bits_per_dim(0.0, 1, levels=2, dequantisation="none").standard_error is None


GOOD = {"levels": 256, "data_range": (0, 1), "dequantisation": "uniform"}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dequantisation": None}, "which is not guessed"),
        ({"dequantisation": "dithered"}, "expected one of"),
        ({"levels": None}, "levels=256 for bytes"),
        ({"levels": 1}, "got levels=1"),
        ({"data_range": None}, "onto which the data were scaled"),
        ({"data_range": (1, 1)}, "onto which the data were scaled"),
        ({"data_range": (0, math.inf)}, "onto which the data were scaled"),
        ({"data_range": 255}, "onto which the data were scaled"),
        ({"dequantisation": "continuous"}, "never had levels"),
        ({"dims": 0}, "the number of values of one datum"),
    ],
)
def test_what_must_be_told_is_asked_for(options, message):
    options = {"dims": 3, **GOOD, **options}
    with pytest.raises(DeclarationError, match=message):
        bits_per_dim(np.zeros(2), options.pop("dims"), **options)


def test_what_is_no_number_is_refused():
    with pytest.raises(DataError, match="got 1 NaN"):
        bits_per_dim([0.0, math.nan], 3, **GOOD)
    with pytest.raises(ShapeError, match="one for each"):
        bits_per_dim(np.zeros(4), 3, **GOOD, standard_error=np.zeros(3))
