"""For callers without an event loop (Django, Flask, scripts): a portal to the one async core.

The portal is a thread with a loop of its own. After a fork the child opens a new one.
"""

import asyncio
import atexit
import functools
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import datetime, timedelta
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from jsq.client.handle import JobHandle
from jsq.model.job import JobRecord

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")


class Portal:
    """Runs coroutines on a loop in a thread, and waits for them.

    `closing` is run on that loop before it ends.
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

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end, from any thread."""
        return asyncio.run_coroutine_threadsafe(work, self._running_loop()).result()

    def stop(self) -> None:
        """End the thread, and what it had open. It starts again at the next call."""
        with self._lock:
            loop, self._loop = (self._loop if self.is_open else None), None
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join(5)

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or not self.is_open:
                self._loop = asyncio.new_event_loop()
                self._pid = os.getpid()
                self._thread = threading.Thread(
                    target=self._run, args=(self._loop,), name="jsq-portal", daemon=True
                )
                self._thread.start()
                atexit.register(self.stop)
            return self._loop

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            loop.run_until_complete(self._closing())
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            loop.close()


class BlockingWrapper(Generic[S]):
    """Blocking twins of what an object can do: each a `twin` of its method, under the same name."""

    def __init__(self, of: S, portal: Portal) -> None:
        self._of = of
        self._portal = portal


class twin(Generic[S, P, R]):  # noqa: N801 -- it is written like a function
    """The blocking twin of a method, for a class of `BlockingWrapper`: it takes and gives and raises the
    same.
    """

    def __init__(self, method: Callable[Concatenate[S, P], Coroutine[Any, Any, R]]) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    @overload
    def __get__(self, twins: None, owner: type) -> Self: ...
    @overload
    def __get__(self, twins: BlockingWrapper[S], owner: type) -> Callable[P, R]: ...
    def __get__(self, twins: BlockingWrapper[S] | None, owner: type) -> Self | Callable[P, R]:
        if twins is None:
            return self
        method, of, portal = self._method, twins._of, twins._portal

        @functools.wraps(method)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return portal.call(method(of, *args, **kwargs))

        return call


def each(stream: AsyncIterator[T], portal: Portal) -> Iterator[T]:
    """What an asynchronous iterator gives, one by one. Closed early, it ends that one too."""
    nothing = object()

    async def step() -> Any:
        return await anext(stream, nothing)

    async def end() -> None:
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()

    try:
        while (found := portal.call(step())) is not nothing:
            yield found
    finally:
        portal.call(end())


class SyncJobHandle(Generic[R]):
    """A `JobHandle` whose methods block."""

    def __init__(self, handle: JobHandle[R], portal: Portal) -> None:
        self.id = handle.id
        self.queue = handle.queue
        self.duplicate = handle.duplicate
        self._handle = handle
        self._portal = portal

    def __repr__(self) -> str:
        return f"<SyncJobHandle {self.id}>"

    def status(self) -> JobRecord:
        """As `JobHandle.status`."""
        return self._portal.call(self._handle.status())

    def result(self, timeout: float | None = None) -> R:
        """As `JobHandle.result`."""
        return self._portal.call(self._handle.result(timeout))

    def checkpoint(self) -> Any:
        """As `JobHandle.checkpoint`."""
        return self._portal.call(self._handle.checkpoint())

    def wait(self, timeout: float | None = None) -> JobRecord:
        """As `JobHandle.wait`."""
        return self._portal.call(self._handle.wait(timeout))

    def cancel(self) -> JobRecord:
        """As `JobHandle.cancel`."""
        return self._portal.call(self._handle.cancel())

    def retry(self) -> JobRecord:
        """As `JobHandle.retry`."""
        return self._portal.call(self._handle.retry())

    def remove(self) -> None:
        """As `JobHandle.remove`."""
        self._portal.call(self._handle.remove())

    def promote(self) -> JobRecord:
        """As `JobHandle.promote`."""
        return self._portal.call(self._handle.promote())

    def move(self, *, delay: float | timedelta | None = None, at: datetime | None = None) -> JobRecord:
        """As `JobHandle.move`."""
        return self._portal.call(self._handle.move(delay=delay, at=at))

    def events(self) -> Iterator[JobRecord]:
        """As `JobHandle.events`."""
        return each(self._handle.events(), self._portal)
