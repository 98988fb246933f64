"""Retries: a call without a reply is repeated, over a broken connection, a restart or an election."""

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from jsq.errors import BrokerError, BrokerFull
from jsq.transport.replies import NoReply, NoResponders, WrongSequence
from jsq.transport.wire import SWITCH_SECONDS, Headers, Wire

T = TypeVar("T")

While = Callable[[], bool]
"""Whether to continue retrying: for a worker, whether it still has its lease."""

DEADLINE_SECONDS = 15.0
"""Seconds for which a write is retried: longer than an election of a cluster (4 to 9 s)."""

READ_SECONDS = 5.0
"""Seconds for which a read is retried."""

ABSENT_SECONDS = 0.3
"""Seconds for which a read waits for a stream without responders: it is being created, or does not exist."""


async def publish_with_retry(
    wire: Wire,
    subject: str,
    payload: bytes = b"",
    headers: Headers | None = None,
    *,
    while_: Callable[[], bool] | None = None,
    seconds: float = DEADLINE_SECONDS,
    absent: float = DEADLINE_SECONDS,
    failed: NoReply | NoResponders | BrokerFull | None = None,
) -> int:
    """Store one message; retry over a broken connection, a restart or an election. Returns its sequence.

    Retries until `seconds` have passed, or as long as `while_` returns True, and then also while the server
    is full: the write of a worker that holds a lease must not be lost. The headers must make the write
    idempotent, because a try whose answer was lost may have been stored. `failed` is the error of a first try
    that the caller made. Raises `NoReply` (with `sent`) if the message may or may not be stored, whatever the
    reply to a later try; otherwise the errors of `Wire.publish`.
    """
    if failed is None:
        try:
            return await wire.publish(subject, payload, headers)
        except (NoReply, NoResponders) as error:
            failed = error
        except BrokerFull as error:
            if while_ is None:
                raise
            failed = error
    silent = failed if isinstance(failed, NoReply) and failed.sent else None

    async def once() -> int:
        nonlocal silent
        try:
            return await wire.publish(subject, payload, headers)
        except NoReply as error:
            error.sent = error.sent or silent is not None
            silent = error if error.sent else None
            raise

    try:
        return await with_retry(wire, once, while_=while_, seconds=seconds, absent=absent, failed=failed)
    except (NoReply, WrongSequence):
        raise
    except BrokerError as error:
        if silent is not None:
            raise NoReply(f"{silent}; a later try: {error}") from error
        raise


async def with_retry(
    wire: Wire,
    call: Callable[[], Awaitable[T]],
    *,
    while_: Callable[[], bool] | None = None,
    seconds: float = DEADLINE_SECONDS,
    absent: float = DEADLINE_SECONDS,
    failed: NoReply | NoResponders | BrokerFull | None = None,
    began: float | None = None,
) -> T:
    """Call, and repeat the call without a reply: for `seconds`, or as long as `while_` returns True.

    While the stream has no responders, retries for at most `absent` seconds, counted from the first of these
    answers in a row: a connection that was just restored may not know the responders yet. `failed` is the
    error of a first call that the caller made, and `began` its time (monotonic). With `while_`, also retries
    while the server is full.
    """
    window = _RetryWindow(time.monotonic() if began is None else began, seconds, absent)
    pause = 0.02
    while True:
        if failed is not None:
            if window.closed(failed) and while_ is None:
                raise failed
            if time.monotonic() - window.began > SWITCH_SECONDS:
                await wire.switch_server()
            await wire.wait_until_connected(pause)
            if while_ is not None and not while_():
                raise failed
            pause = min(1.0, pause * 2)
        try:
            return await call()
        except (NoReply, NoResponders) as error:
            if isinstance(error, NoResponders) and isinstance(failed, NoReply):
                pause = 0.02
            failed = error
        except BrokerFull as error:
            if while_ is None:
                raise
            failed = error
            wire.log_full(error)


class _RetryWindow:
    """How long a call is retried: `seconds` in all, `absent` while the stream has no responders."""

    def __init__(self, began: float, seconds: float, absent: float) -> None:
        self.began = began
        self._absent = absent
        self._seconds = seconds
        self._absent_since: float | None = None

    def closed(self, failed: BrokerError) -> bool:
        """Whether to stop retrying after this error."""
        now = time.monotonic()
        if not isinstance(failed, NoResponders):
            self._absent_since = None
            return now >= self.began + self._seconds
        if self._absent_since is None:
            self._absent_since = now
        limit = self.began + max(self._seconds, self._absent)
        return now >= min(self._absent_since + self._absent, limit)
