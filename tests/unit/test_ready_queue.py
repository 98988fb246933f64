"""The order in which a worker starts the deliveries that it holds."""

import collections
import time
from collections.abc import Iterable

import pytest

from jsq.broker import Delivery, Lease
from jsq.errors import BadOption
from jsq.model.job import Priority
from jsq.worker.ready_queue import MAX_QUEUE_WAIT, ReadyQueue, check_queue_weights


def delivery(queue: str, id: str = "x", priority: Priority = "normal") -> Delivery:
    return Delivery(queue, priority, id, id, "", "", b"", b"", 1, 1, 0.0, 0, Lease(30))


def order(held: ReadyQueue, count: int) -> list[str]:
    """The queues of the next starts; each start is followed by another delivery of the same queue."""
    started = []
    for _ in range(count):
        following = held.next()
        assert following is not None
        held.remove_next(following)
        held.add(delivery(following.queue))
        started.append(following.queue)
    return started


def test_without_weights_the_highest_priority_of_all_queues_starts_first() -> None:
    held = ReadyQueue({})
    for one in (
        delivery("a", "1"),
        delivery("b", "2", "low"),
        delivery("c", "3", "high"),
        delivery("b", "4"),
    ):
        held.add(one)

    started = []
    while (following := held.next()) is not None:
        held.remove_next(following)
        started.append(following.id)

    assert started == ["3", "1", "4", "2"]
    assert held.count == 0


def test_with_a_strict_order_the_first_queue_starts_first() -> None:
    held = ReadyQueue({}, order=("b", "a"))
    for one in (delivery("a", "1", "high"), delivery("b", "2", "low"), delivery("b", "3")):
        held.add(one)

    started = []
    while (following := held.next()) is not None:
        held.remove_next(following)
        started.append(following.id)

    assert started == ["3", "2", "1"]


@pytest.mark.parametrize("weights", [{"a": 3, "b": 1}, {"a": 1, "b": 1}, {"a": 5, "b": 2, "c": 1}])
def test_starts_follow_the_weights_and_are_spread_evenly(weights: dict[str, int]) -> None:
    held = ReadyQueue(weights)
    for queue in weights:
        held.add(delivery(queue))
    once = sum(weights.values())

    started = order(held, 20 * once)

    for first in range(0, len(started), once):
        assert collections.Counter(started[first : first + once]) == weights


def test_an_idle_queue_saves_up_no_starts() -> None:
    held = ReadyQueue({"a": 1, "b": 1})
    held.add(delivery("a"))
    assert order(held, 50) == ["a"] * 50

    held.add(delivery("b"))

    assert collections.Counter(order(held, 20)) == {"a": 10, "b": 10}


def test_a_queue_that_is_far_behind_is_waited_for() -> None:
    waits: set[str] = {"a", "b"}

    def pending() -> Iterable[str]:
        return waits

    held = ReadyQueue({"a": 3, "b": 1}, pending)
    for number in range(20):
        held.add(delivery("b", str(number)))

    started = 0
    while (one := held.next()) is not None:
        held.remove_next(one)
        started += 1
    assert started == 1  # of b; by the weights, a has the next three starts
    assert held.share("a", 4, pending()) == 4
    assert held.share("b", 4, pending()) < 0

    # Another worker may have taken the jobs of a, so the wait is short, and it ends once that is known.
    time.sleep(MAX_QUEUE_WAIT)
    assert held.next() is not None
    waits.clear()
    assert held.next() is not None


def test_pull_sizes_follow_the_weights() -> None:
    held = ReadyQueue({"a": 3, "b": 1})

    assert [held.share(queue, 8, {"a", "b"}) for queue in "ab"] == [6, 2]
    held.add(delivery("a"))
    assert [held.share(queue, 8, {"a", "b"}) for queue in "ab"] == [5, 2]


def test_jobs_that_wait_too_long_are_returned_lowest_priority_first() -> None:
    held = ReadyQueue({})
    ones = [delivery("a", "1", "high"), delivery("a", "2"), delivery("a", "3"), delivery("a", "4", "low")]
    for one in ones:
        held.add(one)

    assert held.take_lowest(9, 0.0) == []
    taken = held.take_lowest(2, time.monotonic() + 1, but=ones[2])

    assert [one.id for one in taken] == ["4", "2"]
    assert [one.id for one in held] == ["1", "3"]
    assert held.remove(ones[0])
    assert not held.remove(ones[0])
    assert held.drain() == [ones[2]]
    assert held.count == 0


@pytest.mark.parametrize("weight", [0, -1, 1.5, True, "3", 10_000])
def test_an_invalid_weight_is_refused_with_its_queue(weight: object) -> None:
    with pytest.raises(BadOption, match=r"queues must have weights .*got 'mail="):
        check_queue_weights({"mail": weight})  # type: ignore[dict-item]  # that is what is tested
