"""`probgen tune`: a folder of pictures in, a subject, pictures and a page out; what it refuses."""

import dataclasses
import json
import shlex
import shutil

import browser
import numpy as np
import pytest
from one_backend import HERE, first_of
from PIL import Image

import probgen as pg
from probgen import cli, nets
from probgen.errors import DataError
from probgen.evaluation import subjects
from probgen.evaluation.subjects.bases import base_of
from probgen.evaluation.subjects.fidelity import fidelity_of, judge_of
from probgen.evaluation.subjects.learning import INNER, Tuning
from probgen.evaluation.subjects.scores import subject_fidelity
from probgen.inference import DDIM
from probgen.models import VAE, Diffusion, NoiseSchedule, likelihoods
from probgen.trees import tree_map

# The backend whose page is drawn and looked at: the other one's differs by its curves alone.
DRAWN = HERE[:1]
# A subject is learned, saved and drawn on both backends by `test_subject.py`; what a command makes
# of it, folders and pages, is no backend's.
on_one_backend = first_of(
    HERE,
    pytest.mark.repeated("test_subject.py::test_the_map_form_has_the_gradient_of_the_plain_loss"),
)
PROMPTS = ("a dog on sand", "a dog")
LENGTH = 7


def spread(rng, tree):
    """Parameters without the zeros of a start, so that text reaches the output."""
    return tree_map(lambda v: (v + 0.3 * rng.standard_normal(np.shape(v))).astype(np.float32), tree)


def diffusion(shape=(4, 4, 3), text=True, data_range=(-1.0, 1.0)):
    rng = np.random.default_rng(0)
    net = nets.PatchTransformer(patch=2, width=8, num_layers=1, num_heads=2)
    words = nets.TextEncoder(("a", "dog", "on", "sand"), LENGTH, dim=8, num_heads=2)
    model = Diffusion(
        net, shape, NoiseSchedule(6), condition=words if text else None, data_range=data_range
    )
    context = [words.out_shape()] if text else []
    params = {"denoiser": spread(rng, net.init(rng, shape, (), *context))}
    if text:
        params["condition"] = words.init(rng, (LENGTH,))
    shapes = {"x": shape, **({"condition": (LENGTH,)} if text else {})}
    dtypes = {"condition": "int32"} if text else {}
    return pg.Fitted(model, params, shapes=shapes, dtypes=dtypes)


