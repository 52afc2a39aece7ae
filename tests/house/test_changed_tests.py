"""`make test-changed` finds the tests that a change reaches, and no others."""

import os
import subprocess
import sys

import pytest

from tools.changed_tests import ROOT, ranked, read_house
from tools.house_graph import House

# A small house: each line a way to use a module.
TEXTS = {
    "probgen/__init__.py": "N = {**dict.fromkeys(('fit',), 'probgen.verbs.fit'), 'A': 'probgen.a'}",
    "probgen/verbs/__init__.py": "",
    "probgen/verbs/fit.py": "from probgen.engine import loop",
    "probgen/engine/__init__.py": "",
    "probgen/engine/loop.py": "def f():\n    import probgen.lazy",
    "probgen/lazy.py": "",
    "probgen/a.py": "",
    "models/__init__.py": "from probgen.models.vae import VAE\nfrom probgen.models.ebm import EBM",
    "models/vae.py": "from .base import Base",
    "models/ebm.py": "",
    "models/base.py": "",
    "tests/conftest.py": "def f():\n    import shared",
    "tests/shared.py": "",
    "tests/child.py": "import probgen.a",
    "tests/engine/test_loop.py": "import probgen as pg\npg.fit()",
    "tests/models/test_vae.py": "from probgen import models as m\nm.VAE",
    "tests/models/test_ebm.py": "from probgen.models import EBM",
    "tests/models/test_patched.py": "patch('probgen.a.f')",
    "tests/test_child.py": "run('child.py')",
    "tests/test_script.py": 'run(f"""\n    import probgen as pg\n    pg.A({1})\n""")',
    "tests/test_words.py": 'read(ROOT / "README.md")',
}  # fmt: skip
HOUSE = House(TEXTS)
TESTS = {path.removeprefix("tests/"): path for path in TEXTS if "/test_" in path}


@pytest.mark.parametrize(
    "changed, expected",
    [
        ("probgen/verbs/fit.py", ["engine/test_loop.py"]),
        ("probgen/engine/loop.py", ["engine/test_loop.py"]),
        ("probgen/lazy.py", ["engine/test_loop.py"]),
        ("models/base.py", ["models/test_vae.py"]),
        ("models/ebm.py", ["models/test_ebm.py"]),
        ("models/__init__.py", ["models/test_vae.py", "models/test_ebm.py"]),
        ("probgen/a.py", ["models/test_patched.py", "test_child.py", "test_script.py"]),
        ("tests/child.py", ["test_child.py"]),
        ("tests/shared.py", list(TESTS)),
        ("tests/test_words.py", ["test_words.py"]),
        ("README.md", ["test_words.py"]),
        ("docs/a.md", []),
    ],
)
def test_a_change_reaches_what_uses_it(changed, expected):
    assert sorted(ranked(HOUSE, [changed])) == sorted(TESTS[each] for each in expected)


def test_the_nearest_come_first():
    changed = ["models/__init__.py", "models/vae.py", "tests/test_words.py", "tests/shared.py"]
    names = [path.rpartition("/")[2] for path in ranked(HOUSE, changed)]
    assert names[:3] == ["test_words.py", "test_vae.py", "test_ebm.py"]


def test_so_it_is_in_this_house():
    tests = ("tests/nets/test_nets.py", "tests/inference/test_[ae]*.py")
    house = read_house("probgen", "models", "inference", *tests)
    found = ranked(house, ["inference/objectives/elbo.py"])
    assert found[0] == "tests/inference/test_elbo.py"
    assert "tests/nets/test_nets.py" not in found


def test_tests_for_which_there_is_no_time_are_counted_by_file(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"test_{name}.py").write_text(
            "import time, pytest\n"
            "@pytest.mark.parametrize('i', range(3))\n"
            "def test_wait(i):\n    time.sleep(0.01)\n"
        )
    words = ["-p", "tools.time_limit", "--for-seconds", "0", "-c", os.devnull, str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words],
        cwd=ROOT, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    lines = [line.split() for line in done.stdout.splitlines() if " of " in line]
    assert [(line[0], line[2][-9:]) for line in lines] == [("2", "test_a.py"), ("3", "test_b.py")]
    assert "1 passed, 5 skipped" in done.stdout
