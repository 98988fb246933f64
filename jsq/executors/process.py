"""Runs functions in child processes, so that a function can be killed whatever it does.

Each child has its own socket, so the death of one child affects only the function that it runs. (The pools of
`concurrent.futures` and `pebble` share a pipe, and break for good if an idle child is killed; tried with
pebble 5.2.3.) A child starts as a new interpreter, so it inherits no lock or connection of the worker.
"""

import asyncio
import contextlib
import logging
import os
import pickle
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from jsq.executors.base import FunctionEnd, Judged, Raised, ignore_end
from jsq.executors.child import LENGTH, CallRequest, PipeMessage
from jsq.model.outcome import ChildDied

MEGABYTE = 1_000_000

EXIT_SECONDS = 2.0
"""Seconds that a child which is no longer needed gets to exit by itself."""

START = "import sys; sys.path[:] = {path!r}; from jsq.executors.child import serve; serve({number}, {level})"

ReportProgress = Callable[[float, str], None]

KeepWork = Callable[[str, str, bytes], Awaitable[bytes]]
"""Stores something for the job; see `AttemptMemory.act`."""


class ChildProcess:
    """A child process of a worker."""

    def __init__(self, process: asyncio.subprocess.Process, wire: tuple[Any, Any]) -> None:
        self.process = process
        self.runs = 0
        self._reader: asyncio.StreamReader = wire[0]
        self._writer: asyncio.StreamWriter = wire[1]
        # A grandchild may hold the socket open, so the stream ends when the process exits.
        self._exit = asyncio.get_running_loop().create_task(process.wait())
        self._exit.add_done_callback(lambda _: self._reader.feed_eof())

    @property
    def alive(self) -> bool:
        return self.process.returncode is None and not self._reader.at_eof()

    def on_exit(self, callback: Callable[["ChildProcess"], None]) -> None:
        """Call `callback` with this child when the process has exited."""
        self._exit.add_done_callback(lambda _: callback(self))

    def send(self, *message: object) -> None:
        body = pickle.dumps(message)
        self._writer.write(LENGTH.pack(len(body)) + body)

    async def receive(self) -> PipeMessage | None:
        """The next message; None if the child has exited."""
        try:
            head = await self._reader.readexactly(LENGTH.size)
            body = await self._reader.readexactly(LENGTH.unpack(head)[0])
        except (asyncio.IncompleteReadError, OSError):
            return None
        message: PipeMessage = pickle.loads(body)
        return message

    def kill(self) -> None:
        # `process.kill()` polls for the exit code, and so takes it from the event loop, which waits for it.
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)

    async def reap(self) -> int:
        """Wait for the exit of the child, or kill it in the end.

        Returns the exit code, negative for a signal.
        """
        self._writer.close()
        await asyncio.wait((self._exit,), timeout=EXIT_SECONDS)
        self.kill()
        return await self._exit


class ProcessExecution:
    """A function that runs in a child."""

    def __init__(
        self,
        children: "ProcessExecutor",
        request: CallRequest,
        progress: ReportProgress,
        ended: Callable[[], None],
        keep: KeepWork | None,
    ) -> None:
        self._child: ChildProcess | None = None
        self._stopped = False
        self._progress = progress
        self._keep = keep
        self._replies: set[asyncio.Task[None]] = set()
        self.end: asyncio.Future[FunctionEnd] = asyncio.get_running_loop().create_task(
            self._run(children, request, ended)
        )

    def interrupt(self) -> bool:
        if self._child is None:
            return self.kill()
        self._child.send("interrupt")
        return True

    def kill(self) -> bool:
        self._stopped = True
        if self._child is not None:
            self._child.kill()
        return True

    async def _run(
        self, children: "ProcessExecutor", request: CallRequest, ended: Callable[[], None]
    ) -> FunctionEnd:
        try:
            child = await children.take()
            if self._stopped:
                children.give_back(child, 0)
                return Raised(asyncio.CancelledError())
            self._child = child
            return await self._follow(children, child, request)
        except Exception as error:  # no child can be started: the attempt has failed
            return Raised(error)
        finally:
            if self._child is not None:
                self._child.kill()
                self._child = None
            ended()

    async def _follow(
        self, children: "ProcessExecutor", child: ChildProcess, request: CallRequest
    ) -> FunctionEnd:
        """Send the request, and handle the messages of the child until the function has ended."""
        child.send("run", request)
        while True:
            match await child.receive():
                case ("progress", fraction, text):
                    self._progress(fraction, text)
                case ("request", number, what, place, body):
                    replying = asyncio.get_running_loop().create_task(
                        self._reply(child, number, what, place, body)
                    )
                    self._replies.add(replying)
                    replying.add_done_callback(self._replies.discard)
                case ("log", record):
                    write_log_record(record)
                case ("ended", outcome, memory, clean):
                    self._child = None
                    children.give_back(child, memory, clean=clean)
                    return Judged(outcome)
                case _:
                    return Raised(ChildDied(describe_exit(await child.reap())))

    async def _reply(self, child: ChildProcess, number: int, what: str, place: str, body: bytes) -> None:
        """Store something for the child, and send it the answer or the error."""
        found, failed = b"", None
        try:
            assert self._keep is not None
            found = await self._keep(what, place, body)
        except Exception as error:  # the task in the child handles it
            failed = error
        if child.alive:
            child.send("reply", number, found, failed)


