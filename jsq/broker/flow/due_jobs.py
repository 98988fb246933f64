"""Due jobs that the server does not move to their queue after its restart.

A job that is due is in the SCHEDULED stream until READY (or GROUPS) sources it, usually a millisecond
later. After a restart, the server resumes the source of a work queue ten seconds late, and after a restart of
a whole cluster half a minute late. An update that writes the sources in another notation resumes them at
once. A worker may not be allowed to update a stream, because that would let it read the other queues of its
account. Such a worker forwards due jobs itself. It deletes the message of a job whose record shows that the
job has started. A job that is both forwarded and sourced has two messages, and its record lets one of them
run.

The wake-ups of key groups are sourced too, into a work queue. If that is empty after the loss of its leader,
or after a restart, the server sources only messages that are newer than its last one. So it skips the jobs
that were added after the source had stopped, and before the last change of a group's state. Workers admit
these jobs themselves, when the source works again.
"""

import asyncio

from jsq.broker.flow.key_groups import key_token_of
from jsq.broker.jobs.messages import id_of
from jsq.broker.jobs.records import RecordStore, expectation_headers
from jsq.broker.topology.configs import rewritten_sources
from jsq.broker.topology.leased_key import LeasedKey
from jsq.broker.topology.namespace import Namespace
from jsq.broker.topology.sources import silence_of
from jsq.codec.revisions import parse_time
from jsq.codec.subject_token import ANY, STEM
from jsq.errors import BrokerFull, QueueFull
from jsq.model.revision import FINAL_STATES, StoredRevision
from jsq.transport.jetstream import JsonObject
from jsq.transport.replies import NoResponders, Reply, WrongSequence, own_headers, sequence_of
from jsq.transport.retrying import publish_with_retry

FORWARD_LEASE = 3
"""Seconds after which another worker may forward the due jobs of a queue, unless the lease is renewed."""

OVERDUE_SECONDS = 0.5
"""Seconds after which a due job counts as stuck. Before that, the server may have moved it already."""

UNCHECKED_ARRIVALS = 1_000
"""Jobs added to the key groups before the first check whose wake-ups may be missing."""

PAGE_MESSAGES = 200
PAGE_BYTES = 4 * 2**20


