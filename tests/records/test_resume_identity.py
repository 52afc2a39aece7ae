"""A fit goes on only with what it was begun with: every part of it is known by its content.

One fit is begun; each test changes one thing that its description (`repr`, size, first batch) does
not show, and the folder is refused, with that thing named, before a step is made.
"""

import dataclasses
import logging
import threading
from typing import Any

import numpy as np
import pytest
from fit_cases import assert_same_bits, binary_data, coins, svi
from floats import float64
from test_guard import Trap

import probgen as pg
from probgen import dist, nets
from probgen.engine.provenance import PROBED
from probgen.errors import DeclarationError, SaveError
from probgen.inference import SVI
from probgen.records.checkpoint import Checkpoints

ROWS = binary_data(64)
# The first batch of the order of seed 0 holds 16 of 64 rows; this one is not among them.
LATER = int(pg.data.as_source(ROWS, batch_size=16, seed=0).indices(1)[0])


def program(shift=0.0, teacher=1.0, squared=False):
    """A program of which no `repr` says more than its name."""
    weights = {"w": np.full(4, teacher, np.float32)}

    def curve(x):
        return x * x if squared else x

    @pg.model
    def student(temperature=1.0, by=0.0):
        logits = pg.net("logits", nets.Parameter((4,)))()
        with pg.data_plate():
            logits = curve(logits) * temperature + float(weights["w"].mean()) + shift
            pg.sample("x", dist.Bernoulli(logits=logits + by).to_event(1))

    @student.with_guide
    def student():
        """Nothing to draw."""

    return student


def changed(rows, index):
    rows = rows.copy()
    rows[index] = 1 - rows[index]
    return rows


