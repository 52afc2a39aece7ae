"""The house keeps its plan: who may import whom, read from the source with `ast`.

    tests, studies -> evaluation -> models, inference -> probgen
    within probgen/: verbs -> views -> engine -> records -> nets, data -> backends -> language

and what stands in no folder is below all floors (`BOTTOM`) or above them (`TOP`).

Each rule is a function from a parsed file to its offending lines, so that the rules themselves can
be tested on a line that breaks them. Nothing is imported here and no framework is needed.
"""

import ast
import graphlib
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tools.imports import Source, imports, is_under, parse, top

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("probgen", "models", "inference", "evaluation")

# From the lowest up; those of one line do not import each other.
BOTTOM = {"errors", "trees", "progress", "version"}
FLOORS = [
    BOTTOM, {"language"}, {"backends"}, {"nets", "data"}, {"records"}, {"engine"}, {"views"},
    {"verbs", "interop", "cli"},
]  # fmt: skip

TORCH_SIDE = {"torch", "pyro", "functorch", "torchvision", "torchdiffeq", "diffusers",
              "transformers"}  # fmt: skip
JAX_SIDE = {"jax", "jaxlib", "numpyro", "optax", "flax", "equinox", "blackjax", "diffrax"}
BACKEND_WORDS = {"torch", "pyro", "jax", "numpyro"}

# The only files outside probgen/backends that meet a framework: what users bring along.
BRING_YOUR_OWN = {
    "probgen/nets/adapters.py", "probgen/interop/diffusers_folder.py",
    "probgen/interop/transformers_folder.py", "probgen/interop/efficientnet.py",
}  # fmt: skip

# Files of probgen/ that may reach up into the rooms, and then only inside a function: the command
# line and the door to diffusers, users of the rooms that happen to live below them.
REACHES_UP = {
    "probgen/cli.py", "probgen/interop/diffusers.py", "probgen/interop/diffusers_pipeline.py",
}  # fmt: skip

MAX_LINES = 450


Rule = Callable[[Source], Iterator[tuple[int, str]]]


# --- the rules -------------------------------------------------------------------------------


def frameworks_stay_in_backends(source: Source) -> Iterator[tuple[int, str]]:
    if source.is_backend or source.path in BRING_YOUR_OWN:
        return
    for each in imports(source):
        if top(each.name) in TORCH_SIDE | JAX_SIDE:
            yield each.line, f"imports {each.name}; only probgen/backends may, use the protocol"


def an_adapter_knows_one_framework(source: Source) -> Iterator[tuple[int, str]]:
    if not source.is_backend:
        return
    seen = {top(each.name) for each in imports(source)}
    if seen & TORCH_SIDE and seen & JAX_SIDE:
        for each in imports(source):
            if top(each.name) in JAX_SIDE:
                yield each.line, f"imports {each.name} in a file that imports torch's side too"


def adapters_are_reached_by_the_protocol(source: Source) -> Iterator[tuple[int, str]]:
    if source.is_backend:
        return
    for each in imports(source):
        for adapter in ("probgen.backends.torch", "probgen.backends.jax"):
            if each.name.startswith(adapter):
                yield each.line, f"imports {each.name}; ask backends.load for it instead"


def rooms_look_only_down(source: Source) -> Iterator[tuple[int, str]]:
    above = {
        "probgen": ("models", "inference", "evaluation"),
        "models": ("inference", "evaluation"),
        "inference": ("models", "evaluation"),
    }
    for each in imports(source):
        for room in above.get(source.room, ()):
            if not is_under(each.name, f"probgen.{room}"):
                continue
            if not (source.path in REACHES_UP and each.is_lazy):
                yield each.line, f"{source.room}/ imports {each.name}, which lies above it"


def _floor(part: str) -> int | None:
    return next((i for i, parts in enumerate(FLOORS) if part in parts), None)


def floors_look_only_down(source: Source) -> Iterator[tuple[int, str]]:
    """Inside probgen/, lazy and type-only imports included."""
    parts = source.path.removesuffix(".py").split("/")
    if source.room != "probgen" or parts[1] == "__init__":
        return
    own = _floor(parts[1])
    if own is None:
        yield 1, f"stands on no floor; add {parts[1]!r} to FLOORS"
        return
    for each in imports(source):
        name = each.name.split(".")
        if name[0] != "probgen" or len(name) < 2 or name[1] == parts[1]:
            continue
        other = _floor(name[1])
        if other is None and own < len(FLOORS) - 1 and name[1] not in ROOMS:
            yield each.line, f"imports {each.name} by the front door, which lies above it"
        elif other is not None and (other > own or (other == own and own)):
            yield each.line, f"{parts[1]} imports {each.name}, which does not lie below it"


