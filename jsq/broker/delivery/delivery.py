"""A delivery: one hand-over of a message to a worker, and the worker's lease on it."""

import time
from dataclasses import dataclass, field

from jsq.broker.topology.subjects import read_id
from jsq.codec.envelope import GROUP_SLOT, parse_group_slot
from jsq.codec.subject_token import Token
from jsq.model.job import PRIORITIES, Priority
from jsq.transport.replies import Reply, read_headers

REPLACES = "Jsq-Replaces"
"""The header of a message that replaces another one on its queue. Its value is the sequence of that one."""

SUBMITTED_PRIORITY = "Jsq-Submitted-Priority"
"""The header of a message that waits at a higher priority than its job was submitted with: that priority."""

REQUEUED = "Jsq-Requeued"
"""The header of a message that a worker has requeued because its job could not start yet."""

OFFERS = "Jsq-Offers"
"""The header of a message that was requeued because a worker did not know its task: how often it was."""

_clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Seconds on a monotonic clock that continues while the machine sleeps."""
    return time.clock_gettime(_clock)


@dataclass(slots=True)
class Lease:
    """The worker's time-limited hold on a delivery.

    `renewed` is the time of the last renewal that the server has confirmed. `reported` is set once the worker
    was notified that the lease has lapsed.
    """

    seconds: float
    renewed: float = field(default_factory=now)
    reported: bool = False

    def lapsed(self) -> bool:
        """Whether another worker may have the job by now. If so, this worker must write nothing about it."""
        return now() - self.renewed >= self.seconds

    def revive(self, sent: float) -> None:
        """Restart the lease at a renewal that was sent after it had lapsed, and that kept the delivery."""
        self.renewed, self.reported = sent, False

    def wants_renewal(self) -> bool:
        return now() - self.renewed >= self.seconds / 3


@dataclass(slots=True, eq=False)
class Delivery:
    """A message of a queue, handed to this worker.

    `token` is the token of the id in subjects; it is empty if the subject of the message ends with a token
    that is not that of an id. `raw` holds the headers as they were received. `sequence` is the sequence of
    the message in the READY stream, and `number` the number of its deliveries so far. `stored` is the time at
    which the server stored it (seconds since the epoch). `pending` counts the messages behind it at its
    priority.
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
        """The headers of the message by name. They are decoded on first use; a plain job needs none."""
        if self._headers is None:
            self._headers = read_headers(self.raw) if self.raw else {}
        return self._headers

    @property
    def waiting_since(self) -> float:
        """The time since which the job waits, including that in its key group (seconds since the epoch)."""
        return (parse_group_slot(self.headers)[2] if GROUP_SLOT in self.headers else 0.0) or self.stored

    @property
    def submitted_priority(self) -> Priority:
        """The priority that the job was submitted with.

        A worker requeues a job that a limit or a pause holds back at the highest priority, so that it starts
        before younger jobs.
        """
        value = self.headers.get(SUBMITTED_PRIORITY, "")
        return value if value in PRIORITIES else self.priority

    @property
    def offers(self) -> int:
        """How often workers have requeued the message because they did not know its task."""
        value = self.headers.get(OFFERS, "")
        return int(value) if value.isdecimal() else 0

    @property
    def replaced_sequence(self) -> int:
        """The sequence of the message that this one replaces; 0 for most messages."""
        value = self.headers.get(REPLACES, "")
        return int(value) if value.isdecimal() else 0


def read_delivery(message: Reply, seconds: float) -> Delivery:
    """A delivery from a message, with a lease of some seconds. Its reply subject holds the numbers:
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
