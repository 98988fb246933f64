"""The doctor: it checks the server, the streams and the workers, and names a remedy for each fault."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from jsq.broker.broker import Broker
from jsq.broker.health.finding import Finding, judge_clock, judge_use
from jsq.broker.health.monitor import clock_offset, examine_servers
from jsq.broker.health.permissions import examine_permissions
from jsq.broker.topology.configs import WAKEUPS, Config, settings_of, shared_configs
from jsq.broker.topology.provision import Change
from jsq.codec import revisions
from jsq.errors import BrokerError, ForeignStream, count_noun
from jsq.model.job import PRIORITIES
from jsq.model.pause import WHOLE_QUEUE
from jsq.model.repair import DESCRIPTIONS, HARMLESS, REPAIR_DESCRIPTIONS, Inconsistency
from jsq.settings import QueueSettings

MIN_PAYLOAD = 65_536
"""Bytes. Arguments and tracebacks soon exceed a smaller limit of the server."""

MAX_SCANNED_MESSAGES = 20_000
"""Messages of each stream that the doctor scans for inconsistencies."""

REPLICATE = "run `jsq provision --replicas 3` (it takes 3 servers)"

ACCOUNT_LIMITS = (
    ("storage", "max_storage", "bytes of storage"),
    ("memory", "max_memory", "bytes of memory"),
    ("streams", "max_streams", "streams"),
    ("consumers", "max_consumers", "consumers"),
)
"""The limits of an account: the field of the use, the field of the limit, and the unit of both."""


async def examine(broker: Broker, monitors: Sequence[str] = ()) -> list[Finding]:
    """Check the server, the account, the streams, the workers, and the permissions of this login.

    `monitors` are the monitoring addresses of servers. The servers' copies of the namespace's streams are
    compared. Raises `BadOption` if one is not such an address.
    """
    findings = [_server(broker)]
    checks = (_account, _clock, _streams, _replicas, _advisories, _queues, _sweeps)
    for check in (*checks, examine_permissions, _workers):
        try:
            findings += await check(broker)
        except BrokerError as error:
            findings.append(Finding("error", check.__name__.rpartition("_")[2], str(error)))
    if monitors:
        lease = await _shortest_lease(broker)
        findings += await examine_servers(monitors, broker.subjects.namespace, lease)
    return findings


def _server(broker: Broker) -> Finding:
    wire = broker.wire
    message = f"nats-server {wire.server.version} at {wire.login.shown}"
    if wire.max_payload < MIN_PAYLOAD:
        message += f" accepts only {wire.max_payload:,} bytes a message: raise its max_payload"
        return Finding("warning", "server", message)
    return Finding("ok", "server", message)


async def _account(broker: Broker) -> list[Finding]:
    return judge_account(await broker.jetstream.account_info())


def judge_account(account: dict[str, Any]) -> list[Finding]:
    """The findings for the limits of an account, or for those of each of its tiers, if it has tiers."""
    tiers = account.get("tiers") or {"": account}
    found = [
        (of, judge_use(f"{of} {tier}".strip(), counted, one.get(of, 0), one.get("limits", {}).get(limit, -1)))
        for tier, one in tiers.items()
        for of, limit, counted in ACCOUNT_LIMITS
    ]
    return [finding for of, finding in found if of == "storage" or finding.severity != "ok"]


async def _clock(broker: Broker) -> list[Finding]:
    """Compare the clock of the leader of the records' stream with this machine's clock."""
    before = time.time()
    known = await broker.jetstream.stream_info(broker.subjects.streams.records)
    after = time.time()
    if known is None or "ts" not in known:
        return []
    ahead = clock_offset(revisions.parse_time(known["ts"]).timestamp(), before, after)
    return [judge_clock("clock", ahead, await _shortest_lease(broker))]


async def _shortest_lease(broker: Broker) -> float:
    queues = (await broker.streams.queues()).values()
    leases = [settings_of(stream["config"]).lease for stream in queues]
    return min(leases, default=QueueSettings().lease)


async def _streams(broker: Broker) -> list[Finding]:
    missing = await broker.provisioner.reconcile_shared(1, write=False)
    if await _is_new(broker, missing):
        rule = "the first submit, a worker or `jsq provision` creates its streams"
        return [Finding("warning", "streams", f"namespace {broker.subjects.namespace} is empty: {rule}")]
    if missing:
        lost = Change(broker.subjects.streams.records, "missing")
        return [
            Finding(
                "error" if change == lost else "warning", change.what, f"{change.how}; run `jsq provision`"
            )
            for change in missing
        ]
    return [Finding("ok", "streams", "the records, the ids and the dead letters are in place")]


async def _is_new(broker: Broker, missing: Sequence[Change]) -> bool:
    """Whether a namespace has no streams at all: nothing was lost, but nothing was created yet."""
    shared = {config["name"] for config in shared_configs(broker.subjects, 1)}
    absent = {change.what for change in missing if change.how == "missing"}
    return shared <= absent and not await broker.streams.queue_names()


async def _replicas(broker: Broker) -> list[Finding]:
    """Whether the loss of one server of a cluster stops the queues."""
    cluster = broker.wire.server.cluster
    known = await broker.jetstream.stream_info(broker.subjects.streams.records)
    if not cluster or known is None:
        return []
    replicas = known["config"]["num_replicas"]
    if replicas == 1:
        message = (
            f"only one server of cluster {cluster} holds the shared streams: while it is down, no job runs"
        )
        return [Finding("warning", "replicas", f"{message}; {REPLICATE}")]
    found = [Finding("ok", "replicas", f"{replicas} servers of cluster {cluster} hold the shared streams")]
    for queue, stream in (await broker.streams.queues()).items():
        if stream["config"]["num_replicas"] == 1:
            message = (
                f"only one server of cluster {cluster} holds its waiting jobs: without its disk they are lost"
            )
            found.append(Finding("warning", f"queue {queue}", f"{message}; {REPLICATE}"))
    return found


async def _advisories(broker: Broker) -> list[Finding]:
    """Check the stream that keeps the server's advisories. Without it, sweeps find the same faults later."""
    queues = await broker.streams.queue_names()
    try:
        changes = await broker.provisioner.reconcile_advisories(queues, write=False)
    except ForeignStream as error:
        return [Finding("warning", "advisories", str(error))]
    remedy = "a worker repairs this within minutes, `jsq provision` does so now"
    return [Finding("warning", "advisories", f"{one.what}: {one.how}; {remedy}") for one in changes]


