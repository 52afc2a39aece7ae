"""A conditional model through the verbs, its inputs one a datum and shared: p(y | x, shift).

y_i ~ N(w x_i + shift + z_i, 1), z_i ~ N(0, 1), w fitted by its bound: given x,
y ~ N(w x + shift, 2).
"""

import numpy as np
import pytest
from infer_cases import assert_moments, quick
from test_place import Stopped, names

import probgen as pg
from probgen import dist, nets
from probgen.engine.markov import chain_ends
from probgen.errors import OtherRun
from probgen.inference import ELBO, HMC, IWAE, SVI, Guide, Langevin, Target, climb
from probgen.records.chunks import ChunkStore

W, SHIFT = 1.5, 4.0
RNG = np.random.default_rng(0)
X = RNG.normal(size=400).astype(np.float32)
Y = (W * X + SHIFT + RNG.normal(size=400) * 2**0.5).astype(np.float32)


@pg.model
def regression(x, shift):
    w = pg.net("w", nets.Parameter(()))()
    with pg.data_plate():
        z = pg.sample("z", dist.Normal(0.0, 1.0))
        pg.sample("y", dist.Normal(w * x + shift + z, 1.0))


@regression.with_guide
def guided(x, y, shift):
    """The posterior itself, at its own w: N((y - w x - shift) / 2, 1/2)."""
    w = pg.net("v", nets.Parameter(()))()
    with pg.data_plate():
        pg.sample("z", dist.Normal((y - w * x - shift) / 2.0, np.float32(0.5**0.5)))


MALA = Langevin(0.3, 60, metropolis=True)
CHAINS = {"mala": MALA, "hmc": HMC(num_warmup=10, num_samples=10, num_steps=4, step_size=0.5)}


@pytest.fixture(scope="module")
def b(backend_name):
    return quick(backend_name)


@pytest.fixture(scope="module")
def fitted(b):
    return pg.fit(
        guided, {"y": Y}, SVI(ELBO(), pg.Adam(0.05)), inputs={"x": X, "shift": SHIFT}, seed=0,
        num_steps=150, batch_size=100, backend=b, progress_bar=False,
    )  # fmt: skip


def within(values, mean, num_errors=5.0):
    error = values.std() / np.sqrt(len(values))
    assert abs(values.mean() - mean) < num_errors * error, (values.mean(), mean, error)


def slope(fitted):
    return float(fitted.params["w"]["value"])


def test_fit_reads_each_datum_with_its_input(fitted):
    error = (2.0 / (X**2).sum()) ** 0.5
    assert abs(slope(fitted) - W) < 5 * error + 0.1


REPEATED = pytest.mark.repeated("test_generate_draws_under_the_inputs_that_it_is_given")


@pytest.mark.parametrize(
    ("method", "shift"),
    [
        (None, -1.0),
        ("mala", -1.0),
        pytest.param(None, SHIFT, marks=REPEATED),
        pytest.param("hmc", SHIFT, marks=REPEATED),
    ],
)
def test_generate_draws_under_the_inputs_that_it_is_given(b, fitted, method, shift):
    """Half of the samples at x = 0, half at x = 10; the constant of the fit may be another."""
    x = np.where(np.arange(1000) % 2, 10.0, 0.0).astype(np.float32)
    draws = pg.generate(
        fitted, 1000, seed=1, method=CHAINS.get(method), inputs={"x": x, "shift": shift}, backend=b
    )
    off = draws["y"].astype(np.float64) - slope(fitted) * x - shift
    within(off, 0.0)
    within(off**2, 2.0)
    within(draws["z"].astype(np.float64) * off, 1.0)


INFERS = {
    "guide": Guide(2000),
    "mala": Langevin(0.2, 300, metropolis=True, num_warmup=30, num_chains=4),
}


@pytest.mark.parametrize("name", INFERS)
def test_infer_reads_them_too(b, fitted, name):
    method = INFERS[name]
    x, y = np.array([0.0, 2.0], np.float32), np.array([5.0, 5.0], np.float32)
    where = "auto" if b.name == "jax" else b  # auto is the backend that fitted
    draws = pg.infer(
        fitted, {"y": y}, method, inputs={"x": x}, seed=0, backend=where, progress_bar=False
    )
    assert draws.attrs["backend"] == b.name and set(draws.posterior.data_vars) == {"z"}
    w = slope(fitted) if name == "mala" else float(fitted.params["v"]["value"])
    mean = (y.astype(np.float64) - w * x - SHIFT) / 2.0
    assert_moments(draws.posterior.z.values, mean, 0.5 * np.eye(2), "z")


