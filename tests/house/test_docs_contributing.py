"""The page on where things go is true: its miniatures run as they stand, and give what is right."""

import re
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "contributing.md").read_text("utf-8")


def test_the_miniatures_of_the_page_work(backend_name):
    program = "".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M))
    chosen = program.replace('BACKEND = "auto"', f'BACKEND = "{backend_name}"')
    assert chosen != program
    space: dict = {"__name__": "page"}
    exec(compile(chosen, "docs/contributing.md", "exec"), space)
    x = space["x"].astype(np.float64)
    for fitted in (space["matched"], space["likeliest"]):  # both have their optimum in closed form
        np.testing.assert_allclose(fitted.params["mu"]["value"], x.mean(0), atol=2e-2)
        np.testing.assert_allclose(fitted.params["s"]["value"], np.log(x.std(0)), atol=2e-2)
    draws = space["draws"].posterior["mu"].values
    precision = 1 / 100 + 400 / 4
    mean, sd = x[:, 0].sum() / 4 / precision, precision**-0.5
    effective = draws.size / 40  # a walk of these steps forgets within 40 of them
    assert abs(draws.mean() - mean) < 4 * sd / effective**0.5
    assert abs(draws.std() / sd - 1) < 4 / (2 * effective) ** 0.5
    distance = space["table"]["distance"]["estimate"].values
    want = np.sqrt((((x - x.mean(0)) / x.std(0)) ** 2).sum(1))
    np.testing.assert_allclose(distance, want, rtol=0.1)
    tails = space["tails"]["y"]
    assert abs(np.abs(tails).mean() - 1) < 4 / 4000**0.5
    np.testing.assert_allclose(space["ends"], np.log1p(-np.exp([-1e-6, -0.5, -20.0])), rtol=1e-3)


def test_every_file_that_the_page_names_is_there():
    named = set(re.findall(r"`((?:probgen|models|inference|tests|docs)/[\w/.]+)`", PAGE))
    assert named and all((ROOT / name).exists() for name in named), named
