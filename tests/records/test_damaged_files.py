"""What is read from a file is what was written, or a SaveError; never a raw error, a hang, or a
gigabyte of memory. Random damage to folders of every kind, with checksums as they were and mended.
"""

import json
import os
import resource
import time

import damage_cases as cases
import numpy as np
import pytest
from fit_cases import quick
from safetensors.numpy import load_file, save_file

import probgen as pg
from probgen.engine.fitted import Fitted
from probgen.errors import SaveError
from probgen.records import reading


@pytest.fixture(scope="module")
def folders(backend_name, tmp_path_factory):
    return cases.make(tmp_path_factory.mktemp("folders"), quick(backend_name))


def trial(kind, folder, damage, rng, place, *, must_be_same):
    """Damages a copy and reads it: the same numbers, or a SaveError."""
    target = cases.copied(folder, place)
    damage(rng, target)
    try:
        found = cases.read(kind, target)
    except SaveError as error:
        assert str(error)
        return
    if must_be_same:
        assert cases.is_same(found, cases.read(kind, folder)), "read as other numbers"


def fuzz(folders, kind, tmp_path, rng, trials):
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    for number in range(trials):
        damages = cases.BYTES if number % 2 else cases.MENDED
        damage = damages[rng.integers(len(damages))]
        state = rng.bit_generator.state
        try:
            trial(kind, folders[kind], damage, rng, tmp_path, must_be_same=bool(number % 2))
        except Exception as error:
            raise AssertionError(
                f"{kind}, {damage.__name__}, {state['state']}: {error!r}"
            ) from error
        assert time.monotonic() - began < 600 + 5 * trials
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 400_000, f"{grown} KiB for files of a few KiB"


@pytest.mark.parametrize("kind", cases.KINDS)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_folder_is_read_as_it_was_or_refused(folders, kind, tmp_path, backend_name):
    """Other damage on each backend, whose folders are alike but for the fitted weights."""
    seed = {"torch": 1, "jax": 2}[backend_name]
    fuzz(folders, kind, tmp_path, np.random.default_rng(seed), 12 if kind == "run" else 45)


@pytest.mark.slow
@pytest.mark.parametrize("kind", cases.KINDS)
@pytest.mark.filterwarnings("ignore")
def test_a_thousand_damaged_folders(folders, kind, tmp_path):
    """Other damage every time; a failure prints the state of the generator before it."""
    fuzz(folders, kind, tmp_path, np.random.default_rng(), 1000 if kind == "run" else 5000)


# ---- values of the config


@pytest.mark.parametrize("kind", cases.KINDS)
def test_every_value_of_a_config_is_covered(folders, kind, tmp_path):
    """Each number, text and name, one after another: none may change unseen."""
    text = json.loads((folders[kind] / "config.json").read_text())
    target = cases.copied(folders[kind], tmp_path)
    for holder, key in list(cases._places(text)):
        was = holder[key]
        if isinstance(was, dict | list):
            continue
        holder[key] = was + 1 if isinstance(was, int | float) else f"{was}x"
        (target / "config.json").write_text(json.dumps(text))
        with pytest.raises(SaveError):
            cases.read(kind, target)
        holder[key] = was
    (target / "config.json").write_text(json.dumps(text))
    assert cases.is_same(cases.read(kind, target), cases.read(kind, folders[kind]))


