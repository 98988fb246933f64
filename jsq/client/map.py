"""Mapping a task over calls: jobs are submitted a window at a time; results come in order or as jobs end."""

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypedDict, TypeVar

from jsq.broker import Broker
from jsq.broker.operations.completions import Completions
from jsq.client.handle import JobHandle
from jsq.codec.envelope import new_ids
from jsq.errors import BadOption, JobError, ResultTimeout
from jsq.model.durations import Duration, seconds
from jsq.model.revision import StoredRevision

R = TypeVar("R")

MAP_WINDOW = 1_000
MAX_MAP_WINDOW = 100_000


class MapOptions(TypedDict, total=False):
    """The options of `map`.

    `window`: maximum number of jobs that are submitted and whose results are not returned yet [1,000]. All of
    them are held in memory. `unordered`: return results as jobs end, not in the order of the calls.
    `timeout`: how long to wait for the next result before `ResultTimeout` is raised [no limit].
    """

    window: int
    unordered: bool
    timeout: Duration | None


class SubmitWindow(Protocol):
    """Submits a window of calls under ids that were made for them; `before` counts the calls sent earlier."""

    def __call__(
        self, calls: Sequence[Any], ids: Sequence[str], before: int, /
    ) -> Awaitable[list[JobHandle[Any]]]: ...


@dataclass(frozen=True, slots=True)
class Mapped:
    """The calls of one `map`, and its options."""

    broker: Callable[[], Awaitable[Broker]]
    queue: str
    submit: SubmitWindow
    calls: Iterable[Any] | AsyncIterable[Any]
    window: int = MAP_WINDOW
    unordered: bool = False
    timeout: Duration | None = None
    return_exceptions: bool = False

    def __post_init__(self) -> None:
        is_integer = isinstance(self.window, int) and not isinstance(self.window, bool)
        if not is_integer or not 1 <= self.window <= MAX_MAP_WINDOW:
            raise BadOption("window", self.window, f"must be a whole number from 1 to {MAX_MAP_WINDOW:,}")
        seconds("timeout", self.timeout)
        if not isinstance(self.calls, (Iterable, AsyncIterable)) or isinstance(self.calls, (str, bytes)):
            raise BadOption("calls", self.calls, "must be an iterable of calls")


class Results(AsyncIterator[R], Generic[R]):
    """`async for result in add.map(calls)`; or all of them in a list, `await add.map(calls)`.

    Jobs are submitted as results are consumed. A caller that stops consuming results stops the submits. Jobs
    that are submitted already still run.
    """

    def __init__(self, mapped: Mapped) -> None:
        self._stream = results(mapped)

    async def __anext__(self) -> R:
        found: R = await anext(self._stream)
        return found

    def __await__(self) -> Generator[Any, None, list[R]]:
        return self._all().__await__()

    async def aclose(self) -> None:
        """End the subscription to completions. Python closes an abandoned `async for` some time later."""
        await self._stream.aclose()

    async def _all(self) -> list[R]:
        return [result async for result in self]


async def results(mapped: Mapped) -> AsyncGenerator[Any, None]:
    """The results of calls; see `Results`."""
    broker = await mapped.broker()
    async with broker.subscribe_completions(mapped.queue) as completions:
        window = Window(mapped, completions)
        while True:
            await window.fill()
            if not window.waiting:
                return
            yield await window.take()


class Window:
    """The jobs of a map that were submitted, and whose results were not consumed yet."""

    def __init__(self, mapped: Mapped, completions: Completions) -> None:
        self.waiting: dict[str, JobHandle[Any]] = {}
        self._mapped = mapped
        self._completions = completions
        self._ended: dict[str, StoredRevision] = {}
        self._calls = each_of(mapped.calls)
        self._more = True
        self._before = 0

    async def fill(self) -> None:
        """Submit more calls, once half of the window is empty."""
        size = self._mapped.window
        if not self._more or len(self.waiting) * 2 > size:
            return
        calls = []
        async for call in self._calls:
            calls.append(call)
            if len(calls) + len(self.waiting) >= size:
                break
        else:
            self._more = False
        if calls:
            await self._submit(calls)

    async def take(self) -> Any:
        """The next result, or the next error. Raises the errors of `JobHandle.result`."""
        event = await self._next()
        handle = self.waiting.pop(event.job)
        try:
            return handle.result_of(event.revision)
        except JobError as error:
            if not self._mapped.return_exceptions:
                raise
            return error

    async def _submit(self, calls: Sequence[Any]) -> None:
        ids = new_ids(len(calls))
        self._completions.expect(ids)  # before the submit: a job may end before the last one is stored
        try:
            handles = await self._mapped.submit(calls, ids, self._before)
        except BaseException:
            self._completions.forget(ids)
            raise
        self._before += len(calls)
        self.waiting.update((handle.id, handle) for handle in handles)

    async def _next(self) -> StoredRevision:
        limit = seconds("timeout", self._mapped.timeout)
        try:
            async with asyncio.timeout(limit):
                return await (self._completions.next() if self._mapped.unordered else self._first())
        except TimeoutError as error:
            raise ResultTimeout(next(iter(self.waiting)), limit or 0.0) from error

    async def _first(self) -> StoredRevision:
        """The final event of the job that was submitted first."""
        first = next(iter(self.waiting))
        while first not in self._ended:
            event = await self._completions.next()
            self._ended[event.job] = event
        return self._ended.pop(first)


async def each_of(calls: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    """Each call in the form of `submit_many`: a value of another type is the one argument of its call."""
    if isinstance(calls, AsyncIterable):
        async for call in calls:
            yield as_call(call)
        return
    for call in calls:
        yield as_call(call)


def as_call(call: Any) -> Any:
    return call if isinstance(call, (list, tuple, Mapping)) else (call,)
