"""The engine of immediate mode: a storage in memory, a worker on it, and brokers for the clients of an App.

`jsq.immediate` has what users hold. While a block runs, the connection of the App opens no connection to a
server: it takes its brokers from here. A program without such a block runs none of this code.
"""

import asyncio
import itertools
import weakref
from collections.abc import Coroutine
from typing import Any

from jsq.app import App
from jsq.broker import Broker
from jsq.client.lookup import job_record
from jsq.errors import UsageError
from jsq.immediate import ImmediateOptions
from jsq.model.job import JobRecord
from jsq.model.job_filter import JobCriteria
from jsq.testing.immediate_broker import ImmediateBroker, SubmitRecorder
from jsq.testing.immediate_clock import VirtualClock
from jsq.testing.immediate_storage import MemoryStorage
from jsq.testing.immediate_wire import unsupported
from jsq.testing.immediate_worker import ImmediateWorker, memory_namespace
from jsq.testing.submits import Submits

MOST_FOLLOWING = 1_000
"""Delayed jobs that `run_due` runs at most, besides those that waited when it was called."""

_in_block: "weakref.WeakSet[App]" = weakref.WeakSet()
"""The Apps that are in a block now."""


class ImmediateSession:
    """One block of immediate mode; see `jsq.immediate.Immediate`."""

    def __init__(self, app: App, options: ImmediateOptions) -> None:
        self.submits = Submits()
        self.clock = VirtualClock(options.get("start"))
        self.storage = MemoryStorage(self.clock)
        self.storage.on_store = SubmitRecorder(self.submits).note
        self._app = app
        self._options = options

    async def start(self) -> None:
        """Start the worker, and replace the brokers of the App. Raises `UsageError` inside another block."""
        app, options = self._app, self._options
        if app in _in_block:
            raise UsageError("this App is in a block of immediate mode already; leave that one first")
        app.load()
        hold, raises = options.get("hold_retries", False), options.get("raise_errors", False)
        self._worker = ImmediateWorker(app, self.storage, hold_retries=hold, raise_errors=raises)
        self._before = app.client.connection.swap_brokers(BrokersByLoop(self))
        _in_block.add(app)
        try:
            await self._worker.start()
        except BaseException:
            self._restore()
            raise
        if options.get("schedules", False):
            for schedule in app.schedules.values():
                await self._worker.broker.schedules.put(schedule)

    async def stop(self) -> None:
        """Stop the worker, and restore the brokers of the App. Raises `LifespanFailed`."""
        try:
            await self._worker.on_home(self._worker.stop())
        finally:
            self._restore()

    def _restore(self) -> None:
        """Let the App use its own brokers again. Those of the block accept no more writes."""
        _in_block.discard(self._app)
        self.storage.is_closed = True
        self._app.client.connection.swap_brokers(self._before)

    def open_broker(self) -> ImmediateBroker:
        """A broker for the running event loop."""
        namespace = memory_namespace(self.storage, self._app.namespace)
        depth, schedules = self._options.get("max_depth", 100), self._options.get("schedules", False)
        return ImmediateBroker(namespace, self._worker, max_depth=depth, schedules=schedules)

    async def advance(self, seconds: float) -> None:
        """Move the clock. Raises the first error of a job that failed meanwhile, with `raise_errors`."""
        await self._raising(self._worker.move_clock(self.clock.now() + seconds))

    async def run_due(self) -> None:
        """Run the held jobs, each at its time, until none is held."""
        await self._raising(self._run_all())

    async def jobs(self) -> list[JobRecord]:
        """The records of all jobs, the last change last."""
        found = self._worker.broker.query.newest(JobCriteria())
        return [job_record(one) for one in await self._worker.on_home(found)]

    async def delays(self, id: str, queue: str) -> list[float]:
        """The delays before the later attempts of a job, in seconds."""
        history = await self._worker.on_home(self._worker.broker.records.history(id, queue))
        found = [
            (event.revision.due, event.at)
            for before, event in itertools.pairwise(one for one in history if one.revision.progress is None)
            if before.state == "running" and event.state in ("retrying", "snoozed")
        ]
        return [round((due - at).total_seconds(), 3) for due, at in found if due is not None]

    # -- inside ------------------------------------------------------------------------------------------

    async def _run_all(self) -> None:
        if self._options.get("schedules", False) and self._app.schedules:
            raise unsupported("run_due with schedules", "they fire without end", "use advance")
        left = self.storage.held + MOST_FOLLOWING
        while (due := self.storage.next_due()) is not None:
            left -= 1
            if left < 0:
                why = f"they have submitted {MOST_FOLLOWING:,} others with a delay"
                raise unsupported("run_due of these jobs", why, "use advance")
            await self._worker.move_clock(due)

    async def _raising(self, work: Coroutine[Any, Any, None]) -> None:
        known = set(self._worker.errors)
        await self._worker.on_home(work)
        for id in [id for id in self._worker.errors if id not in known]:
            raise self._worker.errors.pop(id)


class BrokersByLoop(dict[asyncio.AbstractEventLoop, "asyncio.Future[Broker]"]):
    """The brokers of a connection in a block: an event loop gets one on first use."""

    def __init__(self, session: ImmediateSession) -> None:
        super().__init__()
        self._session = session

    def get(self, loop: asyncio.AbstractEventLoop, default: Any = None, /) -> Any:
        if loop not in self:
            opened: asyncio.Future[Broker] = loop.create_future()
            opened.set_result(self._session.open_broker())
            self[loop] = opened
        return self[loop]
