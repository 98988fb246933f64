"""A new namespace on three servers, and one loss of a leader. `test_clusters.py` has more (proof tier)."""

import asyncio
from pathlib import Path

import pytest

from jsq import App, BrokerUnavailable, Client, JetStreamOff, QueueSettings
from jsq.settings import WorkerSettings
from jsq.transport.jetstream import may_be_electing
from jsq.transport.replies import NoResponders
from jsq.worker import Worker
from tests.helpers.cluster import cluster, replicas_of
from tests.helpers.workers import running_worker

ACCOUNTS = """
accounts { A { jetstream: disabled, users: [{ user: user, password: pass }] }
           SYS { users: [{ user: sys, password: sys }] } }
system_account: SYS
"""

CURE = "run `jsq provision --replicas 3` (it takes 3 servers)"


async def test_a_new_namespace_has_three_replicas_and_the_doctor_names_a_stream_that_has_not(
    tmp_path: Path,
) -> None:
    async with cluster(tmp_path) as servers:
        async with Client(servers.url, namespace="new") as client:
            await client.task("any").submit()
            await client.admin.provision({"mail": QueueSettings()})
            assert await replicas_of(client) == {3}
            well = ("ok", "3 servers of cluster jsq hold the shared streams")
            assert await findings(client, "replicas") == [well]
            await client.admin.provision({"fast": QueueSettings(replicas=1)})
            alone = "only one server of cluster jsq holds its waiting jobs: without its disk they are lost; "
            assert ("warning", alone + CURE) in await findings(client, "queue fast")
            changes = await client.admin.provision({"fast": QueueSettings(replicas=1)}, replicas=3)
            changed = {change.what for change in changes}
            assert "NEW_READY_fast" not in changed, (
                "a worker would bring the queue back to the number that it declares"
            )
        async with Client(servers.url, namespace="once") as client:
            await client.admin.provision(replicas=1)
            assert await replicas_of(client) == {1}
            warning = (
                "only one server of cluster jsq holds the shared streams: while it is down, no job runs; "
            )
            assert await findings(client, "replicas") == [("warning", warning + CURE)]


async def findings(client: Client, subject: str) -> list[tuple[str, str]]:
    found = await client.admin.doctor()
    return [(one.severity, one.message) for one in found if one.subject == subject]


async def test_provision_waits_for_as_many_servers_as_replicas_are_requested(tmp_path: Path) -> None:
    async with cluster(tmp_path, size=2) as servers, Client(servers.url, namespace="new") as client:
        with pytest.raises(BrokerUnavailable, match="too few servers are up") as raised:
            await client.admin.provision(replicas=3)
        assert raised.value.retryable
        await client.admin.provision(replicas=1)
        with pytest.raises(BrokerUnavailable, match="too few servers are up"):
            await client.admin.provision(replicas=3)


async def test_calls_and_reads_wait_for_the_jetstream_of_a_cluster_that_starts(tmp_path: Path) -> None:
    """A server that starts refuses them, as here one whose account has no JetStream yet."""
    async with cluster(tmp_path, size=2, more=ACCOUNTS) as servers:
        address = servers.url.replace("nats://", "nats://user:pass@")
        async with Client(address, namespace="new") as client:
            broker = await client.broker()
            calls = asyncio.gather(
                broker.jetstream.stream_info("absent"),
                broker.reads.last("absent", "absent", consistent=True),
            )
            for _ in range(3):  # until the calls have been refused, too
                with pytest.raises(JetStreamOff):
                    await broker.wire.api("STREAM.NAMES")
            assert await may_be_electing(broker.wire, "absent")
            assert not calls.done()

            for node in servers.nodes:
                node.reconfigure("jetstream: disabled", "jetstream: enabled")

            assert [*await calls] == [None, None]
            assert not await may_be_electing(broker.wire, "absent")
            with pytest.raises(NoResponders):
                await broker.reads.last("absent", "absent")


async def test_jobs_survive_the_loss_of_the_leader_of_their_queue(tmp_path: Path) -> None:
    async with cluster(tmp_path) as servers, App(servers.url) as app:

        @app.task
        async def double(number: int) -> int:
            return 2 * number

        await app.client.admin.provision(app.declared)
        ready = (await app.client.broker()).subjects.streams.ready("default")
        leader = await servers.leader(app.client, ready)
        before = [await double.submit(number) for number in range(5)]

        await asyncio.to_thread(leader.kill)
        during = [await double.submit(number) for number in range(5, 10)]
        async with running_worker(Worker(app, settings=WorkerSettings())):
            results = [await job.result(20) for job in (*before, *during)]

    assert results == [2 * number for number in range(10)]
