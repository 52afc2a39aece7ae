"""What no one-pass score can be made of is one clear error; what a score prints is short."""

import dataclasses
import re

import numpy as np
import pytest
from test_generate_evaluate import data, linear_vae

import probgen as pg
from probgen import dist, nets
from probgen.engine.bind import bind
from probgen.engine.fitted import Fitted
from probgen.errors import (
    AlgorithmError,
    DataError,
    DeclarationError,
    NonFiniteError,
    ShapeError,
    SupportError,
)
from probgen.inference.ood import (
    WAIC,
    BiasCorrected,
    CombinedTest,
    DoSE,
    GradientNorm,
    HierarchyRatio,
    InputComplexity,
    KLTerm,
    LikelihoodRatio,
    LPath,
    Mahalanobis,
    NegativeLogLikelihood,
    ReconstructionError,
    Reference,
    Typicality,
)
from probgen.models import EBM, VAE, likelihoods

X = data(30)
EVERY = [
    NegativeLogLikelihood(2), ReconstructionError(2), KLTerm(2), Mahalanobis(X), Typicality(X, 2),
    LPath(X), DoSE(X, (KLTerm(2),)), CombinedTest(X, (KLTerm(2),)), BiasCorrected(num_particles=2),
    GradientNorm(X), DoSE(X), CombinedTest(X), HierarchyRatio(), WAIC([linear_vae()] * 2, 2),
    LikelihoodRatio(linear_vae(), 2), InputComplexity(num_levels=2, dequantized=True),
]  # fmt: skip
WITH_REFERENCE = [
    Mahalanobis, LPath, GradientNorm,
    lambda reference: Typicality(reference, 2),
    lambda reference: DoSE(reference, (KLTerm(2),)),
    lambda reference: CombinedTest(reference, (KLTerm(2),)),
]  # fmt: skip


def score(measure, fitted=None, x=X[:4]):
    return pg.evaluate(fitted or linear_vae(), x, [measure], seed=0, backend="torch")


@pytest.mark.parametrize("measure", EVERY, ids=lambda m: m.name)
def test_a_model_of_another_family_is_refused(measure):
    model = EBM(nets.MLPEnergy(hidden=(4,)), dist.Normal(0, 1).expand([3]).to_event(1))
    b = pg.backends.load("torch")
    params = b.tree_map(b.to_numpy, bind(model, b, seed=0)[1])
    # The error names what the user wrote, not a part of it.
    words = rf"^{re.escape(measure.name)}\W.*is known up to a constant.*expected a normalised one"
    with pytest.raises(AlgorithmError, match=words):
        score(measure, Fitted(model, params, shapes={"x": (3,)}))


@pytest.mark.parametrize("make", WITH_REFERENCE)
def test_reference_data_that_do_not_fit_are_refused(make):
    with pytest.raises(ShapeError, match=r"reference data: .*\(30, 2\).*expected"):
        score(make(X[:, :2]))
    with pytest.raises(DataError, match=r"NaN|not finite"):
        make(np.where(X > 0, np.nan, X))
    with pytest.raises(DataError, match="got 1 reference data, expected at least"):
        score(make(X[:1]))
    with pytest.raises(DataError, match="empty"):
        make(X[:0])
    with pytest.raises(DataError, match=r"have \['y'\], expected also \['x'\]"):
        score(make({"y": X}))
    with pytest.raises(DataError, match="stream"):
        make(iter([X]))


def test_reference_data_outside_the_support_are_refused():
    model = VAE(
        latent=dist.Normal(0, 1).expand([1]).to_event(1),
        decoder=nets.MLP(hidden=(), out=(3,)),
        likelihood=dist.Bernoulli,
        encoder=nets.MLP(hidden=(), out=1, heads=("loc", "log_scale")),
    )
    fitted = Fitted(model, linear_vae().params, shapes={"x": (3,)})
    binary = (X > 0).astype(np.float32)
    with pytest.raises(SupportError, match=r"Mahalanobis, reference data: .*outside the support"):
        score(Mahalanobis(X), fitted, binary)
    with pytest.raises(DeclarationError, match="stretch_contrast=True for the binary data"):
        score(BiasCorrected(num_particles=2, stretch_contrast=True), fitted, binary)


