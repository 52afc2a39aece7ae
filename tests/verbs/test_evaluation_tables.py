"""Which data a table is of: what may be selected from it, and what may be joined to it."""

import json
import math

import numpy as np
import pytest
from regret_cases import PPCA

import probgen as pg
from probgen.errors import DataError, SaveError
from probgen.records.reading import checksum


def table(name, data=None):
    info = {} if data is None else {"data": data}
    return pg.Evaluation.from_values(
        {name: {"estimate": np.arange(4.0)}}, units={name: "1"}, larger_is_stranger={name: True},
        info=info,
    )  # fmt: skip


def test_tables_of_other_data_are_not_joined():
    assert (table("a", "one") | table("b", "one")).names == ["a", "b"]
    assert (table("a", "one") | table("b")).names == ["a", "b"]  # of what it is, is not known
    with pytest.raises(DataError, match="other data or in another order"):
        table("a", "one") | table("b", "two")
    some = [table("a", "one").select(i) | table("b", "one").select(i) for i in ([2, 0], 1)]
    assert [t.num_data for t in some] == [2, 1]
    with pytest.raises(DataError, match="other data or in another order"):
        table("a", "one").select([2, 0]) | table("b", "one").select([0, 2])
    with pytest.raises(TypeError):
        table("a") | 3


def test_an_index_several_or_a_mask_select():
    t = table("a")
    for chosen, found in ((3, [3]), ([1, -1], [1, 3]), (np.arange(4) > 1, [2, 3])):
        np.testing.assert_array_equal(t.select(chosen)["a"]["estimate"], found)


@pytest.mark.parametrize(
    ("chosen", "text"),
    [([100], "below 4"), ([], "no index"), ("a", "below 4"), ([True, False], "True or False")],
)
def test_data_that_are_not_there_are_not_selected(chosen, text):
    with pytest.raises(DataError, match=text):
        table("a").select(chosen)


def test_a_measure_without_unit_or_direction_is_refused():
    for given in ({"units": {}}, {"larger_is_stranger": {}}):
        options = {"units": {"a": "1"}, "larger_is_stranger": {"a": True}, **given}
        with pytest.raises(DataError, match="no unit or no direction of 'a'"):
            pg.Evaluation.from_values({"a": {"estimate": np.zeros(2)}}, **options)


def test_a_table_and_a_model_do_not_overwrite_each_other(tmp_path):
    run = PPCA().fitted()
    run.save_pretrained(tmp_path / "run")
    with pytest.raises(SaveError, match="holds a fitted model, expected .* a table of measures"):
        table("a").save(tmp_path / "run")
    np.testing.assert_array_equal(
        pg.Fitted.from_pretrained(tmp_path / "run").params["decoder"]["out"]["bias"], PPCA().c
    )
    table("a").save(tmp_path / "table")
    with pytest.raises(SaveError, match="holds a table of measures, expected .* a fitted model"):
        run.save_pretrained(tmp_path / "table")
    table("b").save(tmp_path / "table")
    assert pg.Evaluation.load(tmp_path / "table").names == ["b"]


# ---- numbers, selection, other forms ------------------------------------------------------------


def stored(**extra):
    return pg.Evaluation.from_values(
        {
            "a": {"estimate": np.array([1.0, 2.0, 4.0]), "standard_error": np.array([3.0, 0, 4])},
            "b": {"estimate": np.array([1.0, 0.0, -1.0]), "pair": np.arange(6.0).reshape(3, 2)},
            **extra,
        },
        units={"a": "nats", "b": "bits", "c": "1"},
        larger_is_stranger={"a": True, "b": False, "c": True},
        warnings={"a": ["look out"]},
        info={"seed": 0},
    )


def test_mean_and_its_two_errors():
    """sd / sqrt(n) over data; of it by Monte Carlo sqrt(sum s_i^2) / n, None without s_i."""
    t = stored()
    assert t.mean("a") == pytest.approx((7 / 3, np.std([1, 2, 4], ddof=1) / math.sqrt(3)))
    assert t.mc_error("a") == pytest.approx(5 / 3) and t.mc_error("b") is None
    assert math.isnan(t.select([0]).mean("a")[1])


