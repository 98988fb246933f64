"""The connection: requests with replies, publishes with acknowledgements, and errors translated for jsq.

One inbox serves every request; its tokens are integers. While the connection is down nothing is sent: a
buffer that is flushed later would store what has timed out for its caller.
"""

import asyncio
import contextlib
import functools
import json
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from nats.aio.subscription import Subscription as NatsSubscription
from nats.errors import Error as NatsError
from pydantic_core import from_json

from jsq.errors import BrokerError, BrokerFull, BrokerUnavailable, NotAllowed
from jsq.settings import Login
from jsq.transport.auth import as_user, connect_options, inbox_prefixes, login_error
from jsq.transport.connection import NatsConnection, check_server_version, payload_too_large
from jsq.transport.refusals import Refusals
from jsq.transport.replies import (
    NO_RESPONDERS,
    NoReply,
    NoResponders,
    Reply,
    acknowledged,
    translate,
    write_headers,
)
from jsq.transport.server_clock import Clock

log = logging.getLogger("jsq.broker")

T = TypeVar("T")

Subscription: TypeAlias = NatsSubscription
"""A core NATS subscription, under a name that other folders may import."""

CONNECT_SECONDS = 4.0
TRY_SECONDS = 2.0
API_SECONDS = 5.0

SWITCH_SECONDS = 8.0
"""Seconds without a stored message after which the client tries another server. An election may take as long,
and a server that is cut off from the others of its cluster does not report it."""

WINDOW = 4_000
"""Maximum number of requests in flight: the server refuses more than some tens of thousands."""

TIMEOUT_CHECK_SECONDS = 0.1
"""Seconds between two searches for late requests: one timer for all, instead of one for each."""

OTHER_ACCOUNT_SECONDS = 0.5
"""Seconds to wait for the reply of another account after the client's own account has replied."""

NO_JETSTREAM_HERE = b'"err_code":10039'
"""The reply of an account that has no JetStream of its own."""

Headers: TypeAlias = Mapping[str, str] | bytes
"""Headers by name, or as `write_headers` writes them."""

LOG_FULL_SECONDS = 10.0
"""Seconds between two log messages that writes wait for room on the server."""

NO_STREAM = 10059

ACK = b"+ACK"
"""The body that settles a delivery: the server deletes its message."""

ACKNOWLEDGED = b'{"stream":'
"""The start of the server's acknowledgement of a stored message."""


@dataclass(slots=True)
class PendingReply:
    """A request without a reply yet."""

    future: asyncio.Future[Reply]
    subject: str
    end: float
    seconds: float
    refused: bool = False


