"""The streams and consumers that a worker needs: finds the missing ones, and creates them again.

A stream that an operator deletes is gone with its content, and the server does not notify the workers: it
leaves their pulls and writes unanswered. But it publishes an advisory when it creates or deletes a stream.
"""

from collections.abc import Callable, Iterable

from jsq.broker.topology.configs import Config, consumer_configs, settings_of, shared_configs
from jsq.broker.topology.namespace import Namespace
from jsq.broker.topology.provision import Provisioner
from jsq.errors import NotAllowed
from jsq.transport.replies import Reply
from jsq.transport.wire import Subscription

ADVISORY = "$JS.EVENT.ADVISORY"
STREAM_ACTIONS = ("CREATED", "DELETED")


class StreamInventory:
    """The streams and consumers that the workers of some queues need, with the last known configurations."""

    def __init__(self, namespace: Namespace, provisioner: Provisioner, queues: Iterable[str]) -> None:
        self._wire = namespace.wire
        self._jetstream = namespace.jetstream
        self._subjects = namespace.subjects
        self._streams = namespace.streams
        self._provisioner = provisioner
        self._queues = list(queues)
        self._shared = [config["name"] for config in shared_configs(namespace.subjects, 1)]
        names = namespace.subjects.streams
        self._optional = {name(queue) for queue in self._queues for name in (names.groups, names.group_state)}
        self._known: dict[str, Config] = {}
        self._deleted: set[str] = set()

    async def subscribe(self, changed: Callable[[], object]) -> list[Subscription]:
        """Call `changed` when the server has created or deleted one of the streams or consumers."""

        def receive(message: Reply) -> None:
            kind, action, name, *_ = message.subject.removeprefix(f"{ADVISORY}.").split(".")
            if kind == "STREAM" and action == "DELETED":
                self._deleted.add(name)
            elif kind == "STREAM":
                self._deleted.discard(name)
            changed()

        return [
            await self._wire.subscribe(subject, receive)
            for subject in inventory_advisories(self._shared, self._queue_streams())
        ]

    def forget_advisories(self) -> None:
        """Forget the received advisories. Call it after a reconnect: the client may have missed others."""
        self._deleted.clear()

    def forget_queue(self, queue: str) -> None:
        """Forget the streams of a removed queue: they are not missing, even if the queue is created again."""
        for name in self._streams_of(queue):
            self._known.pop(name, None)

    async def missing(self, skip: Callable[[str], bool]) -> dict[str, str]:
        """The missing streams and consumers, each with its queue. A consumer is named `STREAM CONSUMER`.

        The queue of a shared stream is empty. Queues for which `skip` returns True are left out. If the user
        may not read the configuration of a stream, the received advisories decide whether it is missing.
        Raises `BrokerError` if a stream has no leader.
        """
        found = {name: "" for name in self._shared if await self._is_missing(name)}
        for queue in self._queues:
            if skip(queue):
                self.forget_queue(queue)
                continue
            gone = [name for name in self._streams_of(queue) if await self._is_missing(name)]
            gone = gone or await self._missing_consumers(queue)
            # A client announces the removal of a queue before it deletes the streams.
            found |= {} if skip(queue) else dict.fromkeys(gone, queue)
        return found

    async def restore(self, missing: dict[str, str]) -> None:
        """Create the missing streams and consumers, with the settings and replicas that they had.

        Raises `NotAllowed`, and the exceptions of `Provisioner`.
        """
        self._streams.forget()
        if "" in missing.values():
            known = [self._known[name]["num_replicas"] for name in self._shared if name in self._known]
            await self._provisioner.reconcile_shared(max(known, default=1))
        for queue in sorted(set(missing.values()) - {""}):
            names = self._subjects.streams
            ready = self._known.get(names.ready(queue))
            if ready is not None:
                await self._provisioner.restore_queue(queue, ready)
            await self._streams.ensure_queue(queue)
            if names.groups(queue) in self._known:
                await self._streams.ensure_groups(queue)
        await self._provisioner.ensure_advisories()

    # -- inside ------------------------------------------------------------------------------------------

    def _streams_of(self, queue: str) -> tuple[str, ...]:
        names = self._subjects.streams
        return (
            names.ready(queue),
            names.scheduled(queue),
            names.groups(queue),
            names.group_state(queue),
        )

    def _queue_streams(self) -> list[str]:
        return [name for queue in self._queues for name in self._streams_of(queue)]

    async def _is_missing(self, name: str) -> bool:
        try:
            found = await self._jetstream.stream_info(name)
        except NotAllowed:
            return name in self._deleted
        if found is not None:
            self._known[name] = found["config"]
        return found is None and (name in self._known or name not in self._optional)

    async def _missing_consumers(self, queue: str) -> list[str]:
        ready = self._known.get(self._subjects.streams.ready(queue))
        if ready is None:
            return []
        try:
            return [
                f"{stream} {config['name']}"
                for stream, config in consumer_configs(self._subjects, queue, settings_of(ready))
                if await self._jetstream.consumer_info(stream, config["name"]) is None
            ]
        except NotAllowed:
            return []


def inventory_advisories(shared: Iterable[str], of_queues: Iterable[str]) -> list[str]:
    """The subjects of the advisories that the server has created or deleted one of these streams.

    The streams of queues have more subjects: those of the advisories that a consumer was deleted.
    """
    names = list(of_queues)
    return [
        *(f"{ADVISORY}.STREAM.{action}.{name}" for name in (*shared, *names) for action in STREAM_ACTIONS),
        *(f"{ADVISORY}.CONSUMER.DELETED.{name}.*" for name in names),
    ]
