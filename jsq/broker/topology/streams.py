"""Brings the streams, consumers and buckets to what `layout` says they should be.

Everything is made on first use, and idempotently. What an App declares is reconciled at `provision` and when
a worker starts; a queue that nobody declared is made with the defaults, and never changed by one that knows
less.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from jsq.broker.topology.configs import (
    Config,
    advisories_config,
    bucket_config,
    dead_config,
    differences,
    events_config,
    group_state_config,
    groups_config,
    queue_consumer,
    ready_config,
    scheduled_config,
    settings_of,
    tick_consumer,
    view_config,
    wakeup_consumer,
)
from jsq.broker.topology.subjects import Subjects
from jsq.codec.events import format_time, parse_time
from jsq.errors import (
    BrokerFull,
    BrokerUnavailable,
    CannotChange,
    ForeignStream,
    JetStreamOff,
    NotAllowed,
    Refused,
)
from jsq.model import pause
from jsq.model.job import PRIORITIES
from jsq.settings import QueueSettings, Replicas
from jsq.transport.replies import NoReply, NoResponders, Reply, WrongSequence, sequence_of
from jsq.transport.server_clock import PAST
from jsq.transport.wire import ABSENT_SECONDS, NO_STREAM, Wire

log = logging.getLogger("jsq.broker")

API_SECONDS = 15.0
"""How long a call about a stream is tried again, over an election; each may be made twice."""

LEARN_SECONDS = 15.0
"""How old what is known of a queue's settings may be: a worker learns them anew at each beat."""

BEHIND = 30.0
"""Seconds after which an event must stand in the view, which is a millisecond behind the log."""

COPY_SECONDS = 60.0
"""How long new replicas are waited for."""

_CONSUMER_ABSENT = 10014
_NO_MESSAGE = frozenset({10037, 10043, 10057})


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between the server and what it should be: `what` it is about, and `how` it differs."""

    what: str
    how: str


@dataclass(slots=True)
class StreamInfo:
    """A question to the server, asked for all who have `asked` by then; the answers so far are of `done`."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    asked: int = 0
    done: int = 0


