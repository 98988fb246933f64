"""What may be left behind on the server, and how it is judged: pure functions of what a look has found.

A server that dies or fills its disk, a worker killed between two writes, a consumer that gives up: each may
leave a message, a record or a dead letter without its counterpart. Nothing here is judged before it has stood
for a while, for work under way looks just like it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum

from jsq.model.event import FINAL_STATES, SUBMITTED_STATES, LoggedEvent
from jsq.model.expiry import has_expired
from jsq.model.job_filter import DELAYED_STATES

DUE_TOLERANCE = timedelta(seconds=1)
"""By how much a record may differ from a schedule."""

LONG_AGO = datetime.min.replace(tzinfo=UTC)


class Inconsistency(Enum):
    """What is wrong, in the word that counts and logs have for it."""

    NO_CONSUMER = "no_consumer"
    GHOST = "ghost"
    ENDED = "ended"
    EXPIRED = "expired"
    UNBURIED = "unburied"
    UNRECORDED = "unrecorded"
    MISDATED = "misdated"
    HALF_REPLAYED = "half_replayed"
    OUTLIVED = "outlived"
    UNUSED_ID = "unused_id"
    STALLED = "stalled"
    HELD = "held"
    UNCALLED = "uncalled"
    STRANDED = "stranded"
    UNSTORED = "unstored"


DESCRIPTIONS: Mapping[Inconsistency, str] = {
    Inconsistency.NO_CONSUMER: "jobs of this priority reach nobody: its consumer is missing",
    Inconsistency.GHOST: "a message that the server will deliver to nobody any more",
    Inconsistency.ENDED: "a message of a job that has ended",
    Inconsistency.EXPIRED: "a job that nobody began before it expired, and which no worker has come to",
    Inconsistency.UNBURIED: "a failed job whose message stands, and which has no dead letter",
    Inconsistency.UNRECORDED: "a message without a record: `jsq job ls` does not show it",
    Inconsistency.MISDATED: "a rescheduled job whose record shows the moment at which it was due before",
    Inconsistency.HALF_REPLAYED: "a replay that broke off half way",
    Inconsistency.OUTLIVED: "a dead letter of a job that has a new life",
    Inconsistency.UNUSED_ID: "an own id that was claimed for a job which was never stored",
    Inconsistency.STALLED: "a line of a key in which someone waits though nobody is before him",
    Inconsistency.HELD: "a place in the turn of a key that is held by a job which has ended or is not there",
    Inconsistency.UNCALLED: "a unique job that waits for the end of another, which has ended",
    Inconsistency.STRANDED: "a job that was begun and has no message any more: it cannot go on",
    Inconsistency.UNSTORED: "a job that was announced and never stored; its submitter may repeat it",
}
"""What each flaw is, in a line."""

REPAIR_DESCRIPTIONS: Mapping[Inconsistency, str] = {
    Inconsistency.NO_CONSUMER: "made anew",
    Inconsistency.GHOST: "put on its queue anew",
    Inconsistency.ENDED: "removed",
    Inconsistency.EXPIRED: "recorded as expired, and removed",
    Inconsistency.UNBURIED: "its letter is written",
    Inconsistency.UNRECORDED: "its first event is written",
    Inconsistency.MISDATED: "its record tells when it is due",
    Inconsistency.HALF_REPLAYED: "finished",
    Inconsistency.OUTLIVED: "removed",
    Inconsistency.UNUSED_ID: "freed",
    Inconsistency.STALLED: "let on",
    Inconsistency.HELD: "given up",
    Inconsistency.UNCALLED: "called",
}
"""How each is mended. The others are only told: what they lack, nobody has."""

HARMLESS = frozenset(
    {
        Inconsistency.ENDED,
        Inconsistency.EXPIRED,
        Inconsistency.UNRECORDED,
        Inconsistency.MISDATED,
        Inconsistency.OUTLIVED,
        Inconsistency.UNUSED_ID,
        Inconsistency.UNSTORED,
    }
)
"""Flaws by which no job is lost or kept waiting."""


@dataclass(frozen=True, slots=True)
class FoundInconsistency:
    """A flaw, and where: the queue, the job (of `NO_CONSUMER`, the priority), and the stream and sequence of
    the message, letter or key that shows it. `home` is the queue that the job was submitted to, where it is
    in quarantine on this one. `token` stands for the key whose turn is concerned (`STALLED` has no job).
    """

    flaw: Inconsistency
    queue: str
    job: str
    stream: str = ""
    sequence: int = 0
    home: str = ""
    token: str = ""

    @property
    def of(self) -> str:
        """The queue that has the job's log."""
        return self.home or self.queue


