"""The nats-server of a test run, and the namespaces of its tests."""

import asyncio
import contextlib
import itertools
import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from jsq.broker.topology.removal import remove_namespace, stream_prefixes
from jsq.client.blocking import Portal
from jsq.errors import UsageError
from jsq.server import EmbeddedServer
from jsq.settings import Login, read_login
from jsq.transport.wire import Wire

MEMORY = Path("/dev/shm")
"""A file system in memory, where there is one."""

LEAST_FREE_BYTES = 4 * 2**30
"""Bytes that must be free in memory. Containers often have 64 MiB there."""

GO_GARBAGE = "400"
"""The variable GOGC of an embedded server: by default, Go collects the garbage of a small heap often."""


class JsqServer:
    """The server of the tests of one process: one that this object starts, or one that runs already.

    With a `url` it uses the server at that address. Without one, it starts an embedded server that keeps its
    streams in a temporary folder, in memory if there is room, and does not sync them to disk.
    """

    def __init__(self, url: str = "") -> None:
        self.url = url
        self._embedded = None if url else EmbeddedServer(sync_interval="1h", parent=memory_folder())
        self._portal = Portal(self._disconnect)
        self._wire: Wire | None = None
        self._names = (f"test-{secrets.token_hex(3)}-{number}" for number in itertools.count())

    @property
    def login(self) -> Login:
        """The server's address, and the user to log in as."""
        return read_login(self.url)

    def start(self) -> Self:
        """Start the server, unless it runs already. Raises `UsageError` if nats-server is not installed."""
        if self._embedded is not None:
            with environment({"GOGC": os.environ.get("GOGC", GO_GARBAGE)}):
                self.url = self._embedded.start().url
        return self

    def stop(self) -> None:
        """Stop the server, if `start` has started it."""
        self._portal.stop()
        if self._embedded is not None:
            self._embedded.stop()

    def restart(self) -> None:
        """Kill the server, and start it again at the same address with the same streams.

        Raises `UsageError` for a server that this object has not started.
        """
        if self._embedded is None:
            raise UsageError(f"the tests have not started the server at {self.login.shown}: restart it there")
        self._embedded.kill()
        with environment({"GOGC": os.environ.get("GOGC", GO_GARBAGE)}):
            self._embedded.restart()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def new_namespace(self) -> str:
        """The name of a namespace that no other test uses. It has no streams yet."""
        return next(self._names)

    def remove_namespace(self, namespace: str) -> None:
        """Delete all streams of a namespace. Needs no event loop."""
        if self._embedded is not None:
            delete_streams(self.url, namespace)
        else:
            self._portal.run(self._remove(namespace))

    async def _remove(self, namespace: str) -> None:
        if self._wire is None or self._wire.closed:
            self._wire = await Wire(self.login, name="jsq-testing").open()
        await remove_namespace(self._wire, namespace)

    async def _disconnect(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await wire.close()


def memory_folder() -> Path | None:
    """A folder in memory with enough room for the streams of tests; None if there is none.

    A test creates and deletes a dozen streams. On a disk, most of the CPU time of that is spent in the file
    system.
    """
    has_room = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > LEAST_FREE_BYTES
    return MEMORY if has_room else None


def delete_streams(url: str, namespace: str) -> None:
    """Delete all streams of a namespace on an embedded server, in milliseconds and without an event loop.

    The server confirms that it has read the requests; it may delete the streams later.
    """
    address = urlsplit(url)
    with (
        socket.create_connection((address.hostname, address.port), timeout=10) as connection,
        connection.makefile("rwb") as stream,
    ):

        def send(*lines: str) -> None:
            stream.write("".join(f"{line}\r\n" for line in lines).encode())
            stream.flush()

        send('CONNECT {"verbose":false}', "SUB names 1", "PUB $JS.API.STREAM.NAMES names 0", "")
        while not (line := stream.readline()).startswith(b"MSG names"):
            assert line, "the server closed the connection"
        names = json.loads(stream.readline())["streams"] or []
        owned = [name for name in names if name.startswith(stream_prefixes(namespace))]
        send(*(part for name in owned for part in (f"PUB $JS.API.STREAM.DELETE.{name} 0", "")), "PING")
        while not (line := stream.readline()).startswith(b"PONG"):
            assert line, "the server closed the connection"


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables until the end of the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
