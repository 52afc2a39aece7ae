"""EM distillation as a fit: who moves and who stays, resuming, what is said and what is refused."""

import dataclasses

import numpy as np
import pytest
from at_once import at_once
from compilations import Compilations
from emd_cases import affine, exact, small_teacher
from fit_cases import are_same_bits, assert_same_bits, quick

import probgen as pg
from probgen import dist, nets
from probgen.engine.bind import bind
from probgen.errors import AlgorithmError, DeclarationError, SaveError, ShapeError
from probgen.inference import EMDistillation
from probgen.inference.learn.em_distillation_chain import Generator as GeneratorOf
from probgen.inference.learn.em_distillation_scores import scores_of
from probgen.language.seeds import named
from probgen.models import Diffusion, Generator, NoiseSchedule, OneStep, likelihoods
from probgen.trees import tree_leaves

TEACHER = small_teacher()
QUICK = EMDistillation(
    TEACHER, pg.Adam(1e-3), pg.Adam(1e-3), num_steps=2, gamma_z=0.01, score_steps=2, max_push=1.0
)


@pytest.fixture(scope="module")
def b(backend_name):
    return quick(backend_name)


def fit(b, model=OneStep(TEACHER), algorithm=QUICK, data=None, **options):
    options = {"num_steps": 4, "batch_size": 8, "seed": 0, "progress_bar": False, **options}
    return pg.fit(model, data, algorithm, backend=b, **options)


@pytest.fixture(scope="module")
def fitted(b):
    return fit(b)


def test_the_student_and_its_score_move_and_the_teacher_stays_to_the_bit(fitted):
    before = small_teacher()
    assert_same_bits(TEACHER.params, before.params)
    start = before.params["denoiser"]
    assert not are_same_bits(fitted.params["denoiser"], start)
    assert not are_same_bits(fitted.extras["student_score/denoiser"], start)
    assert not are_same_bits(fitted.params["denoiser"], fitted.extras["student_score/denoiser"])
    wanted = {"loss", "loss_score", "eps_c", "log_eps_c", "mean_x", "bias", "z_mobility", "z_drift"}
    assert wanted == set(fitted.history)
    assert (fitted.history["eps_c"] < 1.0 + 1e-5).all()


def test_a_fit_that_stopped_goes_on_to_the_same_bits_and_not_with_another_teacher(
    b, fitted, tmp_path
):
    fit(b, num_steps=2, checkpoint=tmp_path)
    with Compilations(b.name) as seen:
        again = fit(b, checkpoint=tmp_path)
    assert not seen.names
    assert_same_bits(
        {"a": again.params, "b": again.extras}, {"a": fitted.params, "b": fitted.extras}
    )
    other = dataclasses.replace(QUICK, teacher=small_teacher(seed=1))
    with pytest.raises(SaveError, match="algorithm"):
        fit(b, algorithm=other, checkpoint=tmp_path)


def test_a_fit_that_goes_on_finds_the_students_score_again(b, fitted):
    """It is two updates by 0.001 each away from where it was, which was further from the start."""
    again = fit(b, fitted, num_steps=1)
    name = "student_score/denoiser"
    start, was, found = (
        np.concatenate([np.ravel(v) for v in tree_leaves(tree)])
        for tree in (TEACHER.params["denoiser"], fitted.extras[name], again.extras[name])
    )
    assert 1e-4 < np.abs(found - was).max() < 2.2e-3 < 4e-3 < np.abs(was - start).max()


def test_where_z_hardly_moves_that_is_said_and_where_it_stays_too(fitted):
    events = " ".join(fitted.history.events)
    assert "z hardly moves (mobility" in events and "not maximum likelihood" in events
    assert "the gradient of KL(student || teacher)" in exact(num_steps=1, gamma_z=0.0).note()
    assert "E_z log E_{p(x | z)} q_t / p_t" in exact(num_steps=2, gamma_z=0.0).note()


