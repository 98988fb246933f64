"""Key groups on the server: jobs with a key wait in them, and workers admit the jobs to their queue.

The workers have no leader. A worker that updates a key group

    1. reads the state of the group, and decides with `jsq.model.key_group` which jobs are next,
    2. writes the new state by compare-and-set,
    3. stores the admitted jobs on the queue,
    4. deletes their messages in the group.

Every worker may repeat each of these steps. An update first completes the last one: it moves the jobs that
the state names as admitted and that are still in the group. If such a job has run meanwhile, its record
refuses a second start.

No wake-up is lost. Adding a job to a key group publishes a wake-up. Its handler reads the group from the
stream leaders, and so finds out whether a slot is free. After the release of a slot is stored, the worker
reads the group again, also from the leaders.
"""

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from jsq.broker.delivery.delivery import REPLACES
from jsq.broker.jobs.messages import id_of
from jsq.broker.jobs.records import EXPECTED, TTL, RecordStore, expectation_headers
from jsq.broker.jobs.store import JobStore
from jsq.broker.topology import streams
from jsq.broker.topology.configs import count_jobs
from jsq.broker.topology.namespace import Namespace
from jsq.broker.topology.subjects import GroupSubjects, token_of
from jsq.codec import envelope, revisions
from jsq.codec import key_groups as group_codec
from jsq.codec.subject_token import ANY
from jsq.errors import BadEnvelope, BadOption, BrokerFull, QueueFull
from jsq.model.key_group import GroupLimits, GroupState, WaitingJob, key_token
from jsq.settings import QueueSettings
from jsq.transport.replies import (
    NoReply,
    NoResponders,
    Reply,
    WrongSequence,
    last_token,
    own_headers,
    sequence_of,
)
from jsq.transport.retrying import While, publish_with_retry

EMPTY_STATE_SECONDS = 60
"""How long the state of a key group without slots is stored."""

ALL_ATTEMPTS = 2**63
"""A sequence that no record reaches."""

MAX_ADMITTED = 100
"""Jobs of one key that are admitted in one update."""

MAX_SCANNED = 200
"""Waiting jobs of a queue that are read to find out whether one of them can be admitted."""

CONCURRENT_UPDATES = 100
"""Keys that are updated concurrently."""

NEVER_REFRESHED = (-math.inf, QueueSettings())
"""The time of the last read and the settings of a queue that was never read."""


