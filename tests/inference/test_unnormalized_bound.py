"""A tilted VAE is scored: the base's bound plus the factors, nats + constant.

Laws: where the energy reads x alone the estimate is the VAE's own less the energy; where it reads z
it is that of quadrature, at most log Z from a likelihood. One evaluation binds a model once.
"""

import numpy as np
import pytest
import scipy.stats as st
from measure_cases import context_of
from scores_models_cases import B, S, W, draws, linear

import probgen as pg
from probgen import nets
from probgen.engine import fitted as engine_fitted
from probgen.engine.fitted import Fitted
from probgen.engine.spaces import model_target
from probgen.errors import AlgorithmError, DeclarationError
from probgen.inference import ELBO, IWAE, UnnormalizedBound
from probgen.inference.ood.reference import Reference
from probgen.models import Tilted


def tilted(base, on):
    """The base tilted by an energy whose weights are drawn, and the energy in numpy."""
    size = 3 if on == "x" else 1
    model = Tilted(base, nets.MLPEnergy((4,), activation="tanh"), on=on)
    rng = np.random.default_rng(0)
    energy = {
        "layer0": {"weight": rng.normal(size=(size, 4)), "bias": rng.normal(size=4)},
        "out": {"weight": rng.normal(size=(4, 1)), "bias": rng.normal(size=1)},
    }
    energy = {k: {n: v.astype(np.float32) for n, v in p.items()} for k, p in energy.items()}

    def value(x):
        h = np.tanh(x @ energy["layer0"]["weight"] + energy["layer0"]["bias"])
        return (h @ energy["out"]["weight"] + energy["out"]["bias"])[..., 0]

    return Fitted(model, {**base.params, "energy": energy}, shapes={"x": (3,)}), value


def evaluate(fitted, x, measures, b):
    return pg.evaluate(fitted, x, measures, seed=0, backend=b, progress_bar=False)


@pytest.mark.repeated(
    "test_tilted_detection.py::"
    "test_an_energy_that_knows_letters_tells_them_better_and_its_negative_worse"
)
def test_a_tilted_vae_has_its_own_bound_less_the_energy(b):
    """The same draws, so to rounding and not to a standard error; IWAE and ELBO alike."""
    x, base = draws(5), linear()
    model, energy = tilted(base, "x")
    measures = [IWAE(4), ELBO(3)]
    own = evaluate(base, x, measures, b)
    found = evaluate(model, x, [UnnormalizedBound(m) for m in measures], b)
    for measure in measures:
        whole = UnnormalizedBound(measure)
        assert found.units[whole.name] == "nats + constant"
        np.testing.assert_allclose(
            found[whole.name]["estimate"], own[measure.name]["estimate"] - energy(x),
            rtol=1e-4, atol=1e-4,
        )  # fmt: skip
    with pytest.raises(AlgorithmError, match="known up to a constant.*UnnormalizedBound"):
        evaluate(model, x, [IWAE(4)], b)


def test_a_tilt_of_the_latent_is_that_of_quadrature(b):
    """log int p(z) p(x | z) exp(-E(z)) dz on a grid: mean weights over a hundred data alike."""
    x = draws(3)
    model, energy = tilted(linear(width=1.5), "z")
    measure = UnnormalizedBound(IWAE(50))
    table = evaluate(model, np.repeat(x, 100, 0), [measure], b)[measure.name]
    z = np.linspace(-8, 8, 4001)[:, None]
    log_p = st.norm.logpdf(z[:, 0]) - energy(z)
    log_p = log_p[:, None] + st.norm.logpdf(x[None], (z @ W + B)[:, None], S).sum(-1)
    want = np.logaddexp.reduce(log_p, axis=0) + np.log(z[1, 0] - z[0, 0])
    ratio = np.exp(table["estimate"].values.reshape(3, 100) - want[:, None])  # of mean one
    assert (np.abs(ratio.mean(1) - 1.0) < 5 * ratio.std(1) / 10.0).all()
    assert (ratio.std(1) < 0.3).all()  # so that the five errors are below 15 %


def test_a_tilt_of_decoder_means_has_draws_and_no_likelihood(b):
    """In noise space log N(eps; 0, I) - E(E[x | z(eps)]), the data's own term -E(x) alone."""
    base = linear()
    whole, energy = tilted(base, "x")
    model = Tilted(base, whole.model.energy, through="mean")
    fitted = Fitted(model, whole.params, shapes={"x": (3,)})
    x = draws(4)
    bound, params = fitted.bind(b, {"x": x})
    target = model_target(bound, "noise")
    eps = target.init(params, {}, b.key(0), 4)
    z = b.to_numpy(eps["z"])
    mean = z @ W + B
    want = st.norm.logpdf(z).sum(-1) - energy(mean)
    found = b.to_numpy(target.log_density(eps, params, {}))
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
    at = target.values(eps, params, {})
    np.testing.assert_allclose(b.to_numpy(at["x"]), mean, rtol=1e-4, atol=1e-5)
    data = bound.trace(params, {"x": b.asarray(x)}, key=b.key(0))
    np.testing.assert_allclose(b.to_numpy(data["tilt"].log_prob), -energy(x), rtol=1e-4)
    for measure in (IWAE(4), UnnormalizedBound(IWAE(4))):
        with pytest.raises(AlgorithmError, match="has no guide|no density|up to a constant"):
            context_of(fitted, b, x).function(measure)
    with pytest.raises(DeclarationError, match="through"):
        Tilted(model, whole.model.energy, on="z", through="mean")


def test_an_evaluation_binds_its_model_once(b, monkeypatch):
    """Whatever the number of measures, and of chunks."""
    count = [0]
    bind = engine_fitted.bind

    def counted(*args, **options):
        count[0] += 1
        return bind(*args, **options)

    monkeypatch.setattr(engine_fitted, "bind", counted)
    pg.evaluate(linear(), draws(5), [IWAE(2), ELBO(2)], seed=0, backend=b, chunk_size=3,
                progress_bar=False)  # fmt: skip
    assert count[0] == 1
    context = context_of(linear(), b, draws(5))
    reference = Reference(draws(4))
    assert reference.rows(context, "one") is Reference(draws(4)).rows(context, "another")
    assert context.bound is context.bound and count[0] == 3  # the model's, and the reference's own
