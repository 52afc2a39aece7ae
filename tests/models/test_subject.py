"""A subject as a latent: its density, what a fit of it moves, and what it then draws."""

import dataclasses

import numpy as np
import pytest
from at_once import at_once, terms_of
from shared_noise import share_noise

import probgen as pg
from probgen import errors, nets
from probgen.evaluation.subjects import SubjectMonitor
from probgen.inference import (
    DDIM,
    ELBO,
    SVI,
    DDIMInverse,
    Denoising,
    DenoisingELBO,
    Langevin,
    StepwiseMAP,
)
from probgen.models import Diffusion, NoiseSchedule, Subject, personalised

M, K, D, N = 4, 3, 2, 2  # rows of a context, their size, of a datum, learned rows
rng = np.random.default_rng(0)
PICTURES = np.array([[1.0, 1.0], [1.2, 0.8], [0.9, 1.1]], np.float32)
CAPTIONS = rng.standard_normal((3, M, K)).astype(np.float32)
MASKS = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
INPUTS = {"condition": CAPTIONS, "mask": MASKS}


def base_of(kind="v_prediction", seed=0):
    condition = nets.ContextEmbedding((M, K))
    denoiser = nets.MLPDenoiser(D, (8,))
    schedule = NoiseSchedule(num_train_timesteps=6, beta_start=0.05, beta_end=0.6)
    model = Diffusion(denoiser, (D,), schedule, kind, condition=condition)
    made = np.random.default_rng(seed)
    params = {
        "denoiser": denoiser.init(made, (D,), (), (M, K)), "condition": condition.init(made, (M, K))
    }  # fmt: skip
    shapes = {"x": (D,), "condition": (M, K)}
    return pg.Fitted(model, params, shapes=shapes)


@pytest.fixture(scope="module")
def base():
    return base_of()


