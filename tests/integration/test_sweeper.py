"""Sweeps: inconsistencies are found, and repaired once, whichever worker sweeps and wherever it dies."""

import asyncio
import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jsq import App, Client, Context, JobFailed, Reject, Retry
from jsq.broker.maintenance.repairs import Repairs
from jsq.broker.maintenance.sweeper import LEASE_SECONDS, SWEEP_KEY, Sweeper
from jsq.broker.topology.configs import DUE_CONSUMER
from jsq.broker.topology.leased_key import LeasedKey
from jsq.codec import envelope, revisions
from jsq.errors import BrokerUnavailable
from jsq.model.job import PRIORITIES, Job
from jsq.model.repair import Inconsistency
from jsq.model.revision import FINAL_STATES, Revision, StoredRevision
from jsq.server import EmbeddedServer
from jsq.settings import WorkerSettings
from jsq.transport.server_clock import OUTLIVED_SECONDS
from jsq.worker import Worker
from tests.helpers.conditions import Until
from tests.helpers.jobs import queued_job
from tests.helpers.servers import nats_server
from tests.helpers.undeliverable import READY, make_undeliverable, on_queue, repair_summary
from tests.helpers.workers import Working


async def until_recorded(client: Client, until: Until, id: str, state: str) -> None:
    """Wait until the record of a job has this state."""
    broker = await client.broker()

    async def recorded() -> bool:
        found = await broker.records.last(id)
        return found is not None and found.state == state

    await until(recorded)


async def fail(client: Client, order: Job) -> StoredRevision:
    """Have a job fail whose message remains: its worker died before it settled the delivery."""
    broker = await client.broker()
    failed = Revision("failed", order.task, attempt=1, reason="error", error="ValueError: no")
    dead_letter = broker.dead_letters.message(order, failed)
    await broker.records.put_with(READY, order.id, revisions.encode(failed), [dead_letter], expect=0)
    found = await broker.records.last(order.id)
    assert found is not None
    return found


async def states(client: Client, id: str) -> list[str]:
    return [event.state for event in await (await client.broker()).records.history(id)]


@pytest.fixture
def runs(app: App) -> Counter[str]:
    """How often each job of the task `count` has run."""
    runs: Counter[str] = Counter()

    @app.task
    async def count(ctx: Context) -> int:
        runs[ctx.id] += 1
        return runs[ctx.id]

    return runs


# -- undeliverable messages ----------------------------------------------------------------------------------


async def test_an_undeliverable_message_is_stored_again(
    client: Client, working: Working, runs: Counter[str]
) -> None:
    job = await client.task("count").options(headers={"tenant": "x"}, tags=["y"]).submit()
    before = await queued_job(client, job.id)
    assert await make_undeliverable(client) == [1]

    assert repair_summary(await client.admin.sweep(age=0)) == [(Inconsistency.UNDELIVERABLE, job.id, True)]
    assert await queued_job(client, job.id) == before
    assert await client.admin.sweep(age=0) == []
    async with working():
        assert await job.result(60) == 1
    assert await on_queue(client) == []


async def test_undeliverable_messages_of_every_priority_are_repaired(client: Client) -> None:
    undeliverable = [await client.task("any").options(priority=level).submit() for level in PRIORITIES]
    for level in PRIORITIES:
        await make_undeliverable(client, level)
    waiting = [await client.task("any").options(priority=level).submit() for level in PRIORITIES]

    swept = await client.admin.sweep(age=0)

    assert {one.job for one in swept} == {job.id for job in undeliverable}
    assert sorted(await on_queue(client)) == sorted(job.id for job in (*undeliverable, *waiting))


