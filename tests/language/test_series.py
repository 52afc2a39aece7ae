"""`pg.scan`: a loop over time with sites inside is the unrolled program, whatever its length."""

import time

import numpy as np
import pytest
from scipy import stats

import probgen as pg
from probgen import dist, ops
from probgen.engine.bind import bind
from probgen.errors import AlgorithmError, DeclarationError, DuplicateSite, ShapeError
from probgen.inference import AutoNormal

T, N = 3, 2
RNG = np.random.default_rng(0)
Y = RNG.normal(size=(N, T)).astype("float32")
Z = RNG.normal(size=(N, T)).astype("float32")
S = RNG.gamma(3.0, size=(N, T)).astype("float32")
U = RNG.normal(size=T).astype("float32")
PHI = np.float32(0.4)


def states(phi, u, z, s, name=lambda n: n):
    """One moment of a model with real and positive latents, data and a factor."""
    z = pg.sample(name("z"), dist.Normal(phi * z + u, 1.0))
    s = pg.sample(name("s"), dist.Gamma(3.0, ops.exp(-0.3 * z + 0.1 * s)))
    pg.deterministic(name("twice"), 2 * z)
    pg.factor(name("f"), -0.1 * ops.square(z))
    pg.sample(name("y"), dist.Normal(z + 0.1 * s, 0.5))
    return z, s


@pg.model
def looped():
    phi = pg.sample("phi", dist.Uniform(-1.0, 1.0))

    def step(carry, u):
        after = states(phi, u, *carry)
        return after, after[0]

    with pg.data_plate():
        (last, _), all_z = pg.scan("t", step, (0, 0.0), U)
        pg.deterministic("last", last - all_z[-1])


@pg.model
def unrolled():
    phi = pg.sample("phi", dist.Uniform(-1.0, 1.0))
    with pg.data_plate():
        z, s = 0.0, 0.0
        for t in range(T):
            z, s = states(phi, float(U[t]), z, s, lambda n, t=t: f"{n}{t}")


def split(values):
    """Values of the loop as those of the unrolled program."""
    return {f"{n}{t}": v[:, t] for n, v in values.items() for t in range(T)}


def quick(b, fn):
    """Compiled on JAX, where running op by op is dear; live on torch, where tracing is."""
    return b.compile(fn) if b.name == "jax" else fn


def total(b, sites):
    return sum(b.ops.sum(s.log_prob) for s in sites.values() if s.log_prob is not None)


def test_the_loop_is_the_unrolled_program(b):
    """Log joint and gradient, with latents of two supports, data, a factor, in the data plate."""
    values = {"z": Z, "s": S}
    one, p1 = bind(looped, b, data={"y": Y})
    many, p2 = bind(unrolled, b, data=split({"y": Y}))
    site = one.structure.sites["z"]
    assert (site.plates, site.event_shape, site.noise_shape) == (("data",), (T,), (T,))

    def on(bound, params, data, latents):
        rows = {k: b.asarray(v) for k, v in data.items()}
        given = {k: b.asarray(v) for k, v in latents.items()}

        def joint(phi, rows, given):
            sites = bound.trace(params, rows, {**given, "phi": phi}, batch_size=N)
            shown = {n: sites[n].value for n in ("twice", "last") if n in sites}
            terms = {n: s.log_prob for n, s in sites.items() if s.log_prob is not None}
            return total(b, sites), (shown, terms)

        both = quick(b, b.value_and_grad(joint, has_aux=True))
        (value, aux), grad = both(b.asarray(PHI), rows, given)
        return float(value), float(grad), aux

    value, grad, (shown, terms) = on(one, p1, {"y": Y}, values)
    want, slope, _ = on(many, p2, split({"y": Y}), split(values))
    np.testing.assert_allclose([value, grad], [want, slope], rtol=1e-5)
    assert tuple(terms["y"].shape) == (N,)
    np.testing.assert_allclose(b.to_numpy(shown["twice"]), 2 * Z, rtol=1e-6)
    np.testing.assert_allclose(b.to_numpy(shown["last"]), 0.0, atol=1e-6)

    def with_particles(phi, rows, given):
        sites = one.trace(p1, rows, {**given, "phi": phi}, num_particles=2)
        return {n: sites[n].log_prob for n in ("phi", "z", "s", "y", "f")}

    more = {k: b.asarray(np.stack([v, v])) for k, v in values.items()}
    phi = b.asarray(np.full((2, 1), PHI))
    found = quick(b, with_particles)(phi, {"y": b.asarray(Y)}, more)
    assert tuple(found["z"].shape) == (2, N)
    for name in ("z", "s", "y", "f"):
        each = b.to_numpy(found[name])
        np.testing.assert_allclose(each, np.stack([b.to_numpy(terms[name])] * 2), rtol=1e-4)