def begin(b, folder, **options):
    options = {
        "model": program(), "data": ROWS, "algorithm": svi(), "num_steps": 4, "batch_size": 16,
        "seed": 0, "inputs": {"temperature": 1.0}, "validation": binary_data(8), "eval_every": 4,
        **options,
    }  # fmt: skip
    return pg.fit(
        options.pop("model"), options.pop("data"), options.pop("algorithm"), backend=b,
        checkpoint=folder, progress_bar=False, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def begun(b, tmp_path_factory):
    """(folder, what the fit gave): refusals change nothing in it, so it serves them all."""
    folder = tmp_path_factory.mktemp("begun")
    return folder, begin(b, folder)


CHANGES = {
    "a constant that the program closes over": ({"model": program(shift=50.0)}, "model"),
    "weights of a teacher": ({"model": program(teacher=1.5)}, "model"),
    "the body of a function that it calls": ({"model": program(squared=True)}, "model"),
    "a datum of a later batch": ({"data": changed(ROWS, LATER)}, "data"),
    "the order of the data": ({"data": ROWS[::-1]}, "data"),
    "an input": ({"inputs": {"temperature": 2.0}}, "inputs .temperature"),
    "another input": ({"inputs": {"by": 1.0, "temperature": 1.0}}, "inputs .by"),
    "the held-out data": ({"validation": changed(binary_data(8), 3)}, "validation"),
    "no held-out data": ({"validation": None}, "validation"),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_a_part_that_no_text_shows_is_known_by_its_content(b, begun, what):
    change, name = CHANGES[what]
    with pytest.raises(SaveError, match=f"with another {name}.*resume=False to begin anew"):
        begin(b, begun[0], **change)


def test_the_same_made_anew_goes_on(b, begun):
    """A program that is declared again, data that are loaded again: nothing is another."""
    again = begin(b, begun[0], model=program(), data=ROWS.copy(), eval_every=2)
    assert_same_bits(again.params, begun[1].params)


def test_an_algorithm_is_known_by_its_settings_not_by_what_it_prints(b, tmp_path):
    options = {"model": coins, "validation": None, "inputs": None, "num_steps": 2}
    assert repr(Trap(9.0)) != repr(Trap(8.0))  # addresses, which no identity may hold
    begin(b, tmp_path, algorithm=Trap(9.0), **options)
    begin(b, tmp_path, algorithm=Trap(9.0), **options)
    with pytest.raises(SaveError, match="another algorithm"):
        begin(b, tmp_path, algorithm=Trap(8.0), **options)


def test_float32_and_float64_are_not_mixed(b, begun):
    with float64(b), pytest.raises(SaveError, match=r"another float \(float32, expected float64"):
        begin(b, begun[0])


def test_fewer_steps_than_are_there_are_refused(b, begun):
    with pytest.raises(SaveError, match="after 4 steps, expected at most the 3 that are asked for"):
        begin(b, begun[0], num_steps=3)


def test_what_cannot_be_told_is_refused_only_where_it_matters(b, tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Locked(SVI):
        lock: Any = dataclasses.field(default_factory=threading.Lock)

    locked = Locked(svi().loss, svi().optimizer)
    with pytest.raises(DeclarationError, match="algorithm > lock: got a .*lock.*__identity__"):
        begin(b, tmp_path, algorithm=locked)
    begin(b, None, algorithm=locked, num_steps=1)


# ---- data that are not arrays


class Items:
    """A map-style data set; `noise` makes its items random."""

    def __init__(self, rows, noise=None):
        self.rows, self.noise = rows, noise

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i] if self.noise is None else self.rows[i] + self.noise.normal(size=4)


def normal(width=4):
    @pg.model
    def normal():
        loc = pg.net("loc", nets.Parameter((width,)))()
        with pg.data_plate():
            pg.sample("x", dist.Normal(loc, 1.0).to_event(1))

    @normal.with_guide
    def normal():
        """Nothing to draw."""

    return normal


PLAIN = {"model": normal(), "inputs": None, "validation": None}


def test_items_of_a_data_set_tell_it_from_another(b, tmp_path):
    begin(b, tmp_path, data=Items(ROWS), **PLAIN)
    begin(b, tmp_path, data=Items(ROWS.copy()), **PLAIN)
    spread = np.linspace(0, 63, PROBED).astype(int)
    for other in (changed(ROWS, spread[-1]), changed(ROWS, spread[3])):
        with pytest.raises(SaveError, match="another data"):
            begin(b, tmp_path, data=Items(other), **PLAIN)


def test_a_data_set_that_draws_goes_on_and_so_does_a_stream(b, tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(2):
        begin(b, tmp_path / "items", data=Items(ROWS, rng), **PLAIN)
        begin(b, tmp_path / "stream", data=lambda: iter(ROWS.reshape(4, 16, 4)), **PLAIN)
    wide = np.concatenate([ROWS, ROWS], 1).reshape(4, 16, 8)
    with pytest.raises(SaveError, match="another data"):
        begin(b, tmp_path / "stream", data=lambda: iter(wide), **{**PLAIN, "model": normal(8)})


# ---- what may differ, and is said


def test_other_starting_weights_of_a_module_are_said(tmp_path, caplog):
    """Nobody seeds them, a kill, the script again: the state goes on, and the history says so."""
    torch = pytest.importorskip("torch")
    from fit_cases import quick

    def model(seed):
        torch.manual_seed(seed)
        line = nets.from_torch(torch.nn.Linear(1, 4), 1)

        @pg.model
        def regression(y):
            net = pg.net("line", line)
            with pg.data_plate():
                pg.sample("x", dist.Normal(net(y), 1.0).to_event(1))

        @regression.with_guide
        def regression():
            """Nothing to draw."""

        return regression

    data = {"x": ROWS, "y": ROWS[:, :1]}
    options = {"data": data, "inputs": None, "validation": None}
    begin(quick("torch"), tmp_path, model=model(0), **options)
    with caplog.at_level(logging.WARNING, "probgen"):
        same = begin(quick("torch"), tmp_path, model=model(0), num_steps=6, **options)
        assert not same.history.events and not caplog.text
        other = begin(quick("torch"), tmp_path, model=model(1), num_steps=8, **options)
    assert other.history.events == ["step 6: goes on with another starting parameters"]
    assert "goes on with another starting parameters" in caplog.text


def test_another_release_of_probgen_is_said(b, tmp_path, monkeypatch, caplog):
    begin(b, tmp_path)
    monkeypatch.setattr("probgen.engine.provenance.__version__", "9.9")
    after = begin(b, tmp_path, num_steps=6)
    assert "step 4: goes on with another version of probgen" in after.history.events[0]
    assert "expected 9.9" in caplog.text


def test_a_checkpoint_that_knows_its_fit_by_text_alone_is_not_gone_on_with(b, begun, tmp_path):
    """As before 0.2: the entries of that time say too little to tell whose it is."""
    state = {"learner": {"params": {}}}
    Checkpoints(tmp_path, {"model": "pg.model(student)", "seed": 0}).save(
        4, state, begun[1].history, b
    )
    with pytest.raises(SaveError, match="another model"):
        begin(b, tmp_path)
