"""The generator that steps down its own energy has the density that it says.

Laws: of a quadratic energy all is linear and Gaussian; steps are taken back to where they came
from; the density integrates to one, agrees with the Jacobian of the map, and tends to that of the
flow; its loss is a critic's, with no gradient through the generator.
"""

import dataclasses

import numpy as np
import pytest
import scipy.stats as st
from at_once import at_once

import probgen as pg
from probgen import dist, nets, ops
from probgen.engine.fitted import Fitted
from probgen.errors import AlgorithmError, DeclarationError, ShapeError
from probgen.inference import (
    ELBO,
    SVI,
    Gaussian,
    GradientFlow,
    ImportanceSampling,
    Invertibility,
    Langevin,
    MaximumLikelihood,
    Quadrature,
    log_partition,
)
from probgen.models import EBM, GradientFlowGenerator
from probgen.models.gradient_map import GradientMap, gradient, hessian
from probgen.trees import tree_leaves, tree_map

START = dist.Normal(0.0, 1.5).expand([2]).to_event(1)
Q = np.array([[2.0, 0.5], [0.5, 1.0]])
ETA, K = 0.1, 6
ENERGY = nets.MLPEnergy((12,), activation="softplus")


@dataclasses.dataclass(frozen=True)
class Quadratic:
    """x'Qx / 2."""

    def init(self, key, *shapes):
        return {"q": Q.astype(np.float32)}

    def apply(self, params, x):
        return 0.5 * ops.sum((x @ params["q"]) * x, axis=-1)


@dataclasses.dataclass(frozen=True)
class Rectified:
    """A net of one's own whose gradient jumps, which no type tells."""

    def init(self, key, *shapes):
        return {"w": 2.0 * key.standard_normal((2, 12)).astype(np.float32)}

    def apply(self, params, x):
        return ops.sum(ops.relu(x @ params["w"] + 0.3), axis=-1)


@pytest.fixture(scope="module")
def b(backend_name):
    """On torch without graphs, which loops within loops do not earn back."""
    options = {"compile": "live"} if backend_name == "torch" else {}
    return pg.backends.load(backend_name, "cpu", **options)


@pytest.fixture(scope="module")
def bent(b):
    """Weights of a curved energy: |eta lambda| up to a third."""
    drawn = ENERGY.init(np.random.default_rng(3), (2,))
    return {"energy": tree_map(lambda w: b.asarray(2.0 * w), drawn)}


@pytest.fixture(scope="module")
def noise():
    return (1.5 * np.random.default_rng(4).normal(size=(200, 2))).astype(np.float32)


def flow_map(params, **options):
    return GradientMap(lambda x: ENERGY.apply(params["energy"], x), ETA, K, **options)


@pytest.fixture(scope="module")
def there_and_back(b, bent, noise):
    """x = G(z) and what is found of it, and the log Jacobian of G at z by its columns."""

    def run(params, z):
        step = flow_map(params)
        columns = [ops.grad(lambda z, i=i: ops.sum(step.forward(z)[:, i]))(z) for i in range(2)]
        x = step.forward(z)
        return x, step.inverse(x), ops.slogdet(ops.stack(columns, axis=1))[1]

    return b.tree_map(b.to_numpy, b.compile(run, over="steps")(bent, b.asarray(noise)))


def test_steps_are_taken_back(there_and_back, noise):
    _, back, _ = there_and_back
    error = np.abs(back.x - noise).max(1)
    assert np.median(error) < 1e-5 and (error < 1e-3).all()
    assert 0.15 < back.sharpness.max() < 0.9 and back.residual.max() < 1e-5


@pytest.fixture(scope="module")
def undone(b):
    """(q, x) -> what is found of x under three steps down x'qx / 2, in numpy."""
    run = b.compile(GradientFlowGenerator(Quadratic(), START, ETA, 3).undone, over="steps")

    def call(q, x):
        params = {"energy": {"q": b.asarray(np.float32(q))}}
        return b.tree_map(b.to_numpy, run(params, b.asarray(x)))

    return call


