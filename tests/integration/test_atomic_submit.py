"""Atomic submits and bulks with their own ids: full queues, killed servers and clients, lost replies."""

import asyncio
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from jsq import App, BadOption, BulkUnknown, Client, PartlySubmitted, QueueFull
from jsq.broker.jobs.reader import JobReader
from jsq.broker.submit import atomic
from jsq.server import EmbeddedServer
from jsq.transport import batch_publish as batches
from jsq.transport.replies import NoReply
from tests.helpers.conditions import Until
from tests.helpers.workers import Working


async def stored_ids(client: Client, queue: str = "default") -> list[str]:
    return await (await client.broker()).job_reader.waiting_ids(queue)


async def test_the_jobs_of_an_atomic_submit_run_like_others(app: App, working: Working) -> None:
    @app.task(tags=["atomic"])
    async def double(n: int) -> int:
        return 2 * n

    jobs = await double.submit_many([(n,) for n in range(1_000)], all_or_nothing=True)
    assert (await jobs[-1].status()).state == "queued"
    async with working(concurrency=100):
        assert [await job.result(60) for job in jobs] == [2 * n for n in range(1_000)]


@pytest.mark.parametrize("later", [False, True])
async def test_the_jobs_of_an_atomic_submit_are_listed_like_others(
    client: Client, until: Until, later: bool
) -> None:
    options = client.task("any").options(delay=3_600) if later else client.task("any").options()
    await options.submit_many([[n] for n in range(300)], all_or_nothing=True)

    async def listed() -> bool:
        return len(await client.jobs.list(state="scheduled" if later else "queued", limit=None)) == 300

    await until(listed)


async def test_an_atomic_submit_may_be_delayed_and_runs_when_due(
    app: App, client: Client, working: Working
) -> None:
    @app.task
    async def double(n: int) -> int:
        return 2 * n

    jobs = await double.options(delay=1).submit_many([(n,) for n in range(200)], all_or_nothing=True)
    assert (await client.queues.stats("default"))[0].scheduled == 200
    async with working(concurrency=50):
        assert [await job.result(60) for job in jobs] == [2 * n for n in range(200)]


async def test_an_atomic_submit_above_the_limit_is_refused_before_anything_is_sent(client: Client) -> None:
    await client.admin.provision()
    with pytest.raises(
        BadOption, match=r"all_or_nothing must be 1,000 jobs at most, got '1,001 jobs'"
    ) as caught:
        await client.task("any").submit_many([[]] * 1_001, all_or_nothing=True)
    assert caught.value.field == "all_or_nothing"
    with pytest.raises(BadOption, match="33,554,432 bytes at most"):
        await client.task("any").submit_many([["x" * 500_000]] * 70, all_or_nothing=True)
    assert await stored_ids(client) == []


async def test_a_large_atomic_submit_is_stored(client: Client) -> None:
    jobs = await client.task("any").submit_many([["x" * 500_000]] * 60, all_or_nothing=True)
    assert {job.id for job in jobs} == set(await stored_ids(client))


async def test_a_submit_of_no_calls_stores_no_jobs(client: Client) -> None:
    assert await client.task("any").submit_many([], all_or_nothing=True) == []


async def test_a_queue_without_room_for_all_jobs_stores_none(app: App, client: Client, until: Until) -> None:
    app.queue("small", max_jobs=500)
    await client.admin.provision(app.declared)
    with pytest.raises(QueueFull) as caught:
        await client.task("any").options(queue="small").submit_many([[]] * 501, all_or_nothing=True)
    assert (caught.value.limit, caught.value.value) == ("max_jobs", 500)
    assert await stored_ids(client, "small") == []
    await client.task("any").options(queue="small").submit_many([[]] * 500, all_or_nothing=True)
    assert len(await stored_ids(client, "small")) == 500


async def test_an_atomic_submit_waits_for_room(app: App, client: Client) -> None:
    app.queue("small", max_jobs=300)
    await client.admin.provision(app.declared)
    small = client.task("any").options(queue="small", wait_for_room=20)
    first = await small.submit_many([[]] * 200)
    waiting = asyncio.ensure_future(small.submit_many([[]] * 200, all_or_nothing=True))
    for job in first[:100]:
        assert not waiting.done()
        await job.cancel()
    jobs = await waiting
    assert {job.id for job in jobs} <= set(await stored_ids(client, "small"))


