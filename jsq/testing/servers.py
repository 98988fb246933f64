"""The nats-server of a test run, and the namespaces of its tests."""

import asyncio
import contextlib
import itertools
import secrets
from typing import Self

from jsq.broker.topology.removal import remove_namespace
from jsq.client.blocking import Portal
from jsq.errors import UsageError
from jsq.server import EmbeddedServer
from jsq.settings import Login, read_login
from jsq.transport.wire import Wire


class JsqServer:
    """The server of the tests of one process: one that this object starts, or one that runs already.

    With a `url` it uses the server at that address. Without one, it starts an embedded server that keeps its
    streams in a temporary folder and does not sync them to disk.
    """

    def __init__(self, url: str = "") -> None:
        self.url = url
        self._embedded = None if url else EmbeddedServer(sync_interval="1h")
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
        self._embedded.restart()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def new_namespace(self) -> str:
        """The name of a namespace that no other test uses. It has no streams yet."""
        return next(self._names)

    def remove_namespace(self, namespace: str) -> int:
        """Delete all streams of a namespace; returns how many. Needs no event loop."""
        return self._portal.run(self._remove(namespace))

    async def _remove(self, namespace: str) -> int:
        if self._wire is None or self._wire.closed:
            self._wire = await Wire(self.login, name="jsq-testing").open()
        return await remove_namespace(self._wire, namespace)

    async def _disconnect(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await wire.close()
