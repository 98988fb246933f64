"""A worker pulls the deliveries of its queues, higher priorities first, and runs as many as it has slots.

When it stops, it pulls no more, hands back the deliveries that have not started, and lets the running jobs
finish within the grace. Then it cancels and hands back the rest. None of this uses an attempt.
"""

import asyncio
import contextlib
import logging
import os
import re
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

from jsq.app import App
from jsq.broker import Broker
from jsq.broker.topology.inventory import StreamInventory
from jsq.codec.envelope import new_id
from jsq.declaration import FunctionLocation
from jsq.errors import BadOption, BrokerUnavailable, NotAllowed
from jsq.executors import LoopExecutor, ProcessExecutor, ThreadExecutor
from jsq.executors.process import EXIT_SECONDS
from jsq.lifespan import CHILD_STOP_SECONDS, LifespanUse
from jsq.model.job import check_queue
from jsq.settings import QueueSettings, WorkerSettings
from jsq.worker.dispatcher import Dispatcher, LimitedDispatcher
from jsq.worker.duties.due_jobs import DueJobMoves
from jsq.worker.duties.group_wakeups import GroupWakeups
from jsq.worker.duties.heartbeat import Heartbeat
from jsq.worker.duties.housekeeping import Housekeeping
from jsq.worker.duties.queue_rules import QueueRules
from jsq.worker.duties.queue_sampling import QueueSampling
from jsq.worker.duties.queue_slots import QueueSlots
from jsq.worker.duties.quiet import Quiet
from jsq.worker.duties.record_renewal import RecordRenewal
from jsq.worker.duties.schedule_ticks import ScheduleTicks
from jsq.worker.duties.stream_watch import StreamWatch
from jsq.worker.duties.sweeping import sweep_regularly
from jsq.worker.duties.unknown_tasks import UnknownTasks
from jsq.worker.duties.wakeup_sources import WakeupSources
from jsq.worker.duties.watchdog import Watchdog
from jsq.worker.holders import JobHolders
from jsq.worker.observer import Observer
from jsq.worker.ready_queue import check_queue_weights
from jsq.worker.resources import Resources
from jsq.worker.stacks import print_stacks
from jsq.worker.stages.rate_limits import RateLimits
from jsq.worker.startup import Startup
from jsq.worker.timings import WorkerTimings

log = logging.getLogger("jsq.worker")

Unsubscribe = Callable[[], Awaitable[None]]


