"""The worker of immediate mode: it runs each delivery by the attempts and stages of a real worker.

It has no pullers, no leases and no slots. A client that has stored a job calls `run_ready`, which runs
everything that can run now, and returns when the jobs of the caller have ended or wait. A job that a running
job submits runs before that submit returns, so the running job can await its result.
"""

import asyncio
import contextlib
import contextvars
import math
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any, TypeVar

from jsq.app import App
from jsq.broker import Broker, Delivery, Leases
from jsq.broker.delivery.delivery import read_delivery
from jsq.broker.topology.namespace import Namespace
from jsq.broker.topology.streams import Streams
from jsq.broker.topology.subjects import Subjects
from jsq.errors import BadEnvelope, BadName, JobExpired, JobFailed, NewerEnvelope, UsageError
from jsq.executors import LoopExecutor, ProcessExecutor, ThreadExecutor
from jsq.lifespan import RunningLifespan
from jsq.model.job import Job
from jsq.model.outcome import Cancelled, Expired, Failed, Interrupted, Outcome
from jsq.settings import WorkerSettings
from jsq.testing.immediate_calls import client_call, running_jobs
from jsq.testing.immediate_limits import ImmediatePlans, VirtualRateLimits
from jsq.testing.immediate_storage import MemoryStorage
from jsq.testing.immediate_streams import MemoryMessage
from jsq.testing.immediate_wire import LOGIN, MemoryJetStream, MemoryReads, MemoryWire, unsupported
from jsq.transport.replies import Reply
from jsq.worker.attempt import Attempt
from jsq.worker.duties.abandoned import Abandoned
from jsq.worker.duties.queue_rules import QueueRules
from jsq.worker.duties.unknown_tasks import UnknownTasks
from jsq.worker.holders import JobHolders
from jsq.worker.observer import Observer
from jsq.worker.resources import Resources
from jsq.worker.run import TaskRun
from jsq.worker.stages.batch import BatchCollector
from jsq.worker.stages.order import build_stages
from jsq.worker.start import decode_delivery
from jsq.worker.timings import WorkerTimings

T = TypeVar("T")

WORKER = "immediate"
"""The name of the worker in records."""

MAX_ATTEMPTS_AT_ONCE = 1_000
"""Attempts of a job that one call may run: a job that is snoozed without end must not hang a test."""

BLOCKED_SECONDS = 5.0
"""Seconds without a turn after which the event loop of a block counts as blocked."""

_threads = ThreadExecutor()
"""The threads of all blocks, so that a thousand tests do not leave a thousand idle threads."""


class OutcomeObserver(Observer):
    """Keeps the error that a submit raises for a job that has failed or expired, by the id of the job."""

    def __init__(self, errors: dict[str, BaseException]) -> None:
        self._errors = errors

    def finished(self, job: Job, outcome: Outcome, ran: float) -> None:
        match outcome:
            case Failed(reason=reason, fault=fault):
                error = JobFailed(job.id, reason, fault.error, fault.traceback)
                self._errors[job.id] = fault.exception or error
            case Expired(cause=fault):
                self._errors[job.id] = JobExpired(job.id, fault.error)


class ImmediateSlots:
    """The slots of immediate mode: there is always one."""

    occupied = 0
    batches: BatchCollector

    def __init__(self) -> None:
        self.stopping = asyncio.Event()

    def free(self, slots: int = 1) -> None:
        self.fill()

    def fill(self) -> None:
        """Begin the batches that are complete."""
        while self.batches.closed:
            self.batches.begin()

    def demand(self) -> None: ...

    def suspend_starts(self) -> None: ...

    def resume_starts(self) -> None: ...


