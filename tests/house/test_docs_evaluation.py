"""The page on evaluation is true: its program runs as it stands.

Each of its verbs is held on both backends where it lives.
"""

import re
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "evaluation.md"


def test_the_program_of_the_page_says_what_the_page_says(tmp_path, monkeypatch, capsys):
    """Its numbers stand in the order that the mathematics gives them, within their errors."""
    pytest.importorskip("jax")
    monkeypatch.chdir(tmp_path)
    program = "".join(re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.S | re.M))
    chosen = program.replace('backend="auto"', 'backend="jax"')
    assert chosen != program
    space: dict = {"__name__": "page"}
    exec(compile(chosen, "docs/evaluation.md", "exec"), space)
    table, bracket = space["table"], space["bracket"]
    elbo, iwae = (table.mean(n)[0] for n in ("ELBO(16)", "IWAE(500)"))
    assert elbo < iwae and table.mean_limit("IWAE(500)") < iwae
    gap, error = bracket.mean("gap")
    assert gap > -3 * error
    bits = -table["IWAE(500)"]["estimate"].values / (64 * np.log(2))
    np.testing.assert_allclose(space["bits"].value, bits)
    assert (tmp_path / "report" / "report.json").exists()
    assert space["found"].differing("mean field")[1] == ["weights[0]", "weights[1]"]
    said = capsys.readouterr().out
    assert "mean field: differs beyond Monte Carlo error" in said
    assert "bits/dim" in said and "FD[pca10]" in said and "simulations, 99 draws each" in said
