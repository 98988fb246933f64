"""Rate limits: never more starts in a window than allowed, whatever dies, and no waiting job is lost."""

import asyncio
import collections
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jsq import App, BadOption, Client, Rate
from jsq.broker import Delivery
from jsq.broker.flow.rate_limits import RateLimitStore
from jsq.model.rate_limit import RateReply, RateRequest
from jsq.server import EmbeddedServer
from jsq.transport.replies import NoReply
from jsq.transport.wire import Wire
from jsq.worker import Observer, Worker
from tests.helpers.conditions import Until
from tests.helpers.forkserver import ForkedProcess, ForkServer
from tests.helpers.proxy import Proxy
from tests.helpers.rate_limits import most_in_a_window
from tests.helpers.repository import ROOT
from tests.helpers.workers import Working, running_worker

WAIT = 60.0
WINDOW = 2.0


async def states(app: App, id: str, queue: str) -> list[str]:
    return [event.state for event in await (await app.client.broker()).records.history(id, queue)]


async def test_all_workers_together_observe_the_rate_of_a_queue(app: App, working: Working) -> None:
    starts: list[float] = []

    @app.task(queue="mail")
    async def send() -> None:
        starts.append(time.time())

    app.queue("mail", rate="20/2s")
    jobs = [await send.submit() for _ in range(50)]

    async with working(), working():
        await asyncio.gather(*(job.result(WAIT) for job in jobs))

    assert len(starts) == 50
    assert most_in_a_window(starts, WINDOW) <= 20
    # Jobs that wait for the rate of their queue wait on the queue.
    [stats] = await app.client.queues.stats("mail")
    assert stats.scheduled == 0
    assert await states(app, jobs[-1].id, "mail") == ["running", "succeeded"]


async def test_the_rate_of_a_task_delays_no_other_task(app: App, working: Working, until: Until) -> None:
    starts: list[float] = []

    @app.task(rate="8/2s")
    async def slow() -> None:
        starts.append(time.time())

    @app.task
    async def quick() -> None: ...

    jobs = [await slow.submit() for _ in range(12)]
    others = [await quick.submit() for _ in range(50)]

    async with working(concurrency=4), working(concurrency=4):
        await asyncio.gather(*(job.result(WAIT) for job in others))
        assert len(starts) < 12
        waiting = await jobs[-1].status()
        assert waiting.state == "queued"
        await asyncio.gather(*(job.result(WAIT) for job in jobs))

    assert most_in_a_window(starts, WINDOW) <= 8
    for job in jobs:
        record = await job.status()
        assert (record.state, record.attempt, record.crashes) == ("succeeded", 1, 0)


async def test_each_key_has_its_own_rate(app: App, working: Working) -> None:
    starts: dict[str, list[float]] = collections.defaultdict(list)

    @app.task(key_rate="6/2s")
    async def call(tenant: str) -> None:
        starts[tenant].append(time.time())

    keyed = [("a", 14), ("b", 6), ("", 20)]
    jobs = [
        await call.options(key=tenant or None).submit(tenant) for tenant, count in keyed for _ in range(count)
    ]

    async with working(concurrency=8):
        await asyncio.gather(*(job.result(WAIT) for job in jobs))

    assert {tenant: len(found) for tenant, found in starts.items()} == dict(keyed)
    assert most_in_a_window(starts["a"], WINDOW) <= 6
    assert most_in_a_window(starts["b"], WINDOW) <= 6
    assert most_in_a_window(starts[""], WINDOW) > 6


async def test_all_limits_of_a_job_apply_at_once(app: App, working: Working) -> None:
    starts: list[tuple[float, str]] = []

    @app.task(queue="both", rate="14/2s", key_rate="5/2s")
    async def call(tenant: str) -> None:
        starts.append((time.time(), tenant))

    app.queue("both", rate="11/2s")
    jobs = [await call.options(key=tenant).submit(tenant) for tenant in "abc" for _ in range(8)]

    async with working(concurrency=6), working(concurrency=6):
        await asyncio.gather(*(job.result(WAIT) for job in jobs))

    assert most_in_a_window([at for at, _ in starts], WINDOW) <= 11
    for tenant in "abc":
        assert most_in_a_window([at for at, whose in starts if whose == tenant], WINDOW) <= 5


async def test_a_token_bucket_admits_its_burst_at_once(app: App, working: Working) -> None:
    starts: list[float] = []

    @app.task(rate=Rate(1, 10, kind="bucket", burst=6))
    async def call() -> None:
        starts.append(time.time())

    jobs = [await call.submit() for _ in range(7)]

    async with working():
        done, left = await asyncio.wait(
            [asyncio.create_task(job.result(6)) for job in jobs], timeout=4, return_when="ALL_COMPLETED"
        )
        for one in left:
            one.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    # One token of the burst is reserved for the possible delay of a start.
    assert 5 <= len(done) <= 6


