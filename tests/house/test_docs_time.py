"""The page on models of time runs as it stands, and its posterior is near the truth."""

import re
from pathlib import Path

import numpy as np
import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "time.md").read_text("utf-8")


def test_the_page_runs():
    pytest.importorskip("jax")
    program = "".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M))
    space: dict = {"__name__": "page"}
    exec(compile(program, "docs/time.md", "exec"), space)
    smooth, state = space["smooth"], space["state"]
    assert smooth.dims == ("t",)
    assert np.abs(smooth.values - state).mean() < 0.7  # posterior sd 0.45
    assert abs(float(space["draws"].posterior["phi"].mean()) - 0.8) < 0.5  # its own sd is 0.15
    assert space["garch_draws"].posterior["variance"].dims == ("chain", "draw", "t")
    assert abs(float(space["rates"].posterior["r"].mean()) - 1.3) < 0.15  # sd 0.03
    guessed, states = space["state_probs"].argmax(-1), space["states"]
    assert space["state_probs"].shape == (20, 40, 2) and (guessed == states).mean() > 0.95