async def _queues(broker: Broker) -> list[Finding]:
    findings = []
    served = {queue for worker in await broker.presence.alive() for queue in worker.get("queues", ())}
    known = await broker.streams.queue_names()
    queues = await broker.streams.queues()
    for queue in sorted(set(known) - queues.keys()):
        message = "has no leader just now, so no job is stored or delivered: most of its servers must be up"
        findings.append(Finding("error", f"queue {queue}", message))
    for queue, stream in queues.items():
        what, messages = f"queue {queue}", stream["state"]["messages"]
        settings = settings_of(stream["config"])
        found = await _drift(broker, queue, stream["config"]) + await _half_paused(broker, queue)
        waiting = messages + await broker.key_groups.count_waiting(queue)
        if waiting and queue not in served:
            message = f"{count_noun(waiting, 'job')} on it, and no worker that is alive serves it"
            found.append(Finding("warning", what, message))
        stuck = await _stuck(broker, queue, messages)
        if stuck:
            they = "message is" if stuck == 1 else "messages are"
            message = f"{stuck:,} {they} not delivered any more; `jsq sweep` puts them on the queue again"
            found.append(Finding("error", what, message))
        if settings.max_jobs and messages >= settings.max_jobs:
            found.append(Finding("warning", what, "is full: submits get QueueFull"))
        findings += found or [Finding("ok", what, count_noun(messages, "job"))]
    return findings