async def test_a_job_waits_for_its_rate_on_the_server_and_is_requeued_once(
    app: App, working: Working, monkeypatch: pytest.MonkeyPatch
) -> None:
    requeues: collections.Counter[str] = collections.Counter()

    @app.task(rate="2/s", retries=0)
    async def call() -> None: ...

    async with working(concurrency=2) as worker:
        requeue = worker.dispatcher.limits.requeue

        async def counted(delivery: Delivery, *rest: object) -> None:
            requeues[delivery.id] += 1
            await requeue(delivery, *rest)  # type: ignore[arg-type]  # the same

        monkeypatch.setattr(worker.dispatcher.limits, "requeue", counted)
        jobs = [await call.submit() for _ in range(8)]
        await asyncio.gather(*(job.result(WAIT) for job in jobs))

    assert 5 <= len(requeues) <= 7
    assert requeues.total() <= 2 * len(requeues)


async def test_a_rate_holds_over_a_restart_of_the_server(
    own_server: EmbeddedServer, namespace: str, until: Until
) -> None:
    starts: list[float] = []
    async with App(own_server.url, namespace=namespace) as app:

        @app.task(rate="6/2s")
        async def call() -> None:
            starts.append(time.time())

        jobs = [await call.submit() for _ in range(12)]
        async with running_worker(Worker(app)):
            await until(lambda: len(starts) >= 5, WAIT)
            await asyncio.to_thread(own_server.kill)
            await asyncio.to_thread(own_server.restart)
            await asyncio.gather(*(job.result(WAIT) for job in jobs))

    assert len(starts) >= 12
    assert most_in_a_window(starts, WINDOW) <= 6


WORKER = """
import asyncio, os, sys, time
from jsq import App
from jsq.settings import WorkerSettings
from jsq.worker import Worker

app = App(sys.argv[1], namespace=sys.argv[2])
file = os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
app.queue("mail", rate="30/2s", lease=1)

@app.task(queue="mail")
async def send(number: int) -> None:
    os.write(file, f"{time.time()} {number}\\n".encode())

asyncio.run(Worker(app, settings=WorkerSettings(concurrency=5)).run())
"""


@pytest.fixture
def processes() -> Iterator[list[ForkedProcess]]:
    started: list[ForkedProcess] = []
    yield started
    for process in started:
        process.kill()
        process.wait(10)


async def test_a_rate_holds_over_the_death_of_a_worker(
    server: EmbeddedServer,
    client: Client,
    tmp_path: Path,
    until: Until,
    processes: list[ForkedProcess],
    forks: ForkServer,
) -> None:
    effects = tmp_path / "effects"
    effects.touch()
    words = ["-c", WORKER, server.url, client.namespace, str(effects)]
    processes += [forks.spawn(words, os.environ, ROOT) for _ in range(2)]
    await until(lambda: client.admin.workers(), WAIT)
    jobs = await client.task("send").options(queue="mail").submit_many([[number] for number in range(60)])

    def lines() -> list[list[str]]:
        return [line.split() for line in effects.read_text().splitlines()]

    await until(lambda: len(lines()) > 30, WAIT)
    os.kill(processes[0].pid, signal.SIGKILL)
    await asyncio.gather(*(job.result(WAIT) for job in jobs))

    assert {number for _, number in lines()} == {str(number) for number in range(60)}
    assert most_in_a_window([float(at) for at, _ in lines()], WINDOW) <= 30


PAIRS = """
import asyncio, os, sys
from jsq import App, Context
from jsq.settings import WorkerSettings
from jsq.worker import Worker

app = App(sys.argv[1], namespace=sys.argv[2])
file = os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
app.queue("narrow", concurrency=2, lease=1)
two = asyncio.Barrier(2)

@app.task(queue="narrow")
async def pair(ctx: Context, number: int) -> None:
    os.write(file, f"{number} {ctx.attempt}\\n".encode())
    await (asyncio.Event().wait() if sys.argv[4] == "hold" else two.wait())

asyncio.run(Worker(app, settings=WorkerSettings(concurrency=10)).run())
"""


async def test_a_dead_worker_keeps_no_slot_of_its_queue(
    server: EmbeddedServer,
    client: Client,
    tmp_path: Path,
    until: Until,
    processes: list[ForkedProcess],
    forks: ForkServer,
) -> None:
    """The later ones end only if two of them run at the same time."""
    effects = tmp_path / "effects"
    effects.touch()

    def start(way: str) -> None:
        words = ["-c", PAIRS, server.url, client.namespace, str(effects), way]
        processes.append(forks.spawn(words, os.environ, ROOT))

    start("hold")
    await until(lambda: client.admin.workers(), WAIT)
    jobs = [await client.task("pair").options(queue="narrow").submit(number) for number in range(6)]
    await until(lambda: len(effects.read_text().splitlines()) == 2, WAIT)
    processes[0].kill()
    start("pair")
    await asyncio.gather(*(job.result(WAIT) for job in jobs))

    assert sum([(await job.status()).crashes for job in jobs]) == 2


