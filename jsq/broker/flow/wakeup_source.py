"""The source of the wake-ups of a queue's key groups, which the server interrupts for a while.

The GROUP_STATE stream of a queue sources a wake-up for each job that joins a key group. After a restart, the
server resumes this source ten seconds late, and after a restart of a whole cluster half a minute late. An
update that writes the sources in another notation resumes it at once. A worker may not be allowed to update a
stream, because that would let it read the other queues of its account.

If the stream is empty after the loss of its leader, or after a restart, the server sources only messages that
are newer than its last one. So it skips the jobs that were added after the source had stopped, and before the
last change of a group's state. Workers admit these jobs themselves, when the source works again.
"""

from jsq.broker.flow.key_groups import key_token_of
from jsq.broker.topology.configs import rewritten_sources
from jsq.broker.topology.leased_key import LeasedKey
from jsq.broker.topology.namespace import Namespace
from jsq.broker.topology.sources import silence_of
from jsq.codec.subject_token import ANY
from jsq.transport.jetstream import JsonObject
from jsq.transport.replies import sequence_of

ADMIT_LEASE = 3
"""Seconds after which another worker may resume the source of a queue, unless the lease is renewed."""

UNCHECKED_ARRIVALS = 1_000
"""Jobs added to the key groups before the first check whose wake-ups may be missing."""

PAGE_MESSAGES = 200


class WakeupSource:
    """The source of one queue's wake-ups, as the worker `by` sees it."""

    def __init__(self, namespace: Namespace, queue: str, by: str) -> None:
        self._reads = namespace.reads
        self._jetstream = namespace.jetstream
        self._streams = namespace.streams
        self._subjects = namespace.subjects
        self._queue = queue
        self._lease = LeasedKey(namespace, f"wakeups.{queue}", by, ADMIT_LEASE)
        self._last_arrival = 0
        self._leader = ""
        self._checked_leader: str | None = None
        # The last arrivals at the last two confirmed checks: the source may be a moment behind at a check.
        self._checked = [0, 0]

    async def silence(self) -> float | None:
        """Seconds since the server received something from the source; None for a queue without key groups.

        A source that works sends a heartbeat each second. Infinity if it has sent nothing yet.
        """
        if not await self._streams.has_groups(self._queue):
            return None
        names = self._subjects.streams
        groups = await self._jetstream.stream_info(names.groups(self._queue))
        state = await self._jetstream.stream_info(names.group_state(self._queue))
        if groups is None or state is None:
            return None
        self._note(groups, state)
        return silence_of(state)

    def _note(self, groups: JsonObject, state: JsonObject) -> None:
        """Note the last sequence of the queue's key groups, and since when their state has its leader."""
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
        """Note that the source has worked up to now, and that no wake-up is missing."""
        if self._checked_leader is not None:
            self._checked_leader = self._leader
            self._checked = [self._checked[1], self._last_arrival]

    async def resume(self) -> None:
        """Have the server resume the source now. Raises `NotAllowed`, `CannotChange`."""
        found = await self._jetstream.stream_info(self._subjects.streams.group_state(self._queue))
        if found is not None:
            await self._jetstream.update_stream(rewritten_sources(found["config"]))

    async def acquire(self) -> bool:
        """Take or renew the right to resume; False if another worker has it. Raises `NotAllowed`."""
        return await self._lease.acquire()