class ProcessExecutor:
    """Runs functions in child processes, as many as are needed at once, and reuses the children.

    A child is replaced after `tasks` functions, or if it uses `memory` megabytes or more.
    """

    def __init__(self, *, tasks: int | None = None, memory: int | None = None) -> None:
        self._tasks = tasks
        self._memory = memory
        self._children: set[ChildProcess] = set()
        self._idle: list[ChildProcess] = []
        self._retiring: set[asyncio.Task[int]] = set()

    def start(
        self,
        request: CallRequest,
        progress: ReportProgress = lambda *_: None,
        ended: Callable[[], None] = ignore_end,
        keep: KeepWork | None = None,
    ) -> ProcessExecution:
        """Start the function that a request names. `progress` is called with the progress that it reports.

        `keep` stores its checkpoints; a function that takes no `Context` has none.
        """
        return ProcessExecution(self, request, progress, ended, keep)

    async def take(self) -> ChildProcess:
        """An idle child, or a new one. Raises `OSError` if no process can be started."""
        while self._idle:
            child = self._idle.pop()
            if child.alive:
                return child
            self._retire(child)
        child = await start_child()
        self._children.add(child)
        child.on_exit(self._children.discard)
        return child

    def give_back(self, child: ChildProcess, memory: int, *, clean: bool = True) -> None:
        """Keep an idle child that uses `memory` bytes, or end it.

        A child is not `clean` if its process state could not be restored.
        """
        child.runs += 1
        worn = self._tasks is not None and child.runs >= self._tasks
        heavy = self._memory is not None and memory >= self._memory * MEGABYTE
        if worn or heavy or not clean:
            self._retire(child)
        else:
            self._idle.append(child)

    async def close(self) -> None:
        """End the children; kill those that still run a function."""
        for child in self._children - set(self._idle):
            child.kill()
        self._idle.clear()
        await asyncio.gather(*self._retiring, *(child.reap() for child in list(self._children)))

    def _retire(self, child: ChildProcess) -> None:
        leaving = asyncio.get_running_loop().create_task(child.reap())
        self._retiring.add(leaving)
        leaving.add_done_callback(self._retiring.discard)


async def start_child() -> ChildProcess:
    """Start a child process."""
    ours, its = socket.socketpair()
    with its:
        start = START.format(path=sys.path, number=its.fileno(), level=logging.getLogger().level)
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", start),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(its.fileno(),),
                start_new_session=True,  # the worker handles Ctrl-C at the terminal
            )
        except BaseException:
            ours.close()
            raise
    return ChildProcess(process, await asyncio.open_unix_connection(sock=ours))


def write_log_record(record: dict[str, Any]) -> None:
    """Write a log record that a child sent."""
    log = logging.getLogger(record["name"])
    if log.isEnabledFor(record["levelno"]):
        log.handle(logging.makeLogRecord(record))


def describe_exit(code: int) -> str:
    """How a child ended, for the user."""
    if code >= 0:
        return f"the child process ended with exit code {code} while it ran the task"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    more = ", as when the system is out of memory" if -code == signal.SIGKILL else ""
    return f"the child process was ended by {name}{more} while it ran the task"
