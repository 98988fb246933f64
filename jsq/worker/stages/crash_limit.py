"""The crash limit: a job that crashed too many workers is quarantined, or fails, before it runs again."""

from jsq.errors import count_noun
from jsq.model.job import Job
from jsq.model.outcome import Failed, Fault, Outcome, Quarantined
from jsq.worker.stages.base import Stage
from jsq.worker.state import AttemptState


def is_last_attempt(job: Job, crashes: int, max_crashes: int) -> bool:
    """Whether one more crash would end a job that has crashed workers: this attempt runs isolated."""
    return crashes - job.forgiven_crashes >= max(1, max_crashes - 1)


class CrashLimitStage(Stage):
    """Ends a job at `max_crashes` of its queue, or moves it to the quarantine of its task or queue."""

    exceptional = True

    def reclaimed(self, attempt: AttemptState) -> Outcome | None:
        job, settings = attempt.job, attempt.resources.queues[attempt.delivery.queue]
        if job.crashes - job.forgiven_crashes < settings.max_crashes:
            return None
        fault = Fault(f"{count_noun(job.crashes, 'worker')} died or stalled while running it")
        quarantine = attempt.options.quarantine or settings.quarantine
        if quarantine is not None and quarantine != job.queue and not job.quarantine:
            return Quarantined(quarantine, fault)
        return Failed("crashed", fault)
