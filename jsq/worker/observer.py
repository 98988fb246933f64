"""What a worker reports of itself. This observer ignores it; metrics and tests override its methods."""

from collections.abc import Sequence

from jsq.broker import QueueStats
from jsq.model.job import Job
from jsq.model.outcome import Outcome
from jsq.model.repair import RepairResult
from jsq.model.throughput import Throughput


class Observer:
    """Receives each change of a job in this worker. Its methods return at once and never raise.

    `started` and `finished` are called only if a subclass overrides one of them: then it `observes_jobs`.
    `queue_measured` is called, and costs what it needs, only if a subclass overrides it: `observes_queues`.
    """

    observes_jobs = False
    observes_queues = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.observes_jobs = (cls.started, cls.finished) != (Observer.started, Observer.finished)
        cls.observes_queues = cls.queue_measured != Observer.queue_measured

    def started(self, job: Job, waited: float) -> None:
        """An attempt started, `waited` seconds after its job could have."""

    def finished(self, job: Job, outcome: Outcome, ran: float) -> None:
        """An attempt's outcome was recorded after it `ran` for so many seconds."""

    def reclaimed(self, job: Job) -> None:
        """A job was reclaimed from a worker that died or fell silent."""

    def lease_lost(self, job: Job) -> None:
        """An attempt may not record its outcome: its lease lapsed, or the log has moved on."""

    def handed_back(self, queue: str) -> None:
        """A delivery went back to its queue before it started."""

    def busy(self, running: int, held: int, slots: int) -> None:
        """So many slots are in use, so many deliveries wait for one, and there are so many slots."""

    def lagged(self, seconds: float) -> None:
        """The event loop was so many seconds late to a timer."""

    def reconnected(self, times: int) -> None:
        """The connection was opened again, so many times in all."""

    def abandoned(self, job: Job, running: int) -> None:
        """A function that does not end was abandoned, and its slot is free; so many such run now."""

    def abandoned_ended(self, job: Job, running: int) -> None:
        """An abandoned function has ended after all; so many such still run."""

    def blocked(self, task: str) -> None:
        """A task (empty if it is none) has blocked the event loop for a second. Called by another thread."""

    def queue_measured(self, stats: QueueStats, throughput: Throughput | None) -> None:
        """What a queue holds was read; its dead letters and records are not read each time."""

    def queue_missing(self, queue: str) -> None:
        """A queue does not exist any more."""

    def swept(self, swept: Sequence[RepairResult]) -> None:
        """A sweep of this worker ended, with these results."""

    def streams_missing(self, number: int) -> None:
        """So many streams and consumers of this worker are missing on the server."""