class ImmediateWorker:
    """Runs the jobs of one block, on the event loop that has entered it.

    `errors` are those that a submit must raise, by the id of its job.
    """

    def __init__(self, app: App, storage: MemoryStorage, *, hold_retries: bool, raise_errors: bool) -> None:
        self.app = app
        self.storage = storage
        self.home = asyncio.get_running_loop()
        self.broker = Broker(memory_namespace(storage, app.namespace))
        self.errors: dict[str, BaseException] = {}
        self.observer = OutcomeObserver(self.errors) if raise_errors else Observer()
        self._hold_retries = hold_retries
        self._is_open = False  # jobs of the lifespan's own functions wait for its start
        self._lifespan = RunningLifespan(app.lifespan, app)
        self._running: dict[str, tuple[Attempt, asyncio.Future[None]]] = {}
        self._by_queue: Counter[str] = Counter()
        self._stale: set[str] = set()
        self._drains: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Provision the declared queues, and enter the lifespan. Raises what the start of a worker raises."""
        self.app.check()
        broker, app = self.broker, self.app
        await broker.streams.ensure_shared()
        for queue, settings in app.declared.items():
            await broker.provisioner.declare_queue(queue, settings)
        state = await self._lifespan.start()
        self._is_open = True
        self.resources = resources = self._resources(state)
        self._rules = rules = QueueRules(broker, resources.queues)
        limits, slots = VirtualRateLimits(broker, rules, self.storage.clock), ImmediateSlots()
        stages, slots.batches = build_stages(resources, limits, Abandoned(self.observer), slots, {})
        self._plans = ImmediatePlans(resources, stages)
        rules.on_change = self._plans.clear
        await self.run_ready()

    async def stop(self) -> None:
        """Interrupt what still runs, leave the lifespan, and end the broker. Raises `LifespanFailed`."""
        self._is_open = False
        for attempt, _ in list(self._running.values()):
            attempt.stop(Interrupted())
        if self._drains:
            await asyncio.wait(self._drains)
        await self._lifespan.stop(self.resources.timings.unwind)
        await self.broker.close()
        self._lifespan.check()

    # -- run ---------------------------------------------------------------------------------------------

    async def run_ready(self, ids: Iterable[str] = ()) -> None:
        """Run everything that can run now; returns when the jobs `ids` have ended, or wait.

        Jobs that have begun continue if the caller is cancelled, as on a server.
        """
        drain = self.home.create_task(self._drain(tuple(ids)))
        self._drains.add(drain)
        drain.add_done_callback(self._drained)
        await asyncio.shield(drain)

    async def run_ready_from_any_loop(self, ids: Iterable[str] = ()) -> None:
        """As `run_ready`, from the event loop of a blocking call too."""
        await self.on_home(self.run_ready(ids))

    async def on_home(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something on the event loop of the block. Raises `UsageError` if that loop cannot run it."""
        if asyncio.get_running_loop() is self.home:
            return await work
        if not self.home.is_running():
            work.close()
            raise UsageError("the event loop that has entered the block does not run; use one loop for both")
        try:
            turn = asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self.home)
            await asyncio.wait_for(asyncio.wrap_future(turn), BLOCKED_SECONDS)
        except TimeoutError:
            work.close()
            fix = "write with app.immediate() around that call"
            raise UsageError(f"a synchronous call blocks the event loop of the block; {fix}") from None
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.home))

    async def move_clock(self, moment: float) -> None:
        """Move the clock to a time, and run what becomes due until then, each at its time."""
        moment = round(moment, 6)
        while (due := self.storage.next_due()) is not None and due <= moment:
            self.storage.clock.move_to(due)
            await self.run_ready()
        self.storage.clock.move_to(moment)
        await self.run_ready()

    async def wait_for_other(self, id: str) -> bool:
        """Wait until a job has ended that others run, or another job that may hold it back.

        False if there is none: the jobs that run now wait for the caller.
        """
        return await self.on_home(self._wait_for_other(id))

    # -- inside ------------------------------------------------------------------------------------------

    async def _wait_for_other(self, id: str) -> bool:
        waiting = running_jobs.get()
        found = [ended for job, (_, ended) in self._running.items() if job not in waiting]
        if id in self._running and id not in waiting:
            found = [self._running[id][1]]
        if not found:
            return False
        await asyncio.wait(found, return_when="FIRST_COMPLETED")
        for _ in range(2):
            await asyncio.sleep(0)  # so that the caller of its submit starts what follows it
        return True

    def _drained(self, drain: asyncio.Task[None]) -> None:
        self._drains.discard(drain)
        if not drain.cancelled():
            drain.exception()  # its caller may have been cancelled

    async def _drain(self, ids: tuple[str, ...]) -> None:
        client_call.set(None)
        storage, attempts = self.storage, Counter[str]()
        while self._is_open:
            await self._refresh_rules()
            storage.publish_due()
            if await self._take_events():
                continue
            if (taken := self._take()) is not None:
                attempts.update(delivery.id for delivery in taken)
                await self._run(taken)
                if attempts[taken[0].id] >= MAX_ATTEMPTS_AT_ONCE:
                    storage.hold_continuations()
                    raise endless(taken[0].id)
                continue
            due = None if self._hold_retries else storage.next_continuation()
            if due is not None:
                storage.clock.move_to(min(due, storage.next_due() or due))
                storage.offer_returned()
                continue
            others = [self._running[id][1] for id in ids if id in self._running]
            if not others:
                return
            await asyncio.wait(others)

    async def _take_events(self) -> bool:
        """Handle the wake-ups of key groups, and the due ticks of schedules; False if there are none."""
        found = self.storage.deliverable
        wakeups, found.wakeups = found.wakeups, {}
        for place, message in wakeups.items():
            _, _, queue, token = message.subject.split(".")
            await self.broker.key_groups.admit(queue, token)
            self.storage.settle(place)
        ticks, found.ticks = found.ticks, {}
        for place, message in ticks.items():
            delivery = delivery_of(message)
            await self.broker.ticks.run(delivery.queue, delivery.id, delivery.stored, lambda: True)
            self.storage.settle(place)
        return bool(wakeups or ticks)

    def _take(self) -> list[Delivery] | None:
        """The next delivery, the highest priority first; of a batch task, all that wait."""
        for level in self.storage.deliverable.jobs.values():
            gone, found = [], None
            for place, message in level.items():
                if message.sequence not in self.storage.streams[message.stream].messages:
                    gone.append(place)  # it was cancelled, for example
                elif self._may_start(message.subject.split(".")[2]):
                    found = place
                    break
            for place in gone:
                del level[place]
            if found is not None:
                first = delivery_of(level.pop(found))
                return [first, *self._rest_of_batch(first, level)]
        return None

    def _may_start(self, queue: str) -> bool:
        """Whether the concurrency of a queue and its pauses let another job start."""
        settings = self.resources.queues.get(queue)
        if settings is None:
            return True  # its first job
        full = settings.concurrency is not None and self._by_queue[queue] >= settings.concurrency
        return not full and self._rules.queue_pause(queue) is None

    def _rest_of_batch(self, first: Delivery, level: dict[Any, MemoryMessage]) -> list[Delivery]:
        """The other waiting jobs of a batch task, which run with the first one."""
        job = job_of(first)
        task = None if job is None else self.app.known(job.task)
        if job is None or task is None or task.declaration.batch is None:
            return []
        found = []
        for place, message in list(level.items()):
            delivery = delivery_of(message)
            other = job_of(delivery)
            if delivery.queue == first.queue and other is not None and other.task == job.task:
                del level[place]
                found.append(delivery)
        return found

    async def _run(self, deliveries: list[Delivery]) -> None:
        """Run deliveries together, each in an asyncio task and a context of its own."""
        running = []
        for delivery in deliveries:
            await self._know_queue(delivery.queue)
            job = job_of(delivery)
            if job is not None:
                await self._know_queue(job.queue)
                if self.app.known(job.task) is None:
                    self._refuse_unknown(delivery, job)
                    continue
            context = contextvars.Context()
            context.run(running_jobs.set, (*running_jobs.get(), delivery.id))
            attempt = self._begin(delivery)
            running.append(self.home.create_task(self._attempt(attempt), context=context))
        if running:
            await asyncio.wait(running)
        for one in running:
            one.result()

    def _begin(self, delivery: Delivery) -> Attempt:
        attempt = Attempt(delivery, self.resources, TaskRun(self.resources.timings.unwind))
        attempt.plans = self._plans
        self._running[delivery.id] = attempt, self.home.create_future()
        self._by_queue[delivery.queue] += 1
        return attempt

    async def _attempt(self, attempt: Attempt) -> None:
        delivery = attempt.delivery
        try:
            await attempt.run()
        finally:
            _, ended = self._running.pop(delivery.id)
            self._by_queue[delivery.queue] -= 1
            ended.set_result(None)
        place = delivery.reply.split(".")[2], delivery.sequence
        stream = self.storage.streams.get(place[0])
        if stream is not None and place[1] in stream.messages and place not in self.storage.returned:
            error = unsupported(f"what job {delivery.id} has met", "its attempt was abandoned; see the log")
            self.errors[delivery.id] = error

    def _refuse_unknown(self, delivery: Delivery, job: Job) -> None:
        why = "a worker would keep the job until another release knows the task"
        fix = "declare the task on this App, or import its module"
        self.errors[job.id] = unsupported(f"a job of the unknown task {job.task}", why, fix)
        self.storage.settle((delivery.reply.split(".")[2], delivery.sequence))

    async def _know_queue(self, queue: str) -> None:
        """Read the settings and the pauses of a queue, and serve its cancels, before its first job."""
        if queue in self.resources.queues:
            return
        broker = self.broker
        self.resources.queues[queue] = await broker.streams.ensure_queue(queue)
        await broker.cancel.subscribe(queue, self._cancel)
        await broker.pauses.subscribe(queue, self._rules_changed)
        self._stale.add(queue)
        await self._refresh_rules()

    def _cancel(self, id: str) -> bool:
        found = self._running.get(id)
        if found is not None:
            found[0].stop(Cancelled())
        return found is not None

    def _rules_changed(self, queue: str, sequence: int) -> None:
        self._stale.add(queue)

    async def _refresh_rules(self) -> None:
        if self._stale:
            self._stale.clear()
            await self._rules.refresh()
            self.storage.offer_returned()

    def _resources(self, state: Mapping[str, Any]) -> Resources:
        broker = self.broker
        holders = JobHolders(broker, WORKER)
        holders.attempts, holders.leases = {}, Leases(LOGIN, lambda delivery, cut_off: None)
        return Resources(
            name=WORKER,
            app=self.app,
            broker=broker,
            queues={},
            settings=WorkerSettings(),
            observer=self.observer,
            timings=WorkerTimings(),
            holders=holders,
            unknown_tasks=UnknownTasks(broker, WORKER, lambda task: False),
            loop=LoopExecutor(),
            threads=_threads,
            processes=ProcessExecutor(),
            state=state,
        )


