"""What the attempts of a worker share."""

from dataclasses import dataclass

from jsq.app import App
from jsq.broker import Broker
from jsq.executors import LoopExecutor, ProcessExecutor, ThreadExecutor
from jsq.settings import QueueSettings, WorkerSettings
from jsq.worker.observer import Observer
from jsq.worker.stages.rate_limits import RateLimits


@dataclass(frozen=True, slots=True)
class Resources:
    """What the attempts of a worker share."""

    name: str
    app: App
    broker: Broker
    queues: dict[str, QueueSettings]
    settings: WorkerSettings
    watcher: Observer
    loop: LoopExecutor
    threads: ThreadExecutor
    processes: ProcessExecutor
    permits: RateLimits
