"""Slots of queues: a worker claims slots of each queue that has a `concurrency`, and gives back idle ones.

There is one loop for each such queue, and none for the others. It reads and writes the table of the queue
when the worker needs more slots, when other workers lack some, and when slots were idle for a while. The
leases are renewed by the thread that renews those of the deliveries, so a task that blocks the event loop
does not lose its slots.
"""

import asyncio
import contextlib
import logging
import math
import time

from jsq.broker import Broker, Lease
from jsq.broker.delivery.delivery import now as steady_now
from jsq.broker.delivery.leases import renew
from jsq.broker.flow.queue_slots import QueueSlotStore, SlotMoment, StoredSlots
from jsq.broker.topology.namespace import Namespace
from jsq.errors import BrokerError, NotAllowed
from jsq.model.queue_slots import (
    LAPSE_MARGIN,
    TURN_SECONDS,
    SlotTable,
    SlotUse,
    is_turn_over,
    may_grow,
    settle_slots,
    usable_slots,
)
from jsq.transport.wire import Wire
from jsq.worker.dispatcher import Dispatcher
from jsq.worker.queue_gate import QueueGate

log = logging.getLogger("jsq.worker")

IDLE_SLOT_SECONDS = 3.0
"""Seconds for which slots are idle before they are given back, though no other worker asks for them."""

SLOT_POLL_SECONDS = 5.0
"""Seconds after which a worker that lacks slots reads the table again, in case an announcement was lost."""

RETRY_SECONDS = 0.5
"""Seconds until the next try if the table could not be read or written."""

MIN_INTERVAL = 0.01
"""Least number of seconds between two decisions: a burst of jobs needs only one."""

RELEASE_SECONDS = 2.0
"""Seconds for which a stopping worker tries to release its slots; their lease releases the rest."""


