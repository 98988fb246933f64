"""The state of one attempt: its delivery, its job, and the event of the log that it builds on."""

import asyncio

from jsq.broker import Delivery
from jsq.declaration import Declaration
from jsq.errors import LeaseLost
from jsq.model.event import DeliveryInfo, Event, LoggedEvent
from jsq.model.job import Job
from jsq.model.outcome import Outcome
from jsq.task import AnyTask
from jsq.worker.resources import Resources
from jsq.worker.run import FunctionRun, TaskRun
from jsq.worker.transitions import UNKNOWN_DECLARATION

UNREAD = Job("", "")
"""The job of a delivery that was not decoded yet."""


class AttemptState:
    """What the steps and the stages of one attempt share.

    `options` are the declaration of the task with what the submit changed. `token` is the sequence of the
    last event of this attempt. `continues` is true when the job has a history in the log. `running` is the
    encoded start event; `unstarted` is a final outcome in its place, with its event. `function` runs the
    task. `slots` is how many slots of the worker the job takes. `last` is the event of another
    delivery that this one finishes. `runner` is the asyncio task that runs the attempt. `cut_off` is set when
    the lease lapsed because the server did not answer, `recorded_late` once the outcome was recorded after
    that.
    """

    job: Job = UNREAD
    task: AnyTask | None = None
    options: Declaration = UNKNOWN_DECLARATION
    token: int = 0
    continues: bool = False
    running: bytes = b""
    unstarted: tuple[Outcome, Event] | None = None
    slots: int = 1
    last: LoggedEvent | None = None
    runner: asyncio.Task[None] | None = None
    cut_off: bool = False
    recorded_late: bool = False

    def __init__(self, delivery: Delivery, resources: Resources) -> None:
        self.delivery = delivery
        self.resources = resources
        self.function: FunctionRun = TaskRun(resources.timings.unwind)

    def stop(self, why: Outcome | LeaseLost) -> None:
        """End the attempt early, with this outcome."""
        self.function.stop(why)

    def goes_on(self) -> bool:
        """Whether the task has begun in a thread, which cannot be ended."""
        task = self.task
        in_thread = task is not None and not task.is_async and task.place is None
        return in_thread and self.token > 0 and self.function.execution is not None

    def has_lease(self) -> bool:
        """Whether the delivery still belongs to this worker. Without its lease an attempt writes nothing.

        An attempt that has recorded its outcome late finishes what follows: nobody else can record another.
        """
        return not self.delivery.lease.lapsed() or self.recorded_late

    def check_lease(self) -> None:
        """Raise `LeaseLost` if the lease has lapsed."""
        if self.delivery.lease.lapsed():
            raise LeaseLost(f"the lease of job {self.job.id} lapsed")

    def ack(self) -> None:
        """Settle the delivery: the server deletes the message. Without the lease this does nothing."""
        if self.has_lease():
            self.resources.broker.wire.send(self.delivery.reply, b"+ACK")

    def nak(self) -> None:
        """Settle the delivery: the server delivers the message again. Without the lease this does nothing."""
        if not self.delivery.lease.lapsed():
            self.resources.broker.wire.send(self.delivery.reply, b"-NAK")

    def delivery_info(self) -> DeliveryInfo:
        """The delivery as the events of the attempt name it."""
        delivery = self.delivery
        return DeliveryInfo(self.resources.name, delivery.sequence, delivery.number, self.job.quarantine)

    def log_fields(self, **more: object) -> dict[str, object]:
        """The extras of each log line about this attempt."""
        job = self.job
        return {"job": job.id, "task": job.task, "queue": job.queue, "attempt": job.attempt, **more}

    async def write(self, state: str, body: bytes, expect: int, ttl: float | None = None) -> int:
        """Write an event of the job on top of the sequence `expect`; returns its sequence.

        Raises `LeaseLost` if the lease has lapsed, `WrongSequence` if the log has moved on.
        """
        job = self.job
        if self.delivery.lease.lapsed():
            raise LeaseLost(f"the lease of job {job.id} lapsed")
        return await self.resources.broker.event_log.put(
            job.queue, job.id, state, body, expect=expect, ttl=ttl, while_=self.has_lease
        )

    async def write_late(self, state: str, body: bytes, ttl: float | None) -> int:
        """Write the outcome of an attempt whose lease has lapsed, as soon as the server can be reached.

        Raises `WrongSequence` if the record no longer shows this attempt: then another worker has the job.
        """
        job, broker = self.job, self.resources.broker
        return await broker.event_log.put(
            job.queue,
            job.id,
            state,
            body,
            expect=self.token,
            ttl=ttl,
            while_=lambda: not broker.wire.closed,
        )

    async def read(self, sequence: int) -> LoggedEvent | None:
        """The last event that a worker wrote, at `sequence` or later; None where `sequence` is 0."""
        if not sequence:
            return None
        log = self.resources.broker.event_log
        return await log.last_run(self.job.queue, self.job.id, least=sequence)