def learn(subject, backend, steps=5, seed=0, algorithm=None, inputs=INPUTS, **options):
    algorithm = algorithm or SVI(ELBO(), pg.Adam(0.05))
    return pg.fit(
        subject, {"x": PICTURES}, algorithm, inputs=inputs, num_steps=steps, seed=seed,
        backend=backend, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def learned(base, backend):
    """The rows of five steps, for all that asks what a fit leaves."""
    return learn(Subject(base, N, weight=0.1), backend)


def by_hand(b, base, subject, c_s, which, time, noise, mask=MASKS):
    """mean_k | M (eps - eps_theta) |^2, loop by loop."""
    model, table = base.model, base.model.table()
    steps, rows = subject.steps, []
    for u, v, eps in zip(which, time, noise, strict=True):
        i, t = int(u * len(PICTURES)), int(steps[int(v * len(steps))])
        a, s = table["signal"][t], table["noise"][t]
        context = np.concatenate([CAPTIONS[i][:-N], c_s])
        rows.append((i, a, s, eps, a * PICTURES[i] + s * eps, t, context))
    given = (b.asarray(np.float32(v)) for v in list(zip(*rows, strict=True))[-3:])
    net = b.tree_map(b.asarray, base.params["denoiser"])
    total, answers = 0.0, at_once(b, model.denoiser.apply, net, *given)
    for (i, a, s, eps, x_t, _, _), said in zip(rows, answers, strict=True):
        found = {
            "epsilon": said, "v_prediction": a * said + s * x_t, "sample": (x_t - a * said) / s,
        }[model.prediction_type]  # fmt: skip
        total += np.sum((mask[i] * (eps - found)) ** 2)
    return total / len(noise)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_pseudo_likelihood_is_the_masked_error_summed_over_elements(backend, kind):
    base = base_of(kind)
    subject = Subject(base, N, weight=0.03, draws=4)
    b = pg.backends.resolve(backend)
    data = {"x": PICTURES[None]}
    bound, params = pg.engine.bind.bind(
        subject, b, data=data, constants=INPUTS, is_once=True, num_data=1
    )
    latents = {
        "c_s": rng.standard_normal((N, K)), "which": rng.random(4), "time": rng.random(4),
        "noise": rng.standard_normal((4, D)),
    }  # fmt: skip
    latents = {k: v.astype(np.float32) for k, v in latents.items()}
    given = {k: b.asarray(v) for k, v in latents.items()}
    sites = terms_of(b, bound.trace, params, {"x": b.asarray(data["x"])}, given)
    want = by_hand(b, base, subject, *(latents[k] for k in ("c_s", "which", "time", "noise")))
    np.testing.assert_allclose(float(sites["x"][1]), -want, rtol=2e-5)
    away = latents["c_s"] - base.params["condition"]["null"][-N:]
    prior = -0.03 * np.sum(away**2) + N * K / 2 * np.log(0.03 / np.pi)
    np.testing.assert_allclose(float(sites["c_s"][1]), prior, rtol=2e-5)


def test_the_map_form_has_the_gradient_of_the_plain_loss(base, backend):
    """The bound of the point guide against loss (6) written out, at the same draws."""
    subject, b = Subject(base, N, weight=0.3, draws=4), pg.backends.resolve(backend)
    bound, params = pg.engine.bind.bind(
        subject, b, data={"x": PICTURES[None]}, constants=INPUTS, is_once=True, num_data=1
    )
    batch = {"x": b.asarray(PICTURES[None])}
    condition = bound.model.diffusion.condition
    mask, x = b.asarray(MASKS), b.asarray(PICTURES)
    offset = b.asarray(rng.standard_normal((N, K)).astype(np.float32))
    anchor = b.asarray(subject.anchor_rows)

    def plain(offset, drawn, context):
        def ask(*given):
            return base.model.denoiser.apply(params["denoiser"], *given)

        error = subject.loss(ask, anchor + offset, context, x, mask, *drawn.values())
        return error + 0.3 * b.ops.sum(offset**2)

    def map_form(offset, drawn):
        own = {**params, "subject": {"value": offset}}
        sites = bound.trace(own, batch, {**drawn, "c_s": anchor + offset})
        return -(sites["x"].log_prob + sites["c_s"].log_prob)

    def run(offset, key):
        drawn = bound.trace_guide(params, batch, key=key)
        drawn = {k: drawn[k].value for k in ("which", "time", "noise")}
        context = condition.apply(params["condition"], b.asarray(INPUTS["condition"]))
        return b.grad(map_form)(offset, drawn), b.grad(plain)(offset, drawn, context)

    found, want = at_once(b, run, offset, b.key(3))
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


def test_without_weight_the_prior_is_flat(base, backend):
    b, at = pg.backends.resolve(backend), rng.standard_normal((2, N, K)).astype(np.float32)
    bound, params = pg.engine.bind.bind(
        Subject(base, N), b, data={"x": PICTURES[None]}, constants=INPUTS, is_once=True, num_data=1
    )
    batch = {"x": b.asarray(PICTURES[None])}
    for c_s in at:
        sites = terms_of(b, bound.trace, params, batch, {"c_s": b.asarray(c_s)}, key=b.key(0))
        assert float(sites["c_s"][1]) == 0.0


class TestFit:
    @pytest.mark.repeated("test_the_map_form_has_the_gradient_of_the_plain_loss")
    def test_both_backends_learn_the_same_rows_of_the_same_noise(self, base, monkeypatch):
        share_noise(monkeypatch)
        subject = Subject(base, N, weight=0.1, draws=3)
        rows = [learn(subject, name, 20).params["subject"]["value"] for name in ("torch", "jax")]
        np.testing.assert_allclose(*rows, rtol=2e-3, atol=2e-4)
        assert np.abs(rows[0]).max() > 0.1

    def test_nothing_of_the_base_moves(self, base, learned):
        for name, tree in base.params.items():
            for path, value in pg.trees.tree_items(tree):
                now = dict(pg.trees.tree_items(learned.params[name]))[path]
                np.testing.assert_array_equal(now, value)
        distance = learned.history["value/distance"]
        assert distance[0] == 0.0 and (distance[1:] > 0).all()

    def test_a_step_of_a_fit_costs_the_same_for_any_number_of_the_samplers_steps(self, base):
        jax = pytest.importorskip("jax")
        b = pg.backends.resolve("jax")

        def size(count):
            subject = Subject(base, N, times=DDIM(count).times(base.model), draws=3)
            batch = {"x": b.asarray(PICTURES[None])}
            bound, params = pg.engine.bind.bind(
                subject, b, data=batch, constants=INPUTS, is_once=True, num_data=1
            )
            loss, place = subject.step_loss(bound), b.asarray(np.array(1))
            slope = jax.grad(lambda c: loss(params, c, place, batch, b.key(0))[0])
            equations = jax.make_jaxpr(slope)(b.asarray(np.ones((N, K), np.float32))).eqns
            return len(equations), sum(v.aval.size for e in equations for v in e.outvars)

        assert size(2) == size(6)

    def test_the_steps_are_learned_from_the_noisiest_down(self, base, backend, learned):
        times, first = DDIM(3).times(base.model), learned
        stepwise = dataclasses.replace(first.model, times=times)
        algorithm = StepwiseMAP(first, pg.Adam(0.05), steps=2)
        learned = learn(stepwise, backend, 6, algorithm=algorithm)
        rows, start = learned.params["subject"]["value"], first.params["subject"]["value"]
        assert rows.shape == (3, N, K) and list(learned.history["place"]) == [0, 0, 1, 1, 2, 2]
        jumps = np.abs(np.diff(np.concatenate([start[None], rows]), axis=0)).max(axis=(1, 2))
        assert (jumps > 0.05).all() and (jumps < 0.101).all()
        np.testing.assert_allclose(
            learned.history["distance"][::2],
            [np.linalg.norm(v) for v in (start, rows[0], rows[1])], rtol=1e-5,
        )  # fmt: skip

    def test_fidelity_to_subject_and_prompt_stands_in_its_history(self, base):
        subject = Subject(base, N, weight=0.1)
        scores = {"near": lambda x: -((x - 1.0) ** 2).sum(-1), "right": lambda x: x[:, 0] > 0}
        prompts = {"condition": CAPTIONS}
        monitor = SubjectMonitor(subject, prompts, scores, DDIM(3), every=2)
        learned = learn(subject, "auto", 5, callbacks=[monitor])
        history = learned.history
        assert history.validation_steps[-1] == 5 and set(history.validation) == {"near", "right"}
        drawn = pg.generate(personalised(learned), 3, method=DDIM(3), inputs=prompts, seed=0)["x"]
        np.testing.assert_allclose(history.validation["near"][-1], scores["near"](drawn).mean())
        bad = SubjectMonitor(subject, prompts, {"near": lambda x: x[:, 0] * np.nan}, DDIM(3))
        with pytest.raises(errors.NonFiniteError, match=r"NaN or infinity for \['near'\]"):
            learn(subject, "auto", 1, callbacks=[bad])


class TestPersonalised:
    def test_its_context_has_the_rows_and_its_null_does_not(self, base, backend, learned):
        model, b = personalised(learned), pg.backends.resolve(backend)
        net, params = model.model.condition, b.tree_map(b.asarray, model.params["condition"])
        context = b.to_numpy(net.apply(params, b.asarray(CAPTIONS)))
        np.testing.assert_array_equal(context[:, :-N], CAPTIONS[:, :-N])
        rows = base.params["condition"]["null"][-N:] + learned.params["subject"]["value"]
        np.testing.assert_allclose(context[:, -N:], np.broadcast_to(rows, (3, N, K)), rtol=1e-6)
        np.testing.assert_array_equal(
            b.to_numpy(net.null(params)), base.params["condition"]["null"]
        )

    def test_each_step_is_asked_with_its_own_rows(self, base, backend, learned):
        """A sampler with stepwise rows takes the steps that single rows would take, row by row."""
        sampler = DDIM(3, guidance_scale=2.0)
        times, first = sampler.times(base.model), learned
        stepwise = dataclasses.replace(first.model, times=times)
        learned = learn(stepwise, backend, 3, algorithm=StepwiseMAP(first, steps=1))
        # An Adam that starts afresh moves each number by its rate in its first step.
        rows = np.stack([first.params["subject"]["value"], *learned.params["subject"]["value"]])
        np.testing.assert_allclose(np.abs(np.diff(rows, axis=0)), 5e-3, rtol=1e-3)
        table = 3.0 * np.random.default_rng(1).standard_normal((3, N, K)).astype(np.float32)
        params = {**learned.params, "subject": {"value": table}}
        model, b = personalised(dataclasses.replace(learned, params=params)), None
        start = {"x_6": np.random.default_rng(2).standard_normal((2, D)).astype(np.float32)}
        caption = {"condition": CAPTIONS[0]}
        found = pg.generate(
            model, 2, method=sampler, start=start, inputs=caption, seed=0, return_chain=True
        )
        path, b = found.chain["x"], pg.backends.resolve(backend)
        at = start["x_6"]
        for i, t in enumerate(times):
            one = personalised(
                dataclasses.replace(first, params={**params, "subject": {"value": table[i]}})
            )
            net = b.tree_map(b.asarray, one.params)
            said = one.model.predict(
                net, b.asarray(at), b.asarray(np.full(2, t, np.float32)),
                {"condition": b.asarray(CAPTIONS[0])}, 2.0,
            )  # fmt: skip
            row = {k: v[i] for k, v in sampler.columns(base.model).items()}
            at = row["x"] * at + row["net"] * b.to_numpy(said)
            np.testing.assert_allclose(path[i], at, rtol=2e-4, atol=2e-5)

    def test_a_sampler_or_inversion_of_other_steps_is_refused(self, base):
        stepwise = Subject(base, N, times=DDIM(3).times(base.model))
        params = {"subject": {"value": np.ones((3, N, K), np.float32)}}
        model = personalised(pg.Fitted(stepwise, params))
        said = "expected the 3 steps for which the subject was learned"
        with pytest.raises(errors.AlgorithmError, match=said):
            pg.generate(model, 2, method=DDIM(4), inputs={"condition": CAPTIONS[0]}, seed=0)
        with pytest.raises(errors.AlgorithmError, match=said):
            model.encode(PICTURES, {"condition": CAPTIONS}, method=DDIMInverse(2))

    def test_draws_of_the_rows_have_the_guides_mean_and_scale(self, base):
        subject = Subject(base, N, weight=0.1, posterior="normal")
        log_scale = np.log(np.arange(1.0, 7.0).reshape(N, K))
        params = {
            "subject": {"value": np.ones((N, K))}, "subject_log_scale": {"value": log_scale},
        }  # fmt: skip
        learned = pg.Fitted(subject, params)
        rows = np.stack(
            [personalised(learned, seed=i).params["condition"]["rows"] for i in range(400)]
        )
        z = (rows - personalised(learned).params["condition"]["rows"]) / np.exp(log_scale)
        assert np.abs(z.mean(axis=0)).max() < 4 / 20 and np.abs(z.var(axis=0) - 1).max() < 0.3

    def test_fixed_draws_make_a_density_for_any_sampler(self, base, backend):
        subject = Subject(base, N, weight=0.5, fixed_draws=0, draws=4)
        draws = pg.infer(
            subject, {"x": PICTURES}, Langevin(1e-2, num_steps=4), inputs=INPUTS, seed=0,
            backend=backend,
        )  # fmt: skip
        assert draws.posterior["c_s"].shape[2:] == (N, K)

    def test_it_is_saved_and_read(self, base, tmp_path):
        params = {"subject": {"value": np.ones((N, K), np.float32)}}
        model = personalised(pg.Fitted(Subject(base, N), params))
        model.save_pretrained(tmp_path / "model")
        again = pg.Fitted.from_pretrained(tmp_path / "model")
        np.testing.assert_array_equal(
            again.params["condition"]["rows"], model.params["condition"]["rows"]
        )


def refused(base, match, error=errors.DataError, subject=None, **inputs):
    with pytest.raises(error, match=match):
        learn(subject or Subject(base, N), "auto", 1, inputs={**INPUTS, **inputs})


class TestBadInput:
    def test_masks(self, base):
        refused(base, "mask 1, which is empty", mask=MASKS * [[1], [0], [1]])
        refused(base, "mask 0, which is full", mask=np.maximum(MASKS, [[1], [0], [0]]))
        refused(base, "other values than 0 and 1", mask=0.5 * MASKS)
        refused(base, "one for each picture", errors.ShapeError, mask=MASKS[:2])

    def test_one_caption_for_all(self, base):
        refused(base, "one for each picture", errors.ShapeError, condition=CAPTIONS[0])

    def test_what_would_be_no_posterior_no_average_and_no_context(self, base):
        with pytest.raises(
            errors.AlgorithmError, match=r"random draws \['which', 'time', 'noise'\]"
        ):
            pg.infer(Subject(base, N), {"x": PICTURES}, Langevin(1e-2), inputs=INPUTS, seed=0)
        rows = {"subject": {"value": np.ones((N, K), np.float32)}}
        first, stepwise = pg.Fitted(Subject(base, N), rows), Subject(base, N, times=(5.0, 2.0))
        with pytest.raises(errors.AlgorithmError, match="leave ema_decay out"):
            learn(stepwise, "auto", 20, algorithm=StepwiseMAP(first), ema_decay=0.9)
        table = {"subject": {"value": np.ones((2, N, K), np.float32)}}
        model = personalised(pg.Fitted(stepwise, table))
        caption = {"condition": CAPTIONS}
        said = "expected the 2 steps for which"
        with pytest.raises(errors.AlgorithmError, match=said):
            pg.generate(model, 3, inputs=caption, seed=0)
        with pytest.raises(errors.AlgorithmError, match=said):
            pg.evaluate(model, PICTURES, [DenoisingELBO()], inputs=caption, seed=0)
        with pytest.raises(errors.AlgorithmError, match=said):
            pg.fit(model, PICTURES, Denoising(), inputs=caption, num_steps=1, seed=0)
        for wrong in ({"times": (4.5, 2.0)}, {"anchor": "two words"}):
            with pytest.raises(errors.DeclarationError, match=next(iter(wrong))):
                Subject(base, N, **wrong)

    def test_a_start_of_another_base(self, base):
        other = pg.Fitted(
            Subject(base_of(seed=1), N), {"subject": {"value": np.ones((N, K), np.float32)}}
        )
        stepwise = Subject(base, N, times=(5.0, 2.0))
        with pytest.raises(errors.AlgorithmError, match="start of another model"):
            learn(stepwise, "auto", 20, algorithm=StepwiseMAP(other))
        with pytest.raises(errors.AlgorithmError, match="expected num_steps=20"):
            learn(stepwise, "auto", 5, algorithm=StepwiseMAP(other))

    def test_rows_that_did_not_move(self, base):
        still = pg.Fitted(Subject(base, N), {"subject": {"value": np.zeros((N, K), np.float32)}})
        with pytest.raises(errors.AlgorithmError, match="nothing was learned"):
            personalised(still)
        still.params["subject"]["value"][0] = np.nan
        with pytest.raises(errors.NonFiniteError, match="NaN or infinite"):
            personalised(still)

    def test_prompts(self):
        text = nets.TextEncoder(("a", "disk", "on", "grass"), length=6, dim=4, num_heads=1)
        net = nets.SubjectTokens(text, 2, word="disk")
        net.check_values(text.tokens(["a disk", "disk", "a disk on"]))
        with pytest.raises(errors.DataError, match="'a disk on grass', whose 5 tokens reach into"):
            net.check_values(text.tokens(["a disk", "a disk on grass"]))
        with pytest.raises(errors.DataError, match="'a', expected one with the subject's word"):
            net.check_values(text.tokens("a"))

    def test_an_anchor_of_a_word_is_that_words_row(self):
        text = nets.TextEncoder(("a", "disk"), length=5, dim=4, num_heads=1)
        net = nets.MLPDenoiser(D, (8,))
        made = np.random.default_rng(0)
        params = {"denoiser": net.init(made, (D,), (), (5, 4)), "condition": text.init(made, (5,))}
        base = pg.Fitted(Diffusion(net, (D,), condition=text), params)
        b = base.resolve("auto")
        rows = b.to_numpy(
            text.apply(b.tree_map(b.asarray, params["condition"]), b.asarray(text.tokens("disk")))
        )
        anchor = Subject(base, 2, anchor="disk").anchor_rows
        np.testing.assert_allclose(anchor, np.stack([rows[0, 1]] * 2), rtol=1e-6)

    def test_a_model_that_is_no_conditional_diffusion(self, base):
        plain = dataclasses.replace(base.model, condition=None)
        with pytest.raises(errors.DeclarationError, match="a fitted Diffusion with a condition"):
            Subject(dataclasses.replace(base, model=plain), N)

    def test_rows_that_leave_the_prompt_none(self, base):
        with pytest.raises(errors.DeclarationError, match="fewer rows than the 4 of the base's"):
            Subject(base, M)
