"""Scheduling, uniqueness and limits on three servers: the guarantees hold while leaders are lost.

Each test runs the feature continuously. Meanwhile it takes away the leaders of the streams that the feature
uses: they are killed, or partitioned from the other servers while their clients stay connected. No error may
reach a client. The assertions use what the tasks recorded themselves.
"""

import asyncio
import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest

from jsq import App, Client, Context, Failure, JobExpired, JobHandle, Login, Rate, WrongState
from jsq.broker import Broker
from jsq.broker.topology.subjects import Subjects
from jsq.client.submitter import Submitter
from jsq.model.unique import JobLife
from jsq.settings import QueueSettings, WorkerSettings
from jsq.worker import Worker
from tests.helpers.cluster import Cluster, Node, cluster
from tests.helpers.conditions import Until
from tests.helpers.key_groups import nothing_is_left
from tests.helpers.rate_limits import most_in_a_window
from tests.helpers.workers import running_worker

pytestmark = pytest.mark.proof

NAMESPACE = "flow"
NAMES = Subjects(NAMESPACE)
LEASE = 15.0
WAIT = 90.0

AHEAD = 10
"""Number of jobs of a kind that may wait: jobs in progress when a leader is lost, not a flood."""

Declare = Callable[[App], None]
Goal = Callable[[], bool]
Loss = Literal["killed", "cut off"]


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Cluster]:
    """Three healthy servers."""
    async with cluster(tmp_path) as servers:
        yield servers


@pytest.fixture
async def client(three: Cluster) -> AsyncIterator[Client]:
    """A client of three servers that store every stream."""
    async with Client(three.url, namespace=NAMESPACE) as client:
        await client.admin.provision(replicas=3)
        yield client


@pytest.fixture
async def broker(client: Client) -> Broker:
    return await client.broker()


