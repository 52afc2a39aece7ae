"""A test that `make test` leaves out says which test of the quick suite holds its law."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent


def marks(tree: ast.AST) -> list[ast.expr]:
    """Every `pytest.mark.repeated` of a file: its call, or the bare mark where it is not called."""
    found = [node for node in ast.walk(tree) if is_mark(node)]
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.func in found]
    return [*calls, *(node for node in found if node not in [call.func for call in calls])]


def is_mark(node: ast.AST) -> bool:
    """Whether a node is the name `pytest.mark.repeated`."""
    return isinstance(node, ast.Attribute) and ast.unparse(node) == "pytest.mark.repeated"


def complaint(path: Path, mark: ast.expr) -> str | None:
    """What is wrong with a mark, or None where it names a test that the quick suite runs."""
    where = f"{path.name}:{mark.lineno}"
    arguments = [*mark.args, *mark.keywords] if isinstance(mark, ast.Call) else []
    if len(arguments) != 1 or not isinstance(getattr(arguments[0], "value", None), str):
        return f'{where}: got {ast.unparse(mark)}; expected repeated("test_file.py::test_name")'
    file, _, name = arguments[0].value.rpartition("::")
    others = list(TESTS.rglob(file)) if file else [path]
    for other in others:
        for node in ast.parse(other.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                if any(is_mark(part) for each in node.decorator_list for part in whole(each)):
                    return f"{where}: {name} is itself left out as a whole"
                return None
    return f"{where}: there is no test {arguments[0].value!r}"


def whole(decorator: ast.expr) -> list[ast.AST]:
    """The parts of a decorator that concern all cases of its test."""
    of_cases = ast.unparse(decorator).startswith("pytest.mark.parametrize")
    return [] if of_cases else list(ast.walk(decorator))


def test_what_is_left_out_is_held_by_a_test_that_runs():
    texts = {path: path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py")}
    complaints = [
        complaint(path, mark)
        for path, text in texts.items()
        if "mark.repeated" in text
        for mark in marks(ast.parse(text))
    ]
    assert [each for each in complaints if each] == []


@pytest.mark.parametrize(
    "mark, expected",
    [
        ('pytest.mark.repeated("test_what_is_left_out_is_held_by_a_test_that_runs")', None),
        ('pytest.mark.repeated("test_layout.py::test_every_file_keeps_the_rule")', None),
        ('pytest.mark.repeated("test_nobody")', "there is no test 'test_nobody'"),
        ("pytest.mark.repeated", "expected repeated("),
        ("pytest.mark.repeated()", "expected repeated("),
    ],
)
def test_a_mark_that_names_no_test_is_told(mark, expected):
    (found,) = marks(ast.parse(f"x = {mark}"))
    said = complaint(Path(__file__), found)
    assert said is None if expected is None else expected in said
