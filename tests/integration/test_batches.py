"""Batch tasks: one call receives many jobs, and each job has its own outcome."""

import asyncio
import threading
import time
from collections import Counter
from typing import Any

import pytest

from jsq import App, BatchItem, Client, JobCancelled, JobExpired, JobFailed, Reject, ResultDropped, Snooze
from jsq.model.revision import FINAL_STATES
from jsq.worker.timings import WorkerTimings
from tests.helpers.conditions import Until
from tests.helpers.workers import Working


class Calls:
    """The lists that a batch task was called with."""

    def __init__(self) -> None:
        self.lists: list[list[int]] = []

    @property
    def sizes(self) -> list[int]:
        return [len(one) for one in self.lists]

    @property
    def items(self) -> list[int]:
        return sorted(item for one in self.lists for item in one)


async def counts(client: Client, id: str) -> Counter[str]:
    return Counter(event.state for event in await (await client.broker()).records.history(id))


async def test_a_batch_task_gets_at_most_its_batch_size_in_one_call(app: App, working: Working) -> None:
    calls = Calls()

    @app.batch_task(size=50, wait=5)
    async def index(items: list[int]) -> None:
        calls.lists.append(items)

    jobs = await index.submit_many([(n,) for n in range(200)])
    async with working(concurrency=2):
        for job in jobs:
            await job.result(60)
    assert calls.sizes == [50] * 4
    assert calls.items == list(range(200))
    await index([-1])  # a direct call runs the plain function
    assert calls.lists[-1] == [-1]


async def test_an_incomplete_batch_runs_after_its_maximum_wait(app: App, working: Working) -> None:
    calls = Calls()

    @app.batch_task(size=100, wait=0.2)
    async def index(items: list[int]) -> None:
        calls.lists.append(items)

    async with working():
        start_time = time.monotonic()
        jobs = [await index.submit(n) for n in range(3)]
        for job in jobs:
            await job.result(60)
    assert calls.lists == [[0, 1, 2]]
    assert time.monotonic() - start_time >= 0.2


async def test_each_item_of_a_batch_has_its_own_result(app: App, working: Working) -> None:
    @app.batch_task(size=10, wait=0.1)
    async def double(items: list[int]) -> list[int]:
        return [2 * item for item in items]

    @app.batch_task(size=10, wait=0.1)
    def triple(items: list[int]) -> list[int]:
        assert threading.current_thread() is not threading.main_thread()
        return [3 * item for item in items]

    async with working():
        jobs = [await double.submit(n) for n in range(25)]
        more = [await triple.submit(n) for n in range(25)]
        assert [await job.result(60) for job in jobs] == [2 * n for n in range(25)]
        assert [await job.result(60) for job in more] == [3 * n for n in range(25)]


async def test_an_item_has_the_context_of_its_job(app: App, working: Working) -> None:
    seen: list[BatchItem[str]] = []

    @app.batch_task(size=2, wait=5)
    async def index(items: list[BatchItem[str]]) -> None:
        seen.extend(items)

    jobs = [await index.options(headers={"n": str(n)}).submit(f"v{n}") for n in range(2)]
    async with working():
        for job in jobs:
            await job.result(60)
    assert [one.id for one in seen] == [job.id for job in jobs]
    assert [(one.value, one.attempt, one.headers["n"]) for one in seen] == [("v0", 1, "0"), ("v1", 1, "1")]
    assert all(one.token > 0 for one in seen)


async def test_an_exception_in_the_result_list_fails_only_its_own_item(
    app: App, client: Client, working: Working
) -> None:
    calls = Calls()

    @app.batch_task(size=4, wait=0.2, retries=1, backoff="none")
    async def pick(items: list[int]) -> list[int | BaseException]:
        calls.lists.append(items)

        async def one(item: int) -> int:
            match item:
                case 1:
                    raise ValueError("always")
                case 2:
                    raise Reject("never")
                case 3 if len(calls.lists) == 1:
                    raise Snooze(0)
            return item

        return await asyncio.gather(*map(one, items), return_exceptions=True)

    jobs = [await pick.submit(n) for n in range(4)]
    async with working():
        assert await jobs[0].result(60) == 0
        with pytest.raises(JobFailed, match="ValueError: always"):
            await jobs[1].result(60)
        with pytest.raises(JobFailed, match="Reject: never"):
            await jobs[2].result(60)
        assert await jobs[3].result(60) == 3
    assert calls.items.count(1) == 2
    assert calls.items.count(2) == 1
    assert (await jobs[1].status()).failures == 1
    assert len(await client.dead_letters.list()) == 2


