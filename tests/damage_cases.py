"""One folder of each kind, how it is read, and ways to damage it."""

import json
import shutil

import numpy as np
from fit_cases import binary_data, small_vae, svi
from safetensors.numpy import load_file, save_file

import probgen as pg
from probgen.backends.chains import Chains
from probgen.engine.chain_pieces import Pieces, chains
from probgen.engine.fitted import Fitted
from probgen.engine.sample_chunks import in_chunks
from probgen.language.content import content
from probgen.records import reading
from probgen.records.checkpoint import Checkpoints, restore
from probgen.records.chunks import ChunkStore
from probgen.records.evaluation import Evaluation
from probgen.records.history import History
from probgen.records.store import flatten

KINDS = ("run", "checkpoint", "evaluation", "chunk", "pieces", "chains", "samples")
MADE = {"seed": 0}
ROWS = {"x": np.arange(12.0).reshape(4, 3).astype(np.float32)}
VALUES = {
    name: {"estimate": np.arange(4.0) + i, "standard_error": np.full(4, 0.5),
           "pair": np.ones((4, 2), np.float32)}
    for i, name in enumerate(("second", "first"))
}  # fmt: skip
DRAWS = {
    "free": {"z": np.arange(6.0, dtype=np.float32).reshape(3, 2), "prior/z": np.ones((3, 2, 2))},
    "stats": {"lp": np.zeros((3, 2)), "diverging": np.zeros((3, 2), bool)},
}
CHAINS = Chains(DRAWS["free"], DRAWS["stats"], 2, {"step_size": np.float32([0.5, 0.25, 1.0])})
SAMPLES = {
    "values": {"z": np.arange(6.0, dtype=np.float32).reshape(3, 2), "prior/z": np.ones((3, 2, 2))},
    "stats": {"diverged": np.zeros(3, bool)}, "chain": {"z": np.ones((2, 3, 2), np.float32)},
}  # fmt: skip
STATE = {
    "learner": {"params": {"w": np.ones((3, 2), np.float32), "b": np.zeros(2, np.float32)},
                "count": np.int32(4)},
}  # fmt: skip


def history():
    made = History()
    made.extend({"elbo": np.arange(4.0), "kl_units": np.ones((4, 3))})
    made.add_validation(4, {"elbo": -1.0})
    made.events.append("step 2: something")
    return made


def make(root, backend):
    """{kind: folder}, one of each."""
    fitted = pg.fit(
        small_vae(), binary_data(), svi(), num_steps=2, batch_size=16, seed=0, backend=backend,
        validation=binary_data(8), eval_every=1, progress_bar=False,
    )  # fmt: skip
    fitted.save_pretrained(root / "runs" / "run")
    Checkpoints(root / "fit", MADE).save(4, STATE, history(), _Plain())
    Evaluation.from_values(
        VALUES, units=dict.fromkeys(VALUES, "nats"), larger_is_stranger=dict.fromkeys(VALUES, True),
        info={"seed": 0, "data": content(ROWS)},
    ).save(root / "tables" / "evaluation")  # fmt: skip
    ChunkStore(root / "table", MADE).write(0, ROWS, VALUES)
    begun = Pieces(ChunkStore(root / "begun", MADE))
    begun.add({})
    begun.add(DRAWS, lambda: {"0": np.ones(3), "1": np.arange(2, dtype=np.uint32)})
    chains(root / "draws" / "chains", MADE, lambda _: CHAINS)
    in_chunks(
        root / "drawn" / "samples", lambda: MADE, 3, 3, lambda p: ((n, SAMPLES) for n, _ in p)
    )
    return {
        "run": root / "runs" / "run", "checkpoint": root / "fit" / "step-000000004",
        "evaluation": root / "tables" / "evaluation",
        "chunk": root / "table.chunks" / "chunk-0000000000",
        "pieces": root / "begun.chunks" / "state", "chains": root / "draws" / "chains",
        "samples": root / "drawn" / "samples",
    }  # fmt: skip


class _Plain:
    """A backend whose arrays are numpy's."""

    to_numpy = staticmethod(np.asarray)
    asarray = staticmethod(np.asarray)


def read(kind, folder):
    """All numbers of a folder, by name; what is read is also printed, as a user would."""
    if kind == "run":
        fitted = Fitted.from_pretrained(folder)
        repr(fitted), repr(fitted.history)
        return {**flatten(fitted.params), **fitted.history.to_arrays()}
    if kind == "checkpoint":
        kept = Checkpoints(folder.parent, MADE).newest()
        repr(kept.history)
        return {**flatten(restore(STATE, kept.arrays, _Plain())), **kept.history.to_arrays()}
    if kind == "evaluation":
        table = Evaluation.load(folder)
        repr(table)
        return {f"{n}/{q}": v.values for n in table for q, v in table[n].data_vars.items()}
    if kind == "chains":
        found = chains(folder, MADE, None)
        return {**found.free, **found.stats, **found.learned}
    if kind == "samples":
        return flatten(in_chunks(folder, lambda: MADE, 3, 3, None))
    if kind == "pieces":
        begun = Pieces(ChunkStore(folder.parent.with_suffix(""), MADE))
        return {**begun.state, **flatten(dict(enumerate(begun.parts)))}
    values = ChunkStore(folder.parent.with_suffix(""), MADE).read(0, ROWS)
    return {f"{n}/{q}": v for n, group in values.items() for q, v in group.items()}


