"""Runs `jsq` commands and programs in forks of one process that has imported the command line already.

A command needs half a second of CPU for its imports and a hundredth of that to run. A fork starts with the
imports done and is a process of its own: it has its own session, environment, working directory, streams,
modules and exit code, and several may run at once. Tests that depend on the start of the interpreter, such as
its encoding, need a new interpreter.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from tests.helpers import forked
from tests.helpers.forked import request_fork

DESCRIPTORS = 4
"""The file descriptors of a request: three standard streams, and a file with the command."""

PRELOADED = (
    *(
        "bulk",
        "dead",
        "banner",
        "doctor",
        "events",
        "guide",
        "job",
        "loading",
        "pauses",
        "printing",
        "provision",
        "queue",
    ),
    *("schedule", "session", "stdin", "submission", "submit", "sweep", "version", "worker", "worker_queues"),
)
"""The modules of the commands."""

ALSO_PRELOADED = (
    *("rich.console", "rich.text", "rich.cells"),
    *("jsq.worker.run", "jsq.telemetry.logging", "pydantic.json_schema", "pydantic.type_adapter"),
)
"""Other modules that commands and workers import when they run."""


class ForkServer:
    """A process with the imports done, from which commands are forked; it ends with the tests."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="jsq-fork-")
        self._address = str(Path(self._folder.name, "socket"))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.forkserver", self._address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(environment),
            cwd=Path(__file__).parents[2],
        )
        assert self._process.stdout is not None
        if self._process.stdout.read(1) != b"+":
            raise RuntimeError(f"the fork server ended with code {self._process.wait()}")

    def start(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        streams: Sequence[IO[bytes]],
    ) -> socket.socket:
        """Start a command. The socket that is returned first receives its pid, then its exit code."""
        files = [stream.fileno() for stream in streams]
        return request_fork(self._address, words, environment, str(folder), files)

    def spawn(
        self, words: Sequence[str], environment: Mapping[str, str], folder: Path, stderr: int = 2
    ) -> "ForkedProcess":
        """Start a command that has the standard streams of this process, except for `stderr`.

        The words `-c TEXT ...` are a program of Python.
        """
        return ForkedProcess(request_fork(self._address, words, environment, str(folder), (0, 1, stderr)))

    def run(
        self, words: Sequence[str], environment: Mapping[str, str], folder: Path, seconds: float
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command without standard input to its end. Kills it, and raises an error, after `seconds`."""
        with contextlib.ExitStack() as held:
            empty = held.enter_context(open(os.devnull, "rb"))
            out, err = (held.enter_context(tempfile.TemporaryFile()) for _ in range(2))
            process = ForkedProcess(self.start(words, environment, folder, (empty, out, err)))
            held.callback(process.kill)
            code = process.wait(seconds)
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(words, code, out.read().decode(), err.read().decode())

    def install(self, folder: Path) -> dict[str, str]:
        """Write a `jsq` that runs commands in forks into a folder; returns the environment that it needs."""
        command = folder / "jsq"
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {forked.__file__} "$@"\n')
        command.chmod(0o755)
        return {forked.ADDRESS: self._address}

    def close(self) -> None:
        self._process.communicate()
        self._folder.cleanup()


class ForkedProcess:
    """A command in a fork, with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = b""
        self._waiting = threading.Lock()
        self.returncode: int | None = None
        self.pid = self._read_number(None)

    def poll(self) -> int | None:
        """The exit code; None while the process runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the process. Raises `subprocess.TimeoutExpired`."""
        if not self._waiting.acquire(timeout=-1 if timeout is None else timeout):
            raise subprocess.TimeoutExpired(f"fork {self.pid}", timeout or 0.0)
        try:
            if self.returncode is None:
                self.returncode = self._read_number(timeout)
                self._connection.close()
            return self.returncode
        except (TimeoutError, BlockingIOError):
            raise subprocess.TimeoutExpired(f"fork {self.pid}", timeout or 0.0) from None
        finally:
            self._waiting.release()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _read_number(self, timeout: float | None) -> int:
        """The next line that the fork server sends."""
        self._connection.settimeout(timeout)
        while b"\n" not in self._received:
            more = self._connection.recv(64)
            if not more:
                raise RuntimeError("the fork server has ended")
            self._received += more
        line, _, self._received = self._received.partition(b"\n")
        return int(line)


def serve(address: str) -> Any:
    """Fork for each connection, until standard input ends. Returns descriptors in a child, else None."""
    preload()
    running: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as held:
        ended, wakes = map(held.enter_context, socket.socketpair())
        listening = held.enter_context(socket.socket(socket.AF_UNIX))
        ready = held.enter_context(selectors.DefaultSelector())
        for end in (ended, wakes):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakes.fileno())
        listening.bind(address)
        listening.listen()
        for source in (0, listening, ended):
            ready.register(source, selectors.EVENT_READ)
        os.write(1, b"+")
        while True:
            for key, _ in ready.select():
                if key.fileobj == 0:
                    return None
                if key.fileobj is ended:
                    ended.recv(4096)
                    report(running)
                    continue
                connection, _ = listening.accept()
                files = fork(connection, running)
                if files is not None:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    return files


