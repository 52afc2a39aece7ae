"""Bad input: one clear error each, saying what was got, what was expected and what to do."""

import numpy as np
import pytest
from fit_cases import binary_data, coins, quick, small_vae, svi

import probgen as pg
from probgen import backends, dist, nets
from probgen.errors import (
    AlgorithmError,
    BackendError,
    DataError,
    DeclarationError,
    DuplicateSite,
    MissingSeed,
    ProbgenError,
    ShapeError,
    SupportError,
    UnknownName,
)
from probgen.inference import ELBO, SVI


@pytest.fixture(scope="module")
def b(backend_name):
    return quick(backend_name)


def fit(b, model=None, data=None, **options):
    options = {"num_steps": 2, "batch_size": 8, "seed": 0, **options}
    data = binary_data(16) if data is None else data
    return pg.fit(small_vae() if model is None else model, data, svi(), backend=b, **options)


def program(body):
    """A model of one local site "x" (or what `body` declares) with an empty guide."""

    def model():
        with pg.data_plate():
            body()

    return pg.model(model).with_guide(lambda: None)


def site(distribution):
    return program(lambda: pg.sample("x", distribution))


def spoilt(value, kind=np.float32):
    x = binary_data(16).astype(kind)
    x[11, 2] = value
    return x


REAL = dist.Normal(0, 1).expand([4]).to_event(1)
CLASSES = dist.Categorical(probs=np.ones((4, 3)) / 3).to_event(1)
COUNTS = dist.Poisson(2.0).expand([4]).to_event(1)
images = np.random.default_rng(0).integers(0, 256, (16, 4))

DATA = {
    "NaN": (None, spoilt(np.nan), DataError, r"1 values that are NaN.*\(11, 2\)"),
    "infinity": (None, spoilt(-np.inf), DataError, "NaN or infinite"),
    "float64 too large for float32": (None, spoilt(1e300, float), DataError, "NaN or infinite"),
    "outside {0, 1}": (None, spoilt(0.5), SupportError, "data 'x': 1 of .* outside.*Bernoulli"),
    "negative in Gamma": (site(dist.Gamma(2.0, 1.0).expand([4]).to_event(1)), spoilt(-1.0),
                          SupportError, "Gamma"),
    "a class too many": (site(CLASSES), spoilt(3, np.int64), SupportError, "Categorical"),
    "half a count": (site(COUNTS), spoilt(0.5), SupportError, "Poisson"),
    "outside bounds that are arrays": (
        site(dist.Uniform(np.zeros(4), np.ones(4)).to_event(1)), spoilt(2.0), SupportError,
        "Uniform"),
    "trailing shape": (None, np.zeros((16, 5), np.float32), ShapeError, r"\(16, 5\).*, 4\)"),
    "an axis too many": (None, np.zeros((16, 4, 1), np.float32), ShapeError, r"\(16, 4, 1\)"),
    "an axis too few": (None, np.zeros(16, np.float32), ShapeError, r"shape \(16,\)"),
    "one value, which would broadcast": (None, np.zeros((16, 1), np.float32), ShapeError,
                                         r"\(16, 1\)"),
    "uint8 images, Bernoulli": (None, images.astype(np.uint8), DataError,
                                "type uint8, expected floats.*Bernoulli.*from_levels"),
    "uint8 images, Normal": (site(REAL), images.astype(np.uint8), DataError,
                             "expected floats.*Normal.*dequantize"),
    "booleans": (None, binary_data(16) > 0, DataError, "type bool, expected floats"),
    "floats for classes": (site(CLASSES), binary_data(16), DataError,
                           "float32, expected integers.*Categorical.*astype"),
    "no data": (None, np.zeros((0, 4), np.float32), DataError, "empty"),
    "an empty dict": (None, {}, DataError, "at least one array"),
    "an empty list": (None, [], DataError, "empty|expected"),
    "an empty stream": (None, lambda: iter(()), DataError, "before its first batch"),
    "text": (None, np.array([["a"] * 4] * 16), DataError, "expected numbers"),
    "nothing": (None, None, AlgorithmError, "data=None.*expected data"),
    "unequal lengths": (None, {"x": binary_data(16), "y": np.zeros(15)}, DataError, "lengths"),
    "an unknown site": (None, {"X": binary_data(16)}, UnknownName, "did you mean 'x'"),
    "two, one unknown": (None, {"x": binary_data(16), "label": np.zeros(16)}, UnknownName,
                         "neither a site nor an input"),
}  # fmt: skip


