"""What every test shares: both backends, hypothesis without deadlines, one core for each worker.

A test that asks for `backend` runs on torch and on JAX. A missing framework, or GPU, is a skip that
says so. Numbers are compared in the tests themselves, against standard errors.
"""

import gc
import importlib.util
import os
import signal
from collections.abc import Iterator

import compiling
import hypothesis
import memory
import pytest

import probgen  # noqa: F401 - before JAX: it sets the flag without which JAX's sums are not right

# Before any framework is imported: parallel workers would otherwise fight over the cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")

# No window system, no network, wherever the tests run.
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# No deadline: JAX compiles once per shape, torch traces once, and the first example pays for it.
hypothesis.settings.register_profile("local", deadline=None, max_examples=30)
# In CI the examples are the same each time: a failure there is the change's own.
hypothesis.settings.register_profile(
    "ci", parent=hypothesis.settings.get_profile("local"), derandomize=True, print_blob=True
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")

FRAMEWORKS = {"torch": ("torch", "pyro"), "jax": ("jax", "numpyro", "optax")}


@pytest.fixture(params=list(FRAMEWORKS), scope="session")
def backend_name(request: pytest.FixtureRequest) -> str:
    """The backend's name, "torch" then "jax"; session-scoped, so that hypothesis may reuse it."""
    missing = [each for each in FRAMEWORKS[request.param] if not importlib.util.find_spec(each)]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: pip install 'probgen[{request.param}]'")
    return request.param


@pytest.fixture(scope="session")
def backend(backend_name: str):
    """The backend itself, on the CPU and without inductor, whose compilation short computations do
    not earn back. Programs of README and docs, and tests of compilation, run as users' do."""
    from probgen import backends

    options = {"compile": "graph"} if backend_name == "torch" else {}
    return backends.load(backend_name, "cpu", **options)


@pytest.fixture(scope="session")
def b(backend):
    """The same, by the name that it has in algorithms."""
    return backend


def _gpu_is_visible() -> bool:
    """Whether torch or JAX, if installed, sees a GPU."""
    if importlib.util.find_spec("torch"):
        import torch

        if torch.cuda.is_available():
            return True
    if importlib.util.find_spec("jax"):
        import jax

        return any(device.platform == "gpu" for device in jax.devices())
    return False


# Folders and files with tests of ten seconds. They come first: at the end of a run, what is left is
# short, and no worker waits long for another.
LONG = {
    "regret", "test_types.py", "test_resume.py", "test_docs_evaluation.py", "test_docs_time.py",
    "test_cli.py",
}  # fmt: skip


@pytest.hookimpl(trylast=True)  # after `-m` has chosen
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first. Skip GPU tests where there is no GPU; a framework is asked only if such a
    test was chosen."""
    items.sort(key=lambda item: LONG.isdisjoint(item.path.parts))
    chosen = [item for item in items if item.get_closest_marker("gpu")]
    if not chosen or _gpu_is_visible():
        return
    for item in chosen:
        item.add_marker(pytest.mark.skip(reason="no GPU here that torch or jax can see"))


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM do what they do in a fresh process: a shell ignores Ctrl-C for what it
    runs behind it. Whoever replaced a handler must have put it back."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    left = {number: signal.signal(number, before[number]) for number in usual}
    assert left == usual


@pytest.fixture
def same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch draws the numbers that JAX draws; see `shared_noise`."""
    from shared_noise import share_noise

    share_noise(monkeypatch)


def pytest_configure(config: pytest.Config) -> None:
    """What computes for minutes is compiled as users' programs are."""
    chosen = config.getoption("markexpr")
    if "not slow" in chosen and "not gpu" in chosen:
        compiling.hasten()
    # Tracing makes objects by the million, few of them in rings: looking for those less often saves
    # a twentieth of all time.
    gc.set_threshold(20_000, 50, 100)
    gc.disable()  # what modules make stays
    # What a test writes need not outlive a power cut: waiting for the disk was a twentieth too.
    os.fsync = lambda handle: None


def pytest_collection_finish(session: pytest.Session) -> None:
    """JAX, if a test has imported it, writes many programs down in one context, and no stacks. What
    modules made is no garbage, and not looked through again."""
    compiling.keep_contexts()
    compiling.forget_stacks()
    gc.freeze()
    gc.enable()


_watch = memory.Watch()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Between files, or in a long one as it grows: at most a few GiB a worker."""
    _watch.look(nextitem is None or nextitem.path != item.path)
