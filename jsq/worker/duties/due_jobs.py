"""Forwards the due jobs of a worker's queues while the server does not, for example after a restart."""

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Iterable

from jsq.broker import Broker
from jsq.broker.flow.due_jobs import FORWARD_LEASE, OVERDUE_SECONDS, DueJobs
from jsq.broker.topology.presence import HEARTBEAT_SECONDS
from jsq.errors import BrokerError, CannotChange, NotAllowed

log = logging.getLogger("jsq.worker")

SILENT_SECONDS = 1.3
"""Seconds without a heartbeat after which the source of a stream is resumed. Heartbeats come each second."""

UNHEARD_SECONDS = 2.5
"""The same for the regular check, which has no particular cause."""

RESUME_SECONDS = 5.0
"""Seconds between two attempts to resume the source of a stream."""

ROUND_SECONDS = 0.3
"""Seconds between two rounds of the worker that holds the lease."""

STANDBY_SECONDS = 1.0
"""Seconds between two rounds of a worker that waits for another to do the work."""


class DueForwarding:
    """The forwarding of a worker's queues: each is checked after a reconnect and at each heartbeat.

    Of all workers of a queue, one forwards its due jobs.
    """

    def __init__(self, broker: Broker, queues: Iterable[str], by: str) -> None:
        self._wire = broker.wire
        self._key_groups = broker.key_groups
        self._checks = {queue: asyncio.Event() for queue in queues}
        self._due = {queue: DueJobs(broker.namespace, broker.records, queue, by) for queue in self._checks}

    async def run(self) -> None:
        """Check until cancelled."""
        forget = self._wire.on_reconnect(self.check_all)
        try:
            await self.check_all()  # the server may have started just before the worker
            async with asyncio.TaskGroup() as group:
                for queue in self._checks:
                    group.create_task(self._run(queue, group))
        finally:
            forget()

    async def check_all(self) -> None:
        """Check each queue now: its source may have been interrupted."""
        for check in self._checks.values():
            check.set()

    async def _run(self, queue: str, group: asyncio.TaskGroup) -> None:
        check, due = self._checks[queue], self._due[queue]
        interrupted, following = False, group.create_task(asyncio.sleep(0))
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_SECONDS * random.uniform(0.5, 1.0)):
                    await check.wait()
            interrupted = interrupted or check.is_set()
            check.clear()
            try:
                silence = 0.0 if interrupted else max((await due.silences()).values(), default=0.0)
                if interrupted or silence > UNHEARD_SECONDS or due.interrupted:
                    interrupted = True
                    following.cancel()
                    await SourceWatch(queue, due).run()
                    following = group.create_task(self._complete(queue))
                elif following.done():
                    due.confirm()
                interrupted = False
            except NotAllowed as error:
                log.info("due jobs not forwarded", extra={"queue": queue, "why": str(error)})
                return
            except BrokerError as error:
                log.debug("due jobs not forwarded", extra={"queue": queue, "why": str(error)})
                if interrupted:
                    check.set()  # its streams have no leader yet
                    await asyncio.sleep(ROUND_SECONDS)
            except Exception:
                log.exception("due jobs not forwarded", extra={"queue": queue})

    async def _complete(self, queue: str) -> None:
        """Do what the server skipped just before it resumed a source, unless another worker does it."""
        due, end = self._due[queue], time.monotonic() + 2 * FORWARD_LEASE
        try:
            while not await due.acquire():
                if time.monotonic() > end:
                    due.confirm()
                    return  # another worker lives, renews the lease, and does it
                await asyncio.sleep(STANDBY_SECONDS * random.uniform(0.5, 1.0))
            keys = await due.unconfirmed_keys()
            for token in keys:
                await self._key_groups.admit(queue, token)
            await asyncio.sleep(OVERDUE_SECONDS)
            jobs = await due.forward()
            due.confirm()
        except NotAllowed as error:
            log.info("due jobs not forwarded", extra={"queue": queue, "why": str(error)})
        except BrokerError:
            self._checks[queue].set()
        except Exception:
            log.exception("due jobs not forwarded", extra={"queue": queue})
        else:
            log.debug("skipped jobs forwarded", extra={"queue": queue, "keys": len(keys), "jobs": jobs})


class SourceWatch:
    """One watch over the sources of a queue: forwards due jobs, and resumes sources, until all work.

    A source works if a message of it arrived between two rounds.
    """

    def __init__(self, queue: str, due: DueJobs) -> None:
        self._queue = queue
        self._due = due
        self._began = time.monotonic()
        self._checked = self._began
        self._silences: dict[str, float] = {}
        self._working: set[str] = set()
        self._resumed: dict[str, float] = {}
        self._may_resume = True

    async def run(self) -> None:
        """Forward and resume until all sources work. Raises `NotAllowed`, `BrokerError`."""
        forwarded = 0
        while await self._silent():
            holds = await self._due.acquire()
            if holds:
                await self._resume()
                forwarded += await self._due.forward()
            await asyncio.sleep((ROUND_SECONDS if holds else STANDBY_SECONDS) * random.uniform(0.5, 1.0))
        if forwarded:
            log.info("due jobs forwarded", extra={"queue": self._queue, "jobs": forwarded})

    async def _silent(self) -> bool:
        """Whether a source has sent no message yet."""
        found, now = await self._due.silences(), time.monotonic()
        for stream, silence in found.items():
            before = self._silences.get(stream, math.inf)
            if before != math.inf and silence < before + (now - self._checked) - 0.1:
                self._working.add(stream)
        self._silences, self._checked = found, now
        return not found.keys() <= self._working

    async def _resume(self) -> None:
        """Resume the sources that have missed a heartbeat."""
        now = time.monotonic()
        for stream in self._silences.keys() - self._working if self._may_resume else ():
            silence = min(self._silences[stream], now - self._began)
            if silence < SILENT_SECONDS or now - self._resumed.get(stream, -math.inf) < RESUME_SECONDS:
                continue
            self._resumed[stream] = now
            try:
                await self._due.resume(stream)
            except (NotAllowed, CannotChange) as error:
                self._may_resume = False
                log.debug("source not resumed", extra={"stream": stream, "why": str(error)})
                return
            log.info("source resumed", extra={"stream": stream})
