"""Queues with three replicas, on a cluster whose servers are killed, stopped and partitioned."""

import asyncio
import contextlib
import itertools
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from jsq import App, BrokerUnavailable, Client, Context
from jsq.broker.health.finding import Finding
from jsq.model.job import PRIORITIES
from jsq.settings import QueueSettings, WorkerSettings
from jsq.worker import Worker
from tests.helpers.cluster import Cluster, Node, cluster, replicas_of
from tests.helpers.conditions import Until
from tests.helpers.workers import running_worker

pytestmark = pytest.mark.proof

NAMESPACE = "three"
REPLICATED = {"default": QueueSettings(replicas=3, lease=15.0)}


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Cluster]:
    """Three healthy servers."""
    async with cluster(tmp_path) as servers:
        yield servers


@pytest.fixture
async def client(three: Cluster) -> AsyncIterator[Client]:
    async with Client(three.url, namespace=NAMESPACE) as client:
        await client.admin.provision(REPLICATED)
        yield client


@contextlib.asynccontextmanager
async def submitting(client: Client) -> AsyncIterator[list[str]]:
    """Submits jobs one after another in the background; yields the ids of the acknowledged ones."""
    acknowledged: list[str] = []
    numbers, stop = itertools.count(), asyncio.Event()

    async def submit() -> None:
        while not stop.is_set():
            acknowledged.append((await client.task("note").submit(next(numbers))).id)

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(submit())
        yield acknowledged
        stop.set()


@contextlib.asynccontextmanager
async def working(three: Cluster, ran: Counter[int]) -> AsyncIterator[Worker]:
    """A worker that counts the numbers it receives."""
    app = App(three.url, namespace=NAMESPACE)
    app.queue("default", lease=15.0)

    @app.task(name="note")
    async def note(number: int) -> int:
        ran[number] += 1
        return number

    async with app:
        worker = Worker(app, settings=WorkerSettings(concurrency=20))
        async with running_worker(worker):
            yield worker


async def led(three: Cluster, client: Client) -> Node:
    """The server that leads the queue."""
    return await three.leader(client, (await client.broker()).subjects.streams.ready("default"))


async def copied(client: Client) -> bool:
    """Whether the queue and its consumers have two replicas besides their leader, and each is up to date."""
    broker = await client.broker()
    ready = broker.subjects.streams.ready("default")
    found = [await broker.jetstream.consumer_info(ready, level) for level in PRIORITIES]
    found += [
        await broker.jetstream.stream_info(stream) for stream in (ready, broker.subjects.streams.records)
    ]
    replicas = [(one or {}).get("cluster", {}).get("replicas", []) for one in found]
    return all(len(each) == 2 and all(replica["current"] for replica in each) for each in replicas)


def more_than(acknowledged: list[str], count: int) -> Callable[[], bool]:
    return lambda: len(acknowledged) > count


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "terminated"])
async def test_clients_and_workers_do_not_notice_the_loss_of_a_leader(
    three: Cluster, client: Client, how: signal.Signals, until: Until
) -> None:
    ran: Counter[int] = Counter()
    async with working(three, ran), submitting(client) as acknowledged:
        await until(more_than(acknowledged, 50))
        leader = await led(three, client)

        await asyncio.to_thread(leader.kill, how)
        await until(more_than(acknowledged, len(acknowledged) + 50), seconds=30)
        leader.start()
    async with working(three, ran):
        results = [await client.jobs.handle(id).result(timeout=60) for id in acknowledged]

    assert sorted(results) == sorted(ran), "each number ran, and gave one result"


@pytest.mark.parametrize("again", ["127.0.0.1", "localhost"])
async def test_a_client_leaves_a_leader_that_is_partitioned_from_the_others(
    three: Cluster, client: Client, again: str, until: Until
) -> None:
    leader = await led(three, client)
    # However else this server is addressed, the client does not reconnect to it.
    more = ",".join([leader.url.replace("127.0.0.1", again)] * 3)
    async with Client(f"{leader.url},{more},{three.url}", namespace=NAMESPACE) as beside:
        await beside.connect()
        async with submitting(beside) as acknowledged:
            await until(more_than(acknowledged, 20))

            leader.partition()
            # Connected clients receive no notification of this, and their submits are not refused.
            await until(more_than(acknowledged, len(acknowledged) + 20), seconds=60)
        leader.heal()

    ran: Counter[int] = Counter()
    async with working(three, ran):
        for id in acknowledged:
            await client.jobs.handle(id).result(timeout=90)


async def test_a_partitioned_server_does_not_report_a_job_as_not_found(
    three: Cluster, client: Client, until: Until
) -> None:
    leader = await led(three, client)
    other = next(node for node in three.nodes if node is not leader)
    async with Client(other.url, namespace=NAMESPACE) as behind:
        await behind.connect()
        other.partition()
        job = await client.task("note").submit(1)

        with pytest.raises(BrokerUnavailable):
            await behind.jobs.handle(job.id).status()
        other.heal()

    async def is_queued() -> bool:
        with contextlib.suppress(BrokerUnavailable):  # there may be an election, because the server is back
            return (await client.jobs.handle(job.id).status()).state == "queued"
        return False

    await until(is_queued, seconds=20)


async def test_a_rolling_restart_of_the_servers_loses_and_repeats_no_job(
    three: Cluster, client: Client, until: Until
) -> None:
    ran: Counter[int] = Counter()
    async with working(three, ran), submitting(client) as acknowledged:
        await until(more_than(acknowledged, 50))
        await three.restart_one_by_one()
        await until(more_than(acknowledged, len(acknowledged) + 50), seconds=30)
    async with working(three, ran):
        results = [await client.jobs.handle(id).result(timeout=60) for id in acknowledged]

    assert sorted(results) == sorted(ran)
    assert await client.dead_letters.list() == []


