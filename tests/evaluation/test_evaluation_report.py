"""The evaluation page: its verdict claims what the intervals allow, its tables belong together."""

import json

import browser
import numpy as np
import pytest

import probgen as pg
from probgen import evaluation
from probgen.engine.bind import bind
from probgen.errors import (
    AlgorithmError,
    DataError,
    DeclarationError,
    SaveError,
    ShapeError,
    UnknownName,
)
from probgen.evaluation.detection import compare
from probgen.evaluation.page import gather, limits, split_table, summary, verdicts
from probgen.evaluation.page.verdict import DETECTS, INVERTS, UNCLEAR

N = 60


def judged(scores, seed=0, **options):
    """Verdicts of {measure: (inside, {set: outside})}."""
    table = compare(scores, num_resamples=100, seed=seed, show_progress=False)
    return verdicts(table, **options), table


def normal(shift, seed, size=N):
    return np.random.default_rng(seed).normal(shift, 1.0, size)


# --- the verdict -----------------------------------------------------------------------------


def test_of_equal_scores_nothing_is_claimed():
    """The same numbers in and out: AUROC 1/2 for every measure, whatever their spread."""
    scores = {m: (normal(0, s), {"a": normal(0, s), "b": normal(0, s)[::-1]})
              for s, m in enumerate(("one", "two", "three"))}  # fmt: skip
    found, _ = judged(scores)
    for each in found:
        assert set(each.readings.values()) == {UNCLEAR} and each.winner is None
        assert "no measure is shown to be better than chance" in each.text
        assert "best" not in each.text and "ordinary" not in each.text
    assert summary(found)[0] == "**one** is shown to be better than chance on none of 2 sets."


def test_a_measure_that_separates_perfectly_is_named_and_is_the_best_of_a_useless_one():
    x, y = normal(0, 1), normal(0, 2)
    scores = {"good": (x, {"far": x + 100}), "useless": (y, {"far": normal(0, 3)})}
    (found,), _ = judged(scores, name="digits")
    assert found.readings == {"good": DETECTS, "useless": UNCLEAR} and found.winner == "good"
    assert found.text.startswith(f"**far** ({N} against {N} digits): good is better than chance.")
    assert "The best here, significantly: good." in found.text
    assert "Not shown to be better than chance (the interval holds 0.5): useless." in found.text


def test_a_measure_that_inverts_is_said_to_invert():
    (found,), _ = judged({"nll": (normal(0, 1), {"black": normal(-3, 2)})})
    assert found.readings == {"nll": INVERTS} and found.winner is None
    assert "no measure is shown to be better than chance" in found.text
    assert (
        "To nll these data are" in found.text and "MORE ordinary than the model's own" in found.text
    )
    assert summary([found]) == ["**nll** inverts on black."]


def test_two_measures_of_the_same_order_share_the_best_place():
    x, y = normal(0, 1), normal(3, 2)
    (found,), _ = judged({"nll": (x, {"s": y}), "twice": (2 * x, {"s": 2 * y})})
    assert found.winner is None
    assert "Which of nll and twice is the best cannot be told." in found.text


@pytest.mark.parametrize("shift", [0.0, 0.3, 1.0, -1.0])
def test_a_claim_is_made_exactly_where_the_interval_excludes_one_half(shift):
    """For 40 draws of the scores: DETECTS iff lower > 1/2, INVERTS iff upper < 1/2."""
    kinds = []
    for seed in range(40):
        scores = {"m": (normal(0, seed), {"s": normal(shift, 1000 + seed)})}
        (found,), table = judged(scores, seed=seed)
        limits_of = table.cell("m", "s").auroc
        want = DETECTS if limits_of.lower > 0.5 else INVERTS if limits_of.upper < 0.5 else UNCLEAR
        assert found.readings["m"] == want
        assert ("is better than chance." in found.text) == (want == DETECTS)
        assert ("MORE ordinary" in found.text) == (want == INVERTS)
        kinds.append(want)
    # Of no difference 1 in 20 intervals misses: 40 draws see more than 7 with probability 0.001.
    if shift == 0:
        assert kinds.count(UNCLEAR) >= 33
    if abs(shift) == 1:  # AUROC 0.76, standard error 0.04
        assert kinds.count(DETECTS if shift > 0 else INVERTS) >= 39