def sort_keys(value):
    """What `jq -S` makes: keys in order, and 1 for 1.0."""
    if isinstance(value, dict):
        return {k: sort_keys(value[k]) for k in sorted(value)}
    if isinstance(value, list):
        return [sort_keys(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@pytest.mark.parametrize("kind", cases.KINDS)
def test_a_formatter_changes_no_number(folders, kind, tmp_path):
    """Measures are stored by name: an order of names swaps nothing."""
    target = cases.copied(folders[kind], tmp_path)
    file = target / "config.json"
    file.write_text(json.dumps(sort_keys(json.loads(file.read_text())), indent=7))
    found = cases.read(kind, target)
    assert cases.is_same(found, cases.read(kind, folders[kind]))
    if kind in ("evaluation", "chunk"):
        np.testing.assert_array_equal(found["second/estimate"], cases.VALUES["second"]["estimate"])


def test_a_config_that_is_edited_on_purpose_says_how_and_is_then_taken(folders, tmp_path, caplog):
    target = cases.copied(folders["run"], tmp_path)
    file = target / "config.json"
    config = json.loads(file.read_text())
    config["model"]["fields"]["latent"]["arguments"]["dict"][1][1] = 9.0  # the prior's scale
    file.write_text(json.dumps(config))
    with pytest.raises(SaveError, match='edited it on purpose, remove its "checksum"'):
        Fitted.from_pretrained(target)
    del config["checksum"]
    file.write_text(json.dumps(config))
    Fitted.from_pretrained(target)
    assert "carries no checksum" in caplog.text


def test_what_an_older_release_wrote_is_read_with_a_warning_where_it_says_enough(
    folders, tmp_path, caplog
):
    for kind in cases.KINDS:
        target = cases.copied(folders[kind], tmp_path / kind)
        file = target / "config.json"
        config = json.loads(file.read_text())
        config["version"] = 1
        del config["checksum"]
        file.write_text(json.dumps(config))
        if kind == "run":
            assert cases.is_same(cases.read(kind, target), cases.read(kind, folders[kind]))
            assert "carries no checksum" in caplog.text
        else:
            with pytest.raises(SaveError, match="format version 1 .probgen 0.1.*make it again"):
                cases.read(kind, target)


# ---- arrays


def rewritten(folder, name, change):
    arrays = load_file(folder / f"{name}.safetensors")
    save_file({k: change(k, v) for k, v in arrays.items()}, folder / f"{name}.safetensors")
    cases.mend(folder)
    return folder


WRONG = {
    "float16": lambda k, v: v.astype(np.float16),
    "int32": lambda k, v: np.ones(v.shape, np.int32),
    "bool": lambda k, v: np.ones(v.shape, bool),
    "NaN": lambda k, v: (abs(v) + 1) * np.float32(np.nan) if v.dtype.kind == "f" else v,
    "infinity": lambda k, v: (abs(v) + 1) * np.float32(np.inf) if v.dtype.kind == "f" else v,
    "an axis more": lambda k, v: v[None],
}


@pytest.mark.parametrize("what", WRONG)
def test_weights_of_another_type_or_not_finite_are_refused(folders, tmp_path, what):
    words = {"NaN": "NaN or infinity", "infinity": "NaN or infinity"}.get(what, "expected float")
    with pytest.raises(SaveError, match=words):
        Fitted.from_pretrained(
            rewritten(cases.copied(folders["run"], tmp_path), "model", WRONG[what])
        )
    state = cases.copied(folders["checkpoint"], tmp_path)
    words = {"NaN": "NaN or infinity", "infinity": "NaN or infinity"}.get(what, "got an array")
    with pytest.raises(SaveError, match=words):
        cases.read("checkpoint", rewritten(state, "state", WRONG[what]))


@pytest.mark.parametrize("kind", ["BF16", "C64", "F8_E4M3", "F4", None])
def test_types_that_are_not_numpys_are_refused(folders, tmp_path, kind):
    folder = cases.copied(folders["run"], tmp_path)
    file = folder / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    next(v for k, v in header.items() if k != "__metadata__")["dtype"] = kind
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    cases.mend(folder)
    with pytest.raises(SaveError, match=f"of type {kind!r}, expected one of F64"):
        Fitted.from_pretrained(folder)


def test_float64_weights_are_kept(folders, tmp_path):
    """A fit in float64 has them."""
    folder = rewritten(
        cases.copied(folders["run"], tmp_path), "model", lambda k, v: v.astype(np.float64)
    )
    params = cases.flatten(Fitted.from_pretrained(folder).params)
    assert {v.dtype for v in params.values()} == {np.dtype(np.float64)}


def test_nan_is_not_saved_either(folders, tmp_path):
    fitted = Fitted.from_pretrained(folders["run"])
    fitted.params["decoder"]["out"]["bias"][:] = np.nan
    with pytest.raises(SaveError, match="'decoder/out/bias' hold NaN"):
        fitted.save_pretrained(tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---- what would never end, or never fit


@pytest.mark.parametrize("kind", cases.KINDS)
@pytest.mark.parametrize("file", ["config.json", "arrays"])
@pytest.mark.parametrize("what", ["a pipe", "a device", "a folder", "a loop"])
@pytest.mark.timeout(600)
def test_only_regular_files_are_read(folders, tmp_path, kind, file, what):
    folder = cases.copied(folders[kind], tmp_path)
    place = folder / file if file != "arrays" else next(folder.glob("*.safetensors"))
    place.unlink()
    if what == "a pipe":
        os.mkfifo(tmp_path / "pipe")
        place.symlink_to(tmp_path / "pipe")
    elif what == "a device":
        place.symlink_to("/dev/zero")
    elif what == "a folder":
        place.mkdir()
    else:
        place.symlink_to(place)
    with pytest.raises(SaveError, match="cannot be read|no regular file|something else"):
        cases.read(kind, folder)


def test_a_link_to_a_regular_file_is_one(folders, tmp_path):
    """As caches of downloaded models have them."""
    folder = cases.copied(folders["run"], tmp_path)
    for file in list(folder.iterdir()):
        file.rename(tmp_path / file.name)
        file.symlink_to(tmp_path / file.name)
    assert cases.is_same(cases.read("run", folder), cases.read("run", folders["run"]))


def declared(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    cases.mend(folder)
    return folder


def fields(config, net):
    return config["model"]["fields"][net]["fields"]


LARGE = {
    "a width": lambda c: fields(c, "decoder").update(hidden={"tuple": [10**9]}),
    "two widths": lambda c: fields(c, "decoder").update(hidden={"tuple": [10**5, 10**5]}),
    "an event": lambda c: c["model"]["fields"]["latent"].update(
        calls=[["expand", [[10**4, 10**5]]], ["to_event", [1]]]),
    "a shape": lambda c: c["inputs"]["dict"][0][1]["dict"].__setitem__(
        0, ["x", {"tuple": [10**5, 10**5]}]),
}  # fmt: skip


@pytest.mark.parametrize("what", LARGE)
@pytest.mark.timeout(600)
def test_sizes_far_beyond_what_is_stored_are_refused_before_they_are_built(folders, tmp_path, what):
    folder = declared(cases.copied(folders["run"], tmp_path), LARGE[what])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SaveError, match="declares a size|no more values than are stored"):
        Fitted.from_pretrained(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_shapes_are_compared_with_the_file_before_anything_is_made(folders, tmp_path):
    folder = cases.copied(folders["evaluation"], tmp_path)
    header = {
        "first/estimate": {"dtype": "F64", "shape": [10**12], "data_offsets": [0, 8 * 10**12]}
    }
    text = json.dumps(header).encode()
    (folder / "table.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"12345678")
    cases.mend(folder)
    with pytest.raises(SaveError, match="more or less than its header says"):
        cases.read("evaluation", folder)


def test_a_config_without_end_is_not_read_to_its_end(folders, tmp_path):
    folder = cases.copied(folders["run"], tmp_path)
    with open(folder / "config.json", "w") as stream:
        stream.truncate(10**12)  # of holes: nothing is stored
    with pytest.raises(SaveError, match="more than 16,777,216 bytes"):
        Fitted.from_pretrained(folder)


def test_settings_that_could_not_be_read_back_are_not_written(folders, tmp_path):
    table = pg.Evaluation.load(folders["evaluation"])
    table.info["notes"] = "x" * (reading.TEXT_BYTES + 1)
    with pytest.raises(SaveError, match="bytes of settings"):
        table.save(tmp_path / "t")
    assert not (tmp_path / "t").exists()
