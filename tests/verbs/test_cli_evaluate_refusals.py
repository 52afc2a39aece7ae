"""`probgen evaluate`: what it will not do, in one line that says what can be; what noise is."""

import numpy as np
import pytest
from test_cli_evaluate import BINARY, FLAT, GREY, REAL, make, undrawn

import probgen as pg
from probgen import cli, dist
from probgen.evaluation.page.sentences import Loaded, load
from probgen.models import likelihoods

RNG = np.random.default_rng(0)
__all__ = ["undrawn"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Models of black-and-white 8 x 8 pictures and of standardised vectors, and data of either."""
    folder = tmp_path_factory.mktemp("runs")
    name = next(name for name, is_here in pg.backends.available().items() if is_here)
    x = (RNG.random((60, 8, 8, 1)) > 0.5).astype(np.float32)
    make(dist.Bernoulli, (8, 8, 1), name, x).save_pretrained(folder / "model")
    np.save(folder / "x.npy", x)
    y = RNG.normal([0, 5, -3], [1, 2, 0.1], size=(60, 3)).astype(np.float32)
    make(likelihoods.Normal(0.5), (3,), name, y).save_pretrained(folder / "vectors")
    np.save(folder / "y.npy", y)
    return folder


def evaluate(place, model, data_word, *words):
    options = ["--particles", "20", "--num-data", "60", "--measures", "nll", "complexity"]
    options = options if model == "model" else options[:-1]
    return cli.main(["evaluate", str(place / model), data_word, *options, *words])


@pytest.mark.usefixtures("undrawn")
def test_copies_are_counted_on_the_page_and_in_the_terminal(place, capsys):
    """Constants are black or white after the threshold: 60 data, 2 distinct."""
    out = place / "constants"
    assert evaluate(place, "model", str(place / "x.npy"), "--ood", "constants",
                    "--out", str(out)) == 0  # fmt: skip
    assert "60 (2 distinct) constants" in capsys.readouterr().out
    text = (out / "report.html").read_text("utf-8")
    assert (
        "60 data, 2 distinct" in text and "too few data to say what is better than chance" in text
    )
    assert "[0.224," in text.replace("\N{NO-BREAK SPACE}", " ") and "[0.951," not in text


def test_a_folder_that_holds_a_model_is_not_written_into(place, capsys):
    before = sorted((place / "model").iterdir())
    for out in (place / "model", place / "model" / ".." / "model", place / "vectors"):
        assert evaluate(place, "model", str(place / "x.npy"), "--out", str(out)) == 2
        assert "holds a saved model" in capsys.readouterr().err
    assert sorted((place / "model").iterdir()) == before


def test_a_page_of_other_hands_is_not_overwritten(place, capsys):
    (place / "notes").mkdir()
    (place / "notes" / "report.html").write_text("mine")
    for broken in ("{", "[]", '{"settings": {}}'):
        (place / "notes" / "report.json").write_text(broken)
        words = (str(place / "x.npy"), "--out", str(place / "notes"))
        assert evaluate(place, "model", *words) == 2
        assert "another evaluation" in capsys.readouterr().err
    assert (place / "notes" / "report.html").read_text() == "mine"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("two.npz", "expected one alone, or one called 'x'"),
        ("junk.npy", "cannot be read as a .npy array"),
        ("objects.npy", "holds Python objects"),
        ("huge.npy", "declares the shape [1000000000000, 784]"),
        ("cut.npz", "damaged, truncated or no archive"),
        ("a\0b", "expected a name of printable text"),
        ("x" * 300, "expected a name of printable text"),
        ("\udcff.npz", "expected a name of printable text"),
        ("table.csv", "expected .npz, .npy, or IDX"),
        ("inverted:", "expected 'inverted:WORD'"),
        ("", "got the data ''"),
        ("noize", "did you mean 'noise'."),
    ],
)
def test_a_message_says_what_can_be_done_here(place, word, said, capsys, monkeypatch):
    monkeypatch.chdir(place)
    np.savez("two.npz", a=np.zeros((3, 3)), b=np.zeros((3, 3)))
    (place / "junk.npy").write_bytes(b"junk")
    with open("huge.npy", "wb") as file:  # a header alone
        shape = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 784)}
        np.lib.format.write_array_header_1_0(file, shape)
    np.savez("cut.npz", x=np.zeros((30, 3)))
    (place / "cut.npz").write_bytes((place / "cut.npz").read_bytes()[:200])
    np.save("objects.npy", np.array([{}, {}], object), allow_pickle=True)
    (place / "table.csv").write_text("1,2,3\n4,5,6\n")
    assert evaluate(place, "vectors", word, "--out", "refused") == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and ";" in err
    assert "allow_pickle" not in err and "unsafe" not in err and "key=" not in err
    assert "?." not in err and "evaluate: evaluate" not in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--seed", "-1"), "seed=-1, expected an integer of at least 0"),
        (("--num-data", "0"), "num_data=0, expected a whole number"),
        (("--num-data", "10000000000"), "num_data=10000000000, expected a whole number"),
        (("--chunk-size", "-5"), "chunk_size=-5, expected a whole number"),
        (("--particles", "1000000000"), "particles=1000000000, expected a whole number"),
    ],
)
def test_an_option_out_of_range_is_one_line(place, options, said, capsys):
    assert evaluate(place, "vectors", "noise", "--out", str(place / "none"), *options) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not (place / "none").exists()


def test_more_particles_than_memory_holds_are_one_line(place, capsys, monkeypatch):
    monkeypatch.setattr("probgen.language.memory.available", lambda: 10**8)
    options = ("--measures", "nll", "--particles", "1000000", "--out", str(place / "much"))
    assert evaluate(place, "model", "digits", *options) == 2
    err = capsys.readouterr().err
    assert err.startswith(
        "probgen evaluate: IWAE(1000000): 1,000,000 particles of 60 data at a time: got a size of"
    )
    assert "lower chunk_size, or take fewer particles" in err and err.count("\n") == 1


def test_the_commands_name_is_said_once(place, capsys):
    assert evaluate(place, "model", "digits", "--measures", "elbos") == 2
    err = capsys.readouterr().err
    assert err.startswith("probgen evaluate: got the measure 'elbos'")
    assert err.endswith("did you mean 'elbo'.\n")


def test_a_model_that_is_a_function_is_sent_to_python(tmp_path, capsys):
    @pg.model
    def coin():
        with pg.data_plate():
            z = pg.sample("z", dist.Normal(0.0, 1.0))
            pg.sample("x", dist.Normal(z, 1.0))

    @coin.with_guide
    def guide(x):
        with pg.data_plate():
            pg.sample("z", dist.Normal(0.5 * x, 0.7))

    model = guide if hasattr(guide, "program") else coin
    pg.Fitted(model, {}, shapes={"x": ()}).save_pretrained(tmp_path / "coin")
    assert cli.main(["evaluate", str(tmp_path / "coin"), "digits"]) == 2
    err = capsys.readouterr().err
    assert "from Python" in err and "evaluation.report" in err


# --- noise -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_noise_and_constants_have_the_range_of_the_models_own_data(place, capsys):
    own = Loaded(np.load(place / "y.npy"), "own")
    low, high = own.values.min(0), own.values.max(0)
    noise = load("noise", REAL, count=2000, seed=0, like=own)
    assert (noise.values >= low).all() and (noise.values <= high).all()
    # The ends are reached: P(nothing in the outer 1 % of a side) = .99^2000 = 2e-9.
    np.testing.assert_allclose(noise.values.min(0), low, atol=0.01 * (high - low).max())
    np.testing.assert_allclose(noise.values.max(0), high, atol=0.01 * (high - low).max())
    assert "independent uniform numbers on the range of own" in noise.done[-1]
    constants = load("constants", REAL, count=50, seed=0, like=own)
    np.testing.assert_array_equal(constants.values, constants.values[:, :1] * np.ones(3))
    assert low.min() <= constants.values.min() < 0 < 1 < constants.values.max() <= high.max()
    assert "one uniform number a datum on the range of own" in constants.done[-1]
    assert evaluate(place, "vectors", str(place / "y.npy"), "--ood", "noise") == 0
    text = (place / "vectors-evaluation" / "report.html").read_text("utf-8")
    assert "independent uniform numbers on the range of y" in text


@pytest.mark.parametrize("need", [BINARY, FLAT, GREY])
def test_noise_of_pictures_is_on_the_unit_interval(need):
    own = load("noise", need, count=20, seed=1)
    found = load("noise", need, count=20, seed=0, like=own)
    assert "independent uniform numbers on [0, 1]" in found.done
    np.testing.assert_array_equal(found.values, load("noise", need, count=20, seed=0).values)
