"""`probgen evaluate`: words for data become what the model takes; a run that is killed goes on."""

import gzip
import json
import os
import signal
import struct

import numpy as np
import pytest

import probgen as pg
from probgen import backends, cli, data, dist, nets
from probgen.engine.measure import EvaluationContext
from probgen.errors import DataError, ShapeError
from probgen.evaluation.page import command, sentences
from probgen.evaluation.page.sentences import BUILT_IN, Loaded, Need, fitted_to, load
from probgen.inference import ELBO, SVI
from probgen.models import VAE, likelihoods

BINARY = Need("x", (28, 28, 1), 2, False, True)
FLAT = Need("x", (64,), 2, False, True)
LEVELS = Need("x", (8, 8, 1), 17, True, True)
ON_UNIT = Need("x", (8, 8, 1), 17, False, True)
REAL = Need("x", (3,), None, False, False)
GREY = Need("x", (28, 28, 1), None, False, False)
RNG = np.random.default_rng(0)


def make(likelihood, shape, backend_name, x, **encoder):
    vae = VAE(
        latent=dist.Normal(0, 1).expand([2]).to_event(1),
        decoder=nets.MLP(hidden=(16,), out=shape),
        likelihood=likelihood,
        encoder=nets.MLP(hidden=(16,), out=2, heads=("loc", "log_scale")),
    )
    return pg.fit(
        vae, x, SVI(ELBO(), pg.Adam(1e-2)), num_steps=30, batch_size=32, seed=0,
        backend=backend_name, progress_bar=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(backend_name, tmp_path_factory):
    """A folder with a saved model of 8 x 8 binary digits, a background, and held-out digits."""
    folder = tmp_path_factory.mktemp(backend_name)
    images = data.binarize(data.digits()).images
    make(dist.Bernoulli, (8, 8, 1), backend_name, images[:600]).save_pretrained(folder / "model")
    rough = pg.inference.ood.perturbed(images[:600], num_levels=2, seed=0)
    make(dist.Bernoulli, (8, 8, 1), backend_name, rough).save_pretrained(folder / "rough")
    np.savez(folder / "held_out.npz", x=images[600:700], labels=np.arange(100))
    return folder


@pytest.fixture
def undrawn(monkeypatch):
    """Pages whose figures are left empty: what a test of the run itself does not look at."""
    drawn = "probgen.evaluation.page.section_blocks.figure_svg"
    monkeypatch.setattr(drawn, lambda figure: "<svg></svg>")


def evaluate(place, *words_, out="out"):
    return cli.main(
        ["evaluate", str(place / "model"), str(place / "held_out.npz"), "--particles", "20",
         "--num-data", "30", "--chunk-size", "15", "--out", str(place / out), *words_]
    )  # fmt: skip


# --- the command -----------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_shards_of_a_job_array_are_merged_and_then_found(place, capsys):
    """The table of all shards is that of the command without one, which then has only to draw."""
    words_ = ["--measures", "nll", "elbo", "--num-data", "60"]
    for shard in ("3/3", "1/3"):
        assert evaluate(place, *words_, "--shard", shard, out="array") == 0
    capsys.readouterr()
    assert cli.main(["merge", str(place / "array")]) == 2
    assert "lacks 1 of 3 parts (2)" in capsys.readouterr().err
    assert evaluate(place, *words_, "--shard", "2/3", out="array") == 0
    assert cli.main(["merge", str(place / "array")]) == 0
    assert "60 data of 3 shards" in capsys.readouterr().out
    assert evaluate(place, *words_, out="array") == 0
    assert "kept from" in capsys.readouterr().out
    assert evaluate(place, *words_, out="one") == 0
    one, array = (pg.Evaluation.load(place / name / "table") for name in ("one", "array"))
    assert one.info == array.info and one.warnings == array.warnings
    for name in one:
        np.testing.assert_array_equal(one[name]["estimate"], array[name]["estimate"])


@pytest.mark.parametrize(
    ("words_", "text"),
    [
        (["--shard", "4/3"], "expected I/N with I from 1 to N"),
        (["--shard", "1/9"], "9 shards of 30 data in 2 chunks"),
    ],
)
def test_shards_that_are_none_are_refused(place, capsys, words_, text):
    assert evaluate(place, "--measures", "elbo", *words_, out="none") == 2
    assert text in capsys.readouterr().err
    assert cli.main(["merge", str(place / "model")]) == 2
    assert "holds no shards" in capsys.readouterr().err


def test_the_command_writes_a_page_a_json_and_a_table(place, capsys, request, backend_name):
    """Figures are drawn on one backend, of numbers that are no backend's."""
    if backend_name != next(name for name, is_here in backends.available().items() if is_here):
        request.getfixturevalue("undrawn")
    words_ = ["--ood", "inverted:" + str(place / "held_out.npz"), "--ood", "noise", "letters",
              "--measures", "nll", "complexity", "ratio", "--background", str(place / "rough"),
              ]  # fmt: skip
    assert evaluate(place, *words_) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["model", *4 * ["data"], "measure", "wrote"]
    found = json.loads((place / "out" / "report.json").read_text("utf-8"))
    assert (place / "out" / "report.html").exists()
    sets = ["held out", "inverted held out", "noise", "letters"]
    assert list(found["sections"]["likelihood"]["summaries"]) == sets
    table = pg.Evaluation.load(place / "out" / "table")
    assert table.num_data == 4 * 30
    np.testing.assert_allclose(
        found["sections"]["every-measure"]["estimates"]["NegativeLogLikelihood(20)"]["held out"],
        table["NegativeLogLikelihood(20)"]["estimate"][:30],
    )
    assert found["settings"]["particles"] == 20 and "LikelihoodRatio" in str(found["settings"])
    # Fair coins: 64 of them cost 44 nats under any model that knows no better; digits cost less.
    auroc = {(d["measure"], d["data_set"]): d["auroc"]["value"]
             for d in found["sections"]["detection"]["detection"]["detections"]}  # fmt: skip
    assert auroc["−log p", "noise"] > 0.9
    # The command that the page gives is one that works, and finds its table there.
    request.getfixturevalue("undrawn")
    assert cli.main(found["command"].split()[1:]) == 0
    assert "kept from" in capsys.readouterr().out


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_is_killed_goes_on_and_gives_the_same_numbers(place, monkeypatch, capsys):
    """A kill in the second of four chunks: the first is not measured again."""
    words_ = ["--num-data", "60", "--measures", "elbo"]
    assert evaluate(place, *words_, "--chunk-size", "15", out="whole") == 0
    whole = pg.Evaluation.load(place / "whole" / "table")
    real, calls = EvaluationContext._run, []

    def counted(self, run, key, rows, ids):
        calls.append(int(ids[0]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, run, key, rows, ids)

    monkeypatch.setattr(EvaluationContext, "_run", counted)
    assert evaluate(place, *words_, "--chunk-size", "15", out="cut") == 130
    assert evaluate(place, *words_, "--chunk-size", "15", out="cut") == 0
    assert calls == [0, 15, 15, 30, 45]
    again = pg.Evaluation.load(place / "cut" / "table")
    np.testing.assert_array_equal(again["ELBO(16)"]["estimate"], whole["ELBO(16)"]["estimate"])


@pytest.mark.usefixtures("usual_signals", "undrawn")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_asked_to_end_says_in_one_line_how_to_go_on(
    place, number, status, monkeypatch, capsys, caplog
):
    words_ = ["--num-data", "60", "--measures", "elbo", "--chunk-size", "15"]
    real, calls = EvaluationContext._run, []

    def asked(self, run, key, rows, ids):
        calls.append(int(ids[0]))
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        return real(self, run, key, rows, ids)

    monkeypatch.setattr(EvaluationContext, "_run", asked)
    assert evaluate(place, *words_, out=f"asked-{status}") == status
    err = capsys.readouterr().err if status == 130 else caplog.messages[-1] + "\n"
    assert err.count("\n") == 1 and "stopped after 30 of 60 data" in err and "goes on" in err
    assert evaluate(place, *words_, out=f"asked-{status}") == 0
    assert calls == [0, 15, 30, 45]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("where", ["clear", "report"])
def test_a_run_that_is_killed_once_its_table_stands_goes_on(place, where, monkeypatch, capsys):
    """The same command finds its table, and leaves no chunk and no page half-way."""
    here = place / f"killed-{where}"

    def killed(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        name = "probgen.records.chunks.ChunkStore.clear" if where == "clear" else None
        patched.setattr(name or "probgen.evaluation.page.command.report", killed)
        assert evaluate(place, "--measures", "elbo", out=here.name) == 130
    assert (here / "table").is_dir() and not (here / "report.html").exists()
    assert evaluate(place, "--measures", "elbo", out=here.name) == 0
    assert "kept from" in capsys.readouterr().out
    assert sorted(p.name for p in here.iterdir()) == ["report.html", "report.json", "table"]


@pytest.mark.usefixtures("undrawn")
def test_another_evaluation_is_overwritten_only_when_that_is_asked_for(place, capsys):
    """The same command finds its table; others are refused, files unharmed."""
    here = place / "anew"
    for kept in (False, True):
        assert evaluate(place, "--measures", "elbo", out="anew") == 0
        assert ("kept from" in capsys.readouterr().out) == kept
    before = {f.name: f.read_bytes() for f in here.rglob("*") if f.is_file()}
    for other in (["--seed", "2"], ["--measures", "kl"], ["--ood", "noise"]):
        assert evaluate(place, "--measures", "elbo", *other, out="anew") == 2
        err = capsys.readouterr().err
        assert "is of another evaluation" in err and "--overwrite" in err
    assert {f.name: f.read_bytes() for f in here.rglob("*") if f.is_file()} == before
    assert evaluate(place, "--measures", "elbo", "--ood", "noise", "--overwrite", out="anew") == 0
    assert pg.Evaluation.load(here / "table").num_data == 60
    # The page's command does not overwrite, and is the same again.
    command_ = json.loads((here / "report.json").read_text("utf-8"))["command"]
    assert "--overwrite" not in command_ and cli.main(command_.split()[1:]) == 0
    assert "kept from" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--ood", "leters"], "did you mean 'letters'"),
        (["--ood", "noise", "noise"], "two sets called 'noise'"),
        (["--measures", "nl"], "did you mean 'nll'"),
        (["--measures", "ratio"], "--background RUN"),
        (["--background", "nowhere"], "nowhere"),
        (["--num-data", "1"], "at least 2"),
        (["--ood", "inverted:nothing"], "expected a file"),
        (["--seed", "0", "--chunk-size", "0"], "chunk_size=0"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(place, given, said, capsys):
    assert evaluate(place, *given, out="refused") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("probgen evaluate: ") and said in err


def test_a_run_that_is_not_there_is_refused(tmp_path, capsys):
    assert cli.main(["evaluate", str(tmp_path / "no"), "digits"]) == 2
    assert "save_pretrained" in capsys.readouterr().err


def test_help_lists_the_words(capsys):
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--help"])
    text = capsys.readouterr().out
    assert all(word in text for word in (*BUILT_IN, "inverted:", *command.NAMES))


# --- what suits a model ----------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_a_density_is_judged_without_code_lengths_and_says_so(tmp_path, capsys):
    """1-d data under a Normal: no pictures, no complexity by default; asked for, refused."""
    x = RNG.normal(size=(200, 3)).astype(np.float32)
    pytest.importorskip("pyro")
    make(likelihoods.Normal(0.5), (3,), "torch", x).save_pretrained(tmp_path / "model")
    np.save(tmp_path / "own.npy", x[:30])
    np.save(tmp_path / "far.npy", x[:30] + 9)
    words_ = ["evaluate", str(tmp_path / "model"), str(tmp_path / "own.npy"), "--particles", "20"]
    assert cli.main([*words_, "--ood", str(tmp_path / "far.npy")]) == 0
    assert "complexity is left out: the model has a density" in capsys.readouterr().out
    found = json.loads((tmp_path / "model-evaluation" / "report.json").read_text("utf-8"))
    assert "ordinary-and-strange" not in found["sections"]
    (verdict,) = found["sections"]["verdict"]["verdict"]
    assert verdict["readings"]["−log p"] == "better than chance"
    other = ["--measures", "complexity", "--out", str(tmp_path / "other")]
    assert cli.main([*words_, *other]) == 2
    assert "a density" in capsys.readouterr().err


# --- words -----------------------------------------------------------------------------------


@pytest.mark.parametrize("word", [*BUILT_IN, "inverted:letters"])
@pytest.mark.parametrize("need", [BINARY, FLAT, LEVELS, ON_UNIT, GREY])
def test_every_built_in_word_fits_every_model_of_pictures(word, need):
    found = load(word, need, count=12, seed=3)
    again = load(word, need, count=12, seed=3)
    assert found.values.shape == (12, *need.shape) and np.isfinite(found.values).all()
    np.testing.assert_array_equal(found.values, again.values)
    if need.are_indices:
        assert found.values.dtype == np.int32 and 0 <= found.values.min() <= found.values.max() < 17
    elif need.levels:
        k = found.values * (need.levels - 1)
        np.testing.assert_allclose(k, np.rint(k), atol=1e-5)
    pictures = sentences.as_pictures(found.values, need)
    assert pictures.shape == (12, *need.image_shape) and 0 <= pictures.min() <= pictures.max() <= 1


def test_what_is_done_is_said():
    said = load("faces", BINARY, count=5, seed=0).done
    assert said[0] == "5 of 100, drawn by the seed"
    assert said[1].startswith("resized from 25 × 25 to 28 × 28") and "black and white" in said[2]
    done = fitted_to(Loaded(np.array([[[0, 255]]] * 2, np.uint8), "bytes"),
                     Need("x", (1, 2, 1), None, False, False)).done  # fmt: skip
    assert done == ("reshaped to 1 × 2 × 1",) or "divided by 255" in done


def test_levels_bytes_and_units_become_what_the_site_takes():
    """0, 8, 16 of 17 levels: as indices, as k / 16, and as bytes, all the same data."""
    k = np.array([[0, 8, 16, 4]] * 2)
    need = Need("x", (4,), 17, True, True)
    for given in (k, k / 16.0):
        np.testing.assert_array_equal(fitted_to(Loaded(given, "s"), need).values, k)
    unit = Need("x", (4,), 17, False, True)
    np.testing.assert_allclose(fitted_to(Loaded(k / 16.0, "s"), unit).values, k / 16.0)
    real = Need("x", (4,), None, False, False)
    bytes_ = fitted_to(Loaded(np.array([[0, 51, 255, 102]] * 2, np.uint8), "s"), real)
    np.testing.assert_allclose(bytes_.values, [[0, 0.2, 1, 0.4]] * 2, atol=1e-7)
    two = Need("x", (4,), 2, False, True)
    grey = fitted_to(Loaded(np.array([[0, 0.4, 0.6, 1]] * 2), "s"), two)
    np.testing.assert_array_equal(grey.values, [[0, 0, 1, 1]] * 2)
    assert grey.done == ("made black and white at 0.5",)
    already = fitted_to(Loaded(np.array([[0, 1, 1, 0]] * 2), "s"), two)
    assert already.done == () and already.values.dtype == np.float32


def test_inversion_comes_before_black_and_white():
    plain, turned = (load(w, BINARY, count=8, seed=0).values for w in
                     ("mnist5k", "inverted:mnist5k"))  # fmt: skip
    assert abs((plain + turned - 1).mean()) < 1e-3  # but for pixels at exactly one half
    assert set(np.unique(turned)) == {0, 1}


def test_files_of_every_kind_are_read(tmp_path):
    from PIL import Image

    x = RNG.integers(0, 256, (6, 8, 8)).astype(np.uint8)
    np.save(tmp_path / "a.npy", x)
    np.savez(tmp_path / "b.npz", x)
    np.savez(tmp_path / "c.npz", x=x, other=np.zeros(3))
    with gzip.open(tmp_path / "d-idx3-ubyte.gz", "wb") as file:
        file.write(struct.pack(">HBB3I", 0, 8, 3, *x.shape) + x.tobytes())
    (tmp_path / "folder").mkdir()
    for i, picture in enumerate(x):
        Image.fromarray(picture, "L").save(tmp_path / "folder" / f"{i}.png")
    need = Need("x", (8, 8, 1), None, False, False)
    for name in ("a.npy", "b.npz", "c.npz", "d-idx3-ubyte.gz", "folder"):
        found = load(str(tmp_path / name), need, count=99, seed=0).values
        np.testing.assert_allclose(found[..., 0], x / 255.0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("values", "need", "error", "said"),
    [
        (np.zeros((4, 5)), REAL, ShapeError, "expected \\(3,\\)"),
        (np.zeros((4, 28, 28, 3)), BINARY, ShapeError, "shape \\(28, 28, 3\\)"),
        (np.full((4, 3), np.nan), REAL, DataError, "NaN"),
        (np.full((4, 28, 28, 1), 7.0), BINARY, DataError, "from 7 to 7"),
        (np.full((4, 8, 8, 1), -1.0), LEVELS, DataError, "expected \\[0, 1\\]"),
    ],
)
def test_what_cannot_be_fitted_without_guessing_is_refused(values, need, error, said):
    with pytest.raises(error, match=said):
        fitted_to(Loaded(values, "s"), need)


def test_words_that_need_a_square_and_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(ShapeError, match="square"):
        load("letters", REAL, count=5, seed=0)
    for name in ("x.npz", "x.npy", "x.idx"):
        (tmp_path / name).write_text("this is no file of numbers")
        with pytest.raises(DataError, match=name):
            load(str(tmp_path / name), REAL, count=5, seed=0)
    np.save(tmp_path / "one.npy", np.zeros((1, 3)))
    with pytest.raises(DataError, match="two data or more"):
        load(str(tmp_path / "one.npy"), REAL, count=5, seed=0)
