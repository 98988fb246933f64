"""A worker pulls the deliveries of its queues, higher priorities first, and runs as many as it has slots.

At a stop it pulls no more, hands back what has not begun, lets what runs finish within the grace, then
cancels and hands back the rest. None of that spends an attempt.
"""

import asyncio
import contextlib
import functools
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from jsq.app import App
from jsq.broker import Broker, Delivery, Leases, Puller
from jsq.broker.topology.presence import BEAT
from jsq.errors import BrokerError, BrokerUnavailable, LeaseLost, NotAllowed
from jsq.executors import LoopExecutor, ProcessExecutor, ThreadExecutor
from jsq.model.job import PRIORITIES, Priority, check_queue, new_id
from jsq.model.outcome import Cancelled, Interrupted
from jsq.settings import QueueSettings, WorkerSettings
from jsq.worker.attempt import Attempt
from jsq.worker.duties.abandoned import Abandoned
from jsq.worker.duties.schedule_ticks import Ticking
from jsq.worker.duties.sweeping import keep_sweeping
from jsq.worker.duties.watchdog import Watchdog
from jsq.worker.observer import Observer
from jsq.worker.ready_queue import ReadyQueue, check_weights
from jsq.worker.resources import Resources
from jsq.worker.run import UNWIND
from jsq.worker.slots import Slots
from jsq.worker.stages.batch import BatchCollector
from jsq.worker.stages.key_groups import GroupWakeups
from jsq.worker.stages.rate_limits import RateLimits

log = logging.getLogger("jsq.worker")

STEP = 0.25
"""Seconds between two looks at what is held, at the loop's lag, and at whether there is work."""

PATIENCE = 1.0
"""Seconds that a delivery waits here for a slot before it is handed back to a worker that may have one."""

LAG_WORTH_TELLING = 1.0


