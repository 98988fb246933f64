"""Deletes streams with their content: those of one queue, or those that all queues of a namespace share."""

import asyncio
import contextlib

from jsq.broker.topology.configs import shared_configs
from jsq.broker.topology.namespace import Namespace
from jsq.errors import Refused
from jsq.transport.jetstream import JetStreamApi
from jsq.transport.wire import Wire


async def remove_queue_streams(namespace: Namespace, queue: str) -> None:
    """Delete the streams of a queue. If it fails half way, it is safe to call again."""
    names = namespace.subjects.streams
    own = (names.group_state(queue), names.groups(queue), names.ready(queue), names.scheduled(queue))
    await remove_streams(namespace, own)


async def remove_everything(namespace: Namespace, queue: str) -> None:
    """Delete the streams of a queue and all shared streams of the namespace."""
    await remove_queue_streams(namespace, queue)
    shared = [config["name"] for config in shared_configs(namespace.subjects, 1)]
    await remove_streams(namespace, (*shared, namespace.subjects.streams.advisories))


async def remove_streams(namespace: Namespace, names: tuple[str, ...]) -> None:
    for name in names:
        with contextlib.suppress(Refused):  # it does not exist
            await namespace.jetstream.call(f"STREAM.DELETE.{name}")
    namespace.streams.forget()


def stream_prefixes(namespace: str) -> tuple[str, ...]:
    """The prefixes of the names of a namespace's streams: buckets, object stores, and others."""
    return f"KV_{namespace}_", f"OBJ_{namespace}_", f"{namespace.upper()}_"


async def remove_namespace(wire: Wire, name: str) -> int:
    """Delete every stream of a namespace, whatever its kind; returns how many."""
    jetstream, prefixes = JetStreamApi(wire), stream_prefixes(name)
    found = [
        stream
        async for page in jetstream.pages("STREAM.NAMES", "")
        for stream in page
        if stream.startswith(prefixes)
    ]

    async def delete(stream: str) -> None:
        with contextlib.suppress(Refused):  # it does not exist any more
            await jetstream.call(f"STREAM.DELETE.{stream}")

    await asyncio.gather(*map(delete, found))
    return len(found)
