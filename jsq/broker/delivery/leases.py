"""Leases are renewed from a thread of its own, with its own connection.

So a task that blocks the event loop does not look dead. A lease counts as renewed only when the server has
answered: a renewal that was merely sent proves nothing.
"""

import asyncio
import contextlib
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
"""Seconds between two looks at the leases: the shortest lease is 1 s, renewed at a third of it."""


class RenewableHold(Protocol):
    """What a worker holds by a lease beside its deliveries."""

    lease: Lease

    async def renew(self, wire: Wire) -> None:
        """Renew the lease on the server, and here. Called from the thread, with its connection."""

    def lapse(self) -> None:
        """The lease has lapsed. Called on the loop of the worker."""


class Leases:
    """Renews the leases of the deliveries that are `held`, each at a third of its lease, and other `holds`.

    The worker's loop adds the deliveries to `held`, by their reply subject, and removes them. `lapsed` is
    called on that loop too, once for each delivery whose lease has lapsed. Its second argument tells whether
    the server was asked in time to renew the lease and did not answer; if not, this process has stalled.
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
        self._thread = threading.Thread(target=self._run, name="jsq-leases", daemon=True)

    def start(self) -> None:
        self._owner = asyncio.get_running_loop()
        self._thread.start()

    def unanswered(self, delivery: Delivery) -> bool:
        """Whether the server has not answered the last time that the lease was due to be renewed."""
        return delivery.reply in self._unanswered

    async def stop(self) -> None:
        """End the thread and its connection."""
        self._stopping.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, 5.0)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                asyncio.run(self._renew_for_ever())
            except BrokerError as error:
                log.warning("leases cannot reach the server", extra={"error": str(error)})
                self._note_unanswered(self._due())
                self._report_lapsed()
                self._stopping.wait(LEASE_CHECK_SECONDS)
            except Exception:
                log.exception("the lease thread failed; it starts again")
                self._stopping.wait(LEASE_CHECK_SECONDS)

    async def _renew_for_ever(self) -> None:
        wire = await Wire(self._login, name="jsq-leases").open()
        try:
            while not self._stopping.is_set():
                if wire.closed:
                    return
                self._renew_holds(wire)
                await self._renew(wire)
                self._report_lapsed()
                await asyncio.sleep(LEASE_CHECK_SECONDS)
        finally:
            for renewing in self._renewing.values():
                renewing.cancel()
            await asyncio.gather(*self._renewing.values(), return_exceptions=True)
            self._renewing.clear()
            await wire.close()

    def _renew_holds(self, wire: Wire) -> None:
        """Renew what is due, each in a task of its own: the deliveries do not wait for the slowest."""
        for hold in list(self.holds):
            place = id(hold)
            if place in self._renewing or not hold.lease.wants_renewal() or hold.lease.lapsed():
                continue
            renewing = asyncio.get_running_loop().create_task(self._renew_hold(wire, hold))
            self._renewing[place] = renewing

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
        """The deliveries whose lease is due to be renewed, and has not lapsed."""
        return [
            one for one in list(self.held.values()) if one.lease.wants_renewal() and not one.lease.lapsed()
        ]

    def _note_unanswered(self, due: list[Delivery]) -> None:
        """Note which leases wait for an answer, and forget those that are no longer held."""
        self._unanswered = self._unanswered.intersection(list(self.held)).union(one.reply for one in due)

    async def _renew_one(self, wire: Wire, delivery: Delivery) -> None:
        """Renew one lease; it counts from when it was asked for, once the consumer itself has answered."""
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
    """Count a lease as renewed at the moment the renewal was sent, unless it had lapsed meanwhile."""
    if not lease.lapsed():
        lease.renewed = sent