def is_same(one, other):
    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype and np.array_equal(one[k], other[k]) for k in one
    )


# ---- damage of bytes: the checksums are as they were


def truncated(rng, folder):
    file = _some_file(rng, folder)
    data = file.read_bytes()
    file.write_bytes(data[: rng.integers(len(data))])


def flipped(rng, folder):
    file = _some_file(rng, folder)
    data = bytearray(file.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    file.write_bytes(bytes(data))


def lengthened(rng, folder):
    file = _some_file(rng, folder)
    file.write_bytes(file.read_bytes() + rng.bytes(rng.integers(1, 20)))


def swapped(rng, folder):
    """Two files of the folder change places, or one comes twice."""
    files = sorted(folder.iterdir())
    one, other = (files[i] for i in rng.choice(len(files), 2, replace=len(files) < 2))
    a, b = one.read_bytes(), other.read_bytes()
    one.write_bytes(b)
    if rng.random() < 0.5:
        other.write_bytes(a)


BYTES = (truncated, flipped, lengthened, swapped)


def _some_file(rng, folder):
    files = sorted(folder.iterdir())
    return files[rng.integers(len(files))]


# ---- damage whose checksums somebody has mended

ODD = (
    None, True, False, 0, 1, -1, 10**9, 10**30, 0.5, 1e300, float("nan"), float("inf"), "", "x",
    "é", "/", "__init__", [], [0], [[]], {}, {"a": 1}, {"stored": "x"}, {"class": "os:system"},
    {"array": [1], "dtype": "object"}, {"array": [1.0], "dtype": "U1000000000"}, {"tuple": [10**9]},
    {"dict": [[[], 1]]}, {"fitted": {}}, {"dist": "Normal", "arguments": {}, "calls": 3},
)  # fmt: skip


def mend(folder):
    config = json.loads((folder / "config.json").read_text())
    for name in config["sha256"] if isinstance(config.get("sha256"), dict) else ():
        if (folder / name).is_file():
            config["sha256"][name] = reading.digest(folder / name)
    config["checksum"] = reading.checksum(config)
    (folder / "config.json").write_text(json.dumps(config))


def value_changed(rng, folder):
    """One value of the config becomes another, goes, or is doubled."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    _change(rng, config)
    file.write_text(json.dumps(config))
    if isinstance(config, dict):
        mend(folder)


def header_changed(rng, folder):
    """The same in the header of a file of arrays."""
    file = _arrays_file(rng, folder)
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    _change(rng, header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    mend(folder)


def arrays_changed(rng, folder):
    """One array gets another type, shape, name or value, or goes."""
    file = _arrays_file(rng, folder)
    arrays = load_file(file)
    name = sorted(arrays)[rng.integers(len(arrays))]
    value = arrays.pop(name)
    with np.errstate(all="ignore"):
        made = (
            lambda v: v.astype(np.float16), lambda v: v.astype(np.float64),
            lambda v: v.astype(np.int32), lambda v: v.astype(bool), lambda v: v[None],
            lambda v: v.reshape(-1), lambda v: np.asarray(v).sum().reshape(()),
            lambda v: np.full(v.shape, np.nan, np.float32), lambda v: v.reshape(-1)[:0],
            lambda v: np.concatenate([v.reshape(-1)] * 2),
        )[rng.integers(10)](value)  # fmt: skip
    way = rng.integers(4)
    if way < 2:
        arrays[name] = made
    elif way == 2:
        arrays[("x", "", f"{name}/x", "train/", "rest/x", "/estimate")[rng.integers(6)]] = value
    save_file({k: np.ascontiguousarray(v).reshape(np.shape(v)) for k, v in arrays.items()}, file)
    mend(folder)


MENDED = (value_changed, header_changed, arrays_changed)


def _arrays_file(rng, folder):
    files = sorted(folder.glob("*.safetensors"))
    return files[rng.integers(len(files))]


def _change(rng, tree):
    places = list(_places(tree))
    if not places:
        return
    holder, key = places[rng.integers(len(places))]
    way = rng.integers(10)
    if way < 7:
        holder[key] = ODD[rng.integers(len(ODD))]
    elif way == 7:
        del holder[key]
    elif way == 8 and isinstance(holder, dict):
        holder["more"] = holder[key]
    else:
        holder[key] = [holder[key]]


def _places(tree):
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _places(tree[key])


def copied(folder, place):
    """A fresh copy of a folder and those beside it, in a folder of its own."""
    target = place / "copy" / folder.relative_to(folder.parent.parent)
    shutil.rmtree(place / "copy", ignore_errors=True)
    shutil.copytree(folder.parent, target.parent)
    return target
