"""Conditional diffusions: guidance is linear between null and condition, and a condition belongs to
its datum in every verb.

One step with nearly all of the noise and an affine net is a linear regression of x on x_1 and the
class, whose intercepts are the class means: what it learns and draws has closed forms.
"""

import inspect
import time

import numpy as np
import pytest
from at_once import at_once

import probgen as pg
from probgen import dist, nets
from probgen.engine.bind import bind
from probgen.errors import (
    AlgorithmError,
    DataError,
    ShapeError,
    SupportError,
    UnknownName,
)
from probgen.inference import DDIM, DDIMInverse, Denoising, DenoisingELBO, ProbabilityFlow
from probgen.inference.likelihood.denoising_elbo import ends
from probgen.language.declared import declaration
from probgen.models import VAE, Diffusion, NoiseSchedule
from probgen.models.random_step import shares

RNG = np.random.default_rng(0)
N, MEANS, SPREAD = 600, np.array([[-1.0, 0.5], [2.0, -1.0]]), 0.2
Y = RNG.permutation(np.arange(N) % 2)
X = (MEANS[Y] + SPREAD * RNG.normal(size=(N, 2))).astype(np.float32)
CLASSES = nets.ClassEmbedding(2, 3)
ONE_STEP = NoiseSchedule(1, "linear", 0.98)


def model(condition=CLASSES, hidden=(), schedule=ONE_STEP, kind="sample", **options):
    net = nets.MLPDenoiser(2, hidden=hidden)
    return Diffusion(net, (2,), schedule, kind, condition, **options)


@pytest.fixture(scope="module")
def fitted(b):
    return pg.fit(
        model(), X, Denoising(pg.Adam(pg.CosineDecay(0.05, 400)), condition_dropout=0.25),
        inputs={"condition": Y}, num_steps=400, batch_size=300, seed=0, backend=b,
        progress_bar=False,
    )  # fmt: skip


