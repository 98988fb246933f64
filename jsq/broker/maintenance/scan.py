"""Finds inconsistencies between messages, records, dead letters and ids, and changes nothing.

A scan reads a slice of each stream and continues where the last scan stopped. So a scan costs the same with a
million waiting jobs as with ten.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from jsq.broker.flow.key_groups import KeyGroups, read_group_state, read_waiting_job
from jsq.broker.flow.key_groups import key_token_of as key_in
from jsq.broker.flow.pauses import PAUSED_BY, RESERVED_ORDER
from jsq.broker.jobs.messages import SCHEDULE, id_of, scheduled_time
from jsq.broker.jobs.records import RecordStore
from jsq.broker.maintenance.scan_reads import Scan, ScanReads
from jsq.broker.operations.dead_letters import DeadLetterStore, read_dead_letter
from jsq.broker.submit.unique import UniqueKeys, read_claim
from jsq.broker.topology.namespace import Namespace
from jsq.codec import envelope, events
from jsq.codec.subject_token import ANY
from jsq.model.event import FINAL_STATES, LoggedEvent
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
        """What is wrong with a queue's messages; `stream` is what the server tells of it."""
        subjects = self._subjects
        bounds = await self._scan_reads.delivered_up_to(queue)
        ready, later = subjects.streams.ready(queue), subjects.streams.scheduled(queue)
        waiting = await self._scan_reads.next_slice(ready, subjects.ready(queue, "*", ANY), scan)
        if any(is_undeliverable(reply, bounds) for reply in waiting):
            # Once more: a consumer that is changing its leader may not know (yet) what is being worked on.
            again = await self._scan_reads.delivered_up_to(queue)
            bounds = {level: min(bound, again.get(level, 0)) for level, bound in bounds.items()}
        messages = [
            read_stored_message(queue, ready, reply, lost=is_undeliverable(reply, bounds))
            for reply in waiting
        ]
        messages += [
            read_stored_message(queue, later, reply, lost=False)
            for reply in await self._scan_reads.next_slice(later, subjects.scheduled(queue, ANY), scan)
        ]
        # What is due goes over to the queue at once, but where that is full.
        stuck = not may_be_full(stream)
        messages += [
            read_stored_message(queue, later, reply, lost=stuck)
            for reply in await self._scan_reads.next_slice(later, subjects.due(queue, "*", ANY), scan)
        ]
        return await self._judge_messages(
            queue, [one for one in messages if scan.is_old(one.stored_at)], scan
        )

    async def scan_waiting(self, queue: str, scan: Scan) -> list[FoundInconsistency]:
        """What is wrong with the jobs that wait in lines, and with lines that nobody looks after."""
        if not await self._streams.has_groups(queue):
            return []
        subjects = self._subjects
        stream, turns = subjects.streams.groups(queue), subjects.streams.group_state(queue)
        waiting = await self._scan_reads.next_slice(stream, subjects.groups.job(queue, "*", ANY), scan)
        old = [reply for reply in waiting if scan.is_old(message_time(reply))]
        messages = [read_stored_message(queue, stream, reply, lost=False) for reply in old]
        found = await self._judge_messages(queue, messages, scan)
        tokens = {key_in(reply) for reply in old}
        known = await self._scan_reads.last_per_subject(
            turns, [subjects.groups.state(queue, token) for token in tokens]
        )
        held = {last_token(reply): turn for reply in known if (turn := read_group_state(reply)[0]).slots}
        # One who was let on and still stands here: who let him on may have died before he moved him.
        halfway = {
            token
            for reply in old
            if (token := key_in(reply)) in held and held[token].already_admitted(read_waiting_job(reply))
        }
        tokens -= held.keys() - halfway
        for token in sorted(tokens):
            if await self._key_groups.is_stalled(queue, token):
                found.append(
                    FoundInconsistency(Inconsistency.STALLED_KEY_GROUP, queue, "", turns, key_token=token)
                )
        return found

    async def scan_slots(self, queue: str, scan: Scan) -> list[FoundInconsistency]:
        """Places in turns of those who have ended, or are not there."""
        if not await self._streams.has_groups(queue):
            return []
        stream = self._subjects.streams.group_state(queue)
        replies = await self._scan_reads.next_slice(stream, self._subjects.groups.state(queue, "*"), scan)
        holders = {id: last_token(reply) for reply in replies for id, *_ in read_group_state(reply)[0].slots}
        known = await self._scan_reads.last_records(queue, list(holders))
        standing = await self._scan_reads.jobs_with_message(queue, holders)
        found = []
        for id, token in holders.items():
            last = known.get(id)
            if last is None:  # it waits, or it began or ended while the messages were read
                last = await self._records.last(id, queue, consistent=True)
            old = last is not None and scan.is_old(last.at)
            flaw = judge_slot(last, has_message=id in standing, is_old=old)
            if flaw is not None:
                found.append(FoundInconsistency(flaw, queue, id, stream, key_token=token))
        return found

    async def scan_advisories(self, queue: str, scan: Scan) -> list[FoundInconsistency]:
        """What is wrong with the messages that the server said it gives up: no more will change there.

        Unless a consumer was made anew since, and has handed one over again.
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
            message = read_stored_message(queue, ready, reply, lost=True)
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
        by_queue: dict[str, list[LoggedEvent]] = defaultdict(list)
        for one in await self._unfinished(known):
            if scan.is_old(max(one.at, one.event.due or one.at)):
                by_queue[one.current_queue].append(one)
        found = []
        for queue, open_jobs in by_queue.items():
            standing = await self._scan_reads.jobs_with_message(
                queue, {one.job: record_key_token(one) for one in open_jobs}
            )
            found += [
                flaw
                for one in open_jobs
                if one.job not in standing and (flaw := await self._judge_record(one)) is not None
            ]
        return found

    async def _unfinished(self, revisions: Sequence[LoggedEvent]) -> list[LoggedEvent]:
        """Of some revisions, those that are the last one of a job that has not ended."""
        by_queue: dict[str, dict[str, LoggedEvent]] = defaultdict(dict)
        for one in revisions:
            by_queue[one.queue][one.job] = one  # the slice is in order: a later one replaces it
        found = []
        for queue, jobs in by_queue.items():
            some = {id: one for id, one in jobs.items() if one.state not in FINAL_STATES}
            last = await self._scan_reads.last_records(queue, list(some))
            found += [one for id, one in some.items() if id in last and last[id].sequence == one.sequence]
        return found

    async def scan_dead_letters(self, scan: Scan) -> list[FoundInconsistency]:
        """Dead letters of jobs that have a new life."""
        stream = self._subjects.streams.records
        read = await self._scan_reads.next_slice(stream, self._subjects.dead("*", "*", ANY), scan)
        # A retry stores the letter once more, as closed: what purges the last one purges those before it.
        newest = {reply.headers["Nats-Subject"]: reply for reply in read}
        letters = [read_dead_letter(reply) for reply in newest.values() if reply.payload]
        old: dict[str, list[Any]] = defaultdict(list)
        for one in letters:
            if scan.is_old(one.at):
                old[one.queue].append(one)
        found = []
        for queue, some in old.items():
            known = await self._scan_reads.last_records(queue, [one.id for one in some])
            risen = [one for one in some if judge_dead_letter(one.at, known.get(one.id), has_message=True)]
            standing = await self._scan_reads.jobs_with_message(
                queue, {one.id: record_key_token(known.get(one.id)) for one in risen}
            )
            for one in risen:
                flaw = judge_dead_letter(one.at, known.get(one.id), has_message=one.id in standing)
                if flaw is not None:
                    found.append(FoundInconsistency(flaw, queue, one.id, stream, one.sequence))
        return found

    async def scan_ids(self, scan: Scan) -> list[FoundInconsistency]:
        """Own ids that were claimed for jobs which were never stored."""
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
        """Jobs that wait for the end of another, which nobody told them of."""
        bucket = self._subjects.streams.bucket("ids")
        found = []
        for reply in await self._scan_reads.next_slice(bucket, self._subjects.key("ids", "u.*"), scan):
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
            flaw = judge_message(one, last, expired_before=scan.settled_before)
            if flaw is not None:
                home = one.queue if one.queue != queue else ""
                found.append(FoundInconsistency(flaw, queue, one.job, one.stream, one.sequence, home))
        return found

    async def _judge_record(self, seen: LoggedEvent) -> FoundInconsistency | None:
        """Judge a job without a message, unless its record has changed meanwhile."""
        now = await self._records.last(seen.job, seen.queue)
        if now is None or now.sequence != seen.sequence:
            return None
        knows_order = seen.event.has_arguments or (
            seen.state == "retrying"
            and await self._dead_letters.find(seen.job, seen.queue, closed=True) is not None
        )
        flaw = judge_record(now, knows_order=knows_order)
        return FoundInconsistency(flaw, seen.queue, seen.job) if flaw is not None else None


def read_stored_message(queue: str, stream: str, reply: Reply, *, lost: bool) -> StoredMessage:
    home = envelope.origin_queue(reply.headers, queue)
    headers = reply.headers
    # One that was put aside for a hold or a limit comes when that lets it: its record need not tell.
    dated = SCHEDULE in headers and not (PAUSED_BY in headers or RESERVED_ORDER in headers)
    due = scheduled_time(headers) if dated else None
    if due == PAST:
        due = None  # one that is to come at once
    expires = events.parse_time(headers[envelope.EXPIRES]) if envelope.EXPIRES in headers else None
    return StoredMessage(
        home, id_of(reply), stream, sequence_of(reply), message_time(reply), lost, due, expires
    )


def record_key_token(known: LoggedEvent | None) -> str:
    """What stands for the key of a job; nothing for one without."""
    return key_token(known.event.key) if known is not None and known.event.key else ""


def unstored_id_queue(reply: Reply) -> str:
    """The queue of an own id whose job is not known to have been stored; nothing for the others."""
    try:
        held = json.loads(reply.payload)
        return "" if held["stored"] else str(held["queue"])
    except (ValueError, KeyError, TypeError):
        return ""


def advisory_sequence(reply: Reply) -> int:
    """The sequence that an advisory names; 0 where it names none."""
    try:
        return int(json.loads(reply.payload)["stream_seq"])
    except (ValueError, KeyError, TypeError):
        return 0


def is_undeliverable(reply: Reply, bounds: Mapping[Any, int]) -> bool:
    """Whether a message lies where its priority has none left to deliver."""
    level = reply.headers["Nats-Subject"].split(".")[3]
    return sequence_of(reply) <= bounds.get(level, 0)


def message_time(reply: Reply) -> datetime:
    return events.parse_time(reply.headers["Nats-Time-Stamp"])


def may_be_full(stream: dict[str, Any]) -> bool:
    """Whether a queue may be full, and so takes nothing over."""
    config, state = stream["config"], stream["state"]
    limits: Iterable[tuple[int, int]] = (
        (config.get("max_msgs", -1), state["messages"]),
        (config.get("max_bytes", -1), state["bytes"] + 2**20),
    )
    return any(0 < limit <= used for limit, used in limits)
