"""Writes of records: one by one, or in groups if that is faster.

A server with `sync_interval: always` waits for the disk at each write, and only once for a group. With
another setting, a group only adds a delay. A client cannot read this setting. So both ways are tried under
load, and the way whose writes are acknowledged faster is used.
"""

import asyncio
import time
from collections import deque

from jsq.errors import BrokerError, UsageError
from jsq.settings import WriteGrouping
from jsq.transport.batch_publish import MAX_COMMIT_BYTES, MAX_COMMIT_MESSAGES, OutgoingMessage, commit
from jsq.transport.replies import NoReply, block
from jsq.transport.wire import Wire

BUSY = 8
"""Number of writes in flight from which grouping matters."""

LULL_SECONDS = 0.05
"""Seconds for which a load may pause and still be grouped."""

SAMPLE_WRITES = 300
"""Acknowledgements in one sample."""

MIN_SPEEDUP = 1.3
"""The factor by which groups must be faster."""

RESAMPLE_SECONDS = 60.0
"""Seconds after which the other way is measured again."""


class GroupingPolicy:
    """Measures whether writes in groups are acknowledged faster; `grouped` is true if they are.

    While `quiet`, fewer writes than `BUSY` at a time go one by one, and need not be noted. Once both ways
    were measured, the policy is `settled` until it is reopened. While `direct`, each write goes by itself and
    need not be noted.
    """

    def __init__(self, way: WriteGrouping = "auto") -> None:
        self.grouped = way == "always"
        self.quiet = way != "always"
        self.settled = False
        self.direct = way == "never"
        self._open = way == "auto"
        self._rates = {False: 0.0, True: 0.0}
        self._judged = {False: -RESAMPLE_SECONDS, True: -RESAMPLE_SECONDS}
        self._since = self._busy_until = 0.0
        self._restart_sample(0)

    def reopen(self) -> None:
        """Measure again under the next load."""
        self.settled = self.direct = False

    def wants_group(self, under_way: int) -> bool:
        """Whether a write should join a group: enough other writes are in flight, or just were."""
        return self.grouped and (under_way >= BUSY or not self._open or time.monotonic() < self._busy_until)

    def note(self, under_way: int, now: float) -> None:
        """Count one acknowledgement; `under_way` other writes were in flight at that time."""
        if not self._open:
            return
        if under_way >= BUSY:
            self._busy_until = now + LULL_SECONDS
            self.quiet = False
        elif now > self._busy_until:
            self._restart_sample(0)  # the writers limit the rate, not the server
            self.quiet = True
            return
        if self._passed > 0:
            self._passed -= 1
            self._since = now
            return
        self._count += 1
        if self._count == SAMPLE_WRITES:
            self._judge(SAMPLE_WRITES / max(1e-9, now - self._since), now)
            self._restart_sample(under_way)

    def _restart_sample(self, passed: int) -> None:
        """Start a new sample, without the writes in flight, which may have been written the other way."""
        self._passed, self._count = passed + 1, 0

    def _judge(self, rate: float, now: float) -> None:
        self._rates[self.grouped], self._judged[self.grouped] = rate, now
        if now - self._judged[not self.grouped] >= RESAMPLE_SECONDS:
            self.grouped = not self.grouped
        else:
            self.grouped = self._rates[True] > MIN_SPEEDUP * self._rates[False]
            self.settled, self.direct = True, not self.grouped


class GroupCommit:
    """Stores the messages of one stream, each with its expected sequence, and returns their sequences.

    A caller may publish a message itself while the `pace` is quiet and fewer than `BUSY` writes are
    `under_way`, if it counts the message there.
    """

    def __init__(self, wire: Wire, way: WriteGrouping = "auto") -> None:
        self.pace = GroupingPolicy(way)
        self.under_way = 0
        self._wire = wire
        self._waiting: deque[tuple[OutgoingMessage, asyncio.Future[int]]] = deque()
        self._committing: asyncio.Task[None] | None = None

    async def store(self, message: OutgoingMessage) -> int:
        """Store a message; returns its sequence. Raises the errors of `Wire.publish`."""
        grouped = self.pace.wants_group(self.under_way)
        self.under_way += 1
        try:
            sequence = await self._join(message) if grouped else 0
            # A message that a group could not store is stored alone, or raises its own error.
            return sequence or await self._wire.publish(
                message.subject, message.payload, block(message.lines)
            )
        finally:
            self.under_way -= 1
            self._note()

    def _note(self) -> None:
        was_settled = self.pace.settled
        self.pace.note(self.under_way, time.monotonic())
        if self.pace.settled and not was_settled:
            asyncio.get_running_loop().call_later(RESAMPLE_SECONDS, self.pace.reopen)

    async def _join(self, message: OutgoingMessage) -> int:
        """Store a message with the next group; returns 0 if the group was refused."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((message, future))
        if self._committing is None:
            self._committing = asyncio.get_running_loop().create_task(self._commit_groups())
        return await future

    async def _commit_groups(self) -> None:
        """Commit group after group; the next group collects messages meanwhile."""
        try:
            while self._waiting:
                await self._commit(self._next_group())
        finally:
            self._committing = None

    async def _commit(self, group: list[tuple[OutgoingMessage, asyncio.Future[int]]]) -> None:
        sequences: list[int] = [0] * len(group)
        failed: NoReply | None = None
        try:
            last = await commit(self._wire, [message for message, _ in group])
            sequences = list(range(last - len(group) + 1, last + 1))
        except NoReply as error:
            failed = error
        except (BrokerError, UsageError):
            pass  # one message was refused, so all were; each is then published alone
        finally:
            for (_, future), sequence in zip(group, sequences, strict=True):
                if not future.done():
                    future.set_exception(copy_no_reply(failed)) if failed else future.set_result(sequence)

    def _next_group(self) -> list[tuple[OutgoingMessage, asyncio.Future[int]]]:
        """The next group to commit. No subject is in it twice.

        The server judges all messages of a commit by the state before it: of two messages that expect the
        same sequence, it would store both.
        """
        group: list[tuple[OutgoingMessage, asyncio.Future[int]]] = []
        subjects: set[str] = set()
        size = 0
        while self._waiting and len(group) < MAX_COMMIT_MESSAGES:
            message = self._waiting[0][0]
            size += message.size
            if message.subject in subjects or (group and size > MAX_COMMIT_BYTES):
                break
            subjects.add(message.subject)
            group.append(self._waiting.popleft())
        return group


def copy_no_reply(error: NoReply) -> NoReply:
    """A copy of the error for each message of a group: each raised error has one owner."""
    return NoReply(str(error), sent=error.sent)
