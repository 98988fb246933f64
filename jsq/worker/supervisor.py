"""A supervisor keeps worker processes alive, and does nothing else.

It restarts a child that dies. When the parent dies, a child reads the end of its standard input and stops, so
no process remains. Each second a child reports that its event loop runs, and whether it is ready.
"""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger("jsq.worker")

CHILD_BEAT = 1.0
STUCK_AFTER = 10.0
"""Seconds without a beat after which a child counts as stuck."""

STABLE_AFTER = 10.0
"""Seconds after which a child that dies is restarted without a growing delay."""

MAX_RESTART_DELAY = 5.0
FINAL_EXIT_CODES = frozenset({2, 4, 7})
"""Exit codes that a restart would repeat: bad usage, not allowed, a wrong address or TLS setting."""

SPENT_EXIT_CODE = 80
"""The exit code of a child that has run as many jobs as it may: another one replaces it at once."""

UNUSABLE_EXIT_CODE = 81
"""The exit code of a child that cannot use the streams of its server: a restart would not change that."""

READY, ALIVE = b"r", b"a"


@dataclass(slots=True)
class WorkerProcess:
    """One worker process. It handles signals once it has `started`; before that, they would end it."""

    process: asyncio.subprocess.Process
    beats: int
    born: float = field(default_factory=time.monotonic)
    last_beat: float = field(default_factory=time.monotonic)
    ready: bool = False
    outdated: bool = False
    started: bool = False

    def read_beats(self) -> None:
        """Read what the child has reported."""
        with contextlib.suppress(BlockingIOError):
            reported = os.read(self.beats, 4096)
            if reported:
                self.last_beat = time.monotonic()
                self.ready = reported.endswith(READY)
                self.started = True


@dataclass(frozen=True, slots=True)
class WorkerCommand:
    """The command of a worker process, to which the supervisor adds `--supervised FD`.

    A process may take `grace` seconds to stop. A `finite` one is not restarted after it has exited with 0.
    """

    arguments: Sequence[str]
    environment: Mapping[str, str] | None = None
    grace: float = 25.0
    finite: bool = False


