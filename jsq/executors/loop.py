"""Runs coroutine functions on the event loop of the worker."""

import asyncio
from collections.abc import Callable
from typing import Any

from jsq.executors.base import FunctionEnd, Raised, Returned, ignore_end


class LoopExecution:
    """A coroutine that runs."""

    def __init__(self, function: Callable[[], Any], ended: Callable[[], None]) -> None:
        self._ended = ended
        self._started = self._interrupted = False
        self.end: asyncio.Future[FunctionEnd] = asyncio.get_running_loop().create_task(self._run(function))

    def interrupt(self) -> bool:
        self._interrupted = True
        if self._started:
            self.end.cancel()
        return True

    def kill(self) -> bool:
        return False

    async def _run(self, function: Callable[[], Any]) -> FunctionEnd:
        self._started = True
        # SystemExit and KeyboardInterrupt would stop the whole loop if they left this task.
        try:
            if self._interrupted:
                raise asyncio.CancelledError
            return Returned(await function())
        except BaseException as error:  # a user's function may raise anything
            return Raised(error)
        finally:
            ended, self._ended = self._ended, ignore_end  # so that no reference cycle remains
            ended()


class LoopExecutor:
    """Runs coroutine functions on the running loop."""

    def start(self, function: Callable[[], Any], ended: Callable[[], None] = ignore_end) -> LoopExecution:
        return LoopExecution(function, ended)
