"""The broker of the clients in immediate mode: a call that may make a job runnable runs the job, too.

It has the objects of any broker, so submits, handles and `client.jobs` work unchanged. Objects that need a
server or several workers are replaced by ones that raise `ImmediateUnsupported`.
"""

import contextlib
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from jsq.broker import Broker
from jsq.broker.delivery.delivery import REQUEUED
from jsq.broker.flow.pauses import PAUSED_BY
from jsq.broker.jobs.backpressure import Backpressure, WaitForRoom, WaitingSubmits
from jsq.broker.jobs.expiry import JobExpiry
from jsq.broker.jobs.messages import id_of, message_priority
from jsq.broker.jobs.reader import JobReader
from jsq.broker.jobs.records import EXPECTED, RecordStore
from jsq.broker.jobs.store import JobStore
from jsq.broker.jobs.writer import JobWriter
from jsq.broker.operations.completions import Completions
from jsq.broker.topology.namespace import Namespace
from jsq.codec import envelope
from jsq.errors import BadEnvelope, BadName, ImmediateUnsupported, NewerEnvelope
from jsq.model.revision import FINAL_STATES, StoredRevision
from jsq.model.workflow import PARKED
from jsq.testing.immediate_calls import ClientCall, client_call, running_jobs
from jsq.testing.immediate_streams import MemoryMessage
from jsq.testing.immediate_wire import unsupported
from jsq.testing.immediate_worker import ImmediateWorker
from jsq.testing.submits import Submits

T = TypeVar("T")

RUN_AFTER: Mapping[str, tuple[str, ...]] = {
    "job_writer": ("submit", "submit_like", "submit_once"),
    "unique": ("submit", "submit_each"),
    "bulk": ("submit",),
    "atomic": ("submit",),
    "schedules": ("run",),
    "dead_letters": ("retry",),
    "second_runs": ("run_again",),
    "reschedule": ("reschedule",),
    "edit": ("edit",),
    "cancel": ("cancel", "cancel_many", "cancel_waiting"),
    "workflows": ("cancel_nodes",),
    "pauses": ("resume",),
    "queues": ("update",),
}
"""The methods of a broker after which jobs may run, by the object that has them."""

SUBMITTERS = frozenset({"job_writer", "unique", "bulk", "atomic", "schedules"})
"""The objects whose methods submit jobs; the others change jobs that exist."""

NEEDS_WORKERS = "it has one worker, in this process"

UNSUPPORTED_PARTS = {
    "queue_stats": ("the numbers of a queue", "its jobs run at once"),
    "queue_removal": ("the removal of a queue", NEEDS_WORKERS),
    "presence": ("the list of workers", NEEDS_WORKERS),
    "holders": ("questions between workers", NEEDS_WORKERS),
    "task_knowers": ("questions between workers", NEEDS_WORKERS),
    "queue_slots": ("questions between workers", NEEDS_WORKERS),
    "sweeper": ("sweeps", "nothing in it can be interrupted half way"),
}
"""The objects of a broker that immediate mode does not have, each with what it is for, and the reason."""

SCHEDULES_OFF = ("schedules", "they are off in this block", "use app.immediate(schedules=True)")


class ImmediateBroker(Broker):
    """The broker of one event loop in a block of immediate mode."""

    def __init__(
        self, namespace: Namespace, worker: ImmediateWorker, *, max_depth: int, schedules: bool
    ) -> None:
        self._worker = worker
        self._max_depth = max_depth
        super().__init__(namespace)
        for name, methods in RUN_AFTER.items():
            setattr(self, name, RunningPart(self, name, methods))
        for name, about in UNSUPPORTED_PARTS.items():
            setattr(self, name, UnsupportedPart(*about))
        if not schedules:
            self.schedules = UnsupportedPart(*SCHEDULES_OFF)  # type: ignore[assignment]  # raises

    def build_store(self, namespace: Namespace) -> JobStore:
        records, room = RecordStore(namespace), ImmediateBackpressure(namespace, self._worker)
        expiry = JobExpiry(namespace, records)
        reader = ImmediateReader(namespace, records, expiry, self._worker)
        return JobStore(records, expiry, reader, JobWriter(namespace, records, reader, room), room)

    @contextlib.asynccontextmanager
    async def subscribe_completions(self, queue: str) -> AsyncIterator[Completions]:
        async with super().subscribe_completions(queue) as completions:
            yield ImmediateCompletions(completions, self._worker)

    async def call(self, part: str, method: Callable[..., Awaitable[Any]], *args: Any, **named: Any) -> Any:
        """Call a method of a broker, then run what can run. Raises the error of a job that must be raised."""
        depth = len(running_jobs.get())
        if depth >= self._max_depth:
            raise too_deep(depth)
        call = ClientCall(part in SUBMITTERS)
        token = client_call.set(call)
        try:
            found = await method(*args, **named)
        finally:
            client_call.reset(token)
        await self._worker.run_ready_from_any_loop(call.ids)
        for id in call.ids:
            error = self._worker.errors.pop(id, None)
            if error is not None:
                raise error
        return found


