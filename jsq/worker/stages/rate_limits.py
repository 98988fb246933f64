"""Rate limits and pauses: whether a job may start now, and at which time.

They are checked before an attempt starts, so that waiting uses nothing: no attempt, no lease, and a slot only
briefly. A job that has to wait longer is requeued on the server, and returns in time.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from jsq.broker import Broker, Delivery
from jsq.broker.delivery.delivery import SUBMITTED_PRIORITY
from jsq.broker.flow.pauses import PAUSED_BY, RESERVED
from jsq.codec.envelope import DEADLINE, EXPIRES, format_deadline
from jsq.codec.revisions import format_time
from jsq.declaration import Declaration
from jsq.model.job import PRIORITIES, Job, Priority
from jsq.model.outcome import Fault, Outcome, TryAgain
from jsq.model.rate_limit import RESERVE_AHEAD, Rate, RateRequest
from jsq.task import AnyTask
from jsq.worker.duties.queue_rules import QueueRules
from jsq.worker.run import TooLate
from jsq.worker.stages.base import DROP, HAND_BACK, RUN, Admission, Proceed, Stage
from jsq.worker.stages.expiry import too_late
from jsq.worker.state import AttemptState

EARLY_RETURN = 0.1
"""Seconds by which a requeued job returns early. The server puts it on its queue up to 0.25 s late."""

MAX_LEAD = 0.2
"""Maximum number of seconds before its reserved time that an attempt is recorded as started."""

MAX_WAIT_IN_SLOT = 2.0
"""Seconds for which a started attempt that missed its reserved time waits for another reservation."""

BURST_HORIZON = 5.0
"""With `burst`, a worker waits for jobs that may start within this many seconds."""

MAX_LATENESS = 1.0
"""Seconds by which a requeued job may return late."""

MOMENT_PASSED = Fault("RateLimit: its reserved time had passed")
"""Why an attempt that has started too late for its rate limits is snoozed."""

MAX_ROUNDS = 8
"""How often a time that fits all limits of a job is searched before the job is requeued."""


class RateLimitStage(Stage):
    """Makes a job wait for its pauses and its limits before it starts, and then for its reserved time.

    Every job of a batch task has this stage: a pause may begin while its batch collects jobs.
    """

    def __init__(self, limits: "RateLimits") -> None:
        self.limits = limits
        self._reservations: dict[AttemptState, Reservation] = {}

    def applies(self, job: Job, task: AnyTask | None, options: Declaration) -> bool:
        return options.batch is not None or self.limits.restricts(job, options)

    async def admit(self, attempt: AttemptState) -> Admission:
        job, delivery = attempt.job, attempt.delivery
        reservation = self.limits.reservation_for(delivery, job, attempt.options)
        if reservation is None:
            return RUN
        self._reservations[attempt] = reservation
        attempt.function.may_start = reservation.is_in_time
        if too_late(attempt) is not None:
            return RUN
        wait = await reservation.take(job)
        if wait is None:
            return RUN
        attempt.check_lease()
        if wait.hands_back:
            return HAND_BACK
        await self.limits.requeue(delivery, job, wait)
        return DROP

    async def perform(self, attempt: AttemptState, proceed: Proceed) -> Outcome:
        """Run at the reserved time. If that is too far ahead, the job is snoozed."""
        reservation = self._reservations.get(attempt)
        if reservation is None:
            return await proceed()
        while True:
            delay = await reservation.await_moment()
            if delay is not None and attempt.function.stopping is None:
                return TryAgain(delay, MOMENT_PASSED, counts_as_failure=False)
            try:
                return await proceed()
            except TooLate:
                continue

    async def close(self, attempt: AttemptState) -> None:
        self._reservations.pop(attempt, None)

    def reservation(self, attempt: AttemptState) -> "Reservation | None":
        """The reservation of an attempt."""
        return self._reservations.get(attempt)


@dataclass(frozen=True, slots=True)
class Limiter:
    """A rate limit of a job: the key of its record, and whether it limits the whole queue."""

    key: str
    rate: Rate
    queue_wide: bool = False


@dataclass(frozen=True, slots=True)
class StartDelay:
    """A job may not start yet: it is requeued until `moment` with `marks`, or handed back to its queue."""

    moment: float
    marks: Mapping[str, str] = field(default_factory=dict)
    hands_back: bool = False


class RateLimits:
    """The rate limits of a worker, and the pauses in the `rules` of its queues.

    With `finite`, it remembers when requeued jobs return, so the worker knows whether to wait for them.
    """

    def __init__(self, broker: Broker, rules: QueueRules, *, finite: bool = False) -> None:
        self.rules = rules
        self._broker = broker
        self._finite = finite
        self._return_times: list[float] = []
        self._closed_until: dict[str, float] = {}
        self.lead = 0.01  # seconds that it takes to record a start, as measured so far

    def learn_lead(self, took: float) -> None:
        self.lead = min(MAX_LEAD, self.lead + (1.5 * took - self.lead) / 8)

    def now(self) -> float:
        """Seconds since the epoch, by the server's clock."""
        return self._broker.wire.clock.now()

    async def wait_until(self, moment: float) -> None:
        """Wait until a time by the server's clock, never less."""
        left = moment - self.now()
        while left > 0:
            await asyncio.sleep(left)
            left = moment - self.now()

    # -- of a queue --------------------------------------------------------------------------------------

    def capacity(self, queue: str, room: int) -> int:
        """How many deliveries of a queue to pull, up to `room`: none while they would only wait."""
        rate = self.rules.settings[queue].rate
        if rate is not None:
            if self._closed_until.get(queue, 0.0) > self.now() + RESERVE_AHEAD / 2:
                return 0
            room = min(room, 1 + int(rate.count / rate.per * RESERVE_AHEAD))
        return 0 if self.rules.queue_pause(queue) is not None else room

    def opens_soon(self, queue: str) -> bool:
        """Whether the pause and the rate of a queue let its jobs start soon."""
        soon, pause = self.now() + BURST_HORIZON, self.rules.queue_pause(queue)
        return self._closed_until.get(queue, 0.0) <= soon and (pause is None or pause.end.timestamp() <= soon)

    def returns_soon(self) -> bool:
        """Whether a job that was requeued or handed back here returns soon."""
        now = self.now()
        self._return_times = [moment for moment in self._return_times if moment > now - MAX_LATENESS]
        return any(
            now - MAX_LATENESS < moment <= now + BURST_HORIZON
            for moment in (*self._return_times, *self._closed_until.values())
        )

    def close_until(self, queue: str, moment: float) -> None:
        """Pull no more jobs of a queue until shortly before a time."""
        self._closed_until[queue] = moment

    # -- of a job ----------------------------------------------------------------------------------------

    def restricts(self, job: Job, options: Declaration) -> bool:
        """Whether a job may have to wait: it has a limit, or its queue has a pause."""
        queue = job.current_queue
        limited = self.rules.settings[queue].rate or options.rate or (options.key_rate and job.key)
        return bool(limited) or self.rules.is_paused(queue)

    def reservation_for(self, delivery: Delivery, job: Job, options: Declaration) -> "Reservation | None":
        """The reservation that a job needs; None for most jobs."""
        if not self.restricts(job, options):
            return None
        queue_rate = self.rules.settings[delivery.queue].rate
        subjects = self._broker.subjects
        limiters = []
        if options.key_rate is not None and job.key:
            limiters.append(Limiter(subjects.limits.key_rate(options.name, job.key), options.key_rate))
        if options.rate is not None:
            limiters.append(Limiter(subjects.limits.task_rate(options.name), options.rate))
        if queue_rate is not None:
            limiters.append(Limiter(subjects.limits.queue_rate(delivery.queue), queue_rate, queue_wide=True))
        return self.build_reservation(delivery, limiters, together=options.batch is not None)

    def build_reservation(
        self, delivery: Delivery, limiters: list[Limiter], *, together: bool
    ) -> "Reservation":
        """The reservation of a job that these limiters hold back."""
        return Reservation(self, self._broker, delivery, limiters, together=together)

    def pause_wait(self, queue: str, task: str, key: str) -> StartDelay | None:
        """The wait of a job because its queue, its task or its key is paused."""
        pause = self.rules.queue_pause(queue)
        if pause is not None:
            return StartDelay(pause.end.timestamp(), hands_back=True)
        pause = self.rules.job_pause(queue, task, key)
        return None if pause is None else StartDelay(pause.end.timestamp(), self._broker.pauses.marker(pause))

    async def requeue(self, delivery: Delivery, job: Job, wait: StartDelay) -> None:
        """Requeue a job until it may start, in front of younger jobs if possible.

        It also returns at its deadline or expiry, because it must release the slot of its key group then.
        """
        level: Priority = PRIORITIES[0]
        marks = {
            PAUSED_BY: "",
            RESERVED: "",
            **wait.marks,
            SUBMITTED_PRIORITY: delivery.submitted_priority,
        }
        moment = wait.moment - EARLY_RETURN
        if isinstance(job.deadline, datetime):
            marks[DEADLINE] = format_deadline(job.deadline)
            moment = min(moment, job.deadline.timestamp())
        if job.expires is not None:
            marks[EXPIRES] = format_time(job.expires)
            moment = min(moment, job.expires.timestamp())
        if self._finite:
            self._return_times.append(moment)
        delay = max(0.0, moment - self.now())
        await self._broker.job_writer.requeue(delivery, delay, level=level, marks=marks)
        if PAUSED_BY not in wait.marks:
            return
        release = self._broker.pauses.release_if_due
        if await release(delivery.queue, delivery.id, job.task, job.key, wait.moment):
            self.rules.refresh_soon()


