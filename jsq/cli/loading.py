"""Loads the App that a user names as `module:app`."""

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from jsq.app import App
from jsq.discovery import import_named_module, is_missing, place
from jsq.errors import JsqError, UsageError, shorten

WRITE = "write module:app, like `mail.jobs:app`"


def load_app(path: str, include: Sequence[str] = ()) -> App:
    """The App at `module:app`, or the App that a factory there returns; `:app` is the default.

    The modules that the App includes are imported too, and the modules of `include`. Modules are searched in
    the working directory first. Raises `UsageError`, and the errors that jsq itself raises while the module
    is imported. Call it without a running event loop: a module may use one.
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
    return found.load(*include)


def check_has_tasks(path: str, app: App) -> None:
    """Raises `UsageError` for an App without tasks: no job could run."""
    if not app.tasks and not app.functions.patterns:
        raise UsageError(
            f"{shorten(path)} declares no task: import the modules that declare tasks, or name them in "
            'App(include=["shop.tasks"]) or with --include'
        )


def called(path: str, factory: Callable[[], object]) -> object:
    """The value that a factory returns. Raises `UsageError` if it takes arguments, is async or raises."""
    try:
        inspect.signature(factory).bind()
    except (TypeError, ValueError):
        kind = type(factory).__name__
        raise UsageError(
            f"{shorten(path)} is {kind}, neither an App nor a factory without arguments: {WRITE}"
        ) from None
    try:
        found = factory()
    except JsqError:
        raise
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}{place(error)}"
        raise UsageError(f"the factory {shorten(path)} raised {reason}") from error
    if inspect.iscoroutine(found):
        found.close()
        raise UsageError(f"{shorten(path)} is a coroutine function; a factory is a plain one: {WRITE}")
    return found


def module_of(file: Path) -> str:
    """The dotted name of a file's module, below the working directory if the file is there."""
    path = Path(os.path.relpath(file)).with_suffix("")
    return ".".join(part for part in path.parts if part not in (os.pardir, os.sep))


def load_module(name: str) -> ModuleType:
    """Import a module, also from the working directory. Raises `UsageError`."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return import_named_module(name)
    except UsageError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and is_missing(name, cause):
            raise UsageError(f"no module is named {cause.name} in {here}, nor installed: {WRITE}") from cause
        raise
