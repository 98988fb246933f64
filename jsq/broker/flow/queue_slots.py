"""The slots of queues: one record for each queue with a `concurrency`, written by compare-and-set.

The workers of the queue share the record. A worker that changes the record announces the change with the
record itself, so that the other workers need not read it. If an announcement is lost, they read the record
seconds later.
"""

import asyncio
import contextlib
import functools
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from jsq.broker.delivery.delivery import now as steady_now
from jsq.broker.jobs.records import EXPECTED, TTL
from jsq.broker.topology.namespace import Namespace
from jsq.codec.queue_slots import decode_slots, encode_slots
from jsq.model.queue_slots import SlotTable
from jsq.transport.replies import NoResponders, Reply, WrongSequence, sequence_of
from jsq.transport.retrying import publish_with_retry
from jsq.transport.server_clock import Clock

KEPT_SECONDS = 60
"""Seconds for which a record is stored after its last lease has expired."""

REPLICA_LAG_SECONDS = 1.0
"""Seconds for which a read is repeated while the replica does not have the last write yet."""

SEQUENCE = "Jsq-Sequence"
"""The header of an announcement: the sequence of the record."""


@dataclass(frozen=True, slots=True)
class StoredSlots:
    """The slots of a queue as of the sequence of their record; 0 if there is none.

    `written` is the time, by `jsq.broker.delivery.delivery.now`, at which this client sent the record; None
    if another client did.
    """

    table: SlotTable
    sequence: int = 0
    written: float | None = None


@dataclass(frozen=True, slots=True)
class SlotMoment:
    """The time of the server, within the precision of the estimate: from `now` to `latest`."""

    now: float
    latest: float


ChangeSlots = Callable[[SlotTable, SlotMoment], SlotTable]


class QueueSlotStore:
    """Reads and changes the slots of queues, by the server's time, which `clock` estimates."""

    def __init__(self, namespace: Namespace, clock: Clock | None = None) -> None:
        self._wire = namespace.wire
        self._reads = namespace.reads
        self._streams = namespace.streams
        self._keys = namespace.subjects.limits
        self._bucket = namespace.subjects.streams.bucket("limits")
        self._clock = clock or namespace.wire.clock

    def moment(self) -> SlotMoment:
        now, uncertainty = self._clock.now(), self._clock.uncertainty
        return SlotMoment(now - uncertainty, now + uncertainty)

    async def read(self, queue: str, *, least: int = 0) -> StoredSlots:
        """The slots of a queue, from the leader or from a replica that reaches the sequence `least` soon."""
        end = time.monotonic() + REPLICA_LAG_SECONDS
        while True:
            try:
                found = await self._reads.last(self._bucket, self._keys.slots(queue), consistent=True)
            except NoResponders:
                await self._streams.recreate()
                found = None
            sequence = sequence_of(found) if found is not None else 0
            if sequence >= least or self._reads.may_ask_leader(self._bucket) or time.monotonic() > end:
                return StoredSlots(
                    decode_slots(found.payload) if found is not None else SlotTable(), sequence
                )
            await asyncio.sleep(REPLICA_LAG_SECONDS / 50)

    async def change(self, queue: str, change: ChangeSlots, *, seconds: float, least: int = 0) -> StoredSlots:
        """Change the slots of a queue; returns what is stored. Nothing is written if nothing changes.

        Calls `change` with the stored slots, and again if another worker was faster. `least` is a sequence
        that the record is known to have reached. Each write is retried for `seconds`. Raises what
        `publish_with_retry` raises.
        """
        while True:
            stored = await self.read(queue, least=least)
            began = steady_now()
            table = change(stored.table, self.moment())
            if table == stored.table:
                return stored
            try:
                sequence = await self._write(queue, table, stored.sequence, seconds)
            except WrongSequence as refused:
                least = refused.last
            else:
                return StoredSlots(table, sequence, began)

    def announce(self, queue: str, stored: StoredSlots) -> None:
        """Announce the slots of a queue to its workers."""
        body = encode_slots(stored.table)
        self._wire.send(self._keys.slots_changed(queue), body, {SEQUENCE: str(stored.sequence)})

    async def subscribe(
        self, queue: str, changed: Callable[[StoredSlots], None]
    ) -> Callable[[], Awaitable[None]]:
        """Call `changed` with each announced change of a queue; returns a function that ends this."""

        def receive(message: Reply) -> None:
            with contextlib.suppress(ValueError):
                sequence = int(message.headers.get(SEQUENCE, ""))
                changed(StoredSlots(decode_slots(message.payload), sequence))

        subscription = await self._wire.subscribe(self._keys.slots_changed(queue), receive)
        return functools.partial(self._wire.unsubscribe, subscription)

    async def _write(self, queue: str, table: SlotTable, expect: int, seconds: float) -> int:
        last = max((one.until for one in table.holders.values()), default=0.0)
        ttl = max(0, math.ceil(last - self._clock.now())) + KEPT_SECONDS
        headers = {EXPECTED: str(expect), TTL: str(ttl)}
        return await publish_with_retry(
            self._wire, self._keys.slots(queue), encode_slots(table), headers, seconds=seconds, absent=seconds
        )
