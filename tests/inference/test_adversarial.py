"""Adversarial learning by hand: what each player is moved by, and by nothing else."""

import dataclasses
import math

import numpy as np
import pytest
from fit_cases import quick

import probgen as pg
from probgen import dist, nets, ops
from probgen.errors import AlgorithmError, DeclarationError, ShapeError
from probgen.inference import ELBO, NUTS, SVI, Adversarial
from probgen.inference.learn.adversarial_losses import LOSSES
from probgen.models import EBM, Generator, Tilted, likelihoods

UNIT = dist.Normal(0, 1).expand([2]).to_event(1)
X = np.random.default_rng(0).normal(size=(16, 2)).astype("f") + 1.0
STILL = pg.SGD(1e-30)


@dataclasses.dataclass(frozen=True)
class Linear:
    """a . x + 100 (sum of all else): nothing but x has the slope |a|."""

    def init(self, key, *shapes):
        return {"a": np.float32([3.0, 4.0])}

    def apply(self, params, x, *rest):
        return ops.sum(params["a"] * x, axis=-1) + sum(100.0 * ops.sum(r, axis=-1) for r in rest)

    def out_shape(self, *shapes):
        return ()


@pg.model
def moved():
    """x = mu + eps: the generator of which everything is known."""
    mu = pg.net("mu", nets.Parameter((2,)))()
    with pg.data_plate():
        z = pg.sample("z", UNIT)
        pg.sample("x", likelihoods.Implicit()(mu + z, 1))


@pg.model
def conditional(y):
    """x given y, from noise and y together."""
    with pg.data_plate():
        z = pg.sample("z", UNIT)
        out = pg.net("G", nets.MLP((16,), 2, in_ndim=1, activation="silu"))(
            ops.concatenate([z, y], axis=-1)
        )
        pg.sample("x", likelihoods.Implicit()(out, 1))


@pytest.fixture(scope="module")
def b(backend_name):
    return quick(backend_name)


def fit(b, model, data, algorithm, num_steps=1, **options):
    options = {"batch_size": 16, "seed": 0, "backend": b, "progress_bar": False, **options}
    return pg.fit(model, data, algorithm, num_steps=num_steps, **options)


# ---- losses and penalties by hand ----

R, F = np.array([2.0, 0.5]), np.array([-1.0, 0.25])


def softplus(v):
    return np.log1p(np.exp(v))