def test_newton_takes_back_what_the_fixed_point_cannot(b, noise):
    """Of E = -10 |x|^2 - sum x^4 / 4, eta lambda is -2 and below: the map is one to one, and the
    fixed point runs away."""
    energy = lambda x: -ops.sum(10.0 * x**2 + 0.25 * x**4, axis=-1)  # noqa: E731
    step, noise = GradientMap(energy, ETA, 2, num_newton=8), noise[np.abs(noise).max(1) < 2.0]
    back = b.compile(lambda z: step.inverse(step.forward(z)), over="steps")(b.asarray(noise))
    np.testing.assert_allclose(b.to_numpy(back.x), noise, atol=1e-4)
    x, log_det = noise.astype(np.float64), 0.0
    for _ in range(2):
        log_det = log_det - np.log(3.0 + 0.3 * x**2).sum(1)
        x = 3.0 * x + 0.1 * x**3
    np.testing.assert_allclose(b.to_numpy(back.log_det), log_det, rtol=1e-4)
    assert (b.to_numpy(back.by_newton) > 0).all() and (b.to_numpy(back.sharpness) > 2.0).all()


def said(sharpness, residual):
    values = {"estimate": np.asarray(sharpness), "residual": np.asarray(residual)}
    return " ".join(Invertibility().warnings(values))


def test_a_step_that_is_too_long_has_no_density_and_is_said_in_words(undone, noise):
    """At 20 times the curvature I - eta H has eigenvalues below zero."""
    fine, folded = (undone(q, noise[:7]) for q in (Q / 3, 20 * Q / 3))
    np.testing.assert_allclose(fine.sharpness, ETA * np.linalg.eigvalsh(Q / 3)[1], rtol=1e-3)
    assert not said(fine.sharpness, fine.residual) and np.isfinite(fine.log_det).all()
    assert np.isnan(folded.log_det).all()
    words = said(folded.sharpness, folded.residual)
    assert "|eta lambda| reaches 1.47 and is 1 or more along the paths of 7 of 7" in words
    assert "a step could not be taken back" in said([0.1, np.inf], [1e-6, np.inf])


def test_log_det_is_that_of_the_whole_map(there_and_back):
    _, back, log_jacobian = there_and_back
    np.testing.assert_allclose(back.log_det, -log_jacobian, atol=1e-3)
    assert back.log_det.std() > 0.05


def evaluated(b, generator, params, x, *measures):
    shapes = {"x": x.shape[1:]}
    table = pg.evaluate(Fitted(generator, params, shapes=shapes), x, measures, seed=0, backend=b)
    return [table[m.name] for m in measures]


@pytest.fixture(scope="module")
def quadratic():
    generator = GradientFlowGenerator(Quadratic(), START, ETA, K)
    power = np.linalg.matrix_power(np.eye(2) - ETA * Q, K)
    return generator, {"energy": Quadratic().init(None)}, power


def test_a_quadratic_energy_makes_a_gaussian_which_is_not_its_gibbs_law(b, quadratic):
    generator, params, power = quadratic
    law = st.multivariate_normal(np.zeros(2), 1.5**2 * power @ power.T)
    x = law.rvs(500, random_state=0).astype(np.float32)
    found, sharp = evaluated(b, generator, params, x, ELBO(), Invertibility())
    assert not sharp.attrs["warnings"]
    np.testing.assert_allclose(sharp["estimate"], ETA * np.linalg.eigvalsh(Q)[1], rtol=1e-3)
    np.testing.assert_allclose(found["estimate"], law.logpdf(x), atol=1e-5, rtol=1e-6)
    gibbs = st.multivariate_normal(np.zeros(2), np.linalg.inv(Q)).logpdf(x)
    assert (found["estimate"].values - gibbs).mean() > 0.1
    draws = pg.generate(Fitted(generator, params), 4000, seed=0, backend=b)["x"]
    got, want = np.cov(draws.T), 1.5**2 * power @ power.T
    assert np.abs(got - want).max() < 5 * want.max() * (2 / 4000) ** 0.5


