"""Chains keep the law of constrained sites: they move on the real line, with the Jacobian."""

import numpy as np
import pytest
import scipy.stats

import probgen as pg
from probgen import dist, nets
from probgen.engine.bind import bind
from probgen.engine.fitted import Fitted
from probgen.engine.spaces import model_target
from probgen.engine.target import run_chain
from probgen.errors import AlgorithmError
from probgen.inference import HMC, Langevin, MaximumLikelihood, PersistentChains

CHAINS = 3000
MALA = Langevin(0.1, num_steps=40, metropolis=True)


def within(values, mean, num_errors=5.0):
    values = np.asarray(values, np.float64)
    error = values.std() / np.sqrt(len(values))
    assert abs(values.mean() - mean) < num_errors * error, (values.mean(), mean, error)


@pg.model
def bases():
    """A zero energy over bases of every kind of support; "m" has a bound that is a latent."""
    with pg.data_plate():
        e = pg.sample("e", dist.Exponential(2.0))
        pg.sample("u", dist.Uniform(-1.0, 3.0).expand([2]).to_event(1))
        pg.sample("d", dist.Dirichlet(np.array([2.0, 3.0, 4.0], np.float32)))
        pg.sample("n", dist.Normal(1.0, 2.0))
        pg.sample("m", dist.Uniform(0.0, e + 1.0))


def test_a_chain_keeps_a_base_of_any_support(b):
    """MALA over a base without energy returns the base: moments, and the Jacobian in E[log x]."""
    draws = pg.generate(
        Fitted(bases, {}), CHAINS, seed=0, method=MALA, space="data", backend=b, chunk_size=CHAINS
    )
    laws = {
        "e": scipy.stats.expon(scale=0.5),
        "n": scipy.stats.norm(1.0, 2.0),
    }
    columns = {n: draws[n] for n in laws}
    for i in range(2):
        laws[f"u{i}"], columns[f"u{i}"] = scipy.stats.uniform(-1.0, 4.0), draws["u"][:, i]
    for i, a in enumerate((2.0, 3.0, 4.0)):
        laws[f"d{i}"], columns[f"d{i}"] = scipy.stats.beta(a, 9.0 - a), draws["d"][:, i]
    for name, law in laws.items():
        x = columns[name].astype(np.float64)
        low, high = law.support()
        assert (x >= low).all() and (x <= high).all(), name
        within(x, law.mean())
        within((x - law.mean()) ** 2, law.var())
        assert scipy.stats.kstest(x, law.cdf).pvalue > 1e-6, name
    np.testing.assert_allclose(draws["d"].sum(-1), 1.0, atol=1e-5)
    within(draws["m"] / (draws["e"] + 1.0), 0.5)
    within((draws["m"] / (draws["e"] + 1.0)) ** 2, 1.0 / 3.0)
    assert "acceptance 0." in draws.note and "0 of 3000 chains diverged" in draws.note


def test_a_positive_latent_keeps_its_posterior(b):
    """z ~ Gamma(2, 1), x | z ~ Poisson(z): z | x ~ Gamma(2 + x, 2), kept from exact draws."""

    @pg.model
    def counts():
        with pg.data_plate():
            z = pg.sample("z", dist.Gamma(2.0, 1.0))
            pg.sample("x", dist.Poisson(z))

    x = np.full(CHAINS, 3.0, np.float32)
    bound, params = bind(counts, b, data={"x": x})
    space = model_target(bound, "latent")
    kernel = MALA.kernel(b, space, num_calls=MALA.num_steps)
    law = scipy.stats.gamma(5.0, scale=0.5)
    z = law.rvs(CHAINS, random_state=1).astype(np.float32)

    def run(params, batch, values, key):
        start = space.enter(values, params, batch)
        end, _ = run_chain(b, kernel, start, key, MALA.num_steps, params, batch)
        return space.values(end.x, params, batch)

    out = b.to_numpy(
        b.compile(run, over="steps")(params, {"x": b.asarray(x)}, {"z": b.asarray(z)}, b.key(0))[
            "z"
        ]
    )
    assert (out > 0).all() and np.abs(out - z).mean() > 0.3
    within(out, law.mean())
    within((out - law.mean()) ** 2, law.var())
    within(np.log(out), law.expect(np.log))


