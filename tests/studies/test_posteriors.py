"""Posteriors in posteriordb's shape: chains of both backends held to exact references.

    make reproduce NAME=posteriors                          all, both backends, and their table
    make reproduce NAME=posteriors ARGS="-k 'jax and gp'"   one of them

Acceptance is posteriordb's: each scalar's mean within 0.1 reference standard deviations, beyond two
Monte Carlo errors; standard deviations within a tenth likewise; R-hat below 1.01; no divergence
that Stan does not have. The suite's own tests hold the declarations and native programs to Stan's,
at two points, and what is kept of Stan's own chains to the references.
"""

import functools
import time

import numpy as np
import pytest
from floats import float64

import probgen as pg
from probgen.engine.bind import bind
from probgen.engine.posterior import Posterior as Density
from probgen.evaluation.posteriors import PosteriorDifference, moments
from studies.posteriors import stan_chains
from studies.posteriors.models import POSTERIORS
from studies.posteriors.reference import load, row

MEAN, SD, RHAT = 0.1, 0.1, 1.01
ERRORS = 2  # Monte Carlo errors that a difference may have on top
ROUGH = {"lotka_volterra": 5e-3}  # nats: of six steps of Runge and Kutta's a year


def check(found, truth):
    """What is accepted; see the head of this file."""
    off = PosteriorDifference.between(found, truth)
    assert found.names == truth.names
    assert (np.abs(off.mean) < MEAN + ERRORS * off.mean_error).all()
    assert (np.abs(off.sd_ratio - 1) < SD + ERRORS * off.sd_error).all()
    assert found.rhat.max() < RHAT


def log_joints(posterior, b):
    """[2] log p(latents, data) of the declaration at its two points, in float64."""
    rows = {n: np.asarray(v, float) for n, v in {**posterior.data, **posterior.inputs}.items()}
    bound, params = bind(posterior.model, b, data=rows, whole=True)
    density = Density(bound, bound.num_rows)
    rows = {n: b.asarray(v) for n, v in rows.items()}

    def one(point):
        found = density.point(params, rows, given=point, key=b.key(0))
        return sum(found.site_log_prob.values())

    run = b.compile(one, num_calls=2)
    points = [{n: b.asarray(np.asarray(v, float)) for n, v in p.items()} for p in posterior.points]
    return np.array([float(run(p)) for p in points])


@functools.cache
def native_log_joints(name):
    """The same of the NumPyro program."""
    jax = pytest.importorskip("jax")
    from numpyro.infer.util import log_density

    from studies.posteriors.native import NATIVE

    posterior = POSTERIORS[name]
    rows = {n: np.asarray(v, float) for n, v in {**posterior.data, **posterior.inputs}.items()}
    with jax.enable_x64(True):
        run = jax.jit(lambda point: log_density(NATIVE[name], (), rows, point)[0])
        return np.array([run(dict(p)) for p in posterior.points])


@pytest.fixture(scope="module")
def live(backend_name):
    """Two points do not earn back a graph of a hundred moments on torch."""
    options = {"compile": "live"} if backend_name == "torch" else {}
    return pg.backends.load(backend_name, "cpu", **options)


@pytest.mark.parametrize("name", POSTERIORS)
def test_a_declared_posterior_is_stans_up_to_its_constant(live, name):
    b, stan = live, stan_chains.kept()[name]["log_density"]
    with float64(b):
        ours = log_joints(POSTERIORS[name], b)
    np.testing.assert_allclose(np.diff(ours), np.diff(stan), rtol=1e-5, atol=ROUGH.get(name, 0))


@pytest.fixture(scope="module")
def table():
    """Prints the rows of the tests that ran."""
    rows = []
    yield rows
    head = "posterior | backend | scalars | worst mean | worst sd | R-hat | ESS | diverged | CPU s"
    print(f"\n\n| {head} |", "| --- " * 9 + "|", *rows, sep="\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", POSTERIORS)
def test_chains_have_the_moments_of_the_reference(backend_name, name, table):
    posterior, truth = POSTERIORS[name], load(name)
    began = time.process_time()
    draws = pg.infer(
        posterior.model, posterior.data, posterior.method, inputs=posterior.inputs, seed=0,
        backend=backend_name, progress_bar=False,
    )  # fmt: skip
    seconds = time.process_time() - began
    found = moments({n: draws.posterior[n].values for n in posterior.sites}).of(truth.names)
    diverged = int(draws.sample_stats.diverging.sum())
    table.append(row(name, backend_name, found, diverged, seconds))
    print("\n" + table[-1])
    check(found, truth)
    assert posterior.stan_diverges or not diverged


@pytest.mark.repeated("test_a_declared_posterior_is_stans_up_to_its_constant")
@pytest.mark.parametrize("name", POSTERIORS)
def test_a_native_program_has_the_same_density_up_to_its_constant(name):
    stan = stan_chains.kept()[name]["log_density"]
    np.testing.assert_allclose(np.diff(stan), np.diff(native_log_joints(name)), rtol=1e-5)


@pytest.mark.parametrize("name", POSTERIORS)
def test_stans_chains_of_the_same_settings_have_the_moments_of_the_reference(name):
    posterior, entry = POSTERIORS[name], stan_chains.kept()[name]
    check(stan_chains.kept_moments(name), load(name))
    assert entry["settings"] == stan_chains.settings(posterior)
    assert posterior.stan_diverges == bool(entry["diverged"])