def collapsed():
    """An encoder that says the same of every datum."""
    fitted = linear_vae()
    encoder = {"weight": np.zeros((3, 2), np.float32), "bias": np.array([0.1, 0.0], np.float32)}
    return dataclasses.replace(fitted, params={**fitted.params, "encoder": {"out": encoder}})


def test_a_collapsed_posterior_is_refused():
    with pytest.raises(DataError, match="covariance of the reference data is singular"):
        score(Mahalanobis(X), collapsed())
    with pytest.raises(DataError, match="covariance of the reference data is singular"):
        score(LPath(X, "mahalanobis"))  # whose sigma is one number
    with pytest.raises(DataError, match="KLTerm.2.: is .* for all 30 reference data"):
        score(DoSE(X, (KLTerm(2),)), collapsed())
    with pytest.raises(DataError, match="KLTerm.2. is .* for all 30 reference data"):
        score(CombinedTest(X, (KLTerm(2),)), collapsed())


def test_too_few_data_for_the_classes_are_refused():
    with pytest.raises(DataError, match="3 reference data in 3 classes"):
        score(Mahalanobis(X[:3], [0, 1, 2]))
    with pytest.raises(DataError, match=r"labels of shape \(2,\) for 30"):
        Mahalanobis(X, [0, 1])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: NegativeLogLikelihood(0), "num_particles=0"),
        (lambda: ReconstructionError(1.5), "num_particles=1.5"),
        (lambda: KLTerm(True), "num_particles=True"),
        (lambda: Mahalanobis(X, shrinkage=2.0), "shrinkage=2.0"),
        (lambda: LPath(X, "ecod"), "method='ecod'"),
        (lambda: GradientNorm(X, "norm"), "method='norm', expected no reference data"),
        (lambda: GradientNorm(), r"reference=None.*GradientNorm\(train_x\).*method='norm'"),
        (lambda: GradientNorm("norm"), "reference='norm', expected reference data.*by their name"),
        (lambda: LPath("copod"), "LPath: got reference='copod', expected reference data"),
        (lambda: Typicality(None), "Typicality: got reference=None, expected reference data"),
        (lambda: GradientNorm(X, nets="decoder"), "nets='decoder'"),
        (lambda: DoSE(X, ()), r"statistics=\(\), expected one or more measures"),
        (lambda: DoSE(X, (KLTerm(2), KLTerm(2))), "each once"),
        (lambda: CombinedTest(X, ("KLTerm",)), "tests=.*each entry a measure such as"),
        (lambda: CombinedTest(X, dependence="kost"), "dependence='kost'"),
    ],
)
def test_settings_out_of_range_are_refused(make, words):
    with pytest.raises(DeclarationError, match=words):
        make()


@pg.model
def switch():
    """A binary latent, whose draw is no function of normal noise."""
    with pg.data_plate():
        z = pg.sample("z", dist.Bernoulli(0.5))
        pg.sample("x", dist.Gamma(1.0 + z, 1.0))


@switch.with_guide
def switch_guide(x):
    with pg.data_plate():
        pg.sample(
            "z", dist.Bernoulli(logits=pg.net("q", nets.MLP(hidden=(), out=()))(x[..., None]))
        )


def test_a_gradient_needs_draws_that_are_functions_of_noise():
    x = np.abs(X[:, 0])
    b = pg.backends.load("torch")
    model = switch.with_guide(switch_guide) if not hasattr(switch_guide, "guide") else switch_guide
    params = b.tree_map(b.to_numpy, bind(model, b, data={"x": x[:1]}, seed=0)[1])
    fitted = Fitted(model, params, shapes={"x": ()})
    with pytest.raises(AlgorithmError, match="noise"):
        score(GradientNorm(method="norm"), fitted, x)
    with pytest.raises(AlgorithmError, match=r"the data of .* are {'x': 'Gamma'}"):
        score(BiasCorrected(num_particles=2), fitted, x)