class Worker:
    """Runs the jobs of an app's queues. `run` returns when it has stopped.

    Queues with weights, `{"mail": 3, "default": 1}`, share its starts by them while jobs of both wait. Raises
    `BadName`, `BadOption`. `resources`, `dispatcher` and `housekeeping` exist while it runs.
    """

    is_drained = False  # whether a test will wait until no job can start soon, as `burst` does
    resources: Resources
    dispatcher: Dispatcher
    housekeeping: Housekeeping

    def __init__(
        self,
        app: App,
        *,
        queues: Sequence[str] | Mapping[str, int] | None = None,
        settings: WorkerSettings | None = None,
        observer: Observer | None = None,
        timings: WorkerTimings | None = None,
    ) -> None:
        self.app = app.load()
        self.name = re.sub("[^A-Za-z0-9]", "-", f"{socket.gethostname()}-{os.getpid()}-{new_id()[-6:]}")
        self.queues = [check_queue(queue) for queue in queues or app.queues]
        self.weights = check_queue_weights(queues) if isinstance(queues, Mapping) else {}
        self.settings = settings or WorkerSettings()
        if self.settings.strict and self.weights:
            raise BadOption("strict", True, "must not be combined with weights of queues")
        self.observer = observer or Observer()
        self.timings = timings or WorkerTimings()
        self.ready = asyncio.Event()
        self._stopping = asyncio.Event()
        self._quiet = Quiet()
        self._startup = startup = Startup(self.name, self._stopping)
        self._last_beat: Callable[[], float] = lambda: getattr(self, "housekeeping", startup).beaten
        self._hurry = asyncio.Event()
        self._connected: Callable[[], bool] = bool
        self._complete: Callable[[], bool] = lambda: True
        self._stopped_at: float | None = None

    async def run(self) -> None:
        """Work until `stop`, or with `burst` until nothing can run now.

        Waits for a server that does not answer yet; with `burst`, raises `BrokerUnavailable` instead. Raises
        it also when the address or the TLS settings cannot work, and when the connection was closed for good.
        Raises the errors of provisioning, and before the start those of `App.check`. Enters the lifespan of
        the App before the first job, and leaves it after the last one; raises `LifespanFailed`.
        """
        self.app.check()
        lifespan = LifespanUse(self.app.lifespan, self.app, on_failure=self._stopping.set)
        rules = await self._startup.run(self._prepare, wait=not self.settings.burst)
        state = None if rules is None else await self._startup.run(lifespan.start, wait=False)
        if rules is None or state is None:
            log.info("worker stopped", extra={"worker": self.name, "jobs": 0})
            return
        self.resources = replace(self.resources, state=state)
        try:
            await self._run_jobs(rules)
        finally:
            await lifespan.stop(self._stop_seconds())
        lifespan.check()

    async def _run_jobs(self, rules: QueueRules) -> None:
        """Work until the stop, and end everything that runs jobs."""
        broker = self.resources.broker
        limits = RateLimits(broker, rules, finite=self.settings.burst or self.is_drained)
        kind = Dispatcher if self.settings.max_jobs is None else LimitedDispatcher
        self.dispatcher = dispatcher = kind(self.resources, limits, self.weights, self._stopping)
        rules.on_refresh = dispatcher.demand
        self._connected = lambda: broker.wire.connected
        dispatcher.leases.start()
        try:
            async with asyncio.TaskGroup() as group:
                await self._work(broker, group)
        except ExceptionGroup as several:
            if len(several.exceptions) == 1:
                raise several.exceptions[0] from None
            raise
        finally:
            await dispatcher.close()

    def stop(self) -> None:
        """Stop gently; a second call stops at once. Running jobs are handed back in both cases."""
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    def quiet(self) -> None:
        """Take no more jobs until `resume`. The running jobs continue, and so does the worker."""
        self._quiet.ask(quiet=True)

    def resume(self) -> None:
        """Take jobs again after `quiet`."""
        self._quiet.ask(quiet=False)

    def print_stacks(self) -> None:
        """Print the stacks of the running jobs on standard error, with the id of each."""
        if self.ready.is_set():
            print_stacks(self.dispatcher.attempts.values(), sys.stderr)

    def is_ready(self) -> bool:
        """Whether the worker takes jobs: it is started, connected, neither quiet nor stopping, and misses no
        stream.
        """
        working = self.ready.is_set() and self._connected() and self._complete()
        return working and self.state() == "running"

    def state(self) -> str:
        """`stopping`, `quiet` or `running`."""
        return "stopping" if self._stopping.is_set() else "quiet" if self._quiet.asked else "running"

    @property
    def spent(self) -> bool:
        """Whether the worker has stopped because of `max_jobs`."""
        found = getattr(self, "dispatcher", None)
        return isinstance(found, LimitedDispatcher) and found.spent

    @property
    def beaten(self) -> float:
        """The time (monotonic) of the last known turn of the event loop."""
        return self._last_beat()

    # -- inside ------------------------------------------------------------------------------------------

    async def _work(self, broker: Broker, group: asyncio.TaskGroup) -> None:
        """Start the duties, pull until the stop, and wind down."""
        wakeups = [GroupWakeups(broker, queue, group) for queue in self.queues]
        sampling = QueueSampling(self.resources, self.queues)
        heartbeat = Heartbeat(self.dispatcher, self.queues, wakeups, sampling)
        heartbeat.state = self.state
        rules, unknown = self.dispatcher.limits.rules, self.resources.unknown_tasks
        subscriptions = await self._subscribe(broker, heartbeat)
        slots = QueueSlots(broker, self.dispatcher, group)
        rules.on_change = slots.follow
        slots.follow()
        ticks = ScheduleTicks(broker, self.queues, self.app.schedules.values(), heartbeat.removed)
        await ticks.declare()
        due_jobs = DueJobMoves(broker, self.queues)
        sources = WakeupSources(broker, self.queues, self.name)
        self.housekeeping = Housekeeping(self.dispatcher, self.queues, self._stopping.set)
        duties = [
            self.housekeeping.run(),
            heartbeat.run(),
            sampling.run(),
            sweep_regularly(broker, self.name, self.settings.sweep, self.observer.swept),
            ticks.run(),
            due_jobs.run(),
            sources.run(),
            RecordRenewal(self.dispatcher).run(),
            self._stream_watch(broker, heartbeat, sources, ticks).run(),
            rules.run(),
            unknown.run(),
            self._quiet.run(self.dispatcher, heartbeat.beat),
            *(one.run() for one in wakeups),
        ]
        running = [group.create_task(duty) for duty in duties]
        leases = {queue: self.resources.queues[queue].lease for queue in self.queues}
        await self.dispatcher.pullers.open(
            broker, leases, lambda puller: running.append(group.create_task(puller.watch()))
        )
        if not (self.settings.burst or self.is_drained):
            self.resources.processes.start_ahead()
        self.ready.set()
        unknown.announce(self.queues)
        log.info("worker ready", extra={"worker": self.name, "queues": ",".join(self.queues)})
        with self._watchdog():
            await self._stopping.wait()
            heartbeat.beat()
            await asyncio.gather(ticks.close(), due_jobs.close(), self._wind_down())
        for duty in running:
            duty.cancel()
        await slots.close()
        await unknown.close()
        await self._leave(broker, wakeups, subscriptions)

    async def _subscribe(self, broker: Broker, heartbeat: Heartbeat) -> list[Unsubscribe]:
        """Subscribe to cancels, pauses, removals, and questions of other workers."""
        rules, resources = self.dispatcher.limits.rules, self.resources
        resources.unknown_tasks.room = self.dispatcher.pullers
        found: list[Unsubscribe] = []
        for queue in self.queues:
            found += [
                await broker.cancel.subscribe(queue, self.dispatcher.cancel),
                await broker.pauses.subscribe(queue, rules.refresh_soon),
                await resources.holders.subscribe(queue),
                await broker.task_knowers.subscribe(queue, resources.unknown_tasks),
                await broker.queue_removal.subscribe(queue, heartbeat.queue_removed),
            ]
        return found

    def _takes(self, task: str) -> bool:
        """Whether this worker takes jobs of a task, now or once it has started."""
        return not self._stopping.is_set() and self.app.known(task) is not None

    def _stream_watch(
        self, broker: Broker, heartbeat: Heartbeat, sources: WakeupSources, ticks: ScheduleTicks
    ) -> StreamWatch:
        async def restored(names: list[str]) -> None:
            await sources.check_all()
            if broker.subjects.streams.bucket("schedules") in names:
                await ticks.declare()

        inventory = StreamInventory(broker.namespace, broker.provisioner, self.queues)
        watch = StreamWatch(broker.wire, inventory, self.observer, heartbeat.removed.__contains__, restored)
        heartbeat.on_removed = inventory.forget_queue
        self._complete = lambda: not watch.missing
        return watch

    def _watchdog(self) -> Watchdog:
        def blocked(about: dict[str, object]) -> None:
            self.observer.blocked(str(about["task"]))

        return Watchdog(self._last_beat, self.housekeeping.blocking_task, blocked)

    async def _wind_down(self) -> None:
        """Hand back the jobs that have not started, wait for the running ones, then interrupt them."""
        dispatcher, self._stopped_at = self.dispatcher, time.monotonic()
        counts = {"running": len(dispatcher.attempts), "held": dispatcher.waiting.count}
        log.info("worker stopping", extra={"worker": self.name, **counts})
        dispatcher.batches.stop()
        dispatcher.hand_back_waiting()
        await dispatcher.pullers.close()
        dispatcher.hand_back_waiting()
        await self._wait_idle(self.settings.grace, self._hurry)
        dispatcher.interrupt()
        await self._wait_idle(self.timings.unwind + 2.0, asyncio.Event())

    def _stop_seconds(self) -> float:
        """Seconds for the stop of the lifespan: the rest of the grace, but at least `unwind`."""
        if self._stopped_at is None or self._hurry.is_set():
            return self.timings.unwind
        return max(self.timings.unwind, self._stopped_at + self.settings.grace - time.monotonic())

    async def _wait_idle(self, seconds: float, hurry: asyncio.Event) -> None:
        """Wait until no job runs, `seconds` at most, or until `hurry` is set."""
        if not self.dispatcher.attempts:
            return
        self.dispatcher.idle.clear()
        waits = [asyncio.create_task(event.wait()) for event in (hurry, self.dispatcher.idle)]
        await asyncio.wait(waits, timeout=seconds, return_when="FIRST_COMPLETED")
        for wait in waits:
            wait.cancel()

    async def _leave(
        self, broker: Broker, wakeups: list[GroupWakeups], subscriptions: list[Unsubscribe]
    ) -> None:
        """End the subscriptions, and take the worker off the list."""
        for one in wakeups:
            await one.close()
        for unsubscribe in subscriptions:
            await unsubscribe()
        broker.presence.leave(self.name)
        with contextlib.suppress(BrokerUnavailable):
            await broker.wire.flush()
        log.info("worker stopped", extra={"worker": self.name, "jobs": self.dispatcher.done})

    async def _prepare(self) -> QueueRules:
        """Connect, provision the queues, and read their rules."""
        broker = await self._connect()
        broker.records.group_writes(self.settings.group_writes)
        self.resources = self._resources(
            broker, await provision_queues(broker, self.app, self.queues, self.name)
        )
        rules = QueueRules(broker, self.resources.queues)
        await rules.refresh()
        return rules

    async def _connect(self) -> Broker:
        """The broker of this worker."""
        return await self.app.client.broker()

    def _expected_functions(self) -> list[FunctionLocation]:
        """The locations of the functions of the process tasks."""
        tasks = (task for task in self.app.tasks.values() if task.declaration.queue in self.queues)
        return [task.location for task in tasks if task.location is not None]

    def _resources(self, broker: Broker, queues: dict[str, QueueSettings]) -> Resources:
        settings = self.settings
        return Resources(
            name=self.name,
            app=self.app,
            broker=broker,
            queues=queues,
            settings=settings,
            observer=self.observer,
            timings=self.timings,
            holders=JobHolders(broker, self.name),
            unknown_tasks=UnknownTasks(broker, self.name, self._takes),
            loop=LoopExecutor(),
            threads=ThreadExecutor(),
            processes=ProcessExecutor(
                tasks=settings.child_tasks,
                memory=settings.child_memory,
                locations=self._expected_functions(),
                most=settings.concurrency,
                exit_seconds=EXIT_SECONDS + (CHILD_STOP_SECONDS if self.app.lifespan.is_used else 0.0),
            ),
        )


async def provision_queues(
    broker: Broker, app: App, queues: list[str], worker: str
) -> dict[str, QueueSettings]:
    """Provision the queues as declared; returns the settings they have."""
    declared = app.declared
    try:
        await broker.provisioner.reconcile_shared(max((one.replicas for one in declared.values()), default=1))
        for queue in queues:
            if queue in declared:
                await broker.queues.declare(queue, declared[queue])
        if app.events is not None:
            await broker.provisioner.reconcile_events(app.events)
    except NotAllowed as error:
        log.info("queues not provisioned", extra={"worker": worker, "why": str(error)})
    found = {queue: await broker.streams.ensure_queue(queue) for queue in queues}
    await broker.provisioner.ensure_advisories()
    return found
