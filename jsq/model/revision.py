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

OPEN_STATES = ("running", "retrying", "snoozed", "interrupted", "waiting")
"""States that workers write and that are not final."""

FINAL_STATES = ("succeeded", "failed", "cancelled", "expired")
"""States that do not change without a request."""

TRANSITIONS: Mapping[str, frozenset[str]] = {
    "queued": frozenset({"queued", "running", "cancelled", "failed", "expired"}),
    "scheduled": frozenset({"scheduled", "queued", "running", "cancelled", "failed", "expired"}),
    "running": frozenset(
        {
            *("succeeded", "failed", "cancelled", "expired", "retrying", "snoozed", "interrupted"),
            *("running", "waiting"),
        }
    ),
    "retrying": frozenset({"retrying", "running", "cancelled", "failed", "expired"}),
    "snoozed": frozenset({"snoozed", "running", "cancelled", "failed", "expired"}),
    "interrupted": frozenset({"running", "cancelled", "failed", "expired"}),
    "waiting": frozenset({"running", "cancelled", "failed", "expired"}),
    "succeeded": frozenset({"retrying"}),
    "failed": frozenset({"retrying"}),
    "cancelled": frozenset({"retrying"}),
    "expired": frozenset({"retrying"}),
}
"""The states that may follow each state. A waiting state after itself is another due time, or an edit of a
job that has not started. `running` after `running` is a crash: the worker died or stalled, and another one
reclaimed the job. `retrying` after a final state is a retry by an operator. `failed` without a run is a job
that no worker could run. `waiting` is a workflow whose nodes run. `expired` is a job that did not succeed
before its deadline, or did not start before it `expires`."""

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
    "node_failed",
)
"""Why a job failed for good. `overdue`: the window of its retries closed before the next attempt.
`node_failed`: a node of the workflow failed."""

EDITED = "edited"
"""The reason of a revision with the changed order of a job that has not started; see `jsq.model.edit`."""

MAX_REVISION_HEADER_BYTES = 2_048
"""Maximum size of the headers in a record, in bytes: each revision of the job carries them."""

MAX_RECORD_ARGUMENTS = 8_192
"""Maximum size of the arguments in a final record; larger ones are replaced by their size and hash."""


@dataclass(frozen=True, slots=True)
class Revision:
    """One revision of the record of a job.

    `message` and `delivery` identify the delivery of a `running` revision: the sequence of the message on its
    queue, and how often it had been delivered. `token` is the sequence of the `running` revision that an
    outcome belongs to. `due` is when a scheduled, retrying or snoozed job may start. `quarantine` is the
    queue of the message, if it is not the job's own; `forgiven_crashes` counts the crashes that led there.
    `key` is the job's key. `expires` is the time by which the job had to start; see `jsq.model.expiry`.
    `headers` are the submitter's. `retry_until` is when the retry window closes. `callbacks_pending` is true
    if callbacks are submitted after this revision, and before the delivery is settled; `fallback` is the job
    that runs instead of a failed one. `priority` is empty for normal. `submitted` is when the server stored
    the first message, `started` when the attempt started, `first_started` when the first one did, if that was
    another one. A final revision has the job's arguments as a JSON
    value, or the size and SHA-256 of larger ones. `separate_result` is true if the result has its own key.
    `result_dropped` is why the result of a job that succeeded could not be stored.
    `options` are those options of the submit that change how the job runs, by their names, if the job has
    ended or has not started. `parent` is the workflow of a node.
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
    separate_result: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    result_dropped: str = ""
    first_started: datetime | None = None
    parent: str = ""


@dataclass(frozen=True, slots=True)
class StoredRevision:
    """A revision as the bucket holds it: which job, its sequence, and when the server stored it (UTC)."""

    queue: str
    job: str
    sequence: int
    at: datetime
    revision: Revision

    @property
    def state(self) -> str:
        return self.revision.state

    @property
    def current_queue(self) -> str:
        """The queue of the job's messages."""
        return self.revision.quarantine or self.queue

    @property
    def may_wait_for_key(self) -> bool:
        """Whether the job's message may be in a key group: a revision without a task has no key either."""
        return bool(self.revision.key) or not self.revision.task


