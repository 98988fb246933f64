"""The resources that the attempts of a worker share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jsq.app import App
from jsq.broker import Broker
from jsq.executors import LoopExecutor, ProcessExecutor, ThreadExecutor
from jsq.settings import QueueSettings, WorkerSettings
from jsq.worker.duties.unknown_tasks import UnknownTasks
from jsq.worker.holders import JobHolders
from jsq.worker.observer import Observer
from jsq.worker.timings import WorkerTimings


@dataclass(frozen=True, slots=True)
class Resources:
    """The values that the attempts of a worker share.

    `queues` are the settings of its queues, `state` is what the lifespan of the App has yielded.
    """

    name: str
    app: App
    broker: Broker
    queues: dict[str, QueueSettings]
    settings: WorkerSettings
    observer: Observer
    timings: WorkerTimings
    holders: JobHolders
    unknown_tasks: UnknownTasks
    loop: LoopExecutor
    threads: ThreadExecutor
    processes: ProcessExecutor
    state: Mapping[str, Any] = field(default_factory=dict)
