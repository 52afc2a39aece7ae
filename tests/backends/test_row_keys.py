"""Row keys: the noise of a datum is its own, whatever data are beside it.

    row_keys(key, ids)[i] = fold_in(key, ids[i])

Every draw from row keys has the data's axis first, and its row i is what fold_in(key, ids[i]) alone
would draw. `compile(over="rows")` and `minimise_rows` keep that law for whole functions.
"""

import numpy as np
import pytest
from at_once import terms_of
from floats import float64

import probgen as pg
from probgen import backends, dist, nets
from probgen.engine.bind import bind
from probgen.errors import NotByRow, ShapeError

IDS = np.array([0, 5, 2**30 + 3, 7])


@pytest.mark.parametrize("draw", ["normal", "uniform", "randint"])
def test_each_row_is_the_draw_of_its_own_key(b, draw):
    """Row i does not depend on the other ids, their number, or their order."""
    key, more = b.key(3), (0, 10) if draw == "randint" else ()
    sample = getattr(b, draw)
    whole = b.to_numpy(sample(b.row_keys(key, IDS), (4, 3, 2), *more))
    for i, number in enumerate(IDS):
        alone = sample(b.row_keys(key, IDS[i : i + 1]), (1, 3, 2), *more)
        np.testing.assert_array_equal(b.to_numpy(alone)[0], whole[i])
        plain = sample(b.fold_in(key, int(number)), (3, 2), *more)
        np.testing.assert_array_equal(b.to_numpy(plain), whole[i])
    turned = b.to_numpy(sample(b.row_keys(key, IDS[::-1].copy()), (4, 3, 2), *more))
    np.testing.assert_array_equal(turned[::-1], whole)
    assert len(np.unique(whole.reshape(4, -1), axis=0)) == 4


def test_split_and_fold_in_go_row_by_row(b):
    key = b.key(1)
    keys = b.row_keys(key, IDS)
    for i, number in enumerate(IDS):
        one = b.fold_in(key, int(number))
        folded = b.to_numpy(b.normal(b.fold_in(keys, 9), (4, 5)))[i]
        np.testing.assert_array_equal(folded, b.to_numpy(b.normal(b.fold_in(one, 9), (5,))))
        for part in range(3):
            rows = b.to_numpy(b.normal(b.split(keys, 3)[part], (4, 5)))[i]
            np.testing.assert_array_equal(rows, b.to_numpy(b.normal(b.split(one, 3)[part], (5,))))


def test_draws_of_different_data_are_independent(b):
    """4,000 data with neighbouring numbers: standard normal draws, no correlation within sites."""
    count = 4000
    keys = b.row_keys(b.key(0), np.arange(count))
    x = b.to_numpy(b.normal(keys, (count, 2))).astype(np.float64)
    assert (np.abs(x.mean(0)) < 5 / np.sqrt(count)).all()
    assert (np.abs(x.std(0) - 1) < 5 / np.sqrt(2 * count)).all()
    lag = [(x[1:, 0] * x[:-1, 0]).mean(), (x[:, 0] * x[:, 1]).mean()]
    assert (np.abs(lag) < 5 / np.sqrt(count)).all()


def test_a_shape_without_the_data_in_front_is_refused(b):
    keys = b.row_keys(b.key(0), IDS)
    for shape in ((), (3,), (5, 4)):
        with pytest.raises(ShapeError, match="4 data, expected the data's axis first"):
            b.normal(keys, shape)


# ---- programs -----------------------------------------------------------------------------------


@pg.model
def pair():
    """A vector and, in a further plate, three scalars for each datum."""
    with pg.data_plate():
        pg.sample("z", dist.Normal(1.0, 2.0).expand([2]).to_event(1))
        with pg.plate("parts", 3):
            pg.sample("w", dist.Normal(0.0, 1.0))


@pg.model
def gamma():
    with pg.data_plate():
        pg.sample("z", dist.Gamma(2.0, 1.0))


