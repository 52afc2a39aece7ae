"""What goes into an evaluation page: copies among the data, k-hat limits, pictures, tables."""

import dataclasses
import inspect
import json
import pydoc

import numpy as np
import pytest

import probgen as pg
from probgen import evaluation
from probgen.errors import AlgorithmError, DataError, DeclarationError, UnknownName
from probgen.evaluation import page
from probgen.evaluation.detection import compare
from probgen.evaluation.page import count_distinct, gather, limits, summary, verdicts
from probgen.evaluation.page.evaluation_page import _of_the_model
from probgen.evaluation.page.section_blocks import (
    _strangeness,
    detection_blocks,
    likelihood_blocks,
    warning_blocks,
)
from probgen.evaluation.page.verdict import DETECTS, TOO_FEW
from probgen.inference.likelihood.interval import bound_warning
from probgen.inference.objectives.collapse import CollapseReport

N = 60


def table(values):
    groups = {m: v if isinstance(v, dict) else {"estimate": v} for m, v in values.items()}
    return pg.Evaluation.from_values(
        groups, units=dict.fromkeys(groups, "nats"),
        larger_is_stranger=dict.fromkeys(groups, True),
    )  # fmt: skip


def normal(shift, seed, size=N):
    return np.random.default_rng(seed).normal(shift, 1.0, size)


# --- copies ----------------------------------------------------------------------------------


def test_data_are_counted_as_they_differ():
    x = np.array([[0.0, 1], [1, 0], [-0.0, 1], [0, 1], [1, 1]])
    assert count_distinct(x) == 3
    assert count_distinct(x[..., None, None]) == 3 and count_distinct(x > 0.5) == 3
    assert count_distinct(np.arange(7)) == 7


def test_of_two_distinct_pictures_the_page_says_so_and_claims_nothing():
    """60 black or white pictures, scored apart by Monte Carlo noise alone."""
    rng = np.random.default_rng(0)
    shades = np.repeat([0.0, 1.0], 30)[:, None, None, None] * np.ones((1, 4, 4, 1))
    images = {"x": rng.random((N, 4, 4, 1)), "constants": shades}
    gathered = gather(
        table({"m": normal(0, 1)}), {"constants": table({"m": normal(50, 2)})},
        name="x", images=images, progress_bar=False,
    )  # fmt: skip
    cell = gathered.detection.cell("m", "constants")
    assert (cell.num_out, cell.distinct_out, cell.distinct_in) == (60, 2, 60)
    assert cell.auroc == (1.0, pytest.approx(0.05**0.5), 1.0)
    (verdict,) = verdicts(gathered.detection, name="x")
    assert verdict.readings == {"m": TOO_FEW} and verdict.winner is None
    assert "(60 data, 2 distinct, against 60 x)" in verdict.text and "too few data" in verdict.text
    assert "apart." not in verdict.text
    assert "count once in its interval" in " ".join(limits(gathered.detection, name="x"))
    assert summary([verdict]) == ["**m** has too few data of constants."]
    text = "".join(block.html(str(i)) for i, block in enumerate(detection_blocks(gathered)))
    assert "[0.224, 1.000]" in text.replace("\N{NO-BREAK SPACE}", " ")


def test_what_is_told_counts_before_what_the_pictures_show():
    own, far = table({"m": normal(0, 1)}), table({"m": normal(9, 2)})
    options = {"name": "x", "progress_bar": False}
    told = gather(own, {"far": far}, num_distinct={"far": 12, "x": 50}, **options)
    assert (told.distinct("far"), told.distinct("x")) == (12, 50)
    assert told.detection.cell("m", "far").distinct_out == 12
    assert verdicts(told.detection)[0].readings == {"m": DETECTS}
    plain = gather(own, {"far": far}, **options)
    assert plain.distinct("far") == 60 and "distinct" not in verdicts(plain.detection)[0].text
    with pytest.raises(UnknownName, match="num_distinct of 't'"):
        gather(own, num_distinct={"t": 2}, **options)
    with pytest.raises(AlgorithmError, match="from 1 to 60"):
        gather(own, num_distinct={"x": 61}, **options)
    for bad in (0, 2.0, True):
        with pytest.raises(DeclarationError, match="got num_distinct=.*whole number of at least 1"):
            gather(own, num_distinct={"x": bad}, **options)


def test_two_data_tell_nothing_apart():
    found = compare({"m": (normal(0, 1), {"s": np.array([50.0, 51])})}, num_resamples=100)
    (verdict,) = verdicts(found)
    assert verdict.readings == {"m": TOO_FEW} and "is better than chance." not in verdict.text
    assert "it takes 10 distinct ones on either side" in verdict.text


