"""Maximum likelihood of energies: the gradient is the likelihood's, however the draws come."""

import numpy as np
import pytest
from fit_cases import are_same_bits, assert_same_bits, quick

import probgen as pg
from probgen import dist, nets
from probgen.engine.bind import bind
from probgen.engine.spaces import model_target
from probgen.errors import AlgorithmError, DeclarationError
from probgen.inference import (
    ChainStart,
    EnergyMagnitude,
    GradientPenalty,
    ImportanceSampling,
    Langevin,
    MaximumLikelihood,
    PersistentChains,
    ReplayBuffer,
    SpectralPenalty,
)
from probgen.inference.learn.contrast import Contrast
from probgen.inference.learn.negative import learned_of
from probgen.inference.learn.regularizers import Seen
from probgen.models import EBM
from probgen.trees import tree_items, tree_like

LINE = dist.Normal(0, 1).expand([1]).to_event(1)
MODEL = EBM(nets.MLPEnergy((4,)), LINE)
X = (np.random.default_rng(0).normal(size=(400, 1)) * 0.5 + 0.7).astype(np.float32)
STILL = Langevin(1e-12, 1)  # chains end where they start
ANY_STEP = dict(seed=0, progress_bar=False)


@pytest.fixture(scope="module")
def b(backend_name):
    return quick(backend_name)


@pytest.fixture(scope="module")
def bound(b):
    """The model on its backend, with parameters off zero."""
    bound, params = bind(MODEL, b, data={"x": X}, num_data=len(X))
    rng = np.random.default_rng(1)
    moved = b.tree_map(lambda p: p + b.asarray(0.5 * rng.normal(size=tuple(p.shape))), params)
    return bound, moved


def one_step(bound, algorithm, data, num_rows=None):
    """(state before, state after, metrics) of one update by SGD of rate 1."""
    bound, params = bound
    b = bound.backend
    learner = algorithm.bind(bound)
    batch = {"x": b.asarray(data)}
    state = learner.init(b.copy(params), b.key(0), batch)
    new, metrics = b.compile(learner.update, over="steps")(b.copy(state), batch, b.key(1))
    return state, new, {k: float(b.to_numpy(v)) for k, v in metrics.items()}


def flat(b, tree):
    return np.concatenate([b.to_numpy(v).ravel() for _, v in tree_items(tree)]).astype(float)


def grid_gradient(bound, data):
    """Of mean E(x) + log Z in every parameter: central differences of sums over a grid."""
    bound, params = bound
    b = bound.backend
    axis = np.linspace(-6, 6, 2001)[:, None]
    places = b.asarray(np.concatenate([data, axis]).astype(np.float32))
    leaves = [b.to_numpy(v).astype(np.float64) for _, v in tree_items(params)]
    energies = b.compile(MODEL.energy.apply, num_calls=50)
    log_base = -0.5 * axis[:, 0] ** 2 + np.log(axis[1, 0] - axis[0, 0]) - 0.5 * np.log(2 * np.pi)

    def value(arrays):
        tree = tree_like(params, [b.asarray(a.astype(np.float32)) for a in arrays])
        energy = b.to_numpy(energies(tree["energy"], places)).astype(np.float64)
        log_f = log_base - energy[len(data) :]
        return energy[: len(data)].mean() + np.logaddexp.reduce(log_f)

    out = []
    for i, leaf in enumerate(leaves):
        for j in np.ndindex(leaf.shape):
            ends = []
            for sign in (1, -1):
                moved = [a.copy() for a in leaves]
                moved[i][j] += sign * 1e-2
                ends.append(value(moved))
            out.append((ends[0] - ends[1]) / 2e-2)
    return np.array(out)


def cosine(a, c):
    return a @ c / np.linalg.norm(a) / np.linalg.norm(c)


def test_the_rule_is_the_gradient_of_the_log_likelihood(b, bound):
    """By weighted draws of the base, and by chains of MALA."""
    wanted = -grid_gradient(bound, X)
    by = {
        "weights": ImportanceSampling(40_000),
        "chains": Langevin(0.3, num_steps=40, metropolis=True),
    }
    found = {}
    for name, sampler in by.items():
        learn = MaximumLikelihood(sampler, optimizer=pg.SGD(1.0))
        data = X if name == "weights" else np.tile(X, (10, 1))
        before, after, metrics = one_step(bound, learn, data)
        step = flat(b, after["params"]) - flat(b, before["params"])
        found[name] = cosine(step, wanted)
        if name == "weights":
            np.testing.assert_allclose(step, wanted, atol=0.05 * np.abs(wanted).max())
            assert 0.1 < metrics["importance_share"] < 1.0
        else:
            assert 0.5 < metrics["acceptance"] <= 1.0 and metrics["movement"] > 0.0
    assert found["weights"] > 0.999 and found["chains"] > 0.99, found


