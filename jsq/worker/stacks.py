"""The stacks of the running jobs, for an operator who asks why a worker does not finish.

A job on the event loop is not on the stack of any thread while it waits. So `faulthandler` cannot print it,
and its coroutines are followed here, from the function of the task to the innermost `await`. A child process
prints its own stacks.
"""

import asyncio
import os
import time
import traceback
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, TextIO

from jsq.executors import Execution
from jsq.executors.process import ProcessExecution
from jsq.executors.thread import ThreadExecution, thread_frame
from jsq.worker.state import AttemptState

Lines = list[tuple[FrameType, int]]

JSQ = __name__.partition(".")[0]


def print_stacks(attempts: Iterable[AttemptState], file: TextIO) -> None:
    """Print the stack of each running job with its id, and ask the child processes to print theirs.

    The jobs of a batch share one call, which is printed once.
    """
    found, children = list(attempts), list[ProcessExecution]()
    printed: set[int] = set()
    print(f"jsq: {len(found)} running jobs of process {os.getpid()}", file=file)
    for attempt in found:
        execution = attempt.function.execution
        print(heading(attempt, execution), file=file)
        if isinstance(execution, ProcessExecution):
            children.append(execution)
        elif id(execution) not in printed:
            lines = "".join(traceback.StackSummary.extract(user_lines(stack_of(attempt, execution))).format())
            print(lines or "  no Python code of it runs", file=file, end="" if lines else "\n")
        if execution is not None:
            printed.add(id(execution))
    file.flush()
    for child in children:
        child.print_stacks()


def heading(attempt: AttemptState, execution: Execution | None) -> str:
    """The line above the stack of a job."""
    match execution:
        case ProcessExecution(pid=pid):
            place = f"in child process {pid}" if pid else "in a child process that starts"
        case ThreadExecution():
            place = "in a thread"
        case _:
            place = "on the event loop"
    ran = f" for {time.time() - attempt.started / 1000:.1f} s" if attempt.started else ""
    return f"job {attempt.delivery.id}, task {attempt.job.task}, attempt {attempt.job.attempt}, {place}{ran}:"


def stack_of(attempt: AttemptState, execution: Execution | None) -> Lines:
    """The frames of a job, the outermost first."""
    if isinstance(execution, ThreadExecution) and execution.waiting is None:
        frame = thread_frame(execution)
        return [] if frame is None else list(traceback.walk_stack(frame))[::-1]
    runner = execution.end if execution is not None else attempt.runner
    runner = execution.waiting if isinstance(execution, ThreadExecution) else runner
    return list(awaiting(runner.get_coro())) if isinstance(runner, asyncio.Task) else []


def awaiting(coroutine: Any) -> Iterator[tuple[FrameType, int]]:
    """The frames of a suspended coroutine, and of those that it awaits."""
    while coroutine is not None:
        for kind in ("cr", "gi", "ag"):
            frame = getattr(coroutine, f"{kind}_frame", None)
            if frame is not None:
                yield frame, frame.f_lineno
                break
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)


def user_lines(lines: Lines) -> Lines:
    """The frames without those of the callers of the function of the task; all frames, if it has none."""
    names = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame, _ in lines]
    first = next((place for place, name in enumerate(names) if name not in (JSQ, "asyncio", "threading")), 0)
    return lines[first:]
