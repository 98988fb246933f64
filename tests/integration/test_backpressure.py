"""Backpressure of a queue, an account and a server: each limit is named, and no accepted job is lost."""

import asyncio
import contextlib
import os
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from jsq import App, BrokerFull, Client, Context, PartlySubmitted, QueueFull, Retry, SubmitUnknown
from jsq.broker import Broker
from jsq.client.submitter import Submitter
from jsq.codec.subject_token import ANY
from jsq.server import EmbeddedServer
from jsq.settings import Storage, WorkerSettings
from jsq.transport.replies import Reply
from jsq.transport.retrying import publish_with_retry
from jsq.worker import Worker
from jsq.worker.timings import WorkerTimings
from tests.helpers.conditions import Until
from tests.helpers.servers import nats_server
from tests.helpers.workers import Working

MB = 2**20

FULL_SERVER = "jetstream { store_dir: '%s/js', max_file_store: 2MB, max_memory_store: 2MB }"
FULL_ACCOUNT = """
    jetstream { store_dir: '%s/js' }
    accounts { A { jetstream { max_file: 2MB, max_mem: 2MB }, users: [ { user: a, password: a } ] } }
    no_auth_user: a
"""

FOLDERS = pytest.mark.parametrize("conf", [FULL_SERVER, FULL_ACCOUNT], ids=["server", "account"])


@contextlib.asynccontextmanager
async def small(folder: Path, conf: str) -> AsyncIterator[App]:
    """An app on a server with little storage."""
    with nats_server(folder, conf % folder) as address:
        async with App(f"nats://{address}") as app:
            yield app


async def fill(broker: Broker, storage: Storage = "file") -> None:
    """Use up all the room there is."""
    await broker.wire.api("STREAM.CREATE.FILL", {"name": "FILL", "subjects": ["fill"], "storage": storage})
    for size in (200_000, 5_000, 100, 1):
        with contextlib.suppress(BrokerFull):
            while True:
                await broker.wire.publish("fill", b"x" * size)


async def submit_on(call: Submitter[..., Any], size: int, stored: list[str] | None = None) -> None:
    """Submit jobs of some bytes each until there is no room."""
    while True:
        job = await call.submit("x" * size)
        if stored is not None:
            stored.append(job.id)


async def free(broker: Broker) -> None:
    await broker.wire.api("STREAM.DELETE.FILL")


async def nothing_left(client: Client, queue: str = "default") -> bool:
    [stats] = await client.queues.stats(queue)
    return not (any(stats.waiting.values()) or stats.running or stats.scheduled)


# -- the error names the limit -------------------------------------------------------------------------------


async def test_a_full_queue_names_its_limit_and_the_value(app: App, client: Client) -> None:
    app.queue("few", max_jobs=2)
    app.queue("short", max_bytes=4_000)
    await client.admin.provision(app.declared)
    for queue, limit, value in (("few", "max_jobs", 2), ("short", "max_bytes", 4_000)):
        with pytest.raises(QueueFull, match=f"queue {queue} is full: its {limit}, {value:,}, is") as caught:
            await submit_on(client.task("any").options(queue=queue), 1_000)
        full = caught.value
        assert (full.queue, full.limit, full.value, full.retryable) == (queue, limit, value, True)
        with pytest.raises(QueueFull, match=f"{limit}, {value:,}"):
            await client.task("any").options(queue=queue).submit_many([("x" * 2_000,)] * 3)


@FOLDERS
@pytest.mark.parametrize("storage", ["file", "memory"])
async def test_a_full_server_or_account_is_not_reported_as_a_full_queue(
    tmp_path: Path, conf: str, storage: Storage
) -> None:
    async with small(tmp_path, conf) as app:
        app.queue("default", storage=storage)
        await app.client.admin.provision(app.declared)
        broker = await app.client.broker()
        await fill(broker, storage)
        for call in (
            app.client.task("any").submit("x" * 20_000),
            app.client.task("any").options(id="mine").submit("x" * 20_000),
            app.client.task("any").options(delay=1).submit("x" * 20_000),
            app.client.task("any").submit_many([("x" * 20_000,)] * 5),
            app.client.task("any").submit_many([("x" * 20_000,)]),
        ):
            with pytest.raises(BrokerFull, match=r"no room for .*free space, or raise the limits") as caught:
                await call
            assert caught.value.retryable
        assert await nothing_left(app.client)
        assert await app.client.jobs.list() == []

        await free(broker)
        mine = await app.client.task("any").options(id="mine").submit()
        assert not mine.duplicate
        assert (await mine.status()).state == "queued"