def test_nothing_is_differentiated_through_the_chain(b, bound):
    """The step is that of mean E(x) - mean E(x') with the ends x' as constants."""
    learn = MaximumLikelihood(
        Langevin(0.2, num_steps=5, max_grad_norm=1.0),
        optimizer=pg.SGD(1.0),
        init=PersistentChains(refresh=0.0),
    )
    before, after, metrics = one_step(bound, learn, X)
    starts, ends = (s["own"]["chains"]["x"] for s in (before, after))

    def gap(params):
        energy = [MODEL.energy.apply(params["energy"], x) for x in (b.asarray(X), ends)]
        return b.ops.mean(energy[0]) - b.ops.mean(energy[1])

    gradient = flat(b, b.compile(b.grad(gap))(before["params"]))
    force = b.compile(
        b.grad(lambda x: b.ops.sum(MODEL.energy.apply(before["params"]["energy"], x)))
    )
    drift = np.abs(b.to_numpy(force(starts)) + b.to_numpy(starts))
    np.testing.assert_allclose(metrics["clipped"], (drift > 1.0).mean(), atol=0.003)
    assert 0.1 < metrics["clipped"] < 0.9
    step = flat(b, after["params"]) - flat(b, before["params"])
    np.testing.assert_allclose(step, -gradient, rtol=1e-4, atol=1e-5)
    energies = metrics["energy_data"] - metrics["energy_samples"]
    base = 0.5 * (np.mean(X**2) - np.mean(b.to_numpy(ends) ** 2))
    np.testing.assert_allclose(metrics["loss"], energies + base, rtol=1e-4)


@pytest.mark.repeated("test_the_rule_is_the_gradient_of_the_log_likelihood")
def test_weighted_draws_learn_the_precision_of_a_gaussian(b):
    """exp(-w x^2 / 2) N(x; 0, 1) has the precision 1 + w: 1 / mean(x^2)."""

    @pg.model
    def squared():
        w = pg.net("w", nets.Parameter(()))()
        with pg.data_plate():
            x = pg.sample("x", dist.Normal(0, 1))
            pg.factor("tilt", -0.5 * w * x * x)

    x = (X[:, 0] - X.mean()).astype(np.float32)
    learn = MaximumLikelihood(ImportanceSampling(4000), optimizer=pg.Adam(0.1))
    fitted = pg.fit(
        squared, x, learn, num_steps=100, batch_size=400, ema_decay=0.95, backend=b, **ANY_STEP
    )
    found = 1.0 + float(fitted.params["w"]["value"])
    assert abs(found * np.mean(x**2) - 1.0) < 0.06, found
    entropy = 0.5 * np.log(2 * np.pi * np.e * np.mean(x**2))
    assert abs(fitted.history["loss"][-20:].mean() - entropy) < 0.02  # minus the log-likelihood


@pytest.mark.repeated("test_joint_energy.py::test_log_z_moves_with_the_law_that_the_energy_tilts")
def test_an_energy_of_latents_is_taken_at_the_guides_draws(b):
    """z ~ N(0, 1) tilted by exp(-w z), x | z ~ N(z, 1), q(z | x) exact at w = 0: N(x/2, 1/2). The
    gradient at w = 0 is mean(x) / 2."""

    @pg.model
    def latent():
        w = pg.net("w", nets.Parameter(()))()
        with pg.data_plate():
            z = pg.sample("z", dist.Normal(0, 1))
            pg.factor("tilt", -w * z)
            pg.sample("x", dist.Normal(z, 1))

    @latent.with_guide
    def latent(x):
        with pg.data_plate():
            pg.sample("z", dist.Normal(x / 2, 0.5**0.5))

    x = np.tile(X[:, 0], 10)
    at = bind(latent, b, data={"x": x}, num_data=len(x))
    learn = MaximumLikelihood(ImportanceSampling(20_000), optimizer=pg.SGD(1.0))
    _, after, _ = one_step(at, learn, x)
    error = np.sqrt(0.5 / len(x) + 1.0 / 20_000)
    assert abs(float(after["params"]["w"]["value"]) + x.mean() / 2) < 4 * error


# ---- where chains start ----


def test_a_share_of_the_chains_starts_at_data(b, bound):
    """Each chain at its own datum, which are 3 apart from what the base draws."""
    bound, params = bound
    x = np.arange(400, dtype=np.float32)[:, None] + 10.0
    for share in (1.0, 0.3, 0.0):
        target, contrast = model_target(bound, "data"), Contrast(bound, "data")
        start = ChainStart(share).fresh(bound, target, contrast, "data")
        fresh = b.compile(
            lambda params, batch, key, start=start: start(params, batch, key, 400)["x"],
            over="steps",
        )
        starts = b.to_numpy(fresh(params, {"x": b.asarray(x)}, b.key(0)))
        at_data = (starts == x).all(1)
        assert (at_data | (starts[:, 0] < 7)).all()
        assert abs(at_data.mean() - share) <= 4 * np.sqrt(share * (1 - share) / 400), share