@dataclass(frozen=True, slots=True)
class RepairResult:
    """What became of a flaw. Not `mended` is what cannot be, what was gone already, and what was let be."""

    flaw: Inconsistency
    queue: str
    job: str
    mended: bool


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message that stands on a queue or is due later. `lost` if the server will not deliver it.

    `queue` is the one that the job was submitted to; its message may stand in quarantine on another. `due` is
    when its schedule fires, None where that need not be what its record tells.
    """

    queue: str
    job: str
    stream: str
    sequence: int
    at: datetime
    lost: bool
    due: datetime | None = None


def is_older(at: datetime, now: datetime, age: float) -> bool:
    """Whether something has stood for `age` seconds: no work under way will change it."""
    return now - at >= timedelta(seconds=age)


def judge_message(
    message: StoredMessage, last: LoggedEvent | None, *, lettered: bool, before: datetime = LONG_AGO
) -> Inconsistency | None:
    """What is wrong with a message that has stood for long, by its job's last event.

    A job that nobody began by when it expired is judged as such if that was `before` a moment.
    """
    if last is not None and last.state == "failed" and not lettered:
        return Inconsistency.UNBURIED
    if last is not None and last.state in FINAL_STATES:
        return Inconsistency.ENDED
    if last is not None and has_expired(last, before):
        return Inconsistency.EXPIRED
    if message.lost:
        return Inconsistency.GHOST
    if last is None:
        return Inconsistency.UNRECORDED
    return Inconsistency.MISDATED if has_stale_due(message, last) else None


def has_stale_due(message: StoredMessage, last: LoggedEvent) -> bool:
    """Whether a job's record tells another moment than that at which its schedule fires."""
    told = last.event.due
    if message.due is None or told is None or last.state not in DELAYED_STATES:
        return False
    return abs(message.due - told) >= DUE_TOLERANCE


def judge_slot(last: LoggedEvent | None, *, stands: bool, old: bool) -> Inconsistency | None:
    """What is wrong with a place in a turn, by the last event of the job that has it and whether that is old.

    Who has ended has left it long since; so has one whose message stands nowhere on its queue.
    """
    if last is None:
        return None if stands else Inconsistency.HELD
    return Inconsistency.HELD if old and (last.state in FINAL_STATES or not stands) else None


def judge_record(last: LoggedEvent, *, lettered: bool) -> Inconsistency | None:
    """What is wrong with a job that has had no message for long, by its last event.

    A letter beside a promised attempt is a replay that broke off before it put the message.
    """
    if last.state in FINAL_STATES:
        return None
    if last.state in SUBMITTED_STATES:
        return Inconsistency.UNSTORED
    return Inconsistency.HALF_REPLAYED if lettered and last.state == "retrying" else Inconsistency.STRANDED


def judge_dead_letter(at: datetime, last: LoggedEvent | None, *, stands: bool) -> Inconsistency | None:
    """What is wrong with a letter of long ago. Without a record it is well: that expires earlier."""
    if last is None or last.state == "failed" or last.at < at:
        return None
    return Inconsistency.OUTLIVED if stands or last.state in FINAL_STATES else None
