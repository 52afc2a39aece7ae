"""Chains that are kept as they come: killed anywhere, the same call ends at the same draws.

To the bit. A kill is an exception that nothing of ours catches, raised once so many pieces stand.
"""

import os
import signal

import numpy as np
import pytest
from infer_cases import HEADS, C, Y, coin, quick, regression
from test_place import Disk, Stopped, names

import probgen as pg
from probgen.engine.chain_pieces import Pieces
from probgen.errors import OtherRun, SaveError
from probgen.inference import HMC, NUTS

SIZES = {"num_warmup": 12, "num_samples": 12, "num_chains": 2}
METHODS = {
    "nuts": NUTS(**SIZES, dense_mass=True),
    "hmc": HMC(**SIZES, num_steps=3, thinning=2),
}


@pytest.fixture(scope="module")
def b(backend_name):
    return quick(backend_name)


def infer(b, method="hmc", **options):
    options = {"data": {"y": Y}, "seed": 0, "inputs": {"covariates": C}, **options}
    return pg.infer(regression, options.pop("data"), METHODS[method], backend=b,
                    progress_bar=False, **options)  # fmt: skip


# What a piece keeps of a chain is what the sampler says, whichever it is.
NUTS_TOO = pytest.param(
    "nuts",
    marks=pytest.mark.repeated("test_killed_again_and_again_the_draws_are_those_of_one_run"),
)


@pytest.fixture(scope="module", params=["hmc", NUTS_TOO])
def method(request):
    return request.param


@pytest.fixture(scope="module")
def whole(b, method):
    return infer(b, method)


@pytest.fixture(scope="module")
def whole_of_hmc(b):
    return infer(b)


def assert_same_draws(one, other):
    for group in ("posterior", "sample_stats"):
        a, c = one[group].dataset, other[group].dataset
        assert list(a) == list(c)
        for name in a:
            np.testing.assert_array_equal(a[name].values, c[name].values, err_msg=name)


def count_pieces(monkeypatch, stop=None, do=None):
    """Counts the pieces that are sampled; `do` happens after the `stop`-th."""
    seen, real = [], Pieces.add

    def add(self, *args):
        real(self, *args)
        seen.append(len(self.parts))
        if len(self.parts) == stop:
            do()

    monkeypatch.setattr(Pieces, "add", add)
    return seen


def killed():
    raise Stopped


def test_killed_again_and_again_the_draws_are_those_of_one_run(
    b, method, whole, tmp_path, monkeypatch
):
    path, stops = tmp_path / "chains", (1, 5, 13, 16)
    for stop in stops:
        with monkeypatch.context() as patched, pytest.raises(Stopped):
            count_pieces(patched, stop, killed)
            infer(b, method, path=path)
    with monkeypatch.context() as patched:
        seen = count_pieces(patched)
        resumed = infer(b, method, path=path)
    assert seen[0] == stops[-1] + 1
    assert_same_draws(resumed, whole)
    assert names(tmp_path) == ["chains"]
    with monkeypatch.context() as patched:
        seen = count_pieces(patched)
        assert_same_draws(infer(b, method, path=path), whole)
    assert not seen


LATER = [
    pytest.param(stop, marks=pytest.mark.repeated("test_killed_while_it_writes_it_goes_on"))
    for stop in (25, 55)
]


@pytest.mark.parametrize("stop", [12, 40, *LATER])
def test_killed_while_it_writes_it_goes_on(b, whole_of_hmc, tmp_path, stop):
    """At some call to the file system, in the first pieces."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        Disk(patch, stop)
        infer(b, path=tmp_path / "chains")
    assert_same_draws(infer(b, path=tmp_path / "chains"), whole_of_hmc)
    assert names(tmp_path) == ["chains"]


@pytest.mark.usefixtures("usual_signals")
def test_asked_to_end_it_says_how_far_it_is_and_goes_on(b, whole_of_hmc, tmp_path, monkeypatch):
    path = tmp_path / "chains"
    with monkeypatch.context() as patched:
        count_pieces(patched, 1, lambda: os.kill(os.getpid(), signal.SIGINT))
        said = "infer: stopped after 1 of 24 transitions of each chain.*goes on"
        with pytest.raises(KeyboardInterrupt, match=said):
            infer(b, path=path)
    assert_same_draws(infer(b, path=path), whole_of_hmc)


OTHERS = (
    ({"seed": 1}, "seed .0, expected 1"),
    ({"data": {"y": Y + 1}}, "observed data"),
    ({"inputs": {"covariates": C * 2}}, "observed data"),
    ({"method": "nuts"}, "method"),
)


@pytest.mark.parametrize("finished", [False, True])
def test_chains_of_another_call_are_refused(b, tmp_path, monkeypatch, finished):
    path = tmp_path / "chains"
    with monkeypatch.context() as patched:
        if not finished:
            count_pieces(patched, 1, killed)
        try:
            infer(b, path=path)
        except Stopped:
            assert not finished
    seen = count_pieces(monkeypatch)
    for change, what in OTHERS:
        with pytest.raises(OtherRun, match=f"another {what}"):
            infer(b, path=path, **change)
    assert not seen


def test_a_place_that_is_taken_is_refused(b, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SaveError, match="something else"):
        pg.infer(coin, {"heads": HEADS}, METHODS["nuts"], seed=0, backend=b, path=tmp_path)
