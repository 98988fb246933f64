"""Workers of tests: they run in the process of the test, and can die like a worker that gets SIGKILL."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, NoReturn

from jsq.app import App
from jsq.broker import Broker
from jsq.broker.jobs.messages import scheduled_time
from jsq.broker.topology.configs import TICKS_CONSUMER
from jsq.client.blocking import BlockingMethod, BlockingWrapper
from jsq.client.handle import BlockingJobHandle, JobHandle
from jsq.codec.subject_token import ANY
from jsq.errors import JobNotFound, UsageError
from jsq.model.durations import Duration, seconds
from jsq.model.job import Job, JobRecord
from jsq.model.outcome import Outcome
from jsq.settings import WorkerSettings
from jsq.transport.replies import NoResponders
from jsq.worker.observer import Observer
from jsq.worker.timings import WorkerTimings
from jsq.worker.worker import Worker

TEST_GRACE = 0.2
"""Seconds that running jobs have to end when the worker of a test stops."""

TEST_UNWIND = 1.0
"""Seconds that a cancelled task of a test may clean up."""

DRAIN_SECONDS = 30.0
"""Seconds after which a drain fails, unless the test sets another limit."""

DRAIN_POLL_SECONDS = 0.01
START_TIMEOUT = 30.0


class WorkerDied(BaseException):
    """Raised by `JsqWorker.die` in the task, to end its code there.

    It is no `Exception`, so that an `except Exception` of the task does not catch it.
    """


class RunLog(Observer):
    """Notes the jobs that a worker runs, by their ids and queues, in the order of their starts."""

    def __init__(self) -> None:
        self._ran: dict[tuple[str, str], None] = {}

    def started(self, job: Job, waited: float) -> None:
        self._ran[job.id, job.queue] = None

    def finished(self, job: Job, outcome: Outcome, ran: float) -> None:
        self._ran[job.id, job.queue] = None

    def take(self) -> list[tuple[str, str]]:
        """The jobs since the last call."""
        found, self._ran = list(self._ran), {}
        return found


class MortalWorker(Worker):
    """A worker with a connection of its own, which `cut_off` breaks for good."""

    is_drained = True
    broker: Broker | None = None
    seen_done = 0
    """The number of ended attempts at the last check whether the worker is idle."""

    async def _connect(self) -> Broker:
        if self.broker is None:
            self.broker = await self.app.client.connection.open_another()
        return self.broker

    async def run(self) -> None:
        try:
            await super().run()
        finally:
            if self.broker is not None:
                await self.broker.close()

    def cut_off(self) -> list[str]:
        """Send nothing any more; returns the reply subjects of the deliveries that the worker holds."""
        held = list(self.dispatcher.leases.held)
        self.dispatcher.leases.held.clear()
        if self.broker is not None:
            self.broker.wire.abort()
        return held


class JsqWorker:
    """A worker of an App in the process of the test. It serves the queues of the App, or `queues`.

    Its methods are for the event loop of the test; `blocking` has them for tests without one.
    """

    def __init__(self, app: App, *, queues: Sequence[str] | None = None, concurrency: int = 10) -> None:
        self.app = app
        self._queues = queues
        self._concurrency = concurrency
        self._log = RunLog()
        self._worker: MortalWorker | None = None
        self._running: asyncio.Task[None] | None = None
        self._dying: asyncio.Task[None] | None = None
        self._check: asyncio.Task[bool] | None = None
        self._died_in_task = False

    @property
    def blocking(self) -> "BlockingJsqWorker":
        """This worker for tests without an event loop: its methods block."""
        return BlockingJsqWorker(self, self.app.client.connection.portal, "jsq_worker")

    @property
    def is_running(self) -> bool:
        """Whether the worker runs: it was started, and has neither stopped nor died."""
        return self._worker is not None

    async def start(self) -> None:
        """Start the worker, and wait until it is ready. Raises the errors of `Worker.run`."""
        self._died_in_task = False
        await self._start()

    async def stop(self) -> None:
        """Stop the worker as SIGTERM does: running jobs get 0.2 s to end, then they are handed back."""
        await self._await_death()
        worker, running = self._worker, self._running
        if worker is None or running is None:
            return
        worker.stop()
        try:
            await running
        finally:
            self._worker = self._running = None

    async def kill(self) -> None:
        """Kill the worker, as SIGKILL would: it settles nothing, and hands nothing back.

        The server delivers the worker's jobs again at once, as if their leases had lapsed. `start`, or the
        next `drain`, starts another worker. The code of an async task is cancelled, so its `finally` blocks
        run, but they can write nothing. A plain function continues in its thread.
        """
        if self._worker is None and self._dying is None:
            raise UsageError("the worker does not run: start it before you kill it")
        self._cut_off()
        await self._await_death()

    def die(self, *args: object, **kwargs: object) -> NoReturn:
        """Kill the worker from inside a task. Patch a function that the task calls with this method.

        `monkeypatch.setattr(shop, "send_mail", jsq_worker.die)`: the worker dies when a task calls it.
        """
        running = self._running
        if running is None:
            raise UsageError("the worker does not run: only a task may call this")
        loop, self._died_in_task = running.get_loop(), True
        if asyncio._get_running_loop() is loop:
            self._cut_off()
        else:
            asyncio.run_coroutine_threadsafe(self._cut_off_soon(), loop).result()
        raise WorkerDied("the test has killed the worker here")

    async def drain(self, timeout: Duration = DRAIN_SECONDS) -> list[JobRecord]:
        """Wait until no job runs and none can start now, or the worker has died in a task.

        Returns the jobs that ran since the last drain, in the order of their starts, in their present state.
        Jobs that are due later do not count. Starts a worker if none runs; after a death in a task, the
        second drain does that. Raises `TimeoutError` if jobs still run, or can start, after `timeout`.
        """
        await self._await_death()
        if not self._died_in_task:
            await self.start()
            await self._wait_idle(timeout)
        self._died_in_task = False
        return await self._records()

    async def until_started(
        self, job: JobHandle[Any] | BlockingJobHandle[Any], timeout: Duration = DRAIN_SECONDS
    ) -> None:
        """Wait until an attempt of a job runs in this worker. Raises `TimeoutError`."""
        limit = seconds("timeout", timeout)
        try:
            async with asyncio.timeout(limit):
                while not self._runs(job.id):  # noqa: ASYNC110 -- the worker reports no single start
                    await asyncio.sleep(DRAIN_POLL_SECONDS)
        except TimeoutError:
            state = (await self.app.client.jobs.get(job.id)).state
            text = f"job {job.id} did not start in this worker within {limit:g} s; it is {state}"
            raise TimeoutError(text) from None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the worker until the end of the block."""
        await self.start()
        try:
            yield
        finally:
            await self.stop()

    # -- inside ------------------------------------------------------------------------------------------

    async def wait_idle(self, timeout: Duration = DRAIN_SECONDS) -> None:
        """Wait as `drain` does, and leave the jobs that ran for the next drain."""
        await self._await_death()
        await self._wait_idle(timeout)

    async def drain_once(self, timeout: Duration) -> list[JobRecord]:
        """Run a worker until no job can start, as `jsq worker --burst` does, and stop it."""
        await self._start()
        try:
            await self._wait_idle(timeout)
        finally:
            await self.stop()
        return await self._records()

    async def _start(self) -> None:
        await self._await_death()
        if self._worker is not None:
            return
        settings = WorkerSettings(concurrency=self._concurrency, grace=TEST_GRACE, sweep=0.0)
        timings = WorkerTimings(unwind=TEST_UNWIND)
        worker = MortalWorker(
            self.app, queues=self._queues, settings=settings, observer=self._log, timings=timings
        )
        running = asyncio.create_task(worker.run())
        ready = asyncio.create_task(worker.ready.wait())
        await asyncio.wait((running, ready), timeout=START_TIMEOUT, return_when="FIRST_COMPLETED")
        ready.cancel()
        if not worker.ready.is_set():
            running.cancel()  # no effect on a worker that has ended
            await running
        self._worker, self._running = worker, running

    async def _wait_idle(self, timeout: Duration) -> None:
        limit = seconds("timeout", timeout)
        try:
            async with asyncio.timeout(limit):
                while (worker := self._worker) is not None and not await self._is_idle(worker):
                    if self._running is not None and self._running.done():
                        await self.stop()  # raises its error
                    await asyncio.sleep(DRAIN_POLL_SECONDS)
                await self._await_death()
        except TimeoutError:
            running = [] if self._worker is None else self._worker.dispatcher.attempts.values()
            tasks = ", ".join(sorted(attempt.job.task for attempt in running)) or "none"
            raise TimeoutError(f"jobs can still start or run after {limit:g} s; running: {tasks}") from None

    async def _is_idle(self, worker: MortalWorker) -> bool:
        """Whether a worker is idle. A worker that dies meanwhile, and so answers no more, is not."""
        self._check = check = asyncio.create_task(is_idle(worker))
        try:
            await asyncio.wait((check,))
        finally:
            check.cancel()
        return not check.cancelled() and check.result()

    async def _records(self) -> list[JobRecord]:
        """The records of the jobs that ran since the last call."""
        found = []
        for id, queue in self._log.take():
            with contextlib.suppress(JobNotFound):
                found.append(await self.app.client.jobs.get(id, queue))
        return found

    def _runs(self, id: str) -> bool:
        attempts = [] if self._worker is None else self._worker.dispatcher.attempts.values()
        return any(one.delivery.id == id and one.token for one in attempts)

    async def _cut_off_soon(self) -> None:
        """The same as `_cut_off`, for other threads."""
        self._cut_off()

    def _cut_off(self) -> None:
        """Break the connection of the worker now, and end it in an asyncio task."""
        worker, running = self._worker, self._running
        if worker is None or running is None:
            return  # it is dying already
        self._worker = self._running = None
        if self._check is not None:
            self._check.cancel()
        self._dying = running.get_loop().create_task(self._bury(running, worker.cut_off()))

    async def _bury(self, running: asyncio.Task[None], held: Sequence[str]) -> None:
        """End a worker that is cut off, and have the server deliver what it held again."""
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        broker = await self.app.client.broker()
        for reply in held:
            broker.wire.send(reply, b"-NAK")
        await broker.wire.flush()

    async def _await_death(self) -> None:
        dying = self._dying
        if dying is not None:
            await dying
            self._dying = None


