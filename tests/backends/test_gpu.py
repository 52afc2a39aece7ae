"""On a CUDA device: the same declarations, the same numbers. Skipped where there is none."""

import numpy as np
import pytest

import probgen as pg
from probgen import dist, nets
from probgen.engine.bind import bind
from probgen.inference import ELBO, IWAE, SVI
from probgen.models import VAE

pytestmark = pytest.mark.gpu


def small_vae():
    return VAE(
        latent=dist.Normal(0, 1).expand([4]).to_event(1),
        decoder=nets.ConvDecoder(channels=(16, 8), out=(8, 8, 1)),
        likelihood=dist.Bernoulli,
        encoder=nets.ConvEncoder(channels=(8, 16), out=4, heads=("loc", "log_scale")),
    )


def test_a_fit_on_cuda_gives_the_likelihood_of_one_on_cpu(backend_name):
    x = pg.data.binarize(pg.data.digits().images)
    bounds = {}
    for device in ("cpu", "cuda"):
        fitted = pg.fit(
            small_vae(), x, SVI(ELBO(), pg.Adam(2e-3)), num_steps=500, batch_size=128,
            backend=backend_name, device=device, seed=0, progress_bar=False,
        )  # fmt: skip
        assert fitted.info["device"].startswith(device)
        table = pg.evaluate(fitted, x[:300], [IWAE(100)], seed=0, device=device)
        bounds[device] = table.mean("IWAE(100)")
    (cpu, error), (cuda, _) = bounds["cpu"], bounds["cuda"]
    assert abs(cpu - cuda) < 5 * error


def test_log_densities_agree_across_devices(backend_name):
    x = pg.data.binarize(pg.data.digits().images)[:16]
    z = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    found = []
    for device in ("cpu", "cuda"):
        b = pg.backends.load(backend_name, device)
        bound, params = bind(small_vae(), b, data={"x": x})
        sites = bound.trace(params, {"x": b.asarray(x)}, {"z": b.asarray(z)})
        found.append(b.to_numpy(sites["x"].log_prob))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)
