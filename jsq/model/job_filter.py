"""Filters of jobs: a job must match all given criteria."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypedDict, Unpack

from jsq.errors import BadOption, shorten
from jsq.model.durations import check_moment
from jsq.model.job import check_queue, check_task
from jsq.model.options import check_known
from jsq.model.peer_terms import NO_TERMS
from jsq.model.revision import FINAL_STATES, OPEN_STATES, SUBMITTED_STATES, StoredRevision

UNFINISHED_STATES = (*SUBMITTED_STATES, *OPEN_STATES)
ALL_STATES = (*UNFINISHED_STATES, *FINAL_STATES)
DELAYED_STATES = ("scheduled", "retrying", "snoozed")
"""States in which a job may be due later."""

PATH_RULE = "must be names and positions joined by dots, such as user.id or items.0"

_index = re.compile(r"\d{1,6}", re.ASCII)
_missing = object()


class JobFilter(TypedDict, total=False):
    """Criteria for jobs. A job must match all of them.

    `queue`: the queue that the jobs were submitted to.
    `task`, `state`: one value, or several of which a job must have one.
    `tag`: one tag, or several, all of which a job must have.
    `since`, `until`: limits for the time of the last event, aware; `until` is not included.
    `arg`: values of their arguments by dotted paths: `{"user.id": 5}`. Jobs that ended with
    more than 8 KiB of arguments are not found by them, unless they failed.
    """

    queue: str | None
    task: str | Iterable[str] | None
    state: str | Iterable[str] | None
    tag: str | Iterable[str] | None
    since: datetime | None
    until: datetime | None
    arg: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class JobCriteria:
    """The checked criteria of a filter; see `JobFilter`."""

    queue: str | None = None
    tasks: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    args: tuple[tuple[tuple[str, ...], Any], ...] = ()

    def matches(self, found: StoredRevision) -> bool:
        """Whether a job matches by its record, which does not include the arguments."""
        event = found.revision
        return (
            self.queue in (None, found.queue)
            and (not self.states or event.state in self.states)
            and (not self.tasks or event.task in self.tasks)
            and all(tag in event.tags for tag in self.tags)
            and (self.since is None or found.at >= self.since)
            and (self.until is None or found.at < self.until)
        )

    def matches_arguments(self, payload: bytes) -> bool:
        """Whether a job matches by its encoded arguments."""
        try:
            arguments = json.loads(payload)
        except (ValueError, RecursionError):
            return False
        return self.matches_values(arguments)

    def matches_values(self, arguments: Any) -> bool:
        """Whether a job matches by its decoded arguments."""
        return all(same_json(value_at(arguments, path), value) for path, value in self.args)


def read_criteria(
    among: Sequence[str] = ALL_STATES, *, named: bool = False, why: str = "", **which: Unpack[JobFilter]
) -> JobCriteria:
    """Read a filter of jobs in one of the states `among`.

    With `named`, it needs at least one criterion. `why` explains why other states are refused. Raises
    `BadOption`, `BadName`.
    """
    said = {name: value for name, value in which.items() if value is not None}
    check_known(said, [*JobFilter.__annotations__], NO_TERMS)
    if named and not said:
        names = ", ".join(JobFilter.__annotations__)
        raise BadOption("filter", None, f"the filter of jobs must name at least one of {names}")
    states = read_texts("state", which.get("state"))
    for state in states:
        if state not in among:
            raise BadOption("state", state, f"must be one of {', '.join(among)}{why}")
    queue, tasks = which.get("queue"), read_texts("task", which.get("task"))
    if queue is not None:
        check_queue(queue)
    for task in tasks:
        check_task(task)
    since, until = check_moment("since", which.get("since")), check_moment("until", which.get("until"))
    if since is not None and until is not None and until <= since:
        raise BadOption("until", until, f"must be after since, {since.isoformat()}")
    args = read_args(which.get("arg"))
    narrowed = states or (() if among == ALL_STATES else tuple(among))
    return JobCriteria(queue, tasks, narrowed, read_texts("tag", which.get("tag")), since, until, args)


def read_texts(name: str, asked: str | Iterable[str] | None) -> tuple[str, ...]:
    """One or several texts. Raises `BadOption` for an empty list, and for anything but text."""
    if asked is None:
        return ()
    if not isinstance(asked, Iterable):
        raise BadOption(name, asked, "must be a text, or a list of texts")
    found = (asked,) if isinstance(asked, str) else tuple(asked)
    if not found or not all(isinstance(one, str) and one for one in found):
        raise BadOption(name, asked, "must be a text, or a list of at least one text")
    return found


def read_args(asked: Mapping[str, Any] | None) -> tuple[tuple[tuple[str, ...], Any], ...]:
    """The values, by the parts of their paths. Raises `BadOption`."""
    if asked is None:
        return ()
    if not isinstance(asked, Mapping) or not asked:
        raise BadOption("arg", asked, "must map at least one path to a value")
    return tuple((read_path(path), check_json(path, value)) for path, value in asked.items())


def read_path(path: str) -> tuple[str, ...]:
    parts = tuple(path.split(".")) if isinstance(path, str) else ()
    if not parts or not all(parts):
        raise BadOption("arg", path, PATH_RULE)
    return parts


def check_json(path: str, value: Any) -> Any:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise BadOption(f"arg {shorten(path)}", value, "must be a JSON value") from None
    return value


def value_at(arguments: Any, path: Sequence[str]) -> Any:
    """The value at a path of decoded arguments, named ones or `[positional, named]`; else `_missing`."""
    if isinstance(arguments, list) and len(arguments) == 2 and isinstance(arguments[1], dict):
        positional, named = arguments
        arguments = positional if _index.fullmatch(path[0]) else named
    for part in path:
        if isinstance(arguments, dict):
            arguments = arguments.get(part, _missing)
        elif isinstance(arguments, list) and _index.fullmatch(part) and int(part) < len(arguments):
            arguments = arguments[int(part)]
        else:
            return _missing
    return arguments


def same_json(found: Any, asked: Any) -> bool:
    """Whether two values are the same JSON: 1 is 1.0, and neither is true."""
    if isinstance(found, bool) or isinstance(asked, bool):
        return found is asked
    if isinstance(found, list) and isinstance(asked, list | tuple):
        return len(found) == len(asked) and all(map(same_json, found, asked))
    if isinstance(found, dict) and isinstance(asked, Mapping):
        return found.keys() == asked.keys() and all(same_json(found[key], asked[key]) for key in found)
    return bool(found == asked)
