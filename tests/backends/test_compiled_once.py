"""A second verb of the same structure and shapes compiles nothing, and nothing kept is stale."""

import gc
import importlib.util
import weakref

import numpy as np
import pytest
from compilations import Compilations
from scipy import stats

import probgen as pg
from probgen import backends, dist, nets
from probgen.backends.compiled_store import Store, programs
from probgen.backends.protocol import Optimizer
from probgen.inference import ELBO, HMC, SVI, Langevin

ROUTE = {"torch": {"compile": "graph"}, "jax": {}}
KNOWN = {"shift": 0.0}  # what the program closes over
METHOD = HMC(num_warmup=10, num_samples=10, num_chains=1, num_steps=2)


def declared():
    """Made anew at each call, as by a user who runs a cell of a notebook again."""

    @pg.model
    def program(covariates):
        weight = pg.net("weight", nets.Parameter((3,)))()
        with pg.data_plate():
            z = pg.sample("z", dist.Normal(KNOWN["shift"], 1.0))
            pg.sample("x", dist.Normal(covariates @ weight + z, 1.0))

    @program.with_guide
    def guided(x, covariates):
        encoder = pg.net("encoder", nets.MLP((2,), out=()))
        with pg.data_plate():
            pg.sample("z", dist.Normal(encoder(covariates), 0.7))

    return guided


def data(seed, size=24):
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=size), "covariates": rng.normal(size=(size, 3))}


def drawn_and_scored(b, fitted, seed):
    rows = data(seed)
    table = pg.evaluate(
        fitted, rows, [ELBO(2)], seed=seed, backend=b, chunk_size=8, progress_bar=False
    )
    covariates = {"covariates": rows["covariates"]}
    drawn = pg.generate(fitted, 24, inputs=covariates, backend=b, seed=seed)
    return {"evaluate": table["ELBO(2)"]["estimate"], "generate": drawn["x"]}


def run(name, seed):
    """Every verb once, and what each gave: other data, parameters and keys for each seed."""
    b, rows = backends.load(name, "cpu", **ROUTE[name]), data(seed)
    fitted = pg.fit(
        declared(), rows, SVI(ELBO()), backend=b, batch_size=8, num_steps=20, validation=rows,
        seed=seed, progress_bar=False,
    )  # fmt: skip
    chains = pg.infer(
        fitted, {"x": rows["x"]}, METHOD, inputs={"covariates": rows["covariates"]}, backend=b,
        log_likelihood=True, seed=seed, progress_bar=False,
    )  # fmt: skip
    values = {"fit": fitted.params["weight"]["value"], "infer": chains.posterior["z"].values}
    return fitted, values | drawn_and_scored(b, fitted, seed)


@pytest.fixture(scope="module")
def runs(backend_name):
    """(what was compiled, the fit, results) of a first run, one of other data, the first again."""
    backends.forget()
    found = []
    for seed in (0, 1, 0):
        with Compilations(backend_name) as seen:
            out = run(backend_name, seed)
        found.append((seen.names, *out))
    return found


def test_a_second_run_of_each_verb_compiles_nothing(runs, backend_name):
    (first, *_), (second, *_), (again, *_) = runs
    assert first and not second and not again


def test_what_is_kept_gives_what_was_given_before_and_new_numbers_for_new_data(runs):
    (*_, first), (*_, second), (*_, again) = runs
    for verb in first:
        np.testing.assert_array_equal(first[verb], again[verb], err_msg=verb)
        assert (first[verb] != second[verb]).any(), verb


def test_a_number_that_a_program_closes_over_is_never_stale(runs, backend_name, monkeypatch):
    """z moves by 5, so does x, and the ELBO is that of x - 5 under the old program."""
    _, fitted, before = runs[0]
    b = backends.load(backend_name, "cpu", **ROUTE[backend_name])
    monkeypatch.setitem(KNOWN, "shift", 5.0)
    after = drawn_and_scored(b, fitted, 0)
    np.testing.assert_allclose(after["generate"], before["generate"] + 5.0, atol=1e-5)
    assert (after["evaluate"] < before["evaluate"]).all()
    monkeypatch.setitem(KNOWN, "shift", 0.0)
    back = drawn_and_scored(b, fitted, 0)
    for verb, values in back.items():
        np.testing.assert_array_equal(values, before[verb], err_msg=verb)


def test_other_shapes_are_compiled_anew(runs, backend_name):
    b = backends.load(backend_name, "cpu", **ROUTE[backend_name])
    with Compilations(backend_name) as seen:
        pg.evaluate(
            runs[0][1], data(0), [ELBO(2)], seed=0, backend=b, chunk_size=12, progress_bar=False
        )
    assert seen.names


# ---- the store


def test_the_store_holds_so_many_programs_and_bytes_and_drops_the_least_recently_used():
    store = Store(size=3, room=100)
    made = []

    def get(token, size=0):
        return store.get(token, lambda: made.append(token) or token, lambda _: size)

    for token in ("a", "b", "c", "a", "d", "a", "c"):
        assert get(token) == token
    assert made == ["a", "b", "c", "d"]  # b went for d
    get("b", 80)
    get("e", 30)
    assert len(store) <= 2 and made[-2:] == ["b", "e"]
    get("large", 101)
    assert len(store) == 0
    store.get(None, lambda: 1)
    assert len(store) == 0


def test_forget_empties_it(backend):
    fn = backend.compile(lambda x: x + 1.0, 8)
    fn(backend.asarray(np.zeros(3)))
    backends.forget()
    assert len(programs) == 0
    np.testing.assert_array_equal(backend.to_numpy(fn(backend.asarray(np.zeros(3)))), 1.0)


# ---- what is no program of its own


