"""The completions of many jobs, by one subscription to the records of their queue.

Ten thousand results cost one subscription and no request, but the client receives every record of the queue.
It may miss some: after a disconnect, or when a message is lost. So it also reads the expected records, many
in one request.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

from jsq.broker.jobs.reader import RECHECK_SECONDS
from jsq.broker.jobs.records import is_final, read_revision
from jsq.broker.jobs.store import JobStore
from jsq.broker.topology.namespace import Namespace
from jsq.broker.topology.subjects import read_id
from jsq.codec.subject_token import ANY
from jsq.errors import BrokerUnavailable, JobNotFound
from jsq.model.revision import FINAL_STATES, StoredRevision
from jsq.transport.replies import NoReply, NoResponders, Reply

CONCURRENT_READS = 100


class Completions:
    """The completions of the expected jobs, in the order in which they arrive."""

    def __init__(self, namespace: Namespace, store: JobStore, queue: str) -> None:
        self._wire = namespace.wire
        self._records = store.records
        self._job_reader = store.reader
        self._queue = queue
        self._expected: set[str] = set()
        self._ended: deque[StoredRevision] = deque()
        self._changed = asyncio.Event()
        self._reconnects = namespace.wire.reconnects

    def expect(self, ids: Iterable[str]) -> None:
        """Expect the completions of these jobs from now on."""
        self._expected.update(ids)

    def forget(self, ids: Iterable[str]) -> None:
        """Stop expecting these jobs, because they were not submitted."""
        self._expected.difference_update(ids)

    def receive(self, message: Reply) -> None:
        """Process a revision of any job of the queue; ignores jobs that are not expected."""
        if is_final(message.payload) and read_id(message.subject.rpartition(".")[2]) in self._expected:
            event = read_revision(message)
            if event is not None:
                self._note(event)

    async def next(self) -> StoredRevision:
        """Wait for the next job that ends. Raises `JobNotFound` if an expected job does not exist."""
        while not self._ended:
            if self._wire.closed:
                raise BrokerUnavailable(f"the connection to {self._wire.login.shown} was closed")
            self._changed.clear()
            try:
                async with asyncio.timeout(RECHECK_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                await self._poll()
            else:
                if self._reconnects != self._wire.reconnects:
                    await self._poll()
        return await self._records.with_result(self._ended.popleft())

    async def reconnected(self) -> None:
        """After a reconnect, have `next` read the records: it missed the jobs that ended meanwhile."""
        self._changed.set()

    def _note(self, event: StoredRevision) -> None:
        if event.state in FINAL_STATES and event.job in self._expected:
            self._expected.discard(event.job)
            self._ended.append(event)
            self._changed.set()

    async def _poll(self) -> None:
        """Read the records of the expected jobs."""
        reconnects, ids = self._wire.reconnects, list(self._expected)
        try:
            found = await self._records.last_each(self._queue, ids)
            for event in found.values():
                self._note(event)
            await self._poll_unrecorded([id for id in ids if id not in found])
            self._reconnects = reconnects
        except (NoReply, NoResponders):
            return  # the next poll reads them

    async def _poll_unrecorded(self, ids: list[str]) -> None:
        """Check that the jobs without a record exist. Raises `JobNotFound`."""
        remaining = iter(ids)

        async def check_next() -> None:
            for id in remaining:
                found = await self._job_reader.find(id, self._queue, consistent=True)
                if found is None and id in self._expected:
                    raise JobNotFound(id)
                if found is not None:
                    self._note(found)

        await asyncio.gather(*(check_next() for _ in range(min(CONCURRENT_READS, len(ids)))))


@asynccontextmanager
async def subscribe_completions(
    namespace: Namespace, store: JobStore, queue: str
) -> AsyncIterator[Completions]:
    """Subscribe to the completions of a queue. Raises `NotAllowed`, and `NoReply` if no server answers."""
    wire, subjects = namespace.wire, namespace.subjects
    completions = Completions(namespace, store, queue)
    async with AsyncExitStack() as stack:
        subject = subjects.stored_record(queue, ANY)
        subscription = await wire.subscribe(subject, completions.receive)
        stack.push_async_callback(wire.unsubscribe, subscription)
        stack.callback(wire.on_reconnect(completions.reconnected))
        await wire.flush()
        wire.refusals.check_subscription(subject)
        yield completions
