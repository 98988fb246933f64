"""Checks that the streams and consumers of a worker exist, and creates deleted ones again.

Otherwise a worker whose records were deleted would take jobs and never end one, and log nothing.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable

from jsq.broker.topology.inventory import StreamInventory
from jsq.errors import BrokerError, NotAllowed
from jsq.transport.wire import Wire
from jsq.worker.observer import Observer

log = logging.getLogger("jsq.worker")

WATCH_INTERVAL = 60.0
"""Seconds between two checks that no advisory has caused: an advisory may be lost."""

RETRY_INTERVAL = 2.0
"""Seconds between two checks while something is missing."""

SETTLE_SECONDS = 0.1
"""Seconds to wait after an advisory: a queue that is removed is announced, and so is each of its streams."""


class StreamWatch:
    """The watch of one worker. `missing` are the streams and consumers that are missing now.

    Queues for which `removed` returns True are left alone. `restored` is awaited with what was created again.
    """

    def __init__(
        self,
        wire: Wire,
        inventory: StreamInventory,
        observer: Observer,
        removed: Callable[[str], bool],
        restored: Callable[[list[str]], Awaitable[None]],
    ) -> None:
        self.missing: dict[str, str] = {}
        self._wire = wire
        self._inventory = inventory
        self._observer = observer
        self._removed = removed
        self._restored = restored
        self._check = asyncio.Event()
        self._hindrance = ""

    async def run(self) -> None:
        """Watch until cancelled."""
        subscriptions = await self._inventory.subscribe(self._check.set)
        forget = self._wire.on_reconnect(self._check_soon)
        self._check.set()
        try:
            while True:
                await self._wait()
                try:
                    await self._check_streams()
                except BrokerError as error:
                    log.debug("streams not checked", extra={"why": str(error)})
                except Exception:
                    log.exception("streams not checked")
        finally:
            forget()
            for subscription in subscriptions:
                await self._wire.unsubscribe(subscription)

    async def _check_soon(self) -> None:
        self._inventory.forget_advisories()
        self._check.set()

    async def _wait(self) -> None:
        interval = RETRY_INTERVAL if self.missing else WATCH_INTERVAL
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(interval * random.uniform(0.5, 1.0)):
                await self._check.wait()
        await asyncio.sleep(SETTLE_SECONDS)
        self._check.clear()

    async def _check_streams(self) -> None:
        """Report what is missing, and create it again."""
        found = await self._inventory.missing(self._removed)
        for name in found.keys() - self.missing.keys():
            log.error("stream missing", extra={"stream": name, "why": "it was deleted, with its content"})
        self._report(found)
        if not found:
            return
        try:
            await self._inventory.restore(found)
        except BrokerError as error:
            self._report_failure(list(found), error)
            return
        self._hindrance = ""
        left = await self._inventory.missing(self._removed)
        restored = sorted(found.keys() - left.keys())
        self._report(left)
        for name in restored:
            log.warning("stream restored", extra={"stream": name})
        await self._restored(restored)

    def _report(self, missing: dict[str, str]) -> None:
        self.missing = missing
        self._observer.streams_missing(len(missing))

    def _report_failure(self, streams: list[str], error: BrokerError) -> None:
        """Log once why a stream is not created again."""
        why = str(error)
        if isinstance(error, NotAllowed):
            why += "; have an admin run `jsq provision`"
        level = logging.ERROR if why != self._hindrance else logging.DEBUG
        self._hindrance = why
        log.log(level, "stream not restored", extra={"stream": ",".join(streams), "why": why})
