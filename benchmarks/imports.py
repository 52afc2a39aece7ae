"""`import probgen` in a fresh interpreter: its time, and that it loads no framework."""

import subprocess
import sys
from collections.abc import Iterator

from harness import Agreement, Contest, Setting, Side, Target, Timed

LIMIT = 0.3  # seconds
FRAMEWORKS = ("torch", "pyro", "jax", "numpyro", "optax")
CODE = f"""
import sys, time
start = time.process_time()
import probgen
print(time.process_time() - start, sum(name in sys.modules for name in {FRAMEWORKS}))
"""


def contests(setting: Setting, only: str = "") -> Iterator[Contest]:
    if only not in "import probgen":
        return
    loaded: list[int] = []

    def block() -> Timed:
        command = [sys.executable, "-c", CODE]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        loaded.append(int(out[1]))
        return Timed(1, float(out[0]))

    yield Contest(
        "import probgen",
        "imports",
        {"probgen": Side(block), f"limit of {LIMIT} s": Side(lambda: Timed(1, LIMIT))},
        [
            Target(
                "probgen",
                f"limit of {LIMIT} s",
                1.0,
                lambda: Agreement("frameworks loaded", max(loaded), 0),
            )
        ],
    )