@dataclass
class GroupUpdates:
    """The updates of one key by this process, one at a time. Each serves all requests made before it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    releases: dict[str, int] = field(default_factory=dict)
    requested: int = 0
    done: int = 0
    waiting: int = 0

    def add(self, releases: Mapping[str, int]) -> None:
        for id, up_to in releases.items():
            self.releases[id] = max(up_to, self.releases.get(id, 0))


@dataclass(frozen=True, slots=True)
class Admissions:
    """The waiting jobs to admit, and the state of the key group after that.

    `has_room` is False if the next waiting job has no slot. `unmoved` jobs have a slot already, but their
    messages are still in the group. `outdated` messages belong to attempts that are over.
    """

    state: GroupState
    admitted: tuple[Reply, ...]
    unmoved: tuple[Reply, ...]
    outdated: tuple[Reply, ...]
    has_room: bool


class KeyGroups:
    """Admits the jobs of key groups to their queues, and releases their slots."""

    def __init__(self, namespace: Namespace, store: JobStore) -> None:
        self._wire = namespace.wire
        self._jetstream = namespace.jetstream
        self._reads = namespace.reads
        self._subjects = namespace.subjects
        self._streams = namespace.streams
        self._job_writer = store.writer
        self._records = store.records
        self._known_names: dict[str, GroupSubjects] = {}
        self._updates: dict[tuple[str, str], GroupUpdates] = {}

    async def admit(self, queue: str, token: str, *, while_: While | None = None) -> None:
        """Admit the jobs of a key for which there are slots. If a write raises an error, call it again."""
        await self._update(queue, token, {}, while_)

    async def admit_all(self, queue: str) -> None:
        """Admit the jobs of all keys for which there are slots, after a change of the queue's limits."""
        if not await self._streams.has_groups(queue):
            return
        stream, every = self._subjects.streams.group_state(queue), self._subjects.groups.state(queue, "*")
        after, more = 0, True
        while more:
            page, more = await self._reads.page(
                stream, every, after=after, limit=CONCURRENT_UPDATES, max_bytes=2**20
            )
            await asyncio.gather(*(self.admit(queue, last_token(reply)) for reply in page))
            more = more and bool(page)
            after = sequence_of(page[-1]) if page else 0

    async def release_slot(
        self, queue: str, token: str, id: str, *, up_to: int = ALL_ATTEMPTS, while_: While | None = None
    ) -> None:
        """Release the slot of a job in its key group, and admit the next jobs; see `admit`.

        The attempts on revisions of the record `up_to` this sequence are over. If the job has a slot for a
        later attempt, it keeps that.
        """
        await self._update(queue, token, {id: up_to}, while_)

    async def remove(self, queue: str, key: str, id: str) -> None:
        """Delete a job from its key group, and release its slot if it has one."""
        subjects, token = self._subjects, key_token(key)
        await self._jetstream.purge(subjects.streams.scheduled(queue), subjects.groups.due(queue, token, id))
        await self._jetstream.purge(subjects.streams.groups(queue), subjects.groups.job(queue, token, id))
        await self.release_slot(queue, token, id)

    async def is_stalled(self, queue: str, token: str) -> bool:
        """Whether a key group has a slot for a waiting job, so that a worker should have admitted it."""
        state, _ = await self.state(queue, token)
        found = await self._admissions(queue, token, state, {}, consistent=True)
        return bool(found.admitted or found.unmoved)

    async def any_stalled(self, queue: str) -> bool:
        """Whether one of the first waiting jobs of a queue has a free slot, so that it will be admitted."""
        if not await self._streams.has_groups(queue):
            return False
        stream, every = self._subjects.streams.groups(queue), self._subjects.groups.job(queue, "*", ANY)
        first, _ = await self._reads.page(stream, every, limit=MAX_SCANNED, max_bytes=2**20)
        for token in {key_token_of(message) for message in first}:
            if await self.is_stalled(queue, token):
                return True
        return False

    async def count_waiting(self, queue: str) -> int:
        """How many jobs wait in the key groups of a queue."""
        if not await self._streams.has_groups(queue):
            return 0
        subjects = self._subjects
        found = await self._jetstream.stream_info(
            subjects.streams.groups(queue), subjects.groups.sentinel(queue)
        )
        return count_jobs(found["state"]) if found is not None else 0

    async def state(self, queue: str, token: str) -> tuple[GroupState, int]:
        """The state of a key group, from the stream leader, and its sequence."""
        names = self._names(queue)
        reply = await self._reads.last(names.state_stream, names.state_prefix + token, consistent=True)
        return read_group_state(reply)

    # -- inside ------------------------------------------------------------------------------------------

    async def _update(
        self, queue: str, token: str, releases: Mapping[str, int], while_: While | None
    ) -> None:
        """Update a key group, in one update for all callers in this process that request it meanwhile."""
        updates = self._updates.setdefault((queue, token), GroupUpdates())
        updates.add(releases)
        updates.requested = mine = updates.requested + 1
        updates.waiting += 1
        try:
            async with updates.lock:
                if updates.done < mine:
                    await self._update_until_done(queue, token, updates, while_)
        finally:
            updates.waiting -= 1
            if not updates.waiting:
                del self._updates[queue, token]

    async def _update_until_done(
        self, queue: str, token: str, updates: GroupUpdates, while_: While | None
    ) -> None:
        requested, releases = updates.requested, updates.releases
        updates.releases = {}  # the same job may release again meanwhile, because it was admitted again
        remaining: Mapping[str, int] | None = releases
        try:
            while remaining is not None:
                remaining = await self._update_once(queue, token, remaining, while_)
        except BaseException:
            updates.add(releases)
            raise
        updates.done = requested

    async def _update_once(
        self, queue: str, token: str, releases: Mapping[str, int], while_: While | None
    ) -> Mapping[str, int] | None:
        """Make one step of an update. Returns the releases for the next step, or None if there is none."""
        state, sequence = await self.state(queue, token)
        await self._finish_admissions(queue, token, state.without(releases), while_)
        released = state.without(releases).without_admitting()
        # After a release, a replica is read. If it has no job to admit, the next step reads the leader.
        unchanged = released.slots == state.slots
        found = await self._admissions(queue, token, released, releases, consistent=unchanged)
        for message in found.outdated:
            await self._jetstream.delete_message(self._names(queue).groups_stream, sequence_of(message))
        for message in found.unmoved:
            await self._put_on_queue(queue, message, released, while_)
        if not found.admitted and unchanged:
            return None
        try:
            await self._write(queue, token, found.state, sequence, while_)
        except WrongSequence:
            return releases
        moves = [
            self._put_on_queue(queue, message, found.state, while_, just_admitted=True)
            for message in found.admitted
        ]
        await asyncio.gather(*moves)
        return {} if found.has_room else None

    async def _admissions(
        self, queue: str, token: str, state: GroupState, releases: Mapping[str, int], *, consistent: bool
    ) -> Admissions:
        """The jobs to admit now, after some releases. With `consistent`, only the leader is read."""
        limits, after = await self._limits(queue), state.admitted_up_to
        admitted: list[Reply] = []
        unmoved: list[Reply] = []
        outdated: list[Reply] = []
        has_room = True
        message = await self._first(queue, token, after, consistent=consistent)
        while message is not None:
            job = read_waiting_job(message)
            is_over = job.previous_sequence <= releases.get(job.id, -1)
            if is_over and not await is_new(self._records, queue, job):
                outdated.append(message)
            elif state.already_admitted(job):
                unmoved.append(message)
            elif has_room := state.has_room_for(job, limits):
                admitted.append(message)
                state = state.with_slot_for(job, limits)
            if not has_room or len(admitted) == MAX_ADMITTED:
                break
            message = await self._after(queue, token, job.sequence, consistent=consistent)
        return Admissions(state, tuple(admitted), tuple(unmoved), tuple(outdated), has_room)

    async def _first(self, queue: str, token: str, after: int, *, consistent: bool) -> Reply | None:
        """The first waiting job after a sequence. If there is none, with `consistent`, the first of the
        group.

        There may be jobs with lower sequences: the stream may have been created again, and admitted jobs may
        still be in the group. The search starts at the sequence because a group may be long. A search from
        the beginning, or for the last message, takes the server a hundred times as long.
        """
        found = await self._after(queue, token, after, consistent=consistent)
        return (
            await self._after(queue, token, 0, consistent=True)
            if found is None and consistent and after
            else found
        )

    async def _after(self, queue: str, token: str, after: int, *, consistent: bool) -> Reply | None:
        names = self._names(queue)
        subject = f"{names.group_prefix}{token}.*"
        return await self._reads.next(names.groups_stream, subject, after=after, consistent=consistent)

    async def _finish_admissions(
        self, queue: str, token: str, state: GroupState, while_: While | None
    ) -> None:
        """Store the jobs on the queue that were admitted last, if the worker that admitted them did not."""
        names = self._names(queue)

        async def finish(id: str) -> None:
            subject = f"{names.group_prefix}{token}.{token_of(id)}"
            message = await self._reads.last(names.groups_stream, subject, consistent=True)
            if message is not None and state.already_admitted(read_waiting_job(message)):
                await self._put_on_queue(queue, message, state, while_)

        await asyncio.gather(*(finish(id) for id in state.admitting))

    async def _put_on_queue(
        self,
        queue: str,
        message: Reply,
        state: GroupState,
        while_: While | None,
        *,
        just_admitted: bool = False,
    ) -> None:
        """Store an admitted job on its queue, then delete its message in the key group.

        With `just_admitted`, an existing message on the queue does not count: the job has released its slot.
        """
        id = id_of(message)
        holder = state.slot_of(id)
        kind = holder.kind if holder is not None else "start"
        level = envelope.header_priority(message.headers, f"{self._names(queue).ready_prefix}normal.")
        since = revisions.parse_time(message.headers["Nats-Time-Stamp"]).timestamp()
        headers = own_headers(message.headers) | {
            envelope.GROUP_SLOT: f"{kind} {key_token_of(message)} {since:.3f}"
        }
        try:
            await self._store(queue, level, id, message.payload, headers, while_, just_admitted=just_admitted)
        except QueueFull:
            # The job becomes a due job, which waits until the queue has room.
            target = self._subjects.due(queue, level, id)
            await self._job_writer.requeue_message(target, message.payload, headers)
        await self._jetstream.delete_message(self._names(queue).groups_stream, sequence_of(message))

    async def _store(
        self,
        queue: str,
        level: str,
        id: str,
        payload: bytes,
        headers: dict[str, str],
        while_: While | None,
        *,
        just_admitted: bool,
    ) -> None:
        """Store a job with a slot on its queue, unless it is there already.

        A message of the job without a slot does not count: its worker has sent the job to the key group, and
        will settle that message. The message of an attempt that is over does not count either.
        """
        prefix = self._names(queue).ready_prefix
        subject, every = f"{prefix}{level}.{token_of(id)}", f"{prefix}*.{token_of(id)}"
        expect, replaces = 0, dict[str, str]()
        while True:
            try:
                await self._publish(
                    subject, payload, headers | replaces | expectation_headers(expect, every), while_
                )
                return
            except WrongSequence as refused:
                found = await self._reads.get(
                    self._subjects.streams.ready(queue), refused.last, consistent=True
                )
                existing = found.headers if found is not None else {}
                has_slot = envelope.GROUP_SLOT in existing
                previous = envelope.previous_sequence(headers)
                if has_slot and envelope.previous_sequence(existing) >= previous and not just_admitted:
                    return
                expect = refused.last if found is not None else 0
                replaces = {REPLACES: str(expect)} if expect and not has_slot else {}

    async def _write(
        self, queue: str, token: str, state: GroupState, sequence: int, while_: While | None
    ) -> None:
        """Write the state of a key group over the one at a sequence. A state without slots expires."""
        headers = {EXPECTED: str(sequence)} | ({} if state.slots else {TTL: str(EMPTY_STATE_SECONDS)})
        subject = self._names(queue).state_prefix + token
        await self._publish(subject, group_codec.encode(state), headers, while_)

    async def _publish(
        self, subject: str, payload: bytes, headers: Mapping[str, str], while_: While | None
    ) -> None:
        try:
            await self._wire.publish(subject, payload, headers)
        except (NoReply, NoResponders, BrokerFull) as failed:
            if while_ is None and isinstance(failed, BrokerFull):
                raise
            await publish_with_retry(self._wire, subject, payload, headers, while_=while_, failed=failed)

    def _names(self, queue: str) -> GroupSubjects:
        found = self._known_names.get(queue)
        if found is None:
            self._known_names[queue] = found = self._subjects.of_groups(queue)
        return found

    async def _limits(self, queue: str) -> GroupLimits:
        at, settings = self._streams.refreshed.get(queue, NEVER_REFRESHED)
        if time.monotonic() - at >= streams.SETTINGS_SECONDS:
            settings = await self._streams.settings(queue)
        return GroupLimits(settings.per_key, settings.weights)


def read_group_state(reply: Reply | None) -> tuple[GroupState, int]:
    """The state in a message, and its sequence. A missing or invalid state counts as one without slots."""
    if reply is None:
        return GroupState(), 0
    try:
        return group_codec.decode(reply.payload), sequence_of(reply)
    except BadEnvelope:
        return GroupState(), sequence_of(reply)


def read_waiting_job(message: Reply) -> WaitingJob:
    """The waiting job of a message in a key group."""
    key, per_key = "", None
    try:
        if (parsed := envelope.parse_key(message.headers)) is not None:
            key, per_key, _ = parsed
    except (ValueError, BadOption):
        pass  # a message that is not a job is admitted too: its worker writes a dead letter for it
    return WaitingJob(
        id_of(message), key, per_key, sequence_of(message), envelope.previous_sequence(message.headers)
    )


def key_token_of(message: Reply) -> str:
    return message.headers["Nats-Subject"].split(".")[3]


async def is_new(records: RecordStore, queue: str, job: WaitingJob) -> bool:
    """Whether a job was removed and submitted again with its id while its last attempt ended."""
    return job.previous_sequence == 0 and await records.last(job.id, queue, consistent=True) is None