@pg.model
def shared():
    pg.sample("top", dist.Normal(0.0, 1.0))
    with pg.data_plate():
        pg.sample("z", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize("num_particles", [None, 4])
def test_sites_of_a_program_draw_by_row(b, num_particles):
    """With particles and with a plate inside the data's, whichever axis the data's is."""
    bound, params = bind(pair, b, seed=0)
    key = b.key(2)

    def draws(ids):
        keys = b.row_keys(key, ids)
        options = {"num_particles": num_particles, "batch_size": len(ids)}
        sites = terms_of(b, bound.trace, params, {}, key=keys, **options)
        return {n: value for n, (value, _) in sites.items()}

    whole = draws(IDS)
    lead = () if num_particles is None else (num_particles,)
    assert whole["w"].shape == (*lead, 3, 4) and whole["z"].shape[-2:] == (4, 2)
    for i in range(4):
        alone = draws(IDS[i : i + 1])
        for name, axis in (("w", -1), ("z", -2)):
            np.testing.assert_array_equal(
                np.take(whole[name], [i], axis), alone[name], err_msg=name
            )


@pytest.mark.parametrize("model", [gamma, shared])
def test_what_cannot_be_drawn_by_row_says_so(b, model):
    """A Gamma is no function of normal noise, and a global site no datum's."""
    bound, params = bind(model, b, seed=0)
    with pytest.raises(NotByRow, match="expected a local site that is a function of normal noise"):
        bound.trace(params, {}, key=b.row_keys(b.key(0), IDS), batch_size=4)


@pytest.mark.parametrize("model", [pair, gamma])
def test_by_row_gives_each_datum_its_own_draw(b, model):
    """Also where draws are no function of noise: the data are then taken one by one."""
    bound, params = bind(model, b, seed=0)

    def fn(params, batch, key):
        sites = bound.trace(params, {}, key=key, batch_size=batch["x"].shape[0])
        return {"out": b.ops.reshape(sites["z"].value, (batch["x"].shape[0], -1)), "x": batch["x"]}

    run = b.compile(fn, 8, over="rows")
    x = np.arange(4.0, dtype=np.float32)
    key = b.key(4)
    whole = run(params, {"x": b.asarray(x)}, b.row_keys(key, IDS))
    np.testing.assert_array_equal(b.to_numpy(whole["x"]), x)
    out = b.to_numpy(whole["out"])
    assert len(np.unique(out[:, 0])) == 4
    for part in ([2], [3, 1], [0, 1, 2, 3, 0]):
        keys = b.row_keys(key, IDS[part])
        some = run(params, {"x": b.asarray(x[part])}, keys)
        np.testing.assert_array_equal(b.to_numpy(some["out"]), out[part])
    again = run(params, {"x": b.asarray(x)}, b.row_keys(key, IDS))
    np.testing.assert_array_equal(b.to_numpy(again["out"]), out)


@pytest.mark.parametrize("num_calls, route", [(1, "live"), (2, "graph")])
def test_data_taken_one_by_one_are_compiled_for_as_many_calls_as_there_are(num_calls, route):
    """Four data a call: inductor, whose compilation takes seconds, is not worth its while."""
    pytest.importorskip("pyro")
    torch = backends.load("torch", "cpu")
    bound, params = bind(gamma, torch, seed=0)
    run = torch.compile(
        lambda params, batch, key: bound.trace(params, {}, key=key, batch_size=1)["z"].value,
        num_calls, over="rows",
    )  # fmt: skip
    run(params, {"x": torch.asarray(np.zeros(4))}, torch.row_keys(torch.key(0), IDS))
    routes = torch.info()["routes"]
    assert route in routes and "inductor" not in routes


def test_drawing_leaves_the_callers_random_state(b):
    """numpy's and torch's own generators go on as if nothing had been drawn."""
    states = [np.random.get_state()[1].copy()]
    torch = pytest.importorskip("torch") if b.name == "torch" else None
    if torch is not None:
        states.append(torch.get_rng_state().numpy())
    bound, params = bind(gamma, b, seed=0)
    run = b.compile(
        lambda p, x, k: bound.trace(p, {}, key=k, batch_size=x.shape[0])["z"].value, over="rows"
    )
    run(params, b.asarray(np.zeros(4, np.float32)), b.row_keys(b.key(0), IDS))
    b.normal(b.row_keys(b.key(0), IDS), (4, 2))
    np.testing.assert_array_equal(states[0], np.random.get_state()[1])
    if torch is not None:
        np.testing.assert_array_equal(states[1], torch.get_rng_state().numpy())


# ---- one optimisation for each datum ------------------------------------------------------------


def descent(b, num_steps, rows_at_once, optimizer, keep_at=0, num_rows=5):
    """theta <- a descent on (theta - x - noise_t)^2 / 2 from theta = shared; returns the run."""

    def loss(theta, shared, x, key):
        off = theta["t"] - x["x"] - b.normal(key, (2,))
        return 0.5 * b.ops.sum(off * off)

    def finish(theta, kept, shared, x, key):
        return {"end": theta["t"], "kept": kept["t"], "x": x["x"], "drawn": b.normal(key, (2,))}

    return b.minimise_rows(
        optimizer, loss, init=lambda shared, x: {"t": shared["s"] + 0.0 * x["x"]}, finish=finish,
        num_steps=num_steps, keep_at=keep_at, rows_at_once=rows_at_once, num_rows=num_rows,
    )  # fmt: skip


X = np.array([[0.0, 1.0], [2.0, -1.0], [5.0, 5.0], [-3.0, 0.5], [1.0, 1.0]], np.float32)
IDS5 = np.array([3, 1, 4, 1, 5])


@pytest.mark.parametrize("rows_at_once, kept", [(1, 4), (2, 0), (3, 6), (8, 4)])
def test_each_datum_is_optimised_on_its_own(b, rows_at_once, kept):
    """SGD by hand: theta_{t+1} = theta_t - h (theta_t - x - eps_t), eps_t from fold_in(key, t).

    `kept` is theta after that many steps; the shared array and a repeated datum stay what they are;
    the order of the data is kept, also where the last stack is not full.
    """
    rate, steps, key = 0.3, 7, b.key(1)
    shared = {"s": b.asarray(np.array([0.5, -0.5], np.float32))}
    before = b.to_numpy(shared["s"]).copy()
    run = descent(b, steps, rows_at_once, pg.SGD(rate), kept)
    out = run(shared, {"x": b.asarray(X)}, b.row_keys(key, IDS5))
    for i, number in enumerate(IDS5):
        own = b.fold_in(key, int(number))
        theta = np.array([0.5, -0.5])
        for t in range(steps):
            if t == kept:
                np.testing.assert_allclose(b.to_numpy(out["kept"])[i], theta, rtol=2e-5, atol=1e-6)
            eps = b.to_numpy(b.normal(b.fold_in(own, t), (2,)))
            theta = theta - rate * (theta - X[i] - eps)
        np.testing.assert_allclose(b.to_numpy(out["end"])[i], theta, rtol=2e-5, atol=1e-6)
        np.testing.assert_array_equal(b.to_numpy(out["drawn"])[i], b.to_numpy(b.normal(own, (2,))))
    np.testing.assert_array_equal(b.to_numpy(out["x"]), X)
    np.testing.assert_array_equal(b.to_numpy(shared["s"]), before)


REPEATED = pytest.mark.repeated("test_every_optimiser_is_the_same_in_stacks_and_alone")


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(pg.Adam(1e-2), marks=REPEATED),
        pg.Adam(pg.CosineDecay(1e-1, 20), weight_decay=0.1),
        pg.AdamW(1e-2, weight_decay=0.1),
        pg.Adam(1e-2, clip_norm=0.1, clip_by_moment=(3.0, 0.1)),
        pg.SGD(1e-2, momentum=0.9, nesterov=True, weight_decay=0.1),
        pytest.param(pg.SGD(1e-1, clip_norm=0.5), marks=REPEATED),
    ],
    ids=repr,
)
def test_every_optimiser_is_the_same_in_stacks_and_alone(b, optimizer):
    """Elementwise updates of a stack are those of its rows; so is a clip, whose norm is a row's.

    And a datum whose pull is a hundred times as strong changes nothing for the others.
    """
    strong = X * np.array([[1], [1], [100], [1], [1]])
    with float64(b):
        shared, keys = {"s": b.asarray(np.array([0.5, -0.5]))}, b.row_keys(b.key(1), IDS5)

        def end(rows_at_once, x):
            run = descent(b, 20, rows_at_once, optimizer)
            return b.to_numpy(run(shared, {"x": b.asarray(x.astype(np.float64))}, keys)["end"])

        alone, stacked, other = end(1, X), end(3, X), end(3, strong)
    np.testing.assert_allclose(alone, stacked, rtol=1e-10)
    others = [0, 1, 3, 4]
    np.testing.assert_allclose(other[others], stacked[others], rtol=1e-10)
    assert np.abs(other[2] - stacked[2]).max() > 1e-4