async def test_an_exception_of_the_function_counts_as_an_attempt_of_each_item(
    app: App, working: Working
) -> None:
    calls = Calls()

    @app.batch_task(size=3, wait=0.2, backoff="none")
    async def broken(items: list[int]) -> None:
        calls.lists.append(items)
        raise ValueError("all")

    jobs = [await broken.options(retries=n).submit(n) for n in range(3)]
    async with working():
        for job in jobs:
            with pytest.raises(JobFailed, match="ValueError: all"):
                await job.result(60)
    assert Counter(calls.items) == {0: 1, 1: 2, 2: 3}


@pytest.mark.parametrize(
    ("value", "message"), [([1], "2 items, got a list of 1"), ("ab", "2 items, got str")]
)
async def test_a_result_that_is_not_a_list_of_the_same_length_is_dropped(
    app: App, working: Working, value: Any, message: str
) -> None:
    @app.batch_task(size=2, wait=5)
    async def odd(items: list[int]) -> Any:
        return value

    jobs = [await odd.submit(n) for n in range(2)]
    async with working():
        for job in jobs:
            with pytest.raises(ResultDropped, match=message):
                await job.result(60)


async def test_only_the_result_of_the_wrong_type_is_dropped(app: App, working: Working) -> None:
    @app.batch_task(size=2, wait=5)
    async def index(items: list[int]) -> list[int]:
        return [1, "two"]  # type: ignore[list-item]  # that is what is tested

    jobs = [await index.submit(n) for n in range(2)]
    async with working():
        assert await jobs[0].result(60) == 1
        with pytest.raises(ResultDropped, match="should be a valid integer"):
            await jobs[1].result(60)


async def test_bad_arguments_fail_only_their_own_item(app: App, client: Client, working: Working) -> None:
    calls = Calls()

    @app.batch_task(size=3, wait=5)
    async def index(items: list[int]) -> None:
        calls.lists.append(items)

    bad = await client.task("index").submit("text")
    wrong = await client.task("index").submit(1, 2)
    good = await client.task("index").submit(item=7)
    async with working():
        assert await good.result(60) is None
        for job in (bad, wrong):
            with pytest.raises(JobFailed, match="bad_arguments"):
                await job.result(60)
    assert calls.lists == [[7]]


async def test_a_job_cancelled_while_its_batch_is_collected_is_not_in_the_batch(
    app: App, client: Client, working: Working, until: Until
) -> None:
    calls = Calls()

    @app.batch_task(size=3, wait=30)
    async def index(items: list[int]) -> None:
        calls.lists.append(items)

    async with working() as worker:
        jobs = [await index.submit(n) for n in range(2)]
        await until(lambda: len(worker.dispatcher.attempts) == 2)
        assert (await jobs[0].cancel()).state == "cancelled"
        jobs += [await index.submit(n) for n in (2, 3)]
        for job in jobs[1:]:
            await job.result(60)
        with pytest.raises(JobCancelled):
            await jobs[0].result(60)
    assert calls.lists == [[1, 2, 3]]
    assert "running" not in await counts(client, jobs[0].id)


async def test_a_pause_that_starts_while_a_batch_is_collected_applies_to_all_its_jobs(
    app: App, client: Client, working: Working, until: Until
) -> None:
    calls = Calls()

    @app.batch_task(size=2, wait=60)
    async def index(items: list[int]) -> None:
        calls.lists.append(items)

    async with working() as worker:
        jobs = [await index.submit(0)]
        await until(lambda: worker.dispatcher.batches.open)
        await client.queues.pause("default", task=index.name)
        await until(lambda: worker.dispatcher.limits.rules.is_paused("default"))
        jobs.append(await index.submit(1))
        await until(lambda: worker.dispatcher.done == 2)
        assert [(await job.status()).state for job in jobs] == ["queued", "queued"]
        assert calls.lists == []
        await client.queues.resume("default", task=index.name)
        for job in jobs:
            await job.result(60)
    assert calls.items == [0, 1]


