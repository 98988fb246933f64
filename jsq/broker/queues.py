"""Queues as they stand: how many jobs wait, run, are due later, have died."""

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jsq.broker.layout import settings_of
from jsq.broker.names import Names
from jsq.broker.streams import Streams
from jsq.errors import NotAllowed
from jsq.job import LEVELS
from jsq.settings import QueueSettings


@dataclass(frozen=True, slots=True)
class QueueStats:
    """A queue's numbers of jobs. `waiting` is by priority; `running` counts what workers hold; `lined` those
    which wait for the turn of their key.

    `dead` is None for one who may not look at the dead letters of all queues.
    """

    queue: str
    settings: QueueSettings
    waiting: dict[str, int]
    running: int
    later: int
    dead: int | None
    bytes: int
    lined: int = 0


class Queues:
    """Reads the numbers of queues: from the consumers, never by walking a stream."""

    def __init__(self, names: Names, streams: Streams) -> None:
        self._names = names
        self._streams = streams

    async def known(self) -> list[str]:
        return sorted(await self._streams.queue_names())

    async def settings(self) -> dict[str, QueueSettings]:
        """What each queue is set to."""
        found = await self._streams.queues()
        return {queue: settings_of(stream["config"]) for queue, stream in found.items()}

    async def stats(self, queue: str | None = None) -> list[QueueStats]:
        """The numbers of one queue, or of all."""
        if queue is not None:
            one = await self._streams.info(self._names.ready_stream(queue))
            return [await self._stats(queue, one)] if one is not None else []
        found = await self._streams.queues()
        return [await self._stats(name, found[name]) for name in sorted(found)]

    async def _stats(self, queue: str, stream: dict[str, Any]) -> QueueStats:
        names = self._names
        consumers = await asyncio.gather(
            *(self._streams.consumer_info(names.ready_stream(queue), level) for level in LEVELS)
        )
        later = await self._streams.info(names.later_stream(queue), names.tick(queue, "*"))
        line = None
        with contextlib.suppress(NotAllowed):
            line = await self._streams.info(names.line_stream(queue))
        dead = None
        with contextlib.suppress(NotAllowed):
            dead = await self._streams.count(names.dead_stream, names.dead(queue, "*", "*"))
        return QueueStats(
            queue=queue,
            settings=settings_of(stream["config"]),
            waiting={
                level: one["num_pending"] if one else 0 for level, one in zip(LEVELS, consumers, strict=True)
            },
            running=sum(one["num_ack_pending"] for one in consumers if one),
            later=count_due(later["state"]) if later else 0,
            dead=dead,
            bytes=stream["state"]["bytes"] + (line["state"]["bytes"] if line else 0),
            lined=line["state"]["messages"] if line else 0,
        )


def count_due(state: Mapping[str, Any]) -> int:
    """The jobs among the messages of a LATER stream, by its state with the subjects of what are none."""
    ticks: dict[str, int] = state.get("subjects") or {}
    return int(state["messages"]) - sum(ticks.values())
