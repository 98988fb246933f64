"""The dispatcher starts the deliveries that a worker holds while there are free slots, and stops them.

It decides nothing about a single job: the ready queue chooses the next job, and the attempt decides its
outcome.
"""

import asyncio
import functools
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping

from jsq.broker import Delivery, Leases
from jsq.errors import LeaseLost
from jsq.model.outcome import Cancelled, Interrupted
from jsq.worker.attempt import Attempt
from jsq.worker.duties.abandoned import Abandoned
from jsq.worker.pullers import PullerSet
from jsq.worker.ready_queue import ReadyQueue
from jsq.worker.resources import Resources
from jsq.worker.run import FunctionRun, TaskRun
from jsq.worker.slots import SLOTS_MEMBER, JobSlots
from jsq.worker.stages.order import build_stages
from jsq.worker.stages.plans import StagePlans
from jsq.worker.stages.rate_limits import RateLimits
from jsq.worker.straight import DirectRun, StraightPlans, run_straight

log = logging.getLogger("jsq.worker")

MAX_SLOT_WAIT = 1.0
"""Seconds that a delivery waits for a slot before it is handed back to a worker that may have one."""


class Dispatcher:
    """The deliveries of one worker: those that wait here for a slot, and those that run.

    `occupied` counts the slots in use, `done` the attempts that have ended. No attempt starts once `stopping`
    is set. `_open` is the number of slots, and `_capacity` that of all deliveries held, while starts are not
    suspended.
    """

    def __init__(
        self, resources: Resources, limits: RateLimits, weights: Mapping[str, int], stopping: asyncio.Event
    ) -> None:
        self.resources = resources
        self.limits = limits
        self.attempts: dict[str, Attempt] = {}  # by the reply subject of their delivery
        self.occupied = 0
        self.done = 0
        self.idle = asyncio.Event()
        self.stopping = stopping
        self.abandoned = Abandoned(resources.observer)
        strict = resources.settings.strict
        order = tuple(resources.queues) if strict else ()
        self.waiting = ReadyQueue(weights, lambda: self.pullers.waiting(), order=order)
        self.pullers = PullerSet(limits, self, weighted=bool(weights), strict=strict)
        self._most = self._open = resources.settings.concurrency
        self._capacity = self._most + resources.settings.prefetch
        self._slots = JobSlots(resources.app, self._most)
        self._by_message: dict[tuple[str, int], Attempt] = {}
        self._big: Delivery | None = None
        self.leases = Leases(resources.app.client.login, self.lapse)
        resources.holders.attempts, resources.holders.leases = self.attempts, self.leases
        self._loop = asyncio.get_running_loop()
        stages, self.batches = build_stages(resources, limits, self.abandoned, self, self.pullers.gates)
        self.plans = StagePlans(resources, stages)
        self.closing = False
        self.straight_plans = StraightPlans(self, resources)
        self._demanding = False
        self._suspensions = 0

    # -- room --------------------------------------------------------------------------------------------

    def room(self, queue: str) -> int:
        """How many more deliveries of a queue this worker can hold; negative once it stops."""
        if self.stopping.is_set():
            return -1
        if self._big is not None:
            return 0
        room = self._capacity - self.occupied - self.waiting.count
        if self.batches.open and self.occupied < self._open:
            room += self.batches.missing(queue)
        return room

    def share(self, queue: str) -> int:
        """The share of a queue in the next starts by its weight, without the deliveries held already."""
        own = self.room(queue)
        room, waiting = own + self.waiting.count, self.pullers.waiting()
        if room <= 0 or self._big is not None or self.stopping.is_set() or queue not in waiting:
            return own
        return self.waiting.share(queue, room, waiting)

    def spare_slots(self, queue: str) -> int:
        """How many more jobs of a queue this worker could start now."""
        return self.room(queue) - self.resources.settings.prefetch

    def demand(self) -> None:
        """Pull more deliveries soon, if there is room: at most once in a turn of the event loop."""
        if not self._demanding:
            self._demanding = True
            self._loop.call_soon(self._demand_now)

    def _demand_now(self) -> None:
        self._demanding = False
        self.pullers.demand()

    # -- start and end -----------------------------------------------------------------------------------

    def take(self, delivery: Delivery) -> None:
        """Hold a delivery, and start deliveries while there are slots."""
        running = self._by_message.get((delivery.queue, delivery.sequence))
        if running is not None and running.has_lease():
            return  # a server that was killed may deliver a message again that runs and is settled here
        self.leases.held[delivery.reply] = delivery
        slots, waiting = self._slots, self.waiting
        if (
            self.occupied < self._open
            # No delivery is in front of this one, and it takes one slot.
            and not (waiting.count or waiting.shares or self.batches.closed or slots.declared)
            and slots.known == len(self.resources.app.tasks)
            and SLOTS_MEMBER not in delivery.raw
            and not self.stopping.is_set()
        ):
            self._start(delivery, 1)
            return
        waiting.add(delivery)
        self.fill()

    def _takes_one_slot(self, delivery: Delivery) -> bool:
        """Whether a job is known to take one slot without decoding it."""
        slots = self._slots
        if slots.declared or slots.known != len(self.resources.app.tasks):
            return False
        return SLOTS_MEMBER not in delivery.raw

    def fill(self) -> None:
        """Start held deliveries while there are slots; batches that wait for a slot come first."""
        self._big = None
        while self.batches.closed and self.occupied < self._open:
            self.occupied += 1
            self.batches.begin()
        while self.occupied < self._open and self.waiting.count and not self.stopping.is_set():
            delivery = self.waiting.next()
            if delivery is None:
                return
            slots = 1 if self._takes_one_slot(delivery) else self._slots.of(delivery)
            if self.occupied + slots > self._most:
                self._big = delivery  # it waits for more slots, and no other delivery starts before it
                return
            self.waiting.remove_next(delivery)
            self._start(delivery, slots)

    def free(self, slots: int = 1) -> None:
        """Free slots, and start the deliveries that wait for them."""
        self.occupied -= slots
        self.fill()

    def attempt(self, delivery: Delivery, function: FunctionRun | None = None) -> Attempt:
        """An attempt of a delivery, which does not run yet."""
        resources = self.resources
        attempt = Attempt(delivery, resources, function or TaskRun(resources.timings.unwind))
        attempt.plans = self.plans
        return attempt

    def _start(self, delivery: Delivery, slots: int) -> None:
        self.occupied += slots
        plan = self.straight_plans.find(delivery)
        if plan is None:
            attempt = self.attempt(delivery)
            running = self._run(attempt, attempt.run)
        else:
            attempt = Attempt(delivery, self.resources, DirectRun(plan.unwind))
            attempt.plans, attempt.job = self.plans, plan.job
            running = run_straight(attempt, plan)
        attempt.slots = slots
        self.attempts[delivery.reply] = attempt
        self._by_message[delivery.queue, delivery.sequence] = attempt
        attempt.runner = self._loop.create_task(running)

    async def _run(self, attempt: Attempt, steps: Callable[[], Awaitable[None]]) -> None:
        try:
            await steps()
        finally:
            self.end(attempt)

    def conclude(self, attempt: Attempt, steps: Callable[[], Awaitable[None]]) -> None:
        """Take an attempt to its end in another asyncio task than the one that its function runs in."""
        carry_out = functools.partial(attempt.carry_out, steps)
        attempt.runner = self._loop.create_task(self._run(attempt, carry_out))

    def end(self, attempt: Attempt) -> None:
        """Free the slots of an ended attempt; the slots of an abandoned function a little later."""
        self.done += 1
        delivery = attempt.delivery
        self.leases.held.pop(delivery.reply, None)
        if self.attempts.get(delivery.reply) is attempt:
            del self.attempts[delivery.reply]
        message = (delivery.queue, delivery.sequence)
        if self._by_message.get(message) is attempt:
            del self._by_message[message]
        if not self.attempts:
            self.idle.set()
        if attempt.function.execution is None and attempt.function.has_slot:
            self.occupied -= attempt.slots
            if self.waiting.count or self.batches.closed:
                self.fill()
        else:
            self._free_slots_of(attempt)
        if not self._demanding:
            self._demanding = True
            self._loop.call_soon(self._demand_now)

    def _free_slots_of(self, attempt: Attempt) -> None:
        function = attempt.function
        if not function.has_slot:
            return
        execution = function.execution
        if execution is None or execution.end.done():
            self.free(attempt.slots)
        else:
            free = functools.partial(self.free, attempt.slots)
            self.abandoned.leave(attempt.job, execution, function.grace(), free)

    def suspend_starts(self) -> None:
        """Start and pull nothing, and hand back the waiting deliveries, until as many `resume_starts`."""
        self._suspensions += 1
        self._open, self._capacity = 0, -1
        self.hand_back_waiting()

    def resume_starts(self) -> None:
        """Start and pull again, unless starts are suspended for another reason too."""
        self._suspensions -= 1
        if self._suspensions:
            return
        self._open = self._most
        self._capacity = self._most + self.resources.settings.prefetch
        self.fill()
        self.demand()

    # -- hand back and stop ------------------------------------------------------------------------------

    def hand_back_waiting(self) -> None:
        """Hand back every delivery that has not started."""
        for gate in self.pullers.gates.values():
            gate.hand_back(math.inf)
        for delivery in self.waiting.drain():
            self.hand_back(delivery)

    def hand_back_surplus(self) -> None:
        """Hand back the deliveries that have waited too long for a slot here, the lowest priority first."""
        surplus = self.waiting.count - max(0, self._capacity - self._most)
        late = time.monotonic() - MAX_SLOT_WAIT
        for delivery in self.waiting.take_lowest(surplus, late, but=self._big):
            self.hand_back(delivery)
        for gate in self.pullers.gates.values():
            gate.tidy()
        self.batches.hand_back_late(MAX_SLOT_WAIT)

    def cancel(self, id: str) -> bool:
        """End the attempts of a job; False if none runs here."""
        found = [attempt for attempt in self.attempts.values() if attempt.delivery.id == id]
        for attempt in found:
            attempt.stop(Cancelled())
        return bool(found)

    def interrupt(self, only: Iterable[str] | None = None) -> None:
        """End every attempt, or only those of some deliveries: their jobs are handed back."""
        for reply in list(self.attempts if only is None else only):
            attempt = self.attempts.get(reply)
            if attempt is not None:
                attempt.stop(Interrupted())
            elif (delivery := self.leases.held.get(reply)) is not None and self.waiting.remove(delivery):
                self.hand_back(delivery)

    def lapse(self, delivery: Delivery, cut_off: bool) -> None:
        """End the attempt of a delivery whose lease lapsed: another worker may take over the job now.

        An attempt that was `cut_off` from the server counts as interrupted, if it can still record that. An
        attempt that cannot be ended continues, and keeps the job unless another worker has reclaimed it.
        """
        self.leases.held.pop(delivery.reply, None)
        attempt = self.attempts.get(delivery.reply)
        if attempt is None:
            self.waiting.remove(delivery)
        elif cut_off and attempt.goes_on():
            self.resources.holders.regain(attempt)
        else:
            attempt.cut_off = cut_off
            attempt.stop(Interrupted() if cut_off else LeaseLost(f"the lease of job {delivery.id} lapsed"))

    def set_lease(self, queue: str, seconds: float) -> None:
        """Apply a new lease of a queue while this worker runs."""
        self.pullers.set_lease(queue, seconds)
        for attempt in self.attempts.values():
            if attempt.delivery.queue == queue:
                attempt.delivery.lease.seconds = seconds

    async def close(self) -> None:
        """End the attempts that still run: they cannot reach the server, and their leases will lapse."""
        self.closing = True
        left = [attempt.runner for attempt in self.attempts.values() if attempt.runner is not None]
        for runner in left:
            runner.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self.batches.end()
        self.resources.threads.close()
        await self.resources.holders.close()
        await self.resources.processes.close()
        await self.leases.stop()

    def hand_back(self, delivery: Delivery) -> None:
        """Hand back a delivery that has not started."""
        self.leases.held.pop(delivery.reply, None)
        if not delivery.lease.lapsed():
            self.resources.broker.wire.send(delivery.reply, b"-NAK")
        self.resources.observer.handed_back(delivery.queue)


class LimitedDispatcher(Dispatcher):
    """A dispatcher that stops its worker gently once `max_jobs` of its jobs have run.

    `spent` is true then. A class of its own, so that a worker without this limit counts nothing.
    """

    def __init__(
        self, resources: Resources, limits: RateLimits, weights: Mapping[str, int], stopping: asyncio.Event
    ) -> None:
        super().__init__(resources, limits, weights, stopping)
        self._left = resources.settings.max_jobs or 0

    @property
    def spent(self) -> bool:
        return self._left <= 0

    def end(self, attempt: Attempt) -> None:
        """End an attempt, and stop the worker after the last one. A delivery that did not start is no job."""
        super().end(attempt)
        if attempt.token:
            self._left -= 1
            if self._left == 0:
                log.info("job limit reached", extra={"worker": self.resources.name, "jobs": self.done})
                self.stopping.set()