def test_a_table_needs_reference_data_and_parameters_that_are_numbers():
    model = dataclasses.replace(linear_vae().model, likelihood=likelihoods.Categorical(4))
    wide = {"weight": np.zeros((1, 12), np.float32), "bias": np.zeros(12, np.float32)}
    params = {**linear_vae().params, "decoder": {"out": wide}}
    fitted = Fitted(model, params, shapes={"x": (3,)}, dtypes={"x": "int32"})
    x = np.ones((30, 3), np.int32)
    with pytest.raises(DataError, match="got no reference data, expected some for the table"):
        score(BiasCorrected(num_particles=2), fitted, x)
    wide["bias"][1::4] = -np.inf  # the level 1 has no probability
    with pytest.raises(DataError, match="no finite log-probability for the value 1"):
        score(BiasCorrected(x, 2), fitted, x)


@pytest.mark.parametrize("make", WITH_REFERENCE)
def test_parameters_that_are_nan_are_not_answered(make):
    fitted = linear_vae()
    fitted.params["encoder"]["out"]["bias"] *= np.nan
    with pytest.raises(NonFiniteError, match="not finite"):
        score(make(X), fitted)


def test_a_reference_is_its_content():
    big = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
    other = big.copy()
    other[999, 2] += 1e-3
    for make in WITH_REFERENCE:
        one = repr(make(big))
        assert one == repr(make(big.copy())) and one == repr(make({"x": big}))
        assert one != repr(make(other)) and len(one) < 700
    assert Mahalanobis(big) == Mahalanobis(big.copy()) != Mahalanobis(other)
    assert hash(Mahalanobis(big)) == hash(Mahalanobis(big.copy()))
    assert repr(Mahalanobis(big, np.arange(1000) % 2)) != repr(Mahalanobis(big))
    assert "float32[1000, 3]" in repr(Reference(big)) and Reference(big).size == 1000


def test_too_few_reference_data_are_too_few_whoever_asked_first(b):
    """12 do for typicality, which has log p of them computed; a density needs 20 all the same."""
    few = X[:12]
    dose = DoSE(few, (NegativeLogLikelihood(2),))
    for measures in ([dose], [Typicality(few, 2), dose]):
        with pytest.raises(DataError, match="DoSE.*got 12 reference data, expected at least 20"):
            pg.evaluate(linear_vae(), X[:4], measures, seed=0, backend=b, progress_bar=False)


def test_an_evaluation_that_was_cut_off_goes_on(tmp_path, monkeypatch):
    """The second chunk fails; the second call starts there, with an equal but another reference."""
    from probgen.records.chunks import ChunkStore

    write, count = ChunkStore.write, []

    def failing(self, start, rows, values):
        if start and not count:
            count.append(start)
            raise KeyboardInterrupt
        write(self, start, rows, values)

    monkeypatch.setattr(ChunkStore, "write", failing)
    options = {"seed": 0, "backend": "torch", "chunk_size": 10, "path": tmp_path / "table"}
    with pytest.raises(KeyboardInterrupt):
        pg.evaluate(linear_vae(), X, [Mahalanobis(X)], **options)
    assert (tmp_path / "table.chunks" / "chunk-0000000000").exists()
    table = pg.evaluate(linear_vae(), X, [Mahalanobis(X.copy())], **options)
    whole = pg.evaluate(linear_vae(), X, [Mahalanobis(X)], seed=0, backend="torch", chunk_size=10)
    np.testing.assert_array_equal(
        table["Mahalanobis"]["estimate"], whole["Mahalanobis"]["estimate"]
    )
