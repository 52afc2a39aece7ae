"""The verbs refuse a wrong argument at the door, by its name: nothing ends in a raw TypeError."""

import numpy as np
import pytest
from test_generate_evaluate import data, linear_vae

import probgen as pg
from probgen.errors import DataError, DeclarationError, ProbgenError, UnknownName
from probgen.inference import ELBO, IWAE, NUTS, SVI, Langevin
from probgen.inference.ood import NegativeLogLikelihood
from probgen.language import memory

X, FITTED = data(12), linear_vae()
FIT = {"num_steps": 1, "seed": 0}


def fit(algorithm=None, **options):
    return pg.fit(FITTED.model, X, algorithm or SVI(ELBO()), **{**FIT, **options})


NOT_COUNTS = (True, 2.5, 0, -1, "3", float("nan"), 10**12, np.bool_(True))
DOORS = {
    "algorithm": lambda v, b: fit(v, backend=b),
    "callbacks": lambda v, b: fit(callbacks=v, backend=b),
    "inputs": lambda v, b: fit(inputs=v, backend=b),
    "names": lambda v, b: fit(names=v, backend=b),
    "checkpoint": lambda v, b: fit(checkpoint=v, backend=b),
    "resume": lambda v, b: fit(resume=v, backend=b),
    "max_retries": lambda v, b: fit(max_retries=v, backend=b),
    "method": lambda v, b: pg.generate(FITTED, 2, seed=0, method=v, backend=b),
    "fitted": lambda v, b: pg.generate(v, 2, seed=0, backend=b),
    "path": lambda v, b: pg.evaluate(FITTED, X, [ELBO()], seed=0, path=v, backend=b),
    "model": lambda v, b: pg.infer(v, X, NUTS(), seed=0, backend=b),
    "device": lambda v, b: pg.infer(FITTED, X, NUTS(), seed=0, device=v, backend=b),
}
WRONG = [
    ("algorithm", pg.Adam()), ("algorithm", ELBO()), ("algorithm", SVI), ("algorithm", IWAE(2)),
    ("callbacks", pg.EarlyStopping()), ("callbacks", [pg.EarlyStopping]), ("callbacks", 3),
    ("inputs", [1]), ("inputs", "t"), ("names", 3), ("checkpoint", 3), ("checkpoint", True),
    ("resume", "no"), ("max_retries", -1), ("max_retries", 1.5),
    ("method", Langevin), ("method", SVI(ELBO())), ("fitted", 3), ("fitted", None),
    ("path", 3), ("model", lambda: None), ("model", NUTS), ("device", 0),
]  # fmt: skip


@pytest.mark.parametrize("name, value", WRONG)
def test_a_wrong_argument_is_refused_by_its_name(backend, name, value):
    with pytest.raises(DeclarationError, match=rf"got {name}=.*, expected"):
        DOORS[name](value, backend)


COUNTS = {
    "num_steps": lambda v, b: fit(num_steps=v, backend=b),
    "num_epochs": lambda v, b: fit(num_steps=None, num_epochs=v, backend=b),
    "batch_size": lambda v, b: fit(batch_size=v, backend=b),
    "eval_every": lambda v, b: fit(eval_every=v, backend=b),
    "checkpoint_every": lambda v, b: fit(checkpoint_every=v, backend=b),
    "gradient_accumulation": lambda v, b: fit(gradient_accumulation=v, backend=b),
    "num_samples": lambda v, b: pg.generate(FITTED, v, seed=0, backend=b),
    "chunk_size": lambda v, b: pg.evaluate(FITTED, X, [IWAE(2)], seed=0, chunk_size=v, backend=b),
}


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_is_a_whole_number_that_is_no_bool(backend, name):
    for value in NOT_COUNTS:
        with pytest.raises(DeclarationError, match=rf"got {name}=.*, expected a whole number"):
            COUNTS[name](value, backend)


@pytest.mark.parametrize("size", [True, 2.5, 0, "3", None])
def test_a_plate_has_a_whole_number_of_places(backend, size):
    @pg.model
    def repeated():
        with pg.data_plate():
            pg.sample("x", pg.dist.Normal(0.0, 1.0))
        with pg.plate("rows", size):
            pg.sample("w", pg.dist.Normal(0.0, 1.0))

    with pytest.raises(DeclarationError, match="plate 'rows': got size="):
        pg.fit(repeated, X[:, 0], SVI(ELBO()), backend=backend, **FIT)


