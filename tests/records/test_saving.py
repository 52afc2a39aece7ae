"""Saved runs: read back to the bit on either backend, whole or not at all, and never executed."""

import errno
import json
import os
import pickle
import subprocess

import numpy as np
import pytest
from fit_cases import assert_same_bits, binary_data, coins, quick, small_vae, svi

import probgen as pg
from probgen import dist, nets
from probgen.backends import available
from probgen.engine.bind import bind
from probgen.engine.fitted import Fitted
from probgen.errors import ProbgenError, SaveError, ShapeError
from probgen.inference import ELBO, SVI
from probgen.models import EBM, VAE, Diffusion, Tilted, likelihoods
from probgen.records import reading, store
from probgen.records.codec import Pool, decode, encode

NORMAL = dist.Normal(0, 1).expand([2]).to_event(1)


def drawn(model, data, name, **options):
    """A `Fitted` with the parameters that a model starts from: saving needs no training."""
    b = quick(name)
    rows = {"x": data} if isinstance(data, np.ndarray) else data
    bound, params = bind(model, b, data=rows, seed=3, **options)
    shapes = {k: v.shape[1:] for k, v in rows.items()}
    kinds = {k: str(v.dtype) for k, v in rows.items()}
    from probgen.engine.loop import numpy_copy

    return Fitted(model, numpy_copy(b, params), info={"backend": name}, shapes=shapes, dtypes=kinds)


@pytest.fixture(scope="module")
def name():
    """A backend that is installed, for what does not depend on it."""
    return next(n for n, there in available().items() if there)


@pytest.fixture(scope="module")
def run(name):
    return drawn(small_vae(), binary_data(), name)


def test_what_was_fitted_is_read_back_whole(backend_name, tmp_path):
    fitted = pg.fit(
        small_vae(), binary_data(), svi(), num_steps=6, batch_size=16, seed=np.int64(0),
        backend=quick(backend_name), validation=binary_data(8), eval_every=3,
    )  # fmt: skip
    fitted.save_pretrained(tmp_path / "run")
    again = Fitted.from_pretrained(tmp_path / "run")
    assert again.model == fitted.model and again.info == fitted.info
    assert_same_bits(again.params, fitted.params)
    assert again.shapes == fitted.shapes and again.dtypes == fitted.dtypes
    assert again.history.events == fitted.history.events
    for name in ("elbo", "kl_units/z", "loss"):
        np.testing.assert_array_equal(again.history[name], fitted.history[name])
    np.testing.assert_array_equal(
        again.history.validation["elbo"], fitted.history.validation["elbo"]
    )
    files = sorted(p.name for p in (tmp_path / "run").iterdir())
    assert files == ["config.json", "history.safetensors", "model.safetensors"]


TURNED = pytest.param("torch", marks=pytest.mark.repeated(  # the same two numbers are compared
    "test_a_run_of_one_backend_gives_the_same_numbers_on_the_other"
))  # fmt: skip


@pytest.mark.parametrize("there", [TURNED, "jax"])
def test_a_run_of_one_backend_gives_the_same_numbers_on_the_other(backend_name, there, tmp_path):
    if there == backend_name or not available()[there]:
        pytest.skip("needs the other backend")
    data = binary_data(16, 5)
    fitted = drawn(small_vae(), data, backend_name)
    fitted.save_pretrained(tmp_path / "run")
    loaded = Fitted.from_pretrained(tmp_path / "run")
    z = np.random.default_rng(0).standard_normal((16, 2)).astype(np.float32)
    results = []
    for run, where in ((fitted, backend_name), (loaded, there)):
        b = quick(where)
        bound, params = run.bind(b, {"x": data})
        batch = {"x": b.asarray(data)}
        sites = bound.trace(params, batch, {"z": b.asarray(z)})
        guide = bound.trace_guide(params, batch, latents={"z": b.asarray(z)})
        log_p = sum(b.to_numpy(s.log_prob) for s in sites.values())
        log_q = b.to_numpy(guide["z"].log_prob)
        results.append((log_p, log_p - log_q))  # log joint, and the ELBO's integrand
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5, atol=1e-5)


# ---- every declaration ----

SHAPED = dict(decoder=nets.MLP(hidden=(8,), out=(4,)),
              encoder=nets.MLP(hidden=(8,), out=2, heads=("loc", "log_scale")))  # fmt: skip
