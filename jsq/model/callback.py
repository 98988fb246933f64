"""Callbacks: jobs that a worker submits when an attempt of another job has failed, or when that is dead.

They are jobs like any other. A worker submits them after it has recorded the failure, and before it settles
the delivery, each under an id that follows from the failure: a crash in between brings the delivery back, the
same is submitted again under the same ids, and a job that has run is not run again. A callback whose own
attempt fails calls nobody, so there is no endless chain; its fallback it has like any other job.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Literal

from jsq.model.event import Event
from jsq.model.job import MAX_ID_LENGTH, Job

CallbackKind = Literal["failed", "dead", "fallback"]


@dataclass(frozen=True, slots=True)
class Callbacks:
    """The tasks, by name, that a task calls: after an attempt that failed, when it is dead, in its place."""

    on_failure: str = ""
    on_dead: str = ""
    fallback: str = ""

    @property
    def task_names(self) -> dict[str, str]:
        """The names that are given, by their option."""
        return {option: name for option, name in asdict(self).items() if name}


@dataclass(frozen=True, slots=True)
class Failure:
    """What a callback is told, as its one argument: which attempt of which job failed, and how.

    `error` is the type and message of the exception as text. A job that is dead has a `reason`, one of
    `jsq.model.event.REASONS`, and where it was handed over the id of its `fallback` job; one that is tried
    again has the moment at which that is `due`. `arguments` are the job's own as JSON: an object of named
    ones, or a list `[positional, named]`; None where they take more than 64 KiB, or cannot be read.
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

    __pydantic_config__ = {"extra": "ignore"}  # noqa: RUF012 -- what a later release tells is passed over

    @property
    def dead(self) -> bool:
        """Whether the job will not be tried again by itself."""
        return bool(self.reason)


def with_pending_callbacks(event: Event, job: Job, callbacks: Callbacks) -> Event:
    """An event that is about to be recorded, with what is owed after it."""
    if event.state == "failed" and callbacks.fallback:
        event = replace(event, fallback=callback_id(job.id, "fallback", event.token))
    return replace(event, callbacks_pending=any(pending_callbacks(event, job, callbacks)))


def pending_callbacks(event: Event, job: Job, callbacks: Callbacks) -> Iterator[tuple[CallbackKind, str]]:
    """What is to be submitted after an event of a job: which kind of callback, and the name of its task."""
    if callbacks.on_failure and not job.callback_of and is_failed_attempt(event):
        yield "failed", callbacks.on_failure
    if event.state == "failed" and callbacks.on_dead and not job.callback_of:
        yield "dead", callbacks.on_dead
    if event.fallback and callbacks.fallback:
        yield "fallback", callbacks.fallback


def is_failed_attempt(event: Event) -> bool:
    """Whether an event tells of an attempt that failed: not of a crash, a replay or a move."""
    if event.state == "retrying":
        return event.token > 0 and event.reason not in ("quarantined", "replayed")
    return event.state == "failed" and event.reason not in ("crashed", "overdue")


def callback_id(job: str, kind: CallbackKind, token: int) -> str:
    """The id of a callback: another for each failure of a job, the same whenever that is told again.

    `token` is the sequence of the attempt's start in the log, which no other attempt has, of another life of
    the job neither.
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