def test_a_label_keeps_its_letters_and_none_is_not_not_all():
    same = {m: (normal(0, s), {"a": normal(0, s), "b": normal(0, s)})
            for s, m in enumerate(("m", "elbo"))}  # fmt: skip
    found = verdicts(compare(same, num_resamples=100))
    assert summary(found)[0] == "**m** is shown to be better than chance on none of 2 sets."
    mixed = {"m": (normal(0, 1), {"a": normal(9, 2), "b": normal(0, 1), "c": normal(0, 1)})}
    (text,) = summary(verdicts(compare(mixed, num_resamples=100)))
    assert (
        text == "**m** is better than chance on a; is not shown to be better than chance on b or c."
    )
    for each in found:
        assert "M (" not in each.text and "Elbo" not in each.text


# --- bounds and intervals ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, side",
    [("IWAE(100)", "lower"), ("AIS(9)", "lower"), ("NegativeLogLikelihood(9)", "upper")],
)
def test_the_table_counts_bounds_as_the_warning_does(name, side):
    error = np.where(np.random.default_rng(6).uniform(size=N) < 0.3, np.nan, 0.1)
    group = {"estimate": normal(100, 3), f"{side}_bound": normal(100, 3)}
    if name != "AIS(9)":
        group["standard_error"] = error
    said = bound_warning(group, side)
    own = pg.Evaluation.from_values(
        {name: group}, units={name: "nats"}, larger_is_stranger={name: side == "upper"},
        warnings={name: said},
    )  # fmt: skip
    blocks = likelihood_blocks(gather(own, progress_bar=False))
    (row,) = next(b for b in blocks if b.data().get("likelihoods")).data()["likelihoods"]
    count = own.bound_only(name)
    assert row["bound only"] == f"**{count}** of 60" and row["of it Monte Carlo"] == "none known"
    assert count == (60 if name == "AIS(9)" else np.isnan(error).sum())
    assert not said or f"for {count} of 60 data" in said[0]
    # log 20 / 60 = 0.05 nats below the mean, or above
    way = -1 if side == "upper" else 1  # all rows have the sign of log p
    shown = f"{way * group['estimate'].mean() - 0.05:.2f}".replace("-", "\N{MINUS SIGN}")
    assert row["true mean, 95 %"] == f">\N{NO-BREAK SPACE}{shown}"


# --- what is refused -------------------------------------------------------------------------

OWN = table({"m": normal(0, 1)})
PICTURES = np.random.default_rng(7).random((N, 4, 4, 1))


def with_one(value):
    changed = PICTURES.copy()
    changed[3, 1, 1, 0] = value
    return changed


