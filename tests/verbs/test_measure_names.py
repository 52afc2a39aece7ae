"""A measure's name tells its settings apart: every measure, every field that changes a number.

Names are columns of a table, keys of noise and caches: two settings of one name cannot stand side
by side, nor be joined.
"""

import dataclasses

import numpy as np
import pytest
from identity_cases import X, vae

import probgen.inference as algorithms
import probgen.inference.ood as scores
from probgen.engine.measure import changed_settings
from probgen.errors import DeclarationError
from probgen.inference.likelihood.partition import LogPartition
from probgen.language.optim import SGD

MEASURES = {
    name: found
    for room in (algorithms, scores)
    for name in room.__all__
    if dataclasses.is_dataclass(found := getattr(room, name))
    and hasattr(found, "larger_is_stranger")
}
LOG_Z = LogPartition(
    estimate=1.0, standard_error=0.1, method=algorithms.AIS(), start="base", num_weights=4,
    lower_bound=0.8,
)  # fmt: skip
NEEDED = {
    "reference": X, "background": vae(), "models": (vae(), vae()), "log_z": LOG_Z,
    "set_point": 3.0, "capacity": 10.0, "num_steps": 100, "controller": algorithms.PI(),
    "base": algorithms.IWAE(),
}  # fmt: skip
BASE = {"GradientNorm": {"reference": X}}

# Another value, with what must change beside it.
OTHER = {
    "start": {"start": "guide"},
    "base": {"base": algorithms.IWAE(7)},
    "divergence": {"divergence": "hutchinson"},
    "down_to": {"down_to": "lowest_noise"},
    "log_z": {"log_z": dataclasses.replace(LOG_Z, estimate=1.0 + 1e-12)},
    "dependence": {"dependence": "none"},
    "nets": {"nets": "guide"},
    "labels": {"labels": np.arange(8) % 2},
    "label": {"label": "mine"},
    "codecs": {"codecs": ("bz2",)},
    "num_levels": {"num_levels": 3},
    "image_shape": {"image_shape": (3, 1)},
    "lossy": {"lossy": "rough"},
    "lowest": {"lowest": "sample"},
    "likelihood": {"likelihood": algorithms.IWAE(7)},
    "density": {"density": "kde"},
    "latents": {"latents": "means"},
    "tests": {"tests": (scores.KLTerm(), scores.LPath(X))},
    "statistics": {
        "statistics": (scores.KLTerm(), scores.KLTerm(8), scores.NegativeLogLikelihood())
    },
    "LPath.method": {"method": "mahalanobis"},
    "GradientNorm.method": {"method": "density"},
    "LikelihoodRegret.search": {"search": "posterior"},
    "LikelihoodRegret.optimizer": {"optimizer": SGD(0.1)},
    "LikelihoodRegret.num_steps": {"num_steps": 7},
    "LikelihoodRegret.num_particles": {"num_particles": 4},
    "LikelihoodRegret.num_particles_before": {"num_particles_before": 4},
    "LikelihoodRegret.num_draws": {"num_draws": 12},
    "LikelihoodRegret.noise": {"noise": "independent"},
    "LikelihoodRegret.start_from": {"search": "posterior", "start_from": "prior"},
    "DenoisingELBO.num_steps": {"num_steps": 5},
    "ProbabilityFlow.num_steps": {"num_steps": 50},
    "ProbabilityFlow.tolerance": {"tolerance": 0.01},
    "ProbabilityFlow.max_steps": {"tolerance": 0.01, "max_steps": 500},
}

LOSS = "of the loss that is fitted; as a measure the bound has beta = 1 and is drawn"
MEMORY = "how much is done at a time"
DATA = "data, known by content to the chunks; the numbers of two are told apart by their tables"
MODELS = "models, known by content to the chunks; told apart by a label, or by their number"
SILENT = {
    **{f"ELBO.{f}": LOSS for f in ("analytic_kl", "kl_weight", "free_bits")},
    **{f"{n}.analytic_kl": LOSS for n in ("CapacityELBO", "ControlledELBO")},
    **{f"CapacityELBO.{f}": LOSS for f in ("gamma", "capacity", "num_steps")},
    **{f"ControlledELBO.{f}": LOSS for f in ("set_point", "controller")},
    **{f"{n}.{f.name}": MEMORY for n, c in MEASURES.items() for f in dataclasses.fields(c)
       if f.name in ("particles_at_once", "data_at_once", "rows_at_once")},
    **{f"{n}.reference": DATA for n, c in MEASURES.items()
       if "reference" in [f.name for f in dataclasses.fields(c)]},
    "Invertibility.limit": "where warnings begin; no number of the table hangs on it",
    "LikelihoodRatio.background": MODELS,
    "WAIC.models": MODELS,
}  # fmt: skip
OTHER_SILENT = {
    "kl_weight": 0.5, "controller": algorithms.IncrementalPI(), "reference": X + 1,
    "background": vae(2.0), "models": (vae(), vae(2.0)), "rows_at_once": 3,
}  # fmt: skip

