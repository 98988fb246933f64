"""Declared queues: created, changed while in use, limited."""

import asyncio

import pytest

from jsq import App, BadName, BadOption, CannotChange, Client, ForeignStream, QueueFull
from jsq.server import EmbeddedServer
from tests.helpers.workers import Working


async def test_provision_is_idempotent_and_check_changes_nothing(app: App, client: Client) -> None:
    app.queue("mail", lease=5, max_jobs=100)
    missing = await client.admin.provision(app.declared, check=True)
    assert {change.how for change in missing} == {"missing"}
    assert await client.queues.list() == []
    await client.admin.provision(app.declared)
    assert await client.admin.provision(app.declared) == []
    assert await client.queues.list() == ["mail"]


async def test_a_declared_queue_gets_its_settings_while_it_is_in_use(
    server: EmbeddedServer, app: App, client: Client
) -> None:
    await client.task("any").options(queue="mail").submit()
    app.queue("mail", lease=7, max_jobs=5, concurrency=3)
    changes = await client.admin.provision(app.declared)
    assert any("max_msgs is -1, should be 5" in change.how for change in changes)
    assert any("ack_wait is 30 s, should be 7 s" in change.how for change in changes)
    assert any("max_ack_pending" in change.how for change in changes)
    hows = {change.how for change in changes}
    assert {"setting lease is 30.0, should be 7.0", "setting max_jobs is null, should be 5"} <= hows
    assert not [how for how in hows if "{" in how]
    [stats] = await client.queues.stats("mail")
    assert (stats.settings.lease, stats.settings.max_jobs, stats.settings.concurrency) == (7, 5, 3)
    # An app that declares less changes nothing.
    async with Client(server.url, namespace=client.namespace) as other:
        await other.task("any").options(queue="mail").submit()
        assert (await other.queues.stats("mail"))[0].settings.lease == 7


async def test_an_impossible_change_of_a_live_queue_names_the_remedy(app: App, client: Client) -> None:
    await client.admin.provision({"fast": app.queue("fast", storage="memory")})
    with pytest.raises(CannotChange, match=r"cannot be changed from memory to file.*nats stream rm"):
        await client.admin.provision({"fast": app.queue("fast", storage="file")})


async def test_a_full_queue_refuses_one_more_job_and_loses_none(
    app: App, client: Client, working: Working
) -> None:
    @app.task(queue="small")
    async def take(x: int) -> int:
        return x

    app.queue("small", max_jobs=3)
    await client.admin.provision(app.declared)
    jobs = [await take.submit(n) for n in range(3)]
    with pytest.raises(QueueFull, match="queue small is full") as caught:
        await take.submit(4)
    assert caught.value.retryable
    async with working():
        assert [await job.result(60) for job in jobs] == [0, 1, 2]
        assert await (await take.submit(4)).result(60) == 4


async def test_a_retry_waits_for_room_in_a_full_queue(app: App, client: Client, working: Working) -> None:
    @app.task(queue="small", retries=1, backoff="none")
    async def twice(n: int) -> int:
        if n not in seen:
            seen.add(n)
            raise ValueError(n)
        return n

    seen: set[int] = set()
    app.queue("small", max_jobs=2)
    await client.admin.provision(app.declared)
    jobs = [await twice.submit(n) for n in range(2)]
    async with working():
        assert [await job.result(60) for job in jobs] == [0, 1]


async def test_all_workers_together_observe_the_concurrency_of_a_queue(
    app: App, client: Client, working: Working
) -> None:
    now = 0
    most = 0

    @app.task(queue="narrow")
    async def count() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1

    app.queue("narrow", concurrency=2)
    jobs = [await count.submit() for _ in range(20)]
    async with working(), working():
        await asyncio.gather(*(job.result(60) for job in jobs))
    assert most == 2


async def test_a_queue_in_memory_runs_jobs(app: App, working: Working) -> None:
    app.queue("quick", storage="memory")

    @app.task(queue="quick", retries=1, backoff="none")
    async def twice(x: int) -> int:
        return x * 2

    async with working():
        assert await (await twice.submit(2)).result(60) == 4


async def test_queue_names_are_case_sensitive(app: App, client: Client) -> None:
    await client.task("any").options(queue="q").submit()
    await client.task("any").options(queue="Q").submit()
    assert await client.queues.list() == ["Q", "q"]


async def test_a_foreign_stream_is_left_alone(app: App, client: Client) -> None:
    broker = await client.broker()
    await broker.wire.api(
        f"STREAM.CREATE.{broker.subjects.streams.ready('taken')}",
        {"name": broker.subjects.streams.ready("taken"), "subjects": [f"{client.namespace}.other"]},
    )
    with pytest.raises(ForeignStream, match="does not belong to this namespace"):
        await client.task("any").options(queue="taken").submit()
    with pytest.raises(ForeignStream, match="does not belong to this namespace"):
        await client.admin.provision({"taken": app.queue("taken")})


async def test_the_subjects_of_a_foreign_stream_are_left_alone(app: App, client: Client) -> None:
    broker = await client.broker()
    await broker.wire.api(
        f"STREAM.CREATE.{client.namespace}-other",
        {"name": f"{client.namespace}-other", "subjects": [f"{client.namespace}.scheduled.taken.>"]},
    )
    with pytest.raises(ForeignStream, match="belong to another stream"):
        await client.task("any").options(queue="taken").submit()


async def test_a_header_cannot_empty_a_queue(app: App, client: Client) -> None:
    await client.task("any").submit()
    broker = await client.broker()
    subject = broker.subjects.ready("default", "normal", "evil")
    answer = await broker.wire.ask(subject, b"", {"Nats-Rollup": "all"})
    assert b"rollup not permitted" in answer.payload
    assert await client.queues.count_waiting("default") == 1


@pytest.mark.parametrize(
    "name", ["", "a.b", "*", ">", "a b", "a\r\nPUB x 0", "\0", "x" * 300, "%s", "é", "dlq", "_x"]
)
async def test_a_bad_queue_name_is_refused_before_anything_is_sent(client: Client, name: str) -> None:
    with pytest.raises(BadName, match="queue name must be"):
        client.task("any").options(queue=name)


async def test_bad_settings_are_refused_where_they_are_declared(app: App) -> None:
    with pytest.raises(BadOption, match=r"max_jobs must .*got 0"):
        app.queue("q", max_jobs=0)
    with pytest.raises(BadOption, match=r"replicas must .*got 2"):
        app.queue("q", replicas=2)
    with pytest.raises(BadOption, match="lease must "):
        app.queue("q", lease=0.1)
