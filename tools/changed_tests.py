"""Run the tests that reach what differs from main, nearest first, for two minutes in all.

    python -m tools.changed_tests [--base main] [--seconds 100] [--list] [arguments of pytest]

What differs is what is committed since the branch left the base, what is not committed yet, and new
files. A test file reaches a change through imports, at any distance (`tools/house_graph.py`). First
come tests that changed themselves, then those called after a changed file, those of its room, and
then the others by their distance, small files before large ones. Tests for which there is no time
are skipped, and the summary counts them by file. What is merged has passed `make test`.
"""

import argparse
import subprocess
import sys
from pathlib import Path, PurePosixPath

from tools.house_graph import House

ROOT = Path(__file__).resolve().parent.parent


def git(*words: str) -> list[str]:
    """The lines of an answer of git's; its own words where it refuses."""
    done = subprocess.run(["git", *words], cwd=ROOT, text=True, capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"changed_tests: git {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.splitlines()


def differing(base: str) -> list[str]:
    """Files that differ from the base since this branch left it, new ones included."""
    (start,) = git("merge-base", base, "HEAD")
    known = git("diff", "--name-only", "--no-renames", start)
    return sorted({*known, *git("ls-files", "--others", "--exclude-standard")})


def read_house(*folders: str) -> House:
    """Every Python file that git knows, or would; of some folders, or of all."""
    paths = git("ls-files", "--cached", "--others", "--exclude-standard", "--", *folders)
    there = [path for path in paths if path.endswith(".py") and (ROOT / path).is_file()]
    return House({path: (ROOT / path).read_text(encoding="utf-8") for path in there})


def is_test(path: str) -> bool:
    """Whether pytest collects it."""
    return path.startswith("tests/") and PurePosixPath(path).name.startswith("test_")


def mirrors(test: str, changed: str) -> bool:
    """Whether a test stands where a changed file stands: tests/engine/ for probgen/engine/."""
    room = test.removeprefix("tests/").rpartition("/")[0]
    return bool(room) and changed.removeprefix("probgen/").startswith(f"{room}/")


def ranked(house: House, changed: list[str]) -> list[str]:
    """The test files that reach a change, the most telling first."""
    distances = house.distances(changed)
    names = {f"test_{PurePosixPath(path).stem}.py" for path in changed}

    def rank(test: str) -> tuple:
        return (
            distances[test] > 0,
            PurePosixPath(test).name not in names,
            not any(mirrors(test, path) for path in changed),
            distances[test],
            len(house.sources[test].tree.body),
        )

    tests = [path for path in distances if is_test(path) and path in house.sources]
    return sorted(sorted(tests), key=rank)


def main(arguments: list[str]) -> int:
    """Pytest's exit status, and 0 where there is nothing to run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="main", help="what the changes are counted from")
    parser.add_argument("--seconds", type=float, default=100.0, help="no test starts after these")
    parser.add_argument("--list", action="store_true", help="name the files and run nothing")
    options, rest = parser.parse_known_args(arguments)
    changed = differing(options.base)
    tests = ranked(read_house(), changed)
    print(f"{len(changed)} files differ from {options.base}; {len(tests)} test files reach them.")
    if options.list or not tests:
        print("\n".join(tests))
        return 0
    words = [sys.executable, "-m", "pytest", "--dist", "loadfile", "--no-loadscope-reorder"]
    words += ["-p", "tools.time_limit", "--for-seconds", str(options.seconds), *rest, *tests]
    return subprocess.run(words, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
