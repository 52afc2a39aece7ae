"""The page on drawing from diffusions runs as it stands, at a reduced length."""

import re
from pathlib import Path

import numpy as np
import pytest

from probgen.backends import load

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "diffusion_sampling.md").read_text("utf-8")
SHORTER = [
    (r"8000", "3"),
    (r"20_000", "600"),
    (r"NoiseSchedule\(1000\)", "NoiseSchedule.rescaled(50)"),
    (r"Ancestral\(1000\)", "Ancestral(50)"),
    (r"DDIM(Inverse)?\(100\)", r"DDIM\1(10)"),
    (r"500(?!\d)", "6"),
    (r"DDIM\(50, guidance", "DDIM(4, guidance"),
    (r"start=40, stop=10", "start=3, stop=2"),
    (r"(?<=batch_size=512,)", "backend=BACKEND,"),
]


def test_the_page_runs():
    pytest.importorskip("torch")
    program = "".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M))
    for what, shorter in SHORTER:
        program = re.sub(what, shorter, program)
    space = {"__name__": "page", "BACKEND": load("torch", "cpu", compile="live")}
    exec(compile(program, "docs/diffusion_sampling.md", "exec"), space)
    assert all(np.isfinite(s["x"]).all() for s in space["draws"].values())
    assert (space["completed"][:, 0] == 0).all() and space["codes"]["x_50"].shape == (100, 2)
    assert len(space["figure"].axes) == 30
    assert space["told"]["null"].shape == (100, 4, 1, 8) and space["placed"].iou > 0.8