@pytest.mark.repeated("test_log_det_is_that_of_the_whole_map")
def test_the_density_integrates_to_one(b, bent):
    side = np.arange(-7.0, 7.0, 0.4)
    flatter = tree_map(lambda w: 0.8 * b.to_numpy(w), bent)  # for so coarse a grid
    x = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2).astype(np.float32)
    generator = GradientFlowGenerator(ENERGY, START, ETA, K)
    (found,) = evaluated(b, generator, flatter, x, ELBO())
    assert abs(np.exp(found["estimate"].values.astype(np.float64)).sum() * 0.16 - 1.0) < 0.01


def test_probes_estimate_the_trace_and_the_series_the_log_det(b, bent, noise):
    """1,000 probes within three standard errors; ten powers within 1e-3 of slogdet at 0.3."""
    v = np.random.default_rng(5).choice([-1.0, 1.0], size=(1000, 2))

    def run(params, x, h):
        energy = lambda x: ENERGY.apply(params["energy"], x)  # noqa: E731
        every = np.array([[1.0, 1.0], [1.0, -1.0]])  # of these two the mean is the trace itself
        step = flow_map(params, probes=every, num_terms=10)._replace(step_size=h)
        return hessian(energy, x), step._series(x)

    compiled = b.compile(run, num_calls=3)

    def at(h):
        found = compiled(bent, b.asarray(noise[:20]), b.asarray(np.float32(h)))
        return b.tree_map(b.to_numpy, found)

    energy_hessian, _ = at(ETA)
    top = np.abs(np.linalg.eigvalsh(energy_hessian)).max()
    h = float(0.3 / top)
    hessians, (found, sharpness) = at(h)
    exact = -np.linalg.slogdet(np.eye(2) - h * hessians.astype(np.float64))[1]
    np.testing.assert_allclose(found, exact, atol=1e-3)
    assert 0.25 < sharpness.max() < 0.31
    draws = np.einsum("pi,nij,pj->np", v, hessians, v)
    error = draws.std(1) / 1000**0.5
    trace = np.trace(hessians, axis1=1, axis2=2)
    assert (np.abs(draws.mean(1) - trace) < 3.5 * error + 1e-4).all()
    _, (lost, sharp) = at(4.0 * h)
    assert np.isnan(lost[sharp >= 1.0]).all() and (sharp >= 1.0).any()


def test_a_density_by_probes_is_the_exact_one_within_their_errors(b):
    """v'Mv of +-1 has mean tr M and variance 2 sum of squares off the diagonal, where M, the sum
    of -log(I - eta H) along the path, is known from the Hessians."""
    net, n = nets.MLPEnergy((6,), activation="softplus"), 1000
    start = dist.Normal(0.0, 1.5).expand([3]).to_event(1)
    rng = np.random.default_rng(8)
    params = {"energy": tree_map(lambda w: b.asarray(2.0 * w), net.init(rng, (3,)))}
    of = {
        kind: GradientFlowGenerator(
            net, start, 0.2, 3, log_det=kind, num_probes=n, probe_seed=1, num_newton=1
        )
        for kind in ("hutchinson", "exact")
    }

    def run(params, z):
        energy = lambda x: net.apply(params["energy"], x)  # noqa: E731
        at, hessians = z, []
        for _ in range(3):
            hessians.append(hessian(energy, at))
            at = at - 0.2 * gradient(energy, at)
        return hessians, at, {k: of[k]._functions(energy)[1](at) for k in of}

    z = (1.5 * rng.normal(size=(30, 3))).astype(np.float32)
    hessians, _, found = b.tree_map(b.to_numpy, b.compile(run, over="steps")(params, b.asarray(z)))
    m = 0.0
    for h in hessians:
        values, vectors = np.linalg.eigh(0.2 * h.astype(np.float64))
        m = m - np.einsum("nij,nj,nkj->nik", vectors, np.log1p(-values), vectors)
    exact = np.trace(m, axis1=1, axis2=2)
    off = (m**2).sum((1, 2)) - (np.einsum("nii->ni", m) ** 2).sum(1)
    error = np.sqrt(2.0 * off / n)
    np.testing.assert_allclose(found["exact"][1], exact, atol=1e-4)
    assert (np.abs(found["hutchinson"][1] - exact) < 3.0 * error + 1e-4).all()
    assert np.median(error) > 1e-3 and np.abs(exact).max() > 0.1
    for back, _ in found.values():
        np.testing.assert_allclose(back, z, atol=1e-4)