@FOLDERS
async def test_a_bulk_that_fills_the_server_reports_which_jobs_were_stored(tmp_path: Path, conf: str) -> None:
    async with small(tmp_path, conf) as app:
        await app.client.admin.provision()
        with pytest.raises(PartlySubmitted) as caught:
            await app.client.task("any").submit_many([("x" * 2_000,)] * 3_000)
        partly = caught.value
        assert all(isinstance(error, BrokerFull) for error in partly.refused.values())
        assert len(partly.stored) + len(partly.refused) == 3_000
        assert (await app.client.queues.stats("default"))[0].waiting["normal"] == len(partly.stored) > 500
        assert set(await (await app.client.broker()).job_reader.waiting_ids("default")) == set(partly.stored)


async def test_a_queue_that_the_server_cannot_store_is_reported(tmp_path: Path) -> None:
    async with small(tmp_path, FULL_SERVER) as app:
        with pytest.raises(BrokerFull, match="insufficient storage resources"):
            await app.client.admin.provision({"large": app.queue("large", max_bytes=50 * MB)})
    streams = FULL_ACCOUNT.replace("max_mem: 2MB", "max_streams: 6").replace("/js", "/other")
    (tmp_path / "two").mkdir()
    async with small(tmp_path / "two", streams) as app:
        with pytest.raises(BrokerFull, match="maximum number of streams reached"):
            await app.client.task("any").submit()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system that fills")
