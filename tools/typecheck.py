"""Run mypy over the package as it is imported, and report the files as they are stored.

Three rooms stand beside `probgen/` and are imported from inside it (`probgen.models` is `models/`),
a mapping that setuptools knows and mypy does not. So a temporary folder gets a tree of links with
each package where its import name says, mypy reads that, and the paths it prints are turned back
into the stored ones. Arguments are passed on to mypy; the exit status is mypy's own.
"""

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def package_folders(root: Path = ROOT) -> dict[str, str]:
    """Map each import name that pyproject.toml places to its folder, relative to `root`."""
    table = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    return dict(table["package-dir"])


def link_tree(tree: Path, folders: dict[str, str], root: Path = ROOT) -> None:
    """Lay links to the sources into `tree`, each package where its import name says."""
    for name in sorted(folders):
        target = tree.joinpath(*name.split("."))
        target.mkdir(parents=True, exist_ok=True)
        # One link per entry rather than one per folder: `probgen` must hold the other rooms too.
        for entry in (root / folders[name]).iterdir():
            if entry.name != "__pycache__":
                (target / entry.name).symlink_to(entry)


def stored_paths(report: str, folders: dict[str, str]) -> str:
    """Turn `probgen/models/x.py` at the start of a line into `models/x.py`, where it is stored."""
    for name in sorted(folders, key=len, reverse=True):
        seen = re.escape(name.replace(".", os.sep) + os.sep)
        report = re.sub(rf"^{seen}", f"{folders[name]}{os.sep}", report, flags=re.MULTILINE)
    return report


def main(arguments: list[str]) -> int:
    """Type-check every mapped package; return mypy's exit status."""
    folders = package_folders()
    with tempfile.TemporaryDirectory() as tree:
        link_tree(Path(tree), folders)
        command = [
            *(sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")),
            *("--cache-dir", str(ROOT / ".mypy_cache"), *arguments, "probgen"),
        ]
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    sys.stdout.write(stored_paths(done.stdout, folders))
    sys.stderr.write(done.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
