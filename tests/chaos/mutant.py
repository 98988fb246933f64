"""Faulty workers: without fencing, key groups, the concurrency limit of a queue, or the check of the expiry.

The checker must detect each of them in a chaos run; a checker that accepts them proves nothing.
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
    """Write without an expected sequence, and never treat a lease as expired."""

    def expect_nothing(sequence: int, subject: str) -> bytes:
        return b""

    def never(lease: Lease) -> bool:
        return False

    def expect_nothing_here(sequence: int, ttl: float | None) -> bytes:
        return b""

    jsq.broker.jobs.records.expectation_lines = expect_nothing
    jsq.broker.jobs.records.own_expectation_lines = expect_nothing_here
    Lease.lapsed = never  # type: ignore[assignment, method-assign]  # replaced on purpose


def ignore_group_limits() -> None:
    """Admit every job of a key."""

    def always(state: GroupState, waiting: WaitingJob, limits: GroupLimits) -> bool:
        return state.slot_of(waiting.id) is None

    GroupState.has_room_for = always  # type: ignore[assignment, method-assign]  # replaced on purpose


def ignore_expiry() -> None:
    """Start expired jobs."""

    def endless(attempt: AttemptState) -> float:
        return math.inf

    jsq.worker.stages.expiry.seconds_to_start = endless


def ignore_queue_slots() -> None:
    """Always offer a slot to a worker of a limited queue."""
    QueueGate.credit = property(lambda gate: 2)  # type: ignore[assignment, method-assign]  # replaced on purpose


MUTANTS: Mapping[str, Callable[[], None]] = {
    "fencing": switch_fencing_off,
    "groups": ignore_group_limits,
    "expiry": ignore_expiry,
    "slots": ignore_queue_slots,
}
"""The functions that make the workers of this process faulty, by the name of the fault."""
