"""What can go wrong, as a tree.

    JsqError
        UsageError    the call cannot work: mend the call
        BrokerError   NATS could not: mend the server, or try again
        JobError      the job gave no result

`Retry`, `Snooze`, `RateLimited` and `Reject` are signals that a task raises, not errors.
Each message says what is wrong, names the thing, and offers the cure.
"""

import operator
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeAlias

Duration: TypeAlias = float | timedelta | str
"""How users write a duration: seconds, a `timedelta`, or text such as `"250ms"`, `"5m"`, `"1h30m"`."""


class JsqError(Exception):
    """The root of all that jsq raises.

    `retryable` tells of every error whether the same call, made again later and with nothing mended, may
    succeed.
    """

    retryable = False


# -- the call cannot work -------------------------------------------------------------------------------


class UsageError(JsqError):
    """The call cannot work as it was written."""


class BadName(UsageError):
    """A queue, task, job id, namespace or header is named with what no name may hold."""

    def __init__(self, kind: str, name: object, rule: str) -> None:
        super().__init__(f"{display(name)} cannot be the name of a {kind}: {rule}")
        self.kind = kind
        self.name = name


class BadOption(UsageError):
    """An option has a value that it cannot have."""

    def __init__(self, field: str, value: object, rule: str) -> None:
        super().__init__(f"{field} cannot be {display(value)}: {rule}")
        self.field = field
        self.value = value
        self.rule = rule

    def __reduce__(self) -> tuple[type["BadOption"], tuple[str, object, str]]:
        return type(self), (self.field, self.value, self.rule)


class BadArguments(UsageError):
    """The arguments do not fit the task, or cannot be sent; `place` tells which of many calls is wrong."""

    def __init__(self, message: str, place: int = 0) -> None:
        super().__init__(message)
        self.place = place


class NoSuchMethod(UsageError, AttributeError):
    """The object has no such method; the message names the one to call instead."""


class BadEnvelope(UsageError):
    """A message on a queue's subject is not a job."""


class NewerEnvelope(UsageError):
    """A job was sealed by a later release of jsq than this one can read."""


class BadResult(UsageError):
    """What a task returned cannot be kept: not serialisable, or too large."""


class UnknownTask(UsageError):
    """No task of that name is declared on this app; `wanted` tells what asks for it."""

    def __init__(self, name: str, wanted: str = "") -> None:
        told = f"{wanted}: " if wanted else ""
        super().__init__(f"{told}no task is named {display(name)}; was its module imported?")
        self.name = name
        self.wanted = wanted


class TaskExists(UsageError):
    """Two functions are declared under one task name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"a task named {name!r} is declared already; give one of them another name=")
        self.name = name


class JobNotFound(UsageError):
    """No job of that id is known: never submitted, or its record has expired."""

    def __init__(self, id: str) -> None:
        super().__init__(
            f"no job is known by the id {display(id)}: never submitted, or its record has expired"
        )
        self.id = id


class ScheduleNotFound(UsageError):
    """No schedule of that name is known."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no schedule is named {display(name)}; `jsq schedule ls` lists those there are")
        self.name = name


class QueueNotFound(UsageError):
    """No queue of that name is there: it was never declared, and no job submitted to it."""

    def __init__(self, queue: str) -> None:
        super().__init__(f"there is no queue {queue}; `jsq queue ls` lists those there are")
        self.queue = queue


class QueueNotEmpty(UsageError):
    """The queue cannot be removed: it holds `jobs` that have not ended, or `schedules`."""

    def __init__(self, queue: str, jobs: int, schedules: Sequence[str] = ()) -> None:
        held = [count_noun(jobs, "job")] if jobs else []
        held += [f"{count_noun(len(schedules), 'schedule')} ({', '.join(schedules)})"] if schedules else []
        cure = "remove these first, or the queue and all that it holds with force (`--force`)"
        super().__init__(f"queue {queue} holds {' and '.join(held)}; {cure}")
        self.queue, self.jobs, self.schedules = queue, jobs, tuple(schedules)


class WrongState(UsageError):
    """The job's state does not allow what was asked."""

    def __init__(self, id: str, state: str, asked: str) -> None:
        super().__init__(f"job {id} is {state}: it cannot be {asked}")
        self.id = id
        self.state = state


class ArgumentsNotKept(WrongState):
    """A job that has ended cannot run again: its record does not hold its arguments."""

    def __init__(self, id: str, state: str, why: str) -> None:
        super().__init__(id, state, f"run again: its record does not hold its arguments ({why})")
        self.why = why

    def __reduce__(self) -> tuple[type["ArgumentsNotKept"], tuple[str, str, str]]:
        return type(self), (self.id, self.state, self.why)


class DuplicateJob(UsageError):
    """The unique key of a submit is held by another job, `id`, and `on_duplicate` says to raise."""

    def __init__(self, task: str, id: str) -> None:
        super().__init__(f"{task}: job {id} holds this unique key; it was not submitted again")
        self.task = task
        self.id = id

    def __reduce__(self) -> tuple[type["DuplicateJob"], tuple[str, str]]:
        return type(self), (self.task, self.id)