def test_z_mobility_is_what_it_says(b):
    """K gz alpha^2 a^2 of x = a z + b; the probe's error is of the order of 1 / sqrt(n)."""
    init = {"g": {"out": {"weight": np.float32([[0.8]]), "bias": np.float32([0.3])}}}
    algorithm = exact(pg.SGD(1e-6), num_steps=4, gamma_z=0.01)
    found = fit(b, affine, algorithm, num_steps=1, batch_size=20_000, init=init).history
    wanted = 4 * 0.01 * 0.8**2 * np.cos(0.2 * np.pi) ** 2
    np.testing.assert_allclose(found["z_mobility"][0], wanted, rtol=5 * (2 / 20_000) ** 0.5)


@pytest.mark.slow
def test_the_students_score_is_that_of_its_draws(b):
    """E sigma^2 |s_phi - s_p|^2 < 0.05 at half the steps, of a student that stays, p_t exact."""
    normal = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
    student = Generator(normal, nets.MLP((), out=2, in_ndim=1), likelihoods.Normal(0.5))
    root, mean = np.float32([[0.6, 0.3], [0.0, 0.5]]), np.float32([0.5, -0.5])
    init = {"decoder": {"out": {"weight": root, "bias": mean}}}
    teacher, steps = small_teacher(hidden=(64, 64)), 2000
    rate = pg.Adam(pg.CosineDecay(5e-3, steps))
    algorithm = EMDistillation(teacher, pg.SGD(1e-30), rate, num_steps=1, gamma_z=0.0)
    found = fit(b, student, algorithm, num_steps=steps, batch_size=256, init=init)
    model, step, rng = teacher.model, 20, np.random.default_rng(0)
    row = {k: float(v[step]) for k, v in model.table().items()}
    alpha, sigma = row["signal"], row["noise"]
    x = rng.normal(size=(4000, 2)) @ root + mean
    x_t = (alpha * x + sigma * rng.normal(size=x.shape)).astype("float32")
    phi = {"denoiser": b.tree_map(b.asarray, found.extras["student_score/denoiser"])}
    at, t = b.asarray(x_t), b.asarray(np.full(len(x), step, "float32"))
    clean = b.to_numpy(model.clean(at, model.predict(phi, at, t, {}), row))
    learned = (alpha * clean - x_t) / sigma**2
    cov = alpha**2 * root.T @ root + sigma**2 * np.eye(2)
    exact_score = -(x_t - alpha * mean) @ np.linalg.inv(cov)
    assert sigma**2 * ((learned - exact_score) ** 2).sum(1).mean() < 0.05


# ---- one step ----


def test_one_step_is_the_teachers_estimate_at_its_level(b):
    student, model = OneStep(TEACHER, log_snr=-6.0), TEACHER.model
    table, step = model.table(), student.step
    ratio = 2 * np.log(table["signal"] / table["noise"])
    assert abs(ratio[step] + 6.0) == abs(ratio + 6.0).min()
    drawn = pg.generate(pg.Fitted(student, TEACHER.params), 5, seed=0, backend=b)
    z = b.asarray(drawn["z"])
    net = b.tree_map(b.asarray, TEACHER.params)
    predicted = model.predict(net, z, 0.0 * z[:, 0] + step, {})
    row = {k: float(v[step]) for k, v in table.items()}
    wanted = b.to_numpy(model.clean(z, predicted, row))
    np.testing.assert_allclose(drawn["x"], wanted, rtol=1e-5, atol=1e-6)


def test_a_generator_is_taught_by_its_mean(b):
    normal = dist.Normal(0.0, 1.0).expand([3]).to_event(1)
    student = Generator(normal, nets.MLP((4,), out=2, in_ndim=1), likelihoods.Normal(0.5))
    algorithm = EMDistillation(TEACHER, pg.SGD(1.0), pg.SGD(1e-3), num_steps=1, gamma_z=0.0)
    found = fit(b, student, algorithm, num_steps=1, batch_size=64)
    start = student.decoder.init(named(0, "decoder"), (3,))
    assert (found.params["decoder"]["out"]["bias"] != start["out"]["bias"]).all()
    net, g = b.tree_map(b.asarray, start), GeneratorOf(bind(student, b, num_draws=64)[0])
    z = b.normal(b.key(0), (64, 3))
    x, mean = at_once(
        b, lambda p, z: (g({"decoder": p}, {}, {"z": z}), student.decoder.apply(p, z)), net, z
    )
    np.testing.assert_allclose(x, mean, rtol=1e-5, atol=1e-6)