async def test_a_commit_whose_reply_is_lost_is_not_repeated(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.admin.provision()
    made = []

    async def unanswered(*given: Any, **named: Any) -> int:
        made.append(await batches.commit(*given, **named))
        raise NoReply("no reply")

    monkeypatch.setattr(atomic, "commit", unanswered)
    jobs = await client.task("any").submit_many([[n] for n in range(400)], all_or_nothing=True)
    assert len(made) == 1
    assert sorted(job.id for job in jobs) == sorted(await stored_ids(client))


async def test_an_unconfirmed_atomic_submit_may_be_repeated_under_its_ids(
    app: App, client: Client, working: Working, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []

    @app.task
    async def note(n: int) -> None:
        ran.append(n)

    await client.admin.provision()

    async def unanswered(*given: Any, **named: Any) -> int:
        await batches.commit(*given, **named)
        raise NoReply("no reply")

    async def silent(*_: Any, **__: Any) -> None:
        raise NoReply("nor is there one to be asked")

    monkeypatch.setattr(atomic, "DEADLINE_SECONDS", 0.0)
    monkeypatch.setattr("jsq.transport.retrying.DEADLINE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "commit", unanswered)
        patch.setattr(JobReader, "find", silent)
        patch.setattr("jsq.broker.submit.atomic.with_retry", silent)
        with pytest.raises(BulkUnknown, match="all or none of the 300 jobs") as caught:
            await note.submit_many([(n,) for n in range(300)], all_or_nothing=True)
    ids = caught.value.ids
    assert sorted(ids) == sorted(await stored_ids(client))

    again = await note.submit_many([(n,) for n in range(300)], ids=ids, all_or_nothing=True)
    assert [job.id for job in again] == list(ids)
    assert all(job.duplicate for job in again)
    async with working(concurrency=50):
        for job in again:
            await job.result(60)
        once_more = await note.submit_many([(n,) for n in range(300)], ids=ids, all_or_nothing=True)
        assert all(job.duplicate for job in once_more)
        assert await stored_ids(client) == []
    assert sorted(ran) == list(range(300))


async def test_a_killed_server_has_stored_all_jobs_or_none(
    own_server: EmbeddedServer, namespace: str
) -> None:
    async with Client(own_server.url, namespace=namespace) as client:
        await client.admin.provision()
        sent = {}
        for number in range(6):
            calls = [[number, "x" * 2_000]] * 1_000
            sending = asyncio.ensure_future(client.task("any").submit_many(calls, all_or_nothing=True))
            await asyncio.sleep(0.004 * number)  # the kill happens at a different point each time
            own_server.kill()
            own_server.restart()
            jobs = await sending
            sent[number] = {job.id for job in jobs}
        waiting = await stored_ids(client)
        assert len(waiting) == len(set(waiting)) == 6_000
        assert set(waiting) == set[str]().union(*sent.values())


DYING = """
import asyncio, os, signal, sys
from jsq import Client
from jsq.transport.connection import NatsConnection

put, sent, last = NatsConnection.put, 0, int(sys.argv[1])

def counted(self, command):
    global sent
    put(self, command)
    if b".q.default." in command.split(b" ", 2)[1]:
        sent += 1
        if sent == last:
            self._transport.write(b"".join(self._pending))
            os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with Client() as client:
        await client.admin.provision()
        NatsConnection.put = counted
        await client.task("any").submit_many([["x" * 100]] * 1_000, all_or_nothing=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("last", [1, 500, 999])
async def test_a_client_killed_during_an_atomic_submit_leaves_no_job(
    server: EmbeddedServer, client: Client, last: int
) -> None:
    env = os.environ | {"JSQ_URL": server.url, "JSQ_NAMESPACE": client.namespace}
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", DYING, str(last)], env=env, capture_output=True, timeout=30
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert await stored_ids(client) == []
    # The leftovers of a killed submit do not block the next one.
    assert len(await client.task("any").submit_many([[]] * 1_000, all_or_nothing=True)) == 1_000
    assert len(await stored_ids(client)) == 1_000


# -- own ids -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_atomic", [False, True])
async def test_a_second_submit_with_the_same_ids_completes_the_first(
    app: App, client: Client, working: Working, is_atomic: bool
) -> None:
    ran: list[int] = []

    @app.task
    async def note(n: int) -> None:
        ran.append(n)

    ids = [f"import-{n}" for n in range(700)]
    await note.submit_many([(n,) for n in range(200)], ids=ids[:200])
    async with working(concurrency=50):
        for id in ids[:200]:
            await client.jobs.handle(id).result(60)
    await note.submit_many([(n,) for n in range(200, 400)], ids=ids[200:400])
    jobs = await note.submit_many([(n,) for n in range(700)], ids=ids, all_or_nothing=is_atomic)
    assert [job.id for job in jobs] == ids
    assert all(job.duplicate for job in jobs[:400])
    assert not any(job.duplicate for job in jobs[400:])
    async with working(concurrency=50):
        for job in jobs:
            await job.result(60)
    assert sorted(ran) == list(range(700))


async def test_jobs_with_their_own_ids_that_were_not_stored_are_named_by_index(
    app: App, client: Client
) -> None:
    app.queue("small", max_jobs=30)
    await client.admin.provision(app.declared)
    small = client.task("any").options(queue="small")
    ids = [f"n{n}" for n in range(50)]
    await small.submit_many([[]] * 10, ids=ids[20:30])
    with pytest.raises(PartlySubmitted) as caught:
        await small.submit_many([[]] * 50, ids=ids)
    stored = set(await stored_ids(client, "small"))
    assert len(stored) == 30
    assert set(caught.value.stored) == stored
    assert {ids[place] for place in caught.value.refused} == set(ids) - stored
    assert all(isinstance(error, QueueFull) for error in caught.value.refused.values())


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a"], "an id for each of the 2 calls"),
        ("ab", "an id for each of the 2 calls"),
        (["a", "a"], "given twice"),
        (["a", "b\tc"], "job id must be"),
    ],
)
async def test_wrong_ids_are_refused(client: Client, ids: Any, message: str) -> None:
    with pytest.raises(Exception, match=message):
        await client.task("any").submit_many([[], []], ids=ids)
