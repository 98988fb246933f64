"""Runs plain functions in threads.

The threads are daemons, so a function that never ends does not keep the worker from exiting, as the standard
pool would. A thread cannot be interrupted; the function may check `Context.cancelled`.
"""

import asyncio
import contextlib
import contextvars
import functools
import queue
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from jsq.executors.awaitables import close_awaitable, end_of, is_awaitable
from jsq.executors.base import FunctionEnd, Raised, Returned, ignore_end

IDLE_SECONDS = 30.0


class ThreadExecution:
    """A function that runs in a thread. If it returns an awaitable, the event loop awaits that."""

    def __init__(self, ended: Callable[[], None]) -> None:
        self.end: asyncio.Future[FunctionEnd] = asyncio.get_running_loop().create_future()
        self._ended = ended
        self._interrupted = False
        self._waiting: asyncio.Task[FunctionEnd] | None = None

    def interrupt(self) -> bool:
        self._interrupted = True
        return self._waiting is not None and self._waiting.cancel()

    def kill(self) -> bool:
        return False

    @property
    def waiting(self) -> "asyncio.Task[FunctionEnd] | None":
        """The asyncio task that awaits what the function has returned, if that is awaitable."""
        return self._waiting

    def leave_thread(self, found: FunctionEnd, context: contextvars.Context) -> None:
        """Note on the event loop how the function ended in its thread."""
        if not isinstance(found, Returned) or not is_awaitable(found.value):
            self._finish(found)
        elif self._interrupted:
            close_awaitable(found.value)
            self._finish(Raised(asyncio.CancelledError()))
        else:
            self._waiting = asyncio.get_running_loop().create_task(end_of(found.value), context=context)
            self._waiting.add_done_callback(functools.partial(self._leave_loop, found.value))

    def _leave_loop(self, value: object, waiting: asyncio.Task[FunctionEnd]) -> None:
        """Note how the awaitable ended. Its task is cancelled only if it never began."""
        self._waiting = None
        close_awaitable(value)
        self._finish(Raised(asyncio.CancelledError()) if waiting.cancelled() else waiting.result())

    def _finish(self, found: FunctionEnd) -> None:
        ended, self._ended = self._ended, ignore_end  # so that no reference cycle remains
        ended()
        if not self.end.done():
            self.end.set_result(found)


def thread_frame(execution: ThreadExecution) -> FrameType | None:
    """The innermost frame of the thread that runs a function; None if none does.

    A local variable of `run_in_thread` identifies the thread, so that a call need not note its thread.
    """
    for innermost in sys._current_frames().values():
        frame: FrameType | None = innermost
        while frame is not None:
            own = frame.f_code is run_in_thread.__code__
            if own and frame.f_locals.get("execution") is execution:
                return innermost
            frame = frame.f_back
    return None


class ThreadExecutor:
    """Runs functions in threads, as many as are needed at once; idle ones end.

    `closed` is set when the worker has ended, and waits for no function any more.
    """

    closed = False

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)

    def close(self) -> None:
        """End the idle threads now, and the others when their functions have ended."""
        self.closed = True
        while self._idle.acquire(blocking=False):
            self._work.put(None)

    def start(self, function: Callable[[], Any], ended: Callable[[], None] = ignore_end) -> ThreadExecution:
        loop = asyncio.get_running_loop()
        execution, context = ThreadExecution(ended), contextvars.copy_context()
        # The thread is started first: if that fails, no other thread may do the work later.
        if not self._idle.acquire(blocking=False):
            threading.Thread(target=self._serve, name="jsq-task", daemon=True).start()
        self._work.put(functools.partial(run_in_thread, loop, function, execution, context))
        return execution

    def _serve(self) -> None:
        while True:
            try:
                work = self._work.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                # If a caller has acquired the permit of this idle thread, its work follows.
                if self._idle.acquire(blocking=False):
                    return
                continue
            if work is None:
                return
            work()
            del work  # an idle thread keeps no arguments alive
            self._idle.release()
            if self.closed:
                self.close()  # it may have become idle just after the others were ended


def run_in_thread(
    loop: asyncio.AbstractEventLoop,
    function: Callable[[], Any],
    execution: ThreadExecution,
    context: contextvars.Context,
) -> None:
    """Call a function in this thread, and report its end to the event loop."""
    try:
        found: FunctionEnd = Returned(context.run(function))
    except BaseException as error:  # a user's function may raise anything
        found = Raised(error)
    with contextlib.suppress(RuntimeError):  # the event loop was closed meanwhile
        loop.call_soon_threadsafe(execution.leave_thread, found, context)
    del function, execution, found  # the frames of the function, and so its exception, refer to this frame
