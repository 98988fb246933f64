"""Which stages a job has: decided once for each task and queue, not for each job.

Only the few options that a submit can add are compared for each job, in one step. A job without added options
uses the plan of its task. Jobs that add the same options share a plan too.
"""

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

from jsq.codec import envelope, revisions
from jsq.codec.envelope import RECORDED_OPTIONS
from jsq.declaration import Declaration
from jsq.errors import BadOption
from jsq.model.job import Job
from jsq.task import AnyTask
from jsq.worker.resources import Resources
from jsq.worker.stages.base import Stage
from jsq.worker.stages.executor import task_on_executor
from jsq.worker.state import AttemptState
from jsq.worker.transitions import effective_options, success_ttl

MOST_PLANS = 1_000
"""Plans that are kept, each for one combination of options that submits have used."""

_STAGE_FIELDS = ("deadline", "key", "expires", "retry_until", "unique", "quarantine", "flow")
_OPTION_FIELDS = RECORDED_OPTIONS

added_options = operator.attrgetter(*_STAGE_FIELDS, *_OPTION_FIELDS)
"""The options of a job that decide its stages, then those that its record holds."""

STAGE_FIELD_COUNT = len(_STAGE_FIELDS)
NOTHING_ADDED = added_options(Job("", ""))

OptionShape: TypeAlias = tuple[Any, ...]
"""Which of the first options a submit added, and the values of the others; empty if it added none."""


class StagePlan(NamedTuple):
    """The task of a job, its effective options, its stages, and the TTL of the record of a success.

    `option_member` holds the options of the submit for the record of a success.
    """

    task: AnyTask | None
    options: Declaration
    stages: tuple[Stage, ...]
    success_ttl: float
    option_member: bytes


class StagePlans(dict[tuple[str, str, OptionShape], StagePlan]):
    """The plans of one worker, by queue, task and the shape of the options that a submit added.

    `stages` are all there are, in their order. When the settings of a queue or its pauses have changed, the
    plans are cleared, and with them the `derived` ones.
    """

    def __init__(self, resources: Resources, stages: Sequence[Stage]) -> None:
        super().__init__()
        self.derived: dict[Any, Any] = {}
        self._app = resources.app
        self._queues = resources.queues
        self._stages = tuple(stages)

    def clear(self) -> None:
        """Forget all plans, and those that were derived from them."""
        super().clear()
        self.derived.clear()

    def plan(self, job: Job, queue: str, shape: OptionShape) -> StagePlan:
        """Make the plan of a job whose message is on a queue, and keep it for similar jobs."""
        task = self._app.known(job.task)
        options = effective_options(job, task)
        if not all(self._queues[one].keep_arguments for one in (queue, job.queue) if one in self._queues):
            options = replace(options, keep_arguments=False)
        stages = tuple(one for one in self._stages if one.applies(job, task, options))
        if task is not None and job.rare is not None:
            chosen = task_on_executor(task, job)
            task = task if isinstance(chosen, BadOption) else chosen
        member = revisions.option_member(envelope.recorded_options(job))
        plan = StagePlan(task, options, stages, success_ttl(options.keep_result), member)
        if task is not None:  # an unknown name may be any text, and a task of that name may be declared later
            if len(self) >= MOST_PLANS:
                self.clear()
            self[queue, job.task, shape] = plan
        return plan

    def completed(self, stages: Sequence[Stage]) -> tuple[Stage, ...]:
        """These stages with the exceptional ones, in their order."""
        return tuple(stage for stage in self._stages if stage.exceptional or stage in stages)


class StagedAttempt(AttemptState):
    """An attempt with its stages."""

    plans: StagePlans
    stages: tuple[Stage, ...] = ()
    success_ttl: float = 0.0
    option_member: bytes = b""

    def complete_stages(self) -> None:
        """Add the stages for a job that leaves the straight path."""
        self.stages = self.plans.completed(self.stages)
