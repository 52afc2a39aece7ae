"""Sources give the fit driver every datum once per epoch, in an order that a resumed run
finds again.

Laws of the order, then one law per kind of data (arrays, map-style sets, Hugging Face tables,
streams), then what is refused at the door and in which words.
"""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probgen import data
from probgen.data import ArraySource, LazySource, Source, StreamSource, as_arrays, as_source
from probgen.errors import DataError

SIZES = dict(size=st.integers(1, 60), batch_size=st.integers(1, 20), seed=st.integers(0, 2**64 - 1))


def numbered(size: int, batch_size: int | None = 4, seed: int = 0) -> ArraySource:
    """Datum i is the number i."""
    return as_source(np.arange(size), batch_size=batch_size, seed=seed)


class Items:
    """A map-style data set, as torch's are: no framework in sight."""

    def __init__(self, items: list) -> None:
        self.items, self.read = items, 0

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        self.read += 1
        return self.items[index]


# The order


@given(**SIZES)
def test_each_epoch_visits_each_datum_once(size, batch_size, seed):
    batch_size = min(batch_size, size)
    source = numbered(size, batch_size, seed)
    for epoch in range(3):
        np.testing.assert_array_equal(np.sort(source.permutation(epoch)), np.arange(size))
        first = epoch * source.steps_per_epoch
        seen = source.schedule(first, source.steps_per_epoch).ravel()
        assert len(set(seen)) == len(seen) == size // batch_size * batch_size


@given(step=st.integers(0, 500), **SIZES)
def test_the_order_is_a_pure_function_of_seed_and_step(step, size, batch_size, seed):
    batch_size = min(batch_size, size)
    used = numbered(size, batch_size, seed)
    for other in (step + 3, 0, step // 2):
        used.indices(other)  # what was asked before leaves no trace
    fresh = numbered(size, batch_size, seed)
    np.testing.assert_array_equal(used.indices(step), fresh.indices(step))
    assert fresh.indices(step).dtype == np.int64 and fresh.indices(step).shape == (batch_size,)


def test_the_order_is_the_same_for_ever():
    """Pinned, so that a run saved today resumes with the data that it would have seen."""
    source = numbered(10, 10, seed=7)
    assert source.indices(0).tolist() == [8, 4, 1, 6, 3, 2, 7, 5, 9, 0]
    assert source.indices(1).tolist() == [3, 9, 1, 6, 2, 5, 4, 8, 0, 7]


def test_every_permutation_is_as_likely_as_any_other():
    orders = [
        tuple(numbered(4, 4, seed).indices(epoch)) for seed in range(600) for epoch in range(20)
    ]
    counts = np.array([orders.count(each) for each in itertools.permutations(range(4))])
    assert counts.sum() == 12_000
    assert ((counts - 500) ** 2 / 500).sum() < 23 + 5 * np.sqrt(46)


def test_what_one_epoch_leaves_out_another_uses():
    source = numbered(10, 4)
    assert source.steps_per_epoch == 2
    assert set(source.schedule(0, 40).ravel()) == set(range(10))


def test_the_callers_randomness_is_left_alone():
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    numbered(50).schedule(0, 30)
    np.testing.assert_array_equal(before, np.random.get_state()[1])


def test_indices_may_be_written_to_without_harm():
    source = numbered(8)
    source.indices(0)[:] = 0
    np.testing.assert_array_equal(source.indices(0), numbered(8).indices(0))


# Arrays


def test_an_array_is_x_and_a_dict_keeps_its_names():
    x, y = np.random.default_rng(0).normal(size=(10, 3)), np.arange(10)
    source = as_source(x, batch_size=4, seed=0)
    assert isinstance(source, ArraySource) and list(source.arrays) == ["x"] and source.size == 10
    both = as_source({"x": x, "y": y}, batch_size=4, seed=0)
    at = both.indices(5)
    np.testing.assert_array_equal(both.take(at)["y"], at)
    np.testing.assert_array_equal(both.take(at)["x"], x[at].astype(np.float32))
    assert list(as_source({"x": x, "y": y}, batch_size=4, seed=0, names=("y",)).arrays) == ["y"]
    assert as_source(x, batch_size=None, seed=0).batch_size == 10


@pytest.mark.parametrize(
    ("given_", "kept"),
    [("f8", "f4"), ("f4", "f4"), ("f2", "f4"), ("i8", "i8"), ("u1", "u1"), ("?", "?")],
)
def test_floats_become_float32_and_the_rest_stays(given_, kept):
    source = as_source(np.ones((3, 2), given_), batch_size=1, seed=0)
    assert source.arrays["x"].dtype == np.dtype(kept)
    double = as_source(np.ones((3, 2), given_), batch_size=1, seed=0, dtype=np.float64)
    assert double.arrays["x"].dtype == np.dtype("f8" if kept == "f4" else kept)


def test_images_and_shapes_name_their_parts():
    digits, shapes = data.digits(), data.shapes(8, 16, 0)
    assert list(as_source(digits, batch_size=4, seed=0).arrays) == ["x"]
    both = as_source(digits, batch_size=4, seed=0, names=("x", "y")).arrays
    np.testing.assert_array_equal(both["y"], digits.labels)
    assert list(as_source(shapes, batch_size=4, seed=0, names=("x", "color")).arrays) == [
        "x",
        "color",
    ]
    with pytest.raises(DataError, match="'y'"):
        as_source(data.noise(4, (2, 2, 1), 0), batch_size=2, seed=0, names=("x", "y"))


def test_memory_mapped_data_are_not_read_into_memory(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((64, 128, 1024), np.float32))  # 32 MiB
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    source = as_source(mapped, batch_size=2, seed=0)
    assert np.shares_memory(source.arrays["x"], mapped)


def test_tensors_of_either_framework_are_read(backend_name):
    if backend_name == "torch":
        import torch

        made = torch.arange(12.0).reshape(6, 2).requires_grad_()
        half = torch.ones(3, 2, dtype=torch.bfloat16)
    else:
        import jax.numpy as jnp

        made, half = jnp.arange(12.0).reshape(6, 2), jnp.ones((3, 2), jnp.bfloat16)
    np.testing.assert_array_equal(as_arrays(made)["x"], np.arange(12.0).reshape(6, 2))
    assert as_arrays(half)["x"].dtype == np.float32


def test_a_source_is_handed_back_as_it_is():
    source = numbered(8)
    assert as_source(source, batch_size=2, seed=1) is source
    assert isinstance(source, Source)


# Map-style data sets


def test_a_map_style_set_equals_the_arrays_that_it_stands_for():
    x, y = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20)
    whole = as_source({"x": x, "y": y}, batch_size=6, seed=5)
    pairs = [(x[i], int(y[i])) for i in range(20)]
    kinds = [Items(pairs), pairs, Items([{"x": a, "y": b} for a, b in pairs])]
    for kind in kinds:
        source = as_source(kind, batch_size=6, seed=5, names=("x", "y"))
        assert isinstance(source, LazySource) and isinstance(source, Source)
        for step in (0, 1, 7):
            np.testing.assert_array_equal(source.indices(step), whole.indices(step))
            lazy, direct = source.take(source.indices(step)), whole.take(whole.indices(step))
            for name in ("x", "y"):
                np.testing.assert_array_equal(lazy[name], direct[name])
                assert lazy[name].dtype == direct[name].dtype