def rooms_are_imported_from_probgen(source: Source) -> Iterator[tuple[int, str]]:
    for each in imports(source):
        if top(each.name) in {"models", "inference", "evaluation"}:
            yield each.line, f"imports {each.name}; its name is probgen.{each.name}"


def nothing_branches_on_the_backend(source: Source) -> Iterator[tuple[int, str]]:
    """A comparison, `match` case or lookup by a backend's name, outside the backends."""
    if source.is_backend:
        return

    def names_one(node: ast.AST | None) -> bool:
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            return any(names_one(each) for each in node.elts)
        return isinstance(node, ast.Constant) and node.value in BACKEND_WORDS

    for node in ast.walk(source.tree):
        caught = (
            (isinstance(node, ast.Compare) and any(map(names_one, [node.left, *node.comparators])))
            or (isinstance(node, ast.MatchValue) and names_one(node.value))
            or (
                isinstance(node, ast.Subscript)
                and isinstance(node.value, ast.Dict)
                and any(map(names_one, node.value.keys))
            )
        )
        if caught:
            line = getattr(node, "lineno", 0)
            yield line, "branches on a backend's name; put the difference behind the protocol"


RULES: list[Rule] = [
    frameworks_stay_in_backends,
    an_adapter_knows_one_framework,
    adapters_are_reached_by_the_protocol,
    rooms_look_only_down,
    floors_look_only_down,
    rooms_are_imported_from_probgen,
    nothing_branches_on_the_backend,
]


# --- the house obeys them --------------------------------------------------------------------


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule):
    offences = [
        f"{relative(path)}:{line}: {what}"
        for path in python_files(*ROOMS)
        for line, what in rule(parse(relative(path), path.read_text(encoding="utf-8")))
    ]
    assert not offences, "\n" + "\n".join(offences)


def rings(files: dict[str, Source]) -> list[list[str]]:
    """Files that import each other in a circle; `files` by their dotted name."""
    links = {name: set() for name in files}
    for name, source in files.items():
        for each in imports(source):
            target = each.name
            while target and target not in files:
                target = target.rpartition(".")[0]
            if target not in ("", "probgen", name):
                links[name].add(target)
    sorter, found = graphlib.TopologicalSorter(links), []
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        found.append(error.args[1])
    return found


def test_no_files_import_each_other_in_a_ring():
    files = {}
    for path in python_files(*ROOMS):
        source = parse(relative(path), path.read_text(encoding="utf-8"))
        name = ".".join(Path(source.path).with_suffix("").parts).removesuffix(".__init__")
        files[name if source.room == "probgen" else f"probgen.{name}"] = source
    assert not rings(files)


def test_a_ring_is_found_behind_lazy_and_type_only_imports():
    texts = {
        "probgen.a": "from probgen.b import x",
        "probgen.b": "def f():\n    from probgen import c",
        "probgen.c": "if TYPE_CHECKING:\n    import probgen.a",
    }
    files = {n: parse(n.replace(".", "/") + ".py", text) for n, text in texts.items()}
    assert sorted(set(rings(files)[0])) == sorted(texts)
    assert rings({n: s for n, s in files.items() if n != "probgen.b"}) == []


def test_tests_import_the_rooms_by_their_installed_name():
    offences = [
        f"{relative(path)}:{line}: {what}"
        for path in python_files("tests", "benchmarks", "studies")
        for line, what in rooms_are_imported_from_probgen(
            parse(relative(path), path.read_text(encoding="utf-8"))
        )
    ]
    assert not offences, "\n" + "\n".join(offences)


# What a user has to write a model or an algorithm of their own, and what these files are made of.
PUBLIC = {
    "probgen", "probgen.errors", "probgen.evaluation", "probgen.evaluation.detection",
    "probgen.inference", "probgen.inference.ood", "probgen.models", "probgen.trees",
}  # fmt: skip
SLICES = [
    "tests/learner_cases.py", "tests/models/test_thin_slices.py",
    "tests/evaluation/test_tilted_detection.py",
]  # fmt: skip


@pytest.mark.parametrize("path", SLICES)
def test_slices_are_written_over_public_names(path):
    source = parse(path, (ROOT / path).read_text(encoding="utf-8"))
    of_project = {
        each.name.rpartition(".")[0] for each in imports(source) if "probgen." in each.name
    }
    assert {name for name in of_project if name.startswith("probgen")} <= PUBLIC


# In one order, since each worker of the suite collects its tests by itself.
EXEMPTIONS = [
    *((path, frameworks_stay_in_backends, "BRING_YOUR_OWN") for path in sorted(BRING_YOUR_OWN)),
    *((path, rooms_look_only_down, "REACHES_UP") for path in sorted(REACHES_UP)),
]


@pytest.mark.parametrize(("path", "rule", "listed"), EXEMPTIONS)
def test_every_exemption_is_in_use(path, rule, listed, monkeypatch):
    """An exemption that no line needs any more is a hole left open."""
    monkeypatch.setitem(globals(), listed, set())
    offences = list(rule(parse(path, (ROOT / path).read_text(encoding="utf-8"))))
    assert offences, f"{path} breaks no rule; take it off {listed}"