@pytest.mark.parametrize(
    "make",
    [
        lambda: pg.dist.Normal(0.0, 1.0).expand(-1), lambda: pg.dist.Normal(0.0, 1.0).expand("3"),
        lambda: pg.dist.Normal(0.0, 1.0).expand([2.5]),
        lambda: pg.dist.Normal(0.0, 1.0).expand(None),
        lambda: pg.dist.Normal(0.0, 1.0).to_event(1.5),
        lambda: pg.dist.Normal(0.0, 1.0).to_event(True),
        lambda: pg.EarlyStopping(patience=0), lambda: pg.EarlyStopping(min_delta=float("nan")),
        lambda: pg.EarlyStopping(mode="least"), lambda: pg.EarlyStopping(monitor=None),
        lambda: pg.TensorBoard(None), lambda: pg.TensorBoard("events", every=1.5),
    ],
)  # fmt: skip
def test_what_is_declared_beside_declarations_is_checked_too(make):
    with pytest.raises(DeclarationError, match="got .*, expected"):
        make()


def test_names_of_arguments_are_checked_too(backend):
    with pytest.raises(UnknownName, match="fit: got an argument 'num_step'.*'num_steps'"):
        fit(num_step=3, backend=backend)
    with pytest.raises(UnknownName, match="fit: got an argument 'epochs'.*you mean 'num_epochs'"):
        fit(epochs=3, backend=backend)
    with pytest.raises(DeclarationError, match="generate: missing .*'num_samples'"):
        pg.generate(FITTED, seed=0, backend=backend)


@pytest.mark.parametrize("wrong", [None, 3, "tourch", object, 1.5])
def test_what_is_no_backend_is_refused(wrong):
    with pytest.raises(ProbgenError, match="backend.*expected"):
        fit(backend=wrong)


def test_more_than_memory_holds_is_refused_before_it_is_taken(backend):
    with pytest.raises(DeclarationError, match=r"generate.*of memory that are free"):
        pg.generate(FITTED, 10**9, seed=0, backend=backend)
    with pytest.raises(DeclarationError, match=r"generate: num_samples=.*memory that are free"):
        steps = Langevin(0.1, num_steps=10**7)
        pg.generate(FITTED, 10**4, seed=0, method=steps, return_chain=True, backend=backend)
    net = pg.nets.MLP((10**6, 10**6), out=3)
    with pytest.raises(DeclarationError, match="of memory that are free"):
        net.init(np.random.default_rng(0), (3,))
    with pytest.raises(DataError, match="of memory that are free"):
        pg.data.noise(10**9, (28, 28, 1), seed=0)


@pg.model
def mean_of_many():
    mu = pg.sample("mu", pg.dist.Normal(0.0, 1.0).expand([100]).to_event(1))
    with pg.data_plate():
        pg.sample("x", pg.dist.Normal(mu[0], 1.0))


def free_memory(monkeypatch, num_bytes):
    monkeypatch.setattr(memory, "available", lambda: num_bytes)


def test_more_draws_than_memory_holds_are_refused_before_the_first(backend, monkeypatch):
    """100 numbers a draw, on the line and as values: 8 bytes, so that 10**6 draws are 800 MB."""
    free_memory(monkeypatch, 7 * 10**8)
    for method in (Langevin(0.1, num_steps=10**6, num_chains=1), NUTS(num_samples=250_000)):
        with pytest.raises(DeclarationError, match="infer: .* draws of 100 numbers.* 800 MB.*thin"):
            pg.infer(mean_of_many, X[:, 0], method, seed=0, backend=backend)
    draws = {"mu": np.zeros((1, 100, 100), "f")}
    with pytest.raises(DeclarationError, match="generate: 100 sets of 1000000 data.*free"):
        pg.generate(mean_of_many, 100, seed=0, draws=draws, num_data=10**6, backend=backend)


def test_particles_are_asked_for_a_chunk_at_a_time(backend, monkeypatch):
    """Their terms take 36 bytes each; what a smaller chunk holds is not refused with a larger."""
    free_memory(monkeypatch, 10**8)
    for measure in (IWAE(10**6), ELBO(10**7), NegativeLogLikelihood(10**6)):
        with pytest.raises(DeclarationError, match="particles of 12 data at a time.*chunk_size"):
            pg.evaluate(FITTED, X, [measure], seed=0, backend=backend)
    table = pg.evaluate(FITTED, X, [IWAE(3)], seed=0, chunk_size=1, backend=backend)
    assert table.num_data == 12
    with pytest.raises(DeclarationError, match="10,000,000 particles of 12 data.*fewer particles"):
        fit(SVI(ELBO(10**7)), backend=backend)
    learner = pg.GradientLearner(len, pg.Adam(), needs_data=False)
    with pytest.raises(DeclarationError, match="batch_size=100,000,000 without data.*fewer"):
        pg.fit(FITTED.model, None, learner, batch_size=10**8, backend=backend, **FIT)


@pytest.mark.parametrize("wrong", [None, 3, b"\x00", "a\x00b", "x" * 5000])
def test_what_is_no_path_is_refused(wrong):
    for read in (pg.data.load_npz, pg.data.load_idx, pg.data.load_cifar, pg.data.load_svhn,
                 pg.data.load_image_folder, pg.Fitted.from_pretrained):  # fmt: skip
        with pytest.raises(ProbgenError, match="expected"):
            read(wrong)
