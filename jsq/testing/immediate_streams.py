"""Streams in memory: what immediate mode needs of a server's streams, by the configurations of real ones.

The broker of a client and that of a worker run on them unchanged: records, unique keys, key groups, dead
letters and schedules are the same code as with a server. So this module knows messages, sequences and
subjects, and no jobs. Its rules are those of nats-server 2.15: what a write may expect, what a new message
replaces, what a TTL removes, what a schedule publishes, and what another stream sources.
"""

import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from jsq.broker.topology.configs import NS, Config
from jsq.errors import QueueFull
from jsq.transport.replies import HEADERS_END, HEADERS_START, Reply, WrongSequence, header_line

EXPECTED_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
EXPECTED_SUBJECT = "Nats-Expected-Last-Subject-Sequence-Subject"
OWN_TTL = "Nats-TTL"


@dataclass(slots=True)
class MemoryMessage:
    """A message of a stream. `lines` are its headers as bytes, `due` is when its schedule publishes it.

    `continues` is true for the next attempt of a job that has run, or that waits for a limit.
    """

    stream: str
    sequence: int
    subject: str
    payload: bytes
    lines: bytes
    at: float
    expires: float = math.inf
    due: float | None = None
    continues: bool = False

    @property
    def reply(self) -> Reply:
        """The message as a server sends it to a reader."""
        at = datetime.fromtimestamp(self.at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        place = (
            header_line("Nats-Stream", self.stream),
            header_line("Nats-Subject", self.subject),
            header_line("Nats-Sequence", str(self.sequence)),
            header_line("Nats-Time-Stamp", at),
        )
        raw = b"".join((HEADERS_START, self.lines, *place, HEADERS_END))
        return Reply(self.subject, "", self.payload, raw)


class MemoryStream:
    """One stream: its configuration, and its messages by their sequences and by their subjects."""

    def __init__(self, config: Config) -> None:
        self.messages: dict[int, MemoryMessage] = {}
        self.last_sequence = int(config.get("first_seq") or 1) - 1
        self._by_subject: dict[str, dict[int, MemoryMessage]] = {}
        self._next_expiry = math.inf
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Use a configuration from now on."""
        self.config = config
        self.name: str = config["name"]
        self._history = int(config.get("max_msgs_per_subject") or -1)
        self._most = int(config.get("max_msgs") or -1)
        self._max_age = float(config.get("max_age") or 0) / NS or math.inf

    def takes(self, subject: str) -> bool:
        """Whether messages on a subject belong to this stream."""
        return any(matches_pattern(pattern, subject) for pattern in self.config.get("subjects") or ())

    def check(self, subject: str, headers: Mapping[str, str]) -> None:
        """Raise `WrongSequence` or `QueueFull` if the stream must refuse a message."""
        expected = headers.get(EXPECTED_SEQUENCE)
        if expected is not None:
            last = self.last(headers.get(EXPECTED_SUBJECT, subject))
            found = last.sequence if last is not None else 0
            if found != int(expected):
                raise WrongSequence(found)
        if 0 < self._most <= len(self.messages) and not self.is_replaced(subject):
            raise QueueFull(subject.split(".")[2], "max_jobs")

    def is_replaced(self, subject: str) -> bool:
        """Whether a new message on a subject removes an older one."""
        return 0 < self._history <= len(self._by_subject.get(subject, ()))

    def add(self, message: MemoryMessage, headers: Mapping[str, str]) -> None:
        """Store a message, which has the next sequence."""
        ttl = headers.get(OWN_TTL, "")
        message.expires = message.at + min(float(ttl) if ttl.isdigit() else math.inf, self._max_age)
        self._next_expiry = min(self._next_expiry, message.expires)
        self.last_sequence = message.sequence
        self.messages[message.sequence] = message
        on_subject = self._by_subject.setdefault(message.subject, {})
        on_subject[message.sequence] = message
        if 0 < self._history < len(on_subject):
            self.remove(next(iter(on_subject)))

    def remove(self, sequence: int) -> bool:
        """Remove a message; False if there is none."""
        found = self.messages.pop(sequence, None)
        if found is None:
            return False
        on_subject = self._by_subject[found.subject]
        del on_subject[sequence]
        if not on_subject:
            del self._by_subject[found.subject]
        return True

    def last(self, pattern: str) -> MemoryMessage | None:
        """The last message on a subject, which may have wildcards."""
        found = [next(reversed(messages.values())) for messages in self._matching(pattern)]
        return max(found, key=lambda one: one.sequence, default=None)

    def last_each(self, pattern: str) -> list[MemoryMessage]:
        """The last message on each subject that matches."""
        return [next(reversed(messages.values())) for messages in self._matching(pattern)]

    def after(self, pattern: str, sequence: int = 0) -> list[MemoryMessage]:
        """The messages on a subject (with wildcards) after a sequence, in order."""
        found = [one for messages in self._matching(pattern) for one in messages.values()]
        return sorted((one for one in found if one.sequence > sequence), key=lambda one: one.sequence)

    def counts(self, pattern: str) -> dict[str, int]:
        """The number of messages on each subject that matches."""
        found = list(self._matching(pattern))
        return {next(iter(messages.values())).subject: len(messages) for messages in found}

    def expire(self, now: float) -> None:
        """Remove the messages whose time has passed."""
        if now < self._next_expiry:
            return
        for message in [one for one in self.messages.values() if one.expires <= now]:
            self.remove(message.sequence)
        self._next_expiry = min((one.expires for one in self.messages.values()), default=math.inf)

    def _matching(self, pattern: str) -> Iterator[dict[int, MemoryMessage]]:
        if "*" not in pattern and ">" not in pattern:
            if pattern in self._by_subject:
                yield self._by_subject[pattern]
            return
        match = compiled_pattern(pattern).fullmatch
        yield from [messages for subject, messages in self._by_subject.items() if match(subject)]


def matches_pattern(pattern: str, subject: str) -> bool:
    """Whether a subject matches a pattern with the wildcards `*` and `>`."""
    return compiled_pattern(pattern).fullmatch(subject) is not None


@functools.lru_cache(maxsize=4096)
def compiled_pattern(pattern: str) -> re.Pattern[str]:
    """A pattern of subjects as a regular expression, with a group for each `*`."""
    return re.compile(re.escape(pattern).replace(r"\*", r"([^.]+)").replace(">", ".+"))


def transformed_subject(source: str, target: str, subject: str) -> str | None:
    """The subject that a stream stores for a sourced one; None if its transform does not match."""
    found = compiled_pattern(source).fullmatch(subject)
    if found is None:
        return None
    return re.sub(r"\{\{wildcard\((\d+)\)\}\}", lambda one: found[int(one[1])], target)


def kept_lines(lines: bytes) -> bytes:
    """The header lines of a message that another message copies: without those for the server."""
    return b"".join(line + b"\r\n" for line in lines.split(b"\r\n") if line and not line.startswith(b"Nats-"))
