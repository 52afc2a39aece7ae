"""Discrete latents along a long loop, summed out by messages: against numpy's forward algorithm."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

import probgen as pg
from probgen import dist, nets, ops
from probgen.engine import messages
from probgen.engine.bind import bind
from probgen.engine.combinations import Choices, Table, probabilities
from probgen.engine.data_support import SupportCheck
from probgen.engine.explain import explain
from probgen.engine.posterior import Posterior
from probgen.errors import AlgorithmError, SupportError
from probgen.inference import ELBO, EM, SVI, Enumerate

K, T, N = 3, 200, 2
RNG = np.random.default_rng(0)
PARAMS = {
    "start": {"value": np.float32([0.3, -0.4, 0.1])},
    "move": {"value": RNG.normal(size=(K, K)).astype("float32")},
    "level": {"value": np.float32([-1.0, 0.2, 1.5])},
}
X = RNG.normal(size=(N, T)).astype("float32")


def moments(length):
    """The loop of a hidden Markov model, around which programs stand."""
    start, move, level = (pg.net(n, nets.Parameter(v["value"].shape))() for n, v in PARAMS.items())

    def step(logits, _):
        z = pg.sample("z", dist.Categorical(logits=logits))
        pg.deterministic("mean", level[z])
        pg.sample("x", dist.Normal(level[z], 0.7))
        return ops.take(move, z), None

    return lambda logits=start: pg.scan("t", step, logits, length=length)


def hidden_markov(length):
    @pg.model
    def model():
        loop = moments(length)
        with pg.data_plate():
            loop()

    return model


def by_numpy(params, x=X):
    """(log p of series [n, T], [n, T, K] posterior probabilities). Rabiner 1989, section III."""
    start, move, level = (np.float64(params[n]["value"]) for n in ("start", "move", "level"))
    start, move = start - logsumexp(start), move - logsumexp(move, axis=1, keepdims=True)
    seen = stats.norm(level, 0.7).logpdf(x[..., None])
    alpha, beta = [start + seen[:, 0]], [np.zeros((len(x), K))]
    for t in range(1, x.shape[1]):
        alpha.append(logsumexp(alpha[-1][:, :, None] + move, axis=1) + seen[:, t])
    for t in range(x.shape[1] - 1, 0, -1):
        beta.append(logsumexp(move + (seen[:, t] + beta[-1])[:, None], axis=2))
    total = logsumexp(alpha[-1], axis=1)
    both = np.stack(alpha, 1) + np.stack(beta[::-1], 1)
    return total, np.exp(both - total[:, None, None])


def put(b, tree):
    return b.tree_map(b.asarray, tree)


# The forward algorithm's likelihood is held to them by Baum and Welch's EM, below.
@pytest.mark.repeated("test_messages_are_the_sum_over_all_paths")
def test_a_long_hidden_markov_model_has_the_likelihood_of_the_forward_algorithm(b):
    """T = 200, and its gradient; then the smoothed probabilities, and the mean by them."""
    bound, _ = bind(hidden_markov(T), b, data={"x": X[:1]})

    def log_p(params, rows):
        found = bound.summed(params, rows, is_told=True)
        probs = probabilities(b, bound.structure, found, "z")
        each = found.sites["x"].log_prob
        return b.ops.sum(each), (each, probs, found.sites["mean"].value)

    run = b.compile(b.value_and_grad(log_p, has_aux=True))
    (_, (each, probs, mean)), slope = run(put(b, PARAMS), put(b, {"x": X}))
    level = np.float64(PARAMS["level"]["value"])
    want, smooth = by_numpy(PARAMS)
    np.testing.assert_allclose(b.to_numpy(each), want, rtol=1e-5)
    h = 1e-4
    near = lambda d: by_numpy({**PARAMS, "level": {"value": level + h * d}})[0].sum()  # noqa: E731
    np.testing.assert_allclose(
        b.to_numpy(slope["level"]["value"]),
        [(near(e) - near(-e)) / (2 * h) for e in np.eye(K)],
        rtol=1e-5,
    )
    np.testing.assert_allclose(b.to_numpy(probs), smooth, atol=2e-5)
    np.testing.assert_allclose(b.to_numpy(mean), smooth @ level, atol=1e-4)


def test_the_program_of_a_sum_along_time_does_not_grow_with_it():
    jax = pytest.importorskip("jax")
    from probgen import backends

    b, sizes = backends.load("jax"), []
    for length in (50, 500):
        bound, _ = bind(hidden_markov(length), b, data={"x": np.zeros((1, length), "float32")})

        def log_p(params, x, bound=bound):
            return b.ops.sum(bound.trace(params, {"x": x})["x"].log_prob)

        x = np.zeros((1, length), "float32")
        sizes.append(str(jax.make_jaxpr(jax.grad(log_p))(put(b, PARAMS), x)).count(" = "))
    assert sizes[0] == sizes[1]


# ---- against all combinations ----


@pg.model
def left_to_right():
    """A first state before the loop, a move that is impossible, a plate and a factor in the step,
    states that are masked at the end, and data after it that hang on the last state."""
    level = pg.net("level", nets.Parameter((2,)))()
    move = ops.asarray(np.float32([[0.7, 0.3], [0.0, 1.0]]))

    def step(z, at):
        u, is_there = at
        pg.factor("f", 0.2 * u * level[z])
        z = pg.sample("z", dist.Categorical(probs=move[z]).mask(is_there))
        with pg.plate("place", 2):
            pg.sample("x", dist.Normal(level[z] + u, 1.0))
        pg.deterministic("mean", level[z])
        return z, None

    with pg.data_plate():
        pg.sample("before", dist.Normal(level[0], 1.0))
        z = pg.sample("z0", dist.Categorical(probs=np.array([0.6, 0.4])))
        xs = np.float32([0.1, -0.2, 0.3, 0.0, 0.5]), np.array([True] * 3 + [False] * 2)
        last, _ = pg.scan("t", step, z, xs)
        pg.deterministic("twice", 2.0 * level[last])
        pg.deterministic("is_one", last > 0)
        pg.sample("after", dist.Normal(level[last], 0.5))


ROWS = {
    "before": X[:, 0], "x": RNG.normal(size=(2, N, 5)).astype("float32"), "after": X[:, 1],
}  # fmt: skip


def shown(b, bound, params, rows):
    found = bound.summed(params, rows, batch_size=N, is_told=True)
    probs = {n: probabilities(b, bound.structure, found, n) for n in ("z0", "z")}
    dens = {n: s.log_prob for n, s in found.sites.items() if s.log_prob is not None}
    means = {n: found.sites[n].value for n in ("mean", "twice", "is_one")}
    return b.ops.sum(sum(dens.values())), (dens, probs, means)


def test_messages_are_the_sum_over_all_paths(b, monkeypatch):
    """Shares of the sites, their gradient, posterior probabilities, and what is computed."""
    params = put(b, {"level": {"value": np.float32([-0.5, 0.8])}})
    bound, _ = bind(left_to_right, b, data=ROWS, whole=True)
    found = []
    for most in (messages.MOST, 20):  # 2^6 paths
        monkeypatch.setattr(messages, "MOST", most)
        assert messages.in_loops(bound.structure, bound.enumerated) == ("z",) * (most == 20)
        run = b.value_and_grad(lambda p, r: shown(b, bound, p, r), has_aux=True)
        found.append((b.compile(run) if b.name == "jax" else run)(params, put(b, ROWS)))
    flat = [dict(leaves(b, tree)) for tree in found]
    assert flat[0].keys() == flat[1].keys() and len(flat[0]) > 9
    for name, want in flat[0].items():
        np.testing.assert_allclose(flat[1][name], want, rtol=1e-5, atol=1e-5, err_msg=name)


def test_messages_of_one_moment_are_its_sum(b):
    paths = messages.Paths(table_of_three(), np.zeros((10, 1), int))
    weights = RNG.normal(size=(1, 9, 2)).astype("float32")
    found = b.compile(lambda w: messages.log_sum(b.ops, paths, w), 1)(b.asarray(weights))
    np.testing.assert_allclose(b.to_numpy(found), logsumexp(weights[0, ::3], axis=0), rtol=1e-6)


def test_what_pairs_tell_of_values_has_no_unit(b):
    """How often a state was taken, in millionths, hangs on all the past; the state beside a large
    number does not."""
    states = np.array([[0] * 6, [0, 1] * 3, [1, 0] * 3, [1] * 6, [1, 1, 0, 1, 0, 0]])
    values = np.arange(2)
    table = Table({"z": Choices(values, values[:, None], 2, ())}, {"z": values})
    paths, far = messages.Paths(table, states), np.float32(1e5 + states)
    far[-1] = np.nextafter(far[-1], np.inf)  # rounded otherwise
    told = b.compile(lambda x: messages.values_told(b.ops, paths, x), 1)
    for x, want in ((1e-6 * np.cumsum(states, axis=1), False), (far, True)):
        found = told(b.asarray(np.float32(x.T)))
        assert bool(found) == want


def table_of_three():
    values = np.arange(K)
    return Table({"z": Choices(values, values[:, None], K, ())}, {"z": values})


def leaves(b, tree, path=""):
    if isinstance(tree, dict | tuple):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return [x for k, v in items for x in leaves(b, v, f"{path}/{k}")]
    return [(path, b.to_numpy(tree))]


def regime(p):
    """One step: what is seen lies where the state and the levels say."""
    level = pg.sample("level", dist.Normal(0.0, 2.0).expand([2]).to_event(1))

    def step(z, _):
        z = pg.sample("z", dist.Bernoulli(probs=p + 0.5 * z))
        low = level[0] * (1 - z)
        with pg.data_plate():
            pg.sample("x", dist.Uniform(low, low + ops.exp(level[1])))
        pg.deterministic("low", low)
        return z, None

    return step


@pg.model
def shared():
    """All data in one state, and after the loop a coin by its last one, and a number by that."""
    last, _ = pg.scan("t", regime(0.3), 0.0, length=6)
    coin = pg.sample("coin", dist.Bernoulli(probs=0.05 + 0.9 * last))
    pg.sample("after", dist.Normal(4.0 * coin, 1.0))


@pg.model
def mixed():
    """A series of its own for each datum, and a coin that all share."""
    tau = pg.sample("tau", dist.Bernoulli(0.3))
    step = regime(0.3 + 0.1 * tau)
    pg.sample("after", dist.Normal(tau, 1.0))
    with pg.data_plate():
        pg.scan("t", step, 0.0, length=6)


@pytest.mark.parametrize("model", [shared, mixed])
def test_a_posterior_of_what_is_left_is_that_of_all_paths(b, monkeypatch, model):
    """Also where data lie outside of the support that some states give them."""
    x = np.float32([[0.95, 0.3, 0.99, 1.6, 0.92, 0.97], [1.0, 0.2, 0.97, 1.1, 0.95, 0.98]])
    rows, free = {"x": x, "after": np.float32(2.5)}, {"level": np.float32([0.9, 0.1])}
    bound, params = bind(model, b, data=rows, whole=True)
    posterior, found = Posterior(bound, 2), []
    for most in (messages.MOST, 20):
        monkeypatch.setattr(messages, "MOST", most)
        run = b.compile(posterior.point) if b.name == "jax" else posterior.point
        point = run(params, put(b, rows), put(b, free))
        assert sum(float(v) for v in point.outside.values()) == 0
        found.append(dict(leaves(b, (point.log_density, dict(point.values)))))
    assert np.isfinite(found[0]["/0"]) and found[0].keys() == found[1].keys()
    for name, want in found[0].items():
        np.testing.assert_allclose(found[1][name], want, rtol=1e-5, atol=1e-5, err_msg=name)


@pg.model
def seen_first():
    """Data in the step before the state that comes next."""
    start, move, level = (pg.net(n, nets.Parameter(v["value"].shape))() for n, v in PARAMS.items())

    def step(z, _):
        pg.sample("x", dist.Normal(level[z], 0.7))
        return pg.sample("z", dist.Categorical(logits=ops.take(move, z))), None

    with pg.data_plate():
        pg.scan("t", step, pg.sample("z0", dist.Categorical(logits=start)), length=3)


@pytest.mark.parametrize("most", [messages.MOST, 20])
def test_data_may_stand_before_the_move_in_the_step(b, monkeypatch, most):
    """Gone through or by messages, it is the same hidden Markov model."""
    monkeypatch.setattr(messages, "MOST", most)
    bound, _ = bind(seen_first, b, data={"x": X[:1, :3]})
    log_p = lambda p, r: sum(s.log_prob for s in bound.trace(p, r).values())  # noqa: E731
    run = b.compile(log_p) if b.name == "jax" else log_p
    found = run(put(b, PARAMS), put(b, {"x": X[:, :3]}))
    want, _ = by_numpy(PARAMS, X[:, :3])
    np.testing.assert_allclose(b.to_numpy(found), want, rtol=1e-5)


@pg.model
def steps():
    """Each state has data of its own, as has the last one after the loop, beside a coin."""
    pg.net("level", nets.Parameter((K,)))()

    def step(z, _):
        z = 1.0 * pg.sample("z", dist.Bernoulli(probs=0.2 + 0.5 * z))
        pg.sample("x", dist.Uniform(2.0 * z, 2.0 * z + 1.0))
        return z, None

    with pg.data_plate():
        coin = pg.sample("coin", dist.Bernoulli(0.5))
        last, _ = pg.scan("t", step, 0.0, length=6)
        pg.sample("after", dist.Uniform(2.0 * last, 2.0 * last + 1.0 + 0.1 * coin))


def test_data_that_a_path_of_states_allows_are_inside(b, monkeypatch):
    """Those of a path that is none of pairs, and what lies between the steps."""
    x = np.float32([[0.5, 0.5, 2.5, 2.5, 0.5, 2.5]] * N)
    bound, params = bind(steps, b, data={"x": x, "after": x[:, 0]})
    monkeypatch.setattr(messages, "MOST", 20)
    check = SupportCheck(bound, params, b.key(0))
    check({"x": x, "after": x[:, 2]})
    x[1, 3] = 1.5
    with pytest.raises(SupportError, match="'x': 1 of 2 events lie outside"):
        check({"x": x, "after": x[:, 2]})


# ---- EM and what has a longer memory ----


def baum_welch(params, batch, latents, weights):
    """The M-step in closed form: latents [C^2, n, T] with the probabilities [T, C^2, n]."""
    z = ops.one_hot(latents["z"], K, weights)
    pairs = ops.einsum("tcn,cnti,cntj->ij", weights[1:], z[:, :, :-1], z[:, :, 1:])
    share = ops.einsum("tcn,cntk->ntk", weights, z)
    level = ops.einsum("ntk,nt->k", share, batch["x"]) / ops.sum(share, axis=(0, 1))
    return {
        "start": {"value": ops.log(ops.mean(share[:, 0], axis=0))},
        "move": {"value": ops.log(pairs / ops.sum(pairs, axis=1)[:, None])},
        "level": {"value": level},
    }


def fit(b, model, algorithm, length, init=PARAMS, **options):
    return pg.fit(
        model, X[:, :length], algorithm, init=init, batch_size=None, num_steps=1, seed=0,
        backend=b, progress_bar=False, **options,
    )  # fmt: skip


def test_baum_and_welchs_em_climbs_the_likelihood_of_long_series(b):
    """Levels become means by the smoothed shares; what the M-step raises and the entropy are the
    likelihood, by two routes."""
    x = X[:, :12]
    fitted = fit(b, hidden_markov(12), EM(Enumerate(), m_step=baum_welch), 12)
    (total, share), curves = by_numpy(PARAMS, x), fitted.history
    np.testing.assert_allclose(curves["log_likelihood"][0], total.mean(), rtol=1e-5)
    np.testing.assert_allclose(curves["entropy"][0] - curves["loss"][0], total.mean(), rtol=1e-5)
    want = (share * x[..., None]).sum((0, 1)) / share.sum((0, 1))
    np.testing.assert_allclose(fitted.params["level"]["value"], want, rtol=1e-4)
    assert by_numpy(fitted.params, x)[0].mean() > total.mean() + 0.1


def test_a_loop_of_longer_memory_is_refused_in_words(b):
    """Each state hangs on the two before it: messages of pairs are not its likelihood. Also where
    data far away have densities beside which those of the states are small."""

    @pg.model
    def second_order():
        level = pg.net("level", nets.Parameter((K,)))()

        def step(carry, _):
            z = pg.sample("z", dist.Bernoulli(logits=1.0 * carry[0] - 2.0 * carry[1]))
            pg.sample("x", dist.Normal(level[1] * z, 1.0))
            return (z, carry[0]), None

        with pg.data_plate():
            pg.scan("t", step, (0.0, 0.0), length=14)

    rows = put(b, {"x": 300.0 * X[:, :14]})
    bound, params = bind(second_order, b, data={"x": X[:1, :14]})
    log_p = lambda p, r: bound.trace(p, r)["x"].log_prob  # noqa: E731
    assert np.isnan(
        b.to_numpy((b.compile(log_p) if b.name == "jax" else log_p)(params, rows))
    ).all()
    said = explain(bound, params, rows, b.key(0))
    assert "['z'] are summed out along their loop" in said and "earlier past than" in said


def test_what_messages_do_not_sum_is_refused(b):
    @pg.model
    def two_loops():
        def step(z, _):
            return pg.sample("z", dist.Bernoulli(probs=0.5 * z + 0.2)), None

        def other(w, _):
            w = pg.sample("w", dist.Bernoulli(probs=0.5 * w + 0.2))
            pg.sample("x", dist.Normal(w, 1.0))
            return w, None

        with pg.data_plate():
            pg.net("level", nets.Parameter((K,)))()
            pg.scan("t", step, 0.0, length=14)
            pg.scan("s", other, 0.0, length=14)

    with pytest.raises(AlgorithmError, match=r"in the loops \['s', 't'\], expected one loop"):
        fit(b, two_loops, SVI(ELBO()), 14, init=None)

    @pg.model
    def wide():
        def step(z, _):
            z = pg.sample("z", dist.Categorical(probs=np.ones(101) / 101))
            pg.sample("x", dist.Normal(1.0 * z, 1.0))
            return z, None

        with pg.data_plate():
            pg.net("level", nets.Parameter((K,)))()
            pg.scan("t", step, 0, length=14)

    with pytest.raises(
        AlgorithmError, match=r"101\^1 of 'z' .* at one moment, expected at most 100"
    ):
        fit(b, wide, SVI(ELBO()), 14, init=None)