class CannotChange(UsageError):
    """A live queue cannot take a setting; the message says what to do."""


# -- NATS could not -------------------------------------------------------------------------------------


class BrokerError(JsqError):
    """NATS could not do what was asked."""


class BrokerUnavailable(BrokerError):
    """No server answers: none at the address, or none in time.

    It is not `retryable` if the address, the TLS settings or a missing package are the reason.
    """

    retryable = True

    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


class SubmitUnknown(BrokerError):
    """The server did not say whether it stored the job; submitting again with this id is safe."""

    retryable = True

    def __init__(self, id: str, seconds: float, why: str = "") -> None:
        told = f" ({why})" if why else ""
        super().__init__(
            f"nobody answered within {seconds:g} s whether job {id} was stored{told}; submit again with "
            f"id={id!r}: it will not be stored twice"
        )
        self.id = id


class BulkUnknown(BrokerError):
    """Nobody told in time whether the jobs stand that were to be stored all or none; `ids` has their ids."""

    retryable = True

    def __init__(self, ids: Sequence[str], seconds: float, why: str = "") -> None:
        told = f" ({why})" if why else ""
        super().__init__(
            f"nobody answered within {seconds:g} s whether the {len(ids):,} jobs of a bulk stand{told}; "
            "submit the same calls again with ids=error.ids: none will be stored twice",
        )
        self.ids = tuple(ids)


class NotAllowed(BrokerError):
    """The server refused the login, or the user lacks a permission."""


class JetStreamOff(BrokerError):
    """The server, or this account, has no JetStream."""


class ServerTooOld(BrokerError):
    """The server lacks what jsq needs."""


class ForeignStream(BrokerError):
    """A stream, or its subjects, belong to someone else."""


class QueueFull(BrokerError):
    """The queue has no room: one of its own limits is reached. Nothing was stored.

    `limit` is `max_jobs` or `max_bytes`, `value` what it is set to, where that is known.
    """

    retryable = True

    def __init__(self, queue: str, limit: str, value: int | None = None) -> None:
        shown = "" if value is None else f", {value:,},"
        super().__init__(
            f"queue {queue} is full: its {limit}{shown} is reached; try again later, wait for room "
            f"(wait_for_room), or raise its {limit}"
        )
        self.queue = queue
        self.limit = limit
        self.value = value


class BrokerFull(BrokerError):
    """The server, or this account, has no room left: in memory, on disk, or for one more stream.

    Nothing was stored. Jobs that are there go on; what their workers have to record waits for room.
    """

    retryable = True


class PartlySubmitted(BrokerError):
    """Of many jobs some were stored, and some were not or may not have been.

    `stored` has the ids of the first, `refused` the errors of the others by their place in what was given,
    counted from 0.
    """

    retryable = True

    def __init__(self, stored: Sequence[str], refused: Mapping[int, JsqError]) -> None:
        place, first = min(refused.items(), key=operator.itemgetter(0))
        super().__init__(
            f"{len(stored):,} of {len(stored) + len(refused):,} jobs were stored; the first that was not has "
            f"the place {place:,}: {first}"
        )
        self.stored = tuple(stored)
        self.refused = dict(refused)


class Refused(BrokerError):
    """The server refused a request, with a reason that has no class of its own; `code` is JetStream's."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


# -- the job gave no result -----------------------------------------------------------------------------


class JobError(JsqError):
    """The job gave no result."""


class JobFailed(JobError):
    """The job failed for good.

    `reason` is one of `jsq.model.event.REASONS`; `error` is the type and message of the exception as text,
    and `traceback` its traceback. An exception is never rebuilt from a message. `fallback` is the id of the
    job that was submitted in its place, if its task has a fallback.
    """

    def __init__(self, id: str, reason: str, error: str, traceback: str = "", fallback: str = "") -> None:
        instead = f"; job {fallback} was submitted in its place" if fallback else ""
        super().__init__(f"job {id} failed ({reason}): {error}{instead}")
        self.fallback = fallback
        self.id = id
        self.reason = reason
        self.error = error
        self.traceback = traceback


class JobCancelled(JobError):
    """The job was cancelled."""

    def __init__(self, id: str) -> None:
        super().__init__(f"job {id} was cancelled")
        self.id = id


class JobExpired(JobError):
    """The job's deadline came before its success, or nobody began it by when it expires."""

    def __init__(self, id: str, error: str) -> None:
        super().__init__(f"job {id} has expired: {error}")
        self.id = id
        self.error = error


class ResultGone(JobError):
    """The job succeeded, but its result was not kept (`keep_result=0`)."""

    def __init__(self, id: str) -> None:
        super().__init__(f"job {id} succeeded, but its result was not kept; submit it with keep_result")
        self.id = id


