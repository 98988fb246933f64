"""The rules of a worker's queues: their settings and pauses, which may change while the worker runs.

They are read again when a change is announced, and at each heartbeat, in case an announcement was lost.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import datetime

from jsq.broker import Broker
from jsq.broker.topology.presence import HEARTBEAT_SECONDS
from jsq.errors import BadOption, BrokerError, NotAllowed
from jsq.model.pause import Pause, PauseSet
from jsq.settings import QueueSettings

log = logging.getLogger("jsq.worker")


class QueueRules:
    """The settings and pauses of a worker's queues, as of the last refresh.

    `on_change` is called when a rule has changed, `on_refresh` after each refresh. The dictionary `settings`
    belongs to the caller, and is updated.
    """

    def __init__(self, broker: Broker, settings: dict[str, QueueSettings]) -> None:
        self.settings = settings
        self.on_change: Callable[[], None] = lambda: None
        self.on_refresh: Callable[[], None] = lambda: None
        self._broker = broker
        self._pauses: dict[str, PauseSet] = {}
        self._least_sequence: dict[str, int] = {}
        self._announced = asyncio.Event()

    def is_paused(self, queue: str) -> bool:
        """Whether a queue, a task or a key of it is paused, or was just resumed."""
        return bool(self._pauses.get(queue))

    def queue_pause(self, queue: str) -> Pause | None:
        """The pause of a whole queue."""
        pauses = self._pauses.get(queue)
        return pauses.of_queue(self._moment()) if pauses else None

    def job_pause(self, queue: str, task: str, key: str) -> Pause | None:
        """The pause of a task or a key of a queue that holds a job."""
        pauses = self._pauses.get(queue)
        return pauses.of_job(task, key, self._moment()) if pauses else None

    async def pause(self, queue: str, key: str, until: datetime) -> None:
        """Pause a key, or without one the whole queue, because a task raised `RateLimited`."""
        pause = Pause(key=key, until=until, reason="rate_limited")
        if not pause.is_active(self._moment()):
            return
        try:
            self._set_pauses(queue, await self._broker.pauses.pause(queue, pause))
        except (NotAllowed, BadOption) as error:
            log.warning("pause not stored", extra={"queue": queue, "place": pause.scope, "why": str(error)})

    async def refresh(self) -> None:
        """Read the pauses and the settings of each queue."""
        for queue in self.settings:
            await self._refresh_pauses(queue)
            found = await self._broker.queues.setting(queue)
            if found is not None and found != self.settings[queue]:
                self.settings[queue] = found
                self.on_change()

    def refresh_soon(self, queue: str = "", least: int = 0) -> None:
        """Make `run` refresh now, and read the rules of a queue at the sequence `least` or later."""
        if queue:
            self._least_sequence[queue] = max(least, self._least_sequence.get(queue, 0))
        self._announced.set()

    async def run(self) -> None:
        """Refresh when a change is announced, and at each heartbeat. Runs until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await self._announced.wait()
            self._announced.clear()
            with contextlib.suppress(BrokerError):
                await self.refresh()
                self.on_refresh()

    async def _refresh_pauses(self, queue: str) -> None:
        least = self._least_sequence.get(queue, 0)
        try:
            self._set_pauses(queue, await self._broker.pauses.active(queue, least=least))
        except NotAllowed:
            self._set_pauses(
                queue, PauseSet()
            )  # a login made by an older release, without permission for pauses
        if self._least_sequence.get(queue) == least:
            del self._least_sequence[queue]

    def _set_pauses(self, queue: str, found: PauseSet) -> None:
        if found != self._pauses.get(queue):
            self._pauses[queue] = found
            self.on_change()

    def _moment(self) -> datetime:
        return self._broker.wire.clock.moment()
