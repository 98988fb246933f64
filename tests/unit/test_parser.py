"""The protocol parser: for chunks of any size, each message is delivered once, complete and in order."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.errors import ProtocolError

from jsq.transport.parser import NatsParser
from jsq.transport.replies import Reply
from tests.helpers.examples import examples

OURS, OTHERS = 7, 8

payloads = st.binary(max_size=40) | st.sampled_from([b"\r\n", b"PING\r\n", b"MSG a 7 1\r\n", b"+OK\r\n-ERR"])
headers = st.sampled_from([b"", b"NATS/1.0\r\n\r\n", b"NATS/1.0 503\r\n\r\n", b"NATS/1.0\r\nA: 1\r\n\r\n"])
replies = st.sampled_from([b"", b"_INBOX.a.1"])
messages = st.tuples(st.sampled_from([OURS, OTHERS]), replies, headers, payloads)
commands = st.sampled_from(["ping", "pong", "ok"])


class Library:
    """A stub of the NATS library that notes the calls of the parser."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    async def _process_ping(self) -> None:
        self.calls.append("ping")

    async def _process_pong(self) -> None:
        self.calls.append("pong")

    async def _process_err(self, text: str) -> None:
        self.calls.append(("err", text))

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, raw: bytes | None
    ) -> None:
        self.calls.append((sid, reply, raw or b"", data))


COMMANDS = {"ping": b"PING\r\n", "pong": b"PONG\r\n", "ok": b"+OK\r\n"}


def written(item: str | tuple[int, bytes, bytes, bytes]) -> bytes:
    if isinstance(item, str):
        return COMMANDS[item]
    sid, reply, raw, data = item
    words = [b"HMSG" if raw else b"MSG", b"a.b", b"%d" % sid, *([reply] if reply else [])]
    words += [b"%d" % len(raw)] if raw else []
    return b" ".join([*words, b"%d" % (len(raw) + len(data))]) + b"\r\n" + raw + data + b"\r\n"


def made(library: Library) -> NatsParser:
    def receive(message: Reply) -> None:
        library.calls.append((OURS, message.reply.encode(), message.raw, message.payload))

    return NatsParser(library, {b"%d" % OURS: receive}, lambda: None)


async def read(reader: NatsParser, chunks: list[bytes], pauses: list[bool]) -> None:
    """Feed chunks as a socket does. After a chunk whose entry in `pauses` is true, the reading task runs."""
    stream = asyncio.StreamReader()
    reader.tap(stream)

    async def loop() -> None:
        while chunk := await stream.read(32_768):
            await reader.parse(chunk)

    reading = asyncio.ensure_future(loop())
    for chunk, pause in zip(chunks, pauses, strict=False):
        stream.feed_data(chunk)
        if pause:
            await asyncio.sleep(0)
    stream.feed_eof()
    await reading


@examples(200)
@given(data=st.data(), items=st.lists(messages | commands, max_size=8))
def test_messages_arrive_in_order_for_any_split_of_the_stream(data: st.DataObject, items: list[Any]) -> None:
    stream = b"".join(map(written, items))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True) if a < b]
    pauses = data.draw(st.lists(st.booleans(), min_size=len(chunks), max_size=len(chunks)))
    library = Library()

    asyncio.run(read(made(library), chunks, pauses))

    assert library.calls == [item for item in items if item != "ok"]


async def test_a_large_message_in_small_pieces_is_joined_once() -> None:
    library = Library()
    body = bytes(1_000_000)
    stream = written((OURS, b"", b"", body))

    await read(made(library), [stream[at : at + 4096] for at in range(0, len(stream), 4096)], [False] * 300)

    assert library.calls == [(OURS, b"", b"", body)]


async def test_a_callback_that_raises_does_not_stop_the_parser(caplog: pytest.LogCaptureFixture) -> None:
    received: list[bytes] = []

    def receive(message: Reply) -> None:
        received.append(message.payload)
        raise ValueError("mine")

    reader = NatsParser(Library(), {b"7": receive}, lambda: None)
    await read(reader, [written((OURS, b"", b"", b"1")) + written((OURS, b"", b"", b"2"))], [True])

    assert received == [b"1", b"2"]
    assert "message not handled" in caplog.text


@pytest.mark.parametrize("line", [b"MSG a.b 7\r\n", b"MSG a.b 7 x\r\n", b"HMSG a.b 7 5\r\n", b"MSG\r\n"])
async def test_invalid_protocol_raises_the_protocol_error_of_the_library(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        await made(Library()).parse(line + b"12345\r\n")


async def test_the_flush_callback_runs_after_each_chunk() -> None:
    flushes: list[int] = []
    reader = NatsParser(Library(), {b"7": lambda message: None}, lambda: flushes.append(1))
    await read(reader, [written((OURS, b"", b"", b"1")) * 3, written("ping")], [True, True])
    assert (
        len(flushes) == 3
    )  # the chunk of messages, the chunk that was passed on, and its reading by the library


async def test_reset_discards_the_partial_message_of_the_old_connection() -> None:
    library = Library()
    reader = made(library)
    await read(reader, [written((OURS, b"", b"", b"lost"))[:-3]], [True])
    reader.reset()
    await read(reader, [written((OURS, b"", b"", b"whole"))], [True])
    assert library.calls == [(OURS, b"", b"", b"whole")]


async def test_any_error_of_a_command_is_reported_as_a_protocol_error() -> None:
    """After any other error the library would stop reading and leave the connection open."""

    class Stumbling(Library):
        async def _process_pong(self) -> None:
            raise asyncio.InvalidStateError("invalid state")

    library = Stumbling()
    reader = made(library)

    with pytest.raises(ProtocolError) as caught:
        await reader.parse(b"PING\r\nPONG\r\nPING\r\n")

    assert isinstance(caught.value.__cause__, asyncio.InvalidStateError)
    assert library.calls == ["ping"]
