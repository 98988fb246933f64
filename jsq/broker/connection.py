"""The library's client as we use it: how it connects, what it gives up, and a short way through it.

Three things differ from the library. Messages of our own subscriptions go straight to their callback (see
`reader`). What we send is written at the end of the turn, beside what the library sends, in the same order.
And a dead link is let go at once.
"""

import asyncio
import contextlib
import logging
import random
import re
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from nats.aio.client import Client as NatsClient
from nats.aio.client import Server
from nats.errors import StaleConnectionError

from jsq.broker.answers import Heard
from jsq.broker.reader import Reader
from jsq.errors import BrokerError, BrokerUnavailable, NotAllowed, ServerTooOld, shorten
from jsq.settings import Login

log = logging.getLogger("jsq.broker")

FLOOR = (2, 15, 1)
"""The oldest server that keeps what jsq rests on: fixes that a work queue with schedules needs."""

PING_SECONDS = 4
"""A dead link is noticed after three of these: well within the usual lease."""

FIRST_TRIES = 1
"""The first connection fails fast; one that stood is made anew for ever."""


class Connection(NatsClient):
    """A connection of the library's."""

    def __init__(self, lost: Callable[[], None]) -> None:
        super().__init__()
        self._lost = lost
        self._straight: dict[bytes, Callable[[Heard], None]] = {}
        self._ps = self._reader = Reader(self, self._straight, self.send_pending)
        self._turning = False

    def put(self, command: bytes) -> None:
        """Send a command of the protocol, with what else is sent in this turn of the loop."""
        self._pending.append(command)
        self._pending_data_size += len(command)
        if not self._turning:
            self._turning = True
            asyncio.get_running_loop().call_soon(self.send_pending)

    def send_pending(self) -> None:
        """Send now what is to be sent."""
        self._turning = False
        if not self._pending or not self.is_connected:
            return
        writer = getattr(self._transport, "_io_writer", None)
        if writer is None:  # a web socket: the library knows how
            if self._flush_queue is not None and self._flush_queue.empty():
                self._flush_queue.put_nowait(asyncio.get_running_loop().create_future())
            return
        commands, self._pending, self._pending_data_size = self._pending, [], 0
        writer.write(b"".join(commands))

    async def drained(self) -> None:
        """Wait until the system has taken most of what was sent."""
        if self._transport is not None:
            with contextlib.suppress(OSError):
                await self._transport.drain()  # type: ignore[no-untyped-call]  # the library's

    @property
    def unsent(self) -> int:
        """Bytes which the system has not taken yet."""
        writer = getattr(self._transport, "_io_writer", None)
        return self._pending_data_size + (writer.transport.get_write_buffer_size() if writer else 0)

    def straighten(self, sid: int, callback: Callable[[Heard], None]) -> None:
        """Give the messages of a subscription to `callback` as they come."""
        self._straight[str(sid).encode()] = callback

    def forget(self, sid: int) -> None:
        self._straight.pop(str(sid).encode(), None)

    async def leave(self) -> None:
        """Leave the server for another of its cluster; this one is tried last."""
        if self._current_server is not None:
            self._current_server.reconnects += 1
        await self._process_op_err(StaleConnectionError())

    async def _process_connect_init(self) -> None:
        try:
            await super()._process_connect_init()
        except BaseException:
            # Who answered the call and then said nothing, or hung up: the library would leave the link open.
            writer = getattr(self._transport, "_io_writer", None)
            if writer is not None:
                writer.transport.abort()
            raise
        stream = getattr(self._transport, "_io_reader", None)
        if stream is not None:
            self._reader.tap(stream)

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        # The library would write a ping before what is to be sent: its answer would say nothing of that.
        self.send_pending()
        await super()._send_ping(future)

    async def _process_op_err(self, e: Exception) -> None:
        # The library would first wait until what it has not sent has gone out: on a half-open link, never.
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None and not self.is_closed and not self.is_reconnecting:
            self._lost()
            writer.transport.abort()
            # Nor is it to send later what its callers have been told was not answered.
            self._pending, self._pending_data_size = [], 0
        await super()._process_op_err(e)


SCHEMES = ("nats", "tls", "ws", "wss")


