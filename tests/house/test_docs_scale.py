"""The page on workers runs as it stands, in threads for processes, and its tables are one table."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "scale.md").read_text("utf-8")


def test_the_page_runs(monkeypatch):
    loky = pytest.importorskip("loky", reason="needs loky: pip install 'probgen[cluster]'")
    with ThreadPoolExecutor(2) as threads:
        monkeypatch.setattr(loky, "get_reusable_executor", lambda **options: threads)
        program = "".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M))
        space: dict = {"__name__": "page"}
        exec(compile(program, "docs/scale.md", "exec"), space)
    name = "IWAE(16)"
    one, merged = space["table"], space["whole"]
    np.testing.assert_array_equal(one[name]["estimate"], merged[name]["estimate"])
    assert one.info == merged.info and one.num_data == 2000
    assert space["so_far"].num_data == 1000 and len(space["samples"]["x"]) == 1000
