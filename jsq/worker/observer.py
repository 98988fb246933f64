"""What a worker tells of itself as it goes. This one listens to nothing; metrics and tests listen."""

from collections.abc import Sequence

from jsq.model.job import Job
from jsq.model.outcome import Outcome
from jsq.model.repair import RepairResult


class Observer:
    """Told of each turn of a job's life in this worker. Its methods return at once and never raise."""

    def started(self, job: Job, waited: float) -> None:
        """An attempt began, `waited` seconds after its job could have."""

    def finished(self, job: Job, outcome: Outcome, ran: float) -> None:
        """An attempt's outcome was recorded after it `ran` for so many seconds."""

    def reclaimed(self, job: Job) -> None:
        """A job was taken over from a worker that fell silent."""

    def lease_lost(self, job: Job) -> None:
        """An attempt of ours may not record its outcome: its lease lapsed, or the log had moved on."""

    def handed_back(self, queue: str) -> None:
        """A delivery that had not begun was given back."""

    def busy(self, running: int, held: int, slots: int) -> None:
        """So many jobs run, so many more are held, in so many slots."""

    def lagged(self, seconds: float) -> None:
        """The event loop came so much too late to a timer."""

    def reconnected(self, times: int) -> None:
        """The connection was made anew, so many times in all."""

    def abandoned(self, job: Job, running: int) -> None:
        """A function that does not end was given up, its slot free; so many such run now."""

    def abandoned_ended(self, job: Job, running: int) -> None:
        """A function that was given up has ended after all; so many such still run."""

    def blocked(self, task: str) -> None:
        """A task (empty where it is none) has blocked the event loop for a second. Told by another thread."""

    def swept(self, swept: Sequence[RepairResult]) -> None:
        """A sweep of this worker's ended, which found so much."""