def test_a_flow_of_order_four_is_the_limit_and_has_its_density(b, bent, noise):
    """Its map is taken back, its log det is that of the map itself, and Euler's map comes eight
    times nearer to it with steps of an eighth."""
    generator = GradientFlowGenerator(ENERGY, START, ETA, K, solver="rk4")

    def run(params, z):
        forward, inverse = generator._functions(lambda x: ENERGY.apply(params["energy"], x))
        x = forward(z)
        columns = [ops.grad(lambda z, i=i: ops.sum(forward(z)[:, i]))(z) for i in range(2)]
        far = flow_map(params).forward(z)
        near = flow_map(params)._replace(step_size=ETA / 8, num_steps=8 * K).forward(z)
        log_jacobian = ops.slogdet(ops.stack(columns, axis=1))[1]
        return x, far, near, *inverse(x), log_jacobian

    given = b.compile(run, over="steps")(bent, b.asarray(noise[:50]))
    x, far, near, back, log_det, log_jacobian = b.tree_map(b.to_numpy, given)
    np.testing.assert_allclose(back, noise[:50], atol=1e-4)
    np.testing.assert_allclose(log_det, -log_jacobian, atol=1e-3)
    coarse, fine = (np.abs(v - x).mean() for v in (far, near))
    assert 7.0 < coarse / fine < 10.0 and coarse > 1e-3


@pytest.mark.repeated("test_a_flow_of_order_four_is_the_limit_and_has_its_density")
def test_half_the_step_halves_the_distance_to_the_flow(b, bent, noise):
    def run(params, x):
        energy = lambda x: ENERGY.apply(params["energy"], x)  # noqa: E731
        out = {}
        for name, h, n, is_flow in (("far", 0.1, 4, 0), ("near", 0.05, 8, 0), ("flow", 0.1, 4, 1)):
            back = GradientMap(energy, h, n, bool(is_flow)).inverse(x)
            out[name] = back.log_det - ops.sum(back.x**2, axis=-1) / (2 * 1.5**2)
        return out

    found = b.tree_map(b.to_numpy, b.compile(run, over="steps")(bent, b.asarray(noise[:50])))
    far, near = (np.abs(found[n] - found["flow"]).mean() for n in ("far", "near"))
    assert 1.7 < far / near < 2.3 and far > 1e-3


