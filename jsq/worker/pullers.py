"""The pullers of a worker: one for each priority of each queue. They pull as many jobs as fit."""

import asyncio
import functools
from collections.abc import Callable
from typing import Protocol

from jsq.broker import Broker, ConsumerAddress, Delivery, Puller, PullHandlers
from jsq.model.job import PRIORITIES, Priority
from jsq.worker.queue_gate import QueueGate
from jsq.worker.stages.rate_limits import RateLimits


class Room(Protocol):
    """The room that the pullers of a worker fill: its dispatcher."""

    def take(self, delivery: Delivery) -> None: ...

    def hand_back(self, delivery: Delivery) -> None: ...

    def fill(self) -> None: ...

    def room(self, queue: str) -> int: ...

    def share(self, queue: str) -> int: ...

    def spare_slots(self, queue: str) -> int: ...


class PullerSet:
    """The pullers of one worker. A puller asks for nothing while a higher priority of its queue has jobs.

    With `weighted` queues, each queue has its share of the room. If `strict`, a puller also asks for nothing
    while an earlier queue has jobs that may start. A queue with a gate is pulled only as far as
    the worker holds slots of that queue.
    """

    def __init__(self, limits: RateLimits, room: Room, *, weighted: bool, strict: bool = False) -> None:
        self._limits = limits
        self._room = room
        self._weighted = weighted
        self._strict = strict
        self.gates: dict[str, QueueGate] = {}
        self._pullers: list[Puller] = []

    async def open(self, broker: Broker, leases: dict[str, float], start: Callable[[Puller], object]) -> None:
        """Pull the queues, whose `leases` are given in seconds; `start` is called with each open puller.

        Raises `NotAllowed`.
        """
        for queue, lease in leases.items():
            pullers = [await self._make(broker, queue, level, lease) for level in PRIORITIES]
            for rank, puller in enumerate(pullers):
                earlier = self._pullers if self._strict else []
                puller.higher_pullers = [*earlier, *pullers[:rank]]
            self._pullers += pullers
        for puller in self._pullers:
            await puller.open()
            start(puller)
        for puller in self._pullers:
            await puller.check()

    def set_gate(self, queue: str, gate: QueueGate | None) -> None:
        """Put a gate before the deliveries of a queue, or take it away."""
        self.gates.pop(queue, None)
        if gate is not None:
            self.gates[queue] = gate
        for puller in self._pullers:
            if puller.queue == queue:
                puller.handlers = self._handlers(queue)

    def pending(self, queue: str) -> int:
        """How many jobs of a queue waited on the server at the last report."""
        return sum(puller.pending for puller in self._pullers if puller.queue == queue)

    def holds_surplus(self) -> bool:
        """Whether a delivery waits for a slot of its queue."""
        return any(gate.surplus for gate in self.gates.values())

    async def close(self) -> None:
        """Stop pulling, and accept the deliveries that were already requested."""
        for puller in self._pullers:
            await puller.close()

    async def pause(self) -> None:
        """Pull nothing until `resume`, and accept the deliveries that were already requested."""
        await asyncio.gather(*(puller.pause() for puller in self._pullers))

    async def resume(self) -> None:
        """Pull again."""
        await asyncio.gather(*(puller.open() for puller in self._pullers))

    def demand(self) -> None:
        """Pull more where the requested deliveries fill less than half of the room."""
        if self._weighted:
            for puller in self._pullers:
                puller.request()
            return
        queue, room = "", 0
        for puller in self._pullers:
            if puller.queue != queue:
                queue, room = puller.queue, self._room.room(puller.queue)
            if puller.in_flight * 2 <= room:
                puller.request()

    def waiting(self) -> set[str]:
        """The queues with jobs waiting on the server that may start."""
        found = {puller.queue for puller in self._pullers if puller.pending}
        return set(filter(self._may_start, found))

    def set_lease(self, queue: str, seconds: float) -> None:
        """Use a new lease for the next deliveries of a queue."""
        for puller in self._pullers:
            if puller.queue == queue:
                puller.lease = seconds

    def has_free_slot(self, queue: str) -> bool:
        """Whether a job of a queue could start here now.

        For a queue with a gate, also whether it could start as soon as this worker has a slot of the queue.
        The gate claims one when it gets the delivery; a worker that gives its jobs away releases its slots.
        """
        gate = self.gates.get(queue)
        return (
            bool(self._pullers)
            and self._room.spare_slots(queue) > 0
            and (gate is None or gate.credit > 0 or not gate.surplus)
        )

    def take_given(self, delivery: Delivery) -> None:
        """Hold a delivery that another worker gave to this one, or hand it back if this one is stopping."""
        if self._room.room(delivery.queue) < 0:
            self._room.hand_back(delivery)
            return
        (self.gates.get(delivery.queue) or self._room).take(delivery)

    def lease_of(self, queue: str) -> float:
        """The lease of the next deliveries of a queue, in seconds."""
        return next(puller.lease for puller in self._pullers if puller.queue == queue)

    async def _make(self, broker: Broker, queue: str, level: Priority, lease: float) -> Puller:
        stream = broker.subjects.streams.ready(queue)
        known = await broker.jetstream.consumer_info(stream, level)
        return Puller(
            broker.wire,
            ConsumerAddress(queue, stream, level, lease),
            self._handlers(queue),
            pending=known["num_pending"] if known else 0,
        )

    def _handlers(self, queue: str) -> PullHandlers:
        gate = self.gates.get(queue)
        if gate is None:
            return PullHandlers(self._room.take, self._demand_of, self._on_queue_idle)
        demand = functools.partial(self._gated_demand_of, gate)
        return PullHandlers(gate.take, demand, self._on_queue_idle)

    def _may_start(self, queue: str) -> bool:
        """Whether the pauses, limits and slots of a queue let a job start."""
        return self._limits.capacity(queue, 1) > 0 and not self._is_shut(queue)

    def _is_shut(self, queue: str) -> bool:
        """Whether the worker has no slot left of a queue."""
        gate = self.gates.get(queue)
        return gate is not None and gate.credit <= 0

    def _gated_demand_of(self, gate: QueueGate, puller: Puller) -> int:
        """How many deliveries of a puller there is room for, and slots of its queue."""
        gate.admit_held()
        wanted = gate.demand(puller.pending)
        if wanted <= 0:
            return 0
        return min(wanted, self._demand_of(puller), self._room.spare_slots(puller.queue))

    def _demand_of(self, puller: Puller) -> int:
        """How many deliveries of a puller there is room for."""
        for other in puller.higher_pullers:
            if other.pending and (other.queue == puller.queue or self._may_start(other.queue)):
                return 0
        queue = puller.queue
        room = self._room.share(queue) if self._weighted else self._room.room(queue)
        return self._limits.capacity(queue, room)

    def _on_queue_idle(self) -> None:
        """Note that a queue is empty: the queues that waited for it may start."""
        if self._weighted or self._strict:
            self._room.fill()
        self.demand()