def test_maximum_likelihood_over_a_positive_base_learns_the_rate(b):
    """exp(-x) exp(-w x) is Exponential(1 + w) up to its constant: 1 + w = 1 / mean(x)."""

    @pg.model
    def rate():
        with pg.data_plate():
            x = pg.sample("x", dist.Exponential(1.0))
            pg.factor("tilt", -pg.net("w", nets.Parameter(()))() * x)

    rng = np.random.default_rng(0)
    x = scipy.stats.expon(scale=0.4).ppf((rng.permutation(400) + 0.5) / 400).astype(np.float32)
    learn = MaximumLikelihood(
        HMC(num_steps=3, step_size=0.5, adapt_step_size=False, num_warmup=0, num_samples=3),
        optimizer=pg.Adam(0.05), init=PersistentChains(0.0),
    )  # fmt: skip
    fitted = pg.fit(
        rate, x, learn, num_steps=150, batch_size=400, ema_decay=0.96, backend=b, seed=0,
        progress_bar=False,
    )  # fmt: skip
    found = 1.0 + float(fitted.params["w"]["value"])
    # The average of 25 updates of 400 chains each: a standard error of about 0.05.
    assert abs(found - 1.0 / x.mean()) < 0.35, found


@pg.model
def conditional(c):
    with pg.data_plate():
        pg.sample("x", dist.Normal(c, 1.0))


@pytest.mark.parametrize(("space", "rows"), [("data", False), ("noise", True)])
def test_a_chain_sees_the_inputs(b, space, rows):
    """x | c ~ N(c, 1), fitted at c = 0: the chain at c = 5 has mean 5, whichever way c is given."""
    shapes = {"x": (), "c": ()} if rows else {"x": ()}
    fitted = Fitted(conditional, {}, shapes=shapes, constants={} if rows else {"c": 0.0})
    c = np.where(np.arange(2000) % 2, 5.0, -3.0).astype(np.float32)
    draws = pg.generate(
        fitted, 2000, seed=0, method=Langevin(0.5, num_steps=10, metropolis=True), space=space,
        inputs={"c": c if rows else 5.0}, backend=b,
    )  # fmt: skip
    off = draws["x"] - (c if rows else 5.0)
    within(off, 0.0)
    within(off**2, 1.0)


@pytest.mark.parametrize("space", ["data", "noise"])
def test_what_the_program_fixes_does_not_move(b, space):
    """x ~ N(0, 1), y | x ~ N(x, 1) fixed at 2: the chain of x keeps N(1, 1/2)."""

    @pg.model
    def fixed(seen):
        with pg.data_plate():
            x = pg.sample("x", dist.Normal(0.0, 1.0))
            pg.sample("y", dist.Normal(x, 1.0), obs=seen)

    fitted = Fitted(fixed, {}, shapes={"seen": ()})
    draws = pg.generate(
        fitted, 2000, seed=0, method=Langevin(0.3, num_steps=30, metropolis=True), space=space,
        inputs={"seen": np.full(2000, 2.0, np.float32)}, backend=b,
    )  # fmt: skip
    within(draws["x"], 1.0)
    within((draws["x"] - 1.0) ** 2, 0.5)
    assert (draws["y"] == 2.0).all()


def test_what_no_chain_can_move_is_refused(b):
    @pg.model
    def inner():
        with pg.data_plate(), pg.plate("parts", 3):
            pg.sample("x", dist.Normal(0.0, 1.0))

    bound, _ = bind(inner, b)
    with pytest.raises(AlgorithmError, match="stands in the plates \\['parts'\\].*to_event"):
        model_target(bound, "data")
    with pytest.raises(AlgorithmError, match="'d': got noise for a Dirichlet.*space='data'"):
        pg.generate(Fitted(bases, {}), 3, seed=0, method=MALA, space="noise", backend=b)
