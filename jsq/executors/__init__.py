"""Executors run the functions of tasks: on the event loop, in a thread, or in a child process."""

from jsq.executors.base import Execution, Executor, Judged, Raised, Returned
from jsq.executors.hooked import HookedExecution, ThreadCall
from jsq.executors.loop import LoopExecutor
from jsq.executors.process import ProcessExecutor
from jsq.executors.thread import ThreadExecutor

__all__ = [
    "Execution",
    "Executor",
    "HookedExecution",
    "Judged",
    "LoopExecutor",
    "ProcessExecutor",
    "Raised",
    "Returned",
    "ThreadCall",
    "ThreadExecutor",
]
