"""The storage of immediate mode: its streams, what they publish when the clock moves, and who listens.

Several event loops may use it: that of a test, and that of the blocking calls. A lock makes each operation
one step.
"""

import asyncio
import heapq
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from jsq.broker.jobs.messages import SCHEDULE, TARGET
from jsq.broker.topology.configs import Config
from jsq.codec.revisions import parse_time
from jsq.model.job import PRIORITIES
from jsq.testing.immediate_clock import VirtualClock
from jsq.testing.immediate_streams import (
    MemoryMessage,
    MemoryStream,
    kept_lines,
    matches_pattern,
    transformed_subject,
)
from jsq.transport.replies import HEADERS_END, HEADERS_START, NoResponders, Reply, read_headers

WAITING_KINDS = {"due": "q", "group-due": "group"}
"""The second token of the subject of a due job, and that of the subject where the job waits."""

Place = tuple[str, int]
"""A message: the name of its stream, and its sequence."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to store: its subject, its body, and its headers, as bytes and by name."""

    subject: str
    payload: bytes
    lines: bytes
    headers: Mapping[str, str]


@dataclass(slots=True)
class Deliverable:
    """The messages that a worker takes: jobs by their priority, wake-ups of key groups, and due ticks."""

    jobs: dict[str, dict[Place, MemoryMessage]] = field(
        default_factory=lambda: {level: {} for level in PRIORITIES}
    )
    wakeups: dict[Place, MemoryMessage] = field(default_factory=dict)
    ticks: dict[Place, MemoryMessage] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Listener:
    """A subscription: its pattern, its callback, and the event loop on which that is called."""

    pattern: str
    callback: Callable[[Reply], None]
    loop: asyncio.AbstractEventLoop