DECLARATIONS = {
    "vae": small_vae(),
    "full covariance": small_vae(guide_kind="full"),
    "learned scale": VAE(latent=NORMAL, likelihood=dist.Normal, **SHAPED),
    "predicted scale": VAE(latent=NORMAL, likelihood=likelihoods.Normal("predicted"), **SHAPED),
    "ebm": EBM(energy=nets.MLPEnergy(hidden=(8,)), base=dist.Normal(0, 1).expand([4]).to_event(1)),
    "array in a prior": small_vae(dist.Normal(np.arange(2.0), np.ones(2)).to_event(1)),
    "mixture prior": small_vae(
        dist.MixtureSameFamily(dist.Categorical(probs=np.ones(3) / 3),
                               dist.Normal(np.zeros((3, 2)), 1.0).to_event(1))
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", DECLARATIONS)
def test_every_family_is_saved_with_its_declaration(which, name, tmp_path):
    fitted = drawn(DECLARATIONS[which], binary_data(), name)
    fitted.save_pretrained(tmp_path / "run")
    again = Fitted.from_pretrained(tmp_path / "run")
    assert repr(again.model) == repr(fitted.model)
    assert_same_bits(again.params, fitted.params)


@pytest.mark.parametrize(
    "value",
    [
        ELBO(num_particles=3), pg.Adam(pg.CosineDecay(0.1, num_steps=5), clip_norm=1.0),
        SVI(ELBO(), pg.SGD(0.1, momentum=0.9)), dist.Bernoulli, {1: (2.5, [None, True, "x"])},
        float("inf"), Diffusion, {"dist": "Normal"},
    ],
    ids=repr,
)  # fmt: skip
def test_decoding_undoes_encoding_or_encoding_refuses(value):
    try:
        text = json.dumps(encode(value))
    except SaveError:
        assert value is Diffusion  # a class is not a declaration
        return
    assert decode(json.loads(text)) == value


# ---- models built on fitted ones ----


def hierarchy(name):
    prior = drawn(VAE(latent=NORMAL, likelihood=dist.Normal,
                      decoder=nets.MLP(hidden=(4,), out=(2,)),
                      encoder=nets.MLP(hidden=(4,), out=2, heads=("loc", "log_scale"))),
                  np.zeros((4, 2), np.float32), name)  # fmt: skip
    return drawn(small_vae(prior), binary_data(), name)


def tilted(name):
    return drawn(Tilted(drawn(small_vae(), binary_data(), name), nets.MLPEnergy(hidden=(8,))),
                 binary_data(), name)  # fmt: skip


def tilted_twice(name):
    return drawn(Tilted(tilted(name), nets.MLPEnergy(hidden=(3,)), net_name="more"),
                 binary_data(), name)  # fmt: skip


@pytest.mark.parametrize("make", [tilted, tilted_twice, hierarchy])
def test_a_model_on_a_fitted_base_is_saved_with_it(make, name, tmp_path):
    fitted = make(name)
    fitted.save_pretrained(tmp_path / "run")
    again = Fitted.from_pretrained(tmp_path / "run")
    assert_same_bits(again.params, fitted.params)
    assert_same_bits(again.model.fitted_params(), fitted.model.fitted_params())
    assert again.model.frozen() == fitted.model.frozen()
    # The frozen parameters are the run's own: they are stored once.
    assert not (tmp_path / "run" / "parts.safetensors").exists()


def test_a_base_that_the_fit_has_moved_away_from_is_kept_beside_it(name, tmp_path):
    fitted = tilted(name)
    moved = {k: {n: {m: v + 1 for m, v in p.items()} if isinstance(p, dict) else p + 1
                 for n, p in tree.items()} for k, tree in fitted.params.items()}  # fmt: skip
    Fitted(fitted.model, moved, info=fitted.info, shapes=fitted.shapes).save_pretrained(
        tmp_path / "run"
    )
    again = Fitted.from_pretrained(tmp_path / "run")
    assert_same_bits(again.params, moved)
    assert_same_bits(again.model.fitted_params(), fitted.model.fitted_params())


def test_a_function_is_asked_for_again_and_must_fit(name, tmp_path):
    fitted = drawn(coins, binary_data(), name)
    fitted.save_pretrained(tmp_path / "run")
    with pytest.raises(SaveError, match=r"from_pretrained\(path, model=...\)"):
        Fitted.from_pretrained(tmp_path / "run")
    again = Fitted.from_pretrained(tmp_path / "run", model=coins)
    assert_same_bits(again.params, fitted.params)
    with pytest.raises(ShapeError, match="do not fit the model 'VAE'"):
        Fitted.from_pretrained(tmp_path / "run", model=small_vae())


def test_shared_inputs_are_saved_and_integer_ones_stay_integers(name, tmp_path):
    @pg.model
    def labelled(table, y):
        with pg.data_plate():
            loc = pg.ops.take(table, y, axis=0)
            pg.sample("x", dist.Normal(loc, 1.0))

    table = np.arange(40, dtype=np.float32)
    rows = {"x": np.zeros(5, np.float32), "y": np.arange(5)}
    fitted = Fitted(
        labelled, {}, info={"backend": name}, shapes={"x": (), "y": ()},
        dtypes={"x": "float32", "y": "int64"}, constants={"table": table},
    )  # fmt: skip
    fitted.save_pretrained(tmp_path / "run")
    again = Fitted.from_pretrained(tmp_path / "run", model=labelled)
    np.testing.assert_array_equal(again.constants["table"], table)
    again.bind(quick(name))
    again.bind(quick(name), rows)


# ---- damage ----


@pytest.fixture
def folder(run, tmp_path):
    run.save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def rewrite(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    if "checksum" in config:  # mended, as by one who means it
        config["checksum"] = reading.checksum(config)
    (folder / "config.json").write_text(json.dumps(config))


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def flip(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def truthful(change):
    """Damage whose checksum somebody has mended."""

    def damage(folder):
        change(folder)
        sums = {"model.safetensors": reading.digest(folder / "model.safetensors")}
        rewrite(folder, lambda c: c["sha256"].update(sums))

    return damage


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def pickled(folder):
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb()))


def other_class(path):
    return lambda folder: rewrite(folder, lambda c: c["model"].update({"class": path}))


DAMAGE = {
    "truncated": (truncate, "truncated or damaged"),
    "one bit": (flip, "truncated or damaged"),
    "one bit, checksum mended, file cut": (truthful(truncate), "not a safetensors file"),
    "pickle": (pickled, "truncated or damaged"),
    "pickle, checksum mended": (truthful(pickled), "not a safetensors file"),
    "no arrays": (lambda f: (f / "model.safetensors").unlink(), "cannot be read"),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "half a config": (lambda f: (f / "config.json").write_text('{"format"'), "as JSON"),
    "deep config": (lambda f: (f / "config.json").write_text("[" * 100_000), "as JSON"),
    "binary config": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "as JSON"),
    "another program's": (lambda f: (f / "config.json").write_text("{}"), "not written by"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "not written by"),
    "newer": (lambda f: rewrite(f, lambda c: c.update(version=99)), "newer probgen"),
    "version of text": (lambda f: rewrite(f, lambda c: c.update(version="a")), "newer probgen"),
    "no files": (lambda f: rewrite(f, lambda c: c.pop("sha256")), "lists no files"),
    "a checkpoint": (lambda f: rewrite(f, lambda c: c.update(kind="checkpoint")),
                     "holds a checkpoint, expected a fitted model"),
    "path": (lambda f: rewrite(f, lambda c: c["sha256"].update({"../model.safetensors": ""})),
             "not allowed"),
    "absolute": (lambda f: rewrite(f, lambda c: c["sha256"].update({"/etc/x.safetensors": ""})),
                 "not allowed"),
    "os": (other_class("os:system"), "expected a declaration of probgen"),
    "builtin": (other_class("builtins:eval"), "expected a declaration of probgen"),
    "torch": (other_class("probgen.backends.torch.ops:torch"), "expected a declaration of probgen"),
    "backend": (other_class("probgen.backends.torch.backend:TorchBackend"), "expected a decl"),
    "mutable": (other_class("probgen.engine.callbacks:EarlyStopping"), "expected a declaration"),
    "main": (other_class("probgen.__main__:main"), "expected a declaration of probgen"),
    "re-export": (other_class("probgen.models:VAE"), "expected a declaration of probgen"),
    "no such": (other_class("probgen.models.nothing:VAE"), "expected a declaration of probgen"),
    "no class": (lambda f: rewrite(f, lambda c: c["model"].pop("class")), "read as a declaration"),
    "not a model": (lambda f: rewrite(f, lambda c: c.update(model=3)), "its model is int"),
    "bad field": (lambda f: rewrite(f, lambda c: c["model"]["fields"].update(what=1)),
                  "got an argument 'what'"),
    "bad method": (lambda f: rewrite(f, lambda c: c["model"]["fields"]["latent"].update(
        calls=[["__class__", []]])), "unknown method"),
    "bad family": (lambda f: rewrite(f, lambda c: c["model"]["fields"]["latent"].update(
        dist="eval")), "which probgen lacks"),
    "lost array": (lambda f: rewrite(f, lambda c: c.update(model={"stored": "parts:7"})),
                   "does not hold"),
    "no inputs": (lambda f: rewrite(f, lambda c: c.pop("inputs")), "lacks .'inputs'.*damaged"),
}  # fmt: skip


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_or_foreign_folder_is_one_clear_error_and_runs_nothing(how, folder, monkeypatch):
    damage, words = DAMAGE[how]
    monkeypatch.chdir(folder.parent)
    damage(folder)
    with pytest.raises(SaveError, match=words):
        Fitted.from_pretrained(folder)
    assert not (folder.parent / "exploded").exists()


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(SaveError, match="no such folder"):
        Fitted.from_pretrained(tmp_path / "nothing")


def test_shapes_that_the_model_does_not_have_are_named(run, tmp_path):
    params = {k: dict(v) for k, v in run.params.items()}
    wrong = Fitted(small_vae(hidden=(9,)), params, info=run.info, shapes=run.shapes)
    wrong.save_pretrained(tmp_path / "run")
    with pytest.raises(SaveError, match=r"expected float \["):
        Fitted.from_pretrained(tmp_path / "run")
    with pytest.raises(ShapeError, match=r"expected float \["):  # the user's own model
        Fitted.from_pretrained(tmp_path / "run", model=wrong.model)


# ---- writing ----


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "step", ["store.save_file", "atomic.os.fsync", "atomic.os.replace", "store.reading.sealed"]
)
def test_a_full_disk_leaves_what_stood_there(step, run, folder, monkeypatch):
    before = Fitted.from_pretrained(folder)
    other = Fitted(run.model, {k: leaves_plus_one(v) for k, v in run.params.items()},
                   info=run.info, shapes=run.shapes)  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(f"probgen.records.{step}", full)
        with pytest.raises(SaveError, match="No space left.*what stood there before is untouched"):
            other.save_pretrained(folder)
    assert_same_bits(Fitted.from_pretrained(folder).params, before.params)
    assert [p.name for p in folder.parent.iterdir()] == ["run"]  # nothing left behind
    other.save_pretrained(folder)
    assert_same_bits(Fitted.from_pretrained(folder).params, other.params)


