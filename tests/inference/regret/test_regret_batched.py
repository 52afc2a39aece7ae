"""Batched regret equals a plain loop over the data, written here with the framework's own tools.

The loop makes a copy of the encoder for each datum and optimises it with `torch.optim.Adam` or
`optax.adam`, by the same noise: datum i has the key fold_in(key, i), step t the key fold_in(., t).
probgen has no batch normalisation by design (it would couple data), so the encoders are an MLP and
a strided convolution. What must stay frozen is compared bit by bit, and the rank-1 form of the
search with the exact one.
"""

import dataclasses
import zlib

import numpy as np
import pytest
from floats import float64
from regret_cases import as_float64, measure_key
from scipy import stats

import probgen as pg
from probgen import dist, nets
from probgen.engine.fitted import Fitted
from probgen.errors import ProbgenError
from probgen.inference.regret.likelihood_regret import BEFORE, LikelihoodRegret
from probgen.models import VAE, likelihoods
from probgen.trees import tree_leaves, tree_map

SHAPE, UNITS, DRAWS, SITE = (4, 4, 1), 3, 20, zlib.crc32(b"z")
# Two stacks, the last filled up: several tests look at one program, which is compiled once.
COUNT, ROWS = 39, 20
ENCODERS = {
    "mlp": nets.MLP(hidden=(12,), out=UNITS, heads=("loc", "log_scale"), activation="tanh"),
    "conv": nets.ConvEncoder((3, 4), out=UNITS, heads=("loc", "log_scale"), activation="tanh"),
}


def vae(encoder, dtype=np.float64, seed=0):
    """A VAE with random weights, that of its likelihood the Bernoulli's."""
    model = VAE(
        latent=dist.Normal(0, 1).expand([UNITS]).to_event(1),
        decoder=nets.MLP(hidden=(10,), out=SHAPE, activation="tanh"),
        likelihood=dist.Bernoulli,
        encoder=encoder,
    )
    rng = np.random.default_rng(seed)
    params = {"decoder": model.decoder.init(rng, (UNITS,)), "encoder": encoder.init(rng, SHAPE)}
    params = tree_map(lambda a: (1.5 * a + 0.1 * rng.normal(size=a.shape)).astype(dtype), params)
    return Fitted(model, params, shapes={"x": SHAPE})


def data(count, dtype=np.float64):
    return (np.random.default_rng(0).random((count, *SHAPE)) < 0.4).astype(dtype)


def measured(b, fitted, x, measure, *, chunk_size=100, seed=3):
    source = as_float64(x) if x.dtype == np.float64 else x
    table = pg.evaluate(
        fitted, source, [measure], seed=seed, backend=b, chunk_size=chunk_size, progress_bar=False
    )
    return {n: v.values for n, v in table[measure.name].data_vars.items()}


# ---- the independent loop -----------------------------------------------------------------------


