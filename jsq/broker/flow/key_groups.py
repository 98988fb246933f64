"""Lines: keyed jobs wait in them, and workers let them onto their queue, a key at a time.

There is no leader. Whoever looks after a key reads its turn, decides with `jsq.model.key_group` who is next,
writes the new turn by compare-and-set, puts those who were let on onto the queue, and takes them out of the
line. Each of these may be done again, by anybody: what a turn names as moving and still stands in the line is
put on the queue first, and a job that has run meanwhile is settled by its log.

No wake-up is lost. Who comes into a line knocks, and who answers asks the leaders whether there is room; who
leaves a turn looks into the line once more after it was written that there is room, and asks the leaders too.
"""

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from jsq.broker.delivery.delivery import REPLACES
from jsq.broker.jobs.messages import id_of
from jsq.broker.jobs.records import EXPECTED, TTL, expecting
from jsq.broker.jobs.store import JobStore
from jsq.broker.topology import streams
from jsq.broker.topology.configs import count_jobs
from jsq.broker.topology.namespace import Namespace
from jsq.broker.topology.subjects import GroupSubjects, token_of
from jsq.codec import envelope, revisions
from jsq.codec import key_groups as turns
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
"""How long a turn stays that nobody has a place in."""

ALL_ATTEMPTS = 2**63
"""A sequence that no log comes to."""

MAX_ADMITTED = 100
"""Jobs of one key that are let on together."""

MAX_SCANNED = 200
"""Messages of a line that are looked at to see whether someone in it may go on."""

KEYS_AT_ONCE = 100
"""Keys that are looked after together."""


NEVER_REFRESHED = (-math.inf, QueueSettings())
"""The settings of a queue that were never read, and when that was."""


