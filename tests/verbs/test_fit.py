"""The fit driver: what it reads, what it promises, and that it leaves the world as it was."""

import io
import random

import numpy as np
import pytest
from fit_cases import (
    are_same_bits,
    assert_same_bits,
    binary_data,
    coins,
    leaves,
    quick,
    small_vae,
    svi,
)

import probgen as pg
from probgen import dist, nets
from probgen.engine.loop import chunk_length
from probgen.errors import AlgorithmError, DataError, DeclarationError, MissingSeed, UnknownName
from probgen.models import Generator
from probgen.records.history import History


@pytest.fixture(scope="module")
def b(backend_name):
    return quick(backend_name)


def fit(b, data=None, **options):
    options = {"num_steps": 12, "batch_size": 16, "seed": 0, **options}
    data = binary_data() if data is None else data
    model, algorithm = options.pop("model", coins), options.pop("algorithm", svi())
    return pg.fit(model, data, algorithm, backend=b, **options)


@pytest.mark.repeated("test_readme.py::test_the_first_program_learns_and_its_bounds_are_ordered")
def test_the_bound_rises_towards_the_entropy_of_the_data(b):
    """Four equally likely rows: log p(x) <= -log 4 on average; untrained it is -4 log 2."""
    fitted = fit(
        b, binary_data(256), model=small_vae(), num_steps=700, batch_size=64, algorithm=svi(2e-2)
    )
    elbo = fitted.history["elbo"]
    assert elbo[:10].mean() < -2.5
    assert -2.0 < elbo[-100:].mean() < -np.log(4) + 0.05


def test_the_same_seed_gives_the_same_parameters_and_another_one_others(b):
    one, two, other = (fit(b, model=small_vae(), seed=seed) for seed in (0, 0, 1))
    assert_same_bits(one.params, two.params)
    np.testing.assert_array_equal(one.history["elbo"], two.history["elbo"])
    assert not are_same_bits(one.params, other.params)


def test_how_a_run_is_cut_into_chunks_does_not_change_it(b, tmp_path):
    whole = fit(b, model=small_vae(), num_steps=20)
    cut = fit(b, model=small_vae(), num_steps=20, checkpoint=tmp_path, checkpoint_every=3)
    looked_at = fit(b, model=small_vae(), num_steps=20, validation=binary_data(20, 1), eval_every=7)
    assert_same_bits(whole.params, cut.params)
    assert_same_bits(whole.params, looked_at.params)
    np.testing.assert_array_equal(whole.history["elbo"], looked_at.history["elbo"])


def test_random_states_of_the_caller_are_left_alone(b):
    torch = pytest.importorskip("torch")
    for seeded in (random.seed, np.random.seed, torch.manual_seed):
        seeded(3)
    expected = random.getstate(), np.random.get_state(), torch.get_rng_state()
    fit(b, model=small_vae(), validation=binary_data(8))
    now = random.getstate(), np.random.get_state(), torch.get_rng_state()
    assert now[0] == expected[0]
    np.testing.assert_array_equal(now[1][1], expected[1][1])
    assert now[1][2:] == expected[1][2:]
    assert torch.equal(now[2], expected[2])


