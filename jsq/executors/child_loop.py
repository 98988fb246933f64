"""The event loop of a child process whose App has a lifespan, or which runs tasks with hooks.

It is kept for the life of the child. It runs while a coroutine runs and while the child waits for a request,
so what the lifespan holds open stays alive. A plain function runs while the loop is suspended, in the main
thread as in any child: it can be interrupted there, and it may run an event loop of its own.
"""

import asyncio
import contextvars
import functools
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from jsq.executors.base import FunctionEnd, Raised, Returned, value_of
from jsq.hooks import AppHooks, RunPlain
from jsq.lifespan import CHILD_STOP_SECONDS, RunningLifespan

T = TypeVar("T")

PlainCall = tuple[Callable[[], Any], "asyncio.Future[FunctionEnd]"]


class ChildLoop:
    """Runs the coroutines of one child process, in the main thread."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._loop = self._runner.get_loop()
        self._entered: dict[AppHooks, tuple[RunningLifespan, Mapping[str, Any]]] = {}
        self._task: asyncio.Task[FunctionEnd] | None = None

    def enter(self, app: AppHooks) -> Mapping[str, Any]:
        """Enter the lifespan of an App, once; returns its state. Raises `LifespanFailed`."""
        if app not in self._entered:
            running = RunningLifespan(app.lifespan, app)
            self._entered[app] = running, self._loop.run_until_complete(running.start())
        running, state = self._entered[app]
        running.check()
        return state

    def wait(self, get: Callable[[], T]) -> T:
        """Wait for a blocking call, in a thread, while the loop runs."""
        return self._loop.run_until_complete(self._loop.run_in_executor(None, get))

    def run(
        self,
        begin: Callable[[RunPlain], Coroutine[Any, Any, Any]],
        call_plain: Callable[[Callable[[], Any]], Any],
    ) -> Any:
        """Run a coroutine to its end. Returns what it returns, raises what it raises.

        `begin` gets a function that runs a plain function by `call_plain`, while the loop is suspended.
        """
        calls: list[PlainCall] = []

        async def run_plain(function: Callable[[], Any]) -> Any:
            answer: asyncio.Future[FunctionEnd] = self._loop.create_future()
            context = contextvars.copy_context()
            calls.append((functools.partial(context.run, function), answer))
            self._loop.stop()
            return value_of(await answer)

        self._task = task = self._loop.create_task(capture(begin(run_plain)))
        task.add_done_callback(lambda _: self._loop.stop())
        try:
            while not task.done():
                self._loop.run_forever()
                while calls:
                    function, answer = calls.pop(0)
                    if not answer.done():
                        answer.set_result(capture_plain(call_plain, function))
            return value_of(task.result())
        finally:
            self._task = None

    def interrupt(self) -> None:
        """Cancel the coroutine that runs. Called by a signal handler."""
        if self._task is not None:
            self._task.cancel()
            self._loop.call_soon_threadsafe(lambda: None)  # the loop may wait for the network

    def close(self) -> None:
        """Leave the lifespans, and end the loop."""
        for running, _ in self._entered.values():
            self._loop.run_until_complete(running.stop(CHILD_STOP_SECONDS))
        self._runner.close()


async def capture(coroutine: Coroutine[Any, Any, Any]) -> FunctionEnd:
    """Await a coroutine. An exception such as SystemExit would stop the loop if it left the task."""
    try:
        return Returned(await coroutine)
    except BaseException as error:  # a user's function may raise anything
        return Raised(error)


def capture_plain(call_plain: Callable[[Callable[[], Any]], Any], function: Callable[[], Any]) -> FunctionEnd:
    """Call a plain function, and return how it ended."""
    try:
        return Returned(call_plain(function))
    except BaseException as error:  # a user's function may raise anything
        return Raised(error)