class Supervisor:
    """Keeps `processes` processes of one command alive, and restarts them when code below `watched` changes.

    `run` returns the exit code: 0 after a stop, 1 if the streams of the server cannot be used, else the code
    of a process that cannot work. `on_exit` is called with the process id of each process that has ended.
    """

    def __init__(
        self,
        command: WorkerCommand,
        *,
        processes: int = 1,
        watched: Path | None = None,
        on_exit: Callable[[int], object] = lambda pid: None,
    ) -> None:
        self._command = command
        self._processes = processes
        self._watched = watched
        self._on_exit = on_exit
        self._children: list[WorkerProcess] = []
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        self._code = 0
        self._quiet = False

    @property
    def pids(self) -> list[int]:
        return [child.process.pid for child in self._children]

    def alive(self) -> bool:
        """Whether the event loop of every child runs; a child that was just restarted counts."""
        return all(time.monotonic() - child.last_beat < STUCK_AFTER for child in self._children)

    def ready(self) -> bool:
        """Whether at least one child accepts jobs."""
        return any(child.ready for child in self._children) and not self._stopping.is_set()

    def stop(self) -> None:
        """Stop the children gently; a second call stops them at once."""
        self._stopping.set()
        self._signal(signal.SIGTERM)

    def quiet(self) -> None:
        """Make all children quiet, also those that start later."""
        self._quiet = True
        self._signal_started(signal.SIGTSTP)

    def resume(self) -> None:
        """Let the children take jobs again."""
        self._quiet = False
        self._signal_started(signal.SIGCONT)

    def print_stacks(self) -> None:
        """Let each child print the stacks of its jobs."""
        self._signal_started(signal.SIGUSR1)

    async def run(self) -> int:
        async with asyncio.TaskGroup() as group:
            duties = [group.create_task(self._read_beats())]
            if self._watched is not None:
                duties.append(group.create_task(self._reload(self._watched)))
            await asyncio.gather(*(self._keep_alive() for _ in range(self._processes)))
            for duty in duties:
                duty.cancel()
        return self._code

    # -- inside ------------------------------------------------------------------------------------------

    async def _keep_alive(self) -> None:
        wait = 0.0
        while not self._stopping.is_set():
            try:
                child = await self._start()
            except OSError as error:
                log.error("worker process not started", extra={"error": str(error)})
                await self._sleep(MAX_RESTART_DELAY)
                continue
            code = await self._wait_for_exit(child)
            if child.outdated and not self._stopping.is_set():
                continue
            if self._stopping.is_set() or (code == 0 and self._command.finite):
                return
            if code == SPENT_EXIT_CODE:
                log.info("worker process replaced", extra={"pid": child.process.pid})
                continue
            if code == UNUSABLE_EXIT_CODE:
                self._code = 1
                self.stop()
                return
            if code in FINAL_EXIT_CODES and not child.ready and self._watched is not None:
                log.error("app not loaded", extra={"code": code})
                await self._wait_for_change()
                continue
            if code in FINAL_EXIT_CODES and not child.ready:
                self._code = code
                self.stop()
                return
            wait = (
                0.1
                if time.monotonic() - child.born > STABLE_AFTER
                else min(MAX_RESTART_DELAY, max(0.1, wait * 2))
            )
            log.error(
                "worker process died",
                extra={"pid": child.process.pid, "code": code, "again_in": wait},
            )
            await self._sleep(wait)

    async def _wait_for_change(self) -> None:
        self._changed.clear()
        changed = asyncio.ensure_future(self._changed.wait())
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((changed, stopping), return_when="FIRST_COMPLETED")
        for waiting in (changed, stopping):
            waiting.cancel()

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _start(self) -> WorkerProcess:
        beats, write_end = os.pipe()
        os.set_blocking(beats, False)
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command.arguments,
                "--supervised",
                str(write_end),
                stdin=asyncio.subprocess.PIPE,
                pass_fds=(write_end,),
                start_new_session=True,
                env=self._command.environment,
            )
        except OSError:
            os.close(beats)
            raise
        finally:
            os.close(write_end)
        child = WorkerProcess(process, beats)
        self._children.append(child)
        if self._stopping.is_set():
            process.terminate()
        return child

    async def _wait_for_exit(self, child: WorkerProcess) -> int:
        """Wait until a child exits. After a stop, kill it when its grace is over."""
        ended = asyncio.ensure_future(child.process.wait())
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait((ended, stopping), return_when="FIRST_COMPLETED")
            await asyncio.wait((ended,), timeout=self._command.grace + 20.0)
            if not ended.done():
                log.error("worker process killed", extra={"pid": child.process.pid})
                child.process.kill()
            code = await ended
            child.read_beats()
            return code
        finally:
            stopping.cancel()
            self._children.remove(child)
            os.close(child.beats)
            self._on_exit(child.process.pid)

    async def _read_beats(self) -> None:
        while True:
            for child in self._children:
                known = child.started
                child.read_beats()
                if self._quiet and child.started and not known:
                    signal_process(child.process, signal.SIGTSTP)
            await asyncio.sleep(CHILD_BEAT / 2)

    async def _reload(self, folder: Path) -> None:
        """Restart the children whenever the code below a folder changes."""
        from watchfiles import PythonFilter, awatch

        async for changes in awatch(folder, watch_filter=PythonFilter()):
            changed = sorted({Path(path).name for _, path in changes})
            log.info("code changed", extra={"files": ",".join(changed[:5])})
            self._changed.set()
            for child in self._children:
                child.outdated = True
            self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        for child in self._children:
            signal_process(child.process, number)

    def _signal_started(self, number: signal.Signals) -> None:
        for child in self._children:
            if child.started:
                signal_process(child.process, number)


def signal_process(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Send a signal to a process, unless it has ended."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


async def report_to_supervisor(write_end: int, ready: Callable[[], bool], stop: Callable[[], None]) -> None:
    """The child's part: report each second that the event loop runs, and stop when the parent is gone."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(0, "rb")
    )
    orphaned = loop.create_task(reader.read())
    try:
        while not orphaned.done():
            with contextlib.suppress(BrokenPipeError, BlockingIOError):
                os.write(write_end, READY if ready() else ALIVE)
            await asyncio.wait((orphaned,), timeout=CHILD_BEAT)
        stop()
    finally:
        orphaned.cancel()
        transport.close()
