"""Which stages a job has: decided once for each task and queue, not for each job.

Only the few options that a submit can add are compared for each job, in one step. A job that adds none takes
the plan of its task.
"""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

from jsq.declaration import Declaration
from jsq.model.job import Job
from jsq.task import AnyTask
from jsq.worker.resources import Resources
from jsq.worker.stages.base import Stage
from jsq.worker.state import AttemptState
from jsq.worker.transitions import UNKNOWN_DECLARATION, effective_options, success_retention

MOST_OPTIONS = 1_000
"""Effective options that are kept, each for one combination that submits have used."""

_STAGE_FIELDS = ("deadline", "key", "expires", "retry_until", "unique", "quarantine")
_OPTION_FIELDS = ("retries", "backoff", "timeout", "keep_result", "retry_for")

added_options = operator.attrgetter(*_STAGE_FIELDS, *_OPTION_FIELDS)
_options = operator.attrgetter(*_OPTION_FIELDS)

_plain_job = Job("", "")
NOTHING_ADDED = added_options(_plain_job)
NO_OPTIONS = _options(_plain_job)


class StagePlan(NamedTuple):
    """The task of a job, its effective options, its stages, and how long the record of a success stays."""

    task: AnyTask | None
    options: Declaration
    stages: tuple[Stage, ...]
    retention: float


class StagePlans(dict[tuple[str, str], StagePlan]):
    """The plans of one worker: `plans[queue, task]` is that of a job without options of its own.

    `stages` are all there are, in their order. When the settings of a queue or its pauses have changed, the
    plans are cleared.
    """

    def __init__(self, resources: Resources, stages: Sequence[Stage]) -> None:
        super().__init__()
        self._app = resources.app
        self._queues = resources.queues
        self._stages = tuple(stages)
        self._options: dict[tuple[str, tuple[Any, ...]], tuple[AnyTask, Declaration]] = {}

    def __missing__(self, place: tuple[str, str]) -> StagePlan:
        queue, name = place
        task = self._app.known(name)
        options = UNKNOWN_DECLARATION if task is None else task.declaration
        plan = self._make(Job("", name, queue), queue, task, options)
        if task is not None:  # a name that is no task may be anything, and a task of that name may follow
            self[place] = plan
        return plan

    def plan(self, job: Job, queue: str) -> StagePlan:
        """The plan of a job whose message stands on a queue."""
        if added_options(job) == NOTHING_ADDED:
            return self[queue, job.task]
        task = self._app.known(job.task)
        return self._make(job, queue, task, self._options_of(job, task))

    def completed(self, stages: Sequence[Stage]) -> tuple[Stage, ...]:
        """These stages with the exceptional ones, in their order."""
        return tuple(stage for stage in self._stages if stage.exceptional or stage in stages)

    def _make(self, job: Job, queue: str, task: AnyTask | None, options: Declaration) -> StagePlan:
        stages = tuple(one for one in self._stages if one.applies(job, task, options))
        lease = self._queues[queue].lease
        return StagePlan(task, options, stages, success_retention(options.keep_result, lease))

    def _options_of(self, job: Job, task: AnyTask | None) -> Declaration:
        """The options of a job: those of its task, with what the submit changed."""
        changed = _options(job)
        if changed == NO_OPTIONS or task is None:
            return effective_options(job, task)
        known = self._options.get((job.task, changed))
        if known is not None and known[0] is task:
            return known[1]
        if len(self._options) >= MOST_OPTIONS:
            self._options.clear()
        options = effective_options(job, task)
        self._options[job.task, changed] = (task, options)
        return options


class StagedAttempt(AttemptState):
    """An attempt with its stages."""

    plans: StagePlans
    stages: tuple[Stage, ...] = ()
    retention: float = 0.0

    def complete_stages(self) -> None:
        """Add the stages that a job needs which leaves the straight path."""
        self.stages = self.plans.completed(self.stages)
