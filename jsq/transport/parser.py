"""What the server says, taken apart: messages for our own callbacks at once, all else by the library.

The library's parser tries one pattern after the other, hands each message to a task by way of a queue, and is
itself a task that wakes for every chunk. Here a chunk is walked through where the socket gives it, and each
message goes to its callback in the same turn of the loop; what they all have to say goes out together.
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
"""`MSG subject number [reply] size`, and `HMSG` with the size of the headers in front of the size in all."""

_END = b"\r\n"


class NatsParser(Parser):
    """Reads the protocol: https://docs.nats.io/reference/reference-protocols/nats-protocol

    `straight` holds the callbacks by subscription; `spoken` is called after each chunk.
    """

    def __init__(
        self, client: object, straight: Mapping[bytes, Callable[[Reply], None]], spoken: Callable[[], None]
    ) -> None:
        super().__init__(client)
        self._straight = straight
        self._spoken = spoken
        self._busy = False

    def reset(self) -> None:
        """Begin anew, on a new connection."""
        super().reset()
        self._kept: list[bytes] = []
        self._size = self._needed = 0

    def tap(self, stream: asyncio.StreamReader) -> None:
        """Read a stream's chunks as they come; the library reads only those that hold more than messages."""
        pass_on = stream.feed_data

        def take(chunk: Any) -> None:
            if self._busy or stream._buffer:  # type: ignore[attr-defined]  # what came before goes before
                pass_on(chunk)
                return
            try:
                rest = self._messages(chunk)
            except ProtocolError:
                rest = chunk  # the library finds the same fault, and knows what to do about it
            if rest:
                pass_on(rest)
            self._spoken()

        stream.feed_data = take  # type: ignore[assignment, method-assign]  # the one place where chunks pass

    async def parse(self, data: bytes = b"") -> None:
        """The library's way in. Raises `ProtocolError`, `OSError`.

        Any other error would end the reading of the library for good, while the connection stands.
        """
        self._busy = True
        try:
            await self._parse(data)
        except (ProtocolError, OSError):
            raise
        except Exception as error:
            log.exception("command of the server not understood")
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
        """Hand on messages up to the first command that is none of ours; returns what stands from there."""
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
                # One message must not end the reading of all others.
                log.exception("a listener failed", extra={"subject": message.subject})
        return b""

    def _unmatched(self, rest: bytes) -> bytes:
        """Keep the beginning of a command that is not here yet; another command is the library's."""
        if rest[0] not in (_MSG, _HMSG):
            return rest
        line_end = rest.find(_END)
        if line_end >= 0:
            raise ProtocolError("nats: malformed MSG")
        self._keep(rest, 0)
        return b""

    def _joined(self, chunk: bytes) -> bytes:
        """A chunk behind what was kept; nothing, where that is not enough yet."""
        self._kept.append(chunk)
        self._size += len(chunk)
        if self._size < self._needed:
            return b""
        joined, self._kept = b"".join(self._kept), []
        return joined

    def _keep(self, rest: bytes, needed: int) -> None:
        """Keep the beginning of a message until `needed` bytes are here, or any more if that is unknown."""
        self._kept, self._size, self._needed = [rest], len(rest), needed

    def _command(self, rest: bytes) -> int:
        """The size of the first command; 0 where it is not whole, and then it is kept."""
        line_end = rest.find(_END)
        if line_end < 0:
            self._keep(rest, 0)
            return 0
        size = line_end + 2
        if rest[0] in (_MSG, _HMSG):
            size += int(rest[:line_end].split()[-1]) + 2
        return size
