"""A key that one process holds for a limited time: the right to do what only one of several workers may do.

The holder writes its name by compare-and-set, with a TTL, and renews it. If the holder dies, the server
deletes the key, and another process takes it.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from jsq.broker.topology.namespace import Namespace
from jsq.errors import BrokerError
from jsq.transport.replies import Reply, WrongSequence, sequence_of
from jsq.transport.retrying import publish_with_retry
from jsq.transport.server_clock import has_outlived_ttl


class LeasedKey:
    """A key of the bucket `workers`, as the process `by` sees it; no other process may have that name.

    The lease of a holder that does not renew it ends after `seconds`.
    """

    def __init__(self, namespace: Namespace, name: str, by: str, seconds: int) -> None:
        self._wire = namespace.wire
        self._jetstream = namespace.jetstream
        self._reads = namespace.reads
        self._bucket = namespace.subjects.streams.bucket("workers")
        self._key = namespace.subjects.key("workers", name)
        self._by = by.encode()
        self._seconds = seconds
        self._revision = 0
        self._renewed = 0.0

    async def acquire(self) -> bool:
        """Take the lease if it is free, or renew it; False if another process holds it.

        Raises `NotAllowed` if the user may not write the key.
        """
        if await self.renew():
            return True
        if not self._revision and await self._write(0):
            return True
        found = await self._last()
        if found is None:
            return await self._write(0)
        # A server that is killed may restore the lease of a dead holder without its TTL.
        is_free = found.payload == self._by or has_outlived_ttl(found, self._wire.clock)
        return is_free and await self._write(sequence_of(found))

    async def renew(self) -> bool:
        """Renew the lease; False if this process does not hold it any more."""
        if not self._revision:
            return False
        if await self._write(self._revision):
            return True
        # If the reply to an own write was lost, the key has a later revision of this process.
        return await self.is_held() and await self._write(self._revision)

    async def _write(self, revision: int) -> bool:
        """Write the key over a revision, 0 for a key that does not exist; False if it has another one."""
        began = time.monotonic()
        headers = {"Nats-Expected-Last-Subject-Sequence": str(revision), "Nats-TTL": str(self._seconds)}
        try:
            self._revision = await publish_with_retry(self._wire, self._key, self._by, headers)
        except WrongSequence:
            return False
        self._renewed = began
        return True

    async def _last(self) -> Reply | None:
        return await self._reads.last(self._bucket, self._key, consistent=True)

    async def is_held(self) -> bool:
        """Whether the server still has this process as the holder."""
        found = await self._last()
        if found is None or found.payload != self._by:
            return False
        self._revision = max(self._revision, sequence_of(found))
        return True

    async def is_safe(self) -> bool:
        """Whether this process holds the lease for at least another half of its time."""
        return time.monotonic() - self._renewed < self._seconds / 2 and await self.is_held()

    async def holder(self) -> str:
        """The name of the process that holds the lease, or `nobody`."""
        found = await self._last()
        return found.payload.decode(errors="replace") if found is not None else "nobody"

    @contextlib.asynccontextmanager
    async def renewed(self) -> AsyncIterator[None]:
        """Renew the lease in the background, and release it at the end."""
        renewing = asyncio.create_task(self._keep_renewing())
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            with contextlib.suppress(BrokerError):
                await self._jetstream.purge(self._bucket, self._key, below=self._revision + 1)

    async def _keep_renewing(self) -> None:
        while True:
            await asyncio.sleep(self._seconds / 6)
            with contextlib.suppress(BrokerError):
                if not await self.renew():
                    return
