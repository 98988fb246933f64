"""Finds inconsistencies between messages, records, dead letters and ids; changes nothing.

A scan reads a slice of each stream, from where the previous scan stopped. So a scan of a million waiting jobs
costs no more than its slice.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from jsq.broker.flow.key_groups import KeyGroups, read_group_state, read_waiting_job
from jsq.broker.flow.key_groups import key_token_of as key_in
from jsq.broker.flow.pauses import PAUSED_BY, RESERVED
from jsq.broker.jobs.messages import SCHEDULE, id_of, scheduled_time
from jsq.broker.jobs.records import RecordStore
from jsq.broker.maintenance.scan_reads import Scan, ScanReads
from jsq.broker.operations.dead_letters import DeadLetterStore, read_dead_letter
from jsq.broker.submit.unique import UniqueKeys, read_claim
from jsq.broker.topology.namespace import Namespace
from jsq.codec import envelope, revisions
from jsq.codec.subject_token import ANY
from jsq.model.job import PRIORITIES
from jsq.model.key_group import key_token
from jsq.model.repair import (
    FoundInconsistency,
    Inconsistency,
    StoredMessage,
    judge_dead_letter,
    judge_message,
    judge_record,
    judge_slot,
)
from jsq.model.revision import FINAL_STATES, StoredRevision
from jsq.transport.replies import Reply, last_token, sequence_of
from jsq.transport.server_clock import PAST


class Scanner:
    """Finds inconsistencies."""

    def __init__(
        self,
        namespace: Namespace,
        records: RecordStore,
        dead_letters: DeadLetterStore,
        key_groups: KeyGroups,
        unique_keys: UniqueKeys,
    ) -> None:
        self._jetstream = namespace.jetstream
        self._reads = namespace.reads
        self._subjects = namespace.subjects
        self._streams = namespace.streams
        self._scan_reads = ScanReads(namespace)
        self._records = records
        self._dead_letters = dead_letters
        self._key_groups = key_groups
        self._unique_keys = unique_keys

    async def scan_consumers(self, queue: str) -> list[FoundInconsistency]:
        """The priorities of a queue that have no consumer."""
        bounds = await self._scan_reads.delivered_up_to(queue)
        return [
            FoundInconsistency(Inconsistency.NO_CONSUMER, queue, level)
            for level in PRIORITIES
            if level not in bounds
        ]

    async def scan_queue(self, queue: str, stream: dict[str, Any], scan: Scan) -> list[FoundInconsistency]:
        """The inconsistencies of a queue's messages; `stream` is the server's description of its stream."""
        subjects = self._subjects
        bounds = await self._scan_reads.delivered_up_to(queue)
        ready, later = subjects.streams.ready(queue), subjects.streams.scheduled(queue)
        waiting = await self._scan_reads.next_slice(ready, subjects.ready(queue, "*", ANY), scan)
        if any(is_undeliverable(reply, bounds) for reply in waiting):
            # Ask twice: a consumer that is changing its leader may not know yet which messages workers hold.
            again = await self._scan_reads.delivered_up_to(queue)
            bounds = {level: min(bound, again.get(level, 0)) for level, bound in bounds.items()}
        messages = [
            read_stored_message(queue, ready, reply, undeliverable=is_undeliverable(reply, bounds))
            for reply in waiting
        ]
        messages += [
            read_stored_message(queue, later, reply, undeliverable=False)
            for reply in await self._scan_reads.next_slice(later, subjects.scheduled(queue, ANY), scan)
        ]
        # Workers move due messages to the queue, unless the queue is full. Without a worker they wait.
        bound, has_room = await self._scan_reads.due_delivered_up_to(queue), not may_be_full(stream)
        messages += [
            read_stored_message(
                queue,
                later,
                reply,
                undeliverable=has_room and (bound is None or sequence_of(reply) <= bound),
            )
            for reply in await self._scan_reads.next_slice(later, subjects.due(queue, "*", ANY), scan)
        ]
        return await self._judge_messages(
            queue, [one for one in messages if scan.is_old(one.stored_at)], scan
        )

    async def scan_waiting(self, queue: str, scan: Scan) -> list[FoundInconsistency]:
        """The inconsistencies of jobs that wait in key groups, and the key groups that are stalled."""
        if not await self._streams.has_groups(queue):
            return []
        subjects = self._subjects
        stream, states = subjects.streams.groups(queue), subjects.streams.group_state(queue)
        waiting = await self._scan_reads.next_slice(stream, subjects.groups.job(queue, "*", ANY), scan)
        old = [reply for reply in waiting if scan.is_old(message_time(reply))]
        messages = [read_stored_message(queue, stream, reply, undeliverable=False) for reply in old]
        found = await self._judge_messages(queue, messages, scan)
        tokens = {key_in(reply) for reply in old}
        known = await self._scan_reads.last_per_subject(
            states, [subjects.groups.state(queue, token) for token in tokens]
        )
        held = {last_token(reply): state for reply in known if (state := read_group_state(reply)[0]).slots}
        # An admitted job that still waits here: the worker that admitted it may have died before it moved it.
        unmoved = {
            token
            for reply in old
            if (token := key_in(reply)) in held and held[token].already_admitted(read_waiting_job(reply))
        }
        tokens -= held.keys() - unmoved
        for token in sorted(tokens):
            if await self._key_groups.is_stalled(queue, token):
                found.append(
                    FoundInconsistency(Inconsistency.STALLED_KEY_GROUP, queue, "", states, key_token=token)
                )
        return found

    async def scan_slots(self, queue: str, scan: Scan) -> list[FoundInconsistency]:
        """The slots of key groups whose jobs have ended or have no message."""
        if not await self._streams.has_groups(queue):
            return []
        stream = self._subjects.streams.group_state(queue)
        replies = await self._scan_reads.next_slice(stream, self._subjects.groups.state(queue, "*"), scan)
        holders = {id: last_token(reply) for reply in replies for id, *_ in read_group_state(reply)[0].slots}
        known = await self._scan_reads.last_records(queue, list(holders))
        with_message = await self._scan_reads.jobs_with_message(queue, holders)
        found = []
        for id, token in holders.items():
            last = known.get(id)
            if last is None:  # the job waits, or it started or ended while the messages were read
                last = await self._records.last(id, queue, consistent=True)
            old = last is not None and scan.is_old(last.at)
            kind = judge_slot(last, has_message=id in with_message, is_old=old)
            if kind is not None:
                found.append(FoundInconsistency(kind, queue, id, stream, key_token=token))
        return found

    async def scan_advisories(self, queue: str, scan: Scan) -> list[FoundInconsistency]:
        """The inconsistencies of messages that the server has stopped delivering, by its advisories.

        They are judged at any age, because nothing else will change them. The exception is a message that a
        consumer, created again since, has delivered again: its job's record is newer than the advisory.
        """
        stream, ready = self._subjects.streams.advisories, self._subjects.streams.ready(queue)
        advised = {
            sequence: message_time(reply)
            for reply in await self._scan_reads.next_slice(
                stream, self._subjects.max_deliveries(queue), scan, once=True
            )
            if (sequence := advisory_sequence(reply))
        }
        found = []
        for sequence, at in advised.items():
            reply = await self._reads.get(ready, sequence)
            if reply is None:
                continue
            message = read_stored_message(queue, ready, reply, undeliverable=True)
            last = await self._records.last(message.job, message.queue)
            if last is None or last.at <= at:
                found += await self._judge_messages(queue, [message], scan)
        return found

    async def scan_records(self, scan: Scan) -> list[FoundInconsistency]:
        """Jobs that have not ended and have no message."""
        stream = self._subjects.streams.records
        known = await self._scan_reads.read_events(
            await self._scan_reads.next_slice(stream, self._subjects.record("*", ANY), scan)
        )
        by_queue: dict[str, list[StoredRevision]] = defaultdict(list)
        for one in await self._unfinished(known):
            if scan.is_old(max(one.at, one.revision.due or one.at)):
                by_queue[one.current_queue].append(one)
        found = []
        for queue, open_jobs in by_queue.items():
            with_message = await self._scan_reads.jobs_with_message(
                queue, {one.job: record_key_token(one) for one in open_jobs}
            )
            found += [
                inconsistency
                for one in open_jobs
                if one.job not in with_message
                and (inconsistency := await self._judge_record(one)) is not None
            ]
        return found

    async def _unfinished(self, revisions: Sequence[StoredRevision]) -> list[StoredRevision]:
        """The revisions that are the last one of their record, if the job has not ended."""
        by_queue: dict[str, dict[str, StoredRevision]] = defaultdict(dict)
        for one in revisions:
            by_queue[one.queue][one.job] = one  # the slice is in order: a later revision replaces this one
        found = []
        for queue, jobs in by_queue.items():
            some = {id: one for id, one in jobs.items() if one.state not in FINAL_STATES}
            last = await self._scan_reads.last_records(queue, list(some))
            found += [one for id, one in some.items() if id in last and last[id].sequence == one.sequence]
        return found

    async def scan_dead_letters(self, scan: Scan) -> list[FoundInconsistency]:
        """The dead letters of jobs that were submitted or retried again."""
        stream = self._subjects.streams.records
        read = await self._scan_reads.next_slice(stream, self._subjects.dead("*", "*", ANY), scan)
        # A retry stores the dead letter again, as closed. A purge up to the last one deletes them all.
        newest = {reply.headers["Nats-Subject"]: reply for reply in read}
        letters = [read_dead_letter(reply) for reply in newest.values() if reply.payload]
        old: dict[str, list[Any]] = defaultdict(list)
        for one in letters:
            if scan.is_old(one.at):
                old[one.queue].append(one)
        found = []
        for queue, some in old.items():
            known = await self._scan_reads.last_records(queue, [one.id for one in some])
            suspects = [one for one in some if judge_dead_letter(one.at, known.get(one.id), has_message=True)]
            with_message = await self._scan_reads.jobs_with_message(
                queue, {one.id: record_key_token(known.get(one.id)) for one in suspects}
            )
            for one in suspects:
                kind = judge_dead_letter(one.at, known.get(one.id), has_message=one.id in with_message)
                if kind is not None:
                    found.append(FoundInconsistency(kind, queue, one.id, stream, one.sequence))
        return found

    async def scan_ids(self, scan: Scan) -> list[FoundInconsistency]:
        """The callers' ids that were claimed for jobs which were never stored."""
        bucket = self._subjects.streams.bucket("ids")
        found = []
        for reply in await self._scan_reads.next_slice(bucket, self._subjects.own_id(ANY), scan):
            queue, id = unstored_id_queue(reply), id_of(reply)
            if (
                not queue
                or not scan.is_old(message_time(reply))
                or await self._scan_reads.jobs_with_message(queue, {id: "*"})
            ):
                continue
            if await self._records.last(id, queue) is None:
                found.append(
                    FoundInconsistency(Inconsistency.UNUSED_ID, queue, id, bucket, sequence_of(reply))
                )
        return found

    async def scan_unique_keys(self, scan: Scan) -> list[FoundInconsistency]:
        """The unique jobs that wait for the end of another, which has ended without releasing them."""
        bucket = self._subjects.streams.bucket("ids")
        found = []
        for reply in await self._scan_reads.next_slice(bucket, self._subjects.unique_key("*"), scan):
            claim = read_claim(reply)
            if scan.is_old(message_time(reply)) and await self._unique_keys.is_orphaned(claim):
                found.append(
                    FoundInconsistency(
                        Inconsistency.ORPHANED_SUCCESSOR, claim.queue, claim.successor, bucket, claim.revision
                    )
                )
        return found

    # -- inside ------------------------------------------------------------------------------------------

    async def _judge_messages(
        self, queue: str, messages: Sequence[StoredMessage], scan: Scan
    ) -> list[FoundInconsistency]:
        known = await self._scan_reads.last_records(
            queue, [one.job for one in messages if one.queue == queue]
        )
        found = []
        for one in messages:
            seen = known.get(one.job) if one.queue == queue else None
            last = seen or await self._records.last(one.job, one.queue)
            kind = judge_message(one, last, expired_before=scan.settled_before)
            if kind is not None:
                origin = one.queue if one.queue != queue else ""
                found.append(FoundInconsistency(kind, queue, one.job, one.stream, one.sequence, origin))
        return found

    async def _judge_record(self, seen: StoredRevision) -> FoundInconsistency | None:
        """Judge a job without a message, unless its record has changed meanwhile."""
        now = await self._records.last(seen.job, seen.queue)
        if now is None or now.sequence != seen.sequence:
            return None
        knows_order = seen.revision.has_arguments or (
            seen.state == "retrying"
            and await self._dead_letters.find(seen.job, seen.queue, closed=True) is not None
        )
        kind = judge_record(now, knows_order=knows_order)
        return FoundInconsistency(kind, seen.queue, seen.job) if kind is not None else None