@dataclass
class GroupUpdates:
    """Visits to one key by this process: one at a time; what is asked for meanwhile, the next one does."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    releases: dict[str, int] = field(default_factory=dict)
    requested: int = 0
    done: int = 0
    waiting: int = 0

    def add(self, releases: Mapping[str, int]) -> None:
        for id, over in releases.items():
            self.releases[id] = max(over, self.releases.get(id, 0))


@dataclass(frozen=True, slots=True)
class Admissions:
    """Who of a line is to be let on, with the turn that they make.

    `has_room` is left where the line ended first. `stranded` have a place already and stand in the line;
    `outdated` are of attempts that are over.
    """

    state: GroupState
    admitted: tuple[Reply, ...]
    stranded: tuple[Reply, ...]
    outdated: tuple[Reply, ...]
    has_room: bool


class KeyGroups:
    """Lets jobs onto their queue in turn, and sees to it that who leaves makes room."""

    def __init__(self, namespace: Namespace, store: JobStore) -> None:
        self._wire = namespace.wire
        self._jetstream = namespace.jetstream
        self._reads = namespace.reads
        self._subjects = namespace.subjects
        self._streams = namespace.streams
        self._job_writer = store.writer
        self._known_names: dict[str, GroupSubjects] = {}
        self._visits: dict[tuple[str, str], GroupUpdates] = {}

    async def admit(self, queue: str, token: str, *, while_: While | None = None) -> None:
        """Let on those of a key for whom there is room. Raises what a write raises: then do it again."""
        await self._update(queue, token, {}, while_)

    async def admit_all(self, queue: str) -> None:
        """Let on those of every key for whom there is room by now: the queue's rule has changed."""
        if not await self._streams.has_groups(queue):
            return
        stream, every = self._subjects.streams.group_state(queue), self._subjects.groups.state(queue, "*")
        after, more = 0, True
        while more:
            page, more = await self._reads.page(
                stream, every, after=after, limit=KEYS_AT_ONCE, max_bytes=2**20
            )
            await asyncio.gather(*(self.admit(queue, last_token(reply)) for reply in page))
            more = more and bool(page)
            after = sequence_of(page[-1]) if page else 0

    async def release_slot(
        self, queue: str, token: str, id: str, *, over: int = ALL_ATTEMPTS, while_: While | None = None
    ) -> None:
        """Give up the place that a job may have in its key's turn, and let on who is next; see `admit`.

        Its attempts on top of the log's sequence `over`, or less, are over; a place that it was given for a
        later one, it keeps.
        """
        await self._update(queue, token, {id: over}, while_)

    async def remove(self, queue: str, key: str, id: str) -> None:
        """Take a job out of its line, and give up the place that it may have."""
        subjects, token = self._subjects, key_token(key)
        await self._jetstream.purge(subjects.streams.scheduled(queue), subjects.groups.due(queue, token, id))
        await self._jetstream.purge(subjects.streams.groups(queue), subjects.groups.job(queue, token, id))
        await self.release_slot(queue, token, id)

    async def is_stalled(self, queue: str, token: str) -> bool:
        """Whether there is room for one who waits in a line: someone ought to have looked after it."""
        turn, _ = await self.state(queue, token)
        found = await self._admissions(queue, token, turn, {}, consistent=True)
        return bool(found.admitted or found.stranded)

    async def any_stalled(self, queue: str) -> bool:
        """Whether one of the first who wait in the lines of a queue has room, and will be let on."""
        if not await self._streams.has_groups(queue):
            return False
        stream, every = self._subjects.streams.groups(queue), self._subjects.groups.job(queue, "*", ANY)
        first, _ = await self._reads.page(stream, every, limit=MAX_SCANNED, max_bytes=2**20)
        for token in {key_token_of(message) for message in first}:
            if await self.is_stalled(queue, token):
                return True
        return False

    async def count_waiting(self, queue: str) -> int:
        """How many jobs wait in the lines of a queue."""
        if not await self._streams.has_groups(queue):
            return 0
        subjects = self._subjects
        found = await self._jetstream.stream_info(
            subjects.streams.groups(queue), subjects.groups.sentinel(queue)
        )
        return count_jobs(found["state"]) if found is not None else 0

    async def state(self, queue: str, token: str) -> tuple[GroupState, int]:
        """Who of a key has a place, as the leader knows, and the sequence that this stands at."""
        names = self._names(queue)
        reply = await self._reads.last(names.state_stream, names.state_prefix + token, consistent=True)
        return read_group_state(reply)

    # -- inside ------------------------------------------------------------------------------------------

    async def _update(self, queue: str, token: str, leaving: Mapping[str, int], while_: While | None) -> None:
        """Look after a key, together with others here who ask for the same one meanwhile."""
        visit = self._visits.setdefault((queue, token), GroupUpdates())
        visit.add(leaving)
        visit.requested = mine = visit.requested + 1
        visit.waiting += 1
        try:
            async with visit.lock:
                if visit.done < mine:
                    await self._update_until_done(queue, token, visit, while_)
        finally:
            visit.waiting -= 1
            if not visit.waiting:
                del self._visits[queue, token]

    async def _update_until_done(
        self, queue: str, token: str, visit: GroupUpdates, while_: While | None
    ) -> None:
        asked, leaving = visit.requested, visit.releases
        visit.releases = {}  # the same job may ask again meanwhile, because it was admitted again
        rest: Mapping[str, int] | None = leaving
        try:
            while rest is not None:
                rest = await self._update_once(queue, token, rest, while_)
        except BaseException:
            visit.add(leaving)
            raise
        visit.done = asked

    async def _update_once(
        self, queue: str, token: str, leaving: Mapping[str, int], while_: While | None
    ) -> Mapping[str, int] | None:
        """Bring a turn one step on. Returns who has still to leave it, or None when nothing is left to do."""
        turn, sequence = await self.state(queue, token)
        await self._finish_admissions(queue, token, turn.without(leaving), while_)
        stays = turn.without(leaving).without_admitting()
        # Who has just left looks at a replica: if it tells of nobody, the next step asks the leader.
        found = await self._admissions(queue, token, stays, leaving, consistent=stays.slots == turn.slots)
        for message in found.outdated:
            await self._jetstream.delete_message(self._names(queue).groups_stream, sequence_of(message))
        for message in found.stranded:
            await self._put_on_queue(queue, message, stays, while_)
        if not found.admitted and stays.slots == turn.slots:
            return None
        try:
            await self._write(queue, token, found.state, sequence, while_)
        except WrongSequence:
            return leaving
        moves = [
            self._put_on_queue(queue, message, found.state, while_, just_admitted=True)
            for message in found.admitted
        ]
        await asyncio.gather(*moves)
        return {} if found.has_room else None

    async def _admissions(
        self, queue: str, token: str, turn: GroupState, leaving: Mapping[str, int], *, consistent: bool
    ) -> Admissions:
        """Who is to be let on now, when some have left. To be `consistent`, the leader alone is asked."""
        rule, after = await self._limits(queue), turn.admitted_up_to
        let_on: list[Reply] = []
        astray: list[Reply] = []
        over: list[Reply] = []
        room = True
        message = await self._first(queue, token, after, consistent=consistent)
        while message is not None:
            waiter = read_waiting_job(message)
            if waiter.previous_sequence <= leaving.get(waiter.id, -1):
                over.append(message)
            elif turn.already_admitted(waiter):
                astray.append(message)
            elif room := turn.has_room_for(waiter, rule):
                let_on.append(message)
                turn = turn.with_slot_for(waiter, rule)
            if not room or len(let_on) == MAX_ADMITTED:
                break
            message = await self._after(queue, token, waiter.sequence, consistent=consistent)
        return Admissions(turn, tuple(let_on), tuple(astray), tuple(over), room)

    async def _first(self, queue: str, token: str, after: int, *, consistent: bool) -> Reply | None:
        """Who is the first to wait behind a sequence; to be `consistent`, in all of the line.

        The line may have been made anew, and who was let on may still stand in it. (A line is long: to ask
        for its first from the beginning, or for its last, takes the server a hundred times as long.)
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
        self, queue: str, token: str, turn: GroupState, while_: While | None
    ) -> None:
        """Put those onto the queue who were let on last, if who let them on came no further."""

        names = self._names(queue)

        async def finish(id: str) -> None:
            subject = f"{names.group_prefix}{token}.{token_of(id)}"
            message = await self._reads.last(names.groups_stream, subject, consistent=True)
            if message is not None and turn.already_admitted(read_waiting_job(message)):
                await self._put_on_queue(queue, message, turn, while_)

        await asyncio.gather(*(finish(id) for id in turn.admitting))

    async def _put_on_queue(
        self,
        queue: str,
        message: Reply,
        turn: GroupState,
        while_: While | None,
        *,
        just_admitted: bool = False,
    ) -> None:
        """Put a job that was let on onto its queue, then take it out of the line.

        With `just_admitted`, an existing message does not count: it is of a job that has released its slot.
        """
        id = id_of(message)
        holder = turn.slot_of(id)
        place = holder.kind if holder is not None else "start"
        level = envelope.header_priority(message.headers, f"{self._names(queue).ready_prefix}normal.")
        since = revisions.parse_time(message.headers["Nats-Time-Stamp"]).timestamp()
        headers = own_headers(message.headers) | {
            envelope.GROUP_SLOT: f"{place} {key_token_of(message)} {since:.3f}"
        }
        try:
            await self._store(queue, level, id, message.payload, headers, while_, just_admitted=just_admitted)
        except QueueFull:
            # By way of what is due, which waits until there is room.
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
        """Store a job with a place on its queue, unless it stands there.

        One that stands there without a place was sent to the line, and goes when its delivery is settled, as
        one of an attempt that is over does: it does not count.
        """
        prefix = self._names(queue).ready_prefix
        subject, every = f"{prefix}{level}.{token_of(id)}", f"{prefix}*.{token_of(id)}"
        expect, instead = 0, dict[str, str]()
        while True:
            try:
                told = headers | instead | expecting(expect, every)
                await self._publish(subject, payload, told, while_)
            except WrongSequence as refused:
                stands = await self._reads.get(
                    self._subjects.streams.ready(queue), refused.last, consistent=True
                )
                there = stands.headers if stands is not None else {}
                same = envelope.GROUP_SLOT in there and envelope.previous_sequence(
                    there
                ) >= envelope.previous_sequence(headers)
                if same and not just_admitted:
                    return
                expect = refused.last if stands is not None else 0
                instead = {REPLACES: str(expect)} if expect and envelope.GROUP_SLOT not in there else {}
            else:
                return

    async def _write(
        self, queue: str, token: str, turn: GroupState, sequence: int, while_: While | None
    ) -> None:
        """Write a turn over the one at a sequence. One that nobody has a place in goes after a while."""
        headers = {EXPECTED: str(sequence)} | ({} if turn.slots else {TTL: str(EMPTY_STATE_SECONDS)})
        await self._publish(self._names(queue).state_prefix + token, turns.encode(turn), headers, while_)

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
    """A turn, and its sequence; what is none counts as nobody's."""
    if reply is None:
        return GroupState(), 0
    try:
        return turns.decode(reply.payload), sequence_of(reply)
    except BadEnvelope:
        return GroupState(), sequence_of(reply)


def read_waiting_job(message: Reply) -> WaitingJob:
    """One who waits, as its message in the line tells."""
    key, per_key = "", None
    try:
        if (told := envelope.parse_key(message.headers)) is not None:
            key, per_key, _ = told
    except (ValueError, BadOption):
        pass  # what is no job is let on like any other: its worker puts it away
    return WaitingJob(
        id_of(message), key, per_key, sequence_of(message), envelope.previous_sequence(message.headers)
    )


def key_token_of(message: Reply) -> str:
    return message.headers["Nats-Subject"].split(".")[3]