class Streams:
    """Brings the server to what it should be."""

    def __init__(self, wire: Wire, names: Subjects) -> None:
        self._wire = wire
        self._subjects = names
        self._made: dict[str, QueueSettings] = {}
        self._learned: dict[str, tuple[float, QueueSettings]] = {}
        self._lined: set[str] = set()
        self._seen_lines: set[str] = set()
        self._line_looks: dict[str, StreamInfo] = {}
        self._lining = asyncio.Lock()
        self._shared = False
        self._replicas: Replicas = 1
        self._making = asyncio.Lock()
        self._looked = 0.0
        self._growing: set[str] = set()

    async def ensure_shared(self, replicas: int = 1) -> None:
        """Make the event log, the view of jobs, the dead letters and the buckets."""
        if self._shared:
            return
        made = [await self._create(config) for config in self._shared_configs(replicas)]
        self._replicas = made[0]["num_replicas"]
        self._shared = True

    async def ensure_queue(self, queue: str) -> QueueSettings:
        """Make a queue with the defaults where it is missing, with as many replicas as the log; returns the
        settings it has.
        """
        if queue not in self._made:
            with contextlib.suppress(NotAllowed):  # who serves this queue only finds what is shared in place
                await self.ensure_shared()
            config = await self._create(
                scheduled_config(self._subjects, queue, QueueSettings(replicas=self._replicas))
            )
            settings = QueueSettings(storage=config["storage"], replicas=config["num_replicas"])
            await self._widen(config, scheduled_config(self._subjects, queue, settings))
            config = await self._create(ready_config(self._subjects, queue, settings, declared=False))
            settings = settings_of(config)
            for stream, wanted in self._consumers(queue, settings):
                if await self.consumer_info(stream, wanted["name"]) is None:
                    await self._put_consumer(stream, wanted | await self._paused(stream))
            self._made[queue] = settings
        return self._made[queue]

    async def ensure_line(self, queue: str) -> None:
        """Make the place where a queue's keyed jobs wait, where it is missing, and tell the workers of it."""
        if queue in self._lined:
            return
        async with self._lining:
            if queue in self._lined:
                return
            settings = await self.ensure_queue(queue)
            await self._create(groups_config(self._subjects, queue, settings))
            await self._head_line(queue)
            await self._create(group_state_config(self._subjects, queue, settings))
            stream, knocking = (
                self._subjects.group_state_stream(queue),
                wakeup_consumer(self._subjects, queue),
            )
            if await self.consumer_info(stream, knocking["name"]) is None:
                await self._put_consumer(stream, knocking)
            self._wire.send(self._subjects.groups_created(queue))
            self._lined.add(queue)

    async def _head_line(self, queue: str) -> None:
        """Put what stands before all lines of a queue there, unless it is."""
        headers = {"Nats-Expected-Last-Subject-Sequence": "0"}
        with contextlib.suppress(WrongSequence, NotAllowed, BrokerFull):
            await self._wire.publish_with_retry(self._subjects.groups_sentinel(queue), b"", headers)

    async def has_line(self, queue: str) -> bool:
        """Whether keyed jobs were ever submitted to a queue.

        That there is none yet is never remembered, for anybody may make it at any time; but those who ask at
        the same time share an answer that was asked for after each of them came.
        """
        if queue in self._lined or queue in self._seen_lines:
            return True
        look = self._line_looks.setdefault(queue, StreamInfo())
        look.asked = mine = look.asked + 1
        async with look.lock:
            if look.done < mine:
                asked = look.asked
                if await self._is_lined(queue):
                    self._seen_lines.add(queue)
                look.done = asked
        return queue in self._seen_lines

    async def _is_lined(self, queue: str) -> bool:
        with contextlib.suppress(NotAllowed):
            return await self.info(self._subjects.groups_stream(queue)) is not None
        return False

    async def make_anew(self, queue: str | None = None) -> None:
        """Make what is shared, and a queue, where nobody serves them: one who asks at a time.

        Where they have no leader just now, they are left to the election.
        """
        asked = time.monotonic()
        async with self._making:
            if self._looked > asked:
                return  # somebody else has, since we were told
            lined = queue in self._lined
            self.forget()
            with contextlib.suppress(NoReply, NoResponders, TimeoutError):
                async with asyncio.timeout(API_SECONDS):
                    await self._make(queue)
                    if queue and lined:
                        await self.ensure_line(queue)
            self._looked = time.monotonic()

    async def _make(self, queue: str | None) -> None:
        try:
            await (self.ensure_queue(queue) if queue else self.ensure_shared())
        except NotAllowed:
            stream = self._subjects.ready_stream(queue) if queue else self._subjects.events_stream
            try:
                found = await self.info(stream)
            except NotAllowed:
                return  # who may not even look waits, in case it is an election, as long as he has time
            if found is None:
                raise

    async def declare(
        self, queue: str, settings: QueueSettings, *, write: bool = True, declared: bool = True
    ) -> list[Change]:
        """Bring a queue to its declared settings; with `write=False` only tell what differs.

        Raises `CannotChange` where a live queue cannot take a setting, saying what to do instead.
        """
        names = self._subjects
        if "replicas" not in settings.model_fields_set:
            settings = await self._with_replicas(queue, settings)
        changes = await self._reconcile(scheduled_config(names, queue, settings), write=write)
        changes += await self._reconcile(ready_config(names, queue, settings, declared=declared), write=write)
        for stream, wanted in self._consumers(queue, settings):
            changes += await self._reconcile_consumer(stream, wanted, write=write)
        changes += await self._declare_line(queue, settings, write=write)
        if write:
            self._made[queue] = settings
            self._learned.pop(queue, None)
        return changes

    async def _declare_line(self, queue: str, settings: QueueSettings, *, write: bool) -> list[Change]:
        """Where keyed jobs wait, if some were submitted or the queue says something of keys."""
        names = self._subjects
        if not (settings.per_key or settings.weights or await self.has_line(queue)):
            return []
        changes = await self._reconcile(groups_config(names, queue, settings), write=write)
        if write:
            await self._head_line(queue)
        changes += await self._reconcile(group_state_config(names, queue, settings), write=write)
        stream = names.group_state_stream(queue)
        changes += await self._reconcile_consumer(stream, wakeup_consumer(names, queue), write=write)
        if write and queue not in self._lined:
            self._wire.send(names.groups_created(queue))
            self._lined.add(queue)
        return changes

    async def settings(self, queue: str) -> QueueSettings:
        """What a queue is set to, or was some seconds ago; the defaults where it is missing."""
        at, settings = self._learned.get(queue, (-LEARN_SECONDS, QueueSettings()))
        if time.monotonic() - at < LEARN_SECONDS:
            return settings
        try:
            return await self.learn(queue) or QueueSettings()
        except NotAllowed:
            return self._made.get(queue, settings)

    async def learn(self, queue: str) -> QueueSettings | None:
        """What a queue is set to now, None where it is missing; `settings` tells it from now on."""
        asked = time.monotonic()
        found = await self.info(self._subjects.ready_stream(queue))
        if found is None:
            return None
        settings = settings_of(found["config"])
        self._learned[queue] = asked, settings
        if queue in self._made:
            self._made[queue] = settings
        return settings

    async def _with_replicas(self, queue: str, settings: QueueSettings) -> QueueSettings:
        """Settings that say nothing of replicas, with those that the queue has, or else the log."""
        for stream in (self._subjects.ready_stream(queue), self._subjects.events_stream):
            found = await self.info(stream)
            if found is not None:
                return settings.model_copy(update={"replicas": found["config"]["num_replicas"]})
        return settings

    async def restore(self, queue: str, config: Config, *, write: bool = True) -> list[Change]:
        """Bring a queue back to the settings that its stream's `config` tells it was made with."""
        declared = (config.get("metadata") or {}).get("jsq.declared") == "yes"
        return await self.declare(queue, settings_of(config), write=write, declared=declared)

    async def reconcile_shared(self, replicas: int, *, write: bool = True) -> list[Change]:
        """The shared streams keep at least as many replicas as the most careful queue."""
        changes: list[Change] = []
        for config in self._shared_configs(replicas):
            changes += await self._reconcile(config, write=write, grow_only=True)
        if not changes and await self.view_is_behind():
            changes.append(Change(self._subjects.bucket("jobs"), "does not follow the log"))
            if write:
                await self._join_view()
        self._shared = self._shared or write
        return changes

    async def reconcile_advisories(self, queues: Iterable[str], *, write: bool = True) -> list[Change]:
        """Have the advisories of some queues kept, and of no others; with `write=False` only tell.

        Raises `ForeignStream` where another stream of the account keeps them already.
        """
        found = await self.info(self._subjects.events_stream)
        wanted = advisories_config(self._subjects, queues, found["config"]["num_replicas"] if found else 1)
        if not wanted["subjects"]:
            return []
        held = await self._api("STREAM.NAMES", {"subject": wanted["subjects"][0]})
        if set(held["streams"] or ()) - {wanted["name"]}:
            raise ForeignStream(
                f"advisories of the consumers belong to another stream, {', '.join(held['streams'])}: sweeps "
                "find without them what was given up, but later"
            )
        return await self._reconcile(wanted, write=write, grow_only=True)

    async def keep_advisories(self) -> list[Change]:
        """See that the advisories of all queues are kept, if that can be: sweeps do without, only later."""
        try:
            return await self.reconcile_advisories(await self.queue_names())
        except (ForeignStream, NotAllowed, Refused, BrokerFull) as error:
            log.info("advisories are not kept", extra={"why": str(error)})
            return []

    def forget(self) -> None:
        """Look again at what is there: something was missing that had been made."""
        self._made.clear()
        self._learned.clear()
        self._lined.clear()
        self._seen_lines.clear()
        self._shared = False

    async def queues(self, *, wait: bool = False) -> dict[str, Config]:
        """The READY streams of the namespace, by queue: the server's `{config, state, ...}` of each.

        Without those that have no leader. With `wait` these are waited for, as long as an election takes:
        raises `BrokerUnavailable` for one that has none then.
        """
        found: dict[str, Config] = {}
        async for page in self._pages("STREAM.LIST"):
            for stream in page:
                name = stream["config"]["name"]
                if name.startswith(self._subjects.ready_prefix):
                    found[name.removeprefix(self._subjects.ready_prefix)] = stream
        for queue in set(await self.queue_names()) - found.keys() if wait else ():
            try:
                late = await self.info(self._subjects.ready_stream(queue))
            except NoReply as error:
                raise BrokerUnavailable(f"queue {queue} has no leader just now: {error}") from error
            if late is not None:
                found[queue] = late
        return found

    async def queue_names(self) -> list[str]:
        """The queues there are, those without a leader too: `queues` tells only what leaders answer."""
        prefix = self._subjects.ready_prefix
        return [
            name.removeprefix(prefix)
            async for page in self._pages("STREAM.NAMES")
            for name in page
            if name.startswith(prefix)
        ]

    async def _pages(self, call: str) -> AsyncIterator[list[Any]]:
        """What a call tells about the streams of queues, page by page."""
        offset, total = 0, 1
        while offset < total:
            page = await self._api(call, {"subject": f"{self._subjects.namespace}.q.>", "offset": offset})
            total = page["total"]
            offset += max(1, len(page.get("streams") or []))
            yield page.get("streams") or []

    async def info(self, stream: str, subjects: str = "") -> Config | None:
        """The server's `{config, state, ...}` of a stream, or None; with counts of some subjects."""
        try:
            found: Config = await self._api(
                f"STREAM.INFO.{stream}", {"subjects_filter": subjects} if subjects else None
            )
        except Refused as error:
            if error.code == NO_STREAM:
                return None
            raise
        return found

    async def check_missing(self, stream: str) -> None:
        """See that a stream nobody serves was never made. Raises `JetStreamOff`, `BrokerUnavailable`."""
        if await self.info(stream) is not None:
            raise BrokerUnavailable(f"{stream} has no leader just now; try again")

    async def consumer_info(self, stream: str, name: str) -> Config | None:
        try:
            found: Config = await self._api(f"CONSUMER.INFO.{stream}.{name}")
        except Refused as error:
            if error.code in (NO_STREAM, _CONSUMER_ABSENT):
                return None
            raise
        return found

    async def pause(self, queue: str, level: str, until: datetime | None) -> None:
        """Have a consumer, if it is there, deliver nothing until then, or go on at once."""
        request = {"pause_until": format_time(until or PAST)}
        try:
            await self._api(f"CONSUMER.PAUSE.{self._subjects.ready_stream(queue)}.{level}", request)
        except Refused as error:
            if error.code not in (NO_STREAM, _CONSUMER_ABSENT):
                raise

    async def count(self, stream: str, subject: str) -> int:
        """How many messages stand on a subject (with wildcards); for streams of few subjects."""
        found = await self.info(stream, subject)
        return sum((found["state"].get("subjects") or {}).values()) if found is not None else 0

    async def purge(self, stream: str, subject: str, *, below: int | None = None, keep: int = 0) -> int:
        """Remove the messages on a subject (with wildcards), or those below a sequence; returns how many.

        The last `keep` of them stay.
        """
        request: Config = {"filter": subject}
        request |= {"seq": below} if below is not None else {"keep": keep} if keep else {}
        try:
            answer = await self._api(f"STREAM.PURGE.{stream}", request)
        except Refused as error:
            if error.code == NO_STREAM:
                return 0
            raise
        return int(answer["purged"])

    async def remove(self, stream: str, sequence: int) -> bool:
        """Remove the message with a sequence; False if it is not there."""
        try:
            await self._api(f"STREAM.MSG.DELETE.{stream}", {"seq": sequence, "no_erase": True})
        except Refused as error:
            if error.code in {NO_STREAM, *_NO_MESSAGE}:
                return False
            raise
        return True

    async def remove_all(self, queue: str) -> None:
        """Remove a queue, and all that is shared in the namespace, with what they hold."""
        names = self._subjects
        shared = [config["name"] for config in self._shared_configs(1)] + [names.advisories_stream]
        own = (
            names.group_state_stream(queue),
            names.groups_stream(queue),
            names.ready_stream(queue),
            names.scheduled_stream(queue),
        )
        for stream in (*own, *shared):
            with contextlib.suppress(Refused):
                await self._api(f"STREAM.DELETE.{stream}")
        self.forget()

    async def await_copies(self) -> None:
        """Wait until the streams whose replicas we changed are led, and held by as many servers: they are
        not at once, and until then nothing can be stored there. What takes longer than a minute goes on.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(COPY_SECONDS):
                while self._growing:
                    self._growing = {name for name in self._growing if not await self._is_copied(name)}
                    await asyncio.sleep(0.1)
        for name in self._growing:
            log.warning("not all replicas are up to date yet", extra={"stream": name})
        self._growing.clear()

    async def _is_copied(self, stream: str) -> bool:
        """Whether a stream and its consumers have a leader and all their replicas, which are up to date."""
        try:
            found = await self.info(stream)
            told = await self._api(f"CONSUMER.LIST.{stream}") if found is not None else {}
        except (NoReply, NoResponders):
            return False
        except NotAllowed:
            return True  # who may not look need not wait
        if found is None:
            return True
        others = found["config"]["num_replicas"] - 1
        every = [found, *(told.get("consumers") or ())]
        return not told.get("missing") and all(is_copied(one.get("cluster") or {}, others) for one in every)

    async def account(self) -> Config:
        """The server's report of the account: limits and use."""
        found: Config = await self._api("INFO")
        return found

    # -- inside ------------------------------------------------------------------------------------------

    def _shared_configs(self, replicas: int) -> Iterable[Config]:
        names = self._subjects
        return (
            events_config(names, replicas),
            view_config(names, replicas),
            bucket_config(names, "ids", replicas),
            bucket_config(names, "workers", replicas),
            bucket_config(names, "schedules", replicas),
            bucket_config(names, "limits", replicas),
            dead_config(names, replicas),
        )

    async def _api(self, name: str, request: Mapping[str, Any] | None = None) -> Any:
        try:
            return await self._wire.with_retry(
                lambda: self._wire.api(name, request), seconds=API_SECONDS, absent=ABSENT_SECONDS
            )
        except NoResponders as error:
            if self._wire.has_jetstream:
                raise
            raise JetStreamOff(
                f"{self._wire.login.shown} has no JetStream; add `jetstream {{ store_dir: ... }}` to its "
                "conf, or start it with -js"
            ) from error

    async def _create(self, config: Config) -> Config:
        """Create a stream; where it is there already, leave it and return what it is.

        It is looked for first: most users may look, few may create.
        """
        found = await self.info(config["name"])
        if found is None:
            try:
                first = await self._go_on(config)
                made: Config = await self._api(f"STREAM.CREATE.{config['name']}", config | first)
                if first:
                    await self._join_view()
                return dict(made["config"])
            except ForeignStream:
                found = await self.info(config["name"])
            except NotAllowed as error:
                raise NotAllowed(
                    f"{config['name']} is missing, and {error}; have an admin run `jsq provision`"
                ) from error
        self._check_owner(config, found)
        assert found is not None
        return dict(found["config"])

    async def _go_on(self, config: Config) -> Config:
        """Where a log begins that takes the place of one which was removed: above all that this told.

        The view has the sequences of that one, and so have tokens of attempts and places: they must rise.
        """
        if config["name"] != self._subjects.events_stream:
            return {}
        known = await self.info(self._subjects.bucket("jobs"))
        if known is None or not known["state"]["last_seq"]:
            return {}
        return {"first_seq": int(self._wire.clock.now() * 1e6)}

    async def _join_view(self) -> None:
        """Have the view follow the log at once: of a log that was removed it would learn in half a minute."""
        known = await self.info(self._subjects.bucket("jobs"))
        if known is not None:
            await self._update(known["config"] | {"sources": None})
            await self._update(known["config"])

    async def view_is_behind(self) -> bool:
        """Whether the view lacks what the log has told for long; False for who may not look."""
        names, wire = self._subjects, self._wire
        log, view = names.events_stream, names.bucket("jobs")
        try:
            last = await wire.last(log, names.event("*", "*", ">"), consistent=True)
            if last is None or wire.clock.now() - stored_at(last) < BEHIND:
                return False
            _, _, queue, id, *_ = last.headers["Nats-Subject"].split(".")
            seen = await wire.last(view, names.key("jobs", f"{queue}.{id}"), consistent=True)
            stands = await wire.at(log, sequence_of(last), consistent=True) is not None
        except (NoResponders, NotAllowed):
            return False
        return stands and (seen is None or source_of(seen) < sequence_of(last))

    def _consumers(self, queue: str, settings: QueueSettings) -> Iterable[tuple[str, Config]]:
        """The consumers of a queue, each with its stream: one for each priority, and that of the ticks."""
        for level in PRIORITIES:
            yield self._subjects.ready_stream(queue), queue_consumer(self._subjects, queue, level, settings)
        yield self._subjects.scheduled_stream(queue), tick_consumer(self._subjects, queue)

    async def _widen(self, have: Config, wanted: Config) -> None:
        """Give a stream that an older release made the subjects it lacks, where we may."""
        if set(wanted["subjects"]) - set(have["subjects"]):
            with contextlib.suppress(NotAllowed):
                await self._update(have | {"subjects": wanted["subjects"]})

    async def _paused(self, stream: str) -> Config:
        """What keeps a queue's consumer that is made (anew) from delivering what is paused."""
        queue = stream.removeprefix(self._subjects.ready_prefix)
        if queue == stream:
            return {}
        try:
            found = await self._wire.last(self._subjects.bucket("limits"), self._subjects.pauses(queue))
        except (NoResponders, NotAllowed):
            return {}
        hold = (
            pause.decode_pauses(found.payload).whole(self._wire.clock.moment()) if found is not None else None
        )
        return {"pause_until": format_time(hold.end)} if hold is not None and hold.why == "paused" else {}

    async def _put_consumer(self, stream: str, config: Config) -> None:
        await self._api(
            f"CONSUMER.CREATE.{stream}.{config['name']}.{config['filter_subject']}",
            {"stream_name": stream, "config": config},
        )

    async def _reconcile(self, wanted: Config, *, write: bool, grow_only: bool = False) -> list[Change]:
        found = await self.info(wanted["name"])
        if found is None:
            if write:
                await self._create(wanted)
            return [Change(wanted["name"], "missing")]
        self._check_owner(wanted, found)
        have = found["config"]
        if grow_only:
            wanted = wanted | {"num_replicas": max(wanted["num_replicas"], have["num_replicas"])}
        changes = [Change(wanted["name"], told) for told in differences(wanted, have)]
        if have["storage"] != wanted["storage"]:
            raise CannotChange(
                f"{wanted['name']} is kept in {have['storage']} storage, which cannot be changed to "
                f"{wanted['storage']}: let it run empty and remove it (`nats stream rm {wanted['name']}`), "
                "or give the queue another name"
            )
        if changes and write:
            await self._update(have | wanted)
            if have["num_replicas"] != wanted["num_replicas"]:
                self._growing.add(wanted["name"])
        return changes

    async def _update(self, config: Config) -> None:
        try:
            await self._api(f"STREAM.UPDATE.{config['name']}", config)
        except Refused as error:
            raise CannotChange(f"{config['name']} cannot be changed while it lives: {error}") from error

    async def _reconcile_consumer(self, stream: str, wanted: Config, *, write: bool) -> list[Change]:
        what = f"{stream} {wanted['name']}"
        found = await self.consumer_info(stream, wanted["name"])
        have = found["config"] if found else {}
        changes = [Change(what, told) for told in differences(wanted, have)] if found else []
        if found is None:
            changes = [Change(what, "missing")]
        if changes and write:
            held = {} if found else await self._paused(stream)
            await self._put_consumer(stream, have | wanted | held)
        return changes

    def _check_owner(self, wanted: Config, found: Config | None) -> None:
        if found is None:
            raise ForeignStream(
                f"the subjects {', '.join(wanted['subjects'] or ())} belong to another stream; remove it, "
                "or choose another namespace"
            )
        metadata = found["config"].get("metadata") or {}
        if metadata.get("jsq.namespace") != self._subjects.namespace:
            raise ForeignStream(
                f"a stream named {wanted['name']} is there already and is not jsq's; remove it "
                f"(`nats stream rm {wanted['name']}`), or choose another namespace"
            )


def stored_at(message: Reply) -> float:
    """When the server stored a message, in seconds since the epoch."""
    return parse_time(message.headers["Nats-Time-Stamp"]).timestamp()


def source_of(message: Reply) -> int:
    """The sequence that a message had where it was sourced from."""
    return int(message.headers["Nats-Stream-Source"].split()[1])


def is_copied(told: Config, others: int) -> bool:
    """Whether who leads has so many others beside it that are up to date, as the server tells of a group."""
    replicas = told.get("replicas") or ()
    return bool(told.get("leader")) and len(replicas) == others and all(one["current"] for one in replicas)
