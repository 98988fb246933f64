"""Pauses that a task asks for: `RateLimited` pauses its key, or its queue, before the job is tried again."""

from jsq.model.event import Event
from jsq.model.outcome import RATE_LIMITED
from jsq.worker.duties.queue_rules import QueueRules
from jsq.worker.stages.base import Requeue, Stage
from jsq.worker.state import AttemptState


class PauseStage(Stage):
    """Stores the pause that an event asks for."""

    exceptional = True

    def __init__(self, rules: QueueRules) -> None:
        self._rules = rules

    async def finish(self, attempt: AttemptState, event: Event) -> Requeue | None:
        asks = event.state in ("retrying", "snoozed") and event.reason == RATE_LIMITED
        if asks and event.due is not None:
            await self._rules.pause(attempt.delivery.queue, attempt.job.key, event.due)
        return None
