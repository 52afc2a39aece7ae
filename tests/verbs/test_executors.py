"""Verbs over the workers of an executor: the numbers of the call without one, whoever dies.

Processes are forks of one that has imported the frameworks (`children`), in a pool that all tests
share; what concerns the protocol alone runs in an executor of one thread.
"""

import importlib
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import children
import numpy as np
import pytest
from executor_cases import Ends, Fragile, Spoilt, evaluate, pool, same, vae
from infer_cases import C, Y, quick, regression
from test_evaluate_chunks import Noisy

import probgen as pg
from probgen.engine import workers
from probgen.engine.fitted import Fitted
from probgen.errors import DeclarationError, NonFiniteError, OtherRun, WorkerError
from probgen.inference import HMC, IWAE, Langevin

SIZES = {"num_warmup": 6, "num_samples": 8, "num_chains": 2}


@pytest.fixture(scope="module")
def executor():
    with pool() as there:
        yield there


# ---- the same numbers ---------------------------------------------------------------------------


def test_a_table_is_the_same_to_the_bit(b, executor, tmp_path):
    """With all that draws, by a loaded backend; kept chunks are gone on with by either call."""
    measures = [Noisy(), IWAE(8)]
    whole = evaluate(b, measures)
    same(evaluate(b, measures, executor=executor), whole)
    same(evaluate(b, measures, executor=executor, path=tmp_path / "t"), whole)
    assert [p.name for p in tmp_path.iterdir()] == ["t"]
    same(evaluate(b, measures, path=tmp_path / "t"), whole)


def test_samples_are_the_same_to_the_bit(b, executor, tmp_path):
    def draw(**options):
        return pg.generate(vae(), 7, seed=0, chunk_size=3, backend=b, **options)

    whole = draw()
    found = draw(executor=executor, path=tmp_path / "s")
    assert found.note == whole.note and list(found) == list(whole)
    for name in whole:
        np.testing.assert_array_equal(found[name], whole[name])


def infer(b, method, **options):
    return pg.infer(
        regression, {"y": Y}, method, inputs={"covariates": C}, seed=0, backend=b,
        progress_bar=False, **options,
    )  # fmt: skip


def test_chains_of_hmc_are_those_of_one_process(backend_name, request, tmp_path):
    """To rounding: sums are over one chain in place of two."""
    b, method = quick(backend_name), HMC(**SIZES, num_steps=2)
    # What XLA compiles takes seconds, in this process and in each of the pool's.
    there = request.getfixturevalue("executor") if b.name == "torch" else Fragile()
    whole = infer(b, method)
    found = infer(b, method, executor=there, path=tmp_path / "c")
    again = infer(b, method, executor=there, path=tmp_path / "c")
    for group in ("posterior", "sample_stats"):
        for name, v in whole[group].data_vars.items():
            one, other = found[group][name].values, v.values
            np.testing.assert_allclose(one, other, rtol=1e-3)
            np.testing.assert_array_equal(one, again[group][name].values)
    with pytest.raises(OtherRun, match="another chains"):
        infer(b, method, path=tmp_path / "c")


# On torch ours is the engine of the test above, whose starts go with their chains below.
@pytest.mark.parametrize(
    "backend_name",
    [
        pytest.param(
            "torch",
            marks=pytest.mark.repeated("test_chains_of_hmc_are_those_of_one_process"),
        ),
        "jax",
    ],
    indirect=True,
)
def test_chains_of_our_engine_are_those_of_one_process(b):
    """Each by itself, in order: draws and statistics of three chains that start at three places,
    to rounding; and by another call to the bit."""
    method = HMC(
        num_warmup=0, num_samples=8, num_chains=3, num_steps=2, engine="probgen", step_size=0.1,
        adapt_step_size=False, adapt_mass_matrix=False,
        init_strategy={"weights": np.arange(9.0).reshape(3, 3) / 4},
    )  # fmt: skip
    whole = infer(b, method)
    found, again = (infer(b, method, executor=Fragile()) for _ in range(2))
    assert np.ptp(whole.posterior.weights.values, axis=(0, 1)).min() > 0.1
    for group in ("posterior", "sample_stats"):
        for name, v in whole[group].data_vars.items():
            one = found[group][name].values
            np.testing.assert_allclose(one, v.values, rtol=1e-3, atol=1e-3, err_msg=name)
            np.testing.assert_array_equal(one, again[group][name].values)


def test_chains_of_other_samplers_have_noise_of_their_own(b):
    """Whoever runs them: their number is all that they depend on."""
    draws = [
        infer(b, Langevin(1e-3, num_steps=6, num_chains=n), executor=Fragile())
        .posterior.weights.values
        for n in (2, 3)
    ]  # fmt: skip
    np.testing.assert_array_equal(draws[0], draws[1][:2])
    assert len(np.unique(draws[1][:, 0, 0])) == 3


def test_starts_by_chain_go_with_their_chain():
    starts = np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    method = HMC(
        num_warmup=0, num_samples=1, num_chains=2, num_steps=1, step_size=1e-6,
        adapt_step_size=False, adapt_mass_matrix=False, init_strategy={"weights": starts},
    )  # fmt: skip
    draws = infer(quick("torch"), method, executor=Fragile()).posterior.weights.values
    np.testing.assert_allclose(draws[:, 0], starts, atol=1e-3)


def test_threads_are_workers_too(b):
    whole = evaluate(b, [Noisy(), IWAE(8)])
    with ThreadPoolExecutor(2) as there:
        same(evaluate(b, [Noisy(), IWAE(8)], executor=there), whole)


# ---- workers that die ---------------------------------------------------------------------------


