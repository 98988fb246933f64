"""A job as a message: one header has the order (what to run), and the body has the arguments.

    Jsq-Job: {"v":1,"task":"send","retries":5}        the task and the options that the submit gave.
    Jsq-Attempts: 1 0 4711                            failures, crashes, and the revision it builds on.
    Jsq-Origin-Queue: emails 3                        its own queue, and its crashes there.
    Jsq-Deadline: +30                                 seconds from being put on the queue, or a time.
    Jsq-Key: normal 1 "tenant-7"                      its priority, `per_key` (- for none), and its key.
    Jsq-Group-Slot: strict tenant-7 1795609959.772    its slot, the token of its key, and since when.
    Jsq-Expires: 2030-12-31T18:00:00.000Z             the latest start.
    Jsq-Retry-Until: 2026-11-25T10:00:00.000Z         when its retry window closes.
    Jsq-Callback-Of: 06c5...                          the job that this one is a callback of.
    Jsq-Unique: 5f0c...                               the key for which another may wait for its end.
    Jsq-Interruptions: 1                              how many stopping workers handed it back.
    Jsq-Submitted: 1795609959772                      when, if this message is not the first of the job.
    Jsq-First-Started: 1795609960103                  when its first attempt started, for a later one.
    Jsq-Flow: default 06c5...                         the workflow of a node: its queue, and its id's token.

The id, the queue and the priority are in the subject. A reader ignores unknown fields and refuses a higher
version, so workers of two releases can run side by side.
"""

import contextlib
import functools
import operator
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from pydantic_core import from_json, to_json

from jsq.codec.revisions import format_time, milliseconds, parse_time
from jsq.codec.subject_token import decode_token, encode_token
from jsq.errors import BadEnvelope, BadName, BadOption, NewerEnvelope
from jsq.model.durations import seconds
from jsq.model.job import DEFAULT_QUEUE, PRIORITIES, Job, Priority, check_id, check_queue, check_task
from jsq.model.key_group import SLOT_KINDS, SlotKind, check_key
from jsq.model.options import ENVELOPE_OPTIONS, RARE_OPTIONS, Options
from jsq.model.retry import Backoff
from jsq.model.revision import Revision, StoredRevision

ENVELOPE_VERSION = 1
JOB = "Jsq-Job"
ATTEMPTS = "Jsq-Attempts"
ORIGIN_QUEUE = "Jsq-Origin-Queue"
DEADLINE = "Jsq-Deadline"
KEY = "Jsq-Key"
GROUP_SLOT = "Jsq-Group-Slot"
EXPIRES = "Jsq-Expires"
RETRY_UNTIL = "Jsq-Retry-Until"
CALLBACK_OF = "Jsq-Callback-Of"
UNIQUE = "Jsq-Unique"
INTERRUPTIONS = "Jsq-Interruptions"
SUBMITTED = "Jsq-Submitted"
FIRST_STARTED = "Jsq-First-Started"
FLOW = "Jsq-Flow"

ORDER_OPTIONS = (*ENVELOPE_OPTIONS[2:], "rare")
"""The fields of a job for its options besides headers and tags: each option is written under its own name."""

RECORDED_OPTIONS = (*ORDER_OPTIONS, "per_key")
"""The fields of a job for the options of a submit that a record holds, if it has no field for them."""

_RARE = frozenset(
    {
        ATTEMPTS,
        ORIGIN_QUEUE,
        DEADLINE,
        KEY,
        GROUP_SLOT,
        EXPIRES,
        RETRY_UNTIL,
        CALLBACK_OF,
        UNIQUE,
        INTERRUPTIONS,
        SUBMITTED,
        FIRST_STARTED,
        FLOW,
    }
)
"""Headers that most jobs do not have."""

MAX_DIGITS = 18
"""Maximum number of digits of a sequence: the server counts with 64 bits."""

_since = re.compile(r"\d{1,12}(\.\d{1,9})?", re.ASCII)

_order_options_of = operator.attrgetter(*ORDER_OPTIONS)


def encode(job: Job) -> dict[str, str]:
    """The headers of a job's message; its body is `job.arguments`."""
    headers = {JOB: encode_order(job)}
    if job.previous_sequence or job.failures or job.crashes or job.interruptions:
        headers |= attempt_headers(job)
    if job.quarantine:
        headers[ORIGIN_QUEUE] = f"{job.queue} {job.forgiven_crashes}"
    if job.deadline is not None:
        headers[DEADLINE] = format_deadline(job.deadline)
    if job.key:
        headers[KEY] = f"{job.priority} {job.per_key or '-'} {ascii_json(to_json(job.key))}"
        if job.group_slot is not None:
            headers[GROUP_SLOT] = f"{job.group_slot} {job.key_token}"
    if job.expires is not None:
        headers[EXPIRES] = format_time(job.expires)
    if job.retry_until is not None:
        headers[RETRY_UNTIL] = format_time(job.retry_until)
    origin = encode_token(job.callback_of) if job.callback_of else ""
    rare = (CALLBACK_OF, origin), (UNIQUE, job.unique), (SUBMITTED, job.submitted)
    for name, value in (*rare, (FIRST_STARTED, job.first_started), (FLOW, format_flow(job.flow))):
        if value:
            headers[name] = str(value)
    return headers


