"""`map`: the results of many calls, ordered or unordered, over windows, errors and lost connections."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from jsq import App, BadArguments, BadOption, Client, JobFailed, JobNotFound, QueueFull, ResultTimeout
from jsq.broker.jobs.records import is_final
from jsq.broker.operations.completions import Completions
from jsq.server import EmbeddedServer
from jsq.settings import WorkerSettings
from jsq.worker import Worker
from tests.helpers.conditions import Until
from tests.helpers.workers import Working, running_worker


@pytest.fixture
def double(app: App) -> Any:
    @app.task(retries=0)
    async def double(n: int, times: int = 2) -> int:
        if n < 0:
            raise ValueError("no")
        return times * n

    return double


async def test_map_returns_results_in_the_order_of_the_calls(double: Any, working: Working) -> None:
    async with working(concurrency=100):
        assert await double.map(range(500)) == [2 * n for n in range(500)]
        found = [result async for result in double.map([(1, 5), {"n": 2}, 3, [4]])]
        assert found == [5, 4, 6, 8]
        assert await double.map([]) == []


async def test_two_thousand_results_use_one_subscription(
    app: App, client: Client, double: Any, working: Working, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = await client.broker()
    received: list[str] = []
    subscribe = broker.wire.subscribe

    async def counted(subject: str, *rest: Any) -> Any:
        if ".on." in subject:
            received.append(subject)
        return await subscribe(subject, *rest)

    async with working(concurrency=200):
        monkeypatch.setattr(broker.wire, "subscribe", counted)
        assert await double.map(range(2_000)) == [2 * n for n in range(2_000)]
    assert len(received) == 1


async def test_unordered_results_are_returned_as_jobs_end(app: App, working: Working) -> None:
    last = asyncio.Event()

    @app.task
    async def late(n: int) -> int:
        if n == 0:
            await last.wait()
        return n

    async with working():
        found: list[int] = []
        async for result in late.map(range(5), unordered=True):
            found.append(result)
            if len(found) == 4:
                last.set()
        assert (sorted(found), found[-1]) == ([0, 1, 2, 3, 4], 0)


async def test_map_submits_at_most_a_window_ahead_of_the_consumer(double: Any, working: Working) -> None:
    drawn = 0

    def numbers() -> Iterator[int]:
        nonlocal drawn
        for n in range(200):
            drawn += 1
            yield n

    async with working(concurrency=20):
        taken = 0
        most = 0
        async for result in double.map(numbers(), window=20):
            assert result == 2 * taken
            taken += 1
            most = max(most, drawn - taken)
    assert taken == 200
    assert 10 <= most <= 20


async def test_map_takes_calls_from_an_async_generator(double: Any, working: Working) -> None:
    async def numbers() -> AsyncIterator[int]:
        for n in range(30):
            await asyncio.sleep(0)
            yield n

    async with working():
        assert await double.map(numbers(), window=7) == [2 * n for n in range(30)]


async def test_map_raises_or_returns_an_error_at_its_position(double: Any, working: Working) -> None:
    async with working():
        found = await double.map([1, -1, 2], return_exceptions=True)
        assert (found[0], found[2]) == (2, 4)
        assert isinstance(found[1], JobFailed)
        results = double.map([1, -1, 2])
        assert await anext(results) == 2
        with pytest.raises(JobFailed, match="ValueError: no"):
            await anext(results)
        with pytest.raises(StopAsyncIteration):
            await anext(results)


async def test_an_invalid_call_is_named_by_its_index_when_it_is_reached(
    double: Any, working: Working
) -> None:
    async with working():
        results = double.map([*range(15), "text"], window=10)
        assert [await anext(results) for _ in range(5)] == [0, 2, 4, 6, 8]
        with pytest.raises(BadArguments, match=r"call 15, counted from 0: .*n: ") as caught:
            [result async for result in results]
    assert caught.value.index == 15


async def test_options_apply_to_each_job_of_a_map(
    app: App, client: Client, double: Any, working: Working
) -> None:
    app.queue("small", max_jobs=5)
    async with working(queues=["small"]):
        small = double.options(queue="small", tags=["m"], wait_for_room=10)
        assert await small.map(range(50)) == [2 * n for n in range(50)]
        by_name = client.task("double").options(queue="small", wait_for_room=10)
        assert await by_name.map(range(10)) == [2 * n for n in range(10)]
    assert len(await client.jobs.list(queue="small", tag="m", limit=None)) == 50


async def test_a_full_queue_ends_a_map(app: App, client: Client, double: Any) -> None:
    app.queue("small", max_jobs=1)
    await client.admin.provision(app.declared)
    await client.task("any").options(queue="small").submit()
    with pytest.raises(QueueFull):
        await double.options(queue="small").map([1])


async def test_a_missing_result_raises_a_timeout(client: Client, double: Any) -> None:
    with pytest.raises(ResultTimeout, match=r"within 0\.1 s"):
        await double.map([1, 2], timeout=0.1)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"window": 0}, "window must "),
        ({"window": True}, "window must "),
        ({"window": 100_001}, "from 1 to 100,000"),
        ({"timeout": -1}, "timeout must "),
        ({"calls": 5}, "calls must "),
        ({"calls": "text"}, "calls must "),
    ],
)
async def test_arguments_that_cannot_be_mapped_are_refused_at_the_call(
    double: Any, how: dict[str, Any], message: str
) -> None:
    calls = how.pop("calls", [1])
    with pytest.raises(BadOption, match=message):
        double.map(calls, **how)


async def test_one_id_is_refused_for_many_jobs(double: Any) -> None:
    with pytest.raises(BadOption, match="id must not be set for many jobs"):
        double.options(id="mine").map([1])


async def test_a_cancelled_job_or_a_result_that_was_not_kept_raises_its_error(
    app: App, client: Client, until: Until, working: Working
) -> None:
    @app.task(keep_result=0)
    async def forgotten() -> int:
        return 1

    results = asyncio.ensure_future(anext(client.task("nobody").map([()], return_exceptions=True)))
    await until(client.jobs.list)
    [job] = await client.jobs.list()
    await client.jobs.handle(job.id).cancel()
    assert type(await results).__name__ == "JobCancelled"
    async with working():
        [error] = await forgotten.map([()], return_exceptions=True)
    assert type(error).__name__ == "ResultGone"


async def test_completions_that_were_not_received_are_read(
    double: Any, working: Working, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive, lost = Completions.receive, []

    def half_deaf(self: Completions, message: Any) -> None:
        if is_final(message.payload):
            lost.append(message)
            if len(lost) % 2:
                receive(self, message)

    monkeypatch.setattr("jsq.broker.operations.completions.RECHECK_SECONDS", 0.3)
    monkeypatch.setattr(Completions, "receive", half_deaf)
    async with working(concurrency=50):
        assert await double.map(range(300)) == [2 * n for n in range(300)]
    assert len(lost) == 300


async def test_a_removed_job_is_reported(
    client: Client, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jsq.broker.operations.completions.RECHECK_SECONDS", 0.3)
    first = asyncio.ensure_future(anext(client.task("nobody").map([()])))
    await until(client.jobs.list)
    [job] = await client.jobs.list()
    broker = await client.broker()
    await broker.job_writer.remove(job.queue, job.id)
    with pytest.raises(JobNotFound, match=job.id):
        await asyncio.wait_for(first, 10)


async def test_a_map_survives_the_death_of_the_server(own_server: EmbeddedServer, namespace: str) -> None:
    async with App(own_server.url, namespace=namespace) as app:

        @app.task
        async def slow(n: int) -> int:
            await asyncio.sleep(0.02)
            return n

        async with running_worker(Worker(app, settings=WorkerSettings(concurrency=20))):
            found = []
            async for result in slow.options(wait_for_room=10).map(range(400), window=100):
                found.append(result)
                if len(found) == 110:
                    own_server.kill()
                    own_server.restart()
        assert found == list(range(400))


async def test_leaving_a_map_ends_its_subscription_and_keeps_its_jobs(
    client: Client, double: Any, working: Working, until: Until
) -> None:
    broker = await client.broker()
    before = len(broker.wire._nats._subs)
    async with working():
        results = double.map(range(100), window=10)
        assert await anext(results) == 0
        await results.aclose()

        async def all_ended() -> bool:
            return [job.state for job in await client.jobs.list(limit=None)] == ["succeeded"] * 10

        await until(all_ended)
    assert len(broker.wire._nats._subs) == before


async def test_the_blocking_form_of_map_returns_an_iterator(app: App, double: Any, working: Working) -> None:
    def use() -> list[Any]:
        first = list(double.blocking.map(range(50), window=10))
        errors = list(double.options(priority="high").blocking.map([1, -1], return_exceptions=True))
        return [first, errors, next(app.client.task("double").blocking.map([7]))]

    async with working():
        first, errors, seventh = await asyncio.to_thread(use)
    assert first == [2 * n for n in range(50)]
    assert errors[0] == 2
    assert isinstance(errors[1], JobFailed)
    assert seventh == 14
