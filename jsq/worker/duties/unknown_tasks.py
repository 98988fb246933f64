"""Jobs of tasks that this worker does not know: they reach a worker that knows the task within seconds.

The worker gives the delivery to a worker that knows the task and has a free slot, without a record and
without an attempt. While all of them are busy, the message moves to the end of its queue, after a delay that
grows: the jobs behind it must not wait for it. If no worker knows the task, the job is snoozed. The worker
remembers it, and has it start as soon as a worker that knows the task has started, or when this worker stops.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from jsq.broker import Broker, Delivery
from jsq.broker.delivery.delivery import OFFERS
from jsq.errors import BrokerError, UsageError

log = logging.getLogger("jsq.worker")

MIN_OFFER_DELAY, MAX_OFFER_DELAY = 0.1, 2.0
"""The least and the most seconds before a message at the end of its queue is offered again."""

OFFER_SECONDS = 0.002
"""Mean seconds between two offers of this worker: a long backlog of another App must not keep it busy."""

MAX_OFFERS_AT_ONCE = 100

MOST_REMEMBERED = 10_000
"""Snoozed jobs that are remembered. Others return when their snooze is over."""

REMEMBERED_CHECK_SECONDS = 5.0
"""Seconds between two checks for workers that know the tasks of remembered jobs: an answer may be lost."""

PROMOTED_AT_ONCE = 20

CLOSE_SECONDS = 3.0
"""Seconds that a worker that stops takes at most for the jobs that it has snoozed."""


class GivenRoom(Protocol):
    """The room for deliveries from other workers, beside those that the pullers fetch."""

    def has_free_slot(self, queue: str) -> bool: ...

    def take_given(self, delivery: Delivery) -> None: ...

    def lease_of(self, queue: str) -> float: ...


class UnknownTasks:
    """Gives away the jobs of tasks that the worker `name` does not know, and remembers those it snoozes.

    `takes` is whether the worker takes jobs of a task. `room` is set before the worker subscribes.
    """

    room: GivenRoom

    def __init__(self, broker: Broker, name: str, takes: Callable[[str], bool]) -> None:
        self.name = name
        self.takes = takes
        self._broker = broker
        self._snoozed: dict[tuple[str, str], tuple[str, float]] = {}
        self._started = asyncio.Event()
        self._given: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self._next_offer = 0.0
        self._closed = False

    async def offer(self, delivery: Delivery, task: str) -> bool:
        """Pass a delivery on, if a live worker knows its task. False if none does.

        The delivery is then given to the other worker, or handed back, or its message is requeued.
        """
        await self._wait_for_turn()
        knower = await self._broker.task_knowers.find(delivery.queue, task)
        if knower.worker and not delivery.lease.lapsed():
            if not await self._broker.task_knowers.give(delivery, knower.worker):
                self._broker.wire.send(delivery.reply, b"-NAK")
        elif knower.exists:
            delay = min(MIN_OFFER_DELAY * 2 ** min(delivery.offers, 10), MAX_OFFER_DELAY)
            marks = {OFFERS: str(delivery.offers + 1)}
            await self._broker.job_writer.requeue(delivery, delay, marks=marks)
            self._broker.wire.send(delivery.reply, b"+ACK")
        return knower.exists

    async def _wait_for_turn(self) -> None:
        now = time.monotonic()
        self._next_offer = max(now - OFFER_SECONDS * MAX_OFFERS_AT_ONCE, self._next_offer) + OFFER_SECONDS
        if self._next_offer > now:
            await asyncio.sleep(self._next_offer - now)

    # -- deliveries from other workers -------------------------------------------------------------------

    def has_room(self, queue: str) -> bool:
        """Whether a job of a queue could start here now."""
        return self.room.has_free_slot(queue)

    def receive(self, queue: str, reply: str) -> bool:
        """Take a delivery that another worker gives to this one; False if this one is stopping."""
        if self._closed:
            return False
        self._given.put_nowait((queue, reply))
        return True

    async def run(self) -> None:
        """Take the deliveries that other workers give, and watch the snoozed jobs. Runs until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._take_given())
            group.create_task(self._watch_snoozed())

    async def _take_given(self) -> None:
        while True:
            queue, reply = await self._given.get()
            try:
                delivery = await self._broker.task_knowers.read(queue, reply, self.room.lease_of(queue))
            except (BrokerError, ValueError, KeyError, IndexError) as error:
                self._broker.wire.send(reply, b"-NAK")
                log.info("given delivery not read", extra={"queue": queue, "why": str(error)})
                continue
            if delivery is not None:
                self._broker.wire.send(reply, b"+WPI")
                self.room.take_given(delivery)

    # -- snoozed jobs ------------------------------------------------------------------------------------

    def remember(self, queue: str, id: str, task: str, delay: float) -> None:
        """Remember a job that is snoozed for some seconds, because no worker of its queue knows its task."""
        now = time.monotonic()
        if len(self._snoozed) >= MOST_REMEMBERED:
            self._snoozed = {key: one for key, one in self._snoozed.items() if one[1] > now}
        if len(self._snoozed) < MOST_REMEMBERED:
            self._snoozed[queue, id] = task, now + delay

    def announce(self, queues: Iterable[str]) -> None:
        """Announce that this worker takes jobs of some queues."""
        for queue in queues:
            self._broker.task_knowers.announce(queue)

    def worker_started(self, queue: str) -> None:
        """Note that a worker of a queue has started."""
        self._started.set()

    async def _watch_snoozed(self) -> None:
        """Have the snoozed jobs start whose tasks another worker knows now. Runs until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REMEMBERED_CHECK_SECONDS):
                    await self._started.wait()
            self._started.clear()
            tasks = {(queue, task) for (queue, _), (task, _) in self._snoozed.items()}
            known = {key for key in tasks if (await self._broker.task_knowers.find(*key)).exists}
            await self._promote([key for key, one in self._snoozed.items() if (key[0], one[0]) in known])

    async def close(self) -> None:
        """Hand back what was given just now, and have the remembered jobs start, for other workers."""
        self._closed = True
        while not self._given.empty():
            self._broker.wire.send(self._given.get_nowait()[1], b"-NAK")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._promote(list(self._snoozed))

    async def _promote(self, jobs: list[tuple[str, str]]) -> None:
        now = time.monotonic()
        found = [(key, self._snoozed.pop(key, ("", 0.0))[1]) for key in jobs]
        early = [key for key, due in found if due > now]
        for start in range(0, len(early), PROMOTED_AT_ONCE):
            page = early[start : start + PROMOTED_AT_ONCE]
            await asyncio.gather(*(self._promote_one(queue, id) for queue, id in page))

    async def _promote_one(self, queue: str, id: str) -> None:
        with contextlib.suppress(BrokerError, UsageError):  # it was cancelled, moved, or is due now
            await self._broker.reschedule.reschedule(id, queue, asked="promoted")
