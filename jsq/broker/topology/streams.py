"""Creates the streams of a namespace on first use, and caches the settings of its queues.

Creating is idempotent. A queue that no App declares gets the defaults; `provision` brings declared queues to
their configuration.
"""

import asyncio
import contextlib
import time
from dataclasses import dataclass, field

from jsq.broker.topology.configs import (
    Config,
    consumer_configs,
    group_state_config,
    groups_config,
    ready_config,
    scheduled_config,
    settings_of,
    shared_configs,
    wakeup_consumer,
)
from jsq.broker.topology.replicas import create_first
from jsq.broker.topology.subjects import Subjects
from jsq.codec.pauses import decode_pauses
from jsq.codec.revisions import format_time
from jsq.errors import (
    BrokerFull,
    BrokerUnavailable,
    ForeignStream,
    NotAllowed,
)
from jsq.settings import QueueSettings, Replicas
from jsq.transport.jetstream import CALL_SECONDS, JetStreamApi
from jsq.transport.reads import Reads
from jsq.transport.replies import NoReply, NoResponders, WrongSequence
from jsq.transport.retrying import publish_with_retry
from jsq.transport.wire import Wire

SETTINGS_SECONDS = 15.0
"""Seconds for which the settings of a queue are cached; a worker refreshes them with each heartbeat."""


@dataclass(slots=True)
class Lookup:
    """A request to the server that concurrent callers share.

    `calls` counts the callers. The last finished request was sent after the first `answered` of them had
    called, so its result holds for these.
    """

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    calls: int = 0
    answered: int = 0


