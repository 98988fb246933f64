"""Workers move the due jobs of their queues to where they wait: one worker gets each message."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Iterable

from jsq.broker import Broker, ConsumerAddress, Delivery, Puller, PullHandlers
from jsq.broker.flow.due_jobs import MoveResult
from jsq.broker.topology.configs import DUE_CONSUMER, DUE_LEASE
from jsq.errors import BrokerError, NotAllowed

log = logging.getLogger("jsq.worker")

MAX_MOVES = 100
"""Due jobs of one queue that a worker moves at the same time."""

REDELIVERY_SECONDS = (0.05, 0.1, 0.2, 0.4)
"""Seconds until a job that had no room is offered again: after one, two, three, or more deliveries."""

WAITING_SECONDS = (*REDELIVERY_SECONDS, 1.0, 2.0, DUE_LEASE)
"""The same for a job that waits already, because a worker died between its store and its acknowledgement.

It may wait for hours. If many such jobs were offered often, the workers would move no other job.
"""


class DueJobMoves:
    """The moves of a worker's queues."""

    def __init__(self, broker: Broker, queues: Iterable[str]) -> None:
        self._broker = broker
        self._due = broker.due_jobs
        self._moving: dict[str, set[asyncio.Task[None]]] = {queue: set() for queue in queues}
        self._full: set[str] = set()
        self._closed = False
        self._pullers = {
            queue: Puller(
                broker.wire,
                ConsumerAddress(queue, broker.subjects.streams.scheduled(queue), DUE_CONSUMER, DUE_LEASE),
                PullHandlers(self._take, self._room),
            )
            for queue in self._moving
        }

    async def run(self) -> None:
        """Move due jobs until cancelled."""
        async with asyncio.TaskGroup() as group:
            for puller in self._pullers.values():
                await puller.open()
                group.create_task(puller.watch())
            for puller in self._pullers.values():
                try:
                    await puller.check()
                except NotAllowed as error:
                    log.warning("due jobs not pulled", extra={"queue": puller.queue, "why": str(error)})

    async def close(self) -> None:
        """Stop pulling, and finish the current moves; another worker gets the others."""
        self._closed = True
        for puller in self._pullers.values():
            await puller.close()
        moving = [task for tasks in self._moving.values() for task in tasks]
        if moving:
            _, left = await asyncio.wait(moving, timeout=DUE_LEASE)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    def _room(self, puller: Puller) -> int:
        if self._closed or puller.queue in self._full:
            return 0
        return MAX_MOVES - len(self._moving[puller.queue])

    def _take(self, delivery: Delivery) -> None:
        task = asyncio.get_running_loop().create_task(self._move(delivery))
        self._moving[delivery.queue].add(task)
        task.add_done_callback(functools.partial(self._moved, delivery.queue))

    def _moved(self, queue: str, task: asyncio.Task[None]) -> None:
        self._moving[queue].discard(task)
        self._pullers[queue].request()

    async def _move(self, delivery: Delivery) -> None:
        """Move a job, then settle its message; or leave it to the next delivery."""
        about = {"queue": delivery.queue, "job": delivery.id}
        try:
            result = await self._due.move(delivery)
        except BrokerError as error:
            log.debug("due job not moved", extra={**about, "why": str(error)})
        except Exception:
            log.exception("due job not moved", extra=about)
        else:
            self._end(delivery, result)

    def _end(self, delivery: Delivery, result: MoveResult) -> None:
        """Acknowledge a job that has moved; have the server offer another one again, after a while."""
        if result is MoveResult.MOVED:
            self._settle(delivery, b"+ACK")
            return
        waits = WAITING_SECONDS if result is MoveResult.WAITS_ALREADY else REDELIVERY_SECONDS
        delay = waits[min(delivery.number, len(waits)) - 1]
        self._settle(delivery, b'-NAK {"delay": %d}' % (delay * 10**9))
        if result is MoveResult.NO_ROOM:
            self._pause(delivery.queue, delay)

    def _pause(self, queue: str, seconds: float) -> None:
        """Request no due jobs of a queue for a while: it may be full."""
        if queue not in self._full:
            self._full.add(queue)
            asyncio.get_running_loop().call_later(seconds, self._resume, queue)

    def _resume(self, queue: str) -> None:
        self._full.discard(queue)
        self._pullers[queue].request()

    def _settle(self, delivery: Delivery, word: bytes) -> None:
        with contextlib.suppress(BrokerError):
            if not delivery.lease.lapsed():
                self._broker.wire.send(delivery.reply, word)
