"""Chains that go on from what an earlier run learned: by each engine, on other data, on the other
backend, killed and resumed.

A leapfrog of size h from x with momentum N(0, M) ends at x + h L z + O(h^2), z ~ N(0, I), where L
is a root of M^-1: what moves a chain is seen in where it ends.
"""

import functools
import pickle

import numpy as np
import pytest
import xarray
from executor_cases import Fragile
from infer_cases import C, Y, check_regression, quick, regression
from test_infer_path import count_pieces, killed
from test_place import Stopped

import probgen as pg
from probgen import dist
from probgen.engine.bind import bind
from probgen.engine.posterior import Posterior
from probgen.errors import AlgorithmError, DataError, NonFiniteError, OtherRun, SupportError
from probgen.inference import HMC, NUTS, Guide, Langevin, Until
from probgen.inference.sample.hamiltonian_steps import LEAPFROGS

H = 1e-3
ENGINES = {"torch": ("probgen", "pyro"), "jax": ("probgen", "numpyro")}
COV = np.array([[4.0, 1.5, 0.2], [1.5, 1.0, 0.3], [0.2, 0.3, 0.25]])
KEEP = {"diagonal": np.eye(3), "dense": np.ones((3, 3)), "block": np.eye(3)}
KEEP["block"][:2, :2] = 1.0
SETTINGS = {
    "diagonal": {}, "dense": {"dense_mass": True}, "block": {"dense_mass": [("b",)]},
    "low rank": {"mass_rank": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def small(backend_name):
    return quick(backend_name)


@pytest.fixture(scope="module", params=[0, 1], ids=["ours", "the library's"])
def engine(request, backend_name):
    return ENGINES[backend_name][request.param]


@pg.model
def pair():
    pg.sample("c", dist.Normal(0.0, 1.0))
    pg.sample("b", dist.Normal(0.0, 1.0).expand([2]).to_event(1))


def infer(b, method, model=pair, data=None, **options):
    options = {"seed": 0, "progress_bar": False, **options}
    return pg.infer(model, data, method, backend=b, **options)


def hmc(engine, form="diagonal", **options):
    chains = 60 if engine == "pyro" else 200  # Pyro's run one after another
    sizes = {"num_warmup": 0, "num_samples": 1, "num_chains": chains, "num_steps": 1}
    return HMC(engine=engine, **{**sizes, **SETTINGS[form], **options})


@pytest.fixture(scope="module")
def learned(small):
    """form: draws of 200 chains by our engine, which the libraries go on from as it does."""
    return functools.cache(lambda form="diagonal": infer(small, hmc("probgen", form)))


def given(tree, form):
    """The draws with steps of H, and a mass matrix whose inverse is known."""
    group = tree.sampling_state.to_dataset()
    group["step_size"] = group["step_size"] * 0 + H
    cov = COV
    if form == "low rank":
        u, gain, s = np.array([0.6, 0.8, 0.0]), 1.5, np.array([2.0, 1.0, 0.5])
        half = np.eye(3) + gain * np.outer(u, u)
        cov = s[:, None] * (half @ half) * s
        group["inv_metric"] = group["inv_metric"] * 0 + s**2
        group["inv_metric_directions"] = group["inv_metric_directions"] * 0 + u[:, None]
        group["inv_metric_gains"] = group["inv_metric_gains"] * 0 + gain
    else:
        group["inv_metric"] = group["inv_metric"] * 0 + np.diag(cov)
    for name in group:
        if "_block_" in name:
            size = group[name].shape[-1]
            group[name] = group[name] * 0 + cov[:size, :size]
    tree = tree.copy()
    tree["sampling_state"] = xarray.DataTree(group)
    return tree, cov * KEEP.get(form, 1.0)


def ends(tree):
    return tree.sampling_state.position.values.astype(np.float64)


# One dense block is a mass matrix in blocks, of which there is one; what stands outside of the
# blocks has a diagonal, of our engine by the same root. The libraries have a form of its own.
BY_BLOCK = pytest.mark.repeated(
    "test_a_chain_moves_from_where_it_was_by_the_step_and_mass_that_it_had"
)


@pytest.mark.parametrize(
    ("engine", "form"),
    [
        pytest.param(0, "diagonal", marks=BY_BLOCK),
        pytest.param(0, "dense", marks=BY_BLOCK),
        (0, "block"),
        (0, "low rank"),
        (1, "diagonal"),
        pytest.param(1, "dense", marks=BY_BLOCK),
        (1, "block"),
    ],
    indirect=["engine"],
)
def test_a_chain_moves_from_where_it_was_by_the_step_and_mass_that_it_had(
    small, engine, form, learned
):
    method = hmc(engine, form)
    before, cov = given(learned(form).isel(chain=slice(method.num_chains)), form)
    after = infer(small, method, warm_start=before)
    again = infer(small, method, warm_start=after)
    if form == "block":
        np.testing.assert_array_equal(infer(small, method, warm_start=before).posterior.c.values,
                                      after.posterior.c.values)  # fmt: skip
    old, new = before.sampling_state.dataset, again.sampling_state.dataset
    assert set(old) == set(new) and new.attrs["transitions"] == 3
    for name in set(old) - {"position"}:
        as_run = old[name].values.astype(np.float32)
        np.testing.assert_array_equal(new[name].values.astype(np.float32), as_run, err_msg=name)
    # In the order of the blocks, here and there: "b" before "c".
    root = np.linalg.cholesky(cov)
    z, z_next = (np.linalg.solve(root, (ends(a) - ends(c)).T / H)
                 for a, c in ((after, before), (again, after)))  # fmt: skip
    found, error = z @ z.T / z.shape[1], 1 / np.sqrt(z.shape[1])
    assert abs(np.diag(found) - 1).max() < 5 * error * np.sqrt(2)
    assert abs(found - np.diag(np.diag(found))).max() < 5 * error
    # The same seed, and other noise.
    assert abs((z * z_next).mean(1)).max() < 5 * error
    np.testing.assert_array_equal(ends(after)[:, :2], after.posterior.b.values[:, -1])


def test_a_warm_up_starts_from_what_is_given(small, engine, learned):
    """Steps of H are all accepted: after one of dual averaging the step is 14.4 times as long (as
    Pyro counts, who leaves out the last transition), after two 20.3 times."""
    before, cov = given(learned(), "diagonal")
    twice = hmc(engine, num_warmup=2, find_heuristic_step_size=False)
    after = infer(small, twice, warm_start=before).sampling_state
    factor = 14.386 if engine == "pyro" else 20.32
    np.testing.assert_allclose(after.step_size.values, factor * H, rtol=0.01)
    num = len(after.inv_metric)
    np.testing.assert_allclose(after.inv_metric.values, np.tile(np.diag(cov), (num, 1)), rtol=1e-6)


OURS = {"num_warmup": 40, "num_samples": 16, "num_chains": 40, "engine": "probgen"}


@pytest.fixture(scope="module")
def fewer(small):
    """The regression on the first 30 of its 40 data."""
    return infer(small, NUTS(**OURS, max_tree_depth=4), regression, {"y": Y[:30]},
                 inputs={"covariates": C[:30]})  # fmt: skip


def refit(b, warm, **options):
    method = NUTS(**{**OURS, "max_tree_depth": 4, **options})
    return infer(b, method, regression, {"y": Y}, inputs={"covariates": C}, warm_start=warm)


@pytest.fixture(scope="module")
def refitted(small, fewer):
    """(all data after ten transitions in place of forty, what goes on from there)"""
    first = refit(small, fewer, num_warmup=10)
    return first, refit(small, first, num_warmup=0)


@pytest.mark.repeated("test_a_chain_moves_from_where_it_was_by_the_step_and_mass_that_it_had")
def test_a_refit_when_data_came_needs_a_short_warm_up(refitted):
    """And what goes on from there has the same law."""
    first, more = refitted
    assert more.attrs["tuning_steps"] == 0
    assert more.attrs["warm_start"] == "after 82 transitions of each chain"
    np.testing.assert_array_equal(
        more.sample_stats.step_size.values,
        np.tile(first.sampling_state.step_size.values[:, None], (1, 16)),
    )
    check_regression(xarray.DataTree.from_dict(
        {"posterior": xarray.concat([first.posterior.dataset, more.posterior.dataset], "draw")}
    ))  # fmt: skip


def test_the_first_chains_go_on_where_fewer_are_asked_for(small, learned):
    """As they do among more, by steps of their own size."""
    two, all_ = (
        infer(small, hmc("probgen", num_chains=n), warm_start=learned()).posterior.b.values
        for n in (2, 200)
    )
    np.testing.assert_allclose(two, all_[:2], rtol=1e-5)
    assert abs(two[:, 0] - learned().posterior.b.values[:2, 0]).max() > 0.1


@pg.model
def supports():
    pg.sample("p", dist.Dirichlet(np.ones(4, np.float32)))
    top = pg.sample("top", dist.Exponential(1.0))
    pg.sample("below", dist.Uniform(0.0, top).expand([2]).to_event(1))
    pg.sample("corr", dist.LKJCholesky(3, 1.0))


def test_a_position_is_the_same_latents_on_both_backends():
    """What is kept of a chain is where it stands on the real line."""
    found, rng = [], np.random.default_rng(0)
    sizes = {"p": (3,), "top": (), "below": (2,), "corr": (3,)}
    free = {n: rng.normal(size=size).astype(np.float32) for n, size in sizes.items()}
    for name in ENGINES:
        pytest.importorskip(name)
        b = quick(name)
        bound, params = bind(supports, b, whole=True)
        at, point = {n: b.asarray(v) for n, v in free.items()}, Posterior(bound, None).point
        point = (b.compile(point) if name == "jax" else point)(params, {}, at)
        found.append({n: b.to_numpy(v) for n, v in point.values.items()})
        found[-1]["density"] = b.to_numpy(point.log_density)
    assert set(found[0]) == {*sizes, "density"}
    for name, want in found[0].items():
        np.testing.assert_allclose(found[1][name], want, rtol=1e-4, atol=1e-5, err_msg=name)


# A chain of MALA goes from one backend to the other in `test_infer_warm_step.py`; in which order
# masses are kept is seen above, on each.
@pytest.mark.repeated("test_a_position_is_the_same_latents_on_both_backends")
def test_what_one_backend_learned_serves_the_other():
    """From torch to JAX and back: with a step of 1e-6 chains stay where they ended, so both have
    the same bijections; step sizes and masses are those that were learned."""
    for name in ENGINES:
        pytest.importorskip(name)
    sizes = {"num_samples": 3, "num_chains": 2, "num_steps": 2}
    draws = infer(quick("torch"), HMC(num_warmup=25, **sizes), supports)
    before = draws.copy()
    group = draws.sampling_state.to_dataset()
    before["sampling_state"] = xarray.DataTree(group.assign(step_size=group.step_size * 1e-6))
    for there in ("jax", "torch"):
        after = infer(quick(there), HMC(num_warmup=0, **sizes), supports, warm_start=before)
        for name, want in draws.posterior.data_vars.items():
            found, want = after.posterior[name].values[:, -1], want.values[:, -1]
            np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-4, err_msg=name)
        # To the rounding of a root, which ours is kept as.
        for name in ("inv_metric", "step_size"):
            found, want = (t.sampling_state[name].values for t in (after, before))
            np.testing.assert_allclose(found, want, rtol=1e-6)
        before = after


def test_a_run_that_goes_on_is_compiled_as_if_thrice_as_long(small, monkeypatch):
    """At most: by the transitions that were made before it."""
    asked, real = [], type(small).loop

    def loop(b, step, num_calls=None, token=None):
        asked.append(num_calls)
        return real(b, step, num_calls, token)

    monkeypatch.setattr(type(small), "loop", loop)
    method = hmc("probgen", num_chains=2)
    first = infer(small, method)
    infer(small, method, warm_start=first)
    first.sampling_state.attrs["transitions"] = 1000
    infer(small, method, warm_start=first)
    assert asked == [LEAPFROGS * n for n in (1, 2, 3)]


def test_chains_of_other_samplers_go_on_from_their_places(small, learned):
    first = infer(small, Langevin(0.1, num_steps=20))
    still = infer(small, Langevin(1e-12, num_steps=1), warm_start=first)
    np.testing.assert_allclose(still.posterior.b.values[:, 0], first.posterior.b.values[:, -1],
                               atol=1e-4)  # fmt: skip
    assert still.sampling_state.attrs["transitions"] == 21
    still = infer(small, Langevin(1e-12, num_steps=1), warm_start=learned()).posterior.b.values
    np.testing.assert_allclose(still[:, 0], learned().posterior.b.values[: len(still), -1],
                               atol=1e-4)  # fmt: skip


def test_a_file_keeps_what_was_learned(small, tmp_path, learned):
    """netCDF by group, as scipy writes it; and pickled, as executors send it."""
    method, draws = hmc("probgen", "dense"), learned("dense")
    want = infer(small, method, warm_start=draws).posterior.b.values
    draws.sampling_state.to_dataset().to_netcdf(tmp_path / "state.nc", engine="scipy")
    kept = xarray.DataTree()
    with xarray.open_dataset(tmp_path / "state.nc", engine="scipy") as group:
        kept["sampling_state"] = xarray.DataTree(group.load())
    for tree in (kept, pickle.loads(pickle.dumps(draws))):
        found = infer(small, method, warm_start=tree).posterior.b.values
        np.testing.assert_array_equal(found, want)


def test_killed_it_goes_on_to_the_same_bits(small, engine, tmp_path, monkeypatch, learned):
    method = hmc(engine, num_warmup=6, num_samples=6, num_chains=3 if engine != "pyro" else 12)
    first = learned()
    whole = infer(small, method, warm_start=first)
    for stop in (2, 9):
        with monkeypatch.context() as patched, pytest.raises(Stopped):
            count_pieces(patched, stop, killed)
            infer(small, method, warm_start=first, path=tmp_path / "chains")
    resumed = infer(small, method, warm_start=first, path=tmp_path / "chains")
    read = infer(small, method, warm_start=first, path=tmp_path / "chains")
    for group in ("posterior", "sample_stats", "sampling_state"):
        for found in (resumed, read):
            xarray.testing.assert_identical(found[group].dataset.drop_attrs(),
                                            whole[group].dataset.drop_attrs())  # fmt: skip
    for other in (whole, None):
        with pytest.raises(OtherRun, match="warm start"):
            infer(small, method, warm_start=other, path=tmp_path / "chains")


def test_workers_and_rules_go_on_too(small, learned):
    """Chains by an executor are those of the call without one, to rounding."""
    method = hmc("probgen", num_chains=3)
    found, want = (infer(small, method, warm_start=learned(), executor=there)
                   for there in (Fragile(), None))  # fmt: skip
    np.testing.assert_allclose(found.posterior.b.values, want.posterior.b.values, atol=1e-5)
    np.testing.assert_array_equal(found.sampling_state.inv_metric.values,
                                  want.sampling_state.inv_metric.values)  # fmt: skip
    rule = Until(rhat=None, ess=10.0, min_draws=4)
    ended = infer(small, Langevin(0.5, num_steps=400, metropolis=True), until=rule,
                  warm_start=learned())  # fmt: skip
    draws = ended.posterior.sizes["draw"]
    assert draws < 400 and ended.sampling_state.attrs["transitions"] == 1 + draws


@pg.model
def other_sites():
    pg.sample("d", dist.Normal(0.0, 1.0))


@pg.model
def longer():
    pg.sample("c", dist.Normal(0.0, 1.0))
    pg.sample("b", dist.Normal(0.0, 1.0).expand([3]).to_event(1))


@pytest.fixture(scope="module")
def two(learned):
    return learned().isel(chain=[0, 1])


@pytest.mark.parametrize(
    ("method", "model", "words"),
    [
        ({"num_chains": 3}, pair, "warm_start of 2 chains for num_chains=3, expected at least"),
        ({}, other_sites, r"of the latents \['b', 'c'\], expected those .* \['d'\]"),
        ({}, longer, r"has 2 numbers \(2,\) of 'b'.*expected 3, \(3,\)"),
        ({"dense_mass": True}, pair, r"diagonal mass matrix, expected .* \['b', 'c'\]"),
        ({"dense_mass": [("b",)]}, pair, r"dense blocks \['b'\]"),
        ({"mass_rank": 1, "engine": "probgen"}, pair, "expected a mass matrix of rank 1"),
        ({"init_strategy": {"c": 0.0}}, pair, "init_strategy={'c': ...} and a warm_start"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(small, two, method, model, words):
    method = {"num_warmup": 0, "num_samples": 1, "num_chains": 2, "num_steps": 1, **method}
    with pytest.raises(AlgorithmError, match=words):
        infer(small, HMC(**method), model, warm_start=two)


def test_what_is_no_warm_start_is_refused(small, two):
    def refused(warm, words, kind=DataError, method=None):
        with pytest.raises(kind, match=words):
            infer(small, method or hmc(None, num_chains=2), warm_start=warm)

    refused(3, "got int as warm_start, expected the draws of an earlier pg.infer")
    refused(xarray.DataTree.from_dict({"posterior": two.posterior.dataset}),
            r"groups \['posterior'\] as warm_start.*'sampling_state'")  # fmt: skip
    walked = infer(small, Langevin(0.1))
    refused(walked, "without mass matrices, expected that of NUTS", AlgorithmError)
    refused(two, "Guide, which has no chains that go on", AlgorithmError, Guide())
    group = two.sampling_state.to_dataset()
    for changed in (
        group.assign(step_size=group.step_size * np.nan), group.drop_vars("inv_metric"),
        group.assign(inv_metric=-group.inv_metric), group.isel(coordinate=[0, 1]),
        group.drop_attrs(),
    ):  # fmt: skip
        tree = xarray.DataTree(children={"sampling_state": xarray.DataTree(changed)})
        refused(tree, "not as pg.infer wrote it.*damaged or was changed")


@pg.model
def bounded():
    """`pair`, and data that lie below a bound."""
    c = pg.sample("c", dist.Normal(0.0, 1.0))
    pg.sample("b", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pg.data_plate():
        pg.sample("serial", dist.Uniform(0.0, pg.ops.exp(c)))


@pg.model
def above(bound):
    c = pg.sample("c", dist.Normal(0.0, 1.0))
    pg.sample("b", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    pg.factor("distance", pg.ops.log(c - bound))


def test_data_that_are_impossible_where_a_chain_stands_are_told(small, engine, two):
    """By their support or their density, of which each engine is asked for one."""
    method = hmc(engine, num_chains=2)
    if engine == "probgen":
        with pytest.raises(SupportError, match="where chain 0 of warm_start stands"):
            infer(small, method, bounded, {"serial": np.float32([1e4, 2.0])}, warm_start=two)
        return
    words = "chain 0 of 'above' cannot go on from warm_start: the log probability of 'distance'"
    with pytest.raises(NonFiniteError, match=words):
        infer(small, method, above, inputs={"bound": np.float32(9.0)}, warm_start=two)
