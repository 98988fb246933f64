"""The life of a job: its states, which may follow which, and what a delivery finds in the record.

Every change of a job is one revision of its record, written by compare-and-set on the revision before it. A
job that waits for its first attempt has no record: its state is derived from its message.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

from jsq.model.job import Job

SUBMITTED_STATES = ("queued", "scheduled")
"""States of a job without a record, derived from its message."""

OPEN_STATES = ("running", "retrying", "snoozed", "interrupted")
"""States workers write which are not the last."""

FINAL_STATES = ("succeeded", "failed", "cancelled", "expired")
"""States after which nothing follows by itself."""

TRANSITIONS: Mapping[str, frozenset[str]] = {
    "queued": frozenset({"queued", "running", "cancelled", "failed", "expired"}),
    "scheduled": frozenset({"scheduled", "queued", "running", "cancelled", "failed", "expired"}),
    "running": frozenset(
        {"succeeded", "failed", "cancelled", "expired", "retrying", "snoozed", "interrupted", "running"}
    ),
    "retrying": frozenset({"retrying", "running", "cancelled", "failed", "expired"}),
    "snoozed": frozenset({"snoozed", "running", "cancelled", "failed", "expired"}),
    "interrupted": frozenset({"running", "cancelled", "failed", "expired"}),
    "succeeded": frozenset({"retrying"}),
    "failed": frozenset({"retrying"}),
    "cancelled": frozenset({"retrying"}),
    "expired": frozenset({"retrying"}),
}
"""What may follow each state. A state of waiting after itself is another due time, or an edit of a job that
has not begun. `running` after `running` is a crash: the worker fell silent and another took over.
`retrying` after a final state is an operator's replay: of a failed job, or of another that is to run again.
`failed` without a run is a job nobody could run. `expired` is one whose deadline came before its success, or
which nobody began by when it `expires`."""

REASONS = (
    "error",
    "timeout",
    "rejected",
    "crashed",
    "child_died",
    "unknown_task",
    "bad_arguments",
    "bad_envelope",
    "bad_result",
    "step_unknown",
    "overdue",
)
"""Why a job failed for good. `overdue`: the window of its retries closed before a worker came to the next."""

EDITED = "edited"
"""The reason of a revision that holds the changed order of a job that has not begun; see `jsq.model.edit`."""

MAX_EVENT_HEADER_BYTES = 2_048
"""Bytes that the headers in a record take: each revision of the job carries them."""

MAX_RECORD_ARGUMENTS = 8_192
"""Bytes of arguments that a final record holds; of larger ones it holds the size and the hash."""


@dataclass(frozen=True, slots=True)
class Event:
    """One change of a job.

    `message` and `delivery` name the handing-over that a `running` event stands for: the sequence of the
    message on its queue, and how often it had been delivered. `token` is the sequence of the `running` event
    that an outcome belongs to. `due` is when a scheduled, retrying or snoozed job may start. `quarantine` is
    the queue where the message stands, if not on the job's own; `forgiven_crashes` counts the crashes that
    led there. `key` is whose job it is. `expires` is the moment by which the job was to begin; see
    `jsq.model.expiry`. `headers` are the submitter's. `retry_until` is when the window of its retries closes.
    `callbacks_pending` tells that callbacks are submitted after this event, and before the delivery is
    settled; `fallback` is the job that a failed one is handed over to. `priority` is empty for normal.
    `submitted` is when the server stored the first message, `started` when the attempt began. A final event
    has the job's arguments as a JSON value, or the size and SHA-256 of larger ones. `result_apart` says that
    the result has a key of its own. `options` are those of the job's submit that change how it runs, by their
    names: of a job that has ended, or has not begun.
    """

    state: str
    task: str = ""
    attempt: int = 0
    failures: int = 0
    crashes: int = 0
    worker: str = ""
    message: int = 0
    delivery: int = 0
    token: int = 0
    due: datetime | None = None
    reason: str = ""
    error: str = ""
    traceback: str = ""
    progress: float | None = None
    text: str = ""
    tags: tuple[str, ...] = ()
    has_result: bool = False
    result: Any = None
    quarantine: str = ""
    forgiven_crashes: int = 0
    key: str = ""
    expires: datetime | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    retry_until: datetime | None = None
    callbacks_pending: bool = False
    fallback: str = ""
    interruptions: int = 0
    priority: str = ""
    submitted: datetime | None = None
    started: datetime | None = None
    has_arguments: bool = False
    arguments: Any = None
    arguments_size: int = 0
    arguments_hash: str = ""
    result_apart: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """A revision as the bucket holds it: which job, its sequence, and when the server stored it (UTC)."""

    queue: str
    job: str
    sequence: int
    at: datetime
    event: Event

    @property
    def state(self) -> str:
        return self.event.state

    @property
    def current_queue(self) -> str:
        """The queue where the job's messages stand."""
        return self.event.quarantine or self.queue

    @property
    def may_wait_for_key(self) -> bool:
        """Whether the job's message may stand in a key's line: who tells no task, tells no key either."""
        return bool(self.event.key) or not self.event.task


