"""The gate of a queue with a `concurrency`: it lets in as many deliveries as the worker has slots.

Queues without a `concurrency` have no gate. The slots come from the duty `jsq.worker.duties.queue_slots`.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from jsq.broker import Delivery, Lease
from jsq.executors import Execution
from jsq.model.job import PRIORITIES
from jsq.worker.state import AttemptState

SHORT_SECONDS = 0.05
"""Mean run time of the jobs of a queue, in seconds, up to which the next jobs are requested ahead."""

HELD_SECONDS = 0.25
"""Seconds that a delivery waits for a slot of its queue before it is handed back to another worker."""


class GatedRoom(Protocol):
    """The room behind a gate: the dispatcher of the worker."""

    def take(self, delivery: Delivery) -> None: ...

    def spare_slots(self, queue: str) -> int: ...

    def hand_back(self, delivery: Delivery) -> None: ...

    def interrupt(self, only: Iterable[str] | None = None) -> None: ...


class QueueGate:
    """The deliveries of one queue that this worker has let in, and those that wait for a slot of the queue.

    `slots` are held until `lease` lapses, and `usable` of them may be used; the worker must release the
    others. `must_release` is true if other workers wait for slots of this one. `wake` is called when the
    worker needs another slot and `may_grow` is true, and when a job ends and `must_release` is true.
    `is_alone` is true if no other worker has slots. `peak` is the largest number in use since it was reset.

    `held` are the deliveries whose leases the worker renews, by their reply subject. Jobs that ran before the
    queue had a limit use slots, and are not interrupted if slots are missing.
    """

    def __init__(
        self,
        queue: str,
        room: GatedRoom,
        held: dict[str, Delivery],
        lease: Lease,
        wake: Callable[[], None],
    ) -> None:
        self.queue = queue
        self.lease = lease
        self.slots = self.usable = self.peak = 0
        self.may_grow = self.must_release = True
        self.is_alone = False
        self._mean_seconds = HELD_SECONDS
        self.surplus: list[Delivery] = []
        self._room = room
        self._held = held
        self._wake = wake
        self._exempt = {reply for reply, delivery in held.items() if delivery.queue == queue}
        self._admitted = dict.fromkeys(self._exempt, time.monotonic())
        self._lingering = 0

    @property
    def used(self) -> int:
        """How many slots are in use, also by functions that continue after their attempt has ended."""
        return len(self._admitted) + self._lingering

    @property
    def credit(self) -> int:
        """How many more deliveries may be let in."""
        return 0 if self.lease.lapsed() else min(self.slots, self.usable) - self.used

    def demand(self, pending: int) -> int:
        """How many deliveries a puller with waiting messages should request.

        While this worker alone drains short jobs, it requests as many as it has slots, so that one request
        fetches many jobs. The server holds them back until slots are free: a consumer delivers no more than
        the limit.
        """
        if pending and self.is_alone and not self.surplus and self._mean_seconds < SHORT_SECONDS:
            return 0 if self.lease.lapsed() else min(self.slots, self.usable)
        return self.credit

    def take(self, delivery: Delivery) -> None:
        """Admit a delivery, or hold it briefly until there is a slot of the queue and of the worker."""
        if self.surplus or self.credit <= 0 or self._room.spare_slots(self.queue) <= 0:
            self._held[delivery.reply] = delivery
            self.surplus.append(delivery)
            self._wake()
        else:
            self._admit(delivery)

    def admit_held(self) -> None:
        """Admit waiting deliveries while there are slots: higher priorities first."""
        while self.surplus and self.credit > 0 and self._room.spare_slots(self.queue) > 0:
            delivery = min(self.surplus, key=lambda one: PRIORITIES.index(one.priority))
            self.surplus.remove(delivery)
            if not delivery.lease.lapsed():
                self._admit(delivery)

    def ended(self, attempt: AttemptState) -> None:
        """Note that an attempt has ended. Its slot is free when its function has ended or is abandoned."""
        reply = attempt.delivery.reply
        if reply not in self._admitted:
            return
        self._mean_seconds += (time.monotonic() - self._admitted.pop(reply) - self._mean_seconds) / 8
        self._exempt.discard(reply)
        execution = attempt.function.execution
        if execution is not None and not execution.end.done():
            self._linger(execution, attempt.function.grace())
        self._freed()

    def tidy(self) -> None:
        """Free the slots of deliveries that ended without an attempt; hand back those that waited too long.

        The worker then decides about its slots again, because its room may have changed.
        """
        for reply in [one for one in self._admitted if one not in self._held]:
            del self._admitted[reply]
            self._exempt.discard(reply)
            self._freed()
        self.hand_back(time.monotonic() - HELD_SECONDS)
        if self.must_release or (self.may_grow and self.credit <= 0):
            self._wake()

    def hand_back(self, before: float) -> None:
        """Hand back the waiting deliveries that were received `before` a time (monotonic)."""
        late = [one for one in self.surplus if one.received < before]
        for delivery in late:
            self.surplus.remove(delivery)
            self._room.hand_back(delivery)

    def interrupt_excess(self) -> None:
        """Interrupt jobs that run without a slot, the newest first: the worker has lost slots."""
        limited = [reply for reply in self._admitted if reply not in self._exempt]
        if len(limited) > self.slots:
            self._room.interrupt(limited[self.slots :])

    def open(self) -> None:
        """Admit all waiting deliveries: the queue has no limit any more."""
        waiting, self.surplus = self.surplus, []
        for delivery in waiting:
            self._room.take(delivery)

    def _admit(self, delivery: Delivery) -> None:
        self._room.take(delivery)
        if delivery.reply not in self._held:
            return  # a second delivery of a job that runs here
        self._admitted[delivery.reply] = time.monotonic()
        self.peak = max(self.peak, self.used)
        if self.may_grow and self.used >= self.slots:
            self._wake()

    def _freed(self) -> None:
        self.admit_held()
        if self.must_release:
            self._wake()

    def _linger(self, execution: Execution, seconds: float) -> None:
        """Keep the slot of a function that continues until it ends, or until the slot's lease ends."""
        self._lingering += 1
        waits = True

        def free(_: object = None) -> None:
            nonlocal waits
            if waits:
                waits = False
                timer.cancel()
                self._lingering -= 1
                self._freed()

        timer = asyncio.get_running_loop().call_later(seconds, free)
        execution.end.add_done_callback(free)
