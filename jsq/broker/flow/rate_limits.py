"""Rate limiters: one small record for each, written by compare-and-set, so that all workers share it.

One write serves all requests of a worker to the same limiter that arrive meanwhile. A limiter's record
expires when it has the same meaning as no record.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from jsq.broker.jobs.records import EXPECTED, TTL
from jsq.broker.topology.namespace import Namespace
from jsq.codec.envelope import new_id
from jsq.codec.rate_limits import decode_state, encode_state
from jsq.model.rate_limit import Rate, RateLimitState, RateReply, RateRequest, reserve, state_ttl
from jsq.transport.replies import NoReply, NoResponders, WrongSequence
from jsq.transport.retrying import publish_with_retry

REPLICA_PAUSE = 0.02
"""Seconds before a replica that does not have the last write yet is read again."""

WRITE_ID = "Jsq-Write-Id"
"""The header that identifies a write: two workers may write the same record."""

MAX_CACHED = 10_000
"""Limiters whose record is cached, so that it need not be read before it is written."""


@dataclass(slots=True)
class RateLimiter:
    """The cached state of one limiter, the sequence of its record, and the requests that wait for it."""

    state: RateLimitState = field(default_factory=RateLimitState)
    rate: Rate | None = None
    sequence: int = 0
    requests: list[tuple[Rate, RateRequest, asyncio.Future[RateReply]]] = field(default_factory=list)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class RateLimitStore:
    """Reserves the times at which jobs may start."""

    def __init__(self, namespace: Namespace) -> None:
        self._wire = namespace.wire
        self._reads = namespace.reads
        self._bucket = namespace.subjects.streams.bucket("limits")
        self._streams = namespace.streams
        self._known: dict[str, RateLimiter] = {}

    async def reserve(self, key: str, rate: Rate, request: RateRequest) -> RateReply:
        """Request a start time from a limiter; see `jsq.model.rate_limit`.

        Raises what `publish_with_retry` raises.
        """
        limiter = self._limiter(key)
        reply: asyncio.Future[RateReply] = asyncio.get_running_loop().create_future()
        limiter.requests.append((rate, request, reply))
        try:
            async with limiter.lock:
                if not reply.done():  # another call may have served this request while it waited for the lock
                    await self._serve(key, limiter)
            return await reply
        finally:
            if not reply.done():  # this call failed or was cancelled: a later call must not reserve for it
                limiter.requests = [one for one in limiter.requests if one[2] is not reply]
                reply.cancel()

    def _limiter(self, key: str) -> RateLimiter:
        if key not in self._known:
            if len(self._known) >= MAX_CACHED:
                self._known = {one: known for one, known in self._known.items() if known.requests}
            self._known[key] = RateLimiter()
        return self._known[key]

    async def _serve(self, key: str, limiter: RateLimiter) -> None:
        """Serve all requests made so far. If that fails, the caller of each request tries again itself."""
        served, limiter.requests = limiter.requests, []
        try:
            requests = [request for _, request, _ in served]
            replies = await self._reserve(key, limiter, served[-1][0], requests)
        except BaseException:
            limiter.requests += [one for one in served if not one[2].done()]
            raise
        for (_, _, future), reply in zip(served, replies, strict=True):
            if not future.done():
                future.set_result(reply)

    async def _reserve(
        self, key: str, limiter: RateLimiter, rate: Rate, requests: Sequence[RateRequest]
    ) -> list[RateReply]:
        if limiter.rate != rate:
            await self._read(key, limiter, rate)
        while True:
            now = self._wire.clock.now()
            state, replies = reserve(limiter.state, rate, now, requests)
            if not must_write(limiter.state, state, requests, replies):
                return replies
            write_id = new_id()
            headers = {
                EXPECTED: str(limiter.sequence),
                TTL: str(math.ceil(state_ttl(state, rate, now))),
                WRITE_ID: write_id,
            }
            try:
                limiter.sequence = await self._write(key, encode_state(state, rate), headers)
            except WrongSequence as refused:
                if await self._read(key, limiter, rate, least=refused.last) == write_id:
                    return replies  # our own write was stored, and its reply was lost
            else:
                limiter.state = state
                return replies

    async def _write(self, key: str, body: bytes, headers: dict[str, str]) -> int:
        try:
            return await self._wire.publish(key, body, headers)
        except NoResponders as error:
            failed: NoReply | NoResponders = error
            await self._streams.recreate()
        except NoReply as error:
            failed = error
        return await publish_with_retry(self._wire, key, body, headers, failed=failed)

    async def _read(self, key: str, limiter: RateLimiter, rate: Rate, least: int = 0) -> str:
        """Read the record of a limiter, and return the id of the write that stored it.

        Waits a moment if a replica does not have the sequence `least` yet.
        """
        found = None
        try:
            found = await self._reads.last(self._bucket, key, consistent=least > 0)
        except NoResponders:
            await self._streams.recreate()
        limiter.state, limiter.sequence, limiter.rate = RateLimitState(), 0, rate
        if found is not None:
            limiter.state = decode_state(found.payload, rate, self._wire.clock.now())
            limiter.sequence = int(found.headers["Nats-Sequence"])
        if limiter.sequence < least:
            await asyncio.sleep(REPLICA_PAUSE)  # the server refuses the next write: then this is called again
        return found.headers.get(WRITE_ID, "") if found is not None else ""


def must_write(
    before: RateLimitState,
    after: RateLimitState,
    requests: Sequence[RateRequest],
    replies: Sequence[RateReply],
) -> bool:
    """Whether the state must be written: a time was reserved or returned, or a request was deferred."""
    if any(one.reserved for one in replies) or any(one.returned_moment is not None for one in requests):
        return True
    return after.deferred_until != before.deferred_until