def test_on_the_real_line_it_is_the_unrolled_program(b):
    """Sites and Jacobians of NUTS and HMC: log p(u), with positions of the time in front."""
    found = []
    for model, data in ((looped, {"y": Y}), (unrolled, split({"y": Y}))):
        bound, params = bind(model, b, data=data, whole=True)
        free = {"z": Z, "s": np.log(S)} if model is looped else split({"z": Z, "s": np.log(S)})
        free = {k: np.ascontiguousarray(v.T) if model is looped else v for k, v in free.items()}

        def density(free, rows, bound=bound, params=params):
            sites, _, log_det = b.unconstrained(
                bound.model.program, params, names=bound.latents, key=None, inputs={}, free=free,
                given={}, strategy="", values=rows, batch_size=N,
            )  # fmt: skip
            return total(b, sites) + sum(b.ops.sum(v) for v in log_det.values())

        free = {k: b.asarray(v) for k, v in {**free, "phi": PHI}.items()}
        rows = {k: b.asarray(v) for k, v in data.items()}
        found.append(float(quick(b, density)(free, rows)))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


@pg.model
def walk():
    """A stationary AR(1): covariance phi^|s - t| / (1 - phi^2)."""

    def step(x, _):
        x = pg.sample("x", dist.Normal(0.8 * x, 0.6))
        return x, None

    with pg.data_plate():
        pg.scan("t", step, pg.sample("x0", dist.Normal(0.0, 1.0)), length=3)


def test_draws_have_the_covariance_of_the_closed_form(b):
    bound, params = bind(walk, b, data={})
    draw = b.compile(
        lambda k: bound.trace(params, {}, key=k, batch_size=20_000)["x"].value, num_calls=10
    )
    x = b.to_numpy(draw(b.key(1)))
    want = 0.8 ** np.abs(np.subtract.outer(range(3), range(3)))
    np.testing.assert_allclose(np.cov(x.T), want, atol=0.06)  # s.e. 0.01
    np.testing.assert_allclose(x.mean(0), 0.0, atol=0.05)  # s.e. 0.007


@pg.model
def garch(y):
    """GARCH(1, 1): v_t = w + a y_{t-1}^2 + b v_{t-1}."""
    a = pg.sample("a", dist.Uniform(0.0, 1.0))

    def step(v, y):
        pg.sample("y", dist.Normal(0.0, ops.sqrt(v)), obs=y)
        return 0.2 + a * y**2 + 0.5 * v, v

    pg.deterministic("v", pg.scan("time", step, 1.0, y)[1])


def test_a_garch_likelihood_is_numpys(b):
    y = Y.reshape(-1)
    bound, params = bind(garch, b, constants={"y": y}, whole=True)
    sites = bound.trace(params, {}, {"a": b.asarray(np.float32(0.3))})
    v, want = 1.0, 0.0
    for each in y:
        want += stats.norm(0, v**0.5).logpdf(each)
        v = 0.2 + 0.3 * each**2 + 0.5 * v
    np.testing.assert_allclose(float(sites["y"].log_prob), want, rtol=1e-5)
    assert bound.structure.sites["y"].is_fixed and bound.latents == ("a",)


@pg.model
def arma(y):
    """ARMA(1, 1): y_t = c + p y_{t-1} + e_t + q e_{t-1}, e_t ~ N(0, s^2)."""
    names = ("c", "p", "q", "log_s")
    c, p, q, log_s = (pg.sample(name, dist.Normal(0.0, 1.0)) for name in names)

    def step(carry, y_t):
        before, error = carry
        mean = c + p * before + q * error
        pg.sample("y", dist.Normal(mean, ops.exp(log_s)), obs=y_t)
        return (y_t, y_t - mean), None

    pg.scan("t", step, (0.0, 0.0), y)


def test_an_arma_likelihood_is_numpys(b):
    """Its moving average is an autoregression of infinite order: errors are unrolled by hand."""
    y = np.random.default_rng(4).normal(size=30).astype(np.float32)
    values = {"c": 0.2, "p": 0.5, "q": -0.4, "log_s": 0.1}
    bound, params = bind(arma, b, constants={"y": y}, whole=True)
    given = {k: b.asarray(np.float32(v)) for k, v in values.items()}
    found = quick(b, lambda given: bound.trace(params, {}, given)["y"].log_prob)(given)
    error, before, errors = 0.0, 0.0, []
    for y_t in y.astype(np.float64):
        error = y_t - values["c"] - values["p"] * before - values["q"] * error
        before = y_t
        errors.append(error)
    want = stats.norm.logpdf(errors, scale=np.exp(values["log_s"])).sum()
    np.testing.assert_allclose(float(b.ops.sum(found)), want, rtol=1e-5)


