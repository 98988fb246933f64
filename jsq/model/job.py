"""A job: one submitted call of a task, and the names it may carry.

`Job` is the order, as it is sent. `JobRecord` is the stored state of a job. A submitter holds a
`jsq.client.handle.JobHandle`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal, get_args

from jsq.errors import BadName
from jsq.model.key_group import SlotKind, key_token
from jsq.model.retry import Backoff

ExecutorKind = Literal["async", "thread", "process"]
"""Where the function of a task runs: on the worker's loop, in a thread, or in a child process."""

Priority = Literal["high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
"""Priorities, the highest first."""

DEFAULT_QUEUE = "default"
RESERVED_QUEUES = frozenset({"dead", "dlq", "events", "jobs", "ids", "workers"})

MAX_ID_LENGTH = 128
NAME_RULE = "1 to 64 letters, digits, _ or -, starting with a letter or digit"
_name = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)
_parts = r"[A-Za-z0-9_][A-Za-z0-9_-]*(\.[A-Za-z0-9_][A-Za-z0-9_-]*)*"
_task = re.compile(rf"{_parts}(:[A-Za-z0-9_]+)?", re.ASCII)
_namespace = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)


@dataclass(frozen=True, slots=True)
class RareOptions:
    """The options of a submit that few jobs have; each is None unless the submit gave it.

    They are one field of `Job`, so that the other jobs do not pay for five. `on_failure`, `on_dead` and
    `fallback` are names of tasks.
    """

    hard_timeout: float | None = None
    executor: ExecutorKind | None = None
    on_failure: str | None = None
    on_dead: str | None = None
    fallback: str | None = None

    @property
    def given(self) -> dict[str, Any]:
        """The options that the submit gave."""
        return {name: value for name, value in asdict(self).items() if value is not None}


