"""Batches: the jobs of a batch task are collected, started each in its own record, run together, and judged.

The attempt of a batch task has a `BatchMember` instead of a `TaskRun`. It frees its slot and waits until its
batch is full, or has waited long enough; then the batch takes one slot for all. Each attempt starts by
itself. A job that may not start (cancelled, expired, reclaimed) is not in the list that the function gets.
"""

import asyncio
import functools
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeAlias

from jsq.batch import BatchItem, BatchLimits
from jsq.declaration import Declaration
from jsq.errors import BrokerError, LeaseLost
from jsq.executors import Execution, Judged, Raised, Returned
from jsq.executors.awaitables import call_with_loop
from jsq.executors.base import FunctionEnd
from jsq.executors.labels import start_labelled
from jsq.executors.process import ReportProgress
from jsq.hooks import TaskHooks
from jsq.model.job import Job
from jsq.model.outcome import Expired, Failed, Fault, Interrupted, Outcome, Succeeded, TryAgain
from jsq.task import AnyTask
from jsq.worker.duties.abandoned import Abandoned
from jsq.worker.resources import Resources
from jsq.worker.run import (
    AttemptMemory,
    HookedRun,
    TaskRun,
    build_context,
    limit_of,
    outcome_of,
    seconds_left,
    stopped_with,
)
from jsq.worker.stages.base import HAND_BACK, RUN, Admission, Stage
from jsq.worker.stages.crash_limit import is_last_attempt
from jsq.worker.stages.rate_limits import MAX_LEAD, MOMENT_PASSED, RateLimitStage, Reservation
from jsq.worker.state import AttemptState

log = logging.getLogger("jsq.job")

Why: TypeAlias = Outcome | LeaseLost

OUT_OF_TIME = Expired(Fault("its deadline passed while its batch ran"))


class BatchStage(Stage):
    """Collects the jobs of batch tasks."""

    def __init__(self, collector: "BatchCollector") -> None:
        self._collector = collector

    def applies(self, job: Job, task: AnyTask | None, options: Declaration) -> bool:
        return task is not None and options.batch is not None

    async def admit(self, attempt: AttemptState) -> Admission:
        member = await self._collector.add(attempt)
        member.may_start = attempt.function.may_start
        if attempt.function.stopping is not None:
            member.stop(attempt.function.stopping)
        attempt.function = member
        return RUN if await member.wait_for_start() else HAND_BACK

    async def close(self, attempt: AttemptState) -> None:
        if isinstance(attempt.function, BatchMember):
            attempt.function.leave()


class BatchMember:
    """The part of one attempt in a batch, instead of a `TaskRun` of its own."""

    has_slot = False
    stopping: Why | None = None
    item: BatchItem[Any] | None = None
    may_start: Callable[[], bool] | None = None
    progress: ReportProgress | None = None
    memory: AttemptMemory | None = None
    hooks: TaskHooks | None = None
    waited: float = 0.0

    def __init__(self, batch: "Batch", attempt: AttemptState) -> None:
        self.batch = batch
        self.attempt = attempt
        self._begins: asyncio.Future[Why | None] = asyncio.get_running_loop().create_future()
        self._ended: asyncio.Future[FunctionEnd | None] | None = None

    @property
    def execution(self) -> Execution | None:
        return self.batch.run.execution

    def grace(self) -> float:
        """Seconds for which the function of the batch may continue after the attempt has ended."""
        return self.batch.run.grace()

    def release(self) -> None:
        """Nothing: the batch has the function."""

    def extend_timeout(self, seconds: float) -> None:
        """Do nothing: one job must not change the timeout of the others."""

    async def wait_for_start(self) -> bool:
        """Wait until the batch starts. False if it does not: the worker stops, or has no free slot for too
        long.

        Raises `LeaseLost`.
        """
        why = await self._begins
        if isinstance(why, LeaseLost):
            raise why
        return not isinstance(why, Interrupted)

    async def perform(
        self, resources: Resources, task: AnyTask, job: Job, options: Declaration, token: int
    ) -> Outcome:
        """Wait for the end of the batch, and judge the part of this job; see `TaskRun.perform`.

        `may_start` is not called again: all members of a batch start with the last one, and count at that
        time.
        """
        if self.stopping is not None:
            return stopped_with(self.stopping)
        own = task.declaration  # one submit must not change the timeouts of the others
        options = replace(options, timeout=own.timeout, hard_timeout=own.hard_timeout)
        [value], _ = task.signature.unpack(job.arguments)
        self.item = BatchItem(value, job, token)
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        left = seconds_left(resources, job)
        late = None if left is None else loop.call_later(left, self.stop, OUT_OF_TIME)
        try:
            self.batch.member_started(self)
            end = await self._ended
        finally:
            self.batch.remove(self)
            if late is not None:
                late.cancel()
        if self.stopping is not None and end is None:
            return stopped_with(self.stopping)
        if end is None:
            return self.batch.run.cut_short_outcome(job, options)
        return outcome_of(end, resources, task, job, options)

    def begin(self) -> None:
        """Let the attempt continue, and start."""
        if not self._begins.done():
            self._begins.set_result(None)

    def end(self, end: FunctionEnd | None) -> None:
        """Set the end of the batch for this attempt; None if it was cut short."""
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(end)

    def stop(self, why: Why) -> None:
        """End this attempt early, with this outcome. A stop of the worker interrupts the whole batch."""
        if isinstance(why, Interrupted) and self.batch.running:
            self.batch.run.stop(why)
            return
        if self.stopping is not None:
            return
        self.stopping = why
        if not self._begins.done():
            self._begins.set_result(why)
            self.batch.remove(self)
        self.end(None)

    def leave(self) -> None:
        """Note that the attempt is over: its batch does not wait for it."""
        self.batch.remove(self)
        del self.attempt  # it has this member as its function: the cycle would be left to the collector


