"""The import order of folders and wings, and the rules that every module keeps."""

import ast
import functools
import importlib.util
import inspect
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import jsq

ROOT = Path(jsq.__file__).parent

FOLDERS = (
    *("errors", "model", "settings", "server"),
    *("codec", "transport", "broker"),
    *("context", "batch", "dependencies", "lifespan", "middleware", "hooks"),
    *("client", "declaration", "task", "declarations", "router"),
    *("discovery", "functions", "embedded", "immediate", "app"),
    *("executors", "worker", "telemetry", "testing"),
    *("dashboard", "outbox", "guide", "cli", "contrib"),
)
"""Folders and top-level modules in import order: each may import those before it, and itself."""

LATE_IMPORTS = {"app": ("worker", "testing"), "immediate": ("testing",)}
"""The folders after its own that a module may import, if that loads no worker with an App.

`App.working` and `App.immediate` start a worker. `immediate` has the types of what a test gets from a block.
"""

WINGS = (
    *("topology", "delivery", "access", "jobs", "flow", "operations", "submit"),
    *("blobs", "schedules", "topics", "workflows"),
    *("maintenance", "broker", "health"),
)
"""The parts of `broker/` in import order, by the same rule."""

ENTRY_POINTS = ("__init__", "__main__")
PUBLIC_MODULES = (
    *("app", "task", "context", "router"),
    *("client.admin", "client.client", "client.dead_letters", "client.handle", "client.jobs"),
    *("client.queues", "client.schedules", "client.submitter"),
)
PURE_MODULES = {
    *(
        "bisect",
        "collections",
        "cronsim",
        "dataclasses",
        "datetime",
        "difflib",
        "enum",
        "fnmatch",
        "functools",
        "hashlib",
    ),
    *("inspect", "json", "math", "re", "sys", "traceback", "types", "typing", "zoneinfo"),
}
"""The modules outside jsq that `model/` may import: those without I/O, clock or randomness."""

CLOCKS = {"now", "utcnow", "today"}
"""The methods of `datetime` and `date` that read the clock."""

CATCH_ALL_NAMES = {"utils", "util", "common", "misc", "core", "helpers"}


