"""Inconsistencies that may be left on the server, and how a scan judges them: pure functions.

A server that dies or fills its disk, a worker killed between two writes, a consumer that gives up: each may
leave a message, a record or a dead letter without its counterpart. A scan skips recent entries, because work
in progress has the same appearance.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum

from jsq.model.expiry import has_expired
from jsq.model.job_filter import DELAYED_STATES
from jsq.model.revision import FINAL_STATES, SUBMITTED_STATES, StoredRevision

DUE_TOLERANCE = timedelta(seconds=1)
"""By how much a record may differ from a schedule."""

LONG_AGO = datetime.min.replace(tzinfo=UTC)


class Inconsistency(Enum):
    """A kind of inconsistency, by its name in metrics, logs and JSON."""

    NO_CONSUMER = "no_consumer"
    UNDELIVERABLE = "undeliverable"
    LEFTOVER_MESSAGE = "leftover_message"
    UNRECORDED_EXPIRY = "unrecorded_expiry"
    STALE_SCHEDULE_RECORD = "stale_schedule_record"
    INCOMPLETE_RETRY = "incomplete_retry"
    STALE_DEAD_LETTER = "stale_dead_letter"
    UNUSED_ID = "unused_id"
    STALLED_KEY_GROUP = "stalled_key_group"
    LEAKED_SLOT = "leaked_slot"
    ORPHANED_SUCCESSOR = "orphaned_successor"
    MISSING_MESSAGE = "missing_message"


DESCRIPTIONS: Mapping[Inconsistency, str] = {
    Inconsistency.NO_CONSUMER: "the consumer of this priority is missing: its jobs are not delivered",
    Inconsistency.UNDELIVERABLE: "a message that the server will not deliver any more",
    Inconsistency.LEFTOVER_MESSAGE: "a message of a job that has ended",
    Inconsistency.UNRECORDED_EXPIRY: "a job that expired before it started, without an expired record",
    Inconsistency.STALE_SCHEDULE_RECORD: "a rescheduled job whose record shows its previous due time",
    Inconsistency.INCOMPLETE_RETRY: "a retry or an edit of a job that stopped half way",
    Inconsistency.STALE_DEAD_LETTER: "a dead letter of a job that was submitted or retried again",
    Inconsistency.UNUSED_ID: "a caller's id that was claimed for a job which was never stored",
    Inconsistency.STALLED_KEY_GROUP: "a key group with a free slot and a waiting job that nothing admits",
    Inconsistency.LEAKED_SLOT: "a slot of a key group held by a job that has ended or has no message",
    Inconsistency.ORPHANED_SUCCESSOR: "a unique job that waits for the end of another, which has ended",
    Inconsistency.MISSING_MESSAGE: "a job that was started and has no message any more: it cannot continue",
}
"""The description of each inconsistency."""

REPAIR_DESCRIPTIONS: Mapping[Inconsistency, str] = {
    Inconsistency.NO_CONSUMER: "created again",
    Inconsistency.UNDELIVERABLE: "put on its queue again",
    Inconsistency.LEFTOVER_MESSAGE: "deleted",
    Inconsistency.UNRECORDED_EXPIRY: "recorded as expired, and deleted",
    Inconsistency.STALE_SCHEDULE_RECORD: "the record is updated",
    Inconsistency.INCOMPLETE_RETRY: "completed",
    Inconsistency.STALE_DEAD_LETTER: "deleted",
    Inconsistency.UNUSED_ID: "released",
    Inconsistency.STALLED_KEY_GROUP: "admitted",
    Inconsistency.LEAKED_SLOT: "released",
    Inconsistency.ORPHANED_SUCCESSOR: "submitted",
}
"""How each is repaired. The others are only reported: the missing data does not exist any more."""

HARMLESS = frozenset(
    {
        Inconsistency.LEFTOVER_MESSAGE,
        Inconsistency.UNRECORDED_EXPIRY,
        Inconsistency.STALE_SCHEDULE_RECORD,
        Inconsistency.STALE_DEAD_LETTER,
        Inconsistency.UNUSED_ID,
    }
)
"""Inconsistencies that neither lose a job nor delay one."""


@dataclass(frozen=True, slots=True)
class FoundInconsistency:
    """An inconsistency and where it is: the queue, the job, and the stream and sequence that show it.

    The job of `NO_CONSUMER` is the priority; `STALLED_KEY_GROUP` has none. `origin_queue` is the queue that
    the job was submitted to, if its message is in quarantine on this one. `key_token` is the token of its
    key.
    """

    kind: Inconsistency
    queue: str
    job: str
    stream: str = ""
    sequence: int = 0
    origin_queue: str = ""
    key_token: str = ""

    @property
    def log_queue(self) -> str:
        """The queue under which the job's record is stored."""
        return self.origin_queue or self.queue


