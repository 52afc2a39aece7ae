"""VAEBM: exact checks of its sheet, and how its released sampler differs, on both backends.

A hierarchical VAE of two levels whose scales depend on what is above them, tilted by an energy. Its
potential in noise space is U(eps) = E(x(eps)) + |eps|^2 / 2; the released one lacks the Jacobian.
Checks D and E (nothing of the base moves, no term through the chain) are those of
`test_exponential_tilting`, whose gradients are held to finite differences.
"""

import dataclasses

import numpy as np
import pytest
import scipy.stats as st
from at_once import at_once
from tilt_cases import LINEAR, B, S, W, log_z, phi, tilted_vae

import probgen as pg
from probgen import dist, nets, ops
from probgen.engine.spaces import model_target, total
from probgen.errors import AlgorithmError
from probgen.inference import (
    IWAE,
    EnergyLogLikelihood,
    ImportanceSampling,
    Langevin,
    Noise,
    Quadrature,
    log_partition,
)
from probgen.models import Tilted

NAMES = ("z1", "z2", "x")


def scales(z1, z2):
    """Of z2 and of x, given what is above them."""
    return ops.exp(0.6 * ops.tanh(z1)), 0.16 + 0.1 * ops.sigmoid(z2 + z1)


@pg.model
def two_levels():
    with pg.data_plate():
        z1 = pg.sample("z1", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
        z2 = pg.sample("z2", dist.Normal(0.5 * z1, scales(z1, 0.0)[0]).to_event(1))
        both = ops.concatenate([z1, 0.3 * z2 - z1], axis=-1)
        pg.sample("x", dist.Normal(0.1 * both, scales(z1, z2)[1]).to_event(1))


ENERGY = nets.MLPEnergy((4,), activation="tanh")


def tilted(scale):
    """The two levels tilted by an energy, or by nothing at scale 0."""
    params = ENERGY.init(np.random.default_rng(0), (2,))
    params["out"] = {k: np.float32(scale) * (v + 1) for k, v in params["out"].items()}
    model = Tilted(pg.Fitted(two_levels, {}, shapes={"x": (2,)}), ENERGY)
    return pg.Fitted(model, {"energy": params}, shapes={"x": (2,)})


def log_determinant(b, target, eps, params):
    """[n] log |det d(z1, z2, x) / d eps| by the backend's own derivatives."""
    sizes = [eps[n].shape[1] for n in NAMES]

    def stacked(flat):
        parts = np.cumsum([0, *sizes])
        each = {n: flat[:, i:j] for n, i, j in zip(NAMES, parts[:-1], parts[1:], strict=True)}
        values = target.values(each, params, {})
        return ops.concatenate([values[n] for n in NAMES], axis=-1)

    flat = b.asarray(np.concatenate([eps[n] for n in NAMES], axis=-1))
    parts = [b.grad(lambda e, i=i: ops.sum(stacked(e)[:, i])) for i in range(sum(sizes))]
    rows = b.compile(lambda flat: [part(flat) for part in parts], num_calls=1)(flat)
    jacobian = np.stack([b.to_numpy(r).astype(np.float64) for r in rows], axis=1)
    return np.linalg.slogdet(jacobian)[1]


def test_the_potential_is_that_of_noise_and_the_released_one_lacks_all_scales(b):
    """B: -log h - log |det| = U + constant; the released gap is the sum of log scales, exactly."""
    fitted = tilted(0.5)
    bound, params = fitted.bind(b)
    lax_space = Noise(as_released=True)
    u, released = (model_target(bound, space) for space in ("noise", lax_space))
    said = lax_space.note()
    assert "without the Jacobian" in said and "clamped to [-1, 1]" in said
    rng = np.random.default_rng(0)
    # Near zero, so that x stays within [-1, 1], where the released clamp does nothing.
    sizes = {"z1": 1, "z2": 1, "x": 2}
    eps = {n: rng.normal(0, 0.7, (40, k)).astype(np.float32) for n, k in sizes.items()}
    on_device = {n: b.asarray(v) for n, v in eps.items()}

    def run(eps, params):
        values = u.values(eps, params, {})
        log_h = total(bound.trace(params, {}, values, batch_size=40, condition=False))
        densities = [each.log_density(eps, params, {}) for each in (u, released)]
        energy = ENERGY.apply(params["energy"], values["x"])
        return values["x"], log_h, energy, densities, scales(values["z1"], values["z2"])

    x, log_h, energy, (found, lax), (s2, s_x) = at_once(b, run, on_device, params)
    assert np.abs(x).max() < 1.0
    log_det = log_determinant(b, u, eps, params)
    squares = sum((v.astype(np.float64) ** 2).sum(-1) for v in eps.values())
    potential = energy + 0.5 * squares
    gap = -log_h - log_det - potential
    np.testing.assert_allclose(gap, gap.mean(), atol=1e-5)
    np.testing.assert_allclose(found, -potential - gap, atol=1e-5)
    assert s_x.min() > np.exp(-2) + 0.01  # where the released floor does nothing
    lacking = (np.log(s2) + 2 * np.log(s_x))[:, 0]
    np.testing.assert_allclose(lacking, log_det, atol=1e-5)
    np.testing.assert_allclose(-lax - potential - gap, lacking, atol=2e-5)


@pytest.mark.repeated("test_the_potential_is_that_of_noise_and_the_released_one_lacks_all_scales")
def test_without_energy_chains_keep_the_noise_and_the_released_ones_do_not(b):
    """A: eps stays N(0, I) under U; under the released potential it runs to small scales."""
    sampler = Langevin(0.05, num_steps=100)
    ends = {}
    for space in ("noise", Noise(as_released=True)):
        draws = pg.generate(
            tilted(0.0), 8000, method=sampler, space=space, chunk_size=8000, return_chain=True,
            seed=0, backend=b,
        )  # fmt: skip
        ends[space] = np.concatenate([draws.chain[n][-1] for n in NAMES], axis=-1)
    assert "without the Jacobian" in draws.note
    exact, released = ends.values()
    # The variance of the unadjusted chain is 1 / (1 - h / 2) = 1.026; 4.4 standard errors each.
    np.testing.assert_allclose(exact.mean(0), 0.0, atol=0.05)
    np.testing.assert_allclose(exact.var(0), 1.026, atol=0.07)
    assert released.mean(0)[0] < -0.3


@pg.model
def narrow():
    """A scale below the floor of the released sampler, and data that leave [-1, 1]."""
    with pg.data_plate():
        z = pg.sample("z", dist.Normal(0.0, 2.0).expand([1]).to_event(1))
        mean = ops.concatenate([0.3 * z, 0.8 + z], axis=-1)
        pg.sample("x", dist.Normal(mean, 0.05).to_event(1))


def test_the_released_sampler_floors_the_scale_in_one_place_and_clamps_in_two(b):
    """log N(z) + log N(clip(x); mean, e^-2 + 0.01) - E(clip(x)): so that where x stays inside, the
    pull on eps_x is (0.05 / 0.145)^2 eps_x, and its variance 8.5 and not 1."""
    params = ENERGY.init(np.random.default_rng(0), (2,))
    params["out"] = {k: v + 1 for k, v in params["out"].items()}
    model = Tilted(pg.Fitted(narrow, {}, shapes={"x": (2,)}), ENERGY)
    bound, on_device = pg.Fitted(model, {"energy": params}, shapes={"x": (2,)}).bind(b)
    rng = np.random.default_rng(1)
    eps = {n: rng.normal(size=(30, k)).astype(np.float32) for n, k in (("z", 1), ("x", 2))}
    z = 2.0 * eps["z"]
    mean = np.concatenate([0.3 * z, 0.8 + z], -1)
    clamped = np.clip(mean + 0.05 * eps["x"], -1, 1).astype(np.float32)
    assert 0.2 < (np.abs(clamped) == 1).mean() < 0.8
    floor = np.exp(-2) + 0.01
    want = st.norm.logpdf(z, 0, 2).sum(-1) + st.norm.logpdf(clamped, mean, floor).sum(-1)
    released = model_target(bound, Noise(as_released=True))

    def run(eps, clamped):
        energy = ENERGY.apply(on_device["energy"], clamped)
        return energy, released.log_density(eps, on_device, {})

    given = {n: b.asarray(v) for n, v in eps.items()}
    energy, found = at_once(b, run, given, b.asarray(clamped))
    np.testing.assert_allclose(found, want - energy, rtol=1e-4, atol=1e-4)


def test_the_released_space_wants_a_normal(b):
    bound, _ = tilted(0.0).bind(b)
    with pytest.raises(AlgorithmError, match="no such site for the data 'y'.*name the site"):
        Noise(as_released=True, data="y").target(bound)


def test_a_quadratic_tilt_of_a_linear_vae_is_gaussian(b):
    """C: N(x; B, W^2 + S^2) exp(-a x^2 / 2), and z given it; MALA's moments within 3 %."""
    a = 0.8
    fitted = tilted_vae([0.0, a, 0.0])
    sampler = Langevin(0.3, num_steps=30, metropolis=True)
    draws = pg.generate(
        fitted, 20_000, method=sampler, chunk_size=20_000, seed=0, backend=b
    )  # fmt: skip
    v = 1.0 / (1.0 / (W**2 + S**2) + a)
    mean = v * B / (W**2 + S**2)
    x, z = draws["x"][:, 0], draws["z"][:, 0]
    assert abs(x.mean() - mean) < 0.03 * v**0.5 and abs(x.var() / v - 1) < 0.03
    slope = W / (W**2 + S**2)  # the posterior is the base's own: the tilt reads x alone
    rest = z - slope * (x - B)
    assert abs(rest.mean()) < 0.03 and abs(rest.var() / (1 - slope * W) - 1) < 0.03


THETA = np.array([0.4, 0.3, -0.5])


def test_log_z_and_the_likelihood_of_a_tilted_vae(b):
    """F: importance sampling within 1 % of quadrature in two dimensions; the bound that they
    give is below log h(x) and near it."""
    fitted = tilted_vae(THETA)
    exact = log_partition(fitted, Quadrature(101), seed=0, backend=b)
    assert exact.estimate == pytest.approx(log_z(THETA, "sample"), abs=1e-4)
    sampled = log_partition(fitted, ImportanceSampling(50_000), seed=0, backend=b)
    assert abs(sampled.estimate - exact.estimate) < 0.01
    from_below = dataclasses.replace(sampled, upper_bound=np.inf)  # as AIS gives it
    x = np.linspace(-1.5, 2.0, 8, dtype=np.float32)[:, None]
    truth = st.norm.logpdf(x[:, 0], B, np.hypot(W, S)) - phi(x[:, 0]) @ THETA
    truth = truth - log_z(THETA, "sample")
    measures = [EnergyLogLikelihood(z, IWAE(200)) for z in (exact, from_below)]
    table = pg.evaluate(fitted, x, measures, seed=0, backend=b, progress_bar=False)
    for measure, z in zip(measures, (exact, from_below), strict=True):
        found = table[measure.name]["estimate"].values
        np.testing.assert_allclose(found, truth, atol=0.15)
        assert table.units[measure.name] == "nats" and table.shared_error[measure.name]
        limited = "lower_bound" in table[measure.name]
        assert limited == np.isfinite(z.upper_bound)
        assert any("neither side" in w for w in table.warnings[measure.name]) != limited
    low = table[measures[0].name]["lower_bound"].values
    assert (low < truth + 0.02).all()


def test_an_energy_in_a_sum_and_at_a_temperature(b):
    """exp(-(E_1 + E_2) / T): what a product of densities and a temperature say, in numpy."""
    rng = np.random.default_rng(0)
    first, second = (nets.MLPEnergy((3,), activation="tanh") for _ in range(2))
    net = nets.ScaledEnergy(nets.SumOfEnergies((first, second)), 1 / 1.5)
    model = Tilted(LINEAR, net)
    params = net.init(rng, (1,))
    bound, on_device = pg.Fitted(
        model, {**LINEAR.params, "energy": params}, shapes={"x": (1,)}
    ).bind(b)
    x = b.asarray(rng.normal(size=(5, 1)).astype(np.float32))
    found = bound.trace(on_device, {"x": x}, key=b.key(0))["tilt"].log_prob
    parts = [
        b.to_numpy(e.apply(on_device["energy"][n], x))
        for e, n in zip((first, second), ("part0", "part1"), strict=True)
    ]
    np.testing.assert_allclose(b.to_numpy(found), -sum(parts) / 1.5, rtol=1e-5)
