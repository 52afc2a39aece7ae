"""Likelihood regret whose guide is a convolution, or a torch module with batch normalisation.

The models and data are those of `test_regret_batched`, which holds a convolution to a plain loop. A
native net has no batch statistics; a torch module in `eval` mode brings its own, which the search
must neither move nor share.
"""

import dataclasses
import itertools

import numpy as np
import pytest
from floats import float64
from shared_noise import agree, each_backend
from test_regret_batched import COUNT, DRAWS, ENCODERS, ROWS, SHAPE, UNITS, data, measured, vae

import probgen as pg
from probgen import nets
from probgen.inference.regret.likelihood_regret import LikelihoodRegret
from probgen.trees import tree_leaves


@pytest.mark.repeated("test_regret_batched.py::test_batched_equals_looped")
def test_backends_agree_on_a_convolution(same_noise):
    """1e-8 nats in float64, in every number; float32 and the free posterior, whose search sees no
    encoder, are `test_regret_backends`'."""
    measure = LikelihoodRegret(num_steps=30, num_draws=10)
    fitted, x = vae(ENCODERS["conv"]), data(5)
    with each_backend(float64=True) as both:
        one, other = (measured(b, fitted, x, measure) for b in both)
    agree(one, other, atol=1e-8, rtol=1e-9)
    assert np.abs(one["estimate"]).min() > 1e-3


@pytest.mark.parametrize(
    "search",
    [
        "guide",
        pytest.param(
            "posterior", marks=pytest.mark.repeated("test_more_steps_never_lower_the_bound")
        ),
    ],
)
def test_more_steps_never_lower_the_bound(b, search):
    """The same draws judge searches of every length: before is the same to the bit, after rises in
    the mean (to 1 % of what is gained), and for 95 % of the data no bound falls."""
    fitted, x, found = vae(ENCODERS["mlp"]), data(COUNT), []
    with float64(b):
        for steps in (10, 80):
            measure = LikelihoodRegret(search, num_steps=steps, num_draws=DRAWS, rows_at_once=ROWS)
            found.append(measured(b, fitted, x, measure))
    gains = [f["estimate"].mean() for f in found]
    for fewer, more in itertools.pairwise(found):
        np.testing.assert_array_equal(fewer["elbo_before"], more["elbo_before"])
        assert more["elbo_after"].mean() >= fewer["elbo_after"].mean() - 0.01 * abs(gains[-1])
        assert (more["elbo_after"] >= more["elbo_before"]).mean() >= 0.95
    assert gains[1] > 2 * gains[0] > 0  # and the search did something


# ---- batch normalisation, in a module of torch --------------------------------------------------


@pytest.fixture
def normalised():
    """(b, fitted, module): the encoder is a torch module, conv and batch norm, in eval mode."""
    torch = pytest.importorskip("torch")
    from torch import nn

    from probgen import backends

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(4)
            self.out = nn.Linear(16, 2 * UNITS)

        def forward(self, x):
            h = torch.tanh(self.norm(self.conv(x.permute(0, 3, 1, 2))))
            loc, log_scale = self.out(h.flatten(1)).chunk(2, dim=-1)
            return {"loc": loc, "log_scale": 0.3 * log_scale}

    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Encoder()
        for _ in range(20):  # statistics that are neither 0 nor 1
            module(torch.as_tensor(data(50, np.float32)) + 0.5)
    module = module.double().eval()
    b = backends.load("torch", "cpu", compile="graph")
    base = vae(ENCODERS["mlp"])
    net = nets.from_torch(module, in_ndim=3)
    encoder = net.init(np.random.default_rng(0), SHAPE)
    fitted = dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, encoder=net),
        params={**base.params, "encoder": encoder},
    )
    return b, fitted, module


def test_running_statistics_stay_as_they_were(normalised):
    """The scale and shift of a normalisation are searched over, its statistics and the module's own
    weights are bit-identical after; and so is the score of a second pass."""
    b, fitted, module = normalised
    before = {n: v.detach().clone() for n, v in module.state_dict().items()}
    assert {"norm.running_mean", "norm.running_var"} < set(before)
    assert float(before["norm.running_mean"].abs().min()) > 1e-3
    given = [np.array(a) for a in tree_leaves(fitted.params)]
    measure = LikelihoodRegret(num_steps=8, num_draws=8, optimizer=pg.Adam(1e-2), rows_at_once=3)
    with float64(b):
        first, second = (measured(b, fitted, data(5), measure) for _ in range(2))
    assert first["estimate"].min() > 1e-2
    agree(first, second, atol=0, rtol=0)
    assert not module.training and not module.norm.training
    for name, value in module.state_dict().items():
        assert value.numpy().tobytes() == before[name].numpy().tobytes(), name
    for one, other in zip(given, tree_leaves(fitted.params), strict=True):
        assert one.tobytes() == np.asarray(other).tobytes()


@pytest.mark.parametrize(
    "search",
    [
        "guide",
        pytest.param(
            "posterior", marks=pytest.mark.repeated("test_batch_normalisation_does_not_couple_data")
        ),
    ],
)
def test_batch_normalisation_does_not_couple_data(normalised, search):
    """Chunks of 1 and 5, one or five side by side: the same scores to 1e-10."""
    b, fitted, _ = normalised
    x, found = data(5), []
    with float64(b):
        for chunk, rows in ((1, 1), (5, 1), (5, 5)):
            measure = LikelihoodRegret(
                search, num_steps=8, num_draws=8, optimizer=pg.Adam(1e-2), rows_at_once=rows
            )
            found.append(measured(b, fitted, x, measure, chunk_size=chunk))
    for other in found[1:]:
        agree(other, found[0], atol=1e-10, rtol=1e-10)
    assert np.ptp(found[0]["estimate"]) > 1e-2
