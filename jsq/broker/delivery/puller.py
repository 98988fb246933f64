"""A continuous pull: one subscription, overlapping requests, and never more asked for than there is room for.

A new request goes out when what is still to come falls to half of what is wanted, so that a stream of short
jobs never waits for a round trip. Requests that were lost (a reconnect, missed heartbeats, a new leader) are
asked again.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable

from jsq.broker.delivery.delivery import Delivery, read_delivery
from jsq.transport.replies import Reply
from jsq.transport.wire import Subscription, Wire

log = logging.getLogger("jsq.broker")

PULL_EXPIRES_SECONDS = 30
PULL_HEARTBEAT_SECONDS = 5
PULL_RETRY_SECONDS = 0.25
PRESUMED_EMPTY_SECONDS = 0.05
_QUIET = frozenset({"404", "408"})


class Puller:
    """Pulls the jobs of one priority of one queue, or what another consumer (in the place of a `level`) has.

    `taken` is called with each delivery. `wanted` tells how many more there is room for. `pending` is how
    many waited on the server when it last told; `emptied` is called when it turns out that none do any more.
    `above` are the pullers of the queue's higher priorities.

    When there is more room than before, the owner calls `ask`. So a delivery compares the demand with the
    room that was there when it was last asked for.
    """

    def __init__(
        self,
        wire: Wire,
        stream: str,
        queue: str,
        level: str,
        lease: float,
        *,
        taken: Callable[[Delivery], None],
        wanted: Callable[["Puller"], int],
        emptied: Callable[[], None],
        pending: int = 0,
    ) -> None:
        self.queue = queue
        self.level = level
        self.pending = pending
        self.above: list[Puller] = []
        self.demand = 0
        self._wire = wire
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{level}"
        self.lease = lease
        self._taken = taken
        self._wanted = wanted
        self._emptied = emptied
        self._number = self._room = 0
        self._valid = 0
        self._heard = 0.0
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._closed = False
        self._stop_noticing: Callable[[], None] = lambda: None

    async def open(self) -> None:
        self._inbox = self._wire.new_inbox()
        self._subscription = await self._wire.subscribe(f"{self._inbox}.*", self._arrived)
        self._stop_noticing = self._wire.on_reconnect(self._ask_anew)
        self._heard = time.monotonic()
        self.ask()

    async def check(self) -> None:
        """Raise `NotAllowed` if we may not pull here."""
        await self._wire.flush()
        self._wire.refusals.check_publish(self._subject)

    async def close(self) -> None:
        """Ask for no more, and take what is on its way: the server forgets the requests that stand."""
        self._closed = True
        self._stop_noticing()
        if self._subscription is not None:
            await self._wire.drain(self._subscription)

    def ask(self) -> None:
        """Ask for what there is room for, if less than half of it is on its way."""
        self._room = room = self._wanted(self)
        if self._closed or room <= 0 or self.demand * 2 > room or not self._wire.connected:
            return
        missing = room - self.demand
        self._number += 1
        self.demand += missing
        if self.pending:
            # What we know of `pending` is as old as our last delivery: other workers may have taken it all.
            asyncio.get_running_loop().call_later(PRESUMED_EMPTY_SECONDS, self._presume_empty, self._heard)
        request = {
            "batch": missing,
            "expires": PULL_EXPIRES_SECONDS * 10**9,
            "idle_heartbeat": PULL_HEARTBEAT_SECONDS * 10**9,
        }
        self._wire.send(self._subject, json.dumps(request).encode(), reply=f"{self._inbox}.{self._number}")

    async def watch(self) -> None:
        """Ask again when the heartbeats stop. Runs until cancelled."""
        while True:
            await asyncio.sleep(PULL_HEARTBEAT_SECONDS / 2)
            if self.demand and time.monotonic() - self._heard > 2.2 * PULL_HEARTBEAT_SECONDS:
                await self._wire.switch_server()
                await self._ask_anew()

    async def _ask_anew(self) -> None:
        self._heard = time.monotonic()
        self._valid = self._number + 1
        self.demand = 0
        self.ask()

    def _arrived(self, message: Reply) -> None:
        self._heard = time.monotonic()
        status = message.status if not message.reply else ""
        if not status:
            self.demand = max(0, self.demand - 1)
            delivery, had_more = read_delivery(message, self.lease), self.pending
            self.pending = delivery.pending
            self._taken(delivery)
            if had_more and not self.pending:
                self._emptied()
            elif self.demand * 2 <= self._room:
                self.ask()
        elif status == "100":
            # A heartbeat while a request waits: the server has nothing for us.
            self._none_left()
        else:
            self._ended(message.subject, status, message.headers)

    def _presume_empty(self, heard: float) -> None:
        if heard == self._heard and not self._closed:
            self._none_left()

    def _none_left(self) -> None:
        if self.pending:
            self.pending = 0
            self._emptied()

    def _ended(self, request: str, status: str, headers: dict[str, str]) -> None:
        """A request ended before it was filled."""
        if int(request[len(self._inbox) + 1 :]) >= self._valid:
            self.demand = max(0, self.demand - int(headers.get("Nats-Pending-Messages", self.demand)))
        self._none_left()
        why = headers.get("Description", "")
        if status in _QUIET or "Batch Completed" in why:
            self.ask()
        else:
            log.debug("pull ended", extra={"queue": self.queue, "status": status, "why": why})
            asyncio.get_running_loop().call_later(PULL_RETRY_SECONDS, self.ask)
