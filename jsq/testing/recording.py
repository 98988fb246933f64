"""Records what the clients of a test submit, on their way to the server.

A `Broker` gives its clients the objects that store jobs. `record_submits` replaces these objects in one
broker by subclasses that note each job once the server has stored it. Nothing else changes: the same methods
of jsq store the jobs.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar, cast

from jsq.broker import Broker
from jsq.broker.jobs.backpressure import WaitForRoom
from jsq.broker.jobs.messages import JobTemplate, seconds_until
from jsq.broker.jobs.writer import JobWriter
from jsq.broker.submit.atomic import AtomicSubmit
from jsq.broker.submit.bulk import BulkSubmit
from jsq.broker.submit.unique import SubmitResult, UniqueKeys, UniqueSubmit
from jsq.errors import BrokerError, DuplicateJob
from jsq.model.job import Job
from jsq.testing.submits import Submits

T = TypeVar("T")

Note = Callable[[Job, datetime | None], None]
"""Notes a stored job, and when it is due."""


def record_submits(broker: Broker, submits: Submits) -> None:
    """Note the jobs that are submitted by a broker from now on."""

    def note(job: Job, due: datetime | None) -> None:
        submits.add(job, seconds_until(due, broker.wire.clock.moment()))

    broker.job_writer = recording(broker.job_writer, RecordingWriter, note)
    broker.unique = recording(broker.unique, RecordingUniqueKeys, note)
    broker.bulk = recording(broker.bulk, RecordingBulk, note)
    broker.atomic = recording(broker.atomic, RecordingAtomic, note)


def recording(original: Any, kind: type[T], note: Note) -> T:
    """A copy of an object, of a subclass that notes stored jobs."""
    found: Any = copy.copy(original)
    found.__class__ = kind
    found.note, found.original = note, original
    return cast(T, found)


class RecordingWriter(JobWriter):
    """A `JobWriter` that notes the jobs it has stored for a submit, and the callbacks of a worker."""

    note: Note
    original: JobWriter

    async def submit(self, job: Job, due: datetime | None = None, wait: WaitForRoom | None = None) -> None:
        await self.original.submit(job, due, wait)
        self.note(job, due)

    async def submit_like(self, template: JobTemplate, id: str, arguments: bytes) -> None:
        if not template.subject.startswith(f"{self._subjects.namespace}."):
            template = self.template(template.job)  # a submitter made it for the namespace of an earlier test
        await self.original.submit_like(template, id, arguments)
        self.note(replace(template.job, id=id, arguments=arguments), None)

    async def submit_once(
        self, job: Job, due: datetime | None = None, wait: WaitForRoom | None = None
    ) -> tuple[str, bool]:
        queue, existed = await self.original.submit_once(job, due, wait)
        if not existed:
            self.note(job, due)
        return queue, existed

    async def enqueue_once(self, job: Job, *, while_: Callable[[], bool]) -> None:
        await self.original.enqueue_once(job, while_=while_)
        self.note(job, None)


class RecordingUniqueKeys(UniqueKeys):
    """`UniqueKeys` that note the jobs they have stored."""

    note: Note
    original: UniqueKeys

    async def submit(self, order: UniqueSubmit) -> SubmitResult:
        placed = await self.original.submit(order)
        self._note(order, placed)
        return placed

    async def submit_each(
        self, orders: Sequence[UniqueSubmit]
    ) -> tuple[dict[int, SubmitResult], dict[int, BrokerError | DuplicateJob]]:
        placed, refused = await self.original.submit_each(orders)
        for place, one in sorted(placed.items()):
            self._note(orders[place], one)
        return placed, refused

    def _note(self, order: UniqueSubmit, placed: SubmitResult) -> None:
        if not placed.duplicate:
            self.note(replace(order.job, id=placed.id, queue=placed.queue), order.due)


class RecordingBulk(BulkSubmit):
    """A `BulkSubmit` that notes the jobs it has stored."""

    note: Note
    original: BulkSubmit

    async def submit(
        self,
        pattern: Job,
        calls: Sequence[tuple[str, bytes]],
        due: datetime | None = None,
        room: WaitForRoom | None = None,
        *,
        ids_are_new: bool = True,
    ) -> tuple[dict[int, BrokerError], set[int]]:
        refused, known = await self.original.submit(pattern, calls, due, room, ids_are_new=ids_are_new)
        note_calls(self.note, pattern, calls, due, known | refused.keys())
        return refused, known


class RecordingAtomic(AtomicSubmit):
    """An `AtomicSubmit` that notes the jobs it has stored."""

    note: Note
    original: AtomicSubmit

    async def submit(
        self,
        pattern: Job,
        calls: Sequence[tuple[str, bytes]],
        due: datetime | None = None,
        room: WaitForRoom | None = None,
    ) -> set[int]:
        known = await self.original.submit(pattern, calls, due, room)
        note_calls(self.note, pattern, calls, due, known)
        return known


def note_calls(
    note: Note,
    pattern: Job,
    calls: Iterable[tuple[str, bytes]],
    due: datetime | None,
    but: Iterable[int],
) -> None:
    """Note the jobs of a bulk submit, except those at some positions."""
    left_out = set(but)
    for place, (id, arguments) in enumerate(calls):
        if place not in left_out:
            note(replace(pattern, id=id, arguments=arguments), due)
