"""The deliveries that a worker holds and has not started, and which of them is next.

Higher priorities come first. A strict worker starts no job of a queue while an earlier queue has one. If the
worker's queues have weights, the queues with waiting jobs share the starts: each start advances its queue by
the inverse of its weight, and the queue that has advanced least is next (weighted fair queueing). A queue
without jobs accumulates no credit.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from jsq.broker import Delivery
from jsq.errors import BadOption
from jsq.model.job import PRIORITIES

MAX_QUEUE_WEIGHT = 1_000

MAX_STARTS_BEHIND = 2.0
"""Starts that a waiting queue may fall behind before the other queues wait for it."""

MAX_QUEUE_WAIT = 0.1
"""Seconds for which the other queues wait for it."""

ByPriority = dict[str, deque[Delivery]]


class Shares:
    """The position of each queue, which its starts advance."""

    def __init__(self, weights: Mapping[str, int]) -> None:
        self.weights = weights
        self._positions = dict.fromkeys(weights, 0.0)
        self._previous: set[str] = set()

    def note_waiting(self, waiting: Iterable[str]) -> None:
        """Set the queues that wait now. A new one gets the least position of the others."""
        now = set(waiting)
        least = min((self._positions[queue] for queue in now & self._previous), default=None)
        if least is not None:
            for queue in now - self._previous:
                self._positions[queue] = max(self._positions[queue], least)
        self._previous = now

    def note_start(self, queue: str) -> None:
        self._positions[queue] += 1 / self.weights[queue]

    def first(self, queues: Iterable[str]) -> str | None:
        """The queue whose job starts next; None if there are no queues."""
        return min(queues, key=lambda queue: self._positions[queue] + 1 / self.weights[queue], default=None)

    def lag(self, queue: str, other: str) -> float:
        """The number of starts by which a queue is behind another one."""
        return (self._positions[other] - self._positions[queue]) * self.weights[queue]

    def split(self, room: int, waiting: Iterable[str]) -> dict[str, int]:
        """How many of the next starts belong to each queue."""
        far = {queue: self._positions[queue] for queue in waiting}
        parts = dict.fromkeys(far, 0)
        for _ in range(room if far else 0):
            queue = min(far, key=lambda one: far[one] + 1 / self.weights[one])
            far[queue] += 1 / self.weights[queue]
            parts[queue] += 1
        return parts


class ReadyQueue:
    """The deliveries that wait for a slot. `pending` returns the queues with jobs waiting on the server.

    Without weights, there is one deque for each priority. With weights, or a strict `order` of the queues,
    each queue has its own deques.
    """

    def __init__(
        self,
        weights: Mapping[str, int],
        pending: Callable[[], Iterable[str]] = lambda: (),
        *,
        order: Sequence[str] = (),
    ) -> None:
        self.count = 0
        self.shares = Shares(weights) if len(weights) > 1 else None
        self._pending = pending
        self._waiting_since: float | None = None
        apart = order or (tuple(weights) if self.shares else ())
        self._are_apart = bool(apart)
        self._deques: dict[str, ByPriority] = {
            name: {level: deque() for level in PRIORITIES} for name in apart or ("",)
        }

    def __iter__(self) -> Iterator[Delivery]:
        for by_priority in self._deques.values():
            for held in by_priority.values():
                yield from held

    def add(self, delivery: Delivery) -> None:
        self._deque_of(delivery).append(delivery)
        self.count += 1

    def remove(self, delivery: Delivery) -> bool:
        """Remove a delivery; False if it is not held."""
        held = self._deque_of(delivery)
        if delivery not in held:
            return False
        held.remove(delivery)
        self.count -= 1
        return True

    def next(self) -> Delivery | None:
        """The delivery to start next; None if there is none, or if a queue far behind has to be next."""
        if self.shares is None:
            return next(filter(None, map(first_in, self._deques.values())), None)
        held = [queue for queue, by_priority in self._deques.items() if any(by_priority.values())]
        waiting = {*held, *self._pending()}
        self.shares.note_waiting(waiting)
        queue, best = self.shares.first(held), self.shares.first(waiting)
        if queue is None or best is None:
            return None
        if self.shares.lag(best, queue) >= MAX_STARTS_BEHIND and self._keeps_waiting():
            return None
        self._waiting_since = None
        return first_in(self._deques[queue])

    def remove_next(self, delivery: Delivery) -> None:
        """Remove the delivery that `next` returned, because it starts."""
        self._deque_of(delivery).popleft()
        self.count -= 1
        if self.shares is not None:
            self.shares.note_start(delivery.queue)

    def drain(self) -> list[Delivery]:
        """Remove all deliveries, and return them."""
        return self._remove_all(list(self))

    def take_lowest(self, most: int, before: float, but: Delivery | None = None) -> list[Delivery]:
        """Remove up to `most` deliveries that were received `before` a moment, except `but`.

        The lowest priority goes first, and of that the last queue and its newest delivery.
        """
        found: list[Delivery] = []
        for level in reversed(PRIORITIES):
            for by_priority in reversed(self._deques.values()):
                for delivery in reversed(by_priority[level]):
                    if len(found) >= most or delivery.received >= before:
                        break
                    if delivery is not but:
                        found.append(delivery)
        return self._remove_all(found)

    def share(self, queue: str, room: int, waiting: Iterable[str]) -> int:
        """How many deliveries of a queue to pull, if there is `room` for so many of all queues."""
        if self.shares is None:
            return room - self.count
        have = {name: sum(map(len, by_priority.values())) for name, by_priority in self._deques.items()}
        waits = {*waiting, *(name for name, count in have.items() if count)}
        self.shares.note_waiting(waits)
        return self.shares.split(room, waits).get(queue, 0) - have[queue]

    def _keeps_waiting(self) -> bool:
        """Whether to wait longer for the pulled jobs of a queue: another worker may have got them."""
        self._waiting_since = self._waiting_since or time.monotonic()
        return time.monotonic() - self._waiting_since < MAX_QUEUE_WAIT

    def _remove_all(self, deliveries: list[Delivery]) -> list[Delivery]:
        for delivery in deliveries:
            self.remove(delivery)
        return deliveries

    def _deque_of(self, delivery: Delivery) -> deque[Delivery]:
        return self._deques[delivery.queue if self._are_apart else ""][delivery.priority]


def first_in(by_priority: ByPriority) -> Delivery | None:
    for held in by_priority.values():
        if held:
            return held[0]
    return None


def check_queue_weights(weights: Mapping[str, int]) -> Mapping[str, int]:
    """Raises `BadOption` for a wrong weight."""
    for queue, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int) or not 1 <= weight <= MAX_QUEUE_WEIGHT:
            rule = f"must have weights that are whole numbers from 1 to {MAX_QUEUE_WEIGHT:,}"
            raise BadOption("queues", f"{queue}={weight}", rule)
    return dict(weights)
