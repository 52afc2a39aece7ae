"""What is installed is what is here: wheel and editable install, seen from elsewhere.

Every check runs in a fresh interpreter in another working directory, so that neither the folder
at hand nor what this process has imported can help. Frameworks are optional: the package imports
without either of them, and says which extra to install when one is asked for.
"""

import functools
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SIDES = {"torch": ("torch", "pyro"), "jax": ("jax", "jaxlib", "numpyro", "optax")}

ROOMS = (
    *("probgen", "probgen.models", "probgen.inference", "probgen.evaluation"),
    *("probgen.nets", "probgen.data", "probgen.backends"),
)

# Take modules away as if they had never been installed: `import` fails, `find_spec` finds nothing.
HIDE = """
import sys

class Hiding:
    def __init__(self, finder, names):
        self._finder, self._names = finder, names

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in self._names:
            return None
        return self._finder.find_spec(fullname, path, target)

    def __getattr__(self, name):
        return getattr(self._finder, name)

sys.meta_path[:] = [Hiding(finder, {names!r}) for finder in sys.meta_path]
"""


def fresh(code: str, cwd: Path, *flags: str, path: list[Path] | None = None) -> str:
    """Run `code` in a new interpreter and return what it printed; `path` goes before sys.path."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path:
        environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    done = subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(code)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def pip(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy of the sources alone: no build/ of earlier days, no network."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for room in ("probgen", "models", "inference", "evaluation"):
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    built = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(built), str(source))
    (only,) = built.glob("*.whl")
    return only


@pytest.fixture(scope="module")
def target(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("target")
    pip("install", "--no-deps", "--no-index", "--target", str(folder), str(wheel))
    return folder


def modules(root: Path) -> list[str]:
    """The dotted name of every module below `root`, a folder that is on sys.path."""
    paths = sorted((root / "probgen").rglob("*.py"))
    names = [".".join(path.relative_to(root).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


def stored_modules() -> set[str]:
    """The dotted name of every module of the repository, by the rooms' installed names."""
    found = set()
    for room in ("probgen", "models", "inference", "evaluation"):
        for path in (ROOT / room).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            name = name if room == "probgen" else f"probgen.{name}"
            found.add(name.removesuffix(".__init__"))
    return {name for name in found if not name.endswith("__main__")}


# --- the wheel -------------------------------------------------------------------------------


def test_a_wheel_holds_every_module_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/", 1)[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"probgen"}
    assert "probgen/py.typed" in names
    assert any(name.endswith("LICENSE") for name in names)
    assert {f"probgen/data/pictograms{end}" for end in (".npz", ".NOTICE.txt")} <= set(names)


def test_a_wheel_holds_what_the_repository_holds(target):
    assert set(modules(target)) == stored_modules()


def test_every_module_of_a_wheel_imports_from_elsewhere(target, tmp_path):
    """-S leaves out the .pth files, and so the editable install, which could fill a gap."""
    libraries = [Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("platlib"))]
    code = f"""
    import importlib
    for name in {modules(target)!r}:
        module = importlib.import_module(name)
        assert module.__file__.startswith({str(target)!r}), module.__file__
    print("all")
    """
    assert fresh(code, tmp_path, "-S", path=[target, *libraries]).endswith("all\n")


def test_a_wheel_names_its_extras_and_its_command(target):
    metadata = next(target.glob("probgen-*.dist-info"))
    text = (metadata / "METADATA").read_text(encoding="utf-8")
    for extra in ("torch", "jax", "data", "dev", "all"):
        assert f"Provides-Extra: {extra}\n" in text
    needed = [line for line in text.splitlines() if line.startswith("Requires-Dist")]
    for line in needed:
        if any(f" {name}" in line for name in ("torch", "pyro-ppl", "jax", "numpyro", "optax")):
            assert "extra ==" in line, f"a framework is required of everyone: {line}"
    assert "probgen = probgen.cli:main" in (metadata / "entry_points.txt").read_text()


# --- the editable install --------------------------------------------------------------------