def test_a_map_style_set_is_read_lazily_and_only_its_first_entry_by_default():
    items = Items([(np.ones(2), 3)] * 1000)
    source = as_source(items, batch_size=10, seed=0)
    assert items.read <= 2 and list(source.take(source.indices(0))) == ["x"]
    assert items.read <= 12


def test_nested_lists_of_numbers_are_arrays_not_entries():
    images = [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]
    assert as_arrays(images)["x"].shape == (2, 2, 2)
    assert as_arrays([1.5, 2.5, 3.5])["x"].shape == (3,)


def test_a_torch_data_set_and_loader():
    torch = pytest.importorskip("torch")
    from torch.utils.data import DataLoader, IterableDataset, TensorDataset

    x, y = torch.arange(20.0).reshape(10, 2), torch.arange(10)
    source = as_source(TensorDataset(x, y), batch_size=4, seed=0, names=("x", "y"))
    batch = source.take(np.array([3, 1]))
    np.testing.assert_array_equal(batch["x"], x[[3, 1]].numpy())
    np.testing.assert_array_equal(batch["y"], [3, 1])
    loader = as_source(DataLoader(TensorDataset(x, y), batch_size=4), batch_size=4, seed=0)
    assert isinstance(loader, StreamSource)
    assert [b["x"][0, 0] for b in loader.batches(0)] == [0.0, 8.0]
    assert [b["x"][0, 0] for b in loader.batches(1)] == [8.0]

    class Endless(IterableDataset):
        def __len__(self):
            return 10**9

        def __iter__(self):
            return ({"x": torch.full((2,), float(k))} for k in itertools.count())

    single = as_source(Endless(), batch_size=3, seed=0, batched=False)
    assert isinstance(single, StreamSource) and single.example()["x"].shape == (3, 2)