def test_a_level_without_signal_is_left_out(b):
    """Of 20 steps the last is within the default times; there J's factor alpha / sigma is 0."""
    schedule = NoiseSchedule(20, "rectified_flow")
    teacher = dataclasses.replace(
        TEACHER, model=dataclasses.replace(TEACHER.model, schedule=schedule)
    )
    student = OneStep(teacher)
    bound, _ = bind(student, b, num_draws=2)
    level = scores_of(bound, EMDistillation(teacher), (2,)).level(b.key(0), 500)
    t, signal = b.to_numpy(level["t"]), b.to_numpy(level["signal"])
    assert signal.min() > 0 and set(t) == set(range(19))


def test_a_conditional_student_learns_from_rows_of_the_condition_and_a_guided_teacher(b):
    """The drawn classes go to the chain, so that the class table of the student's score moves for
    them alone; samples are of the class that is asked for."""
    denoiser, condition = nets.MLPDenoiser(2, (4,), time_dim=4), nets.ClassEmbedding(4, 2)
    model = Diffusion(denoiser, (2,), NoiseSchedule.rescaled(40), "sample", condition)
    rng = np.random.default_rng(0)
    params = {
        "denoiser": denoiser.init(rng, (2,), (), (1, 2)),
        "condition": condition.init(rng, ()),
    }
    teacher = pg.Fitted(model, params, shapes={"x": (2,), "condition": ()})
    algorithm = EMDistillation(
        teacher, pg.SGD(0.1), pg.SGD(0.1), num_steps=1, gamma_z=0.0, guidance_scale=2.0
    )
    labels = {"condition": np.array([0, 2] * 8)}
    found = fit(b, OneStep(teacher), algorithm, labels, num_steps=1)
    table = found.extras["student_score/condition"]["table"]
    moved = (table != params["condition"]["table"]).any(1)
    assert moved.tolist() == [True, False, True, False, False]  # the last is that of no class
    drawn = pg.generate(found, 2, seed=0, backend=b, inputs={"condition": np.array([0, 1])})
    assert np.isfinite(drawn["x"]).all()


# ---- refused ----


def test_what_does_not_fit_is_refused(b):
    wide = Generator(
        dist.Normal(0.0, 1.0).expand([2]).to_event(1), nets.MLP((), out=3, in_ndim=1),
        likelihoods.Normal(1.0),
    )  # fmt: skip
    with pytest.raises(ShapeError, match=r"draws data of shape \(3,\), expected \(2,\)"):
        fit(b, wide)
    no_diffusion = dataclasses.replace(QUICK, teacher=pg.Fitted(wide, {}))
    with pytest.raises(AlgorithmError, match="which is no diffusion"):
        fit(b, algorithm=no_diffusion)
    with pytest.raises(AlgorithmError, match="unconditional branch"):
        fit(b, algorithm=dataclasses.replace(QUICK, guidance_scale=2.0))
    with pytest.raises(AlgorithmError, match="expected x = g"):
        fit(b, TEACHER.model)
    with pytest.raises(AlgorithmError, match="student_score=None, expected a function"):
        fit(b, affine, exact(student_score=None))
    with pytest.raises(AlgorithmError, match="batches of 1, expected at least 2"):
        fit(b, batch_size=1)
    with pytest.raises(DeclarationError, match="within the schedule's"):
        OneStep(TEACHER, log_snr=-40.0)
    with pytest.raises(DeclarationError, match="a Diffusion, fitted or not"):
        OneStep(pg.Fitted(wide, {}))
