"""The slot of a job in its queue is free when the attempt is over. Only limited queues have this stage."""

from collections.abc import Mapping

from jsq.declaration import Declaration
from jsq.model.job import Job
from jsq.task import AnyTask
from jsq.worker.queue_gate import QueueGate
from jsq.worker.stages.base import Stage
from jsq.worker.state import AttemptState


class QueueSlotStage(Stage):
    """Frees the slots of the queues that have a gate."""

    def __init__(self, gates: Mapping[str, QueueGate]) -> None:
        self._gates = gates

    def applies(self, job: Job, task: AnyTask | None, options: Declaration) -> bool:
        return job.current_queue in self._gates

    async def close(self, attempt: AttemptState) -> None:
        gate = self._gates.get(attempt.delivery.queue)
        if gate is not None:
            gate.ended(attempt)
