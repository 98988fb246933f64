"""A stage: what one feature adds to an attempt. `jsq.worker.attempt` calls stages and knows no feature."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from jsq.declaration import Declaration
from jsq.model.job import Job
from jsq.model.outcome import Outcome
from jsq.model.revision import Revision, StoredRevision
from jsq.task import AnyTask
from jsq.worker.state import AttemptState


@dataclass(frozen=True, slots=True)
class Run:
    """The attempt may continue."""


@dataclass(frozen=True, slots=True)
class Requeue:
    """The delivery is offered again after `delay` seconds; `reason` is logged."""

    delay: float
    reason: str


@dataclass(frozen=True, slots=True)
class HandBack:
    """The delivery goes back to its queue at once: another worker may take it."""


@dataclass(frozen=True, slots=True)
class Drop:
    """The delivery is settled: the stage has stored what continues the job."""


@dataclass(frozen=True, slots=True)
class Leave:
    """The delivery is left as it is: the stage has settled it, or another worker does that."""


Admission: TypeAlias = Run | Requeue | HandBack | Drop | Leave
Proceed: TypeAlias = Callable[[], Awaitable[Outcome]]

RUN, HAND_BACK, DROP, LEAVE = Run(), HandBack(), Drop(), Leave()


class Stage:
    """The part of one feature in an attempt. Every method is optional.

    One object serves all attempts of a worker. The design has five methods: `applies`, `admit`, `started`,
    `finish` and `close`. Features needed six more places: `instead` (expiry, retry window), `perform` (rate
    limits, deadlines, unknown tasks, progress), `amend` (callbacks, progress), `reclaimed` (crash limit),
    `admit_again` (isolation, pauses) and `dropped` (key groups). `started` may return an outcome, for a job
    that has started too late. `finish` may return a `Requeue`, if only another worker can finish the event.

    An `exceptional` stage joins every job that leaves the straight path, because its record refuses the start
    or its outcome is not a success. So a plain job that succeeds has no stages. `wraps_run` and
    `replaces_start` are true if the stage has a `perform` and an `instead` of its own.
    """

    exceptional = False
    wraps_run = False
    replaces_start = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.wraps_run = cls.perform is not Stage.perform
        cls.replaces_start = cls.instead is not Stage.instead

    def applies(self, job: Job, task: AnyTask | None, options: Declaration) -> bool:
        """Whether the jobs of a task have this stage, or this one job by the options of its submit."""
        return False

    async def admit(self, attempt: AttemptState) -> Admission:
        """Decide whether the attempt may start now. Nothing is recorded yet, and no attempt is spent."""
        return RUN

    async def admit_again(self, attempt: AttemptState) -> Admission:
        """Decide whether an attempt of a job that has crashed workers or was interrupted may start now.

        Called before each try to record the start. Nothing is recorded yet.
        """
        return RUN

    async def instead(self, attempt: AttemptState) -> Outcome | None:
        """The final outcome to record instead of a start, if any. The last stage is asked first."""
        return None

    def reclaimed(self, attempt: AttemptState) -> Outcome | None:
        """The outcome of a job that was reclaimed from a stalled worker, if it must not run again."""
        return None

    async def started(self, attempt: AttemptState) -> Outcome | None:
        """Prepare the run, after the start is recorded. A returned outcome is recorded already."""
        return None

    async def perform(self, attempt: AttemptState, proceed: Proceed) -> Outcome:
        """Run the task by `await proceed()`. The first stage is the outermost."""
        return await proceed()

    def amend(self, attempt: AttemptState, event: Revision) -> Revision:
        """Return the event that is about to be recorded, completed; not called for a success."""
        return event

    async def finish(self, attempt: AttemptState, event: Revision) -> Requeue | None:
        """Act on a recorded event, before the delivery is settled. May run twice.

        After a crash of this worker the next delivery of the job runs the same method with the same event.
        """
        return None

    async def dropped(self, attempt: AttemptState, last: StoredRevision) -> None:
        """The delivery is settled without a run, because another message of the job is in use."""

    async def close(self, attempt: AttemptState) -> None:
        """Release the resources that the stage holds for the attempt. Always called, the last stage first."""
