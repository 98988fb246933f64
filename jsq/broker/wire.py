"""The connection: requests with answers, publishes with acknowledgements, and errors put into our words.

One inbox serves every request; its tokens are integers. A request that permissions forbid would only time
out, because the server tells the reason apart from it: the two are joined here, so that the caller reads "not
allowed to publish to X". While the connection is down nothing is sent, so that what timed out for its caller
is not stored behind its back by a buffer that is flushed later.
"""

import asyncio
import contextlib
import functools
import json
import logging
import random
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from nats.aio.client import Client as NatsClient
from nats.aio.client import Server
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from jsq.errors import (
    BrokerError,
    BrokerUnavailable,
    ForeignStream,
    JetStreamOff,
    NotAllowed,
    QueueFull,
    Refused,
    ServerTooOld,
    UsageError,
    shorten,
)
from jsq.settings import Login

log = logging.getLogger("jsq.broker")

T = TypeVar("T")

FLOOR = (2, 15, 1)
"""The oldest server that keeps what jsq rests on: fixes that a work queue with schedules needs."""

CONNECT_SECONDS = 4.0
PING_SECONDS = 4
"""A dead link is noticed after three of these: well within the usual lease."""

FIRST_TRIES = 1
TRY_SECONDS = 2.0
DEADLINE_SECONDS = 15.0
"""How long a write is tried again: longer than an election of a cluster (4 to 9 s)."""

API_SECONDS = 5.0
READ_SECONDS = 5.0
"""How long a read is tried again."""

ABSENT_SECONDS = 0.3
"""How long a read waits for a stream that nobody serves: it is being made, or it was never made."""

WINDOW = 4_000
"""Requests under way at once: the server refuses more than some tens of thousands."""