@contextlib.asynccontextmanager
async def running_workers(
    three: Cluster, declare: Declare, number: int = 2, **settings: Any
) -> AsyncIterator[None]:
    """Workers, each with its own connection to any of the servers."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(number):
            app = await stack.enter_async_context(App(three.url, namespace=NAMESPACE))
            app.queue("default", lease=LEASE)
            declare(app)
            await stack.enter_async_context(running_worker(Worker(app, settings=WorkerSettings(**settings))))
        yield


@contextlib.asynccontextmanager
async def meanwhile(*acts: Callable[[int], Awaitable[object]]) -> AsyncIterator[None]:
    """Call each of these repeatedly, with an increasing number. An exception of one ends the test."""
    stop = asyncio.Event()

    async def repeat(act: Callable[[int], Awaitable[object]]) -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            await act(number)

    async with asyncio.TaskGroup() as group:
        for act in acts:
            group.create_task(repeat(act))
        yield
        stop.set()


@contextlib.asynccontextmanager
async def without_leader(
    three: Cluster, client: Client, stream: str, loss: Loss = "killed"
) -> AsyncIterator[Node]:
    """The time without the leader of a stream. At the end the server is back and the cluster is healthy."""
    leader = await three.leader(client, stream)
    if loss == "killed":
        await asyncio.to_thread(leader.kill)
    else:
        leader.partition()
    yield leader
    if loss == "killed":
        leader.start()
    else:
        leader.heal()
    await three.wait_healthy(60)


async def lose_each(
    three: Cluster, client: Client, until: Until, continues: Callable[[], Goal], *losses: tuple[str, Loss]
) -> None:
    """Lose the leaders of these streams one after another; work must continue without each of them."""
    for stream, loss in losses:
        async with without_leader(three, client, stream, loss):
            await until(continues(), WAIT)


def more(count: Callable[[], int], by: int) -> Goal:
    """Whether the count has risen by this number."""
    aim = count() + by
    return lambda: count() >= aim


def more_of_each(count: Callable[[str], int], names: Iterable[str], by: int) -> Goal:
    aims = {name: count(name) + by for name in names}
    return lambda: all(count(name) >= aim for name, aim in aims.items())


async def all_succeed(jobs: Iterable[JobHandle[Any]]) -> None:
    records = await asyncio.gather(*(job.wait(WAIT) for job in jobs))
    assert Counter(record.state for record in records) == {"succeeded": len(records)}


# -- where streams are stored --------------------------------------------------------------------------------


async def jsq(three: Cluster, *words: str) -> str:
    """The output of a command that succeeds."""
    environment = {**os.environ, "JSQ_URL": three.url, "JSQ_NAMESPACE": NAMESPACE}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "jsq", *words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, (output, errors)
    return output.decode()


async def use(client: Client, queue: str) -> list[JobHandle[Any]]:
    """Create everything that is created on first use. Returns jobs that run."""
    waiting = client.task("note").options(queue=queue, delay=3600)
    await waiting.submit()
    await client.task("note").options(queue=queue, delay=3600, unique="u").submit()
    await client.queues.pause(queue, task="other", until=3600)
    await client.schedules.add(f"daily-{queue}", "note", every=86_400, queue=queue)
    return [
        await client.task("note").options(queue=queue, key="k").submit(),
        await client.task("note").options(queue=queue, id=f"own-{queue}").submit(),
        *await client.task("note").options(queue=queue).submit_many([()] * 5, all_or_nothing=True),
    ]


async def replicas(client: Client) -> dict[str, int]:
    """The number of servers that store each stream of the namespace and are up to date."""
    reply = await (await client.broker()).wire.api("STREAM.LIST")
    found: dict[str, int] = dict.fromkeys(reply.get("missing") or [], 0)
    for stream in reply["streams"]:
        others = stream["cluster"].get("replicas") or []
        found[stream["config"]["name"]] = 1 + sum(other["current"] for other in others)
        assert stream["config"]["num_replicas"] == 1 + len(others)
    return found


async def test_all_present_and_later_streams_have_the_requested_replicas(
    three: Cluster, until: Until
) -> None:
    def declare(app: App) -> None:
        app.queue("before", lease=LEASE)
        app.queue("after", lease=LEASE, rate="1000/s")

        @app.task(name="note", rate="1000/s")
        async def note() -> None: ...

    async with Client(three.url, namespace=NAMESPACE) as client:

        async def held_by_all() -> bool:
            return set((await replicas(client)).values()) == {3}

        await jsq(three, "provision", "--replicas", "1")  # a new namespace has three by default
        jobs = await use(client, "before")
        alone = await replicas(client)
        assert set(alone.values()) == {1}
        await jsq(three, "provision", "--replicas", "3")
        assert set((await replicas(client)).values()) == {3}
        jobs += await use(client, "after")
        subjects = (await client.broker()).subjects
        async with (
            without_leader(three, client, subjects.streams.group_state("before")),
            running_workers(three, declare),
        ):
            await all_succeed(jobs)
        await until(held_by_all, WAIT)
        made = await replicas(client)
        assert alone.keys() < made.keys()
        assert {subjects.streams.groups("after"), subjects.streams.group_state("after")} <= made.keys()
        assert await client.admin.provision(replicas=3) == []

        async with running_workers(three, declare, number=1):
            await three.wait_healthy()
            monitors = [word for node in three.nodes for word in ("--monitor", node.monitor)]
            output = await jsq(three, "doctor", *monitors, "-o", "jsonl")
            findings = [json.loads(line) for line in output.splitlines()]
        assert {finding["severity"] for finding in findings} == {"ok"}, findings


# -- concurrency and rates -----------------------------------------------------------------------------------


@dataclass
class RunLog:
    """The runs of keyed jobs: key, number, start and end of each."""

    visit_runs: list[tuple[str, int, float, float]] = field(default_factory=list)

    def declare(self, app: App) -> None:
        @app.task(retries=5, backoff=[0.05])
        async def visit(ctx: Context, key: str, number: int) -> None:
            since = time.monotonic()
            try:
                await asyncio.sleep(0.02)
            finally:
                self.visit_runs.append((key, number, since, time.monotonic()))
            if number % 7 == 3 and ctx.attempt == 1:
                raise ValueError("once more")

    def of(self, key: str) -> list[tuple[int, float, float]]:
        """The runs of a key, in the order of their starts."""
        found = [(number, since, until) for owner, number, since, until in self.visit_runs if owner == key]
        return sorted(found, key=lambda visit_run: visit_run[1])

    def most_at_once(self, key: str) -> int:
        visit_runs = self.of(key)
        return max(sum(since <= one <= until for _, since, until in visit_runs) for _, one, _ in visit_runs)


async def test_key_groups_keep_their_order_and_their_limit(
    three: Cluster, client: Client, broker: Broker, until: Until
) -> None:
    run_log, subjects = RunLog(), broker.subjects
    jobs: dict[str, list[JobHandle[Any]]] = defaultdict(list)

    def keyed_submits(key: str, per_key: int) -> Callable[[int], Awaitable[None]]:
        async def submit_next(number: int) -> None:
            if number >= AHEAD:
                await jobs[key][number - AHEAD].wait(WAIT)
            submitter = client.task("visit").options(key=key, per_key=per_key)
            jobs[key].append(await submitter.submit(key, number))

        return submit_next

    some = [keyed_submits(f"one-{n}", 1) for n in range(3)] + [keyed_submits(f"two-{n}", 2) for n in range(2)]
    async with running_workers(three, run_log.declare):
        async with meanwhile(*some):
            await until(lambda: len(run_log.visit_runs) > 40, WAIT)
            await lose_each(
                three,
                client,
                until,
                lambda: more(lambda: len(run_log.visit_runs), 60),
                (subjects.streams.group_state("default"), "killed"),
                (subjects.streams.groups("default"), "cut off"),
            )
        await all_succeed(job for own in jobs.values() for job in own)
        await until(lambda: nothing_is_left(broker), 60)

    for key in jobs:
        numbers = [number for number, _, _ in run_log.of(key)]
        assert set(numbers) == set(range(len(jobs[key])))
        if key.startswith("one"):
            assert numbers == sorted(numbers)
    assert {key: run_log.most_at_once(key) for key in jobs} == {
        "one-0": 1,
        "one-1": 1,
        "one-2": 1,
        "two-0": 2,
        "two-1": 2,
    }


async def test_rates_hold_and_the_concurrency_of_a_queue_changes_live(
    three: Cluster, client: Client, broker: Broker, until: Until
) -> None:
    starts: dict[str, list[float]] = defaultdict(list)
    running: Counter[str] = Counter()
    peaks: Counter[str] = Counter()

    def declare(app: App) -> None:
        app.queue("mail", lease=LEASE, rate="20/2s")

        @app.task(queue="mail")
        async def send(number: int) -> None:
            starts["queue"].append(time.time())

        @app.task(rate="8/2s")
        async def call(number: int) -> None:
            starts["task"].append(time.time())

        @app.task(key_rate=Rate(6, 2))
        async def ring(key: str, number: int) -> None:
            starts[key].append(time.time())

        @app.task(queue="narrow")
        async def squeeze(number: int) -> None:
            running["narrow"] += 1
            peaks["narrow"] = max(peaks["narrow"], running["narrow"])
            await asyncio.sleep(0.1)  # long enough that four overlap while one client submits
            running["narrow"] -= 1

    await client.admin.provision({"narrow": QueueSettings(replicas=3, lease=LEASE, concurrency=1)})
    limits, jobs = broker.subjects.streams.bucket("limits"), dict[str, list[JobHandle[Any]]]()

    def repeated_submits(
        name: str, submitter: Submitter[..., Any], *arguments: str
    ) -> Callable[[int], Awaitable[None]]:
        """Submit jobs one after another, so many in advance that one always has to wait."""
        own = jobs[name] = []

        async def ask(number: int) -> None:
            if number >= 4 * AHEAD:
                await own[number - 4 * AHEAD].wait(WAIT)
            own.append(await submitter.submit(*arguments, number))

        return ask

    def continues() -> Goal:
        return more_of_each(lambda name: len(starts[name]), ("queue", "task", "key a", "key b"), 6)

    async with running_workers(three, declare):
        async with meanwhile(
            repeated_submits("queue", client.task("send").options(queue="mail")),
            repeated_submits("task", client.task("call")),
            repeated_submits("key a", client.task("ring").options(key="key a"), "key a"),
            repeated_submits("key b", client.task("ring").options(key="key b"), "key b"),
            repeated_submits("narrow", client.task("squeeze").options(queue="narrow")),
        ):
            await until(continues(), WAIT)
            await until(lambda: peaks["narrow"], WAIT)
            assert peaks["narrow"] == 1
            async with without_leader(three, client, limits):
                await client.queues.update("narrow", concurrency=3)
                await until(lambda: peaks["narrow"] == 3, WAIT)
                await until(continues(), WAIT)
            async with without_leader(three, client, broker.subjects.streams.ready("narrow")):
                await client.queues.update("narrow", concurrency=None)
                await until(lambda: peaks["narrow"] > 3, WAIT)
            async with without_leader(three, client, limits, "cut off"):
                await until(continues(), WAIT)
        await all_succeed(job for own in jobs.values() for job in own)

    assert most_in_a_window(starts["queue"], 2) <= 20
    assert most_in_a_window(starts["task"], 2) <= 8
    assert most_in_a_window(starts["key a"], 2) <= 6
    assert most_in_a_window(starts["key b"], 2) <= 6


async def test_a_paused_job_waits_and_continues(
    three: Cluster, client: Client, broker: Broker, until: Until
) -> None:
    started: Counter[str] = Counter()
    at: dict[str, float] = {}

    def declare(app: App) -> None:
        app.queue("mail", lease=LEASE)
        app.queue("soon", lease=LEASE)

        @app.task(name="note")
        async def note(owner: str) -> None:
            started[owner] += 1
            at.setdefault(owner, time.time())

        @app.task(name="call")
        async def call(owner: str) -> None:
            started[owner] += 1

    async def some(owner: str, task: str = "note", **options: Any) -> list[JobHandle[Any]]:
        submitter = client.task(task).options(**options)
        return [await submitter.submit(owner) for _ in range(5)]

    async def each() -> list[JobHandle[Any]]:
        return [
            *await some("queue", queue="mail"),
            *await some("task", "call"),
            *await some("key", key="k"),
            *await some("moment", queue="soon"),
        ]

    async def nothing_is_held() -> bool:
        return await client.queues.pauses() == {}

    limits = broker.subjects.streams.bucket("limits")
    jobs: list[JobHandle[Any]] = []
    async with running_workers(three, declare):
        async with without_leader(three, client, limits):
            await client.queues.pause("mail")
            await client.queues.pause("default", task="call")
            await client.queues.pause("default", key="k")
            hold = await client.queues.pause("soon", until=8.0)
            jobs += await each()
            await all_succeed(await some("free"))
        async with without_leader(three, client, broker.subjects.streams.ready("mail"), "cut off"):
            jobs += await each()
            await all_succeed(await some("free"))
        assert set(started) <= {"free", "moment"}
        assert hold.until is not None
        await until(lambda: started["moment"] == 10, WAIT)
        assert at["moment"] >= hold.until.timestamp() - 0.05
        async with without_leader(three, client, broker.subjects.streams.scheduled("default")):
            await client.queues.resume("default", key="k")
            await client.queues.resume("default", task="call")
            await until(lambda: started["key"] + started["task"] == 20, WAIT)
        async with without_leader(three, client, broker.subjects.streams.ready("mail")):
            await client.queues.resume("mail")
            await until(lambda: started["queue"] == 10, WAIT)
        await all_succeed(jobs)
    await until(nothing_is_held)


# -- bulks, maps and batches ---------------------------------------------------------------------------------


@dataclass
class Bulks:
    """The jobs submitted in bulk, and the results of the tasks and of map."""

    client: Client
    ran: Counter[int] = field(default_factory=Counter)
    gathered: Counter[int] = field(default_factory=Counter)
    bulks: list[list[JobHandle[Any]]] = field(default_factory=list)
    items: list[JobHandle[Any]] = field(default_factory=list)
    mapped: list[int] = field(default_factory=list)

    def declare(self, app: App) -> None:
        @app.task(name="note")
        async def note(number: int) -> int:
            self.ran[number] += 1
            return number

        @app.task(name="double")
        async def double(number: int) -> int:
            return 2 * number

        @app.batch_task(name="index", size=20, wait=0.2)
        async def index(some: list[int]) -> list[int]:
            self.gathered.update(some)
            return [3 * one for one in some]

    async def bulk(self, number: int) -> None:
        if number >= AHEAD:
            await self.bulks[number - AHEAD][-1].wait(WAIT)
        calls = [(20 * number + place,) for place in range(20)]
        self.bulks.append(await self.client.task("note").submit_many(calls, all_or_nothing=True))

    async def item(self, number: int) -> None:
        if number >= 4 * AHEAD:
            await self.items[number - 4 * AHEAD].wait(WAIT)
        self.items.append(await self.client.task("index").submit(number))

    async def map_some(self, number: int) -> None:
        calls = range(50 * number, 50 * number + 50)
        self.mapped.extend([one async for one in self.client.task("double").map(calls, window=20)])

    @property
    def counts(self) -> tuple[int, ...]:
        return len(self.bulks), len(self.items), len(self.mapped), self.gathered.total()

    def continues(self) -> Goal:
        """Whether each count has risen since the call."""
        aims = [count + more for count, more in zip(self.counts, (5, 40, 50, 40), strict=True)]
        return lambda: all(count >= aim for count, aim in zip(self.counts, aims, strict=True))


async def test_bulks_maps_and_batches_lose_no_job_and_stay_complete(
    three: Cluster, client: Client, broker: Broker, until: Until
) -> None:
    some, subjects = Bulks(client), broker.subjects
    async with running_workers(three, some.declare):
        async with meanwhile(some.bulk, some.item, some.map_some):
            await until(some.continues(), WAIT)
            await lose_each(
                three,
                client,
                until,
                some.continues,
                (subjects.streams.ready("default"), "killed"),
                (subjects.streams.records, "cut off"),
            )
        results = [[await job.result(WAIT) for job in jobs] for jobs in some.bulks]
        tripled = [await job.result(WAIT) for job in some.items]

    assert results == [list(range(20 * n, 20 * n + 20)) for n in range(len(results))]
    assert set(some.ran) == set(range(20 * len(results))), "nothing ran that was in no accepted bulk"
    assert tripled == [3 * n for n in range(len(tripled))]
    assert set(some.gathered) == set(range(len(tripled)))
    assert some.mapped == [2 * n for n in range(len(some.mapped))]
    assert await client.dead_letters.list() == []


# -- scheduling ----------------------------------------------------------------------------------------------


async def test_expired_jobs_never_start_and_moved_jobs_run_at_their_new_time(
    three: Cluster, client: Client, broker: Broker, until: Until
) -> None:
    started: dict[str, list[float]] = defaultdict(list)

    def declare(app: App) -> None:
        app.queue("shut", lease=LEASE)

        @app.task(name="note")
        async def note(ctx: Context) -> None:
            started[ctx.id].append(time.time())

    async def delayed(seconds: float, count: int = 30) -> list[JobHandle[Any]]:
        return [await client.task("note").options(delay=seconds).submit() for _ in range(count)]

    later, shut = broker.subjects.streams.scheduled("default"), broker.subjects.streams.ready("shut")
    rescheduled: list[JobHandle[Any]] = []
    await client.admin.provision({"shut": QueueSettings(replicas=3, lease=LEASE)})
    async with running_workers(three, declare):
        await client.queues.pause("shut")
        delayed_jobs = [await delayed(3600) for _ in range(3)]
        racing = await delayed(4, 60)
        lost = [await client.task("note").options(queue="shut", expires=6).submit() for _ in range(20)]
        async with without_leader(three, client, later):
            await asyncio.gather(*(job.promote() for job in delayed_jobs[0]))
            moved = await asyncio.gather(*(job.reschedule(delay=1) for job in delayed_jobs[1]))
            # Only one of a reschedule and the firing happens, and the caller knows which.
            for job in racing:
                with contextlib.suppress(WrongState):
                    await job.reschedule(delay=3600)
                    rescheduled.append(job)
            await all_succeed([*delayed_jobs[0], *delayed_jobs[1]])
        async with without_leader(three, client, later, "cut off"):
            await asyncio.gather(*(job.promote() for job in delayed_jobs[2]))
            await all_succeed(delayed_jobs[2])
        async with without_leader(three, client, shut):
            lost += [await client.task("note").options(queue="shut", expires=1).submit() for _ in range(20)]
            for job in lost:
                with pytest.raises(JobExpired):
                    await job.result(WAIT)
            await client.queues.resume("shut")
            in_time = await client.task("note").options(queue="shut", expires=60).submit()
            await all_succeed([in_time])
        assert not any(started[job.id] for job in (*lost, *rescheduled))
        assert [one.state for one in await asyncio.gather(*(job.status() for job in rescheduled))] == [
            "scheduled"
        ] * len(rescheduled)
        await asyncio.gather(*(job.promote() for job in rescheduled))
        await all_succeed(racing)

    for job, result in zip(delayed_jobs[1], moved, strict=True):
        assert result.due is not None
        assert started[job.id][0] >= result.due.timestamp() - 0.05
    ids = {job.id for jobs in (*delayed_jobs, racing, [in_time]) for job in jobs}
    assert {id for id in started if started[id]} == ids
    assert not any(started[job.id] for job in lost)


async def test_callbacks_are_called_once_for_each_dead_letter(
    three: Cluster, client: Client, broker: Broker, until: Until
) -> None:
    calls: dict[str, Counter[tuple[str, int]]] = defaultdict(Counter)
    jobs: list[JobHandle[Any]] = []

    def declare(app: App) -> None:
        @app.task(name="note")
        async def note(ctx: Context, failure: Failure) -> None:
            calls["note"][failure.job, failure.attempt] += 1

        @app.task(name="report_death")
        async def report_death(ctx: Context, failure: Failure) -> None:
            calls["report_death"][failure.job, failure.attempt] += 1

        @app.task(name="down", retries=1, backoff=[0.05], on_failure="note", on_dead="report_death")
        async def down(number: int) -> None:
            raise ValueError("no")

    async def fail(number: int) -> None:
        if number >= AHEAD:
            assert (await jobs[number - AHEAD].wait(WAIT)).state == "failed"
        jobs.append(await client.task("down").submit(number))

    async def nothing_is_stored() -> bool:
        return not await broker.job_reader.waiting_ids("default")

    async with running_workers(three, declare):
        async with meanwhile(fail):
            await until(lambda: calls["report_death"].total() > 5, WAIT)
            await lose_each(
                three,
                client,
                until,
                lambda: more(calls["report_death"].total, 20),
                (broker.subjects.streams.records, "killed"),
                (broker.subjects.streams.records, "cut off"),
            )
        for job in jobs:
            assert (await job.wait(WAIT)).state == "failed"
        await until(nothing_is_stored, 60)

    assert set(calls["report_death"]) == {(job.id, 2) for job in jobs}
    assert set(calls["note"]) == {(job.id, attempt) for job in jobs for attempt in (1, 2)}
    assert {dead_letter.id for dead_letter in await client.dead_letters.list()} == {job.id for job in jobs}


# -- uniqueness ----------------------------------------------------------------------------------------------


@dataclass
class Keys:
    """The job of each submit of a unique key, and which of the calls ran."""

    client: Client
    ran: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    gates: dict[str, asyncio.Event] = field(default_factory=lambda: defaultdict(asyncio.Event))
    first: dict[str, JobHandle[Any]] = field(default_factory=dict)
    last: dict[str, JobHandle[Any]] = field(default_factory=dict)

    def declare(self, app: App) -> None:
        @app.task(name="note")
        async def note(key: str, number: int) -> None:
            self.ran[key].append(number)

        @app.task(name="wait")
        async def wait(key: str, number: int) -> None:
            self.ran[key].append(number)
            await self.gates[key].wait()

    def count(self, way: str) -> int:
        return sum(key.startswith(way) for key in self.last)

    async def returned(self, number: int) -> None:
        key = f"return-{number}"
        submitter = self.client.task("note").options(unique=key, delay=3600)
        jobs = await asyncio.gather(*(submitter.submit(key, n) for n in range(4)))
        assert len({job.id for job in jobs}) == 1
        self.last[key] = jobs[0]

    async def replaced(self, number: int) -> None:
        key = f"replace-{number}"
        submitter = self.client.task("note").options(unique=key, delay=3600, on_duplicate="replace")
        jobs = [await submitter.submit(key, n) for n in range(4)]
        assert len({job.id for job in jobs}) == 4
        self.last[key] = jobs[-1]

    async def keep_last(self, number: int) -> None:
        """Submit a pending duplicate. Its predecessor ends while leaders are lost, or at the end."""
        key = f"keep-{number}"
        submitter = self.client.task("wait").options(unique=key, on_duplicate="keep_last")
        self.first[key] = await submitter.submit(key, 0)
        async for event in self.first[key].events():
            if event.state == "running":
                break
        jobs = [await submitter.submit(key, n) for n in (1, 2, 3)]
        assert len({job.id for job in jobs}) == 1
        self.last[key] = jobs[0]
        if number % 2:
            self.gates[key].set()
            await all_succeed([self.first[key], self.last[key]])


async def test_a_unique_key_has_one_job_with_every_policy_for_duplicates(
    three: Cluster, client: Client, broker: Broker, until: Until
) -> None:
    keys, subjects = Keys(client), broker.subjects
    async with running_workers(three, keys.declare, concurrency=500):
        async with meanwhile(keys.returned, keys.replaced, keys.keep_last):
            await until(lambda: len(keys.last) > 10, WAIT)
            await lose_each(
                three,
                client,
                until,
                lambda: more_of_each(keys.count, ("return", "replace", "keep"), 3),
                (subjects.streams.bucket("ids"), "killed"),
                (subjects.streams.scheduled("default"), "cut off"),
                (subjects.streams.records, "killed"),
            )
        # The ends of the running jobs submit their pending duplicates.
        async with without_leader(three, client, subjects.streams.scheduled("default")):
            for gate in keys.gates.values():
                gate.set()
            await all_succeed([*keys.first.values(), *(keys.last[key] for key in keys.first)])
        delayed = [job for key, job in keys.last.items() if key not in keys.first]
        await asyncio.gather(*(job.promote() for job in delayed))
        await all_succeed(delayed)

    for key, ran in keys.ran.items():
        once = list(dict.fromkeys(ran))  # a job runs again if its worker was partitioned for too long
        if key.startswith("return"):
            assert len(once) == 1
        else:
            assert once == ([3] if key.startswith("replace") else [0, 3])
    assert keys.ran.keys() == keys.last.keys()


async def test_a_client_without_leader_reads_finds_the_state_of_the_leaders(
    tmp_path: Path, until: Until
) -> None:
    """A refused write, and reads of replicas until one has reached the sequence that the refusal named."""
    roles = (
        Client("nats://nowhere", namespace=NAMESPACE).admin.roles("jsq=admin", "web=submitter:default").conf()
    )
    conf = roles.replace("$JSQ_PASSWORD", '"of-jsq"').replace("$WEB_PASSWORD", '"of-web"')
    got: dict[str, set[str]] = defaultdict(set)
    stored: Counter[str] = Counter()

    async with contextlib.AsyncExitStack() as stack:
        three = await stack.enter_async_context(cluster(tmp_path, more=conf))

        async def login_as(user: str, url: str) -> Client:
            login = Login(url=url, user=user, password=f"of-{user}", inbox_prefix=f"_INBOX_{user}")
            return await stack.enter_async_context(Client(login, namespace=NAMESPACE))

        async def submit(web: Client, key: str) -> None:
            job = await web.task("note").options(unique=key, delay=3600).submit()
            got[key].add(job.id)

        async def race(number: int) -> None:
            await asyncio.gather(*[submit(web, f"k{number}") for web in webs])
            stored["keys"] += 1

        admin = await login_as("jsq", three.url)
        await admin.admin.provision(replicas=3)
        webs = [await login_as("web", node.url) for node in three.nodes]
        for number in range(60):
            await race(number)
        all_reads = [(await web.broker()).reads for web in webs]
        assert not any(reads.may_ask_leader(NAMES.streams.bucket("ids")) for reads in all_reads)

        webs = [await login_as("web", three.url) for _ in range(3)]
        async with meanwhile(lambda number: race(60 + number)):
            for stream in (NAMES.streams.bucket("ids"), NAMES.streams.scheduled("default")):
                async with without_leader(three, admin, stream):
                    await until(more(lambda: stored["keys"], 10), WAIT)

        assert {key: len(ids) for key, ids in got.items()} == dict.fromkeys(got, 1)
        ids = await (await admin.broker()).job_reader.waiting_ids("default")
        assert sorted(ids) == sorted(id for ids in got.values() for id in ids)
        lives = [await job_life(one, ids[0]) for one in (admin, *webs)]
        assert lives == [JobLife.DELAYED] * 4
        await admin.jobs.handle(ids[0]).cancel()
        assert [await job_life(one, ids[0]) for one in (admin, *webs)] == [JobLife.ENDED] * 4
        assert [await job_life(one, "none") for one in (admin, *webs)] == [JobLife.MISSING] * 4
        assert len(await (await admin.broker()).job_reader.waiting_ids("default")) == len(ids) - 1, (
            "a probe was stored"
        )


async def job_life(client: Client, id: str) -> JobLife:
    """The state of a job, as a second submit of its key determines it."""
    return (await (await client.broker()).unique.positions.find("default", id)).life


# -- schedules -----------------------------------------------------------------------------------------------


async def test_a_schedule_that_catches_up_all_ticks_loses_and_repeats_none(
    three: Cluster, client: Client, broker: Broker, until: Until
) -> None:
    ran: Counter[str] = Counter()
    subjects = broker.subjects

    def declare(app: App) -> None:
        @app.every(1, catch_up="all")
        async def beat(ctx: Context) -> None:
            ran[ctx.headers["tick"]] += 1

    async with running_workers(three, declare):
        await until(lambda: len(ran) >= 2, WAIT)
        await lose_each(
            three,
            client,
            until,
            lambda: more(lambda: len(ran), 12),
            (subjects.streams.scheduled("default"), "cut off"),
            (subjects.streams.ready("default"), "killed"),
        )

    ticks = sorted(datetime.fromisoformat(tick) for tick in ran)
    assert ticks == [ticks[0] + timedelta(seconds=number) for number in range(len(ticks))]
    assert set(ran.values()) == {1}