@pytest.mark.parametrize("which", DATA)
def test_data_that_do_not_fit_are_refused(b, which):
    model, data, error, words = DATA[which]
    with pytest.raises(error, match=words):
        pg.fit(small_vae() if model is None else model, data, svi(), num_steps=2, seed=0, backend=b)


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (site(CLASSES), images % 3),
        (site(CLASSES), (images % 3).astype(np.uint8)),
        (site(COUNTS), images),
        (site(COUNTS), images.astype(np.float32)),
        (site(REAL), images.astype(np.float64)),
    ],
    ids=["classes", "classes, uint8", "counts", "counts as floats", "float64"],
)
def test_data_of_the_right_type_are_taken(b, model, data):
    assert np.isfinite(fit(b, model, data).history["elbo"]).all()


def test_a_batch_larger_than_the_data_is_refused(b):
    with pytest.raises(DataError, match="batch_size=17 for 16 data, expected 1 to 16"):
        fit(b, batch_size=17)


def test_a_bad_batch_in_the_middle_of_a_stream_is_refused(b):
    def stream():
        for i in range(6):
            yield binary_data(8, i) if i < 3 else spoilt(0.5)[8:]

    with pytest.raises(SupportError, match="Bernoulli"):
        pg.fit(coins, stream, svi(), num_steps=6, seed=0, backend=b)


def test_held_out_data_are_checked_as_the_data_are(b):
    for validation, error, words in (
        (spoilt(0.5), SupportError, "Bernoulli"),
        (spoilt(np.nan), DataError, "NaN"),
        (np.zeros((4, 5), np.float32), ShapeError, r"validation\['x'\].*\(5,\).*\(4,\)"),
        (spoilt(1, np.int64), ShapeError, "type int64"),
        ({"y": binary_data(8)}, UnknownName, "expected \\['x'\\] too"),
    ):
        with pytest.raises(error, match=words):
            fit(b, coins, validation=validation)


@pytest.mark.parametrize(
    ("inputs", "error", "words"),
    [
        ({"colour": 1.0}, DataError, "got 'colour', expected one of"),
        ({"shift": [np.nan]}, DataError, "NaN"),
        ({}, UnknownName, "got no 'shift'"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(b, inputs, error, words):
    @pg.model
    def shifted(shift):
        with pg.data_plate():
            pg.sample("x", dist.Normal(shift, 1.0).expand([4]).to_event(1))

    with pytest.raises(error, match=words):
        fit(b, shifted.with_guide(lambda: None), inputs=inputs)


# ---- declarations ----


def twice():
    pg.sample("x", REAL)
    pg.sample("x", REAL)


def test_a_forgotten_to_event_is_named_with_its_cure(b):
    with pytest.raises(ShapeError, match=r"site 'x'.*add \.to_event\(1\)"):
        fit(b, site(dist.Normal(0, 1).expand([8, 4])))


def test_two_sites_of_one_name_are_named_with_their_lines(b):
    with pytest.raises(DuplicateSite, match=r"'x' is declared at test_bad_input.py:\d+ and at"):
        fit(b, program(twice))


def test_one_net_name_for_two_nets_is_refused(b):
    def body():
        pg.net("w", nets.Parameter(()))()
        pg.net("w", nets.Parameter((4,)))()

    with pytest.raises(DeclarationError, match="one network per name"):
        fit(b, program(body))


def test_an_unknown_net_is_named_with_those_that_there_are(b):
    """Parameters of another declaration: the trace asks for a net that they do not have."""
    fitted = fit(b)
    bound, params = fitted.bind(b)
    less = {("decoders" if k == "decoder" else k): v for k, v in params.items()}
    batch = {"x": b.asarray(binary_data(2))}
    with pytest.raises(UnknownName, match="net 'decoder'.*did you mean 'decoders'"):
        bound.trace(less, batch, key=b.key(0))


@pytest.mark.parametrize(
    ("declared", "only"),
    [
        (lambda: dist.Stable(1.5, 0.0), "torch"),
        (lambda: dist.AffineBeta(2.0, 2.0, 0.0, 1.0), "torch"),
        (lambda: dist.Gompertz(1.0), "jax"),
        (lambda: dist.BetaProportion(0.5, 2.0), "jax"),
    ],
)
def test_a_distribution_that_one_backend_lacks_says_which_has_it(b, backend_name, declared, only):
    if backend_name == only:
        pytest.skip("this backend has it")
    name = declared().name
    with pytest.raises(BackendError, match=rf'dist.{name}.*backend="{only}"'):
        fit(b, site(declared()), np.full(16, 0.5, np.float32))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: dist.Normal(0, 1, 2), DeclarationError, "3 positional arguments"),
        (lambda: dist.Normal(locc=0), UnknownName, "did you mean 'loc'"),
        (lambda: dist.Poisson(), DeclarationError, "got no rate"),
        (lambda: pg.sample("x", REAL), DeclarationError, "outside a run"),
        (lambda: pg.fit(3, binary_data(), svi(), num_steps=1, seed=0), ProbgenError, "got model=3"),
        (lambda: pg.fit(print, binary_data(), svi(), num_steps=1, seed=0), ProbgenError, "@pg.m"),
    ],
)
def test_misspelt_declarations_are_refused_where_they_are_written(make, error, words):
    with pytest.raises(error, match=words):
        make()


