"""Where a task's function runs: on the loop, or in a thread."""

from jsq.executors.base import Execution, Executor, Raised, Returned
from jsq.executors.loop import LoopExecutor
from jsq.executors.thread import ThreadExecutor

__all__ = ["Execution", "Executor", "LoopExecutor", "Raised", "Returned", "ThreadExecutor"]