@pytest.mark.parametrize(
    "options, error, says",
    [
        ({"images": {"x": 255 * PICTURES}}, DataError, "from .* to 25.*divide bytes by 255"),
        ({"images": {"x": (255 * PICTURES).astype(np.uint8)}}, DataError, "divide bytes by 255"),
        ({"images": {"x": with_one(-0.5)}}, DataError, r"expected \[0, 1\]; .* first"),
        ({"images": {"x": with_one(np.nan)}}, DataError, "got NaN .*; look at"),
        ({"images": {"x": np.full((N, 4, 4, 1), "a")}}, DataError, "dtype <U1"),
        ({"images": PICTURES}, DeclarationError, "got images=<array .*expected a Mapping"),
        ({"out_tables": OWN}, DeclarationError, "got out_tables=<Eval.*expected a mapping"),
        ({"out_tables": [OWN]}, DeclarationError, "got out_tables=.*expected a mapping"),
        ({"labels": "short"}, DeclarationError, "got labels='short'"),
        ({"num_distinct": 5}, DeclarationError, "got num_distinct=5"),
        ({"out_tables": {"s": table({"m": normal(0, 1)[:0]})}}, DataError, "got 0 of them"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_clear_error(options, error, says):
    with pytest.raises(error, match=says):
        gather(OWN, name="x", progress_bar=False, **options)


def test_a_table_with_nan_has_no_page_with_or_without_other_sets():
    broken = table({"m": np.r_[normal(0, 1)[1:], np.nan]})
    for own, others in ((broken, None), (OWN, {"s": broken}), (broken, {"s": OWN})):
        with pytest.raises(DataError, match=r"NaN for 1 of 60 data of '.*' by m \(index 59 first"):
            gather(own, others, name="x", progress_bar=False)


# --- the verb --------------------------------------------------------------------------------


def test_help_of_report_is_that_of_the_verb():
    assert inspect.signature(evaluation.report) == inspect.signature(page.report)
    text = pydoc.plain(pydoc.render_doc(evaluation.report))
    for said in ("in_table", "num_distinct", "Writes one self-contained HTML page"):
        assert said in text
    assert {"calibration", "demo", "detection", "page", "report", "samples"} <= set(dir(evaluation))


def test_the_json_says_how_many_data_differ(tmp_path):
    model = pg.models.VAE(
        latent=pg.dist.Normal(0, 1).expand([1]).to_event(1),
        decoder=pg.nets.MLP(hidden=(), out=3), likelihood=pg.dist.Bernoulli,
        encoder=pg.nets.MLP(hidden=(), out=1, heads=("loc", "log_scale")),
    )  # fmt: skip
    layers = {"decoder": (1, 3), "encoder": (3, 2)}
    params = {
        name: {"out": {"weight": np.ones(shape, "f"), "bias": np.zeros(shape[1:], "f")}}
        for name, shape in layers.items()
    }
    fitted = pg.Fitted(model, params, shapes={"x": (3,)})
    path = evaluation.report(fitted, OWN, {"s": table({"m": normal(3, 4)})}, name="x",
                             num_distinct={"s": 11}, path=tmp_path / "r.html",
                             progress_bar=False)  # fmt: skip
    found = json.loads(path.with_suffix(".json").read_text("utf-8"))
    assert found["num_distinct"] == {"x": 60, "s": 11}
    assert "60 data, 11 distinct, against 60 x" in path.read_text("utf-8")


def test_a_page_says_how_ordinary_the_others_are():
    """Of 40 strangers 8 lie below the median and 4 at it; the measure is better than chance all
    the same."""
    own = table({"m": np.arange(101.0)})
    strange = table({"m": np.r_[np.full(8, 1.0), np.full(4, 50.0), np.full(28, 100.5)]})
    found = gather(own, {"far": strange}, name="x")
    assert found.ordinary() == {("m", "far"): 0.25}
    (verdict,) = verdicts(found.detection, name="x", ordinary=found.ordinary())
    assert verdict.readings == {"m": DETECTS}
    assert "m ranks 25 % of them more ordinary than the median of x." in verdict.text


def test_one_warning_is_said_and_several_are_folded_behind_one_line():
    def found(*texts):
        own = pg.Evaluation.from_values(
            {"m": {"estimate": np.arange(30.0)}}, units={"m": "nats"},
            larger_is_stranger={"m": True}, warnings={"m": list(texts)},
        )  # fmt: skip
        return warning_blocks(gather(own, name="x"))

    assert "<strong>Warning.</strong> m of x: one" in found("one")[0].html("k")
    folded = found("one", "two")[0].html("k")
    assert folded.startswith("<details><summary><strong>2 warnings</strong> about m</summary>")
    assert folded.index("m of x: one") < folded.index("m of x: two") < folded.index("</details>")


def test_a_table_is_a_csv_file_too(tmp_path):
    table({"m": np.array([1.5, -2.0])}).to_csv(tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == "index,m\n0,1.5\n1,-2.0\n"


def test_a_page_begins_with_a_collapsed_code_and_with_heavy_weights(tmp_path):
    dead = {"z": np.zeros(3, bool)}
    report = CollapseReport({"z": 0.0}, {}, dead, None, None, 9)
    fitted = pg.Fitted(pg.model(lambda: None), {}, report=report)
    (said,) = _of_the_model(fitted, gather(table({"m": np.arange(30.0)}), name="x"))
    assert said.startswith("**The latent z has collapsed**: none of its units is active")
    alive = pg.Fitted(pg.model(lambda: None), {}, report=dataclasses.replace(
        report, active_units={"z": np.array([True, False])}
    ))  # fmt: skip
    assert not _of_the_model(alive, gather(table({"m": np.arange(30.0)}), name="x"))
    heavy = np.where(np.arange(60) < 41, np.nan, 0.1)
    group = {"estimate": normal(-90, 3), "lower_bound": normal(-93, 3), "standard_error": heavy}
    own = pg.Evaluation.from_values(
        {"IWAE(100)": group}, units={"IWAE(100)": "nats"}, larger_is_stranger={"IWAE(100)": False}
    )
    (said,) = _of_the_model(alive, gather(own, name="digits"))
    assert said.startswith("**IWAE** is a bound alone for 41 of 60 data of digits: the k-hats")
    light = {**group, "standard_error": np.full(60, 0.1)}
    own = pg.Evaluation.from_values(
        {"IWAE(100)": light}, units={"IWAE(100)": "nats"}, larger_is_stranger={"IWAE(100)": False}
    )
    assert not _of_the_model(alive, gather(own, name="digits"))


def test_means_of_all_measures_have_one_sign():
    up = pg.Evaluation.from_values(
        {"m": {"estimate": np.full(9, -2.0)}}, units={"m": "nats"}, larger_is_stranger={"m": False}
    )
    assert _strangeness(up, "m")[0] == "2"
    assert _strangeness(table({"m": np.array([3.0, 3.0])}), "m")[0] == "3"