class MemoryStorage:
    """The streams of one block, and the subscriptions to its subjects.

    `deliverable` are the messages that no worker has taken yet. `returned` are those that the worker has
    handed back because they may not start yet. `on_store` is called with each message that a client or a
    worker stores, before anything else happens with it.
    """

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.streams: dict[str, MemoryStream] = {}
        self.consumers: dict[tuple[str, str], Config] = {}
        self.lock = threading.RLock()
        self.deliverable = Deliverable()
        self.on_store: Callable[[MemoryMessage, Mapping[str, str]], None] = lambda message, headers: None
        self._listeners: dict[int, Listener] = {}
        self._numbers = itertools.count(1)
        self.returned: list[Place] = []
        self.is_closed = False
        self._due: list[tuple[float, int, str]] = []
        self._continuing: list[tuple[float, int, str]] = []

    # -- streams -----------------------------------------------------------------------------------------

    def stream(self, name: str) -> MemoryStream | None:
        """A stream by its name, without the messages whose time has passed."""
        found = self.streams.get(name)
        if found is not None:
            found.expire(self.clock.now())
        return found

    def stream_of(self, subject: str) -> MemoryStream | None:
        """The stream that stores the messages on a subject."""
        with self.lock:
            for stream in self.streams.values():
                if stream.takes(subject):
                    return self.stream(stream.name)
        return None

    def store(self, messages: Sequence[Outgoing]) -> int:
        """Store messages of one stream, all or none; returns the sequence of the last.

        Raises `NoResponders`, `WrongSequence`, `QueueFull`.
        """
        with self.lock:
            stream = self.stream_of(messages[-1].subject)
            if stream is None:
                raise NoResponders(f"no stream of immediate mode has the subject {messages[-1].subject}")
            for one in messages:
                stream.check(one.subject, one.headers)
            stored = [self._add(stream, one) for one in messages]
            for message, one in zip(stored, messages, strict=True):
                self.on_store(message, one.headers)
                if message.continues and message.due is not None:
                    heapq.heappush(self._continuing, (message.due, message.sequence, message.stream))
            for message in stored:
                self._pass_on(stream, message)
            return stored[-1].sequence

    def settle(self, place: Place) -> None:
        """Remove a message that a worker has acknowledged."""
        with self.lock:
            if place[0] in self.streams:
                self.streams[place[0]].remove(place[1])

    def offer_returned(self) -> None:
        """Offer the messages again that the worker has handed back."""
        with self.lock:
            returned, self.returned = self.returned, []
            for stream, sequence in returned:
                found = self.streams[stream].messages.get(sequence)
                if found is not None:
                    self.offer(found)

    def offer(self, message: MemoryMessage) -> None:
        """Offer a message of a queue to the worker."""
        self.deliverable.jobs[message.subject.split(".")[3]][message.stream, message.sequence] = message

    # -- schedules ---------------------------------------------------------------------------------------

    def publish_due(self) -> None:
        """Publish the messages whose schedules are due, in the order of their times."""
        with self.lock:
            while (found := self._first(self._due)) is not None and found.due is not None:
                if found.due > self.clock.now():
                    return
                stream, headers = self.streams[found.stream], found.reply.headers
                stream.remove(found.sequence)
                published = Outgoing(headers[TARGET], found.payload, kept_lines(found.lines), {})
                self._pass_on(stream, self._add(stream, published))

    def next_due(self) -> float | None:
        """When the next schedule is due; None if there is none."""
        with self.lock:
            found = self._first(self._due)
            return None if found is None else found.due

    def next_continuation(self) -> float | None:
        """When the next attempt of a job is due, among the jobs that have run or wait for a limit."""
        with self.lock:
            found = self._first(self._continuing)
            return None if found is None else found.due

    def hold_continuations(self) -> None:
        """Let the jobs that have run wait as delayed ones do."""
        self._continuing.clear()

    @property
    def held(self) -> int:
        """How many schedules there are at most."""
        return len(self._due)

    def _first(self, times: list[tuple[float, int, str]]) -> MemoryMessage | None:
        """The schedule with the earliest time, of those that were neither published nor replaced."""
        while times:
            _, sequence, stream = times[0]
            found = self.streams[stream].messages.get(sequence)
            if found is not None:
                return found
            heapq.heappop(times)
        return None

    # -- subscriptions -----------------------------------------------------------------------------------

    def listen(self, pattern: str, callback: Callable[[Reply], None]) -> int:
        """Subscribe the running event loop to a subject; returns the number of the subscription."""
        with self.lock:
            number = next(self._numbers)
            self._listeners[number] = Listener(pattern, callback, asyncio.get_running_loop())
        return number

    def unlisten(self, number: int) -> None:
        with self.lock:
            self._listeners.pop(number, None)

    def emit(self, message: Reply) -> bool:
        """Pass a message to the subscribers of its subject; False if there is none."""
        with self.lock:
            listeners = list(self._listeners.values())
        found = [one for one in listeners if matches_pattern(one.pattern, message.subject)]
        here = asyncio._get_running_loop()
        for one in found:
            if one.loop is here:
                one.callback(message)
            elif not one.loop.is_closed():
                one.loop.call_soon_threadsafe(one.callback, message)
        return bool(found)

    # -- inside ------------------------------------------------------------------------------------------

    def _add(self, stream: MemoryStream, one: Outgoing) -> MemoryMessage:
        """Store a message in a stream."""
        message = MemoryMessage(
            stream.name, stream.last_sequence + 1, one.subject, one.payload, one.lines, self.clock.now()
        )
        stream.add(message, one.headers)
        schedule = one.headers.get(SCHEDULE)
        if schedule is not None:
            for older in stream.after(one.subject)[:-1]:  # a schedule replaces that on its subject
                stream.remove(older.sequence)
            message.due = round(parse_time(schedule.removeprefix("@at ")).timestamp(), 6)
            heapq.heappush(self._due, (message.due, message.sequence, stream.name))
        return message

    def _pass_on(self, stream: MemoryStream, message: MemoryMessage) -> None:
        """Publish a stored message again, copy it to the streams that source it, and offer it to a worker."""
        republish = stream.config.get("republish")
        if republish is not None and self._listeners:
            prefix, target = republish["src"].removesuffix(">"), republish["dest"].removesuffix(">")
            if message.subject.startswith(prefix):
                stored = message.reply
                subject = target + message.subject[len(prefix) :]
                self.emit(Reply(subject, "", stored.payload, stored.raw))
        self._copy_to_others(stream, message)
        if not self._move_due_job(stream, message):
            self._make_deliverable(message)

    def _move_due_job(self, stream: MemoryStream, message: MemoryMessage) -> bool:
        """Move a due job to its queue or key group, as a worker does; False for another message."""
        prefix, kind, rest = message.subject.split(".", 2)
        target = self.stream_of(subject := f"{prefix}.{WAITING_KINDS.get(kind, kind)}.{rest}")
        if kind not in WAITING_KINDS or target is None:
            return False
        stream.remove(message.sequence)
        moved = Outgoing(subject, message.payload, kept_lines(message.lines), {})
        self._pass_on(target, self._add(target, moved))
        return True

    def _copy_to_others(self, stream: MemoryStream, message: MemoryMessage) -> None:
        """Copy a message to the streams that source it."""
        for other in list(self.streams.values()):
            for source in other.config.get("sources") or ():
                if source["name"] != stream.name:
                    continue
                for transform in source.get("subject_transforms") or ():
                    subject = transformed_subject(transform["src"], transform["dest"], message.subject)
                    if subject is not None:
                        copy = Outgoing(subject, message.payload, kept_lines(message.lines), {})
                        self._pass_on(other, self._add(other, copy))

    def _make_deliverable(self, message: MemoryMessage) -> None:
        place, kind = (message.stream, message.sequence), message.subject.split(".", 2)[1]
        if kind == "q":
            self.offer(message)
        elif kind == "group-wakeup":
            self.deliverable.wakeups[place] = message
        elif kind == "due-tick":
            self.deliverable.ticks[place] = message


def read_block(block: bytes) -> tuple[bytes, dict[str, str]]:
    """The lines of encoded headers, and the headers by name."""
    if not block:
        return b"", {}
    return block[len(HEADERS_START) : -len(HEADERS_END)], read_headers(block)