def test_the_loss_is_a_critics_with_no_gradient_through_the_generator(b, bent):
    """From starts that are one point, G(z) is known: the step of SGD is the critic's gradient."""
    at = np.float32([0.7, -0.4])
    generator = GradientFlowGenerator(ENERGY, dist.Normal(at, 1e-12).to_event(1), ETA, K)
    x = np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32)
    before = tree_map(b.to_numpy, bent)
    learn = MaximumLikelihood(GradientFlow(ETA, K), optimizer=pg.SGD(1.0))
    fit = pg.fit(
        generator.gibbs, x, learn, num_steps=1, batch_size=32, seed=0, backend=b, init=before,
        progress_bar=False,
    )  # fmt: skip

    def critic(params, x, fake):
        return ops.mean(ENERGY.apply(params, x)) - ops.mean(ENERGY.apply(params, fake))

    def run(params, start, x):
        fake = flow_map(params).forward(start)
        return fake, b.grad(critic)(params["energy"], x, fake)

    fake, wanted = at_once(b, run, bent, b.asarray(np.tile(at, (32, 1))), b.asarray(x))
    moved = tree_map(lambda a, c: a - np.asarray(c), before, dict(fit.params))
    for got, want in zip(tree_leaves(moved["energy"]), tree_leaves(wanted), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)
    assert max(np.abs(w).max() for w in tree_leaves(wanted)) > 0.01
    gibbs = Fitted(generator.gibbs, before, shapes={"x": (2,)})
    chains = pg.generate(gibbs, 3, seed=0, method=GradientFlow(ETA, K), backend=b)
    np.testing.assert_allclose(chains["x"], fake[:3], atol=1e-5)
    assert "a map of where the chains start" in chains.note


BY_HESSIAN = pytest.mark.repeated("test_it_is_fitted_by_its_own_likelihood")
PROBES = [
    pytest.param(None, id="H", marks=BY_HESSIAN),
    pytest.param(np.array([[1.0, 1.0], [1.0, -1.0]]), id="Hv"),
]


@pytest.mark.parametrize("probes", PROBES)
def test_its_own_likelihood_has_the_derivative_of_the_inverse(b, bent, noise, probes):
    """Along a direction of parameters, by differences; so it can be fitted by SVI."""
    x = noise[:64]

    def value(params, x):
        back = flow_map(params, probes=probes, num_terms=4)._replace(num_steps=3).inverse(x)
        return ops.mean(back.log_det - ops.sum(back.x**2, axis=-1) / 2)

    rng = np.random.default_rng(1)
    way = tree_map(lambda w: rng.normal(size=w.shape).astype(np.float32) / 10, bent)
    at = b.compile(b.value_and_grad(value), over="steps")
    moved = lambda p, w: b.asarray(b.to_numpy(p) + np.float32(w))  # noqa: E731
    slope = sum(
        (b.to_numpy(g) * w).sum()
        for g, w in zip(tree_leaves(at(bent, b.asarray(x))[1]), tree_leaves(way), strict=True)
    )
    ahead, behind = (
        float(at(tree_map(lambda p, w, s=s: moved(p, s * w), bent, way), b.asarray(x))[0])
        for s in (0.02, -0.02)
    )
    assert abs(slope - (ahead - behind) / 0.04) < 0.01 * abs(slope) + 2e-3 and abs(slope) > 0.02


def test_it_is_fitted_by_its_own_likelihood(b):
    """Data of N(0, 0.5 I): from a flat energy the mean log q rises towards theirs."""
    x = (0.5**0.5 * np.random.default_rng(0).normal(size=(64, 2))).astype(np.float32)
    generator = GradientFlowGenerator(Quadratic(), START, ETA, 3)
    fit = pg.fit(
        generator, x, SVI(ELBO(), pg.Adam(0.2)), num_steps=12, batch_size=64, seed=0, backend=b,
        init={"energy": {"q": 0.1 * np.eye(2, dtype=np.float32)}}, progress_bar=False,
    )  # fmt: skip
    assert fit.history["elbo"][-1] > fit.history["elbo"][0] + 0.2


def test_energies_that_are_not_smooth_are_refused():
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.LeakyReLU(), torch.nn.Linear(4, 1))
    for net, name in (
        (nets.MLPEnergy((4,), activation="relu"), "relu"),
        (nets.Sequential((nets.Dense(4), "leaky_relu", nets.Dense(1))), "leaky_relu"),
        (nets.from_torch(module, in_ndim=1), "LeakyReLU"),
    ):
        with pytest.raises(DeclarationError, match=f"with {name}, whose gradient jumps"):
            GradientFlowGenerator(net, START)


