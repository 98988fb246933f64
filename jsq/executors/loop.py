"""Coroutine functions run on the worker's own loop."""

import asyncio
from collections.abc import Callable
from typing import Any

from jsq.executors.base import End, Raised, Returned


class LoopExecution:
    """A coroutine under way."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._begun = self._interrupted = False
        self.end: asyncio.Future[End] = asyncio.ensure_future(self._run(function))

    def interrupt(self) -> bool:
        self._interrupted = True
        if self._begun:
            self.end.cancel()
        return True

    async def _run(self, function: Callable[[], Any]) -> End:
        if self._interrupted:
            return Raised(asyncio.CancelledError())
        self._begun = True
        # SystemExit and KeyboardInterrupt would stop the whole loop if they left this task.
        try:
            return Returned(await function())
        except BaseException as error:  # a user's function may raise anything
            return Raised(error)


class LoopExecutor:
    """Runs coroutine functions on the running loop."""

    def start(self, function: Callable[[], Any]) -> LoopExecution:
        return LoopExecution(function)
