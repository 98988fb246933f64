"""Workers that lack something: fencing, the order of a line, the limit of a queue, the look at the expiry.

The chaos run must find each out: a checker that passes it proves nothing.
"""

import math
from collections.abc import Callable, Mapping

import jsq.broker.jobs.records
import jsq.worker.stages.expiry
from jsq.broker.delivery.delivery import Lease
from jsq.model.key_group import GroupLimits, GroupState, WaitingJob
from jsq.worker.queue_gate import QueueGate
from jsq.worker.state import AttemptState


def switch_fencing_off() -> None:
    """Writes expect nothing, and a worker never believes that its lease is over."""

    def expect_nothing(sequence: int, subject: str) -> bytes:
        return b""

    def never(lease: Lease) -> bool:
        return False

    def expect_nothing_here(sequence: int, ttl: float | None) -> bytes:
        return b""

    jsq.broker.jobs.records.expected = expect_nothing
    jsq.broker.jobs.records.expected_here = expect_nothing_here
    Lease.lapsed = never  # type: ignore[assignment, method-assign]  # what this is for


def let_all_on() -> None:
    """There is always room for one more of a key."""

    def always(turn: GroupState, waiter: WaitingJob, rule: GroupLimits) -> bool:
        return turn.slot_of(waiter.id) is None

    GroupState.has_room_for = always  # type: ignore[assignment, method-assign]  # what this is for


def begin_what_has_expired() -> None:
    """Nothing comes too late to begin."""

    def endless(attempt: AttemptState) -> float:
        return math.inf

    jsq.worker.stages.expiry.seconds_to_start = endless


def let_all_in() -> None:
    """A worker of a limited queue always has a slot left."""
    QueueGate.credit = property(lambda gate: 2)  # type: ignore[assignment, method-assign]  # what this is for


MUTANTS: Mapping[str, Callable[[], None]] = {
    "fencing": switch_fencing_off,
    "lines": let_all_on,
    "expiry": begin_what_has_expired,
    "slots": let_all_in,
}
"""What makes each of them of the workers in this process."""
