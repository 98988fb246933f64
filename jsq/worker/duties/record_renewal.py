"""Renews the records of attempts that run for days.

The record of a first attempt has a TTL, so that it disappears before the outcome that follows it. An attempt
that runs for longer would lose its record, and with it its fencing token. So at half the TTL the worker
writes the revision once more, on top of the old one. The new revision has a new TTL, and its sequence is the
new token. The bucket also deletes each revision at its `max_age`, so other attempts are renewed as well.
"""

import asyncio
import logging

from jsq.codec import revisions
from jsq.errors import BrokerError
from jsq.transport.replies import WrongSequence
from jsq.worker.dispatcher import Dispatcher
from jsq.worker.state import AttemptState

log = logging.getLogger("jsq.job")

CHECKS = 8
"""Checks within the time after which a record is renewed."""

MAX_CHECK_SECONDS = 600.0


class RecordRenewal:
    """Renews the records of one worker's attempts."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._records = dispatcher.resources.broker.records
        self._clock = dispatcher.resources.broker.wire.clock
        self._age = dispatcher.resources.timings.start_ttl / 2

    async def run(self) -> None:
        """Check from time to time until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(min(self._age / CHECKS, MAX_CHECK_SECONDS))
                old = 1000 * (self._clock.now() - self._age)
                for attempt in list(self._dispatcher.attempts.values()):
                    idle = attempt.renewal is None or attempt.renewal.done()
                    if idle and attempt.token and (attempt.renewed or attempt.started) <= old:
                        attempt.renewal = group.create_task(self._renew(attempt))

    async def _renew(self, attempt: AttemptState) -> None:
        """Renew the record of an attempt; a refusal or an error leaves everything as it is."""
        queue, id, token = attempt.job.queue, attempt.delivery.id, attempt.token
        at = int(1000 * self._clock.now())
        body = revisions.encode_renewed(attempt.running, attempt.first_token or token)
        try:
            sequence = await self._records.put(
                queue, id, body, expect=token, ttl=attempt.start_ttl, while_=attempt.has_lease
            )
        except WrongSequence:
            sequence = await self._written(attempt, body)
        except BrokerError as error:
            log.warning("record not renewed", extra={"job": id, "why": str(error)})
            return
        # An outcome that was recorded meanwhile has set the token of the attempt already.
        if sequence and attempt.token == token:
            attempt.first_token = attempt.first_token or token
            attempt.token, attempt.renewed = sequence, at
            log.debug("record renewed", extra={"job": id, "token": sequence})

    async def _written(self, attempt: AttemptState, body: bytes) -> int:
        """The sequence of a renewal whose reply was lost; 0 if the record has another last revision."""
        try:
            last = await self._records.last(attempt.delivery.id, attempt.job.queue, consistent=True)
        except BrokerError:
            return 0
        return last.sequence if last is not None and last.revision == revisions.decode(body) else 0
