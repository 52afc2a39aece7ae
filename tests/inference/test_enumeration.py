"""Discrete latents summed out: against sums by hand, over values, combinations, plates and time."""

import itertools

import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

import probgen as pg
from probgen import dist, nets, ops
from probgen.engine.bind import bind
from probgen.engine.codes import codes
from probgen.engine.combinations import probabilities
from probgen.engine.posterior import Posterior
from probgen.errors import AlgorithmError, DataError, SupportError
from probgen.inference import ELBO, EM, SVI, AutoNormal, Enumerate, Langevin
from probgen.inference.objectives.terms import compute, log_weights
from probgen.language.supports import finite_values

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 2)).astype("float32")


def put(b, tree):
    return b.tree_map(b.asarray, tree)


# ---- one datum's sum ----


@pg.model
def two_causes():
    """z in {0, 1, 2}, then w in {0, 1} given it, with data before, between and after."""
    p = pg.net("p", nets.Parameter((3,)))()
    with pg.data_plate():
        pg.sample("a", dist.Normal(p[0], 1.0))
        z = pg.sample("z", dist.Categorical(logits=p))
        pg.sample("b", dist.Normal(p[z], 0.5))
        w = pg.sample("w", dist.Bernoulli(logits=p[z]))
        pg.deterministic("mean", p[z] - w)
        pg.sample("c", dist.Normal(p[z] - w, 1.0))
        pg.sample("d", dist.Normal(0.3, 1.0))


P = np.array([0.4, -0.7, 0.2])
ROWS = {n: RNG.normal(size=4).astype("float32") for n in "abcd"}


def by_hand(p, rows):
    """log p(rows, z, w), [3, 2, n], but for a and d, which know nothing of them."""
    prior = p - logsumexp(p)
    out = np.zeros((3, 2, 4))
    for z, w in itertools.product(range(3), range(2)):
        out[z, w] = prior[z] + stats.norm(p[z], 0.5).logpdf(rows["b"])
        out[z, w] += stats.bernoulli(1 / (1 + np.exp(-p[z]))).logpmf(w)
        out[z, w] += stats.norm(p[z] - w, 1.0).logpdf(rows["c"])
    return out


def test_sites_share_out_the_marginal_density_and_its_gradient(b):
    bound, _ = bind(two_causes, b, data={n: v[:1] for n, v in ROWS.items()})
    assert bound.enumerated == ("z", "w") and not bound.latents

    def run(p, rows):
        found = bound.summed({"p": {"value": p}}, rows)
        shares = {n: s.log_prob for n, s in found.sites.items() if n != "mean"}
        probs = [probabilities(b, bound.structure, found, n) for n in "zw"]
        return b.ops.sum(sum(shares.values())), (shares, probs, found.sites["mean"].value)

    found = b.compile(b.value_and_grad(run, has_aux=True))(b.asarray(np.float32(P)), put(b, ROWS))
    (_, (each, probs, mean)), slope = b.tree_map(b.to_numpy, found)
    joint = by_hand(P, ROWS)
    np.testing.assert_allclose(each["a"], stats.norm(P[0], 1.0).logpdf(ROWS["a"]), rtol=1e-5)
    np.testing.assert_allclose(each["d"], stats.norm(0.3, 1.0).logpdf(ROWS["d"]), atol=1e-5)
    seen = (P - logsumexp(P))[:, None] + stats.norm(P[:, None], 0.5).logpdf(ROWS["b"])
    np.testing.assert_allclose(each["b"], logsumexp(seen, axis=0), rtol=1e-5)
    np.testing.assert_allclose(each["b"] + each["c"], logsumexp(joint, axis=(0, 1)), rtol=1e-5)
    posterior = np.exp(joint - logsumexp(joint, axis=(0, 1)))
    for p, axis in zip(probs, (1, 0), strict=True):
        np.testing.assert_allclose(p, posterior.sum(axis).T, atol=1e-6)
    values = P[:, None] - np.arange(2)
    np.testing.assert_allclose(mean, (posterior * values[..., None]).sum((0, 1)), atol=1e-6)

    def total(p):
        a = stats.norm(p[0], 1.0).logpdf(ROWS["a"]).sum()
        return logsumexp(by_hand(p, ROWS), axis=(0, 1)).sum() + a

    wanted = [(total(P + h) - total(P - h)) / 2e-5 for h in 1e-5 * np.eye(3)]
    np.testing.assert_allclose(slope, wanted, rtol=1e-4)