def test_every_module_of_the_editable_install_is_found_from_elsewhere(tmp_path):
    """At its file of this repository; that each can be imported is the wheel's test."""
    code = f"""
    from importlib.util import find_spec
    for name in {sorted(stored_modules())!r}:
        found = find_spec(name)
        assert found and found.origin.startswith({str(ROOT)!r}), (name, found)
    print("all")
    """
    assert fresh(code, tmp_path).endswith("all\n")


def test_no_package_called_models_is_installed(tmp_path):
    code = """
    from importlib.util import find_spec
    print([name for name in ("models", "inference", "evaluation") if find_spec(name)])
    """
    assert fresh(code, tmp_path) == "[]\n"


def test_every_pin_is_exact_and_every_dependency_is_pinned():
    """constraints.txt pins each name that pyproject.toml asks for, and names no index."""
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    assert not [line for line in lines if "==" not in line or "+" in line or "/" in line]
    pinned = {normalised(line.split("==")[0]) for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(each for name in extras for each in extras[name])]
    names = {normalised(each) for each in asked}
    assert names - {"probgen"} <= pinned


def normalised(requirement: str) -> str:
    """The name in a requirement line, as registries compare it."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    return canonicalize_name(Requirement(requirement).name)


# --- frameworks are optional -----------------------------------------------------------------


def test_importing_probgen_loads_no_framework(tmp_path):
    """Nor `scipy.stats`, which takes as long as all the rest and which few programs need."""
    names = sorted({name for side in SIDES.values() for name in side} | {"flax", "equinox"})
    code = f"""
    import sys
    import {", ".join(ROOMS)}
    print(sorted({{*{names!r}, "scipy.stats"}} & set(sys.modules)))
    """
    assert fresh(code, tmp_path) == "[]\n"


@functools.cache
def alone(missing: str, remaining: str) -> str:
    """What one process prints that has but one framework: rooms imported, the other asked for, a
    coin of unknown bias learned."""
    code = HIDE.replace("{names!r}", repr(SIDES[missing])) + textwrap.dedent(f"""
        import {", ".join(ROOMS)}
        print("rooms")
        import numpy as np
        import probgen as pg
        from probgen import backends, dist, nets
        from probgen.errors import BackendError
        from probgen.inference import ELBO, SVI
        from probgen.models import VAE

        assert backends.load({remaining!r}).name == {remaining!r}
        try:
            backends.load({missing!r})
        except BackendError as error:
            print("refused:", error)

        vae = VAE(
            latent=dist.Normal(0, 1).expand([2]).to_event(1),
            decoder=nets.MLP(hidden=(8,), out=(4,)),
            likelihood=dist.Bernoulli,
            encoder=nets.MLP(hidden=(8,), out=2, heads=("loc", "log_scale")),
        )
        coins = np.tile(np.asarray([1.0, 0.0, 1.0, 1.0], dtype="float32"), (32, 1))
        fitted = pg.fit(
            vae, coins, SVI(ELBO(), pg.Adam(1e-2)),
            num_epochs=2, batch_size=16, backend="auto", seed=0, progress_bar=False,
        )
        assert not set({SIDES[missing]!r}) & set(sys.modules)
        assert {SIDES[remaining][0]!r} in sys.modules
        print("fitted")
    """)
    with tempfile.TemporaryDirectory() as elsewhere:
        return fresh(code, Path(elsewhere))


def test_every_room_imports_without_any_framework(tmp_path):
    names = (*SIDES["torch"], *SIDES["jax"])
    code = HIDE.replace("{names!r}", repr(names)) + f"import {', '.join(ROOMS)}\nprint('all')"
    assert fresh(code, tmp_path).endswith("all\n")


WITHOUT = pytest.mark.parametrize(("missing", "remaining"), [("torch", "jax"), ("jax", "torch")])


@WITHOUT
def test_every_room_imports_without_a_framework(missing, remaining):
    assert "rooms" in alone(missing, remaining).splitlines()


@WITHOUT
def test_a_missing_framework_is_an_error_that_names_its_extra(missing, remaining):
    (said,) = (s for s in alone(missing, remaining).splitlines() if s.startswith("refused:"))
    assert f"probgen[{missing}]" in said


@WITHOUT
def test_one_framework_is_enough_to_fit(missing, remaining):
    """With the other framework away, "auto" takes what is there."""
    assert alone(missing, remaining).endswith("fitted\n")
