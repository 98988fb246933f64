"""Renews leases in a thread with a connection of its own.

So a task that blocks the event loop of the worker does not lose its lease. A lease counts as renewed only
when the server has answered: a renewal that was sent may not have arrived.
"""

import asyncio
import contextlib
import functools
import logging
import threading
from collections.abc import Callable
from typing import Protocol

from jsq.broker.delivery.delivery import Delivery, Lease, now
from jsq.errors import BrokerError
from jsq.settings import Login
from jsq.transport.wire import Wire

log = logging.getLogger("jsq.broker")

LEASE_CHECK_SECONDS = 0.2
"""Seconds between two checks of the leases. The shortest lease is 1 s, renewed after a third of that."""


class RenewableHold(Protocol):
    """Something other than a delivery that a worker holds by a lease, such as slots of a queue."""

    lease: Lease

    async def renew(self, wire: Wire) -> None:
        """Renew the lease on the server, and in `lease`. Called in the thread, with its connection."""

    def lapse(self) -> None:
        """Called on the worker's event loop when the lease has lapsed."""


class Leases:
    """Renews the leases of the deliveries in `held` and of other `holds`, each after a third of its lease.

    The worker's event loop adds deliveries to `held`, by their reply subject, and removes them. `lapsed` is
    called on the same loop, once for each delivery whose lease has lapsed. Its second argument is True if
    this process sent a renewal in time and the server did not answer. If it is False, this process has
    stalled.
    """

    def __init__(self, login: Login, lapsed: Callable[[Delivery, bool], None]) -> None:
        self.held: dict[str, Delivery] = {}
        self.holds: list[RenewableHold] = []
        self._renewing: dict[int, asyncio.Task[None]] = {}
        self._login = login
        self._on_lapse = lapsed
        self._unanswered: frozenset[str] = frozenset()
        self._owner: asyncio.AbstractEventLoop | None = None
        self._stopping = threading.Event()
        self._wake: Callable[[], object] = lambda: None
        self._thread = threading.Thread(target=self._run, name="jsq-leases", daemon=True)

    def start(self) -> None:
        self._owner = asyncio.get_running_loop()
        self._thread.start()

    def unanswered(self, delivery: Delivery) -> bool:
        """Whether the last renewal of the lease was due and the server has not answered it."""
        return delivery.reply in self._unanswered

    async def stop(self) -> None:
        """End the thread and its connection."""
        self._stopping.set()
        with contextlib.suppress(RuntimeError):  # the loop of the thread has ended meanwhile
            self._wake()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, 5.0)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                asyncio.run(self._renew_for_ever())
            except BrokerError as error:
                log.warning("lease renewal delayed", extra={"error": str(error)})
                self._note_unanswered(self._due())
                self._report_lapsed()
                self._stopping.wait(LEASE_CHECK_SECONDS)
            except Exception:
                log.exception("lease thread restarted")
                self._stopping.wait(LEASE_CHECK_SECONDS)

    async def _renew_for_ever(self) -> None:
        stopped, loop = asyncio.Event(), asyncio.get_running_loop()
        self._wake = functools.partial(loop.call_soon_threadsafe, stopped.set)
        wire = await Wire(self._login, name="jsq-leases").open()
        try:
            while not self._stopping.is_set():
                if wire.closed:
                    return
                self._renew_holds(wire)
                await self._renew(wire)
                self._report_lapsed()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LEASE_CHECK_SECONDS):
                        await stopped.wait()
        finally:
            for renewing in self._renewing.values():
                renewing.cancel()
            await asyncio.gather(*self._renewing.values(), return_exceptions=True)
            self._renewing.clear()
            await wire.close()

    def _renew_holds(self, wire: Wire) -> None:
        """Renew the due `holds`, each in a task of its own: the deliveries do not wait for the slowest."""
        for hold in list(self.holds):
            key = id(hold)
            if key in self._renewing or not hold.lease.wants_renewal() or hold.lease.lapsed():
                continue
            renewing = asyncio.get_running_loop().create_task(self._renew_hold(wire, hold))
            self._renewing[key] = renewing

    async def _renew_hold(self, wire: Wire, hold: RenewableHold) -> None:
        try:
            async with asyncio.timeout(hold.lease.seconds / 3):
                await hold.renew(wire)
        except (BrokerError, TimeoutError):
            await wire.switch_server()
        except Exception:
            log.exception("lease not renewed")
        finally:
            self._renewing.pop(id(hold), None)

    async def _renew(self, wire: Wire) -> None:
        due = self._due()
        if due or self._unanswered:
            self._note_unanswered(due)
        if not due or not wire.connected:
            return
        await asyncio.gather(*(self._renew_one(wire, delivery) for delivery in due))

    def _due(self) -> list[Delivery]:
        """The deliveries whose lease must be renewed now, and has not lapsed."""
        return [
            one for one in list(self.held.values()) if one.lease.wants_renewal() and not one.lease.lapsed()
        ]

    def _note_unanswered(self, due: list[Delivery]) -> None:
        """Record which renewals wait for an answer; drop those of deliveries that are no longer held."""
        self._unanswered = self._unanswered.intersection(list(self.held)).union(one.reply for one in due)

    async def _renew_one(self, wire: Wire, delivery: Delivery) -> None:
        """Renew one lease. Once the consumer has answered, the lease counts from the time of the request."""
        sent = now()
        try:
            await wire.ask(delivery.reply, b"+WPI", timeout=delivery.lease.seconds / 3)
            renew(delivery.lease, sent)
            self._unanswered -= {delivery.reply}
        except BrokerError:
            await wire.switch_server()

    def _report_lapsed(self) -> None:
        for hold in list(self.holds):
            if hold.lease.lapsed() and not hold.lease.reported and self._owner is not None:
                hold.lease.reported = True
                with contextlib.suppress(RuntimeError):
                    self._owner.call_soon_threadsafe(hold.lapse)
        for delivery in list(self.held.values()):
            if delivery.lease.lapsed() and not delivery.lease.reported and self._owner is not None:
                delivery.lease.reported = True
                with contextlib.suppress(RuntimeError):
                    self._owner.call_soon_threadsafe(self._on_lapse, delivery, self.unanswered(delivery))


def renew(lease: Lease, sent: float) -> None:
    """Restart a lease at the time at which the renewal was sent, unless it has lapsed meanwhile."""
    if not lease.lapsed():
        lease.renewed = sent