def torch_loop(b, fitted, x, ids, measure, seed):
    """[ids] (bound before, bound after) by deep copies and torch.optim.Adam, datum by datum."""
    import copy

    import torch
    from torch.nn import functional as F

    def dense(p, h):
        return h @ p["weight"] + p["bias"]

    def encode(p, x):
        if "conv0" in p:
            h = x.permute(0, 3, 1, 2)
            for name in ("conv0", "conv1"):
                weight = p[name]["weight"].permute(3, 2, 0, 1)
                h = torch.tanh(F.conv2d(h, weight, p[name]["bias"], stride=2, padding=1))
            out = dense(p["head"]["out"], h.permute(0, 2, 3, 1).reshape(len(x), -1))
        else:
            out = dense(p["out"], torch.tanh(dense(p["layer0"], x.reshape(len(x), -1))))
        return out[..., :UNITS], out[..., UNITS:]

    def log_x(p, x, z):
        h = dense(p["layer0"], z)
        logits = dense(p["out"], torch.tanh(h))
        target = x.reshape(len(x), -1).expand(logits.shape)
        return -F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)

    def noise(key, shape):
        return b.normal(b.fold_in(key, SITE), shape)

    params = tree_map(torch.tensor, dict(fitted.params))
    base, bounds = measure_key(b, measure, seed), []

    def bound(p, x, key):
        block = b.split(key, 2)[1]  # fewer than `particles_at_once`: one draw of all
        eps = noise(block, (DRAWS, 1, UNITS))
        loc, log_scale = encode(p, x)
        z = loc + log_scale.exp() * eps
        log_q = (-0.5 * eps**2 - 0.5 * np.log(2 * np.pi) - log_scale).sum(-1)
        log_z = (-0.5 * z**2 - 0.5 * np.log(2 * np.pi)).sum(-1)
        return float((log_x(params["decoder"], x, z) + log_z - log_q).mean())

    for i in map(int, ids):
        key = b.fold_in(base, i)
        row = torch.tensor(x[i : i + 1])
        own = copy.deepcopy(params["encoder"])
        leaves = [leaf.requires_grad_(True) for leaf in tree_leaves(own)]
        optimizer = torch.optim.Adam(leaves, lr=2e-4, weight_decay=5e-5)
        for t in range(measure.steps):
            loc, log_scale = encode(own, row)
            z = loc + log_scale.exp() * noise(b.fold_in(key, t), (1, UNITS))
            kl = 0.5 * (loc**2 + (2 * log_scale).exp() - 1 - 2 * log_scale).sum(-1)
            loss = (kl - log_x(params["decoder"], row, z)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            last = b.fold_in(key, BEFORE)
            bounds.append([bound(params["encoder"], row, last), bound(own, row, last)])
    return np.array(bounds)


def jax_loop(b, fitted, x, ids, measure, seed):
    """The same with optax; the L2 goes into the gradient, as classic weight decay."""
    import jax
    import jax.numpy as jnp
    import optax

    def dense(p, h):
        return h @ p["weight"] + p["bias"]

    def encode(p, x):
        if "conv0" in p:
            h = x
            for name in ("conv0", "conv1"):
                h = jax.lax.conv_general_dilated(
                    h, p[name]["weight"], (2, 2), [(1, 1), (1, 1)],
                    dimension_numbers=("NHWC", "HWIO", "NHWC"),
                )  # fmt: skip
                h = jnp.tanh(h + p[name]["bias"])
            out = dense(p["head"]["out"], h.reshape(len(x), -1))
        else:
            out = dense(p["out"], jnp.tanh(dense(p["layer0"], x.reshape(len(x), -1))))
        return out[..., :UNITS], out[..., UNITS:]

    def log_x(p, x, z):
        logits = dense(p["out"], jnp.tanh(dense(p["layer0"], z)))
        target = x.reshape(len(x), -1)
        return -optax.sigmoid_binary_cross_entropy(logits, target).sum(-1)

    def noise(key, shape):
        return jax.random.normal(jax.random.fold_in(key, SITE & 0x7FFFFFFF), shape)

    params = tree_map(jnp.asarray, dict(fitted.params))
    optimizer = optax.chain(optax.add_decayed_weights(5e-5), optax.adam(2e-4))
    base = measure_key(b, measure, seed)

    def loss(p, row, key):
        loc, log_scale = encode(p, row)
        z = loc + jnp.exp(log_scale) * noise(key, (1, UNITS))
        kl = 0.5 * (loc**2 + jnp.exp(2 * log_scale) - 1 - 2 * log_scale).sum(-1)
        return (kl - log_x(params["decoder"], row, z)).sum()

    def bound(p, row, key):
        block = jax.random.split(key, 2)[1]  # fewer than `particles_at_once`: all at once
        eps = noise(block, (DRAWS, 1, UNITS))
        loc, log_scale = encode(p, row)
        z = loc + jnp.exp(log_scale) * eps
        log_q = (-0.5 * eps**2 - 0.5 * np.log(2 * np.pi) - log_scale).sum(-1)
        log_z = (-0.5 * z**2 - 0.5 * np.log(2 * np.pi)).sum(-1)
        return (log_x(params["decoder"], row, z) + log_z - log_q).mean()

    @jax.jit
    def one(given, row, key):
        def step(t, carry):
            own, state = carry
            grads = jax.grad(loss)(own, row, jax.random.fold_in(key, t))
            updates, state = optimizer.update(grads, state, own)
            return optax.apply_updates(own, updates), state

        begun = given, optimizer.init(given)
        own, _ = jax.lax.fori_loop(0, measure.steps, step, begun)
        last = jax.random.fold_in(key, BEFORE)
        return jax.lax.map(
            lambda p: bound(p, row, last), jax.tree.map(lambda *a: jnp.stack(a), given, own)
        )

    rows = zip(x[ids, None], b.row_keys(base, ids), strict=True)
    return np.array([one(params["encoder"], row, key) for row, key in rows])


LOOPS = {"torch": torch_loop, "jax": jax_loop}


@pytest.mark.parametrize(
    ("encoder", "count", "rows", "chunk"),
    [
        ("mlp", COUNT, ROWS, COUNT),
        pytest.param("conv", 4, 2, 3, marks=pytest.mark.repeated("test_batched_equals_looped")),
    ],
)
def test_batched_equals_looped(b, encoder, count, rows, chunk):
    """100 steps of the published search: to 1e-10 in float64, in stacks and what is left of them.
    The loop is over the first datum and the last two. Other cuts are below."""
    measure = LikelihoodRegret(search="guide", num_draws=DRAWS, rows_at_once=rows)
    ids = np.array([0, count - 2, count - 1])
    with float64(b):
        fitted, x = vae(ENCODERS[encoder]), data(count)
        plain = LOOPS[b.name](b, fitted, x, ids, measure, 3)
        assert np.abs(plain[:, 1] - plain[:, 0]).min() > 1e-3
        found = measured(b, fitted, x, measure, chunk_size=chunk)
    found = {name: values[ids] for name, values in found.items()}
    np.testing.assert_allclose(found["elbo_before"], plain[:, 0], rtol=1e-10)
    np.testing.assert_allclose(found["elbo_after"], plain[:, 1], rtol=1e-10)
    np.testing.assert_allclose(found["estimate"], plain[:, 1] - plain[:, 0], rtol=1e-8, atol=1e-10)


# What cuts and stacks data knows nothing of what is searched for.
POSTERIOR = pytest.param(
    "posterior", marks=pytest.mark.repeated("test_no_cut_of_the_data_changes_a_number")
)


@pytest.mark.parametrize("search", ["guide", POSTERIOR])
def test_no_cut_of_the_data_changes_a_number(b, search):
    """rows_at_once and chunk size: every quantity of the table to 1e-10 in float64."""
    measure = LikelihoodRegret(search=search, num_steps=12, num_draws=DRAWS)
    with float64(b):
        fitted, x = vae(ENCODERS["mlp"]), data(COUNT)
        first = None
        cuts = ((ROWS, 64), (1, 7) if search == "guide" else (64, 7))
        for rows, chunk in cuts:
            found = measured(
                b, fitted, x, dataclasses.replace(measure, rows_at_once=rows), chunk_size=chunk
            )
            first = first or found
            for name, values in found.items():
                np.testing.assert_allclose(
                    values, first[name], rtol=1e-10, atol=1e-10, err_msg=f"{name} {rows} {chunk}"
                )
        # The noise is that of a datum's place: the same datum elsewhere is scored by other draws.
        one = dataclasses.replace(measure, rows_at_once=cuts[0][0])
        moved = measured(b, fitted, x[::-1].copy(), one, chunk_size=cuts[0][1])["estimate"][::-1]
        assert (np.abs(moved - first["estimate"]) > 1e-9).sum() >= COUNT - 1
        middle = COUNT // 2  # stays where it was
        assert abs(moved[middle] - first["estimate"][middle]) < 1e-10


# ---- what is frozen -----------------------------------------------------------------------------


FROZEN = {
    "guide": (LikelihoodRegret(num_steps=12, num_draws=DRAWS, rows_at_once=1), 7),
    "posterior": (
        LikelihoodRegret("posterior", num_steps=12, num_draws=DRAWS, rows_at_once=ROWS),
        COUNT,
    ),
    "rank 1": (LikelihoodRegret(rank_1=True, num_draws=DRAWS, rows_at_once=ROWS), COUNT),
}


# Rank 1 differs in what is searched over, which `test_row_keys` holds to the net itself.
RANK_1 = pytest.param(
    "rank 1", marks=pytest.mark.repeated("test_decoder_and_encoder_stay_bit_identical")
)


# A free posterior moves none of the nets.
FREE = pytest.param(
    "posterior", marks=pytest.mark.repeated("test_decoder_and_encoder_stay_bit_identical")
)


@pytest.mark.parametrize("search", ["guide", FREE, RANK_1])
def test_decoder_and_encoder_stay_bit_identical(b, search):
    """Both the numbers of the `Fitted` and the arrays on the device that the search starts from.

    And a second pass over the same arrays gives the same numbers, to the bit.
    """
    measure, count = FROZEN[search]
    with float64(b):
        _stay_bit_identical(b, measure, vae(ENCODERS["mlp"]), data(count))


def _stay_bit_identical(b, measure, fitted, x):
    bound, params = fitted.bind(b, {"x": x[:1]}, num_data=len(x))
    on_host = [np.array(a) for a in tree_leaves(fitted.params)]
    on_device = [b.to_numpy(a).copy() for a in tree_leaves(params)]
    run = measure.device_function(bound, len(x))
    keys = b.row_keys(b.key(0), np.arange(len(x)))
    outs = [run(params, {"x": b.asarray(x)}, keys) for _ in range(2)]
    assert np.abs(b.to_numpy(outs[0]["log_w_after"] - outs[0]["log_w_before"])).min() > 0
    for name in outs[0]:
        np.testing.assert_array_equal(b.to_numpy(outs[0][name]), b.to_numpy(outs[1][name]))
    for before, after in zip(on_host, tree_leaves(fitted.params), strict=True):
        assert before.tobytes() == np.asarray(after).tobytes()
    for before, after in zip(on_device, tree_leaves(params), strict=True):
        assert before.tobytes() == b.to_numpy(after).tobytes()


# ---- the first layer by its output --------------------------------------------------------------


# Which layer is the first is `test_row_keys`'.
LINEAR = pytest.param(
    (), marks=pytest.mark.repeated("test_rank_1_is_the_exact_search_without_weight_decay")
)


@pytest.mark.parametrize("hidden", [(12, 8), LINEAR])
def test_rank_1_is_the_exact_search_without_weight_decay(b, hidden):
    """Adam's moments of a first layer are those of its output: the same regret in float64.

    Up to Adam's eps, which is compared with a gradient that is larger or smaller by |x_j|: made
    very small here, what is left is 1e-6 of the regret. Pixels that are zero do not move.
    """
    encoder = dataclasses.replace(ENCODERS["mlp"], hidden=hidden)
    with float64(b):
        fitted, x = vae(encoder), data(6) * 0.7 - 0.1
        fitted = dataclasses.replace(
            fitted, model=dataclasses.replace(fitted.model, likelihood=likelihoods.Normal(0.5))
        )
        exact = LikelihoodRegret(
            search="guide", num_draws=8, num_steps=50, optimizer=pg.Adam(2e-3, eps=1e-30)
        )
        one = measured(b, fitted, x, exact)["elbo_after"]
        name = exact.name
        rank_1 = dataclasses.replace(exact, rank_1=True)
        assert rank_1.name != name
        # The name chooses the noise, so the layers are compared under one key.
        bound, params = fitted.bind(b, {"x": x[:1]}, num_data=6)
        keys = b.row_keys(measure_key(b, exact, 3), np.arange(6))
        out = rank_1.device_function(bound, 6)(params, {"x": b.asarray(x)}, keys)
        other = b.to_numpy(out["log_w_after"]).mean(1)
        gain = one - b.to_numpy(out["log_w_before"]).mean(1)
        assert np.abs(gain).min() > 1e-3
        np.testing.assert_allclose(other, one, atol=1e-6 * np.abs(gain).max(), rtol=1e-9)


@pytest.mark.repeated("test_rank_1_is_the_exact_search_without_weight_decay")
def test_rank_1_ranks_as_the_exact_search_with_its_published_optimiser(b):
    """Weight decay of that layer and Adam's eps are all that differ: Spearman's rho >= 0.999."""
    with float64(b):
        fitted, x = vae(ENCODERS["mlp"]), data(COUNT)
        x[20:] = 1 - x[20:]
        bound, params = fitted.bind(b, {"x": x[:1]}, num_data=COUNT)
        scores = []
        for rank_1 in (False, True):
            measure = LikelihoodRegret(num_draws=DRAWS, rank_1=rank_1, rows_at_once=ROWS)
            keys = b.row_keys(b.key(5), np.arange(COUNT))
            values = measure.device_function(bound, COUNT)(params, {"x": b.asarray(x)}, keys)
            scores.append(measure.finish({n: b.to_numpy(v) for n, v in values.items()})["estimate"])
    assert stats.spearmanr(*scores).statistic >= 0.999
    difference = np.abs(scores[0] - scores[1])
    assert difference.max() < 0.01 * np.abs(scores[0]).max()


@pytest.mark.parametrize(
    "encoder",
    [ENCODERS["conv"], dataclasses.replace(ENCODERS["mlp"], spectral=True)],
    ids=["conv", "spectral"],
)
def test_rank_1_needs_a_plain_linear_first_layer(b, encoder):
    fitted = vae(encoder, np.float32)
    with pytest.raises(
        ProbgenError, match=r"rank_1=True.*expected a VAE.*linear.*leave rank_1 out"
    ):
        measured(b, fitted, data(2, np.float32), LikelihoodRegret(rank_1=True, num_steps=1))
