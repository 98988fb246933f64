"""Where a task's function runs: on the loop, in a thread, or in a process of its own."""

from jsq.executors.base import Execution, Executor, Judged, Raised, Returned
from jsq.executors.loop import LoopExecutor
from jsq.executors.process import ProcessExecutor
from jsq.executors.thread import ThreadExecutor

__all__ = [
    "Execution",
    "Executor",
    "Judged",
    "LoopExecutor",
    "ProcessExecutor",
    "Raised",
    "Returned",
    "ThreadExecutor",
]