class DueJobs:
    """The due jobs of one queue, as the worker `by` sees them."""

    def __init__(self, namespace: Namespace, records: RecordStore, queue: str, by: str) -> None:
        self._wire = namespace.wire
        self._reads = namespace.reads
        self._jetstream = namespace.jetstream
        self._streams = namespace.streams
        self._subjects = namespace.subjects
        self._records = records
        self._queue = queue
        self._lease = LeasedKey(namespace, f"forward.{queue}", by, FORWARD_LEASE)
        self._last_arrival = 0
        self._leader = ""
        self._checked_leader: str | None = None
        # The last arrivals at the last two confirmed checks: the source may be a moment behind at a check.
        self._checked = [0, 0]

    async def silences(self) -> dict[str, float]:
        """Seconds since the server received something from the source of each stream of the queue.

        A source that works sends a heartbeat each second. Infinity if it has sent nothing yet.
        """
        names, queue = self._subjects.streams, self._queue
        streams = [names.ready(queue)]
        if await self._streams.has_groups(queue):
            streams += [names.groups(queue), names.group_state(queue)]
        found = {stream: await self._jetstream.stream_info(stream) for stream in streams}
        self._note_groups(found.get(names.groups(queue)), found.get(names.group_state(queue)))
        return {
            stream: silence_of(info)
            for stream, info in found.items()
            if info and info["config"].get("sources")
        }

    def _note_groups(self, groups: JsonObject | None, state: JsonObject | None) -> None:
        """Note the last sequence of the queue's key groups, and since when their state has its leader."""
        if groups is None or state is None:
            return
        self._last_arrival = groups["state"]["last_seq"]
        self._leader = (state.get("cluster") or {}).get("leader_since", "")
        if self._checked_leader is None:
            self._checked_leader = self._leader
            self._checked = [max(0, self._last_arrival - UNCHECKED_ARRIVALS)] * 2

    @property
    def interrupted(self) -> bool:
        """Whether the state of the key groups has another leader than at the last confirmed check."""
        return self._checked_leader is not None and self._leader != self._checked_leader

    async def unconfirmed_keys(self) -> set[str]:
        """The tokens of the keys to which jobs were added since the last confirmed checks."""
        if not await self._streams.has_groups(self._queue):
            return set()
        stream, subjects = self._subjects.streams.groups(self._queue), self._subjects.groups
        tokens: set[str] = set()
        after = self._checked[0]
        while page := await self._reads.fetch(
            stream, subjects.job(self._queue, "*", ANY), after=after, limit=PAGE_MESSAGES
        ):
            tokens |= {key_token_of(message) for message in page}
            after = sequence_of(page[-1])
        return tokens

    def confirm(self) -> None:
        """Note that the sources have worked up to now, and that no wake-up is missing."""
        if self._checked_leader is not None:
            self._checked_leader = self._leader
            self._checked = [self._checked[1], self._last_arrival]

    async def resume(self, stream: str) -> None:
        """Have the server resume the source of a stream now. Raises `NotAllowed`, `CannotChange`."""
        found = await self._jetstream.stream_info(stream)
        if found is not None:
            await self._jetstream.update_stream(rewritten_sources(found["config"]))

    async def acquire(self) -> bool:
        """Take or renew the right to forward; False if another worker has it. Raises `NotAllowed`."""
        return await self._lease.acquire()

    async def forward(self) -> int:
        """Move the due jobs to the streams that should have sourced them; returns how many were moved.

        A job that has another message, or whose queue is full, stays where it is.
        """
        subjects, queue = self._subjects, self._queue
        found = await self._forward(subjects.due(queue, "*", ANY), subjects.ready(queue, "", STEM))
        if await self._streams.has_groups(queue):
            due = subjects.groups.due(queue, "*", ANY)
            found += await self._forward(due, subjects.groups.job(queue, "", STEM))
        return found

    async def _forward(self, due: str, target: str) -> int:
        """Move the messages on the subjects `due`; the subjects of the `target` end like theirs."""
        forwarded, after = 0, 0
        stream, prefix = self._subjects.streams.scheduled(self._queue), target.removesuffix(".")
        while True:
            try:
                page, more = await self._reads.page(
                    stream, due, after=after, limit=PAGE_MESSAGES, max_bytes=PAGE_BYTES
                )
            except NoResponders:
                return forwarded
            overdue = [message for message in page if self._is_overdue(message)]
            started = await self._started({id_of(message) for message in overdue})
            await asyncio.gather(*(self._delete(message) for message in overdue if id_of(message) in started))
            waiting = (self._move(message, prefix) for message in overdue if id_of(message) not in started)
            forwarded += sum(await asyncio.gather(*waiting))
            if not more or not page:
                return forwarded
            after = int(page[-1].headers["Nats-Sequence"])

    def _is_overdue(self, message: Reply) -> bool:
        """Whether a job has been due for longer than the server takes to delete what it has moved."""
        stored = parse_time(message.headers["Nats-Time-Stamp"]).timestamp()
        return self._wire.clock.now() - stored >= OVERDUE_SECONDS

    async def _started(self, ids: set[str]) -> set[str]:
        """The ids of the jobs that run or have ended, by their records on the leader.

        An overdue message of such a job was moved already, by the server or by a worker that died before it
        deleted the message. While a job waits to be due, its record is neither running nor final.
        """
        if not ids:
            return set()
        found = await self._records.last_each(self._queue, [*ids])
        started = (id for id, one in found.items() if has_started(one))
        records = (self._records.last(id, self._queue, consistent=True) for id in started)
        return {one.job for one in await asyncio.gather(*records) if one is not None and has_started(one)}

    async def _move(self, message: Reply, prefix: str) -> bool:
        """Store a message in its target stream, unless its job has one there; then delete this one."""
        subject = message.headers["Nats-Subject"]
        *_, group, token = subject.split(".")
        headers = own_headers(message.headers) | expectation_headers(0, f"{prefix}*.{token}")
        try:
            await publish_with_retry(self._wire, f"{prefix}{group}.{token}", message.payload, headers)
        except (WrongSequence, QueueFull, BrokerFull):
            return False
        await self._delete(message)
        return True

    async def _delete(self, message: Reply) -> None:
        """Delete a message from the SCHEDULED stream, and no later message of its job."""
        stream, subject = self._subjects.streams.scheduled(self._queue), message.headers["Nats-Subject"]
        await self._jetstream.purge(stream, subject, below=sequence_of(message) + 1)


def has_started(found: StoredRevision) -> bool:
    """Whether a job runs or has ended."""
    return found.state == "running" or found.state in FINAL_STATES
