"""Loads the App that a user names as `module:app`."""

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import jsq
from jsq.app import App
from jsq.errors import JsqError, UsageError, shorten

WRITE = "write module:app, like `mail.jobs:app`"

OURS = ("<", str(Path(jsq.__file__).parent) + os.sep)


def load_app(path: str) -> App:
    """The App at `module:app`, or the App that a factory there returns; `:app` is the default.

    Modules are searched in the working directory first. Raises `UsageError`, and the errors that jsq itself
    raises while the module is imported. Call it without a running event loop: a module may use one.
    """
    name, _, attribute = path.partition(":")
    if name.endswith(".py") and Path(name).is_file():
        dotted = module_of(Path(name))
        raise UsageError(f"{shorten(name)} is a file: write its module, {dotted}:{attribute or 'app'}")
    if not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(f"{shorten(repr(path))} is not the name of a module: {WRITE}")
    module = load_module(name)
    found: object = module
    for part in (attribute or "app").split("."):
        found = getattr(found, part, None)
    if found is None:
        raise UsageError(f"module {name} has no {shorten(attribute or 'app')}: {WRITE}")
    if callable(found) and not isinstance(found, App):
        found = called(path, found)
    if not isinstance(found, App):
        raise UsageError(f"{shorten(path)} is {type(found).__name__}, not an App: {WRITE}")
    return found


def called(path: str, factory: Callable[[], object]) -> object:
    """The value that a factory returns. Raises `UsageError` if it cannot be called without arguments."""
    try:
        inspect.signature(factory).bind()
    except (TypeError, ValueError):
        kind = type(factory).__name__
        raise UsageError(
            f"{shorten(path)} is {kind}, neither an App nor a factory without arguments: {WRITE}"
        ) from None
    return factory()


def module_of(file: Path) -> str:
    """The dotted name of a file's module, below the working directory if the file is there."""
    path = Path(os.path.relpath(file)).with_suffix("")
    return ".".join(part for part in path.parts if part not in (os.pardir, os.sep))


def load_module(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise UsageError(f"no module is named {error.name} in {here}, nor installed: {WRITE}") from error
        raise UsageError(f"module {name} cannot be imported: {error}{place(error)}") from error
    except JsqError as error:
        if where := place(error).strip():
            error.add_note(where)
        raise
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}{place(error)}"
        raise UsageError(f"module {name} cannot be imported: {reason}") from error


def place(error: BaseException) -> str:
    """The place where an import failed: the innermost one outside of the import system and of jsq."""
    if isinstance(error, SyntaxError):
        return ""  # its message has the place
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(OURS)]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