class PendingReplies:
    """The requests of one connection that have no reply yet, by the token in their reply subject."""

    def __init__(self, server: str) -> None:
        self.inbox = ""
        self.inbox_bytes = b""
        self.waiting: dict[int, PendingReply] = {}
        self._server = server
        self._token = 0
        self._checking = False
        self._room = asyncio.Event()
        self._room_is_wanted = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def add(self, subject: str, seconds: float) -> tuple[int, asyncio.Future[Reply]]:
        """Add a request. Its future fails when the reply is late or refused, or the connection breaks."""
        loop = self._loop or self._attach()
        future: asyncio.Future[Reply] = loop.create_future()
        self._token = token = self._token + 1
        self.waiting[token] = PendingReply(future, subject, loop.time() + seconds, seconds)
        if not self._checking:
            self._checking = True
            loop.call_later(TIMEOUT_CHECK_SECONDS, self._fail_late)
        return token, future

    def _attach(self) -> asyncio.AbstractEventLoop:
        """The event loop of the connection: that of its first request."""
        self._loop = asyncio.get_running_loop()
        return self._loop

    def resolve(self, message: Reply) -> None:
        """Resolve the request that a message of the inbox answers."""
        token = int(message.subject[len(self.inbox) + 1 :])
        found = self.waiting.pop(token, None)
        if found is None or found.future.done():
            return
        if self._room_is_wanted and len(self.waiting) < WINDOW:
            self._room.set()
        if message.payload.startswith(ACKNOWLEDGED):
            found.future.set_result(message)
            return
        elsewhere = NO_JETSTREAM_HERE in message.payload and found.subject.startswith("$JS.API.")
        if elsewhere and not found.refused:
            # An account that imports the API of another account gets two replies: its own, and that one's.
            found.refused = True
            self.waiting[token] = found
            asyncio.get_running_loop().call_later(OTHER_ACCOUNT_SECONDS, self.resolve, message)
            return
        if message.raw.startswith(NO_RESPONDERS):
            found.future.set_exception(NoResponders(f"no responders at {self._server} for {found.subject}"))
        else:
            found.future.set_result(message)

    async def wait_for_room(self) -> None:
        """Wait until fewer requests than `WINDOW` are in flight."""
        while len(self.waiting) >= WINDOW:
            self._room.clear()
            self._room_is_wanted = True
            await self._room.wait()

    def refuse(self, subject: str, why: Callable[[str], str]) -> bool:
        """Fail the requests to a subject as not allowed; False if there are none.

        nats-py reports the subject in lower case. `why` makes the message from the subject as requested.
        """
        found = [one for one in self.waiting.values() if one.subject.lower() == subject.lower()]
        for one in found:
            if not one.future.done():
                one.future.set_exception(NotAllowed(why(one.subject)))
        return bool(found)

    def fail_all(self, why: str) -> None:
        for one in list(self.waiting.values()):
            if not one.future.done():
                one.future.set_exception(NoReply(f"{why} before the reply to {one.subject}"))

    def _fail_late(self) -> None:
        """Fail late requests, and remove those that no caller awaits any more."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for token, one in list(self.waiting.items()):
            if one.future.done():
                del self.waiting[token]
            elif one.end <= now:
                del self.waiting[token]
                one.future.set_exception(
                    NoReply(
                        f"no answer from {self._server} to {one.subject} within {one.seconds:g} s, though "
                        "the connection is up; if that lasts, check by its /healthz whether the disk is full"
                    )
                )
        self._room.set()
        self._checking = bool(self.waiting)
        if self._checking:
            loop.call_later(TIMEOUT_CHECK_SECONDS, self._fail_late)


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The version of a server, whether it has JetStream, and the name of its cluster, if it is in one."""

    version: str
    has_jetstream: bool
    cluster: str


