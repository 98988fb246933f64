"""Queues as they stand: how many jobs wait, run, are due later, have died."""

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jsq.broker.flow.key_groups import KeyGroups
from jsq.broker.flow.pauses import PauseStore
from jsq.broker.topology.configs import WAKEUPS, count_jobs, settings_of
from jsq.broker.topology.namespace import Namespace
from jsq.broker.topology.provision import Change, Provisioner
from jsq.errors import BadOption, BrokerError, NotAllowed, QueueNotFound
from jsq.model.job import PRIORITIES, check_queue
from jsq.model.pause import WHOLE_QUEUE, Pause, PauseSet
from jsq.settings import QueueSettings


@dataclass(frozen=True, slots=True)
class QueueStats:
    """A queue's numbers of jobs. `waiting` is by priority; `running` counts what workers hold;
    `waiting_for_key` those which wait for the turn of their key.

    `dead` is None for one who may not look at the dead letters of all queues.
    """

    queue: str
    settings: QueueSettings
    waiting: dict[str, int]
    running: int
    scheduled: int
    dead: int | None
    bytes: int
    waiting_for_key: int = 0
    pauses: tuple[Pause, ...] = ()

    @property
    def paused(self) -> Pause | None:
        """The pause of the whole queue, if there is one."""
        return next((hold for hold in self.pauses if hold.scope == WHOLE_QUEUE), None)


class Queues:
    """Reads the numbers of queues: from the consumers, never by walking a stream."""

    def __init__(
        self, namespace: Namespace, provisioner: Provisioner, pauses: PauseStore, lines: KeyGroups
    ) -> None:
        self._provisioner = provisioner
        self._jetstream = namespace.jetstream
        self._subjects = namespace.subjects
        self._streams = namespace.streams
        self._pauses = pauses
        self._key_groups = lines

    async def names(self) -> list[str]:
        return sorted(await self._streams.queue_names())

    async def settings(self) -> dict[str, QueueSettings]:
        """What each queue is set to. Raises `BrokerUnavailable` where one has no leader for long."""
        found = await self._streams.queues(wait=True)
        return {queue: settings_of(stream["config"]) for queue, stream in found.items()}

    async def setting(self, queue: str) -> QueueSettings | None:
        """What a queue is set to now; None if it is missing."""
        return await self._streams.refresh_settings(queue)

    async def declare(
        self, queue: str, settings: QueueSettings, *, write: bool = True, declared: bool = True
    ) -> list[Change]:
        """Bring a queue to its settings, as `Streams.declare` does; those who work on it follow at once.

        Where more of a key may run than before, its line is let on: who runs may run for long.
        """
        before = await self._streams.refresh_settings(queue) if write else None
        changes = await self._provisioner.declare_queue(queue, settings, write=write, declared=declared)
        if before is not None and changes:
            self._pauses.notify(queue)
            if (before.per_key, before.weights) != (settings.per_key, settings.weights):
                # What it does not come to, those do who leave a turn, and sweeps.
                with contextlib.suppress(BrokerError):
                    await self._key_groups.admit_all(queue)
        return changes

    async def update(self, queue: str, changes: Mapping[str, Any]) -> QueueSettings:
        """Change settings of a queue while it lives, and tell its workers.

        Raises `QueueNotFound`, `BadOption`, `CannotChange`.
        """
        found = await self._jetstream.stream_info(self._subjects.streams.ready(queue))
        if found is None:
            raise QueueNotFound(queue)
        settings = apply_changes(settings_of(found["config"]), changes)
        declared = (found["config"].get("metadata") or {}).get("jsq.declared") == "yes"
        await self.declare(queue, settings, declared=declared)
        return settings

    async def check(self, queue: str) -> None:
        """Raises `QueueNotFound` for a queue that is not there."""
        if await self._jetstream.stream_info(self._subjects.streams.ready(queue)) is None:
            raise QueueNotFound(queue)

    async def has_work(self, queue: str) -> bool:
        """Whether a queue has jobs for whoever asks: waiting, due and on their way, or to be let on.

        Not those of which another has to end first: what runs, and who waits for that in a line.
        """
        subjects, jetstream = self._subjects, self._jetstream
        ready, later = subjects.streams.ready(queue), subjects.streams.scheduled(queue)
        # Where a job goes from one place to the next, it is looked for in this order.
        for subject in (subjects.groups.due(queue, "*", "*"), subjects.due(queue, "*", "*")):
            if await jetstream.count(later, subject):
                return True
        wakeups = await jetstream.consumer_info(subjects.streams.group_state(queue), WAKEUPS)
        if wakeups and wakeups["num_pending"] + wakeups["num_ack_pending"]:
            return True
        found = [await jetstream.consumer_info(ready, level) for level in PRIORITIES]
        if any(one and one["num_pending"] for one in found):
            return True
        return await self._key_groups.any_stalled(queue)  # whose knock is on its way

    async def stats(self, queue: str | None = None) -> list[QueueStats]:
        """The numbers of one queue, or of all."""
        if queue is not None:
            one = await self._jetstream.stream_info(self._subjects.streams.ready(queue))
            return [await self._stats(queue, one)] if one is not None else []
        found = await self._streams.queues()
        return [await self._stats(name, found[name]) for name in sorted(found)]

    async def _stats(self, queue: str, stream: dict[str, Any]) -> QueueStats:
        subjects = self._subjects
        consumers = await asyncio.gather(
            *(self._jetstream.consumer_info(subjects.streams.ready(queue), level) for level in PRIORITIES)
        )
        later = await self._jetstream.stream_info(
            subjects.streams.scheduled(queue), subjects.next_tick(queue, "*")
        )
        line = None
        with contextlib.suppress(NotAllowed):
            line = await self._jetstream.stream_info(
                subjects.streams.groups(queue), subjects.groups.sentinel(queue)
            )
        dead = None
        with contextlib.suppress(NotAllowed):
            dead = await self._jetstream.count(subjects.streams.dead, subjects.dead(queue, "*", "*"))
        holds = PauseSet()
        with contextlib.suppress(NotAllowed):
            holds = await self._pauses.active(queue)
        lined = count_jobs(line["state"]) if line else 0
        return QueueStats(
            queue=queue,
            settings=settings_of(stream["config"]),
            waiting={
                level: one["num_pending"] if one else 0
                for level, one in zip(PRIORITIES, consumers, strict=True)
            },
            running=sum(one["num_ack_pending"] for one in consumers if one),
            scheduled=count_jobs(later["state"]) if later else 0,
            dead=dead,
            bytes=stream["state"]["bytes"] + (line["state"]["bytes"] if line and lined else 0),
            waiting_for_key=lined,
            pauses=tuple(holds.pauses.values()),
        )


FIXED_SETTINGS = {
    "storage": "it cannot be changed while the queue lives; give another queue this storage",
    "replicas": "it is changed by `jsq provision --replicas`, with all that is shared",
}
"""Settings that are not changed by `set`, and why."""


def apply_changes(settings: QueueSettings, changes: Mapping[str, Any]) -> QueueSettings:
    """Settings with some of them changed. Raises `BadOption`, naming the field."""
    for name, value in changes.items():
        if name in FIXED_SETTINGS:
            raise BadOption(name, value, FIXED_SETTINGS[name])
        if name not in QueueSettings.fields:
            raise BadOption(name, value, f"a queue has no setting {name}")
    if changes.get("quarantine") is not None:
        check_queue(changes["quarantine"])
    now = {name: getattr(settings, name) for name in QueueSettings.fields}
    return QueueSettings.read(**{**now, **changes})
