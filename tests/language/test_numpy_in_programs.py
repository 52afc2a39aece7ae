"""Numpy in a program: arrays that it closes over compute with values of the run; numpy's functions
of such values are refused in words, since a compiled program would keep their first numbers."""

import numpy as np
import pytest
import scipy.stats as st

import probgen as pg
from probgen import dist, nets, ops
from probgen.engine.bind import bind
from probgen.errors import DeclarationError, ShapeError

TABLE = np.array([-1.0, 1.0])  # float64, as numpy makes them
GRID = np.arange(6.0).reshape(2, 3)
X = np.random.default_rng(0).normal(size=(4, 3))


def from_a_helper(z):
    return TABLE[z]


def switched(loc):
    """z ~ Bernoulli(1/2) as a class, x ~ Normal(loc(z), 1)."""

    @pg.model
    def model():
        with pg.data_plate():
            z = pg.sample("z", dist.Categorical(logits=np.zeros(2, np.float32)))
            pg.sample("x", dist.Normal(loc(z), 1.0))

    return model


@pytest.mark.parametrize(
    "loc",
    [lambda z: np.exp(1.0 * z), lambda z: np.asarray(z) * 1.0],
    ids=["function", "asarray"],
)
def test_numpys_hold_on_a_value_of_the_run_is_refused_in_words(backend, loc):
    """Before: numpy's own error on JAX; on torch a compiled program kept the first run's number."""
    words = r"(?s)programs.py:\d+: got a numpy array or function .*pg\.ops\.asarray\(table\)"
    with pytest.raises(DeclarationError, match=words):
        bind(switched(loc), backend, data={"x": np.zeros(1, np.float32)})


@pytest.mark.parametrize("kind", ["asarray", "net", "global", "closure", "helper", "two axes"])
def test_a_table_indexed_by_a_discrete_latent_is_read_anew_in_every_run(backend, kind):
    """Compiled too; a net's table in the first run, where it is fresh, too."""
    own = TABLE.copy()
    loc = {
        "asarray": lambda z: ops.asarray(TABLE)[z],
        "net": lambda z: pg.net("table", nets.Parameter((2,)))()[z],
        "global": lambda z: TABLE[z],
        "closure": lambda z: own[z],
        "helper": lambda z: from_a_helper(z),
        "two axes": lambda z: GRID[z, 1] / 1.5 - 5 / 3,
    }[kind]
    x = np.float32([0.5, -0.5])
    bound, params = bind(switched(loc), backend, data={"x": x})
    params = backend.tree_map(lambda _: backend.asarray(TABLE), params)
    log_prob = backend.compile(
        lambda z: bound.trace(params, {"x": backend.asarray(x)}, {"z": z})["x"].log_prob,
        num_calls=1000,
    )
    for z in ([0, 1], [1, 0]):
        want = st.norm(TABLE[z]).logpdf(x)
        got = backend.to_numpy(log_prob(backend.asarray(np.array(z, np.int32))))
        np.testing.assert_allclose(got, want, rtol=1e-6)
    assert type(TABLE) is type(own) is np.ndarray  # as they were


FORMS = {
    "w * X": lambda w: (w * X).sum(-1), "X * w": lambda w: (X * w).sum(-1),
    "X @ w": lambda w: X @ w,
    "matmul": lambda w: ops.matmul(X, w), "sums": lambda w: (X @ w) / 2.0 + (w * X).sum(-1) / 2.0,
    "of numpy alone": lambda w: ops.matmul(np.exp(np.log(np.abs(X))) * np.sign(X), w),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_arrays_that_a_program_closes_over_compute_with_its_values(backend, form):
    """log p and its gradient of y = X w + noise, compiled: in w, by hand."""
    mean = FORMS[form]

    @pg.model
    def model():
        w = pg.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pg.plate("rows", 4):
            pg.sample("y", dist.Normal(mean(w), 1.0))

    y = np.arange(4.0, dtype=np.float32)
    bound, params = bind(model, backend, data={"y": y}, whole=True)

    def loss(w):
        sites = bound.trace(params, {"y": backend.asarray(y)}, {"w": w})
        return ops.sum(sites["y"].log_prob)

    compiled = backend.compile(backend.value_and_grad(loss), num_calls=1000)
    for w in np.eye(3, dtype=np.float32):
        value, grad = (backend.to_numpy(v) for v in compiled(backend.asarray(w)))
        left = y - X @ w
        np.testing.assert_allclose(value, st.norm().logpdf(left).sum(), rtol=1e-5)
        np.testing.assert_allclose(grad, X.T @ left, rtol=1e-4, atol=1e-5)


COUNT = np.zeros(1)


def test_what_a_program_puts_in_place_of_an_array_stays(b):
    """Arrays are lent to a run, not put back over what the program has made of their names."""

    @pg.model
    def model():
        global COUNT
        COUNT = np.asarray(COUNT) + 1.0
        with pg.data_plate():
            pg.sample("x", dist.Normal(0.0, 1.0))

    bind(model, b, data={"x": np.zeros(2, np.float32)})
    assert COUNT[0] >= 1.0


def test_rows_that_a_program_closes_over_are_told_to_come_by_inputs(b):
    """`.to_event(1)` alone, the advice of before, gave another model in silence."""
    trend = np.arange(5.0)

    @pg.model
    def model():
        slope = pg.sample("slope", dist.Normal(0.0, 1.0))
        with pg.data_plate():
            pg.sample("x", dist.Normal(slope * trend, 1.0))

    with pytest.raises(ShapeError, match=r"make it an argument of the program.*inputs=\{"):
        bind(model, b, data={"x": np.zeros(2, np.float32)})
