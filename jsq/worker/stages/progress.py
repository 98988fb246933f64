"""Progress: the reports of a task, published twice a second at most. The newest report wins.

The end of a job keeps its last report. A job that succeeded is complete, whatever it reported last.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from jsq.declaration import Declaration
from jsq.model.job import Job
from jsq.model.outcome import Outcome
from jsq.model.revision import FINAL_STATES, Revision
from jsq.task import AnyTask
from jsq.worker.stages.base import Proceed, Stage
from jsq.worker.state import AttemptState

INTERVAL = 0.5
"""Seconds between two reports of one attempt."""


class ProgressStage(Stage):
    """Lets a task that takes a `Context` report its progress."""

    def applies(self, job: Job, task: AnyTask | None, options: Declaration) -> bool:
        return task is not None and task.uses_context(job.queue)

    async def perform(self, attempt: AttemptState, proceed: Proceed) -> Outcome:
        def publish(fraction: float, text: str) -> None:
            publish_progress(attempt, fraction, text)

        reporter = ProgressReporter(publish)
        attempt.function.progress, attempt.function.waited = reporter.report, attempt.waited
        try:
            return await proceed()
        finally:
            reporter.close()
            attempt.reported = reporter.last

    def amend(self, attempt: AttemptState, event: Revision) -> Revision:
        """Record how far the job was when it ended."""
        if attempt.reported is None or event.state not in FINAL_STATES:
            return event
        fraction, text = attempt.reported
        return replace(event, progress=fraction, text=text)


def publish_progress(attempt: AttemptState, fraction: float, text: str) -> None:
    """Publish the progress of an attempt as an event of its job."""
    job, first = attempt.job, attempt.first_token or attempt.token
    event = replace(attempt.running_revision(), token=first, progress=fraction, text=text)
    attempt.resources.broker.records.write_progress(job.queue, job.id, event, token=attempt.token)


class ProgressReporter:
    """Accepts progress from any thread, and publishes it on the loop it was created on.

    `last` is the last report, published or not.
    """

    def __init__(self, publish: Callable[[float, str], None]) -> None:
        self._publish = publish
        self._loop = asyncio.get_running_loop()
        self._newest: tuple[float, str] | None = None
        self.last: tuple[float, str] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._next = 0.0
        self._closed = False

    def report(self, fraction: float, text: str) -> None:
        """Publish this progress soon. May be called from any thread."""
        self._loop.call_soon_threadsafe(self._take, fraction, text)

    def close(self) -> None:
        """Stop publishing."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _take(self, fraction: float, text: str) -> None:
        self._newest = self.last = (fraction, text)
        if self._timer is None and not self._closed:
            self._timer = self._loop.call_at(max(self._next, self._loop.time()), self._send)

    def _send(self) -> None:
        self._timer = None
        if self._newest is not None and not self._closed:
            self._publish(*self._newest)
            self._newest = None
            self._next = self._loop.time() + INTERVAL
