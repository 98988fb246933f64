"""The presence of workers: each live worker keeps one key in the bucket `workers`."""

from typing import Any

from pydantic_core import from_json, to_json

from jsq.broker.topology.namespace import Namespace
from jsq.transport.replies import NoResponders
from jsq.transport.server_clock import has_outlived_ttl

HEARTBEAT_SECONDS = 10.0
PRESENCE_TTL_SECONDS = 30
"""Seconds after its last heartbeat until the key of a worker expires."""


class WorkerPresence:
    """Writes and reads the keys of the live workers."""

    def __init__(self, namespace: Namespace) -> None:
        self._wire = namespace.wire
        self._reads = namespace.reads
        self._jetstream = namespace.jetstream
        self._subjects = namespace.subjects

    def beat(self, worker: str, about: dict[str, Any]) -> None:
        """Publish a heartbeat of a worker: `about` is what other programs read about it."""
        headers = {"Nats-TTL": str(PRESENCE_TTL_SECONDS)}
        self._wire.send(self._subjects.key("workers", worker), to_json(about), headers)

    def leave(self, worker: str) -> None:
        """Delete the key of a worker that has ended. The deletion marker expires after a second."""
        self._wire.send(self._subjects.key("workers", worker), b"", {"KV-Operation": "DEL", "Nats-TTL": "1"})

    async def alive(self) -> list[dict[str, Any]]:
        """The last heartbeats of the live workers."""
        try:
            found = await self._reads.fetch(
                self._subjects.streams.bucket("workers"), self._subjects.key("workers", "*")
            )
        except NoResponders:
            await self._jetstream.check_absent(self._subjects.streams.bucket("workers"))
            return []
        clock = self._wire.clock
        live = (reply for reply in found if reply.payload and not has_outlived_ttl(reply, clock))
        return [from_json(reply.payload) for reply in live]
