"""A job as a message: what to run goes into one header, the arguments are the body.

    Jsq-Job:   {"v":1,"task":"emails.send","retries":5}     what is left out, the task's declaration says
    Jsq-Again: 1 0 4711                                     failures, crashes, and the event this builds on

The id, the queue and the priority are in the subject. A reader passes over fields it does not know and
refuses a higher version, so workers of two releases can run side by side.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pydantic_core import from_json, to_json

from jsq.errors import BadEnvelope, BadName, BadOption, NewerEnvelope
from jsq.job import DEFAULT_QUEUE, Job, Options, Priority, check_task
from jsq.retry import Backoff

VERSION = 1
JOB = "Jsq-Job"
AGAIN = "Jsq-Again"


def seal(job: Job) -> dict[str, str]:
    """The headers of a job's message; its body is `job.arguments`."""
    order: dict[str, Any] = {"v": VERSION, "task": job.task}
    if job.headers:
        order["headers"] = dict(job.headers)
    if job.tags:
        order["tags"] = list(job.tags)
    if job.backoff is not None:
        order["backoff"] = asdict(job.backoff)
    for name in ("retries", "timeout", "keep_result"):
        value = getattr(job, name)
        if value is not None:
            order[name] = value
    headers = {JOB: escaped(to_json(order))}
    if job.failures or job.crashes or job.after:
        headers[AGAIN] = f"{job.failures} {job.crashes} {job.after}"
    return headers


def unseal(
    headers: Mapping[str, str] | None,
    payload: bytes,
    *,
    id: str,
    queue: str = DEFAULT_QUEUE,
    priority: Priority = "normal",
) -> Job:
    """Read a job. Raises `BadEnvelope` for what is none, `NewerEnvelope` for a later release's."""
    try:
        order = from_json((headers or {})[JOB])
        version = order["v"]
        if version > VERSION:
            raise NewerEnvelope(
                f"job {id} has envelope version {version}; this release reads up to {VERSION}"
            )
        failures, crashes, after = map(count, (headers or {}).get(AGAIN, "0 0 0").split())
        # What a submit would refuse is no job either: a worker could not run it.
        options = Options(
            headers=order.get("headers", {}),
            tags=tuple(order.get("tags", ())),
            retries=order.get("retries"),
            backoff=read_backoff(order.get("backoff")),
            timeout=order.get("timeout"),
            keep_result=order.get("keep_result"),
        )
        return Job(
            id=id,
            task=check_task(order["task"]),
            queue=queue,
            priority=priority,
            arguments=payload,
            headers=options.headers,
            tags=options.tags,
            retries=options.retries,
            backoff=options.backoff,
            timeout=options.timeout,
            keep_result=options.keep_result,
            failures=failures,
            crashes=crashes,
            after=after,
        )
    except (KeyError, ValueError, TypeError, AttributeError, BadName, BadOption) as error:
        raise BadEnvelope(
            f"message {id} on queue {queue} is not a job: {type(error).__name__} {error}"
        ) from error


def count(digits: str) -> int:
    if not digits.isdecimal():
        raise ValueError(f"{AGAIN} holds no counts")
    return int(digits)


def read_backoff(found: dict[str, Any] | None) -> Backoff | None:
    if found is None:
        return None
    known = {name: found[name] for name in ("shape", "base", "factor", "ceiling") if name in found}
    return Backoff(**known, steps=tuple(found.get("steps", ())))


def escaped(text: bytes) -> str:
    """JSON in ASCII, as a header wants it."""
    return "".join(c if c < "\x7f" else _escape(c) for c in text.decode())


def _escape(character: str) -> str:
    code = ord(character)
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
