"""Counts are whole numbers of at least one, in every method and measure, by one rule."""

import dataclasses
import inspect

import numpy as np
import pytest
from test_generate_evaluate import data, linear_vae

import probgen as pg
from probgen.errors import DeclarationError
from probgen.inference import (
    AIS,
    ELBO,
    IWAE,
    DenoisingELBO,
    ImportanceWeightedELBO,
    Langevin,
    ProbabilityFlow,
    ood,
)
from probgen.inference.ood import (
    WAIC,
    BiasCorrected,
    GradientNorm,
    HierarchyRatio,
    KLTerm,
    LikelihoodRatio,
    NegativeLogLikelihood,
    ReconstructionError,
    Resultant,
    Typicality,
)

X, FITTED = data(30), linear_vae()
COUNTS = [
    (IWAE, ("num_particles", "particles_at_once")), (ELBO, ("num_particles",)),
    (ImportanceWeightedELBO, ("num_particles",)),
    (AIS, ("num_steps", "num_chains", "num_leapfrog", "num_pilot_steps")),
    (DenoisingELBO, ("num_draws", "num_steps")), (ProbabilityFlow, ("num_steps", "num_probes")),
    (lambda **k: Langevin(0.1, **k), ("num_steps",)),
    (NegativeLogLikelihood, ("num_particles", "particles_at_once")),
    (ReconstructionError, ("num_particles",)), (KLTerm, ("num_particles",)),
    (BiasCorrected, ("num_particles",)), (lambda **k: Typicality(X, **k), ("num_particles",)),
    (lambda **k: GradientNorm(X, **k), ("num_particles", "data_at_once")),
    (HierarchyRatio,
     ("num_lowest", "num_particles", "num_particles_above", "particles_at_once")),
    (lambda **k: Resultant(X, **k), ("num_particles", "num_components")),
    (lambda **k: WAIC([FITTED] * 2, **k), ("num_particles", "particles_at_once")),
    (lambda **k: LikelihoodRatio(FITTED, **k), ("num_particles", "particles_at_once")),
]  # fmt: skip
ONE_BY_ONE = [(make, field) for make, fields in COUNTS for field in fields]


@pytest.mark.parametrize(("make", "field"), ONE_BY_ONE)
def test_a_count_is_a_whole_number(make, field):
    for value in (10.5, 10.0, True, "10", 0, -1, np.bool_(True), float("nan")):
        with pytest.raises(DeclarationError) as error:
            make(**{field: value})
        told = str(error.value)
        assert f"got {field}={value!r}, expected a whole number of at least" in told
        assert told.startswith(type(make(**{field: 10})).__name__)


@pytest.mark.parametrize(("make", "field"), ONE_BY_ONE)
def test_an_integer_of_numpy_is_the_same_count(make, field):
    """Also in print, by which an evaluation that goes on knows its measures."""
    given = make(**{field: np.int64(12)})
    assert type(getattr(given, field)) is int
    assert given == make(**{field: 12}) and repr(given) == repr(make(**{field: 12}))


def test_every_score_states_its_unit_and_its_direction():
    words = ("nats", "bits", "squared standard deviations", "chi-squared")
    for name in ood.__all__:
        score = getattr(ood, name)
        if inspect.isclass(score) and hasattr(score, "larger_is_stranger"):
            lead = " ".join(score.__doc__.split("Args:")[0].split())
            assert "arger is stranger" in lead and any(w in lead for w in words), name


def test_the_combined_tests_unit_is_that_of_its_statistic():
    """-2 sum log p is chi-squared with two degrees of freedom a test: mean 2, not 1 nat, at one."""
    test = ood.CombinedTest(X, (KLTerm(2),), dependence="none")
    found = pg.evaluate(FITTED, X, [test], seed=0, backend="torch")
    name = test.name
    np.testing.assert_allclose(
        found[name].estimate, -2 * np.log(found[name].p_value), rtol=1e-6, atol=1e-12
    )
    assert found.units[name] == "chi-squared"


def test_two_references_are_told_apart_by_a_label():
    one, two = Typicality(X, 20, "train"), Typicality(X[:20], 20, label="held out")
    found = pg.evaluate(FITTED, X[:5], [one, two], seed=0, backend="torch")
    assert list(found.names) == ["Typicality(train, 20)", "Typicality(held out, 20)"]
    entropies = [float(found[n].entropy[0]) for n in found.names]
    assert entropies[0] != entropies[1]
    assert dataclasses.replace(one, label="").name == "Typicality(20)"
