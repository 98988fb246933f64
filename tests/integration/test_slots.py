"""The slots of a worker: jobs that need several, and queues that share them by weight."""

import asyncio
import collections
import time

import pytest

from jsq import App, BadName, BadOption, Client
from jsq.settings import WorkerSettings
from jsq.worker import Observer, Worker
from jsq.worker.dispatcher import MAX_SLOT_WAIT
from jsq.worker.duties.housekeeping import ROUND_INTERVAL
from tests.helpers.conditions import Until
from tests.helpers.workers import Working, running_worker

WAIT = 60.0


async def test_a_job_takes_as_many_slots_as_it_declares(app: App, working: Working) -> None:
    now: collections.Counter[str] = collections.Counter()
    together: list[dict[str, int]] = []

    async def work(kind: str) -> None:
        now[kind] += 1
        together.append(dict(now))
        await asyncio.sleep(0.01)
        now[kind] -= 1

    @app.task(slots=3)
    async def big() -> None:
        await work("big")

    @app.task
    async def small() -> None:
        await work("small")

    jobs = [await (big if number % 3 == 0 else small).submit() for number in range(30)]
    jobs += [await small.options(slots=2).submit()]
    async with working(concurrency=4):
        await asyncio.gather(*(job.result(WAIT) for job in jobs))

    taken = [3 * one.get("big", 0) + one.get("small", 0) for one in together]
    assert max(taken) == 4


async def test_small_jobs_do_not_start_before_a_waiting_big_job(
    app: App, working: Working, until: Until
) -> None:
    started: list[str] = []
    go_on = asyncio.Event()

    @app.task
    async def first() -> None:
        started.append("first")
        await go_on.wait()

    @app.task(slots=2)
    async def big() -> None:
        started.append("big")

    @app.task
    async def small() -> None:
        started.append("small")

    async with working(concurrency=2, prefetch=5) as worker:
        jobs = [await first.submit()]
        await until(lambda: started)
        jobs += [await big.submit(), *[await small.submit() for _ in range(5)]]
        await until(lambda: worker.dispatcher.waiting.count >= 2)
        delivery = worker.dispatcher.waiting.next()
        assert delivery is not None
        # The delivery is kept for longer than one that only waits for a slot.
        await until(lambda: time.monotonic() - delivery.received > MAX_SLOT_WAIT + 2 * ROUND_INTERVAL)
        assert started == ["first"]
        assert worker.dispatcher.waiting.next() is delivery
        go_on.set()
        await asyncio.gather(*(job.result(WAIT) for job in jobs))

    assert started == ["first", "big", *["small"] * 5]


async def test_a_job_that_needs_more_slots_than_exist_runs_alone(app: App, working: Working) -> None:
    now = most = 0

    @app.task(slots=50)
    async def huge() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1

    jobs = [await huge.submit() for _ in range(4)]
    async with working(concurrency=3):
        await asyncio.gather(*(job.result(WAIT) for job in jobs))

    assert most == 1


async def test_busy_capacity_is_counted_in_slots(app: App, working: Working, until: Until) -> None:
    busy: list[tuple[int, int]] = []
    go_on = asyncio.Event()

    class Counting(Observer):
        def busy(self, running: int, held: int, slots: int) -> None:
            busy.append((running, slots))

    @app.task(slots=3)
    async def big() -> None:
        await go_on.wait()

    job = await big.submit()
    async with working(concurrency=5, observer=Counting()):
        await until(lambda: (3, 5) in busy)
        go_on.set()
        await job.result(WAIT)
        await until(lambda: busy[-1] == (0, 5))


@pytest.mark.parametrize("slots", [0, -1, 1.5, True, "2", 10_001])
async def test_bad_slots_are_refused_at_registration_and_at_the_submit(
    app: App, client: Client, slots: int
) -> None:
    for call in (lambda: app.task(slots=slots), lambda: client.task("any").options(slots=slots)):
        with pytest.raises(BadOption) as caught:
            call()
        assert (caught.value.field, caught.value.value) == ("slots", slots)


@pytest.mark.parametrize("concurrency", [1, 4, 10])
async def test_queues_share_the_starts_by_their_weights(app: App, concurrency: int) -> None:
    started: list[str] = []

    @app.task
    async def note(queue: str) -> None:
        started.append(queue)

    jobs = [
        job
        for queue in ("mail", "default")
        for job in await note.options(queue=queue).submit_many([(queue,)] * 100)
    ]
    worker = Worker(app, queues={"mail": 3, "default": 1}, settings=WorkerSettings(concurrency=concurrency))
    async with running_worker(worker):
        await asyncio.gather(*(job.result(WAIT) for job in jobs))

    # While both queues wait, mail finishes after 100 of its own jobs and about 33 of the other queue.
    assert collections.Counter(started) == {"mail": 100, "default": 100}
    counted = collections.Counter(started[:100])["mail"]
    assert abs(counted - 75) <= concurrency + 4


@pytest.mark.parametrize("concurrency", [1, 5])
async def test_a_strict_worker_starts_a_later_queue_only_when_the_earlier_is_empty(
    app: App, client: Client, concurrency: int
) -> None:
    started: list[str] = []

    @app.task
    async def note(queue: str) -> None:
        started.append(queue)

    jobs = [
        job
        for queue in ("later", "first", "paused")
        for job in await note.options(queue=queue).submit_many([(queue,)] * 30)
    ]
    await client.queues.pause("paused")
    settings = WorkerSettings(concurrency=concurrency, strict=True)
    async with running_worker(Worker(app, queues=["paused", "first", "later"], settings=settings)):
        await asyncio.gather(*(job.result(WAIT) for job in jobs[:60]))

    # The first request for the later queue is sent before the earlier queue is known to have jobs.
    assert started[concurrency:30].count("later") <= concurrency
    assert collections.Counter(started) == {"first": 30, "later": 30}


def test_a_strict_worker_has_no_weights(app: App) -> None:
    with pytest.raises(BadOption, match="must not be combined with weights"):
        Worker(app, queues={"mail": 1}, settings=WorkerSettings(strict=True))


async def test_a_queue_with_weight_uses_all_slots_while_the_other_is_empty(app: App, until: Until) -> None:
    now = most = 0

    @app.task(queue="default")
    async def count() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await until(lambda: most == 6)
        now -= 1

    worker = Worker(app, queues={"mail": 3, "default": 1}, settings=WorkerSettings(concurrency=6))
    async with running_worker(worker):
        jobs = [await count.submit() for _ in range(12)]
        await asyncio.gather(*(job.result(WAIT) for job in jobs))

    assert most == 6


async def test_a_paused_queue_with_a_weight_does_not_delay_other_queues(app: App, client: Client) -> None:
    @app.task
    async def note() -> None: ...

    paused_job = await note.options(queue="mail").submit()
    await client.queues.pause("mail")
    jobs = [await note.submit() for _ in range(30)]
    async with running_worker(Worker(app, queues={"mail": 3, "default": 1})):
        await asyncio.gather(*(job.result(WAIT) for job in jobs))
        assert (await paused_job.status()).state == "queued"


@pytest.mark.parametrize(
    ("queues", "error"), [({"mail": 0}, BadOption), ({"mail": "3"}, BadOption), ({"a.b": 1}, BadName)]
)
def test_a_worker_with_bad_weights_is_refused(
    app: App, queues: dict[str, int], error: type[Exception]
) -> None:
    with pytest.raises(error):
        Worker(app, queues=queues)
