"""The types hold. Asked here, so that tests have a core while mypy reads everything on another."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not importlib.util.find_spec("mypy"), reason="mypy not installed")
def test_mypy_has_nothing_to_say():
    """As `make check` asks it, whose cache it keeps."""
    command = [sys.executable, str(ROOT / "tools" / "typecheck.py")]
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
