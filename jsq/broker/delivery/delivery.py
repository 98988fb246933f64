"""A delivery: one handing-over of a job's message to a worker, and the lease that comes with it."""

import time
from dataclasses import dataclass, field

from jsq.broker.topology.subjects import read_id
from jsq.codec.envelope import GROUP_SLOT, parse_group_slot
from jsq.codec.subject_token import Token
from jsq.model.job import PRIORITIES, Priority
from jsq.transport.replies import Reply, read_headers

INSTEAD = "Jsq-Instead"
"""The header of a message that was put in the place of another on its queue: the sequence of that one."""

LEVEL = "Jsq-Level"
"""The header of a message that was put in front of others: the priority that it has by rights."""

REQUEUED = "Jsq-Requeued"
"""The header of a message that was delivered, and put off because its job may not start yet."""

_clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Seconds on a clock that goes on while the machine sleeps."""
    return time.clock_gettime(_clock)


@dataclass(slots=True)
class Lease:
    """The hold on a delivery. `renewed` is when the server last heard of us for certain.

    `reported` is set once the worker was called because the lease has lapsed.
    """

    seconds: float
    renewed: float = field(default_factory=now)
    reported: bool = False

    def lapsed(self) -> bool:
        """Whether the job may belong to another by now: then nothing may be sent about it any more."""
        return now() - self.renewed >= self.seconds

    def revive(self, sent: float) -> None:
        """Count from a renewal that was sent after the lease had lapsed, and kept the job."""
        self.renewed, self.reported = sent, False

    def wants_renewal(self) -> bool:
        return now() - self.renewed >= self.seconds / 3


@dataclass(slots=True, eq=False)
class Delivery:
    """A message of a queue, handed to this worker.

    `token` is that of the id in subjects; it is empty if the subject of the message ends with a token that no
    id has. `raw` are its headers as they came. `sequence` is the message's place on its queue, `number`
    how often it has been delivered, `stored` when the server stored it (seconds since the epoch), `pending`
    how many wait behind it at its priority.
    """

    queue: str
    priority: Priority
    id: str
    token: str
    subject: str
    reply: str
    payload: bytes
    raw: bytes
    sequence: int
    number: int
    stored: float
    pending: int
    lease: Lease
    received: float = field(default_factory=time.monotonic)
    _headers: dict[str, str] | None = None

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the message by name. A plain job is run without decoding them."""
        if self._headers is None:
            self._headers = read_headers(self.raw) if self.raw else {}
        return self._headers

    @property
    def since(self) -> float:
        """Since when the job has waited, in its key's line too (seconds since the epoch)."""
        return (parse_group_slot(self.headers)[2] if GROUP_SLOT in self.headers else 0.0) or self.stored

    @property
    def own_priority(self) -> Priority:
        """The priority that the job was submitted with. Whose turn has come stands in front of the others."""
        told = self.headers.get(LEVEL, "")
        return told if told in PRIORITIES else self.priority

    @property
    def instead(self) -> int:
        """The sequence of the message in whose place this one was put; 0 for most."""
        told = self.headers.get(INSTEAD, "")
        return int(told) if told.isdecimal() else 0


def read_delivery(message: Reply, seconds: float) -> Delivery:
    """A delivery from a message, whose reply subject tells its numbers:
    `$JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<delivered>.<sequence>.<...>.<nanoseconds>.<pending>[.<...>]`.
    """
    subject, tokens = message.subject.split(".", 4), message.reply.split(".")
    level = subject[3] if len(subject) == 5 else "normal"
    token, first = subject[-1], 4 if len(tokens) < 11 else 6
    id = token
    if not (token.isalnum() and token.isascii()):  # a generated id is its own token
        id = read_id(token)
        token = "" if isinstance(id, Token) else token
    return Delivery(
        subject[2],
        level if level in PRIORITIES else "normal",
        id,
        token,
        message.subject,
        message.reply,
        message.payload,
        message.raw,
        int(tokens[first + 1]),
        int(tokens[first]),
        int(tokens[first + 3]) / 1e9,
        int(tokens[first + 4]),
        Lease(seconds),
    )
