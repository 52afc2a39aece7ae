"""The engine of `evaluate`: noise by datum, chunks that resume, and the table that comes of them.

The measures here are made for the purpose: they count what they are asked for, and what they draw
is known, so each law is an equality.
"""

import dataclasses

import numpy as np
import pytest

import probgen as pg
from probgen import dist, nets
from probgen.engine.fitted import Fitted
from probgen.errors import (
    AlgorithmError,
    DataError,
    DeclarationError,
    NonFiniteError,
    ProbgenError,
    SaveError,
)
from probgen.inference import ELBO, IWAE
from probgen.models import VAE, likelihoods

X = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)


def vae(weight=1.0, scale=0.5):
    model = VAE(
        latent=dist.Normal(0, 1).expand([1]).to_event(1),
        decoder=nets.MLP(hidden=(), out=(3,)),
        likelihood=likelihoods.Normal(scale=scale),
        encoder=nets.MLP(hidden=(), out=1, heads=("loc", "log_scale")),
    )
    rng = np.random.default_rng(0)
    params = {"decoder": model.decoder.init(rng, (1,)), "encoder": model.encoder.init(rng, (3,))}
    params["decoder"]["out"]["bias"] += np.float32(weight)
    return Fitted(model, params, shapes={"x": (3,)})


@dataclasses.dataclass(frozen=True)
class Noisy:
    """x_0 plus a draw, with a diagnostic of two numbers a datum."""

    label: str = "noisy"

    unit = "nats"
    larger_is_stranger = True

    @property
    def name(self):
        return self.label

    def bind_measure(self, context):
        b = context.backend

        def measure(params, batch, key):
            first, second = b.split(key, 2)
            eps = b.normal(first, (batch["x"].shape[0], 2))
            more = b.uniform(second, (batch["x"].shape[0],))
            return {"estimate": batch["x"][:, 0] + eps[:, 0] + more, "standard_error": more,
                    "pair": eps}  # fmt: skip

        return context.device(measure, self.name)


class Host:
    """A measure on the host that keeps what it saw; `stop_at` raises there, as a kill would."""

    unit, larger_is_stranger = "bits", False

    def __init__(self, name="host", stop_at=None, answer=lambda rows: rows["x"].sum(1)):
        self.name, self.stop_at, self.answer, self.seen = name, stop_at, answer, []

    def __identity__(self):
        return self.name

    def bind_measure(self, context):
        def run(rows, ids):
            if self.stop_at is not None and ids[0] >= self.stop_at:
                raise KeyboardInterrupt
            self.seen.append(ids.copy())
            return {"estimate": self.answer(rows)}

        return run


def evaluate(b, measures, data=X, *, fitted=None, **options):
    options = {"seed": 0, "chunk_size": 4, "progress_bar": False, **options}
    return pg.evaluate(fitted or vae(), data, measures, backend=b, **options)


def values(table, name):
    return {q: v.values for q, v in table[name].data_vars.items()}


def same(one, other):
    assert one.keys() == other.keys()
    for quantity in one:
        np.testing.assert_array_equal(one[quantity], other[quantity], err_msg=quantity)


# ---- noise by datum -----------------------------------------------------------------------------


def test_no_cut_into_chunks_changes_a_draw(b):
    """To the bit for a measure of draws; to rounding for IWAE. The last chunk is filled up."""
    whole = evaluate(b, [Noisy(), IWAE(8)], chunk_size=11)
    assert values(whole, "noisy")["pair"].shape == (11, 2)
    for size in (1, 4, 100):
        parts = evaluate(b, [Noisy(), IWAE(8)], chunk_size=size)
        same(values(parts, "noisy"), values(whole, "noisy"))
        for quantity, v in values(parts, "IWAE(8)").items():
            other = values(whole, "IWAE(8)")[quantity]
            np.testing.assert_allclose(v, other, rtol=2e-5, atol=2e-5, err_msg=quantity)


def test_another_measure_changes_no_number(b):
    """Before it or after it; and two measures of other names draw other noise."""
    alone = evaluate(b, [Noisy()])
    others = evaluate(b, [IWAE(4), Noisy("more"), Noisy()])
    same(values(alone, "noisy"), values(others, "noisy"))
    assert others.names == ["IWAE(4)", "more", "noisy"]
    assert (values(others, "more")["pair"] != values(others, "noisy")["pair"]).all()


def test_the_seed_and_the_place_choose_the_noise(b):
    """Fewer data are the same data; another seed is another draw; the same seed the same."""
    table = evaluate(b, [Noisy()])
    same(values(evaluate(b, [Noisy()]), "noisy"), values(table, "noisy"))
    some = values(evaluate(b, [Noisy()], X[:6]), "noisy")
    same(some, {q: v[:6] for q, v in values(table, "noisy").items()})
    other = values(evaluate(b, [Noisy()], seed=1), "noisy")
    assert (other["pair"] != values(table, "noisy")["pair"]).all()


def test_draws_of_different_data_differ(b):
    pair = values(evaluate(b, [Noisy()], np.repeat(X[:1], 11, 0)), "noisy")["pair"]
    assert len(np.unique(pair.ravel())) == 22


