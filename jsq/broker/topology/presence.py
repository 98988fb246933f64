"""Workers make themselves known: one key each, which goes when its worker does."""

from typing import Any

from pydantic_core import from_json, to_json

from jsq.broker.topology.namespace import Namespace
from jsq.transport.replies import NoResponders

BEAT = 10.0
GONE = 30
"""Seconds after its last beat that a worker is taken for gone."""


class WorkerPresence:
    """The presence of workers."""

    def __init__(self, namespace: Namespace) -> None:
        self._wire = namespace.wire
        self._reads = namespace.reads
        self._jetstream = namespace.jetstream
        self._subjects = namespace.subjects

    def beat(self, worker: str, about: dict[str, Any]) -> None:
        self._wire.send(self._subjects.key("workers", worker), to_json(about), {"Nats-TTL": str(GONE)})

    def leave(self, worker: str) -> None:
        """Say that a worker has ended: its key holds nothing for its last second."""
        self._wire.send(self._subjects.key("workers", worker), b"", {"KV-Operation": "DEL", "Nats-TTL": "1"})

    async def alive(self) -> list[dict[str, Any]]:
        try:
            found = await self._reads.fetch(
                self._subjects.streams.bucket("workers"), self._subjects.key("workers", "*")
            )
        except NoResponders:
            await self._jetstream.check_absent(self._subjects.streams.bucket("workers"))
            return []
        return [from_json(reply.payload) for reply in found if reply.payload]