@pytest.fixture(scope="module")
def buffer(b, bound):
    bound, params = bound
    declared = ReplayBuffer(size=10, refresh=0.4, anneal=4)
    target, contrast = model_target(bound, "data"), Contrast(bound, "data")
    return declared.bind(bound, target, contrast, "data"), params


def test_a_buffer_is_first_in_first_out_and_its_share_rises(b, buffer):
    """Ends 100, 101, ... differ from fresh starts; p = 0.6 min(1, updates / 4), of the last 10."""
    starts, params = buffer
    n, draws = 4, 4000
    start = b.compile(
        lambda params, kept, key: starts.start(params, kept, {}, key, draws)["x"], over="steps"
    )
    push = b.compile(starts.push, over="steps")
    kept = starts.own(params, {"x": b.asarray(X[:n])}, b.key(0), None)
    for update in range(7):
        x = b.to_numpy(start(params, kept, b.key(update)))[:, 0]
        old = x[x > 50]
        p = 0.6 * min(1.0, update / 4) * (update > 0)
        assert abs(len(old) / draws - p) <= 4 * np.sqrt(p * (1 - p) / draws), update
        known = np.arange(100 + 4 * update)[100:][-10:]
        values, counts = np.unique(np.round(old), return_counts=True)
        np.testing.assert_array_equal(values, known)
        if len(old):
            each = len(old) / len(known)
            assert (np.abs(counts - each) < 5 * np.sqrt(each)).all()
        ends = np.arange(n)[:, None] + 100.0 + 4 * update
        kept = push(kept, {"x": b.asarray(ends.astype(np.float32))})
    again = b.to_numpy(start(params, starts.renew(kept), b.key(9)))
    assert (again < 50).all()


def test_a_buffer_survives_a_kill_and_goes_on_with_the_fitted(b, tmp_path):
    """And the fit says what its chains target, as their step and noise imply."""
    cold = Langevin(0.1, 2, noise_size=0.2, max_grad_norm=0.5)
    learn = MaximumLikelihood(cold, init=ReplayBuffer(size=64, refresh=0.2))
    options = dict(batch_size=16, checkpoint_every=2, backend=b, **ANY_STEP)
    whole = pg.fit(MODEL, X, learn, num_steps=4, checkpoint=tmp_path / "whole", **options)
    pg.fit(MODEL, X, learn, num_steps=2, checkpoint=tmp_path / "parts", **options)
    resumed = pg.fit(MODEL, X, learn, num_steps=4, checkpoint=tmp_path / "parts", **options)
    assert_same_bits(resumed.extras, whole.extras)
    assert_same_bits(resumed.params, whole.params)
    assert int(whole.extras["buffer"]["filled"]) == 64
    said = whole.report.text()
    assert "MaximumLikelihood: short-run Langevin, 2 steps of 0.1, noise 0.2, temp" in said
    assert "temperature 0.2: p^(1/0.2), not the density itself, but for a bias" in said
    assert "clipped drift" in said and "minus its log is 0.2 times that of the data" in said
    assert all(f"\n  {n} " in said for n in ("acceptance", "clipped", "movement", "energy_data"))
    assert resumed.report == whole.report
    again = pg.fit(whole, X, learn, num_steps=2, **{**options, "seed": 1})
    old, new = (f.extras["buffer"]["ends"]["x"] for f in (whole, again))
    assert (old != new).any(1).sum() == 32 and int(again.extras["buffer"]["updates"]) == 6
    assert not are_same_bits(again.params, whole.params)


def test_chains_of_two_temperatures_are_said_to_have_no_law_of_the_density():
    """One number cannot say how hot they are; the sentence leaves it out."""
    two = Langevin(0.1, noise_size={"x": 0.1, "y": 0.2})
    said = learned_of(two, "data")
    assert "not the stated density; log Z" in said and "times" not in said
    assert "0.05 times" in learned_of(Langevin(0.1, noise_size=0.1), "data")
    assert learned_of(Langevin(0.1), "data") == ""


# ---- what tames an energy ----


