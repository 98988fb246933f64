"""Bulk publishing: by commits or by fast ingest, depending on which is faster with this server.

A server with `sync_interval: always` waits for the disk once for a commit, but for each message of a fast
ingest. With another setting, fast ingest is three times as fast. Both are tried with a part of the messages
each, and the faster one is used.
"""

import time
from collections.abc import Sequence

from jsq.errors import BrokerError, NotAllowed
from jsq.transport.batch_publish import OutgoingMessage, commit, fast_ingest
from jsq.transport.replies import FULL, NoReply, NoResponders
from jsq.transport.wire import Wire

AT_A_TIME = 2_000
"""Messages of a bulk submit that are encoded at the same time."""

WORTH_TIMING = 100
"""The smallest part whose duration is measured."""


class BulkPublisher:
    """Stores the messages of jobs."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._rates: dict[str, float] = {}

    async def store(
        self, messages: Sequence[OutgoingMessage], *, full: bool = False
    ) -> dict[int, BrokerError]:
        """Store messages of one stream; returns the errors of messages that were not stored, by their index.

        `WrongSequence` means that the message is stored already. If the stream is `full`, as many as possible
        are stored. Raises `NoResponders`; raises `NoReply` and `BrokerFull` if the result is not known.
        """
        began = time.monotonic()
        if full or len(messages) == 1 or not self._commits_are_faster():
            refused = await self._ingest(messages)
            if not any(isinstance(error, FULL) for error in refused.values()):
                self._note("flow", len(messages), began)
            return refused
        try:
            await commit(self._wire, messages)
        except (NoReply, NoResponders, NotAllowed):
            raise
        except BrokerError:
            return await self._ingest(messages)  # not all fit: store each message that can be stored
        self._note("commit", len(messages), began)
        return {}

    async def _ingest(self, messages: Sequence[OutgoingMessage]) -> dict[int, BrokerError]:
        try:
            poured = await fast_ingest(self._wire, messages)
        except NoReply:
            self._rates["flow"] = 0.0  # across accounts the control data of fast ingest are lost
            raise
        refused = dict(poured.refused)
        if poured.end < len(messages):
            why = next(error for error in poured.refused.values() if isinstance(error, FULL))
            refused |= dict.fromkeys(range(poured.end, len(messages)), why)
        return refused

    def _commits_are_faster(self) -> bool:
        """Whether to use commits: a way that was not tried yet comes first, then the faster one."""
        if "commit" not in self._rates:
            return True
        return self._rates["commit"] > self._rates.get("flow", float("inf"))

    def _note(self, way: str, count: int, began: float) -> None:
        if count >= WORTH_TIMING:
            self._rates[way] = count / max(1e-9, time.monotonic() - began)
