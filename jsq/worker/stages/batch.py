"""The jobs of a batch task, brought together: gathered, begun each in its own log, run as one, judged each.

An attempt whose task is a batch task has a `BatchMember` in place of a `TaskRun`. It gives up its slot and
waits until its batch is full, or has waited long enough; then the batch takes one slot for all. Each attempt
begins by itself, and one that may not begin (cancelled, expired, another's) is not in the list that the
function gets.
"""

import asyncio
import functools
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

from jsq.batch import BatchItem, BatchLimits
from jsq.broker import Delivery
from jsq.errors import BrokerError, LeaseLost
from jsq.executors import Execution, Judged, Raised, Returned
from jsq.executors.base import End
from jsq.model.job import Job
from jsq.model.outcome import Expired, Failed, Fault, Interrupted, Outcome, TryAgain
from jsq.task import AnyTask, Declaration
from jsq.worker.duties.abandoned import Abandoned
from jsq.worker.resources import Resources
from jsq.worker.run import Note, TaskRun, judged, limit_of, told_to
from jsq.worker.stages.checkpoints import Checkpoints
from jsq.worker.stages.rate_limits import MOST_LEAD, TOO_LATE, Reservation

log = logging.getLogger("jsq.job")

Why: TypeAlias = Outcome | LeaseLost

OUT_OF_TIME = Expired(Fault("its deadline came while its batch ran"))


class BatchMember:
    """The part of one attempt in a batch: it takes the place of a `TaskRun` of its own.

    `permit` is what its limits have given it, if it has any.
    """

    has_slot = False
    left: Execution | None = None

    def __init__(self, batch: "Batch") -> None:
        self.batch = batch
        self.stopping: Why | None = None
        self.permit: Reservation | None = None
        self.item: BatchItem[Any] | None = None
        self._begins: asyncio.Future[Why | None] = asyncio.get_running_loop().create_future()
        self._turn: asyncio.Future[End | None] | None = None

    @property
    def execution(self) -> Execution | None:
        return self.batch.run.execution

    def grace(self) -> float:
        """Nothing of ours goes on: the batch sees to its function."""
        return 0.0

    async def gathered(self) -> bool:
        """Wait until the batch begins. False if it does not: the worker stops, or has no slot for long.

        Raises `LeaseLost`.
        """
        why = await self._begins
        if isinstance(why, LeaseLost):
            raise why
        return not isinstance(why, Interrupted)

    async def perform(
        self,
        tools: Resources,
        task: AnyTask,
        job: Job,
        terms: Declaration,
        *,
        token: int,
        note: Note,
        steps: Checkpoints | None,
        left: float | None = None,
        may_begin: Callable[[], bool] | None = None,
    ) -> Outcome:
        """As `TaskRun.perform`: wait for what the batch comes to, and judge our part of it.

        `may_begin` is not asked again: all of a batch begin with the last of them, and count then.
        """
        if self.stopping is not None:
            return told_to(self.stopping)
        terms = replace(terms, timeout=task.declaration.timeout)  # what was asked for one is not all others'
        [value], _ = task.signature.unpack(job.arguments)
        self.item = BatchItem(value, job, token)
        self._turn = asyncio.get_running_loop().create_future()
        late = None if left is None else asyncio.get_running_loop().call_later(left, self.stop, OUT_OF_TIME)
        try:
            self.batch.came(self)
            end = await self._turn
        finally:
            self.batch.left(self)
            if late is not None:
                late.cancel()
        if self.stopping is not None and end is None:
            return told_to(self.stopping)
        return judged(end, tools, task, job, terms) if end is not None else self.batch.run.cut(job, terms)

    def begin(self) -> None:
        """Go on, and begin."""
        if not self._begins.done():
            self._begins.set_result(None)

    def end(self, end: End | None) -> None:
        """The batch has ended; None if it was cut short."""
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(end)

    def stop(self, why: Why) -> None:
        """End our part early, with this outcome. Where the worker stops, the whole batch is to end."""
        if isinstance(why, Interrupted) and self.batch.running:
            self.batch.run.stop(why)
            return
        if self.stopping is not None:
            return
        self.stopping = why
        if not self._begins.done():
            self._begins.set_result(why)
            self.batch.left(self)
        self.end(None)

    def leave(self) -> None:
        """The attempt is over: the batch need not wait for us, nor who is to run when we do not."""
        self.batch.left(self)
        self.batch.places.done(self.batch)