class Streams:
    """Creates streams on first use, and caches the settings of queues.

    `with_groups` holds the queues whose GROUPS and GROUP_STATE streams exist for certain. `refreshed` holds
    the last settings of each queue, and the time (monotonic) at which they were requested; see `settings`.
    """

    def __init__(self, wire: Wire, reads: Reads, jetstream: JetStreamApi, subjects: Subjects) -> None:
        self._wire = wire
        self._reads = reads
        self._jetstream = jetstream
        self._subjects = subjects
        self._known: dict[str, QueueSettings] = {}
        self.refreshed: dict[str, tuple[float, QueueSettings]] = {}
        self.with_groups: set[str] = set()
        self._seen_groups: set[str] = set()
        self._lookups: dict[str, Lookup] = {}
        self._creating_groups = asyncio.Lock()
        self._shared = False
        self._replicas: Replicas = 1
        self._recreating = asyncio.Lock()
        self._recreated = 0.0

    async def ensure_shared(self, replicas: int = 1) -> None:
        """Create the bucket of records and the other buckets, unless they exist."""
        if self._shared:
            return
        self._replicas = await self.create_records(replicas)
        for config in shared_configs(self._subjects, max(replicas, self._replicas))[1:]:
            await self.create(config)
        self._shared = True

    async def create_records(self, replicas: int) -> Replicas:
        """Create the bucket of records, unless it exists; returns the number of its replicas.

        See `create_first`.
        """
        wanted = shared_configs(self._subjects, replicas)[0]
        found: Replicas = (await create_first(self.create, self._wire, wanted))["num_replicas"]
        return found

    async def ensure_queue(self, queue: str) -> QueueSettings:
        """Create a queue with the defaults, unless it exists; returns its settings.

        A new queue gets as many replicas as the bucket of records.
        """
        if queue not in self._known:
            # A user of this queue only may not create shared streams: an admin has created them.
            with contextlib.suppress(NotAllowed):
                await self.ensure_shared()
            config = await self.create(
                scheduled_config(self._subjects, queue, QueueSettings(replicas=self._replicas))
            )
            settings = QueueSettings(storage=config["storage"], replicas=config["num_replicas"])
            config = await self.create(ready_config(self._subjects, queue, settings, declared=False))
            settings = settings_of(config)
            for stream, wanted in consumer_configs(self._subjects, queue, settings):
                if await self._jetstream.consumer_info(stream, wanted["name"]) is None:
                    await self._jetstream.put_consumer(stream, wanted | await self.pause_config(stream))
            self._known[queue] = settings
        return self._known[queue]

    async def ensure_groups(self, queue: str) -> None:
        """Create the streams of a queue's key groups, unless they exist, and announce them to the workers."""
        if queue in self.with_groups:
            return
        async with self._creating_groups:
            if queue in self.with_groups:
                return
            settings = await self.ensure_queue(queue)
            await self.create(groups_config(self._subjects, queue, settings))
            await self.create_sentinel(queue)
            await self.create(group_state_config(self._subjects, queue, settings))
            stream, consumer = (
                self._subjects.streams.group_state(queue),
                wakeup_consumer(self._subjects, queue),
            )
            if await self._jetstream.consumer_info(stream, consumer["name"]) is None:
                await self._jetstream.put_consumer(stream, consumer)
            self.announce_groups(queue)

    def announce_groups(self, queue: str) -> None:
        """Announce to the workers of a queue, once, that its GROUPS stream exists."""
        if queue not in self.with_groups:
            self._wire.send(self._subjects.groups.created(queue))
            self.with_groups.add(queue)

    def remember_queue(self, queue: str, settings: QueueSettings) -> None:
        """Cache that a queue exists with these settings."""
        self._known[queue] = settings
        self.refreshed.pop(queue, None)

    def remember_shared(self, replicas: Replicas) -> None:
        """Cache that the shared streams exist, with so many replicas."""
        self._shared, self._replicas = True, replicas

    async def create_sentinel(self, queue: str) -> None:
        """Store the first message of a GROUPS stream, unless it exists; see `KeyGroupSubjects.sentinel`."""
        headers = {"Nats-Expected-Last-Subject-Sequence": "0"}
        with contextlib.suppress(WrongSequence, NotAllowed, BrokerFull):
            await publish_with_retry(self._wire, self._subjects.groups.sentinel(queue), b"", headers)

    async def has_groups(self, queue: str) -> bool:
        """Whether a keyed job was ever submitted to a queue.

        A negative answer is not cached, because any client may create the stream at any time. Concurrent
        callers share one request, which is sent after each of them has called.
        """
        if queue in self.with_groups or queue in self._seen_groups:
            return True
        lookup = self._lookups.setdefault(queue, Lookup())
        lookup.calls = mine = lookup.calls + 1
        async with lookup.lock:
            if lookup.answered < mine:
                calls = lookup.calls
                if await self._groups_stream_exists(queue):
                    self._seen_groups.add(queue)
                lookup.answered = calls
        return queue in self._seen_groups

    async def _groups_stream_exists(self, queue: str) -> bool:
        with contextlib.suppress(NotAllowed):
            return await self._jetstream.stream_info(self._subjects.streams.groups(queue)) is not None
        return False

    async def recreate(self, queue: str | None = None) -> None:
        """Create the shared streams, and those of a queue, if they are missing; one caller at a time.

        Streams without a leader are left alone: the servers elect one.
        """
        called_at = time.monotonic()
        async with self._recreating:
            if self._recreated > called_at:
                return  # another caller has created them since
            had_groups = queue in self.with_groups
            self.forget()
            with contextlib.suppress(NoReply, NoResponders, TimeoutError):
                async with asyncio.timeout(CALL_SECONDS):
                    await self._create_missing(queue)
                    if queue and had_groups:
                        await self.ensure_groups(queue)
            self._recreated = time.monotonic()

    async def _create_missing(self, queue: str | None) -> None:
        try:
            await (self.ensure_queue(queue) if queue else self.ensure_shared())
        except NotAllowed:
            stream = self._subjects.streams.ready(queue) if queue else self._subjects.streams.records
            try:
                found = await self._jetstream.stream_info(stream)
            except NotAllowed:
                return  # the user may not read the stream: its leader may be missing, so the caller retries
            if found is None:
                raise

    async def settings(self, queue: str) -> QueueSettings:
        """The settings of a queue, at most `SETTINGS_SECONDS` old; the defaults if it does not exist."""
        at, settings = self.refreshed.get(queue, (-SETTINGS_SECONDS, QueueSettings()))
        if time.monotonic() - at < SETTINGS_SECONDS:
            return settings
        try:
            return await self.refresh_settings(queue) or QueueSettings()
        except NotAllowed:
            return self._known.get(queue, settings)

    async def refresh_settings(self, queue: str) -> QueueSettings | None:
        """Read the settings of a queue now, and cache them for `settings`; None if it does not exist."""
        requested_at = time.monotonic()
        found = await self._jetstream.stream_info(self._subjects.streams.ready(queue))
        if found is None:
            return None
        settings = settings_of(found["config"])
        self.refreshed[queue] = requested_at, settings
        if queue in self._known:
            self._known[queue] = settings
        return settings

    def forget(self) -> None:
        """Clear the caches. Call it when a stream is missing that existed before."""
        self._known.clear()
        self.refreshed.clear()
        self.with_groups.clear()
        self._seen_groups.clear()
        self._shared = False

    async def queues(self, *, wait: bool = False) -> dict[str, Config]:
        """The READY streams of the namespace, by queue, each as the server describes it (`{config, state}`).

        Streams without a leader are left out. With `wait`, the method waits until a leader is elected, and
        raises `BrokerUnavailable` if a stream has none after that.
        """
        found: dict[str, Config] = {}
        async for page in self._jetstream.pages("STREAM.LIST", f"{self._subjects.namespace}.q.>"):
            for stream in page:
                name = stream["config"]["name"]
                if name.startswith(self._subjects.streams.ready_prefix):
                    found[name.removeprefix(self._subjects.streams.ready_prefix)] = stream
        for queue in set(await self.queue_names()) - found.keys() if wait else ():
            try:
                late = await self._jetstream.stream_info(self._subjects.streams.ready(queue))
            except NoReply as error:
                raise BrokerUnavailable(f"queue {queue} has no leader just now: {error}") from error
            if late is not None:
                found[queue] = late
        return found

    async def queue_names(self) -> list[str]:
        """The names of all queues, including those without a leader."""
        prefix = self._subjects.streams.ready_prefix
        return [
            name.removeprefix(prefix)
            async for page in self._jetstream.pages("STREAM.NAMES", f"{self._subjects.namespace}.q.>")
            for name in page
            if name.startswith(prefix)
        ]

    # -- inside ------------------------------------------------------------------------------------------

    async def create(self, config: Config) -> Config:
        """Create a stream, unless it exists; returns its configuration.

        Reads the stream first: most users may read streams, and few may create them.
        """
        found = await self._jetstream.stream_info(config["name"])
        if found is None:
            try:
                first = await self._first_sequence(config)
                return await self._jetstream.create_stream(config | first)
            except ForeignStream as error:
                found = await self._jetstream.stream_info(config["name"])
                if found is None:
                    raise await self.subjects_taken(config) from error
            except NotAllowed as error:
                raise NotAllowed(
                    f"stream {config['name']} is missing, and {error}; have an admin run `jsq provision`"
                ) from error
        check_owner(self._subjects, config, found)
        return dict(found["config"])

    async def subjects_taken(self, wanted: Config) -> ForeignStream:
        """The error of a stream whose subjects others have, with the names of these streams."""
        owners: set[str] = set()
        with contextlib.suppress(NotAllowed):
            for subject in wanted["subjects"] or ():
                async for page in self._jetstream.pages("STREAM.NAMES", subject):
                    owners.update(page)
        names = sorted(owners - {wanted["name"]})
        fix = "; ".join(f"`nats stream rm {name}`" for name in names)
        return ForeignStream(
            f"subjects of {wanted['name']} belong to another stream, of another application or of another "
            f"version of jsq; remove it ({fix or 'its name is not known'}), or choose another namespace"
        )

    async def _first_sequence(self, config: Config) -> Config:
        """The first sequence of a bucket of records that replaces a deleted one, as configuration.

        It is above all sequences of the deleted bucket: messages of jobs still hold these, and fencing tokens
        must rise.
        """
        if config["name"] != self._subjects.streams.records or not await self.queue_names():
            return {}
        return {"first_seq": int(self._wire.clock.now() * 1e6)}

    async def pause_config(self, stream: str) -> Config:
        """The part of the configuration that pauses a new consumer, if its queue is paused."""
        queue = stream.removeprefix(self._subjects.streams.ready_prefix)
        if queue == stream:
            return {}
        try:
            found = await self._reads.last(
                self._subjects.streams.bucket("limits"), self._subjects.limits.pauses(queue)
            )
        except (NoResponders, NotAllowed):
            return {}
        if found is None:
            return {}
        pause = decode_pauses(found.payload).of_queue(self._wire.clock.moment())
        return (
            {"pause_until": format_time(pause.end)} if pause is not None and pause.reason == "paused" else {}
        )


def check_owner(subjects: Subjects, wanted: Config, found: Config) -> None:
    """Raise `ForeignStream` if a stream is not of this namespace."""
    metadata = found["config"].get("metadata") or {}
    if metadata.get("jsq.namespace") != subjects.namespace:
        raise ForeignStream(
            f"stream {wanted['name']} exists and does not belong to this namespace of jsq; remove it "
            f"(`nats stream rm {wanted['name']}`), or choose another namespace"
        )
