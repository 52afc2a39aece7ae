"""The page on diffusions runs as it stands: classes come out where they are, guided ones closer."""

import re
from pathlib import Path

import numpy as np
import pytest
import scipy.stats as st
from fit_cases import assert_same_bits

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "diffusion.md").read_text("utf-8")


def test_the_page_runs():
    pytest.importorskip("jax")
    program = "".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M))
    space: dict = {"__name__": "page"}
    exec(compile(program, "docs/diffusion.md", "exec"), space)
    centres, wanted = space["centres"], space["wanted"]
    off = {}
    for name in ("chain", "quick", "guided", "raw"):
        off[name] = np.linalg.norm(space[name]["x"] - centres[wanted], axis=1)
        assert np.mean(off[name] < 0.5) > 0.97, name  # of 0.1 sqrt(2) in the data
    held, layer = space["tuned"].params["denoiser"]["net"], space["fitted"].params["denoiser"]
    assert_same_bits(held, layer)
    x, y, table = space["x"][:100], space["y"][:100], space["table"]
    truth = st.norm.logpdf(x, centres[y], 0.1).sum(1).mean()
    flow = table.mean(next(n for n in table if "ProbabilityFlow" in n))[0]
    bound = table.mean(next(n for n in table if "DenoisingELBO" in n))[0]
    assert abs(flow - truth) < 0.3 and bound < truth + 0.3