def test_contexts_are_rows_of_the_table(b):
    """A row a class and one for none; tokens as they are, or by an affine map."""
    net = nets.ClassEmbedding(3, 2, num_tokens=2)
    params = net.init(RNG, ())
    idx = np.array([2, 0])
    table = params["table"].reshape(4, 2, 2)
    on = b.tree_map(b.asarray, params)
    context, null = at_once(b, lambda p, i: (net.apply(p, i), net.null(p)), on, b.asarray(idx))
    np.testing.assert_array_equal(context, table[idx])
    np.testing.assert_array_equal(null, table[3])

    words = nets.ContextEmbedding((4, 3), 2)
    params = words.init(RNG, (4, 3))
    x = RNG.normal(size=(5, 4, 3)).astype(np.float32)
    on = b.tree_map(b.asarray, params)
    context, null = at_once(b, lambda p, i: (words.apply(p, i), words.null(p)), on, b.asarray(x))
    want = x @ params["dense"]["weight"] + params["dense"]["bias"]
    np.testing.assert_allclose(context, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(null, params["null"])
    assert words.out_shape((4, 3)) == null.shape == (4, 2)


def test_guidance_is_the_line_through_null_and_condition(b):
    """By hand: the net at the table's rows; what is shared, and what is dropped, is as its row."""
    declared = model(hidden=(8,))
    bound, params = bind(declared, b, data={"x": X[:1], "condition": Y[:1]}, seed=1)
    x, t, y = (
        b.asarray(X[:4]),
        b.asarray(np.zeros(4, np.float32)),
        b.asarray(np.array([0, 1, 1, 0])),
    )
    mask = b.asarray(np.array([True, False, True, False]))

    rows = b.to_numpy(params["condition"]["table"])

    def run(params):
        def ask(scale=1.0, c=y, **more):
            return declared.predict(params, x, t, {"condition": c}, scale, **more)

        def by_hand(of):
            table = b.asarray(rows[of][:, None])
            return declared.denoiser.apply(params["denoiser"], x, t, table)

        hand = {r: by_hand(list(r)) for r in ((0, 1, 1, 0), (2,) * 4, (2, 1, 2, 0), (1,) * 4)}
        found = [ask(s) for s in (0.0, 1.0, 3.0)]
        return hand, found, ask(dropped=mask), ask(c=1), ask(c=b.asarray(np.array(1)))

    hand, (null, plain, three), dropped, one, same = at_once(b, run, params)
    np.testing.assert_allclose(null, hand[(2,) * 4], rtol=1e-6)
    np.testing.assert_allclose(plain, hand[(0, 1, 1, 0)], rtol=1e-6)
    np.testing.assert_allclose(three, null + 3.0 * (plain - null), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dropped, hand[(2, 1, 2, 0)], rtol=1e-6)
    for shared in (one, same):
        np.testing.assert_allclose(shared, hand[(1,) * 4], rtol=1e-6)
    assert np.abs(plain - null).max() > 1e-2


# How a U-Net's rows read their contexts is in `test_nets.py`; all samplers embed a batch first.
@pytest.mark.repeated("test_guidance_is_the_line_through_null_and_condition")
def test_a_unet_reads_the_condition_and_an_embedded_batch_is_the_same(b):
    """Weights moved from their start, at which its output is zero."""
    net = nets.UNet((8,), num_heads=1, num_groups=2)
    declared = Diffusion(net, (4, 4, 1), condition=nets.ClassEmbedding(2, 4, num_tokens=2))
    images = RNG.normal(size=(3, 4, 4, 1)).astype(np.float32)
    bound, params = bind(declared, b, data={"x": images, "condition": Y[:3]}, seed=0)
    moved = b.tree_map(
        lambda v: b.asarray(b.to_numpy(v) + np.float32(0.3 * RNG.normal(size=v.shape))), params
    )
    x, t = b.asarray(images), b.asarray(np.arange(3.0))

    def run(params, y):
        batch = {"condition": y}
        ready = declared.embedded(params, batch, x)
        return [
            declared.predict(params, x, t, given, s) for s in (0.0, 1.0) for given in (batch, ready)
        ]

    null, ready_null, one, ready_one = at_once(b, run, moved, b.asarray(np.array([0, 0, 1])))
    np.testing.assert_allclose(ready_null, null, rtol=1e-6)
    np.testing.assert_allclose(ready_one, one, rtol=1e-6)
    (_, _, other, _) = at_once(b, run, moved, b.asarray(np.array([0, 1, 1])))
    same = np.abs(other - one).max((1, 2, 3))
    assert same[0] < 1e-5 and same[2] < 1e-5 and same[1] > 1e-3 and np.abs(null - one).min() > 0


def test_it_learns_the_mean_of_each_class_and_of_all(b, fitted):
    """Intercepts of the regression, within the errors of 600 data; drawn by both samplers."""
    drawn = np.repeat([0, 1], 1000)
    error = SPREAD / np.sqrt(N / 2)
    for how in (None, DDIM(1)):
        s = pg.generate(
            fitted, 2000, method=how, inputs={"condition": drawn}, chunk_size=2000, seed=0,
            backend=b,
        )["x"]  # fmt: skip
        for k in (0, 1):
            mine = s[drawn == k]
            within = np.sqrt(error**2 + mine.std(0) ** 2 / 1000)
            assert (np.abs(mine.mean(0) - X[k == Y].mean(0)) < 5 * within).all()
    zeros = b.asarray(np.zeros((1, 2), np.float32))
    params = b.tree_map(b.asarray, fitted.params)
    null = at_once(
        b, lambda p: fitted.model.predict(p, zeros, zeros[:, 0], {"condition": 0}, 0.0), params
    )
    # Data left without a class are half of either: the regression's value at x_1 = 0. Its slope
    # is a v / (a^2 v + 1 - a^2) for the variance v, and the mean of x_1 is a times that of x.
    bar = 1 - 0.98
    v = X.var(0)
    want = X.mean(0) * (1 - bar * v / (bar * v + 1 - bar))
    assert (np.abs(null[0] - want) < 5 * np.sqrt(v / (0.25 * 300 * 50))).all()


def test_evaluation_takes_each_datum_under_its_own_condition(b, fitted):
    """Under the other class the bound is lower; a permutation of the data permutes the numbers."""

    def bound_of(x, y):
        run = pg.evaluate(
            fitted, x, [DenoisingELBO(4)], inputs={"condition": y}, seed=0, backend=b,
            progress_bar=False,
        )  # fmt: skip
        return run[DenoisingELBO(4).name]["estimate"].values

    mine, other = bound_of(X[:20], Y[:20]), bound_of(X[:20], 1 - Y[:20])
    assert (mine > other + 1.0).mean() > 0.9  # the means are apart


def test_the_program_is_the_loop_that_samples(b):
    """Each site's location is what `predict` gives for the datum's condition."""
    declared = model(
        nets.ContextEmbedding((2,)), (8,), NoiseSchedule(3, "linear", 0.1, 0.5), "epsilon"
    )
    rows = {"x": X[:4], "condition": X[4:8]}
    bound, params = bind(declared, b, data=rows, seed=0)
    values = {n: RNG.normal(size=(4, 2)).astype(np.float32) for n in ("x_3", "x_2", "x_1")}
    on = {n: b.asarray(v) for n, v in {**values, **rows}.items()}

    def run(params, on):
        sites = bound.trace(params, {k: on[k] for k in rows}, {k: on[k] for k in values})
        t = 0.0 * on["x"][:, 0] + 1.0
        return sites["x_1"].log_prob, declared.predict(params, on["x_2"], t, on)

    found, predicted = at_once(b, run, params, on)
    row = {k: v[1] for k, v in declared.table().items()}
    z = (values["x_1"] - declared.posterior_mean(values["x_2"], predicted, row)) / row["std"]
    want = -0.5 * (z**2).sum(1) - 2 * np.log(row["std"]) - np.log(2 * np.pi)
    np.testing.assert_allclose(found, want, rtol=2e-4, atol=1e-4)


def test_one_random_step_of_a_conditional_chain_is_its_share_of_the_bound(b):
    """At a given step and noise: -w |x - x_0|^2 / r, and what no network changes."""
    declared = model(hidden=(8,), schedule=NoiseSchedule(3, "linear", 0.1, 0.5), kind="epsilon")
    rows = {"x": X[:4], "condition": Y[:4]}
    short = declared.by_steps()
    bound, params = bind(short, b, data=rows, seed=0)
    table = declared.table()
    weight, share = shares(table)
    place = np.array([0.5 * share[0], 1 - 0.5 * share[2], share[0] + 0.5 * share[1], 1e-4], "f")
    step, noise = np.array([0, 2, 1, 0]), RNG.normal(size=(4, 2)).astype(np.float32)
    row = {k: v[step, None] for k, v in table.items()}
    x_t = (row["signal"] * X[:4] + row["noise"] * noise).astype(np.float32)
    on = {n: b.asarray(v) for n, v in {**rows, "place": place, "noise": noise}.items()}
    at = b.asarray(x_t), b.asarray(step.astype(np.float32))

    def run(params, on):
        latents = {n: on[n] for n in ("place", "noise")}
        found = bound.trace(params, {n: on[n] for n in rows}, latents)["x"].log_prob
        return found, declared.predict(params, *at, {"condition": on["condition"]})

    found, predicted = at_once(b, run, params, on)
    error = ((X[:4] - declared.clean(x_t, predicted, row)) ** 2).sum(1)
    constant, prior_kl = ends(np, table, X[:4])
    want = constant - prior_kl - (weight / share)[step] * error
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)
    behind = VAE(
        latent=declared, decoder=nets.MLP((), 3, in_ndim=1), likelihood=dist.Normal,
        encoder=nets.MLP((4,), 2, heads=("loc", "log_scale")),
    )  # fmt: skip
    assert list(inspect.signature(behind.by_steps().program).parameters) == ["condition"]