# ---- machines and seeds ----


@pytest.mark.parametrize("device", ["cuda:99", "tpu:7", "nonsense", "cpu:x"])
def test_a_device_that_is_not_there_is_refused(backend_name, device):
    with pytest.raises(BackendError, match="device"):
        pg.fit(
            coins, binary_data(), svi(), num_steps=1, seed=0, backend=backend_name, device=device
        )


def test_an_unknown_backend_is_refused():
    with pytest.raises(BackendError, match="expected 'auto', 'torch' or 'jax'"):
        pg.fit(coins, binary_data(), svi(), num_steps=1, seed=0, backend="tensorflow")


def test_a_missing_seed_is_said(b):
    with pytest.raises(MissingSeed, match="seed=0"):
        pg.fit(coins, binary_data(), svi(), num_steps=1, backend=b)
    fitted = fit(b)
    bound, params = fitted.bind(b)
    with pytest.raises(MissingSeed, match="site 'z' must be drawn"):
        bound.trace(params, {"x": b.asarray(binary_data(2))})


def test_both_backends_refuse_in_the_same_words():
    if not all(backends.available().values()):
        pytest.skip("needs torch and jax")
    for which in ("trailing shape", "uint8 images, Bernoulli", "an unknown site", "NaN"):
        _, data, error, _ = DATA[which]
        said = []
        for name in ("torch", "jax"):
            with pytest.raises(error) as caught:
                fit(quick(name), data=data)
            said.append(str(caught.value))
        assert said[0] == said[1]


def test_a_guide_that_draws_what_data_observe_is_refused_in_words(b):
    @pg.model
    def labelled():
        with pg.data_plate():
            pg.sample("z", dist.Normal(0.0, 1.0))
            pg.sample("y", dist.Bernoulli(0.5))

    @labelled.with_guide
    def model():
        with pg.data_plate():
            pg.sample("y", dist.Bernoulli(0.5))
            pg.sample("z", dist.Normal(0.0, 1.0))

    y = np.zeros(4, np.float32)
    words = r"the guide of 'labelled' draws \['y'\], which the data observe, expected latents alone"
    with pytest.raises(AlgorithmError, match=words):
        pg.fit(model, {"y": y}, SVI(ELBO()), num_steps=1, seed=0, backend=b, progress_bar=False)


@pytest.mark.parametrize(("name", "way"), [
    ("param", r"use pg\.net\("), ("VAE", r"it is probgen\.models\.VAE"),
    ("sampel", "mean 'sample'"),
    ("NUTS", r"it is probgen\.inference\.NUTS"), ("Trace_ELBO", r"use probgen\.inference\.ELBO"),
])  # fmt: skip
def test_a_name_that_is_elsewhere_is_told(name, way):
    with pytest.raises(AttributeError, match=way):
        getattr(pg, name)


@pytest.mark.parametrize("optimizer", [1e-3, pg.Adam])
def test_an_optimiser_is_shown_by_example(optimizer):
    with pytest.raises(DeclarationError, match=r"expected an optimiser such as pg\.Adam\(1e-3\)"):
        SVI(ELBO(), optimizer)