async def test_a_queue_in_use_gets_replicas_and_then_survives_the_loss_of_its_server(three: Cluster) -> None:
    async with Client(three.url, namespace="grows") as client:
        await client.admin.provision(replicas=1)
        jobs = [await client.task("note").submit(number) for number in range(20)]
        alone = await three.leader(client, (await client.broker()).subjects.streams.ready("default"))

        changes = await client.admin.provision(replicas=3)
        assert "num_replicas is 1, should be 3" in {change.how for change in changes}
        assert await copied(client), "it did not wait for the replicas that it asked for"
        assert await client.admin.provision(replicas=3) == []

        await asyncio.to_thread(alone.kill)
        for job in jobs:
            assert (await job.status()).state == "queued"

        app = App(three.url, namespace="grows")
        app.queue("default")
        changes = await client.admin.provision(app.declared)  # an election may delay the copy of a stream
        assert not [change for change in changes if "replicas" in change.how], changes
        await app.close()


async def test_a_cluster_of_two_servers_stores_each_queue_on_one_server(tmp_path: Path) -> None:
    async with cluster(tmp_path, size=2) as two, Client(two.url) as client:
        job = await client.task("note").submit(1)
        assert (await job.status()).state == "queued"
        assert await replicas_of(client) == {1}


async def test_a_queue_whose_only_server_is_gone_is_reported(three: Cluster, client: Client) -> None:
    await client.admin.provision({"alone": QueueSettings(replicas=1)})
    broker = await client.broker()
    leader = await three.leader(client, broker.subjects.streams.ready("alone"))
    await asyncio.to_thread(leader.kill)
    assert await broker.jetstream.stream_info(broker.subjects.streams.records), (
        "the others have not elected a leader"
    )

    findings = [finding for finding in await client.admin.doctor() if finding.subject == "queue alone"]
    assert [finding.severity for finding in findings] == ["error"]
    assert "no leader" in findings[0].message
    with pytest.raises(BrokerUnavailable, match="queue alone has no leader"):
        await client.admin.provision(replicas=3)

    leader.start()
    await three.wait_healthy()
    changes = await client.admin.provision(replicas=3)
    assert broker.subjects.streams.ready("alone") in {change.what for change in changes}


async def test_a_schedule_continues_after_the_server_that_stores_its_ticks_died(
    three: Cluster, client: Client, until: Until
) -> None:
    ran: Counter[str] = Counter()
    app = App(three.url, namespace=NAMESPACE)

    @app.every(1, catch_up="all")
    async def beat(ctx: Context) -> None:
        ran[ctx.headers["tick"]] += 1

    async with app, running_worker(Worker(app, settings=WorkerSettings())):
        await until(lambda: len(ran) >= 2)
        broker = await client.broker()
        for stream in (
            broker.subjects.streams.scheduled("default"),
            broker.subjects.streams.bucket("schedules"),
        ):
            leader = await three.leader(client, stream)
            await asyncio.to_thread(leader.kill)
            seen = len(ran)
            await until(lambda seen=seen: len(ran) > seen + 2, 60)
            await asyncio.to_thread(leader.start)
            await three.wait_healthy()

    ticks = sorted(datetime.fromisoformat(tick) for tick in ran)
    assert ticks == [ticks[0] + timedelta(seconds=number) for number in range(len(ticks))]
    assert set(ran.values()) == {1}


async def test_the_doctor_finds_a_damaged_replica_though_its_server_reports_healthy(
    three: Cluster, client: Client, until: Until
) -> None:
    ready = (await client.broker()).subjects.streams.ready("default")
    await client.task("note").submit_many([["x" * 2_000]] * 5_000)  # more than one block of them
    assert await three.lagging() == []
    leader = await three.leader(client, ready)
    victim = next(node for node in three.nodes if node is not leader)
    monitors = [node.monitor for node in three.nodes]

    findings: list[Finding] = []

    async def has_errors(count: int) -> bool:
        """Whether the doctor finds this number of errors; a replica may be behind for a moment."""
        findings[:] = await client.admin.doctor(monitors=monitors)
        return len([one for one in findings if one.severity == "error"]) == count

    await until(lambda: has_errors(0), 30)

    # A clean stop leaves nothing in its replication log from which it could repair itself.
    await asyncio.to_thread(victim.kill, signal.SIGTERM)
    damage(victim.store / "jetstream" / "$G" / "streams" / ready / "msgs")
    victim.start()
    await three.wait_healthy(60)

    await until(lambda: has_errors(1), 30)
    [message] = [one.message for one in findings if one.severity == "error"]
    assert message.startswith("its copies differ: ")
    assert f"{victim.name} holds " in message
    assert message.count("holds 5,000 (1 to 5,000)") == 2
    assert f"server {victim.name}" in {one.subject for one in findings if one.severity == "ok"}


def damage(messages: Path) -> None:
    """Flip one bit in the middle of each block but the last, and delete the index of the stream."""
    blocks = sorted(messages.glob("*.blk"), key=lambda block: int(block.stem))
    assert len(blocks) > 1
    for block in blocks[:-1]:
        content = bytearray(block.read_bytes())
        content[len(content) // 2] ^= 1
        block.write_bytes(content)
    (messages / "index.db").unlink(missing_ok=True)