def read_stored_message(queue: str, stream: str, reply: Reply, *, undeliverable: bool) -> StoredMessage:
    headers = reply.headers
    # A job that was requeued for a pause or a rate limit is due when that ends: its record may have no time.
    is_delayed = SCHEDULE in headers and not (PAUSED_BY in headers or RESERVED in headers)
    due = scheduled_time(headers) if is_delayed else None
    if due == PAST:
        due = None  # a message that is due at once
    return StoredMessage(
        envelope.origin_queue(headers, queue),
        id_of(reply),
        stream,
        sequence_of(reply),
        message_time(reply),
        undeliverable,
        due,
        revisions.parse_time(headers[envelope.EXPIRES]) if envelope.EXPIRES in headers else None,
    )


def record_key_token(known: StoredRevision | None) -> str:
    """The token of a job's key; empty for a job without a key."""
    return key_token(known.revision.key) if known is not None and known.revision.key else ""


def unstored_id_queue(reply: Reply) -> str:
    """The queue for which a caller's id was claimed, if its job may not be stored; empty otherwise."""
    try:
        held = json.loads(reply.payload)
        return "" if held["stored"] else str(held["queue"])
    except (ValueError, KeyError, TypeError):
        return ""


def advisory_sequence(reply: Reply) -> int:
    """The sequence of the message that an advisory is about; 0 if it has none."""
    try:
        return int(json.loads(reply.payload)["stream_seq"])
    except (ValueError, KeyError, TypeError):
        return 0


def is_undeliverable(reply: Reply, bounds: Mapping[Any, int]) -> bool:
    """Whether the sequence of a message is in the range of which its priority has nothing left to deliver."""
    level = reply.headers["Nats-Subject"].split(".")[3]
    return sequence_of(reply) <= bounds.get(level, 0)


def message_time(reply: Reply) -> datetime:
    return revisions.parse_time(reply.headers["Nats-Time-Stamp"])


def may_be_full(stream: dict[str, Any]) -> bool:
    """Whether a queue may be so full that it accepts no due message."""
    config, state = stream["config"], stream["state"]
    limits: Iterable[tuple[int, int]] = (
        (config.get("max_msgs", -1), state["messages"]),
        (config.get("max_bytes", -1), state["bytes"] + 2**20),
    )
    return any(0 < limit <= used for limit, used in limits)
