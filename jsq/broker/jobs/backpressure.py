"""Room on a full queue, or a full server: who waits for it, and how often it is asked for.

Those of one connection stand in line, and only the first of them asks: a hundred who wait burden the server
no more than one does. While there is no room the pauses grow, with jitter, so that many connections do not
ask at the same moment; once there was some, it is asked for at once.
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
"""Seconds of the first pause between two tries, and of the longest."""

QUEUE_LIMITS = {"max_jobs": "max_msgs", "max_bytes": "max_bytes"}
"""A queue's limits, and what the server calls them."""


class WaitForRoom:
    """How long someone waits for room: so many seconds, counted anew whenever some was found."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.renew()

    def renew(self) -> None:
        self._end = time.monotonic() + self._seconds

    @property
    def left(self) -> float:
        """Seconds that are left, never less than none."""
        return max(0.0, self._end - time.monotonic())


class WaitingSubmits:
    """Those who wait for room on one queue; `full` is how the last try ended."""

    def __init__(self, full: QueueFull | BrokerFull) -> None:
        self.full = full
        self.length = 0
        self.turn = asyncio.Lock()
        self._pause = FIRST_PAUSE_SECONDS

    def pause(self, *, pick: Callable[[float, float], float] = random.uniform) -> float:
        """Seconds until the next try, each time more."""
        pause, self._pause = (
            self._pause,
            max(FIRST_PAUSE_SECONDS, min(LONGEST_PAUSE_SECONDS, self._pause * 2)),
        )
        return pick(pause / 2, pause)

    def moves(self) -> None:
        """There was room, so there may be more."""
        self._pause = 0.0


class Backpressure:
    """The lines of one connection."""

    def __init__(self, namespace: Namespace) -> None:
        self._jetstream = namespace.jetstream
        self._subjects = namespace.subjects
        self._waiting: dict[str, WaitingSubmits] = {}

    async def wait(self, queue: str, store: Callable[[], Awaitable[T]], room: WaitForRoom | None) -> T:
        """Store something for which there may be no room; with `room`, try again until there is.

        Raises `QueueFull` or `BrokerFull`, as the last try did, when the wait has ended.
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
            found = await self._wait_for_turn(waiting, store, room)
        finally:
            waiting.length -= 1
            if not waiting.length:
                del self._waiting[queue]
        room.renew()
        return found

    async def with_limit(self, full: QueueFull) -> QueueFull:
        """The same error, with the value that the limit has now."""
        value = None
        with contextlib.suppress(BrokerError):
            stream = await self._jetstream.stream_info(self._subjects.streams.ready(full.queue))
            value = stream["config"][QUEUE_LIMITS[full.limit]] if stream is not None else None
        return QueueFull(full.queue, full.limit, value)

    async def _wait_for_turn(
        self, waiting: WaitingSubmits, store: Callable[[], Awaitable[T]], room: WaitForRoom
    ) -> T:
        try:
            async with asyncio.timeout(room.left):
                await waiting.turn.acquire()
        except TimeoutError:
            raise copy_full_error(waiting.full) from None
        try:
            return await self._retry_until_room(waiting, store, room)
        finally:
            waiting.turn.release()

    async def _retry_until_room(
        self, waiting: WaitingSubmits, store: Callable[[], Awaitable[T]], room: WaitForRoom
    ) -> T:
        while True:
            await asyncio.sleep(min(waiting.pause(), room.left))
            try:
                found = await store()
            except FULL as full:
                waiting.full = full
                if not room.left:
                    raise
            else:
                waiting.moves()
                return found


def copy_full_error(full: QueueFull | BrokerFull) -> QueueFull | BrokerFull:
    """A copy of the error for another caller: each raised error has one owner."""
    if isinstance(full, QueueFull):
        return QueueFull(full.queue, full.limit, full.value)
    return BrokerFull(str(full))
