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
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from jsq.declaration import FunctionLocation
from jsq.executors.base import FunctionEnd, Judged, Raised, ignore_end
from jsq.executors.child import LENGTH, STACKS_SIGNAL, CallRequest, ImportRequest, PipeMessage
from jsq.model.outcome import ChildDied

log = logging.getLogger("jsq.worker")

MEGABYTE = 1_000_000

EXIT_SECONDS = 2.0
"""Seconds in which an unneeded child may exit by itself."""

START = "import sys; sys.path[:] = {path!r}; from jsq.executors.child import serve; serve({number}, {level})"

ReportProgress = Callable[[float, str], None]

KeepWork = Callable[[str, str, bytes], Awaitable[bytes]]
"""Stores something for the job; see `AttemptMemory.act`."""


@dataclass(frozen=True, slots=True)
class ChildCallbacks:
    """The worker's callbacks while a function runs in a child.

    `progress` receives the reported progress, `extend` the seconds for which the function may go on. `began`
    is called when the child calls the function, `ended` when the function has ended. `keep` stores
    checkpoints; a function that takes no `Context` has none.
    """

    progress: ReportProgress = lambda *_: None
    extend: Callable[[float], object] = lambda seconds: None
    began: Callable[[], None] = lambda: None
    ended: Callable[[], None] = ignore_end
    keep: KeepWork | None = None


NO_CALLBACKS = ChildCallbacks()


class ChildProcess:
    """A child process of a worker. `used` is true once it was given a function to run."""

    used = False

    def __init__(
        self, process: asyncio.subprocess.Process, wire: tuple[Any, Any], exit_seconds: float = EXIT_SECONDS
    ) -> None:
        self.process = process
        self._exit_seconds = exit_seconds
        self._killed = False
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
        """Kill the process, and the processes that its task has started in its process group."""
        self._killed = True
        # `process.kill()` polls for the exit code, and so takes it from the event loop, which waits for it.
        if self.process.returncode is None:
            for kill in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError):
                    kill(self.process.pid, signal.SIGKILL)

    async def reap(self) -> int:
        """Wait for the exit of the child, and kill it if it does not exit in time.

        Returns the exit code, negative for a signal. A child that leaves a lifespan may log until it exits.
        """
        if self._exit_seconds > EXIT_SECONDS and not self._killed:
            with contextlib.suppress(OSError):
                self._writer.write_eof()
            logging_on = asyncio.get_running_loop().create_task(self._write_logs())
            await asyncio.wait((self._exit,), timeout=self._exit_seconds)
            self.kill()
            await logging_on
        self._writer.close()
        await asyncio.wait((self._exit,), timeout=EXIT_SECONDS)
        self.kill()
        return await self._exit

    async def _write_logs(self) -> None:
        """Write what an idle child logs until it exits."""
        while (message := await self.receive()) is not None:
            match message:
                case ("log", record):
                    write_log_record(record)


