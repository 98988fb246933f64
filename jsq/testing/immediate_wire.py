"""The connection of immediate mode: the objects of `transport/`, on streams in memory instead of a server.

Each event loop has its own; all of them share one storage. Nothing waits here: an operation is done when its
call returns. So there is no outage, no retry, and no message that may or may not be stored.
"""

import asyncio
import itertools
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, cast

from jsq.codec.revisions import format_time
from jsq.errors import BrokerError, BrokerUnavailable, ImmediateUnsupported, QueueFull
from jsq.settings import Login
from jsq.testing.immediate_storage import MemoryStorage, Outgoing, read_block
from jsq.testing.immediate_streams import MemoryMessage, MemoryStream
from jsq.transport.jetstream import JetStreamApi, JsonObject
from jsq.transport.reads import Reads
from jsq.transport.refusals import Refusals
from jsq.transport.replies import NoReply, NoResponders, Reply, WrongSequence, write_headers
from jsq.transport.server_clock import PAST
from jsq.transport.wire import ACK, TRY_SECONDS, Headers, PendingReplies, ServerInfo, Subscription, Wire

MAX_PAYLOAD = 1_048_576
"""The largest message in bytes: the default of a server."""

LOGIN = Login(url="nats://immediate-mode:4222")
"""The address in messages."""

_numbers = itertools.count(1)


class MemoryWire(Wire):
    """A connection to streams in memory, for one event loop."""

    def __init__(self, storage: MemoryStorage) -> None:
        self.storage = storage
        self.login = LOGIN
        self.name = "immediate"
        self.reconnects = 0
        self.restored = -math.inf
        self.clock = storage.clock
        self.pending = PendingReplies(LOGIN.shown)
        self.refusals = Refusals(LOGIN, self.pending.refuse)
        self.is_closed = False
        self._batches: dict[str, list[Outgoing]] = {}

    async def close(self) -> None:
        self.is_closed = True

    @property
    def connected(self) -> bool:
        return not self.is_closed

    @property
    def closed(self) -> bool:
        return self.is_closed

    @property
    def max_payload(self) -> int:
        return MAX_PAYLOAD

    @property
    def server(self) -> ServerInfo:
        return ServerInfo("2.15.1", has_jetstream=True, cluster="")

    def on_reconnect(self, listener: Callable[[], Awaitable[None]]) -> Callable[[], None]:
        return lambda: None

    async def switch_server(self) -> None:
        """Nothing: there is no other server."""

    async def wait_until_connected(self, pause: float) -> None:
        """Nothing: what was missing, such as a stream, has been created."""

    # -- requests ----------------------------------------------------------------------------------------

    async def ask(
        self,
        subject: str,
        payload: bytes = b"",
        headers: Headers | None = None,
        *,
        timeout: float = TRY_SECONDS,
    ) -> Reply:
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def take(reply: Reply) -> None:
            if not answer.done():
                answer.set_result(reply)

        inbox = self.new_inbox()
        number = self.storage.listen(inbox, take)
        try:
            if not self.storage.emit(Reply(subject, inbox, payload, as_block(headers))):
                raise NoResponders(f"no responders at {self.login.shown} for {subject}")
            return await asyncio.wait_for(answer, timeout)
        except TimeoutError as error:
            raise NoReply(f"no answer to {subject} within {timeout:g} s") from error
        finally:
            self.storage.unlisten(number)

    async def publish(
        self,
        subject: str,
        payload: bytes = b"",
        headers: Headers | None = None,
        *,
        timeout: float = TRY_SECONDS,
    ) -> int:
        if self.storage.is_closed:
            raise BrokerUnavailable("the block of immediate mode has ended", retryable=False)
        lines, named = read_block(as_block(headers))
        message = Outgoing(subject, payload, lines, named)
        before = self._batches.pop(named.get("Nats-Batch-Id", ""), [])
        return self.storage.store([*before, message])

    async def api(
        self, name: str, request: Mapping[str, Any] | None = None, *, timeout: float = TRY_SECONDS
    ) -> Any:
        raise unsupported(f"the request {name}", "there is no server")

    # -- one way -----------------------------------------------------------------------------------------

    def send(
        self, subject: str, payload: bytes = b"", headers: Headers | None = None, reply: str = ""
    ) -> None:
        if subject.startswith("$JS.ACK."):
            self._settle(subject, payload)
        elif reply.endswith(".$FI"):
            self._ingest(Outgoing(subject, payload, *read_block(as_block(headers))), reply)
        elif self.storage.stream_of(subject) is None:
            self.storage.emit(Reply(subject, reply, payload, as_block(headers)))
        else:
            message = Outgoing(subject, payload, *read_block(as_block(headers)))
            if (batch := message.headers.get("Nats-Batch-Id")) is not None:
                self._batches.setdefault(batch, []).append(message)
                return
            try:
                self.storage.store([message])
            except BrokerError:
                return  # a server refuses it too, and the sender does not wait for an answer

    async def subscribe(self, subject: str, callback: Callable[[Reply], None]) -> Subscription:
        return cast(Subscription, self.storage.listen(subject, callback))  # only `unsubscribe` uses it

    async def unsubscribe(self, subscription: Subscription) -> None:
        self.storage.unlisten(cast(int, subscription))

    async def drain(self, subscription: Subscription, seconds: float = 1.0) -> None:
        await self.unsubscribe(subscription)

    def new_inbox(self) -> str:
        return f"_INBOX.{next(_numbers)}"

    async def flush(self, timeout: float = TRY_SECONDS) -> None:
        """Nothing: everything that was sent has arrived."""

    # -- inside ------------------------------------------------------------------------------------------

    def _settle(self, subject: str, word: bytes) -> None:
        """Settle a delivery by its reply subject, `$JS.ACK.<stream>.<consumer>.<delivered>.<sequence>...`."""
        tokens = subject.split(".")
        place = tokens[2], int(tokens[5])
        if word == ACK:
            self.storage.settle(place)
        elif word.startswith(b"-NAK"):
            self.storage.returned.append(place)

    def _ingest(self, message: Outgoing, reply: str) -> None:
        """Store a message of a fast ingest; see `jsq.transport.batch_publish.FastIngest`."""
        _, number, operation, _ = reply.rsplit(".", 3)
        if operation == "3":
            answer: dict[str, Any] = {"seq": int(number), "count": int(number) - 1}
        else:
            answer = {"type": "ack", "seq": int(number), "msgs": 250}
            try:
                self.storage.store([message])
            except NoResponders:
                answer = {}
            except WrongSequence as refused:
                answer = ingest_refusal(number, 10071, f"wrong last sequence: {refused.last}")
            except QueueFull:
                answer = ingest_refusal(number, 10077, "maximum messages exceeded")
        self.storage.emit(Reply(reply, "", json.dumps(answer).encode(), b""))


