"""log Z of energies, against quadrature and exact sums."""

import json
import math

import numpy as np
import pytest
from ais_cases import clusters, guided, ppca
from measure_cases import context_of, measured

import probgen as pg
from probgen import dist, nets, ops
from probgen.engine.bind import bind
from probgen.engine.fitted import Fitted
from probgen.errors import (
    AlgorithmError,
    DataError,
    DeclarationError,
    MissingSeed,
    NonFiniteError,
    ShapeError,
)
from probgen.inference.likelihood.ais import AIS
from probgen.inference.likelihood.energy_likelihood import (
    EnergyLogLikelihood,
    UnnormalizedLogDensity,
)
from probgen.inference.likelihood.partition import log_partition
from probgen.inference.likelihood.partition_paths import Gaussian
from probgen.models import Tilted
from studies.rbm.rbm import RBM, rbm_log_partition

CENTRES = np.array([[-2.0, 0.0], [2.0, 1.0]], np.float32)
METHOD = AIS(100, num_chains=1800, num_leapfrog=3, num_pilot_steps=30)


@pg.model
def two_hills():
    """An energy in place of the base: exp(-E) is a mixture with weights that do not add up to 1."""
    with pg.data_plate():
        x = pg.sample("x", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        base = -0.5 * ops.sum(x * x, axis=-1) / 9.0 - math.log(2.0 * math.pi * 9.0)
        near = -0.5 * ops.sum((x - ops.asarray(CENTRES[0])) ** 2, axis=-1) / 0.36
        far = -0.5 * ops.sum((x - ops.asarray(CENTRES[1])) ** 2, axis=-1) / 0.64
        mixed = ops.logsumexp(ops.stack([near, far - math.log(2.0)], axis=-1), axis=-1)
        pg.factor("tilt", mixed - base)


two_hills.is_normalized = False
HILLS = Fitted(two_hills, {}, shapes={"x": (2,)})


def hills_log_density(points):
    near = -0.5 * ((points - CENTRES[0]) ** 2).sum(-1) / 0.36
    far = -0.5 * ((points - CENTRES[1]) ** 2).sum(-1) / 0.64 - math.log(2.0)
    return np.logaddexp(near, far)


def hills_draws(count, seed=0):
    rng = np.random.default_rng(seed)
    far = rng.uniform(size=count) < 0.32 / (0.32 + 0.36)
    scale = np.where(far, 0.8, 0.6)[:, None]
    return (CENTRES[far.astype(int)] + scale * rng.normal(size=(count, 2))).astype(np.float32)


def quadrature(log_density, extent=8.0, count=400):
    axis = np.linspace(-extent, extent, count)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    values = np.exp(log_density(points))
    return math.log(np.trapezoid(np.trapezoid(values, axis), axis))


def near(out, truth, num_errors=4.5):
    assert out.standard_error < 0.02
    assert abs(out.estimate - truth) < num_errors * out.standard_error, (out, truth)


@pytest.fixture(scope="module")
def from_its_base(b):
    """log Z of the hills by a walk from their own base."""
    return log_partition(HILLS, METHOD, seed=0, backend=b)


TRUTH = math.log(2 * math.pi * (0.36 + 0.32))


def test_log_z_of_a_mixture_is_that_of_quadrature_from_any_start(b, from_its_base):
    """From the model's own base, and from a Gaussian of its samples."""
    truth = quadrature(hills_log_density)
    assert truth == pytest.approx(TRUTH, abs=1e-6)
    draws = hills_draws(4000)
    near(from_its_base, truth)
    covering = Gaussian.covering(draws)
    out = log_partition(HILLS, METHOD, base=covering, samples=draws, seed=1, backend=b)
    near(out, truth)
    # These samples are exact, so the reverse estimate is too, and lies above in expectation.
    assert abs(out.reverse - truth) < 4.5 * out.reverse_error < 0.09
    assert "approximate" in repr(out) and f"log Z >= {out.lower_bound:.4f} nats" in repr(out)
    assert out.lower_bound < truth + 3 * out.standard_error  # below in 95 of 100 runs
    json.dumps(out.to_dict())


@pytest.mark.repeated("test_log_z_of_a_mixture_is_that_of_quadrature_from_any_start")
def test_log_z_of_a_mixture_from_a_start_far_off(b):
    near(log_partition(HILLS, METHOD, base=Gaussian([1.0, 1.0], 5.0), seed=2, backend=b), TRUTH)


ONE_NUMBER = pytest.param(
    1.0, marks=pytest.mark.repeated("test_log_z_under_inputs_is_that_of_their_value")
)


@pytest.mark.parametrize("c", [ONE_NUMBER, np.float32([-2.0])], ids=["number", "array"])
def test_log_z_under_inputs_is_that_of_their_value(b, c):
    """exp(c x) N(x; m, 1): log Z = c m + c^2 / 2, c an input and m one of the fit's constants."""

    @pg.model
    def pushed(c, m):
        with pg.data_plate():
            x = pg.sample("x", dist.Normal(m, 1.0))
            pg.factor("push", c * x)

    fitted = Fitted(pushed, {}, shapes={"x": ()}, constants={"m": np.float32(0.5)})
    method = AIS(40, 800, 3, num_pilot_steps=20)
    out = log_partition(fitted, method, inputs={"c": c}, seed=0, backend=b)
    near(out, float(np.sum(c)) * 0.5 + float(np.sum(c)) ** 2 / 2)
    with pytest.raises(DataError, match="inputs: got 'd', expected one of"):
        log_partition(fitted, inputs={"d": 1.0}, seed=0, backend=b)


def test_energies_give_a_density_that_is_labelled(b, from_its_base):
    """log p~ - log Z integrates to one up to the error of log Z; an upper estimate."""
    out = from_its_base
    points = np.stack(np.meshgrid(*[np.linspace(-8, 8, 161, dtype=np.float32)] * 2), -1)
    x = points.reshape(-1, 2)
    plain, normal = UnnormalizedLogDensity(), EnergyLogLikelihood(out)
    values = {m.name: measured(HILLS, b, m, x) for m in (plain, normal)}
    raw, density = values[plain.name], values[normal.name]
    np.testing.assert_allclose(raw["estimate"], hills_log_density(x), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(raw["estimate"] - out.estimate, density["estimate"], atol=1e-3)
    total = np.exp(density["estimate"].astype(np.float64)).sum() * 0.01
    assert abs(math.log(total)) < 4.5 * out.standard_error + 1e-3
    np.testing.assert_allclose(density["standard_error"], out.standard_error, rtol=1e-5)
    assert "unnormalised" in plain.name and plain.unit == "nats + constant"
    assert normal.direction == "upper, stochastic" and "AIS(100" in normal.name


def test_a_tilted_generator_is_annealed_in_noise_space(b):
    """A linear energy w'x + c over a linear-Gaussian model: log Z = -c + w'S w / 2 exactly."""
    model = Tilted(guided(1.0), energy=nets.MLP(hidden=(), out=()))
    bound, params = bind(model, b, data={"x": np.zeros((1, 3), np.float32)}, seed=3)
    params = b.tree_map(b.to_numpy, params)
    weight = np.array([[0.8], [-0.6], [0.5]], np.float32).reshape(
        params["energy"]["out"]["weight"].shape
    )
    bias = np.full_like(params["energy"]["out"]["bias"], 0.7)
    params["energy"] = {"out": {"weight": weight, "bias": bias}}
    w = guided(1.0).params["decoder"]["out"]["weight"].astype(np.float64)
    e = weight.reshape(-1).astype(np.float64)
    truth = -0.7 + 0.5 * e @ (w.T @ w + 0.25 * np.eye(3)) @ e
    fitted = Fitted(model, params, shapes={"x": (3,)})
    near(log_partition(fitted, AIS(40, 1500, 3, num_pilot_steps=20), seed=0, backend=b), truth)
    with pytest.raises(AlgorithmError, match="integral over them"):
        context_of(fitted, b, np.zeros((2, 3), np.float32)).function(UnnormalizedLogDensity())
    with pytest.raises(AlgorithmError, match="expected one where a base is given"):
        log_partition(fitted, AIS(10, 4), base=Gaussian(0.0, 1.0), seed=0, backend=b)


def test_a_small_boltzmann_machine_has_the_log_z_of_its_states(b):
    rng, visible, hidden = np.random.default_rng(0), 8, 12
    machine = RBM(
        rng.normal(size=(visible, hidden)), rng.normal(size=visible), rng.normal(size=hidden)
    )
    truth = machine.exact_log_partition()
    out = rbm_log_partition(machine, AIS(200, 600), seed=0, backend=b)
    assert abs(out.estimate - truth) < min(0.05, 4 * out.standard_error), (out, truth)
    other = rbm_log_partition(
        machine, AIS(200, 600), base_bias=rng.normal(size=visible), seed=1, backend=b
    )
    assert abs(other.estimate - truth) < min(0.05, 4 * other.standard_error), (other, truth)


def test_the_exact_sum_is_over_all_states_of_either_layer():
    rng = np.random.default_rng(1)
    machine = RBM(rng.normal(size=(3, 5)), rng.normal(size=3), rng.normal(size=5))
    total = 0.0
    for v in np.ndindex(*[2] * 3):
        for h in np.ndindex(*[2] * 5):
            v_, h_ = np.array(v), np.array(h)
            energy = v_ @ machine.visible_bias + h_ @ machine.hidden_bias + v_ @ machine.weight @ h_
            total += math.exp(energy)
    flipped = RBM(machine.weight.T, machine.hidden_bias, machine.visible_bias)
    for each in (machine, flipped):
        assert each.exact_log_partition() == pytest.approx(math.log(total), rel=1e-12)
    with pytest.raises(AlgorithmError, match="at most 20"):
        RBM(np.zeros((21, 21)), np.zeros(21), np.zeros(21)).exact_log_partition()
    with pytest.raises(ShapeError, match="expected \\[D, H\\]"):
        RBM(np.zeros((3, 2)), np.zeros(2), np.zeros(3))
    with pytest.raises(DeclarationError, match="finite numbers"):
        RBM(np.full((1, 1), np.nan), np.zeros(1), np.zeros(1))


def test_a_start_that_does_not_fit_is_refused(backend):
    small = AIS(10, 4)
    with pytest.raises(MissingSeed, match="log_partition"):
        log_partition(HILLS, small, backend=backend)
    with pytest.raises(MissingSeed, match="rbm_log_partition"):
        rbm_log_partition(RBM(np.zeros((1, 1)), np.zeros(1), np.zeros(1)), backend=backend)
    with pytest.raises(AlgorithmError, match="is normalised"):
        log_partition(ppca(), small, seed=0, backend=backend)
    with pytest.raises(DeclarationError, match="expected a Fitted"):
        log_partition(clusters, small, seed=0, backend=backend)
    with pytest.raises(ShapeError, match=r"a datum's, \(2,\)"):
        log_partition(HILLS, small, base=Gaussian(np.zeros(3), 1.0), seed=0, backend=backend)
    with pytest.raises(DeclarationError, match="above 0"):
        log_partition(HILLS, small, base=Gaussian(0.0, 0.0), seed=0, backend=backend)
    with pytest.raises(AlgorithmError, match="samples without a base"):
        log_partition(HILLS, small, samples=np.zeros((4, 2)), seed=0, backend=backend)
    for samples in (np.zeros((3, 2)), np.zeros((4, 5))):
        with pytest.raises(ShapeError, match="at least 4"):
            log_partition(
                HILLS, small, base=Gaussian(0.0, 1.0), samples=samples, seed=0, backend=backend
            )
    with pytest.raises(DataError, match="at least two finite"):
        Gaussian.covering(np.zeros((1, 2)))
    with pytest.raises(DataError, match="all equal"):
        Gaussian.covering(np.ones((5, 2)))
    np.testing.assert_array_equal(Gaussian.covering([[0.0, 3.0], [2.0, 3.0]]).scale, [1.5, 1.5])


def test_a_log_z_that_is_not_finite_is_refused(backend):
    @pg.model
    def broken():
        with pg.data_plate():
            x = pg.sample("x", dist.Normal(0.0, 1.0))
            pg.factor("tilt", x * float("nan"))

    broken.is_normalized = False
    with pytest.raises(NonFiniteError, match="log Z = nan"):
        log_partition(Fitted(broken, {}, shapes={"x": ()}), AIS(3, 2, 1), seed=0, backend=backend)
