"""Resumes the sources of wake-ups that the server has interrupted, and admits the jobs that it skipped."""

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Iterable

from jsq.broker import Broker
from jsq.broker.flow.wakeup_source import ADMIT_LEASE, WakeupSource
from jsq.broker.topology.presence import HEARTBEAT_SECONDS
from jsq.errors import BrokerError, CannotChange, NotAllowed

log = logging.getLogger("jsq.worker")

SILENT_SECONDS = 1.3
"""Seconds without a heartbeat after which the source of a stream is resumed. Heartbeats come each second."""

UNHEARD_SECONDS = 2.5
"""The same for the regular check, which has no particular cause."""

RESUME_SECONDS = 5.0
"""Seconds between two attempts to resume a source."""

ROUND_SECONDS = 0.3
"""Seconds between two rounds of the worker that holds the lease."""

STANDBY_SECONDS = 1.0
"""Seconds between two rounds of a worker that waits for another to do the work."""


class WakeupSources:
    """The sources of a worker's queues: each is checked after a reconnect and at each heartbeat.

    Of all workers of a queue, one resumes its source.
    """

    def __init__(self, broker: Broker, queues: Iterable[str], by: str) -> None:
        self._wire = broker.wire
        self._key_groups = broker.key_groups
        self._checks = {queue: asyncio.Event() for queue in queues}
        self._sources = {queue: WakeupSource(broker.namespace, queue, by) for queue in self._checks}

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
        check, source = self._checks[queue], self._sources[queue]
        interrupted, following = False, group.create_task(asyncio.sleep(0))
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_SECONDS * random.uniform(0.5, 1.0)):
                    await check.wait()
            interrupted = interrupted or check.is_set()
            check.clear()
            try:
                silence = await source.silence()
                interrupted = silence is not None and (
                    interrupted or silence > UNHEARD_SECONDS or source.interrupted
                )
                if interrupted:
                    following.cancel()
                    await SourceWatch(queue, source).run()
                    following = group.create_task(self._complete(queue))
                elif following.done():
                    source.confirm()
                interrupted = False
            except NotAllowed as error:
                log.info("wake-ups not checked", extra={"queue": queue, "why": str(error)})
                return
            except BrokerError as error:
                log.debug("wake-ups not checked", extra={"queue": queue, "why": str(error)})
                if interrupted:
                    check.set()  # its streams have no leader yet
                    await asyncio.sleep(ROUND_SECONDS)
            except Exception:
                log.exception("wake-ups not checked", extra={"queue": queue})

    async def _complete(self, queue: str) -> None:
        """Admit the jobs that the server skipped before it resumed the source, unless another worker does."""
        source, end = self._sources[queue], time.monotonic() + 2 * ADMIT_LEASE
        try:
            while not await source.acquire():
                if time.monotonic() > end:
                    source.confirm()
                    return  # another worker lives, renews the lease, and does it
                await asyncio.sleep(STANDBY_SECONDS * random.uniform(0.5, 1.0))
            keys = await source.unconfirmed_keys()
            for token in keys:
                await self._key_groups.admit(queue, token)
            source.confirm()
        except NotAllowed as error:
            log.info("wake-ups not checked", extra={"queue": queue, "why": str(error)})
        except BrokerError:
            self._checks[queue].set()
        except Exception:
            log.exception("wake-ups not checked", extra={"queue": queue})
        else:
            log.debug("skipped jobs admitted", extra={"queue": queue, "keys": len(keys)})


class SourceWatch:
    """One watch over the source of a queue's wake-ups: resumes it until it works.

    It works if a message of it arrived between two rounds.
    """

    def __init__(self, queue: str, source: WakeupSource) -> None:
        self._queue = queue
        self._source = source
        self._began = time.monotonic()
        self._checked = self._began
        self._silence = math.inf
        self._resumed = -math.inf
        self._may_resume = True

    async def run(self) -> None:
        """Resume until the source works. Raises `NotAllowed`, `BrokerError`."""
        while await self._is_silent():
            holds = await self._source.acquire()
            if holds and self._may_resume:
                await self._resume()
            await asyncio.sleep((ROUND_SECONDS if holds else STANDBY_SECONDS) * random.uniform(0.5, 1.0))

    async def _is_silent(self) -> bool:
        """Whether the source has sent no message since the last round."""
        found, now = await self._source.silence(), time.monotonic()
        if found is None:
            return False
        before, passed = self._silence, now - self._checked
        self._silence, self._checked = found, now
        return before == math.inf or found >= before + passed - 0.1

    async def _resume(self) -> None:
        """Resume the source if it has missed a heartbeat."""
        now = time.monotonic()
        silence = min(self._silence, now - self._began)
        if silence < SILENT_SECONDS or now - self._resumed < RESUME_SECONDS:
            return
        self._resumed = now
        try:
            await self._source.resume()
        except (NotAllowed, CannotChange) as error:
            self._may_resume = False
            log.debug("source not resumed", extra={"queue": self._queue, "why": str(error)})
        else:
            log.info("source resumed", extra={"queue": self._queue})