def test_regularisers_are_their_formulas(b, bound):
    """On E = w x^2 / 2, and on kernels whose singular values numpy knows."""
    bound, _ = bound
    x, y, w = b.asarray(X), b.asarray(X[:100] + 1.0), 1.7

    def seen(kept=None, params=None):
        def energy(values):
            return 0.5 * w * b.ops.sum(values["x"] * values["x"], axis=-1)

        on = [energy({"x": v}) for v in (x, y)]
        return Seen(energy, params, {"x": x}, {"x": y}, *on, kept)

    squares = [(0.5 * w * v**2) ** 2 for v in (X, X[:100] + 1.0)]
    slopes = [np.mean((w * v) ** 2) for v in (X, X[:100] + 1.0)]
    found = [
        EnergyMagnitude(0.3).term(bound, seen()),
        *(GradientPenalty(0.3, at).term(bound, seen()) for at in ("data", "samples", "both")),
    ]
    wanted = [0.3 * (squares[0].mean() + squares[1].mean())]
    wanted += [0.15 * slopes[0], 0.15 * slopes[1], 0.15 * sum(slopes)]
    np.testing.assert_allclose([float(b.to_numpy(v)) for v in found], wanted, rtol=1e-5)


def test_the_spectral_penalty_is_the_sum_of_top_singular_values(b):
    """Of kernels as they are applied, weight norms with their length, and its gradient u v^T."""
    energy = nets.Sequential((
        nets.Conv(3), "silu", nets.Reshape((-1,)), nets.WeightNorm(nets.Dense(6)),
        nets.SpectralNorm(nets.Dense(4)), nets.MLP((), (), in_ndim=1),
    ))  # fmt: skip
    pictures = np.random.default_rng(0).normal(size=(8, 4, 4, 1)).astype(np.float32)
    flat_base = dist.Normal(0, 1).expand([4, 4, 1]).to_event(3)
    bound, params = bind(EBM(energy, flat_base), b, data={"x": pictures}, num_data=8)
    declared = SpectralPenalty(0.2, num_iterations=20)
    kept = declared.own(bound, params)

    def term(params):
        return declared.term(bound, Seen(None, params, {}, {}, None, None, kept))

    value, slopes = b.compile(b.value_and_grad(term))(params)
    tree = b.tree_map(b.to_numpy, params)["energy"]
    conv, normed, last = tree["layer0"], tree["layer3"], tree["layer5"]["out"]
    v = normed["inner"]["weight"]
    kernels = [conv["weight"], v * normed["scale"] / np.sqrt((v**2).sum(0)), last["weight"]]
    tops = [np.linalg.svd(k.reshape(-1, k.shape[-1])) for k in kernels]
    np.testing.assert_allclose(
        float(b.to_numpy(value)), 0.2 * sum(s[0] for _, s, _ in tops), rtol=1e-4
    )
    slope = b.to_numpy(slopes["energy"]["layer0"]["weight"])
    left, _, right = tops[0]
    wanted = 0.2 * np.outer(left[:, 0], right[0])
    np.testing.assert_allclose(slope.reshape(wanted.shape), wanted, atol=1e-3)


def test_a_fit_with_all_regularisers_is_tamer(b):
    """Energies nearer zero and smaller kernels than without, at the same noise."""
    tame = (EnergyMagnitude(1.0), GradientPenalty(1.0, "both"), SpectralPenalty(1.0))
    spread = []
    for regularizers in ((), tame):
        learn = MaximumLikelihood(
            Langevin(0.1, 2), optimizer=pg.Adam(0.05), init="data", regularizers=regularizers
        )
        fitted = pg.fit(MODEL, X + 1, learn, num_steps=30, batch_size=100, backend=b, **ANY_STEP)
        kernel = fitted.params["energy"]["layer0"]["weight"]
        spread.append([abs(fitted.history["energy_data"][-1]), np.linalg.norm(kernel)])
        assert ("regularizers" in fitted.history) == bool(regularizers)
    assert (np.array(spread[1]) < 0.8 * np.array(spread[0])).all(), spread


# ---- errors ----


def test_what_does_not_fit_is_said(b):
    options = dict(num_steps=1, batch_size=100, backend=b, **ANY_STEP)

    def learn(**more):
        return MaximumLikelihood(**{"sampler": STILL, **more})

    with pytest.raises(AlgorithmError, match="at data in space='noise'.*init='base'"):
        pg.fit(MODEL, X, learn(space="noise", init="data"), **options)
    with pytest.raises(AlgorithmError, match="size=50 for batches of 100.*raise it"):
        pg.fit(MODEL, X, learn(init=ReplayBuffer(50)), **options)
    with pytest.raises(AlgorithmError, match=r"ReplayBuffer: got the sites \['z'\]"):
        pg.fit(MODEL, X, learn(init=ReplayBuffer(200, sites=("z",))), **options)
    with pytest.raises(DeclarationError, match="init='base': importance sampling draws from"):
        learn(sampler=ImportanceSampling(), init="data")
    with pytest.raises(DeclarationError, match="regularizers"):
        learn(regularizers=0.1)
    flat_energy = EBM(nets.MLPEnergy((4,)), dist.ImproperUniform("real", (1,)))
    with pytest.raises(AlgorithmError, match="got ImportanceSampling.*without draws"):
        pg.fit(flat_energy, X, learn(sampler=ImportanceSampling()), **options)
