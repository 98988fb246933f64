"""Jobs are found by their records and arguments, and operations apply to all matching jobs."""

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jsq import App, BadOption, Client, JobNotFound, Reject, WrongState
from jsq.broker.operations import query as choosing
from jsq.broker.operations.cancel import CancelCount
from jsq.model.revision import Revision
from tests.helpers.conditions import Until
from tests.helpers.workers import Working

WAIT = 60.0
HOUR = 3600.0


def ids(jobs: Any) -> list[str]:
    return sorted(job.id for job in jobs)


@pytest.fixture
async def tasks(app: App, client: Client) -> App:
    await client.admin.provision()  # so that a first event is not late

    @app.task
    async def add(a: int, b: int = 0) -> int:
        return a + b

    @app.task(retries=0)
    async def picky(user: dict[str, int]) -> None:
        raise Reject("no")

    return app


async def test_jobs_are_found_by_several_criteria_at_once(client: Client, tasks: App, until: Until) -> None:
    one = await client.task("add").options(tags=["x", "y"]).submit(1)
    two = await client.task("sub").options(tags=["x"], delay=HOUR).submit(2)
    three = await client.task("add").options(queue="other", headers={"Trace": "7"}).submit(3)
    await until(lambda: seen(client, 3))

    async def found(**which: Any) -> list[str]:
        return ids(await client.jobs.list(**which))

    assert await found(state=["queued", "scheduled"]) == ids([one, two, three])
    assert await found(state="scheduled") == [two.id]
    assert await found(tag=["x", "y"]) == [one.id]
    assert await found(task=["sub", "mul"]) == [two.id]
    assert await found(queue="other", task="add") == [three.id]
    assert await found(since=datetime.now(UTC) - timedelta(hours=1)) == ids([one, two, three])
    assert await found(until=datetime.now(UTC) - timedelta(hours=1)) == []
    assert (await client.jobs.list(queue="other"))[0].headers == {"Trace": "7"}


async def seen(client: Client, count: int) -> bool:
    return len(await client.jobs.list(limit=None)) == count


async def test_headers_and_tags_stay_in_the_record_after_the_end(tasks: App, working: Working) -> None:
    job = await tasks.tasks["add"].options(headers={"Trace": "7", "Who": "é"}, tags=["x"]).submit(1, 2)
    async with working():
        await job.result(WAIT)
    record = await job.status()
    assert (record.state, record.headers, record.tags) == ("succeeded", {"Trace": "7", "Who": "é"}, ("x",))


async def test_jobs_are_found_by_their_arguments_in_every_state(
    client: Client, tasks: App, working: Working, until: Until
) -> None:
    add, picky = tasks.tasks["add"], tasks.tasks["picky"]
    done = await add.submit(7)
    failed = [await picky.submit({"id": n}) for n in (1, 2)]
    async with working():
        for job in (done, *failed):
            await job.wait(WAIT)
        await until(lambda: has_dead_letters(client, 2))
    waiting = [await add.submit(n) for n in (7, 8)]
    later = await add.options(delay=HOUR).submit(7)
    by_name = await client.task("add").submit(7)
    await until(lambda: seen(client, 7))

    assert ids(await client.jobs.list(arg={"a": 7})) == ids([done, waiting[0], later])
    assert ids(await client.jobs.list_open(arg={"a": 7})) == ids([waiting[0], later])
    assert ids(await client.jobs.list(arg={"0": 7})) == [by_name.id]
    assert ids(await client.jobs.list(arg={"user.id": 2}, limit=None)) == [failed[1].id]
    assert ids(await client.jobs.list(arg={"user.id": 2, "user.x": 1})) == []
    assert await client.jobs.cancel_many(arg={"a": 7}, state="queued") == CancelCount(cancelled=1)
    assert (await waiting[0].status()).state == "cancelled"
    assert (await later.status()).state == "scheduled"


async def has_dead_letters(client: Client, count: int) -> bool:
    return len(await client.dead_letters.list()) == count