@dataclass(frozen=True, slots=True)
class RepairResult:
    """The result of a repair; `repaired` is False if the inconsistency was gone, or cannot be repaired."""

    kind: Inconsistency
    queue: str
    job: str
    repaired: bool


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message that is on a queue or due later. `undeliverable` if the server will not deliver it.

    `queue` is the queue that the job was submitted to; its message may be in quarantine on another. `due` is
    when its schedule fires, None if the record may have another time. `expires` is when the job expires if
    it has not started.
    """

    queue: str
    job: str
    stream: str
    sequence: int
    stored_at: datetime
    undeliverable: bool
    due: datetime | None = None
    expires: datetime | None = None


def is_older(at: datetime, now: datetime, age: float) -> bool:
    """Whether an entry is at least `age` seconds old, so that no work in progress will change it."""
    return now - at >= timedelta(seconds=age)


def judge_message(
    message: StoredMessage, last: StoredRevision | None, *, expired_before: datetime = LONG_AGO
) -> Inconsistency | None:
    """The inconsistency of an old message, by the record of its job; None if there is none.

    An expired job without a start is inconsistent if it `expired_before` a certain time.
    """
    if last is not None and last.state in FINAL_STATES:
        return Inconsistency.LEFTOVER_MESSAGE
    if last is not None and has_expired(last, expired_before):
        return Inconsistency.UNRECORDED_EXPIRY
    if last is None and message.expires is not None and message.expires <= expired_before:
        return Inconsistency.UNRECORDED_EXPIRY
    if message.undeliverable:
        return Inconsistency.UNDELIVERABLE
    if last is None:
        return None
    return Inconsistency.STALE_SCHEDULE_RECORD if has_stale_due(message, last) else None


def has_stale_due(message: StoredMessage, last: StoredRevision) -> bool:
    """Whether the due time in a job's record differs from the time at which its schedule fires."""
    recorded = last.revision.due
    if message.due is None or recorded is None or last.state not in DELAYED_STATES:
        return False
    return abs(message.due - recorded) >= DUE_TOLERANCE


def judge_slot(last: StoredRevision | None, *, has_message: bool, is_old: bool) -> Inconsistency | None:
    """The inconsistency of a key group's slot, by the last event of its job and whether that is old.

    A job that has ended should have released its slot, and so should a job without a message on its queue.
    """
    if last is None:
        return None if has_message else Inconsistency.LEAKED_SLOT
    return Inconsistency.LEAKED_SLOT if is_old and (last.state in FINAL_STATES or not has_message) else None


def judge_record(last: StoredRevision, *, knows_order: bool) -> Inconsistency | None:
    """The inconsistency of a job that has had no message for long, by its record.

    A retrying job whose order is in its record or in a closed dead letter is an incomplete retry.
    """
    if last.state in FINAL_STATES:
        return None
    return (
        Inconsistency.INCOMPLETE_RETRY
        if knows_order and last.state in ("retrying", *SUBMITTED_STATES)
        else Inconsistency.MISSING_MESSAGE
    )


def judge_dead_letter(
    at: datetime, last: StoredRevision | None, *, has_message: bool
) -> Inconsistency | None:
    """The inconsistency of an old dead letter. Without a record there is none: records expire earlier."""
    if last is None or last.state == "failed" or last.at < at:
        return None
    return Inconsistency.STALE_DEAD_LETTER if has_message or last.state in FINAL_STATES else None
