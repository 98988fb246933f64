"""A revision of a job's record as JSON. Empty fields are left out; times are those of the server.

A revision begins with its state, so that a subscriber can recognise a final one without decoding it. The
times of submit and start are milliseconds since the epoch, because they are written for each job.
"""

import contextlib
import hashlib
import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from pydantic_core import from_json, to_json

from jsq.errors import BadEnvelope
from jsq.model.job import Job
from jsq.model.revision import MAX_RECORD_ARGUMENTS, DeliveryInfo, Revision, parent_of, revision_headers

_plain = (
    *("state", "task", "attempt", "failures", "crashes", "worker", "message", "delivery", "token"),
    *("reason", "error", "traceback", "text", "has_result", "quarantine", "forgiven_crashes", "key"),
    *("callbacks_pending", "fallback", "interruptions", "priority", "arguments_size", "arguments_hash"),
    *("separate_result", "result_dropped", "parent"),
)
_values = operator.attrgetter(*_plain)
_stamps = ("submitted", "started", "first_started")
_moments = ("due", "expires", "retry_until")
_held: tuple[tuple[str, Callable[..., object]], ...] = (("tags", list), ("headers", dict), ("options", dict))


def encode(event: Revision) -> bytes:
    """Encode a revision."""
    written: dict[str, Any] = {
        name: value for name, value in zip(_plain, _values(event), strict=True) if value
    }
    for name in _stamps:
        moment = getattr(event, name)
        if moment is not None:
            written[name] = milliseconds(moment.timestamp())
    if event.progress is not None:
        written["progress"] = event.progress
    for name in _moments:
        moment = getattr(event, name)
        if moment is not None:
            written[name] = format_time(moment)
    for name, kind in _held:
        if held := getattr(event, name):
            written[name] = kind(held)
    if event.has_arguments:
        written["arguments"] = event.arguments
    if event.has_result and not event.separate_result:
        written["result"] = event.result
    return to_json(written)


def encode_running(job: Job, current: DeliveryInfo, submitted: int, started: int) -> bytes:
    """The revision of an attempt that starts: the same as from `encode`, at a fifth of the cost.

    `submitted` and `started` are milliseconds since the epoch.
    """
    before = f',"failures":{job.failures}' if job.failures else ""
    if job.crashes:
        before += f',"crashes":{job.crashes}'
    if job.interruptions:
        before += f',"interruptions":{job.interruptions}'
    body = (
        f'{{"state":"running","task":"{job.task}","attempt":{job.attempt}{before},"worker":"{current.worker}",'
        f'"message":{current.message},"delivery":{current.delivery},'
        f'"submitted":{submitted},"started":{started}'
    ).encode()
    if job.first_started:
        body += f',"first_started":{job.first_started}'.encode()
    if job.priority != "normal":
        body += f',"priority":"{job.priority}"'.encode()
    if job.quarantine:
        body += f',"quarantine":"{job.quarantine}","forgiven_crashes":{job.forgiven_crashes}'.encode()
    if job.key:
        body += b',"key":' + to_json(job.key)
    if job.expires is not None:
        body += f',"expires":"{format_time(job.expires)}"'.encode()
    if job.headers:
        body += b',"headers":' + to_json(revision_headers(job.headers))
    if job.retry_until is not None or job.flow:
        body += rare_members(job)
    return body + b',"tags":' + to_json(list(job.tags)) + b"}" if job.tags else body + b"}"


def rare_members(job: Job) -> bytes:
    """The members of a start for the end of the retry window, and for the workflow of a node."""
    body = b""
    if job.retry_until is not None:
        body += f',"retry_until":"{format_time(job.retry_until)}"'.encode()
    if parent := parent_of(job.flow):
        body += b',"parent":' + to_json(parent)
    return body


def running_format(job: Job, worker: str) -> bytes:
    """The output of `encode_running`, with `%d` for the numbers that differ from job to job.

    They are the sequence of the message, the number of the delivery, and the times of submit and start.
    """
    numbers = message, delivery, submitted, started = tuple(10**18 + place for place in range(4))
    body = encode_running(job, DeliveryInfo(worker, message, delivery), submitted, started)
    body = body.replace(b"%", b"%%")
    for number in numbers:
        body = body.replace(str(number).encode(), b"%d", 1)
    return body