def memory_namespace(storage: MemoryStorage, name: str) -> Namespace:
    """A namespace in memory, for the running event loop."""
    wire, reads, jetstream = MemoryWire(storage), MemoryReads(storage), MemoryJetStream(storage)
    subjects = Subjects(name)
    return Namespace(wire, reads, jetstream, subjects, Streams(wire, reads, jetstream, subjects))


def delivery_of(message: MemoryMessage) -> Delivery:
    """The delivery of a message, whose lease does not lapse."""
    stored, at = message.reply, round(message.at * 1e9)
    reply = f"$JS.ACK.{message.stream}.{WORKER}.1.{message.sequence}.{message.sequence}.{at}.0"
    return read_delivery(Reply(message.subject, reply, stored.payload, stored.raw), math.inf)


def job_of(delivery: Delivery) -> Job | None:
    """The job of a delivery; None if its attempt will reject it."""
    with contextlib.suppress(BadEnvelope, BadName, NewerEnvelope):
        return decode_delivery(delivery)
    return None


def endless(id: str) -> Exception:
    """The error of a call whose job is attempted again and again."""
    why = f"one call has run {MAX_ATTEMPTS_AT_ONCE:,} attempts of it"
    fix = "hold the next attempts with app.immediate(hold_retries=True), and move the clock"
    return unsupported(f"job {id}, which is retried or snoozed without end", why, fix)
