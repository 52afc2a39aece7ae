"""Who uses whom in the repository, and so which files a change reaches.

A file uses a module that it imports, in strings of Python for a child process too. What it takes by
name from a package (`pg.fit`, `from probgen.inference import ELBO`) is the module that the package
has it from, and not all that the package holds. Read with `ast`: nothing is imported.
"""

import ast
import itertools
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import PurePosixPath

from tools.imports import Source, imports, parse

INSIDE = ("models", "inference", "evaluation")  # beside probgen/, and imported from inside it
NAMES = ":names"  # a package's list of names, without the modules that they come from


def module_name(path: str) -> str:
    """The name by which tests import a file; their helpers go by the file's own name."""
    parts = PurePosixPath(path).with_suffix("").parts
    if parts[0] == "tests":
        return parts[-1]
    if parts[-1] == "__init__":
        parts = parts[:-1]
    return ".".join(["probgen", *parts] if parts[0] in INSIDE else parts)


def scripts(source: Source) -> Iterator[Source]:
    """Strings in a file that are Python with an import: what its child processes run."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.JoinedStr):
            parts = [str(v.value) if isinstance(v, ast.Constant) else "None" for v in node.values]
            text = "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        if "import " in text:
            try:
                yield parse(source.path, textwrap.dedent(text))
            except SyntaxError:
                continue


def mentions(source: Source) -> set[str]:
    """Strings without a space in a file: names of other files, dotted names of modules."""
    strings = (n.value for n in ast.walk(source.tree) if isinstance(n, ast.Constant))
    return {s for s in strings if isinstance(s, str) and "." in s and len(s.split()) == 1}


def dotted_uses(source: Source) -> set[str]:
    """Every `a.b.c` of the file that starts at an import, with the import's full name for `a`."""
    stands_for = defaultdict(set)
    for each in imports(source):
        stands_for[each.bound].add(each.name)
        if each.name.startswith(f"{each.bound}."):
            stands_for[each.bound].add(each.bound)
    found = set().union(*stands_for.values())
    for node in ast.walk(source.tree):
        names = []
        while isinstance(node, ast.Attribute):
            names.insert(0, node.attr)
            node = node.value
        if names and isinstance(node, ast.Name):
            found |= {".".join([full, *names]) for full in stands_for[node.id]}
    return found


def exports(source: Source) -> dict[str, str]:
    """Names that a package gives on: imported, or looked up in a table of constants when asked."""
    table = {each.bound: each.name for each in imports(source) if each.bound}
    for node in ast.walk(source.tree):
        pairs: Iterable = ()
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "dict.fromkeys":
            names, home = node.args
            pairs = [(name, home) for name in getattr(names, "elts", ())]
        for key, value in pairs:
            if isinstance(key, ast.Constant) and isinstance(value, ast.Constant):
                home = str(value.value)
                table[str(key.value)] = (
                    home if home.endswith(f".{key.value}") else f"{home}.{key.value}"
                )
    return table


class House:
    """The files of a repository; `texts` maps each path to its text."""

    def __init__(self, texts: dict[str, str]):
        self.sources = {path: parse(path, text) for path, text in texts.items()}
        self.paths = {module_name(path): path for path in texts}
        self.mentions = {path: mentions(source) for path, source in self.sources.items()}
        self.called = defaultdict(set)  # a file's name without its folder -> its paths
        for path in texts:
            self.called[PurePosixPath(path).name].add(path)
        self.exports = cache(lambda path: exports(self.sources[path]))

    def resolve(self, name: str, seen: frozenset[str] = frozenset()) -> set[str]:
        """The files behind a dotted name, with NAMES after a package of which a part is taken."""
        module = name
        while module and module not in self.paths:
            module = module.rpartition(".")[0]
        if not module or name in seen:
            return set()
        path, rest = self.paths[module], name[len(module) + 1 :].split(".")
        if not path.endswith("/__init__.py"):
            return {path}
        if rest == [""]:
            return {path + NAMES}
        home = self.exports(path).get(rest[0])
        if home is None:
            return {path}  # its own, or all of it
        return {path + NAMES} | self.resolve(".".join([home, *rest[1:]]), seen | {name})

    def used_by(self, path: str) -> set[str]:
        """What a file uses; of a test also the fixtures that all tests share."""
        source = self.sources[path]
        names = dotted_uses(source) | self.mentions[path]
        for script in scripts(source):
            names |= dotted_uses(script)
        found = set().union(*map(self.resolve, names))
        files = {PurePosixPath(name).name for name in self.mentions[path] if name.endswith(".py")}
        found = found.union(*(self.called[name] for name in files - {"__init__.py"}))
        if PurePosixPath(path).name.startswith("test_"):
            found |= self.resolve("conftest")
        return found - {path}

    def distances(self, changed: Iterable[str]) -> dict[str, int]:
        """How far each file that uses a changed one is from it, 0 for the changed ones themselves.

        What is not Python reaches the files that name it.
        """
        users = defaultdict(set)
        for path in self.sources:
            for used in self.used_by(path):
                users[used].add(path)
        found = {path: 0 for path in changed}
        for path in list(found):
            if path not in self.sources:
                names = {path, PurePosixPath(path).name}
                users[path] |= {user for user, said in self.mentions.items() if said & names}
        # Of a package that changed itself also those who take a part of it.
        ring = {node for path in found for node in (path, path + NAMES)}
        for distance in itertools.count(1):
            ring = set().union(*(users[node] for node in ring)) - set(found)
            if not ring:
                return found
            found |= dict.fromkeys(ring, distance)