NO_RARE_OPTIONS = RareOptions()


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it is sent: what to run, and how.

    `arguments` is JSON: an object of named arguments, or a list `[positional, named]`. `failures`, `crashes`
    and `interruptions` count those of earlier attempts; `previous_sequence` is the revision that this attempt
    builds on, 0 for a first attempt. `quarantine` is the queue of the job's messages after it crashed too
    many workers of its own queue (`forgiven_crashes`); its record stays under its own queue. `deadline` is a
    datetime, or seconds from when the server puts the job on its queue. `key`, `per_key` and `group_slot` are
    its key group, how many jobs of the group may run, and how long the job keeps its slot there. A job that
    has not started by `expires` never starts; it is None once the job has started. `retry_for` is the retry
    window in seconds from the first start, `retry_until` its end, once that is known. `callback_of` is the
    job that this one is a callback of. `unique` is the hash of a key for which another job may wait for the
    end of this one. `slots` is how many slots of its worker it takes. `submitted` and `first_started` are in
    milliseconds since the epoch, or 0. The message of a job has the first if it is not the job's first
    message, and the second if another attempt started before. `keep_arguments` is False for a job whose
    record must not hold its arguments. `rare` holds other options of its submit, if any. `flow` is the
    workflow of a node, as `jsq.model.workflow.FlowLink` reads it.
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
    previous_sequence: int = 0
    quarantine: str = ""
    forgiven_crashes: int = 0
    deadline: float | datetime | None = None
    key: str = ""
    per_key: int | None = None
    group_slot: SlotKind | None = None
    expires: datetime | None = None
    retry_for: float | None = None
    retry_until: datetime | None = None
    callback_of: str = ""
    unique: str = ""
    slots: int | None = None
    interruptions: int = 0
    submitted: int = 0
    keep_arguments: bool | None = None
    first_started: int = 0
    rare: RareOptions | None = None
    flow: str = ""

    @property
    def waits_for_key(self) -> bool:
        """Whether the job must wait in its key group; a quarantine has no key groups."""
        return bool(self.key) and self.group_slot is None and not self.quarantine

    @property
    def key_token(self) -> str:
        """The key as a token of a subject."""
        return key_token(self.key)

    @property
    def current_queue(self) -> str:
        """The queue of the job's messages."""
        return self.quarantine or self.queue

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1. A snoozed or interrupted attempt uses no number."""
        return 1 + self.failures + self.crashes


@dataclass(frozen=True, slots=True)
class JobRecord:
    """The stored state of a job: its last event, and the time (UTC) when the server stored it.

    `sequence` is the number of the event on the server; for a `running` event it is the fencing token of the
    attempt. `failures` counts the failed attempts that were retried, `crashes` the workers that died or
    stalled, `interruptions` the workers that stopped.
    `result` is the JSON value that the task returned, None if there is none (yet). `result_dropped` is why
    the result of a job that succeeded could not be stored, empty if it was. `quarantine` is the queue where
    the job runs after it crashed too many workers of its own. `expires` is the time by which it must start,
    as long as it has not; `headers` are those of the submit, as far as a record has room. `fallback` is the
    job that was submitted instead of a failed one. `progress` and `text` are what the job reported last; a
    job that succeeded after a report has the progress 1. `submitted`, `first_started` (if other attempts
    followed) and `started` (of the last attempt) are times of the server's clock. A job that has ended has
    its `arguments`, a JSON value: an object of named arguments, or a list `[positional, named]`; instead of
    more than 8 KiB, their size in bytes and their SHA-256. `has_arguments` distinguishes null from none.
    `options` are those options of the submit that change how the job runs (retries, timeout and so on), by
    their names, if the job waits for its first attempt or has ended. `parent` is the workflow of a node.
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
    has_result: bool = False
    result: Any = None
    quarantine: str = ""
    key: str = ""
    expires: datetime | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    fallback: str = ""
    interruptions: int = 0
    submitted: datetime | None = None
    started: datetime | None = None
    has_arguments: bool = False
    arguments: Any = None
    arguments_size: int = 0
    arguments_hash: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    result_dropped: str = ""
    first_started: datetime | None = None
    parent: str = ""

    @property
    def ended(self) -> datetime | None:
        """When the server stored the end of the job; None for a job that has not ended."""
        return self.at if self.state in ("succeeded", "failed", "cancelled", "expired") else None

    @property
    def waited(self) -> float | None:
        """Seconds from the submit to the start of the first attempt; a delay counts. None before that.

        Neither `waited` nor `ran` includes other attempts, and the waits between them.
        """
        first = self.first_started or self.started
        if first is None or self.submitted is None:
            return None
        return (first - self.submitted).total_seconds()

    @property
    def ran(self) -> float | None:
        """Seconds from the start of the last attempt to the end of the job; None before that."""
        ended = self.ended
        return (ended - self.started).total_seconds() if ended and self.started else None


def is_name(name: str) -> bool:
    return _name.fullmatch(name) is not None


def check_name(kind: str, name: str) -> str:
    if not isinstance(name, str) or not is_name(name):
        raise BadName(kind, name, NAME_RULE)
    return name


def check_queue(name: str) -> str:
    check_name("queue", name)
    if name in RESERVED_QUEUES:
        raise BadName("queue", name, "none of the reserved names")
    return name


def check_text(kind: str, text: object, longest: int) -> str:
    """Check a name that may be any printable text; subjects hold its token. Raises `BadName`."""
    if not isinstance(text, str) or not 1 <= len(text) <= longest or not text.isprintable():
        raise BadName(kind, text, text_rule(longest))
    return text


def text_rule(longest: int) -> str:
    return f"printable text of 1 to {longest} characters; shorten it, or use its hash"


def check_id(id: object) -> str:
    """Check an id: any printable text of up to `MAX_ID_LENGTH` characters. Raises `BadName`."""
    return check_text("job", id, MAX_ID_LENGTH)


def check_task(name: str) -> str:
    """Check the name of a task, or a reference to a function, `module:name`. Raises `BadName`."""
    if not isinstance(name, str) or not _task.fullmatch(name) or len(name) > 128:
        raise BadName("task", name, "1 to 128 letters, digits, _ or -, in parts joined by dots")
    return name


def check_namespace(name: str) -> str:
    if not isinstance(name, str) or not _namespace.fullmatch(name):
        raise BadName("namespace", name, "1 to 32 lower case letters, digits or -")
    return name


def is_utf8(text: str) -> bool:
    """Whether text can be sent as UTF-8 (a lone surrogate cannot)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
