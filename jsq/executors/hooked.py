"""Runs the functions of tasks that have middleware or dependencies.

The middleware runs on the event loop of the worker. It surrounds the function, which runs on the loop too, or
in a thread if it is no coroutine function.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

from jsq.executors.awaitables import call_with_loop
from jsq.executors.base import value_of
from jsq.executors.loop import LoopExecution
from jsq.executors.thread import ThreadExecutor


class ThreadCall:
    """Runs the plain function of one attempt in a thread, for the middleware around it.

    `running` is true while it runs. A cancel that arrives meanwhile, such as from a timeout of a middleware,
    takes effect when the function has ended: what it uses must stay open until then.
    """

    def __init__(self, threads: ThreadExecutor, *, hides_coroutine: bool = False) -> None:
        self.running = False
        self._threads = threads
        self._hides_coroutine = hides_coroutine

    async def __call__(self, function: Callable[[], Any]) -> Any:
        self.running = True
        if self._hides_coroutine:
            function = functools.partial(call_with_loop, function)
        thread = self._threads.start(function)
        cancelled: asyncio.CancelledError | None = None
        try:
            while not thread.end.done():
                try:
                    await asyncio.wait((thread.end,))
                except asyncio.CancelledError as error:
                    if self._threads.closed:
                        raise
                    cancelled = error
        finally:
            self.running = False
        if cancelled is not None:
            raise cancelled
        return value_of(thread.end.result())


class HookedExecution(LoopExecution):
    """A function that runs inside its middleware. It cannot be interrupted while it runs in a thread."""

    def __init__(
        self, call: Callable[[], Awaitable[Any]], in_thread: ThreadCall | None, ended: Callable[[], None]
    ) -> None:
        super().__init__(call, ended)
        self._in_thread = in_thread

    def interrupt(self) -> bool:
        if self._in_thread is not None and self._in_thread.running:
            return False
        return super().interrupt()
