"""Functions run in child processes, so that one can be killed, whatever it does.

Each child has a socket of its own, and nothing is shared between children: the death of one is an end like
others for its function, and nothing to the rest. (The pools of `concurrent.futures` and `pebble` share a pipe
and are broken for good once an idle child is killed; tried with pebble 5.2.3.) A child begins as a fresh
interpreter, so no lock or connection of the worker is copied into it.
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
"""Seconds that a child which is no longer needed gets to leave by itself."""

START = "import sys; sys.path[:] = {path!r}; from jsq.executors.child import serve; serve({number}, {level})"

ReportProgress = Callable[[float, str], None]

KeepWork = Callable[[str, str, bytes], Awaitable[bytes]]
"""Keeps something of the job: what is to be done, at which place, with which JSON."""


class ChildProcess:
    """A child process, as its worker sees it."""

    def __init__(self, process: asyncio.subprocess.Process, wire: tuple[Any, Any]) -> None:
        self.process = process
        self.runs = 0
        self._reader: asyncio.StreamReader = wire[0]
        self._writer: asyncio.StreamWriter = wire[1]
        # A grandchild may hold the socket open: the end of the process itself is the end of what it says.
        self._buried = asyncio.get_running_loop().create_task(process.wait())
        self._buried.add_done_callback(lambda _: self._reader.feed_eof())

    @property
    def alive(self) -> bool:
        return self.process.returncode is None and not self._reader.at_eof()

    def when_buried(self, tell: Callable[["ChildProcess"], None]) -> None:
        self._buried.add_done_callback(lambda _: tell(self))

    def send(self, *message: object) -> None:
        body = pickle.dumps(message)
        self._writer.write(LENGTH.pack(len(body)) + body)

    async def receive(self) -> PipeMessage | None:
        """The next message; None when the child has ended."""
        try:
            head = await self._reader.readexactly(LENGTH.size)
            body = await self._reader.readexactly(LENGTH.unpack(head)[0])
        except (asyncio.IncompleteReadError, OSError):
            return None
        told: PipeMessage = pickle.loads(body)
        return told

    def kill(self) -> None:
        # Not `process.kill()`: it looks for the exit code, and so takes it from the loop, which waits for it.
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)

    async def bury(self) -> int:
        """Let the child leave, or see to it; returns its exit code, negative for a signal."""
        self._writer.close()
        await asyncio.wait((self._buried,), timeout=EXIT_SECONDS)
        self.kill()
        return await self._buried


class ProcessExecution:
    """A function under way in a child."""

    def __init__(
        self,
        children: "ProcessExecutor",
        order: CallRequest,
        progress: ReportProgress,
        ended: Callable[[], None],
        keep: KeepWork | None,
    ) -> None:
        self._child: ChildProcess | None = None
        self._stopped = False
        self._progress = progress
        self._keep = keep
        self._answering: set[asyncio.Task[None]] = set()
        self.end: asyncio.Future[FunctionEnd] = asyncio.get_running_loop().create_task(
            self._run(children, order, ended)
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
        self, children: "ProcessExecutor", order: CallRequest, ended: Callable[[], None]
    ) -> FunctionEnd:
        try:
            child = await children.take()
            if self._stopped:
                children.give_back(child, 0)
                return Raised(asyncio.CancelledError())
            self._child = child
            return await self._follow(children, child, order)
        except Exception as error:  # no child can be started: the attempt has failed
            return Raised(error)
        finally:
            if self._child is not None:
                self._child.kill()
                self._child = None
            ended()

    async def _follow(
        self, children: "ProcessExecutor", child: ChildProcess, order: CallRequest
    ) -> FunctionEnd:
        """Hand over the order, and pass on what the child says until it has ended."""
        child.send("run", order)
        while True:
            match await child.receive():
                case ("progress", fraction, text):
                    self._progress(fraction, text)
                case ("ask", number, what, place, body):
                    answering = asyncio.get_running_loop().create_task(
                        self._answer(child, number, what, place, body)
                    )
                    self._answering.add(answering)
                    answering.add_done_callback(self._answering.discard)
                case ("log", record):
                    write_log_record(record)
                case ("ended", outcome, memory, clean):
                    self._child = None
                    children.give_back(child, memory, clean=clean)
                    return Judged(outcome)
                case _:
                    return Raised(ChildDied(describe_exit(await child.bury())))

    async def _answer(self, child: ChildProcess, number: int, what: str, place: str, body: bytes) -> None:
        """Have something kept for the child, and tell it what came of that."""
        found, failed = b"", None
        try:
            assert self._keep is not None
            found = await self._keep(what, place, body)
        except Exception as error:  # it is the task's to answer, which runs over there
            failed = error
        if child.alive:
            child.send("answer", number, found, failed)


class ProcessExecutor:
    """Runs functions in children, as many as are needed at once; a child is used again.

    After `tasks` functions, or holding `memory` megabytes, a child is replaced.
    """

    def __init__(self, *, tasks: int | None = None, memory: int | None = None) -> None:
        self._tasks = tasks
        self._memory = memory
        self._children: set[ChildProcess] = set()
        self._idle: list[ChildProcess] = []
        self._leaving: set[asyncio.Task[int]] = set()

    def start(
        self,
        order: CallRequest,
        progress: ReportProgress = lambda *_: None,
        ended: Callable[[], None] = ignore_end,
        keep: KeepWork | None = None,
    ) -> ProcessExecution:
        """Start the function that an order names; `progress` is told what it says of itself.

        `keep` keeps what it asks to be kept; a function that takes no `Context` asks for nothing.
        """
        return ProcessExecution(self, order, progress, ended, keep)

    async def take(self) -> ChildProcess:
        """A child with nothing to do. Raises `OSError` where none can be started."""
        while self._idle:
            child = self._idle.pop()
            if child.alive:
                return child
            self._let_go(child)
        child = await start_child()
        self._children.add(child)
        child.when_buried(self._children.discard)
        return child

    def give_back(self, child: ChildProcess, memory: int, *, clean: bool = True) -> None:
        """Keep a child that has done its work, of so many bytes, or let it go.

        One that is not clean has surroundings which its function left changed for good.
        """
        child.runs += 1
        worn = self._tasks is not None and child.runs >= self._tasks
        heavy = self._memory is not None and memory >= self._memory * MEGABYTE
        if worn or heavy or not clean:
            self._let_go(child)
        else:
            self._idle.append(child)

    async def close(self) -> None:
        """End the children, at once those that still run something."""
        for child in self._children - set(self._idle):
            child.kill()
        self._idle.clear()
        await asyncio.gather(*self._leaving, *(child.bury() for child in list(self._children)))

    def _let_go(self, child: ChildProcess) -> None:
        leaving = asyncio.get_running_loop().create_task(child.bury())
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)


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
                start_new_session=True,  # Ctrl-C at the terminal is the worker's to answer
            )
        except BaseException:
            ours.close()
            raise
    return ChildProcess(process, await asyncio.open_unix_connection(sock=ours))


def write_log_record(record: dict[str, Any]) -> None:
    """Write a log line that a child handed over."""
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
