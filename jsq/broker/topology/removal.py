"""Deletes streams with their content: those of one queue, or those that all queues of a namespace share."""

import contextlib

from jsq.broker.topology.configs import shared_configs
from jsq.broker.topology.namespace import Namespace
from jsq.errors import Refused


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