# Settings that a class inherits and takes only as they are.
REFUSED = [
    f"{n}.{f}" for n in ("CapacityELBO", "ControlledELBO") for f in ("kl_weight", "free_bits")
]

FIELDS = [f"{n}.{f.name}" for n, c in MEASURES.items() for f in dataclasses.fields(c)]


def base(name):
    cls = MEASURES[name]
    needed = {
        f.name: NEEDED[f.name]
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    return cls(**needed, **BASE.get(name, {}))


def moved(value):
    """Another value of a number's or a switch's kind."""
    if isinstance(value, bool):
        return not value
    assert isinstance(value, int | float), f"say in OTHER what to change {value!r} to"
    if isinstance(value, int):
        return 2 * value or 1
    return value * 0.9 + 0.01 * (not value)


@pytest.mark.parametrize("which", [f for f in FIELDS if f not in (*SILENT, *REFUSED)])
def test_another_setting_is_another_name(which):
    name, _, field = which.partition(".")
    one = base(name)
    change = OTHER.get(which) or OTHER.get(field) or {field: moved(getattr(one, field))}
    beside = {k: v for k, v in change.items() if k != field}
    other, one = dataclasses.replace(one, **change), dataclasses.replace(one, **beside)
    assert other.name != one.name and "/" not in other.name and len(other.name) < 160


@pytest.mark.parametrize("which", [*SILENT, *REFUSED])
def test_every_exception_is_one(which):
    """An exception that no name needs any more is a hole left open."""
    assert which in FIELDS, "there is no such setting"
    name, _, field = which.partition(".")
    one = base(name)
    value = OTHER_SILENT[field] if field in OTHER_SILENT else moved(getattr(one, field))
    if which in REFUSED:
        with pytest.raises(DeclarationError, match="leave both out"):
            dataclasses.replace(one, **{field: value})
    else:
        assert dataclasses.replace(one, **{field: value}).name == one.name


def test_names_of_the_defaults_stay():
    """They are quoted in documents and in tables that were saved."""
    said = {
        "AIS": "AIS(1000, num_chains=16)",
        "CombinedTest": "CombinedTest(2 tests)",
        "DoSE": "DoSE(3 statistics)",
        "ErrorReduction": "ErrorReduction(1 png)",
        "GradientNorm": "GradientNorm(fisher)",
        "InputComplexity": "InputComplexity(IWAE(1000), png+webp)",
        "KLTerm": "KLTerm(16)",
        "Mahalanobis": "Mahalanobis",
        "Resultant": "Resultant(mixture 10 of draws, 10)",
    }
    assert {n: base(n).name for n in said} == said


def test_a_name_has_no_slash_and_rounds_nothing():
    assert "/" not in scores.ErrorReduction(lossy="rough/4").name
    weights = (1.0, 1.0 + 1e-9, 0.1, 0.1 + 1e-9)
    assert len({scores.ErrorReduction(w).name for w in weights}) == 4
    assert scores.ErrorReduction(-0.5).name == "ErrorReduction(-0.5 png)"


def test_parts_that_differ_are_composites_that_differ():
    """Their parts' names are what marks them, whatever the number of parts."""
    few, many, drawn = scores.KLTerm(4), scores.KLTerm(8), scores.KLTerm(8, False)
    kinds = [scores.DoSE, lambda x, parts: scores.CombinedTest(x, tests=parts)]
    for kind in kinds:
        names = [kind(X, (few, part)).name for part in (many, drawn)]
        names += [kind(X, (part, few)).name for part in (many, drawn)]
        assert len(set(names)) == 4 and max(map(len, names)) < 40
        assert kind(X, (few, many)).name == kind(X, (scores.KLTerm(4), many)).name
    with pytest.raises(DeclarationError, match="each once"):
        scores.DoSE(X, (few, few))
    assert scores.DoSE(X, (many, drawn)).name  # which one name would have refused


def test_changed_settings_are_those_beside_the_defaults():
    @dataclasses.dataclass
    class Settings:
        data: object
        a: int = 1
        b: tuple = dataclasses.field(default_factory=lambda: (1, 2))
        c: object = None
        rows_at_once: int = 3

    assert changed_settings(Settings(X)) == []
    changed = Settings(X, np.int64(2), (1, 3), "x/y", 9)
    assert changed_settings(changed) == ["a=2", "b=(1, 3)", "c=x|y"]
    assert changed_settings(changed, shown=("a", "b")) == ["c=x|y"]
    assert changed_settings(Settings(X, c=np.zeros(2))) == ["c=array([0., 0.])"]
