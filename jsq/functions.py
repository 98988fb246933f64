"""Functions without a declaration, which jobs name by reference: `shop.tasks:send`.

A message on the server must not choose what a worker imports or calls. So an App lists the functions that it
allows, the worker imports their modules when it starts, and a job finds only a function that such a module
defines.
"""

import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jsq.client.connection import Connection
from jsq.declaration import Declaration, check_function
from jsq.discovery import import_matching
from jsq.errors import BadOption
from jsq.model.routes import check_pattern, matches_any
from jsq.task import AnyTask, Task


@dataclass(frozen=True, slots=True)
class AllowedFunctions:
    """The functions that an App allows, by patterns of their references, and the tasks made of them.

    A `*` after the colon matches functions whose names do not begin with an underscore.
    """

    patterns: tuple[str, ...]
    connection: Connection
    _tasks: dict[str, AnyTask] = field(default_factory=dict)

    def load(self) -> None:
        """Import the modules of the functions. Raises `UsageError`."""
        import_matching(dict.fromkeys(pattern.partition(":")[0] for pattern in self.patterns))

    def find(self, reference: str) -> AnyTask | None:
        """The task of an allowed function, whose module is imported already; None for any other text."""
        found = self._tasks.get(reference)
        if found is not None or not self.allows(reference):
            return found
        module, _, name = reference.partition(":")
        function = vars(sys.modules.get(module, object)).get(name)
        if not inspect.isfunction(function) or function.__module__ != module:
            return None
        task = self._tasks[reference] = self._task(function, reference)
        return task

    def allows(self, reference: str) -> bool:
        """Whether a reference matches a pattern."""
        if ":" not in reference or not matches_any(reference, self.patterns):
            return False
        return not reference.partition(":")[2].startswith("_") or reference in self.patterns

    def _task(self, function: Callable[..., Any], reference: str) -> AnyTask:
        check_function(function)
        return Task(function, Declaration(reference), self.connection)


def read_functions(patterns: Sequence[str] | None, connection: Connection) -> AllowedFunctions:
    """Read the patterns that a user wrote. Raises `BadOption`."""
    rule = "must be a list of references such as shop.tasks:send or shop.tasks:*"
    if isinstance(patterns, str) or not isinstance(patterns, Iterable | None):
        raise BadOption("allow_functions", patterns, rule)
    for pattern in patterns or ():
        module, colon, name = check_pattern("allow_functions", pattern).partition(":")
        if not (module and colon and name) or module.startswith("*"):
            raise BadOption("allow_functions", pattern, rule)
    return AllowedFunctions(tuple(patterns or ()), connection)
