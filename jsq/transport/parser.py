"""A parser of the server's protocol: messages go to jsq's callbacks at once, other commands to nats-py.

The parser of nats-py tries one pattern after the other, passes each message through a queue to a task, and is
itself a task that wakes for every chunk. This parser handles a chunk as soon as the socket delivers it, and
calls each callback in the same turn of the event loop. Everything that the callbacks send is written
together.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from nats.errors import ProtocolError
from nats.protocol.parser import Parser

from jsq.transport.replies import Reply

log = logging.getLogger("jsq.broker")

_MSG, _HMSG = ord("M"), ord("H")
_MESSAGE = re.compile(
    rb"(H?)MSG[ \t]+([^ \t\r\n]+)[ \t]+([^ \t\r\n]+)[ \t]+(?:([^ \t\r\n]+)[ \t]+)??(?:(\d+)[ \t]+)?(\d+)\r\n"
)
"""`MSG subject number [reply] size`, and `HMSG` with the size of the headers before the total size."""

_END = b"\r\n"


class NatsParser(Parser):
    """Reads the protocol: https://docs.nats.io/reference/reference-protocols/nats-protocol

    `straight` holds the callbacks by subscription; `spoken` is called after each chunk, to send replies.
    """

    def __init__(
        self, client: object, straight: Mapping[bytes, Callable[[Reply], None]], spoken: Callable[[], None]
    ) -> None:
        super().__init__(client)
        self._straight = straight
        self._spoken = spoken
        self._busy = False

    def reset(self) -> None:
        """Reset the state for a new connection."""
        super().reset()
        self._kept: list[bytes] = []
        self._size = self._needed = 0

    def tap(self, stream: asyncio.StreamReader) -> None:
        """Parse the chunks of a stream as they arrive; nats-py gets only those with other commands."""
        pass_on = stream.feed_data

        def take(chunk: Any) -> None:
            if self._busy or stream._buffer:  # type: ignore[attr-defined]  # earlier bytes must be handled first
                pass_on(chunk)
                return
            try:
                rest = self._messages(chunk)
            except ProtocolError:
                rest = chunk  # nats-py finds the same fault, and handles it
            if rest:
                pass_on(rest)
            self._spoken()

        stream.feed_data = take  # type: ignore[assignment, method-assign]  # the only place that all chunks pass

    async def parse(self, data: bytes = b"") -> None:
        """The entry point for nats-py. Raises `ProtocolError`, `OSError`.

        Any other error would end the reading task of nats-py for good, while the connection stays open.
        """
        self._busy = True
        try:
            await self._parse(data)
        except (ProtocolError, OSError):
            raise
        except Exception as error:
            log.exception("server command not understood")
            raise ProtocolError from error
        finally:
            self._busy = False
        self._spoken()

    async def _parse(self, data: bytes) -> None:
        rest = self._messages(data)
        while rest:
            size = self._command(rest)
            if not size:
                break
            await super().parse(rest[:size])
            rest = self._messages(rest[size:])

    def _messages(self, chunk: bytes) -> bytes:
        """Handle messages up to the first other command; returns the rest of the chunk."""
        if self._kept:
            chunk = self._joined(chunk)
        position, end, straight, match = 0, len(chunk), self._straight, _MESSAGE.match
        while position < end:
            found = match(chunk, position)
            if found is None:
                return self._unmatched(chunk[position:])
            headed, subject, number, reply, split, size = found.groups()
            if headed and split is None:
                raise ProtocolError("nats: malformed MSG")
            if not headed and split is not None:  # digits that are a reply subject
                if reply is not None:
                    raise ProtocolError("nats: malformed MSG")
                reply, split = split, None
            body = found.end()
            past = body + int(size)
            if past + 2 > end:
                self._keep(chunk[position:], past + 2 - position)
                break
            callback = straight.get(number)
            if callback is None:
                return chunk[position:]
            middle = body + int(split) if split is not None else body
            message = Reply(
                subject.decode(),
                reply.decode() if reply is not None else "",
                chunk[middle:past],
                chunk[body:middle],
            )
            position = past + 2
            try:
                callback(message)
            except Exception:
                # An error with one message must not end the reading of all others.
                log.exception("message not handled", extra={"subject": message.subject})
        return b""

    def _unmatched(self, rest: bytes) -> bytes:
        """Keep the beginning of an incomplete message; pass any other command to nats-py."""
        if rest[0] not in (_MSG, _HMSG):
            return rest
        line_end = rest.find(_END)
        if line_end >= 0:
            raise ProtocolError("nats: malformed MSG")
        self._keep(rest, 0)
        return b""

    def _joined(self, chunk: bytes) -> bytes:
        """The kept bytes and a chunk, joined; empty if they are not enough yet."""
        self._kept.append(chunk)
        self._size += len(chunk)
        if self._size < self._needed:
            return b""
        joined, self._kept = b"".join(self._kept), []
        return joined

    def _keep(self, rest: bytes, needed: int) -> None:
        """Keep the beginning of a message until `needed` bytes have arrived (0: until any have arrived)."""
        self._kept, self._size, self._needed = [rest], len(rest), needed

    def _command(self, rest: bytes) -> int:
        """The size of the first command; 0 if it is incomplete, and then it is kept."""
        line_end = rest.find(_END)
        if line_end < 0:
            self._keep(rest, 0)
            return 0
        size = line_end + 2
        if rest[0] in (_MSG, _HMSG):
            size += int(rest[:line_end].split()[-1]) + 2
        return size