def test_the_limits_say_how_many_intervals_would_miss_and_what_is_not_shown():
    x = normal(0, 1)
    scores = {m: (x, {f"s{i}": normal(1, i) for i in range(5)}) for m in ("a", "b")}
    _, table = judged(scores)
    text = " ".join(limits(table, name="digits"))
    assert "Each of the 10 intervals" in text and "0.5 of them would miss" in text
    assert "all 5 comparisons" in text
    for word in ("held out from training", "another training run", "chosen because"):
        assert word in text


# --- tables ----------------------------------------------------------------------------------


def table(values, ways=None, warnings=None):
    """An Evaluation of {measure: estimates or groups}."""
    groups = {m: v if isinstance(v, dict) else {"estimate": v} for m, v in values.items()}
    return pg.Evaluation.from_values(
        groups,
        units=dict.fromkeys(groups, "nats"),
        larger_is_stranger={m: (ways or {}).get(m, True) for m in groups},
        warnings=warnings,
        info={"backend": "torch", "seed": 3},
    )


def test_a_likelihood_counts_in_its_own_direction():
    """IWAE is larger where likelier: it tells far data apart by being small on them."""
    own, far = (table({"IWAE(5)": normal(m, m)}, {"IWAE(5)": False}) for m in (50, 41))
    gathered = gather(own, {"far": far}, progress_bar=False)
    assert gathered.detection.cell("IWAE", "far").auroc.value == 1.0
    assert gathered.likelihoods == ["IWAE(5)"]


def test_warnings_of_a_part_speak_of_that_part():
    class Counted:
        name, unit, larger_is_stranger = "m", "nats", True

        def warnings(self, values):
            return [f"{(values['estimate'] > 0).sum()} above zero"]

    whole = table({"m": np.array([1.0, 1, 1, -1, -1, 1])}, warnings={"m": ["4 above zero"]})
    parts = split_table(whole, {"a": 2, "b": 4}, [Counted()])
    assert parts["a"].warnings == {"m": ["2 above zero"]}
    assert parts["b"].warnings == {"m": ["2 above zero"]}
    np.testing.assert_array_equal(parts["b"]["m"]["estimate"], [1, -1, -1, 1])
    with pytest.raises(DataError, match="add up to the table's 6"):
        split_table(whole, {"a": 2, "b": 3}, [Counted()])


def test_tables_that_do_not_belong_together_are_refused():
    own, other = table({"m": normal(0, 1)}), table({"k": normal(0, 2)})
    pictures = np.zeros((N, 4, 4, 1))
    with pytest.raises(AlgorithmError, match=r"\['k'\].*expected \['m'\]"):
        gather(own, {"s": other})
    with pytest.raises(DataError, match="another set called 'x'"):
        gather(own, {"x": own}, name="x")
    with pytest.raises(UnknownName, match="pictures of 't'"):
        gather(own, images={"t": pictures})
    with pytest.raises(ShapeError, match="leave them out"):
        gather(own, images={"x": pictures[..., 0]}, name="x")
    with pytest.raises(DataError, match="one for each datum"):
        gather(own, images={"x": pictures[1:]}, name="x")
    with pytest.raises(UnknownName, match="label for 'k'"):
        gather(own, labels={"k": "short"})
    with pytest.raises(DataError, match="labelled 'same'"):
        gather(own | other, labels={"m": "same", "k": "same"})


@pytest.mark.parametrize(
    ("values", "error"),
    [
        (np.array([1.0]), "got 1 of them"),
        (np.full(N, np.nan), "NaN"),
        (np.zeros(N), "expected scores that differ"),
    ],
)
def test_scores_from_which_nothing_can_be_said_are_one_clear_error(values, error):
    with pytest.raises(DataError, match=error):
        gather(table({"m": np.zeros(N)}), {"s": table({"m": values})}, progress_bar=False)


def test_two_settings_of_one_measure_keep_their_full_names():
    own = table({"LikelihoodRegret(a)": normal(0, 1), "LikelihoodRegret(b)": normal(0, 2),
                 "KLTerm(16)": normal(0, 3)})  # fmt: skip
    assert gather(own).labels == {
        "LikelihoodRegret(a)": "LikelihoodRegret(a)",
        "LikelihoodRegret(b)": "LikelihoodRegret(b)",
        "KLTerm(16)": "KL",
    }


# --- the page --------------------------------------------------------------------------------


