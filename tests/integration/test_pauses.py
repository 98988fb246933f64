"""Paused queues, tasks and keys: none of their jobs starts, running jobs continue, and nothing undoes it."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jsq import (
    App,
    BadName,
    BadOption,
    Client,
    Context,
    JobHandle,
    QueueNotFound,
    RateLimited,
)
from jsq.broker import Broker
from jsq.broker.jobs.records import EXPECTED, TTL
from jsq.model.job import PRIORITIES
from jsq.model.pause import Pause
from jsq.server import EmbeddedServer
from jsq.settings import QueueSettings
from jsq.transport.replies import WrongSequence
from jsq.transport.retrying import publish_with_retry
from jsq.worker import Worker
from tests.helpers.conditions import Until
from tests.helpers.workers import Working, running_worker

WAIT = 60.0


async def taken(broker: Broker, queue: str) -> int:
    """The number of unsettled deliveries of a queue."""
    [stats] = await broker.queue_stats.read(queue)
    return stats.running


async def paused(broker: Broker, queue: str) -> list[bool]:
    """Whether the server delivers nothing, by priority."""
    found = [
        await broker.jetstream.consumer_info(broker.subjects.streams.ready(queue), level)
        for level in PRIORITIES
    ]
    return [bool(one and one.get("paused")) for one in found]


async def test_a_paused_queue_keeps_running_jobs_and_starts_no_others(
    app: App, client: Client, working: Working, until: Until
) -> None:
    started: list[int] = []
    go_on = asyncio.Event()

    @app.task(queue="mail")
    async def send(number: int) -> int:
        started.append(number)
        await go_on.wait()
        return number

    @app.task
    async def other() -> None: ...

    first = await send.submit(1)
    async with working(), working():
        await until(lambda: started)
        assert await client.queues.pause("mail") == Pause()
        assert await client.queues.pause("mail") == Pause()  # a second pause succeeds without effect
        second = await send.submit(2)
        # The jobs of another queue continue, and so does the running one.
        await (await other.submit()).result(WAIT)
        go_on.set()
        assert await first.result(WAIT) == 1
        assert started == [1]
        assert (await second.status()).state == "queued"
        await client.queues.resume("mail")
        assert await second.result(WAIT) == 2
        await client.queues.resume("mail")


async def test_a_pause_survives_everything_that_recreates_the_queue(
    own_server: EmbeddedServer, namespace: str, until: Until
) -> None:
    async with App(own_server.url, namespace=namespace) as app:

        @app.task(queue="mail")
        async def send() -> int:
            return 5

        app.queue("mail", lease=20)
        job = await send.submit()
        await app.client.queues.pause("mail")
        broker = await app.client.broker()
        await app.client.admin.provision(app.declared)
        assert await paused(broker, "mail") == [True] * 3
        await app.client.admin.provision()
        await app.client.queues.update("mail", lease=25, concurrency=4)
        await broker.wire.api(f"CONSUMER.DELETE.{broker.subjects.streams.ready('mail')}.normal")
        await app.client.admin.provision(app.declared)
        assert await paused(broker, "mail") == [True] * 3

        await asyncio.to_thread(own_server.kill)
        await asyncio.to_thread(own_server.restart)
        async with running_worker(Worker(app)):
            assert await paused(broker, "mail") == [True] * 3
            [stats] = await app.client.queues.stats("mail")
            assert stats.paused == Pause()
            assert (stats.running, stats.waiting["normal"]) == (0, 1)
            await app.client.queues.resume("mail")
            assert await job.result(WAIT) == 5


async def test_a_pause_ends_automatically_at_its_end_time(app: App, client: Client, working: Working) -> None:
    at: list[datetime] = []

    @app.task(queue="mail")
    async def send() -> None:
        at.append(datetime.now(UTC))

    jobs = [await send.submit() for _ in range(3)]
    hold = await client.queues.pause("mail", until=1.5)
    assert hold.until is not None

    async with working():
        await asyncio.gather(*(job.result(WAIT) for job in jobs))

    assert min(at) >= hold.until - timedelta(seconds=0.05)
    assert await client.queues.pauses() == {}
    assert (await client.queues.stats("mail"))[0].paused is None


@pytest.mark.parametrize("on", ["task", "key"])
async def test_a_job_of_a_paused_task_or_key_waits_on_the_server_and_resumes_at_once(
    app: App, client: Client, working: Working, until: Until, on: str
) -> None:
    started: list[str] = []

    @app.task
    async def call(owner: str) -> None:
        started.append(owner)

    @app.task(name="other")
    async def another(owner: str) -> None:
        started.append(owner)

    async def submit(task: str, key: str) -> JobHandle[Any]:
        return await client.task(task).options(key=key).submit(f"{task} {key}")

    where: dict[str, Any] = {"task": "call"} if on == "task" else {"key": "a"}
    free = ("other", "a") if on == "task" else ("call", "b")
    await submit("call", "c")
    async with working() as worker:
        await until(lambda: started == ["call c"])
        started.clear()
        await client.queues.pause("default", **where)
        await until(lambda: is_known(worker))
        jobs = [await submit("call", "a") for _ in range(3)]
        await (await submit(*free)).result(WAIT)
        await until(lambda: later(client, 3), WAIT)
        assert started == [" ".join(free)]
        assert [(await job.status()).state for job in jobs] == ["queued"] * 3
        assert await client.queues.pauses() == {"default": (Pause(**where),)}

        await client.queues.resume("default", **where)
        await asyncio.gather(*(job.result(WAIT) for job in jobs))
        for job in jobs:
            assert (await job.status()).attempt == 1
    assert await client.queues.pauses() == {}


def is_known(worker: Worker) -> bool:
    """Whether a worker has learned of a pause on the default queue."""
    return bool(worker.dispatcher.limits.rules.is_paused("default"))


async def later(client: Client, count: int) -> bool:
    [stats] = await client.queues.stats("default")
    return stats.scheduled == count and stats.running == 0


async def test_a_task_paused_until_a_time_resumes_then_or_at_an_earlier_time(
    app: App, client: Client, working: Working, until: Until
) -> None:
    @app.task
    async def call() -> None: ...

    await client.admin.provision()
    async with working() as worker:
        await client.queues.pause("default", task="call", until=3600)
        await until(lambda: is_known(worker))
        job = await call.submit()
        await until(lambda: later(client, 1), WAIT)
        await client.queues.pause("default", task="call", until=1)
        await job.result(WAIT)


async def test_an_interrupted_resume_continues_where_it_stopped(
    app: App, client: Client, working: Working, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.task
    async def call() -> None: ...

    await client.admin.provision()
    broker = await client.broker()
    async with working() as worker:
        await client.queues.pause("default", task="call")
        await until(lambda: is_known(worker))
        jobs = [await call.submit() for _ in range(4)]
        await until(lambda: later(client, 4), WAIT)
        publish, early_resumes = broker.wire.publish, 0

        async def publish_some(subject: str, *rest: Any, **how: Any) -> int:
            nonlocal early_resumes
            if subject in scheduled:
                if early_resumes == 2:
                    raise ConnectionAbortedError
                early_resumes += 1
            return await publish(subject, *rest, **how)

        scheduled = {broker.subjects.scheduled("default", job.id) for job in jobs}
        monkeypatch.setattr(broker.wire, "publish", publish_some)
        with pytest.raises(ConnectionAbortedError):
            await client.queues.resume("default", task="call")
        monkeypatch.undo()
        await client.queues.resume("default", task="call")
        await asyncio.gather(*(job.result(WAIT) for job in jobs))


@pytest.mark.parametrize("reader", ["asks the leader", "may ask replicas only"])
async def test_a_worker_notified_of_a_pause_observes_it_though_a_replica_is_behind(
    app: App, client: Client, working: Working, until: Until, monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    await client.admin.provision()
    broker = await client.broker()
    bucket, read = broker.subjects.streams.bucket("limits"), broker.reads.last
    leader_reads: list[bool] = []

    async def read_from_one_behind(stream: str, subject: str, *, consistent: bool = False) -> Any:
        if stream != bucket:
            return await read(stream, subject, consistent=consistent)
        leader_reads.append(consistent)
        behind = not consistent or (reader != "asks the leader" and len(leader_reads) < 4)
        return None if behind else await read(stream, subject)

    def may_ask_leader(stream: str) -> bool:
        return reader == "asks the leader"

    async with working() as worker, Client(app.client.login, namespace=app.client.namespace) as other:
        monkeypatch.setattr(broker.reads, "last", read_from_one_behind)
        monkeypatch.setattr(broker.reads, "may_ask_leader", may_ask_leader)
        await other.queues.pause("default", task="call")
        await until(lambda: is_known(worker), 5)


async def test_a_requeued_job_is_delivered_again_though_a_replica_is_behind(
    app: App, client: Client, working: Working, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.task
    async def call() -> None: ...

    await client.admin.provision()
    reads = (await client.broker()).reads
    async with working() as worker:
        await client.queues.pause("default", task="call")
        await until(lambda: is_known(worker))
        jobs = [await call.submit() for _ in range(3)]
        await until(lambda: later(client, 3), WAIT)
        page = reads.page

        async def page_of_one_behind(*which: Any, **how: Any) -> Any:
            found, _ = await page(*which, **how)
            return found[:1], False

        monkeypatch.setattr(reads, "page", page_of_one_behind)
        await client.queues.resume("default", task="call")
        await asyncio.gather(*(job.result(WAIT) for job in jobs))


async def test_a_job_requeued_while_its_pause_ends_is_delivered_again(
    app: App, client: Client, working: Working, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.task
    async def call() -> None: ...

    await client.admin.provision()
    async with working() as worker:
        await client.queues.pause("default", task="call")
        await until(lambda: is_known(worker))
        refreshes = 0

        async def learn_nothing() -> None:
            nonlocal refreshes
            refreshes += 1

        # The worker does not learn that the pause ended before it requeues the job.
        monkeypatch.setattr(worker.dispatcher.limits.rules, "refresh", learn_nothing)
        await client.queues.resume("default", task="call")
        await until(lambda: refreshes == 1)
        job = await call.submit()
        await until(lambda: refreshes == 2)  # the worker found it out itself, and delivered the job again
        assert is_known(worker)
        monkeypatch.undo()
        worker.dispatcher.limits.rules.refresh_soon()
        await job.result(WAIT)


async def test_a_paused_job_expires_at_its_deadline(app: App, client: Client, working: Working) -> None:
    @app.task(deadline=1)
    async def call() -> None: ...

    await client.admin.provision()
    await client.queues.pause("default", task="call")
    async with working():
        job = await call.submit()
        assert (await job.wait(WAIT)).state == "expired"


async def test_a_paused_job_can_be_cancelled(
    app: App, client: Client, working: Working, until: Until
) -> None:
    @app.task
    async def call() -> None: ...

    await client.admin.provision()
    await client.queues.pause("default", task="call")
    async with working():
        job = await call.submit()
        await until(lambda: later(client, 1), WAIT)
        await job.cancel()
        await until(lambda: later(client, 0), WAIT)
        assert (await job.status()).state == "cancelled"


async def test_a_pause_set_before_a_worker_starts_applies_to_it(
    app: App, client: Client, working: Working, until: Until
) -> None:
    @app.task
    async def call() -> None: ...

    job = await call.submit()
    await client.queues.pause("default", task="call")
    async with working():
        await until(lambda: later(client, 1), WAIT)
        await client.queues.resume("default", task="call")
        await job.result(WAIT)


# -- RateLimited ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["a", None])
async def test_rate_limited_pauses_the_key_or_else_the_queue(
    app: App, client: Client, working: Working, until: Until, key: str | None
) -> None:
    started: list[tuple[str, datetime]] = []

    @app.task(queue="calls", retries=0)
    async def call(ctx: Context, name: str) -> int:
        started.append((name, datetime.now(UTC)))
        if name == "first" and len([one for one, _ in started if one == name]) == 1:
            raise RateLimited(retry_after=1.5)
        return ctx.attempt

    async with working(concurrency=1):
        first = await call.options(key=key).submit("first")
        await until(lambda: client.queues.pauses(), WAIT)
        end = (await client.queues.pauses())["calls"][0].end
        requeued = await call.options(key=key).submit("held")
        free = await call.options(key="b").submit("free")
        assert await first.result(WAIT) == 1  # it spent no attempt
        await asyncio.gather(requeued.result(WAIT), free.result(WAIT))

    at = dict(started)
    slack = timedelta(seconds=0.05)
    assert at["first"] >= end - slack
    assert at["held"] >= end - slack
    assert (at["free"] < end) == (key is not None)
    assert await client.queues.pauses() == {}
    assert (await first.status()).failures == 0


async def test_a_pause_by_rate_limited_is_written_again_after_a_crash(
    app: App, client: Client, working: Working, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    @app.task(queue="calls")
    async def call() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RateLimited(30)

    app.queue("calls", lease=1)
    async with working() as worker:
        hold, tries = worker.dispatcher.limits.rules.pause, 0

        async def dies(*arguments: Any) -> None:
            nonlocal tries
            tries += 1
            if tries == 1:
                raise ConnectionAbortedError  # as if the worker had died between the record and the pause
            await hold(*arguments)

        monkeypatch.setattr(worker.dispatcher.limits.rules, "pause", dies)
        job = await call.submit()
        await until(lambda: client.queues.pauses(), WAIT)
        assert (await job.status()).state == "snoozed"
        assert calls == 1
    assert (await client.queues.pauses())["calls"][0].reason == "rate_limited"


# -- settings of a queue -------------------------------------------------------------------------------------


async def test_a_queue_is_updated_while_its_workers_run(
    app: App, client: Client, working: Working, until: Until
) -> None:
    now = most = 0
    go_on = asyncio.Event()

    @app.task(queue="narrow")
    async def count() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await go_on.wait()
        now -= 1

    app.queue("narrow", concurrency=2)
    jobs = [await count.submit() for _ in range(12)]
    async with working() as worker:
        await until(lambda: now == 2)
        changed = await client.queues.update("narrow", concurrency=4, rate="1000/s", max_jobs=50)
        assert (changed.concurrency, str(changed.rate), changed.max_jobs) == (4, "1000/s", 50)
        await until(lambda: now == 4)
        await until(lambda: worker.resources.queues["narrow"] == changed)
        go_on.set()
        await asyncio.gather(*(job.result(WAIT) for job in jobs))
        assert most == 4
        removed = await client.queues.update("narrow", concurrency=None, rate=None, max_jobs=None)
        assert removed == (await client.queues.stats("narrow"))[0].settings
        assert (removed.concurrency, removed.rate, removed.max_jobs) == (None, None, None)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"storage": "memory"}, "storage"),
        ({"replicas": 3}, "replicas"),
        ({"colour": "red"}, "colour"),
        ({"concurrency": 0}, "concurrency"),
        ({"rate": "often"}, "rate"),
        ({"max_jobs": -1}, "max_jobs"),
        ({"lease": 0.1}, "lease"),
    ],
)
async def test_an_invalid_change_of_a_live_queue_is_refused_by_name(
    client: Client, changes: dict[str, Any], field: str
) -> None:
    await client.admin.provision()

    with pytest.raises(BadOption) as caught:
        await client.queues.update("default", **changes)

    assert caught.value.field == field
    assert caught.value.value == changes[field]


# -- bad inputs ----------------------------------------------------------------------------------------------


async def test_a_missing_queue_raises_not_found(client: Client) -> None:
    for call in (
        client.queues.pause("none"),
        client.queues.resume("none"),
        client.queues.update("none", rate="1/s"),
    ):
        with pytest.raises(QueueNotFound, match="there is no queue none"):
            await call


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"task": "a b"}, BadName),
        ({"task": ""}, BadName),
        ({"key": ""}, BadOption),
        ({"task": "a", "key": "b"}, BadOption),
        ({"until": -1}, BadOption),
        ({"until": datetime(2020, 1, 1, tzinfo=UTC)}, BadOption),
        ({"until": datetime(2099, 1, 1)}, BadOption),
    ],
)
async def test_an_invalid_pause_is_refused(
    client: Client, given: dict[str, Any], error: type[Exception]
) -> None:
    await client.admin.provision()

    with pytest.raises(error):
        await client.queues.pause("default", **given)

    assert await client.queues.pauses() == {}


async def test_a_retried_pause_request_after_its_end_pauses_nothing(client: Client) -> None:
    broker = await client.broker()
    bucket, subject = broker.subjects.streams.bucket("limits"), broker.subjects.limits.pauses("mail")
    await client.admin.provision({"mail": QueueSettings()})
    await client.queues.pause("mail")
    first = await broker.reads.last(bucket, subject, consistent=True)
    assert first is not None
    await client.queues.resume("mail")

    with pytest.raises(WrongSequence):
        await publish_with_retry(broker.wire, subject, first.payload, {EXPECTED: first.headers[EXPECTED]})

    # As long as such a request may be in transit, there is a revision that it does not expect.
    stored = await broker.reads.last(bucket, subject, consistent=True)
    assert stored is not None
    assert int(stored.headers[TTL]) > 3_600
    assert await client.queues.pauses() == {}