class BlockingJsqWorker(BlockingWrapper[JsqWorker]):
    """A `JsqWorker` for tests without an event loop: its methods block."""

    start = BlockingMethod(JsqWorker.start)
    stop = BlockingMethod(JsqWorker.stop)
    kill = BlockingMethod(JsqWorker.kill)
    drain = BlockingMethod(JsqWorker.drain)
    until_started = BlockingMethod(JsqWorker.until_started)


class Drain:
    """`await jsq_drain()` runs a worker until no job can start now, as `jsq worker --burst` does.

    Returns the jobs that ran, in the order of their starts. `jsq_drain.blocking()` is for tests without an
    event loop.
    """

    def __init__(self, app: App, *, queues: Sequence[str] | None = None) -> None:
        self._worker = JsqWorker(app, queues=queues)

    async def __call__(self, timeout: Duration = DRAIN_SECONDS) -> list[JobRecord]:
        """Raises `TimeoutError` if jobs can still start or run after `timeout`."""
        return await self._worker.drain_once(timeout)

    def blocking(self, timeout: Duration = DRAIN_SECONDS) -> list[JobRecord]:
        """The same for a test without an event loop."""
        portal = self._worker.app.client.connection.portal
        return portal.call(self(timeout), "jsq_drain")


async def is_idle(worker: MortalWorker) -> bool:
    """Whether a worker runs no job, and none of its queues has a job or a tick that is due."""
    broker, dispatcher = worker.broker, worker.dispatcher
    if dispatcher.attempts or dispatcher.done != worker.seen_done or broker is None:
        worker.seen_done = dispatcher.done
        return (
            False  # jobs have ended since the last check: others may follow, so the server is not asked yet
        )
    if not await worker.housekeeping.nothing_left():
        return False
    for queue in worker.queues:
        if await has_due_ticks(broker, queue) or await has_due_jobs(broker, queue):
            return False
    return not dispatcher.attempts


async def has_due_ticks(broker: Broker, queue: str) -> bool:
    """Whether a tick of a schedule of a queue is due, or is being handled by a worker."""
    stream = broker.subjects.streams.scheduled(queue)
    ticks = await broker.jetstream.consumer_info(stream, TICKS_CONSUMER)
    if ticks and ticks["num_pending"] + ticks["num_ack_pending"]:
        return True
    return await holds_due(broker, queue, broker.subjects.next_tick(queue, ANY))


async def has_due_jobs(broker: Broker, queue: str) -> bool:
    """Whether a job is due, and no worker has moved it to its queue yet."""
    stream = broker.subjects.streams.scheduled(queue)
    if await broker.jetstream.count(stream, broker.subjects.due(queue, "*", ANY)):
        return True
    return await holds_due(broker, queue, broker.subjects.scheduled(queue, ANY))


async def holds_due(broker: Broker, queue: str, subject: str) -> bool:
    """Whether the SCHEDULED stream of a queue holds a message on a subject whose due time has come."""
    try:
        found = await broker.reads.fetch(broker.subjects.streams.scheduled(queue), subject)
    except NoResponders:
        return False
    now = broker.wire.clock.moment()
    return any(scheduled_time(one.headers) <= now for one in found)