class Rows:
    """A map-style data set, as torch's `Dataset`."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


def torch_dataset(x):
    torch = pytest.importorskip("torch")
    return torch.utils.data.TensorDataset(torch.from_numpy(x))


def hugging_face(x):
    return pytest.importorskip("datasets").Dataset.from_dict({"x": x.tolist()})


@pytest.mark.parametrize(
    "wrap",
    [lambda x: {"x": x}, Rows, torch_dataset, hugging_face, lambda x: x.astype(np.float64)],
    ids=["dict", "map-style", "torch Dataset", "Hugging Face", "float64"],
)
def test_the_same_rows_in_another_form_give_the_same_parameters(b, wrap):
    assert_same_bits(fit(b).params, fit(b, wrap(binary_data())).params)


def batches(count=12, size=16):
    for i in range(count):
        yield {"x": binary_data(size, i)}


def test_an_iterator_and_a_callable_give_the_same_run_and_no_batch_size_is_needed(b):
    one = pg.fit(coins, batches(), svi(), num_steps=10, seed=0, backend=b)
    two = pg.fit(coins, batches, svi(), num_steps=10, seed=0, backend=b)
    assert_same_bits(one.params, two.params)
    assert one.history.num_steps == 10


def test_an_iterator_that_ends_ends_the_fit_and_a_callable_begins_again(b, tmp_path):
    ended = pg.fit(coins, batches(5), svi(), num_steps=40, seed=0, backend=b, checkpoint=tmp_path)
    assert ended.info["num_steps"] == 5 and "the data ended" in ended.history.events[-1]
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000005"]
    again = pg.fit(coins, lambda: batches(5), svi(), num_steps=12, seed=0, backend=b)
    assert again.info["num_steps"] == 12


def test_the_default_batch_is_128_or_all_where_there_are_fewer(b):
    for size, steps in ((50, 1), (300, 2)):
        fitted = pg.fit(coins, binary_data(size), svi(), num_epochs=1, seed=0, backend=b)
        assert fitted.info["num_steps"] == steps


def test_inputs_with_one_row_a_datum_go_along_with_their_data(b):
    """y = 2 c: with the rows shuffled apart, no weight could explain it."""

    @pg.model
    def line(c):
        w = pg.net("w", nets.Parameter(()))()
        with pg.data_plate():
            pg.sample("y", dist.Normal(w * c, 0.1))

    @line.with_guide
    def line(c):
        pass

    c = np.linspace(-1, 1, 40, dtype=np.float32)
    fitted = pg.fit(
        line,
        {"y": 2 * c},
        svi(0.05),
        inputs={"c": c},
        num_steps=300,
        batch_size=20,
        seed=0,
        backend=b,
    )
    np.testing.assert_allclose(leaf(fitted.params["w"]), 2.0, atol=0.05)


def leaf(params):
    (value,) = leaves(params).values()
    return value


# ---- held-out data, early stopping, averages, accumulation --------------------------------------


def test_held_out_data_are_evaluated_at_every_multiple_and_at_the_end(b):
    fitted = fit(b, num_steps=20, validation=binary_data(20, 1), eval_every=6)
    assert fitted.history.validation_steps == [6, 12, 18, 20]
    assert len(fitted.history.validation["elbo"]) == 4


def test_the_held_out_metric_is_the_mean_over_all_held_out_data(b):
    """Copies of one datum, batches of 16 and a rest of 4: any weighting error would show."""
    held_out = np.concatenate([np.zeros((16, 4)), np.ones((4, 4))]).astype(np.float32)

    @pg.model
    def fixed():
        with pg.data_plate():
            p = pg.net("p", nets.Parameter(()))()
            pg.sample("x", dist.Normal(p * 0.0, 1.0).expand([4]).to_event(1))

    @fixed.with_guide
    def fixed():
        pass

    fitted = pg.fit(
        fixed,
        binary_data(),
        svi(),
        num_steps=2,
        batch_size=16,
        seed=0,
        validation=held_out,
        backend=b,
    )
    expected = -2 * np.log(2 * np.pi) - (4 / 20) * 2.0
    np.testing.assert_allclose(fitted.history.validation["elbo"][-1], expected, rtol=1e-5)


class Falls(pg.Callback):
    """Stops after three evaluations, whatever they say."""

    def __init__(self):
        self.seen = []

    def on_validation(self, progress, metrics):
        self.seen.append((progress.step, progress.params()))
        return len(self.seen) == 3


def test_a_callback_sees_copies_and_may_stop_the_fit(b):
    callback = Falls()
    fitted = fit(b, num_steps=50, validation=binary_data(8), eval_every=4, callbacks=[callback])
    assert fitted.info["num_steps"] == 12 and "stopped" in fitted.history.events[-1]
    assert [s for s, _ in callback.seen] == [4, 8, 12]
    assert not are_same_bits(callback.seen[0][1], callback.seen[1][1])
    assert_same_bits(callback.seen[2][1], fitted.params)


def test_early_stopping_counts_evaluations_without_improvement(b):
    stop = pg.EarlyStopping("elbo", patience=2, min_delta=100.0)
    fitted = fit(b, num_steps=50, validation=binary_data(8), eval_every=5, callbacks=[stop])
    assert fitted.info["num_steps"] == 15  # the first sets the mark, two more do not pass it


def test_the_average_of_the_parameters_is_the_recursion_over_their_path(b):
    decay, path = 0.7, []
    for steps in range(1, 6):
        path.append(fit(b, num_steps=steps).params)
    model_start = pg.fit(
        coins, binary_data(), svi(1e-30), num_steps=1, batch_size=16, seed=0, backend=b
    ).params
    averaged = fit(b, num_steps=5, ema_decay=decay)
    expected = leaves(model_start)
    for params in path:
        expected = {k: decay * expected[k] + (1 - decay) * v for k, v in leaves(params).items()}
    for name, value in leaves(averaged.params).items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-5, atol=1e-6, err_msg=name)


def test_accumulated_parts_give_the_gradient_of_the_whole_batch(b):
    """A loss without noise: the two runs differ by rounding only."""

    @pg.model
    def normal():
        loc = pg.net("loc", nets.Parameter((4,)))()
        with pg.data_plate():
            pg.sample("x", dist.Normal(loc, 1.0).to_event(1))

    @normal.with_guide
    def normal():
        pass

    options = dict(num_steps=20, batch_size=32, seed=0, backend=b)
    whole = pg.fit(normal, binary_data(), svi(), **options)
    parts = pg.fit(normal, binary_data(), svi(), gradient_accumulation=4, **options)
    np.testing.assert_allclose(leaf(whole.params), leaf(parts.params), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(whole.history["elbo"], parts.history["elbo"], rtol=1e-5)


def test_a_fitted_is_where_the_next_fit_starts(b):
    one = fit(b)
    before = {k: np.array(v) for k, v in leaves(one.params).items()}
    two = pg.fit(one, binary_data(), svi(1e-30), num_steps=2, batch_size=16, seed=5, backend=b)
    assert_same_bits(one.params, two.params)
    pg.fit(one, binary_data(), svi(), num_steps=2, batch_size=16, seed=5, backend=b)
    assert_same_bits(before, leaves(one.params))  # nothing shared


# ---- what is shown and recorded ----


def test_the_progress_bar_is_silent_where_there_is_no_terminal(b, capsys):
    fit(b, progress_bar=True)
    caught = capsys.readouterr()
    assert caught.out == "" and caught.err == ""


def test_the_progress_bar_shows_on_a_terminal(b, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    fit(b)
    assert "12/12" in screen.getvalue() and "elbo" in screen.getvalue()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's own imports
def test_tensorboard_reads_back_what_the_history_holds(b, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = pg.TensorBoard(tmp_path / "events", every=3)
    fitted = fit(b, callbacks=[board], validation=binary_data(8), eval_every=6)
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    train = events.Scalars("train/elbo")
    assert [e.step for e in train] == [3, 6, 9, 12]
    np.testing.assert_allclose(
        [e.value for e in train], fitted.history["elbo"][[2, 5, 8, 11]], rtol=1e-6
    )
    assert [e.step for e in events.Scalars("validation/elbo")] == [6, 12]


def test_what_ran_is_recorded(b, backend_name):
    fitted = fit(b)
    assert fitted.info["backend"] == backend_name and fitted.info["device"] == "cpu"
    assert fitted.info["num_steps"] == 12 and fitted.info["num_data"] == 64
    assert fitted.shapes == {"x": (4,)} and fitted.dtypes == {"x": "float32"}


@pytest.mark.parametrize("every", [1, 14, 97, 150, 420, 10_000])
@pytest.mark.parametrize("limit", [None, 1, 10, 1000])
def test_chunks_respect_their_limits(every, limit):
    length = chunk_length(every, limit)
    assert 1 <= length <= min(200, every, limit or every)
    if limit is None and every <= 200:
        assert length == every


# ---- options that contradict ----


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"seed": None}, MissingSeed, "got no seed, expected an integer"),
        ({"seed": "a"}, MissingSeed, "seed='a'"),
        ({"seed": -1}, MissingSeed, "seed=-1"),
        ({"num_epochs": 1}, AlgorithmError, "expected one of them"),
        ({"num_steps": None}, AlgorithmError, "expected one of them"),
        ({"num_steps": 0}, DeclarationError, "num_steps=0, expected a whole number"),
        ({"num_steps": 1.5}, DeclarationError, "num_steps=1.5, expected a whole number"),
        ({"num_steps": True}, DeclarationError, "num_steps=True"),
        ({"num_steps": None, "num_epochs": 1.5}, DeclarationError, "num_epochs=1.5"),
        ({"batch_size": 2.5}, DeclarationError, "batch_size=2.5"),
        ({"batch_size": True}, DeclarationError, "batch_size=True"),
        ({"eval_every": 2.5}, DeclarationError, "eval_every=2.5"),
        ({"gradient_accumulation": 3}, AlgorithmError, "a positive divisor"),
        ({"ema_decay": 1.0}, DeclarationError, "ema_decay=1.0"),
        ({"eval_every": 0}, DeclarationError, "eval_every=0"),
        ({"batch_size": "all"}, DeclarationError, "'auto', or None"),
        ({"batch_size": 65}, DataError, "expected 1 to 64"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_words(b, options, error, words):
    with pytest.raises(error, match=words.replace("(", r"\(")):
        fit(b, **options)


def test_a_stream_has_no_epochs_and_an_iterator_cannot_be_resumed(b, tmp_path):
    with pytest.raises(AlgorithmError, match="give num_steps"):
        pg.fit(coins, batches(), svi(), num_epochs=1, seed=0, backend=b)
    options = dict(seed=0, backend=b, checkpoint=tmp_path)
    pg.fit(coins, batches(), svi(), num_steps=4, **options)
    with pytest.raises(DataError, match="pass a callable"):
        pg.fit(coins, batches(), svi(), num_steps=8, **options)
    resumed = pg.fit(coins, batches, svi(), num_steps=8, **options)
    whole = pg.fit(coins, batches, svi(), num_steps=8, seed=0, backend=b)
    assert_same_bits(resumed.params, whole.params)


def test_a_model_without_a_guide_is_refused_by_svi(b):
    generator = Generator(
        latent=dist.Normal(0, 1).expand([2]).to_event(1), decoder=nets.MLP(hidden=(4,), out=(4,)),
        likelihood=dist.Bernoulli,
    )  # fmt: skip
    with pytest.raises(AlgorithmError, match="no guide"):
        pg.fit(generator, binary_data(), svi(), num_steps=2, seed=0, backend=b)


# ---- history ----


@pytest.mark.parametrize("cuts", [[230], [100, 100, 30], [7, 93, 1, 129], [1] * 230])
def test_vectors_have_a_row_for_a_hundred_steps_however_they_came(cuts):
    rows = np.random.default_rng(0).normal(size=(230, 3)).astype(np.float32)
    history, start = History(), 0
    for i, count in enumerate(cuts):
        history.extend({"v": rows[start : start + count], "s": rows[start : start + count, 0]})
        start += count
        if i == 1:
            history = History.from_arrays(history.to_arrays(), history.events)
    expected = [rows[:100].mean(0), rows[100:200].mean(0), rows[200:].mean(0)]
    np.testing.assert_array_equal(history["v"], expected)
    np.testing.assert_array_equal(history["s"], rows[:, 0])
    assert history.num_steps == 230 and list(history) == ["s", "v"]
    np.testing.assert_allclose(history.last("s", 30), rows[-30:, 0].mean(), rtol=1e-6)


def test_a_metric_that_is_not_there_is_named_with_those_that_are():
    history = History()
    history.extend({"elbo": np.zeros(2)})
    with pytest.raises(UnknownName, match=r"no metric 'ELBO', expected one of \['elbo'\]; did you"):
        history["ELBO"]


class ReportsRows:
    """An algorithm whose report is the number of rows that it was given."""

    def __init__(self, inner):
        self.inner = inner

    def bind(self, bound):
        learner = self.inner.bind(bound)
        return learner._replace(report=lambda params, batch, key, history: len(batch["x"]))


@pytest.mark.parametrize(
    "size, batch_size, rows", [(3000, None, 1000), (3000, 64, 1000), (40, 8, 40)]
)
def test_a_report_reads_at_most_a_thousand_data_whatever_the_batch(b, size, batch_size, rows):
    """Reports compare each datum with each other: 100,000 rows in one batch never returned."""
    data = np.resize(binary_data(), (size, 4)).astype("f")
    algorithm = ReportsRows(svi())
    found = fit(b, data, batch_size=batch_size, num_steps=1, algorithm=algorithm).report
    assert found == rows
    stream = iter([data] * 3)
    streamed = fit(b, lambda: stream, batch_size="auto", num_steps=1, algorithm=algorithm).report
    assert streamed == min(size, 1000)
