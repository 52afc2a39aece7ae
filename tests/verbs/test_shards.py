"""Parts of an evaluation that are made apart, and the whole that is made of them."""

import itertools

import numpy as np
import pytest
from executor_cases import X, evaluate, same, vae
from test_evaluate_chunks import Host, Noisy

import probgen as pg
from probgen.errors import DeclarationError, OtherRun, ProbgenError
from probgen.inference import IWAE
from probgen.language.content import RowsMark

MEASURES = (IWAE(30), IWAE(4))


def part(b, folder, shard, measures=MEASURES, **options):
    place = folder / shard.replace("/", "-")
    evaluate(b, list(measures), shard=shard, path=place, **options)
    return place


def test_the_parts_make_the_table_of_one_call(b, tmp_path):
    """To the bit, with the intervals and warnings that only all data tell, in any order; and that
    call then finds it."""
    whole = evaluate(b, MEASURES, path=tmp_path / "whole")
    places = [part(b, tmp_path, f"{i}/3") for i in (2, 3, 1)]
    merged = pg.merge(places, path=tmp_path / "merged")
    same(merged, whole)
    assert merged.warnings == whole.warnings and merged.info == whole.info
    same(evaluate(b, MEASURES, path=tmp_path / "merged"), whole)
    same(pg.merge(places, path=tmp_path / "merged"), whole)
    assert [len(pg.Evaluation.load(p)["IWAE(4)"].datum) for p in places] == [4, 3, 4]
    first = pg.Evaluation.load(places[2])
    assert "part 1 of 3, data 0 to 3 of 11" in first.warnings["IWAE(4)"][0]


def test_a_part_goes_on_where_it_was_and_is_not_taken_for_another(b, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        part(b, tmp_path, "2/2", [Host(stop_at=8)])
    last = Host()
    part(b, tmp_path, "2/2", [last])
    assert [list(ids) for ids in last.seen] == [[8, 9], [10]]
    with pytest.raises(OtherRun, match="another shard"):
        evaluate(b, [Host()], shard="1/2", path=tmp_path / "2-2")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Parts of one evaluation, of others, and a whole table, by name."""
    b, folder = pg.backends.load("torch", "cpu", compile="graph"), tmp_path_factory.mktemp("p")

    def kept(name, shard, *measures, **options):
        return part(b, folder / name, shard, measures or [Noisy()], **options)

    return {
        "1": kept("a", "1/2"), "2": kept("a", "2/2"), "of 3": kept("b", "2/3"),
        "seed": kept("c", "2/2", seed=1), "model": kept("d", "2/2", fitted=vae(2.0)),
        "own": kept("e", "1/1", Noisy(), Host()), "fewer": kept("f", "2/2", data=X[:9]),
        "data": kept("g", "2/2", data=X + np.float32(np.arange(11)[:, None] > 5)),
        "cut": kept("h", "2/2", chunk_size=5), "more": kept("i", "2/2", Noisy(), Noisy("again")),
        "whole": evaluate(b, [Noisy()]),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["1", "2", "1"], "part 1 of 2 twice .*1-2 and .*1-2.*expected each once"),
        (["1"], "lacks 1 of 2 parts .2..*run these shards"),
        (["1", "of 3"], "another number of shards .3, expected 2"),
        (["1", "seed"], "another seed .1, expected 0"),
        (["1", "model"], "another parameters"),
        (["1", "fewer"], "another number of data .9, expected 11"),
        (["1", "data"], "a part with another data set, expected parts of one evaluation"),
        (["1", "cut"], "another chunk_size .5, expected 2"),
        (["1", "more"], "another measures .noisy \\S+, again \\S+, expected noisy \\S+[)],"),
        (["whole"], "a whole table"),
        (["own"], "do not hold the measure 'noisy'.*measures="),
        ([], "got no part"),
    ],
)
def test_parts_that_make_no_whole_are_refused(parts, names, text):
    measures = None if "own" in names else [Noisy()]
    with pytest.raises(ProbgenError, match=text):
        pg.merge([parts[n] for n in names], measures=measures)


def test_a_name_is_no_list_of_parts(parts):
    for one in (parts["1"], str(parts["1"])):
        with pytest.raises(DeclarationError, match="merge: got parts=.*expected a list of the"):
            pg.merge(one)


def test_measures_that_no_file_holds_are_given(parts):
    assert pg.merge([parts["own"]], measures=[Noisy(), Host()]).names == ["noisy", "host"]
    with pytest.raises(DeclarationError, match="merge: got other measures .*host"):
        pg.merge([parts["own"]], measures=[Noisy()])


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/-2", ""])
def test_what_is_no_part_is_refused(b, shard, tmp_path):
    with pytest.raises(DeclarationError, match="expected I/N with I from 1 to N"):
        evaluate(b, [Noisy()], shard=shard, path=tmp_path / "t")


def test_a_part_needs_a_path_and_a_chunk(b, tmp_path):
    with pytest.raises(DeclarationError, match="without a path"):
        evaluate(b, [Noisy()], shard="1/2")
    with pytest.raises(DeclarationError, match="7 shards of 11 data in 6 chunks"):
        evaluate(b, [Noisy()], shard="1/7", path=tmp_path / "t")


def test_every_datum_is_in_one_part():
    from probgen.verbs.tables import Part

    for size, chunk, count in [(11, 2, 6), (1000, 7, 13), (5, 100, 1), (10**9, 10**4, 100)]:
        parts = [Part.of(f"{i + 1}/{count}", size, chunk, "p").rows for i in range(count)]
        assert parts[0].start == 0 and parts[-1].stop == size
        assert all(a.stop == c.start for a, c in itertools.pairwise(parts))
        assert all(p.start % chunk == 0 and len(p) for p in parts)


def test_the_mark_of_data_is_the_sum_of_its_parts():
    """However they are cut, in whatever order; and not that of other data, or another order."""

    def mark(*pieces):
        found = RowsMark()
        for first, rows in pieces:
            found.add({"x": rows, "n": np.arange(len(rows))}, first)
        return found

    whole = mark((0, X)).digest()
    x, n = X, np.arange(len(X))
    cut = RowsMark()
    cut.add({"n": n[6:], "x": x[6:]}, 6)
    cut.add({"x": x[:6], "n": n[:6]}, 0)
    assert cut.digest() == whole and len(whole) == 64
    first, second = RowsMark(), RowsMark()
    first.add({"x": x[:6], "n": n[:6]}, 0)
    second.add({"x": x[6:], "n": n[6:]}, 6)
    first.join(second.digest())
    assert first.digest() == whole
    assert mark((0, X[::-1])).digest() != whole
    assert mark((0, X.astype(np.float64))).digest() != whole