class ResultTimeout(JobError, TimeoutError):
    """The job was not finished in time. It goes on."""

    retryable = True

    def __init__(self, id: str, seconds: float) -> None:
        super().__init__(f"job {id} was not finished within {seconds:g} s; it goes on")
        self.id = id


class StepUnknown(JobError):
    """A step was begun, and its end is not known: its effect may have happened, or not.

    A job that lets it pass fails, for no other attempt could know more. `attempt` is the one that began the
    step, `error` what it raised there, as text; empty if it came to no end.
    """

    def __init__(self, id: str, step: str, attempt: int, error: str = "") -> None:
        end = f"raised {error}" if error else "came to no end that is known"
        super().__init__(
            f"step {step} of job {id} was begun by attempt {attempt} and {end}: whether its effect happened "
            'is not known; look, then take it with unknown="run" or unknown="skip"'
        )
        self.id = id
        self.step = step
        self.attempt = attempt
        self.error = error


class LeaseLost(JobError):
    """The worker went silent for longer than the lease: the job belongs to another by now."""


# -- signals a task raises ------------------------------------------------------------------------------


class Retry(Exception):
    """Try this job again, after `delay` seconds or as the task's backoff says. Spends one of its retries."""

    delay: float | None = None  # a subclass may leave our __init__ out

    def __init__(self, reason: str = "", *, delay: Duration | None = None) -> None:
        super().__init__(reason)
        self.delay = seconds("delay", delay)


class Snooze(Exception):
    """Put this job off for `delay` seconds. Spends no retry."""

    delay: float = 0.0

    def __init__(self, delay: Duration, reason: str = "") -> None:
        super().__init__(reason)
        self.delay = seconds("delay", delay) or 0.0


class RateLimited(Snooze):
    """Something that this job needs takes no more for now, as a service that answers with 429.

    The job is put off for `retry_after` seconds and spends no retry; as long, the other jobs of its key are
    held, or those of its queue where it has no key.
    """

    def __init__(self, retry_after: Duration, reason: str = "") -> None:
        self.retry_after = seconds("retry_after", retry_after, least=0.001) or 0.0
        super().__init__(self.retry_after, reason)


class Reject(Exception):
    """This job can never succeed: fail it now, without another try."""


MAX_DURATION = 366 * 86_400.0
"""The longest duration taken anywhere, in seconds: a year and a day."""

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
"""The units of a duration as text, in seconds."""

_part = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)", re.ASCII)
_duration = re.compile(rf"(?:{_part.pattern})+", re.ASCII)
_number = re.compile(r"\d+(?:\.\d+)?", re.ASCII)


def parse_duration(text: str) -> float | None:
    """Seconds, from `90`, `1.5`, `250ms`, `5m`, `1h30m`, `2d`; None for any other text."""
    if _number.fullmatch(text):
        return float(text)
    if not _duration.fullmatch(text):
        return None
    return sum(float(number) * UNITS[unit] for number, unit in _part.findall(text))


def seconds(field: str, value: Duration | None, *, least: float = 0.0) -> float | None:
    """A duration as seconds. Raises `BadOption` unless it lies between `least` and `MAX_DURATION`."""
    number: Any = value
    if isinstance(value, timedelta):
        number = value.total_seconds()
    elif isinstance(value, str):
        number = parse_duration(value)
    if value is not None and not is_seconds(number, least):
        raise BadOption(field, value, duration_rule(least))
    return None if value is None else float(number)


def check_seconds(field: str, value: float | None, *, least: float = 0.0) -> None:
    """Raises `BadOption` for a number of seconds that is not between `least` and `MAX_DURATION`."""
    if value is not None and not is_seconds(value, least):
        raise BadOption(field, value, duration_rule(least))


def check_moment(field: str, moment: datetime | None) -> datetime | None:
    """Returns the moment. Raises `BadOption` for one without a time zone."""
    if moment is not None and (not isinstance(moment, datetime) or moment.utcoffset() is None):
        raise BadOption(field, moment, "it takes a datetime with a time zone")
    return moment


def duration_rule(least: float) -> str:
    limits = f"seconds from {least:g} to {MAX_DURATION:.10g}"
    return f"it takes {limits}, a timedelta, or text such as 30s, 5m, 1h30m"


def is_seconds(value: object, least: float) -> bool:
    """Whether a value is a number from `least` to `MAX_DURATION`."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and least <= value <= MAX_DURATION  # type: ignore[operator]  # it is a number


def display(value: object) -> str:
    """A value for a message: short, and named by its type where its `repr` raises."""
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    try:
        return shorten(repr(value))
    except Exception:  # a user's __repr__ may do anything
        return f"<{type(value).__name__}>"


def shorten(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def count_noun(number: int, noun: str) -> str:
    """A number of things, in words: `1 job`, `2 queries`."""
    if number == 1:
        return f"{number:,} {noun}"
    return f"{number:,} {noun[:-1]}ies" if noun.endswith("y") else f"{number:,} {noun}s"
