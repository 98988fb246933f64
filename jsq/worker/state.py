"""The state of one attempt: its delivery, its job, and the revision of the record that it builds on."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from jsq.broker import Delivery
from jsq.declaration import Declaration
from jsq.errors import LeaseLost
from jsq.model.job import Job
from jsq.model.outcome import Outcome
from jsq.model.revision import DeliveryInfo, Revision, StoredRevision
from jsq.task import AnyTask
from jsq.transport.batch_publish import OutgoingMessage
from jsq.transport.wire import ACK
from jsq.worker.resources import Resources
from jsq.worker.run import FunctionRun
from jsq.worker.transitions import UNKNOWN_DECLARATION, running_revision

UNREAD = Job("", "")
"""The job of a delivery that is not decoded yet."""


class AttemptState:
    """The state that the steps and the stages of one attempt share.

    `options` are the declaration of the task with what the submit changed. `token` is the last revision that
    this attempt wrote. `continues` is true when the job had a record before. `running` is the encoded start,
    at the millisecond `started`; `unstarted` is a final outcome in its place, with its event. `function` runs
    the task. `slots` is how many slots of the worker the job takes. `last` is the revision of another
    delivery that this one finishes. `runner` is the asyncio task that runs the attempt. `cut_off` is set when
    the lease lapsed because the server did not answer, `recorded_late` once the outcome was recorded after
    that. `renewal` is the asyncio task that renews the record, and `renewed` is the millisecond of the last
    renewal. `first_token` is the token that the attempt started with, once its record was renewed. `reported`
    is the progress that a run reported last, once the run has ended.
    """

    job: Job = UNREAD
    task: AnyTask | None = None
    options: Declaration = UNKNOWN_DECLARATION
    token: int = 0
    continues: bool = False
    running: bytes = b""
    started: int = 0
    unstarted: tuple[Outcome, Revision] | None = None
    slots: int = 1
    last: StoredRevision | None = None
    runner: asyncio.Task[None] | None = None
    cut_off: bool = False
    recorded_late: bool = False
    renewal: asyncio.Task[None] | None = None
    renewed: int = 0
    first_token: int = 0
    reported: tuple[float, str] | None = None

    function: FunctionRun

    def __init__(self, delivery: Delivery, resources: Resources, function: FunctionRun) -> None:
        self.delivery = delivery
        self.resources = resources
        self.function = function

    def stop(self, why: Outcome | LeaseLost) -> None:
        """End the attempt early, with this outcome."""
        self.function.stop(why)

    def goes_on(self) -> bool:
        """Whether the task has started in a thread, which cannot be ended."""
        task = self.task
        in_thread = task is not None and not task.is_async and task.location is None
        return in_thread and self.token > 0 and self.function.execution is not None

    def has_lease(self) -> bool:
        """Whether the delivery still belongs to this worker. Without its lease an attempt writes nothing.

        An attempt that has recorded its outcome late finishes the steps after it: no other outcome can be
        recorded.
        """
        return not self.delivery.lease.lapsed() or self.recorded_late

    def check_lease(self) -> None:
        """Raise `LeaseLost` if the lease has lapsed."""
        if self.delivery.lease.lapsed():
            raise LeaseLost(f"the lease of job {self.job.id} lapsed")

    def ack(self) -> None:
        """Settle the delivery: the server deletes the message. Without the lease this does nothing."""
        if self.has_lease():
            self.resources.broker.wire.send(self.delivery.reply, ACK)

    def nak(self) -> None:
        """Settle the delivery: the server delivers the message again. Without the lease this does nothing."""
        if not self.delivery.lease.lapsed():
            self.resources.broker.wire.send(self.delivery.reply, b"-NAK")

    def delivery_info(self) -> DeliveryInfo:
        """The delivery, in the form that the revisions of the attempt contain."""
        delivery, job = self.delivery, self.job
        return DeliveryInfo(
            self.resources.name, delivery.sequence, delivery.number, job.quarantine, job.previous_sequence
        )

    @property
    def submitted(self) -> int:
        """When the job was submitted, in milliseconds since the epoch."""
        return self.job.submitted or int(1000 * self.delivery.stored)

    @property
    def waited(self) -> float:
        """Seconds from when the message was put on its queue until the attempt started."""
        return max(0.0, self.started / 1000 - self.delivery.stored)

    @property
    def start_ttl(self) -> float | None:
        """The TTL of the revision that the attempt starts with, in seconds; None for none."""
        return None if self.continues else self.resources.timings.start_ttl

    def running_revision(self) -> Revision:
        """The revision of the start of the attempt, written or not."""
        return running_revision(self.job, self.delivery_info(), self.submitted, self.started)

    def log_fields(self, **more: object) -> dict[str, object]:
        """The extras of each log line about this attempt."""
        job = self.job
        return {"job": job.id, "task": job.task, "queue": job.queue, "attempt": job.attempt, **more}

    def add_header(self, name: str, value: str) -> None:
        """Add a header to the job: its next attempt has it."""
        self.job = replace(self.job, headers={**self.job.headers, name: value})

    async def write(
        self, body: bytes, expect: int, ttl: float | None = None, other: OutgoingMessage | None = None
    ) -> int:
        """Write a revision of the record on top of the revision `expect`; returns its sequence.

        `other` is stored with it, or neither is. Raises `LeaseLost` if the lease has lapsed, `WrongSequence`
        if the record has another revision.
        """
        if self.delivery.lease.lapsed():
            raise LeaseLost(f"the lease of job {self.job.id} lapsed")
        return await self._put(body, expect, ttl, other, self.has_lease)

    async def write_late(self, body: bytes, ttl: float | None, other: OutgoingMessage | None) -> int:
        """Write the outcome of an attempt whose lease has lapsed, as soon as the server can be reached.

        Raises `WrongSequence` if the record no longer shows this attempt: then another worker has the job.
        """
        wire = self.resources.broker.wire
        return await self._put(body, self.token, ttl, other, lambda: not wire.closed)

    async def _put(
        self,
        body: bytes,
        expect: int,
        ttl: float | None,
        other: OutgoingMessage | None,
        while_: Callable[[], bool],
    ) -> int:
        job, records = self.job, self.resources.broker.records
        if other is None:
            return await records.put(job.queue, job.id, body, expect=expect, ttl=ttl, while_=while_)
        others = (other,)
        return await records.put_with(job.queue, job.id, body, others, expect=expect, ttl=ttl, while_=while_)

    async def was_renewed(self, token: int) -> bool:
        """Whether the record was renewed since the attempt had a token; waits for a renewal under way."""
        if self.renewal is not None:
            await asyncio.wait((self.renewal,))
        return self.token != token

    async def read(self, sequence: int) -> StoredRevision | None:
        """The last revision of the record, `sequence` or later; None where `sequence` is 0."""
        if not sequence:
            return None
        return await self.resources.broker.records.last_at_least(self.job.queue, self.job.id, sequence)