@pg.model
def panel():
    """Plates opened in the step: a common trend, data of each moment in a plate."""

    def step(m, _):
        m = pg.sample("m", dist.Normal(m, 1.0))
        with pg.plate("place", 2):
            pg.sample("y", dist.Normal(m, 1.0).expand([2, 5]).to_event(1))
        return m, None

    pg.scan("t", step, 0.0, length=3)


def test_plates_in_the_step_lie_before_the_time(b):
    y, m = RNG.normal(size=(2, 3, 5)).astype("float32"), Z[0, :3]
    bound, params = bind(panel, b, data={"y": y}, whole=True)
    sites = bound.trace(params, {"y": b.asarray(y)}, {"m": b.asarray(m)})
    want = stats.norm(m[None, :, None], 1).logpdf(y).sum()
    np.testing.assert_allclose(float(sites["y"].log_prob), want, rtol=1e-5)
    with pytest.raises(ShapeError, match=r"got shape \(3, 2, 5\), expected \(2, 3, 5\)"):
        bind(panel, b, data={"y": y.swapaxes(0, 1)}, whole=True)


def test_an_automatic_guide_has_the_density_of_its_draws(b):
    """log q(z, s) = log N(u) - log |ds/du|, with the scale 0.1 and locations 0 of the start."""
    model = looped.with_guide(AutoNormal())
    bound, params = bind(model, b, data={"y": Y, "row": np.arange(N)}, num_data=N)
    rows = {"y": b.asarray(Y), "row": b.asarray(np.arange(N))}

    def drawn(params, rows, key, latents):
        sites = bound.trace_guide(params, rows, key=key, latents=latents)
        return {n: (s.value, s.log_prob) for n, s in sites.items()}

    drawn = quick(b, drawn)
    sites = drawn(params, rows, b.key(0), {})
    for name, real in (("z", lambda v: v), ("s", np.log)):
        value = b.to_numpy(sites[name][0])
        jacobian = -np.log(value) if name == "s" else 0.0 * value
        want = (stats.norm(0, 0.1).logpdf(real(value)) + jacobian).sum(1)
        np.testing.assert_allclose(b.to_numpy(sites[name][1]), want, rtol=1e-4)
    given = {n: b.asarray(v) for n, v in (("z", Z), ("s", S))}
    phi = {"phi": b.asarray(PHI)}
    back = drawn(params, rows, b.key(0), {**given, **phi})
    want = (stats.norm(0, 0.1).logpdf(np.log(S)) - np.log(S)).sum(1)
    np.testing.assert_allclose(b.to_numpy(back["s"][1]), want, rtol=1e-4)


def test_a_long_loop_binds_at_once_and_its_program_is_no_longer():
    jax = pytest.importorskip("jax")
    from probgen import backends

    b, sizes = backends.load("jax"), []
    for length in (10, 1000):

        def step(x, _):
            x = pg.sample("x", dist.Normal(0.9 * x, 1.0))
            pg.sample("y", dist.Normal(x, 1.0))
            return x, None

        @pg.model
        def chain(step=step, length=length):
            pg.scan("t", step, 0.0, length=length)

        y = np.zeros(length, "float32")
        bound, params = bind(chain, b, data={"y": y}, whole=True)

        def joint(x, bound=bound, params=params, y=y):
            return total(b, bound.trace(params, {"y": b.asarray(y)}, {"x": x}))

        sizes.append(str(jax.make_jaxpr(jax.grad(joint))(y)).count("\n"))
    assert sizes[0] == sizes[1]


def test_binding_runs_one_step(b):
    """Also where the loop itself is Python's."""
    steps = []

    def step(x, _):
        steps.append(1)
        return pg.sample("x", dist.Normal(x, 1.0)), None

    @pg.model
    def chain():
        pg.scan("t", step, 0.0, length=1000)

    began = time.process_time()
    bind(chain, b, data={"x": np.zeros(1000, "float32")}, whole=True)
    assert len(steps) < 10 and time.process_time() - began < 1.0


