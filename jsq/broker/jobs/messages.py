"""The messages of jobs, as the server stores them, and the state of a job that its message shows."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from jsq.broker.delivery.delivery import REQUEUED, SUBMITTED_PRIORITY
from jsq.broker.jobs.records import EXPECTED, expectation_lines
from jsq.broker.topology.subjects import Subjects, read_id, token_of
from jsq.codec import envelope, revisions
from jsq.codec.subject_token import STEM
from jsq.errors import BadArguments, BadEnvelope, NewerEnvelope
from jsq.model.job import PRIORITIES, Job, Priority
from jsq.model.revision import Revision, StoredRevision, first_revision
from jsq.transport.batch_publish import OutgoingMessage
from jsq.transport.replies import HEADERS_START, Reply, header_line, last_token
from jsq.transport.server_clock import PAST

SCHEDULE = "Nats-Schedule"
TARGET = "Nats-Schedule-Target"
"""The headers of a schedule: when the server publishes the message, and to which subject."""

ROOM_FOR_HEADERS = 2_048
"""Bytes of a message reserved for the headers that the server and retries add."""

SHORT_TOKEN = 64
"""The longest token of an id for which `ROOM_FOR_HEADERS` suffices: a header holds the token in a subject."""


def job_message(
    subjects: Subjects, job: Job, due: datetime | None = None, *, expect: int = 0
) -> OutgoingMessage:
    """The message of a job: for its queue or its key group, or with `due` for the SCHEDULED stream.

    The server refuses it if a message with the id of the job exists in the same place. On a queue with
    `expect`, the server refuses it unless the last message with that id has this sequence.
    """
    envelope_lines = b"".join([header_line(name, value) for name, value in envelope.encode(job).items()])
    if due is None and job.waits_for_key:
        subject = subjects.groups.job(job.queue, job.key_token, job.id)
        return OutgoingMessage(subject, job.arguments, envelope_lines + expectation_lines(0, subject))
    if due is None:
        lines = envelope_lines + expectation_lines(expect, subjects.ready(job.current_queue, "*", job.id))
        return OutgoingMessage(subjects.ready(job.current_queue, job.priority, job.id), job.arguments, lines)
    schedule = schedule_headers(due, schedule_target(subjects, job))
    lines = envelope_lines + b"".join([header_line(name, value) for name, value in schedule.items()])
    return OutgoingMessage(subjects.scheduled(job.current_queue, job.id), job.arguments, lines)


@dataclass(frozen=True, slots=True)
class JobTemplate:
    """The common part of the messages of jobs that differ from `job` only in their id and their arguments.

    The subject of a message is `subject` followed by the token of the id. Its headers are `headers` followed
    by that token and the end of the block.
    """

    job: Job
    subject: str
    headers: str


def job_template(subjects: Subjects, job: Job) -> JobTemplate:
    """The template of the messages of jobs like this one, which are due at once."""
    message = job_message(subjects, replace(job, id=STEM))
    return JobTemplate(job, message.subject, (HEADERS_START + message.lines).decode().removesuffix("\r\n"))


def check_size(job: Job, max_payload: int, index: int = 0) -> None:
    """Raise `BadArguments` if a job is larger than the server accepts."""
    limit = max_payload - ROOM_FOR_HEADERS
    if len(job.arguments) < limit // 2:
        return
    if job.id:
        limit -= max(0, len(token_of(job.id)) - SHORT_TOKEN)
    headers = sum(len(name) + len(value) + 4 for name, value in envelope.encode(job).items())
    if len(job.arguments) + headers > limit:
        raise BadArguments(
            f"{job.task}: the arguments take {len(job.arguments):,} bytes, the options {headers:,}; "
            f"the server takes {limit:,} in all (max_payload); store the content elsewhere "
            "and submit its address",
            index,
        )


def schedule_target(subjects: Subjects, job: Job) -> str:
    """The subject to which the server publishes a scheduled job when it is due."""
    if job.waits_for_key:
        return subjects.groups.due(job.queue, job.key_token, job.id)
    return subjects.due(job.current_queue, job.priority, job.id)


def id_of(stored: Reply) -> str:
    """The id of the job whose message was stored."""
    return read_id(last_token(stored))


def matches(found: Reply, headers: Mapping[str, str], payload: bytes) -> bool:
    """Whether a stored schedule has these headers and this payload, apart from the expected sequence."""
    stored = found.headers
    expected_headers = {name: value for name, value in headers.items() if name != EXPECTED}
    return found.payload == payload and all(
        stored.get(name) == value for name, value in expected_headers.items()
    )


def schedule_headers(due: datetime, target: str) -> dict[str, str]:
    """The headers of a schedule that the server publishes to `target` when due.

    The server refuses it if a schedule exists on the same subject.
    """
    return {EXPECTED: "0", SCHEDULE: f"@at {revisions.format_time(due)}", TARGET: target}


def seconds_until(due: datetime | None, now: datetime) -> float:
    return max(0.0, (due - now).total_seconds()) if due is not None else 0.0


def revision_from_message(queue: str, id: str, message: Reply, state: str) -> StoredRevision:
    """The state of a job without a record, from its message. Its sequence is 0: no write can expect it.

    A requeued job, which was due and waits for a limit or for the end of a pause, has the state `queued`.
    """
    state = "queued" if REQUEUED in message.headers else state
    at = revisions.parse_time(message.headers["Nats-Time-Stamp"])
    revision, due = Revision(state), None
    with contextlib.suppress(BadEnvelope, NewerEnvelope):
        job = envelope.decode(
            message.headers, message.payload, id=id, queue=queue, priority=message_priority(message)
        )
        submitted = revisions.moment_of(job.submitted) if job.submitted else at
        queue, revision = job.queue, replace(first_revision(job, state), submitted=submitted)
        revision = replace(
            revisions.with_arguments(revision, message.payload), options=envelope.recorded_options(job)
        )
    if state == "scheduled" and SCHEDULE in message.headers and scheduled_time(message.headers) != PAST:
        due = scheduled_time(message.headers)
    return StoredRevision(queue, id, 0, at, replace(revision, due=due))


def message_priority(message: Reply) -> Priority:
    """The priority of a message, from its subject or from the target of its schedule."""
    headers = message.headers
    return envelope.header_priority(headers, headers.get(TARGET, headers["Nats-Subject"]))


def submitted_priority(message: Reply) -> Priority:
    """The priority that a job was submitted with. The message of a requeued job may have a higher one."""
    header = message.headers.get(SUBMITTED_PRIORITY, "")
    return header if header in PRIORITIES else message_priority(message)


def scheduled_time(headers: Mapping[str, str]) -> datetime:
    """The due time of a schedule with these headers; `PAST` if it is due at once."""
    return revisions.parse_time(headers[SCHEDULE].removeprefix("@at "))