def preload() -> None:
    """Import the modules of commands, and prevent the garbage collector from copying their pages."""
    for name in PRELOADED:
        importlib.import_module(f"jsq.cli.{name}")
    for name in ALSO_PRELOADED:
        importlib.import_module(name)
    with contextlib.suppress(ImportError):
        importlib.import_module("uvloop")
    gc.collect()
    gc.freeze()


def report(running: dict[int, socket.socket]) -> None:
    """Send the exit code of each command that has ended."""
    for pid in list(running):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            with running.pop(pid) as connection, contextlib.suppress(OSError):
                connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def fork(connection: socket.socket, running: dict[int, socket.socket]) -> list[int] | None:
    """Fork for a request. Returns its descriptors in the child, None in the parent."""
    _, files, _, _ = socket.recv_fds(connection, 1, DESCRIPTORS)
    pid = os.fork()
    if pid == 0:
        for other in (connection, *running.values()):
            other.close()
        return files
    for file in files:
        os.close(file)
    connection.sendall(b"%d\n" % pid)
    running[pid] = connection
    return None


def become_command(files: list[int]) -> None:
    """Run the command of a request in this process, which ends with it."""
    with open(files.pop(), "rb") as request:
        request.seek(0)
        words, environment, folder = json.load(request)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    reopen_streams()
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[0] = folder
    try:
        if words[:1] == ["-c"]:
            run_code(words[1], words[2:])
        else:
            sys.argv = ["jsq", *words]
            importlib.import_module("jsq.cli").run_command_line()
    except SystemExit as end:
        exit_at_once(end.code)
    exit_at_once(0)


def exit_at_once(code: object) -> None:
    """End the process with the argument of `sys.exit`, and leave its memory as it is.

    The interpreter would visit each object first, and so copy the memory that the fork shares with the fork
    server. That takes ten times as long as a short command.
    """
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def run_code(text: str, words: Sequence[str]) -> None:
    """Run a program in this process, as `python -c` does."""
    sys.argv = ["-c", *words]
    main = ModuleType("__main__")
    sys.modules["__main__"] = main
    exec(compile(text, "<string>", "exec"), main.__dict__)


def reopen_streams() -> None:
    """Open the standard streams as an interpreter does: a pipe cannot be positioned, a file can."""
    coding = sys.stdout.encoding
    sys.stdin = os.fdopen(0, encoding=coding, errors=sys.stdin.errors, closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding=coding, errors=sys.stdout.errors, closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding=coding, errors="backslashreplace", closefd=False)


if __name__ == "__main__":
    descriptors = serve(sys.argv[1])
    if descriptors is not None:
        become_command(descriptors)