def test_a_file_is_one_idea():
    long = {
        relative(path): count
        for path in python_files(*ROOMS, "tests", "tools", "benchmarks", "studies")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }
    assert not long, f"more than {MAX_LINES} lines; split by idea: {long}"


def test_every_package_folder_is_shipped():
    """pyproject.toml lists packages one by one: a folder left out works here and not in a wheel."""
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    folders = {
        ".".join(path.relative_to(ROOT).parent.parts)
        for path in python_files(*ROOMS)
        if path.name == "__init__.py"
    }
    names = {name if top(name) == "probgen" else f"probgen.{name}" for name in folders}
    assert names == set(setup["setuptools"]["packages"])


def test_every_folder_of_modules_is_a_package():
    """Without an __init__.py a folder is a namespace, which the packages' list would not ship."""
    bare = {
        relative(path.parent)
        for path in python_files(*ROOMS)
        if not (path.parent / "__init__.py").exists()
    }
    assert not bare, f"modules without an __init__.py beside them: {sorted(bare)}"


# --- the rules bite --------------------------------------------------------------------------

BROKEN = [
    (frameworks_stay_in_backends, "models/vae.py", "import torch"),
    (frameworks_stay_in_backends, "probgen/language/ops.py", "def f():\n    from jax import numpy"),
    (
        frameworks_stay_in_backends,
        "probgen/fit.py",
        "import importlib as i\ni.import_module('jax')",
    ),
    (an_adapter_knows_one_framework, "probgen/backends/x.py", "import pyro\nimport numpyro"),
    (adapters_are_reached_by_the_protocol, "models/a.py", "from probgen.backends import torch"),
    (adapters_are_reached_by_the_protocol, "probgen/a.py", "from .backends.jax import x"),
    (rooms_look_only_down, "models/vae.py", "from probgen.inference import ELBO"),
    (rooms_look_only_down, "models/vae.py", "from ..inference import ELBO"),
    (rooms_look_only_down, "models/vae.py", "from probgen import inference"),
    (rooms_look_only_down, "inference/learn/svi.py", "import probgen.models.vae"),
    (rooms_look_only_down, "inference/learn/svi.py", "def f():\n    import probgen.evaluation"),
    (rooms_look_only_down, "probgen/fit.py", "def f():\n    from .inference import SVI"),
    (rooms_look_only_down, "probgen/cli.py", "from probgen.models import VAE"),
    (floors_look_only_down, "probgen/engine/a.py", "from probgen.verbs.fit import fit"),
    (floors_look_only_down, "probgen/records/a.py", "def f():\n    import probgen.engine.bound"),
    (floors_look_only_down, "probgen/language/a.py", "from probgen import dist"),
    (floors_look_only_down, "probgen/nets/a.py", "from probgen.data import sources"),
    (floors_look_only_down, "probgen/trees.py", "from probgen.language import ops"),
    (floors_look_only_down, "probgen/somewhere.py", "x = 1"),
    (rooms_are_imported_from_probgen, "evaluation/ood.py", "from models import VAE"),
    (nothing_branches_on_the_backend, "inference/a.py", "if backend.name == 'torch':\n    pass"),
    (nothing_branches_on_the_backend, "models/a.py", "x = b in ('jax', 'auto')"),
    (nothing_branches_on_the_backend, "models/a.py", "f = {'jax': 1, 'torch': 2}[b.name]"),
    (nothing_branches_on_the_backend, "models/a.py", "match b:\n    case 'jax':\n        pass"),
]

SOUND = [
    ("probgen/backends/torch/backend.py", "import torch\nif name == 'torch':\n    pass"),
    ("probgen/cli.py", "def main():\n    from probgen.models import VAE"),
    ("probgen/verbs/a.py", "from probgen.engine.bind import bind\nfrom probgen import errors"),
    ("evaluation/ood.py", "from probgen.models import VAE\nfrom ..inference import IWAE"),
    ("models/vae.py", "from probgen import dist, nets\nfrom .base import Model\nimport numpy"),
    ("models/vae.py", '"""Say torch, and `import jax`, in words."""\nbackend = "torch"'),
]


@pytest.mark.parametrize(("rule", "path", "text"), BROKEN)
def test_a_rule_names_the_line_that_breaks_it(rule, path, text):
    lines = [line for line, _ in rule(parse(path, text))]
    assert len(lines) == 1
    assert 1 <= lines[0] <= len(text.splitlines())


@pytest.mark.parametrize(("path", "text"), SOUND)
def test_no_rule_objects_to_a_sound_file(path, text):
    assert [what for rule in RULES for what in rule(parse(path, text))] == []