def unsupported(what: str, why: str, fix: str = "test it with a real server") -> ImmediateUnsupported:
    """The error for something that immediate mode cannot show."""
    return ImmediateUnsupported(f"immediate mode does not support {what}: {why}; {fix}")


def ingest_refusal(number: str, code: int, text: str) -> dict[str, Any]:
    """The answer of a fast ingest to a message that it does not store."""
    return {"type": "err", "seq": int(number), "error": {"err_code": code, "description": text}}


def as_block(headers: Headers | None) -> bytes:
    """Headers as bytes."""
    return headers if isinstance(headers, bytes) else write_headers(headers) if headers else b""


class MemoryReads(Reads):
    """Reads of streams in memory. Each read has the last write."""

    def __init__(self, storage: MemoryStorage) -> None:
        self._storage = storage

    def may_ask_leader(self, stream: str) -> bool:
        return True

    async def last(self, stream: str, subject: str, *, consistent: bool = False) -> Reply | None:
        found = self._stream(stream, consistent=consistent)
        with self._storage.lock:
            return reply_of(found.last(subject)) if found is not None else None

    async def get(self, stream: str, sequence: int, *, consistent: bool = False) -> Reply | None:
        found = self._stream(stream, consistent=consistent)
        return reply_of(found.messages.get(sequence)) if found is not None else None

    async def next(
        self, stream: str, subject: str, *, after: int = 0, consistent: bool = False
    ) -> Reply | None:
        found = self._stream(stream, consistent=consistent)
        with self._storage.lock:
            messages = found.after(subject, after) if found is not None else []
        return messages[0].reply if messages else None

    async def fetch(
        self, stream: str, subject: str, *, after: int = 0, limit: int | None = None, since: str = ""
    ) -> list[Reply]:
        found = [one.reply for one in self._after(stream, subject, after)]
        if since:
            found = [one for one in found if one.headers["Nats-Time-Stamp"] >= since.rstrip("Z")]
        return found[:limit]

    async def page(
        self, stream: str, subject: str, *, after: int = 0, limit: int, max_bytes: int
    ) -> tuple[list[Reply], bool]:
        found = self._after(stream, subject, after)
        return [one.reply for one in found[:limit]], len(found) > limit

    async def count(self, stream: str, subject: str) -> int:
        return len(self._after(stream, subject))

    async def last_per_subject(self, stream: str, subjects: Sequence[str]) -> list[Reply]:
        found = self._stream(stream)
        assert found is not None, "it would have raised"
        with self._storage.lock:
            last = {one.sequence: one for subject in subjects for one in found.last_each(subject)}
        return [last[sequence].reply for sequence in sorted(last)]

    def _after(self, stream: str, subject: str, after: int = 0) -> list[MemoryMessage]:
        found = self._stream(stream)
        assert found is not None, "it would have raised"
        with self._storage.lock:
            return found.after(subject, after)

    def _stream(self, stream: str, *, consistent: bool = False) -> MemoryStream | None:
        """A stream. If it is missing: None from a leader read, `NoResponders` from the others."""
        with self._storage.lock:
            found = self._storage.stream(stream)
        if found is None and not consistent:
            raise NoResponders(f"no responders at {LOGIN.shown} for {stream}")
        return found