def linear_gaussian(dim=3):
    """z ~ N(0, I_2), x | z ~ N(f(z), s^2 I) with a guide; parameters as drawn: a page needs none
    better."""
    vae = pg.models.VAE(
        latent=pg.dist.Normal(0, 1).expand([2]).to_event(1),
        decoder=pg.nets.MLP(hidden=(), out=dim),
        likelihood=pg.dist.Normal,
        encoder=pg.nets.MLP(hidden=(), out=2, heads=("loc", "log_scale")),
    )
    b = pg.backends.resolve("auto")
    params = bind(vae, b, data={"x": np.zeros((1, dim), np.float32)}, seed=0)[1]
    return pg.Fitted(vae, b.tree_map(b.to_numpy, params), shapes={"x": (dim,)})


@pytest.fixture(scope="module")
def fitted():
    return linear_gaussian()


def sets_of(num_sets=3, bare=7):
    """Tables of own data and of sets: a likelihood, for some a bound only; a score that inverts."""
    rng = np.random.default_rng(4)

    def one(shift):
        estimate = rng.normal(100 + shift, 10, N)
        error = np.where(np.arange(N) < bare, np.nan, 0.5)
        return table(
            {
                "NegativeLogLikelihood(50)": {
                    "estimate": estimate, "standard_error": error, "upper_bound": estimate + 1.0,
                },
                "LikelihoodRegret(posterior, K=1)": rng.normal(-shift / 5, 1, N),
            },
            warnings={"NegativeLogLikelihood(50)": ["a bound only for 7 of 60 data"]},
        )  # fmt: skip

    others = {f"set {i}": one(30.0 * i) for i in range(1, num_sets + 1)}
    return one(0.0), others


@pytest.fixture(scope="module")
def page(fitted, tmp_path_factory):
    """(path, JSON) of a page with pictures and three other sets."""
    own, others = sets_of()
    rng = np.random.default_rng(0)
    images = {k: (rng.random((N, 8, 8, 1)) > 0.5) * 1.0 for k in ("digits", *others)}
    path = evaluation.report(
        fitted, own, others, path=tmp_path_factory.mktemp("page") / "report.html", name="digits",
        images=images, command="probgen evaluate RUN digits", settings={"particles": 50}, seed=5,
        notes=["**letters**: made black and white."], progress_bar=False,
    )  # fmt: skip
    return path, json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


def test_the_json_holds_tables_summaries_detection_verdict_settings_and_versions(page):
    path, found = page
    own, others = sets_of()
    sections = found["sections"]
    summaries = sections["likelihood"]["summaries"]
    assert list(summaries) == ["digits", *others]
    for row, want in zip(summaries["digits"], own.summary(), strict=True):
        assert row["mean"] == pytest.approx(want["mean"]) and row["unit"] == want["unit"]
    detection = sections["detection"]["detection"]
    want = compare(
        {"−log p": (own.strangeness("NegativeLogLikelihood(50)"),
                    {k: t.strangeness("NegativeLogLikelihood(50)") for k, t in others.items()})},
        seed=5, show_progress=False,
    )  # fmt: skip
    for each in want.detections:
        (seen,) = [
            d for d in detection["detections"]
            if (d["measure"], d["data_set"]) == (each.measure, each.data_set)
        ]  # fmt: skip
        assert seen["auroc"] == pytest.approx(each.auroc.to_dict())
        assert seen["fpr_in"] == pytest.approx(each.fpr_in.to_dict())
    (far,) = [v for v in sections["verdict"]["verdict"] if v["data_set"] == "set 3"]
    assert far["readings"] == {"−log p": DETECTS, "regret": INVERTS}
    assert found["settings"] == {"particles": 50, "level": 0.95, "seed": 5}
    assert found["command"] == "probgen evaluate RUN digits"
    assert found["versions"]["probgen"] == pg.__version__ and found["versions"]["numpy"]
    kept = sections["every-measure"]["estimates"]["NegativeLogLikelihood(50)"]
    np.testing.assert_allclose(kept["set 1"], others["set 1"]["NegativeLogLikelihood(50)"].estimate)


def test_errors_and_bounds_stand_beside_the_likelihoods(page):
    rows = page[1]["sections"]["likelihood"]["likelihoods"]
    assert [r["data"] for r in rows] == ["digits", "set 1", "set 2", "set 3"]
    assert all(r["bound only"] == f"**7** of {N}" for r in rows)
    assert all(r["of it Monte Carlo"] == "none known" for r in rows)
    assert {r["measure"] for r in rows} == {"log p"}
    shown = [float(r["mean ± s.e., nats"].split(" ±")[0].replace("−", "-")) for r in rows]
    own, others = sets_of()
    want = [-t.mean("NegativeLogLikelihood(50)")[0] for t in (own, *others.values())]
    np.testing.assert_allclose(shown, want, atol=0.5)
    text = page[0].read_text(encoding="utf-8")
    # Before all numbers stands for how many data the weights are heavy.
    said = f"is a bound alone for 7 of {N} data of digits: the k-hats of their weights"
    assert text.count(said) == 1 and text.index(said) < text.index("<h2>Likelihood</h2>")
    assert "<strong>Warning.</strong> −log p of digits, set 1, set 2 and set 3: a bound" in text