async def _drift(broker: Broker, queue: str, config: Config) -> list[Finding]:
    """The differences between a queue's streams and consumers and its settings."""
    ready = broker.subjects.streams.ready(queue)
    consumers = [Change(f"{ready} {level}", "missing") for level in PRIORITIES]
    consumers.append(Change(f"{broker.subjects.streams.group_state(queue)} {WAKEUPS}", "missing"))
    return [
        Finding(
            "error" if change in consumers else "warning",
            f"queue {queue}",
            f"{change.what}: {change.how}; run `jsq provision`, or start a worker",
        )
        for change in await broker.provisioner.restore_queue(queue, config, write=False)
    ]


async def _half_paused(broker: Broker, queue: str) -> list[Finding]:
    """A pause or a resume that stopped half way, so that the server and the record differ."""
    queue_pause = (await broker.pauses.active(queue)).pauses.get(WHOLE_QUEUE)
    should_pause = queue_pause is not None and queue_pause.reason == "paused"
    name = broker.subjects.streams.ready(queue)
    known = [await broker.jetstream.consumer_info(name, level) for level in PRIORITIES]
    if all(one is None or bool(one.get("paused")) == should_pause for one in known):
        return []
    message = (
        "it is paused in part" if should_pause else "the server delivers nothing, but no pause is recorded"
    )
    command = f"pause {queue}" if should_pause else f"resume {queue}"
    if queue_pause is not None and should_pause and queue_pause.until is not None:
        command += f" --until {revisions.format_time(queue_pause.until)}"
    return [Finding("error", f"queue {queue}", f"{message}; run `jsq queue {command}`")]


async def _stuck(broker: Broker, queue: str, messages: int) -> int:
    """How many messages of a queue neither wait for delivery nor are held by a worker."""
    name = broker.subjects.streams.ready(queue)
    known = 0
    for level in PRIORITIES:
        found = await broker.jetstream.consumer_info(name, level)
        if found is None:
            return 0  # the messages wait for the missing consumer, which is a finding of its own
        known += found["num_pending"] + found["num_ack_pending"]
    again = await broker.jetstream.stream_info(name)
    # Jobs are stored and settled between the two reads: the smaller number of messages counts.
    left = min(messages, again["state"]["messages"]) if again else 0
    return max(0, left - known)


async def _sweeps(broker: Broker) -> list[Finding]:
    """The inconsistencies that a scan finds, and when the last sweep was."""
    found = await broker.sweeper.scan(most=MAX_SCANNED_MESSAGES)
    counts = Counter(one.kind for one in found if one.kind is not Inconsistency.NO_CONSUMER)
    last = await broker.sweeper.last()
    ended = f"the last sweep ended at {last.at:%Y-%m-%d %H:%M:%S} UTC" if last else "there was no sweep yet"
    if not counts:
        return [Finding("ok", "sweeps", f"no inconsistencies; {ended}")]
    return [judge_inconsistency(kind, count, ended) for kind, count in counts.items()]


def judge_inconsistency(kind: Inconsistency, count: int, ended: str) -> Finding:
    """The finding for `count` inconsistencies of one kind; `ended` is a clause about the last sweep."""
    message = f"{count:,} of {kind.value}: {DESCRIPTIONS[kind]}"
    if kind in REPAIR_DESCRIPTIONS:
        message += f"; a worker repairs this within minutes, `jsq sweep` does so now ({ended})"
    return Finding("warning" if kind in HARMLESS else "error", "sweeps", message)


async def _workers(broker: Broker) -> list[Finding]:
    workers = await broker.presence.alive()
    if workers:
        return [Finding("ok", "workers", f"{len(workers)} alive")]
    return [Finding("warning", "workers", "none is alive; start one with `jsq worker module:app`")]
