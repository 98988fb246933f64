"""Blocking calls, for callers without an event loop (Django, Flask, scripts).

A portal, a thread with an event loop of its own, runs the asynchronous methods. After a fork the child
process opens a new portal.
"""

import asyncio
import atexit
import functools
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from jsq.errors import UsageError

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")

PORTAL_STOP_SECONDS = 5.0
"""How long `Portal.stop` waits for its thread."""


class Portal:
    """Runs coroutines on an event loop in a thread, and waits for their results.

    `closing` runs on that loop before the loop ends.
    """

    def __init__(self, closing: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._closing = closing
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread()
        self._pid = 0

    @property
    def is_open(self) -> bool:
        return self._loop is not None and self._pid == os.getpid()

    def call(self, work: Coroutine[Any, Any, T], method: str) -> T:
        """Run a coroutine to its end, from any thread. `method` is its name for `check_may_block`."""
        try:
            check_may_block(method)
        except UsageError:
            work.close()
            raise
        return self.run(work)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end, even from a thread with an event loop, which blocks meanwhile."""
        return self.start(work).result()

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine, from any thread. A coroutine of another loop awaits the future with
        `asyncio.wrap_future`.
        """
        return asyncio.run_coroutine_threadsafe(work, self._running_loop())

    def stop(self) -> None:
        """End the thread, and close its connection. The next call starts it again."""
        with self._lock:
            loop, self._loop = (self._loop if self.is_open else None), None
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join(PORTAL_STOP_SECONDS)

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or not self.is_open:
                self._loop = asyncio.new_event_loop()
                self._pid = os.getpid()
                self._thread = threading.Thread(
                    target=self._serve, args=(self._loop,), name="jsq-portal", daemon=True
                )
                self._thread.start()
                atexit.register(self.stop)
            return self._loop

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            loop.run_until_complete(self._closing())
            pending = asyncio.all_tasks(loop)
            for task in pending:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
            loop.close()


def check_may_block(method: str) -> None:
    """Raises `UsageError` in a thread that runs an event loop: blocking would stop everything on that loop.

    Threads without a loop may block, and so may tasks that run in a thread or a process.
    """
    if asyncio._get_running_loop() is not None:
        raise UsageError(
            f"blocking would stop the event loop that runs in this thread: await {method}(...) instead"
        )


class BlockingWrapper(Generic[S]):
    """The blocking form of an object: each of its methods is a `BlockingMethod` of the same name.

    `path` is the expression that users write for the object, such as `client.queues`.
    """

    def __init__(self, wrapped: S, portal: Portal, path: str) -> None:
        self._wrapped = wrapped
        self._portal = portal
        self._path = path

    def _call(self, work: Coroutine[Any, Any, T], method: str) -> T:
        return self._portal.call(work, f"{self._path}.{method}")

    def _iterate(self, stream: AsyncIterator[T], method: str) -> Iterator[T]:
        check_may_block(f"{self._path}.{method}")
        return iterate(stream, self._portal)


class BlockingMethod(Generic[S, P, R]):
    """The blocking form of a method, for a `BlockingWrapper`, with the same parameters, result and errors."""

    def __init__(self, method: Callable[Concatenate[S, P], Coroutine[Any, Any, R]]) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    @overload
    def __get__(self, wrapper: None, owner: type) -> Self: ...
    @overload
    def __get__(self, wrapper: BlockingWrapper[S], owner: type) -> Callable[P, R]: ...
    def __get__(self, wrapper: BlockingWrapper[S] | None, owner: type) -> Self | Callable[P, R]:
        if wrapper is None:
            return self
        method, wrapped, call = self._method, wrapper._wrapped, wrapper._call

        @functools.wraps(method)
        def blocking(*args: P.args, **kwargs: P.kwargs) -> R:
            return call(method(wrapped, *args, **kwargs), method.__name__)

        return blocking


def iterate(stream: AsyncIterator[T], portal: Portal) -> Iterator[T]:
    """The items of an asynchronous iterator, one by one. Closing this generator early closes the iterator."""
    end = object()

    async def following() -> Any:
        return await anext(stream, end)

    async def close() -> None:
        aclose = getattr(stream, "aclose", None)
        if aclose is not None:
            await aclose()

    try:
        while (item := portal.call(following(), "anext")) is not end:
            yield item
    finally:
        portal.run(close())