@pg.model
def units():
    """Two binary units in an inner plate, and one of three classes twice in an event."""
    with pg.data_plate():
        with pg.plate("units", 2):
            s = pg.sample("s", dist.Bernoulli(0.3))
        c = pg.sample("c", dist.Categorical(logits=np.zeros(3)).expand([2]).to_event(1))
        pg.sample("x", dist.Normal(s[0] + 2.0 * s[1] + 1.0 * c[..., 0] - c[..., 1], 1.0))


def test_plates_and_events_are_gone_through_together(b):
    x = X[:, 0]
    bound, params = bind(units, b, data={"x": x[:1]})

    def run(rows):
        found = bound.summed(params, rows)
        log_p = sum(s.log_prob for s in found.sites.values())
        return log_p, *(probabilities(b, bound.structure, found, n) for n in "sc")

    log_p, s, c = map(b.to_numpy, b.compile(run)({"x": b.asarray(x)}))
    joint, values = [], []
    for s0, s1, c0, c1 in itertools.product((0, 1), (0, 1), range(3), range(3)):
        prior = np.log([0.7, 0.3])[[s0, s1]].sum() - 2 * np.log(3)
        joint.append(prior + stats.norm(s0 + 2 * s1 + c0 - c1, 1.0).logpdf(x))
        values.append((s0, s1, c0, c1))
    joint, values = np.array(joint), np.array(values)
    np.testing.assert_allclose(log_p, logsumexp(joint, axis=0), rtol=1e-5)
    posterior = np.exp(joint - logsumexp(joint, axis=0))
    assert s.shape == (2, 4, 2) and c.shape == (4, 2, 3)
    np.testing.assert_allclose(s[1, :, 1], posterior[values[:, 1] == 1].sum(0), atol=1e-6)
    np.testing.assert_allclose(c[:, 1, 2], posterior[values[:, 3] == 2].sum(0), atol=1e-6)
    encoded = codes(pg.Fitted(units, {}), b, x, None, is_back=False)
    np.testing.assert_allclose(encoded["s"], s.swapaxes(0, 1), atol=1e-5)


# ---- with continuous latents ----


@pg.model
def deep():
    with pg.data_plate():
        z = pg.sample("z", dist.Normal(0.0, 1.0))
        k = pg.sample("k", dist.Bernoulli(0.3))
        pg.sample("x", dist.Normal(z + 2.0 * k, 0.5))


@deep.with_guide
def deep(x):
    with pg.data_plate():
        pg.sample("z", dist.Normal(0.5 * x, 1.0))


def test_importance_weights_of_the_other_latents_are_of_the_marginal(b):
    x = X[:, 0]
    bound, params = bind(deep, b, data={"x": x[:1]})

    def run(batch, key):
        terms = compute(bound, params, batch, key, num_particles=3, analytic_kl=False)
        assert terms.kl.keys() == {"z"}
        return terms.latents["z"], log_weights(terms)

    z, log_w = map(b.to_numpy, b.compile(run)({"x": b.asarray(x)}, b.key(0)))
    by_k = [np.log(p) + stats.norm(z + 2 * k, 0.5).logpdf(x) for k, p in enumerate((0.7, 0.3))]
    wanted = logsumexp(by_k, axis=0) + stats.norm.logpdf(z) - stats.norm(0.5 * x, 1).logpdf(z)
    assert z.shape == (3, 4)
    np.testing.assert_allclose(log_w, wanted, rtol=1e-4, atol=1e-5)


@pg.model
def summed_out():
    w = pg.sample("w", dist.Uniform(0.0, 1.0))
    mu = pg.sample("mu", dist.Normal(np.array([-1.0, 1.0]), 2.0).to_event(1))
    with pg.data_plate():
        z = pg.sample("z", dist.Categorical(probs=ops.stack([w, 1.0 - w], axis=-1)))
        pg.sample("x", dist.Normal(mu[z], 1.0))


@pg.model
def marginal():
    w = pg.sample("w", dist.Uniform(0.0, 1.0))
    mu = pg.sample("mu", dist.Normal(np.array([-1.0, 1.0]), 2.0).to_event(1))
    with pg.data_plate():
        weights = dist.Categorical(probs=ops.stack([w, 1.0 - w], axis=-1))
        pg.sample("x", dist.MixtureSameFamily(weights, dist.Normal(mu, 1.0)))


