"""A look at the server: what is well, what is not, and the cure."""

from dataclasses import dataclass
from typing import Literal

from jsq.broker.broker import Broker
from jsq.broker.streams import MAX_DELIVER, Change, settings_of
from jsq.errors import BrokerError
from jsq.job import LEVELS

SHARED = 5
"""How many streams the namespace has beside its queues."""

Severity = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    severity: Severity
    what: str
    told: str


async def examine(broker: Broker) -> list[Finding]:
    """Look at the server, the account, the streams and the workers."""
    wire = broker.wire
    findings = [Finding("ok", "server", f"nats-server {wire.server_version} at {wire.login.shown}")]
    for look in (_account, _streams, _queues, _workers):
        try:
            findings += await look(broker)
        except BrokerError as error:
            findings.append(Finding("error", look.__name__.strip("_"), str(error)))
    return findings


async def _account(broker: Broker) -> list[Finding]:
    account = await broker.streams.account()
    limit, used = account["limits"]["max_storage"], account["storage"]
    told = f"JetStream keeps {used:,} bytes" + (f" of {limit:,}" if limit > 0 else "")
    if limit > 0 and used > 0.9 * limit:
        return [
            Finding("warning", "storage", f"{told}: raise the account's limit, or keep results for less long")
        ]
    return [Finding("ok", "storage", told)]


async def _streams(broker: Broker) -> list[Finding]:
    missing = await broker.streams.reconcile_shared(1, write=False)
    if missing:
        log = broker.names.events_stream
        return [
            Finding(
                "error" if change == Change(log, "missing") and len(missing) < SHARED else "warning",
                change.what,
                f"{change.how}; run `jsq provision`",
            )
            for change in missing
        ]
    return [
        Finding("ok", "streams", "the event log, the jobs view, the ids and the dead letters are in place")
    ]


async def _queues(broker: Broker) -> list[Finding]:
    findings = []
    served = {queue for worker in await broker.workers.alive() for queue in worker.get("queues", ())}
    for queue, stream in (await broker.streams.queues()).items():
        if stream["state"]["messages"] and queue not in served:
            told = f"{stream['state']['messages']:,} jobs stand here, and no worker that is alive serves it"
            findings.append(Finding("warning", f"queue {queue}", told))
        settings = settings_of(stream["config"])
        findings += [
            Finding("warning", f"queue {queue}", f"{change.what}: {change.how}; run `jsq provision`")
            for change in await broker.streams.restore(queue, stream["config"], write=False)
        ]
        stuck = await _stuck(broker, queue, stream["state"]["messages"])
        if stuck:
            told = f"{stuck} messages can no longer be delivered (over {MAX_DELIVER} deliveries)"
            findings.append(Finding("error", f"queue {queue}", told))
        if settings.max_jobs and stream["state"]["messages"] >= settings.max_jobs:
            findings.append(Finding("warning", f"queue {queue}", "is full: submits get QueueFull"))
        if not any(finding.what == f"queue {queue}" for finding in findings):
            findings.append(Finding("ok", f"queue {queue}", f"{stream['state']['messages']:,} jobs"))
    return findings


async def _stuck(broker: Broker, queue: str, messages: int) -> int:
    """Messages that stand on a queue but are neither waiting nor held by a worker."""
    name = broker.names.ready_stream(queue)
    known = 0
    for level in LEVELS:
        found = await broker.streams.consumer_info(name, level)
        known += found["num_pending"] + found["num_ack_pending"] if found else 0
    again = await broker.streams.info(name)
    # Jobs come and go between the two looks: only what is missing at both counts.
    left = min(messages, again["state"]["messages"]) if again else 0
    return max(0, left - known)


async def _workers(broker: Broker) -> list[Finding]:
    workers = await broker.workers.alive()
    if workers:
        return [Finding("ok", "workers", f"{len(workers)} alive")]
    return [Finding("warning", "workers", "none is alive; start one with `jsq worker module:app`")]