BY_HAND = {
    "non_saturating": (softplus(-R).mean() + softplus(F).mean(), softplus(-F).mean()),
    "wasserstein": (-0.375 - 1.25, 0.375),
    "hinge": (0.25 + 0.625, 0.375),  # relu(1 - R) = (0, .5), relu(1 + F) = (0, 1.25)
    "least_squares": (0.5 * (1 + 0.25) / 2 + 0.5 * (1 + 0.0625) / 2, 0.5 * (4 + 0.5625) / 2),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_losses_are_those_of_their_papers(b, name):
    found = LOSSES[name]
    real, fake = b.asarray(R), b.asarray(F)
    values = found.discriminator(real, fake), found.generator(fake)
    np.testing.assert_allclose([float(v) for v in values], BY_HAND[name], rtol=1e-6)


def test_r1_is_lazy_and_not_multiplied(b):
    """D is linear, of slope 5: each third loss has gamma / 2 * 25 more, and no other has any."""
    known = dict(optimizer=STILL, discriminator_optimizer=STILL)
    with_r1 = fit(b, moved, X, Adversarial(Linear(), **known, r1=0.4, r1_every=3), 4).history
    without = fit(b, moved, X, Adversarial(Linear(), **known), 4).history
    more = with_r1["loss_discriminator"] - without["loss_discriminator"]
    np.testing.assert_allclose(more, [5.0, 0.0, 0.0, 5.0], atol=1e-4)
    np.testing.assert_allclose(with_r1["r1"], 25.0, rtol=1e-6)
    np.testing.assert_array_equal(with_r1["loss"], without["loss"])


def test_each_player_moves_by_its_own_gradient_alone(b):
    """Wasserstein and linear: d loss / d mu = -a whatever the data; D, which goes first, moves by
    mean x - mean x' and its penalty, (|a| - 1)^2 and its gradient 2 (1 - 1 / |a|) a."""
    rates = dict(optimizer=pg.SGD(0.5), discriminator_optimizer=pg.SGD(0.125))
    learner = Adversarial(Linear(), **rates, loss="wasserstein", gradient_penalty=2.0)
    fitted = fit(b, moved, X, learner)
    a = fitted.extras["discriminator"]["a"]
    np.testing.assert_allclose(fitted.params["mu"]["value"], 0.5 * a, rtol=1e-5)
    np.testing.assert_allclose(fitted.history["gradient_penalty"], 16.0, rtol=1e-5)
    plain = dataclasses.replace(learner, gradient_penalty=0.0)
    free = fit(b, moved, X, plain).extras["discriminator"]["a"]
    slope = np.float64([3, 4]) * 2 * 2.0 * (1 - 1 / 5)
    np.testing.assert_allclose(a - free, -0.125 * slope, rtol=1e-4)
    gap = (fitted.history["logit_real"] - fitted.history["logit_fake"])[0]
    assert (free - [3, 4]) @ np.array([3, 4]) == pytest.approx(0.125 * gap, rel=1e-4)


def test_several_steps_of_the_discriminator_leave_the_generator_alone(b):
    learner = Adversarial(Linear(), STILL, pg.SGD(0.1), discriminator_steps=3)
    fitted = fit(b, moved, X, learner)
    np.testing.assert_allclose(fitted.params["mu"]["value"], 0.0, atol=1e-20)
    once = fit(b, moved, X, dataclasses.replace(learner, discriminator_steps=1))
    moves = [np.abs(f.extras["discriminator"]["a"] - [3, 4]).max() for f in (once, fitted)]
    assert 0 < moves[0] < moves[1]


# ---- what is learned ----


# What else the critic is shown is in `test_implicit_conditions`.
@pytest.mark.repeated("test_each_player_moves_by_its_own_gradient_alone")
def test_a_conditional_generator_keeps_its_condition(b):
    """x ~ N(2 y, 0.3^2): at y = 1 and y = -1 the draws lie where the data do."""
    rng = np.random.default_rng(1)
    y = rng.choice([-1.0, 1.0], size=(800, 1)).astype("f")
    x = (2.0 * y + 0.3 * rng.normal(size=(800, 2))).astype("f")
    critic = nets.MLP((32,), (), in_ndim=1, activation="silu")
    players = pg.Adam(1e-2, b1=0.5, b2=0.9)
    learner = Adversarial(critic, players, players, r1=0.1)
    fitted = fit(b, conditional, {"x": x, "y": y}, learner, 400, batch_size=64, ema_decay=0.95)
    asked = np.repeat(np.float32([[1.0], [-1.0]]), 200, axis=0)
    drawn = pg.generate(fitted, 400, inputs={"y": asked}, seed=0, backend=b)["x"]
    means = drawn[:200].mean(0), drawn[200:].mean(0)
    np.testing.assert_allclose(means, [[2.0, 2.0], [-2.0, -2.0]], atol=0.4)


def test_a_discriminator_that_wins_is_said_once(b):
    far = {"mu": {"value": np.float32([-10.0, -10.0])}}
    events = fit(b, moved, X + 10, Adversarial(Linear(), STILL, STILL), 3, init=far).history.events
    assert len(events) == 1 and "tells data from draws all but always" in events[0]


# ---- refusals ----


def test_what_has_draws_and_no_density_is_drawn_and_never_scored(b):
    model = Generator(UNIT, nets.MLP((), 2, in_ndim=1), likelihoods.Implicit())
    params = {"decoder": model.decoder.init(np.random.default_rng(0), (2,))}
    fitted = pg.Fitted(model, params, shapes={"x": (2,)})
    assert pg.generate(fitted, 3, seed=0, backend=b)["x"].shape == (3, 2)
    for ask in (
        lambda: pg.evaluate(fitted, X, [ELBO()], seed=0, backend=b),
        lambda: pg.infer(fitted, X, NUTS(num_samples=2), seed=0, backend=b),
        lambda: fit(b, model, X, SVI(ELBO())),
    ):
        with pytest.raises(AlgorithmError, match=r"\['x'\] have no density under 'Generator'"):
            ask()


@pg.model
def two_sites():
    with pg.data_plate():
        pg.sample("x", UNIT)
        pg.sample("y", UNIT)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (two_sites, {}, r"got data for the sites \['x', 'y'\]"),
        (Generator(UNIT, nets.MLP((), 2), dist.Bernoulli), {}, r"sites \['x'\].*are discrete"),
        (Tilted(EBM(nets.MLPEnergy((2,)), UNIT), nets.MLPEnergy((2,))), {}, "has the factors"),
        (moved, {"consistency": 0.5}, "consistency=0.5 for a model whose fakes"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(backend_name, model, options, message):
    data = {"x": X, "y": X} if model is two_sites else (X > 0).astype("f")
    with pytest.raises(AlgorithmError, match=message):
        fit(quick(backend_name), model, data, Adversarial(Linear(), **options))


def test_a_discriminator_of_several_numbers_is_refused(b):
    with pytest.raises(ShapeError, match=r"gives an array of shape \(3,\).*expected \(\), one"):
        fit(b, moved, X, Adversarial(nets.MLP((4,), 3, in_ndim=1)))


def test_declarations_that_contradict_themselves_are_refused():
    with pytest.raises(DeclarationError, match="r1_every"):
        Adversarial(Linear(), r1_every=4)
    with pytest.raises(DeclarationError, match="loss"):
        Adversarial(Linear(), loss="saturating")
    assert math.isclose(Adversarial(Linear()).optimizer.b1, 0.5)
