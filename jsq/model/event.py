"""The life of a job: its states, which may follow which, and what a delivery finds in the log.

Every change of a job is one event on its own log, written by compare-and-set. The events that begin with
`run.` on the wire are the ones workers write; the sequence of the last of them is what the next one expects.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

from jsq.model.job import Job

ASKED = ("queued", "scheduled")
"""States a submitter writes."""

OPEN = ("running", "retrying", "snoozed", "interrupted")
"""States workers write which are not the last."""

FINAL = ("succeeded", "failed", "cancelled", "expired")
"""States after which nothing follows by itself."""

MOVES: Mapping[str, frozenset[str]] = {
    "queued": frozenset({"running", "cancelled", "failed", "expired"}),
    "scheduled": frozenset({"scheduled", "running", "cancelled", "failed", "expired"}),
    "running": frozenset(
        {"succeeded", "failed", "cancelled", "expired", "retrying", "snoozed", "interrupted", "running"}
    ),
    "retrying": frozenset({"running", "cancelled", "failed", "expired"}),
    "snoozed": frozenset({"running", "cancelled", "failed", "expired"}),
    "interrupted": frozenset({"running", "cancelled", "failed", "expired"}),
    "succeeded": frozenset(),
    "failed": frozenset({"retrying"}),
    "cancelled": frozenset(),
    "expired": frozenset(),
}
"""What may follow each state. `scheduled` after `scheduled` is another date, for a job that has not begun.
`running` after `running` is a crash: the worker fell silent and another took over. `retrying` after `failed`
is an operator's replay. `failed` without a run is a job nobody could run. `expired` is one whose deadline
came before its success, or which nobody began by when it `expires`."""

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

MOST_HEADERS_TOLD = 2_048
"""Bytes that the headers in a record take: each event of the job carries them."""


@dataclass(frozen=True, slots=True)
class Event:
    """One change of a job.

    `message` and `delivery` name the handing-over that a `running` event stands for: the sequence of the
    message on its queue, and how often it had been delivered. `token` is the sequence of the `running` event
    that an outcome belongs to. `due` is when a scheduled, retrying or snoozed job may start. `quarantine` is
    the queue where the message stands, if not on the job's own; `forgiven` counts the crashes that led there.
    `key` is whose job it is. `expires` is the moment by which the job was to begin; see `jsq.model.expiry`.
    `headers` are the submitter's.
    `retry_until` is when the window of its retries closes. `owes` tells that callbacks are submitted after
    this event, and before the delivery is settled; `fallback` is the job that a failed one is handed over to.
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
    kept: bool = False
    result: Any = None
    quarantine: str = ""
    forgiven: int = 0
    key: str = ""
    expires: datetime | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    retry_until: datetime | None = None
    owes: bool = False
    fallback: str = ""
    interruptions: int = 0


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """An event as the log holds it: which job, its sequence, and when the server stored it (UTC)."""

    queue: str
    job: str
    sequence: int
    at: datetime
    event: Event

    @property
    def state(self) -> str:
        return self.event.state

    @property
    def lane(self) -> str:
        """The queue where the job's messages stand."""
        return self.event.quarantine or self.queue

    @property
    def may_line_up(self) -> bool:
        """Whether the job's message may stand in a key's line: who tells no task, tells no key either."""
        return bool(self.event.key) or not self.event.task


class StartVerdict(Enum):
    """What a delivery is to do, after the log refused its start."""

    START = "start"  # nobody runs it: start, on top of what the log says
    TAKE_OVER = "take over"  # the worker that ran it fell silent: a crash
    KEEP_PROMISE = "keep promise"  # its next attempt is promised: see that it stands, then settle
    SETTLE = "settle"  # it is finished: settle without running
    DROP = "drop"  # another message of the same job runs it: settle this one
    LET_GO = "let go"  # another delivery of this message is newer: not ours to settle
    ADOPT = "adopt"  # the start is our own, its answer was lost: go on


@dataclass(frozen=True, slots=True)
class DeliveryInfo:
    """The delivery that asks: which worker, which message (of a quarantine), its how manyeth handing-over."""

    worker: str
    message: int
    delivery: int
    quarantine: str = ""


def judge_start(last: LoggedEvent | None, handing: DeliveryInfo, *, other_waits: bool) -> StartVerdict:
    """Decide what a delivery does whose start was refused because the log says `last`.

    `other_waits` tells whether the message that `last` names still stands on the queue.
    """
    if last is None:
        return StartVerdict.START
    event = last.event
    if event.state in FINAL:
        return StartVerdict.SETTLE
    if event.state in ("retrying", "snoozed"):
        return StartVerdict.KEEP_PROMISE
    if event.quarantine and event.quarantine != handing.quarantine:
        return StartVerdict.DROP  # it has begun in a quarantine: its message stands there
    same = (event.quarantine, event.message) == (handing.quarantine, handing.message)
    if event.state == "interrupted" and same:
        return StartVerdict.START if handing.delivery > event.delivery else StartVerdict.LET_GO
    if event.state in (*ASKED, "interrupted"):
        return StartVerdict.START
    if event.state != "running":
        return StartVerdict.LET_GO  # a later release wrote it, and will know
    if not same:
        return StartVerdict.DROP if other_waits else StartVerdict.TAKE_OVER
    if event.delivery == handing.delivery and event.worker == handing.worker:
        return StartVerdict.ADOPT
    return StartVerdict.TAKE_OVER if handing.delivery > event.delivery else StartVerdict.LET_GO


def submitted(job: Job, state: str, due: datetime | None = None) -> Event:
    """The first event of a job."""
    return Event(
        state,
        job.task,
        due=due,
        tags=tuple(job.tags),
        quarantine=job.quarantine,
        key=job.key,
        expires=job.expires,
        headers=headers_told(job.headers),
    )


def headers_told(headers: Mapping[str, str]) -> Mapping[str, str]:
    """The headers of a job that its events carry: the first ones, in at most `MOST_HEADERS_TOLD` bytes."""
    told: dict[str, str] = {}
    room = MOST_HEADERS_TOLD
    for name, value in headers.items():
        room -= len(name) + len(value.encode()) + 6  # what JSON sets round them
        if room < 0:
            break
        told[name] = value
    return told


def status_of(found: LoggedEvent) -> Mapping[str, Any]:
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
    *("due", "progress", "text", "tags", "kept", "result", "quarantine", "key", "expires", "headers"),
    *("fallback", "interruptions"),
)
