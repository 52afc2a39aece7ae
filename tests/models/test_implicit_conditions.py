"""A denoising diffusion GAN with a condition: the class reaches generator and discriminator."""

import numpy as np
import pytest
from at_once import terms_of
from fit_cases import assert_same_bits, quick

import probgen as pg
from probgen import nets
from probgen.engine.bind import bind
from probgen.errors import AlgorithmError, DataError, ShapeError, UnknownName
from probgen.inference import Adversarial, Ancestral
from probgen.models import ImplicitDiffusion, NoiseSchedule

FEW = NoiseSchedule(4, "vp_sde")
CLASSES = nets.ClassEmbedding(3, 2)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(32, 2)).astype("f"), RNG.integers(0, 3, 32)
MODES = np.array([[-2.0, 0.0], [1.0, 3.0], [4.0, -1.0], [0.0, 0.0]], "f")


class Given:
    """G = the context itself, whatever else it gets; so each class is one point."""

    def init(self, key, *shapes):
        return {}

    def apply(self, params, x, *rest):
        return x * 0.0 + rest[-1][..., 0, :]


class Reads:
    """A logit that is the first number of the context: what the discriminator was shown."""

    def init(self, key, *shapes):
        return {"inputs": np.float32(len(shapes))}

    def apply(self, params, x, *rest):
        return (x * 0.0).sum(-1) * params["inputs"] + rest[-1][..., 0, 0]

    def out_shape(self, *shapes):
        return ()


known = ImplicitDiffusion(Given(), (2,), 3, FEW, condition=CLASSES)
PARAMS = {"generator": {}, "condition": {"table": MODES}}


def fitted_known():
    return pg.Fitted(
        known, PARAMS, shapes={"x": (2,), "condition": ()}, dtypes={"condition": "int32"}
    )


@pytest.fixture(scope="module")
def b(backend_name):
    return quick(backend_name)


def test_each_row_is_drawn_from_its_own_class(b):
    """With one point a class a draw is that point, by the loop and by the program's own chain."""
    fitted = fitted_known()
    y = np.array([2, 0, 1, 1, 2])
    drawn = pg.generate(fitted, 5, inputs={"condition": y}, seed=0, backend=b)
    np.testing.assert_array_equal(drawn["x"], MODES[y])
    one = pg.generate(fitted, 5, inputs={"condition": np.array(1)}, seed=0, backend=b)
    np.testing.assert_array_equal(one["x"], MODES[5 * [1]])
    bound, params = bind(known, b, data={"x": X[:5], "condition": y}, params=PARAMS)
    options = {"key": b.key(0), "batch_size": 5, "condition": False}
    sites = terms_of(b, bound.trace, params, {"condition": b.asarray(y)}, **options)
    np.testing.assert_allclose(sites["x"][0], MODES[y], rtol=1e-6)


def test_pairs_carry_the_class_of_their_rows_to_the_discriminator(b):
    """Fakes at t' = 0 are their classes' points; the context is a label, and a constant to it."""
    bound, params = bind(known, b, data={"x": X, "condition": Y}, params=PARAMS)
    batch = {"x": b.asarray(X), "condition": b.asarray(Y)}
    pairs = b.tree_map(b.to_numpy, b.compile(known.pairs(bound))(params, batch, b.key(0)))
    times, context = pairs.labels
    np.testing.assert_array_equal(context[:, 0], MODES[Y])
    last = times == 0
    assert last.any()
    np.testing.assert_array_equal(pairs.fake[last], MODES[Y][last])
    learner = Adversarial(Reads(), pg.SGD(1.0), pg.SGD(1.0), loss="wasserstein")
    fitted = pg.fit(
        known, {"x": X, "condition": Y}, learner, num_steps=1, batch_size=32, seed=0, backend=b,
        init=PARAMS, progress_bar=False,
    )  # fmt: skip
    np.testing.assert_allclose(fitted.history["logit_real"], MODES[Y, 0].mean(), rtol=1e-5)
    assert fitted.extras["discriminator"]["inputs"] == 4  # (x_{t-1}, x_t, t', context)
    assert_same_bits(fitted.params["condition"], PARAMS["condition"])


VECTORS = ((2,), (3,), (), (1, 4))
IMAGES = ((4, 4, 1), (3,), (), (1, 4))
TWO = ((4, 4, 1), (4, 4, 1), (), (1, 4))
NETS = [
    (nets.LatentDenoiser(2, (4,), 4), VECTORS), (nets.TimedDiscriminator((4,), 4), VECTORS),
    (nets.LatentUNet((4,), latent_width=4, latent_layers=1), IMAGES),
    (nets.ConvDiscriminator((4, 4), time_dim=4, time_width=4, group=1), TWO),
]  # fmt: skip


@pytest.mark.parametrize("net, shapes", NETS, ids=lambda v: type(v).__name__)
def test_a_net_reads_each_rows_context(b, net, shapes):
    """Another context of the second row changes the second row and no other."""
    params = b.tree_map(b.asarray, net.init(np.random.default_rng(0), *shapes))
    rng = np.random.default_rng(1)
    inputs = [rng.normal(size=(2, *s)).astype("f") for s in shapes]
    other = [*inputs[:-1], inputs[-1] + np.array([0.0, 5.0], "f")[:, None, None]]
    run = b.compile(net.apply, num_calls=1)
    one, two = (b.to_numpy(run(params, *map(b.asarray, v))) for v in (inputs, other))
    assert one.shape == (2, *net.out_shape(*shapes))
    np.testing.assert_allclose(one[0], two[0], rtol=1e-5, atol=1e-7)
    assert np.abs(one[1] - two[1]).max() > 1e-6 * np.abs(one[1]).max()


def test_conditions_that_do_not_fit_are_refused(backend_name):
    b = quick(backend_name)
    fitted = fitted_known()
    how = {"seed": 0, "backend": b}
    y = {"condition": np.array([0, 1])}
    with pytest.raises(AlgorithmError, match="nor one without the condition to guide away from"):
        pg.generate(fitted, 2, inputs=y, method=Ancestral(guidance_scale=2.0), **how)
    with pytest.raises(UnknownName, match="condition"):
        pg.generate(fitted, 2, **how)
    with pytest.raises(DataError, match=r"expected 0 \.\.\. 2"):
        pg.generate(fitted, 2, inputs={"condition": np.array([0, 3])}, **how)
    with pytest.raises(ShapeError, match=r"or after it the tokens \(m, c\)"):
        nets.LatentDenoiser(2).init(np.random.default_rng(0), (2,), (1, 4))


@pytest.mark.slow
def test_two_classes_are_learned_apart(b):
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 1000)
    x = ((2.0 * y - 1.0)[:, None] + 0.2 * rng.normal(size=(1000, 2))).astype("f")
    generator, judge = nets.LatentDenoiser(2, (64, 64)), nets.TimedDiscriminator((64, 64))
    model = ImplicitDiffusion(generator, (2,), 2, FEW, condition=nets.ClassEmbedding(2, 8))
    adam = pg.Adam(5e-4, b1=0.5)
    fitted = pg.fit(
        model, {"x": x, "condition": y}, Adversarial(judge, adam, adam, r1=0.05), num_steps=2000,
        batch_size=128, ema_decay=0.995, seed=0, backend=b, progress_bar=False,
    )  # fmt: skip
    drawn = pg.generate(fitted, 400, inputs={"condition": y[:400]}, seed=0, backend=b)["x"]
    for k in (0, 1):
        off = drawn[y[:400] == k].mean(0) - (2.0 * k - 1.0)
        assert (np.abs(off) < 0.4).all()
