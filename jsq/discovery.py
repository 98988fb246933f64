"""Finds and imports the modules that an App or a command line names."""

import importlib
import os
import pkgutil
import traceback
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType
from typing import Any

import jsq
from jsq.errors import JsqError, UsageError

OURS = ("<", str(Path(jsq.__file__).parent) + os.sep)


def import_named_module(name: str) -> ModuleType:
    """Import a module. Raises `UsageError` with the name of the module and the place of the fault.

    Errors that jsq itself raises in the module keep their type, and get the place as a note.
    """
    try:
        return importlib.import_module(name)
    except JsqError as error:
        if where := place(error).strip():
            error.add_note(where)
        raise
    except ModuleNotFoundError as error:
        if is_missing(name, error):
            raise UsageError(f"no module is named {error.name}; it is needed for {name}") from error
        raise UsageError(f"module {name} cannot be imported: {error}{place(error)}") from error
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}{place(error)}"
        raise UsageError(f"module {name} cannot be imported: {reason}") from error


def is_missing(name: str, error: ModuleNotFoundError) -> bool:
    """Whether the missing module is the named one, or a package that it is in."""
    return error.name is not None and (name == error.name or name.startswith(f"{error.name}."))


def import_matching(patterns: Iterable[str]) -> list[ModuleType]:
    """Import the modules that some patterns name: `shop.tasks`, or `shop.mail.*` for all below a package.

    Raises `UsageError`, also for a pattern that matches no module.
    """
    found: dict[str, ModuleType] = {}
    for pattern in patterns:
        names = [pattern] if "*" not in pattern else sorted(matching_modules(pattern))
        if not names:
            raise UsageError(f"no module matches {pattern}")
        found.update((name, import_named_module(name)) for name in names)
    return list(found.values())


def matching_modules(pattern: str) -> Iterator[str]:
    """The names of the modules that match a pattern. Only the package before the first `*` is imported."""
    start = pattern.partition("*")[0].rpartition(".")[0]
    if not start:
        raise UsageError(f"the pattern {pattern} must begin with the name of a package, such as shop.*")
    package = import_named_module(start)
    for name in submodules(start, getattr(package, "__path__", ())):
        if fnmatchcase(name, pattern):
            yield name


def submodules(package: str, folders: Iterable[str]) -> Iterator[str]:
    """The names of the modules below a package. None of them is imported."""
    for module in pkgutil.iter_modules([*folders], f"{package}."):
        if module.name.endswith(".__main__"):
            continue
        yield module.name
        if module.ispkg:
            finder: Any = module.module_finder
            spec = finder.find_spec(module.name)
            yield from submodules(module.name, (spec.submodule_search_locations or ()) if spec else ())


def place(error: BaseException) -> str:
    """The place where an import failed: the innermost one outside of the import system and of jsq."""
    if isinstance(error, SyntaxError):
        return ""  # its message has the place
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(OURS)]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