class RunningPart:
    """An object of a broker; after some of its methods, the jobs run that can run."""

    def __init__(self, broker: ImmediateBroker, name: str, methods: tuple[str, ...]) -> None:
        self._broker = broker
        self._name = name
        self._part = getattr(broker, name)
        self._methods = methods

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._part, name)
        return functools.partial(self._broker.call, self._name, found) if name in self._methods else found


class UnsupportedPart:
    """An object of a broker that immediate mode does not have."""

    def __init__(self, *about: str) -> None:
        self._about = about

    def __getattr__(self, name: str) -> Any:
        raise unsupported(*self._about)


class ImmediateBackpressure(Backpressure):
    """Waits for room on a queue by running its jobs."""

    def __init__(self, namespace: Namespace, worker: ImmediateWorker) -> None:
        super().__init__(namespace)
        self._worker = worker

    async def _retry_until_room(
        self, waiting: WaitingSubmits, store: Callable[[], Awaitable[T]], room: WaitForRoom
    ) -> T:
        await self._worker.run_ready_from_any_loop()
        return await store()


class ImmediateReader(JobReader):
    """Finds jobs. A wait that could never end raises an error instead."""

    def __init__(
        self, namespace: Namespace, records: RecordStore, expiry: JobExpiry, worker: ImmediateWorker
    ) -> None:
        super().__init__(namespace, records, expiry)
        self._worker = worker

    async def follow(
        self, id: str, queue: str, *, final_only: bool = False
    ) -> AsyncGenerator[StoredRevision, None]:
        async with contextlib.aclosing(super().follow(id, queue, final_only=final_only)) as revisions:
            async for found in revisions:
                yield found
                if found.state not in FINAL_STATES:
                    await self._wait_for_next(found, final_only=final_only)

    async def _wait_for_next(self, found: StoredRevision, *, final_only: bool) -> None:
        """Wait until a job has another revision, or the final one. Raises if nothing can write it."""
        before: StoredRevision | None = None
        while True:
            last = await self.find(found.job, found.queue, pending=True)
            if last is None or last.state in FINAL_STATES or (last != found and not final_only):
                return
            if last == before:
                raise endless_wait(last)
            before = None if await self._worker.wait_for_other(found.job) else last


class ImmediateCompletions(Completions):
    """The completions of the jobs of a `map`."""

    def __init__(self, completions: Completions, worker: ImmediateWorker) -> None:
        vars(self).update(vars(completions))
        self._completions = completions
        self._worker = worker

    async def next(self) -> StoredRevision:
        others = True
        while not self._ended:
            await self._poll()
            if not self._ended and not others:
                raise unsupported(
                    "a wait for jobs that are not due", "nothing moves the clock", "submit them without delay"
                )
            others = bool(self._ended) or await self._worker.wait_for_other("")
        return await super().next()


class SubmitRecorder:
    """Records the jobs that are submitted in a block, and notes which messages continue a job."""

    def __init__(self, submits: Submits) -> None:
        self._submits = submits

    def note(self, message: MemoryMessage, headers: Mapping[str, str]) -> None:
        """Look at a message that was stored just now."""
        kind = message.subject.split(".", 2)[1]
        if kind not in ("q", "scheduled", "group"):
            return
        call = client_call.get()
        is_first = not headers.keys() & {envelope.ATTEMPTS, REQUEUED, envelope.GROUP_SLOT}
        if call is not None:
            call.ids.append(id_of(message.reply))
            replaces = kind == "scheduled" and headers.get(EXPECTED) != "0"  # a debounce, for example
            if call.submits and is_first and not replaces:
                self._record(message)
        elif kind == "scheduled":
            waits = PAUSED_BY in headers or headers.get(envelope.FLOW) == PARKED
            message.continues = not is_first and not waits  # the end of a pause, or of nodes, moves it
        elif is_first:
            self._record(message)

    def _record(self, message: MemoryMessage) -> None:
        reply = message.reply
        with contextlib.suppress(BadEnvelope, BadName, NewerEnvelope):
            job = envelope.decode(
                reply.headers,
                reply.payload,
                id=id_of(reply),
                queue=message.subject.split(".")[2],
                priority=message_priority(reply),
            )
            delay = 0.0 if message.due is None else max(0.0, message.due - message.at)
            self._submits.add(job, round(delay, 3))


def too_deep(depth: int) -> ImmediateUnsupported:
    """The error of a submit inside too many other jobs."""
    why = "each job here was submitted by the one before, and a server runs them one after the other"
    fix = "submit the next job with a delay, or allow more with app.immediate(max_depth=...)"
    return unsupported(f"jobs inside {depth} other jobs", why, fix)


def endless_wait(found: StoredRevision) -> ImmediateUnsupported:
    """The error of a wait for a job that nothing can end."""
    due = found.revision.due
    if due is not None:
        why = f"it is {found.state}, and due at {due.isoformat(timespec='milliseconds')}"
        fix = "move the clock first: await immediate.advance(...), or immediate.run_due()"
    else:
        why = f"it is {found.state}, and can only end after the jobs that wait for it, or after a pause"
        fix = "a server would wait for ever, too"
    return unsupported(f"a wait for job {found.job}", why, fix)