_subject = re.compile(r'(publish|subscription) to "([^"]+)"', re.IGNORECASE)
_wrong = re.compile(r"wrong last sequence: (\d+)")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: its body and its headers."""

    payload: bytes
    headers: Mapping[str, str]

    @property
    def status(self) -> str:
        return self.headers.get("Status", "")


class NoAnswer(BrokerUnavailable):
    """A request got no answer in time, or the connection broke.

    Where it was `sent` it may have been carried out, or not.
    """

    def __init__(self, message: str, *, sent: bool = True) -> None:
        super().__init__(message)
        self.sent = sent


class NobodyThere(BrokerUnavailable):
    """No one listens on the subject: no such stream, no leader just now, or no JetStream."""


class WrongSequence(BrokerError):
    """A compare-and-set was refused; `last` is the sequence that stands there."""

    def __init__(self, last: int) -> None:
        super().__init__(f"the log has moved on to {last}")
        self.last = last


class Wire:
    """A connection to the server."""

    def __init__(self, login: Login, *, name: str = "jsq") -> None:
        self.login = login
        self.name = name
        self.reconnects = 0
        self._nats = Connection(self._lose)
        self._waiting: dict[int, tuple[asyncio.Future[Reply], str]] = {}
        self._token = 0
        self._inbox = ""
        self._up = asyncio.Event()
        self._room = asyncio.Event()
        self._denied: set[str] = set()
        self._refusals: list[Exception] = []
        self._listeners: list[Callable[[], Awaitable[None]]] = []

    # -- open and close ----------------------------------------------------------------------------------

    async def open(self) -> "Wire":
        """Connect. Raises within 5 s `BrokerUnavailable`, `NotAllowed` or `ServerTooOld`, naming the cure."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._connect()
        except (NatsError, OSError, TimeoutError, ValueError, ImportError) as error:
            await self._abandon()
            raise self._explain(error) from error
        self._inbox = self._nats.new_inbox()
        await self._nats.subscribe(
            f"{self._inbox}.*", cb=self._answered, pending_msgs_limit=-1, pending_bytes_limit=-1
        )
        self._up.set()
        await self._check_server()
        return self

    async def close(self) -> None:
        """Send what is under way, then close. (`drain` of the library may hang for half a minute.)"""
        with contextlib.suppress(NatsError, OSError, TimeoutError):
            if self._nats.is_connected:
                await self._nats.flush(timeout=2)
        await self._abandon()
        self._fail_all("the connection was closed")

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
    def server_version(self) -> str:
        found = self._nats.connected_server_version
        return f"{found.major}.{found.minor}.{found.patch}"

    @property
    def has_jetstream(self) -> bool:
        """What the server said of itself when it was connected to."""
        return bool(self._nats._server_info.get("jetstream"))

    def on_reconnect(self, listener: Callable[[], Awaitable[None]]) -> Callable[[], None]:
        """Call `listener` after each reconnect; returns what ends that."""
        self._listeners.append(listener)
        return functools.partial(self._listeners.remove, listener)

    # -- requests ----------------------------------------------------------------------------------------

    async def ask(
        self,
        subject: str,
        payload: bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        timeout: float = TRY_SECONDS,
    ) -> Reply:
        """One request, one answer. Raises `NoAnswer`, `NobodyThere`, `NotAllowed`."""
        while len(self._waiting) >= WINDOW:
            self._room.clear()
            await self._room.wait()
        if not self._up.is_set():
            raise NoAnswer(f"not connected to {self.login.shown}", sent=False)
        with self._awaited(subject, timeout) as (token, future):
            await self._send(subject, payload, headers, f"{self._inbox}.{token}")
            reply = await future
        if reply.status == "503":
            raise NobodyThere(f"nobody at {self.login.shown} serves {subject}")
        return reply

    async def publish(
        self,
        subject: str,
        payload: bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        timeout: float = TRY_SECONDS,
    ) -> int:
        """Store one message; returns its sequence. Raises `WrongSequence`, `QueueFull`, and as `ask` does."""
        answer = json.loads((await self.ask(subject, payload, headers, timeout=timeout)).payload or b"{}")
        if "error" in answer:
            raise translate(answer["error"], subject)
        return int(answer["seq"])

    async def patiently(
        self,
        subject: str,
        payload: bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        until: Callable[[], bool] | None = None,
        seconds: float = DEADLINE_SECONDS,
        absent: float = DEADLINE_SECONDS,
    ) -> int:
        """Store one message, trying again over a broken connection, a restart or an election.

        Goes on until `seconds` have passed, or as long as `until` says. The write must be one that may be
        stored once only, by what its headers expect: a try whose answer was lost may have been stored.
        """
        sent = False

        async def once() -> int:
            nonlocal sent
            try:
                return await self.publish(subject, payload, headers)
            except NoAnswer as error:
                sent = error.sent = error.sent or sent
                raise

        return await self.again(once, until=until, seconds=seconds, absent=absent)

    async def again(
        self,
        call: Callable[[], Awaitable[T]],
        *,
        until: Callable[[], bool] | None = None,
        seconds: float = DEADLINE_SECONDS,
        absent: float = DEADLINE_SECONDS,
    ) -> T:
        """Make a call, and make it again while nobody answers: for `seconds`, or as long as `until` says.

        While the stream itself is `absent`, for no longer than that many seconds.
        """
        began = time.monotonic()
        pause = 0.02
        while True:
            try:
                return await call()
            except (NoAnswer, NobodyThere) as error:
                await self._come_up(pause)
                end = began + (absent if isinstance(error, NobodyThere) else seconds)
                if not (until() if until is not None else time.monotonic() < end):
                    raise
            pause = min(1.0, pause * 2)

    async def api(
        self, name: str, request: Mapping[str, Any] | None = None, *, timeout: float = API_SECONDS
    ) -> Any:
        """Call the JetStream API. Raises `Refused` (with `code`), `ForeignStream`, `JetStreamOff`,
        `NotAllowed`.
        """
        body = json.dumps(request).encode() if request is not None else b""
        answer = json.loads((await self.ask(f"$JS.API.{name}", body, timeout=timeout)).payload)
        if "error" in answer:
            raise translate(answer["error"], name)
        return answer

    async def last(self, stream: str, subject: str) -> Reply | None:
        """The last message on a subject, which may hold wildcards."""
        return await self._get(stream, {"last_by_subj": subject})

    async def at(self, stream: str, sequence: int) -> Reply | None:
        """The message with a sequence."""
        return await self._get(stream, {"seq": sequence})

    async def each(
        self, stream: str, subject: str, *, after: int = 0, most: int | None = None, since: str = ""
    ) -> list[Reply]:
        """The messages on a subject (with wildcards), in order, above a sequence or from a moment."""
        found: list[Reply] = []
        start: dict[str, Any] = {"start_time": since} if since else {"seq": after + 1}
        while most is None or len(found) < most:
            batch = min(1000, most - len(found)) if most is not None else 1000
            page, more = await self._page(stream, {**start, "next_by_subj": subject, "batch": batch})
            found += page
            if not page or not more:
                break
            start = {"seq": int(page[-1].headers["Nats-Sequence"]) + 1}
        return found

    # -- one way -----------------------------------------------------------------------------------------

    async def send(
        self, subject: str, payload: bytes = b"", headers: dict[str, str] | None = None, reply: str = ""
    ) -> None:
        """Send without an answer; nothing is sent while the connection is down."""
        if self._up.is_set():
            await self._send(subject, payload, headers, reply)

    async def listen(
        self, subject: str, callback: Callable[[Msg], Awaitable[None]], *, group: str = ""
    ) -> Subscription:
        """Subscribe; what arrives goes to `callback` one at a time. A refusal shows at `check_denied`."""
        try:
            return await self._nats.subscribe(
                subject, group, cb=callback, pending_msgs_limit=-1, pending_bytes_limit=-1
            )
        except NatsError as error:
            raise BrokerUnavailable(f"cannot subscribe to {subject}: {error}") from error

    async def stop_listening(self, subscription: Subscription) -> None:
        with contextlib.suppress(NatsError):
            await subscription.unsubscribe()

    async def hear_out(self, subscription: Subscription, seconds: float = 1.0) -> None:
        """Unsubscribe, and see what the server had sent before it knew."""
        with contextlib.suppress(NatsError, OSError, TimeoutError):
            async with asyncio.timeout(seconds):
                await subscription.drain()  # type: ignore[no-untyped-call]  # the library's

    def new_inbox(self) -> str:
        return str(self._nats.new_inbox())

    async def flush(self, timeout: float = TRY_SECONDS) -> None:
        """Wait until the server has read all that was sent. Raises `NoAnswer`."""
        try:
            await self._nats.flush(timeout=timeout)  # type: ignore[arg-type]  # a float works as well
        except (NatsError, OSError, TimeoutError) as error:
            raise NoAnswer(f"no answer from {self.login.shown}") from error

    def check_denied(self, subject: str) -> None:
        """Raise `NotAllowed` if the server refused a subscription to `subject`."""
        if subject.lower() in self._denied:
            raise NotAllowed(f"not allowed to subscribe to {subject}{self._as_user()}")

    # -- inside ------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        options: dict[str, Any] = {
            "servers": self.login.servers,
            "name": self.name,
            "connect_timeout": 2,
            "max_reconnect_attempts": FIRST_TRIES,
            "reconnect_time_wait": 0.2,
            "ping_interval": PING_SECONDS,
            "max_outstanding_pings": 2,
            "pending_size": 64 * 2**20,
            "error_cb": self._trouble,
            "disconnected_cb": self._went_down,
            "reconnected_cb": self._came_up,
            "closed_cb": self._was_closed,
            "reconnect_to_server_handler": choose_server,
        }
        for theirs, ours in (
            ("user", "user"),
            ("password", "password"),
            ("token", "token"),
            ("nkeys_seed", "nkey"),
        ):
            if getattr(self.login, ours):
                options[theirs] = getattr(self.login, ours)
        if self.login.creds:
            options["user_credentials"] = self.login.creds
        if self.login.inbox_prefix:
            options["inbox_prefix"] = self.login.inbox_prefix
        if self.login.ca or self.login.cert:
            options["tls"] = tls(self.login)
        await self._nats.connect(**options)
        # The first connection fails fast; one that stood is made anew for ever.
        self._nats.options["max_reconnect_attempts"] = -1

    async def _abandon(self) -> None:
        self._up.clear()
        # Closing a connection that was never made trips an assertion of the library.
        with contextlib.suppress(NatsError, OSError, TimeoutError, AttributeError, AssertionError):
            await self._nats.close()

    def _explain(self, error: BaseException) -> BrokerError:
        shown = self.login.shown
        told = [*self._refusals, error]
        text = " ".join(str(one) for one in told).lower()
        if "authorization" in text or "authentication" in text:
            return NotAllowed(
                f"{shown} refused the login{self._as_user()}; check user, password, token or creds"
            )
        if isinstance(error, ImportError):
            return BrokerUnavailable("nkeys and creds files need one more package: pip install 'jsq[nkeys]'")
        if "ssl" in text or "tls" in text or "certificate" in text:
            why = shorten(str(told[0]))
            return BrokerUnavailable(
                f"no TLS connection to {shown}: {why}; check the scheme and ca, cert, key"
            )
        if isinstance(error, ValueError) or "invalid connect url" in text:
            return BrokerUnavailable(f"{shown} is not the address of a server; write nats://HOST:PORT")
        return BrokerUnavailable(
            f"no NATS server answers at {shown}; start one (`jsq dev`), or name another with JSQ_URL"
        )

    async def _check_server(self) -> None:
        """Refuse a server that lacks what jsq rests on, or one that would talk to us in the open."""
        found = self._nats.connected_server_version
        try:
            if (found.major, found.minor, found.patch) < FLOOR:
                floor = ".".join(str(part) for part in FLOOR)
                raise ServerTooOld(
                    f"{self.login.shown} runs nats-server {self.server_version}; jsq needs {floor} or newer, "
                    "which keeps schedules safe on a work queue: update the server"
                )
            encrypted = self._nats._server_info.get("tls_required")
            if not encrypted and (self.login.ca or self.login.shown.startswith("tls://")):
                raise BrokerUnavailable(
                    f"no TLS connection to {self.login.shown}: the server does not offer TLS; write nats://"
                )
        except BrokerError:
            await self.close()
            raise

    def _as_user(self) -> str:
        user = self.login.user
        for server in self.login.servers:
            if "@" in server:
                user = server.partition("://")[2].rpartition("@")[0].partition(":")[0]
        return f" as {user}" if user else ""

    async def _send(self, subject: str, payload: bytes, headers: dict[str, str] | None, reply: str) -> None:
        size = len(payload) + size_of(headers)
        if size > self.max_payload:
            # The server would close the connection for it, for good.
            raise UsageError(f"{size:,} bytes are more than the server takes: {self.max_payload:,}")
        try:
            await self._nats.publish(subject, payload, reply=reply, headers=headers)
        except NatsError as error:
            raise NoAnswer(f"cannot send to {self.login.shown}: {error}") from error

    async def _answered(self, message: Msg) -> None:
        found = self._waiting.get(int(message.subject[len(self._inbox) + 1 :]))
        if found is not None and not found[0].done():
            found[0].set_result(Reply(message.data, message.headers or {}))

    def _expire(self, token: int, seconds: float) -> None:
        found = self._waiting.get(token)
        if found is not None and not found[0].done():
            found[0].set_exception(
                NoAnswer(f"no answer from {self.login.shown} to {found[1]} within {seconds:g} s")
            )

    def _fail_all(self, why: str) -> None:
        for future, subject in list(self._waiting.values()):
            if not future.done():
                future.set_exception(NoAnswer(f"{why} while {subject} was under way"))

    async def _come_up(self, pause: float) -> None:
        """Wait a moment, and for the connection if it is down."""
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._up.wait()

    async def _get(self, stream: str, request: Mapping[str, Any]) -> Reply | None:
        body = json.dumps(request).encode()
        reply = await self.again(
            lambda: self.ask(f"$JS.API.DIRECT.GET.{stream}", body),
            seconds=READ_SECONDS,
            absent=ABSENT_SECONDS,
        )
        return None if reply.status == "404" else reply

    async def _page(self, stream: str, request: Mapping[str, Any]) -> tuple[list[Reply], bool]:
        """One batch of a direct get, and whether there is more behind it."""
        inbox, subject = self.new_inbox(), f"$JS.API.DIRECT.GET.{stream}"
        page: list[Reply] = []
        with self._awaited(subject, API_SECONDS) as (_, ended):

            async def take(message: Msg) -> None:
                # A status ends the batch: 204 after its last message, 404 where there is none.
                reply = Reply(message.data, message.headers or {})
                if not reply.status:
                    page.append(reply)
                elif not ended.done():
                    ended.set_result(reply)

            subscription = await self.listen(inbox, take)
            try:
                await self._send(subject, json.dumps(request).encode(), None, inbox)
                last = await ended
            finally:
                await self.stop_listening(subscription)
        if last.status == "503":
            raise NobodyThere(f"nobody at {self.login.shown} serves {stream}")
        return page, int(last.headers.get("Nats-Num-Pending", "0")) > 0

    @contextlib.contextmanager
    def _awaited(self, subject: str, seconds: float) -> Iterator[tuple[int, asyncio.Future[Reply]]]:
        """An answer that is awaited: fails when it is late, refused, or the connection breaks."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = loop.create_future()
        self._token = token = self._token + 1
        self._waiting[token] = (future, subject)
        late = loop.call_later(seconds, self._expire, token, seconds)
        try:
            yield token, future
        finally:
            late.cancel()
            self._waiting.pop(token, None)
            self._room.set()

    async def _trouble(self, error: Exception) -> None:
        if not self._up.is_set():
            self._refusals = [*self._refusals[-3:], error]
        if not isinstance(error, (NatsError, OSError, TimeoutError)):
            log.error("a listener failed", exc_info=error)
            return
        found = _subject.search(str(error))
        if found is None:
            log.debug("connection trouble", extra={"error": str(error)})
            return
        subject = found[2].lower()
        if found[1].lower() == "subscription":
            self._denied.add(subject)
            log.warning("not allowed to subscribe", extra={"subject": subject})
            return
        denied = NotAllowed(f"not allowed to publish to {found[2]}{self._as_user()}")
        for future, asked in list(self._waiting.values()):
            if asked.lower() == subject and not future.done():
                future.set_exception(denied)

    async def _went_down(self) -> None:
        self._lose()

    def _lose(self) -> None:
        self._up.clear()
        self._fail_all("the connection broke")

    async def _came_up(self) -> None:
        self.reconnects += 1
        self._up.set()
        for listener in list(self._listeners):
            await listener()

    async def _was_closed(self) -> None:
        self._up.clear()
        self._fail_all("the connection was closed")


class Connection(NatsClient):
    """The library's client, which lets go of a dead link at once.

    It would first wait until what it has not sent yet has gone out, which on a half-open link is never.
    """

    def __init__(self, lost: Callable[[], None]) -> None:
        super().__init__()
        self._lost = lost

    async def _process_op_err(self, e: Exception) -> None:
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None and not self.is_closed and not self.is_reconnecting:
            self._lost()
            writer.transport.abort()
        await super()._process_op_err(e)


def size_of(headers: Mapping[str, str] | None) -> int:
    """The bytes that headers take on the wire."""
    if not headers:
        return 0
    return 12 + sum(len(name) + len(value.encode()) + 4 for name, value in headers.items())


def choose_server(servers: list[Server], _info: dict[str, Any]) -> tuple[Server, float]:
    """The server to try next and the seconds to wait before: full jitter, so that a fleet does not come at
    once.
    """
    tried = min(servers, key=lambda server: server.reconnects)
    ceiling = min(2.0, 0.1 * 2 ** min(tried.reconnects, 5))
    return tried, random.uniform(0.0, ceiling)


def translate(error: Mapping[str, Any], subject: str) -> BrokerError:
    """A JetStream error in our words."""
    code, text = error.get("err_code", 0), error.get("description", "")
    wrong = _wrong.search(text)
    if code in (10071, 10164) and wrong:
        return WrongSequence(int(wrong[1]))
    if code == 10008:
        return NobodyThere(f"JetStream is not ready for {subject}: {text}")
    if code == 10077:
        queue = subject.split(".")[2] if subject.count(".") > 2 else subject
        return QueueFull(
            f"queue {queue} is full ({text}); try again later, or raise its max_jobs or max_bytes"
        )
    if code in (10076, 10039):
        return JetStreamOff(
            f"JetStream is not enabled for this account ({text}); enable it in the server's conf"
        )
    if code in (10065, 10058):
        return ForeignStream(f"{subject}: {text}; remove that stream, or choose another namespace")
    return Refused(f"the server refused {subject}: {text} ({code})", code)


def tls(login: Login) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=login.ca or None)
    if login.cert:
        context.load_cert_chain(login.cert, login.key or None)
    return context