def test_a_number_stands_on_the_page_once(page):
    """Means and AUROCs in one table each, and in no sentence; drawn as dots, with no digits."""
    text = page[0].read_text(encoding="utf-8")
    sections = page[1]["sections"]
    numbers = [r["mean ± s.e., nats"] for r in sections["likelihood"]["likelihoods"]]
    numbers += [v for r in sections["every-measure"]["means"] for k, v in r.items() if " ± " in v]
    cells = [v for r in sections["detection"]["auroc"] for k, v in r.items() if k != "measure"]
    limits = [c[c.index("[") :] for c in cells]
    for each in (*numbers, *limits):
        assert text.count(each) == (numbers + limits).count(each), each


def test_the_ends_of_the_pictures_are_the_ends_of_the_scores(fitted):
    """Pictures that show their own rank: the ordinary row is dark, the strange one bright."""
    from probgen.evaluation.page import image_blocks

    scores = np.random.default_rng(1).permutation(N).astype(float)
    ranks = (scores / N)[:, None, None, None] * np.ones((1, 4, 4, 1))
    gathered = gather(table({"m": scores}), images={"x": ranks}, name="x")
    (block,) = image_blocks(gathered, columns=5)
    ordinary, strange = (row.images[:, 2, 2, 0] * N for row in block.rows)
    np.testing.assert_allclose(ordinary, [0, 1, 2, 3, 4])
    np.testing.assert_allclose(strange, [59, 58, 57, 56, 55])


def test_one_set_of_plain_numbers_has_a_page_without_a_verdict(fitted, tmp_path):
    own = table({"IWAE(30)": normal(-4.0, 1), "ELBO(4)": normal(-5.0, 2)},
                {"IWAE(30)": False, "ELBO(4)": False})  # fmt: skip
    path = evaluation.report(fitted, own, path=tmp_path / "r.html")
    found = json.loads(path.with_suffix(".json").read_text())
    assert set(found["sections"]) == {"likelihood", "every-measure", "the-model", "again"}
    assert {r["measure"] for r in found["sections"]["likelihood"]["likelihoods"]} == {
        "IWAE", "ELBO"}  # fmt: skip


def test_what_is_no_fit_or_no_table_is_refused(fitted, tmp_path):
    own, _ = sets_of()
    with pytest.raises(DeclarationError, match="got fitted=.*expected a Fitted"):
        evaluation.report(own, own, path=tmp_path / "r.html")
    with pytest.raises(DeclarationError, match="got in_table=.*expected an Evaluation"):
        evaluation.report(fitted, {}, path=tmp_path / "r.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError):
        evaluation.report(fitted, own, path=tmp_path / "file" / "r.html", progress_bar=False)


def test_the_room_has_its_packages_and_a_verb():
    for name in ("calibration", "demo", "detection", "page", "samples"):
        assert getattr(evaluation, name).__name__ == f"probgen.evaluation.{name}"
    assert callable(evaluation.report) and evaluation.page.Report("x").title == "x"
    with pytest.raises(AttributeError, match="nothing"):
        evaluation.nothing  # noqa: B018


DESK = pytest.param(1100, False, marks=pytest.mark.repeated(
    "test_report.py::test_a_page_fits_a_phone_and_a_desk_in_both_schemes"
))  # fmt: skip


@pytest.mark.parametrize(("width", "dark"), [(360, True), DESK])
def test_the_page_in_a_browser(page, width, dark):
    text = page[0].read_text(encoding="utf-8")
    found, console = browser.look(browser.find(), text, width, dark=dark)
    assert console == []
    assert found["width"] <= width and found["wide"] == [] and found["cut"] == []
    assert found["scrolled"] == []  # no table hides a column, on a phone either
    assert found["smallest"] >= 7.5 and found["broken"] == 0
    assert found["images"] == 2 * 4 * 2  # two measures, four sets, two rows
    # likelihoods, AUROC, measures, means, the model's parts, versions
    assert found["tables"] == 6
    assert found["svgs"] == 2 + 2 + 2 + 1  # AUROC, ROC; two histograms; two formulas; the graph
    assert "MORE ordinary than the model" in text and "Not shown" in text
