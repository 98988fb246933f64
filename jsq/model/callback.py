"""Callbacks: jobs that a worker submits when an attempt of another job has failed, or when the job is dead.

They are ordinary jobs. A worker submits them after it has recorded the failure, and before it settles the
delivery, each under an id that is derived from the failure. After a crash in between, the delivery is
repeated and submits the same ids again, so a callback that has run does not run again. A failed callback
submits no callbacks, so there is no endless chain; it may have a fallback, as any other job.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Literal, Protocol

from jsq.errors import BadOption
from jsq.model.job import MAX_ID_LENGTH, Job, check_task
from jsq.model.revision import Revision


class NamedTask(Protocol):
    """A task, as an option of another one names it."""

    @property
    def name(self) -> str:
        """The name of the task."""
        ...


def callback_name(option: str, task: NamedTask | str) -> str:
    """The name of a task that is given as a Task or by its name. Raises `BadOption`, `BadName`."""
    name = task if isinstance(task, str) else getattr(task, "name", None)
    if not isinstance(name, str):
        raise BadOption(option, task, "must be a task, or the name of a task")
    return check_task(name)


CallbackKind = Literal["failed", "dead", "fallback"]


@dataclass(frozen=True, slots=True)
class Callbacks:
    """The names of the tasks that a task submits: after a failed attempt, when a job is dead, as fallback."""

    on_failure: str = ""
    on_dead: str = ""
    fallback: str = ""

    @property
    def task_names(self) -> dict[str, str]:
        """The given names, by their options."""
        return {option: name for option, name in asdict(self).items() if name}


@dataclass(frozen=True, slots=True)
class Failure:
    """The one argument of a callback: which attempt of which job failed, and how.

    `error` is the type and message of the exception as text. A dead job has a `reason`, one of
    `jsq.model.revision.REASONS`, and the id of its `fallback` job, if one was submitted. A job that is
    retried has the time when it is `due`. `arguments` are the job's own as JSON: an object of named
    arguments, or a list `[positional, named]`; None if they take more than 64 KiB, or cannot be read.
    """

    job: str
    task: str
    queue: str
    attempt: int
    error: str
    traceback: str = ""
    reason: str = ""
    due: datetime | None = None
    fallback: str = ""
    tags: tuple[str, ...] = ()
    arguments: Any = None

    __pydantic_config__ = {"extra": "ignore"}  # noqa: RUF012 -- fields of a later release are ignored

    @property
    def dead(self) -> bool:
        """Whether the job will not be retried automatically."""
        return bool(self.reason)


def with_pending_callbacks(event: Revision, job: Job, callbacks: Callbacks) -> Revision:
    """An event that is about to be recorded, with its pending callbacks."""
    if event.state == "failed" and callbacks.fallback:
        event = replace(event, fallback=callback_id(job.id, "fallback", event.token))
    return replace(event, callbacks_pending=any(pending_callbacks(event, job, callbacks)))


def pending_callbacks(event: Revision, job: Job, callbacks: Callbacks) -> Iterator[tuple[CallbackKind, str]]:
    """The callbacks to submit after an event of a job: the kind of each, and the name of its task."""
    if callbacks.on_failure and not job.callback_of and is_failed_attempt(event):
        yield "failed", callbacks.on_failure
    if event.state == "failed" and callbacks.on_dead and not job.callback_of:
        yield "dead", callbacks.on_dead
    if event.fallback and callbacks.fallback:
        yield "fallback", callbacks.fallback


def is_failed_attempt(event: Revision) -> bool:
    """Whether an event is that of a failed attempt: not a crash, an operator's retry or a reschedule."""
    if event.state == "retrying":
        return event.token > 0 and event.reason not in ("quarantined", "replayed")
    return event.state == "failed" and event.reason not in ("crashed", "overdue")


def callback_id(job: str, kind: CallbackKind, token: int) -> str:
    """The id of a callback: different for each failure of a job, the same when it is submitted again.

    `token` is the sequence of the attempt's start, which no other attempt has, even after a retry by an
    operator.
    """
    id = f"{job}-{kind}-{token}"
    return (
        id if len(id) <= MAX_ID_LENGTH else f"{hashlib.sha256(job.encode()).hexdigest()[:32]}-{kind}-{token}"
    )


def parse_fallback_id(id: str) -> tuple[str, int] | None:
    """The job and the token in the id of a fallback; None for another id.

    The job is a hash if its own id was too long.
    """
    job, _, rest = id.rpartition("-fallback-")
    return (job, int(rest)) if job and rest.isascii() and rest.isdigit() else None
