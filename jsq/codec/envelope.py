"""A job as a message: what to run goes into one header, the arguments are the body.

    Jsq-Job:   {"v":1,"task":"emails.send","retries":5}     what is left out, the task's declaration says
    Jsq-Again: 1 0 4711                                     failures, crashes, and the event this builds on
    Jsq-Home: emails 3                                      its own queue, and the crashes it left it for
    Jsq-Deadline: +30                                       seconds from being put on the queue, or a moment

The id, the queue and the priority are in the subject. A reader passes over fields it does not know and
refuses a higher version, so workers of two releases can run side by side.
"""

import functools
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from pydantic_core import from_json, to_json

from jsq.codec.events import moment, rfc3339
from jsq.errors import BadEnvelope, BadName, BadOption, NewerEnvelope, seconds
from jsq.job import DEFAULT_QUEUE, Job, Options, Priority, check_queue, check_task
from jsq.retry import Backoff

VERSION = 1
JOB = "Jsq-Job"
AGAIN = "Jsq-Again"
HOME = "Jsq-Home"
DEADLINE = "Jsq-Deadline"


def seal(job: Job) -> dict[str, str]:
    """The headers of a job's message; its body is `job.arguments`."""
    headers = {JOB: order_of(job)}
    if job.failures or job.crashes or job.after:
        headers[AGAIN] = f"{job.failures} {job.crashes} {job.after}"
    if job.quarantine:
        headers[HOME] = f"{job.queue} {job.forgiven}"
    if job.deadline is not None:
        headers[DEADLINE] = written_deadline(job.deadline)
    return headers


def order_of(job: Job) -> str:
    """What to run, as JSON. Many jobs have the same order: it is written once for all of them."""
    if job.headers:
        return written(job)
    return _written_once(job.task, tuple(job.tags), job.retries, job.backoff, job.timeout, job.keep_result)


@functools.lru_cache(maxsize=1024)
def _written_once(
    task: str,
    tags: tuple[str, ...],
    retries: int | None,
    backoff: Backoff | None,
    timeout: float | None,
    keep_result: float | None,
) -> str:
    return written(
        Job("", task, tags=tags, retries=retries, backoff=backoff, timeout=timeout, keep_result=keep_result)
    )


def written(job: Job) -> str:
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
    return escaped(to_json(order))


def unseal(
    headers: Mapping[str, str] | None,
    payload: bytes,
    *,
    id: str,
    queue: str = DEFAULT_QUEUE,
    priority: Priority = "normal",
) -> Job:
    """Read a job from the queue where its message stands.

    Raises `BadEnvelope` for what is none, `NewerEnvelope` for a later release's.
    """
    try:
        found = headers or {}
        version, task, options = read_order(found[JOB])
        if version > VERSION:
            raise NewerEnvelope(
                f"job {id} has envelope version {version}; this release reads up to {VERSION}"
            )
        again = found.get(AGAIN)
        failures, crashes, after = map(count, again.split()) if again is not None else (0, 0, 0)
        home, forgiven = home_of(found.get(HOME), queue)
        return Job(
            id,
            task,
            home,
            priority,
            payload,
            dict(options.headers),
            options.tags,
            options.retries,
            options.backoff,
            options.timeout,
            options.keep_result,
            failures,
            crashes,
            after,
            queue if home != queue else "",
            forgiven,
            read_deadline(found.get(DEADLINE)),
        )
    except (KeyError, ValueError, TypeError, AttributeError, BadName, BadOption) as error:
        raise BadEnvelope(
            f"message {id} on queue {queue} is not a job: {type(error).__name__} {error}"
        ) from error


@functools.lru_cache(maxsize=1024)
def read_order(text: str) -> tuple[int, str, Options]:
    """Version, task and options of an order; once for all jobs that have the same one.

    Of a later release's only the version is told. Raises what pydantic and `jsq.job` raise.
    """
    order = from_json(text)
    version = order["v"]
    if version > VERSION:
        return version, "", Options()
    if isinstance(version, bool) or version < 1:
        raise ValueError(f"there is no version {version!r}")
    # What a submit would refuse is no job either: a worker could not run it.
    return (
        version,
        check_task(order["task"]),
        Options(
            headers=order.get("headers", {}),
            tags=tuple(order.get("tags", ())),
            retries=order.get("retries"),
            backoff=read_backoff(order.get("backoff")),
            timeout=order.get("timeout"),
            keep_result=order.get("keep_result"),
        ),
    )


def written_deadline(deadline: float | datetime) -> str:
    return rfc3339(deadline) if isinstance(deadline, datetime) else f"+{deadline:.3f}"


def read_deadline(text: str | None) -> float | datetime | None:
    if text is None:
        return None
    if text.startswith("+"):
        return seconds("deadline", float(text[1:]))
    return moment(text)


def count(digits: str) -> int:
    if not digits.isdecimal():
        raise ValueError(f"{digits!r} is no count")
    return int(digits)


def home(headers: Mapping[str, str], queue: str) -> str:
    """The queue that a job was submitted to whose message stands on `queue`, which may be a quarantine."""
    try:
        return home_of(headers.get(HOME), queue)[0]
    except (BadName, ValueError):
        return queue


def home_of(told: str | None, queue: str) -> tuple[str, int]:
    """A job's own queue, and the crashes it was forgiven; by the header, or as it stands on a queue."""
    if told is None:
        return queue, 0
    home, forgiven = told.split()
    return check_queue(home), count(forgiven)


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
