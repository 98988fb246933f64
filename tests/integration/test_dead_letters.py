"""Dead letters: a job is failed if and only if it has one."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jsq import App, BadArguments, BadOption, Client, JobFailed, JobNotFound, WrongState
from jsq.broker.operations.dead_letters import DeadLetter
from jsq.codec import revisions
from jsq.codec.subject_token import Token
from jsq.model.repair import Inconsistency
from jsq.transport.replies import WrongSequence
from tests.helpers.conditions import Until
from tests.helpers.workers import Working


async def test_a_replayed_job_runs_again_under_its_id_and_its_dead_letter_is_removed(
    app: App, client: Client, working: Working, until: Until
) -> None:
    broken = True

    @app.task(retries=1, backoff="none")
    async def repaired(x: int) -> int:
        if broken:
            raise RuntimeError("broken")
        return x

    async with working():
        job = await repaired.submit(3)
        with pytest.raises(JobFailed):
            await job.result(60)

        async def is_dead_lettered() -> bool:
            return len(await client.dead_letters.list(queue="default")) == 1

        await until(is_dead_lettered)
        dead_letter = await client.dead_letters.get(job.id)
        assert 'raise RuntimeError("broken")' in dead_letter.traceback
        broken = False
        await client.dead_letters.retry(job.id)
        assert await job.result(60) == 3
        assert await client.dead_letters.list() == []


async def test_a_failure_recorded_after_a_replay_leaves_no_dead_letter(
    app: App, client: Client, working: Working
) -> None:
    broken = True

    @app.task(retries=0)
    async def repaired() -> int:
        if broken:
            raise RuntimeError("broken")
        return 1

    async with working():
        job = await repaired.submit()
        with pytest.raises(JobFailed):
            await job.result(60)
        broker = await client.broker()
        failure = await broker.records.last(job.id, "default")
        [dead_letter] = await client.dead_letters.list()
        broken = False
        await client.dead_letters.retry(job.id)
        assert await job.result(60) == 1

    assert failure is not None
    assert dead_letter.job is not None
    # A worker that lost its lease before the replay records the failure of its attempt now.
    late = broker.dead_letters.message(dead_letter.job, failure.revision)
    with pytest.raises(WrongSequence):
        await broker.records.put_with(
            "default", job.id, revisions.encode(failure.revision), [late], expect=failure.revision.token
        )
    assert await client.dead_letters.list() == []
    with pytest.raises(JobNotFound):
        await client.dead_letters.get(job.id)
    assert (await job.status()).state == "succeeded"


async def test_a_replay_that_a_sweep_completes_meanwhile_succeeds(
    app: App, client: Client, working: Working, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = True

    @app.task(retries=0)
    async def repaired() -> int:
        if broken:
            raise RuntimeError("broken")
        return 1

    async with working():
        job = await repaired.submit()
        await job.wait(10)

        async def is_dead_lettered_and_settled() -> bool:
            return (
                bool(await client.dead_letters.list()) and await client.queues.count_waiting("default") == 0
            )

        await until(is_dead_lettered_and_settled)
        broken = False
        records = (await client.broker()).records
        put_with = records.put_with

        async def write_and_be_slow(*of: Any, **how: Any) -> int:
            written = await put_with(*of, **how)
            monkeypatch.setattr(records, "put_with", put_with)
            assert [repair.kind for repair in await client.admin.sweep(age=0)] == [
                Inconsistency.INCOMPLETE_RETRY
            ]
            assert await job.result(60) == 1
            return written

        monkeypatch.setattr(records, "put_with", write_and_be_slow)
        await client.dead_letters.retry(job.id)

        async def nothing_waits() -> bool:
            return await client.queues.count_waiting("default") == 0

        await until(nothing_waits)
    states = [event.state for event in await (await job._connection.broker()).records.history(job.id)]
    assert states == ["running", "failed", "retrying", "running", "succeeded"]


async def test_retry_of_a_job_equals_replay_of_its_dead_letter(
    app: App, client: Client, working: Working, until: Until
) -> None:
    @app.task(retries=0)
    async def fails() -> None:
        raise RuntimeError("always")

    async with working():
        job = await fails.submit()
        for _ in range(2):
            with pytest.raises(JobFailed):
                await job.result(60)

            async def is_dead_lettered() -> bool:
                return len(await client.dead_letters.list()) == 1

            await until(is_dead_lettered)
            record = await job.retry()
            assert record.state in ("retrying", "running", "failed")


async def test_only_a_failed_job_can_be_retried(app: App, client: Client, working: Working) -> None:
    @app.task
    async def fine() -> int:
        return 1

    waiting = await client.task("not.yet").submit()
    with pytest.raises(WrongState, match="is queued"):
        await waiting.retry()
    await waiting.cancel()
    with pytest.raises(WrongState, match="is cancelled"):
        await waiting.retry()
    async with working():
        done = await fine.submit()
        await done.result(60)
        with pytest.raises(WrongState, match="is succeeded"):
            await done.retry()
    with pytest.raises(JobNotFound):
        await client.dead_letters.retry("nobody")


@pytest.mark.parametrize(
    ("id", "headers", "payload"),
    [
        ("plain", None, b""),
        ("pickled", None, b"\x80\x04\x95\x0b"),
        ("text", {"Jsq-Job": "not json"}, b"{}"),
        ("cut", {"Jsq-Job": '{"v":1,"ta'}, b"{}"),
        ("nameless", {"Jsq-Job": '{"v":1}'}, b"{}"),
        ("os", {"Jsq-Job": '{"v":1,"task":"os system"}'}, b"{}"),
        ("list", {"Jsq-Job": "[]"}, b"{}"),
        ("again", {"Jsq-Job": '{"v":1,"task":"a"}', "Jsq-Attempts": "x"}, b"{}"),
        (Token("*"), {"Jsq-Job": '{"v":1,"task":"a"}'}, b"{}"),
        (Token("é"), {"Jsq-Job": '{"v":1,"task":"a"}'}, b"{}"),
        (Token("=0A"), {"Jsq-Job": '{"v":1,"task":"a"}'}, b"{}"),
    ],
)
async def test_a_message_that_is_not_a_job_becomes_a_dead_letter_with_its_bytes(
    app: App,
    client: Client,
    working: Working,
    until: Until,
    id: str,
    headers: dict[str, str] | None,
    payload: bytes,
) -> None:
    @app.task
    async def fine() -> int:
        return 1

    broker = await client.broker()
    async with working():
        broker.wire.send(broker.subjects.ready("default", "normal", id), payload, headers)

        async def is_dead_lettered() -> bool:
            return len(await client.dead_letters.list()) == 1

        await until(is_dead_lettered)
        [dead_letter] = await client.dead_letters.list()
        assert (dead_letter.reason, dead_letter.payload, dead_letter.job) == ("bad_envelope", payload, None)
        with pytest.raises(WrongState):
            await client.dead_letters.retry(dead_letter.id)
        assert await (await fine.submit()).result(60) == 1
        assert (await client.queues.stats("default"))[0].running == 0


async def test_arguments_that_are_not_json_fail_the_job_of_a_known_task(
    app: App, client: Client, working: Working, until: Until
) -> None:
    @app.task
    async def fine(x: int) -> int:
        return x

    broker = await client.broker()
    async with working():
        subject = broker.subjects.ready("default", "normal", "raw")
        broker.wire.send(subject, b"\x80\x04", {"Jsq-Job": '{"v":1,"task":"fine"}'})
        job = client.jobs.handle("raw")

        async def is_recorded() -> bool:
            return await broker.records.last("raw") is not None

        await until(is_recorded)
        with pytest.raises(JobFailed) as caught:
            await job.result(60)
        assert caught.value.reason == "bad_arguments"


async def test_a_job_of_a_newer_release_is_left_to_newer_workers(
    app: App, client: Client, working: Working, until: Until
) -> None:
    broker = await client.broker()
    async with working(queues=["default"]) as worker:
        subject = broker.subjects.ready("default", "normal", "newer")
        broker.wire.send(subject, b"{}", {"Jsq-Job": '{"v":2,"task":"fine"}'})
        await until(lambda: worker.dispatcher.done == 1)
        assert await client.dead_letters.list() == []

        async def is_requeued() -> bool:
            [stats] = await client.queues.stats("default")
            return (stats.scheduled, stats.running, stats.waiting["normal"]) == (1, 0, 0)

        await until(is_requeued)


async def test_a_purge_of_dead_letters_returns_their_number(
    app: App, client: Client, working: Working, until: Until
) -> None:
    @app.task(retries=0)
    async def fails() -> None:
        raise RuntimeError("always")

    async with working():
        jobs = [await fails.submit() for _ in range(3)]

        async def is_dead_lettered() -> bool:
            return len(await client.dead_letters.list()) == 3

        await until(is_dead_lettered)
    assert await client.dead_letters.purge(id=jobs[0].id) == 1
    assert await client.dead_letters.purge() == 2
    assert (await jobs[1].status()).state == "failed"


async def dying(app: App, client: Client, working: Working, until: Until) -> list[DeadLetter]:
    """Three dead letters: of two tasks, two reasons, two errors and two queues."""

    @app.task(retries=0)
    async def breaks(x: int) -> int:
        if x < 0:
            raise ValueError(f"{x} is negative")
        return x

    @app.task(retries=0, queue="mail")
    async def times() -> None:
        await asyncio.sleep(60)

    async with working(queues=["default", "mail"]):
        await (await breaks.submit(-1)).wait(10)
        await (await times.options(timeout=0.05).submit()).wait(10)
        await (await breaks.submit(-2)).wait(10)

        async def is_dead_lettered() -> bool:
            return len(await client.dead_letters.list()) == 3

        await until(is_dead_lettered)
    return await client.dead_letters.list()


async def test_dead_letters_are_selected_by_filter(
    app: App, client: Client, working: Working, until: Until
) -> None:
    dead_letters = await dying(app, client, working, until)
    last = dead_letters[-1].at

    async def count(**which: object) -> int:
        return len(await client.dead_letters.list(**which))  # type: ignore[arg-type]  # each by its name

    assert await count(task="breaks") == await count(error="ValueError") == await count(reason="error") == 2
    assert await count(queue="mail") == await count(reason="timeout") == await count(error="TaskTimeout") == 1
    assert await count(error="ValueErr") == await count(queue="mail", task="breaks") == 0
    assert (await count(since=last), await count(until=last), await count(limit=2)) == (1, 2, 2)
    with pytest.raises(BadOption, match=r"reason must .*got 'tired'"):
        await client.dead_letters.list(reason="tired")
    with pytest.raises(BadOption, match="with a time zone"):
        await client.dead_letters.list(since=datetime(2030, 1, 1))
    with pytest.raises(BadOption, match="tag must "):
        await client.dead_letters.list(tag=[])
    assert await client.dead_letters.purge(until=datetime.now(UTC) - timedelta(days=1)) == 0
    assert await client.dead_letters.purge(error="ValueError", until=last) == 1
    assert await client.dead_letters.purge(queue="mail") == 1
    assert [dead_letter.id for dead_letter in await client.dead_letters.list()] == [dead_letters[-1].id]


async def test_dead_letters_are_selected_by_the_tags_of_their_jobs(
    app: App, client: Client, working: Working, until: Until
) -> None:
    @app.task(retries=0)
    async def breaks() -> None:
        raise ValueError("no")

    plain = await breaks.submit()
    one = await breaks.options(tags=["nightly"]).submit()
    both = await breaks.options(tags=["nightly", "eu"]).submit()
    async with working():

        async def all_dead() -> bool:
            return len(await client.dead_letters.list()) == 3

        await until(all_dead)

    async def ids(**which: Any) -> set[str]:
        return {dead_letter.id for dead_letter in await client.dead_letters.list(**which)}

    assert await ids(tag="nightly") == {one.id, both.id}
    assert await ids(tag=["nightly", "eu"]) == {both.id}
    assert await ids(tag="us") == set()
    assert await client.dead_letters.purge(tag="us") == 0
    assert await client.dead_letters.retry_many(tag="eu") == 1
    assert await client.dead_letters.purge(tag="nightly") == 1
    assert await ids() == {plain.id}


async def test_matching_dead_jobs_run_again_and_keep_their_history(
    app: App, client: Client, working: Working, until: Until
) -> None:
    await dying(app, client, working, until)
    assert await client.dead_letters.retry_many(error="ValueError") == 2
    assert [dead_letter.task for dead_letter in await client.dead_letters.list()] == ["times"]
    assert await client.dead_letters.retry_many(error="ValueError") == 0
    async with working(queues=["default"]):

        async def is_dead_lettered() -> bool:
            return len(await client.dead_letters.list(task="breaks")) == 2

        await until(is_dead_lettered)
    dead_letter = (await client.dead_letters.list(task="breaks"))[0]
    states = [event.state async for event in client.jobs.handle(dead_letter.id).events()]
    assert Counter(states)["failed"] == 2
    assert "retrying" in states


async def test_a_dead_job_runs_again_with_other_arguments(
    app: App, client: Client, working: Working, until: Until
) -> None:
    [dead_letter, *_] = await dying(app, client, working, until)
    with pytest.raises(BadArguments):
        await client.dead_letters.retry(dead_letter.id, {"x": object()})
    with pytest.raises(BadArguments, match="the server takes"):
        await client.dead_letters.retry(dead_letter.id, ["x" * 1_100_000])
    assert (await client.dead_letters.get(dead_letter.id)).payload == dead_letter.payload
    await client.dead_letters.retry(dead_letter.id, {"x": 7})
    async with working(queues=["default"]):
        assert await client.jobs.handle(dead_letter.id).result(60) == 7


async def test_a_purged_job_keeps_its_own_id_unless_the_purge_releases_it(
    app: App, client: Client, working: Working, until: Until
) -> None:
    @app.task(retries=0)
    async def breaks(x: int) -> int:
        if x < 0:
            raise ValueError
        return x

    async def is_dead_lettered() -> bool:
        return len(await client.dead_letters.list()) == 1

    async with working():
        mine = breaks.options(id="mine")
        await (await mine.submit(-1)).wait(10)
        await until(is_dead_lettered)
        assert (await mine.submit(1)).duplicate
        assert await client.dead_letters.purge(id="mine", free_ids=True) == 1
        with pytest.raises(JobNotFound):
            await client.jobs.handle("mine").status()
        again = await mine.submit(5)
        assert not again.duplicate
        assert await again.result(60) == 5
        assert (await again.status()).state == "succeeded"


async def test_the_id_of_a_replayed_job_is_not_released(
    app: App, client: Client, working: Working, until: Until
) -> None:
    [dead_letter, *_] = await dying(app, client, working, until)
    broker = await client.broker()
    await client.dead_letters.retry(dead_letter.id)
    with pytest.raises(WrongState, match="is retrying"):
        await broker.dead_letters.delete_job(dead_letter)
    assert (await client.jobs.handle(dead_letter.id).status()).state == "retrying"