class Batch:
    """One batch: it collects, waits for a slot, begins, and runs.

    `members` are the attempts in it. Before the function is called, `_awaited` are those that have not
    started yet.
    """

    def __init__(self, task: AnyTask, batch: BatchLimits, collector: "BatchCollector") -> None:
        self.task = task
        self.size = batch.size
        self.run = TaskRun(collector.resources.timings.unwind)
        self.started = self.running = self.ended = False
        self.members: list[BatchMember] = []
        self.queues: set[str] = set()
        self._awaited: set[BatchMember] = set()
        self.collector = collector

    def begin(self) -> None:
        """Take a slot, and start every member."""
        self.started = True
        self._awaited = set(self.members)
        for member in self._awaited:
            member.begin()
        self._run_if_complete()

    def member_started(self, member: BatchMember) -> None:
        """Note that an attempt has started. The last one runs the batch."""
        self._awaited.discard(member)
        self._run_if_complete()

    def remove(self, member: BatchMember) -> None:
        """Remove a member that does not run, or has ended."""
        if member not in self.members:
            return
        self.members.remove(member)
        self._awaited.discard(member)
        self._run_if_complete()
        if self.running and not self.ended and not self.members:
            self.run.stop(LeaseLost("no member of the batch waits for it"))

    def _run_if_complete(self) -> None:
        if not self.started or self.running or self._awaited:
            return
        self.running = True
        if self.members:
            self.collector.run(self)
        else:
            self.collector.free()

    async def call(self, resources: Resources) -> None:
        """Call the function with the items, and set the end of each member."""
        await self._count_starts()
        members, items = [member for member in self.members if member.stopping is None], self.task.items
        if not members or self.run.stopping is not None:
            self.ended = True
            for member in members:
                member.end(None)
            return
        assert items is not None, "only a batch task has batches"
        values = [items.value(member.item) for member in members if member.item is not None]
        labels = {"task": self.task.name, "jobs": len(members)}
        start = functools.partial(
            start_labelled, functools.partial(self._start, resources, members, values), labels
        )
        options = self.task.declaration
        try:
            end = await self.run.watch(start, limit_of(options), options.hard_timeout)
        except Exception as error:  # the call could not start: judged as if the function had raised
            log.exception("batch not run", extra={"task": self.task.name, "jobs": len(members)})
            end = Raised(error)
        self.ended = True
        for member, share in zip(members, split_result(end, len(members), self.task.name), strict=True):
            member.end(share)

    def _start(self, resources: Resources, members: Sequence[BatchMember], values: list[Any]) -> Execution:
        """Start the function. Its middleware gets the context of the first job, with the jobs of all."""
        first, context = members[0], None
        if first.hooks is not None and first.item is not None:
            jobs = tuple(member.item.job for member in members if member.item is not None)
            context = build_context(first, resources, first.item.job, first.item.token, jobs)
        if context is not None and first.hooks is not None:
            run = HookedRun(resources, self.task, first.hooks, context)
            return run.start(([values], {}), self.run.wake)
        executor = resources.loop if self.task.is_async else resources.threads
        call: Callable[[], Any] = functools.partial(self.task.function, values)
        if self.task.hides_coroutine:
            call = functools.partial(call_with_loop, call)
        return executor.start(call, self.run.wake)

    async def _count_starts(self) -> None:
        """Count all starts now in the rate limits, because the first members have waited for the last one.

        A member whose limit has no room is snoozed.
        """
        lead, limited, limits = 0.0, self._limited(), self.collector.rate_limits.limits
        try:
            while limited:
                lead = min(2 * lead + MAX_LEAD / 20, MAX_LEAD)
                moment = limits.now() + lead
                await asyncio.gather(
                    *(count_start(member, reservation, moment) for member, reservation in limited)
                )
                await limits.wait_until(moment)
                limited = self._limited()
                if all(reservation.is_in_time() for _, reservation in limited):
                    return
        except BrokerError as error:
            for member, _ in limited:
                member.stop(LeaseLost(f"its start was not counted in its rate limits: {error}"))

    def _limited(self) -> list[tuple[BatchMember, Reservation]]:
        """The members that have limits and will run, with their reservations."""
        found = [(one, self.collector.rate_limits.reservation(one.attempt)) for one in self.members]
        return [(one, given) for one, given in found if given is not None and one.stopping is None]