def test_a_rectifier_that_no_type_tells_is_told_by_its_curvature(b, noise):
    """Its Hessian reads 0, its steps are not taken back, and the words say so."""

    def run(params, z):
        step = GradientMap(lambda x: Rectified().apply(params, x), ETA, K)
        return step.inverse(step.forward(z))

    params = tree_map(b.asarray, Rectified().init(np.random.default_rng(0)))
    back = b.tree_map(b.to_numpy, b.compile(run, over="steps")(params, b.asarray(noise)))
    assert (np.abs(back.x - noise).max(1) < 1e-3).mean() < 0.9
    assert "rectifiers" in said(back.sharpness, 0.0 * back.residual)


def test_what_does_not_step_down_an_energy_has_no_sharpness(b):
    with pytest.raises(AlgorithmError, match="expected one that steps down an energy"):
        params = {"energy": Quadratic().init(None)}
        evaluated(b, EBM(Quadratic(), START), params, np.zeros((2, 2), np.float32), Invertibility())


def test_an_energy_that_is_no_number_a_datum_is_refused(b):
    wide = GradientFlowGenerator(nets.MLP((4,), 2, activation="silu"), START, num_steps=2)
    with pytest.raises(ShapeError, match="expected one number a datum"):
        pg.fit(
            wide, np.zeros((4, 2), np.float32), SVI(ELBO()), num_steps=1, batch_size=4, seed=0,
            backend=b,
        )  # fmt: skip


def test_the_nominal_law_starts_where_it_is_told_and_has_no_base(b, quadratic):
    """Its log density is -E alone, and a chain with noise leads from p_0 to exp(-E)."""
    generator, params, _ = quadratic
    fitted = Fitted(generator.gibbs, params, shapes={"x": (2,)})
    bound, given = fitted.bind(b)
    from probgen.engine.spaces import model_target

    target = model_target(bound, "data")
    x = target.init(given, {}, b.key(0), 4000)
    np.testing.assert_allclose(
        b.to_numpy(target.log_density(x, given, {})),
        -0.5 * np.einsum("ni,ij,nj->n", b.to_numpy(x["x"]), Q, b.to_numpy(x["x"])), rtol=1e-4,
        atol=1e-5,
    )  # fmt: skip
    assert abs(b.to_numpy(x["x"]).std() - 1.5) < 5 * 1.5 / 16000**0.5
    with pytest.raises(AlgorithmError, match="not a function of normal noise"):
        model_target(bound, "noise")
    base = Gaussian(0.0, 1.5)
    log_z = log_partition(fitted, Quadrature(num_points=81), base=base, seed=0, backend=b)
    assert abs(log_z.estimate - np.log(2 * np.pi / np.linalg.det(Q) ** 0.5)) < 1e-3
    with pytest.raises(AlgorithmError, match="a base without draws of a law"):
        log_partition(fitted, ImportanceSampling(100), seed=0, backend=b)
    draws = pg.generate(fitted, 4000, seed=0, method=Langevin(0.1, 60, metropolis=True), backend=b)
    got, want = np.cov(draws["x"].T), np.linalg.inv(Q)
    assert np.abs(got - want).max() < 5 * want.max() * (2 / 4000) ** 0.5


def test_gradients_of_many_numbers_are_in_place(b):
    """Of an energy that mixes nothing: each datum's own gradient, whatever stands before it."""
    x = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
    energy = lambda x: 0.5 * ops.sum((x @ ops.asarray_like(Q, x)) * x, axis=-1)  # noqa: E731

    def run(x):
        return gradient(energy, x), hessian(energy, x)

    slopes, hessians = at_once(b, run, b.asarray(x))
    np.testing.assert_allclose(slopes, x @ Q, rtol=1e-4)
    np.testing.assert_allclose(hessians, np.broadcast_to(Q, (3, 4, 2, 2)), rtol=1e-4)
