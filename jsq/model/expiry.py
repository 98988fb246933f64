"""Expiry: a job that has not begun by a moment never begins, and has expired from that moment on.

The moment travels with the job's message and with its events. Who reads them judges by it and by the server's
clock, so that a job expires also where nobody lives to say so. That it was begun in time is told by when the
server stored the start: both the worker and who reads judge by that, and so never differ.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from jsq.errors import BadOption
from jsq.model.event import SUBMITTED_STATES, LoggedEvent

NOT_STARTED = "nobody began it before it expired"
"""What the record of such a job says."""

UNKNOWN_TASK = "unknown_task"
"""Why a job was put off that no worker knew the task of: it has not begun."""


def has_not_started(found: LoggedEvent) -> bool:
    """Whether a job that expires has yet to begin, by its last event: a start that was too late is none."""
    event = found.event
    if event.expires is None:
        return False
    match event.state:
        case "snoozed":
            return event.reason == UNKNOWN_TASK
        case "running":
            return found.at > event.expires
    return event.state in SUBMITTED_STATES


def has_expired(found: LoggedEvent, now: datetime) -> bool:
    """Whether a job has expired by its last event, be that recorded or not."""
    expires = found.event.expires
    return expires is not None and now >= expires and has_not_started(found)


def apply_expiry(found: LoggedEvent, now: datetime) -> LoggedEvent:
    """A job's last event as it reads now: that of one which has expired says so."""
    expires = found.event.expires
    if expires is None or not has_expired(found, now):
        return found
    event = replace(found.event, state="expired", reason="", error=NOT_STARTED, traceback="", due=None)
    return replace(found, at=expires, event=event)


def expiry_time(expires: float | datetime, due: datetime | None, now: datetime) -> datetime:
    """The moment that a submit at `now` asks for, in UTC to the millisecond, as it travels.

    Raises `BadOption` for one that has passed, or before which the job may not start.
    """
    asked = expires if isinstance(expires, datetime) else now + timedelta(seconds=expires)
    if asked <= now:
        raise BadOption("expires", expires, "must be in the future")
    if due is not None and due >= asked:
        raise BadOption("expires", expires, "must be after the start of the job")
    told = asked.astimezone(UTC)
    return told.replace(microsecond=told.microsecond // 1000 * 1000)
