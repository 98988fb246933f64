"""Wake-ups of key groups: workers admit waiting jobs when a wake-up says that there may be room."""

import asyncio
import logging

from jsq.broker import Broker, ConsumerAddress, Delivery, Puller, PullHandlers
from jsq.broker.topology.configs import WAKEUP_LEASE, WAKEUPS
from jsq.errors import BrokerError

log = logging.getLogger("jsq.worker")

MAX_KEYS = 50
"""Keys of one queue that a worker handles at the same time."""


class GroupWakeups:
    """Handles the wake-ups of a queue: each says that a job was added to a key group."""

    def __init__(self, broker: Broker, queue: str, group: asyncio.TaskGroup) -> None:
        self._broker = broker
        self._queue = queue
        self._group = group
        self._answering: set[asyncio.Task[None]] = set()
        self._told = asyncio.Event()
        self._puller: Puller | None = None
        self._over = False

    async def run(self) -> None:
        """Answer from when the queue has lines; that is said to all its workers. Runs until cancelled."""
        wire, names = self._broker.wire, self._broker.subjects
        hearing = await wire.subscribe(names.groups_created(self._queue), lambda message: self._told.set())
        try:
            if await self._broker.streams.has_groups(self._queue):
                self._told.set()
            await self._lines_stand()
            stream = names.group_state_stream(self._queue)
            self._puller = puller = Puller(
                wire,
                ConsumerAddress(self._queue, stream, WAKEUPS, WAKEUP_LEASE),
                PullHandlers(self._taken, lambda puller: MAX_KEYS - len(self._answering)),
            )
            await puller.open()
            await puller.watch()
        finally:
            self._over = True
            await wire.unsubscribe(hearing)

    async def check(self) -> None:
        """See whether there are lines by now, though nobody told us, and whether their consumer stands."""
        streams, stream = self._broker.streams, self._broker.subjects.group_state_stream(self._queue)
        if not self._told.is_set():
            if await streams.has_groups(self._queue):
                self._told.set()
        elif await self._broker.jetstream.consumer_info(stream, WAKEUPS) is None:
            streams.forget()
            await streams.ensure_groups(self._queue)

    async def close(self) -> None:
        """Ask for no more. What is not answered yet, another will."""
        if self._puller is not None:
            await self._puller.close()
        for answering in self._answering:
            answering.cancel()

    async def _lines_stand(self) -> None:
        """Wait until the queue has lines, and see that they are whole."""
        while True:
            await self._told.wait()
            try:
                return await self._broker.streams.ensure_groups(self._queue)
            except BrokerError as error:
                log.warning("key group streams not created", extra={"queue": self._queue, "why": str(error)})
                self._told.clear()

    def _taken(self, delivery: Delivery) -> None:
        if self._over:
            return  # another worker gets the wake-up: this one is about to close its connection
        answering = self._group.create_task(self._answer(delivery))
        self._answering.add(answering)
        answering.add_done_callback(self._answered)

    async def _answer(self, delivery: Delivery) -> None:
        lease = delivery.lease
        try:
            await self._broker.key_groups.admit(self._queue, delivery.id, until=lambda: not lease.lapsed())
        except BrokerError as error:
            log.info("wake-up not handled", extra={"queue": self._queue, "why": str(error)})
        except Exception:
            # What stands in the line of one key is not to end a worker, nor the next one after it.
            log.exception("wake-up not handled", extra={"queue": self._queue, "token": delivery.id})
        else:
            self._broker.wire.send(delivery.reply, b"+ACK")

    def _answered(self, answering: asyncio.Task[None]) -> None:
        self._answering.discard(answering)
        if self._puller is not None:
            self._puller.request()
