"""Sweeps: any worker may make one, one at a time.

Who sweeps holds a key with a life of its own, made and renewed by compare-and-set, and looks before each mend
whether it is still his. One who was halted meanwhile finds it gone; and if he looked a moment too early, the
mend itself is one that two may do.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from pydantic_core import from_json, to_json

from jsq.broker.jobs.records import EXPECTED, TTL
from jsq.broker.maintenance.repairs import Repairs
from jsq.broker.maintenance.scan import Scanner
from jsq.broker.maintenance.scan_reads import SCAN_SLICE_MESSAGES, Scan
from jsq.broker.topology.namespace import Namespace
from jsq.broker.topology.provision import Provisioner
from jsq.codec import events
from jsq.errors import BrokerError, BrokerUnavailable, UsageError
from jsq.model.repair import FoundInconsistency, RepairResult
from jsq.transport.replies import NoResponders, Reply, WrongSequence
from jsq.transport.retrying import publish_with_retry

log = logging.getLogger("jsq.sweep")

MIN_AGE = 90.0
"""Seconds that something must have stood before it is judged: work under way has settled long before."""

LEASE_SECONDS = 30
"""Seconds that the hold on sweeping lasts without being renewed."""

LEASE_POLL_SECONDS = 0.25

ScanPart = Callable[[], Awaitable[list[FoundInconsistency]]]


@dataclass(frozen=True, slots=True)
class LastSweep:
    """What the last sweep told: when it ended (UTC), by whom, how much it looked at, found and mended."""

    at: datetime
    sweeper: str
    scanned: int
    found: dict[str, int]
    repaired: dict[str, int]


class SweepLease:
    """The right to sweep: a key that holds the name of who sweeps, which is his alone."""

    def __init__(self, namespace: Namespace, by: str) -> None:
        self._wire = namespace.wire
        self._jetstream = namespace.jetstream
        self._reads = namespace.reads
        self._bucket = namespace.subjects.streams.bucket("workers")
        self._key = namespace.subjects.key("workers", "lock.sweep")
        self._streams = namespace.streams
        self._by = by
        self._revision = 0
        self._renewed = 0.0

    async def acquire(self) -> bool:
        """Take it if nobody has it, or renew it; False if it is another's."""
        began = time.monotonic()
        try:
            headers = {EXPECTED: str(self._revision), TTL: str(LEASE_SECONDS)}
            self._revision = await publish_with_retry(self._wire, self._key, self._by.encode(), headers)
        except WrongSequence:
            if not await self.is_held():  # unless it was our own write, whose answer was lost
                return False
        self._renewed = began
        return True

    async def is_held(self) -> bool:
        """Whether it is ours still, as the server tells."""
        found = await self._reads.last(self._bucket, self._key)
        if found is None or found.payload != self._by.encode():
            return False
        self._revision = max(self._revision, int(found.headers["Nats-Sequence"]))
        return True

    async def is_safe(self) -> bool:
        """Whether it is ours, and stays so for as long as a mend takes."""
        return time.monotonic() - self._renewed < LEASE_SECONDS / 2 and await self.is_held()

    async def holder(self) -> str:
        found = await self._reads.last(self._bucket, self._key)
        return found.payload.decode(errors="replace") if found is not None else "nobody"

    @contextlib.asynccontextmanager
    async def renewed(self) -> AsyncIterator[None]:
        """Renew it all the while, and give it back at the end."""
        renewing = asyncio.create_task(self._renew())
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            with contextlib.suppress(BrokerError):
                await self._jetstream.purge(self._bucket, self._key, below=self._revision + 1)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(LEASE_SECONDS / 6)
            with contextlib.suppress(BrokerError):
                if not await self.acquire():
                    return


