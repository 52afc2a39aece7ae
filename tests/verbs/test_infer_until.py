"""Chains end once they are long enough, at a place that depends on their draws alone."""

import numpy as np
import pytest

import probgen as pg
from probgen import dist
from probgen.engine.chain_watch import Watch, measured
from probgen.errors import AlgorithmError, DeclarationError
from probgen.inference import Guide, Langevin, Until


@pg.model
def gaussian():
    pg.sample("x", dist.Normal(0, 1).expand([2]).to_event(1))


def chains(steps=2000, **options):
    options = {"num_warmup": 0, "num_chains": 4, "metropolis": True, **options}
    return Langevin(0.4, num_steps=steps, **options)


def draws(method, b, **options):
    return pg.infer(gaussian, None, method, seed=0, backend=b, progress_bar=False, **options)


def pieces(x, size):
    """[chain, draw, n] as pieces [draw, chain, n] of `size` draws, after one of warm-up."""
    return [{}] + [{"free": {"x": part.swapaxes(0, 1)}}
                   for part in np.split(x, x.shape[1] // size, axis=1)]  # fmt: skip


RULE = Until(rhat=1.05, ess=200.0)


@pytest.fixture(scope="module")
def ended(b):
    return draws(chains(), b, until=RULE)


def test_chains_end_at_the_first_look_that_suffices_and_are_the_longer_ones_beginning(b, ended):
    whole = draws(chains(), b)
    x, shorter = whole.posterior["x"].values, ended.posterior["x"].values
    assert 200 <= shorter.shape[1] < x.shape[1]
    np.testing.assert_array_equal(shorter, x[:, : shorter.shape[1]])
    looks = range(100, x.shape[1] + 1, 100)
    enough = [all(not RULE.lacks(x[:, :n, i]) for i in range(2)) for n in looks]
    assert shorter.shape[1] == looks[enough.index(True)]
    assert ended.attrs["lacks"] == "" and "until" in ended.attrs and "until" not in whole.attrs


def test_a_run_that_was_killed_ends_at_the_same_place(b, ended, tmp_path, monkeypatch):
    from probgen.engine import chain_pieces

    want = ended.posterior["x"].values
    pause, calls = chain_pieces.Pieces.pause, []

    def killed(self, done):
        calls.append(done)
        if len(calls) == 2:
            raise KeyboardInterrupt
        pause(self, done)

    monkeypatch.setattr(chain_pieces.Pieces, "pause", killed)
    with pytest.raises(KeyboardInterrupt):
        draws(chains(), b, until=RULE, path=tmp_path / "run")
    monkeypatch.undo()
    again = draws(chains(), b, until=RULE, path=tmp_path / "run")
    np.testing.assert_array_equal(again.posterior["x"].values, want)
    read = draws(chains(), b, until=RULE, path=tmp_path / "run")
    np.testing.assert_array_equal(read.posterior["x"].values, want)
    with pytest.raises(pg.errors.OtherRun):
        draws(chains(), b, path=tmp_path / "run")


def test_a_guide_ends_by_the_error_of_its_means(b):
    model = gaussian.with_guide(lambda: pg.sample("x", dist.Normal(0, 1).expand([2]).to_event(1)))
    rule = Until(rhat=None, ess=None, mcse=0.05)
    found = pg.infer(
        model, None, Guide(4000), seed=0, backend=b, progress_bar=False, until=rule
    ).posterior["x"]
    # 1 / 0.05^2 = 400 independent draws, at the next of its looks.
    assert 300 <= found.shape[1] <= 800


def test_what_does_not_suffice_is_said(b, caplog):
    found = draws(chains(100), b, until=Until(rhat=1.0001, ess=1e6))
    assert found.posterior["x"].shape[1] == 100
    assert "asked for" in found.attrs["lacks"]
    assert "all 100 draws of each chain do not suffice" in caplog.text


def test_a_look_sees_the_one_number_that_is_short():
    """Of twenty numbers one is an autoregression with a third of the ESS that is asked for."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 400, 20))
    for t in range(1, 400):
        x[:, t, 13] += 0.7 * x[:, t - 1, 13]
    bad = measured(x[..., 13])["ess"]
    assert bad < 500 < min(measured(x[..., i])["ess"] for i in range(20) if i != 13)
    watch = Watch(Until(rhat=None, ess=500.0))
    assert watch.short_of(pieces(x, 100)) == f"ESS is {bad:.0f}, asked for 500"
    assert Watch(Until(rhat=None, ess=bad - 1)).short_of(pieces(x, 100)) == ""
    assert "R-hat 1.0" in watch.words(pieces(x, 100))
    still = np.concatenate([x, np.zeros((4, 400, 1))], axis=-1)
    assert "not moved" in Watch(Until(rhat=None, ess=bad - 1)).short_of(pieces(still, 100))
    assert "at least 900" in Watch(Until(min_draws=900)).short_of(pieces(x, 100))


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(DeclarationError, match="something to reach"):
        Until(rhat=None, ess=None)
    with pytest.raises(AlgorithmError, match="at least two"):
        draws(chains(num_chains=1), "jax", until=Until())