async def count_start(member: BatchMember, reservation: Reservation, moment: float) -> None:
    """Count the start of a member at a moment, or snooze its job."""
    delay = await reservation.count_at(moment)
    if delay is not None:
        member.stop(TryAgain(delay, MOMENT_PASSED, counts_as_failure=False))


class BatchSlots(Protocol):
    """The slots of a worker, as far as its batches use them."""

    def free(self, slots: int = 1) -> None:
        """Give back slots."""

    def fill(self) -> None:
        """Start the deliveries that wait for a slot."""

    def demand(self) -> None:
        """Pull more deliveries, if there is room."""


class BatchCollector:
    """The batches of one worker. `slots` are the worker's, `rate_limits` has the reservations.

    `open` are the batches that collect jobs, by their task; `closed` are those that wait for a slot, with the
    time since which they wait.
    """

    def __init__(
        self, resources: Resources, abandoned: Abandoned, rate_limits: RateLimitStage, slots: "BatchSlots"
    ) -> None:
        self.resources = resources
        self.rate_limits = rate_limits
        self._abandoned = abandoned
        self._slots = slots
        self.open: dict[str, Batch] = {}
        self.closed: deque[tuple[float, Batch]] = deque()
        self._runs: set[asyncio.Task[None]] = set()
        self._stopped = False

    # -- collect ------------------------------------------------------------------------------------------

    async def add(self, attempt: AttemptState) -> BatchMember:
        """Put an attempt into a batch, with others or alone."""
        task, batch = attempt.task, attempt.options.batch
        assert task is not None, "only jobs of known tasks have this stage"
        assert batch is not None, "only jobs of batch tasks have this stage"
        if await self._has_one_crash_left(attempt):
            return self._add_isolated(task, attempt)
        return self._add_to_open(task, batch, attempt)

    async def _has_one_crash_left(self, attempt: AttemptState) -> bool:
        """Whether one more crash would end the job. The record is read if that is possible."""
        job, delivery = attempt.job, attempt.delivery
        max_crashes, crashes = self.resources.queues[delivery.queue].max_crashes, job.crashes
        redelivered = delivery.number - 1
        if redelivered and crashes + redelivered - job.forgiven_crashes >= max_crashes - 1:
            last = await self.resources.broker.records.last(job.id, job.queue)
            crashes = last.revision.crashes + (last.state == "running") if last is not None else crashes
        return is_last_attempt(job, crashes, max_crashes)

    def _add_to_open(self, task: AnyTask, limits: BatchLimits, attempt: AttemptState) -> BatchMember:
        """Add an attempt to the batch of its task that collects now. Its slot is free."""
        opened = self.open.get(task.name)
        batch = opened or self._open_one(task, limits)
        batch.queues.add(attempt.delivery.queue)
        member = BatchMember(batch, attempt)
        batch.members.append(member)
        if self._stopped:
            member.stop(Interrupted())
        elif len(batch.members) >= batch.size:
            self._close(batch)
        self._slots.free()
        if opened is None:
            self._slots.demand()
        return member

    def _add_isolated(self, task: AnyTask, attempt: AttemptState) -> BatchMember:
        """Put an attempt into a batch of its own, which takes over its slot; see `IsolationStage`."""
        batch = Batch(task, BatchLimits(1, 0.0), self)
        member = BatchMember(batch, attempt)
        batch.members.append(member)
        if self._stopped:
            self.free()
            member.stop(Interrupted())
        else:
            batch.begin()
        return member

    def free(self) -> None:
        """Give back the slot of a batch."""
        self._slots.free()

    def missing(self, queue: str) -> int:
        """How many more deliveries of a queue fit into the open batches."""
        if not self.open:
            return 0
        return sum(one.size - len(one.members) for one in self.open.values() if queue in one.queues)

    def _open_one(self, task: AnyTask, limits: BatchLimits) -> Batch:
        batch = self.open[task.name] = Batch(task, limits, self)
        asyncio.get_running_loop().call_later(limits.wait, self._close, batch)
        return batch

    def _close(self, batch: Batch) -> None:
        """Close a batch that is full, or has waited long enough."""
        if self.open.get(batch.task.name) is batch:
            del self.open[batch.task.name]
            self._wait_for_slot(batch)

    # -- run ---------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Give a slot to the next closed batch."""
        self.closed.popleft()[1].begin()

    def run(self, batch: Batch) -> None:
        """Call the function of a batch whose members have all started."""
        running = asyncio.get_running_loop().create_task(self._run(batch))
        self._runs.add(running)
        running.add_done_callback(self._runs.discard)

    async def _run(self, batch: Batch) -> None:
        jobs = [member.item.job for member in batch.members if member.item is not None]
        run = batch.run
        try:
            if jobs:  # all members may have left meanwhile
                await batch.call(self.resources)
        finally:
            if run.abandoned is None:
                self.free()
            else:
                self._abandoned.leave(jobs[0], run.abandoned, run.grace(), self.free)

    def _wait_for_slot(self, batch: Batch) -> None:
        self.closed.append((time.monotonic(), batch))
        self._slots.fill()

    # -- stop --------------------------------------------------------------------------------------------

    def hand_back_late(self, max_wait: float) -> None:
        """Hand back the batches that have waited too long for a slot: another worker may have one."""
        while self.closed and self.closed[0][0] < time.monotonic() - max_wait:
            self._hand_back(self.closed.popleft()[1])

    def stop(self) -> None:
        """Hand back the jobs that have not started, and collect no more."""
        self._stopped = True
        for batch in [*self.open.values(), *(one for _, one in self.closed)]:
            self._hand_back(batch)
        self.open.clear()
        self.closed.clear()

    def _hand_back(self, batch: Batch) -> None:
        for member in list(batch.members):
            member.stop(Interrupted())

    async def end(self) -> None:
        """Cancel the batches that still run: they cannot reach the server, and their leases will lapse."""
        left = list(self._runs)
        for running in left:
            running.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def split_result(end: FunctionEnd | None, count: int, task: str) -> list[FunctionEnd | None]:
    """The end of each of `count` items, by the end of their function; None if it was cut short.

    A list has one element for each item: its result, or an exception. If the function returned anything else,
    its effects have happened: the jobs succeed, and their results are dropped. Only if exceptions are in a
    list of another length, the jobs fail, because jsq cannot know which of them have failed.
    """
    match end:
        case Returned(value=list() as values) if len(values) == count:
            return [Raised(one) if isinstance(one, BaseException) else Returned(one) for one in values]
        case Returned(value=None):
            return [end] * count
        case Returned(value=value):
            what = f"a list of {len(value):,}" if isinstance(value, list) else type(value).__name__
            rule = f"must return None, or a list with one element for each of the {count:,} items"
            why = f"{task} {rule}, got {what}"
            if isinstance(value, list) and any(isinstance(one, BaseException) for one in value):
                return [Judged(Failed("bad_result", Fault(why)))] * count
            return [Judged(Succeeded(b"", why))] * count
    return [end] * count
