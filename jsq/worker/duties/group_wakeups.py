"""Wake-ups of key groups: workers admit waiting jobs when a wake-up announces that there may be room."""

import asyncio
import logging
from collections.abc import Container

from jsq.broker import Broker, ConsumerAddress, Delivery, Puller, PullHandlers
from jsq.broker.topology.configs import WAKEUP_LEASE, WAKEUPS
from jsq.errors import BrokerError

log = logging.getLogger("jsq.worker")

MAX_KEYS = 50
"""Keys of one queue that a worker handles at the same time."""


class GroupWakeups:
    """Handles the wake-ups of a queue: each announces that a job was added to a key group."""

    def __init__(self, broker: Broker, queue: str, group: asyncio.TaskGroup) -> None:
        self._broker = broker
        self._queue = queue
        self._group = group
        self._handling: set[asyncio.Task[None]] = set()
        self._groups_exist = asyncio.Event()
        self._puller: Puller | None = None
        self._closed = False

    async def run(self) -> None:
        """Handle wake-ups once the queue has key groups, which is announced. Runs until cancelled."""
        wire, subjects = self._broker.wire, self._broker.subjects
        subscription = await wire.subscribe(
            subjects.groups.created(self._queue), lambda message: self._groups_exist.set()
        )
        try:
            if await self._broker.streams.has_groups(self._queue):
                self._groups_exist.set()
            await self._ensure_groups()
            stream = subjects.streams.group_state(self._queue)
            self._puller = puller = Puller(
                wire,
                ConsumerAddress(self._queue, stream, WAKEUPS, WAKEUP_LEASE),
                PullHandlers(self._take, lambda puller: MAX_KEYS - len(self._handling)),
            )
            await puller.open()
            await puller.watch()
        finally:
            self._closed = True
            await wire.unsubscribe(subscription)

    async def check(self, removed: Container[str]) -> None:
        """Check for key groups, in case the announcement was lost, and create a missing consumer again.

        The consumer of a queue that is in `removed` when the server has answered is not created.
        """
        streams, stream = self._broker.streams, self._broker.subjects.streams.group_state(self._queue)
        if not self._groups_exist.is_set():
            if await streams.has_groups(self._queue):
                self._groups_exist.set()
        elif (
            await self._broker.jetstream.consumer_info(stream, WAKEUPS) is None and self._queue not in removed
        ):
            streams.forget()
            await streams.ensure_groups(self._queue)

    async def close(self) -> None:
        """Stop pulling. Another worker gets the wake-ups that are not handled yet."""
        if self._puller is not None:
            await self._puller.close()
        for handling in self._handling:
            handling.cancel()

    async def _ensure_groups(self) -> None:
        """Wait until the queue has key groups, and create what is missing of their streams."""
        while True:
            await self._groups_exist.wait()
            try:
                return await self._broker.streams.ensure_groups(self._queue)
            except BrokerError as error:
                log.warning("key group streams not created", extra={"queue": self._queue, "why": str(error)})
                self._groups_exist.clear()

    def _take(self, delivery: Delivery) -> None:
        if self._closed:
            return  # another worker gets the wake-up: this one is about to close its connection
        handling = self._group.create_task(self._handle(delivery))
        self._handling.add(handling)
        handling.add_done_callback(self._discard)

    async def _handle(self, delivery: Delivery) -> None:
        lease = delivery.lease
        try:
            await self._broker.key_groups.admit(self._queue, delivery.id, while_=lambda: not lease.lapsed())
        except BrokerError as error:
            log.info("wake-up not handled", extra={"queue": self._queue, "why": str(error)})
        except Exception:
            # The jobs of one key must not end this worker, and then the next one.
            log.exception("wake-up not handled", extra={"queue": self._queue, "token": delivery.id})
        else:
            self._broker.wire.send(delivery.reply, b"+ACK")

    def _discard(self, handling: asyncio.Task[None]) -> None:
        self._handling.discard(handling)
        if self._puller is not None:
            self._puller.request()