def test_a_hugging_face_table():
    datasets = pytest.importorskip("datasets")
    columns = {"x": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], "y": [7, 8, 9], "text": ["a", "b", "c"]}
    table = datasets.Dataset.from_dict(columns)
    source = as_source(table, batch_size=2, seed=0, names=("x", "y"))
    assert isinstance(source, LazySource) and source.size == 3
    batch = source.take(np.array([2, 0]))
    np.testing.assert_array_equal(batch["x"], [[5, 6], [1, 2]])
    np.testing.assert_array_equal(batch["y"], [9, 7])
    assert batch["x"].dtype == np.float32 and batch["y"].dtype == np.int64
    with pytest.raises(DataError, match="names="):
        as_source(table, batch_size=2, seed=0)
    with pytest.raises(DataError, match="'z'"):
        as_source(table, batch_size=2, seed=0, names=("z",))
    with pytest.raises(DataError, match=r"data\[split\]"):
        as_source(datasets.DatasetDict(train=table), batch_size=2, seed=0)
    stream = as_source(table.to_iterable_dataset(), batch_size=2, seed=0, names=("x",))
    assert isinstance(stream, StreamSource)
    np.testing.assert_array_equal(stream.example()["x"], [[1, 2], [3, 4]])


# Streams


def batches(count: int, size: int = 3):
    return (np.full((size, 2), float(k)) for k in range(count))


def firsts(stream, **options) -> list[float]:
    return [batch["x"][0, 0] for batch in stream.batches(**options)]


@given(start=st.integers(0, 7))
def test_a_resumed_stream_goes_on_where_it_was(start):
    for again in (lambda: batches(7), lambda: list(batches(7)), Reiterable(7)):
        stream = as_source(again, batch_size=None, seed=0)
        assert isinstance(stream, StreamSource) and isinstance(stream, Source)
        assert stream.size is None and stream.batch_size == 3
        assert firsts(stream, start_step=start) == list(range(start, 7))
        assert firsts(stream) == list(range(7))


class Reiterable:
    def __init__(self, count: int) -> None:
        self.count, self.started = count, 0

    def __iter__(self):
        self.started += 1
        return batches(self.count)


def test_a_repeated_stream_counts_on_and_resumes_in_a_later_pass():
    stream = as_source(Reiterable(3), batch_size=3, seed=0)
    whole = list(itertools.islice((b["x"][0, 0] for b in stream.batches(repeat=True)), 8))
    assert whole == [0, 1, 2, 0, 1, 2, 0, 1]
    later = stream.batches(5, repeat=True)
    assert [next(later)["x"][0, 0] for _ in range(3)] == whole[5:]


def test_the_first_pass_starts_the_loader_once_and_loses_nothing():
    loader = Reiterable(3)
    stream = as_source(loader, batch_size=3, seed=0)
    assert stream.example()["x"][0, 0] == 0 and firsts(stream) == [0, 1, 2] and loader.started == 1
    iterator = as_source(batches(3), batch_size=None, seed=0)
    assert iterator.example()["x"][0, 0] == 0 and firsts(iterator) == [0, 1, 2]


def test_an_iterator_cannot_be_resumed_or_used_twice():
    stream = as_source(batches(4), batch_size=None, seed=0)
    with pytest.raises(DataError, match=r"step 2.*callable that returns a fresh iterator"):
        stream.batches(2)
    assert firsts(stream) == [0, 1, 2, 3]
    with pytest.raises(DataError, match="second pass"):
        stream.batches(0)


def test_single_data_are_gathered_into_batches():
    def items():
        return ({"x": np.full(2, float(k)), "y": k} for k in range(11))

    stream = as_source(items, batch_size=4, seed=0, batched=False)
    got = list(stream.batches())
    assert [batch["y"].tolist() for batch in got] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert got[0]["x"].shape == (4, 2) and got[0]["x"].dtype == np.float32


def test_a_short_last_batch_is_dropped_and_a_short_middle_one_refused():
    def stream(*sizes):
        return as_source(lambda: (np.ones((k, 2)) for k in sizes), batch_size=None, seed=0)

    assert len(list(stream(4, 4, 1).batches())) == 2
    with pytest.raises(DataError, match="batch 1 has 2 data and is not the last"):
        list(stream(4, 2, 4).batches())
    with pytest.raises(DataError, match="batch 2 has 5 data"):
        list(stream(4, 4, 5).batches())


