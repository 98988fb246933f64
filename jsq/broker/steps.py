"""What jobs keep between their attempts, beside the events in the log.

A write expects that the log's last word is still the attempt it comes from, by the sequence of that attempt's
start: the server takes none of a worker that has lost its job. Nothing here is an event: no status, no view
and no listener ever sees it.
"""

import logging
from collections.abc import Callable

from jsq.broker.answers import Heard, NoAnswer, block
from jsq.broker.log import expected
from jsq.broker.names import Names
from jsq.broker.streams import Streams
from jsq.broker.wire import Wire
from jsq.errors import BrokerError

log = logging.getLogger("jsq.broker")


class Steps:
    """Writes and reads what jobs keep."""

    def __init__(self, wire: Wire, names: Names, streams: Streams) -> None:
        self._wire = wire
        self._names = names
        self._streams = streams

    async def write(
        self, queue: str, id: str, place: str, body: bytes, *, token: int, until: Callable[[], bool]
    ) -> None:
        """Keep `body` at a place, for the attempt with a token. Written twice, it is as good as once.

        Raises `WrongSequence` when the log has moved on, and what `Wire.patiently` raises when `until` says
        that it is no use to go on.
        """
        headers = block(expected(token, self._names.event(queue, id, "run.*")))
        await self._wire.patiently(self._names.step(queue, id, place), body, headers, until=until)

    async def read(self, queue: str, id: str, *, token: int, until: Callable[[], bool]) -> dict[str, bytes]:
        """All that a job keeps, by its place, as it is since the attempt with a token began.

        That start ended what earlier attempts may write. A replica that does not know of it yet is behind,
        and asked again as long as `until` says.
        """
        names = self._names
        wanted = [names.event(queue, id, "run.*"), names.step(queue, id, ">")]

        async def once() -> list[Heard]:
            found = await self._wire.lasts(names.events_stream, wanted)
            if max((sequence(one) for one in found), default=0) < token:
                raise NoAnswer(f"a replica of {names.events_stream} is behind", sent=False)
            return found

        found = await self._wire.again(once, until=until)
        root = names.step(queue, id, "")
        kept = ((one.headers["Nats-Subject"], one.payload) for one in found)
        return {subject.removeprefix(root): body for subject, body in kept if subject.startswith(root)}

    async def forget(self, queue: str, id: str, place: str = ">", *, but: int = 0) -> None:
        """Remove what a job keeps, but for the last so many at a place. What stays goes after 7 days."""
        subject = self._names.step(queue, id, place)
        try:
            await self._streams.purge(self._names.events_stream, subject, keep=but)
        except BrokerError as error:
            log.debug("not removed", extra={"job": id, "subject": subject, "why": str(error)})


def sequence(message: Heard) -> int:
    return int(message.headers["Nats-Sequence"])
