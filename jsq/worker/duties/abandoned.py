"""Functions that go on though their attempt has ended: threads, and coroutines that swallow a cancellation.

Python can end neither. Each keeps its slot for as long as it may take to clean up, then it is given up: named
in the log, counted, and its slot is free. What it returns is refused.
"""

import asyncio
import logging
from collections.abc import Callable

from jsq.executors import Execution
from jsq.model.job import Job
from jsq.worker.observer import Observer

log = logging.getLogger("jsq.job")


class Abandoned:
    """Those of one worker. `running` counts the given up which have not ended."""

    def __init__(self, observer: Observer) -> None:
        self.running = 0
        self._observer = observer

    def leave(self, job: Job, execution: Execution, seconds: float, free: Callable[[], None]) -> None:
        """Call `free` once: when the function ends, or when it has not for so many seconds."""

        waits = True

        def give_up() -> None:
            nonlocal waits
            waits = False
            self._give_up(job)
            free()

        def ended(_: object) -> None:
            if waits:
                timer.cancel()
                free()
            else:
                self.running -= 1
                self._observer.abandoned_ended(job, self.running)
                log.warning("abandoned task ended", extra={"job": job.id, "task": job.task})

        timer = asyncio.get_running_loop().call_later(seconds, give_up)
        execution.end.add_done_callback(ended)

    def _give_up(self, job: Job) -> None:
        self.running += 1
        self._observer.abandoned(job, self.running)
        log.error(
            "task abandoned",
            extra={
                "job": job.id,
                "task": job.task,
                "queue": job.queue,
                "attempt": job.attempt,
                "running": self.running,
                "why": "it was to end and does not; its slot is free, and it still runs",
            },
        )