def test_evaluate_reads_them_too(b, fitted):
    x, y = X[:5], Y[:5]
    table = pg.evaluate(fitted, {"y": y}, [IWAE(500)], inputs={"x": x}, seed=0, backend=b,
                        chunk_size=5, progress_bar=False)  # fmt: skip
    off = y.astype(np.float64) - slope(fitted) * x - SHIFT
    exact = -0.25 * off**2 - 0.5 * np.log(4.0 * np.pi)
    np.testing.assert_allclose(table["IWAE(500)"].estimate, exact, atol=0.1)


# Chunks of chains hold what those of ancestral draws do, and the chains.
NO_CHAIN = pytest.param(
    None, marks=pytest.mark.repeated("test_samples_go_on_after_a_kill_to_the_same_bits")
)


@pytest.mark.parametrize("method", [NO_CHAIN, "mala"])
def test_samples_go_on_after_a_kill_to_the_same_bits(b, fitted, method, tmp_path, monkeypatch):
    options = {
        "seed": 3, "method": CHAINS.get(method), "inputs": {"x": X[:50]}, "chunk_size": 20,
        "backend": b, "return_chain": method is not None,
    }  # fmt: skip
    whole, path, real = pg.generate(fitted, 50, **options), tmp_path / "samples", ChunkStore.write
    seen = []

    def write(self, start, *args):
        real(self, start, *args)
        seen.append(start)
        if start == 20 and len(seen) == 2:
            raise Stopped

    monkeypatch.setattr(ChunkStore, "write", write)
    with pytest.raises(Stopped):
        pg.generate(fitted, 50, **options, path=path)
    for _ in ("goes on", "reads"):
        again = pg.generate(fitted, 50, **options, path=path)
        assert again.note == whole.note and list(again) == list(whole)
        for group, other in ((again, whole), (again.chain or {}, whole.chain or {})):
            assert group.keys() == other.keys()
            for n in group:
                np.testing.assert_array_equal(group[n], other[n], err_msg=n)
    assert seen == [0, 20, 40] and names(tmp_path) == ["samples"]
    with pytest.raises(OtherRun, match="another inputs .x."):
        pg.generate(fitted, 50, **{**options, "inputs": {"x": X[1:51]}}, path=path)


class Descends:
    """x = a + eps learns to follow a drift: the mean over eps of (x - stop(x + h d(x)))^2."""

    def __init__(self, target):
        self.target = target

    def bind(self, bound):
        b, ops = bound.backend, bound.backend.ops
        up = climb(b, self.target)
        optimizer = bound.optimizer(pg.SGD(0.5))

        def drawn(params, batch, key):
            size = bound.num_draws
            sites = bound.trace(params, batch, key=key, batch_size=size, condition=False)
            return {"x": sites["x"].value}

        def loss(params, goal, batch, key):
            return ops.mean((drawn(params, batch, key)["x"] - goal["x"]) ** 2)

        def init(params, key, batch, extras):
            return {"params": params, "frozen": {}, "opt": optimizer.init(params)}

        def update(state, batch, key):
            x = drawn(state["params"], batch, key)
            goal = {"x": x["x"] + 0.5 * up(x, state["params"], batch)[1]["x"]}
            value, grads = b.value_and_grad(loss)(state["params"], goal, batch, key)
            params, opt = optimizer.update(grads, state["opt"], state["params"])
            return {"params": params, "frozen": {}, "opt": opt}, {"loss": value}

        return pg.Learner(init, update, needs_data=False)


def test_a_generator_descends_a_drift_that_is_given(b):
    """Without data, towards 3: a' = a + (1/2) (3 - mean x); and a chain follows it too."""

    @pg.model
    def generator():
        a = pg.net("a", nets.Parameter(()))()
        with pg.data_plate():
            pg.sample("x", dist.Normal(a, 0.1))

    target = Target(
        ("x",), lambda params, batch, key, n: {"x": b.normal(key, (n,))}, None,
        lambda x, params, batch: {"x": 3.0 - x["x"]}, lambda x, params, batch: x, False,
    )  # fmt: skip
    fit = pg.fit(generator, None, Descends(target), num_steps=40, batch_size=64, seed=0, backend=b,
                 progress_bar=False)  # fmt: skip
    assert abs(float(fit.params["a"]["value"]) - 3.0) < 5 * 0.1 / 8
    values, _, stats = chain_ends(b, Langevin(0.5, 30, noise_size=0.0), target)({}, {}, b.key(0), 7)
    np.testing.assert_allclose(b.to_numpy(values["x"]), 3.0, atol=1e-5)
    assert not b.to_numpy(stats["diverged"]).any()