class Batch:
    """One batch: it gathers, waits for a slot, begins, and runs.

    `free` gives its slot back. `seats` are those who are in it; before the function is called, `awaited` are
    those of them which have not begun yet.
    """

    def __init__(self, task: AnyTask, batch: BatchLimits, places: "BatchCollector") -> None:
        self.task = task
        self.size = batch.size
        self.run = TaskRun()
        self.begun = self.running = self.over = False
        self.seats: list[BatchMember] = []
        self.queues: set[str] = set()
        self._awaited: set[BatchMember] = set()
        self.places = places

    def begin(self) -> None:
        """A slot is ours: have each begin."""
        self.begun = True
        self._awaited = set(self.seats)
        for seat in self._awaited:
            seat.begin()
        self._run_once_all_came()

    def came(self, seat: BatchMember) -> None:
        """One has begun, and is to be run."""
        self._awaited.discard(seat)
        self._run_once_all_came()

    def left(self, seat: BatchMember) -> None:
        """One is not to be run, or has ended."""
        if seat not in self.seats:
            return
        self.seats.remove(seat)
        self._awaited.discard(seat)
        self._run_once_all_came()
        if self.running and not self.over and not self.seats:
            self.run.stop(LeaseLost("nobody waits for it"))

    def _run_once_all_came(self) -> None:
        if not self.begun or self.running or self._awaited:
            return
        self.running = True
        if self.seats:
            self.places.run(self)
        else:
            self.places.free()

    async def call(self, tools: Resources) -> None:
        """Call the function with the items, and tell each seat what it came to."""
        await self._count_starts(tools)
        seats, items = [seat for seat in self.seats if seat.stopping is None], self.task.items
        if not seats or self.run.stopping is not None:
            self.over = True
            for seat in seats:
                seat.end(None)
            return
        assert items is not None, "only a batch task gathers"
        values = [items.value(seat.item) for seat in seats if seat.item is not None]
        executor = tools.loop if self.task.is_async else tools.threads
        start = functools.partial(
            executor.start, functools.partial(self.task.function, values), self.run.wake
        )
        terms = self.task.declaration
        try:
            end = await self.run.watch(start, limit_of(terms), terms.hard_timeout)
        except Exception as error:  # it could not be started: that is judged as if it had raised
            log.exception("batch not run", extra={"task": self.task.name, "jobs": len(seats)})
            end = Raised(error)
        self.over = True
        for seat, share in zip(seats, shares(end, len(seats), self.task.name), strict=True):
            seat.end(share)

    async def _count_starts(self, tools: Resources) -> None:
        """Have the limits of all count their starts as of now: those who came first have waited for the last.

        One whose limit has no room then is put off.
        """
        lead, limited = 0.0, self._limited()
        try:
            while limited:
                lead = min(2 * lead + MOST_LEAD / 20, MOST_LEAD)
                moment = tools.permits.now() + lead
                await asyncio.gather(*(count_start(seat, permit, moment) for seat, permit in limited))
                await tools.permits.wait_until(moment)
                limited = self._limited()
                if all(permit.is_in_time() for _, permit in limited):
                    return
        except BrokerError as error:
            for seat, _ in limited:
                seat.stop(LeaseLost(f"its limits were not told of its start: {error}"))

    def _limited(self) -> list[tuple[BatchMember, Reservation]]:
        """Those that have limits, and are still to be run."""
        return [
            (seat, seat.permit) for seat in self.seats if seat.permit is not None and seat.stopping is None
        ]


async def count_start(seat: BatchMember, permit: Reservation, moment: float) -> None:
    """Have the start of one count at a moment, or put it off."""
    delay = await permit.count_at(moment)
    if delay is not None:
        seat.stop(TryAgain(delay, TOO_LATE, counts_as_failure=False))