@pytest.mark.repeated("test_a_moment_that_all_data_share_is_summed_over_all_of_them")
def test_chains_climb_the_density_of_a_program_marginalised_by_hand(b):
    """At points of the real line: density and gradient, to 1e-5 of their size."""
    free = {"w": np.float32([0.3, -1.0]), "mu": np.float32([[-1.0, 0.5], [2.0, 0.1]])}
    found = []
    for model in (summed_out, marginal):
        bound, params = bind(model, b, data={"x": X[:, 0]}, whole=True)
        (posterior := Posterior(bound, 4)).check()
        rows = {"x": b.asarray(X[:, 0])}

        def density(u, params=params, rows=rows, posterior=posterior):
            each = posterior.points(u, params, rows).log_density
            return b.ops.sum(each), each

        run = b.compile(b.value_and_grad(density, has_aux=True))
        (_, value), grad = run(put(b, free))
        found.append(np.concatenate([b.to_numpy(v).ravel() for v in (value, *grad.values())]))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-5)


def test_draws_bring_the_probabilities_of_what_was_summed_out(b):
    x, method = X[:, 0], Langevin(0.01, num_steps=3, num_chains=2)
    options = {"seed": 0, "backend": b, "progress_bar": False, "log_likelihood": True}
    draws = pg.infer(summed_out, {"x": x}, method, **options)
    posterior = draws.posterior
    w, mu = np.stack([posterior["w"], 1 - posterior["w"]], axis=-1), posterior["mu"].values
    joint = np.log(w) + stats.norm(mu, 1.0).logpdf(x[:, None, None, None])  # [n, chain, draw, k]
    total = np.moveaxis(logsumexp(joint, axis=-1), 0, -1)
    probs = np.moveaxis(joint, 0, 2) - total[..., None]
    assert posterior["z.probs"].dims[:3] == ("chain", "draw", "data")
    np.testing.assert_allclose(posterior["z.probs"], np.exp(probs), atol=1e-5)
    np.testing.assert_allclose(draws.log_likelihood["x"], total, rtol=1e-4)


# ---- shared by all data ----

COUNTS = np.float32([1, 0, 1, 5, 6, 4])


@pg.model
def change():
    """A rate that changes at a moment of all data, for two not at the first; each may be a dud."""
    rates = pg.sample("rates", dist.Exponential(np.ones(2)).to_event(1))
    tau = pg.sample("tau", dist.Categorical(logits=np.zeros(6)))
    with pg.data_plate():
        dud = pg.sample("dud", dist.Bernoulli(0.1))
        rate = ops.where(ops.asarray(np.arange(6)) < tau, rates[0], rates[1])
        never = (ops.asarray(np.arange(6)) > 3) & (tau == 0)
        pg.sample("known", dist.Poisson(ops.where(never, 0.0, 1.0)), obs=np.ones(6, "float32"))
        pg.sample("y", dist.Poisson(ops.where(dud > 0, 9.0, rate)))


def test_a_moment_that_all_data_share_is_summed_over_all_of_them(b):
    bound, params = bind(change, b, data={"y": COUNTS}, whole=True)
    posterior = Posterior(bound, 6)
    u = np.float32([0.2, 1.1])
    rates = np.exp(u)

    def log_density(u, rows):
        point = posterior.point(params, rows, {"rates": u})
        return point.log_density, point

    run = b.compile(b.value_and_grad(log_density, has_aux=True))
    (_, point), slope = run(b.asarray(u), {"y": b.asarray(COUNTS)})
    assert np.isfinite(b.to_numpy(slope)).all()
    joint, duds, by_datum = np.zeros(6), np.zeros((6, 6)), np.zeros((6, 6))
    for tau in range(6):
        rate = np.where(np.arange(6) < tau, *rates)
        each = [np.log(0.9) + stats.poisson(rate).logpmf(COUNTS),
                np.log(0.1) + stats.poisson(9.0).logpmf(COUNTS)]  # fmt: skip
        joint[tau] = logsumexp(each, axis=0).sum() - np.log(6)
        by_datum[tau] = logsumexp(each, axis=0)
        duds[tau] = np.exp(each[1] - logsumexp(each, axis=0))
    joint[0] = -np.inf
    wanted = logsumexp(joint) - 6.0 + (-rates).sum() + u.sum()
    np.testing.assert_allclose(b.to_numpy(point.log_density), wanted, rtol=1e-5)
    without = logsumexp(joint[:, None] - by_datum, axis=0)  # each datum left out
    likelihood = b.to_numpy(point.log_likelihood["y"])
    np.testing.assert_allclose(likelihood, logsumexp(joint) - without, rtol=1e-4)
    p = np.exp(joint - logsumexp(joint))
    np.testing.assert_allclose(b.to_numpy(point.values["tau/probs"]), p, atol=1e-5)
    np.testing.assert_allclose(b.to_numpy(point.values["dud/probs"])[:, 1], p @ duds, atol=1e-5)