def test_strangeness_is_larger_when_stranger():
    t = stored()
    np.testing.assert_array_equal(t.strangeness("a"), [1, 2, 4])
    np.testing.assert_array_equal(t.strangeness("b"), [-1, 0, 1])


def test_select_takes_data_and_or_joins_measures():
    t = stored()
    some = t.select([2, 0])
    assert some.num_data == 2 and some.names == ["a", "b"]
    assert some.warnings == {"a": ["of the whole table (3 data): look out"], "b": []}
    assert some.select([0]).warnings == some.warnings and t.warnings["a"] == ["look out"]
    np.testing.assert_array_equal(some["b"]["pair"], [[4, 5], [0, 1]])
    more = pg.Evaluation.from_values(
        {"c": {"estimate": np.zeros(3)}}, units={"c": "1"}, larger_is_stranger={"c": True}
    )
    both = t | more
    assert both.names == ["a", "b", "c"] and both.units == {"a": "nats", "b": "bits", "c": "1"}
    assert "c" in both and "d" not in both and t.names == ["a", "b"]
    with pytest.raises(DataError, match="tables of 3 and 2 data"):
        t | some
    with pytest.raises(DataError, match="'a' in both tables"):
        t | t


def test_a_data_frame_has_one_column_a_number():
    frame = stored().to_pandas()
    assert list(frame.columns) == ["a/estimate", "a/standard_error", "b/estimate", "b/pair/0",
                                   "b/pair/1"]  # fmt: skip
    np.testing.assert_array_equal(frame["b/pair/1"], [1, 3, 5])


def test_a_saved_table_is_the_table(tmp_path):
    """Values with their types and inner axes, units, directions, warnings and info."""
    t = stored(c={"estimate": np.array([1, 2, 3], np.float32), "deep": np.zeros((3, 2, 2), bool)})
    t.save(tmp_path / "t")
    read = pg.Evaluation.load(tmp_path / "t")
    assert read.names == t.names and read.info == t.info and read.summary() == t.summary()
    for name in t:
        assert list(read[name].data_vars) == list(t[name].data_vars)
        for q in t[name].data_vars:
            np.testing.assert_array_equal(read[name][q], t[name][q])
            assert read[name][q].dtype == t[name][q].dtype and read[name][q].dims == t[name][q].dims
    assert repr(read) == repr(t)


def test_a_folder_that_is_no_table_is_refused(tmp_path):
    with pytest.raises(SaveError, match="no such folder"):
        pg.Evaluation.load(tmp_path / "none")
    t = stored()
    t.save(tmp_path / "t")
    config = tmp_path / "t" / "config.json"
    good = config.read_text()
    for spoil, text in (
        (lambda c: c.update(kind="fitted"), "holds 'fitted', expected a table of measures"),
        (lambda c: c.pop("measures"), "lacks .'measures'"),
        (lambda c: c["measures"].pop(), "expected measures"),
        (lambda c: c["measures"].append(c["measures"][0]), "twice"),
        (lambda c: c["measures"][0].pop("unit"), "lacks .'unit'"),
    ):
        content = json.loads(good)
        spoil(content)
        content["checksum"] = checksum(content)
        config.write_text(json.dumps(content))
        with pytest.raises(SaveError, match=text):
            pg.Evaluation.load(tmp_path / "t")
    config.write_text(good[:20])
    with pytest.raises(SaveError, match="JSON"):
        pg.Evaluation.load(tmp_path / "t")
    config.write_text(good)
    arrays = tmp_path / "t" / "table.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:-4])
    with pytest.raises(SaveError, match="damaged"):
        pg.Evaluation.load(tmp_path / "t")


def test_arrays_of_different_lengths_are_refused():
    with pytest.raises(DataError, match="one entry a datum"):
        stored(c={"estimate": np.zeros(4)})


# ---- warnings -----------------------------------------------------------------------------------