def save(path, x):
    Image.fromarray(np.asarray(x, np.uint8)).save(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Three pictures with masks, one with a caption, and bases with and without text."""
    folder = tmp_path_factory.mktemp("tune")
    rng, mask = np.random.default_rng(1), np.zeros((8, 8))
    mask[2:6, 4:] = 255
    (folder / "dog").mkdir()
    for i in range(3):
        save(folder / "dog" / f"{i}.png", rng.integers(0, 256, (8, 8, 3)))
        save(folder / "dog" / f"{i}_mask.png", mask)
    (folder / "dog" / "1.txt").write_text("a dog on sand\n")
    diffusion().save_pretrained(folder / "base")
    diffusion(text=False).save_pretrained(folder / "mute")
    return folder


def colours(x):
    """[n, 6]: mean and spread of each colour, a stand-in for a network."""
    return np.concatenate([np.mean(x, axis=(1, 2)), np.std(x, axis=(1, 2))], axis=1)


def words(captions):
    return np.array([np.resize([len(c), 1.0, 2.0], 6) for c in captions])


@pytest.fixture(scope="module")
def undrawn():
    with pytest.MonkeyPatch.context() as patch:
        drawn = "probgen.evaluation.subjects.page.figure_svg"
        patch.setattr(drawn, lambda figure: "<svg></svg>")
        yield


@pytest.fixture(scope="module")
def finished(place, backend, request):
    """(the out folder, its page's numbers) of a short run, with figures on one backend; on torch
    with rows for each step."""
    if [backend.name] != DRAWN:
        request.getfixturevalue("undrawn")
    out = place / f"out-{backend.name}"
    path = subjects.tune(
        place / "dog", place / "base", PROMPTS, word="dog", num_tokens=2, num_steps=3, draws=2,
        stepwise=backend.name == "torch", num_images=2, sampler_steps=2, features=colours,
        text_features=words, backend=backend, out=out, say=print, progress_bar=False,
        command="probgen tune",
    )  # fmt: skip
    assert path == out / "report.html"
    return out, json.loads((out / "report.json").read_text("utf-8"))


@on_one_backend
def test_the_folder_holds_what_was_made_and_nothing_else(finished, place):
    out, _ = finished
    assert sorted(p.name for p in out.iterdir()) == [
        "model", "pictures", "report.html", "report.json"
    ]  # fmt: skip
    folders = sorted(p.name for p in (out / "pictures").iterdir())
    assert folders == ["01-a-dog-on-sand", "02-a-dog"]
    names = sorted(p.name for p in (out / "pictures" / "02-a-dog").iterdir())
    ways = ("with-the-subject", "without-it")
    assert names == [f"{way}-{k:02d}.png" for way in ways for k in (1, 2)]
    assert not [p.name for p in place.iterdir() if p.name.startswith(".")]


@on_one_backend
def test_the_saved_model_draws_the_saved_pictures(finished, place, backend):
    """With the subject and, by the base, without it; so they differ by the subject alone."""
    out, _ = finished
    for way, name in (("with-the-subject", out / "model"), ("without-it", place / "base")):
        model = pg.Fitted.from_pretrained(name)
        text = getattr(model.model.condition, "net", model.model.condition)
        ids = np.repeat(text.tokens(PROMPTS), 2, axis=0)
        x = pg.generate(
            model, 4, method=DDIM(2, guidance_scale=2.0), inputs={"condition": ids}, seed=0,
            chunk_size=2, backend=backend,
        )["x"]  # fmt: skip
        files = sorted((out / "pictures").rglob(f"{way}-*.png"))
        found = np.stack([np.asarray(Image.open(file)) for file in files]) / 255
        np.testing.assert_allclose(found, np.clip((x + 1) / 2, 0, 1), atol=0.51 / 255)
    base, rows = pg.Fitted.from_pretrained(place / "base"), model.params["condition"]
    np.testing.assert_array_equal(rows["positions"], base.params["condition"]["positions"])


@on_one_backend
def test_the_page_has_the_fit_and_the_fidelities(finished, place, backend_name):
    out, numbers = finished
    found = numbers["sections"]
    learning, gain = found["learning"], found["learning"]["gain"]
    assert len(learning["denoising_error"]) == 3
    steps = len(learning.get("stepwise_denoising", ()))
    assert steps == {"torch": 2 * INNER, "jax": 0}[backend_name]
    assert gain["gain"] == pytest.approx(gain["without"] - gain["with_it"])
    assert learning["distance"][0] == 0 < learning["distance"][1]
    assert found["sources"]["captions"] == [
        {"caption": "a dog", "pictures": 2}, {"caption": "a dog on sand", "pictures": 1}
    ]  # fmt: skip
    files = sorted((out / "pictures").rglob("without-it-*.png"))
    drawn = np.stack([np.asarray(Image.open(file)) for file in files]) / 255
    real = 0.5 * (pg.data.load_captioned_folder(place / "dog", 4)["x"] + 1)
    told = found["fidelity"]["means"]["without it"]
    want = subject_fidelity(drawn, real, colours).mean()
    assert told["subject fidelity"] == pytest.approx(want, abs=5e-3) and "prompt fidelity" in told


@on_one_backend
def test_the_program_of_the_page_reads_the_model(finished, monkeypatch):
    out, numbers = finished
    monkeypatch.chdir(out)
    *lines, last = numbers["sections"]["again"]["load"].splitlines()
    space = {}
    exec(compile("\n".join(lines), "load", "exec"), space)  # what is last, the test above does
    assert last.startswith("x = pg.generate(model, 1") and space["ids"].shape == (1, LENGTH)
    assert space["model"].model.condition.num_tokens == 2 and space["method"].num_steps == 2


@pytest.mark.parametrize("backend_name", DRAWN, indirect=True)
@pytest.mark.parametrize("width", [360, 1100])
def test_the_page_looks_well(finished, backend_name, width):
    page = (finished[0] / "report.html").read_text("utf-8")
    found, console = browser.look(browser.find(), page, width)
    assert console == [] and found["width"] <= width and not found["wide"] and not found["cut"]
    assert found["broken"] == 0 and found["images"] == 2 * 2 + 2 and found["tables"] == 3
    curves = {"torch": 4, "jax": 2}[backend_name]  # of each fit two
    assert found["svgs"] == 2 + curves  # and two lines of a formula


# --- what is refused ---------------------------------------------------------------------------


@pytest.fixture
def asked(place, tmp_path):
    """Runs the command with changes to what would work; nothing is ever learned."""

    def run(*more, folder="dog", base="base", prompts=("a dog",), out=tmp_path / "out"):
        said = [w for p in prompts for w in ("--prompt", p)]
        words = ["--word", "dog", "--num-tokens", "2", "--out", str(out), *more]
        return cli.main(["tune", str(place / folder), "--base", str(place / base), *said, *words])

    return run


@pytest.fixture(autouse=True)
def no_fits(request, monkeypatch):
    if "asked" in request.fixturenames:
        monkeypatch.setattr(
            "probgen.evaluation.subjects.command.learn", lambda *a, **k: pytest.fail("it learned")
        )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"folder": "nowhere"}, "expected a folder"),
        ({"folder": "base"}, "holds no pictures"),
        ({"base": "nowhere"}, "is no folder"),
        ({"base": "dog"}, "dog"),
        ({"base": "mute"}, "reads no text"),
        ({"prompts": ("a dag",)}, "did you mean 'dog'"),
        ({"prompts": ("a dog on sand on sand",)}, "shorten it"),
        ({"prompts": ("a dog on a sand",)}, "reach into the last 2"),
        ({"prompts": ("a dog", "on sand")}, "expected one with the subject's word 'dog'"),
        ({"more": ("--sampler-steps", "7")}, "6"),
        ({"more": ("--num-tokens", "7")}, "expected fewer rows"),
        ({"more": ("--weight", "-1")}, "weight=-1.0"),
        ({"more": ("--clip", "nowhere")}, "nowhere"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(asked, given, said, capsys, tmp_path):
    assert asked(*given.get("more", ()), **{k: v for k, v in given.items() if k != "more"}) == 2
    err = capsys.readouterr().err
    assert err.startswith("probgen tune: ") and err.count("\n") == 1 and said in err
    assert not (tmp_path / "out").exists()


def test_pictures_that_do_not_fit_are_refused(place, tmp_path, capsys):
    def asked(*more):
        words = ["tune", str(tmp_path / "dog"), "--base", str(place / "base"), "--prompt", "a dog"]
        assert cli.main([*words, "--out", str(tmp_path / "out"), *more]) == 2
        return capsys.readouterr().err

    shutil.copytree(place / "dog", tmp_path / "dog")
    assert "without a caption" in (err := asked()) and "--word" in err
    save(tmp_path / "dog" / "0_mask.png", np.full((4, 4), 255))
    assert "expected the same" in asked("--word", "dog")


@on_one_backend
def test_an_out_folder_is_replaced_only_by_its_own_command(place, asked, finished, capsys):
    out, _ = finished
    before = {f: f.read_bytes() for f in out.rglob("*") if f.is_file()}
    for more, said in (((), "--overwrite"), (("--num-steps", "5"), "of other pictures")):
        assert asked(*more, out=out) == 2
        assert said in capsys.readouterr().err
    assert asked("--overwrite", base=f"{out.name}/model", out=out) == 2
    assert "which is read" in capsys.readouterr().err
    assert asked(base=f"{out.name}/model") == 2
    assert "has a learned subject in it" in capsys.readouterr().err
    assert {f: f.read_bytes() for f in out.rglob("*") if f.is_file()} == before
    for name in ("dog", "base"):
        files = sorted((place / name).iterdir())
        shutil.copytree(place / name, place / f"{name}-2", dirs_exist_ok=True)
        assert asked("--overwrite", out=place / f"{name}-2") == 2
        assert "something else" in capsys.readouterr().err
        assert len(list((place / f"{name}-2").iterdir())) == len(files)


def test_the_page_s_command_is_the_same_again(monkeypatch):
    seen = []
    monkeypatch.setattr(subjects, "tune", lambda *given, **options: seen.append((given, options)))
    command = ["tune", "a b", "--base", "run", "--prompt", "a dog", "--prompt", "dog", "--no-mask",
               "--stepwise", "--weight", "0", "--guidance", "1.5", "--overwrite"]  # fmt: skip
    assert cli.main(command) == 0
    assert cli.main(shlex.split(seen[0][1]["command"])[1:]) == 0
    first, second = (dict(options, given=given) for given, options in seen)
    assert first.pop("overwrite") and not second.pop("overwrite")
    assert first == second and first["given"] == ("a b", "run", ("a dog", "dog"))
    assert (first["masked"], first["stepwise"], first["weight"]) == (False, True, 0.0)


# --- its parts ---------------------------------------------------------------------------------


def test_a_latent_base_encodes_pictures_and_reduces_masks(place, tmp_path, backend):
    """Latents 2 x 2 x 3 of pictures 4 x 4 x 3; half covered counts, less does not."""
    prior = diffusion((2, 2, 3), data_range=None)
    net = nets.MLP(hidden=(), out=(2, 2, 3), heads=("loc", "log_scale"))
    decoder, rng = nets.MLP(hidden=(), out=(4, 4, 3)), np.random.default_rng(0)
    model = VAE(prior.model, decoder, likelihoods.Implicit(), net, data_range=(0.0, 1.0))
    params = {f"prior/{k}": v for k, v in prior.params.items()}
    params |= {"encoder": net.init(rng, (4, 4, 3)), "decoder": decoder.init(rng, (2, 2, 3))}
    shapes = {**prior.shapes, "x": (4, 4, 3)}
    pg.Fitted(model, params, shapes=shapes, dtypes=prior.dtypes).save_pretrained(tmp_path / "vae")
    base = base_of(tmp_path / "vae", backend)
    assert base.is_latent and base.size == (4, 4) and base.span == (0.0, 1.0)
    x, ids = rng.random((2, 4, 4, 3)).astype(np.float32), base.text.tokens(["a dog", "a"])
    want = net.apply(tree_map(backend.asarray, params["encoder"]), backend.asarray(x))["loc"]
    np.testing.assert_allclose(base.codes(x, ids), backend.to_numpy(want), rtol=1e-4, atol=1e-5)
    mask = np.zeros((1, 4, 4, 1), np.float32)
    mask[0, :2, 0], mask[0, 2:, 2:], mask[0, 0, 3] = 1, 1, 1
    np.testing.assert_array_equal(base.covers(mask)[0, ..., 0], [[1, 0], [0, 1]])
    with pytest.raises(DataError, match=r"picture 1 that is empty at the size .*2 x 2"):
        base.covers(np.float32([1.0] + [0.0] * 15).reshape(1, 4, 4, 1))


def test_without_features_there_are_no_scores_but_a_reason(backend):
    small = judge_of((8, 8), None, None, backend)
    assert fidelity_of(small, {}, (), np.zeros(0)) is None and "too small" in small.why_not
    given = judge_of((8, 8), colours, None, backend)
    assert given.texts is None and "--clip" in given.why_not


def test_five_prompts_are_tested_and_fewer_are_not(backend):
    rng = np.random.default_rng(0)
    real = np.stack([np.full((4, 4, 3), (0.9, 0.1, 0.1)) * s for s in (0.9, 1.0)])
    drawn = {
        "near": real[:1] * rng.uniform(0.8, 1, (12, 1, 1, 1)),
        "far": rng.random((12, 4, 4, 3)),
    }
    judge = judge_of((8, 8), colours, None, backend)
    many = fidelity_of(judge, drawn, [f"p{i // 2}" for i in range(12)], real)
    assert many.table.winners == {"subject fidelity": "near"}
    assert many.among_sources == pytest.approx(1.0)
    assert fidelity_of(judge, drawn, ["p"] * 12, real).table is None


def test_settings_are_told_apart_by_all_their_fields():
    names = {f.name for f in dataclasses.fields(Tuning)}
    given = set(subjects.tune.__wrapped__.__kwdefaults__)
    assert names <= given  # so that no option is left out of the JSON file's settings
