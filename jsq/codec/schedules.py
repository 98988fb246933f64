"""A schedule as stored under its key in the bucket: the pattern of its jobs, its times, and its progress.

The pattern is encoded in the same way as a job's message, so a schedule can have everything that a job has.
"""

from datetime import UTC, datetime
from typing import Any

from pydantic_core import from_json, to_json

from jsq.codec import envelope
from jsq.codec.revisions import parse_time
from jsq.errors import BadEnvelope, BadName, BadOption, NewerEnvelope
from jsq.model.schedule import Schedule, ScheduleState

SCHEDULE_VERSION = 1

_schedule_fields = ("cron", "every", "tz", "jitter", "catch_up", "overlap", "expires", "declared")
_state_fields = ("paused", "last", "fired", "skipped")


def encode(schedule: Schedule, progress: ScheduleState) -> bytes:
    """Encode a schedule; its name and its queue are in the key."""
    job = schedule.job
    return to_json(
        {
            "v": SCHEDULE_VERSION,
            "priority": job.priority,
            "headers": envelope.encode(job),
            "arguments": job.arguments.decode(),
            **{name: value for name in _schedule_fields if (value := getattr(schedule, name))},
            **{
                name: format_exact(at)
                for name in ("start", "end")
                if (at := getattr(schedule, name)) is not None
            },
            "decided_until": format_exact(progress.decided_until),
            **{name: value for name in _state_fields if (value := getattr(progress, name))},
        }
    )


def decode(payload: bytes, *, name: str, queue: str) -> tuple[Schedule, ScheduleState]:
    """Decode a schedule. Raises `BadEnvelope`, or `NewerEnvelope` if a later release encoded it."""
    try:
        fields: dict[str, Any] = from_json(payload)
        if fields["v"] > SCHEDULE_VERSION:
            raise NewerEnvelope(
                f"schedule {name} has version {fields['v']}; this release reads up to {SCHEDULE_VERSION}"
            )
        job = envelope.decode(
            fields["headers"], fields["arguments"].encode(), id="", queue=queue, priority=fields["priority"]
        )
        times: dict[str, Any] = {
            field: parse_time(fields[field]) for field in ("start", "end") if field in fields
        }
        schedule = Schedule(
            name, job, **{field: fields[field] for field in _schedule_fields if field in fields}, **times
        )
        counts = {field: fields[field] for field in _state_fields if field in fields}
        return schedule, ScheduleState(parse_time(fields["decided_until"]), **counts)
    except (KeyError, ValueError, TypeError, AttributeError, BadName, BadOption, BadEnvelope) as error:
        raise BadEnvelope(
            f"the value of schedule {name} is not a schedule: {type(error).__name__} {error}"
        ) from error


def format_exact(at: datetime) -> str:
    """A time in UTC, to the microsecond."""
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