def test_how_many_at_once_is_a_positive_number_that_falls_with_size(b):
    counts = [b.rows_at_once(n) for n in (1, 10**3, 10**5, 10**6, 10**9)]
    assert counts == sorted(counts, reverse=True) and counts[-1] >= 1


# ---- the first layer of an MLP by its output ----------------------------------------------------


@pytest.mark.parametrize("hidden", [(), (5,), (5, 4)])
def test_a_folded_mlp_is_the_mlp(b, hidden):
    """apply({**rest, first: {"folded": W x + b}}) = apply(params, x), without x."""
    net = nets.MLP(hidden=hidden, out=3, heads=("loc", "log_scale"))
    params = b.tree_map(lambda a: b.asarray(a + 0.5), net.init(np.random.default_rng(0), (2, 3)))
    x = b.asarray(np.random.default_rng(1).normal(size=(4, 2, 3)).astype(np.float32))
    rest, h = net.fold(params, x)
    assert net.first_layer() not in rest and h.shape == (4, (*hidden, 6)[0])
    plain = net.apply(params, x)
    for given in (x, None):  # None: it is not read
        folded = net.apply({**rest, net.first_layer(): {"folded": h}}, given)
        for head in plain:
            np.testing.assert_array_equal(b.to_numpy(folded[head]), b.to_numpy(plain[head]))


def test_a_spectral_layer_cannot_be_folded(b):
    net = nets.MLP(hidden=(5,), out=3, spectral=True)
    params = b.tree_map(b.asarray, net.init(np.random.default_rng(0), (6,)))
    with pytest.raises(pg.errors.DeclarationError, match="expected a plain linear first layer"):
        net.fold(params, b.asarray(np.zeros((1, 6), np.float32)))