async def test_a_full_disk_leaves_a_submit_unknown_and_the_error_names_the_check(
    tmp_path: Path, tiny_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(publish_with_retry.__kwdefaults__ or {}, "seconds", 2.0)
    # Without a configured limit, the server uses the size of its disk. Here the disk is smaller than that.
    conf = f"jetstream {{ store_dir: '{tiny_disk}/js', max_file_store: 1GB }}\n# %s"
    stored: list[str] = []
    async with small(tmp_path, conf) as app:
        with pytest.raises(
            SubmitUnknown, match=r"/healthz whether the disk is full.*Submitting again"
        ) as caught:
            await submit_on(app.client.task("any").options(), 50_000, stored)
        assert caught.value.retryable
    subprocess.run(["mount", "-o", "remount,size=64m", tiny_disk], check=True)  # noqa: ASYNC221 -- short
    (tmp_path / "again").mkdir()
    async with small(tmp_path / "again", conf) as app:
        waiting = set(await (await app.client.broker()).job_reader.waiting_ids("default"))
        assert set(stored) <= waiting
        again = await app.client.task("any").options(id=caught.value.id).submit()
        assert (await again.status()).state == "queued"


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


# -- waiting for room ----------------------------------------------------------------------------------------


async def test_a_submit_waits_for_room_until_its_timeout(app: App, client: Client) -> None:
    app.queue("few", max_jobs=1)
    await client.admin.provision(app.declared)
    await client.task("any").options(queue="few").submit()
    for seconds in (0.4, timedelta(seconds=0.4)):
        start_time = time.monotonic()
        with pytest.raises(QueueFull, match="max_jobs, 1, is reached"):
            await client.task("any").options(queue="few", wait_for_room=seconds).submit()
        assert 0.4 <= time.monotonic() - start_time < 3
    app.queue("few", max_jobs=3)
    await client.admin.provision(app.declared)
    with pytest.raises(PartlySubmitted) as caught:
        await client.task("any").options(queue="few", wait_for_room=0.4).submit_many([()] * 5)
    assert len(caught.value.stored) == 2
    assert await waiting(client, "few") == 3
    # There are records of the stored jobs, whatever was refused in between.
    records = {record.id for record in await client.jobs.list(queue="few")}
    assert records <= set(await (await client.broker()).job_reader.waiting_ids("few"))


async def waiting(client: Client, queue: str) -> int:
    return sum((await client.queues.stats(queue))[0].waiting.values())


async def test_every_waiting_submit_is_served_once(app: App, client: Client, working: Working) -> None:
    ran: list[int] = []

    @app.task(queue="few")
    async def note(number: int) -> None:
        ran.append(number)

    app.queue("few", max_jobs=1)
    await client.admin.provision(app.declared)
    await note.submit(0)
    call = note.options(wait_for_room=20)
    submits = [asyncio.create_task(call.submit(number)) for number in range(1, 40)]
    async with working():
        jobs = await asyncio.gather(*submits)
        await asyncio.gather(*(job.result(60) for job in jobs))
    assert sorted(ran) == list(range(40))


async def test_a_job_with_its_own_id_waits_for_room_and_is_stored_once(
    app: App, client: Client, working: Working
) -> None:
    ran: list[int] = []

    @app.task(queue="few")
    async def note(number: int) -> int:
        ran.append(number)
        return number

    app.queue("few", max_jobs=1)
    await client.admin.provision(app.declared)
    await note.submit(0)
    submits = [asyncio.create_task(note.options(id="mine", wait_for_room=20).submit(1)) for _ in range(3)]
    async with working():
        assert [await (await submit).result(60) for submit in submits] == [1, 1, 1]
    assert sorted(ran) == [0, 1]


async def test_a_submit_that_stops_waiting_for_room_does_not_block_the_others(
    app: App, client: Client, until: Until
) -> None:
    app.queue("few", max_jobs=1)
    await client.admin.provision(app.declared)
    await client.task("any").options(queue="few").submit()
    call = client.task("any").options(queue="few", wait_for_room=30)
    first, second = (asyncio.create_task(call.submit()) for _ in range(2))
    await asyncio.sleep(0.1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await client.queues.purge("few") == 1
    job = await second
    assert await (await client.broker()).job_reader.waiting_ids("few") == [job.id]


@pytest.mark.proof
async def test_many_waiting_clients_poll_the_server_with_pauses(
    server: EmbeddedServer, app: App, client: Client, until: Until
) -> None:
    """Each submit has its own connection, so none waits behind another one in the client."""
    app.queue("few", max_jobs=1)
    await client.admin.provision(app.declared)
    await client.task("any").options(queue="few").submit()
    broker = await client.broker()
    tries: list[float] = []

    def tried(_: Reply) -> None:
        tries.append(time.monotonic())

    await broker.wire.subscribe(broker.subjects.ready("few", "*", ANY), tried)
    async with contextlib.AsyncExitStack() as opened:
        clients = [
            await opened.enter_async_context(Client(server.url, namespace=client.namespace))
            for _ in range(30)
        ]
        submits = [
            asyncio.create_task(one.task("any").options(queue="few", wait_for_room=60).submit())
            for one in clients
        ]
        # After a few requests the pauses of each client have their maximum length.
        await until(lambda: len(tries) >= 270, 30)
        settled = len(tries)
        start_time = time.monotonic()
        await until(lambda: time.monotonic() - start_time >= 4.0)
        # Pauses last at least a second by then: 4 requests of each client in that time, and one in progress.
        assert 0 < len(tries) - settled <= 30 * 5
        app.queue("few", max_jobs=31)
        await client.admin.provision(app.declared)
        jobs = await asyncio.gather(*submits)
    assert {job.id for job in jobs} < set(await broker.job_reader.waiting_ids("few"))
    assert await waiting(client, "few") == 31


async def test_a_hundred_waiting_submits_of_one_client_share_their_requests(app: App, client: Client) -> None:
    app.queue("few", max_jobs=1)
    await client.admin.provision(app.declared)
    await client.task("any").options(queue="few").submit()
    broker = await client.broker()
    tries: list[str] = []
    await broker.wire.subscribe(
        broker.subjects.ready("few", "*", ANY), lambda subscriptions: tries.append(subscriptions.subject)
    )
    call = client.task("any").options(queue="few", wait_for_room=1.0)
    ended = await asyncio.gather(*(call.submit() for _ in range(100)), return_exceptions=True)
    assert all(isinstance(error, QueueFull) for error in ended)
    assert len(set(map(id, ended))) == 100
    assert len(tries) < 130  # a first request of each, and those of the first client in the queue


async def test_a_bulk_larger_than_its_queue_passes_through_it(
    app: App, client: Client, working: Working, until: Until
) -> None:
    ran: Counter[int] = Counter()

    @app.task(queue="fifty")
    async def note(number: int) -> None:
        ran[number] += 1

    app.queue("fifty", max_jobs=50)
    await client.admin.provision(app.declared)
    async with working(queues=["fifty"], concurrency=25):
        jobs = await note.options(wait_for_room=30).submit_many([(number,) for number in range(1_000)])
        assert len({job.id for job in jobs}) == 1_000
        await until(lambda: nothing_left(client, "fifty"), 30)
    assert len(ran) == 1_000
    assert set(ran.values()) == {1}
    assert {(await job.status()).state for job in jobs[::100]} == {"succeeded"}


# -- no accepted job is lost ---------------------------------------------------------------------------------


async def test_due_jobs_wait_for_room_on_their_queue(
    app: App, client: Client, working: Working, until: Until
) -> None:
    """A full queue accepts no delayed job and no retry: they stay scheduled until there is room."""
    ran: Counter[int] = Counter()

    @app.task(queue="few", backoff=[0.05])
    async def note(ctx: Context, number: int) -> int:
        ran[number] += 1
        if ctx.attempt == 1:
            raise Retry
        return number

    app.queue("few", max_jobs=4)
    await client.admin.provision(app.declared)
    jobs = [await note.submit(number) for number in range(4)]
    jobs += [await note.options(delay=0.1).submit(number) for number in range(4, 6)]
    broker = await client.broker()

    async def all_due() -> bool:
        fired = broker.subjects.due("few", "*", ANY)
        return await broker.jetstream.count(broker.subjects.streams.scheduled("few"), fired) == 2

    await until(all_due)
    assert await waiting(client, "few") == 4
    async with working():
        assert [await job.result(30) for job in jobs] == list(range(6))
        await until(lambda: nothing_left(client, "few"))
    assert set(ran.values()) == {2}


@FOLDERS
async def test_a_job_that_runs_while_the_server_is_full_ends_once_there_is_room(
    tmp_path: Path, conf: str, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker waits with writes of outcomes, retries, dead letters and delayed jobs, and repeats no job."""
    runs: Counter[tuple[str, int]] = Counter()
    go = asyncio.Event()
    async with small(tmp_path, conf) as app:

        @app.task(retries=2, backoff=[0.1])
        async def work(ctx: Context, how: str) -> str:
            runs[ctx.id, ctx.attempt] += 1
            if ctx.attempt == 1:
                await go.wait()
            if how == "fails" or (how == "again" and ctx.attempt == 1):
                raise ValueError(how)
            return how

        await app.client.admin.provision()
        broker = await app.client.broker()
        ways = ("ends", "again", "fails")
        async with at_work(app, concurrency=12):
            jobs = [await work.submit(ways[number % 3]) for number in range(12)]
            await until(lambda: len(runs) == 12)
            jobs += [await work.options(delay=0.2).submit(ways[number % 3]) for number in range(6)]
            await fill(broker)
            go.set()
            await until(lambda: "writes delayed" in caplog.text)
            with pytest.raises(BrokerFull):
                await app.client.task("work").submit("ends")
            assert {(await job.status()).state for job in jobs} <= {"running", "scheduled"}
            await free(broker)
            outcomes = await asyncio.gather(
                *(broker.job_reader.wait_for_outcome(job.id, "default") for job in jobs)
            )
            await until(lambda: nothing_left(app.client), 20)
            wanted = ["failed" if number % 3 == 2 else "succeeded" for number in [*range(12), *range(6)]]
            assert [outcome.state for outcome in outcomes] == wanted
            dead_letters = {dead_letter.id for dead_letter in await app.client.dead_letters.list()}
            assert dead_letters == {
                job.id for job, state in zip(jobs, wanted, strict=True) if state == "failed"
            }

            async def listed() -> bool:
                records = await app.client.jobs.list(limit=None)
                return {one.id: one.state for one in records} == {
                    job.id: state for job, state in zip(jobs, wanted, strict=True)
                }

            await until(listed)
    assert set(runs.values()) == {1}
    assert {outcome.revision.crashes for outcome in outcomes} == {0}


async def test_a_worker_that_stops_while_the_server_is_full_loses_nothing(
    tmp_path: Path, until: Until
) -> None:
    runs: Counter[str] = Counter()
    go = asyncio.Event()
    async with small(tmp_path, FULL_SERVER) as app:

        @app.task
        async def work(ctx: Context) -> str:
            runs[ctx.id] += 1
            await go.wait()
            return "done"

        app.queue("default", lease=2)
        await app.client.admin.provision(app.declared)
        broker = await app.client.broker()
        async with at_work(app, grace=0.2, timings=WorkerTimings(unwind=0.0)):
            jobs = [await work.submit() for _ in range(5)]
            await until(lambda: len(runs) == 5)
            await fill(broker)
            go.set()
        assert {(await job.status()).state for job in jobs} == {"running"}
        async with at_work(app):
            await until(lambda: broker_has_handed_over(broker, 5))
            await free(broker)
            assert await asyncio.gather(*(job.result(60) for job in jobs)) == ["done"] * 5
            await until(lambda: nothing_left(app.client))
    assert set(runs.values()) == {2}


async def broker_has_handed_over(broker: Broker, count: int) -> bool:
    found = await broker.jetstream.consumer_info(broker.subjects.streams.ready("default"), "normal")
    return found is not None and found["num_redelivered"] == count


@contextlib.asynccontextmanager
async def at_work(
    app: App, *, timings: WorkerTimings | None = None, **settings: float
) -> AsyncIterator[Worker]:
    worker = Worker(app, settings=WorkerSettings.read(**settings), timings=timings)
    running = asyncio.create_task(worker.run())
    await asyncio.wait_for(worker.ready.wait(), 10)
    try:
        yield worker
    finally:
        worker.stop()
        await asyncio.wait_for(running, 20)