def attempt_headers(job: Job) -> dict[str, str]:
    """The headers about earlier attempts. Interruptions are apart: the first release reads three numbers."""
    headers = {}
    if job.previous_sequence or job.failures or job.crashes:
        headers[ATTEMPTS] = f"{job.failures} {job.crashes} {job.previous_sequence}"
    if job.interruptions:
        headers[INTERRUPTIONS] = str(job.interruptions)
    return headers


def encode_order(job: Job) -> str:
    """The order as JSON. Many jobs have the same order, so it is encoded once for all of them."""
    if job.headers:
        return order_json(job)
    return _written_once(job.task, tuple(job.tags), _order_options_of(job))


@functools.lru_cache(maxsize=1024)
def _written_once(task: str, tags: tuple[str, ...], asked: tuple[Any, ...]) -> str:
    return order_json(Job("", task, tags=tags, **dict(zip(ORDER_OPTIONS, asked, strict=True))))


def order_json(job: Job) -> str:
    order: dict[str, Any] = {"v": ENVELOPE_VERSION, "task": job.task}
    if job.headers:
        order["headers"] = dict(job.headers)
    if job.tags:
        order["tags"] = list(job.tags)
    return ascii_json(to_json(order | given_options(job, ORDER_OPTIONS)))


def recorded_options(job: Job) -> dict[str, Any]:
    """The options of a submit for the record, by their names, as in the order."""
    return given_options(job, RECORDED_OPTIONS)


def recorded_job(found: StoredRevision) -> Job:
    """A job for a new run, from a revision of its record that holds its arguments.

    The job builds on that revision. Raises `ValueError`, `TypeError` or `BadOption` for options that this
    release cannot read.
    """
    event = found.revision
    options: dict[str, Any] = {
        name: value for name, value in event.options.items() if name in (*RECORDED_OPTIONS, *RARE_OPTIONS)
    }
    if "backoff" in options:
        options["backoff"] = parse_backoff(options["backoff"])
    per_key = options.pop("per_key", None)
    checked = Options(**options)
    return Job(
        found.job,
        event.task,
        found.queue,
        read_priority(event.priority),
        to_json(event.arguments),
        previous_sequence=found.sequence,
        key=event.key,
        per_key=per_key,
        submitted=milliseconds(event.submitted.timestamp()) if event.submitted else 0,
        first_started=first_start(event),
        headers=dict(event.headers),
        tags=event.tags,
        **checked.job_fields,
    )


def first_start(event: Revision) -> int:
    """When the first attempt of a job started, in milliseconds since the epoch, by a revision; else 0."""
    first = event.first_started or event.started
    return milliseconds(first.timestamp()) if first is not None else 0


def edited_order(found: StoredRevision) -> Job:
    """The order of an edited job, from the record alone."""
    return edited_job(Job(found.job, found.revision.task, found.queue), found)


def edited_job(job: Job, found: StoredRevision) -> Job:
    """A job as its last edit recorded it, from its older message."""
    event, known = found.revision, recorded_job(found)
    deadline = event.options.get("deadline")
    return replace(
        known,
        arguments=known.arguments if event.has_arguments else job.arguments,
        keep_arguments=job.keep_arguments if known.keep_arguments is None else known.keep_arguments,
        deadline=parse_time(deadline) if deadline else job.deadline,
        expires=event.expires,
        retry_until=event.retry_until,
        quarantine=event.quarantine,
        forgiven_crashes=event.forgiven_crashes,
        callback_of=job.callback_of,
        unique=job.unique,
        submitted=known.submitted or job.submitted,
    )


def read_priority(text: str) -> Priority:
    """The priority in a record, which is left out if it is normal."""
    return text if text in PRIORITIES else "normal"


def given_options(job: Job, names: Iterable[str]) -> dict[str, Any]:
    """The options among `names` that a submit gave, as values for JSON."""
    given = ((name, getattr(job, name)) for name in names if name != "rare")
    written = {
        name: backoff_fields(value) if isinstance(value, Backoff) else value
        for name, value in given
        if value is not None and value != ""
    }
    return written if job.rare is None else written | job.rare.given


