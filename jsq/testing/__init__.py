"""The types of the pytest fixtures, for the annotations of tests.

The fixtures themselves are in `jsq.testing.plugin`, which pytest loads by its entry point. Each name is
imported on first use, so that the plug-in costs a pytest run without jsq almost nothing. Type checkers read
the same names from `__init__.pyi`.
"""

from importlib import import_module
from typing import Any

_homes = {
    "clock": ["JsqClock"],
    "servers": ["JsqServer"],
    "submits": ["Submits", "SubmittedJob"],
    "worker": ["Drain", "JsqWorker", "WorkerDied"],
}
_home = {name: room for room, names in _homes.items() for name in names}

__all__ = sorted(_home)


def __getattr__(name: str) -> Any:
    if name not in _home:
        raise AttributeError(f"module 'jsq.testing' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"jsq.testing.{_home[name]}"), name)
    return value


def __dir__() -> list[str]:
    return [*__all__]