async def test_an_undeliverable_message_whose_worker_died_counts_the_crash(
    app: App, client: Client, working: Working, runs: Counter[str]
) -> None:
    job = await client.task("count").submit()
    [sequence] = await make_undeliverable(client)
    broker = await client.broker()
    died = Revision("running", "count", attempt=1, worker="gone", message=sequence, delivery=1)
    await broker.records.write(READY, job.id, died, expect=0)

    assert repair_summary(await client.admin.sweep(age=0)) == [(Inconsistency.UNDELIVERABLE, job.id, True)]
    async with working():
        assert await job.result(60) == 1
    assert (await job.status()).crashes == 1
    assert await states(client, job.id) == ["running", "running", "succeeded"]


async def test_a_sweep_killed_before_it_removed_the_old_message_loses_no_job(
    client: Client, working: Working, runs: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await client.task("count").submit()
    [sequence] = await make_undeliverable(client)
    broker = await client.broker()
    died = Revision("running", "count", attempt=1, worker="gone", message=sequence, delivery=1)
    await broker.records.write(READY, job.id, died, expect=0)

    with monkeypatch.context() as patch:
        patch.setattr(broker.jetstream, "delete_message", dying)
        with pytest.raises(MemoryError):
            await client.admin.sweep(age=0)
    async with working():
        assert await job.result(60) == 1  # the worker does not leave it to the undeliverable message
    assert repair_summary(await client.admin.sweep(age=0)) == [(Inconsistency.LEFTOVER_MESSAGE, job.id, True)]
    assert await on_queue(client) == []
    assert runs == {job.id: 1}


async def dying(*_: object, **__: object) -> bool:
    raise MemoryError


async def test_an_undeliverable_message_with_a_newer_one_is_only_removed(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await client.task("any").submit()
    await make_undeliverable(client)
    broker = await client.broker()
    with monkeypatch.context() as patch:
        patch.setattr(broker.jetstream, "delete_message", dying)
        with pytest.raises(MemoryError):
            await client.admin.sweep(age=0)
    assert await on_queue(client) == [job.id, job.id]

    assert repair_summary(await client.admin.sweep(age=0)) == [(Inconsistency.UNDELIVERABLE, job.id, True)]
    assert await on_queue(client) == [job.id]


async def test_an_undeliverable_message_on_a_full_queue_is_replaced_in_its_place(
    app: App, client: Client, working: Working, runs: Counter[str], until: Until
) -> None:
    app.queue("default", max_jobs=2)
    await client.admin.provision(app.declared)
    jobs = [await client.task("count").submit() for _ in range(2)]
    await make_undeliverable(client)

    assert {one.repaired for one in await client.admin.sweep(age=0)} == {True}
    async with working():
        assert [await job.result(60) for job in jobs] == [1, 1]


async def test_a_sweep_puts_due_jobs_on_their_queue_if_no_worker_can_get_them(
    app: App, client: Client, working: Working, runs: Counter[str], until: Until
) -> None:
    app.queue("default", max_jobs=1)
    await client.admin.provision(app.declared)
    broker = await client.broker()
    streams = broker.subjects.streams
    job = await client.task("count").options(delay=0.3).submit()

    async def due() -> bool:
        subject = broker.subjects.due(READY, "*", job.id)
        return await broker.reads.last(streams.scheduled(READY), subject) is not None

    await until(due)
    assert await client.admin.sweep(age=0) == []  # it waits for a worker
    await broker.wire.api(f"CONSUMER.DELETE.{streams.scheduled(READY)}.{DUE_CONSUMER}")
    first = await client.task("count").submit()
    assert await client.admin.sweep(age=0) == []  # the queue is full
    await first.cancel()

    assert repair_summary(await client.admin.sweep(age=0)) == [(Inconsistency.UNDELIVERABLE, job.id, True)]
    assert await broker.reads.last(streams.ready(READY), broker.subjects.ready(READY, "normal", job.id))
    async with working():
        assert await job.result(60) == 1
    assert await on_queue(client) == []


async def test_an_undeliverable_message_that_is_not_a_job_is_dead_lettered_by_a_worker(
    client: Client, working: Working, until: Until, runs: Counter[str]
) -> None:
    await client.admin.provision()
    broker = await client.broker()
    await broker.wire.publish(broker.subjects.ready(READY, "normal", "odd"), b"\x00", {"X": "y"})
    await make_undeliverable(client)

    assert repair_summary(await client.admin.sweep(age=0)) == [(Inconsistency.UNDELIVERABLE, "odd", True)]
    async with working():

        async def is_dead_lettered() -> bool:
            return [dead_letter.payload for dead_letter in await client.dead_letters.list()] == [b"\x00"]

        await until(is_dead_lettered)


# -- messages, records, dead letters and ids that are inconsistent -------------------------------------------


async def test_the_message_of_a_finished_job_is_removed(client: Client) -> None:
    jobs = [await client.task("any").submit(), await client.task("any").options(delay=60).submit()]
    broker = await client.broker()
    for job in jobs:
        await broker.records.write(READY, job.id, Revision("cancelled", "any"), expect=0, ttl=60)

    assert {(one.kind, one.job) for one in await client.admin.sweep(age=0)} == {
        (Inconsistency.LEFTOVER_MESSAGE, job.id) for job in jobs
    }
    assert await on_queue(client) == []


async def test_a_message_that_a_replay_needs_is_stored_again(
    app: App, client: Client, working: Working, runs: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await client.task("count").options(delay=4).submit()
    broker = await client.broker()
    reply = await broker.reads.last(
        broker.subjects.streams.scheduled(READY), broker.subjects.scheduled(READY, job.id)
    )
    assert reply is not None
    await fail(client, envelope.decode(reply.headers, reply.payload, id=job.id))
    remove = broker.jetstream.delete_message

    async def remove_late(stream: str, sequence: int) -> bool:
        await broker.dead_letters.retry(job.id)  # this finds a message of the job that is already stored
        return await remove(stream, sequence)

    monkeypatch.setattr(broker.jetstream, "delete_message", remove_late)
    assert repair_summary(await client.admin.sweep(age=0)) == [(Inconsistency.LEFTOVER_MESSAGE, job.id, True)]
    async with working():
        assert await job.result(60) == 1


async def test_the_message_of_a_failed_job_is_removed_and_its_dead_letter_stays(client: Client) -> None:
    job = await client.task("any").options(priority="low", tags=["x"]).submit(1)
    order = await queued_job(client, job.id)
    await fail(client, replace(order, priority="low"))

    assert repair_summary(await client.admin.sweep(age=0)) == [(Inconsistency.LEFTOVER_MESSAGE, job.id, True)]
    dead_letter = await client.dead_letters.get(job.id)
    assert dead_letter.job is not None
    assert (dead_letter.reason, dead_letter.error, dead_letter.job.arguments) == (
        "error",
        "ValueError: no",
        order.arguments,
    )
    assert dead_letter.job.priority == "low"
    assert await on_queue(client) == []


async def test_a_purged_dead_letter_is_not_written_again(
    app: App, client: Client, working: Working, until: Until
) -> None:
    @app.task
    async def never() -> None:
        raise Reject("no")

    async with working():
        job = await never.submit()
        with pytest.raises(JobFailed):
            await job.result(60)

        async def has_dead_letter() -> bool:
            return bool(await client.dead_letters.list()) and not await on_queue(client)

        await until(has_dead_letter)
    await client.dead_letters.purge()

    assert await client.admin.sweep(age=0) == []
    assert await client.dead_letters.list() == []


async def test_jobs_without_a_record_wait_and_are_left_alone(
    client: Client, working: Working, runs: Counter[str]
) -> None:
    now = await client.task("count").options(tags=["x"]).submit()
    later = await client.task("count").options(delay=60).submit()
    keyed = await client.task("count").options(key="k", per_key=1).submit()
    broker = await client.broker()

    swept = await client.admin.sweep(age=0)

    assert [one.kind for one in swept] == [Inconsistency.STALLED_KEY_GROUP]  # no worker has admitted it yet
    assert [await broker.records.last(job.id) for job in (now, later, keyed)] == [None, None, None]
    listed = [await job.status() for job in (now, later)]
    assert [(one.state, tuple(one.tags)) for one in listed] == [("queued", ("x",)), ("scheduled", ())]
    assert (await later.status()).due is not None
    async with working():
        assert [await job.result(60) for job in (now, keyed)] == [1, 1]


async def test_jobs_acknowledged_right_before_the_server_died_are_listed(
    own_server: EmbeddedServer, namespace: str, until: Until
) -> None:
    async with App(own_server.url, namespace=namespace) as app:
        client = app.client
        await client.admin.provision()
        broker = await client.broker()
        jobs = [
            await client.task("count").submit(),
            await client.task("count").options(delay=600).submit(),
            await client.task("count").options(key="k", per_key=1).submit(),
        ]
        own_server.kill()
        own_server.restart()
        await until(lambda: broker.wire.connected, 30)

        wanted = {jobs[0].id: "queued", jobs[1].id: "scheduled", jobs[2].id: "queued"}
        assert {job.id: (await job.status()).state for job in jobs} == wanted
        assert {job.id: job.state for job in await client.jobs.list()} == wanted


async def test_an_interrupted_replay_is_completed(
    app: App, client: Client, working: Working, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = asyncio.Event()

    @app.task
    async def picky() -> str:
        if not good.is_set():
            raise Reject("no")
        return "yes"

    async with working():
        job = await picky.submit()
        with pytest.raises(JobFailed):
            await job.result(60)

        async def has_dead_letter() -> bool:
            return bool(await client.dead_letters.list()) and not await on_queue(client)

        await until(has_dead_letter)
    broker = await client.broker()
    with monkeypatch.context() as patch:
        patch.setattr(broker.job_writer, "schedule", dying)
        with pytest.raises(MemoryError):
            await job.retry()
    assert (await job.status()).state == "retrying"

    assert repair_summary(await client.admin.sweep(age=0)) == [(Inconsistency.INCOMPLETE_RETRY, job.id, True)]
    good.set()
    async with working():
        assert await job.result(60) == "yes"
    assert await client.dead_letters.list() == []


async def test_the_dead_letter_of_a_replayed_job_is_removed(
    client: Client, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await client.task("any").submit()
    broker = await client.broker()
    await fail(client, await queued_job(client, job.id))
    await broker.jetstream.purge(
        broker.subjects.streams.ready(READY), broker.subjects.ready(READY, "*", job.id)
    )
    with monkeypatch.context() as patch:
        patch.setattr(broker.jetstream, "purge", dying)
        with pytest.raises(MemoryError):
            await job.retry()
    await until_recorded(client, until, job.id, "retrying")

    assert repair_summary(await client.admin.sweep(age=0)) == [
        (Inconsistency.STALE_DEAD_LETTER, job.id, True)
    ]
    assert await client.dead_letters.list() == []
    assert set(await on_queue(client)) == {job.id}  # while a message moves, it is in both places for a moment


async def test_the_id_of_a_job_that_was_never_stored_is_released(client: Client) -> None:
    used = await client.task("any").options(id="used").submit()
    broker = await client.broker()
    bucket, key = broker.subjects.streams.bucket("ids"), broker.subjects.key("ids", "id.left")
    await broker.wire.publish(key, json.dumps({"queue": READY, "stored": False}).encode())
    await broker.wire.publish(broker.subjects.key("ids", "id.odd"), b"{")

    assert repair_summary(await client.admin.sweep(age=0)) == [(Inconsistency.UNUSED_ID, "left", True)]
    left = await broker.reads.last(bucket, key)
    assert left is None or not left.payload
    assert (await client.task("any").options(id="used").submit()).duplicate
    assert await on_queue(client) == [used.id]


async def test_a_started_job_without_a_message_is_reported_and_not_repaired(client: Client) -> None:
    job = await client.task("any").submit()
    broker = await client.broker()
    await broker.records.write(READY, job.id, Revision("running", "any", attempt=1, message=1), expect=0)
    await broker.jetstream.purge(
        broker.subjects.streams.ready(READY), broker.subjects.ready(READY, "*", job.id)
    )

    assert repair_summary(await client.admin.sweep(age=0)) == [(Inconsistency.MISSING_MESSAGE, job.id, False)]
    assert (await job.status()).state == "running"


async def test_a_worker_creates_a_consumer_that_was_removed(
    app: App, client: Client, working: Working, runs: Counter[str]
) -> None:
    await client.admin.provision()
    broker = await client.broker()
    async with working(sweep=0.2):
        await broker.wire.api(f"CONSUMER.DELETE.{broker.subjects.streams.ready(READY)}.normal")
        assert await (await client.task("count").submit()).result(60) == 1


# -- entries that a sweep skips ------------------------------------------------------------------------------


async def test_a_sweep_ignores_recent_messages(client: Client) -> None:
    await client.task("any").submit()
    await make_undeliverable(client)

    assert await client.admin.sweep() == []
    assert len(await client.admin.sweep(age=0, dry_run=True)) == 1


async def test_a_dry_run_of_a_sweep_repairs_nothing(client: Client) -> None:
    job = await client.task("any").submit()
    await make_undeliverable(client)

    for _ in range(2):
        assert repair_summary(await client.admin.sweep(age=0, dry_run=True)) == [
            (Inconsistency.UNDELIVERABLE, job.id, False)
        ]


async def test_sweeps_do_not_disturb_work_in_progress(
    app: App, client: Client, working: Working, until: Until
) -> None:
    runs: Counter[str] = Counter()

    @app.task(retries=2, backoff=[0.1])
    async def odd(ctx: Context, number: int) -> int:
        runs[ctx.id] += 1
        if number % 3 == 1 and ctx.attempt == 1:
            raise Retry("once more")
        if number % 3 == 2:
            raise Reject("never")
        return number

    enough = asyncio.Event()

    async def sweep_on() -> None:
        while not enough.is_set():
            await client.admin.sweep(age=0)

    sweeping = asyncio.create_task(sweep_on())
    async with working(concurrency=20):
        jobs = [await odd.submit(number) for number in range(120)]
        records = [await job.wait(30) for job in jobs]
        enough.set()
        await sweeping

        async def nothing_left() -> bool:
            return not await on_queue(client)

        await until(nothing_left)

    assert [record.state for record in records] == ["succeeded", "succeeded", "failed"] * 40
    assert {dead_letter.id for dead_letter in await client.dead_letters.list()} == {
        job.id for job in jobs[2::3]
    }
    assert [runs[job.id] for job in jobs] == [1, 2, 1] * 40
    assert await client.admin.sweep(age=0) == []


# -- one sweep at a time -------------------------------------------------------------------------------------


async def make_inconsistencies(client: Client) -> set[str]:
    """Twenty undeliverable messages, and twenty messages of finished jobs."""
    broker = await client.broker()
    undeliverable = [await client.task("count").submit() for _ in range(20)]
    await make_undeliverable(client)
    ended = [await client.task("count").options(priority="low").submit() for _ in range(20)]
    for job in ended:
        await broker.records.write(READY, job.id, Revision("cancelled", "count"), expect=0, ttl=600)
    return {job.id for job in (*undeliverable, *ended)}


async def test_two_concurrent_sweeps_repair_each_inconsistency_once(
    app: App, client: Client, working: Working, runs: Counter[str]
) -> None:
    affected = await make_inconsistencies(client)
    async with Client(client.login, namespace=client.namespace) as other:
        both = await asyncio.gather(client.admin.sweep(age=0), other.admin.sweep(age=0))

    assert Counter(one.job for swept in both for one in swept if one.repaired) == dict.fromkeys(affected, 1)
    assert len(await on_queue(client)) == 20
    async with working():
        for id in await on_queue(client):
            assert await client.jobs.handle(id).result(60) == 1
    assert set(runs.values()) == {1}


async def test_two_sweeps_that_both_assume_to_hold_the_lease_repeat_no_repair(
    app: App, client: Client, working: Working, runs: Counter[str]
) -> None:
    affected = await make_inconsistencies(client)
    broker = await client.broker()
    found = await broker.sweeper.scan(age=0)
    assert {one.job for one in found} == affected
    async with Client(client.login, namespace=client.namespace) as other:
        sweeps = [one.sweeper for one in (broker, await other.broker())]
        repaired = await asyncio.gather(
            *(one._repair(inconsistency) for inconsistency in found for one in sweeps)
        )

    assert Counter(one.job for one in repaired if one.repaired) == dict.fromkeys(affected, 1)
    assert len(await on_queue(client)) == 20
    async with working():
        for id in await on_queue(client):
            assert await client.jobs.handle(id).result(60) == 1
    assert set(runs.values()) == {1}


async def test_a_sweep_whose_lease_was_reclaimed_stops(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_inconsistencies(client)
    broker = await client.broker()
    repair, repaired = Repairs.repair, []

    async def slowly(repairs: Repairs, found: Any) -> bool:
        repaired.append(found)
        # As if this process had been suspended: the key has expired, and another process has created it.
        await broker.jetstream.purge(
            broker.subjects.streams.bucket("workers"), broker.subjects.key("workers", "lock.sweep")
        )
        assert await LeasedKey(broker.namespace, SWEEP_KEY, "another", LEASE_SECONDS).acquire()
        return await repair(repairs, found)

    monkeypatch.setattr(Repairs, "repair", slowly)
    with pytest.raises(BrokerUnavailable, match="lost its lease"):
        await client.admin.sweep(age=0)
    assert len(repaired) == 1
    monkeypatch.setattr(Repairs, "repair", repair)
    with pytest.raises(BrokerUnavailable, match="another is sweeping"):
        await broker.sweeper.sweep("third", age=0, wait_seconds=0)


async def test_a_sweep_lease_and_a_worker_that_outlived_their_ttl_are_ignored(client: Client) -> None:
    await client.admin.provision()
    broker = await client.broker()
    broker.presence.beat("gone", {"worker": "gone"})
    assert await LeasedKey(broker.namespace, SWEEP_KEY, "gone", LEASE_SECONDS).acquire()
    assert len(await broker.presence.alive()) == 1
    assert not await LeasedKey(broker.namespace, SWEEP_KEY, "next", LEASE_SECONDS).acquire()

    broker.wire.clock.offset += LEASE_SECONDS + OUTLIVED_SECONDS + 1

    assert await broker.presence.alive() == []
    assert await LeasedKey(broker.namespace, SWEEP_KEY, "next", LEASE_SECONDS).acquire()


async def test_workers_alternate_sweeps_and_wait_between_them(client: Client) -> None:
    await make_inconsistencies(client)
    broker = await client.broker()
    results = await asyncio.gather(
        *(broker.sweeper.sweep_slice(f"w{number}", interval=60, age=0) for number in range(5))
    )

    assert sorted(len(found) for found in results if found is not None) == [40]
    last = await broker.sweeper.last()
    assert last is not None
    assert (last.found, last.repaired) == (
        {"undeliverable": 20, "leftover_message": 20},
        {"undeliverable": 20, "leftover_message": 20},
    )
    assert last.scanned >= 40


async def test_a_sweep_of_everything_reads_in_parts(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    affected = await make_inconsistencies(client)
    monkeypatch.setattr("jsq.broker.maintenance.sweeper.SCAN_SLICE_MESSAGES", 8)

    assert Counter(one.job for one in await client.admin.sweep(age=0, dry_run=True)) == dict.fromkeys(
        affected, 1
    )
    assert Counter(one.job for one in await client.admin.sweep(age=0)) == dict.fromkeys(affected, 1)
    assert await client.admin.sweep(age=0) == []


async def test_a_sweep_continues_where_the_last_one_stopped(
    client: Client, monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    affected = await make_inconsistencies(client)
    monkeypatch.setattr("jsq.broker.maintenance.sweeper.SCAN_SLICE_MESSAGES", 8)
    broker = await client.broker()
    parts: list[int] = []
    repaired: set[str] = set()

    async def all_repaired() -> bool:
        swept = await broker.sweeper.sweep_slice("w", interval=0, age=0)
        if swept is not None:
            parts.append(len(swept))
            repaired.update(one.job for one in swept)
        return repaired == affected

    await until(all_repaired, 30)
    assert max(parts) <= 8
    assert len(parts) >= 5


@pytest.mark.proof
async def test_a_sweep_does_not_block_the_event_loop(client: Client) -> None:
    """Measured in processor time, which does not depend on the load of the machine."""
    task = client.task("note")
    await task.submit_many([(number,) for number in range(5_000)])
    await task.options(delay=600).submit_many([(number,) for number in range(1_000)])
    broker = await client.broker()
    durations: list[float] = []

    async def measure() -> None:
        while True:
            start_time = time.thread_time()
            await asyncio.sleep(0)
            durations.append(time.thread_time() - start_time)

    measuring = asyncio.create_task(measure())
    try:
        await broker.sweeper.scan(age=0, most=5_000)
    finally:
        measuring.cancel()

    assert max(durations) < 0.07


async def test_a_worker_sweeps_automatically(
    app: App,
    client: Client,
    working: Working,
    until: Until,
    runs: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Sweeper.sweep_slice, "__kwdefaults__", {"age": 0.0})
    jobs = [await client.task("count").submit() for _ in range(3)]
    await make_undeliverable(client)
    async with working(sweep=1):
        assert [await job.result(60) for job in jobs] == [1, 1, 1]


async def test_the_doctor_reports_inconsistencies(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sweeper.scan, "__kwdefaults__", {"age": 0.0, "most": None})
    job = await client.task("any").submit()
    broker = await client.broker()
    assert [f.severity for f in await client.admin.doctor() if f.subject == "sweeps"] == ["ok"]
    await make_undeliverable(client)
    later = await client.task("any").options(delay=60).submit()
    await broker.records.write(READY, later.id, Revision("cancelled", "any"), expect=0, ttl=600)

    found = {f.message.partition(":")[0]: f for f in await client.admin.doctor() if f.subject == "sweeps"}

    assert {kind: f.severity for kind, f in found.items()} == {
        "1 of undeliverable": "error",
        "1 of leftover_message": "warning",
    }
    assert "`jsq sweep` does so now (there was no sweep yet)" in found["1 of undeliverable"].message
    await client.admin.sweep(age=0)
    [well] = [f for f in await client.admin.doctor() if f.subject == "sweeps"]
    assert well.severity == "ok"
    assert "no inconsistencies; the last sweep ended at 2" in well.message
    assert (await job.status()).state not in FINAL_STATES


async def test_a_worker_that_may_not_sweep_logs_it_once_and_runs_jobs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, until: Until
) -> None:
    conf = (
        f"jetstream {{ store_dir: '{tmp_path}/js' }}\n"
        "authorization { users: [ { user: ann, password: secret }, { user: bob, password: secret, "
        'permissions: { publish: { deny: ["$JS.API.STREAM.LIST", "$JS.API.STREAM.MSG.DELETE.>"] } } } ] }'
    )
    with nats_server(tmp_path, conf) as address:
        async with Client(f"nats://ann:secret@{address}") as ann:
            await ann.admin.provision()
        async with App(f"nats://bob:secret@{address}") as app:

            @app.task
            async def fine() -> int:
                return 1

            worker = Worker(app, settings=WorkerSettings(sweep=0.2))
            running = asyncio.create_task(worker.run())
            await until(lambda: "sweep not allowed" in caplog.messages)
            assert await (await fine.submit()).result(60) == 1
            worker.stop()
            await running
    assert caplog.messages.count("sweep not allowed") == 1