async def test_concurrent_reservations_share_few_writes(client: Client) -> None:
    broker = await client.broker()
    await broker.streams.ensure_shared()
    key = broker.subjects.limits.task_rate("any")

    answers = await asyncio.gather(
        *(broker.rate_limits.reserve(key, Rate(10), RateRequest()) for _ in range(100)),
        *(RateLimitStore(broker.namespace).reserve(key, Rate(10), RateRequest()) for _ in range(2)),
    )

    assert sum(answer.reserved for answer in answers) == 10
    assert len({answer.moment for answer in answers if not answer.reserved}) == 92
    found = await broker.reads.last(broker.subjects.streams.bucket("limits"), key)
    assert found is not None
    assert len(found.payload) < 1_000
    assert 9 < float(found.headers["Nats-TTL"].removesuffix("s")) < 60


async def test_a_reservation_that_fails_leaves_the_others_their_replies(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = await client.broker()
    await broker.streams.ensure_shared()
    key = broker.subjects.limits.task_rate("any")

    reservations = [
        asyncio.create_task(broker.rate_limits.reserve(key, Rate(10), RateRequest())) for _ in range(5)
    ]
    await asyncio.sleep(0)
    reservations[0].cancel()
    answers = await asyncio.gather(*reservations, return_exceptions=True)

    assert isinstance(answers[0], asyncio.CancelledError)
    assert all(isinstance(answer, RateReply) and answer.reserved for answer in answers[1:])


async def test_a_failed_reservation_uses_nothing_of_the_rate(
    server: EmbeddedServer, namespace: str, until: Until
) -> None:
    host, port = server.url.removeprefix("nats://").split(":")
    async with Proxy(host, int(port)) as proxy, Client(proxy.url, namespace=namespace) as client:
        broker = await client.broker()
        await broker.streams.ensure_shared()
        key = broker.subjects.limits.task_rate("any")
        proxy.refuse()
        await until(lambda: not broker.wire.connected)
        asking = asyncio.create_task(broker.rate_limits.reserve(key, Rate(1, 3600), RateRequest()))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

        proxy.heal()
        await until(lambda: broker.wire.connected)
        assert (await broker.rate_limits.reserve(key, Rate(1, 3600), RateRequest())).reserved


async def test_a_reservation_whose_reply_is_lost_counts_once(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = await client.broker()
    await broker.streams.ensure_shared()
    key, publish, lost = broker.subjects.limits.task_rate("any"), Wire.publish, asyncio.Event()

    async def lose(self: Wire, subject: str, *args: Any, **named: Any) -> int:
        sequence = await publish(self, subject, *args, **named)
        if subject == key and not lost.is_set():
            lost.set()
            raise NoReply("the link broke", sent=True)
        return sequence

    monkeypatch.setattr(Wire, "publish", lose)
    assert (await broker.rate_limits.reserve(key, Rate(1, 3600), RateRequest())).reserved
    assert lost.is_set()
    assert not (await broker.rate_limits.reserve(key, Rate(1, 3600), RateRequest())).reserved


async def test_a_job_without_a_limit_makes_no_reservation(
    app: App, working: Working, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.task
    async def plain() -> None: ...

    async def fail_to_reserve(*_: object) -> RateReply:
        raise AssertionError("a limiter was asked")

    monkeypatch.setattr(RateLimitStore, "reserve", fail_to_reserve)
    async with working():
        jobs = [await plain.submit() for _ in range(20)]
        await asyncio.gather(*(job.result(WAIT) for job in jobs))


@pytest.mark.parametrize("field", ["rate", "key_rate"])
@pytest.mark.parametrize("value", ["", "10", "0/s", "x/s", "10/ms", 10, -1, True, "9999999/s"])
def test_a_bad_rate_of_a_task_is_refused_where_it_is_declared(app: App, field: str, value: object) -> None:
    with pytest.raises(BadOption) as caught:
        app.task(**{field: value})  # type: ignore[call-overload]  # that is what is tested

    assert (caught.value.field, caught.value.value) == (field, value)


def test_a_bad_rate_of_a_queue_is_refused_where_it_is_declared(app: App) -> None:
    with pytest.raises(BadOption, match=r"rate must be a Rate, or text such as"):
        app.queue("mail", rate="10 per second")


@pytest.mark.parametrize("key", ["", "x" * 257, 5, "\ud800"])
async def test_a_bad_key_is_refused_at_the_submit(client: Client, key: str) -> None:
    with pytest.raises(BadOption) as caught:
        client.task("any").options(key=key)

    assert caught.value.field == "key"


async def test_a_delivery_handed_back_by_a_queue_rate_is_counted_as_handed_back(
    app: App, working: Working, until: Until
) -> None:
    handed_back: list[str] = []

    class Counting(Observer):
        def handed_back(self, queue: str) -> None:
            handed_back.append(queue)

    @app.task
    async def note() -> None:
        """Do nothing."""

    app.queue("default", rate="1/m")
    await note.submit_many([()] * 3)
    async with working(observer=Counting()):
        await until(lambda: handed_back)

    assert set(handed_back) == {"default"}
