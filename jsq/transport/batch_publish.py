"""Batches of messages for one stream: an atomic commit (all or none), or fast ingest with few replies.

Both are features of the server (ADR-50, "JetStream Batch Publishing", of nats-architecture-and-design). A
commit waits for the disk once, for any number of messages. Fast ingest costs little more than sending; the
server judges each message by itself.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pydantic_core import from_json

from jsq.errors import BrokerError, BrokerFull, QueueFull, count_noun
from jsq.transport.replies import NoReply, NoResponders, Reply, block, header_line, translate
from jsq.transport.wire import TRY_SECONDS, Wire

MAX_COMMIT_MESSAGES = 1_000
"""Maximum number of messages of one commit; the server refuses more (error 10199)."""

MAX_COMMIT_BYTES = 4 * 2**20
"""Maximum size of one batch in bytes, so that neither side holds much more than it works on."""

FLOW_MESSAGES = 250
"""Messages for each reply during fast ingest; twice as many may be in flight."""

_FIRST, _MORE, _END = 0, 1, 3
_UNKNOWN_BATCH = 10208


class OutgoingMessage(NamedTuple):
    """A message to store: a subject, a body, and the lines of its headers (see `replies.header_line`)."""

    subject: str
    payload: bytes
    lines: bytes = b""

    @property
    def size(self) -> int:
        return len(self[0]) + len(self[1]) + len(self[2])


async def commit(wire: Wire, messages: Sequence[OutgoingMessage], *, timeout: float = TRY_SECONDS) -> int:
    """Store messages of one stream, all or none; returns the sequence of the last.

    Their sequences are consecutive: the first has `last - len(messages) + 1`. Raises the error of one of them
    (then none is stored), and `NoReply`.
    """
    id, last = secrets.token_hex(16), len(messages)
    for number, message in enumerate(messages, 1):
        lines = (message.lines, f"Nats-Batch-Id: {id}\r\nNats-Batch-Sequence: {number}\r\n".encode())
        if number < last:
            wire.send(message.subject, message.payload, block(*lines))
            continue
        headers = block(*lines, header_line("Nats-Batch-Commit", "1"))
        return await wire.publish(message.subject, message.payload, headers, timeout=timeout)
    raise ValueError("a commit must have at least one message")


def parts(
    messages: Sequence[OutgoingMessage], most: int = MAX_COMMIT_MESSAGES
) -> Iterator[Sequence[OutgoingMessage]]:
    """Messages in parts of at most `most` messages and `MAX_COMMIT_BYTES` (or one message)."""
    start = total = 0
    for place, (subject, payload, lines) in enumerate(messages):
        size = len(subject) + len(payload) + len(lines)
        if place > start and (place - start >= most or total + size > MAX_COMMIT_BYTES):
            yield messages[start:place]
            start, total = place, 0
        total += size
    if start < len(messages):
        yield messages[start:]


@dataclass(slots=True)
class FastIngestResult:
    """The result of fast ingest: the refused messages by index; those from `end` on were not sent."""

    refused: dict[int, BrokerError] = field(default_factory=dict)
    end: int = 0


async def fast_ingest(wire: Wire, messages: Sequence[OutgoingMessage]) -> FastIngestResult:
    """Store messages of one stream one after the other; ends early if the queue is full.

    Raises `NoResponders`, and `NoReply` if the server stops replying: then some may be stored.
    """
    return await FastIngest(wire, messages).run()


class FastIngest:
    """One fast ingest in progress.

    Its control data are in the reply subjects, `<inbox>.<flow>.<gap>.<number>.<operation>.$FI`; answers are
    `{"type": "ack", "seq": number, "msgs": flow}`, `{"type": "err", "seq": number, "error": ...}`, and at the
    end an acknowledgement as for any message.
    """

    def __init__(self, wire: Wire, messages: Sequence[OutgoingMessage]) -> None:
        self._wire = wire
        self._messages = messages
        self._inbox = wire.new_inbox()
        self._reconnects = wire.reconnects
        self._result = FastIngestResult()
        self._last_acknowledged = 0  # the number of the last message that a reply acknowledged
        self._wait_at = 1  # the number at which to wait for a reply
        self._full = self._ended = False
        self._failed: BrokerError | None = None
        self._replied = asyncio.Event()

    async def run(self) -> FastIngestResult:
        subscription = await self._wire.subscribe(f"{self._inbox}.>", self._on_reply)
        try:
            await self._send_all()
            while not self._ended:
                await self._wait_for_reply()
        finally:
            await self._wire.unsubscribe(subscription)
        return self._result

    async def _send_all(self) -> None:
        lines, headers = b"", block()
        reply, send = f"{self._inbox}.{FLOW_MESSAGES}.ok.", self._wire.send
        number, operation = 0, _FIRST
        for message in self._messages:
            number += 1
            if message.lines is not lines:  # jobs with the same order have the same headers
                lines, headers = message.lines, block(message.lines)
            send(message.subject, message.payload, headers, f"{reply}{number}.{operation}.$FI")
            operation = _MORE
            while number >= self._wait_at and not self._full:
                await self._wait_for_reply()
            if self._full:
                break
        self._result.end = number
        send(self._messages[0].subject, b"", None, f"{reply}{number + 1}.{_END}.$FI")

    async def _wait_for_reply(self) -> None:
        """Wait for a reply. Raises the error that ended the ingest, and `NoReply`."""
        self._replied.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TRY_SECONDS):
                await self._replied.wait()
        if self._failed is not None:
            raise self._failed
        if not self._replied.is_set() or self._wire.reconnects != self._reconnects:
            stored = count_noun(self._last_acknowledged, "message")
            raise NoReply(f"{self._wire.login.shown} stopped replying after {stored} messages of a batch")

    def _on_reply(self, reply: Reply) -> None:
        self._replied.set()
        body = from_json(reply.payload) if reply.payload else {}
        match body:
            case {"type": "ack", "seq": number, "msgs": flow}:
                self._last_acknowledged = max(self._last_acknowledged, number)
                self._wait_at = self._last_acknowledged + 2 * flow
            case {"type": "err", "seq": number, "error": error}:
                refused = translate(error, self._messages[number - 1].subject)
                self._last_acknowledged = max(self._last_acknowledged, number)
                self._wait_at = max(self._wait_at, self._last_acknowledged + FLOW_MESSAGES)
                self._result.refused[number - 1] = refused
                self._full = self._full or isinstance(refused, (QueueFull, BrokerFull))
            case {"error": error} if error.get("err_code") != _UNKNOWN_BATCH:
                self._failed = translate(error, self._messages[0].subject)
            case {"seq": _, "count": _}:
                self._ended = True
            case {} if not self._last_acknowledged:
                self._failed = NoResponders(f"no responders for {self._messages[0].subject}")
            case _:  # a gap, or a batch that a new leader does not know
                self._failed = NoReply(f"a batch for {self._messages[0].subject} broke off")
