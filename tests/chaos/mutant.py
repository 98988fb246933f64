"""Faulty workers: without fencing, key groups, concurrency limits, checks of the expiry, or sound joins.

The checker must detect each of them in a chaos run; a checker that accepts them proves nothing.
"""

import math
from collections.abc import Callable, Mapping

import jsq.broker.jobs.records
import jsq.worker.stages.expiry
from jsq.broker.delivery.delivery import Lease
from jsq.model.key_group import GroupLimits, GroupState, WaitingJob
from jsq.model.revision import Revision
from jsq.model.workflow import JoinState
from jsq.worker.queue_gate import QueueGate
from jsq.worker.stages.base import Requeue
from jsq.worker.stages.workflow import NodeStage
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


def count_joins() -> None:
    """Count the ends of the members of a join, and note each end twice, as after a crash."""

    def counted(state: JoinState, bits: int, *, skips: bool) -> JoinState:
        count = state.bits.bit_length() + bits.bit_count()
        return JoinState((1 << count) - 1, state.skips or skips)

    def is_full(state: JoinState, members: int) -> bool:
        return state.bits.bit_length() >= members

    finish = NodeStage.finish

    async def finish_twice(stage: NodeStage, attempt: AttemptState, event: Revision) -> Requeue | None:
        await finish(stage, attempt, event)
        return await finish(stage, attempt, event)

    JoinState.with_members = counted  # type: ignore[assignment, method-assign]  # replaced on purpose
    JoinState.is_full = is_full  # type: ignore[assignment, method-assign]  # replaced on purpose
    NodeStage.finish = finish_twice  # type: ignore[assignment, method-assign]  # replaced on purpose


MUTANTS: Mapping[str, Callable[[], None]] = {
    "fencing": switch_fencing_off,
    "groups": ignore_group_limits,
    "expiry": ignore_expiry,
    "slots": ignore_queue_slots,
    "joins": count_joins,
}
"""The functions that make the workers of this process faulty, by the name of the fault."""