def test_a_pool_that_cannot_be_made_anew_says_so_and_the_path_goes_on(b, tmp_path):
    place = tmp_path / "t"
    with pytest.raises(WorkerError, match="the pool broke.*with 2 pieces done.*give a function"):
        evaluate(b, [Noisy()], executor=Fragile(3), path=place)
    rest = Fragile()
    same(evaluate(b, [Noisy()], executor=rest, path=place), evaluate(b, [Noisy()]))
    assert rest.count == 4


def test_a_piece_that_ends_every_pool_is_named(b):
    made = []

    def make():
        made.append(Fragile(3))
        return made[-1]

    with pytest.raises(WorkerError, match="again and again with piece 0 among .*smaller chunk"):
        evaluate(b, [Noisy()], executor=lambda: made.append(Fragile(1)) or made[-1])
    assert evaluate(b, [Noisy()], executor=make).num_data == 11


# ---- workers that are not fit -------------------------------------------------------------------


def test_workers_of_another_probgen_are_refused(b, monkeypatch):
    class Other(Fragile):
        def submit(self, fn, ticket, *args):
            return super().submit(fn, ticket._replace(house="0.0.1, source 12345678"), *args)

    with pytest.raises(WorkerError, match="another probgen .*expected 0.0.1, source 12345678"):
        evaluate(b, [Noisy()], executor=Other())
    assert workers.house().startswith(pg.__version__)


MODULE = """
import probgen as pg
from probgen import dist

def mean():
    return {}

@pg.model
def shifted():
    with pg.data_plate():
        pg.sample("x", dist.Normal(mean(), 1.0).expand([3]).to_event(1))
"""


class Elsewhere(Fragile):
    """Imports modules of the user anew, as another machine does."""

    def submit(self, *args):
        mine = sys.modules.pop("model_of_mine")
        workers._ready.functions.clear()
        importlib.invalidate_caches()
        try:
            return super().submit(*args)
        finally:
            sys.modules["model_of_mine"] = mine


def test_workers_of_another_model_are_refused(b, tmp_path, monkeypatch):
    """The file that they import is another one than that of the caller, or is not there."""
    file = tmp_path / "model_of_mine.py"
    monkeypatch.syspath_prepend(tmp_path)
    file.write_text(MODULE.format("1.0"))
    fitted = Fitted(importlib.import_module("model_of_mine").shifted, {}, shapes={"x": (3,)})

    def score(**options):
        return evaluate(b, [IWAE(4)], fitted=fitted, **options)

    same(score(executor=Elsewhere()), score())
    file.write_text(MODULE.format("22.0"))
    with pytest.raises(WorkerError, match="another model .*start the workers again"):
        score(executor=Elsewhere())
    file.unlink()
    with pytest.raises(WorkerError, match="cannot read its work .*model_of_mine"):
        score(executor=Elsewhere())


def test_a_worker_that_lost_the_work_is_sent_it_again(b):
    class Forgetful(Fragile):
        def submit(self, fn, ticket, payload, *args):
            paid.append(payload is not None)
            workers._ready.functions.clear()
            return super().submit(fn, ticket, payload, *args)

    paid: list[bool] = []
    same(evaluate(b, [Noisy()], executor=Forgetful()), evaluate(b, [Noisy()]))
    assert paid.count(True) >= 6


@pytest.mark.parametrize(
    ("executor", "error", "text"),
    [
        (3, DeclarationError, "executor=3, expected an executor, an object with submit"),
        (ThreadPoolExecutor, DeclarationError, "expected an executor"),
    ],
)
def test_what_is_no_executor_is_refused(b, executor, error, text):
    with pytest.raises(error, match=text):
        evaluate(b, [Noisy()], executor=executor)


def test_a_closed_executor_is_refused(b):
    there = ThreadPoolExecutor(1)
    there.shutdown()
    with pytest.raises(WorkerError, match="takes no work .*keep it open"):
        evaluate(b, [Noisy()], executor=there)


def test_work_that_cannot_be_sent_is_refused(b):
    measure = Ends("")
    measure.lock = threading.Lock()
    with pytest.raises(WorkerError, match="cannot be sent to workers.*keep open files, locks"):
        evaluate(b, [measure], executor=Fragile())


def test_an_error_of_a_worker_is_the_error_of_the_call(b, executor):
    with pytest.raises(NonFiniteError, match="spoilt is NaN for 1 data, the first is datum 9"):
        evaluate(b, [Spoilt()], executor=executor)


# ---- pools of other libraries -------------------------------------------------------------------


def test_loky_goes_on_with_another_pool(tmp_path):
    """Its reusable executor is made anew where it broke. No chunk is lost or counted twice."""
    loky = pytest.importorskip("loky", reason="needs loky: pip install 'probgen[cluster]'")

    def make():
        return loky.get_reusable_executor(max_workers=2, context=children.FORKS)

    ends, b = Ends(tmp_path / "ended"), quick("torch")
    table = evaluate(b, [ends], executor=make)
    make().shutdown()
    assert set(ends.scored()) == {0, 2, 4, 6, 8, 10}
    same(table, evaluate(b, [ends]))


# Of a nanny that starts a worker anew, and of tornado's loops.
@pytest.mark.filterwarnings("default")
def test_dask_does_the_work_of_a_killed_worker_again(tmp_path):
    distributed = pytest.importorskip(
        "distributed", reason="needs distributed: pip install 'probgen[cluster]'"
    )
    import dask

    ends, b = Ends(tmp_path / "ended"), quick("torch")
    how = {"distributed.worker.multiprocessing-method": "forkserver"}
    with (
        dask.config.set(how),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, worker_dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        table = evaluate(b, [Noisy(), ends], executor=client.get_executor())
    same(table, evaluate(b, [Noisy(), ends]))
    assert set(ends.scored()) == {0, 2, 4, 6, 8, 10}