class StartVerdict(Enum):
    """What a delivery is to do, after the log refused its start."""

    START = "start"  # no worker runs it: start after the last event
    RECLAIM = "reclaim"  # the lease of the worker that ran it has expired: a crash
    RESTART = "restart"  # the worker that ran it lives, and had to end it: start again, and count no crash
    ENSURE_NEXT_ATTEMPT = (
        "ensure next attempt"  # its next attempt is recorded: ensure that it is scheduled, then settle
    )
    SETTLE = "settle"  # the job has ended: settle without running
    DROP = "drop"  # another message of the same job runs it: settle this delivery
    ABANDON = "abandon"  # a newer delivery of this message exists: only that one may settle
    RESUME = "resume"  # this delivery wrote the start, and the reply was lost: go on


@dataclass(frozen=True, slots=True)
class DeliveryInfo:
    """A delivery: its worker, the sequence of its message (in a quarantine), and the count of deliveries.

    `previous` is the revision that the message's attempt builds on, 0 for a first attempt.
    """

    worker: str
    message: int
    delivery: int
    quarantine: str = ""
    previous: int = 0


def judge_start(last: LoggedEvent | None, current: DeliveryInfo, *, other_waits: bool) -> StartVerdict:
    """Decide what a delivery does whose start was refused because the log says `last`.

    `other_waits` tells whether the message that `last` names still stands on the queue.
    """
    if last is None:
        return StartVerdict.START
    event = last.event
    if event.state in FINAL_STATES:
        return StartVerdict.SETTLE
    if event.state in ("retrying", "snoozed") or event.reason == EDITED:
        # A message that builds on this attempt's end, or on an earlier due time of it, is the next attempt.
        # So is one that builds on an edit.
        next_attempt = current.previous > event.token
        return StartVerdict.START if next_attempt else StartVerdict.ENSURE_NEXT_ATTEMPT
    if event.quarantine and event.quarantine != current.quarantine:
        return StartVerdict.DROP  # it has begun in a quarantine: its message stands there
    same = (event.quarantine, event.message) == (current.quarantine, current.message)
    if event.state == "interrupted" and same:
        # A server that was killed may have forgotten the last delivery, and give its number again.
        return StartVerdict.START if current.delivery >= event.delivery else StartVerdict.ABANDON
    if event.state in (*SUBMITTED_STATES, "interrupted"):
        return StartVerdict.START
    if event.state != "running":
        return StartVerdict.ABANDON  # a later release wrote it, and will know
    if not same:
        return StartVerdict.DROP if other_waits else StartVerdict.RECLAIM
    if event.delivery == current.delivery and event.worker == current.worker:
        return StartVerdict.RESUME
    return StartVerdict.RECLAIM if current.delivery > event.delivery else StartVerdict.ABANDON


def first_event(job: Job, state: str, due: datetime | None = None) -> Event:
    """The revision of a job before its first attempt, or before the first one after a replay."""
    return Event(
        state,
        job.task,
        due=due,
        tags=tuple(job.tags),
        quarantine=job.quarantine,
        key=job.key,
        expires=job.expires,
        headers=event_headers(job.headers),
        priority="" if job.priority == "normal" else job.priority,
    )


def event_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    """The headers that the events of a job carry: the first `MAX_EVENT_HEADER_BYTES` of them."""
    told: dict[str, str] = {}
    room = MAX_EVENT_HEADER_BYTES
    for name, value in headers.items():
        room -= len(name) + len(value.encode()) + 6  # what JSON sets round them
        if room < 0:
            break
        told[name] = value
    return told


def record_fields(found: LoggedEvent) -> Mapping[str, Any]:
    """The fields of a `JobRecord` that an event tells."""
    event = found.event
    return {
        "id": found.job,
        "queue": found.queue,
        "sequence": found.sequence,
        "at": found.at,
        **{name: getattr(event, name) for name in _told},
    }


_told = (
    *("state", "task", "attempt", "failures", "crashes", "worker", "reason", "error", "traceback"),
    *("due", "progress", "text", "tags", "has_result", "result", "quarantine", "key", "expires", "headers"),
    *("fallback", "interruptions", "submitted", "started", "arguments", "arguments_size", "arguments_hash"),
    *("has_arguments", "options"),
)
