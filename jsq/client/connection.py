"""The connection of a client: the login, and one broker for each event loop that uses it."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator

from jsq.broker import Broker
from jsq.client.blocking import Portal
from jsq.client.submit_hooks import SubmittingApp
from jsq.model.routes import NO_ROUTES, Routes
from jsq.settings import Login, is_bound_to_test, read_login, read_namespace


class Connection:
    """Opens a broker on first use: one for each event loop, and one for the portal of blocking calls.

    `routes` are the queues of tasks that a submit or a schedule knows by their names only. `app` is the App
    that the connection belongs to. `opened` is called with each broker before its first use.
    """

    routes: Routes = NO_ROUTES
    app: SubmittingApp | None = None
    opened: Callable[[Broker], Awaitable[None]] | None = None

    def __init__(self, url: str | Login | None, *, namespace: str | None, name: str) -> None:
        self.namespace = read_namespace(namespace)
        self.name = name
        self.portal = Portal(self.disconnect)
        self._login = url if isinstance(url, Login) and not is_bound_to_test() else None
        self._url = url if isinstance(url, str) else None
        self._is_named = bool(url)
        self._brokers: dict[asyncio.AbstractEventLoop, asyncio.Future[Broker]] = {}

    @property
    def login(self) -> Login:
        """The server's address, and the user to log in as."""
        if self._login is None:
            self._login = read_login(self._url)
        return self._login

    def set_default_url(self, url: str) -> None:
        """Use an address in place of `JSQ_URL`, if the App names none. Call it before the first use.

        The server of a running test has priority.
        """
        if self._is_named or is_bound_to_test():
            return
        self._url, self._login = url, None

    async def close(self) -> None:
        """Close this loop's broker, and the broker of the blocking calls."""
        await self.disconnect()
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
            opening = loop.create_task(self.open_another())
            self._brokers[loop] = opening
        return await asyncio.shield(opening)

    async def open_another(self) -> Broker:
        """A broker with a connection of its own, which the caller closes. Raises the errors of `broker`."""
        broker = await Broker.connect(self.login, namespace=self.namespace, name=self.name)
        if self.opened is not None:
            await self.opened(broker)
        return broker

    def open_broker(self) -> Broker | None:
        """This loop's broker, if it is connected."""
        opened = self._brokers.get(asyncio.get_running_loop())
        if opened is None or not opened.done() or opened.cancelled() or opened.exception():
            return None
        found = opened.result()
        return None if found.wire.closed else found

    @contextlib.contextmanager
    def bound(self, login: Login, namespace: str) -> Iterator[None]:
        """Use another server and another namespace until the end of the block.

        The brokers of before are left open, except that of the blocking calls. Close those of the block
        before it ends: `open_loops` are the event loops that have one.
        """
        self.portal.stop()
        before = self._login, self.namespace, self._brokers
        self._login, self.namespace, self._brokers = login, namespace, {}
        try:
            yield
        finally:
            self._login, self.namespace, self._brokers = before

    @property
    def open_loops(self) -> list[asyncio.AbstractEventLoop]:
        """The event loops that have a broker, and are not closed."""
        self._forget_closed_loops()
        return list(self._brokers)

    def swap_brokers(
        self, brokers: dict[asyncio.AbstractEventLoop, asyncio.Future[Broker]]
    ) -> dict[asyncio.AbstractEventLoop, asyncio.Future[Broker]]:
        """Use other brokers from now on; returns those that were used before. They stay open."""
        before, self._brokers = self._brokers, brokers
        return before

    async def disconnect(self) -> None:
        """Close this loop's broker; the next use opens another one."""
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
