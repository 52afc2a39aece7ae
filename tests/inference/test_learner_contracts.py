"""EM, adversarial learning and fits without data as short files over the learner contracts."""

import numpy as np
import pytest
from fit_cases import are_same_bits, assert_same_bits, quick
from learner_cases import EM, factor_data, factor_model, follow, ppca

import probgen as pg
from probgen import dist, nets, ops
from probgen.engine.bind import bind
from probgen.errors import AlgorithmError, ShapeError
from probgen.inference import Adversarial, Langevin, MaximumLikelihood, PersistentChains
from probgen.language.seeds import named
from probgen.models import EBM, Generator, likelihoods

NORMAL = dist.Normal(0, 1).expand([2]).to_event(1)
MEAN, ROOT = np.float32([2.0, -1.0]), np.float32([[0.5, 0.0], [0.3, 0.4]])  # x = MEAN + ROOT eps


@pytest.fixture(scope="module")
def b(backend_name):
    return quick(backend_name)


def fit(b, model, data, algorithm, **options):
    options = {"seed": 0, "backend": b, "progress_bar": False, **options}
    return pg.fit(model, data, algorithm, **options)


# ---- EM ----


# That EM by chains that go on finds it is `test_em_gaussian`'s; here each datum keeps its chain.
@pytest.mark.repeated("test_chains_go_on_with_a_fitted_model_and_only_those_of_the_batch_move")
def test_em_with_a_chain_a_datum_finds_the_factor_models_covariance(b):
    """Within one standard error of the sample's own, of each entry; chains that begin anew at each
    visit find no factor at all."""
    x = factor_data()
    optimizer = pg.Adam(pg.CosineDecay(4e-2, 360, final=1e-3))
    algorithm = EM(optimizer=optimizer)
    fitted = fit(b, factor_model(), x, algorithm, num_steps=360, batch_size=100, ema_decay=0.95)
    w = fitted.params["decoder"]["out"]["weight"]
    noise = np.log1p(np.exp(fitted.params["likelihood"]["value"])) ** 2
    found, wanted = w.T @ w + noise * np.eye(3), ppca(x, 1)
    spread = np.sqrt((np.outer(np.diag(wanted), np.diag(wanted)) + wanted**2) / len(x))
    assert (np.abs(found - wanted) < spread).all(), (found, wanted)
    assert fitted.extras["z"].shape == (300, 1)


def test_chains_go_on_with_a_fitted_model_and_only_those_of_the_batch_move(b, tmp_path):
    x, model = factor_data(40), factor_model()
    first = fit(b, model, x, EM(), num_steps=4, batch_size=10)
    first.save_pretrained(tmp_path)
    again = fit(b, pg.Fitted.from_pretrained(tmp_path), x, EM(), num_steps=1, batch_size=10)
    moved = (again.extras["z"] != first.extras["z"]).any(1)
    assert moved.sum() == 10
    with pytest.raises(ShapeError, match=r"extras\['z'\].*its array is f\[40, 1\], expected f.30"):
        fit(b, first, x[:30], EM(), num_steps=1, batch_size=10)


def test_a_learner_that_keeps_something_for_each_datum_refuses_a_stream(b):
    with pytest.raises(AlgorithmError, match="EM: got a stream, expected data of a known size"):
        fit(b, factor_model(), lambda: iter([factor_data(8)]), EM(), num_steps=1)


# ---- adversarial ----


def gaussian_data(size=2000):
    eps = np.random.default_rng(0).normal(size=(size, 2)).astype(np.float32)
    return MEAN + eps @ ROOT.T


def affine():
    return Generator(NORMAL, nets.MLP((), out=2, in_ndim=1), likelihoods.Normal(1e-3))


def law_of(fitted):
    """Mean and covariance of an affine generator's draws."""
    layer = fitted.params["decoder"]["out"]
    return layer["bias"], layer["weight"].T @ layer["weight"]


# What each player moves by is exact there, to the lazy penalty.
@pytest.mark.repeated("test_adversarial.py::test_each_player_moves_by_its_own_gradient_alone")
def test_a_generator_learns_a_gaussian_against_a_critic_of_its_own(b):
    critic, players = nets.MLP((32, 32), (), activation="silu", in_ndim=1), pg.Adam(5e-3, b1=0.0)
    learner = Adversarial(critic, players, players, r1=0.2, r1_every=4)
    options = dict(num_steps=800, batch_size=100, ema_decay=0.98)
    fitted = fit(b, affine(), gaussian_data(), learner, **options)
    mean, cov = law_of(fitted)
    np.testing.assert_allclose(mean, MEAN, atol=0.1)
    np.testing.assert_allclose(cov, ROOT @ ROOT.T, atol=0.06)


