"""Short fits with a controlled KL: it tracks, resumes, accumulates and reports."""

import functools

import numpy as np
import pytest

import probgen as pg
from probgen import dist, nets
from probgen.errors import AlgorithmError
from probgen.inference import (
    ELBO,
    PI,
    SVI,
    CapacityELBO,
    ControlledELBO,
    IncrementalPI,
    StepSetPoint,
)
from probgen.models import VAE


@functools.cache
def digits() -> np.ndarray:
    x = pg.data.digits().images
    return (x > 0.5).astype(np.float32)[np.random.default_rng(0).permutation(len(x))][:1437]


def vae(hidden=(64,)) -> VAE:
    return VAE(
        latent=dist.Normal(0, 1).expand([8]).to_event(1),
        decoder=nets.MLP(hidden=hidden, out=(8, 8, 1)),
        likelihood=dist.Bernoulli,
        encoder=nets.MLP(hidden=hidden, out=8, heads=("loc", "log_scale")),
    )


def fit(loss, backend, num_steps, **options):
    options = {"batch_size": 128, "seed": 0, "progress_bar": False, **options}
    model = options.pop("model", vae())
    rate = options.pop("rate", 1e-3)
    return pg.fit(
        model, digits(), SVI(loss, pg.Adam(rate)), num_steps=num_steps, backend=backend, **options
    )


# That such weights lead the KL to its set point is `test_control`'s.
@pytest.mark.repeated("test_the_weight_of_a_step_comes_from_its_own_kl")
def test_a_controlled_fit_tracks_its_set_point_and_rescues_the_code(backend):
    """500 steps, started near the steady weight; the mean KL of the last 200 to 4%.

    The minibatch KL has sd 0.5 at most, so its mean over 200 steps a s.e. of 0.035. What is left
    is the drift of a net that still learns: the error that keeps beta moving is (d beta / dt) / ki.
    """
    options = {"model": vae((32,))}
    collapsed = fit(ELBO(kl_weight=4.0), backend, 300, **options)
    loss = ControlledELBO(set_point=4.0, controller=PI(ki=1e-2, initial_beta=1.5))
    found = fit(loss, backend, 500, **options)
    history = found.history
    assert history.last("kl", 200) == pytest.approx(4.0, rel=0.04)
    assert collapsed.history.last("kl") < 1.0
    assert found.report.active_units["z"].sum() >= 2
    np.testing.assert_allclose(history["elbo"], history["log_prob"] - history["kl"], rtol=1e-4)


@pytest.fixture
def quick(backend_name):
    """The backend without inductor: short fits do not earn its compilation back."""
    options = {"compile": "graph"} if backend_name == "torch" else {}
    return pg.backends.load(backend_name, "cpu", **options)


def replay(controller, kls, set_points):
    state, betas = controller.init(), []
    for kl, wanted in zip(kls.astype(float), set_points.astype(float), strict=True):
        state, beta = controller.update(state, kl, wanted)
        betas.append(beta)
    return np.array(betas)


def test_the_weight_of_a_step_comes_from_its_own_kl(quick):
    steps = StepSetPoint(start=1.0, delta=0.5, every=10, maximum=2.0)
    controller = PI(initial_beta=0.3)
    history = fit(ControlledELBO(set_point=steps, controller=controller), quick, 40).history
    want = replay(controller, history["kl"], history["set_point"])
    np.testing.assert_allclose(history["kl_weight"], want, atol=2e-6)
    loss = -history["log_prob"] + history["kl_weight"] * history["kl"]
    np.testing.assert_allclose(history["loss"], loss, rtol=1e-5)
    assert history["set_point"][9] == 1.0 and history["set_point"][10] == 1.5


def test_with_accumulation_the_controller_moves_once_per_update_on_the_mean_kl(quick):
    controller = PI(initial_beta=0.3)
    loss = ControlledELBO(set_point=lambda count: 1.0 + 0.01 * count, controller=controller)
    history = fit(loss, quick, 30, gradient_accumulation=4).history
    np.testing.assert_allclose(history["set_point"], 1.0 + 0.01 * np.arange(30), rtol=1e-6)
    want = replay(controller, history["kl"], history["set_point"])
    assert history["kl_weight"][0] == pytest.approx(0.3)
    np.testing.assert_allclose(history["kl_weight"][1:], want[:-1], atol=2e-6)


# What a controller remembers is in the state of its learner, all of which a checkpoint keeps.
@pytest.mark.repeated("test_em.py::test_em_stopped_and_resumed_is_the_uninterrupted_run")
def test_a_resumed_fit_has_the_weights_of_the_uninterrupted_one(quick, tmp_path):
    """By the controller that remembers more."""
    loss = ControlledELBO(set_point=3.0, controller=IncrementalPI())
    whole = fit(loss, quick, 40).history
    fit(loss, quick, 20, checkpoint=tmp_path)
    resumed = fit(loss, quick, 40, checkpoint=tmp_path).history
    np.testing.assert_array_equal(resumed["kl_weight"], whole["kl_weight"])
    np.testing.assert_array_equal(resumed["kl"], whole["kl"])


def test_the_capacity_loss_is_its_formula(quick):
    loss = CapacityELBO(gamma=10.0, capacity=4.0, num_steps=20)
    history = fit(loss, quick, 40).history
    wanted = 4.0 * np.minimum(np.arange(40) / 20, 1.0)
    np.testing.assert_allclose(history["set_point"], wanted, rtol=1e-6)
    value = -history["log_prob"] + 10.0 * np.abs(history["kl"] - wanted)
    np.testing.assert_allclose(history["loss"], value, rtol=1e-5)


def test_a_set_point_that_was_missed_is_reported(quick):
    missed = ControlledELBO(set_point=300.0, controller=PI(beta_max=1.0))
    report = fit(missed, quick, 20).report
    assert any("300.00" in w and "set point" in w for w in report.warnings)


def test_a_model_without_latents_has_no_kl_to_control(quick):
    @pg.model
    def plain():
        with pg.data_plate():
            pg.sample("x", dist.Normal(pg.net("loc", nets.Parameter(()))(), 1.0))

    @plain.with_guide
    def model():
        pass

    x = np.zeros(8, np.float32)
    with pytest.raises(AlgorithmError, match="no latent sites"):
        pg.fit(
            model, x, SVI(ControlledELBO(set_point=1.0)), num_steps=2, batch_size=4, seed=0,
            backend=quick, progress_bar=False,
        )  # fmt: skip