def options_of(login: Login) -> dict[str, Any]:
    """How the library is told who we are and where to connect to. Raises `ValueError`."""
    for server in login.servers or ("",):  # without one, the library would try localhost
        scheme, _, rest = server.partition("://")
        if scheme not in SCHEMES or not rest.rpartition("@")[2]:
            raise ValueError("the scheme of another protocol, or no host")
    options: dict[str, Any] = {
        "servers": login.servers,
        "connect_timeout": 2,
        "max_reconnect_attempts": FIRST_TRIES,
        "reconnect_time_wait": 0.2,
        "ping_interval": PING_SECONDS,
        "max_outstanding_pings": 2,
        "pending_size": 64 * 2**20,
        "reconnect_to_server_handler": choose_server,
        "user": login.user or None,
        "password": login.password or None,
        "token": login.token or None,
        "nkeys_seed": None if is_seed(login.nkey) else login.nkey or None,
        "nkeys_seed_str": login.nkey if is_seed(login.nkey) else None,
        "user_credentials": login.creds or None,
    }
    if login.ca or login.cert or login.tls_first:
        options["tls"] = tls(login)
        options["tls_handshake_first"] = login.tls_first
    return options


def is_seed(nkey: str) -> bool:
    """Whether an nkey is given as such, and not as the path of a file."""
    return re.fullmatch("SU[A-Z2-7]{56}", nkey, re.ASCII) is not None


def choose_server(servers: list[Server], _info: dict[str, Any]) -> tuple[Server, float]:
    """The server to try next and the seconds to wait before.

    With full jitter, so that a fleet does not come at once.
    """
    tried = min(servers, key=lambda server: server.reconnects)
    ceiling = min(2.0, 0.1 * 2 ** min(tried.reconnects, 5))
    return tried, random.uniform(0.0, ceiling)


def tls(login: Login) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=login.ca or None)
    if login.cert:
        context.load_cert_chain(login.cert, login.key or None)
    return context


def check_server(client: Connection, login: Login) -> None:
    """Refuse a server that lacks what jsq rests on, or one that would talk to us in the open."""
    found = client.connected_server_version
    if (found.major, found.minor, found.patch) < FLOOR:
        floor = ".".join(str(part) for part in FLOOR)
        raise ServerTooOld(
            f"{login.shown} runs nats-server {found.major}.{found.minor}.{found.patch}; jsq needs {floor} or "
            "newer, which keeps schedules safe on a work queue: update the server"
        )
    encrypted = client._server_info.get("tls_required")
    if not encrypted and (login.ca or login.shown.startswith("tls://")):
        raise BrokerUnavailable(
            f"no TLS connection to {login.shown}: the server does not offer TLS; write nats://"
        )


def explain(login: Login, told: list[BaseException]) -> BrokerError:
    """Why a connection could not be made, from all that was told on the way, in one line with the cure."""
    shown, last = login.shown or repr(login.url), told[-1]
    text = " ".join(str(one) for one in told).lower()
    if "authorization" in text or "authentication" in text:
        return NotAllowed(f"{shown} refused the login{as_user(login)}; check user, password, token or creds")
    if isinstance(last, ImportError):
        return BrokerUnavailable("nkeys and creds files need one more package: pip install 'jsq[nkeys]'")
    if "ssl" in text or "tls" in text or "certificate" in text:
        why = shorten(str(told[0]))
        return BrokerUnavailable(f"no TLS connection to {shown}: {why}; check the scheme and ca, cert, key")
    if isinstance(last, ValueError) or "invalid connect url" in text:
        return BrokerUnavailable(f"{shown} is not the address of a server; write nats://HOST:PORT")
    return BrokerUnavailable(
        f"no NATS server answers at {shown}; start one (`jsq dev`), or name another with JSQ_URL"
    )


def as_user(login: Login) -> str:
    """` as alice`, where the login has a name."""
    user = user_of(login)
    return f" as {user}" if user else ""


def user_of(login: Login) -> str:
    """The user's name. What stands alone before the `@` of an address is a token, and no name."""
    for server in login.servers:
        name, colon, _ = server.partition("://")[2].rpartition("@")[0].partition(":")
        if colon:
            return unquote(name)
    return login.user


def inbox_prefixes(login: Login) -> list[str]:
    """What the subjects of our answers may begin with, the one to be tried first first."""
    if login.inbox_prefix:
        return [login.inbox_prefix]
    user = user_of(login)
    return ["_INBOX", *([f"_INBOX_{user}"] if re.fullmatch("[A-Za-z0-9_-]+", user, re.ASCII) else [])]
