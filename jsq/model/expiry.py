"""Expiry: a job that has not started by its expiry never starts, and is expired from then on.

The message and the revisions of a job contain the time. Every reader compares it with the server's clock, so
a job expires even if no worker is alive to record it. A start was in time if the server stored it in time.
Workers and readers both judge by that, so they never differ.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from jsq.errors import BadOption
from jsq.model.revision import SUBMITTED_STATES, StoredRevision

NOT_STARTED = "no worker started it before it expired"
"""The error in the record of such a job."""

UNKNOWN_TASK = "unknown_task"
"""The reason of a snoozed job whose task the worker did not know: it has not started."""


def has_not_started(found: StoredRevision) -> bool:
    """Whether a job that expires has not started, by its last event; a start that was too late is none."""
    event = found.revision
    if event.expires is None:
        return False
    match event.state:
        case "snoozed":
            return event.reason == UNKNOWN_TASK
        case "running":
            return found.at > event.expires
    return event.state in SUBMITTED_STATES


def has_expired(found: StoredRevision, now: datetime) -> bool:
    """Whether a job has expired by its last event, recorded or not."""
    expires = found.revision.expires
    return expires is not None and now >= expires and has_not_started(found)


def apply_expiry(found: StoredRevision, now: datetime) -> StoredRevision:
    """The last event of a job as of `now`: with the state `expired` if the job has expired."""
    expires = found.revision.expires
    if expires is None or not has_expired(found, now):
        return found
    event = replace(found.revision, state="expired", reason="", error=NOT_STARTED, traceback="", due=None)
    return replace(found, at=expires, revision=event)


def expiry_time(expires: float | datetime, due: datetime | None, now: datetime) -> datetime:
    """The expiry time of a submit at `now`, in UTC, to the millisecond.

    Raises `BadOption` if it has passed, or if the job may only start later.
    """
    asked = expires if isinstance(expires, datetime) else now + timedelta(seconds=expires)
    if asked <= now:
        raise BadOption("expires", expires, "must be in the future")
    if due is not None and due >= asked:
        raise BadOption("expires", expires, "must be after the start of the job")
    moment = asked.astimezone(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)