def test_the_curvature_of_a_local_level_is_the_kalman_smoothers(b):
    """A Gaussian log joint: its mode and inverse curvature are the posterior's mean, covariance."""

    def step(z, _):
        z = pg.sample("z", dist.Normal(0.9 * z, 1.0))
        pg.sample("y", dist.Normal(z, 0.5))
        return z, None

    @pg.model
    def level():
        pg.scan("t", step, 0.0, length=T)

    y = Y[0]
    bound, params = bind(level, b, data={"y": y}, whole=True)

    def joint(z, y):
        return total(b, bound.trace(params, {"y": y}, {"z": z}))

    slope = b.compile(b.grad(joint), num_calls=10)
    at = [b.to_numpy(slope(b.asarray(z), b.asarray(y))) for z in np.eye(T + 1, T, dtype="float32")]
    cov = -np.linalg.inv(np.stack(at[:T]) - at[T])
    # Forwards the filter, backwards Rauch, Tung and Striebel.
    m, p, kept = 0.0, 0.0, []
    for each in y:
        ahead = (0.9 * m, 0.81 * p + 1.0)
        gain = ahead[1] / (ahead[1] + 0.25)
        m, p = ahead[0] + gain * (each - ahead[0]), (1 - gain) * ahead[1]
        kept.append((*ahead, m, p))
    smooth = [(m, p)]
    for (_, _, m, p), (ahead, spread, _, _) in zip(kept[-2::-1], kept[:0:-1], strict=True):
        back = 0.9 * p / spread
        later = smooth[-1]
        smooth.append((m + back * (later[0] - ahead), p + back**2 * (later[1] - spread)))
    want = np.array(smooth[::-1])
    np.testing.assert_allclose(cov @ at[T], want[:, 0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(np.diag(cov), want[:, 1], rtol=1e-3)


def test_a_long_loop_is_no_graph_on_torch():
    """A graph would grow with the length: the function runs live, and info says why."""
    pytest.importorskip("torch")
    from probgen import backends

    b = backends.load("torch", "cpu", compile="graph")
    for length, route in ((100, "graph"), (200, "live")):
        walk = b.compile(
            lambda x, n=length: ops.scan(lambda c, _: (0.9 * c, None), x, length=n)[0], num_calls=10
        )
        np.testing.assert_allclose(float(walk(b.asarray(1.0))), 0.9**length, rtol=1e-4)
        assert route in b.info()["routes"]
    assert "a loop of 200 steps" in str(b.info()["fallbacks"])


def test_pictures_draw_the_loop_as_a_box():
    assert "t = 1 ... 3" in walk.describe()
    assert 'label="t = 1 ... 3"' in walk.graph()
    assert r"\prod_{t=1}^{3} \mathcal{N}(x_{n,t} \mid x_{n,<t}, x_{0,n})" in walk.latex()


def test_what_a_loop_cannot_do_is_refused_in_words(b):
    def model_of(step, init=0.0):
        @pg.model
        def model():
            pg.scan("t", step, init, length=3)

        return model

    def twice(x, _):
        pg.sample("x", dist.Normal(0.0, 1.0))
        return x, pg.sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(DuplicateSite, match="'x' is declared at"):
        bind(model_of(twice), b)

    def grows(x, _):
        return ops.concatenate([x, x]), None

    with pytest.raises(ShapeError, match=r"a carry .*expected one shape"):
        bind(model_of(grows, np.zeros(2)), b)

    def widens(x, _):  # its three coordinates would be of one number's noise
        x = pg.sample("x", dist.Normal(x, 1.0).to_event(1))
        return ops.broadcast_to(x, (3,)), None

    with pytest.raises(ShapeError, match=r"events of shape \(1,\) by init and of \(3,\)"):
        bind(model_of(widens, np.zeros(1)), b)
    with pytest.raises(DeclarationError, match=r"expected a pair \(carry, output\)"):
        bind(model_of(lambda x, _: x), b)
    with pytest.raises(DeclarationError, match="expected one loop"):
        bind(model_of(lambda x, _: (x, pg.scan("s", lambda a, _: (a, None), x, length=2))), b)
    with pytest.raises(ShapeError, match="expected one length"):
        bind(pg.model(lambda: pg.scan("t", lambda x, _: (x, None), 0.0)), b)

    def switching(k, _):
        k = pg.sample("k", dist.Poisson(1.0))
        pg.sample("y", dist.Normal(1.0 * k, 1.0))
        return 0.0, None

    with pytest.raises(AlgorithmError, match="finitely many values .* along the loop 't'"):
        pg.infer(model_of(switching), {"y": Y[0, :3]}, pg.inference.NUTS(), seed=0, backend=b)