class Sweeper:
    """Finds what was left behind, and mends it."""

    def __init__(
        self, namespace: Namespace, provisioner: Provisioner, search: Scanner, mends: Repairs
    ) -> None:
        self._namespace = namespace
        self._provisioner = provisioner
        self._wire = namespace.wire
        self._reads = namespace.reads
        self._jetstream = namespace.jetstream
        self._subjects = namespace.subjects
        self._streams = namespace.streams
        self._search = search
        self._mends = mends

    async def scan(self, *, age: float = MIN_AGE, most: int | None = None) -> list[FoundInconsistency]:
        """What is wrong with what has stood for `age` seconds, in all of each stream or `most` messages."""
        scan = Scan(age, await self._now(), most or SCAN_SLICE_MESSAGES, complete=most is None)
        return [found async for found in self._find(scan)]

    async def sweep(
        self, by: str, *, age: float = MIN_AGE, wait_seconds: float = LEASE_SECONDS
    ) -> list[RepairResult]:
        """Look at everything, and mend what can be mended. `by` is a name that nobody else has.

        Raises `BrokerUnavailable` where another sweeps for longer than `wait_seconds` seconds, or took over.
        """
        await self._streams.ensure_shared()
        hold = SweepLease(self._namespace, by)
        end = time.monotonic() + wait_seconds
        while not await hold.acquire():
            if time.monotonic() >= end:
                raise BrokerUnavailable(f"{await hold.holder()} is sweeping: try again when it has ended")
            await asyncio.sleep(LEASE_POLL_SECONDS)
        return await self._sweep(hold, by, Scan(age, await self._now(), SCAN_SLICE_MESSAGES, complete=True))

    async def sweep_slice(
        self, by: str, *, interval: float, age: float = MIN_AGE
    ) -> list[RepairResult] | None:
        """Sweep a part of everything, unless another does, or did less than `interval` seconds ago.

        The next turn goes on where this one stopped. None where it was not our turn.
        """
        hold = SweepLease(self._namespace, by)
        if await self._read("rest.sweep") is not None or not await hold.acquire():
            return None
        told = await self._last_report()
        rest = self._subjects.key("workers", "rest.sweep")
        # By the server's clock: ours may be anything.
        await publish_with_retry(self._wire, rest, by.encode(), {TTL: str(max(1, round(interval)))})
        scan = Scan(age, await self._now(), SCAN_SLICE_MESSAGES, positions=told.get("positions", {}))
        return await self._sweep(hold, by, scan)

    async def last(self) -> LastSweep | None:
        """What the last sweep told, if there was one."""
        told = await self._last_report()
        if not told:
            return None
        return LastSweep(*(told[name] for name in ("at", "sweeper", "scanned", "found", "repaired")))

    # -- inside ------------------------------------------------------------------------------------------

    async def _now(self) -> datetime:
        """The time by the server's clock, which has told the age of all that is looked at."""
        await self._jetstream.stream_info(self._subjects.streams.records)
        return self._wire.clock.moment()

    async def _sweep(self, hold: SweepLease, by: str, scan: Scan) -> list[RepairResult]:
        swept: list[RepairResult] = []
        async with hold.renewed(), contextlib.aclosing(self._find(scan)) as finding:
            await self._provisioner.ensure_advisories()
            async for found in finding:
                if not await hold.is_safe():
                    raise BrokerUnavailable("the sweep broke off: another has taken over")
                swept.append(await self._repair(found))
            await self._store_report(by, scan, swept)
        return swept

    async def _repair(self, found: FoundInconsistency) -> RepairResult:
        about = {"inconsistency": found.kind.value, "queue": found.queue, "job": found.job}
        mended = False
        try:
            mended = await self._mends.repair(found)
        except (BrokerError, UsageError) as error:
            log.warning("repair failed", extra={**about, "why": str(error)})
        else:
            # What cannot be mended is found again each time.
            log.log(
                logging.WARNING if mended else logging.DEBUG,
                "inconsistency repaired" if mended else "inconsistency left",
                extra=about,
            )
        return RepairResult(found.kind, found.queue, found.job, mended)

    async def _find(self, scan: Scan) -> AsyncGenerator[FoundInconsistency, None]:
        known: set[FoundInconsistency] = set()
        for part in await self._parts(scan):
            read, scanned, before = scan.read_bytes, scan.scanned, -1
            # A page at a time: what is done with one must not hold up the event loop of a worker.
            while before < scan.scanned and (scan.complete or not scan.has_read(scanned, read)):
                before = scan.scanned
                for found in await part():
                    if found not in known:
                        known.add(found)
                        yield found

    async def _parts(self, scan: Scan) -> list[ScanPart]:
        """What a look reads, in this order; each a slice at a time."""
        search, queues = self._search, await self._streams.queues()
        return [
            *(partial(search.scan_advisories, queue, scan) for queue in queues),
            *(partial(search.scan_consumers, queue) for queue in queues),
            *(partial(search.scan_queue, queue, stream, scan) for queue, stream in queues.items()),
            *(
                partial(of, queue, scan)
                for queue in queues
                for of in (search.scan_waiting, search.scan_slots)
            ),
            *(
                partial(of, scan)
                for of in (
                    search.scan_records,
                    search.scan_dead_letters,
                    search.scan_ids,
                    search.scan_unique_keys,
                )
            ),
        ]

    async def _store_report(self, by: str, scan: Scan, swept: list[RepairResult]) -> None:
        told = {
            "sweeper": by,
            "scanned": scan.scanned,
            "found": Counter(one.kind.value for one in swept),
            "repaired": Counter(one.kind.value for one in swept if one.repaired),
            "positions": {place: after for place, after in scan.positions.items() if after},
        }
        await publish_with_retry(self._wire, self._subjects.key("workers", "told.sweep"), to_json(told))

    async def _last_report(self) -> dict[str, Any]:
        """What the last sweep told, and when; empty where there was none."""
        reply = await self._read("told.sweep")
        if reply is None:
            return {}
        with contextlib.suppress(ValueError):
            return {**from_json(reply.payload), "at": events.parse_time(reply.headers["Nats-Time-Stamp"])}
        return {}

    async def _read(self, key: str) -> Reply | None:
        bucket = self._subjects.streams.bucket("workers")
        try:
            return await self._reads.last(bucket, self._subjects.key("workers", key))
        except NoResponders:
            await self._jetstream.check_absent(bucket)
            return None
