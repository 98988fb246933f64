"""Rate limits and batches of immediate mode: the same decisions as in a worker, without its waits.

A job that must wait for a rate limit moves the clock to the time that the limit has granted. A batch does not
wait for more jobs: what was submitted together runs together.
"""

import copy
from dataclasses import replace

from jsq.broker import Broker, Delivery
from jsq.model.job import Job
from jsq.task import AnyTask
from jsq.testing.immediate_clock import VirtualClock
from jsq.worker.duties.queue_rules import QueueRules
from jsq.worker.stages.plans import OptionShape, StagePlan, StagePlans
from jsq.worker.stages.rate_limits import Limiter, RateLimits, Reservation, StartDelay


class VirtualRateLimits(RateLimits):
    """The rate limits of immediate mode."""

    def __init__(self, broker: Broker, rules: QueueRules, clock: VirtualClock) -> None:
        super().__init__(broker, rules)
        self._clock = clock

    async def wait_until(self, moment: float) -> None:
        """Move the clock to a time."""
        self._clock.move_to(moment)

    def build_reservation(
        self, delivery: Delivery, limiters: list[Limiter], *, together: bool
    ) -> "VirtualReservation":
        found = VirtualReservation(self, self._broker, delivery, limiters, together=together)
        found.clock = self._clock
        return found


class VirtualReservation(Reservation):
    """A reservation that moves the clock instead of waiting."""

    clock: VirtualClock

    async def take(self, job: Job) -> StartDelay | None:
        paused = self._rate_limits.pause_wait(self._delivery.queue, job.task, job.key)
        if paused is not None or not self._limiters:
            return paused
        while (wait := await super().take(job)) is not None:
            self.clock.move_to(wait.moment)
        return None

    async def _reserve(self, earliest: float) -> StartDelay | None:
        wait = await super()._reserve(earliest)
        if wait is None and self._limiters:
            self.clock.move_to(self._moment)
        return wait


class ImmediatePlans(StagePlans):
    """The plans of immediate mode: process tasks run in this process, and batches do not wait."""

    def plan(self, job: Job, queue: str, shape: OptionShape) -> StagePlan:
        found = super().plan(job, queue, shape)
        task, options = found.task, found.options
        if task is None:
            return found
        if task.location is not None:
            task = without_process(task)
        if options.batch is not None:
            options = replace(options, batch=replace(options.batch, wait=0.0))
        self[queue, job.task, shape] = found = found._replace(task=task, options=options)
        return found


def without_process(task: AnyTask) -> AnyTask:
    """A process task that runs in this process: on the event loop, or in a thread."""
    other = copy.copy(task)
    other.location = None
    return other
