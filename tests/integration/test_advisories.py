"""Advisories of undeliverable messages are stored, and these messages are repaired before everything else."""

from jsq import Client
from jsq.model.repair import Inconsistency
from jsq.model.revision import Revision
from jsq.server import EmbeddedServer
from jsq.settings import QueueSettings
from tests.helpers.conditions import Until
from tests.helpers.undeliverable import READY, make_undeliverable, on_queue, pulling, repair_summary


async def hold_job(client: Client) -> str:
    """Have another consumer hold a job, so that the consumer's numbers do not show messages behind it."""
    job = await client.task("count").submit()
    broker = await client.broker()
    async with pulling(broker, broker.subjects.streams.ready(READY), "normal") as pull:
        assert (await pull()) is not None
    return job.id


async def until_advised(client: Client, until: Until, number: int) -> None:
    broker = await client.broker()

    async def are_stored() -> bool:
        return len(await broker.reads.fetch(broker.subjects.streams.advisories, ">")) == number

    await until(are_stored)


async def test_an_undeliverable_message_is_repaired_while_another_job_runs(
    client: Client, until: Until
) -> None:
    await client.admin.provision()
    held_job = await hold_job(client)
    job = await client.task("count").submit()
    await make_undeliverable(client)
    await until_advised(client, until, 1)
    broker = await client.broker()
    info = await broker.jetstream.consumer_info(broker.subjects.streams.ready(READY), "normal")
    assert info is not None
    assert (info["num_ack_pending"], info["ack_floor"]["stream_seq"]) == (1, 0)

    assert repair_summary(await client.admin.sweep()) == [(Inconsistency.UNDELIVERABLE, job.id, True)]
    assert await on_queue(client) == [held_job, job.id]
    assert await client.admin.sweep() == []


async def test_an_advisory_of_a_message_that_was_delivered_again_is_ignored(
    client: Client, until: Until
) -> None:
    await client.admin.provision()
    job = await client.task("count").submit()
    [sequence] = await make_undeliverable(client)
    await until_advised(client, until, 1)
    broker = await client.broker()
    running = Revision("running", "count", attempt=1, worker="w", message=sequence, delivery=1)
    await broker.records.write(READY, job.id, running, expect=0)

    assert await client.admin.sweep() == []


async def test_two_namespaces_of_an_account_store_their_own_advisories(
    client: Client, server: EmbeddedServer, until: Until
) -> None:
    other_namespace = f"{client.namespace}-other"
    async with Client(server.url, namespace=other_namespace) as other:
        for one in (client, other):
            await one.admin.provision({"default": QueueSettings(), "mail": QueueSettings()})
            assert await one.admin.provision(check=True) == []
        job = await client.task("count").submit()
        await make_undeliverable(client)
        await until_advised(client, until, 1)
        await until_advised(other, until, 0)
        assert await other.admin.sweep() == []
        assert repair_summary(await client.admin.sweep()) == [(Inconsistency.UNDELIVERABLE, job.id, True)]


async def test_the_next_sweep_stores_the_advisories_of_a_queue_created_later(client: Client) -> None:
    await client.admin.provision()
    broker = await client.broker()
    await client.task("any").options(queue="late").submit()
    assert [f.severity for f in await client.admin.doctor() if f.subject == "advisories"] == ["warning"]

    await client.admin.sweep()

    info = await broker.jetstream.stream_info(broker.subjects.streams.advisories)
    assert info is not None
    assert info["config"]["subjects"] == [
        broker.subjects.max_deliveries(queue) for queue in ("default", "late")
    ]
    assert [f for f in await client.admin.doctor() if f.subject == "advisories"] == []


async def test_an_account_whose_advisories_are_stored_elsewhere_is_swept(
    own_server: EmbeddedServer,
) -> None:
    async with Client(own_server.url) as client:
        broker = await client.broker()
        mine = {"name": "MINE", "subjects": ["$JS.EVENT.ADVISORY.>"], "storage": "memory"}
        await broker.wire.api("STREAM.CREATE.MINE", mine)
        await client.admin.provision()
        assert await client.admin.provision(check=True) == []
        job = await client.task("any").submit()
        await make_undeliverable(client)

        assert repair_summary(await client.admin.sweep(age=0)) == [
            (Inconsistency.UNDELIVERABLE, job.id, True)
        ]
        [found] = [f for f in await client.admin.doctor() if f.subject == "advisories"]
        assert found.severity == "warning"
        assert "belong to another stream, MINE" in found.message
