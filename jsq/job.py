"""A job: one submitted call of a task, and the names and options it may carry.

`Job` is the order, as it travels. `JobRecord` is what is known of a job, as the log tells it.
The receipt that a submitter holds is `jsq.handle.JobHandle`.
"""

import functools
import json
import os
import re
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, get_args

from jsq.errors import LONGEST, BadName, BadOption, seconds
from jsq.retry import Backoff, check_retries

Priority = Literal["high", "normal", "low"]
LEVELS: tuple[Priority, ...] = get_args(Priority)
"""Priorities, the one served first first."""

DEFAULT_QUEUE = "default"
MOST_TAGS = 20
MOST_HEADERS = 64
MOST_HEADER_BYTES = 16_384
RESERVED_QUEUES = frozenset({"dead", "dlq", "events", "jobs", "ids", "workers"})

NAME_RULE = "letters, digits, _ and - only, 1 to 64 of them, the first a letter or digit"
_name = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)
_task = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*(\.[A-Za-z0-9_][A-Za-z0-9_-]*)*", re.ASCII)
_namespace = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)
_header = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Options:
    """How one job is to be submitted and run; None leaves it to the task's declaration.

    `delay` is in seconds from now, `at` an aware moment; one of the two. `timeout` is for each attempt, in
    seconds. `keep_result` is in seconds from the end; 0 keeps the outcome without its result.
    `wait_for_room` is how many seconds a submit waits where the queue or the server is full.
    By `deadline`, in seconds from the submit or an aware moment, the job is to have ended.
    """

    queue: str | None = None
    priority: Priority | None = None
    delay: float | None = None
    at: datetime | None = None
    id: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    tags: Sequence[str] = ()
    retries: int | None = None
    backoff: Backoff | None = None
    timeout: float | None = None
    keep_result: float | None = None
    wait_for_room: float | None = None
    deadline: float | datetime | None = None

    def __post_init__(self) -> None:
        if self.queue is not None:
            check_queue(self.queue)
        if self.priority is not None and self.priority not in LEVELS:
            raise BadOption("priority", self.priority, f"it takes {', '.join(LEVELS)}")
        if self.id is not None:
            check_id(self.id)
        if self.retries is not None:
            check_retries(self.retries)
        if self.delay is not None and self.at is not None:
            raise BadOption("at", self.at, "give delay or at, not both")
        seconds("delay", self.delay)
        seconds("timeout", self.timeout, least=0.001)
        seconds("keep_result", self.keep_result)
        seconds("wait_for_room", self.wait_for_room)
        check_at(self.at)
        check_deadline(self.deadline)
        check_headers(self.headers)
        check_tags(self.tags)

    def due(self, now: datetime) -> datetime | None:
        """The moment the job may start, or None for at once."""
        if self.at is not None:
            return self.at.astimezone(UTC) if self.at > now else None
        return now + timedelta(seconds=self.delay) if self.delay else None

    def ends(self, due: datetime | None, now: datetime) -> float | datetime | None:
        """The deadline as it travels: a moment, or seconds from when the job may start.

        Raises `BadOption` for one before that.
        """
        start = due or now
        if isinstance(self.deadline, datetime):
            if self.deadline <= start:
                told = "it has passed" if self.deadline <= now else "the job may not start before it"
                raise BadOption("deadline", self.deadline, told)
            return self.deadline.astimezone(UTC)
        if self.deadline is None or due is None:
            return self.deadline
        left = self.deadline - (due - now).total_seconds()
        if left <= 0:
            raise BadOption("deadline", self.deadline, "the job may not start before it")
        return left


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it travels: what to run, and how.

    `arguments` is JSON: an object of named arguments, or a list `[positional, named]`. `failures` and
    `crashes` count what went before; `after` is the log's sequence that this attempt builds on, 0 for a
    first. `quarantine` is the queue where the job's messages stand since it took down too many workers of its
    own, which were `forgiven` in number; its log stays that of its own queue.
    `deadline` is a moment, or seconds from when the server puts the job on its queue.
    """

    id: str
    task: str
    queue: str = DEFAULT_QUEUE
    priority: Priority = "normal"
    arguments: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)
    tags: Sequence[str] = ()
    retries: int | None = None
    backoff: Backoff | None = None
    timeout: float | None = None
    keep_result: float | None = None
    failures: int = 0
    crashes: int = 0
    after: int = 0
    quarantine: str = ""
    forgiven: int = 0
    deadline: float | datetime | None = None

    @property
    def lane(self) -> str:
        """The queue where its messages stand."""
        return self.quarantine or self.queue

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1. One that was snoozed or interrupted spends no number."""
        return 1 + self.failures + self.crashes


