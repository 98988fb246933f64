"""A schedule as its key in the bucket holds it: what its jobs are, when they come, and how far it has come.

The pattern of its jobs is sealed as a job's message is, so whatever a job may carry, a schedule carries too.
"""

from datetime import UTC, datetime
from typing import Any

from pydantic_core import from_json, to_json

from jsq.codec import envelope
from jsq.codec.events import parse_time
from jsq.errors import BadEnvelope, BadName, BadOption, NewerEnvelope
from jsq.model.schedule import Schedule, ScheduleState

SCHEDULE_VERSION = 1

_schedule_fields = ("cron", "every", "tz", "jitter", "catch_up", "overlap", "expires", "declared")
_state_fields = ("paused", "last", "fired", "skipped")


def encode(schedule: Schedule, progress: ScheduleState) -> bytes:
    """Write a schedule; its name and its queue are in the key."""
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
    """Read a schedule. Raises `BadEnvelope` for what is none, `NewerEnvelope` for a later release's."""
    try:
        told: dict[str, Any] = from_json(payload)
        if told["v"] > SCHEDULE_VERSION:
            raise NewerEnvelope(
                f"schedule {name} has version {told['v']}; this release reads up to {SCHEDULE_VERSION}"
            )
        job = envelope.decode(
            told["headers"], told["arguments"].encode(), id="", queue=queue, priority=told["priority"]
        )
        times: dict[str, Any] = {
            field: parse_time(told[field]) for field in ("start", "end") if field in told
        }
        schedule = Schedule(
            name, job, **{field: told[field] for field in _schedule_fields if field in told}, **times
        )
        counts = {field: told[field] for field in _state_fields if field in told}
        return schedule, ScheduleState(parse_time(told["decided_until"]), **counts)
    except (KeyError, ValueError, TypeError, AttributeError, BadName, BadOption, BadEnvelope) as error:
        raise BadEnvelope(
            f"what stands for schedule {name} is none: {type(error).__name__} {error}"
        ) from error


def format_exact(at: datetime) -> str:
    """A moment in UTC, to the microsecond."""
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
