"""Routes: the queue of a task by its name, for tasks and submits that name no queue."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from jsq.errors import BadOption
from jsq.model.job import check_queue

PATTERN_RULE = "must be a name in which * stands for any characters, such as mail.* or *.send"
_pattern = re.compile(r"[A-Za-z0-9_.:*-]{1,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Routes:
    """Patterns of task names, each with a queue. The first pattern that matches a name decides."""

    patterns: tuple[tuple[str, str], ...] = ()

    def queue_of(self, task: str) -> str | None:
        """The queue of a task; None if no pattern matches its name."""
        return next((queue for pattern, queue in self.patterns if fnmatchcase(task, pattern)), None)


NO_ROUTES = Routes()


def read_routes(routes: Mapping[str, str] | None) -> Routes:
    """Read the routes that a user wrote. Raises `BadOption`, `BadName`."""
    if routes is None:
        return NO_ROUTES
    if not isinstance(routes, Mapping):
        raise BadOption("routes", routes, "must be a dictionary of patterns and queues")
    return Routes(tuple((check_pattern("routes", one), check_queue(queue)) for one, queue in routes.items()))


def check_pattern(option: str, pattern: object) -> str:
    """Check a pattern of names. Raises `BadOption`."""
    if not isinstance(pattern, str) or not _pattern.fullmatch(pattern):
        raise BadOption(option, pattern, PATTERN_RULE)
    return pattern


def matches_any(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a name matches one of some patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
