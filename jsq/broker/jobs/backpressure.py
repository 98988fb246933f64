"""Backpressure: makes submits wait while a queue, or the server, is full.

The waiting submits of one connection take turns, and only the first of them sends requests: a hundred waiting
submits burden the server no more than one. While there is no room, the pauses between its tries grow. They
have jitter, so that many connections do not try at the same moment. After a try that succeeded, the next one
follows at once.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from jsq.broker.topology.namespace import Namespace
from jsq.errors import BrokerError, BrokerFull, QueueFull
from jsq.transport.replies import FULL

T = TypeVar("T")

FIRST_PAUSE_SECONDS = 0.02
LONGEST_PAUSE_SECONDS = 2.0
"""Seconds of the first and of the longest pause between two tries."""

QUEUE_LIMITS = {"max_jobs": "max_msgs", "max_bytes": "max_bytes"}
"""The limits of a queue, each with its name in the configuration of a stream."""


class WaitForRoom:
    """The time for which a caller waits for room. It starts again each time that there was room."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.renew()

    def renew(self) -> None:
        self._end = time.monotonic() + self._seconds

    @property
    def seconds_left(self) -> float:
        """The remaining seconds, at least 0."""
        return max(0.0, self._end - time.monotonic())


class WaitingSubmits:
    """The submits that wait for room on one queue. `full` is the error of the last try."""

    def __init__(self, full: QueueFull | BrokerFull) -> None:
        self.full = full
        self.length = 0
        self.lock = asyncio.Lock()
        self._pause = FIRST_PAUSE_SECONDS

    def pause(self, *, pick: Callable[[float, float], float] = random.uniform) -> float:
        """The seconds until the next try. They grow with each call."""
        pause, self._pause = (
            self._pause,
            max(FIRST_PAUSE_SECONDS, min(LONGEST_PAUSE_SECONDS, self._pause * 2)),
        )
        return pick(pause / 2, pause)

    def reset_pause(self) -> None:
        """Try again at once: there was room, so there may be more."""
        self._pause = 0.0


class Backpressure:
    """The waiting submits of one connection, by queue."""

    def __init__(self, namespace: Namespace) -> None:
        self._jetstream = namespace.jetstream
        self._subjects = namespace.subjects
        self._waiting: dict[str, WaitingSubmits] = {}

    async def wait(self, queue: str, store: Callable[[], Awaitable[T]], room: WaitForRoom | None) -> T:
        """Call `store`; with `room`, call it again while it raises that there is no room.

        When the time of `room` has passed, raises the `QueueFull` or `BrokerFull` of the last try.
        """
        if room is None:
            return await store()
        if queue not in self._waiting:
            try:
                return await store()
            except FULL as full:
                self._waiting.setdefault(queue, WaitingSubmits(full))
        waiting = self._waiting[queue]
        waiting.length += 1
        try:
            found = await self._store_in_turn(waiting, store, room)
        finally:
            waiting.length -= 1
            if not waiting.length:
                del self._waiting[queue]
        room.renew()
        return found

    async def with_limit(self, full: QueueFull) -> QueueFull:
        """The same error, with the present value of the limit."""
        value = None
        with contextlib.suppress(BrokerError):
            stream = await self._jetstream.stream_info(self._subjects.streams.ready(full.queue))
            value = stream["config"][QUEUE_LIMITS[full.limit]] if stream is not None else None
        return QueueFull(full.queue, full.limit, value)

    async def _store_in_turn(
        self, waiting: WaitingSubmits, store: Callable[[], Awaitable[T]], room: WaitForRoom
    ) -> T:
        try:
            async with asyncio.timeout(room.seconds_left):
                await waiting.lock.acquire()
        except TimeoutError:
            raise copy_full_error(waiting.full) from None
        try:
            return await self._retry_until_room(waiting, store, room)
        finally:
            waiting.lock.release()

    async def _retry_until_room(
        self, waiting: WaitingSubmits, store: Callable[[], Awaitable[T]], room: WaitForRoom
    ) -> T:
        while True:
            await asyncio.sleep(min(waiting.pause(), room.seconds_left))
            try:
                found = await store()
            except FULL as full:
                waiting.full = full
                if not room.seconds_left:
                    raise
            else:
                waiting.reset_pause()
                return found


def copy_full_error(full: QueueFull | BrokerFull) -> QueueFull | BrokerFull:
    """A copy of the error for another caller: two callers must not raise the same exception object."""
    if isinstance(full, QueueFull):
        return QueueFull(full.queue, full.limit, full.value)
    return BrokerFull(str(full))
