"""The README is true: its programs run as they stand, its files exist, its picture is small."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^```python\n(.*?)^```", README, flags=re.S | re.M)


@pytest.mark.parametrize("which", range(len(PROGRAMS)))
def test_every_program_runs_as_it_stands(which, backend_name, tmp_path, monkeypatch, capsys):
    """On each backend: `backend="auto"` is the only word that is changed, or added."""
    monkeypatch.chdir(tmp_path)
    program = PROGRAMS[which].replace('backend="auto"', f'backend="{backend_name}"')
    if f'backend="{backend_name}"' not in program:
        program = re.sub(
            r"(pg\.fit\(.*)\)$", rf'\1, backend="{backend_name}")', program, flags=re.M
        )
    assert f'backend="{backend_name}"' in program
    space: dict = {"__name__": "readme"}
    exec(compile(program, f"README.md, program {which + 1}", "exec"), space)
    history = space["fitted"].history
    assert history["elbo"][-20:].mean() > history["elbo"][:20].mean() + 5  # it learns
    assert space["fitted"].info["backend"] == backend_name
    assert capsys.readouterr().out.strip()


def test_the_likelihood_example_is_ordered_as_theory_says(capsys):
    """ELBO <= IWAE of 1000 particles, in the README's own program."""
    space: dict = {"__name__": "readme"}
    exec(compile(PROGRAMS[0], "README.md, program 1", "exec"), space)
    (elbo, _), (iwae, error) = (space["table"].mean(name) for name in space["table"].values)
    assert elbo < iwae + error
    assert space["draws"]["x"].shape == (16, 8, 8, 1)


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
