"""The reports of a worker. This observer ignores them; metrics and tests override its methods."""

from collections.abc import Sequence

from jsq.broker import QueueStats
from jsq.model.job import Job
from jsq.model.outcome import Outcome
from jsq.model.repair import RepairResult
from jsq.model.throughput import Throughput


class Observer:
    """Receives each change of a job in this worker. Its methods return at once and never raise.

    `started` and `finished` are called only if a subclass overrides one of them: then it `observes_jobs`.
    `queue_measured` is called, and its requests are made, only if a subclass overrides it: `observes_queues`.
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
        """A job was reclaimed from a worker that died or stalled."""

    def lease_lost(self, job: Job) -> None:
        """An attempt may not record its outcome: its lease lapsed, or the record has a newer revision."""

    def handed_back(self, queue: str) -> None:
        """A delivery went back to its queue before it started."""

    def busy(self, running: int, held: int, slots: int) -> None:
        """The numbers of slots in use, of deliveries that wait for a slot, and of all slots have changed."""

    def lagged(self, seconds: float) -> None:
        """The event loop ran a timer `seconds` late."""

    def reconnected(self, times: int) -> None:
        """The connection was opened again; `times` counts all reconnections."""

    def abandoned(self, job: Job, running: int) -> None:
        """A function that does not end was abandoned, its slot is free; `running` such functions run now."""

    def abandoned_ended(self, job: Job, running: int) -> None:
        """An abandoned function has ended after all; `running` such functions still run."""

    def blocked(self, task: str) -> None:
        """A task (empty if unknown) has blocked the event loop for a second. Called from another thread."""

    def queue_measured(self, stats: QueueStats, throughput: Throughput | None) -> None:
        """The numbers of a queue were read; its dead letters and records are not counted each time."""

    def queue_missing(self, queue: str) -> None:
        """A queue does not exist any more."""

    def swept(self, swept: Sequence[RepairResult]) -> None:
        """A sweep of this worker ended, with these results."""

    def streams_missing(self, number: int) -> None:
        """The number of streams and consumers of this worker that are missing on the server has changed."""