# ---- chunks that resume -------------------------------------------------------------------------


def test_a_killed_evaluation_goes_on_where_it_was(b, tmp_path):
    """Killed in the third of three chunks: only that one is computed by the next call, and the
    table is that of an evaluation that was not killed. Then the chunks are gone."""
    place = tmp_path / "table"
    killed, whole = Host(stop_at=8), evaluate(b, [Noisy(), Host()])
    with pytest.raises(KeyboardInterrupt):
        evaluate(b, [Noisy(), killed], path=place)
    assert [list(ids) for ids in killed.seen] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert not place.exists()
    again = Host()
    table = evaluate(b, [Noisy(), again], path=place)
    assert [list(ids) for ids in again.seen] == [[8, 9, 10]]
    for name in whole:
        same(values(table, name), values(whole, name))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["table"]
    read = pg.Evaluation.load(place)
    for name in whole:
        same(values(read, name), values(whole, name))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"seed": 1}, "seed"),
        ({"chunk_size": 2}, "chunk_size"),
        ({"data": X + 1}, "data"),
        ({"fitted": vae(2.0)}, "parameters"),
        ({"fitted": vae(scale=0.6)}, "model"),
        ({"measures": [Noisy("other"), Host()]}, "measures"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_chunks_of_another_evaluation_are_refused(b, tmp_path, change, what):
    """By name of what differs, and nothing is lost: the first evaluation can still go on."""
    place = tmp_path / "table"
    with pytest.raises(KeyboardInterrupt):
        evaluate(b, [Noisy(), Host(stop_at=4)], path=place)
    options = {"measures": [Noisy(), Host()], **change}
    with pytest.raises(SaveError, match=f"another {what}.*give the same arguments"):
        evaluate(b, options.pop("measures"), path=place, **options)
    last = Host()
    evaluate(b, [Noisy(), last], path=place)
    assert len(last.seen) == 2


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"seed": 1}, "seed .0, expected 1"),
        ({"data": X + 1}, "data; give"),
        ({"fitted": vae(2.0)}, "parameters; give"),
        ({"measures": [Host("other")]}, "measures .noisy .*host .*, expected other"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_finished_table_is_returned_or_left_alone(b, tmp_path, change, what):
    """The same call reads it, in chunks of any size; another call does not overwrite it."""
    place, again = tmp_path / "table", Host()
    first = evaluate(b, [Noisy(), Host()], path=place)
    same_call = evaluate(b, [Noisy(), again], path=place, chunk_size=5)
    assert not again.seen
    for name in first:
        same(values(same_call, name), values(first, name))
    options = {"measures": [Noisy(), Host()], **change}
    with pytest.raises(SaveError, match=f"another {what}"):
        evaluate(b, options.pop("measures"), path=place, **options)
    same(values(pg.Evaluation.load(place), "noisy"), values(first, "noisy"))


def test_a_place_that_is_taken_is_refused_before_anything_is_computed(b, tmp_path):
    (tmp_path / "mine.txt").write_text("")
    measure = Host()
    with pytest.raises(SaveError, match="something else"):
        evaluate(b, [measure], path=tmp_path)
    vae().save_pretrained(tmp_path / "run")
    with pytest.raises(SaveError, match="holds a fitted model"):
        evaluate(b, [measure], path=tmp_path / "run")
    assert not measure.seen and sorted(p.name for p in tmp_path.iterdir()) == ["mine.txt", "run"]


def test_data_that_give_a_latent_too_are_said_so(b):
    """log p(x, z) is not log p(x): samples of the model, given whole, are of both."""
    table = evaluate(b, [ELBO()], {"x": X, "z": X[:, :1]})
    assert "'z', which the fit did not observe" in table.warnings["ELBO(1)"][0]
    assert not evaluate(b, [ELBO()]).warnings["ELBO(1)"]


def test_chunks_of_other_inputs_are_refused(b, tmp_path):
    """An input shared by all data is part of what a chunk was made of."""

    @pg.model
    def shifted(shift):
        with pg.data_plate():
            z = pg.sample("z", dist.Normal(0, 1).expand([3]).to_event(1))
            pg.sample("x", dist.Normal(z + shift, 1.0).to_event(1))

    fitted, shift = Fitted(shifted, {}, shapes={"x": (3,)}), np.ones(3, np.float32)
    options = {"fitted": fitted, "path": tmp_path / "table"}
    with pytest.raises(KeyboardInterrupt):
        evaluate(b, [Host(stop_at=4)], inputs={"shift": shift}, **options)
    with pytest.raises(SaveError, match="another inputs"):
        evaluate(b, [Host()], inputs={"shift": 2 * shift}, **options)
    last = Host()
    evaluate(b, [last], inputs={"shift": shift}, **options)
    assert len(last.seen) == 2


def test_a_damaged_chunk_is_refused(b, tmp_path):
    place = tmp_path / "table"
    with pytest.raises(KeyboardInterrupt):
        evaluate(b, [Host(stop_at=4)], path=place)
    (file,) = (tmp_path / "table.chunks").glob("*/values.safetensors")
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(SaveError, match="truncated or damaged"):
        evaluate(b, [Host()], path=place)


def test_a_finished_table_can_be_made_again_and_others_files_are_left_alone(b, tmp_path):
    place = tmp_path / "table"
    first = evaluate(b, [Noisy()], path=place)
    same(values(evaluate(b, [Noisy()], path=place), "noisy"), values(first, "noisy"))
    other = tmp_path / "mine"
    other.mkdir()
    (other / "notes.txt").write_text("keep me")
    with pytest.raises(SaveError, match="something else"):
        evaluate(b, [Noisy()], path=other)
    assert (other / "notes.txt").read_text() == "keep me"


# ---- data are read chunk by chunk ---------------------------------------------------------------


class Items:
    """A map-style data set that remembers which items were fetched since it was last asked."""

    def __init__(self):
        self.fetched, self.most, self.held = [], 0, 0

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        self.fetched.append(i)
        return X[i]


def test_a_map_style_data_set_is_fetched_chunk_by_chunk(b):
    """No more than a chunk ahead of what is measured, and each datum once for the measures."""
    items, ahead = Items(), []

    def answer(rows):
        ahead.append((max(items.fetched), len(rows["x"])))
        return rows["x"].sum(1)

    table = evaluate(b, [Host(answer=answer), Noisy()], items)
    assert ahead == [(3, 4), (7, 4), (10, 3)]
    counts = np.bincount(items.fetched, minlength=11)
    assert (counts[1:] == 1).all() and counts[0] <= 6  # the first tells form and type
    for name in table:
        same(values(table, name), values(evaluate(b, [Host(), Noisy()]), name))


def test_a_memory_mapped_array_is_read_chunk_by_chunk(b, tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    kinds = []

    def answer(rows):
        kinds.append((rows["x"].shape, isinstance(rows["x"].base, np.memmap | type(None))))
        return rows["x"].sum(1)

    table = evaluate(b, [Host(answer=answer), Noisy()], mapped)
    assert [shape for shape, _ in kinds] == [(4, 3), (4, 3), (3, 3)]
    same(values(table, "noisy"), values(evaluate(b, [Noisy()]), "noisy"))


# ---- what is refused ----------------------------------------------------------------------------


def test_nan_is_refused_with_the_number_of_the_datum(b):
    def spoilt(rows):
        return np.where(rows["x"] == X[6, 0], np.nan, rows["x"])[:, 0]

    with pytest.raises(NonFiniteError, match="host is NaN for 1 data, the first is datum 6"):
        evaluate(b, [Host(answer=spoilt)])


def test_minus_infinity_is_an_answer(b):
    """A datum outside the model's support has log p(x) = -inf; that is not NaN."""
    table = evaluate(b, [Host(answer=lambda rows: np.full(len(rows["x"]), -np.inf))])
    assert (table["host"]["estimate"].values == -np.inf).all()


def stream():
    yield X


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda b: evaluate(b, [Noisy(), Noisy()]), AlgorithmError, "two measures named 'noisy'"),
        (lambda b: evaluate(b, [IWAE(4), IWAE(4, 2)]), AlgorithmError, "two measures named"),
        (lambda b: evaluate(b, []), AlgorithmError, "expected a list such as"),
        (lambda b: evaluate(b, [3]), AlgorithmError, "got 3 among the measures"),
        (lambda b: evaluate(b, [Noisy("a/b")]), DataError, "without '/'"),
        (
            lambda b: evaluate(b, [Noisy()], chunk_size=0),
            DeclarationError,
            "chunk_size=.*whole number of at least 1",
        ),
        (
            lambda b: evaluate(b, [Noisy()], chunk_size=2.5),
            DeclarationError,
            "chunk_size=.*whole number of at least 1",
        ),
        (lambda b: evaluate(b, [Noisy()], stream), DataError, "stream.*collect it into arrays"),
        (lambda b: evaluate(b, [Noisy()], X[:0]), DataError, "expected"),
        (lambda b: evaluate(b, [Noisy()], X * np.nan), DataError, "NaN"),
        (lambda b: evaluate(b, [Noisy()], X[:, :2]), ProbgenError, "expected"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_words(b, call, error, text):
    with pytest.raises(error, match=text):
        call(b)


def test_a_name_that_would_be_two_is_refused_before_anything_is_computed(b, tmp_path):
    measure = Host("a/b")
    with pytest.raises(DataError, match="without '/'"):
        evaluate(b, [measure], path=tmp_path / "t")
    assert not measure.seen and not list(tmp_path.iterdir())


# ---- warnings -----------------------------------------------------------------------------------


def test_heavy_tails_are_said_in_the_printed_table(b):
    """A guide far too narrow: no interval holds, and the table says for how many data."""
    fitted = vae()
    fitted.params["encoder"]["out"]["bias"] = np.array([0.0, -4.0], np.float32)
    found = evaluate(b, [IWAE(200)], fitted=fitted)
    assert np.isnan(found["IWAE(200)"]["standard_error"]).all()
    assert found.mc_error("IWAE(200)") is None
    (text,) = found.warnings["IWAE(200)"]
    assert "for 11 of 11 data" in text and f"! {text}" in repr(found)
