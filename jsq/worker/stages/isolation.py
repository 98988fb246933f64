"""The last attempt of a job that has crashed workers runs isolated: alone in its worker.

All jobs that run when a worker dies are delivered again together, and no record shows which of them killed
the worker. If they started together again, an innocent job could reach `max_crashes` beside the one that
kills its workers. So an attempt whose crash would end the job waits until nothing else runs in its worker,
and nothing else starts there until it has ended. Then only a job whose worker died while it ran alone fails
as `crashed`.

The wait comes before the start is recorded: a worker that dies meanwhile is no crash of the jobs that wait.
"""

import asyncio
import logging
import time
from collections import deque
from typing import Protocol

from jsq.worker.duties.abandoned import Abandoned
from jsq.worker.stages.base import HAND_BACK, RUN, Admission, Requeue, Stage
from jsq.worker.stages.crash_limit import is_last_attempt
from jsq.worker.state import AttemptState

log = logging.getLogger("jsq.job")

ISOLATION_POLL_SECONDS = 0.02

NOT_ISOLATED_DELAY = 10.0
"""Seconds after which a job is offered again if its worker was busy with other jobs for too long."""


class WorkerSlots(Protocol):
    """The slots of a worker. `occupied` counts those in use."""

    stopping: asyncio.Event
    occupied: int

    def suspend_starts(self) -> None:
        """Start nothing, and pull nothing, until `resume_starts`."""

    def resume_starts(self) -> None: ...


class IsolationStage(Stage):
    """Isolates the last attempts of one worker, one after the other."""

    exceptional = True

    def __init__(self, slots: WorkerSlots, abandoned: Abandoned) -> None:
        self._slots = slots
        self._abandoned = abandoned
        self._line: deque[AttemptState] = deque()

    async def admit_again(self, attempt: AttemptState) -> Admission:
        job, settings = attempt.job, attempt.resources.queues[attempt.delivery.queue]
        if attempt in self._line or not is_last_attempt(job, job.crashes, settings.max_crashes):
            return RUN
        self._line.append(attempt)
        if len(self._line) == 1:
            self._slots.suspend_starts()
        end = time.monotonic() + attempt.resources.timings.isolation
        while not self._is_alone(attempt):
            if self._slots.stopping.is_set():
                return HAND_BACK
            if attempt.function.stopping is not None or not attempt.has_lease():
                return RUN  # its function is not called, or refused
            if time.monotonic() > end:
                return Requeue(NOT_ISOLATED_DELAY, "its last attempt must run alone, and other jobs run here")
            await asyncio.sleep(ISOLATION_POLL_SECONDS)
        log.info("job isolated", extra=attempt.log_fields(crashes=job.crashes))
        return RUN

    async def close(self, attempt: AttemptState) -> None:
        if attempt in self._line:
            self._line.remove(attempt)
            if not self._line:
                self._slots.resume_starts()

    def _is_alone(self, attempt: AttemptState) -> bool:
        """Whether it is an attempt's turn, and the only other jobs here wait for isolation too."""
        held = sum(one.slots for one in self._line)
        return self._line[0] is attempt and self._slots.occupied <= held and not self._abandoned.running
