"""The rules of the tests: shared code is in `tests/helpers`, and no test patches a private name."""

import ast
import functools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.repository import ROOT

TESTS = sorted((ROOT / "tests").rglob("test_*.py"))

PRIVATE_PATCHES = Counter({"tests/integration/test_retries.py": 1})
"""The number of private names that a file still patches. The numbers may only shrink.

`test_retries.py` gives a task of a module to another app: a child process finds the task by its module.
"""


@functools.cache
def nodes_of(path: Path) -> list[ast.AST]:
    return [*ast.walk(ast.parse(path.read_text()))]


def imported_modules(path: Path) -> Iterator[str]:
    for node in nodes_of(path):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(origin), names=names):
                yield from (f"{origin}.{alias.name}" for alias in names)


def private_patches(path: Path) -> Iterator[str]:
    """Each private name that a `setattr` receives, as an argument or at the end of a dotted path."""
    for node in nodes_of(path):
        match node:
            case ast.Call(func=ast.Attribute(attr="setattr") | ast.Name(id="setattr"), args=args):
                names = [arg.value for arg in args[:2] if isinstance(arg, ast.Constant)]
                last = [str(name).rpartition(".")[2] for name in names]
                yield from (name for name in last if name.startswith("_") and not name.endswith("__"))


def test_no_test_module_imports_another_test_module() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in TESTS
        for name in imported_modules(path)
        if name.startswith("tests.") and ".test_" in name
    ]

    assert wrong == []


def test_only_the_listed_private_names_are_patched() -> None:
    found = Counter(
        {str(path.relative_to(ROOT)): number for path in TESTS if (number := len([*private_patches(path)]))}
    )

    assert found == PRIVATE_PATCHES
