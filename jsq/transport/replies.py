"""Received messages, and the translation of the server's errors into those of jsq."""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from jsq.errors import (
    BrokerError,
    BrokerFull,
    BrokerUnavailable,
    ForeignStream,
    JetStreamOff,
    QueueFull,
    Refused,
    UsageError,
)

_UNDECIDED = 10164
"""The code of a second write to a subject while the leader waits for its replicas, possibly for a retry."""

_NO_ROOM = frozenset({10002, 10023, 10026, 10027, 10028, 10047})
"""Codes of an account or a server that is full: in bytes (10002, 10023, 10028, 10047), consumers, streams."""

FULL = (QueueFull, BrokerFull)
"""The errors of a stream, an account or a server that is full."""

HEADERS_START, HEADERS_END = b"NATS/1.0\r\n", b"\r\n"
"""The bytes before and after the lines of the headers."""

NO_RESPONDERS = b"NATS/1.0 503"
"""The start of the headers of the reply for a subject without subscribers."""

MESSAGE_NOT_FOUND = b"NATS/1.0 404"
"""The start of the headers of the reply to a direct get without a message."""

_LIMITS = {"maximum messages exceeded": "max_jobs", "maximum bytes exceeded": "max_bytes"}
"""The server's errors of a stream's own limits, and the names of the limits in jsq."""

_wrong = re.compile(r"wrong last sequence: (\d+)")


@dataclass(slots=True)
class Reply:
    """A message: its subject, its reply subject, its body, and its headers as received."""

    subject: str
    reply: str
    payload: bytes
    raw: bytes

    @property
    def headers(self) -> dict[str, str]:
        return read_headers(self.raw) if self.raw else {}

    @property
    def status(self) -> str:
        """The status of a message that the server itself sent; else empty."""
        return self.raw[9:12].decode() if self.raw[8:9] == b" " else ""


class NoReply(BrokerUnavailable):
    """A request got no reply in time, or the connection broke.

    If it was `sent`, the server may or may not have processed it.
    """

    def __init__(self, message: str, *, sent: bool = True) -> None:
        super().__init__(message)
        self.sent = sent


class NoResponders(BrokerUnavailable):
    """The subject has no subscribers: no such stream, no leader at the moment, or no JetStream."""


class TooFewServers(BrokerUnavailable):
    """A stream needs more replicas than a cluster has servers now; others may be starting."""


class WrongSequence(BrokerError):
    """A compare-and-set was refused; `last` is the present sequence."""

    def __init__(self, last: int) -> None:
        super().__init__(f"the last sequence is {last}, not the expected one")
        self.last = last


def read_headers(raw: bytes) -> dict[str, str]:
    """Parse headers: `NATS/1.0[ status[ description]]`, then a line for each, then an empty line."""
    first, *lines = raw.decode(errors="surrogateescape").split("\r\n")
    found: dict[str, str] = {}
    if len(first) > 9:
        found["Status"], _, found["Description"] = first[9:].partition(" ")
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            found[name.strip()] = value.strip()
    return found


def own_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of a message without those that the server sets or reads."""
    return {name: value for name, value in headers.items() if not name.startswith("Nats-")}


def write_headers(headers: Mapping[str, str]) -> bytes:
    """Encode headers. Raises `UsageError` for a header of more than one line."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    block = f"NATS/1.0\r\n{lines}\r\n"
    if block.count("\n") != len(headers) + 2 or block.count("\r") != len(headers) + 2:
        raise UsageError("a header must have one line only")
    return block.encode()


def header_line(name: str, value: str) -> bytes:
    """One encoded header; neither part may contain a line end."""
    return f"{name}: {value}\r\n".encode()


def block(*lines: bytes) -> bytes:
    """Headers from their lines."""
    return b"".join((HEADERS_START, *lines, HEADERS_END))


def size_of(headers: Mapping[str, str]) -> int:
    """The bytes that headers take on the wire."""
    return len(write_headers(headers))


def leader_reply(stream: str, message: Mapping[str, Any]) -> Reply:
    """A message of the leader of its stream, in the form in which a replica would send it.

    `{"subject", "seq", "time"}`, and optionally the headers `hdrs` and the body `data` in base64.
    """
    lines = base64.b64decode(message.get("hdrs", ""))[len(b"NATS/1.0\r\n") : -len(b"\r\n")]
    place = (
        header_line("Nats-Stream", stream),
        header_line("Nats-Subject", message["subject"]),
        header_line("Nats-Sequence", str(message["seq"])),
        header_line("Nats-Time-Stamp", message["time"]),
    )
    return Reply(message["subject"], "", base64.b64decode(message.get("data", "")), block(lines, *place))


def acknowledged(payload: bytes, subject: str) -> int:
    """The sequence in an acknowledgement. Raises the error of a refusal."""
    answer = from_json(payload or b"{}")
    if "error" in answer:
        raise translate(answer["error"], subject)
    return int(answer["seq"])


def translate(error: Mapping[str, Any], subject: str) -> BrokerError:
    """Translate a JetStream error into an error of jsq."""
    code, text = error.get("err_code", 0), error.get("description", "")
    wrong = _wrong.search(text)
    if code in (10071, 10164) and wrong:
        return WrongSequence(int(wrong[1]))
    if code == _UNDECIDED:
        return NoReply(f"another write to {subject} is not decided yet: {text}", sent=False)
    if code == 10005 and "offline" in text:
        return NoReply(f"too few servers are up for {subject}: {text}", sent=False)
    if code == 10005:
        return TooFewServers(f"too few servers are up for the replicas of {subject}: {text}")
    if code == 10008:
        return NoReply(f"JetStream is not ready for {subject}: {text}", sent=False)
    if code in _NO_ROOM:
        return no_room(subject, text)
    if code == 10077:
        return not_stored(subject, text)
    if code in (10076, 10039):
        return JetStreamOff(
            f"JetStream is not enabled for this account ({text}); enable it in the server's conf"
        )
    if code in (10065, 10058):
        return ForeignStream(f"{subject}: {text}; remove that stream, or choose another namespace")
    return Refused(f"the server refused {subject}: {text} ({code})", code)


def not_stored(subject: str, text: str) -> BrokerError:
    """Why a stream did not store a message: a limit of its own is reached, or the disk is full."""
    limit, tokens = _LIMITS.get(text), subject.split(".")
    if limit is not None and len(tokens) > 2 and tokens[1] in ("q", "group"):
        return QueueFull(tokens[2], limit)
    if limit is not None or "no space left" in text or "resource" in text:
        return no_room(subject, text)
    return Refused(f"the server could not store {subject}: {text}", 10077)


def no_room(subject: str, text: str) -> BrokerFull:
    return BrokerFull(
        f"the server has no room for {subject} ({text}); free space, or raise the limits of the account, the "
        "server or the stream"
    )


def sequence_of(stored: Reply) -> int:
    """The sequence of a stored message in its stream."""
    return int(stored.headers["Nats-Sequence"])


def last_token(stored: Reply) -> str:
    """The last token of a stored message's subject."""
    return stored.headers["Nats-Subject"].rpartition(".")[2]