class Wire:
    """A connection to the server. `restored` is the time of the last reconnect, in `time.monotonic`."""

    def __init__(self, login: Login, *, name: str = "jsq") -> None:
        self.login = login
        self.name = name
        self.reconnects, self.restored = 0, -math.inf
        self.clock = Clock()
        self._nats = NatsConnection(self._disconnect)
        self.abort = self._nats.abort  # drops the unsent bytes and the connection; `close` must follow
        self.pending = PendingReplies(login.shown)
        self.refusals = Refusals(login, self.pending.refuse)
        self._waiting = self.pending.waiting
        self._stored = 0.0
        self._up = asyncio.Event()
        self._errors: list[BaseException] = []
        self._next_full_log = 0.0
        self._listeners: list[Callable[[], Awaitable[None]]] = []

    # -- open and close ----------------------------------------------------------------------------------

    async def open(self) -> "Wire":
        """Connect. Raises `BrokerUnavailable`, `NotAllowed` or `ServerTooOld` within 5 s, with a fix.

        Raises `UsageError` for a key or certificate file that cannot be used.
        """
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._connect()
        except (NatsError, OSError, TimeoutError, ValueError, ImportError) as error:
            await self._abandon()
            failed = login_error(self.login, [*self._errors, error])
            # An invalid address may be a password, which the error of nats-py would repeat.
            wrong = isinstance(error, ValueError) or isinstance(error.__context__, ValueError)
            raise failed from (None if wrong else error)
        except BaseException:
            await self._abandon()
            raise
        try:
            check_server_version(self._nats, self.login)
            await self._subscribe_inbox()
        except BrokerError:
            await self.close()
            raise
        self._up.set()
        return self

    async def close(self) -> None:
        """Send pending bytes, then close. (`drain` of nats-py may hang for half a minute.)"""
        with contextlib.suppress(NatsError, OSError, TimeoutError):
            if self._nats.is_connected:
                await self._nats.flush(timeout=2)
        await self._abandon()
        self.pending.fail_all("the connection was closed")

    @property
    def connected(self) -> bool:
        return self._up.is_set()

    @property
    def closed(self) -> bool:
        return self._nats.is_closed

    @property
    def max_payload(self) -> int:
        return int(self._nats.max_payload)

    @property
    def server(self) -> "ServerInfo":
        """The server of the connection, as it described itself."""
        version = self._nats.connected_server_version
        return ServerInfo(
            f"{version.major}.{version.minor}.{version.patch}",
            has_jetstream=bool(self._nats._server_info.get("jetstream")),
            cluster=str(self._nats._server_info.get("cluster") or ""),
        )

    def on_reconnect(self, listener: Callable[[], Awaitable[None]]) -> Callable[[], None]:
        """Call `listener` after each reconnect; returns a function that ends this."""
        self._listeners.append(listener)
        return functools.partial(self._listeners.remove, listener)

    async def switch_server(self) -> None:
        """Connect to another server of the cluster, if this one has stored no message for long."""
        now = time.monotonic()
        if self.connected and self._nats.has_other_servers and now - self._stored > SWITCH_SECONDS:
            self._stored = now
            log.warning("server abandoned", extra={"server": self.login.shown})
            await self._nats.switch_server()

    async def wait_until_connected(self, pause: float) -> None:
        """Wait about `pause` seconds, and up to a second more for the connection if it is down."""
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._up.wait()

    def log_full(self, error: BrokerFull) -> None:
        """Log from time to time that writes wait for room on the server."""
        if time.monotonic() >= self._next_full_log:
            self._next_full_log = time.monotonic() + LOG_FULL_SECONDS
            log.warning("writes delayed", extra={"server": self.login.shown, "why": str(error)})

    # -- requests ----------------------------------------------------------------------------------------

    async def ask(
        self,
        subject: str,
        payload: bytes = b"",
        headers: Headers | None = None,
        *,
        timeout: float = TRY_SECONDS,
    ) -> Reply:
        """One request, one answer. Raises `NoReply`, `NoResponders`, `NotAllowed`."""
        if len(self._waiting) >= WINDOW or self._nats.congested:
            await self._wait_for_room()
        return await self.begin(subject, payload, headers, timeout=timeout)

    def begin(
        self,
        subject: str,
        payload: bytes = b"",
        headers: Headers | None = None,
        *,
        timeout: float = TRY_SECONDS,
    ) -> asyncio.Future[Reply]:
        """Send a request in this turn of the loop; the future has its reply, or fails as `ask` does.

        With encoded headers, the subject must be valid.
        """
        if not self._up.is_set():
            raise NoReply(f"not connected to {self.login.shown}", sent=False)
        pending = self.pending
        token, future = pending.add(subject, timeout)
        try:
            if isinstance(headers, bytes):
                size = len(payload) + (head := len(headers))
                if size > self._nats._max_payload:
                    raise payload_too_large(size, self.max_payload)
                self._nats.put(
                    b"HPUB %b %b.%d %d %d\r\n%b%b\r\n"
                    % (subject.encode(), pending.inbox_bytes, token, head, size, headers, payload)
                )
            else:
                block = write_headers(headers) if headers else b""
                self._nats.put_message(subject, payload, block, f"{pending.inbox}.{token}")
        except BaseException:
            del self._waiting[token]
            raise
        return future

    async def publish(
        self,
        subject: str,
        payload: bytes = b"",
        headers: Headers | None = None,
        *,
        timeout: float = TRY_SECONDS,
    ) -> int:
        """Store one message; returns its sequence.

        Raises `WrongSequence`, `QueueFull`, `BrokerFull`, and the errors of `ask`.
        """
        if len(self._waiting) >= WINDOW or self._nats.congested:
            await self._wait_for_room()
        reply = await self.begin(subject, payload, headers, timeout=timeout)
        sequence = acknowledged(reply.payload, subject)
        self._stored = time.monotonic()
        return sequence

    async def api(
        self, name: str, request: Mapping[str, Any] | None = None, *, timeout: float = API_SECONDS
    ) -> Any:
        """Call the JetStream API. Raises `Refused` (with `code`), `ForeignStream`, `JetStreamOff`,
        `NotAllowed`.
        """
        body = json.dumps(request).encode() if request is not None else b""
        asked = time.time()
        answer = from_json((await self.ask(f"$JS.API.{name}", body, timeout=timeout)).payload)
        if timestamp := answer.get("ts"):
            self.clock.update(timestamp, asked, time.time())
        if "error" in answer:
            raise translate(answer["error"], name)
        return answer

    # -- one way -----------------------------------------------------------------------------------------

    def send(
        self, subject: str, payload: bytes = b"", headers: Headers | None = None, reply: str = ""
    ) -> None:
        """Send without waiting for a reply; nothing is sent while the connection is down."""
        if payload is ACK and self._up.is_set():  # the subject is the server's
            self._nats.put(b"PUB %b 4\r\n+ACK\r\n" % subject.encode())
        elif self._up.is_set():
            block = headers if isinstance(headers, bytes) else write_headers(headers) if headers else b""
            self._nats.put_message(subject, payload, block, reply)

    async def subscribe(self, subject: str, callback: Callable[[Reply], None]) -> Subscription:
        """Subscribe; each message goes to `callback` at once. See `refusals.check_subscription`."""
        try:
            subscription = await self._nats.subscribe(subject)
        except NatsError as error:
            raise BrokerUnavailable(f"cannot subscribe to {subject}: {error}") from error
        self._nats.add_callback(subscription._id, callback)
        return subscription

    async def unsubscribe(self, subscription: Subscription) -> None:
        self._nats.remove_callback(subscription._id)
        with contextlib.suppress(NatsError):
            await subscription.unsubscribe()

    async def drain(self, subscription: Subscription, seconds: float = 1.0) -> None:
        """Unsubscribe, after the messages that the server has sent already were handled."""
        with contextlib.suppress(NatsError, OSError, TimeoutError):
            async with asyncio.timeout(seconds):
                await subscription.drain()  # type: ignore[no-untyped-call]  # of nats-py
        self._nats.remove_callback(subscription._id)

    def new_inbox(self) -> str:
        return str(self._nats.new_inbox())

    async def flush(self, timeout: float = TRY_SECONDS) -> None:
        """Wait until the server has read all sent bytes. Raises `NoReply`."""
        try:
            await self._nats.flush(timeout=timeout)  # type: ignore[arg-type]  # a float works as well
        except (NatsError, OSError, TimeoutError) as error:
            raise NoReply(f"no answer from {self.login.shown}") from error

    # -- inside ------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        await self._nats.connect(
            **connect_options(self.login),
            name=self.name,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnect,
            reconnected_cb=self._on_reconnected,
            closed_cb=self._on_closed,
        )
        self._nats.options["max_reconnect_attempts"] = -1

    async def _abandon(self) -> None:
        self._up.clear()
        # Closing a connection that was never made fails an assertion of nats-py.
        with contextlib.suppress(NatsError, OSError, TimeoutError, AttributeError, AssertionError):
            await self._nats.close()

    async def _wait_for_room(self) -> None:
        """Wait until fewer requests are in flight, and fewer bytes are unsent."""
        await self.pending.wait_for_room()
        if self._nats.congested:
            await self._nats.drained()

    async def _subscribe_inbox(self) -> None:
        """Subscribe to an inbox: the usual one, or one named after the user if that is not allowed.

        Raises `NotAllowed` if no reply can reach this client: every request would time out.
        """
        for prefix in inbox_prefixes(self.login):
            self._nats._inbox_prefix = bytearray(prefix.encode())
            self.pending.inbox = self.new_inbox()
            self.pending.inbox_bytes = self.pending.inbox.encode()
            inbox = f"{self.pending.inbox}.*"
            await self.subscribe(inbox, self.pending.resolve)
            await self.flush()
            if not self.refusals.refuses_subscription(inbox):
                return
        raise NotAllowed(
            f"not allowed to subscribe to {self.pending.inbox}.*{as_user(self.login)}, which replies need; "
            "set JSQ_INBOX_PREFIX (or inbox_prefix) to a prefix that the user may use, such as _INBOX_name"
        )

    async def _on_error(self, error: Exception) -> None:
        if not self._up.is_set():
            self._errors = [*self._errors[-3:], error]
        if not isinstance(error, (NatsError, OSError, TimeoutError)):
            log.error("subscription callback failed", exc_info=error)
        elif not self.refusals.note(str(error), connected=self._up.is_set()):
            log.debug("connection error", extra={"error": str(error)})

    async def _on_disconnect(self) -> None:
        self._disconnect()

    def _disconnect(self) -> None:
        if self._up.is_set():
            log.warning("connection lost", extra={"server": self.login.shown})
        self._up.clear()
        self.pending.fail_all("the connection broke")

    async def _on_reconnected(self) -> None:
        self.reconnects += 1
        self.restored = time.monotonic()
        self._up.set()
        log.info("connection restored", extra={"server": self.login.shown, "times": self.reconnects})
        for listener in list(self._listeners):
            await listener()

    async def _on_closed(self) -> None:
        self._up.clear()
        self.pending.fail_all("the connection was closed")
