"""The client of nats-py with changes: how it connects, when it gives up, and a faster path for messages.

Three things differ from nats-py. Messages of jsq's own subscriptions go directly to their callbacks (see
`parser`). Commands of jsq are written at the end of a turn of the event loop, in order with those of nats-py.
And a dead link is dropped at once.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterator
from typing import Any

from nats.aio.client import Client as NatsClient
from nats.aio.client import Server
from nats.errors import Error as NatsError
from nats.errors import StaleConnectionError

from jsq.errors import BrokerUnavailable, ServerTooOld, UsageError
from jsq.settings import Login
from jsq.transport.parser import NatsParser
from jsq.transport.replies import Reply

log = logging.getLogger("jsq.broker")

FLOOR = (2, 15, 1)
"""The oldest supported server: it has fixes that a work queue with schedules needs."""

PING_SECONDS = 4
"""Seconds between pings. A dead link is noticed after three of them, well within the usual lease."""

MAX_UNSENT = 8 * 2**20
"""Bytes that may wait to be sent. A server that reads slowly slows down its clients."""

FIRST_TRIES = 1
"""Tries of the first connection, which fails fast; a lost connection is retried without a limit."""

LEFT_TRIES = 3
"""How often each address is tried before the client returns to a server that it left."""


class NatsConnection(NatsClient):
    """A connection of nats-py.

    `congested` is set when more than `MAX_UNSENT` bytes wait to be sent, and reset by `drained`.
    """

    def __init__(self, lost: Callable[[], None]) -> None:
        super().__init__()
        self._lost = lost
        self._callbacks: dict[bytes, Callable[[Reply], None]] = {}
        self._ps = self._reader = NatsParser(self, self._callbacks, self.send_pending)
        self._write_scheduled = False
        self._left_server = ""
        self.congested = False

    def put(self, command: bytes) -> None:
        """Send a command of the protocol, together with the others of this turn of the event loop."""
        self._pending.append(command)
        self._pending_data_size += len(command)
        if self._pending_data_size > MAX_UNSENT:
            self.congested = True
        if not self._write_scheduled:
            self._write_scheduled = True
            asyncio.get_running_loop().call_soon(self.send_pending)

    def put_message(self, subject: str, payload: bytes, headers: bytes, reply: str) -> None:
        """Publish a message, together with the others of this turn of the loop. Raises `UsageError`."""
        if not subject.isprintable() or " " in subject:
            raise UsageError(f"subject must be without spaces and empty tokens, got {subject!r}")
        size = len(headers) + len(payload)
        if size > self._max_payload:
            raise payload_too_large(size, self._max_payload)
        if headers:
            command = f"HPUB {subject} {reply} {len(headers)} {size}\r\n".encode()
        else:
            command = f"PUB {subject} {reply} {size}\r\n".encode()
        self.put(b"".join((command, headers, payload, b"\r\n")))

    def send_pending(self) -> None:
        """Write the pending commands now."""
        self._write_scheduled = False
        if not self._pending or not self.is_connected:
            return
        writer = getattr(self._transport, "_io_writer", None)
        if writer is None:  # a web socket, which nats-py handles
            if self._flush_queue is not None and self._flush_queue.empty():
                self._flush_queue.put_nowait(asyncio.get_running_loop().create_future())
            return
        commands, self._pending, self._pending_data_size = self._pending, [], 0
        writer.write(b"".join(commands))
        if writer.transport.get_write_buffer_size() > MAX_UNSENT:
            self.congested = True

    def abort(self) -> None:
        """Drop the link and what waits to be sent, and do not reconnect."""
        self.options["allow_reconnect"] = False
        self._lost()
        self._pending, self._pending_data_size = [], 0
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()

    async def drained(self) -> None:
        """Wait until the operating system has accepted most of the sent bytes."""
        if self._transport is not None and self._unsent() > MAX_UNSENT:
            with contextlib.suppress(OSError):
                await self._transport.drain()  # type: ignore[no-untyped-call]  # of nats-py
        self.congested = self._unsent() > MAX_UNSENT

    def _unsent(self) -> int:
        """Bytes that the operating system has not accepted yet."""
        writer = getattr(self._transport, "_io_writer", None)
        return self._pending_data_size + (writer.transport.get_write_buffer_size() if writer else 0)

    def add_callback(self, sid: int, callback: Callable[[Reply], None]) -> None:
        """Call `callback` with each message of a subscription as it arrives."""
        self._callbacks[str(sid).encode()] = callback

    def remove_callback(self, sid: int) -> None:
        self._callbacks.pop(str(sid).encode(), None)

    @property
    def has_other_servers(self) -> bool:
        """Whether there may be another server: another address, or a cluster behind this one."""
        return len(self._server_pool) > 1 or bool(self._server_info.get("cluster"))

    async def switch_server(self) -> None:
        """Leave the server for another one of its cluster; all addresses of this one are tried last."""
        self._left_server = str(self._server_info.get("server_id", ""))
        for server in self._server_pool:
            server.reconnects = 0
        self._avoid()
        await self._process_op_err(StaleConnectionError())

    def _avoid(self) -> None:
        """Move the current address behind the others, even if it was given several times."""
        here = self._current_server
        for server in self._server_pool:
            if here is not None and server.uri.netloc == here.uri.netloc:
                server.reconnects += 1

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        await super()._process_info(info, initial_connection)
        if not initial_connection:
            return
        left, again = self._left_server, any(server.reconnects < LEFT_TRIES for server in self._server_pool)
        if left and info.get("server_id") == left and again:
            self._avoid()
            raise StaleConnectionError
        self._left_server = ""  # another server, or the only one

    async def _connect_to_server(self, s: Any) -> None:
        with self._as_nats_error():
            await super()._connect_to_server(s)

    @contextlib.contextmanager
    def _as_nats_error(self) -> Iterator[None]:
        """Translate any error of a reconnect into an error of nats-py.

        After any other error nats-py would stop reconnecting silently: for example while a key file is being
        changed, or if another program answers at the address.
        """
        try:
            yield
        except (NatsError, OSError, TimeoutError):
            raise
        except Exception as error:
            if self._reading_task is None:  # the first connection is not retried
                raise
            self._server_info = {}  # it may not be an object, which nats-py cannot handle
            raise NatsError(f"{type(error).__name__}: {error}") from error

    async def _process_connect_init(self) -> None:
        try:
            with self._as_nats_error():
                await super()._process_connect_init()
        except BaseException:
            # nats-py would leave a link open whose peer sent nothing, or hung up.
            transport: Any = self._transport
            writer = getattr(transport, "_io_writer", None)
            if writer is not None:
                writer.transport.abort()
                # After a failed TLS handshake, asyncio would wait for this writer's end, which never comes.
                transport._io_writer = None
            raise
        stream = getattr(self._transport, "_io_reader", None)
        if stream is not None:
            self._reader.tap(stream)

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        # nats-py would write a ping before the pending commands, and its pong would not confirm those.
        self.send_pending()
        await super()._send_ping(future)

    async def _process_pong(self) -> None:
        # A late pong finds its future cancelled, after which nats-py would stop reading.
        if self._pongs:
            future = self._pongs.pop(0)
            if not future.done():
                future.set_result(True)
        self._pongs_received += 1
        self._pings_outstanding = 0

    async def _process_op_err(self, e: Exception) -> None:
        # nats-py would first wait until its pending bytes are sent, which never ends on a half-open link.
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None and not self.is_closed and not self.is_reconnecting:
            self._lost()
            writer.transport.abort()
            # It must not send later what its callers already know as failed.
            self._pending, self._pending_data_size = [], 0
        await super()._process_op_err(e)


def choose_server(servers: list[Server], _info: dict[str, Any]) -> tuple[Server, float]:
    """The server to try next and the seconds to wait before.

    The wait has full jitter, so that a fleet does not reconnect at once. The tries of an address that was
    given several times are counted together; nats-py counts only one of them.
    """
    tries: dict[str, int] = {}
    for server in servers:
        tries[server.uri.netloc] = max(server.reconnects, tries.get(server.uri.netloc, 0))
    tried = min(servers, key=lambda server: tries[server.uri.netloc])
    ceiling = min(2.0, 0.1 * 2 ** min(tries[tried.uri.netloc], 5))
    return tried, random.uniform(0.0, ceiling)


def check_server_version(client: NatsConnection, login: Login) -> None:
    """Refuse a server that lacks required features, or does not encrypt although TLS is configured."""
    found = client.connected_server_version
    if (found.major, found.minor, found.patch) < FLOOR:
        floor = ".".join(str(part) for part in FLOOR)
        raise ServerTooOld(
            f"{login.shown} runs nats-server {found.major}.{found.minor}.{found.patch}; jsq needs {floor} or "
            "newer, because of fixes for schedules on work queues; update the server"
        )
    encrypted = client._server_info.get("tls_required")
    if not encrypted and (login.ca or login.shown.startswith("tls://")):
        raise BrokerUnavailable(
            f"no TLS connection to {login.shown}: the server does not offer TLS; write nats://",
            retryable=False,
        )


def payload_too_large(size: int, largest: int) -> UsageError:
    """The error of a message for which the server would close the connection, for good."""
    return UsageError(f"a message must be {largest:,} bytes at most, got {size:,}")