def test_data_are_not_predicted_from_the_prior_of_what_was_summed_out(b):
    draws = {"rates": np.ones((1, 2, 2), np.float32)}
    with pytest.raises(DataError, match="expected the latent .tau. of .change. among them"):
        pg.generate(pg.Fitted(change, {}), 2, draws=draws, num_data=6, seed=0, backend=b)


# ---- time ----

START, MOVE = np.log([0.6, 0.4]), np.log([[0.8, 0.2], [0.3, 0.7]])
LEVELS = np.array([-1.0, 1.5])


@pg.model
def hidden_markov():
    def step(z, _):
        z = pg.sample("z", dist.Categorical(logits=ops.asarray(np.float32(MOVE))[z]))
        pg.sample("x", dist.Normal(ops.asarray(np.float32(LEVELS))[z], 1.0))
        return z, None

    with pg.data_plate():
        z = pg.sample("z0", dist.Categorical(logits=START))
        pg.sample("x0", dist.Normal(ops.asarray(np.float32(LEVELS))[z], 1.0))
        pg.scan("t", step, z, length=4)


def forward(x):
    """log p of series [n, T]. Rabiner 1989."""
    alpha = START + stats.norm(LEVELS, 1.0).logpdf(x[:, :1])
    for t in range(1, x.shape[1]):
        moved = logsumexp(alpha[:, :, None] + MOVE, axis=1)
        alpha = moved + stats.norm(LEVELS, 1.0).logpdf(x[:, t : t + 1])
    return logsumexp(alpha, axis=1)


def test_a_small_hidden_markov_model_has_the_likelihood_of_the_forward_recursion(b):
    x = RNG.normal(size=(3, 5)).astype("float32")
    rows = {"x0": x[:, 0], "x": x[:, 1:]}
    bound, params = bind(hidden_markov, b, data={n: v[:1] for n, v in rows.items()})
    run = b.compile(lambda rows: sum(s.log_prob for s in bound.trace(params, rows).values()))
    np.testing.assert_allclose(b.to_numpy(run(put(b, rows))), forward(x), rtol=1e-5)


# ---- what cannot be summed ----


def program(body):
    @pg.model
    def model():
        scale = pg.net("scale", nets.Parameter(value=1.0))()
        body(scale)

    return model


def unbounded(scale):
    with pg.data_plate():
        pg.sample("x", dist.Normal(pg.sample("k", dist.Poisson(2.0)), scale))


def many(scale):
    with pg.data_plate():
        k = pg.sample("k", dist.Bernoulli(0.5).expand([14]).to_event(1))
        pg.sample("x", dist.Normal(ops.sum(k, axis=-1), scale))


def shared(scale):
    k = pg.sample("k", dist.Bernoulli(0.5))
    with pg.data_plate():
        pg.sample("x", dist.Normal(k, scale))


def late(scale):
    with pg.data_plate():
        k = pg.sample("k", dist.Bernoulli(0.5))
        pg.sample("x", dist.Normal(k, scale))
    pg.factor("f", scale)


def mixed(scale):
    with pg.data_plate():
        k = pg.sample("k", dist.Bernoulli(0.5))
        pg.sample("x", dist.Normal(pg.sample("z", dist.Normal(k, 1.0)), scale))


def pure(scale):
    with pg.data_plate():
        pg.sample("x", dist.Normal(pg.sample("k", dist.Bernoulli(0.5)), scale))


mixed_model = program(mixed)
LEARN = SVI(ELBO())


@pytest.mark.parametrize(
    ("body", "algorithm", "match"),
    [
        (unbounded, LEARN, "'k' has no end of values .* finitely many"),
        (unbounded, EM(Langevin(0.1)), "'k' is discrete"),
        (many, LEARN, r"2\^14 of 'k' combinations of values, expected at most 10,000"),
        (shared, LEARN, r"\['k'\] stand outside the data plate, .* use pg.infer"),
        (late, LEARN, "site 'f' outside the data plate comes after the discrete latent 'k'"),
        (mixed, EM(Enumerate()), r"has the latents \['z', 'k'\], expected discrete ones"),
        (pure, EM(Langevin(0.1)), r"expected EM\(Enumerate\(\)\), which needs no chains"),
    ],
)
def test_what_cannot_be_summed_out_is_refused(b, body, algorithm, match):
    with pytest.raises(AlgorithmError, match=match):
        pg.fit(program(body), X[:, 0], algorithm, num_steps=1, seed=0, backend=b)


