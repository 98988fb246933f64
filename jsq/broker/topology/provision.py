"""Provisioning: brings streams and consumers to their declared configuration.

`jsq provision` and a starting worker call it. A queue that no App declares gets the defaults. An App that
does not declare a queue never changes the settings of that queue.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

from jsq.broker.topology.configs import (
    Config,
    advisories_config,
    config_differences,
    consumer_configs,
    events_config,
    group_state_config,
    groups_config,
    ready_config,
    scheduled_config,
    settings_of,
    shared_configs,
    wakeup_consumer,
)
from jsq.broker.topology.namespace import Namespace
from jsq.broker.topology.sources import silence_of
from jsq.broker.topology.streams import check_owner
from jsq.errors import BrokerFull, CannotChange, ForeignStream, NotAllowed, Refused
from jsq.settings import QueueSettings
from jsq.transport.replies import NoReply, NoResponders

log = logging.getLogger("jsq.broker")

REPLICATE_SECONDS = 60.0
"""Seconds to wait until new replicas are up to date."""

SOURCE_SECONDS = 5.0
"""Seconds to wait until a new event log copies; on an idle server 0.2 s, measured on nats-server 2.15.1."""


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between the server and the declared configuration: `what` differs, and `how`."""

    what: str
    how: str


class Provisioner:
    """Brings one namespace to its declared configuration."""

    def __init__(self, namespace: Namespace) -> None:
        self._subjects = namespace.subjects
        self._streams = namespace.streams
        self._jetstream = namespace.jetstream
        self._replicating: set[str] = set()

    async def declare_queue(
        self, queue: str, settings: QueueSettings, *, write: bool = True, declared: bool = True
    ) -> list[Change]:
        """Bring a queue to its declared settings; with `write=False`, only return the differences.

        Raises `CannotChange` if an existing queue cannot take a setting; the error names an alternative.
        """
        subjects = self._subjects
        if not settings.is_given("replicas"):
            settings = await self._with_replicas(queue, settings)
        changes = await self._reconcile(scheduled_config(subjects, queue, settings), write=write)
        changes += await self._reconcile(
            ready_config(subjects, queue, settings, declared=declared), write=write
        )
        for stream, wanted in consumer_configs(self._subjects, queue, settings):
            changes += await self._reconcile_consumer(stream, wanted, write=write)
        changes += await self._declare_groups(queue, settings, write=write)
        if write:
            self._streams.remember_queue(queue, settings)
        return changes

    async def _declare_groups(self, queue: str, settings: QueueSettings, *, write: bool) -> list[Change]:
        """Bring the streams of the key groups to their configuration.

        Does nothing if no keyed job was ever submitted and no setting is about keys.
        """
        subjects = self._subjects
        if not (settings.per_key or settings.weights or await self._streams.has_groups(queue)):
            return []
        changes = await self._reconcile(groups_config(subjects, queue, settings), write=write)
        if write:
            await self._streams.create_sentinel(queue)
        changes += await self._reconcile(group_state_config(subjects, queue, settings), write=write)
        stream = subjects.streams.group_state(queue)
        changes += await self._reconcile_consumer(stream, wakeup_consumer(subjects, queue), write=write)
        if write:
            self._streams.announce_groups(queue)
        return changes

    async def restore_queue(self, queue: str, config: Config, *, write: bool = True) -> list[Change]:
        """Bring a queue back to the settings that the metadata in the `config` of its READY stream hold."""
        declared = (config.get("metadata") or {}).get("jsq.declared") == "yes"
        return await self.declare_queue(queue, settings_of(config), write=write, declared=declared)

    async def reconcile_shared(
        self, replicas: int, *, write: bool = True, exact: bool = False
    ) -> list[Change]:
        """Bring the shared streams to their configuration, with at least `replicas` replicas.

        Unless `exact`, a new stream gets as many replicas as the bucket of records, and a new bucket of
        records as many as `create_first` chooses for the cluster.
        """
        changes: list[Change] = []
        records = self._subjects.streams.records
        if write and not exact:
            if await self._jetstream.stream_info(records) is None:
                changes.append(Change(records, "missing"))
            replicas = max(replicas, await self._streams.create_records(replicas))
        for config in shared_configs(self._subjects, replicas):
            changes += await self._reconcile(config, write=write, grow_only=True)
        if write:
            self._streams.remember_shared(await self._streams.create_records(replicas))
        return changes

    async def reconcile_events(self, keep: float, *, write: bool = True) -> list[Change]:
        """Bring the event log to its configuration, with a retention of `keep` seconds.

        Waits until the server copies to a new log, `SOURCE_SECONDS` at most. The log lacks the revisions that
        the bucket of records drops before that.
        """
        found = await self._jetstream.stream_info(self._subjects.streams.records)
        replicas = found["config"]["num_replicas"] if found else 1
        wanted = events_config(self._subjects, replicas, keep / 86_400)
        changes = await self._reconcile(wanted, write=write, grow_only=True)
        if write and Change(wanted["name"], "missing") in changes:
            await self._await_source(wanted["name"])
        return changes

    async def _await_source(self, stream: str) -> None:
        end = time.monotonic() + SOURCE_SECONDS
        while time.monotonic() < end:
            if math.isfinite(silence_of(await self._jetstream.stream_info(stream))):
                return
            await asyncio.sleep(0.02)

    async def reconcile_advisories(self, queues: Iterable[str], *, write: bool = True) -> list[Change]:
        """Have the server store the advisories of some queues, and of no others.

        With `write=False`, only returns the differences. Raises `ForeignStream` if another stream of the
        account stores these advisories.
        """
        found = await self._jetstream.stream_info(self._subjects.streams.records)
        wanted = advisories_config(self._subjects, queues, found["config"]["num_replicas"] if found else 1)
        if not wanted["subjects"]:
            return []
        answer = await self._jetstream.call("STREAM.NAMES", {"subject": wanted["subjects"][0]})
        owners = set(answer["streams"] or ()) - {wanted["name"]}
        if owners:
            raise ForeignStream(
                f"advisories of the consumers belong to another stream, {', '.join(sorted(owners))}; sweeps "
                "find undeliverable messages without them, but later"
            )
        return await self._reconcile(wanted, write=write, grow_only=True)

    async def ensure_advisories(self) -> list[Change]:
        """Have the server store the advisories of all queues, if possible.

        Without advisories, a sweep finds the same messages, but later.
        """
        try:
            return await self.reconcile_advisories(await self._streams.queue_names())
        except (ForeignStream, NotAllowed, Refused, BrokerFull) as error:
            log.info("advisories not stored", extra={"why": str(error)})
            return []

    async def _with_replicas(self, queue: str, settings: QueueSettings) -> QueueSettings:
        """Settings with the `replicas` of the queue, or of the bucket of records if the queue is new."""
        for stream in (self._subjects.streams.ready(queue), self._subjects.streams.records):
            found = await self._jetstream.stream_info(stream)
            if found is not None:
                return settings.replace(replicas=found["config"]["num_replicas"])
        return settings

    async def _reconcile(self, wanted: Config, *, write: bool, grow_only: bool = False) -> list[Change]:
        found = await self._jetstream.stream_info(wanted["name"])
        if found is None:
            if write:
                await self._streams.create(wanted)
            return [Change(wanted["name"], "missing")]
        check_owner(self._subjects, wanted, found)
        have = found["config"]
        if grow_only:
            wanted = wanted | {"num_replicas": max(wanted["num_replicas"], have["num_replicas"])}
        changes = [Change(wanted["name"], how) for how in config_differences(wanted, have)]
        if have["storage"] != wanted["storage"]:
            raise CannotChange(
                f"storage of {wanted['name']} cannot be changed from {have['storage']} to "
                f"{wanted['storage']}; wait until the stream is empty and remove it "
                f"(`nats stream rm {wanted['name']}`), or choose another name for the queue"
            )
        if changes and write:
            try:
                await self._jetstream.update_stream(have | wanted)
            except ForeignStream as error:
                raise await self._streams.subjects_taken(wanted) from error
            if have["num_replicas"] != wanted["num_replicas"]:
                self._replicating.add(wanted["name"])
        return changes

    async def _reconcile_consumer(self, stream: str, wanted: Config, *, write: bool) -> list[Change]:
        what = f"{stream} {wanted['name']}"
        found = await self._jetstream.consumer_info(stream, wanted["name"])
        have = found["config"] if found else {}
        changes = [Change(what, how) for how in config_differences(wanted, have)] if found else []
        if found is None:
            changes = [Change(what, "missing")]
        if changes and write:
            pause = {} if found else await self._streams.pause_config(stream)
            await self._jetstream.put_consumer(stream, have | wanted | pause)
        return changes

    async def wait_for_replicas(self) -> None:
        """Wait until the streams whose replicas were changed have a leader and all replicas.

        Until then, the server cannot store messages there. The method returns after `REPLICATE_SECONDS`
        at the latest; the server continues to replicate.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REPLICATE_SECONDS):
                while self._replicating:
                    self._replicating = {
                        name for name in self._replicating if not await self._is_replicated(name)
                    }
                    await asyncio.sleep(0.1)
        for name in self._replicating:
            log.warning("replicas not ready", extra={"stream": name})
        self._replicating.clear()

    async def _is_replicated(self, stream: str) -> bool:
        """Whether a stream and its consumers have a leader and all their replicas, up to date."""
        try:
            found = await self._jetstream.stream_info(stream)
            listed = await self._jetstream.call(f"CONSUMER.LIST.{stream}") if found is not None else {}
        except (NoReply, NoResponders):
            return False
        except NotAllowed:
            return True  # this user may not read the replicas, so it cannot wait for them
        if found is None:
            return True
        others = found["config"]["num_replicas"] - 1
        every = [found, *(listed.get("consumers") or ())]
        return not listed.get("missing") and all(
            is_replicated(one.get("cluster") or {}, others) for one in every
        )


def is_replicated(cluster: Config, others: int) -> bool:
    """Whether a Raft group has a leader, and exactly `others` other replicas, all of them up to date."""
    replicas = cluster.get("replicas") or ()
    return bool(cluster.get("leader")) and len(replicas) == others and all(one["current"] for one in replicas)
