"""Sweeps. Every worker may sweep, but only one at a time.

The sweeper holds a leased key, created and renewed by compare-and-set, and checks that it still owns it
before each repair. A sweeper that was suspended meanwhile finds the key expired. If it checked a moment too
early, no harm is done: each repair is safe when two sweepers make it.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from pydantic_core import from_json, to_json

from jsq.broker.jobs.records import TTL
from jsq.broker.maintenance.repairs import Repairs
from jsq.broker.maintenance.scan import Scanner
from jsq.broker.maintenance.scan_reads import SCAN_SLICE_MESSAGES, Scan
from jsq.broker.topology.leased_key import LeasedKey
from jsq.broker.topology.namespace import Namespace
from jsq.broker.topology.provision import Provisioner
from jsq.codec import revisions
from jsq.errors import BrokerError, BrokerUnavailable, UsageError
from jsq.model.repair import FoundInconsistency, RepairResult
from jsq.transport.replies import NoResponders, Reply
from jsq.transport.retrying import publish_with_retry
from jsq.transport.server_clock import has_outlived_ttl

log = logging.getLogger("jsq.sweep")

MIN_AGE = 90.0
"""The age in seconds from which an entry is judged: work in progress has settled long before."""

SWEEP_KEY = "lock.sweep"
"""The name of the key whose holder may sweep."""

LEASE_SECONDS = 30
"""Seconds after which the lease of a sweeper expires, unless it is renewed."""

LEASE_POLL_SECONDS = 0.25

ScanPart = Callable[[], Awaitable[list[FoundInconsistency]]]


@dataclass(frozen=True, slots=True)
class LastSweep:
    """The report of the last sweep: when it ended (UTC), which sweeper made it, and its counts.

    `scanned` counts the messages that it read. `found` and `repaired` count inconsistencies by kind.
    """

    at: datetime
    sweeper: str
    scanned: int
    found: dict[str, int]
    repaired: dict[str, int]


class Sweeper:
    """Finds inconsistencies, and repairs them."""

    def __init__(
        self, namespace: Namespace, provisioner: Provisioner, scanner: Scanner, repairs: Repairs
    ) -> None:
        self._namespace = namespace
        self._provisioner = provisioner
        self._wire = namespace.wire
        self._reads = namespace.reads
        self._jetstream = namespace.jetstream
        self._subjects = namespace.subjects
        self._streams = namespace.streams
        self._scanner = scanner
        self._repairs = repairs

    async def scan(self, *, age: float = MIN_AGE, most: int | None = None) -> list[FoundInconsistency]:
        """The inconsistencies that are at least `age` seconds old, in `most` messages of each stream, or in
        all.
        """
        scan = Scan(age, await self._now(), most or SCAN_SLICE_MESSAGES, complete=most is None)
        return [found async for found in self._find(scan)]

    async def sweep(
        self, by: str, *, age: float = MIN_AGE, wait_seconds: float = LEASE_SECONDS
    ) -> list[RepairResult]:
        """Scan every stream to its end, and repair what can be repaired.

        `by` is the name of the sweeper, which no other sweeper may have. Raises `BrokerUnavailable` if
        another sweeper holds the lease for longer than `wait_seconds` seconds, or took it over.
        """
        await self._streams.ensure_shared()
        lease = self._lease(by)
        end = time.monotonic() + wait_seconds
        while not await lease.acquire():
            if time.monotonic() >= end:
                raise BrokerUnavailable(f"{await lease.holder()} is sweeping; try again when it has finished")
            await asyncio.sleep(LEASE_POLL_SECONDS)
        return await self._sweep(lease, by, Scan(age, await self._now(), SCAN_SLICE_MESSAGES, complete=True))

    async def sweep_slice(
        self, by: str, *, interval: float, age: float = MIN_AGE
    ) -> list[RepairResult] | None:
        """Sweep a slice of each stream, unless a sweep runs or began less than `interval` seconds ago.

        The next sweep continues where this one stopped. Returns None if no sweep was due.
        """
        lease = self._lease(by)
        interval_key = await self._read("interval.sweep")
        if interval_key is not None and not has_outlived_ttl(interval_key, self._namespace.wire.clock):
            return None
        if not await lease.acquire():
            return None
        report = await self._last_report()
        # The server's clock expires this key: the clocks of workers may differ.
        key = self._subjects.key("workers", "interval.sweep")
        await publish_with_retry(self._wire, key, by.encode(), {TTL: str(max(1, round(interval)))})
        scan = Scan(age, await self._now(), SCAN_SLICE_MESSAGES, positions=report.get("positions", {}))
        return await self._sweep(lease, by, scan)

    async def last(self) -> LastSweep | None:
        """The report of the last sweep, or None if there was no sweep."""
        report = await self._last_report()
        if not report:
            return None
        return LastSweep(*(report[name] for name in ("at", "sweeper", "scanned", "found", "repaired")))

    # -- inside ------------------------------------------------------------------------------------------

    def _lease(self, by: str) -> LeasedKey:
        return LeasedKey(self._namespace, SWEEP_KEY, by, LEASE_SECONDS)

    async def _now(self) -> datetime:
        """The time by the server's clock, which also stamped the messages whose age is judged."""
        await self._jetstream.stream_info(self._subjects.streams.records)
        return self._wire.clock.moment()

    async def _sweep(self, lease: LeasedKey, by: str, scan: Scan) -> list[RepairResult]:
        results: list[RepairResult] = []
        async with lease.renewed(), contextlib.aclosing(self._find(scan)) as inconsistencies:
            await self._provisioner.ensure_advisories()
            async for found in inconsistencies:
                if not await lease.is_safe():
                    raise BrokerUnavailable(
                        "the sweep stopped: it lost its lease, and another sweeper may run"
                    )
                results.append(await self._repair(found))
            await self._store_report(by, scan, results)
        return results

    async def _repair(self, found: FoundInconsistency) -> RepairResult:
        about = {"inconsistency": found.kind.value, "queue": found.queue, "job": found.job}
        repaired = False
        try:
            repaired = await self._repairs.repair(found)
        except (BrokerError, UsageError) as error:
            log.warning("repair failed", extra={**about, "why": str(error)})
        else:
            # Every sweep finds the inconsistencies again that cannot be repaired: they are no news.
            log.log(
                logging.WARNING if repaired else logging.DEBUG,
                "inconsistency repaired" if repaired else "inconsistency skipped",
                extra=about,
            )
        return RepairResult(found.kind, found.queue, found.job, repaired)

    async def _find(self, scan: Scan) -> AsyncGenerator[FoundInconsistency, None]:
        known: set[FoundInconsistency] = set()
        for part in await self._parts(scan):
            read, scanned, before = scan.read_bytes, scan.scanned, -1
            # One page at a time: judging a larger part would hold up the event loop of a worker.
            while before < scan.scanned and (scan.complete or not scan.has_read(scanned, read)):
                before = scan.scanned
                for found in await part():
                    if found not in known:
                        known.add(found)
                        yield found

    async def _parts(self, scan: Scan) -> list[ScanPart]:
        """The parts of a scan, in the order in which they are read; each call reads one page."""
        scanner, queues = self._scanner, await self._streams.queues()
        return [
            *(partial(scanner.scan_advisories, queue, scan) for queue in queues),
            *(partial(scanner.scan_consumers, queue) for queue in queues),
            *(partial(scanner.scan_queue, queue, stream, scan) for queue, stream in queues.items()),
            *(
                partial(part, queue, scan)
                for queue in queues
                for part in (scanner.scan_waiting, scanner.scan_slots)
            ),
            *(
                partial(part, scan)
                for part in (
                    scanner.scan_records,
                    scanner.scan_dead_letters,
                    scanner.scan_ids,
                    scanner.scan_unique_keys,
                )
            ),
        ]

    async def _store_report(self, by: str, scan: Scan, results: list[RepairResult]) -> None:
        report = {
            "sweeper": by,
            "scanned": scan.scanned,
            "found": Counter(one.kind.value for one in results),
            "repaired": Counter(one.kind.value for one in results if one.repaired),
            "positions": {place: after for place, after in scan.positions.items() if after},
        }
        await publish_with_retry(self._wire, self._subjects.key("workers", "report.sweep"), to_json(report))

    async def _last_report(self) -> dict[str, Any]:
        """The report of the last sweep, with the time at which it was stored; empty if there is none."""
        reply = await self._read("report.sweep")
        if reply is None:
            return {}
        with contextlib.suppress(ValueError):
            return {**from_json(reply.payload), "at": revisions.parse_time(reply.headers["Nats-Time-Stamp"])}
        return {}

    async def _read(self, key: str) -> Reply | None:
        bucket = self._subjects.streams.bucket("workers")
        try:
            return await self._reads.last(bucket, self._subjects.key("workers", key))
        except NoResponders:
            await self._jetstream.check_absent(bucket)
            return None