def decode(
    headers: Mapping[str, str] | None,
    payload: bytes,
    *,
    id: str,
    queue: str = DEFAULT_QUEUE,
    priority: Priority = "normal",
) -> Job:
    """Decode a job from the queue of its message.

    Raises `BadEnvelope` if it is not a job, `NewerEnvelope` if a later release encoded it.
    """
    try:
        found = headers or {}
        version, task, options = read_order(found[JOB])
        if version > ENVELOPE_VERSION:
            raise NewerEnvelope(
                f"job {id} has envelope version {version}; this release reads up to {ENVELOPE_VERSION}"
            )
        if _RARE.isdisjoint(found):
            return Job(id, task, queue, priority, payload, **own_options(options))
        rare = rare_fields(found, queue, priority)
        return Job(id, task, arguments=payload, **rare, **own_options(options))
    except (KeyError, ValueError, TypeError, AttributeError, BadName, BadOption) as error:
        raise BadEnvelope(
            f"message {id} on queue {queue} is not a job: {type(error).__name__} {error}"
        ) from error


def rare_fields(headers: Mapping[str, str], queue: str, priority: Priority) -> dict[str, Any]:
    """The fields of a job with rare headers. Raises errors that `decode` translates."""
    attempts = headers.get(ATTEMPTS)
    failures, crashes, previous = map(parse_count, attempts.split()) if attempts is not None else (0, 0, 0)
    origin, forgiven = parse_origin(headers.get(ORIGIN_QUEUE), queue)
    key, per_key, level = parse_key(headers) or ("", None, priority)
    return {
        "queue": origin,
        "priority": level,
        "failures": failures,
        "crashes": crashes,
        "previous_sequence": previous,
        "quarantine": queue if origin != queue else "",
        "forgiven_crashes": forgiven,
        "deadline": parse_deadline(headers.get(DEADLINE)),
        "key": key,
        "per_key": per_key,
        "group_slot": parse_group_slot(headers)[0],
        "expires": parse_time(headers[EXPIRES]) if EXPIRES in headers else None,
        "retry_until": parse_time(headers[RETRY_UNTIL]) if RETRY_UNTIL in headers else None,
        "callback_of": check_id(decode_token(headers[CALLBACK_OF])) if CALLBACK_OF in headers else "",
        "unique": parse_unique_hash(headers.get(UNIQUE, "")),
        "interruptions": parse_count(headers.get(INTERRUPTIONS, "0")),
        "submitted": parse_count(headers.get(SUBMITTED, "0")),
        "first_started": parse_count(headers.get(FIRST_STARTED, "0")),
        "flow": parse_flow(headers.get(FLOW, "")),
    }


@functools.lru_cache(maxsize=1024)
def read_order(text: str) -> tuple[int, str, Options]:
    """Version, task and options of an order, decoded once for all jobs that have the same one.

    Of an order of a later release only the version is returned. Raises the errors of pydantic and
    `jsq.model.job`.
    """
    order = from_json(text)
    version = order["v"]
    if version > ENVELOPE_VERSION:
        return version, "", Options()
    if isinstance(version, bool) or version < 1:
        raise ValueError(f"version must be a positive number, got {version!r}")
    # Options that a submit would refuse are refused here too: a worker could not run the job.
    terms = {name: order[name] for name in (*ENVELOPE_OPTIONS, *RARE_OPTIONS) if name in order}
    if "tags" in terms:
        terms["tags"] = tuple(terms["tags"])
    if "backoff" in terms:
        terms["backoff"] = parse_backoff(terms["backoff"])
    return version, check_task(order["task"]), Options(**terms)


def own_options(options: Options) -> Mapping[str, Any]:
    """The options of one job. Orders are decoded once for many jobs, which must not share their headers."""
    return {**options.job_fields, "headers": dict(options.headers)} if options.headers else options.job_fields


def format_deadline(deadline: float | datetime) -> str:
    return format_time(deadline) if isinstance(deadline, datetime) else f"+{deadline:.3f}"


def parse_deadline(text: str | None) -> float | datetime | None:
    if text is None:
        return None
    if text.startswith("+"):
        return seconds("deadline", float(text[1:]))
    return parse_time(text)


def format_flow(flow: str) -> str:
    """The workflow of a node for a header, which holds the token of its id."""
    queue, space, id = flow.partition(" ")
    return f"{queue} {encode_token(id)}" if space else flow


def parse_flow(text: str) -> str:
    """The workflow of a node, from the header."""
    queue, space, token = text.partition(" ")
    return f"{check_queue(queue)} {check_id(decode_token(token))}" if space else text


