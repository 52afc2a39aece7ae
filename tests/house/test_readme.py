"""The README is true: its programs run as they stand, its files exist, its picture is small."""

import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^```python\n(.*?)^```", README, flags=re.S | re.M)


def run(which: int, backend_name: str) -> dict:
    """The names that a program leaves behind, on a backend: the only word of it that is changed."""
    program = PROGRAMS[which].replace('backend="auto"', f'backend="{backend_name}"')
    assert program != PROGRAMS[which]
    space: dict = {"__name__": "readme"}
    exec(compile(program, f"README.md, program {which + 1}", "exec"), space)
    return space


def test_the_first_program_learns_and_its_bounds_are_ordered(
    backend_name, tmp_path, monkeypatch, capsys
):
    """The bound rises, and ELBO <= the importance-weighted estimate within its error."""
    monkeypatch.chdir(tmp_path)
    space = run(0, backend_name)
    history = space["fitted"].history
    assert history["elbo"][-20:].mean() > history["elbo"][:20].mean() + 5
    assert space["fitted"].info["backend"] == backend_name
    (elbo, _), (iwae, error) = (space["table"].mean(name) for name in space["table"].names)
    assert elbo < iwae + error
    assert space["draws"]["x"].shape == (16, 8, 8, 1)
    assert "IWAE(1000)" in capsys.readouterr().out


def test_the_second_program_finds_the_posterior(backend_name, tmp_path, monkeypatch):
    """The conjugate answer: precision I + X'X, mean (I + X'X)^-1 X'y, within 5 standard errors."""
    monkeypatch.chdir(tmp_path)
    space = run(1, backend_name)
    x, y = (space[k].astype(np.float64) for k in ("covariates", "y"))
    covariance = np.linalg.inv(np.eye(3) + x.T @ x)
    weights = space["draws"].posterior["weights"].values.reshape(-1, 3)
    effective = len(weights) / 3  # a careful guess: NUTS does better on a Gaussian
    error = np.sqrt(np.diag(covariance) / effective)
    assert (abs(weights.mean(0) - covariance @ x.T @ y) < 5 * error).all()


def test_the_third_program_tells_transposed_digits_apart(tmp_path, monkeypatch, capsys):
    """On torch: the page on evaluation has the same measures, and runs on JAX."""
    pytest.importorskip("pyro")
    monkeypatch.chdir(tmp_path)
    space = run(2, "torch")
    table = space["table"]
    assert all(table.cell(name, "transposed").auroc.lower > 0.8 for name in table.measures)
    assert "transposed" in capsys.readouterr().out


def test_the_programs_are_as_many_as_are_tested():
    assert len(PROGRAMS) == 3


def test_every_file_that_is_named_exists():
    named = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [name for name in named if "://" not in name and not (ROOT / name).exists()]
    assert named and not missing


def test_the_picture_is_small():
    for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / name).stat().st_size < 150_000


def test_every_make_target_that_is_named_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake ([a-z]+) ", README):
        assert re.search(rf"^{target}:", makefile, flags=re.M), target
