"""What a file of the house imports, read with `ast`: nothing is imported and nothing is run.

`tests/house/test_layout.py` holds the floors by it, and `tools/changed_tests.py` finds with it the
tests that a change reaches.
"""

import ast
from functools import cache
from typing import NamedTuple


class Source(NamedTuple):
    """One parsed file; `path` is relative to the repository, with forward slashes."""

    path: str
    tree: ast.Module

    @property
    def room(self) -> str:
        return self.path.split("/", 1)[0]

    @property
    def is_backend(self) -> bool:
        return self.path.startswith("probgen/backends/")

    @property
    def package(self) -> str:
        """The dotted package that a relative import in this file starts from."""
        folders = self.path.split("/")[:-1]
        return ".".join(folders if self.room == "probgen" else ["probgen", *folders])


class Import(NamedTuple):
    """`name` is the module as far as the line tells, `probgen.models.VAE` for `from .. import`."""

    name: str
    line: int
    is_lazy: bool  # inside a function, or for the type checker alone
    bound: str = ""  # what the file calls it; of `import a.b` that is `a`


@cache
def parse(path: str, text: str) -> Source:
    """A file's text as a tree."""
    return Source(path, ast.parse(text, filename=path))


@cache
def imports(source: Source) -> tuple[Import, ...]:
    """Every import of the file, relative ones resolved, `import_module("...")` included."""
    found: list[Import] = []

    def visit(node: ast.AST, is_lazy: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(
                Import(alias.name, node.lineno, is_lazy, alias.asname or top(alias.name))
                for alias in node.names
            )
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = source.package.split(".")
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, *filter(None, [node.module])])
            found.extend(
                Import(f"{base}.{alias.name}", node.lineno, is_lazy, alias.asname or alias.name)
                for alias in node.names
            )
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else None
            called = node.func.id if isinstance(node.func, ast.Name) else called
            name = node.args[0]
            if called in {"import_module", "__import__"} and isinstance(name, ast.Constant):
                found.append(Import(str(name.value), node.lineno, is_lazy))
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            is_lazy = True
        is_lazy |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, is_lazy)

    visit(source.tree, False)
    return tuple(found)


def is_under(name: str, package: str) -> bool:
    """Whether a dotted name is that package, or lies in it."""
    return name == package or name.startswith(f"{package}.")


def top(name: str) -> str:
    """The first part of a dotted name."""
    return name.split(".", 1)[0]
