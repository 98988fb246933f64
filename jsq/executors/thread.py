"""Plain functions run in threads.

The threads are daemons: one that never ends cannot hold up the worker's own end, as those of the standard
pool would. A thread cannot be interrupted, only told (`Context.cancelled`).
"""

import asyncio
import contextlib
import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any

from jsq.executors.base import FunctionEnd, Raised, Returned, ignore_end

IDLE_SECONDS = 30.0


class ThreadExecution:
    """A function under way in a thread."""

    def __init__(self, end: asyncio.Future[FunctionEnd]) -> None:
        self.end = end

    def interrupt(self) -> bool:
        return False

    def kill(self) -> bool:
        return False


class ThreadExecutor:
    """Runs functions in threads, as many as are needed at once; idle ones end."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)

    def start(self, function: Callable[[], Any], ended: Callable[[], None] = ignore_end) -> ThreadExecution:
        loop = asyncio.get_running_loop()
        end: asyncio.Future[FunctionEnd] = loop.create_future()
        context = contextvars.copy_context()

        def work() -> None:
            try:
                found: FunctionEnd = Returned(context.run(function))
            except BaseException as error:  # a user's function may raise anything
                found = Raised(error)
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(finish_thread, end, found, ended)

        # First the thread, then its work: where no thread can be started, nobody else may do the work later.
        if not self._idle.acquire(blocking=False):
            threading.Thread(target=self._serve, name="jsq-task", daemon=True).start()
        self._work.put(work)
        return ThreadExecution(end)

    def _serve(self) -> None:
        while True:
            try:
                work = self._work.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                # A caller that counts on this idle thread has taken its permit: then there is work to come.
                if self._idle.acquire(blocking=False):
                    return
                continue
            work()
            del work  # an idle thread holds on to no one's arguments
            self._idle.release()


def finish_thread(end: asyncio.Future[FunctionEnd], found: FunctionEnd, ended: Callable[[], None]) -> None:
    ended()
    if not end.done():
        end.set_result(found)