class QueueSlotDuty:
    """The slots of one queue. `seconds` is the lease with which they are claimed."""

    def __init__(self, queue: str, dispatcher: Dispatcher) -> None:
        self.resources = dispatcher.resources
        self._queue = queue
        self._dispatcher = dispatcher
        self._store = self.resources.broker.queue_slots
        self._worker = self.resources.name
        self._wakeup = asyncio.Event()
        self._known = StoredSlots(SlotTable())
        self._next_read = 0.0
        self._idle_check = 0.0
        self._peak = self._least = 0
        self.lease = Lease(self.seconds)
        self.gate = QueueGate(queue, dispatcher, dispatcher.leases.held, self.lease, self._wakeup.set)

    @property
    def seconds(self) -> float:
        """The lease of the slots: as long as those of the queue's deliveries."""
        return self.resources.queues[self._queue].lease

    @property
    def limit(self) -> int | None:
        """The `concurrency` of the queue."""
        return self.resources.queues[self._queue].concurrency

    # -- the loop ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Claim and release slots until cancelled. Raises `NotAllowed` if the login lacks the permission."""
        unsubscribe = await self._store.subscribe(self._queue, self._on_update)
        hindered = False
        try:
            while True:
                began = time.monotonic()
                try:
                    await self._step()
                    delay, hindered = self._delay(), False
                except NotAllowed:
                    raise
                except BrokerError as error:
                    level = logging.DEBUG if hindered else logging.WARNING
                    log.log(level, "queue slots not updated", extra={"queue": self._queue, "why": str(error)})
                    delay, hindered, self._next_read = RETRY_SECONDS, True, 0.0
                except Exception:
                    log.exception("queue slots not updated", extra={"queue": self._queue})
                    delay, self._next_read = RETRY_SECONDS, 0.0
                await self._wait(delay, began + MIN_INTERVAL)
        finally:
            await unsubscribe()

    async def release(self) -> None:
        """Release all slots: the worker stops."""
        with contextlib.suppress(BrokerError, TimeoutError):
            async with asyncio.timeout(RELEASE_SECONDS):
                stored = await self._store.change(
                    self._queue, lambda table, _: table.without(self._worker), seconds=RELEASE_SECONDS
                )
                self._store.announce(self._queue, stored)

    def wake(self) -> None:
        """Decide again: the limit may have changed."""
        self._wakeup.set()

    async def _wait(self, delay: float, earliest: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(delay, MIN_INTERVAL)):
                await self._wakeup.wait()
        await asyncio.sleep(max(0.0, earliest - time.monotonic()))
        self._wakeup.clear()

    async def _step(self) -> None:
        """Decide by the known table. If a change is needed, read the table and write it."""
        table, moment = self._known.table, self._store.moment()
        if moment.now >= self._next_read or self._settle(table, moment) != table:
            self._next_read = math.inf
            stored = await self._store.change(
                self._queue, self._settle, seconds=self.seconds / 3, least=self._known.sequence
            )
            self._adopt(stored)
            if stored.written is not None:
                self._store.announce(self._queue, stored)
        self._apply()

    def _settle(self, table: SlotTable, moment: SlotMoment) -> SlotTable:
        """The table after the worker's next change. From now on it uses no slot that it must release."""
        if self.limit is None:
            return table
        if self.lease.lapsed():
            table = table.without(self._worker)  # no job runs here under the former lease
        settled = settle_slots(
            table,
            self._worker,
            self._use(moment.now),
            self.limit,
            now=moment.now,
            until=moment.latest + self.seconds,
        )
        self.gate.slots = min(self.gate.slots, settled.of(self._worker).slots)
        return settled

    def _use(self, now: float) -> SlotUse:
        """How the worker uses its slots now. One slot more than its jobs take lets it pull the next job."""
        if now >= self._idle_check:
            self._least, self._peak, self.gate.peak = self._peak, 0, self.gate.used
            self._idle_check = now + IDLE_SLOT_SECONDS
        used, waiting = self.gate.used, self._dispatcher.pullers.pending(self._queue) + len(self.gate.surplus)
        room = self._dispatcher.limits.capacity(self._queue, self._dispatcher.spare_slots(self._queue))
        wanted = min(used + (max(1, min(room, waiting)) if room > 0 else 0), max(used, self.limit or 0))
        self._peak = max(self._peak, self.gate.peak, wanted)
        return SlotUse(used, wanted, backlog=waiting > 0, least=max(self._least, self._peak))

    def _adopt(self, stored: StoredSlots) -> None:
        """Use the slots that the stored table gives this worker."""
        self._known = stored
        if stored.written is not None:
            self.lease.renewed, self.lease.seconds, self.lease.reported = stored.written, self.seconds, False
        self.gate.slots = stored.table.of(self._worker).slots
        self.gate.interrupt_excess()

    def _apply(self) -> None:
        """Admit deliveries while there are slots, and pull more."""
        limit = self.limit
        if limit is None:
            return
        now, gate, worker = self._store.moment().now, self.gate, self._worker
        live = self._known.table.live(now)
        use = self._use(now)
        gate.usable = usable_slots(live, worker, use, limit, now)
        # Jobs of other queues may have all slots of the worker, but not for long.
        most = min(limit, gate.used + max(1, self._dispatcher.spare_slots(self._queue)))
        gate.may_grow = may_grow(live, worker, most, limit)
        gate.must_release = gate.usable < gate.slots or (gate.slots > 0 and live.has_waiting(worker))
        gate.is_alone = live.held == gate.slots
        gate.admit_held()
        if not gate.is_alone:
            gate.hand_back(time.monotonic())  # other workers have slots, which may be idle
        if gate.credit > 0:
            self._dispatcher.demand()

    def _delay(self) -> float:
        """Seconds until the next decision, if nothing wakes the worker before."""
        limit, now, live = self.limit or 0, self._store.moment().now, self._known.table
        mine, use = live.of(self._worker), self._use(now)
        moments = [now + 3600]
        if use.wanted < max(mine.slots, mine.wanted):
            moments.append(self._idle_check)
        if mine.slots < min(use.wanted, limit):
            others = [one.until for name, one in live.holders.items() if name != self._worker and one.slots]
            ends = [until + LAPSE_MARGIN for until in others]
            self._next_read = min(self._next_read, now + SLOT_POLL_SECONDS, now + self.seconds / 3, *ends)
            moments.append(self._next_read)
        if (
            mine.slots
            and live.has_waiting(self._worker)
            and not is_turn_over(live, self._worker, use, limit, now)
        ):
            moments.append(mine.since + TURN_SECONDS)
        return max(0.0, min(moments) - now) + MIN_INTERVAL

    def _on_update(self, stored: StoredSlots) -> None:
        if stored.sequence > self._known.sequence:
            self._known = stored
            self._wakeup.set()

    # -- the lease ---------------------------------------------------------------------------------------

    async def renew(self, wire: Wire) -> None:
        """Renew the lease of the slots. Called from the thread of the leases."""
        broker, seconds = self.resources.broker, self.seconds
        store = QueueSlotStore(Namespace.on(wire, broker.namespace.subjects.namespace), broker.wire.clock)
        stored = await store.change(
            self._queue,
            lambda table, moment: table.renew(self._worker, moment.latest + seconds),
            seconds=seconds / 3,
        )
        if stored.written is not None:
            renew(self.lease, stored.written)
            self.lease.seconds = seconds
        elif self._worker not in stored.table.holders and self.gate.slots:
            self.lease.renewed = steady_now() - self.lease.seconds  # other workers have its slots

    def lapse(self) -> None:
        """Stop the jobs in the slots: other workers may have the slots by now."""
        if not self.lease.lapsed():
            return
        if self.gate.slots:
            log.warning("queue slots lost", extra={"queue": self._queue, "slots": self.gate.slots})
        self.gate.slots = 0
        self.gate.interrupt_excess()
        self._next_read = 0.0
        self._wakeup.set()


