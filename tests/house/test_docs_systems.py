"""The pages of systems are true: their declarations run as they stand, at a reduced length."""

import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SHORTER = [  # of what takes minutes
    (r"num_steps=(4000|2400|300)\b", "num_steps=5"),
    (r"(?<=ImportanceSampling\()200_000", "2000"),
    (r"(?<=tilted, )10_000", "50"),
    (r"for n in \(20_000, 500\)", "for n in (600, 20)"),
    (r"seed=0(?=\s*\))", 'seed=0, backend="BACKEND"'),
]


def run_page(name, backend):
    """The page's own names after its first program."""
    text = (ROOT / "docs" / "systems" / f"{name}.md").read_text("utf-8")
    program = re.search(r"^```python\n(.*?)^```", text, re.S | re.M)[1]
    assert len(program.splitlines()) <= 40
    for what, shorter in SHORTER:
        program = re.sub(what, shorter, program)
    space = {"__name__": name}
    exec(compile(program.replace("BACKEND", backend), f"docs/systems/{name}.md", "exec"), space)
    return space


@pytest.mark.parametrize("name", ["vaebm", "exponential_tilting"])
def test_a_declaration_of_a_page_runs(name):
    """On torch; the studies run the same on JAX, at full length."""
    space = run_page(name, "torch")
    assert space["samples"]["x"].shape == (50, 2)
    assert np.isfinite(space["log_z"].estimate) and space["table"].num_data == 20
