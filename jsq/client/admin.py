"""`client.admin`: provision the server, grant roles, check it and repair what was left behind."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jsq.broker import Broker
from jsq.broker.access.accounts import Roles
from jsq.broker.health.finding import Finding
from jsq.broker.maintenance.sweeper import MIN_AGE
from jsq.broker.topology.provision import Change
from jsq.broker.topology.subjects import Subjects
from jsq.client.blocking import BlockingMethod, BlockingWrapper
from jsq.client.connection import Connection
from jsq.codec.envelope import new_id
from jsq.errors import Duration, ForeignStream, seconds
from jsq.model.job import DEFAULT_QUEUE, check_queue
from jsq.model.repair import RepairResult
from jsq.model.schedule import Schedule
from jsq.settings import QueueSettings, Replicas


class AdminClient:
    """What operators do to a namespace as a whole."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def provision(
        self,
        queues: Mapping[str, QueueSettings] | None = None,
        *,
        replicas: Replicas | None = None,
        schedules: Iterable[Schedule] = (),
        app: str | None = None,
        events: Duration | None = None,
        check: bool = False,
    ) -> list[Change]:
        """Bring the server to what the queues declare; returns what differed. With `check`, change nothing.

        With the name of an `app`, `schedules` are all that it declares: a schedule that it no longer declares
        is removed, unless a live worker still declares it.

        With `events`, the namespace has an event log, which keeps each change of each job for so long.
        Without it, an event log that exists stays as it is.

        Without queues, the default one is created if it is missing, and existing ones are brought back to
        their declaration. With `replicas`, so many servers of a cluster hold each queue that exists or is
        declared, unless `queues` give it a number of its own, and everything shared. The call waits for them,
        a minute at most. Without `replicas`, what is new gets as many as what exists; in a new namespace
        three, if a cluster has as many servers. Raises `BadName`, `CannotChange`, `ForeignStream`,
        `JetStreamOff`, and `BrokerUnavailable` if a queue has no leader or too few servers are up.
        """
        broker = await self._connection.broker()
        wanted = {check_queue(queue): settings for queue, settings in (queues or {}).items()}
        known = {} if wanted or replicas else await broker.streams.queues(wait=True)
        if not (wanted or replicas) and DEFAULT_QUEUE not in known:
            wanted = {DEFAULT_QUEUE: QueueSettings()}
        if replicas is not None:
            wanted = replicated(await broker.queues.settings(), wanted, replicas)
        most = max((settings.replicas for settings in wanted.values()), default=1)
        changes = await broker.provisioner.reconcile_shared(most, write=not check, exact=replicas is not None)
        for queue, settings in wanted.items():
            changes += await broker.queues.declare(queue, settings, write=not check)
        for queue, stream in known.items():
            changes += await broker.provisioner.restore_queue(queue, stream["config"], write=not check)
        if events is not None:
            changes += await broker.provisioner.reconcile_events(event_seconds(events), write=not check)
        if app is not None:
            changes += await broker.schedules.reconcile(schedules, app, write=not check, prune=True)
        changes += await advisory_changes(broker, wanted) if check else await finish_provision(broker)
        return list(dict.fromkeys(changes))

    def roles(
        self,
        *users: str,
        queues: Sequence[str] = (DEFAULT_QUEUE,),
        nkeys: Mapping[str, str] | None = None,
    ) -> Roles:
        """Permissions of users in this namespace, to be written to the server's configuration.

        The server is not asked. A user is `NAME=ROLE[:QUEUE,...][+ROLE...]`, a role `submitter`, `worker`,
        `observer` or `admin`; `*` stands for all queues, and `queues` are those of a role that names none.
        Without users there is one of each role. `nkeys` has the public keys of users that log in by one; the
        others have passwords. `roles().conf()` is the block `accounts` of nats-server.conf, `claims()` the
        same for JWTs. Raises `BadOption`, `BadName`.
        """
        return Roles.read(Subjects(self._connection.namespace), users, queues, nkeys or {})

    async def workers(self) -> list[dict[str, Any]]:
        """The workers that are alive, as they describe themselves."""
        return await (await self._connection.broker()).presence.alive()

    async def sweep(self, *, age: Duration = MIN_AGE, dry_run: bool = False) -> list[RepairResult]:
        """Find inconsistencies on the server, and repair those that can be repaired.

        An inconsistency younger than `age` is skipped: work in progress looks the same. With `dry_run`
        nothing is repaired. One sweep runs at a time: raises `BrokerUnavailable` if another takes more than
        30 s, and `BadOption`. Workers sweep by themselves; see `WorkerSettings.sweep`.
        """
        broker = await self._connection.broker()
        oldest = seconds("age", age) or 0.0
        if not dry_run:
            return await broker.sweeper.sweep(f"client-{new_id()}", age=oldest)
        found = await broker.sweeper.scan(age=oldest)
        return [RepairResult(one.kind, one.queue, one.job, repaired=False) for one in found]

    async def doctor(self, *, monitors: Sequence[str] = ()) -> list[Finding]:
        """Check the server and report problems, each with a cure. Nothing is changed.

        `monitors` are the addresses of servers' monitoring, such as `http://127.0.0.1:8222`: each server is
        checked by itself, and their copies of the streams are compared. Raises `BadOption` for a wrong one.
        """
        from jsq.broker.health.doctor import examine  # late: other commands do not need it

        return await examine(await self._connection.broker(), monitors)


def replicated(
    known: Mapping[str, QueueSettings], declared: Mapping[str, QueueSettings], replicas: Replicas
) -> dict[str, QueueSettings]:
    """Settings with so many replicas, for all queues but those that declare a number of their own.

    A worker would bring these back to their own number, and each change leaves a queue without a leader for
    some seconds.
    """
    every = {**known, **declared} or {DEFAULT_QUEUE: QueueSettings()}
    return {
        queue: one if queue in declared and one.is_given("replicas") else one.replace(replicas=replicas)
        for queue, one in every.items()
    }


async def finish_provision(broker: Broker) -> list[Change]:
    """Store the advisories of all queues, and wait for the replicas of what has changed."""
    changes = await broker.provisioner.ensure_advisories()
    await broker.provisioner.wait_for_replicas()
    return changes


async def advisory_changes(broker: Broker, queues: Iterable[str]) -> list[Change]:
    """What differs in the stream of advisories, for the queues that exist and these."""
    with contextlib.suppress(ForeignStream):
        every = {*queues, *await broker.queues.names()}
        return await broker.provisioner.reconcile_advisories(every, write=False)
    return []


def event_seconds(events: Duration) -> float:
    """How long the event log keeps an event. Raises `BadOption`."""
    return seconds("events", events, least=1.0) or 0.0


class BlockingAdmin(BlockingWrapper[AdminClient]):
    """`client.blocking.admin`: the methods of `client.admin`, which block."""

    provision = BlockingMethod(AdminClient.provision)
    workers = BlockingMethod(AdminClient.workers)
    sweep = BlockingMethod(AdminClient.sweep)
    doctor = BlockingMethod(AdminClient.doctor)
