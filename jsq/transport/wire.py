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
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from nats.aio.subscription import Subscription as NatsSubscription
from nats.errors import Error as NatsError
from pydantic_core import from_json

from jsq.errors import BrokerError, BrokerFull, BrokerUnavailable, NotAllowed, Refused, UsageError
from jsq.settings import Login
from jsq.transport.auth import as_user, explain, inbox_prefixes, options_of
from jsq.transport.connection import Connection, check_server
from jsq.transport.replies import (
    NoReply,
    NoResponders,
    Reply,
    WrongSequence,
    acknowledged,
    told_by_leader,
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
DEADLINE_SECONDS = 15.0
"""How long a write is tried again: longer than an election of a cluster (4 to 9 s)."""

API_SECONDS = 5.0
READ_SECONDS = 5.0
"""How long a read is tried again."""

ELSEWHERE_SECONDS = 8.0
"""How long nothing may be stored before another server is tried: an election may take as long, and a server
that is cut off from the others of its cluster does not say so."""

ABSENT_SECONDS = 0.3
"""How long a read waits for a stream that nobody serves: it is being made, or it was never made."""

WINDOW = 4_000
"""Requests under way at once: the server refuses more than some tens of thousands."""

UNSENT = 8 * 2**20
"""Bytes that may wait to be sent: a server that reads slowly slows down those who write to it."""

Headers: TypeAlias = Mapping[str, str] | bytes
"""Headers by name, or as `write_headers` writes them."""

NOT_HERE = b'"err_code":10039'
"""How an account says that it has no JetStream of its own."""

OTHER_ACCOUNT_SECONDS = 0.5
"""How long the answer of another account is waited for after that."""

MOST_UNSENDABLE = 1_000
"""Refused subjects that are kept."""

SWEEP_SECONDS = 0.1
"""How often late requests are looked for: one timer for all, instead of one for each."""

SAY_FULL_SECONDS = 10.0
"""How often it is said that a full server keeps us waiting."""

NO_STREAM = 10059
_NO_MESSAGE = 10037

_subject = re.compile(r'(publish|subscription) to "([^"]+)"', re.IGNORECASE)


@dataclass(slots=True)
class Waiting:
    """A request whose answer is awaited."""

    future: asyncio.Future[Reply]
    subject: str
    end: float
    seconds: float
    refused: bool = False


class Wire:
    """A connection to the server."""

    def __init__(self, login: Login, *, name: str = "jsq") -> None:
        self.login = login
        self.name = name
        self.reconnects = 0
        self.clock = Clock()
        self._nats = Connection(self._lose)
        self._waiting: dict[int, Waiting] = {}
        self._sweeping = False
        self._token = 0
        self._inbox = ""
        self._stored = 0.0
        self._up = asyncio.Event()
        self._room = asyncio.Event()
        self._denied: set[str] = set()
        self._unsendable: set[str] = set()
        self._closed_leaders: set[str] = set()
        self._refusals: list[BaseException] = []
        self._silent_until = 0.0
        self._listeners: list[Callable[[], Awaitable[None]]] = []

    # -- open and close ----------------------------------------------------------------------------------

    async def open(self) -> "Wire":
        """Connect. Raises within 5 s `BrokerUnavailable`, `NotAllowed` or `ServerTooOld`, naming the cure.

        `UsageError` for a file of keys or certificates that cannot be used.
        """
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._connect()
        except (NatsError, OSError, TimeoutError, ValueError, ImportError) as error:
            await self._abandon()
            told = explain(self.login, [*self._refusals, error])
            # What cannot be an address may be a password: the error behind would repeat it.
            wrong = isinstance(error, ValueError) or isinstance(error.__context__, ValueError)
            raise told from (None if wrong else error)
        try:
            check_server(self._nats, self.login)
            await self._hear_answers()
        except BrokerError:
            await self.close()
            raise
        self._up.set()
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

    async def turn_elsewhere(self) -> None:
        """Connect to another server of the cluster, if nothing could be stored through this one for long."""
        now = time.monotonic()
        if self.connected and self._nats.has_others and now - self._stored > ELSEWHERE_SECONDS:
            self._stored = now
            log.warning("the server stores nothing: turning to another", extra={"server": self.login.shown})
            await self._nats.leave()

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
        if len(self._waiting) >= WINDOW or self._nats.unsent > UNSENT:
            await self._have_room()
        return await self.begin(subject, payload, headers, timeout=timeout)

    def begin(
        self,
        subject: str,
        payload: bytes = b"",
        headers: Headers | None = None,
        *,
        timeout: float = TRY_SECONDS,
    ) -> asyncio.Future[Reply]:
        """Send a request in this turn of the loop; the future has its answer, or fails as `ask` does."""
        if not self._up.is_set():
            raise NoReply(f"not connected to {self.login.shown}", sent=False)
        token, future = self._await(subject, timeout)
        try:
            self._put(subject, payload, headers, f"{self._inbox}.{token}")
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

        Raises `WrongSequence`, `QueueFull`, `BrokerFull`, and as `ask` does.
        """
        if len(self._waiting) >= WINDOW or self._nats.unsent > UNSENT:
            await self._have_room()
        reply = await self.begin(subject, payload, headers, timeout=timeout)
        sequence = acknowledged(reply.payload, subject)
        self._stored = time.monotonic()
        return sequence

    async def publish_with_retry(
        self,
        subject: str,
        payload: bytes = b"",
        headers: Headers | None = None,
        *,
        until: Callable[[], bool] | None = None,
        seconds: float = DEADLINE_SECONDS,
        absent: float = DEADLINE_SECONDS,
        failed: NoReply | NoResponders | BrokerFull | None = None,
    ) -> int:
        """Store one message, trying again over a broken connection, a restart or an election.

        Goes on until `seconds` have passed, or as long as `until` says, and then also while the server is
        full: what one who holds a lease has to write must not be lost. The write must be one that may be
        stored once only, by what its headers expect: a try whose answer was lost may have been stored.
        `failed` is how a first try ended that was made already. Raises `NoReply` (with `sent`) where it is
        not known whether it was stored, for whatever a later try was told; else what `publish` raises.
        """
        if failed is None:
            try:
                return await self.publish(subject, payload, headers)
            except (NoReply, NoResponders) as error:
                failed = error
            except BrokerFull as error:
                if until is None:
                    raise
                failed = error
        silent = failed if isinstance(failed, NoReply) and failed.sent else None

        async def once() -> int:
            nonlocal silent
            try:
                return await self.publish(subject, payload, headers)
            except NoReply as error:
                error.sent = error.sent or silent is not None
                silent = error if error.sent else None
                raise

        try:
            return await self.with_retry(once, until=until, seconds=seconds, absent=absent, failed=failed)
        except (NoReply, WrongSequence):
            raise
        except BrokerError as error:
            if silent is not None:
                raise NoReply(f"{silent}; a later try: {error}") from error
            raise

    async def with_retry(
        self,
        call: Callable[[], Awaitable[T]],
        *,
        until: Callable[[], bool] | None = None,
        seconds: float = DEADLINE_SECONDS,
        absent: float = DEADLINE_SECONDS,
        failed: NoReply | NoResponders | BrokerFull | None = None,
    ) -> T:
        """Make a call, and make it again while nobody answers: for `seconds`, or as long as `until` says.

        While the stream itself is `absent`, for no longer than that many seconds. `failed` is how a first
        call ended that was made already. With `until`, also while the server is full.
        """
        began = time.monotonic()
        pause = 0.02
        while True:
            if failed is not None:
                end = began + (absent if isinstance(failed, NoResponders) else seconds)
                if until is None and time.monotonic() >= end:
                    raise failed
                if time.monotonic() - began > ELSEWHERE_SECONDS:
                    await self.turn_elsewhere()
                await self._come_up(pause)
                if until is not None and not until():
                    raise failed
                pause = min(1.0, pause * 2)
            try:
                return await call()
            except (NoReply, NoResponders) as error:
                failed = error
            except BrokerFull as error:
                if until is None:
                    raise
                failed = error
                self._say_full(error)

    async def api(
        self, name: str, request: Mapping[str, Any] | None = None, *, timeout: float = API_SECONDS
    ) -> Any:
        """Call the JetStream API. Raises `Refused` (with `code`), `ForeignStream`, `JetStreamOff`,
        `NotAllowed`.
        """
        body = json.dumps(request).encode() if request is not None else b""
        asked = time.time()
        answer = from_json((await self.ask(f"$JS.API.{name}", body, timeout=timeout)).payload)
        if told := answer.get("ts"):
            self.clock.learn(told, asked, time.time())
        if "error" in answer:
            raise translate(answer["error"], name)
        return answer

    async def last(self, stream: str, subject: str, *, consistent: bool = False) -> Reply | None:
        """The last message on a subject, which may hold wildcards.

        The replica that answers may be a little behind; to be `consistent` the leader is asked, where we may:
        that lets one read all of the stream. The other request's subject holds the one that is asked for: so
        a permission can name it.
        """
        if consistent and stream not in self._closed_leaders:
            try:
                return await self._ask_leader(stream, {"last_by_subj": subject})
            except NotAllowed:
                self._closed_leaders.add(stream)
        return await self._get(f"{stream}.{subject}", b"")

    def asks_leader(self, stream: str) -> bool:
        """Whether the leader of a stream may be asked, as far as that was tried."""
        return stream not in self._closed_leaders

    async def at(self, stream: str, sequence: int, *, consistent: bool = False) -> Reply | None:
        """The message with a sequence; see `last`."""
        request = {"seq": sequence}
        if consistent and stream not in self._closed_leaders:
            try:
                return await self._ask_leader(stream, request)
            except NotAllowed:
                self._closed_leaders.add(stream)
        return await self._get(stream, json.dumps(request).encode())

    async def next(
        self, stream: str, subject: str, *, after: int = 0, consistent: bool = False
    ) -> Reply | None:
        """The first message on a subject (with wildcards) above a sequence; see `last`."""
        request = {"seq": after + 1, "next_by_subj": subject}
        if consistent and stream not in self._closed_leaders:
            try:
                return await self._ask_leader(stream, request)
            except NotAllowed:
                self._closed_leaders.add(stream)
        return await self._get(stream, json.dumps(request).encode())

    async def each(
        self, stream: str, subject: str, *, after: int = 0, most: int | None = None, since: str = ""
    ) -> list[Reply]:
        """The messages on a subject (with wildcards), in order, above a sequence or from a moment."""
        found: list[Reply] = []
        start: dict[str, Any] = {"start_time": since} if since else {"seq": after + 1}
        while most is None or len(found) < most:
            batch = min(1000, most - len(found)) if most is not None else 1000
            request = {**start, "next_by_subj": subject, "batch": batch}
            page, more = await self.with_retry(
                functools.partial(self._page, stream, request), seconds=READ_SECONDS, absent=ABSENT_SECONDS
            )
            found += page
            if not page or not more:
                break
            start = {"seq": int(page[-1].headers["Nats-Sequence"]) + 1}
        return found

    async def page(
        self, stream: str, subject: str, *, after: int = 0, most: int, size: int
    ) -> tuple[list[Reply], bool]:
        """The next `most` messages on a subject, or as many as take `size` bytes; and whether more follow."""
        request = {"seq": after + 1, "next_by_subj": subject, "batch": most, "max_bytes": size}
        return await self.with_retry(
            functools.partial(self._page, stream, request), seconds=READ_SECONDS, absent=ABSENT_SECONDS
        )

    async def last_of(self, stream: str, subjects: Sequence[str]) -> list[Reply]:
        """The last message on each of some subjects (with wildcards): a thousand messages at most."""
        request = {"multi_last": list(subjects), "batch": 1000}
        found, _ = await self.with_retry(
            functools.partial(self._page, stream, request), seconds=READ_SECONDS, absent=ABSENT_SECONDS
        )
        return found

    # -- one way -----------------------------------------------------------------------------------------

    def send(
        self, subject: str, payload: bytes = b"", headers: Headers | None = None, reply: str = ""
    ) -> None:
        """Send without an answer; nothing is sent while the connection is down."""
        if self._up.is_set():
            self._put(subject, payload, headers, reply)

    async def listen(self, subject: str, callback: Callable[[Reply], None]) -> Subscription:
        """Subscribe; what arrives goes to `callback` at once. A refusal shows at `check_denied`."""
        try:
            subscription = await self._nats.subscribe(subject)
        except NatsError as error:
            raise BrokerUnavailable(f"cannot subscribe to {subject}: {error}") from error
        self._nats.straighten(subscription._id, callback)
        return subscription

    async def stop_listening(self, subscription: Subscription) -> None:
        self._nats.forget(subscription._id)
        with contextlib.suppress(NatsError):
            await subscription.unsubscribe()

    async def hear_out(self, subscription: Subscription, seconds: float = 1.0) -> None:
        """Unsubscribe, and see what the server had sent before it knew."""
        with contextlib.suppress(NatsError, OSError, TimeoutError):
            async with asyncio.timeout(seconds):
                await subscription.drain()  # type: ignore[no-untyped-call]  # the library's
        self._nats.forget(subscription._id)

    def new_inbox(self) -> str:
        return str(self._nats.new_inbox())

    async def flush(self, timeout: float = TRY_SECONDS) -> None:
        """Wait until the server has read all that was sent. Raises `NoReply`."""
        try:
            await self._nats.flush(timeout=timeout)  # type: ignore[arg-type]  # a float works as well
        except (NatsError, OSError, TimeoutError) as error:
            raise NoReply(f"no answer from {self.login.shown}") from error

    def check_denied(self, subject: str) -> None:
        """Raise `NotAllowed` if the server refused a subscription to `subject`."""
        if subject.lower() in self._denied:
            raise NotAllowed(f"not allowed to subscribe to {subject}{as_user(self.login)}")

    async def check_sent(self, subject: str) -> None:
        """Raise `NotAllowed` if the server refused what was sent to `subject` without an answer."""
        await self.flush()
        if subject.lower() in self._unsendable:
            raise NotAllowed(f"not allowed to publish to {subject}{as_user(self.login)}")

    # -- inside ------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        await self._nats.connect(
            **options_of(self.login),
            name=self.name,
            error_cb=self._trouble,
            disconnected_cb=self._went_down,
            reconnected_cb=self._came_up,
            closed_cb=self._was_closed,
        )
        self._nats.options["max_reconnect_attempts"] = -1

    async def _abandon(self) -> None:
        self._up.clear()
        # Closing a connection that was never made trips an assertion of the library.
        with contextlib.suppress(NatsError, OSError, TimeoutError, AttributeError, AssertionError):
            await self._nats.close()

    def _put(self, subject: str, payload: bytes, headers: Headers | None, reply: str) -> None:
        if not subject.isprintable() or " " in subject:
            raise UsageError(f"{subject!r} is no subject")
        block = headers if isinstance(headers, bytes) else write_headers(headers) if headers else b""
        size = len(block) + len(payload)
        if size > self._nats._max_payload:
            # The server would close the connection for it, for good.
            raise UsageError(f"{size:,} bytes are more than the server takes: {self.max_payload:,}")
        if block:
            command = f"HPUB {subject} {reply} {len(block)} {size}\r\n".encode()
        else:
            command = f"PUB {subject} {reply} {size}\r\n".encode()
        self._nats.put(b"".join((command, block, payload, b"\r\n")))

    async def _have_room(self) -> None:
        """Wait until fewer requests are under way, and less is to be sent."""
        while len(self._waiting) >= WINDOW:
            self._room.clear()
            await self._room.wait()
        if self._nats.unsent > UNSENT:
            await self._nats.drained()

    def _await(self, subject: str, seconds: float) -> tuple[int, asyncio.Future[Reply]]:
        """An answer that is awaited: fails when it is late, refused, or the connection breaks."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = loop.create_future()
        self._token = token = self._token + 1
        self._waiting[token] = Waiting(future, subject, loop.time() + seconds, seconds)
        if not self._sweeping:
            self._sweeping = True
            loop.call_later(SWEEP_SECONDS, self._sweep)
        return token, future

    def _answered(self, message: Reply) -> None:
        token = int(message.subject[len(self._inbox) + 1 :])
        found = self._waiting.pop(token, None)
        if found is None or found.future.done():
            return
        if not found.refused and NOT_HERE in message.payload and found.subject.startswith("$JS.API."):
            # An account that only reaches into another is answered twice: for itself, and from there.
            found.refused = True
            self._waiting[token] = found
            asyncio.get_running_loop().call_later(OTHER_ACCOUNT_SECONDS, self._answered, message)
            return
        if message.raw and message.status == "503":
            shown = self.login.shown
            found.future.set_exception(NoResponders(f"nobody at {shown} serves {found.subject}"))
        else:
            found.future.set_result(message)
        if len(self._waiting) < WINDOW:
            self._room.set()

    def _sweep(self) -> None:
        """Fail what is late, and forget what nobody waits for any more."""
        loop = asyncio.get_running_loop()
        now, shown = loop.time(), self.login.shown
        for token, one in list(self._waiting.items()):
            if one.future.done():
                del self._waiting[token]
            elif one.end <= now:
                del self._waiting[token]
                one.future.set_exception(
                    NoReply(
                        f"no answer from {shown} to {one.subject} within {one.seconds:g} s, though the "
                        "connection stands: if that lasts, ask its /healthz whether the disk is full"
                    )
                )
        self._room.set()
        self._sweeping = bool(self._waiting)
        if self._sweeping:
            loop.call_later(SWEEP_SECONDS, self._sweep)

    def _fail_all(self, why: str) -> None:
        for one in list(self._waiting.values()):
            if not one.future.done():
                one.future.set_exception(NoReply(f"{why} while {one.subject} was under way"))

    async def _come_up(self, pause: float) -> None:
        """Wait a moment, and for the connection if it is down."""
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._up.wait()

    async def _hear_answers(self) -> None:
        """Listen at an inbox: at the usual one, or where that is not allowed at one named after the user.

        Raises `NotAllowed` if no answer can reach us: every request would merely time out.
        """
        for prefix in inbox_prefixes(self.login):
            self._nats._inbox_prefix = bytearray(prefix.encode())
            self._inbox = self._nats.new_inbox()
            await self.listen(f"{self._inbox}.*", self._answered)
            await self.flush()
            if f"{self._inbox}.*".lower() not in self._denied:
                return
        raise NotAllowed(
            f"not allowed to subscribe to {self._inbox}.*{as_user(self.login)}, so no answer could reach us; "
            "set JSQ_INBOX_PREFIX (or inbox_prefix) to where the user may listen, as _INBOX_name"
        )

    def _say_full(self, error: BrokerFull) -> None:
        """Say now and then that what has to be written waits for room."""
        if time.monotonic() >= self._silent_until:
            self._silent_until = time.monotonic() + SAY_FULL_SECONDS
            log.warning("writes wait for room", extra={"server": self.login.shown, "why": str(error)})

    async def _ask_leader(self, stream: str, request: Mapping[str, Any]) -> Reply | None:
        call = f"STREAM.MSG.GET.{stream}"
        try:
            found = await self.with_retry(lambda: self.api(call, request, timeout=TRY_SECONDS))
        except Refused as error:
            if error.code in (_NO_MESSAGE, NO_STREAM):
                return None
            raise
        return told_by_leader(stream, found["message"])

    async def _get(self, place: str, body: bytes) -> Reply | None:
        reply = await self.with_retry(
            lambda: self.ask(f"$JS.API.DIRECT.GET.{place}", body),
            seconds=READ_SECONDS,
            absent=ABSENT_SECONDS,
        )
        return None if reply.status == "404" else reply

    async def _page(self, stream: str, request: Mapping[str, Any]) -> tuple[list[Reply], bool]:
        """One batch of a direct get, and whether there is more behind it."""
        inbox, subject = self.new_inbox(), f"$JS.API.DIRECT.GET.{stream}"
        page: list[Reply] = []
        token, ended = self._await(subject, API_SECONDS)

        def take(message: Reply) -> None:
            # A status ends the batch: 204 after its last message, 404 where there is none.
            if not message.status:
                page.append(message)
            elif not ended.done():
                ended.set_result(message)

        subscription = await self.listen(inbox, take)
        try:
            self._put(subject, json.dumps(request).encode(), None, inbox)
            last = await ended
        finally:
            self._waiting.pop(token, None)
            await self.stop_listening(subscription)
        if last.status == "503":
            raise NoResponders(f"nobody at {self.login.shown} serves {stream}")
        return page, int(last.headers.get("Nats-Num-Pending", "0")) > 0

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
            if self._up.is_set():
                log.warning("not allowed to subscribe", extra={"subject": subject})
            return
        asked = [one for one in self._waiting.values() if one.subject.lower() == subject]
        for one in asked:
            if not one.future.done():
                told = f"not allowed to publish to {one.subject}{as_user(self.login)}"
                one.future.set_exception(NotAllowed(told))
        if not asked:
            self._note_unsendable(subject)

    def _note_unsendable(self, subject: str) -> None:
        """What nobody waits for was refused: said once for each kind of subject, whose last part differs."""
        kind = subject.rpartition(".")[0]
        if kind not in self._unsendable:
            log.warning("not allowed to publish", extra={"subject": subject})
        if len(self._unsendable) < MOST_UNSENDABLE:
            self._unsendable |= {kind, subject}

    async def _went_down(self) -> None:
        self._lose()

    def _lose(self) -> None:
        if self._up.is_set():
            log.warning("connection lost", extra={"server": self.login.shown})
        self._up.clear()
        self._fail_all("the connection broke")

    async def _came_up(self) -> None:
        self.reconnects += 1
        self._up.set()
        log.info("connection made anew", extra={"server": self.login.shown, "times": self.reconnects})
        for listener in list(self._listeners):
            await listener()

    async def _was_closed(self) -> None:
        self._up.clear()
        self._fail_all("the connection was closed")
