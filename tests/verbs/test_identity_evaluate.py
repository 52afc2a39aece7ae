"""An evaluation that was killed goes on with what it was begun with, and with nothing else."""

import dataclasses
import threading

import numpy as np
import pytest
from floats import float64
from identity_cases import SAME, X, edited, vae

import probgen as pg
from probgen import backends, nets
from probgen.engine.fitted import Fitted
from probgen.errors import DeclarationError, SaveError
from probgen.inference import IWAE
from probgen.inference.ood import LikelihoodRatio


class Stops:
    """A measure that stops at the second chunk where it is told to, as a kill would."""

    name, unit, larger_is_stranger = "stops", "nats", False

    def __init__(self, stop):
        self.stop, self.chunks = stop, 0

    def __identity__(self):
        return self.name

    def bind_measure(self, context):
        def run(rows, ids):
            if self.stop and ids[0]:
                raise KeyboardInterrupt
            self.chunks += 1
            return {"estimate": rows["x"].sum(1)}

        return run


def evaluate(b, fitted, place, *measures, stop=False, **options):
    last = Stops(stop)
    pg.evaluate(
        fitted, X, [*measures, last], seed=0, chunk_size=4, path=place, backend=b,
        progress_bar=False, **options,
    )  # fmt: skip
    return last.chunks


def killed_and_resumed(b, place, first, second, what, measures=lambda fitted: [IWAE(3)]):
    """Refused by name where `what` says so, and the first may still go on; else it goes on."""
    with pytest.raises(KeyboardInterrupt):
        evaluate(b, first, place, *measures(first), stop=True)
    if what:
        with pytest.raises(SaveError, match=f"another {what} "):
            evaluate(b, second, place, *measures(second))
        second = first
    assert evaluate(b, second, place, *measures(second)) == 1


# What an identity tells apart is in `test_identity.py`.
ALSO = [
    pytest.param(what, marks=pytest.mark.repeated("test_an_edited_program_is_not_gone_on_with"))
    for what in ("the closure's constant", "the guide")
]


@pytest.mark.parametrize("what", ["nothing", "the body", *ALSO])
def test_an_edited_program_is_not_gone_on_with(b, tmp_path, what):
    """Its file imported anew is; and no table is mixed of two models."""
    first, second = (Fitted(edited(w), {}, shapes={"x": (3,)}) for w in ("nothing", what))
    killed_and_resumed(b, tmp_path / "t", first, second, "" if what in SAME else "model")


def test_another_background_input_is_not_gone_on_with(b, tmp_path):
    def score(spread):
        background = Fitted(edited("nothing"), {}, shapes={"x": (3,)}, constants={"spread": spread})
        return lambda fitted: [LikelihoodRatio(background, 3)]

    fitted = Fitted(edited("nothing"), {}, shapes={"x": (3,)})
    with pytest.raises(KeyboardInterrupt):
        evaluate(b, fitted, tmp_path / "t", *score(1.0)(fitted), stop=True)
    with pytest.raises(SaveError, match="another measures"):
        evaluate(b, fitted, tmp_path / "t", *score(2.0)(fitted))
    assert evaluate(b, fitted, tmp_path / "t", *score(1.0)(fitted)) == 1


def test_other_buffers_are_not_gone_on_with(tmp_path):
    torch = pytest.importorskip("torch")
    b = backends.load("torch", "cpu", compile="graph")

    def fitted(running, seed):
        torch.manual_seed(seed)
        norm = torch.nn.BatchNorm1d(3)
        norm.running_mean += running
        net = nets.from_torch(torch.nn.Sequential(torch.nn.Linear(1, 3), norm).eval(), 1)
        made = vae(decoder=net, data_shape=(3,))
        torch.manual_seed(0)
        weights = net.init(None)
        weights["0"]["weight"] = np.ones((3, 1), np.float32)
        weights["0"]["bias"] = np.ones(3, np.float32)
        return dataclasses.replace(made, params={**made.params, "decoder": weights})

    killed_and_resumed(b, tmp_path / "a", fitted(0.0, 0), fitted(0.0, 1), "")
    killed_and_resumed(b, tmp_path / "b", fitted(0.0, 0), fitted(1.0, 0), "model")


def test_another_release_of_probgen_is_not_gone_on_with(b, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        evaluate(b, vae(), tmp_path / "t", stop=True)
    with monkeypatch.context() as patch:
        patch.setattr("probgen.engine.provenance.__version__", "0.0.9")
        with pytest.raises(SaveError, match=r"another probgen \(.*expected 0.0.9"):
            evaluate(b, vae(), tmp_path / "t")
    assert evaluate(b, vae(), tmp_path / "t") == 1


def test_chunks_of_another_float_width_are_not_gone_on_with(b, tmp_path):
    """Neither are they joined into one table, nor is a table of one returned for the other."""
    with pytest.raises(KeyboardInterrupt):
        evaluate(b, vae(), tmp_path / "t", IWAE(3), stop=True)
    words = r"another float \(float32, expected float64\)"
    with float64(b), pytest.raises(SaveError, match=words):
        evaluate(b, vae(), tmp_path / "t", IWAE(3))
    assert evaluate(b, vae(), tmp_path / "t", IWAE(3)) == 1
    with float64(b), pytest.raises(SaveError, match=words):
        evaluate(b, vae(), tmp_path / "t", IWAE(3))


def test_a_path_asks_for_content_and_no_path_for_nothing(b, tmp_path):
    class Locked(Stops):
        def __init__(self):
            super().__init__(False)
            self.lock = threading.Lock()

        def __identity__(self):
            return self.lock

    options = {"seed": 0, "backend": b, "progress_bar": False}
    with pytest.raises(DeclarationError, match="stops > identity: got a _thread.lock"):
        pg.evaluate(vae(), X, [Locked()], path=tmp_path / "t", **options)
    assert pg.evaluate(vae(), X, [Locked()], **options).num_data == 8
