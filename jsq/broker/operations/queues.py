"""The queues of a namespace: their names and settings, and whether they have work."""

import contextlib
from collections.abc import Mapping
from typing import Any

from jsq.broker.flow.key_groups import KeyGroups
from jsq.broker.flow.pauses import PauseStore
from jsq.broker.topology.configs import WAKEUPS, settings_of
from jsq.broker.topology.namespace import Namespace
from jsq.broker.topology.provision import Change, Provisioner
from jsq.codec.subject_token import ANY
from jsq.errors import BadOption, BrokerError, QueueNotFound
from jsq.model.job import PRIORITIES, check_queue
from jsq.settings import QueueSettings


class Queues:
    """Declares queues, and changes their settings."""

    def __init__(
        self, namespace: Namespace, provisioner: Provisioner, pauses: PauseStore, key_groups: KeyGroups
    ) -> None:
        self._provisioner = provisioner
        self._jetstream = namespace.jetstream
        self._subjects = namespace.subjects
        self._streams = namespace.streams
        self._pauses = pauses
        self._key_groups = key_groups

    async def names(self) -> list[str]:
        return sorted(await self._streams.queue_names())

    async def settings(self) -> dict[str, QueueSettings]:
        """The settings of each queue. Raises `BrokerUnavailable` if a queue has no leader for some time."""
        found = await self._streams.queues(wait=True)
        return {queue: settings_of(stream["config"]) for queue, stream in found.items()}

    async def setting(self, queue: str) -> QueueSettings | None:
        """The present settings of a queue; None if the queue does not exist."""
        return await self._streams.refresh_settings(queue)

    async def declare(
        self, queue: str, settings: QueueSettings, *, write: bool = True, declared: bool = True
    ) -> list[Change]:
        """Bring a queue to its settings, as `Provisioner.declare_queue` does, and notify its workers.

        If the limits of keys have changed, admits the jobs that have room now. They need not wait until a
        running job of their key ends, which may take long.
        """
        before = await self._streams.refresh_settings(queue) if write else None
        changes = await self._provisioner.declare_queue(queue, settings, write=write, declared=declared)
        if before is not None and changes:
            self._pauses.notify(queue)
            if (before.per_key, before.weights) != (settings.per_key, settings.weights):
                # If this fails, the release of a slot admits the other jobs, or a sweep does.
                with contextlib.suppress(BrokerError):
                    await self._key_groups.admit_all(queue)
        return changes

    async def update(self, queue: str, changes: Mapping[str, Any]) -> QueueSettings:
        """Change settings of an existing queue, and notify its workers.

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
        """Raise `QueueNotFound` if a queue does not exist."""
        if await self._jetstream.stream_info(self._subjects.streams.ready(queue)) is None:
            raise QueueNotFound(queue)

    async def has_work(self, queue: str) -> bool:
        """Whether a queue has jobs that can start: jobs that wait, are due, or have room in their key group.

        Running jobs do not count, nor do jobs that wait in a key group until a running job ends.
        """
        subjects, jetstream = self._subjects, self._jetstream
        ready, later = subjects.streams.ready(queue), subjects.streams.scheduled(queue)
        # The streams are read in the order in which a job passes through them.
        for subject in (subjects.groups.due(queue, "*", ANY), subjects.due(queue, "*", ANY)):
            if await jetstream.count(later, subject):
                return True
        wakeups = await jetstream.consumer_info(subjects.streams.group_state(queue), WAKEUPS)
        if wakeups and wakeups["num_pending"] + wakeups["num_ack_pending"]:
            return True
        found = [await jetstream.consumer_info(ready, level) for level in PRIORITIES]
        if any(one and one["num_pending"] for one in found):
            return True
        return await self._key_groups.any_stalled(queue)  # its wake-up may be on its way


FIXED_SETTINGS = {
    "storage": "must not be changed while the queue exists; create another queue with this storage",
    "replicas": "must be changed with `jsq provision --replicas`, for all streams together",
}
"""The settings that `jsq queue set` does not change, each with the rule."""


def apply_changes(settings: QueueSettings, changes: Mapping[str, Any]) -> QueueSettings:
    """The settings with some of them changed. Raises `BadOption`, which names the field."""
    for name, value in changes.items():
        if name in FIXED_SETTINGS:
            raise BadOption(name, value, FIXED_SETTINGS[name])
        if name not in QueueSettings.fields:
            raise BadOption(name, value, f"must be a setting of a queue; there is no setting {name}")
    if changes.get("quarantine") is not None:
        check_queue(changes["quarantine"])
    now = {name: getattr(settings, name) for name in QueueSettings.fields}
    return QueueSettings.read(**{**now, **changes})