def encode_succeeded(running: bytes, token: int, arguments: bytes, result: bytes) -> bytes:
    """The revision of an attempt that started as `running` and succeeded.

    `arguments` are members as `argument_members` gives them. `result` is JSON of the form `{"result": ...}`,
    or `SEPARATE_RESULT`; if it is empty, no result is kept.
    """
    end = b',"has_result":true,' + result[1:] if result else b"}"
    return b'{"state":"succeeded",%b,"token":%d%b%b' % (running[_AFTER_STATE:-1], token, arguments, end)


def encode_renewed(running: bytes, token: int) -> bytes:
    """The revision that renews the record of an attempt that started as `running`, with its token."""
    return b'%b,"token":%d}' % (running[:-1], token)


SEPARATE_RESULT = b'{"separate_result":true}'
"""The placeholder of a result that has a key of its own."""

_AFTER_STATE = len(b'{"state":"running",')


def argument_members(arguments: bytes) -> bytes:
    """The members for a job's arguments in a final record; the arguments must be valid JSON."""
    if len(arguments) <= _SURELY_FLAT or (
        len(arguments) <= MAX_RECORD_ARGUMENTS and not is_nested_too_deep(arguments)
    ):
        return b',"arguments":' + arguments
    return b',"arguments_size":%d,"arguments_hash":"%b"' % (
        len(arguments),
        arguments_hash(arguments).encode(),
    )


_SURELY_FLAT = 256
"""Bytes of JSON up to which it cannot be nested too deep for a record."""


def is_nested_too_deep(arguments: bytes) -> bool:
    """Whether JSON can be read alone, but not as a member of a record, one level deeper."""
    try:
        from_json(b"[%b]" % arguments)
    except ValueError:
        return True
    return False


def completed_member(text: str) -> bytes:
    """The members for the progress of a job that succeeded, with the text that it reported last."""
    return b',"progress":1.0,"text":' + to_json(text)


def dropped_member(why: str) -> bytes:
    """The member for the reason why the result of a job was dropped, in the record of its success."""
    return b',"result_dropped":' + to_json(why)


def option_member(options: Mapping[str, Any]) -> bytes:
    """The member for the options of a job's submit in a final record."""
    return b',"options":' + to_json(options) if options else b""


def without_arguments(event: Revision) -> Revision:
    """A revision of a job whose record must not hold its arguments."""
    return replace(event, has_arguments=False, arguments=None, arguments_size=0, arguments_hash="")


def with_arguments(event: Revision, arguments: bytes) -> Revision:
    """A final revision with a job's arguments; with their size and hash, if they are large or not JSON.

    Arguments that are nested too deep for a record are treated in the same way.
    """
    if len(arguments) <= MAX_RECORD_ARGUMENTS:
        with contextlib.suppress(ValueError):
            (value,) = from_json(b"[%b]" % arguments)  # one level deeper, as in the record
            return replace(event, has_arguments=True, arguments=value)
    return replace(event, arguments_size=len(arguments), arguments_hash=arguments_hash(arguments))


def with_whole_arguments(event: Revision, arguments: bytes) -> Revision:
    """A revision with a job's arguments, of any size. Raises `ValueError` if they are nested too deep."""
    (value,) = from_json(b"[%b]" % arguments)
    return replace(event, has_arguments=True, arguments=value)


def arguments_hash(arguments: bytes) -> str:
    return hashlib.sha256(arguments).hexdigest()


def decode(payload: bytes) -> Revision:
    """Decode a revision. Raises `BadEnvelope`."""
    try:
        found = from_json(payload)
        moments: dict[str, Any] = {name: parse_time(found[name]) for name in _moments if name in found}
        moments |= {name: moment_of(found[name]) for name in _stamps if found.get(name)}
        return Revision(
            **{name: found[name] for name in _plain if name in found},
            progress=found.get("progress"),
            tags=tuple(found.get("tags", ())),
            headers=found.get("headers", {}),
            options=found.get("options", {}),
            has_arguments="arguments" in found,
            arguments=found.get("arguments"),
            result=found.get("result"),
            **moments,
        )
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise BadEnvelope(f"not a record of a job: {error}") from error


def format_time(at: datetime) -> str:
    """A time in UTC to the millisecond, in the form of schedules and records."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(text: str) -> datetime:
    """Parse a time of the server or of a record, which may have nine digits of a second."""
    return datetime.fromisoformat(text[:26].rstrip("Z") + "+00:00").astimezone(UTC)


def moment_of(stamp: int) -> datetime:
    """A time in UTC from milliseconds since the epoch."""
    return datetime.fromtimestamp(stamp / 1000, UTC)


def milliseconds(seconds: float) -> int:
    return round(1000 * seconds)