def test_a_critic_of_its_own_is_kept_and_goes_on(b, tmp_path):
    critic, moving = nets.MLP((4,), (), activation="silu", in_ndim=1), pg.SGD(0.1)
    learner = Adversarial(critic, discriminator_optimizer=moving)
    fitted = fit(b, affine(), gaussian_data(), learner, num_steps=2, batch_size=100)
    fitted.save_pretrained(tmp_path)
    kept = pg.Fitted.from_pretrained(tmp_path)
    still = Adversarial(critic, discriminator_optimizer=pg.SGD(1e-30))
    again = fit(b, kept, gaussian_data(), still, num_steps=1, batch_size=100)
    assert_same_bits(again.extras, fitted.extras)
    drawn = {"discriminator": critic.init(named(0, "discriminator"), (2,))}
    assert not are_same_bits(drawn, fitted.extras)
    with pytest.raises(ShapeError, match=r"extras\['discriminator'\].*expected f.2, 8."):
        other = Adversarial(nets.MLP((8,), (), in_ndim=1))
        fit(b, kept, gaussian_data(), other, num_steps=1, batch_size=100)


def test_a_critics_spectral_norm_is_kept_up_like_a_models(b):
    """u moves by power iterations alone, since its gradient is zero, and stays of length 1."""
    critic = nets.MLP((3,), (), spectral=True, in_ndim=1)
    algorithm = Adversarial(critic, discriminator_optimizer=pg.AdamW(1e-1, weight_decay=0.5))
    layer = fit(b, affine(), gaussian_data(50), algorithm, num_steps=2)
    layer = layer.extras["discriminator"]["layer0"]
    start = critic.init(named(0, "discriminator"), (2,))["layer0"]
    assert (layer["u"] != start["u"]).all()
    np.testing.assert_allclose(np.linalg.norm(layer["u"]), 1.0, rtol=1e-5)


def test_nets_that_nobody_declared_are_refused(b):
    bound, params = bind(affine(), b, data={"x": gaussian_data(2)})
    optimizer = bound.optimizer(pg.Adam())
    with pytest.raises(AlgorithmError, match="start: got parameters of 'critic'.*bound.new_net"):
        bound.start(optimizer, {"critic": params["decoder"]})
    with pytest.raises(AlgorithmError, match="new_net: got the name 'decoder', which stands for"):
        bound.new_net("decoder", nets.Dense(1), (2,))


# ---- persistent chains of maximum likelihood ----


def test_persistent_chains_go_on_with_a_fitted_energy(b):
    """At a step size of 1e-12 chains stay: those kept are found again, and new ones are others."""
    model = EBM(nets.MLPEnergy((4,)), NORMAL)
    still = MaximumLikelihood(Langevin(1e-12, 1), init=PersistentChains(0.0))
    fitted = fit(b, model, gaussian_data(64), still, num_steps=1, batch_size=16)
    again = fit(b, fitted, gaussian_data(64), still, num_steps=1, batch_size=16, seed=1)
    chains = again.extras["chains"]["x"]
    np.testing.assert_allclose(chains, fitted.extras["chains"]["x"], atol=1e-4)
    with pytest.raises(ShapeError, match=r"extras\['chains'\].*x is f.16, 2., expected f.8, 2."):
        fit(b, fitted, gaussian_data(64), still, num_steps=1, batch_size=8)


# ---- without data ----


def towards(x):
    """The drift from N(m, C), m and C of the draws, to N(MEAN, ROOT ROOT^T): the difference of the
    two scores, of which the second is the target's."""
    at = x - ops.mean(x, axis=0)
    cov = ops.einsum("ni,nj->ij", at, at) / x.shape[0]
    root = ops.cholesky(cov)
    half = ops.solve_triangular(root, ops.transpose(at))
    own = ops.solve_triangular(ops.transpose(root), half, lower=False)
    precision = ops.asarray_like(np.linalg.inv(ROOT @ ROOT.T), x)
    return ops.transpose(own) - (x - ops.asarray_like(MEAN, x)) @ precision


def test_a_generator_follows_a_drift_without_data(b):
    """The drift is zero where the draws have the target's mean and covariance, and only there;
    their own standard errors are those of a batch of 500."""
    fitted = fit(b, affine(), None, follow(towards), num_steps=300, batch_size=500)
    mean, cov = law_of(fitted)
    wanted = ROOT @ ROOT.T
    assert (np.abs(mean - MEAN) < 3 * np.sqrt(np.diag(wanted) / 500)).all()
    spread = np.sqrt((np.outer(np.diag(wanted), np.diag(wanted)) + wanted**2) / 500)
    assert (np.abs(cov - wanted) < 3 * spread).all()
    assert fitted.info["num_data"] is None
    draws = pg.generate(fitted, 4, seed=0, backend=b)["x"]
    assert draws.shape == (4, 2)


def test_what_a_fit_without_data_needs_is_said(b):
    options = dict(num_steps=1, batch_size=8)
    with pytest.raises(
        AlgorithmError, match="got data=None and batch_size='auto', expected data, or"
    ):
        fit(b, affine(), None, follow(towards), num_steps=1)
    with pytest.raises(AlgorithmError, match="EM: got data=None, expected data"):
        fit(b, factor_model(), None, EM(), **options)
    with pytest.raises(AlgorithmError, match="gradient_accumulation: got 2 without data"):
        fit(b, affine(), None, follow(towards), gradient_accumulation=2, **options)
    with pytest.raises(pg.ProbgenError, match="validation without data"):
        fit(b, affine(), None, follow(towards), validation=MEAN[None], **options)
    with pytest.raises(AlgorithmError, match="num_steps"):
        fit(b, affine(), None, follow(towards), num_epochs=1, batch_size=8)