@dataclass(frozen=True, slots=True)
class JobRecord:
    """What is known of a job: its last event, with the moment (UTC) the server stored it.

    `sequence` is the event's place in the log; that of a `running` event is the attempt's fencing token.
    `result` is the JSON value a task returned, None where there is none (yet). `quarantine` is the queue
    where it runs since it took down too many workers of its own.
    """

    id: str
    queue: str
    state: str
    task: str = ""
    sequence: int = 0
    at: datetime | None = None
    attempt: int = 0
    failures: int = 0
    crashes: int = 0
    worker: str = ""
    reason: str = ""
    error: str = ""
    traceback: str = ""
    due: datetime | None = None
    progress: float | None = None
    text: str = ""
    tags: Sequence[str] = ()
    kept: bool = False
    result: Any = None
    quarantine: str = ""


_digits = "0123456789abcdefghijklmnopqrstuv"
_pairs = [first + second for first in _digits for second in _digits]


def new_id() -> str:
    """A new job id: 26 characters, sortable by the millisecond it was made in, 80 bits of chance."""
    (id,) = new_ids(1)
    return id


def new_ids(count: int) -> list[str]:
    """Many new job ids."""
    since = _spelled(time.time_ns() // 1_000_000)
    chance = struct.unpack(f"{8 * count}H", os.urandom(16 * count))
    pairs = [_pairs[number & 1023] for number in chance]
    return [since + "".join(pairs[start : start + 8]) for start in range(0, 8 * count, 8)]


@functools.lru_cache(maxsize=16)
def _spelled(moment: int) -> str:
    return "".join([_pairs[moment >> place & 1023] for place in (40, 30, 20, 10, 0)])


def check_name(kind: str, name: str) -> str:
    if not isinstance(name, str) or not _name.fullmatch(name):
        raise BadName(kind, name, NAME_RULE)
    return name


def check_queue(name: str) -> str:
    check_name("queue", name)
    if name in RESERVED_QUEUES:
        raise BadName("queue", name, "it is reserved")
    return name


def check_id(id: str) -> str:
    return check_name("job", id)


def check_task(name: str) -> str:
    if not isinstance(name, str) or not _task.fullmatch(name) or len(name) > 128:
        raise BadName("task", name, "letters, digits, _ and -, in parts joined by dots, 1 to 128 in all")
    return name


def check_namespace(name: str) -> str:
    if not isinstance(name, str) or not _namespace.fullmatch(name):
        raise BadName("namespace", name, "lower case letters, digits and - only, 1 to 32 of them")
    return name


def check_at(at: datetime | None) -> None:
    if at is None:
        return
    if not isinstance(at, datetime) or at.utcoffset() is None:
        raise BadOption("at", at, "it takes a datetime with a time zone")
    if (at - datetime.now(UTC)).total_seconds() > LONGEST:
        raise BadOption("at", at, f"it lies more than {LONGEST / 86_400:g} days ahead")


def check_deadline(deadline: float | datetime | None) -> None:
    if not isinstance(deadline, datetime):
        seconds("deadline", deadline, least=0.001)
        return
    if deadline.utcoffset() is None:
        raise BadOption("deadline", deadline, "it takes a datetime with a time zone")
    left = (deadline - datetime.now(UTC)).total_seconds()
    if left <= 0:
        raise BadOption("deadline", deadline, "it has passed")
    if left > LONGEST:
        raise BadOption("deadline", deadline, f"it lies more than {LONGEST / 86_400:g} days ahead")


def check_headers(headers: Mapping[str, str]) -> None:
    if not isinstance(headers, Mapping):
        raise BadOption("headers", headers, "it takes names and their values")
    if len(headers) > MOST_HEADERS:
        raise BadOption("headers", f"{len(headers)} headers", f"a job carries {MOST_HEADERS} at most")
    for name, value in headers.items():
        if not isinstance(name, str) or not _header.fullmatch(name):
            raise BadName("header", name, NAME_RULE)
        if name.lower().startswith(("nats-", "jsq-")):
            raise BadName("header", name, "names that begin with Nats- or Jsq- are reserved")
        if not isinstance(value, str) or not value.isprintable() or not encodable(value):
            raise BadOption(f"header {name}", value, "it takes printable text of one line")
    size = len(json.dumps(dict(headers))) if headers else 0  # as they travel: in ASCII, escaped
    if size > MOST_HEADER_BYTES:
        raise BadOption("headers", f"{size} bytes", f"they take {MOST_HEADER_BYTES} bytes at most")


def check_tags(tags: Sequence[str]) -> None:
    if isinstance(tags, str) or len(tags) > MOST_TAGS:
        raise BadOption("tags", tags, f"it takes a list of {MOST_TAGS} at most")
    for tag in tags:
        if not isinstance(tag, str) or not tag.isprintable() or not 1 <= len(tag) <= 64 or not encodable(tag):
            raise BadOption("tags", tag, "a tag is printable text of 1 to 64 characters")


def encodable(text: str) -> bool:
    """Whether text can be sent as UTF-8 (a lone surrogate cannot)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