def modules() -> dict[str, Path]:
    """Every module by its name in the package; `broker` is the `__init__` of that folder."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(ROOT.rglob("*.py"))
    }


MODULES = modules()
HOMES: dict[str, str] = vars(jsq)["_home"]
"""The module of each public name."""


def folder_of(module: str) -> str:
    return module.partition(".")[0]


def wing_of(module: str) -> str:
    return module.split(".")[1]


@functools.cache
def imported(module: str) -> tuple[tuple[str, int], ...]:
    return tuple(read_imports(module))


def read_imports(module: str) -> Iterator[tuple[str, int]]:
    """All imports of a module, also those in functions: the full dotted name, and the line."""
    path = MODULES[module]
    package = ".".join(["jsq", *path.relative_to(ROOT).parent.parts])
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=names):
                yield from ((alias.name, node.lineno) for alias in names)
            case ast.ImportFrom(module=origin, names=names, level=level):
                base = importlib.util.resolve_name("." * level + (origin or ""), package) if level else origin
                yield from ((f"{base}.{alias.name}", node.lineno) for alias in names)
            case ast.Call(func=ast.Name(id="import_module"), args=[ast.Constant(value=str(name)), *_]):
                yield name, node.lineno


def target(name: str) -> str | None:
    """The module of jsq that an imported name belongs to; None for other packages and `jsq.__version__`."""
    if name != "jsq" and not name.startswith("jsq."):
        return None
    parts = name.split(".")[1:]
    if len(parts) == 1 and parts[0] in HOMES:
        return HOMES[parts[0]]
    while parts and ".".join(parts) not in MODULES:
        parts.pop()
    return ".".join(parts) or None


@pytest.mark.parametrize("module", sorted(MODULES.keys() - ENTRY_POINTS))
def test_a_module_imports_only_folders_before_its_own(module: str) -> None:
    allowed = FOLDERS[: FOLDERS.index(folder_of(module)) + 1]

    wrong = [
        f"jsq/{MODULES[module].relative_to(ROOT)}:{line} imports {name}"
        for name, line in imported(module)
        if (found := target(name)) is not None
        and folder_of(found) not in (*allowed, *LATE_IMPORTS.get(module, ()))
    ]

    assert wrong == []


def test_importing_an_app_loads_no_worker() -> None:
    script = "import sys; from jsq import App; print('jsq.worker' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("module", [name for name in sorted(MODULES) if name.startswith("broker.")])
def test_a_wing_of_the_broker_imports_only_wings_before_it(module: str) -> None:
    allowed = WINGS[: WINGS.index(wing_of(module)) + 1]

    wrong = [
        f"jsq/{MODULES[module].relative_to(ROOT)}:{line} imports {name}"
        for name, line in imported(module)
        if (found := target(name)) is not None
        if found.startswith("broker.") and wing_of(found) not in allowed
    ]

    assert wrong == []


def test_every_module_belongs_to_a_folder() -> None:
    assert [module for module in MODULES if folder_of(module) not in (*FOLDERS, *ENTRY_POINTS)] == []


def test_modules_of_one_folder_do_not_import_in_circles() -> None:
    inside = {
        module: {
            found
            for name, _ in imported(module)
            if (found := target(name)) is not None and found != module
            if folder_of(found) == folder_of(module)
        }
        for module in MODULES
    }

    circles = [path for module in inside if (path := circle(module, inside))]

    assert circles == []


def circle(start: str, edges: dict[str, set[str]]) -> list[str]:
    """The shortest import cycle through `start`, or an empty list."""
    waiting = [[start]]
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        for following in sorted(edges[path[-1]]):
            if following == start:
                return [*path, start]
            if following not in seen:
                seen.add(following)
                waiting.append([*path, following])
    return []


def test_only_the_transport_imports_nats() -> None:
    wrong = [
        f"jsq/{MODULES[module].relative_to(ROOT)}:{line} imports {name}"
        for module in MODULES
        if folder_of(module) not in ("transport",)
        for name, line in imported(module)
        if name.partition(".")[0] == "nats"
    ]

    assert wrong == []


def test_the_model_imports_only_errors_and_modules_that_are_pure() -> None:
    wrong = [
        f"jsq/{MODULES[module].relative_to(ROOT)}:{line} imports {name}"
        for module in MODULES
        if folder_of(module) == "model"
        for name, line in imported(module)
        if name.partition(".")[0] not in PURE_MODULES
        if folder_of(target(name) or "") not in ("errors", "model")
    ]

    assert wrong == []


def test_the_model_reads_no_clock_and_opens_no_file() -> None:
    wrong = [
        f"jsq/{path.relative_to(ROOT)}:{node.lineno} uses {ast.unparse(node)}"
        for module, path in MODULES.items()
        if folder_of(module) == "model"
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and node.attr in CLOCKS)
        or (isinstance(node, ast.Name) and node.id == "open")
    ]

    assert wrong == []


def test_nothing_is_imported_for_type_checkers_only() -> None:
    assert [module for module, path in MODULES.items() if "TYPE_CHECKING" in path.read_text()] == []


def test_no_module_has_a_catch_all_name() -> None:
    assert [module for module in MODULES if CATCH_ALL_NAMES & set(module.split("."))] == []


def test_importing_jsq_loads_nothing_heavy() -> None:
    heavy = ("typer", "prometheus_client", "nats", "pydantic")
    script = f"import sys, jsq; print([name for name in {heavy} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", ["jsq", "jsq.broker"])
def test_the_stub_lists_the_names_of_a_package_and_their_modules(package: str) -> None:
    found = import_module(package)
    stub = ast.parse(Path(str(found.__file__)).with_suffix(".pyi").read_text())

    listed = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    homes: dict[str, str] = vars(found)["_home"]
    assert listed == {name: f"{package}.{home}.{name}" for name, home in homes.items()}
    assert sorted(homes) == vars(found)["__all__"]
    assert [name for name in homes if getattr(found, name, None) is None] == []


def test_a_name_that_jsq_lacks_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        jsq.nonsense  # type: ignore[attr-defined]  # noqa: B018 -- that is what is tested


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_every_public_object_has_a_docstring(module: str) -> None:
    found = import_module(f"jsq.{module}")

    silent = [f"jsq.{module}.{name}" for name, value in public(found) if not inspect.getdoc(value)]

    assert silent == []


def public(module: ModuleType) -> Iterator[tuple[str, object]]:
    for name, value in vars(module).items():
        ours = getattr(value, "__module__", "") == module.__name__
        if ours and not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value)):
            yield name, value


# -- sizes -------------------------------------------------------------------------------------------------

MAX_FILE_LINES = 500
MAX_CLASS_LINES = 300
MAX_METHODS = 20
MAX_FUNCTION_LINES = 50
MAX_CONSTRUCTOR_ARGUMENTS = 5

SHARED_NAMES = {
    "a type variable": {"P", "R", "T"},
    "the logger of a module": {"log"},
    "a codec, always used with its module's name": {"decode", "encode"},
    "a command, named as in the shell": {
        "cancel",
        "get",
        "ls",
        "pause",
        "purge",
        "resume",
        "retry",
        "rm",
        "submit",
    },
    "the App that a module declares, and its entry point": {"app", "main"},
}
"""Module-level names that several files may define, by the reason; one file defines every other name."""


def oversized() -> Iterator[str]:
    """Every file, class, function and constructor of the package that exceeds a limit."""
    for module, path in MODULES.items():
        text = path.read_text()
        if text.count("\n") > MAX_FILE_LINES:
            yield f"{module}: file"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                yield from (f"{module}.{node.name}: {what}" for what in oversized_in(node))
            elif (
                isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
                and lines_of(node) > MAX_FUNCTION_LINES
            ):
                yield f"{module}.{node.name}: function"


def oversized_in(node: ast.ClassDef) -> Iterator[str]:
    functions = [one for one in node.body if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef))]
    if lines_of(node) > MAX_CLASS_LINES:
        yield "class"
    if sum(not one.name.startswith("_") for one in functions) > MAX_METHODS:
        yield "methods"
    for one in functions:
        given = [*one.args.posonlyargs, *one.args.args, *one.args.kwonlyargs]
        if one.name == "__init__" and len(given) - 1 > MAX_CONSTRUCTOR_ARGUMENTS:
            yield "constructor"


def lines_of(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def shared_names() -> set[str]:
    """The public module-level names that more than one file defines."""
    homes: dict[str, int] = {}
    for path in MODULES.values():
        for name in {name for node in ast.parse(path.read_text()).body for name in defined(node)}:
            homes[name] = homes.get(name, 0) + 1
    return {name for name, count in homes.items() if count > 1 and not name.startswith("_")}


def defined(node: ast.stmt) -> list[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Assign(targets=targets):
            return [target.id for target in targets if isinstance(target, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
    return []


def test_files_classes_functions_and_constructors_keep_their_limits() -> None:
    assert list(oversized()) == []


def test_a_module_level_name_is_defined_in_one_file() -> None:
    assert shared_names() == set[str]().union(*SHARED_NAMES.values())
