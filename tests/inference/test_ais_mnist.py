"""AIS against importance weighting on a VAE of handwritten digits, and its bracket: minutes."""

import numpy as np
import pytest

import probgen as pg
from probgen import dist, nets
from probgen.inference import ELBO, IWAE, SVI
from probgen.inference.likelihood.ais import AIS
from probgen.inference.likelihood.bracket import bdmc
from probgen.models import VAE

COUNT, SIMULATED = 40, 20


@pytest.fixture(scope="module")
def digits():
    """(training, held-out): 4,500 digits binarised ten times, so that the encoder sees past the
    noise of one binarisation, and 500 binarised once."""
    images = np.asarray(pg.data.mnist5k().images, np.float64).reshape(5000, 784)
    rng = np.random.default_rng(0)
    order = rng.permutation(5000)
    rows = np.concatenate([np.tile(order[:4500], 10), order[4500:]])
    binary = (rng.uniform(size=(len(rows), 784)) < images[rows]).astype(np.float32)
    return binary[:-500], binary[-500:]


@pytest.mark.slow
def test_evaluation_ais_mnist_agrees_with_importance_weighting(b, digits):
    """A VAE with 10 latents: IWAE with 5,000 particles and AIS with 1,000 temperatures and 16
    chains differ by less than a nat in the mean, AIS is not below by more than two standard errors,
    and the gap on simulated images is less than a nat. Where IWAE is nats below, its k-hat is above
    1: the encoder's fault, which the mean over images bounds and no single image does."""
    train, test = digits
    model = VAE(
        latent=dist.Normal(0, 1).expand([10]).to_event(1),
        decoder=nets.MLP(hidden=(200,), out=(784,)),
        likelihood=dist.Bernoulli,
        encoder=nets.MLP(hidden=(200,), out=10, heads=("loc", "log_scale")),
        guide_kind="full",
    )
    learn = SVI(ELBO(), optimizer=pg.Adam(1e-3))
    fitted = pg.fit(
        model, train, learn, num_steps=5000, batch_size=100, seed=0, backend=b, progress_bar=False
    )
    x = test[:COUNT]
    bound, params = fitted.bind(b, {"x": x})

    def run(method, key):
        out = b.compile(method.device_function(bound), over="steps")(
            params, {"x": b.asarray(x)}, b.key(key)
        )
        return method.finish({k: b.to_numpy(v) for k, v in out.items()})

    method = AIS(num_steps=1000, num_chains=16)
    annealed, weighted = run(method, 1), run(IWAE(5000), 2)
    off = annealed["estimate"] - weighted["estimate"]
    error = off.std(ddof=1) / COUNT**0.5
    far = off > 3.0
    print(
        f"IWAE {weighted['estimate'].mean():.2f}, AIS - IWAE {off.mean():.3f} +- {error:.3f}, "
        f"median {np.median(off):.3f}, acceptance {annealed['acceptance_rate'].mean():.2f}, "
        f"effective chains {annealed['effective_chains'].mean():.1f}"
    )
    assert -2 * error < off.mean() < 1.0 and abs(np.median(off)) < 1.0
    assert (weighted["khat"][far] > 1.0).all()
    out = bdmc(fitted, SIMULATED, method, seed=3, backend=b)
    print(out)
    gap, gap_error = out.mean("gap")
    assert -2 * gap_error < gap < 1.0