def test_functions_that_call_back_to_python_are_not_shared():
    jax = pytest.importorskip("jax")
    b = backends.load("jax", "cpu")
    like = jax.ShapeDtypeStruct((), np.float32)

    def through(factor):
        return b.compile(
            lambda x: jax.pure_callback(lambda v: np.float32(factor) * np.asarray(v), like, x)
        )

    x, before = b.asarray(np.float32(1.0)), len(programs)
    assert [float(through(factor)(x)) for factor in (2.0, 3.0)] == [2.0, 3.0]
    assert len(programs) == before  # another function may come to stand at the address of one


def test_an_array_that_a_function_closes_over_is_an_argument_of_its_program():
    """So another one compiles nothing, and the store keeps none alive."""
    jax = pytest.importorskip("jax")
    b = backends.load("jax", "cpu")

    def scaled(factors):
        return b.compile(lambda x: jax.lax.scan(lambda c, f: (c * f, None), x, factors)[0])

    one, two = b.asarray(np.full(3, 2.0)), b.asarray(np.full(3, 3.0))
    x = b.asarray(np.float32(1.0))
    assert float(scaled(one)(x)) == 8.0
    with Compilations("jax") as seen:
        assert float(scaled(two)(x)) == 27.0
    assert not seen.names
    alive = [weakref.ref(one), weakref.ref(two)]
    del one, two
    gc.collect()
    assert [ref() for ref in alive] == [None, None]


def test_a_tensor_that_a_function_closes_over_is_an_input_of_its_graph():
    """Whoever shares a graph goes on with tensors of its own, and the store keeps none alive."""
    torch = pytest.importorskip("torch")
    b = backends.load("torch", "cpu", compile="graph")

    def scaled(factors):
        return b.compile(lambda x: x * factors.exp())

    one, two, x = torch.ones(3), torch.ones(3), torch.ones(3)
    first = scaled(one)
    first(x)
    with Compilations("torch") as seen:
        second = scaled(two)
        second(x)
        two.mul_(2.0)
        np.testing.assert_allclose(second(x), np.exp(2.0) * np.ones(3), rtol=1e-6)
        np.testing.assert_allclose(first(x), np.exp(1.0) * np.ones(3), rtol=1e-6)
    assert not seen.names
    np.testing.assert_allclose(scaled(two)(x), np.exp(2.0) * np.ones(3), rtol=1e-6)
    alive = [weakref.ref(each) for each in (one, two, x)]
    del one, two, x, first, second
    gc.collect()
    assert [ref() for ref in alive] == [None] * 3


def test_what_a_function_computes_with_is_part_of_what_it_is():
    """Of these pairs the first is traced, and the second is another function."""
    torch = pytest.importorskip("torch")
    b = backends.load("torch", "cpu", compile="graph")
    x = torch.ones(2)

    def of(value):
        return b.compile(lambda x: x * value)

    def of_array(value):
        return b.compile(lambda x: x * b.asarray(value))

    def within(rate):
        held = Optimizer(None, lambda x: x * rate)
        return b.compile(lambda x: held.update(x))

    def inner(value):
        step = of(value)
        return b.compile(lambda x: step(x) + 1.0)

    pairs = [
        (of(2.0), of(3.0), 2.0, 3.0), (within(2.0), within(5.0), 2.0, 5.0),
        (of_array(np.full(2, 2.0)), of_array(np.full(2, 4.0)), 2.0, 4.0),
        (inner(2.0), inner(6.0), 3.0, 7.0),
    ]  # fmt: skip
    for one, other, first, second in pairs:
        assert (float(one(x)[0]), float(other(x)[0])) == (first, second)
    fn = b.compile(lambda x, n: x * len(repr(n)))  # these are equal, and not the same
    assert [float(fn(x, n)[0]) for n in (1, 1.0, True)] == [1.0, 3.0, 4.0]


@pytest.mark.skipif(not importlib.util.find_spec("numpyro"), reason="needs JAX")
def test_outside_a_trace_density_and_support_are_one_program_each():
    """Also with numbers for arguments, as NumPyro keeps them; JAX compiles every lone operation."""
    import jax

    from probgen.backends.jax.distributions import OWN

    law, x = OWN["Gamma"](2.5, 1.5), jax.device_put(np.full((7, 3), 0.4, np.float32))
    with Compilations("jax") as seen:
        density, inside = law.log_prob(x), law.holds(x)
    assert len(seen.names) == 2 and bool(inside.all())
    np.testing.assert_allclose(density, stats.gamma(2.5, scale=1 / 1.5).logpdf(0.4), rtol=1e-5)


@pytest.mark.skipif(not importlib.util.find_spec("numpyro"), reason="needs JAX")
def test_a_gradients_own_rule_and_the_names_of_sites_are_part_of_what_a_posterior_is():
    """A notebook's cell is changed and run again: the same density, another rule of its gradient,
    another name of what is deterministic."""
    import jax

    def drawn(factor, name):
        f = jax.custom_vjp(lambda z: z)
        f.defvjp(lambda z: (z, None), lambda _, g: (factor * g,))

        @pg.model
        def program():
            z = pg.sample("z", dist.Normal(0.0, 1.0))
            pg.deterministic(name, 2.0 * z)
            with pg.data_plate():
                pg.sample("x", dist.Normal(f(z), 1.0))

        x = np.float32([3.0, 4.0])
        method = Langevin(0.1, 3, num_chains=1)
        return pg.infer(program, x, method, seed=0, backend="jax", progress_bar=False).posterior

    first, other, renamed = drawn(1.0, "a"), drawn(-1.0, "a"), drawn(1.0, "b")
    assert not np.allclose(first.z.values, other.z.values)
    np.testing.assert_array_equal(first["a"].values, renamed["b"].values)
