"""The stages of a worker, in their order. This list is the one place that states it.

Admission and `finish` go from the top down. `perform` nests: the first stage is the outermost. `instead` and
`close` go from the bottom up. Why in this order:

- The slot of the queue is free when everything else is over.
- The times of expiry and of the retry window are known before a job moves to its key group.
- Callbacks come before the next attempt: once it has begun, no worker returns to the revision before it.
- A workflow is parked, and its nodes submitted, like a next attempt: the unique successor comes later.
- A pause that the task requested is stored before the next attempt can start.
- Middleware learns of an outcome when what must follow it is stored: the next attempt, the callbacks.
- The slot of a key group is released last: all other work is done before the next job of the key starts.
- A job that another worker should run takes no reservation of a rate limit.
- A batch collects jobs that may run; its members then wait for their limits together.
- An isolated attempt is closed last: other jobs start only after it is completely over.
"""

from collections.abc import Mapping
from typing import Protocol

from jsq.worker.duties.abandoned import Abandoned
from jsq.worker.queue_gate import QueueGate
from jsq.worker.resources import Resources
from jsq.worker.stages.base import Stage
from jsq.worker.stages.batch import BatchCollector, BatchSlots, BatchStage
from jsq.worker.stages.callbacks import CallbackStage
from jsq.worker.stages.checkpoints import CheckpointStage
from jsq.worker.stages.crash_limit import CrashLimitStage
from jsq.worker.stages.executor import ExecutorStage
from jsq.worker.stages.expiry import ExpiryStage
from jsq.worker.stages.hooks import HookStage
from jsq.worker.stages.isolation import IsolationStage, WorkerSlots
from jsq.worker.stages.key_groups import KeyGroupStage
from jsq.worker.stages.next_attempt import NextAttemptStage
from jsq.worker.stages.pauses import PauseStage
from jsq.worker.stages.progress import ProgressStage
from jsq.worker.stages.queue_slots import QueueSlotStage
from jsq.worker.stages.rate_limits import RateLimits, RateLimitStage
from jsq.worker.stages.retry_window import RetryWindowStage
from jsq.worker.stages.unique import UniqueStage
from jsq.worker.stages.unknown_task import UnknownTaskStage
from jsq.worker.stages.workflow import NodeStage, WorkflowStage


class StageSlots(BatchSlots, WorkerSlots, Protocol):
    """The slots of a worker, as far as its stages use them."""


def build_stages(
    resources: Resources,
    limits: RateLimits,
    abandoned: Abandoned,
    slots: StageSlots,
    gates: Mapping[str, QueueGate],
) -> tuple[tuple[Stage, ...], BatchCollector]:
    """All stages of a worker, in their order, and its batches. `gates` are those of its limited queues."""
    rate_limits = RateLimitStage(limits)
    batches = BatchCollector(resources, abandoned, rate_limits, slots)
    stages = (
        IsolationStage(slots, abandoned),
        QueueSlotStage(gates),
        ExpiryStage(),
        RetryWindowStage(),
        CrashLimitStage(),
        CallbackStage(),
        PauseStage(limits.rules),
        NextAttemptStage(),
        NodeStage(),
        WorkflowStage(),
        UniqueStage(),
        CheckpointStage(),
        HookStage(),
        KeyGroupStage(),
        UnknownTaskStage(),
        ExecutorStage(),
        BatchStage(batches),
        rate_limits,
        ProgressStage(),
    )
    return stages, batches
