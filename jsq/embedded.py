"""A worker in a process of the user's own: a web server, a notebook, a script, a test.

`App.working` makes one. The worker runs in an asyncio task beside the block. It installs no signal handler,
configures no logging and does not exit. Its error ends the block as an error of a `TaskGroup` does.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Protocol, Self

from jsq.errors import UsageError


class Runner(Protocol):
    """The part of a `Worker` that an embedded worker uses."""

    name: str
    queues: list[str]
    ready: asyncio.Event

    async def run(self) -> None: ...
    def stop(self) -> None: ...
    def quiet(self) -> None: ...
    def resume(self) -> None: ...
    def is_ready(self) -> bool: ...
    def state(self) -> str: ...


class EmbeddedWorker:
    """A worker in this process, for the time of a block: `async with app.working() as worker:`.

    The block starts when the worker is ready: it is connected, its queues exist, and the lifespan of the App
    was entered. The worker takes its first job after these, perhaps just before the first line of the block.
    Several workers of an App on one event loop enter the lifespan once. Entering raises `BrokerUnavailable`
    if no server answers, and otherwise the errors of `Worker.run`.

    The end of the block stops the worker gently. Jobs that have not started are handed back, and running
    jobs have the `grace` to end. A cancellation during that time stops the worker at once. Neither uses an
    attempt. The connection of the App stays open.

    If the worker fails while the block runs, the task that entered the block is cancelled, and the error of
    the worker is raised at the end of the block. If that task has ended, as that of a test fixture may have,
    the block goes on and the error is raised at its end.

    A worker with `burst`, `max_jobs` or `max_idle` may stop before the block ends; see `wait`.
    """

    def __init__(self, runner: Runner, connect: Callable[[], Awaitable[object]]) -> None:
        self.name = runner.name
        self.queues: Sequence[str] = tuple(runner.queues)
        self._runner = runner
        self._connect = connect
        self._running: asyncio.Task[None] | None = None
        self._owner: asyncio.Task[object] | None = None
        self._cancels_owner = False
        self._is_leaving = False

    def __repr__(self) -> str:
        return f"<EmbeddedWorker {self.name} of {', '.join(self.queues)}: {self.state()}>"

    def state(self) -> str:
        """`starting`, `running`, `quiet`, `stopping` or `stopped`."""
        if self._running is not None and self._running.done():
            return "stopped"
        found = self._runner.state()
        return "starting" if found == "running" and not self._runner.ready.is_set() else found

    def is_ready(self) -> bool:
        """Whether the worker takes jobs now; see `Worker.is_ready`."""
        return self.state() == "running" and self._runner.is_ready()

    def quiet(self) -> None:
        """Take no more jobs until `resume`. The running jobs continue."""
        self._runner.quiet()

    def resume(self) -> None:
        """Take jobs again after `quiet`."""
        self._runner.resume()

    def stop(self) -> None:
        """Stop gently, as the end of the block does. Returns at once. A second call hands back all jobs."""
        self._runner.stop()

    async def wait(self) -> None:
        """Wait until the worker has stopped by itself: by `burst`, `max_jobs`, `max_idle`, or after `stop`.

        Raises the error of the worker. Raises `UsageError` before the block.
        """
        if self._running is None:
            raise UsageError("the worker has not started: enter it by `async with app.working()`")
        await asyncio.wait((self._running,))
        self._running.result()

    async def __aenter__(self) -> Self:
        if self._running is not None:
            raise UsageError("a worker runs for one block only: call app.working() again")
        await self._connect()
        self._owner = asyncio.current_task()
        loop = asyncio.get_running_loop()
        self._running = running = loop.create_task(self._runner.run(), name=f"jsq-worker-{self.name}")
        ready = loop.create_task(self._runner.ready.wait())
        try:
            await asyncio.wait((running, ready), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self._end()
            raise
        finally:
            ready.cancel()
        if running.done():
            running.result()
        running.add_done_callback(self._ended)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        running, self._is_leaving = self._running, True
        assert running is not None, "the block was entered"
        if self._cancels_owner:
            await self._take_back_cancel(error)
        await self._end()
        failure = None if running.cancelled() else running.exception()
        if failure is not None:
            if error is not None and not isinstance(error, asyncio.CancelledError):
                failure.add_note(f"Before, the block of the worker raised {error!r}")
            raise failure from failure.__cause__
        if running.cancelled() and error is None:
            raise asyncio.CancelledError(f"the worker {self.name} was cancelled")

    def _ended(self, running: "asyncio.Task[None]") -> None:
        """End the block if the worker has failed."""
        if not running.cancelled() and running.exception() is None:
            return
        owner = self._owner
        if owner is not None and not self._is_leaving and not owner.done():
            self._cancels_owner = True
            owner.cancel()

    async def _take_back_cancel(self, error: BaseException | None) -> None:
        """Undo the cancellation of the task that entered the block, also if it was not delivered yet."""
        assert self._owner is not None, "it was cancelled"
        self._owner.uncancel()
        if not isinstance(error, asyncio.CancelledError) and asyncio.current_task() is self._owner:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)

    async def _end(self) -> None:
        """Stop the worker gently, and wait for its end. A cancellation stops it at once, and is raised."""
        running = self._running
        assert running is not None, "the block was entered"
        cancelled: asyncio.CancelledError | None = None
        if self._runner.state() != "stopping":
            self._runner.stop()
        while not running.done():
            try:
                await asyncio.wait((running,))
            except asyncio.CancelledError as error:
                cancelled = error
                self._runner.stop()
        if cancelled is not None and (running.cancelled() or running.exception() is None):
            raise cancelled
