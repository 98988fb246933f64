"""The deliveries that a worker holds and has not begun, and which of them is next.

Higher priorities come first. Where the worker's queues have weights, those that have jobs waiting share its
starts by them: each start moves its queue on by the inverse of its weight, and the queue that is least far is
next (weighted fair queueing). A queue that had nothing to do has saved up nothing.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping

from jsq.broker import Delivery
from jsq.errors import BadOption
from jsq.model.job import PRIORITIES

MAX_QUEUE_WEIGHT = 1_000

MAX_STARTS_BEHIND = 2.0
"""Starts by which a queue that waits may fall behind before no other is begun in front of it."""

MAX_QUEUE_WAIT = 0.1
"""Seconds for which it is waited for."""

ByPriority = dict[str, deque[Delivery]]


class Shares:
    """How far each queue is, by what was begun of it. Without weights there is one lane for all queues."""

    def __init__(self, weights: Mapping[str, int]) -> None:
        self.weights = weights
        self._far = dict.fromkeys(weights, 0.0)
        self._waited: set[str] = set()

    def note_waiting(self, waiting: Iterable[str]) -> None:
        """Those that wait now; one that did not before begins where the others are."""
        now = set(waiting)
        behind = min((self._far[queue] for queue in now & self._waited), default=None)
        if behind is not None:
            for queue in now - self._waited:
                self._far[queue] = max(self._far[queue], behind)
        self._waited = now

    def begun(self, queue: str) -> None:
        self._far[queue] += 1 / self.weights[queue]

    def first(self, queues: Iterable[str]) -> str | None:
        """The one of some queues that is next."""
        return min(queues, key=lambda queue: self._far[queue] + 1 / self.weights[queue], default=None)

    def behind(self, queue: str, other: str) -> float:
        """By how many of its own starts a queue is behind another."""
        return (self._far[other] - self._far[queue]) * self.weights[queue]

    def split(self, room: int, waiting: Iterable[str]) -> dict[str, int]:
        """How many of the next starts are whose."""
        far = {queue: self._far[queue] for queue in waiting}
        parts = dict.fromkeys(far, 0)
        for _ in range(room if far else 0):
            queue = min(far, key=lambda one: far[one] + 1 / self.weights[one])
            far[queue] += 1 / self.weights[queue]
            parts[queue] += 1
        return parts


class ReadyQueue:
    """What is held. `pending` tells which of the queues with weights have jobs waiting on the server."""

    def __init__(self, weights: Mapping[str, int], pending: Callable[[], Iterable[str]] = lambda: ()) -> None:
        self.count = 0
        self.shares = Shares(weights) if len(weights) > 1 else None
        self._pending = pending
        self._since: float | None = None
        self._lanes: dict[str, ByPriority] = {
            name: {level: deque() for level in PRIORITIES} for name in (weights if self.shares else ("",))
        }

    def __iter__(self) -> Iterator[Delivery]:
        for lanes in self._lanes.values():
            for held in lanes.values():
                yield from held

    def add(self, delivery: Delivery) -> None:
        self._lane(delivery).append(delivery)
        self.count += 1

    def remove(self, delivery: Delivery) -> bool:
        """Take out one that is not ours any more; False if it is not held."""
        held = self._lane(delivery)
        if delivery not in held:
            return False
        held.remove(delivery)
        self.count -= 1
        return True

    def next(self) -> Delivery | None:
        """The one to be begun next; None where none is held, or a queue that is far behind is waited for."""
        if self.shares is None:
            return first_of(self._lanes[""])
        held = [queue for queue, lanes in self._lanes.items() if any(lanes.values())]
        waiting = {*held, *self._pending()}
        self.shares.note_waiting(waiting)
        queue, best = self.shares.first(held), self.shares.first(waiting)
        if queue is None or best is None:
            return None
        if self.shares.behind(best, queue) >= MAX_STARTS_BEHIND and self._may_wait():
            return None
        self._since = None
        return first_of(self._lanes[queue])

    def begin(self, delivery: Delivery) -> None:
        """Take out the next one: it begins."""
        self._lane(delivery).popleft()
        self.count -= 1
        if self.shares is not None:
            self.shares.begun(delivery.queue)

    def drain(self) -> list[Delivery]:
        """Take out all."""
        return self._take(list(self))

    def least_urgent(self, most: int, before: float, but: Delivery | None = None) -> list[Delivery]:
        """Take out so many at most, received before a moment, `but` one: of the lowest priority, the last."""
        found: list[Delivery] = []
        for level in reversed(PRIORITIES):
            for lanes in self._lanes.values():
                for delivery in reversed(lanes[level]):
                    if len(found) >= most or delivery.received >= before:
                        break
                    if delivery is not but:
                        found.append(delivery)
        return self._take(found)

    def share(self, queue: str, room: int, waiting: Iterable[str]) -> int:
        """How many of the next starts are of a queue and not held already, with so much room in all."""
        if self.shares is None:
            return room - self.count
        have = {name: sum(map(len, lanes.values())) for name, lanes in self._lanes.items()}
        waits = {*waiting, *(name for name, count in have.items() if count)}
        self.shares.note_waiting(waits)
        return self.shares.split(room, waits).get(queue, 0) - have[queue]

    def _may_wait(self) -> bool:
        """Whether to wait on for what was asked for: the server may have given it to another worker."""
        self._since = self._since or time.monotonic()
        return time.monotonic() - self._since < MAX_QUEUE_WAIT

    def _take(self, deliveries: list[Delivery]) -> list[Delivery]:
        for delivery in deliveries:
            self.remove(delivery)
        return deliveries

    def _lane(self, delivery: Delivery) -> deque[Delivery]:
        return self._lanes[delivery.queue if self.shares else ""][delivery.priority]


def first_of(lanes: ByPriority) -> Delivery | None:
    for held in lanes.values():
        if held:
            return held[0]
    return None


def check_queue_weights(weights: Mapping[str, int]) -> Mapping[str, int]:
    """Raises `BadOption` for a weight that is none."""
    for queue, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int) or not 1 <= weight <= MAX_QUEUE_WEIGHT:
            rule = f"a weight is a whole number from 1 to {MAX_QUEUE_WEIGHT:,}"
            raise BadOption("queues", f"{queue}={weight}", rule)
    return dict(weights)