@declaration
class AskedOnce(Diffusion):
    """It refuses to make a context where it predicts."""

    def predict(self, params, x_t, t, batch, *args, **more):
        assert "context" in batch
        return Diffusion.predict(self, params, x_t, t, batch, *args, **more)


def test_the_condition_net_runs_before_every_loop(b):
    declared = AskedOnce(
        nets.MLPDenoiser(2, hidden=()), (2,), NoiseSchedule(2, "linear", 0.3, 0.6), "sample",
        CLASSES,
    )  # fmt: skip
    rows = {"x": X[:2], "condition": Y[:2]}
    bound, params = bind(declared, b, data=rows, seed=0)
    batch = {n: b.asarray(v) for n, v in rows.items()}
    for measure in (DenoisingELBO(), ProbabilityFlow(2)):
        found = at_once(b, measure.device_function(bound), params, batch, b.key(0))["estimate"]
        assert np.isfinite(found).all()
    draw = DDIM(2).draws_of(bound)
    del batch["x"]
    draws = at_once(
        b, lambda params, batch, key: draw(params, batch, key, 2), params, batch, b.key(0)
    )
    assert np.isfinite(draws["x"]).all()


def test_the_bound_is_learned_with_every_condition_in_place(b):
    """A context of no condition that is far off, and never met."""
    far = CLASSES.init(RNG, ())
    far["table"][-1] = 1e6
    fitted = pg.fit(
        model(), X, Denoising(weighting="elbo"), inputs={"condition": Y}, num_steps=1,
        batch_size=N, init={"condition": far}, seed=0, backend=b, progress_bar=False,
    )  # fmt: skip
    assert fitted.history["loss"][0] < 1e4


def test_codes_are_taken_of_data_that_the_model_knows(b, fitted):
    """A class that is a column of the data is checked as one among the inputs is."""
    with pytest.raises(DataError, match="classes from 0 to 7"):
        fitted.encode({"x": X[:2], "condition": np.array([0, 7])}, method=DDIMInverse(1))


