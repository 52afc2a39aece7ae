"""The page on devices runs as it stands, on the devices that there are."""

import re
from pathlib import Path

import numpy as np
import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "devices.md").read_text("utf-8")


def test_the_page_runs(tmp_path, monkeypatch):
    pytest.importorskip("jax")
    monkeypatch.chdir(tmp_path)
    (program,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M)
    space: dict = {"__name__": "page"}
    exec(compile(program, "docs/devices.md", "exec"), space)
    fitted = space["fitted"]
    assert fitted.info["devices"] == 1 and fitted.info["process"] == 0
    assert np.isfinite(fitted.history["elbo"]).all()
    assert len(list((tmp_path / "runs" / "vae").glob("step-*"))) == 2
