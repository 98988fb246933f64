"""The streams of a namespace, created on first use, and what is known of queues.

Creating is idempotent. A queue that no App declares is created with the defaults; `provision` brings declared
queues to their configuration.
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
from jsq.codec.events import format_time
from jsq.codec.pauses import decode_pauses
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
    """A request to the server that concurrent callers share: `done` is the last of the `asked` it answers."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    asked: int = 0
    done: int = 0


class Streams:
    """Creates streams on first use, and caches what is known of queues.

    `with_groups` are the queues whose key groups are known to have their streams. `refreshed` has the last
    settings of each queue, and the moment (monotonic) of their request; see `settings`.
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
        self._replicas = await self.create_log(replicas)
        for config in shared_configs(self._subjects, max(replicas, self._replicas))[1:]:
            await self.create(config)
        self._shared = True

    async def create_log(self, replicas: int) -> Replicas:
        """Create the event log unless it exists; returns how many replicas it has. See `create_first`."""
        wanted = shared_configs(self._subjects, replicas)[0]
        found: Replicas = (await create_first(self.create, self._wire, wanted))["num_replicas"]
        return found

    async def ensure_queue(self, queue: str) -> QueueSettings:
        """Create a queue with the defaults unless it exists; returns its settings.

        It gets as many replicas as the bucket of records.
        """
        if queue not in self._known:
            with contextlib.suppress(
                NotAllowed
            ):  # a user of this queue only finds the shared streams created
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
        """Create the streams of a queue's key groups unless they exist, and announce them to the workers."""
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
        lookup.asked = mine = lookup.asked + 1
        async with lookup.lock:
            if lookup.done < mine:
                asked = lookup.asked
                if await self._have_groups(queue):
                    self._seen_groups.add(queue)
                lookup.done = asked
        return queue in self._seen_groups

    async def _have_groups(self, queue: str) -> bool:
        with contextlib.suppress(NotAllowed):
            return await self._jetstream.stream_info(self._subjects.streams.groups(queue)) is not None
        return False

    async def recreate(self, queue: str | None = None) -> None:
        """Create the shared streams, and those of a queue, if they are missing; one caller at a time.

        Streams that have no leader just now are left to the election.
        """
        asked = time.monotonic()
        async with self._recreating:
            if self._recreated > asked:
                return  # another caller has, since this one was called
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
                return  # the user may not read it either: the caller retries, in case it is an election
            if found is None:
                raise

    async def settings(self, queue: str) -> QueueSettings:
        """The settings of a queue, at most some seconds old; the defaults if it does not exist."""
        at, settings = self.refreshed.get(queue, (-SETTINGS_SECONDS, QueueSettings()))
        if time.monotonic() - at < SETTINGS_SECONDS:
            return settings
        try:
            return await self.refresh_settings(queue) or QueueSettings()
        except NotAllowed:
            return self._known.get(queue, settings)

    async def refresh_settings(self, queue: str) -> QueueSettings | None:
        """The settings of a queue now, or None if it does not exist; caches them for `settings`."""
        asked = time.monotonic()
        found = await self._jetstream.stream_info(self._subjects.streams.ready(queue))
        if found is None:
            return None
        settings = settings_of(found["config"])
        self.refreshed[queue] = asked, settings
        if queue in self._known:
            self._known[queue] = settings
        return settings

    def forget(self) -> None:
        """Drop the caches: a stream that existed is missing."""
        self._known.clear()
        self.refreshed.clear()
        self.with_groups.clear()
        self._seen_groups.clear()
        self._shared = False

    async def queues(self, *, wait: bool = False) -> dict[str, Config]:
        """The READY streams of the namespace, by queue: the server's `{config, state, ...}` of each.

        Streams without a leader are left out. With `wait`, the method waits for their election, and raises
        `BrokerUnavailable` if a stream has no leader then.
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
        """The names of all queues, also of those without a leader."""
        prefix = self._subjects.streams.ready_prefix
        return [
            name.removeprefix(prefix)
            async for page in self._jetstream.pages("STREAM.NAMES", f"{self._subjects.namespace}.q.>")
            for name in page
            if name.startswith(prefix)
        ]

    # -- inside ------------------------------------------------------------------------------------------

    async def create(self, config: Config) -> Config:
        """Create a stream unless it exists; returns its configuration.

        The stream is read first: most users may read, few may create.
        """
        found = await self._jetstream.stream_info(config["name"])
        if found is None:
            try:
                first = await self._first_sequence(config)
                return await self._jetstream.create_stream(config | first)
            except ForeignStream:
                found = await self._jetstream.stream_info(config["name"])
            except NotAllowed as error:
                raise NotAllowed(
                    f"{config['name']} is missing, and {error}; have an admin run `jsq provision`"
                ) from error
        check_owner(self._subjects, config, found)
        assert found is not None
        return dict(found["config"])

    async def _first_sequence(self, config: Config) -> Config:
        """The first sequence of a bucket of records that replaces a deleted one: above all sequences of that.

        Messages of jobs hold sequences of the deleted bucket, and fencing tokens must rise.
        """
        if config["name"] != self._subjects.streams.records or not await self.queue_names():
            return {}
        return {"first_seq": int(self._wire.clock.now() * 1e6)}

    async def pause_config(self, stream: str) -> Config:
        """The configuration that keeps the new consumer of a paused queue from delivering."""
        queue = stream.removeprefix(self._subjects.streams.ready_prefix)
        if queue == stream:
            return {}
        try:
            found = await self._reads.last(
                self._subjects.streams.bucket("limits"), self._subjects.limits.pauses(queue)
            )
        except (NoResponders, NotAllowed):
            return {}
        hold = decode_pauses(found.payload).of_queue(self._wire.clock.moment()) if found is not None else None
        return {"pause_until": format_time(hold.end)} if hold is not None and hold.reason == "paused" else {}


def check_owner(subjects: Subjects, wanted: Config, found: Config | None) -> None:
    """Raise `ForeignStream` if a stream has another owner, or (None) another one claims its subjects."""
    if found is None:
        raise ForeignStream(
            f"the subjects {', '.join(wanted['subjects'] or ())} belong to another stream; remove it, "
            "or choose another namespace"
        )
    metadata = found["config"].get("metadata") or {}
    if metadata.get("jsq.namespace") != subjects.namespace:
        raise ForeignStream(
            f"a stream named {wanted['name']} is there already and is not jsq's; remove it "
            f"(`nats stream rm {wanted['name']}`), or choose another namespace"
        )
