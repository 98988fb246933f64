"""Parks the message of a job that waits for other jobs in SCHEDULED, and moves it to its queue."""

import contextlib
from datetime import datetime

from jsq.broker.delivery.delivery import SUBMITTED_PRIORITY
from jsq.broker.jobs.messages import SCHEDULE, TARGET, message_priority, schedule_headers, schedule_target
from jsq.broker.jobs.records import EXPECTED, EXPECTED_ON
from jsq.broker.topology.namespace import Namespace
from jsq.codec import envelope
from jsq.errors import NotAllowed
from jsq.model.job import Job
from jsq.transport.replies import NoResponders, WrongSequence, own_headers, sequence_of
from jsq.transport.retrying import While, publish_with_retry
from jsq.transport.server_clock import PAST


async def wake_job(namespace: Namespace, queue: str, id: str, *, while_: While | None = None) -> None:
    """Let a worker run the next attempt of a waiting job now, before the other jobs of its queue.

    Calling twice is safe. A job whose message is not parked is being run, and checks its nodes again before
    it waits.
    """
    reads, subjects, wire = namespace.reads, namespace.subjects, namespace.wire
    stream, subject = subjects.streams.scheduled(queue), subjects.scheduled(queue, id)
    try:
        found = await reads.last(stream, subject, consistent=True)
    except NoResponders:
        return
    if found is None or SCHEDULE not in found.headers:
        return
    headers, level = own_headers(found.headers), message_priority(found)
    once = {EXPECTED: "0", EXPECTED_ON: subjects.ready(queue, "*", id)}
    first = {} if level == "high" else {SUBMITTED_PRIORITY: level}
    try:
        ready = subjects.ready(queue, "high", id)
        await publish_with_retry(wire, ready, found.payload, headers | first | once, while_=while_)
    except WrongSequence:  # its last delivery is not settled yet: the server publishes it a little later
        soon = schedule_headers(PAST, found.headers[TARGET]) | {EXPECTED: str(sequence_of(found))}
        with contextlib.suppress(WrongSequence):
            await publish_with_retry(wire, subject, found.payload, headers | soon, while_=while_)
        return
    with contextlib.suppress(NotAllowed):
        await namespace.jetstream.purge(stream, subject, below=sequence_of(found) + 1)


async def park_job(namespace: Namespace, job: Job, due: datetime, *, while_: While | None = None) -> None:
    """Store the message of a waiting job in SCHEDULED, in place of an older one."""
    stream = namespace.subjects.streams.scheduled(job.current_queue)
    subject = namespace.subjects.scheduled(job.current_queue, job.id)
    target = schedule_target(namespace.subjects, job)
    headers = envelope.encode(job) | schedule_headers(due, target)
    while True:
        try:
            await publish_with_retry(namespace.wire, subject, job.arguments, headers, while_=while_)
            return
        except WrongSequence:
            found = await namespace.reads.last(stream, subject, consistent=True)
        if found is not None and envelope.previous_sequence(found.headers) >= job.previous_sequence:
            return
        headers[EXPECTED] = "0" if found is None else found.headers["Nats-Sequence"]