class Worker:
    """Runs the jobs of an app's queues. `run` returns when it has stopped.

    Queues with weights, `{"mail": 3, "default": 1}`, share its starts by them while jobs of both wait. Raises
    `BadName`, `BadOption`.
    """

    def __init__(
        self,
        app: App,
        *,
        queues: Sequence[str] | Mapping[str, int] | None = None,
        settings: WorkerSettings | None = None,
        watcher: Observer | None = None,
    ) -> None:
        self.app = app
        self.name = re.sub("[^A-Za-z0-9]", "-", f"{socket.gethostname()}-{os.getpid()}-{new_id()[-6:]}")
        self.queues = [check_queue(queue) for queue in queues or app.queues]
        self.weights = check_weights(queues) if isinstance(queues, Mapping) else {}
        self.settings = settings or WorkerSettings()
        self.watcher = watcher or Observer()
        self.ready = asyncio.Event()
        self.beaten = time.monotonic()
        self._attempts: dict[str, Attempt] = {}  # by the reply subject of their delivery
        self._messages: dict[tuple[str, int], Attempt] = {}
        self._occupied = 0
        self._held = ReadyQueue(self.weights, self._waiting)
        self._slots = Slots(app, self.settings.concurrency)
        self._big: Delivery | None = None
        self._pullers: list[Puller] = []
        self._knocks: list[GroupWakeups] = []
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._idle = asyncio.Event()
        self._done = 0
        self._abandoned = Abandoned(self.watcher)
        self._connected: Callable[[], bool] = bool

    # -- run and stop ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until `stop`, or with `burst` until nothing can run now.

        Raises `BrokerUnavailable` when the server is lost for good, and what provisioning raises; before it
        begins, what `App.check` does.
        """
        self.app.check()
        broker = await self.app.client.broker()
        self._loop = asyncio.get_running_loop()
        broker.event_log.group_writes(self.settings.group_writes)
        queues = await self._prepare(broker)
        self._permits = RateLimits(broker, queues, self._ask, finite=self.settings.burst)
        await self._permits.learn()
        self._tools = Resources(
            name=self.name,
            app=self.app,
            broker=broker,
            queues=queues,
            permits=self._permits,
            settings=self.settings,
            watcher=self.watcher,
            loop=LoopExecutor(),
            threads=ThreadExecutor(),
            processes=ProcessExecutor(tasks=self.settings.child_tasks, memory=self.settings.child_memory),
        )
        self._gatherings = BatchCollector(
            self._tools, self._abandoned, free=lambda: self._free(1), fill=self._fill, ask=self._ask
        )
        self._connected = lambda: broker.wire.connected
        self._leases = Leases(self.app.client.login, self._lapsed)
        self._leases.start()
        try:
            async with asyncio.TaskGroup() as group:
                await self._work(broker, group)
        except ExceptionGroup as several:
            if len(several.exceptions) == 1:
                raise several.exceptions[0] from None
            raise
        finally:
            await self._end_attempts()
            await self._tools.processes.close()
            await self._leases.stop()

    def stop(self) -> None:
        """Stop gently; called again, at once. Running jobs are handed back in any case, none is lost."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def is_ready(self) -> bool:
        """Whether it takes jobs: it has begun, it is connected, and it is not stopping."""
        return self.ready.is_set() and self._connected() and not self._stop.is_set()

    async def _work(self, broker: Broker, group: asyncio.TaskGroup) -> None:
        deaf = [await broker.cancel.hear(queue, self._cancel) for queue in self.queues]
        ticking = Ticking(broker, self.queues, self.app.schedules.values())
        await ticking.declare()
        deaf += [await broker.pauses.hear(queue, self._permits.look) for queue in self.queues]
        sweeping = keep_sweeping(broker, self.name, self.settings.sweep, self.watcher.swept)
        looking = self._permits.keep_looking()
        chores = [
            group.create_task(chore)
            for chore in (self._look_after(broker), self._be_seen(broker), sweeping, ticking.run(), looking)
        ]
        self._knocks = [GroupWakeups(broker, queue, group) for queue in self.queues]
        chores += [group.create_task(knocks.keep_answering()) for knocks in self._knocks]
        for queue in self.queues:
            pullers = [await self._puller(broker, queue, level) for level in PRIORITIES]
            for rank, puller in enumerate(pullers):
                puller.above = pullers[:rank]
            self._pullers += pullers
        for puller in self._pullers:
            await puller.open()
            chores.append(group.create_task(puller.watch()))
        for puller in self._pullers:
            await puller.check()
        self.ready.set()
        log.info("worker ready", extra={"worker": self.name, "queues": ",".join(self.queues)})
        self.beaten = time.monotonic()
        with Watchdog(lambda: self.beaten, self._named, self._blocked):
            await self._stop.wait()
            await asyncio.gather(ticking.close(), self._wind_down(broker))
        for chore in chores:
            chore.cancel()
        for knocks in self._knocks:
            await knocks.close()
        for stop_listening in deaf:
            await stop_listening()
        broker.presence.leave(self.name)
        with contextlib.suppress(BrokerUnavailable):
            await broker.wire.flush()
        log.info("worker stopped", extra={"worker": self.name, "jobs": self._done})

    async def _wind_down(self, broker: Broker) -> None:
        running = len(self._attempts)
        log.info("worker stopping", extra={"worker": self.name, "running": running, "held": self._held.count})
        self._gatherings.stop()
        self._hand_back_held()
        for puller in self._pullers:
            await puller.close()
        self._hand_back_held()
        await self._wait_idle(self.settings.grace, hurried=True)
        for attempt in list(self._attempts.values()):
            attempt.stop(Interrupted())
        await self._wait_idle(UNWIND + 2.0, hurried=False)

    async def _end_attempts(self) -> None:
        """End what still runs: it cannot reach the server, and its lease will lapse."""
        left = [attempt.task for attempt in self._attempts.values() if attempt.task is not None]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._gatherings.end()

    async def _wait_idle(self, seconds: float, *, hurried: bool) -> None:
        """Wait until nothing runs: for some time, or until we are to hurry."""
        self._note_idle()
        hurry = asyncio.create_task(self._hurry.wait() if hurried else asyncio.Event().wait())
        idle = asyncio.create_task(self._idle.wait())
        await asyncio.wait((hurry, idle), timeout=seconds, return_when="FIRST_COMPLETED")
        for waiting in (hurry, idle):
            waiting.cancel()

    # -- make ready --------------------------------------------------------------------------------------

    async def _prepare(self, broker: Broker) -> dict[str, QueueSettings]:
        """Bring the queues to what is declared; returns the settings they have."""
        declared = self.app.declared
        found = {}
        try:
            await broker.streams.reconcile_shared(max((one.replicas for one in declared.values()), default=1))
            for queue in self.queues:
                if queue in declared:
                    await broker.queues.declare(queue, declared[queue])
        except NotAllowed as error:
            log.info("queues taken as they are", extra={"worker": self.name, "why": str(error)})
        for queue in self.queues:
            found[queue] = await broker.streams.ensure_queue(queue)
        await broker.streams.keep_advisories()
        return found

    async def _puller(self, broker: Broker, queue: str, level: Priority) -> Puller:
        stream = broker.subjects.ready_stream(queue)
        known = await broker.streams.consumer_info(stream, level)
        return Puller(
            broker.wire,
            stream,
            queue,
            level,
            self._tools.queues[queue].lease,
            taken=self._taken,
            wanted=self._wanted,
            emptied=self._emptied,
            pending=known["num_pending"] if known else 0,
        )

    def _cancel(self, id: str) -> bool:
        """End a job that runs here; False if it does not."""
        found = [attempt for attempt in self._attempts.values() if attempt.delivery.id == id]
        for attempt in found:
            attempt.stop(Cancelled())
        return bool(found)

    # -- deliveries --------------------------------------------------------------------------------------

    def _wanted(self, puller: Puller) -> int:
        """How many deliveries of a puller there is room for: none while more urgent ones wait."""
        if self._outranked(puller):
            return 0
        room = self._share(puller) if self.weights else self._room(puller.queue)
        return self._permits.most(puller.queue, room)

    def _share(self, puller: Puller) -> int:
        """How many of the next starts are of a puller's queue, by the weights, and not held already."""
        own = self._room(puller.queue)
        room, waiting = own + self._held.count, self._waiting()
        if room <= 0 or self._big is not None or self._stop.is_set() or puller.queue not in waiting:
            return own
        return self._held.share(puller.queue, room, waiting)

    def _waiting(self) -> set[str]:
        """The queues that have jobs waiting on the server which may begin."""
        found = {puller.queue for puller in self._pullers if puller.pending}
        return {queue for queue in found if self._permits.most(queue, 1)}

    def _room(self, queue: str) -> int:
        """How many more deliveries of a queue we may hold; less than none when we stop."""
        if self._stop.is_set():
            return -1
        if self._big is not None:
            return 0
        room = self.settings.concurrency + self.settings.prefetch - self._occupied - self._held.count
        if self._occupied < self.settings.concurrency:
            room += self._gatherings.missing(queue)
        return room

    def _outranked(self, puller: Puller) -> bool:
        return bool(puller.above) and any(other.pending for other in puller.above)

    def _taken(self, delivery: Delivery) -> None:
        running = self._messages.get((delivery.queue, delivery.sequence))
        if running is not None and running.holds():
            return  # a server that was killed may hand over again what we run: it is ours to settle already
        self._leases.hold(delivery)
        self._held.add(delivery)
        self._fill()

    def _fill(self) -> None:
        """Begin what is held, as far as there are slots; batches that wait for one first."""
        most = self.settings.concurrency
        self._big = None
        while self._gatherings.waiting and self._occupied < most:
            self._occupied += 1
            self._gatherings.begin()
        while self._occupied < most and self._held.count and not self._stop.is_set():
            delivery = self._held.next()
            if delivery is None:
                return
            slots = self._slots.of(delivery)
            if self._occupied + slots > most:
                self._big = delivery  # it waits for more slots, and none is begun in front of it
                return
            self._held.begin(delivery)
            self._occupied += slots
            attempt = Attempt(delivery, self._tools, self._gatherings)
            attempt.slots = slots
            self._attempts[delivery.reply] = attempt
            self._messages[delivery.queue, delivery.sequence] = attempt
            attempt.task = self._loop.create_task(self._run(attempt))

    async def _run(self, attempt: Attempt) -> None:
        """Take an attempt to its end, and free its slot; that of a function which goes on, a little later."""
        try:
            await attempt.run()
        finally:
            self._done += 1
            self._leases.release(attempt.delivery)
            self._forget(attempt)
            self._note_idle()
            left = attempt.function.left
            if left is not None:
                free = functools.partial(self._free, attempt.slots)
                self._abandoned.leave(attempt.job, left, attempt.function.grace(), free)
            elif attempt.function.has_slot:
                self._free(attempt.slots)
        self._ask()

    def _forget(self, attempt: Attempt) -> None:
        delivery = attempt.delivery
        if self._attempts.get(delivery.reply) is attempt:
            del self._attempts[delivery.reply]
        if self._messages.get((delivery.queue, delivery.sequence)) is attempt:
            del self._messages[delivery.queue, delivery.sequence]

    def _free(self, slots: int) -> None:
        self._occupied -= slots
        self._fill()

    def _note_idle(self) -> None:
        if self._attempts:
            self._idle.clear()
        else:
            self._idle.set()

    def _emptied(self) -> None:
        """A queue has nothing more: others may begin that waited for it."""
        if self.weights:
            self._fill()
        self._ask()

    def _ask(self) -> None:
        for puller in self._pullers:
            if self.weights or puller.demand * 2 <= self._room(puller.queue):
                puller.ask()

    def _hand_back_held(self) -> None:
        for delivery in self._held.drain():
            self._hand_back(delivery)

    def _hand_back(self, delivery: Delivery) -> None:
        self._leases.release(delivery)
        if not delivery.lease.lapsed():
            self._tools.broker.wire.send(delivery.reply, b"-NAK")
        self.watcher.handed_back(delivery.queue)

    def _hand_back_surplus(self) -> None:
        """Hand back what has waited too long for a slot here, the least urgent first."""
        surplus = self._held.count - self.settings.prefetch
        late = time.monotonic() - PATIENCE
        for delivery in self._held.least_urgent(surplus, late, but=self._big):
            self._hand_back(delivery)

    def _lapsed(self, delivery: Delivery) -> None:
        """The lease thread could not renew a lease in time: the job is another's now."""
        self._leases.release(delivery)
        attempt = self._attempts.get(delivery.reply)
        if attempt is not None:
            attempt.stop(LeaseLost(f"the lease of job {delivery.id} lapsed"))
        else:
            self._held.remove(delivery)

    # -- chores ------------------------------------------------------------------------------------------

    async def _look_after(self, broker: Broker) -> None:
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(STEP)
            self._measure(loop.time() - before - STEP, broker)
            if broker.wire.closed:
                raise BrokerUnavailable(f"the connection to {broker.wire.login.shown} was closed for good")
            self._hand_back_surplus()
            self._gatherings.hand_back_late(PATIENCE)
            self._fill()
            self._ask()
            with contextlib.suppress(BrokerError):
                if self.settings.burst and await self._nothing_left(broker):
                    self._stop.set()

    def _measure(self, lag: float, broker: Broker) -> None:
        self.beaten = time.monotonic()
        self.watcher.lagged(max(0.0, lag))
        self.watcher.busy(self._occupied, self._held.count, self.settings.concurrency)
        self.watcher.reconnected(broker.wire.reconnects)
        if lag > LAG_WORTH_TELLING:
            running = ",".join(sorted({attempt.job.task for attempt in self._attempts.values()}))
            log.warning("event loop blocked", extra={"seconds": round(lag, 3), "running": running})

    def _named(self, running: object) -> dict[str, object]:
        """What is known of the asyncio task that runs: called from another thread."""
        for attempt in list(self._attempts.values()):
            execution = attempt.function.execution
            if execution is not None and execution.end is running:
                return {"job": attempt.job.id, "task": attempt.job.task}
        return {"task": ""}

    def _blocked(self, about: dict[str, object]) -> None:
        self.watcher.blocked(str(about["task"]))

    async def _nothing_left(self, broker: Broker) -> bool:
        """Whether nothing runs here, and nothing that is not held may begin before long."""
        if self._attempts or self._held.count or self._permits.awaits():
            return False
        for queue in self.queues:
            if self._permits.opens_soon(queue) and await broker.queues.has_work(queue):
                return False
        return not (self._attempts or self._held.count)

    async def _be_seen(self, broker: Broker) -> None:
        about: dict[str, Any] = {
            "worker": self.name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "queues": self.queues,
            "tasks": sorted(self.app.tasks),
            "schedules": sorted(self.app.schedules),
            "slots": self.settings.concurrency,
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        while True:
            broker.presence.beat(
                self.name,
                about | {"running": len(self._attempts), "busy": self._occupied, "done": self._done},
            )
            await asyncio.sleep(BEAT)
            with contextlib.suppress(BrokerError):
                await self._learn_leases(broker)
                for knocks in self._knocks:
                    await knocks.look()

    async def _learn_leases(self, broker: Broker) -> None:
        """Follow a lease that was changed while we run, and make anew consumers that were removed."""
        for queue in self.queues:
            found = await broker.streams.consumer_info(broker.subjects.ready_stream(queue), PRIORITIES[0])
            if found is None:
                broker.streams.forget()
                await broker.streams.ensure_queue(queue)
                continue
            lease = found["config"]["ack_wait"] / 1e9
            for puller in self._pullers:
                if puller.queue == queue:
                    puller.lease = lease
            for attempt in self._attempts.values():
                if attempt.delivery.queue == queue:
                    attempt.delivery.lease.seconds = lease
