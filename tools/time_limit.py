"""A plugin of pytest: `-p tools.time_limit --for-seconds 100` starts no test after these.

The seconds begin with the first test of a worker. The rest is skipped, and the summary counts it by
file, so that nobody takes a part for the whole.
"""

import time
from collections import Counter

import pytest

TIME_IS_OVER = "the time is over"
FIRST_TEST = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The one option."""
    parser.addoption("--for-seconds", type=float, required=True, help="start no test after these")


@pytest.hookimpl(tryfirst=True)  # before the fixtures are made
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what begins too late."""
    now = time.monotonic()
    began = item.config.stash.setdefault(FIRST_TEST, now)
    if now - began > item.config.getoption("--for-seconds"):
        pytest.skip(TIME_IS_OVER)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what was left out."""
    skipped = terminalreporter.stats.get("skipped", ())
    left = Counter(r.nodeid.split("::")[0] for r in skipped if TIME_IS_OVER in str(r.longrepr))
    if left:
        terminalreporter.section("left out, since the time is over")
        for path, number in left.items():
            terminalreporter.line(f"{number:5} of {path}")
