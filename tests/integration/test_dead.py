"""Dead letters: a job is failed if and only if it has one."""

import pytest

from jsq import App, Client, JobFailed, JobNotFound, WrongState
from tests.conftest import Until, Working


async def test_a_replayed_job_runs_again_under_its_id_and_its_letter_goes(
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
            await job.result(10)

        async def buried() -> bool:
            return len(await client.dead_letters(queue="default")) == 1

        await until(buried)
        broken = False
        await client.replay(job.id)
        assert await job.result(10) == 3
        assert await client.dead_letters() == []


async def test_a_letter_that_is_written_after_its_failure_was_replayed_is_taken_back(
    app: App, client: Client, working: Working, until: Until
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
            await job.result(10)
        await until(client.dead_letters)
        broker = await client.broker()
        failure = await broker.log.last_run("default", job.id)
        [letter] = await client.dead_letters()
        broken = False
        await client.replay(job.id)
        assert await job.result(10) == 1

    assert failure is not None
    assert letter.job is not None
    # A second delivery of the message had read the failure before it was replayed, and writes its letter now.
    await broker.dead.write(letter.job, failure.event)

    assert await client.dead_letters() == []


async def test_retry_of_a_job_is_the_same_as_replay_of_its_letter(
    app: App, client: Client, working: Working, until: Until
) -> None:
    @app.task(retries=0)
    async def fails() -> None:
        raise RuntimeError("always")

    async with working():
        job = await fails.submit()
        for _ in range(2):
            with pytest.raises(JobFailed):
                await job.result(10)

            async def buried() -> bool:
                return len(await client.dead_letters()) == 1

            await until(buried)
            record = await job.retry()
            assert record.state in ("retrying", "running", "failed")


async def test_only_a_failed_job_can_be_tried_again(app: App, client: Client, working: Working) -> None:
    @app.task
    async def fine() -> int:
        return 1

    waiting = await client.submit("not.yet")
    with pytest.raises(WrongState, match="is queued"):
        await waiting.retry()
    await waiting.cancel()
    with pytest.raises(WrongState, match="is cancelled"):
        await waiting.retry()
    async with working():
        done = await fine.submit()
        await done.result(5)
        with pytest.raises(WrongState, match="is succeeded"):
            await done.retry()
    with pytest.raises(JobNotFound):
        await client.replay("nobody")


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
        ("again", {"Jsq-Job": '{"v":1,"task":"a"}', "Jsq-Again": "x"}, b"{}"),
        ("*", {"Jsq-Job": '{"v":1,"task":"a"}'}, b"{}"),
        ("é", {"Jsq-Job": '{"v":1,"task":"a"}'}, b"{}"),
    ],
)
async def test_a_message_that_is_no_job_is_put_away_with_its_bytes(
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
        broker.wire.send(broker.names.ready("default", "normal", id), payload, headers)

        async def buried() -> bool:
            return len(await client.dead_letters()) == 1

        await until(buried)
        [letter] = await client.dead_letters()
        assert (letter.reason, letter.payload, letter.job) == ("bad_envelope", payload, None)
        with pytest.raises(WrongState):
            await client.replay(letter.id)
        assert await (await fine.submit()).result(5) == 1
        assert (await client.queue_stats("default"))[0].running == 0


async def test_arguments_of_a_known_task_that_are_no_json_fail_the_job(
    app: App, client: Client, working: Working, until: Until
) -> None:
    @app.task
    async def fine(x: int) -> int:
        return x

    broker = await client.broker()
    async with working():
        subject = broker.names.ready("default", "normal", "raw")
        broker.wire.send(subject, b"\x80\x04", {"Jsq-Job": '{"v":1,"task":"fine"}'})
        job = await client.job("raw")

        async def known() -> bool:
            return await broker.log.last("raw") is not None

        await until(known)
        with pytest.raises(JobFailed) as caught:
            await job.result(5)
        assert caught.value.reason == "bad_arguments"


async def test_a_job_of_a_newer_release_is_left_to_newer_workers(
    app: App, client: Client, working: Working, until: Until
) -> None:
    broker = await client.broker()
    async with working(queues=["default"]) as worker:
        subject = broker.names.ready("default", "normal", "newer")
        broker.wire.send(subject, b"{}", {"Jsq-Job": '{"v":2,"task":"fine"}'})
        await until(lambda: worker._done == 1)
        assert await client.dead_letters() == []

        async def put_aside() -> bool:
            [stats] = await client.queue_stats("default")
            return (stats.later, stats.running, stats.waiting["normal"]) == (1, 0, 0)

        await until(put_aside)


async def test_purging_letters_counts_them(app: App, client: Client, working: Working, until: Until) -> None:
    @app.task(retries=0)
    async def fails() -> None:
        raise RuntimeError("always")

    async with working():
        jobs = [await fails.submit() for _ in range(3)]

        async def buried() -> bool:
            return len(await client.dead_letters()) == 3

        await until(buried)
    assert await client.purge_dead(id=jobs[0].id) == 1
    assert await client.purge_dead() == 2
    assert (await jobs[1].status()).state == "failed"