def parse_unique_hash(text: str) -> str:
    if text and not text.isalnum():
        raise ValueError(f"unique must be the hash of a key, got {text!r}")
    return text


def parse_count(digits: str) -> int:
    if not is_count(digits):
        raise ValueError(f"a count must be digits, got {digits[:80]!r}")
    return int(digits)


def is_count(digits: str) -> bool:
    """Whether a text is a possible sequence number."""
    return digits.isdecimal() and len(digits) <= MAX_DIGITS


def origin_queue(headers: Mapping[str, str], queue: str) -> str:
    """The queue that a job was submitted to; its message is on `queue`, which may be a quarantine."""
    try:
        return parse_origin(headers.get(ORIGIN_QUEUE), queue)[0]
    except (BadName, ValueError):
        return queue


def parse_origin(header: str | None, queue: str) -> tuple[str, int]:
    """A job's own queue, and its crashes there, from the header; without one, the queue of its message."""
    if header is None:
        return queue, 0
    origin, forgiven = header.split()
    return check_queue(origin), parse_count(forgiven)


def parse_key(headers: Mapping[str, str]) -> tuple[str, int | None, Priority] | None:
    """A job's key, its `per_key`, and its priority; None without a key. Raises `ValueError`."""
    header = headers.get(KEY)
    if header is None:
        return None
    level, most, text = header.split(" ", 2)
    key = from_json(text)
    check_key(key)
    if key is None or level not in PRIORITIES:
        raise ValueError(f"a key must have a text and a priority, got {header!r}")
    return key, None if most == "-" else parse_count(most), level


def parse_group_slot(headers: Mapping[str, str]) -> tuple[SlotKind | None, str, float]:
    """The kind of a job's slot, the token of its key, and since when the job had waited.

    The time is in seconds since the epoch, 0 if it is not known.
    """
    place, _, rest = headers.get(GROUP_SLOT, "").partition(" ")
    token, _, since = rest.partition(" ")
    if place not in SLOT_KINDS:
        return None, "", 0.0
    return place, token, float(since) if _since.fullmatch(since) else 0.0


def previous_sequence(headers: Mapping[str, str]) -> int:
    """The revision that an attempt builds on; 0 for a first attempt, or for anything but a job."""
    last = headers.get(ATTEMPTS, "").rpartition(" ")[2]
    return int(last) if is_count(last) else 0


def header_priority(headers: Mapping[str, str], subject: str) -> Priority:
    """The priority of a message, by the header of its key, or by its subject (on a queue, or due later)."""
    with contextlib.suppress(ValueError, BadOption):
        if (keyed := parse_key(headers)) is not None:
            return keyed[2]
    level = subject.split(".")[3]
    return level if level in PRIORITIES else "normal"


def backoff_fields(backoff: Backoff) -> dict[str, Any]:
    """A backoff for an order; without jitter in the form of the first release."""
    written = asdict(backoff)
    if backoff.jitter is None:
        del written["jitter"]
    return written


def parse_backoff(found: dict[str, Any] | None) -> Backoff | None:
    if found is None:
        return None
    known = {name: found[name] for name in ("shape", "base", "factor", "ceiling", "jitter") if name in found}
    return Backoff(**known, steps=tuple(found.get("steps", ())))


def ascii_json(text: bytes) -> str:
    """JSON in ASCII, as headers require."""
    return "".join(c if c < "\x7f" else _escape(c) for c in text.decode())


def _escape(character: str) -> str:
    code = ord(character)
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


_digits = "0123456789abcdefghijklmnopqrstuv"
_pairs = [first + second for first in _digits for second in _digits]
_random_digits = (_digits * 8).encode()
"""The digit for each byte, by its last five bits."""


def new_id() -> str:
    """A new job id: 26 characters, sortable by the millisecond it was made in, with 80 random bits."""
    now = time.time_ns() // 1_000_000
    return f"{_spelled(now >> 10)}{_pairs[now & 1023]}{os.urandom(16).translate(_random_digits).decode()}"


def new_ids(count: int) -> list[str]:
    """New job ids, all of the same millisecond."""
    now = time.time_ns() // 1_000_000
    since, chance = _spelled(now >> 10) + _pairs[now & 1023], os.urandom(16 * count)
    digits = chance.translate(_random_digits).decode()
    return [since + digits[start : start + 16] for start in range(0, 16 * count, 16)]


@functools.lru_cache(maxsize=16)
def _spelled(high: int) -> str:
    """The digits of a time, without the last two, which count about a second."""
    return "".join([_pairs[high >> place & 1023] for place in (30, 20, 10, 0)])
