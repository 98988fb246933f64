"""Workers take the ticks of their queues' schedules: one worker gets each message, and submits the due jobs.

A message is settled only after its jobs are submitted. If that fails, a worker gets the message again.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Iterable, Mapping

from jsq.broker import Broker, ConsumerAddress, Delivery, Puller, PullHandlers
from jsq.broker.topology.configs import TICK_LEASE, TICKS_CONSUMER
from jsq.errors import BadEnvelope, BrokerError, NewerEnvelope, NotAllowed, QueueFull
from jsq.model.schedule import Schedule, TickDecision

log = logging.getLogger("jsq.schedule")

MAX_TICKS = 20
"""Ticks that one worker handles at the same time."""

FULL_DELAY = 5
"""Seconds until a tick whose queue was full is offered again."""

REPAIR_INTERVAL = 15.0
"""Seconds between two checks that each schedule has a next tick."""


class ScheduleTicks:
    """The ticks of a worker's queues, except those in `removed`. `declared` are the schedules of its App."""

    def __init__(
        self, broker: Broker, queues: Iterable[str], declared: Iterable[Schedule], removed: set[str]
    ) -> None:
        self._broker = broker
        self._queues = list(queues)
        self._removed = removed
        self._declared = [one for one in declared if one.job.queue in self._queues]
        self._taking: set[asyncio.Task[None]] = set()
        self._closed = False
        self._pullers = [
            Puller(
                broker.wire,
                ConsumerAddress(queue, broker.subjects.streams.scheduled(queue), TICKS_CONSUMER, TICK_LEASE),
                PullHandlers(self._taken, self._wanted),
            )
            for queue in self._queues
        ]

    async def declare(self) -> None:
        """Store the schedules that the App declares; without the permission, `jsq provision` must do it."""
        for schedule in self._declared:
            try:
                await self._broker.schedules.put(schedule)
            except NotAllowed as error:
                log.info("schedule not updated", extra={"schedule": schedule.name, "why": str(error)})
            except (BadEnvelope, NewerEnvelope) as error:
                log.warning("schedule not updated", extra={"schedule": schedule.name, "why": str(error)})

    async def run(self) -> None:
        """Take ticks until cancelled, and regularly restore missing ticks."""
        async with asyncio.TaskGroup() as group:
            for puller in self._pullers:
                await puller.open()
                group.create_task(puller.watch())
            for puller in self._pullers:
                try:
                    await puller.check()
                except NotAllowed as error:
                    log.warning("ticks not pulled", extra={"queue": puller.queue, "why": str(error)})
            await self._keep_repairing()

    async def close(self) -> None:
        """Stop pulling ticks, and finish the current ones; after `TICK_LEASE`, another worker gets them."""
        self._closed = True
        for puller in self._pullers:
            await puller.close()
        if self._taking:
            _, left = await asyncio.wait(self._taking, timeout=TICK_LEASE)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _keep_repairing(self) -> None:
        hindered = False
        while True:
            for queue in self._queues:
                if queue in self._removed:
                    continue
                try:
                    known = [one.name for one in self._declared if one.job.queue == queue]
                    for name in await self._broker.ticks.repair_wakeups(queue, known):
                        log.warning("schedule tick restored", extra={"schedule": name, "queue": queue})
                except BrokerError as error:
                    level = logging.DEBUG if hindered else logging.WARNING
                    log.log(level, "schedules not checked", extra={"queue": queue, "why": str(error)})
                    hindered = True
                except Exception:
                    log.exception("schedules not checked", extra={"queue": queue})
                else:
                    hindered = False
            await asyncio.sleep(REPAIR_INTERVAL * random.uniform(0.5, 1.0))

    # -- deliveries --------------------------------------------------------------------------------------

    def _wanted(self, puller: Puller) -> int:
        return -1 if self._closed else MAX_TICKS - len(self._taking)

    def _taken(self, delivery: Delivery) -> None:
        task = asyncio.get_running_loop().create_task(self._take(delivery))
        self._taking.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._taking.discard(task)
        for puller in self._pullers:
            puller.request()

    async def _take(self, delivery: Delivery) -> None:
        """Submit the due jobs, then settle; or leave the tick to the next delivery."""
        about = {"schedule": delivery.id, "queue": delivery.queue}

        def holds() -> bool:
            return not delivery.lease.lapsed()

        try:
            decision = await self._broker.ticks.run(delivery.queue, delivery.id, delivery.stored, holds)
        except QueueFull as error:
            log.warning("tick delayed", extra={**about, "why": str(error)})
            self._settle(delivery, b'-NAK {"delay": %d}' % (FULL_DELAY * 10**9))
        except (BrokerError, BadEnvelope, NewerEnvelope) as error:
            log.warning("tick abandoned", extra={**about, "why": str(error)})
        except Exception:
            log.exception("tick abandoned", extra=about)
        else:
            self._settle(delivery, b"+ACK")
            if decision is not None:
                log_tick(decision, about)

    def _settle(self, delivery: Delivery, word: bytes) -> None:
        with contextlib.suppress(BrokerError):
            if not delivery.lease.lapsed():
                self._broker.wire.send(delivery.reply, word)


def log_tick(decision: TickDecision, about: Mapping[str, str]) -> None:
    """Log that a schedule moved on."""
    ticks = ",".join(tick.isoformat() for tick in decision.ticks)
    message = "schedule fired" if ticks else "schedule tick skipped"
    log.info(message, extra={**about, "ticks": ticks, "done": decision.state.decided_until.isoformat()})