async def test_a_job_cancelled_while_its_batch_runs_ends_as_cancelled(
    app: App, client: Client, working: Working
) -> None:
    runs, go_on = asyncio.Event(), asyncio.Event()

    @app.batch_task(size=2, wait=5)
    async def index(items: list[int]) -> None:
        runs.set()
        await go_on.wait()

    async with working():
        jobs = [await index.submit(n) for n in range(2)]
        await runs.wait()
        assert (await jobs[0].cancel()).state == "cancelled"
        go_on.set()
        await jobs[1].result(60)
        with pytest.raises(JobCancelled):
            await jobs[0].result(60)


async def test_a_running_batch_is_cancelled_if_all_its_jobs_are_cancelled(app: App, working: Working) -> None:
    runs, ended = asyncio.Event(), asyncio.Event()

    @app.batch_task(size=2, wait=5)
    async def index(items: list[int]) -> None:
        runs.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with working(concurrency=1):
        jobs = [await index.submit(n) for n in range(2)]
        await runs.wait()
        for job in jobs:
            await job.cancel()
        await asyncio.wait_for(ended.wait(), 10)


async def test_a_batch_that_times_out_is_cancelled_and_each_job_is_retried(
    app: App, client: Client, working: Working
) -> None:
    calls = Calls()

    @app.batch_task(size=2, wait=5, timeout=0.3, retries=1, backoff="none")
    async def slow(items: list[int]) -> None:
        calls.lists.append(items)
        if len(calls.lists) == 1:
            await asyncio.Event().wait()

    jobs = [await slow.submit(n) for n in range(2)]
    async with working():
        for job in jobs:
            await job.result(60)
    assert calls.lists[0] == [0, 1]
    assert (await jobs[0].status()).failures == 1
    events = await (await client.broker()).records.history(jobs[1].id)
    [retried] = [event.revision for event in events if event.state == "retrying"]
    assert "longer than its timeout of 0.3 s" in retried.error


async def test_the_deadline_of_one_item_expires_only_that_item(app: App, working: Working) -> None:
    runs, go_on = asyncio.Event(), asyncio.Event()

    @app.batch_task(size=2, wait=5)
    async def index(items: list[int]) -> None:
        runs.set()
        await go_on.wait()

    async with working():
        late = await index.options(deadline=0.6).submit(1)
        other = await index.submit(2)
        await runs.wait()
        with pytest.raises(JobExpired, match="while its batch ran"):
            await late.result(60)
        go_on.set()
        await other.result(60)


async def test_a_batch_takes_only_one_slot_of_its_worker(app: App, working: Working) -> None:
    runs, go_on = asyncio.Event(), asyncio.Event()

    @app.batch_task(size=20, wait=5)
    async def index(items: list[int]) -> None:
        runs.set()
        await go_on.wait()

    @app.task
    async def quick() -> int:
        return 1

    async with working(concurrency=2) as worker:
        jobs = await index.submit_many([(n,) for n in range(20)])
        await runs.wait()
        assert worker.dispatcher.occupied == 1
        assert await (await quick.submit()).result(60) == 1
        go_on.set()
        for job in jobs:
            await job.result(60)
    assert worker.dispatcher.occupied == 0


async def test_a_worker_with_one_slot_collects_complete_batches(app: App, working: Working) -> None:
    calls = Calls()

    @app.batch_task(size=40, wait=3)
    def index(items: list[int]) -> None:
        calls.lists.append(items)
        time.sleep(0.02)

    jobs = await index.submit_many([(n,) for n in range(400)])
    async with working(concurrency=1):
        for job in jobs:
            await job.result(60)
    assert calls.sizes == [40] * 10
    assert calls.items == list(range(400))


async def test_two_batch_tasks_and_a_plain_one_share_a_queue(app: App, working: Working) -> None:
    calls = Calls()

    @app.batch_task(size=10, wait=0.5)
    async def evens(items: list[int]) -> None:
        calls.lists.append(items)

    @app.batch_task(size=7, wait=0.5)
    async def odds(items: list[int]) -> None:
        calls.lists.append(items)

    @app.task
    async def plain(n: int) -> int:
        return n

    jobs: list[Any] = []
    for n in range(100):
        jobs.append(await (odds if n % 2 else evens).submit(n))
        jobs.append(await plain.submit(n))
    async with working(concurrency=3):
        for job in jobs:
            await job.result(60)
    assert calls.items == list(range(100))
    assert all(len({item % 2 for item in one}) == 1 for one in calls.lists)
    assert max(calls.sizes) > 3


