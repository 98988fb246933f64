"""Dead letters: a job that failed for good leaves one, to be read and replayed."""

from jsq.model.event import Event
from jsq.worker.stages.base import Requeue, Stage
from jsq.worker.state import AttemptState


class DeadLetterStage(Stage):
    """Writes the dead letter of a failure. Callbacks come first: where there is a letter, none is pending."""

    exceptional = True

    async def finish(self, attempt: AttemptState, event: Event) -> Requeue | None:
        if event.state == "failed":
            letters = attempt.resources.broker.dead_letters
            await letters.write(attempt.job, event, attempt.token, while_=attempt.has_lease)
        return None