class BatchCollector:
    """The batches of one worker.

    `free` gives a slot back, `fill` has free slots taken, `ask` has more deliveries asked for.
    """

    def __init__(
        self,
        tools: Resources,
        abandoned: Abandoned,
        *,
        free: Callable[[], None],
        fill: Callable[[], None],
        ask: Callable[[], None],
    ) -> None:
        self.tools = tools
        self.free = free
        self._fill = fill
        self._abandoned = abandoned
        self._ask = ask
        self._open: dict[str, Batch] = {}
        self._closed: deque[tuple[float, Batch]] = deque()
        self._apart: deque[Batch] = deque()
        self._runs: set[asyncio.Task[None]] = set()
        self._stopped = False

    # -- gather ------------------------------------------------------------------------------------------

    async def place(self, task: AnyTask, batch: BatchLimits, job: Job, delivery: Delivery) -> BatchMember:
        """A place for a job that was delivered: with others, or by itself."""
        if await self._has_one_crash_left(job, delivery):
            return self._place_apart(task)
        return self._place_together(task, batch, delivery.queue)

    async def _has_one_crash_left(self, job: Job, delivery: Delivery) -> bool:
        """Whether the job is given up if it takes down this worker too. The log is asked where it may be."""
        max_crashes, crashes = self.tools.queues[delivery.queue].max_crashes, job.crashes
        again = delivery.number - 1
        if again and crashes + again - job.forgiven_crashes >= max_crashes - 1:
            last = await self.tools.broker.event_log.last_run(job.queue, job.id)
            crashes = last.event.crashes + (last.state == "running") if last is not None else crashes
        return is_last_try(job, crashes, max_crashes)

    def _place_together(self, task: AnyTask, batch: BatchLimits, queue: str) -> BatchMember:
        """A place in the batch of a task that gathers now; the slot of who takes it is free."""
        opened = self._open.get(task.name)
        gathering = opened or self._open_one(task, batch)
        gathering.queues.add(queue)
        seat = BatchMember(gathering)
        gathering.seats.append(seat)
        if self._stopped:
            seat.stop(Interrupted())
        elif len(gathering.seats) >= gathering.size:
            self._close(gathering)
        self.free()
        if opened is None:
            self._ask()
        return seat

    def _place_apart(self, task: AnyTask) -> BatchMember:
        """A place in a batch of its own, which takes over the slot of who takes it.

        One such runs at a time.
        """
        gathering = Batch(task, BatchLimits(1, 0.0), self)
        seat = BatchMember(gathering)
        gathering.seats.append(seat)
        self._apart.append(gathering)
        if self._stopped:
            seat.stop(Interrupted())
        elif len(self._apart) == 1:
            gathering.begin()
        return seat

    def done(self, gathering: Batch) -> None:
        """An attempt of a batch is over. If it ran apart, the next such may begin."""
        if gathering not in self._apart:
            return
        self._apart.remove(gathering)
        if not gathering.begun:
            self.free()
        if self._apart and not self._apart[0].begun:
            self._apart[0].begin()

    def missing(self, queue: str) -> int:
        """How many more deliveries of a queue the batches that gather now could take."""
        if not self._open:
            return 0
        return sum(one.size - len(one.seats) for one in self._open.values() if queue in one.queues)

    def _open_one(self, task: AnyTask, batch: BatchLimits) -> Batch:
        gathering = self._open[task.name] = Batch(task, batch, self)
        asyncio.get_running_loop().call_later(batch.wait, self._close, gathering)
        return gathering

    def _close(self, gathering: Batch) -> None:
        """It is full, or has waited long enough."""
        if self._open.get(gathering.task.name) is gathering:
            del self._open[gathering.task.name]
            self._wait_for_slot(gathering)

    # -- run ---------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """Whether a batch waits for a slot."""
        return bool(self._closed)

    def begin(self) -> None:
        """A slot is the next batch's."""
        self._closed.popleft()[1].begin()

    def run(self, gathering: Batch) -> None:
        """Call the function of a batch of which each has begun."""
        running = asyncio.get_running_loop().create_task(self._run(gathering))
        self._runs.add(running)
        running.add_done_callback(self._runs.discard)

    async def _run(self, gathering: Batch) -> None:
        jobs = [seat.item.job for seat in gathering.seats if seat.item is not None]
        run = gathering.run
        try:
            if jobs:  # all may have left just now
                await gathering.call(self.tools)
        finally:
            if run.left is None:
                self.free()
            else:
                self._abandoned.leave(jobs[0], run.left, run.grace(), self.free)

    def _wait_for_slot(self, gathering: Batch) -> None:
        self._closed.append((time.monotonic(), gathering))
        self._fill()

    # -- stop --------------------------------------------------------------------------------------------

    def hand_back_late(self, patience: float) -> None:
        """Hand back what has waited for a slot for so many seconds: another worker may have one."""
        while self._closed and self._closed[0][0] < time.monotonic() - patience:
            self._disperse(self._closed.popleft()[1])

    def stop(self) -> None:
        """Hand back what has not begun, and gather no more."""
        self._stopped = True
        apart = [one for one in self._apart if not one.begun]
        for gathering in [*self._open.values(), *(one for _, one in self._closed), *apart]:
            self._disperse(gathering)
        self._open.clear()
        self._closed.clear()

    def _disperse(self, gathering: Batch) -> None:
        for seat in list(gathering.seats):
            seat.stop(Interrupted())

    async def end(self) -> None:
        """End what still runs: it cannot reach the server, and its leases will lapse."""
        left = list(self._runs)
        for running in left:
            running.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def shares(end: End | None, count: int, task: str) -> list[End | None]:
    """What each of so many items came to, by how their function ended; None where it was cut short.

    A list has a place for each item: its result, or the exception that it came to.
    """
    match end:
        case Returned(value=list() as values) if len(values) == count:
            return [Raised(one) if isinstance(one, BaseException) else Returned(one) for one in values]
        case Returned(value=None):
            return [end] * count
        case Returned(value=value):
            what = f"a list of {len(value):,}" if isinstance(value, list) else type(value).__name__
            told = (
                f"{task} returned {what} for {count:,} items: it takes None, or a list with a place for each"
            )
            return [Judged(Failed("bad_result", Fault(told)))] * count
    return [end] * count


def is_last_try(job: Job, crashes: int, max_crashes: int) -> bool:
    """Whether a job that has taken down so many workers would be given up with the next.

    It gets that try apart, so that it does not take with it those which it happens to be gathered with.
    """
    return 0 < crashes - job.forgiven_crashes == max_crashes - 1
