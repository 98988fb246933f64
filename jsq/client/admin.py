"""`client.admin`: provision the server, make roles, check the server and repair inconsistencies."""

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
from jsq.errors import ForeignStream
from jsq.model.durations import Duration, seconds
from jsq.model.job import DEFAULT_QUEUE, check_queue
from jsq.model.repair import RepairResult
from jsq.model.schedule import Schedule
from jsq.settings import QueueSettings, Replicas


class AdminClient:
    """Operations on a whole namespace."""

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
        """Create or update the streams of `queues`; returns the differences. With `check`, change nothing.

        With the name of an `app`, `schedules` are all schedules that the App declares. A schedule that it no
        longer declares is removed, unless a live worker still declares it.

        With `events`, the namespace has an event log, which keeps each change of each job for that duration.
        Without it, an existing event log stays unchanged.

        Without queues, the default queue is created if it is missing, and existing queues are restored to
        their declarations. `replicas` is the number of servers of a cluster that hold every shared stream and
        each existing or declared queue, unless `queues` give the queue a number of its own. The call waits a
        minute at most for them. Without `replicas`, new streams get the number of the existing ones; in a new
        namespace they get three, if the cluster has three servers. Raises `BadName`, `CannotChange`,
        `ForeignStream`, `JetStreamOff`, and `BrokerUnavailable` if a queue has no leader or too few servers
        are up.
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

        Sends nothing to the server. A user is `NAME=ROLE[:QUEUE,...][+ROLE...]`, a role `submitter`,
        `worker`, `observer` or `admin`. `*` means all queues, and `queues` are those of a role that names
        none. Without users the result has one user for each role. `nkeys` has the public keys of users that
        log in with one; the others have passwords. `roles().conf()` is the block `accounts` of
        nats-server.conf, `claims()` the same for JWTs. Raises `BadOption`, `BadName`.
        """
        return Roles.read(Subjects(self._connection.namespace), users, queues, nkeys or {})

    async def workers(self) -> list[dict[str, Any]]:
        """The live workers, each as the description that the worker itself publishes."""
        return await (await self._connection.broker()).presence.alive()

    async def sweep(self, *, age: Duration = MIN_AGE, dry_run: bool = False) -> list[RepairResult]:
        """Find inconsistencies on the server, and repair those that can be repaired.

        Inconsistencies younger than `age` are skipped, because work in progress has the same appearance. With
        `dry_run` nothing is repaired. One sweep runs at a time: raises `BrokerUnavailable` if another one
        takes more than 30 s, and `BadOption`. Workers sweep regularly; see `WorkerSettings.sweep`.
        """
        broker = await self._connection.broker()
        oldest = seconds("age", age) or 0.0
        if not dry_run:
            return await broker.sweeper.sweep(f"client-{new_id()}", age=oldest)
        found = await broker.sweeper.scan(age=oldest)
        return [RepairResult(one.kind, one.queue, one.job, repaired=False) for one in found]

    async def doctor(self, *, monitors: Sequence[str] = ()) -> list[Finding]:
        """Check the server and report problems, each with its fix. Changes nothing.

        `monitors` are the addresses of the servers' monitoring endpoints, such as `http://127.0.0.1:8222`.
        Each server is checked by itself, and the copies of the streams are compared. Raises `BadOption` for a
        wrong address.
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
    """Store the advisories of all queues, and wait for the replicas of the changed streams."""
    changes = await broker.provisioner.ensure_advisories()
    await broker.provisioner.wait_for_replicas()
    return changes


async def advisory_changes(broker: Broker, queues: Iterable[str]) -> list[Change]:
    """The differences in the stream of advisories, for the existing queues and these."""
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
