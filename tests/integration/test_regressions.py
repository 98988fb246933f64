"""Faults of the past: events between two steps of an operation, and repeated operations."""

import asyncio
from dataclasses import replace
from datetime import datetime

import pytest

from jsq import App, Client, Context, JobCancelled, JobFailed, QueueFull, Reject, Retry
from jsq.broker.delivery.delivery import read_delivery
from jsq.codec.revisions import encode
from jsq.model.job import Job
from jsq.model.revision import Revision
from jsq.server import EmbeddedServer
from jsq.transport.replies import Reply
from jsq.worker.attempt import Attempt
from tests.helpers.conditions import Until
from tests.helpers.jobs import queued_job
from tests.helpers.workers import Working


async def has_dead_letters(client: Client, number: int) -> bool:
    return len(await client.dead_letters.list()) == number


async def test_a_dead_letter_that_would_be_too_large_is_truncated(
    app: App, client: Client, working: Working, until: Until
) -> None:
    @app.task
    async def picky(text: str) -> None:
        raise Reject("é" * 1900)

    async with working():
        job = await picky.submit("x" * 1_046_000)
        with pytest.raises(JobFailed):
            await job.result(60)
        await until(lambda: has_dead_letters(client, 1))
        assert (await client.dead_letters.get(job.id)).error.startswith("Reject: éé")
        await until(lambda: settled(client))


async def settled(client: Client) -> bool:
    [stats] = await client.queues.stats("default")
    return stats.running == 0 and sum(stats.waiting.values()) == 0


async def test_a_refused_submit_with_its_own_id_can_be_repeated(
    app: App, client: Client, working: Working
) -> None:
    @app.task(queue="small")
    async def take(x: int) -> int:
        return x

    app.queue("small", max_jobs=1)
    await client.admin.provision(app.declared)
    first = await take.submit(1)
    with pytest.raises(QueueFull):
        await take.options(id="mine").submit(2)
    async with working():
        assert await first.result(60) == 1
        again = await take.options(id="mine").submit(2)
        assert not again.duplicate
        assert await again.result(60) == 2


@pytest.mark.parametrize("stored", [False, True])
async def test_an_id_is_in_use_once_its_job_was_stored_though_the_submitter_died(
    client: Client, stored: bool
) -> None:
    await client.admin.provision()
    jobs = (await client.broker()).job_writer
    job = Job(id="mine", task="any", queue="default")
    await jobs._claim(job, "60")
    if stored:
        await jobs.submit(job)

    again = await client.task("any").options(id="mine").submit()
    once_more = await client.task("any").options(id="mine").submit()

    assert (again.duplicate, once_more.duplicate) == (stored, True)
    [stats] = await client.queues.stats("default")
    assert sum(stats.waiting.values()) == 1


async def test_a_refused_submit_leaves_no_trace(app: App, client: Client, until: Until) -> None:
    app.queue("small", max_jobs=1)
    await client.admin.provision(app.declared)
    stored = await client.task("any").options(queue="small").submit()
    for _ in range(5):
        with pytest.raises(QueueFull):
            await client.task("any").options(queue="small").submit()

    async def one() -> bool:
        return [record.id for record in await client.jobs.list()] == [stored.id]

    await until(one)