def leaves_plus_one(tree):
    if isinstance(tree, dict):
        return {k: leaves_plus_one(v) for k, v in tree.items()}
    return tree + 1


def test_a_disk_that_is_really_full_leaves_what_stood_there(run, tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        run.save_pretrained(place / "run")
        large = Fitted(run.model, {**run.params, "more": {"w": np.zeros(100_000, np.float32)}},
                       shapes=run.shapes)  # fmt: skip
        with pytest.raises(SaveError, match="could not be written"):
            large.save_pretrained(place / "run")
        assert_same_bits(Fitted.from_pretrained(place / "run").params, run.params)
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_save_that_was_cut_off_between_its_two_moves_is_still_read(run, folder):
    os.replace(folder, folder.with_name(".run.old"))
    assert_same_bits(Fitted.from_pretrained(folder).params, run.params)
    run.save_pretrained(folder)
    assert [p.name for p in folder.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("what", ["a file", "notes", "another config", "a note beside the run"])
def test_what_is_not_ours_is_never_overwritten(what, run, tmp_path):
    place = tmp_path / "place"
    if what == "a file":
        place.write_text("mine")
    elif what == "a note beside the run":
        run.save_pretrained(place)
        (place / "notes.txt").write_text("mine")
    else:
        place.mkdir()
        name = "config.json" if what == "another config" else "notes.txt"
        (place / name).write_text('{"model_type": "another"}')
    with pytest.raises(SaveError, match="holds something else"):
        run.save_pretrained(place)
    assert place.is_file() or any(place.iterdir())


def test_an_empty_folder_is_used_and_one_that_may_not_be_written_is_said(run, tmp_path):
    (tmp_path / "empty").mkdir()
    run.save_pretrained(tmp_path / "empty")
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="could not be written"):
        run.save_pretrained(tmp_path / "file" / "run")


# ---- names ----


def test_trees_come_back_with_their_names_and_containers():
    tree = {"prior/net": {"a": np.ones(2)}, "net": {"b//c": np.zeros(()), "d": np.arange(3)}}
    flat = store.flatten(tree)
    back = store.unflatten(flat)
    assert store.flatten(back).keys() == flat.keys() and back["prior/net"]["a"].sum() == 2
    listed = {"n": [np.ones(1), (np.zeros(2), {"e": np.ones(())})], "empty": {}}
    again = store.fill(listed, store.flatten(listed), "test")
    assert isinstance(again["n"][1], tuple) and again["empty"] == {}


def test_scalars_keep_their_shape_in_a_file(tmp_path):
    store.write_folder(tmp_path / "f", {"a": {"scalar": np.float32(3).reshape(())}}, {})
    file = tmp_path / "f" / "a.safetensors"
    assert reading.read_arrays(file, reading.digest(file))["scalar"].shape == ()


def test_a_pool_stores_equal_arrays_once():
    known = {"model:w": np.arange(30.0)}
    pool = Pool(known)
    assert pool.put(np.arange(30.0)) == "model:w"
    assert pool.put(np.arange(31.0)) == pool.put(np.arange(31.0)) == "parts:0"
    assert pool.put(np.arange(30.0, dtype=np.float32)) == "parts:1"  # another type
    assert list(pool.added) == ["parts:0", "parts:1"]


def test_errors_of_saving_are_errors_of_probgen():
    assert issubclass(SaveError, ProbgenError) and issubclass(ShapeError, ProbgenError)