async def test_a_worker_that_stops_hands_back_the_jobs_of_a_batch_being_collected(
    app: App, working: Working, until: Until
) -> None:
    calls = Calls()

    @app.batch_task(size=5, wait=60)
    async def index(items: list[int]) -> None:
        calls.lists.append(items)

    async with working() as worker:
        jobs = [await index.submit(n) for n in range(4)]
        await until(lambda: len(worker.dispatcher.attempts) == 4)
        stopped = time.monotonic()
    assert time.monotonic() - stopped < 5
    assert calls.lists == []
    jobs.append(await index.submit(4))
    async with working():
        for job in jobs:
            await job.result(60)  # well within the lease, which would end otherwise
    assert calls.items == [0, 1, 2, 3, 4]
    assert (await jobs[0].status()).attempt == 1


async def test_a_batch_that_runs_past_the_grace_of_a_stop_is_handed_back(app: App, working: Working) -> None:
    calls = Calls()
    runs = asyncio.Event()

    @app.batch_task(size=3, wait=5)
    async def index(items: list[int]) -> None:
        calls.lists.append(items)
        runs.set()
        if len(calls.lists) == 1:
            await asyncio.Event().wait()

    async with working(grace=0.2):
        jobs = [await index.submit(n) for n in range(3)]
        await runs.wait()
    records = [await job.status() for job in jobs]
    assert [record.state for record in records] == ["interrupted"] * 3
    async with working():
        for job in jobs:
            await job.result(60)
    assert (await jobs[0].status()).attempt == 1
    assert calls.items == [0, 0, 1, 1, 2, 2]


async def test_a_batch_function_that_never_ends_is_abandoned_at_its_hard_timeout(
    app: App, working: Working, until: Until
) -> None:
    forever = threading.Event()

    @app.batch_task(size=2, wait=5, timeout=0.2, retries=0)
    def stuck(items: list[int]) -> None:
        forever.wait(20)

    try:
        async with working(concurrency=1, timings=WorkerTimings(unwind=0.3)) as worker:
            jobs = [await stuck.submit(n) for n in range(2)]
            for job in jobs:
                with pytest.raises(JobFailed, match="timeout"):
                    await job.result(60)
            await until(lambda: worker.dispatcher.occupied == 0)
            assert worker.dispatcher.abandoned.running == 1
    finally:
        forever.set()


async def test_a_batch_that_gets_no_slot_is_handed_back_for_another_worker(
    app: App, working: Working, until: Until
) -> None:
    calls = Calls()
    runs, go_on = asyncio.Event(), asyncio.Event()

    @app.batch_task(size=10, wait=0.3)
    async def index(items: list[int]) -> None:
        calls.lists.append(items)

    @app.task
    async def long() -> None:
        runs.set()
        await go_on.wait()

    async with working(concurrency=1) as worker:
        jobs = [await index.submit(n) for n in range(2)]
        await until(lambda: len(worker.dispatcher.attempts) == 2)
        other = await long.submit()
        await runs.wait()
        async with working(concurrency=1):
            for job in jobs:
                await job.result(60)
            assert (await other.status()).state == "running"
            go_on.set()
            await other.result(60)
    assert calls.items == [0, 1]


async def test_each_job_of_many_batches_ends_once(app: App, client: Client, working: Working) -> None:
    @app.batch_task(size=30, wait=0.05)
    async def index(items: list[int]) -> list[int]:
        return items

    jobs = await index.submit_many([(n,) for n in range(240)])
    async with working(concurrency=5), working(concurrency=2):
        assert [await job.result(60) for job in jobs] == list(range(240))
    broker = await client.broker()
    for job in jobs[::40]:
        events = await broker.records.history(job.id)
        assert len([one for one in events if one.state in FINAL_STATES]) == 1
    assert await broker.job_reader.waiting_ids("default") == []
