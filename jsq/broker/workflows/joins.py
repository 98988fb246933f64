"""Joins: records with a bit for each member that has ended, written by compare-and-set.

A counter would count a member twice whose end is repeated after a crash; a bit cannot. A worker gathers the
bits of its own jobs for a moment, and writes them together. A large join has a record for each of its shards,
and one more with a bit for each full shard. The write that completes a join fires it. After a crash between
the write and what follows, the delivery of the member is repeated, finds the join full, and fires it again:
what it submits has the same ids.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field

from jsq.broker.jobs.records import EXPECTED, TTL
from jsq.broker.jobs.writer import JobWriter
from jsq.broker.topology.namespace import Namespace
from jsq.broker.topology.subjects import flow_key
from jsq.broker.workflows.definitions import FLOW_SECONDS, StoredFlow
from jsq.model.workflow import SHARD_MEMBERS, JoinState, shard_count, shard_size
from jsq.transport.replies import NoReply, NoResponders, WrongSequence, sequence_of

GATHER_SECONDS = 0.003
"""Seconds for which a worker gathers the bits of its jobs before it writes them."""

MOST_KNOWN_JOINS = 1_000
"""Records of joins whose last state one connection keeps, so that it need not read them before a write."""

EMPTY_JOIN = (JoinState(), 0)
"""The state of a join that was never written, and its sequence."""


@dataclass(slots=True)
class PendingBits:
    """Bits of one record that wait to be written; `done` gets the state after the write."""

    done: asyncio.Future[JoinState]
    state: JoinState = field(default_factory=JoinState)


class Joins:
    """The joins of all workflows, as one connection writes them."""

    def __init__(self, namespace: Namespace, writer: JobWriter) -> None:
        self._reads = namespace.reads
        self._subjects = namespace.subjects
        self._stream = namespace.subjects.streams.bucket("flows")
        self._writer = writer
        self._pending: dict[str, PendingBits] = {}
        self._known: dict[str, tuple[JoinState, int]] = {}

    async def arrive(
        self, flow: StoredFlow, join: int, members: Iterable[int], *, skips: bool
    ) -> JoinState | None:
        """Note that members of a join have ended. Returns the state of the join if all of them have.

        Of the calls that one write serves, only the first learns that the join is full.
        """
        numbers = flow.graph.joins[join]
        if len(numbers) == 1:
            return JoinState(1, skips)
        masks: dict[int, int] = {}
        for member in members:
            shard, bit = divmod(bisect_left(numbers, member), SHARD_MEMBERS)
            masks[shard] = masks.get(shard, 0) | 1 << bit
        place, shards, full = f"join.{flow.sequence}.{join}", shard_count(len(numbers)), None
        for shard, mask in masks.items():
            key = flow_key(self._subjects, flow.queue, flow.id, f"{place}.{shard}")
            state = await self._add(key, JoinState(mask, skips))
            if state is None or not state.is_full(shard_size(len(numbers), shard)):
                continue
            if shards > 1:
                top = flow_key(self._subjects, flow.queue, flow.id, f"{place}.all")
                state = await self._add(top, JoinState(1 << shard, state.skips))
            if state is not None and state.is_full(shards if shards > 1 else len(numbers)):
                full = state
        return full

    # -- inside ------------------------------------------------------------------------------------------

    async def _add(self, key: str, more: JoinState) -> JoinState | None:
        """Add bits to a record, with those of other calls; returns its state to the first of them."""
        pending = self._pending.get(key)
        if pending is not None:
            pending.state = pending.state.with_members(more.bits, skips=more.skips)
            await asyncio.shield(pending.done)
            return None
        pending = self._pending[key] = PendingBits(asyncio.get_running_loop().create_future(), more)
        failed = NoReply("the write of a join was interrupted", sent=False)
        try:
            try:
                await asyncio.sleep(GATHER_SECONDS)
            finally:
                del self._pending[key]
            state = await self._write(key, pending.state)
            pending.done.set_result(state)
        finally:
            if not pending.done.done():  # the deliveries of the other members are repeated too
                pending.done.set_exception(failed)
                pending.done.exception()
        return state

    async def _write(self, key: str, more: JoinState) -> JoinState:
        """Write bits into a record, whatever others write meanwhile; returns its state after that."""
        state, sequence = self._known.get(key, EMPTY_JOIN)
        while True:
            wanted = state.with_members(more.bits, skips=more.skips)
            if wanted == state:
                return state
            headers = {EXPECTED: str(sequence), TTL: str(FLOW_SECONDS)}
            try:
                sequence = await self._writer.publish_shared(key, wanted.encode(), headers)
            except WrongSequence:
                state, sequence = await self._read(key)
                continue
            self._know(key, wanted, sequence)
            return wanted

    async def _read(self, key: str) -> tuple[JoinState, int]:
        try:
            found = await self._reads.last(self._stream, key, consistent=True)
        except NoResponders:
            return EMPTY_JOIN
        return EMPTY_JOIN if found is None else (JoinState.decode(found.payload), sequence_of(found))

    def _know(self, key: str, state: JoinState, sequence: int) -> None:
        if len(self._known) >= MOST_KNOWN_JOINS:
            self._known.clear()
        self._known[key] = state, sequence
