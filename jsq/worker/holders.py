"""The attempts that this worker holds, and the fate of attempts that their records still show as running.

A delivery that finds its job `running` follows another attempt. That is a crash only if the worker of that
attempt died or stalled. So this worker asks the other one, if it is alive: it may still run the job, be about
to record the outcome, or have ended the attempt because the server was out of reach for longer than the
lease.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from jsq.broker import Broker, Delivery, Holding, Leases, StartedAttempt
from jsq.broker.delivery.delivery import now as monotonic_now
from jsq.errors import BrokerError, LeaseLost
from jsq.model.revision import StartVerdict, StoredRevision

log = logging.getLogger("jsq.job")

STILL_RUNS = "its worker runs the job, and holds the lease"

RETURN_SECONDS = 3.0
"""Seconds after an outage within which every worker is connected again: a reconnect is tried each 0.2 s."""

LATE_RECORD_SECONDS = 5.0
"""Seconds for which a delivery waits for another attempt to record its outcome."""

POLL_SECONDS = 0.05
MOST_UNRECORDED = 10_000


class HeldAttempt(Protocol):
    """An attempt of this worker. `cut_off` is set when it was ended because the server did not answer."""

    token: int
    cut_off: bool

    @property
    def delivery(self) -> Delivery: ...

    def has_lease(self) -> bool: ...

    def stop(self, why: LeaseLost) -> None: ...

    async def read(self, sequence: int) -> StoredRevision | None: ...


class JobHolders:
    """The attempts of one worker, for the questions of other deliveries of their jobs.

    `attempts` and `leases` are set by the dispatcher.
    """

    attempts: Mapping[str, HeldAttempt]
    leases: Leases

    def __init__(self, broker: Broker, worker: str) -> None:
        self._broker = broker
        self._worker = worker
        self._unrecorded: dict[int, Holding] = {}
        self._regaining: set[asyncio.Task[None]] = set()

    async def subscribe(self, queue: str) -> Callable[[], Awaitable[None]]:
        """Answer other workers of a queue; returns a function that ends the subscription."""
        return await self._broker.holders.subscribe(queue, self._worker, self._holding)

    def was_cut_off(self, attempt: HeldAttempt) -> bool:
        """Whether the lease of an attempt lapsed because the server did not answer."""
        return attempt.cut_off or self.leases.unanswered(attempt.delivery)

    def note_unrecorded(self, attempt: HeldAttempt, *, crashed: bool) -> None:
        """Note that an attempt has ended without an outcome in the record."""
        if not attempt.token:
            return
        while len(self._unrecorded) >= MOST_UNRECORDED:
            del self._unrecorded[next(iter(self._unrecorded))]
        self._unrecorded[attempt.token] = Holding.CRASHED if crashed else Holding.INTERRUPTED

    async def judge(self, attempt: HeldAttempt, last: StoredRevision, verdict: StartVerdict) -> StartVerdict:
        """The verdict on a delivery that finds its job `running`, by the fate of that attempt.

        `verdict` is the verdict by the record alone. Waits while that attempt records its outcome; then the
        record has moved on, and refuses the start of this one.
        """
        if verdict not in (StartVerdict.RECLAIM, StartVerdict.RESUME):
            return verdict
        event = last.revision
        about = StartedAttempt(event.worker, last.sequence, event.message, event.delivery)
        end = time.monotonic() + LATE_RECORD_SECONDS
        while True:
            if event.worker != self._worker:
                holding = await self._ask(attempt, about)
            elif verdict is StartVerdict.RESUME and not self._knows(about, attempt):
                return verdict
            else:
                holding = self._holding(about, attempt)
            if holding is not Holding.RECORDING or time.monotonic() > end:
                break
            await asyncio.sleep(POLL_SECONDS)
        if holding is Holding.RUNNING:
            log.info("delivery left", extra={"job": last.job, "worker": event.worker, "why": STILL_RUNS})
            return StartVerdict.ABANDON
        return StartVerdict.RECLAIM if holding in (Holding.CRASHED, None) else StartVerdict.RESTART

    def regain(self, attempt: HeldAttempt) -> None:
        """Renew the lease of an attempt that lapsed in an outage, unless another worker has reclaimed the
        job.

        The attempt continues meanwhile: this is for attempts that cannot be ended, such as threads.
        """
        attempt.cut_off = True
        task = asyncio.get_running_loop().create_task(self._regain(attempt))
        self._regaining.add(task)
        task.add_done_callback(self._regaining.discard)

    async def close(self) -> None:
        """Stop renewing lapsed leases."""
        left = list(self._regaining)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    # -- inside ------------------------------------------------------------------------------------------

    async def _regain(self, attempt: HeldAttempt) -> None:
        delivery, wire = attempt.delivery, self._broker.wire
        while self.attempts.get(delivery.reply) is attempt and not wire.closed:
            sent = monotonic_now()
            try:
                await wire.ask(delivery.reply, b"+WPI", timeout=delivery.lease.seconds / 3)
                last = await attempt.read(attempt.token)
            except BrokerError:
                await wire.wait_until_connected(POLL_SECONDS)
                continue
            if last is None or last.sequence != attempt.token:
                attempt.stop(LeaseLost(f"job {delivery.id} was reclaimed by another worker"))
            elif self.attempts.get(delivery.reply) is attempt:
                delivery.lease.revive(sent)
                attempt.cut_off = False
                self.leases.held[delivery.reply] = delivery
                log.info("lease regained", extra={"job": delivery.id})
            return

    async def _ask(self, attempt: HeldAttempt, about: StartedAttempt) -> Holding | None:
        """Ask another worker; after an outage repeatedly, until that worker has had time to reconnect."""
        wire, queue = self._broker.wire, attempt.delivery.queue
        while True:
            answer = await self._broker.holders.ask(queue, about)
            if answer is not None or time.monotonic() - wire.restored > RETURN_SECONDS:
                return answer

    def _holding(self, about: StartedAttempt, asking: HeldAttempt | None = None) -> Holding:
        """The fate of an attempt of this worker. An attempt that is not known here never started to run."""
        found = self._find(about, asking)
        if found is None:
            return self._unrecorded.get(about.token, Holding.INTERRUPTED)
        return Holding.RUNNING if found.has_lease() else Holding.RECORDING

    def _knows(self, about: StartedAttempt, asking: HeldAttempt) -> bool:
        return about.token in self._unrecorded or self._find(about, asking) is not None

    def _find(self, about: StartedAttempt, asking: HeldAttempt | None) -> HeldAttempt | None:
        for one in list(self.attempts.values()):
            delivery = one.delivery
            named = not one.token and (delivery.sequence, delivery.number) == (about.message, about.delivery)
            if one is not asking and (one.token == about.token or named):
                return one
        return None
