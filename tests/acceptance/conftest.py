"""Runs `jsq` as users run it: the command itself, in a process of its own.

Most commands run in a fork of a process with the imports done, see `tests.helpers.forkserver`. Tests of
processes, signals or terminals, and tests that run code of their own, start a new interpreter.
"""

import asyncio
import contextlib
import json
import os
import pty
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from jsq import Client
from jsq.server import EmbeddedServer
from tests.helpers.conditions import Until
from tests.helpers.forkserver import ForkServer

SECONDS = 30.0

AT_START = ("PYTHON", "LC_", "LANG")
"""The variables that the interpreter reads when it starts."""

Dying = Callable[..., Awaitable[None]]
Listed = Callable[..., Awaitable[None]]


@dataclass(frozen=True)
class Ended:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass(frozen=True)
class Command:
    """Runs `jsq` with the server and the namespace of the test, in a folder of the test."""

    environment: dict[str, str]
    folder: Path
    forks: ForkServer

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    async def __call__(
        self, *words: str, stdin: bytes = b"", code: str = "", environment: dict[str, str] | None = None
    ) -> Ended:
        """Run `jsq`, or the code of a test in its place, until it ends."""
        if code or any(name.startswith(AT_START) for name in environment or {}):
            async with self.running(*words, code=code, environment=environment) as process:
                out, err = await process.communicate(stdin)
            return Ended(process.returncode or 0, out.decode(), err.decode())
        return await self._forked(words, stdin, self.environment | (environment or {}))

    async def _forked(self, words: tuple[str, ...], stdin: bytes, environment: dict[str, str]) -> Ended:
        with contextlib.ExitStack() as held:
            streams = [held.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
            streams[0].write(stdin)
            streams[0].seek(0)
            connection = held.enter_context(self.forks.start(words, environment, self.folder, streams))
            connection.setblocking(False)
            reader, writer = await asyncio.open_unix_connection(sock=connection)
            try:
                pid = int(await reader.readline())
                late = asyncio.get_running_loop().call_later(SECONDS, os.kill, pid, signal.SIGKILL)
                code = int(await reader.readline())
                late.cancel()
            finally:
                writer.close()
            out, err = (read_stream(stream) for stream in streams[1:])
        return Ended(code, out.decode(), err.decode())

    @contextlib.asynccontextmanager
    async def running(
        self, *words: str, code: str = "", environment: dict[str, str] | None = None
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *(("-c", code) if code else ("-m", "jsq")),
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self.environment | (environment or {}),
            cwd=self.folder,
        )
        async with ending(process):
            yield process

    async def on_terminal(
        self, *words: str, typed: bytes = b"", environment: dict[str, str] | None = None
    ) -> Ended:
        """Run `jsq` on a terminal, which receives both stdout and stderr."""
        ours, theirs = pty.openpty()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "jsq", *words),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=self.environment | {"TERM": "xterm"} | (environment or {}),
            cwd=self.folder,
        )
        os.close(theirs)
        os.write(ours, typed)
        async with ending(process):
            shown = await asyncio.to_thread(read_all, ours)
            return Ended(await process.wait(), shown, "")


@contextlib.asynccontextmanager
async def ending(process: asyncio.subprocess.Process) -> AsyncIterator[None]:
    """Terminate a process at the end of the block, and kill it if it does not end in time."""
    late = asyncio.get_running_loop().call_later(SECONDS, process.kill)
    try:
        yield
    finally:
        late.cancel()
        if process.returncode is None:
            process.kill()
            await process.wait()


def read_all(terminal: int) -> str:
    shown = b""
    with contextlib.suppress(OSError):  # the other end was closed
        while more := os.read(terminal, 65_536):
            shown += more
    os.close(terminal)
    return shown.decode()


def read_stream(stream: IO[bytes]) -> bytes:
    stream.seek(0)
    return stream.read()


@pytest.fixture
def jsq(
    server: EmbeddedServer,
    namespace: str,
    tmp_path: Path,
    forks: ForkServer,
    base_environment: dict[str, str],
) -> Command:
    ours = {"JSQ_URL": server.url, "JSQ_NAMESPACE": namespace, "XDG_CONFIG_HOME": str(tmp_path)}
    return Command(base_environment | ours, tmp_path, forks)


@pytest.fixture
def listed(client: Client, until: Until) -> Listed:
    """`await listed(2)` waits until two jobs are listed, which is shortly after their submit."""

    async def listed(count: int = 1) -> None:
        async def complete() -> bool:
            return len(await client.jobs.list()) >= count

        await until(complete)

    return listed


@pytest.fixture
def dying(client: Client, until: Until) -> Dying:
    """`await dying(2)` waits for two dead letters, which are written shortly after the failures."""

    async def dying(count: int = 1) -> None:
        async def there() -> bool:
            return len(await client.dead_letters.list()) >= count

        await until(there)

    return dying