def test_a_stream_larger_than_memory_takes_the_memory_of_a_batch():
    def large():
        return (np.zeros((64, 4096), np.float32) for _ in range(200))  # 1 MiB each

    tracemalloc.start()
    try:
        assert sum(len(b["x"]) for b in as_source(large, batch_size=64, seed=0).batches(50)) == 9600
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("third", "words"),
    [
        (np.ones((3, 5)), "batch 2 has 3 data"),
        (np.ones((3, 2), int), "batch 2 has 3 data"),
        (np.array([[1, 2], [np.nan, 1], [0, 0]]), r"batch 2\['x'\].*1 values.*\(1, 0\)"),
        (np.array([["a", "b"]] * 3), "batch 2.*names="),
        ({"y": np.ones((3, 2))}, "batch 2 has"),
    ],
)
def test_every_batch_of_a_stream_is_checked_as_it_comes(third, words):
    good = np.ones((3, 2))
    stream = as_source(lambda: iter([good, good, third, good]), batch_size=None, seed=0)
    with pytest.raises(DataError, match=words):
        list(stream.batches())


def test_a_stream_that_ends_too_soon_says_so():
    again = as_source(lambda: batches(3), batch_size=None, seed=0)
    with pytest.raises(DataError, match="has 3 batches, expected at least 5"):
        list(again.batches(5))
    used = batches(3)
    same = as_source(lambda: used, batch_size=None, seed=0)
    list(same.batches())
    with pytest.raises(DataError, match="same, used iterator"):
        list(same.batches())


# At the door


def spoiled(value: float) -> np.ndarray:
    x = np.zeros((5, 2))
    x[3, 1] = x[4, 0] = value
    return x


@pytest.mark.parametrize(
    ("given_", "options", "words"),
    [
        (np.zeros((0, 3)), {}, r"shape \(0, 3\)"),
        (np.float64(3.0), {}, "no datum axis"),
        ([], {}, "empty"),
        (Items([]), {}, "empty"),
        ({}, {}, "at least one array"),
        (iter([]), {"batch_size": None}, "before its first batch"),
        (iter([1.0, 2.0]), {"batch_size": 4, "batched": False}, r"\(4 data\)"),
        (np.zeros((3, 2)), {"batch_size": 4}, "batch_size=4 for 3 data"),
        (np.zeros((3, 2)), {"batch_size": 0}, "batch_size=0"),
        (np.zeros((3, 2)), {"seed": -1}, "seed=-1"),
        (spoiled(np.nan), {}, r"data\['x'\].*2 values.*\(3, 1\)"),
        (spoiled(np.inf), {}, r"2 values.*\(3, 1\)"),
        (spoiled(1e300), {}, "after float64 became float32"),
        ({"x": np.zeros(3), "y": spoiled(np.nan)}, {}, r"data\['y'\]"),
        (np.array([None, 1], dtype=object), {}, "dtype object"),
        (np.array(["a", "b"]), {}, "dtype <U1"),
        (np.zeros(3, complex), {}, "complex"),
        ({"x": np.zeros(3), "y": np.zeros(4)}, {}, "'x': 3, 'y': 4"),
        ({"x": np.zeros(3)}, {"names": ("x", "z")}, "'z'"),
        ({1: np.zeros(3)}, {}, "keys"),
        ((np.zeros(3), np.zeros(3)), {}, "{'x': images, 'y': labels}"),
        ("mnist.npz", {}, "load_npz"),
        (None, {}, "NoneType"),
        (7, {}, "int"),
        (np.zeros(3), {"names": "x"}, r"\('x',\)"),
        (np.zeros(3), {"names": ("x", "y")}, "2"),
        (Items([np.zeros(2), np.zeros(3)]), {"batch_size": 2}, "datum 1.*shape|datum 0.*shape"),
        (Items([np.zeros(2), np.full(2, np.nan)]), {"batch_size": 2}, "2 values"),
        (Items([{"x": 1}, {"y": 1}]), {"batch_size": 2}, "datum"),
        (Items([1, 2.5]), {"names": ("x", "y")}, "1 entries"),
        (lambda: 3, {"batch_size": None}, "callable returned int"),
        (lambda: iter([np.zeros((3, 2))]), {"batch_size": 4}, "batches of 3"),
        (iter([1.0]), {"batch_size": None, "batched": False}, "pass batch_size"),
    ],
)
def test_data_that_cannot_be_used_are_refused_in_words(given_, options, words):
    settings = {"batch_size": 1, "seed": 0} | options
    with pytest.raises(DataError, match=words):
        as_source(given_, **settings).example()


def test_as_arrays_refuses_a_stream():
    with pytest.raises(DataError, match="got a stream"):
        as_arrays(batches(3))


def test_the_first_value_that_is_not_finite_is_found_in_large_data(monkeypatch):
    monkeypatch.setattr("probgen.data.checks._CHUNK", 10)
    x = np.zeros((100, 2))
    x[57, 1] = x[99, 0] = np.nan
    with pytest.raises(DataError, match=r"2 values.*\(57, 1\)"):
        as_source(x, batch_size=1, seed=0)
