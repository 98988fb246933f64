"""A continuous pull: one subscription with overlapping requests, which never exceed the room of the worker.

A puller sends a new request when the deliveries in flight fall to half of the demand, so a stream of short
jobs never waits for a round trip. It repeats lost requests: after a reconnect, after missed heartbeats, and
when the consumer has a new leader.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from jsq.broker.delivery.delivery import Delivery, read_delivery
from jsq.transport.replies import NoReply, Reply
from jsq.transport.wire import Subscription, Wire

log = logging.getLogger("jsq.broker")

PULL_EXPIRES_SECONDS = 30
PULL_HEARTBEAT_SECONDS = 5
PULL_RETRY_SECONDS = 0.25
PRESUMED_EMPTY_SECONDS = 0.05
_NO_MESSAGES = frozenset({"404", "408"})
"""Status codes of a request that ends because there are no messages: at once, or when it expires."""


@dataclass(frozen=True, slots=True)
class ConsumerAddress:
    """A consumer of a queue: its stream, its name, and the lease of its deliveries in seconds."""

    queue: str
    stream: str
    name: str
    lease: float


@dataclass(frozen=True, slots=True)
class PullHandlers:
    """The callbacks of a puller.

    `on_delivery` is called with each delivery. `demand` returns the number of deliveries that have room.
    `on_idle` is called when the server has no more messages for the puller.
    """

    on_delivery: Callable[[Delivery], None]
    demand: Callable[["Puller"], int]
    on_idle: Callable[[], None] = lambda: None


class Puller:
    """Pulls from one consumer: the jobs of one priority of a queue, its ticks, or its wake-ups.

    `pending` is the number of messages that waited on the server at its last report. `in_flight` is the
    number of requested deliveries that have not arrived. `higher_pullers` are the pullers of the queue's
    higher priorities.

    The owner calls `request` when there is more room than before. A delivery therefore compares `in_flight`
    with the room at the last request.
    """

    def __init__(
        self, wire: Wire, consumer: ConsumerAddress, handlers: PullHandlers, *, pending: int = 0
    ) -> None:
        self.queue = consumer.queue
        self.lease = consumer.lease
        self.pending = pending
        self.higher_pullers: list[Puller] = []
        self.in_flight = 0
        self._wire = wire
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{consumer.stream}.{consumer.name}"
        self.handlers = handlers
        self._last_request = 0
        self._room = 0
        self._first_valid_request = 0
        self._last_message_at = 0.0
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._closed = False
        self._remove_reconnect_callback: Callable[[], None] = lambda: None

    @property
    def handlers(self) -> PullHandlers:
        """The callbacks, which may be replaced while the puller runs."""
        return PullHandlers(self._on_delivery, self._demand, self._on_idle)

    @handlers.setter
    def handlers(self, handlers: PullHandlers) -> None:
        self._on_delivery = handlers.on_delivery
        self._demand = handlers.demand
        self._on_idle = handlers.on_idle

    async def open(self) -> None:
        self._inbox = self._wire.new_inbox()
        self._subscription = await self._wire.subscribe(f"{self._inbox}.*", self._receive)
        self._remove_reconnect_callback = self._wire.on_reconnect(self._request_again)
        self._last_message_at = time.monotonic()
        self.request()

    async def check(self) -> None:
        """Raise `NotAllowed` if the user may not pull from the consumer."""
        with contextlib.suppress(NoReply):  # the server may be restarting: the puller retries after that
            await self._wire.flush()
        self._wire.refusals.check_publish(self._subject)

    async def close(self) -> None:
        """Send no more requests, and receive the deliveries in flight; the server drops the open requests."""
        self._closed = True
        self._remove_reconnect_callback()
        if self._subscription is not None:
            await self._wire.drain(self._subscription)

    async def pause(self) -> None:
        """Request nothing until `open` is called again, and receive the deliveries in flight."""
        self._remove_reconnect_callback()
        self._remove_reconnect_callback = lambda: None
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await self._wire.drain(subscription)
        self.in_flight = 0

    def request(self) -> None:
        """Request as many deliveries as there is room for, if less than half of them are in flight.

        A puller that is not open yet sends no request: its replies would have no address.
        """
        self._room = room = self._demand(self)
        if self._closed or self._subscription is None or not self._wire.connected:
            return
        if room <= 0 or self.in_flight * 2 > room:
            return
        missing = room - self.in_flight
        self._last_request += 1
        self.in_flight += missing
        if self.pending:
            # `pending` is as old as the last delivery: other workers may have received all messages since.
            asyncio.get_running_loop().call_later(
                PRESUMED_EMPTY_SECONDS, self._presume_empty, self._last_message_at
            )
        request = {
            "batch": missing,
            "expires": PULL_EXPIRES_SECONDS * 10**9,
            "idle_heartbeat": PULL_HEARTBEAT_SECONDS * 10**9,
        }
        reply = f"{self._inbox}.{self._last_request}"
        self._wire.send(self._subject, json.dumps(request).encode(), reply=reply)

    async def watch(self) -> None:
        """Repeat the requests when heartbeats are missing. Runs until cancelled."""
        while True:
            await asyncio.sleep(PULL_HEARTBEAT_SECONDS / 2)
            if self.in_flight and time.monotonic() - self._last_message_at > 2.2 * PULL_HEARTBEAT_SECONDS:
                await self._wire.switch_server()
                await self._request_again()

    async def _request_again(self) -> None:
        self._last_message_at = time.monotonic()
        self._first_valid_request = self._last_request + 1
        self.in_flight = 0
        self.request()

    def _receive(self, message: Reply) -> None:
        self._last_message_at = time.monotonic()
        status = message.status if not message.reply else ""
        if not status:
            self.in_flight = max(0, self.in_flight - 1)
            delivery, had_more = read_delivery(message, self.lease), self.pending
            self.pending = delivery.pending
            self._on_delivery(delivery)
            if had_more and not self.pending:
                self._on_idle()
            elif self.in_flight * 2 <= self._room:
                self.request()
        elif status == "100":
            # A heartbeat while a request waits: the server has no message for this puller.
            self._mark_empty()
        else:
            self._end_request(message.subject, status, message.headers)

    def _presume_empty(self, last_message_at: float) -> None:
        if last_message_at == self._last_message_at and not self._closed:
            self._mark_empty()

    def _mark_empty(self) -> None:
        if self.pending:
            self.pending = 0
            self._on_idle()

    def _end_request(self, subject: str, status: str, headers: dict[str, str]) -> None:
        """Subtract the deliveries that an ended request did not bring, and send the next request."""
        if int(subject[len(self._inbox) + 1 :]) >= self._first_valid_request:
            missing = int(headers.get("Nats-Pending-Messages", self.in_flight))
            self.in_flight = max(0, self.in_flight - missing)
        self._mark_empty()
        why = headers.get("Description", "")
        if status in _NO_MESSAGES or "Batch Completed" in why:
            self.request()
        else:
            log.debug("pull ended", extra={"queue": self.queue, "status": status, "why": why})
            asyncio.get_running_loop().call_later(PULL_RETRY_SECONDS, self.request)