async def test_a_replay_before_the_old_message_is_settled_loses_no_job(
    app: App, client: Client, working: Working, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []

    @app.task(retries=0)
    async def once_bad() -> str:
        runs.append(1)
        if len(runs) == 1:
            raise RuntimeError("first")
        return "good"

    unsettled: list[Attempt] = []

    def keep(attempt: Attempt) -> None:
        unsettled.append(attempt)

    monkeypatch.setattr(Attempt, "ack", keep)
    async with working():
        job = await once_bad.submit()
        await until(lambda: has_dead_letters(client, 1))
        await until(lambda: unsettled)
        await job.retry()
        monkeypatch.undo()
        for attempt in unsettled:
            attempt.ack()
        assert await job.result(60) == "good"
        await until(lambda: has_dead_letters(client, 0))


async def test_a_replay_removes_only_the_dead_letter_it_replays(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await client.task("any").submit()
    broker = await client.broker()
    order = await queued_job(client, job.id)

    async def fail(error: str, expect: int) -> None:
        failed = Revision("failed", "any", reason="error", error=error, token=expect)
        dead_letter = broker.dead_letters.message(order, failed)
        await broker.records.put_with(job.queue, job.id, encode(failed), [dead_letter], expect=expect)

    await fail("old", 0)
    schedule = broker.job_writer.schedule

    async def and_fail_again(job: Job, due: datetime | None) -> bool:
        made = await schedule(job, due)
        await fail("new", job.previous_sequence)
        return made

    monkeypatch.setattr(broker.job_writer, "schedule", and_fail_again)  # a job that is faster than the test
    await client.dead_letters.retry(job.id)
    assert [dead_letter.error for dead_letter in await client.dead_letters.list()] == ["new"]


async def test_a_running_job_with_a_second_message_is_still_listed(
    app: App, client: Client, working: Working, until: Until
) -> None:
    has_started = asyncio.Event()
    runs: list[str] = []

    @app.task
    async def long(ctx: Context) -> None:
        runs.append(ctx.id)
        has_started.set()
        await asyncio.sleep(60)

    broker = await client.broker()
    async with working() as worker:
        job = await long.submit()
        await asyncio.wait_for(has_started.wait(), 5)
        again = broker.subjects.ready("default", "normal", job.id)
        await broker.wire.publish(again, b"{}", {"Jsq-Job": '{"v":1,"task":"long"}'})
        await until(lambda: worker.dispatcher.done == 1)
        assert [attempt.job.id for attempt in worker.dispatcher.attempts.values()] == [job.id]
        assert (await job.cancel()).state == "cancelled"
        with pytest.raises(JobCancelled):
            await job.result(60)
    assert runs == [job.id]


async def test_a_message_redelivered_to_the_worker_that_runs_it_is_not_run_twice(
    app: App, working: Working, until: Until
) -> None:
    go = asyncio.Event()
    runs: list[int] = []

    @app.task
    async def long() -> int:
        runs.append(1)
        await go.wait()
        return len(runs)

    async with working() as worker:
        job = await long.submit()
        await until(lambda: runs)
        [attempt] = worker.dispatcher.attempts.values()
        # As a server does that was killed before it had stored that it delivered this message.
        worker.dispatcher.take(replace(attempt.delivery, reply=f"{attempt.delivery.reply}0"))
        assert list(worker.dispatcher.attempts.values()) == [attempt]
        assert worker.dispatcher.waiting.count == 0
        go.set()
        assert await job.result(60) == 1


async def test_a_cancel_overtaken_by_a_start_is_sent_to_the_worker(
    app: App, client: Client, working: Working
) -> None:
    job = await client.task("any").submit()
    broker = await client.broker()
    seen = await broker.job_reader.find(job.id)
    assert seen is not None
    await broker.records.write(job.queue, job.id, Revision("running", "any", attempt=1), expect=0)
    assert not await broker.cancel.cancel_waiting(seen)
    assert (await job.status()).state == "running"


async def test_a_second_cancel_removes_the_message_that_the_first_left(app: App, client: Client) -> None:
    job = await client.task("any").options(delay=60).submit()
    broker = await client.broker()
    await broker.records.write(job.queue, job.id, Revision("cancelled", "any"), expect=0, ttl=60)
    assert (await client.queues.stats("default"))[0].scheduled == 1
    assert (await job.cancel()).state == "cancelled"
    assert (await client.queues.stats("default"))[0].scheduled == 0


async def test_an_attempt_cancelled_before_its_function_started_runs_nothing(
    app: App, client: Client, working: Working, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []

    @app.task
    def plain() -> None:
        runs.append(1)

    perform = Attempt.perform

    async def cancelled_first(self: Attempt) -> object:
        asyncio.get_running_loop().create_task(cancel_all(client))
        await until(lambda: self.function.stopping is not None)
        return await perform(self)

    async def cancel_all(client: Client) -> None:
        await client.jobs.handle(job.id).cancel()

    monkeypatch.setattr(Attempt, "perform", cancelled_first)
    job = await plain.submit()
    async with working():
        with pytest.raises(JobCancelled):
            await job.result(60)
    assert runs == []


async def test_a_signal_with_an_invalid_delay_is_an_ordinary_retry(app: App, working: Working) -> None:
    class Later(Retry):
        def __init__(self) -> None:
            self.delay = float("inf")

    @app.task(retries=1, backoff="none")
    async def odd(ctx: Context) -> int:
        if ctx.attempt == 1:
            raise Later
        return ctx.attempt

    async with working():
        job = await odd.submit()
        assert await job.result(60) == 2
        assert (await job.status()).crashes == 0


async def test_a_task_that_cancels_itself_has_failed(app: App, working: Working) -> None:
    @app.task(retries=0)
    async def suicidal() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1)

    async with working():
        with pytest.raises(JobFailed, match="CancelledError") as caught:
            await (await suicidal.submit()).result(60)
    assert caught.value.reason == "error"


def test_a_client_used_by_many_successive_event_loops_keeps_one_connection(
    server: EmbeddedServer, namespace: str
) -> None:
    client = Client(server.url, namespace=namespace)

    async def close_all() -> None:
        await client.connect()
        await client.close()

    for _ in range(5):
        asyncio.run(tidily(client))
    assert len(client.connection._brokers) <= 1
    asyncio.run(close_all())


async def tidily(client: Client) -> None:
    """Submit, and close the socket but not the client, as a script does that just ends."""
    await client.task("any").submit()
    await (await client.broker()).wire.close()


async def test_one_of_two_conflicting_writes_in_a_group_commit_succeeds(client: Client) -> None:
    broker = await client.broker()
    await broker.streams.ensure_shared()
    broker.records.group_writes("always")
    states = ("running", "cancelled")
    for number in range(20):
        writes = [
            broker.records.write("default", f"j{number}", Revision(state, "any"), expect=0)
            for state in states
        ]
        ahead = broker.records.write("default", f"ahead{number}", Revision("running", "any"), expect=0)
        _, *both = await asyncio.gather(ahead, *writes, return_exceptions=True)
        assert sorted(type(found).__name__ for found in both) == ["WrongSequence", "int"]
        assert [one.state for one in await broker.records.history(f"j{number}")] == ["running"]


async def test_a_blocked_event_loop_is_logged_while_a_delivery_is_unread(
    client: Client, working: Working, caplog: pytest.LogCaptureFixture
) -> None:
    async with working() as worker:
        message = Reply("t.q.default.normal.j1", "$JS.ACK.S.normal.1.7.7.1700000000000000000.0", b"", b"")
        worker.dispatcher.attempts["unread"] = worker.dispatcher.attempt(read_delivery(message, 30))
        worker.housekeeping.measure(5.0)
        del worker.dispatcher.attempts["unread"]

    assert "event loop blocked" in caplog.text


async def test_a_start_is_not_judged_by_a_replica_that_is_behind(
    app: App, client: Client, working: Working, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    @app.task
    async def note(ctx: Context) -> None:
        ran.append(ctx.id)

    job = await note.submit()
    order, broker = await queued_job(client, job.id), await client.broker()
    async with working():
        await job.result(60)
    started, _ = await broker.records.history(job.id)
    stale = await broker.reads.get(broker.subjects.streams.records, started.sequence)
    last, stale_reads = broker.reads.last, []

    async def behind(stream: str, subject: str, *, consistent: bool = False) -> Reply | None:
        if consistent or subject != broker.subjects.record(job.queue, job.id):
            return await last(stream, subject, consistent=consistent)
        stale_reads.append(subject)
        return stale  # as long as the replica does not have the end

    monkeypatch.setattr(broker.reads, "last", behind)
    await broker.job_writer.enqueue(order)  # the message once more, as after a lost acknowledgement
    async with working():
        await until(lambda: settled(client))

    assert stale_reads
    assert [event.state for event in await broker.records.history(job.id)] == ["running", "succeeded"]
    assert ran == [job.id]