class StartVerdict(Enum):
    """The verdict on a delivery whose start was refused by the record."""

    START = "start"  # No worker runs it: start after the last revision.
    RECLAIM = "reclaim"  # The lease of the worker that ran it has expired: a crash.
    RESTART = "restart"  # Its worker is alive, and had to end it: start again, and count no crash.
    ENSURE_NEXT_ATTEMPT = (
        "ensure next attempt"  # Its next attempt is recorded: ensure that it is scheduled, then settle.
    )
    SETTLE = "settle"  # The job has ended: settle without running.
    DROP = "drop"  # Another message of the job is in use: settle this delivery.
    ABANDON = "abandon"  # A newer delivery of this message exists, and only that one may settle.
    RESUME = "resume"  # This delivery wrote the start, and the reply was lost: continue.


@dataclass(frozen=True, slots=True)
class DeliveryInfo:
    """A delivery: its worker, the sequence of its message (in a quarantine), and the number of deliveries.

    `previous` is the revision that the message's attempt builds on, 0 for a first attempt.
    """

    worker: str
    message: int
    delivery: int
    quarantine: str = ""
    previous: int = 0


def judge_start(last: StoredRevision | None, current: DeliveryInfo, *, other_waits: bool) -> StartVerdict:
    """Judge a delivery whose start was refused because the last revision is `last`.

    `other_waits` is true if the message that `last` names is still on the queue.
    """
    if last is None:
        return StartVerdict.START
    event = last.revision
    if event.state in FINAL_STATES:
        return StartVerdict.SETTLE
    if event.state in ("retrying", "snoozed", "waiting") or event.reason == EDITED:
        # A message that builds on this attempt's end, or on an earlier due time of it, is the next attempt.
        # So is one that builds on an edit.
        next_attempt = current.previous > event.token
        return StartVerdict.START if next_attempt else StartVerdict.ENSURE_NEXT_ATTEMPT
    if event.quarantine and event.quarantine != current.quarantine:
        return StartVerdict.DROP  # it has started in a quarantine: its message is there
    same = (event.quarantine, event.message) == (current.quarantine, current.message)
    if event.state == "interrupted" and same:
        # A server that was killed may have forgotten the last delivery, and use its number again.
        return StartVerdict.START if current.delivery >= event.delivery else StartVerdict.ABANDON
    if event.state in (*SUBMITTED_STATES, "interrupted"):
        return StartVerdict.START
    if event.state != "running":
        return StartVerdict.ABANDON  # a later release wrote it, and can handle it
    if not same:
        return StartVerdict.DROP if other_waits else StartVerdict.RECLAIM
    if event.delivery == current.delivery and event.worker == current.worker:
        return StartVerdict.RESUME
    return StartVerdict.RECLAIM if current.delivery > event.delivery else StartVerdict.ABANDON


def first_revision(job: Job, state: str, due: datetime | None = None) -> Revision:
    """The revision of a job before its first attempt, or before the first one after an operator's retry."""
    return Revision(
        state,
        job.task,
        due=due,
        tags=tuple(job.tags),
        quarantine=job.quarantine,
        key=job.key,
        expires=job.expires,
        headers=revision_headers(job.headers),
        priority="" if job.priority == "normal" else job.priority,
        parent=parent_of(job.flow),
    )


def parent_of(flow: str) -> str:
    """The id of a node's workflow, from `Job.flow`; empty for other jobs."""
    return flow.partition(" ")[2]


def revision_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    """The headers in the revisions of a job: the first `MAX_REVISION_HEADER_BYTES` of them."""
    carried: dict[str, str] = {}
    room = MAX_REVISION_HEADER_BYTES
    for name, value in headers.items():
        room -= len(name) + len(value.encode()) + 6  # quotes and separators of JSON
        if room < 0:
            break
        carried[name] = value
    return carried


def is_progress_report(event: Revision) -> bool:
    """Whether a revision is a report of a running attempt; the end of a job may have its progress, too."""
    return event.state == "running" and event.progress is not None


def record_fields(found: StoredRevision) -> Mapping[str, Any]:
    """The fields of a `JobRecord`, from the last revision."""
    event = found.revision
    return {
        "id": found.job,
        "queue": found.queue,
        "sequence": found.sequence,
        "at": found.at,
        **{name: getattr(event, name) for name in _RECORD_FIELDS},
    }


_RECORD_FIELDS = (
    *("state", "task", "attempt", "failures", "crashes", "worker", "reason", "error", "traceback"),
    *("due", "progress", "text", "tags", "has_result", "result", "quarantine", "key", "expires", "headers"),
    *("fallback", "interruptions", "submitted", "started", "arguments", "arguments_size", "arguments_hash"),
    *("has_arguments", "options", "result_dropped", "first_started", "parent"),
)
