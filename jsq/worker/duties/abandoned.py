"""Functions that continue after their attempt has ended: threads, and coroutines that ignore a cancellation.

Python can end neither. Such a function keeps its slot for as long as it may take to clean up. Then it is
abandoned: it is logged and counted, and its slot is free. Its result is refused.
"""

import asyncio
import logging
from collections.abc import Callable

from jsq.executors import Execution
from jsq.model.job import Job
from jsq.worker.observer import Observer

log = logging.getLogger("jsq.job")


class Abandoned:
    """The abandoned functions of one worker. `running` counts those that have not ended."""

    def __init__(self, observer: Observer) -> None:
        self.running = 0
        self._observer = observer

    def leave(self, job: Job, execution: Execution, seconds: float, free: Callable[[], None]) -> None:
        """Call `free` once: when the function ends, or after `seconds`."""

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
                "why": "the function did not end when interrupted; it still runs, and its slot is free",
            },
        )
