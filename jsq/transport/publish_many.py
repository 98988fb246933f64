"""Many jobs at once: in commits or as a flow, whichever this server takes faster.

A server that syncs always waits for the disk once for a commit, but at each message of a flow. One that does
not takes a flow three times as fast. Both are tried with a part each, and the faster one is kept.
"""

import time
from collections.abc import Sequence

from jsq.errors import BrokerError, NotAllowed
from jsq.transport.batch_publish import OutgoingMessage, commit, fast_ingest
from jsq.transport.replies import FULL, NoReply, NoResponders
from jsq.transport.wire import Wire

AT_A_TIME = 2_000
"""Messages of a bulk that are in memory together."""

WORTH_TIMING = 100
"""Messages below which a part tells nothing of how fast a way is."""


class BulkPublisher:
    """Stores the messages of jobs."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._rates: dict[str, float] = {}

    async def store(
        self, messages: Sequence[OutgoingMessage], *, full: bool = False
    ) -> dict[int, BrokerError]:
        """Store messages of one stream; returns the errors of those that were not, by their place.

        `WrongSequence` is that of one which stands already. Into a stream that is `full` go as many as there
        is room for. Raises `NoResponders`; `NoReply` and `BrokerFull` where it is not known which are stored.
        """
        began = time.monotonic()
        if full or len(messages) == 1 or not self._commits_are_faster():
            refused = await self._pour(messages)
            if not any(isinstance(error, FULL) for error in refused.values()):
                self._note("flow", len(messages), began)
            return refused
        try:
            await commit(self._wire, messages)
        except (NoReply, NoResponders, NotAllowed):
            raise
        except BrokerError:
            return await self._pour(messages)  # not all of them: then each that may be
        self._note("commit", len(messages), began)
        return {}

    async def _pour(self, messages: Sequence[OutgoingMessage]) -> dict[int, BrokerError]:
        try:
            poured = await fast_ingest(self._wire, messages)
        except NoReply:
            self._rates["flow"] = 0.0  # one that crosses accounts loses the words by which a flow is steered
            raise
        refused = dict(poured.refused)
        if poured.end < len(messages):
            why = next(error for error in poured.refused.values() if isinstance(error, FULL))
            refused |= dict.fromkeys(range(poured.end, len(messages)), why)
        return refused

    def _commits_are_faster(self) -> bool:
        """The way to take: one that was not tried yet, else the faster one."""
        if "commit" not in self._rates:
            return True
        return self._rates["commit"] > self._rates.get("flow", float("inf"))

    def _note(self, way: str, count: int, began: float) -> None:
        if count >= WORTH_TIMING:
            self._rates[way] = count / max(1e-9, time.monotonic() - began)
