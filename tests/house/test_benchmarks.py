"""The benchmark's own arithmetic, and one tiny row from end to end. No timing is asserted here."""

import importlib.util
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def harness():
    spec = importlib.util.spec_from_file_location("harness", ROOT / "benchmarks" / "harness.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def contest(harness, ours, peer, error=0.0):
    """Sides whose blocks advance a clock of our own by the seconds that they are said to take."""
    now = [0.0]

    def side(seconds):
        values = itertools.cycle(seconds)

        def block():
            now[0] += next(values)

        return harness.Side(block, units=10)

    agreement = harness.Agreement("difference", error, 1e-4)
    target = harness.Target("ours", "peer", 2.0, lambda: agreement)
    sides = {"ours": side(ours), "peer": side(peer)}
    return harness.Contest("a row", "steps", sides, [target]), lambda: now[0]


def test_a_ratio_is_that_of_the_median_rates(harness):
    """Five rounds after the first block: the medians are 2 s and 6 s for ten units."""
    made, clock = contest(harness, [9, 2, 2, 50, 2, 2], [99, 6, 6, 6, 0.1, 6])
    (row,) = harness.run(made, harness.Setting(rounds=5), clock)
    assert row["ratio"] == pytest.approx(3.0)
    assert (row["ours_rate"], row["peer_rate"]) == pytest.approx((5.0, 10 / 6))
    assert row["first_seconds"] == {"ours": 9, "peer": 99}
    assert row["met"] is True


def test_a_missed_target_and_a_disagreement_are_both_said(harness):
    made, clock = contest(harness, [4], [6], error=1.0)
    (row,) = harness.run(made, harness.Setting(rounds=5), clock)
    assert row["met"] is False
    assert row["agreement"]["holds"] is False
    assert "MISSED" in harness.table([row]) and "!" in harness.table([row])


@pytest.mark.parametrize("count", [2, 3, 4])
def test_every_side_takes_every_place_equally_often(harness, count):
    names = list("abcd")[:count]
    rounds = list(harness.orders(names, 3 * count))
    for place in range(count):
        assert sorted(order[place] for order in rounds) == sorted(names * 3)


def test_one_tiny_row_gives_well_formed_json(tmp_path):
    pytest.importorskip("pyro")
    out = tmp_path / "out.json"
    command = [
        sys.executable,
        "benchmarks/run.py",
        "--rows",
        "log_joint",
        "--only",
        "eight schools",
    ]
    done = subprocess.run(
        [*command, "--tiny", "--rounds", "2", "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text(encoding="utf-8"))
    assert set(found) == {"machine", "versions", "setting", "rows"}
    assert found["setting"]["threads"] == 1 and found["setting"]["tiny"] is True
    assert {row["ours"] for row in found["rows"]} == {"probgen, compiled", "probgen, graph only"}
    for row in found["rows"]:
        assert row["agreement"]["holds"], row
        assert 0 < row["ratio_low"] <= row["ratio_high"]
        assert row["row"] in done.stdout


def test_an_unknown_row_is_refused_by_name(tmp_path):
    done = subprocess.run(
        [sys.executable, "benchmarks/run.py", "--rows", "vea"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "vea" in done.stderr and "vae_torch" in done.stderr