def reply_of(found: MemoryMessage | None) -> Reply | None:
    """A stored message as a reader gets it."""
    return None if found is None else found.reply


class MemoryJetStream(JetStreamApi):
    """The streams and consumers of immediate mode."""

    def __init__(self, storage: MemoryStorage) -> None:
        self._storage = storage

    async def call(self, name: str, request: Mapping[str, Any] | None = None) -> Any:
        raise unsupported("another worker, and `provision`", "its queues need neither")

    async def pages(self, call: str, subject: str) -> AsyncIterator[list[Any]]:
        prefix = subject.removesuffix(">")
        found = [
            stream
            for stream in list(self._storage.streams.values())
            if any(one.startswith(prefix) for one in stream.config.get("subjects") or ())
        ]
        yield [one.name if call == "STREAM.NAMES" else stream_report(one) for one in found]

    async def stream_info(self, stream: str, subjects: str = "") -> JsonObject | None:
        with self._storage.lock:
            found = self._storage.stream(stream)
            return None if found is None else stream_report(found, subjects)

    async def create_stream(self, config: JsonObject) -> JsonObject:
        with self._storage.lock:
            self._storage.streams.setdefault(config["name"], MemoryStream(dict(config)))
        return dict(config)

    async def update_stream(self, config: JsonObject) -> None:
        with self._storage.lock:
            self._storage.streams[config["name"]].configure(dict(config))

    async def consumer_info(self, stream: str, name: str) -> JsonObject | None:
        config = self._storage.consumers.get((stream, name))
        return None if config is None else {"config": config, "num_pending": 0, "num_ack_pending": 0}

    async def put_consumer(self, stream: str, config: JsonObject) -> None:
        self._storage.consumers[stream, config["name"]] = dict(config)

    async def pause_consumer(self, stream: str, name: str, until: datetime | None) -> None:
        config = self._storage.consumers.get((stream, name))
        if config is not None:
            config["pause_until"] = format_time(until or PAST)

    async def count_subjects(self, stream: str, subject: str) -> int:
        with self._storage.lock:
            found = self._storage.stream(stream)
            return 0 if found is None else len(found.counts(subject))

    async def purge(self, stream: str, subject: str, *, below: int | None = None, keep: int = 0) -> int:
        with self._storage.lock:
            found = self._storage.stream(stream)
            if found is None:
                return 0
            purged = [one for one in found.after(subject) if below is None or one.sequence < below]
            purged = purged[: max(0, len(purged) - keep)]
            return sum(found.remove(one.sequence) for one in purged)

    async def delete_message(self, stream: str, sequence: int) -> bool:
        with self._storage.lock:
            found = self._storage.streams.get(stream)
            return found is not None and found.remove(sequence)


def stream_report(stream: MemoryStream, subjects: str = "") -> JsonObject:
    """The report of a stream, in the form of a server's."""
    state: JsonObject = {"messages": len(stream.messages), "last_seq": stream.last_sequence}
    if subjects:
        state["subjects"] = stream.counts(subjects)
    return {"config": stream.config, "state": state}
