"""Limiters: one small record for each, written by compare-and-set, so that all workers share it.

Those of one worker who ask the same limiter meanwhile are answered by one write. A limiter's record goes by
itself when it tells no more than none would.
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
"""Seconds before a replica is asked again that does not know yet of a write."""

WRITE_ID = "Jsq-Mark"
"""The header by which a write is known again: two workers may well write the same."""

MAX_CACHED = 10_000
"""Limiters whose record is kept here, so that it need not be read before it is written."""


@dataclass(slots=True)
class RateLimiter:
    """What is known here of one limiter: its state, and the sequence of the record that told it."""

    state: RateLimitState = field(default_factory=RateLimitState)
    rate: Rate | None = None
    sequence: int = 0
    requests: list[tuple[Rate, RateRequest, asyncio.Future[RateReply]]] = field(default_factory=list)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class RateLimitStore:
    """Tells jobs when they may start."""

    def __init__(self, namespace: Namespace) -> None:
        self._wire = namespace.wire
        self._reads = namespace.reads
        self._bucket = namespace.subjects.streams.bucket("limits")
        self._streams = namespace.streams
        self._known: dict[str, RateLimiter] = {}

    async def reserve(self, key: str, rate: Rate, ask: RateRequest) -> RateReply:
        """Ask a limiter for a moment; see `jsq.model.rate_limit`. Raises what `Wire.publish_with_retry`
        raises.
        """
        limiter = self._limiter(key)
        answer: asyncio.Future[RateReply] = asyncio.get_running_loop().create_future()
        limiter.requests.append((rate, ask, answer))
        try:
            async with limiter.lock:
                if not answer.done():  # another may have asked for us, while we waited for our turn
                    await self._serve(key, limiter)
            return await answer
        finally:
            if not answer.done():  # who has failed, or was cancelled, is given nothing by those who ask later
                limiter.requests = [one for one in limiter.requests if one[2] is not answer]
                answer.cancel()

    def _limiter(self, key: str) -> RateLimiter:
        if key not in self._known:
            if len(self._known) >= MAX_CACHED:
                self._known = {one: known for one, known in self._known.items() if known.requests}
            self._known[key] = RateLimiter()
        return self._known[key]

    async def _serve(self, key: str, limiter: RateLimiter) -> None:
        """Answer all who have asked so far. If that fails, each of them tries by himself."""
        asked, limiter.requests = limiter.requests, []
        try:
            answers = await self._reserve(key, limiter, asked[-1][0], [ask for _, ask, _ in asked])
        except BaseException:
            limiter.requests += [one for one in asked if not one[2].done()]
            raise
        for (_, _, future), answer in zip(asked, answers, strict=True):
            if not future.done():
                future.set_result(answer)

    async def _reserve(
        self, key: str, limiter: RateLimiter, rate: Rate, asks: Sequence[RateRequest]
    ) -> list[RateReply]:
        if limiter.rate != rate:
            await self._read(key, limiter, rate)
        while True:
            now = self._wire.clock.now()
            state, answers = reserve(limiter.state, rate, now, asks)
            if not must_write(limiter.state, state, asks, answers):
                return answers
            mark = new_id()
            headers = {
                EXPECTED: str(limiter.sequence),
                TTL: str(math.ceil(state_ttl(state, rate, now))),
                WRITE_ID: mark,
            }
            try:
                limiter.sequence = await self._write(key, encode_state(state, rate), headers)
            except WrongSequence as refused:
                if await self._read(key, limiter, rate, least=refused.last) == mark:
                    return answers  # our own write, whose answer was lost
            else:
                limiter.state = state
                return answers

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
        """Learn what stands in the record: not from a replica that does not know yet of the write before.

        Returns the mark of that write.
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
            await asyncio.sleep(REPLICA_PAUSE)  # then the next write is refused, and it is read again
        return found.headers.get(WRITE_ID, "") if found is not None else ""


def must_write(
    before: RateLimitState, after: RateLimitState, asks: Sequence[RateRequest], answers: Sequence[RateReply]
) -> bool:
    """Whether there is something to write: a moment was given or given back, or someone stands in line."""
    if any(answer.reserved for answer in answers) or any(ask.returned_moment is not None for ask in asks):
        return True
    return after.deferred_until != before.deferred_until