def test_a_condition_of_a_prior_is_an_input_of_the_whole(b):
    """A VAE behind a conditional diffusion: fitted, and drawn by the prior's own loop."""
    vae = VAE(
        latent=model(hidden=(4,), schedule=NoiseSchedule(2, "linear", 0.3, 0.6)),
        decoder=nets.MLP((), 3, in_ndim=1), likelihood=dist.Normal,
        encoder=nets.MLP((4,), 2, heads=("loc", "log_scale")),
    )  # fmt: skip
    x = RNG.normal(size=(8, 3)).astype(np.float32)
    bound, params = bind(vae, b, data={"x": x, "condition": Y[:8]}, seed=0)
    assert {"prior/denoiser", "prior/condition", "decoder"} <= set(params)
    whole = pg.Fitted(vae, b.tree_map(b.to_numpy, params), shapes={"x": (3,)})
    draws = pg.generate(whole, 4, inputs={"condition": Y[:4]}, seed=0, backend=b)
    assert draws["x"].shape == (4, 3)
    with pytest.raises(DataError, match="classes from 0 to 2"):
        pg.generate(whole, 3, inputs={"condition": np.arange(3)}, seed=0, backend=b)
    with pytest.raises(UnknownName, match="got no 'condition'"):
        pg.generate(whole, 3, seed=0, backend=b)


@pytest.mark.parametrize(
    "error, words, given, options",
    [
        (UnknownName, "got no 'condition'", None, {}),
        (ShapeError, "condition of shape .599,..*one row a datum", Y[:-1], {}),
        (ShapeError, "condition of shape .1, 2..*one row a datum", np.stack([Y, Y], 1), {}),
        (DataError, "classes from 0 to 2, expected 0 ... 1", np.arange(N) % 3, {}),
        (DataError, "whole numbers", Y + 0.5, {}),
        (ShapeError, "condition of shape .2,.*expected .3,.", X,
         {"condition": nets.ContextEmbedding((3,))}),
        (DataError, "finite", X * np.nan, {"condition": nets.ContextEmbedding((2,))}),
        (DataError, "expected one of .*'x'", Y, {"condition": None}),
        (SupportError, "data 'x' from .* data_range, -1 to 1", Y, {"data_range": (-1.0, 1.0)}),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_a_step(b, error, words, given, options):
    inputs = None if given is None else {"condition": given}
    with pytest.raises(error, match=words):
        pg.fit(
            model(**options), X, Denoising(), inputs=inputs, num_steps=1, seed=0, backend=b,
            progress_bar=False,
        )  # fmt: skip


def test_drawing_and_measuring_refuse_alike(b, fitted):
    for inputs, error, words in (
        (None, UnknownName, "got no 'condition'"),
        ({"condition": Y[:9]}, ShapeError, "one row a datum"),
        ({"condition": np.arange(10)}, DataError, "classes from 0 to 9"),
    ):
        for method in (None, DDIM(1)):
            with pytest.raises(error, match=words):
                pg.generate(fitted, 10, method=method, inputs=inputs, seed=0, backend=b)
        with pytest.raises(error, match=words):
            pg.evaluate(
                fitted, X[:10], [DenoisingELBO()], inputs=inputs, seed=0, backend=b,
                progress_bar=False,
            )  # fmt: skip


def test_guidance_without_an_unconditional_branch_is_refused(b):
    x = b.asarray(X[:2])
    plain = model(None)
    with pytest.raises(AlgorithmError, match="guidance without an unconditional branch"):
        plain.predict({}, x, x[:, 0], {}, 2.0)
    no_null = model(nets.Embedding(2, 3))
    _, params = bind(plain, b, data={"x": X[:1]})
    with pytest.raises(AlgorithmError, match="without `null`.*unconditional branch"):
        table = {"condition": {"table": b.asarray(np.zeros((2, 3), np.float32))}}
        no_null.predict(table, x, x[:, 0], {"condition": b.asarray(Y[:2])}, 2.0)
    with pytest.raises(AlgorithmError, match="condition_dropout=0.5.*no context of no condition"):
        Denoising(condition_dropout=0.5).bind(bind(plain, b, data={"x": X[:1]})[0])


def test_a_denoiser_of_another_shape_is_refused(b):
    wrong = Diffusion(nets.MLPDenoiser(3, hidden=()), (2,), ONE_STEP)
    with pytest.raises(ShapeError, match=r"data of shape \(2,\) has the shape \(1, 3\).*`out`"):
        bind(wrong, b, data={"x": X})


def test_a_conditional_chain_of_a_thousand_steps_binds_within_a_second(b):
    long = model(schedule=NoiseSchedule(), kind="epsilon")
    began = time.process_time()
    bind(long, b, data={"x": X, "condition": Y})
    assert time.process_time() - began < 1.0