class ProcessExecution:
    """A function that runs in a child."""

    def __init__(
        self,
        children: "ProcessExecutor",
        request: CallRequest,
        callbacks: ChildCallbacks,
    ) -> None:
        self._child: ChildProcess | None = None
        self._began = False
        self._stopped = False
        self._callbacks = callbacks
        self._replies: set[asyncio.Task[None]] = set()
        self.end: asyncio.Future[FunctionEnd] = asyncio.get_running_loop().create_task(
            self._run(children, request)
        )

    def interrupt(self) -> bool:
        if self._child is None or not self._began:
            return self.kill()
        self._child.send("interrupt")
        return True

    def kill(self) -> bool:
        self._stopped = True
        if self._child is not None:
            self._child.kill()
        return True

    @property
    def pid(self) -> int:
        """The process of the function; 0 until it is called there."""
        return self._child.process.pid if self._child is not None and self._began else 0

    def print_stacks(self) -> None:
        """Ask the child process to print its stacks on standard error, if it runs the function."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, STACKS_SIGNAL)

    async def _run(self, children: "ProcessExecutor", request: CallRequest) -> FunctionEnd:
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
            self._callbacks.ended()

    async def _follow(
        self, children: "ProcessExecutor", child: ChildProcess, request: CallRequest
    ) -> FunctionEnd:
        """Send the request, and handle the messages of the child until the function has ended."""
        child.send("run", request)
        while True:
            match await child.receive():
                case ("began",):
                    self._began = True
                    self._callbacks.began()
                case ("progress", fraction, text):
                    self._callbacks.progress(fraction, text)
                case ("extend", seconds):
                    self._callbacks.extend(seconds)
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
            keep = self._callbacks.keep
            assert keep is not None
            found = await keep(what, place, body)
        except Exception as error:  # the task in the child handles it
            failed = error
        if child.alive:
            child.send("reply", number, found, failed)


class ProcessExecutor:
    """Runs functions in child processes, as many as are needed at once, and reuses the children.

    A child is replaced after `tasks` functions, or if it uses `memory` megabytes or more. The functions at
    `locations` are expected: until there are `most` children, an idle one is kept that has imported them. An
    unneeded child may take `exit_seconds` to exit by itself.
    """

    def __init__(
        self,
        *,
        tasks: int | None = None,
        memory: int | None = None,
        locations: Iterable[FunctionLocation] = (),
        most: int = 1,
        exit_seconds: float = EXIT_SECONDS,
    ) -> None:
        self._exit_seconds = exit_seconds
        self._tasks = tasks
        self._memory = memory
        self._locations = tuple(locations)
        self._most = most
        self._children: set[ChildProcess] = set()
        self._idle: list[ChildProcess] = []
        self._retiring: set[asyncio.Task[int]] = set()
        self._spare: asyncio.Task[None] | None = None
        self._closing = False

    def start(self, request: CallRequest, callbacks: ChildCallbacks = NO_CALLBACKS) -> ProcessExecution:
        """Start the function that a request names."""
        return ProcessExecution(self, request, callbacks)

    async def take(self) -> ChildProcess:
        """An idle child, or a new one. Raises `OSError` if no process can be started."""
        child = self._take_idle()
        if child is None and self._spare is not None:
            await asyncio.wait((self._spare,))
            child = self._take_idle()
        if child is None:
            child = await self._add_child()
        child.used = True
        self.start_ahead()
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

    def start_ahead(self) -> None:
        """Start a child for the next function in the background, unless one is idle or `most` are there."""
        needed = self._locations and not self._idle and len(self._children) < self._most
        if needed and self._spare is None and not self._closing:
            self._spare = asyncio.get_running_loop().create_task(self._start_spare())

    async def close(self) -> None:
        """End the children; kill those that still run a function."""
        self._closing = True
        if self._spare is not None:
            await asyncio.wait((self._spare,))
        for child in self._children - set(self._idle):
            child.kill()
        self._idle.clear()
        await asyncio.gather(*self._retiring, *(child.reap() for child in list(self._children)))

    def _take_idle(self) -> ChildProcess | None:
        while self._idle:
            child = self._idle.pop()
            if child.alive:
                return child
            self._retire(child)
        return None

    async def _add_child(self) -> ChildProcess:
        child = await start_child(self._exit_seconds)
        self._children.add(child)
        child.on_exit(self._forget)
        return child

    async def _start_spare(self) -> None:
        """Start a child, and have it import the functions. It is used after those that have run already."""
        try:
            child = await self._add_child()
            child.send("import", ImportRequest(self._locations))
            self._idle.insert(0, child)
        except OSError as error:
            log.warning("child process not started", extra={"error": str(error)})
        finally:
            self._spare = None

    def _forget(self, child: ChildProcess) -> None:
        """Replace a child that has exited, unless it was unused: the next one might exit too."""
        self._children.discard(child)
        if child in self._idle:
            self._idle.remove(child)
            self._retire(child)
        if child.used:
            self.start_ahead()

    def _retire(self, child: ChildProcess) -> None:
        if self._closing:
            return
        leaving = asyncio.get_running_loop().create_task(child.reap())
        self._retiring.add(leaving)
        leaving.add_done_callback(self._retiring.discard)


async def start_child(exit_seconds: float = EXIT_SECONDS) -> ChildProcess:
    """Start a child process, which may take `exit_seconds` to exit when it is not needed any more."""
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
    return ChildProcess(process, await asyncio.open_unix_connection(sock=ours), exit_seconds)


def write_log_record(record: dict[str, Any]) -> None:
    """Write a log record that a child sent."""
    source = logging.getLogger(record["name"])
    if source.isEnabledFor(record["levelno"]):
        source.handle(logging.makeLogRecord(record))


def describe_exit(code: int) -> str:
    """The reason why a child ended, for the error of the job."""
    if code >= 0:
        return f"the child process ended with exit code {code} while it ran the task"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    more = ", as when the system is out of memory" if -code == signal.SIGKILL else ""
    return f"the child process was ended by {name}{more} while it ran the task"
