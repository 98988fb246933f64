"""The connection of a client: the login, and one broker for each event loop that uses it."""

import asyncio
import contextlib

from jsq.broker import Broker
from jsq.client.blocking import Portal
from jsq.client.submit_hooks import SubmittingApp
from jsq.model.routes import NO_ROUTES, Routes
from jsq.settings import Login, read_login, read_namespace


class Connection:
    """Opens a broker on first use: one for each event loop, and one for the portal of blocking calls.

    `routes` are the queues of tasks that a submit or a schedule knows by their names only. `app` is the App
    that the connection belongs to.
    """

    routes: Routes = NO_ROUTES
    app: SubmittingApp | None = None

    def __init__(self, url: str | Login | None, *, namespace: str | None, name: str) -> None:
        self.namespace = read_namespace(namespace)
        self.name = name
        self.portal = Portal(self._disconnect)
        self._login = url if isinstance(url, Login) else None
        self._url = url if isinstance(url, str) else None
        self._brokers: dict[asyncio.AbstractEventLoop, asyncio.Task[Broker]] = {}

    @property
    def login(self) -> Login:
        """The server's address, and the user to log in as."""
        if self._login is None:
            self._login = read_login(self._url)
        return self._login

    async def close(self) -> None:
        """Close this loop's broker, and the broker of the blocking calls."""
        await self._disconnect()
        if self.portal.is_open:
            await asyncio.to_thread(self.portal.stop)

    async def broker(self) -> Broker:
        """This loop's broker. Raises `BrokerUnavailable`, `NotAllowed`, `ServerTooOld`."""
        found = self.open_broker()
        if found is not None:
            return found
        loop = asyncio.get_running_loop()
        opening = self._brokers.get(loop)
        if opening is None or opening.done():
            self._forget_closed_loops()
            opening = loop.create_task(Broker.connect(self.login, namespace=self.namespace, name=self.name))
            self._brokers[loop] = opening
        return await asyncio.shield(opening)

    def open_broker(self) -> Broker | None:
        """This loop's broker, if it is connected."""
        opened = self._brokers.get(asyncio.get_running_loop())
        if opened is None or not opened.done() or opened.cancelled() or opened.exception():
            return None
        found = opened.result()
        return None if found.wire.closed else found

    async def _disconnect(self) -> None:
        opened = self._brokers.pop(asyncio.get_running_loop(), None)
        if opened is None:
            return
        if not opened.done():
            opened.cancel()
            await asyncio.wait((opened,))
        elif not opened.cancelled():
            with contextlib.suppress(Exception):
                await (await opened).close()

    def _forget_closed_loops(self) -> None:
        """Drop the brokers of closed loops: they cannot be used, and each holds a file descriptor."""
        for loop in [loop for loop in self._brokers if loop.is_closed()]:
            del self._brokers[loop]
