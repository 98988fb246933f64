"""Workers make themselves known: one key each, which goes when its worker does."""

from typing import Any

from pydantic_core import from_json, to_json

from jsq.broker.topology.streams import Streams
from jsq.broker.topology.subjects import Subjects
from jsq.transport.replies import NoResponders
from jsq.transport.wire import Wire

BEAT = 10.0
GONE = 30
"""Seconds after its last beat that a worker is taken for gone."""


class WorkerPresence:
    """The presence of workers."""

    def __init__(self, wire: Wire, names: Subjects, streams: Streams) -> None:
        self._wire = wire
        self._subjects = names
        self._streams = streams

    def beat(self, worker: str, about: dict[str, Any]) -> None:
        self._wire.send(self._subjects.key("workers", worker), to_json(about), {"Nats-TTL": str(GONE)})

    def leave(self, worker: str) -> None:
        """Say that a worker has ended: its key holds nothing for its last second."""
        self._wire.send(self._subjects.key("workers", worker), b"", {"KV-Operation": "DEL", "Nats-TTL": "1"})

    async def alive(self) -> list[dict[str, Any]]:
        try:
            found = await self._wire.each(
                self._subjects.bucket("workers"), self._subjects.key("workers", "*")
            )
        except NoResponders:
            await self._streams.check_missing(self._subjects.bucket("workers"))
            return []
        return [from_json(reply.payload) for reply in found if reply.payload]