async def test_the_newest_jobs_are_found_without_reading_all(
    client: Client, tasks: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [(n,) for n in range(3_000)]
    jobs = await client.task("add").options(tags=["many"]).submit_many(many)
    rare = [await client.task("add").options(tags=["rare"]).submit(n) for n in range(3)]
    broker, read = await client.broker(), []
    page = broker.reads.page

    async def counted(*args: Any, **named: Any) -> Any:
        found = await page(*args, **named)
        read.append(len(found[0]))
        return found

    monkeypatch.setattr(broker.reads, "page", counted)
    newest = await client.jobs.list(limit=5)
    assert [one.id for one in newest[-3:]] == [job.id for job in rare]
    assert sum(read) <= 2 * choosing.FIRST_SPAN
    assert [one.id for one in await client.jobs.list(tag="rare", limit=2)] == [job.id for job in rare[1:]]
    assert len(await client.jobs.list(tag="many", limit=2_500)) == 2_500
    assert ids(await client.jobs.list(tag="many", limit=10_000)) == ids(jobs)
    assert await client.jobs.list(queue="none", limit=5) == []


async def test_a_job_that_changes_during_a_query_is_found_once_in_its_current_state(
    client: Client, tasks: App, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [await client.task("add").submit(n) for n in range(4)]
    await until(lambda: seen(client, 4))
    broker = await client.broker()
    page, begins = broker.reads.page, jobs[:2]

    async def changing(*args: Any, **named: Any) -> Any:
        found = await page(*args, **named)
        event = Revision("running", "add", 1)
        while begins:
            await broker.records.write("default", begins.pop(0).id, event, expect=0)
        return found

    monkeypatch.setattr(broker.reads, "page", changing)
    found = await client.jobs.list()
    assert [one.id for one in found] == [job.id for job in (*jobs[2:], *jobs[:2])]
    assert [one.state for one in found] == ["queued", "queued", "running", "running"]


async def test_failed_jobs_are_retried_by_filter(
    client: Client, tasks: App, working: Working, until: Until
) -> None:
    picky = tasks.tasks["picky"]
    failed = [await picky.options(tags=["bulk"]).submit({"id": n}) for n in range(4)]
    other = await picky.submit({"id": 1})
    async with working():
        for job in (*failed, other):
            await job.wait(WAIT)
        await until(lambda: has_dead_letters(client, 5))

    assert await client.jobs.retry_many(tag="bulk", arg={"user.id": 1}) == 1
    assert (await failed[1].status()).state == "retrying"
    assert await client.jobs.retry_many(tag="bulk") == 3
    assert await client.jobs.retry_many(tag="bulk") == 0
    assert (await other.status()).state == "failed"
    with pytest.raises(BadOption, match="only failed jobs can be tried again"):
        await client.jobs.retry_many(state="running")
    with pytest.raises(BadOption, match="the filter of jobs"):
        await client.jobs.retry_many()


async def test_scheduled_jobs_are_promoted_by_filter(
    client: Client, tasks: App, working: Working, until: Until
) -> None:
    add = tasks.tasks["add"]
    scheduled = [await add.options(delay=HOUR, tags=["held"]).submit(n) for n in range(5)]
    untagged = await add.options(delay=HOUR).submit(1)
    async with working():
        assert await client.jobs.promote_many(tag="held") == 5
        assert [await job.result(WAIT) for job in scheduled] == list(range(5))
    assert (await untagged.status()).state == "scheduled"
    with pytest.raises(BadOption, match="only those are due later"):
        await client.jobs.promote_many(state="running")


async def test_a_finished_job_is_removed_and_its_id_is_free(
    client: Client, tasks: App, working: Working, until: Until
) -> None:
    add, picky = tasks.tasks["add"], tasks.tasks["picky"]
    done = await add.options(id="own", tags=["old"]).submit(1)
    failed = await picky.options(tags=["old"]).submit({"id": 1})
    async with working():
        await done.wait(WAIT)
        await failed.wait(WAIT)
        await until(lambda: has_dead_letters(client, 1))
    waiting = await add.options(tags=["old"]).submit(1)
    gone = await add.options(expires=0.05, tags=["old"]).submit(1)
    assert (await gone.wait(WAIT)).state == "expired"
    await until(lambda: seen(client, 4))

    with pytest.raises(WrongState, match="is queued: it cannot be removed: only a job that has ended"):
        await waiting.remove()
    with pytest.raises(JobNotFound):
        await client.jobs.handle("never").remove()
    with pytest.raises(BadOption, match="only a job that has ended can be removed"):
        await client.jobs.remove_many(state="running")
    with pytest.raises(BadOption, match="the filter of jobs"):
        await client.jobs.remove_many()

    assert await client.jobs.remove_many(tag="old") == 3

    for job in (done, failed, gone):
        with pytest.raises(JobNotFound):
            await job.status()
    broker = await client.broker()
    assert await client.dead_letters.list() == []
    assert await broker.job_reader.waiting_ids("default") == [waiting.id]
    await until(lambda: seen(client, 1))
    assert not (await add.options(id="own").submit(2)).duplicate
    async with working():
        assert await client.jobs.handle("own").result(WAIT) == 2


async def test_an_interrupted_removal_of_jobs_is_completed_when_it_is_repeated(
    client: Client, tasks: App, working: Working, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await tasks.tasks["add"].options(id="own").submit(1)
    async with working():
        await job.wait(WAIT)
    broker = await client.broker()
    purge = broker.jetstream.purge
    left = [0]

    async def breaking(*args: Any, **named: Any) -> int:
        left[0] -= 1
        if left[0] == 0:
            raise WrongState(job.id, "here", "gone on with")
        return await purge(*args, **named)

    monkeypatch.setattr(broker.jetstream, "purge", breaking)
    broken = 0
    for purges in itertools.count(1):
        left[0] = purges
        try:
            await job.remove()
            break
        except WrongState:
            broken += 1
    assert broken >= 4
    with pytest.raises(JobNotFound):
        await job.status()
    with pytest.raises(JobNotFound):
        await job.remove()
    records = broker.subjects.streams.records
    assert await broker.reads.fetch(records, f"{broker.subjects.record('default', job.id)}.>") == []
    assert await broker.reads.fetch(records, broker.subjects.record("default", job.id)) == []
    assert not (await tasks.tasks["add"].options(id="own").submit(2)).duplicate


async def test_the_limit_of_a_query_is_a_number_of_jobs(client: Client) -> None:
    with pytest.raises(BadOption, match="limit must be 1 or more"):
        await client.jobs.list(limit=0)
    assert await asyncio.wait_for(client.jobs.list(limit=1), WAIT) == []