def test_infer_has_nothing_to_do_where_all_is_summed_out(b):
    fitted = pg.Fitted(program(pure), {"scale": {"value": np.float32(1.0)}})
    with pytest.raises(AlgorithmError, match="are discrete and summed out exactly, expected a con"):
        pg.infer(fitted, X[:, 0], Langevin(0.1), seed=0, backend=b)


def test_an_automatic_guide_leaves_out_what_is_summed_out(b):
    bound, params = bind(summed_out.with_guide(AutoNormal()), b, data={"x": X[:1, 0]}, num_data=4)
    assert {n.split("/")[1] for n in params} == {"w", "mu"}
    assert bound.latents == ("w", "mu") and bound.enumerated == ("z",)
    late, params = bind(
        mixed_model.with_guide(AutoNormal()), b, data={"x": X[:1, 0], pg.ROW: [0]}, num_data=4
    )
    assert late.latents == ("z",) and late.enumerated == ("k",) and "guide/z/loc" in params


@pytest.mark.parametrize(
    ("law", "values"),
    [
        (dist.Bernoulli(0.5), [0.0, 1.0]),
        (dist.Categorical(logits=np.zeros((5, 3))), [0, 1, 2]),
        (dist.OrderedLogistic(0.3, np.array([0.0, 1.0])), [0, 1, 2]),
        (dist.OneHotCategorical(probs=np.ones(2) / 2), [[1.0, 0.0], [0.0, 1.0]]),
        (dist.Binomial(total_count=2, probs=0.5), [0.0, 1.0, 2.0]),
        (dist.DiscreteUniform(2, 4), [2, 3, 4]),
        (dist.Poisson(1.0), None),
        (dist.Multinomial(total_count=2, probs=np.ones(2) / 2), None),
    ],
)
def test_families_know_their_values(law, values):
    found = finite_values(law)
    assert (found is None) if values is None else np.array_equal(found, values)


@pg.model
def stairs():
    """Each value of z has data of its own: a datum of the other is impossible under it."""
    mu = pg.sample("mu", dist.Normal(0.0, 1.0))
    with pg.data_plate():
        z = 1.0 * pg.sample("z", dist.Categorical(probs=np.array([0.5, 0.5])))
        pg.deterministic("double", 2.0 * z + mu)
        pg.sample("x", dist.Uniform(z, z + 1.0))
    pg.deterministic("share", ops.mean(z))


def test_data_that_some_values_forbid_have_the_density_that_is_left(b):
    """log p = log N(mu) + 2 log(1/2), and what is computed of all data's latents is no number."""
    rows = {"x": np.array([0.3, 1.6], np.float32)}
    bound, params = bind(stairs, b, data=rows, num_data=2, whole=True)
    free = {"mu": b.asarray(np.float32(0.4))}
    run = b.compile(lambda rows, free: Posterior(bound, 2).point(params, rows, free))
    point = run(put(b, rows), free)
    want = stats.norm.logpdf(0.4) + 2 * np.log(0.5)
    assert float(point.log_density) == pytest.approx(want, abs=1e-5)
    assert float(point.outside["x"]) == 0
    np.testing.assert_allclose(b.to_numpy(point.values["double"]), [0.4, 2.4], atol=1e-6)
    assert np.isnan(b.to_numpy(point.values["share"]))
    far = {"x": np.array([0.3, 2.5], np.float32)}
    assert float(run(put(b, far), free).outside["x"]) > 0


def test_a_datum_is_inside_by_any_value_of_what_is_summed_out(b):
    """By one draw of z half of them would be refused, at random."""
    x = np.linspace(0.05, 1.95, 40).astype(np.float32)

    @pg.model
    def steps():
        p = pg.net("p", nets.Parameter((2,)))()
        with pg.data_plate():
            z = 1.0 * pg.sample("z", dist.Categorical(logits=p))
            pg.sample("x", dist.Uniform(z, z + 1.0))

    options = {"num_steps": 2, "batch_size": 40, "seed": 0, "backend": b, "progress_bar": False}
    fitted = pg.fit(steps, x, EM(Enumerate()), **options)
    table = pg.evaluate(fitted, x, [ELBO()], seed=0, backend=b)
    np.testing.assert_allclose(table[ELBO().name]["estimate"].values, np.log(0.5), atol=0.01)
    with pytest.raises(SupportError, match="1 of 40 events lie outside"):
        pg.fit(steps, np.append(x[1:], np.float32(2.5)), EM(Enumerate()), **options)