class Reservation:
    """The reservation of one attempt: a start time that all its limiters have granted.

    Jobs that start `together`, in one call, are counted again when the call is made.
    """

    def __init__(
        self,
        rate_limits: RateLimits,
        broker: Broker,
        delivery: Delivery,
        limiters: list[Limiter],
        *,
        together: bool = False,
    ) -> None:
        self._rate_limits = rate_limits
        self._store = broker.rate_limits
        self._delivery = delivery
        self._limiters = limiters
        self._together = together
        self._deferred = bool(delivery.headers.get(RESERVED))
        self._moments: dict[str, float] = {}
        self._woke = 0.0

    async def take(self, job: Job) -> StartDelay | None:
        """Reserve a start time, and wait until shortly before it; returns None if that succeeded."""
        wait = self._rate_limits.pause_wait(self._delivery.queue, job.task, job.key)
        if wait is not None or not self._limiters:
            return wait
        # If recording a start takes longer than the margin, the recording begins before the reserved time.
        lead = max(0.0, self._rate_limits.lead - min(one.rate.margin for one in self._limiters))
        wait = await self._reserve(self._rate_limits.now() + lead)
        if wait is None:
            if (left := self._moment - lead - self._rate_limits.now()) > 0:
                await asyncio.sleep(left)
            self._woke = time.monotonic()
        return wait

    async def await_moment(self) -> float | None:
        """Wait for the reserved time, or another one if it has passed; returns a longer delay in seconds."""
        if self._woke:
            self._rate_limits.learn_lead(time.monotonic() - self._woke)
            self._woke = 0.0
        lead = 0.0
        while self._limiters:
            if self._moments:
                await self._rate_limits.wait_until(self._moment)
                if self.is_in_time():
                    return None
            # The slower the answers, the later the requested time.
            lead = min(2 * lead + MAX_LEAD / 20, MAX_LEAD)
            wait = await self._reserve(self._rate_limits.now() + lead)
            if wait is not None:
                left = wait.moment - self._rate_limits.now()
                if left > MAX_WAIT_IN_SLOT:
                    return left
                self._deferred = True
                await asyncio.sleep(max(0.0, left - RESERVE_AHEAD / 2))
        return None

    async def count_at(self, moment: float) -> float | None:
        """Count the start at a later time than was granted; without room returns a delay in seconds."""
        for limiter in self._limiters:
            ask = RateRequest(
                moment, deferred=True, returned_moment=self._moments.get(limiter.key), simultaneous=True
            )
            answer = await self._store.reserve(limiter.key, limiter.rate, ask)
            self._moments.pop(limiter.key, None)
            if answer.reserved:
                self._moments[limiter.key] = answer.moment
            if not answer.reserved or answer.moment > moment + limiter.rate.margin / 2:
                await self._give_back()
                return max(0.0, answer.moment - self._rate_limits.now())
        return None

    def is_in_time(self) -> bool:
        """Whether it is not too late to start; checked again just before the function starts."""
        return not self._limiters or self._rate_limits.now() <= self._latest

    @property
    def _moment(self) -> float:
        return max(self._moments.values())

    @property
    def _latest(self) -> float:
        """The time after which a start would be too late for one of the limiters."""
        return min(self._moments[one.key] + one.rate.margin for one in self._limiters)

    async def _reserve(self, earliest: float) -> StartDelay | None:
        """Reserve the same time from all limiters: the narrow ones first, because most jobs wait for them."""
        earliest = max(earliest, self._rate_limits.now())
        for _ in range(MAX_ROUNDS):
            for limiter in self._limiters:
                given = self._moments.get(limiter.key)
                if given is not None and given <= earliest <= given + limiter.rate.margin / 2:
                    continue
                deferred = self._deferred or limiter.queue_wide or given is not None
                answer = await self._store.reserve(
                    limiter.key, limiter.rate, RateRequest(earliest, deferred, given)
                )
                self._moments.pop(limiter.key, None)
                if answer.reserved:
                    self._moments[limiter.key] = answer.moment
                if not answer.reserved or self._is_apart(limiter, answer.moment - earliest):
                    await self._give_back()
                    return self._wait(limiter, answer.moment)
                earliest = max(earliest, answer.moment)
            if not self._limiters or earliest <= self._latest:
                return None
        await self._give_back()
        return self._wait(self._limiters[0], earliest + RESERVE_AHEAD)

    def _is_apart(self, limiter: Limiter, ahead: float) -> bool:
        """Whether jobs that start together cannot use a time: a token that a bucket gets only later."""
        return self._together and limiter.rate.kind == "bucket" and ahead > limiter.rate.margin / 2

    def _wait(self, limiter: Limiter, moment: float) -> StartDelay:
        if not limiter.queue_wide:
            return StartDelay(moment, {RESERVED: "1"})
        self._rate_limits.close_until(self._delivery.queue, moment)
        return StartDelay(moment, hands_back=True)

    async def _give_back(self) -> None:
        """Return the unused reservations, for other jobs."""
        for limiter in self._limiters:
            given = self._moments.pop(limiter.key, None)
            if given is not None:
                await self._store.reserve(
                    limiter.key, limiter.rate, RateRequest(returned_moment=given, needs_moment=False)
                )