class QueueSlots:
    """The slots of all queues of a worker that have a `concurrency`, which may change while it runs."""

    def __init__(self, broker: Broker, dispatcher: Dispatcher, group: asyncio.TaskGroup) -> None:
        self._broker = broker
        self._dispatcher = dispatcher
        self._group = group
        self._duties: dict[str, tuple[QueueSlotDuty, asyncio.Task[None]]] = {}
        self._refused: set[str] = set()

    def follow(self) -> None:
        """Start the duties of queues that have a limit now, and stop those of queues without one."""
        for queue, settings in self._dispatcher.resources.queues.items():
            if queue in self._duties:
                self._duties[queue][0].wake()
            if settings.concurrency is None:
                self._end(queue)
            elif queue not in self._duties and queue not in self._refused:
                self._begin(queue)
        self._dispatcher.plans.clear()

    async def close(self) -> None:
        """Release all slots, if no job runs any more."""
        duties = [self._stop(queue) for queue in list(self._duties)]
        if not self._dispatcher.attempts:
            await asyncio.gather(*(duty.release() for duty in duties))

    def _begin(self, queue: str) -> None:
        duty = QueueSlotDuty(queue, self._dispatcher)
        self._duties[queue] = duty, self._group.create_task(self._run(duty, queue))
        self._dispatcher.pullers.set_gate(queue, duty.gate)
        self._dispatcher.leases.holds.append(duty)

    async def _run(self, duty: QueueSlotDuty, queue: str) -> None:
        try:
            await duty.run()
        except NotAllowed as error:
            # A login made by an older release: the limit then holds for each priority by itself.
            log.warning("queue slots not used", extra={"queue": queue, "why": str(error)})
            self._refused.add(queue)
            self._end(queue, release=False)

    def _end(self, queue: str, *, release: bool = True) -> None:
        if queue not in self._duties:
            return
        duty = self._stop(queue)
        self._dispatcher.pullers.set_gate(queue, None)
        self._dispatcher.plans.clear()
        duty.gate.open()
        self._dispatcher.demand()
        if release:
            self._group.create_task(duty.release())

    def _stop(self, queue: str) -> QueueSlotDuty:
        duty, running = self._duties.pop(queue)
        if running is not asyncio.current_task():
            running.cancel()
        self._dispatcher.leases.holds.remove(duty)
        return duty
