"""Key groups: the jobs of a key run in order or a few at a time, and no key waits for another one.

The assertions use what the tasks recorded themselves.
"""

import asyncio
import functools
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jsq import App, Client, Context, JobHandle, QueueFull, Reject, Retry
from jsq.broker import Broker
from jsq.broker.flow.key_groups import KeyGroups
from jsq.broker.topology import streams
from jsq.broker.topology.configs import WAKEUPS
from jsq.codec.subject_token import ANY
from jsq.model.key_group import GroupState, key_token
from jsq.model.repair import Inconsistency
from jsq.model.revision import FINAL_STATES, Revision
from jsq.server import EmbeddedServer
from jsq.settings import QueueSettings, WorkerSettings
from jsq.transport.replies import Reply
from jsq.worker import Worker
from jsq.worker.duties.group_wakeups import GroupWakeups
from tests.helpers.conditions import Until
from tests.helpers.forkserver import ForkServer
from tests.helpers.jobs import final_states
from tests.helpers.key_groups import QUEUE, nothing_is_left, on_queue, waiting_for_key
from tests.helpers.workers import Workers, Working, running_worker, worker_processes


@pytest.fixture
async def broker(client: Client) -> Broker:
    return await client.broker()


@pytest.fixture
async def workers(
    server: EmbeddedServer, namespace: str, tmp_path: Path, forks: ForkServer
) -> AsyncIterator[Workers]:
    async with worker_processes(server.url, namespace, tmp_path, forks) as workers:
        yield workers


@dataclass
class RunLog:
    """The runs of tasks in this process: the starts in order, and how many of a key ran at a time."""

    started: list[str]
    running: Counter[str]
    peak: Counter[str]
    gate: asyncio.Event

    def count(self, key: str) -> int:
        return sum(one.startswith(f"{key}:") for one in self.started)


@pytest.fixture
def run_log(app: App) -> RunLog:
    """Declares `visit`, which records its run, and `wait`, which also waits for the gate."""
    run_log = RunLog([], Counter(), Counter(), asyncio.Event())

    def record_start(key: str, number: int) -> None:
        run_log.started.append(f"{key}:{number}")
        run_log.running[key] += 1
        run_log.peak[key] = max(run_log.peak[key], run_log.running[key])

    @app.task
    async def visit(key: str, number: int) -> None:
        record_start(key, number)
        await asyncio.sleep(0)
        run_log.running[key] -= 1

    @app.task
    async def wait(key: str, number: int) -> None:
        record_start(key, number)
        try:
            await run_log.gate.wait()
        finally:
            run_log.running[key] -= 1

    return run_log


async def to(client: Client, key: str, number: int, task: str = "visit", **options: Any) -> JobHandle[Any]:
    return await client.task(task).options(key=key, **options).submit(key, number)


async def group_state(broker: Broker, key: str, queue: str = QUEUE) -> GroupState:
    return (await broker.key_groups.state(queue, key_token(key)))[0]


async def admit_jobs(broker: Broker, *keys: str) -> None:
    """Admit jobs of keys, as a worker does for a wake-up."""
    for key in keys:
        await broker.key_groups.admit(QUEUE, key_token(key))


# -- order and limits, with a killed worker ------------------------------------------------------------------


@dataclass(frozen=True)
class VisitRun:
    """One run of a task: its key, number, start, end and process."""

    key: str
    number: int
    since: float
    until: float
    pid: int


def visit_runs(workers: Workers, killed: dict[int, float]) -> list[VisitRun]:
    """The runs of `visit`, in the order of their starts. The runs of a killed worker ended with it."""
    lines = [line.split() for line in workers.effects_file.read_text().splitlines()]
    ends = {(pid, word[4:], job, n): float(at) for at, pid, word, job, n in lines if word.startswith("out:")}
    found = []
    for at, pid, word, job, n in lines:
        if word.startswith("in:"):
            _, key, number = word.split(":")
            end = ends.get((pid, word[3:], job, n)) or killed[int(pid)]
            found.append(VisitRun(key, int(number), float(at), end, int(pid)))
    return sorted(found, key=lambda visit_run: visit_run.since)


def most_at_once(some: list[VisitRun]) -> int:
    return max(sum(other.since <= one.since < other.until for other in some) for one in some)


async def visits(workers: Workers, keys: int, each: int, per_key: int) -> list[JobHandle[Any]]:
    """Submit jobs of some keys, each seventh of which fails once."""
    return [
        await workers.client.task("visit")
        .options(key=f"k{key}", per_key=per_key)
        .submit(f"k{key}", number, 0.05, number % 7 == 3)
        for number in range(each)
        for key in range(keys)
    ]


async def run_and_kill(
    workers: Workers, until: Until, *shape: int
) -> tuple[list[JobHandle[Any]], list[VisitRun]]:
    """Let two workers run jobs, and kill one of them that runs some. Returns the jobs and the runs."""
    both = [await workers.start("--concurrency", "10", lease=1.5) for _ in range(2)]
    await workers.client.queues.pause(QUEUE)  # otherwise the jobs may have run before all are submitted
    jobs = await visits(workers, *shape)
    await workers.client.queues.resume(QUEUE)
    doomed = both[1]

    def runs() -> bool:
        words = [line.split() for line in workers.effects_file.read_text().splitlines()]
        own = [word for _, pid, word, _, _ in words if pid == str(doomed.pid)]
        begun = sum(word.startswith("in:") for word in own)
        return len(own) > 20 and 2 * begun > len(own)

    await until(runs, 30)
    doomed.kill()
    killed = {doomed.pid: time.time()}
    await asyncio.gather(*(job.wait(60) for job in jobs))
    found = visit_runs(workers, killed)
    assert {visit_run.pid for visit_run in found} == {process.pid for process in both}
    return jobs, found


async def test_with_one_job_at_a_time_each_key_keeps_its_order_over_a_killed_worker(
    workers: Workers, until: Until
) -> None:
    jobs, found = await run_and_kill(workers, until, 10, 15, 1)

    by_key: dict[str, list[VisitRun]] = defaultdict(list)
    for visit_run in found:
        by_key[visit_run.key].append(visit_run)
    for some in by_key.values():
        numbers = [visit_run.number for visit_run in some]
        assert numbers == sorted(numbers)
        assert set(numbers) == set(range(15))
        assert most_at_once(some) == 1
    assert [await final_states(job) for job in jobs] == [["succeeded"]] * len(jobs)
    broker = await workers.client.broker()
    await until(lambda: nothing_is_left(broker))


async def test_a_key_never_exceeds_its_limit_over_a_killed_worker(workers: Workers, until: Until) -> None:
    jobs, found = await run_and_kill(workers, until, 4, 36, 3)

    peaks = {key: most_at_once([one for one in found if one.key == key]) for key in ("k0", "k1", "k2", "k3")}
    assert max(peaks.values()) == 3
    assert [await final_states(job) for job in jobs] == [["succeeded"]] * len(jobs)
    broker = await workers.client.broker()
    await until(lambda: nothing_is_left(broker))


async def test_a_server_killed_repeatedly_loses_no_slot_and_no_order(
    own_server: EmbeddedServer, until: Until, tmp_path: Path, forks: ForkServer
) -> None:
    async with worker_processes(own_server.url, "jsq", tmp_path, forks) as workers:
        await workers.start("--concurrency", "5", lease=2)
        await workers.start("--concurrency", "5", lease=2)
        jobs: list[JobHandle[Any]] = []
        chance = random.Random(7)
        for number in range(24):
            for key in range(3):
                options = workers.client.task("visit").options(
                    key=f"k{key}", per_key=1 + key, id=f"k{key}-{number}"
                )
                jobs.append(await options.submit(f"k{key}", number, 0.002, number % 9 == 4))
            if number % 8 == 3:
                await asyncio.sleep(chance.uniform(0, 0.05))  # not a wait: any moment is suitable
                own_server.kill()
                own_server.restart()
        await asyncio.gather(*(job.wait(60) for job in jobs))

        found = [visit_run for visit_run in visit_runs(workers, {}) if visit_run.key == "k0"]
        assert [visit_run.number for visit_run in found] == sorted(visit_run.number for visit_run in found)
        assert most_at_once(found) == 1
        assert [await final_states(job) for job in jobs] == [["succeeded"]] * len(jobs)
        broker = await workers.client.broker()
        await until(lambda: nothing_is_left(broker), 30)


# -- fairness ------------------------------------------------------------------------------------------------


async def test_ten_jobs_of_one_key_do_not_wait_for_hundreds_of_another(
    client: Client, broker: Broker, working: Working, run_log: RunLog, until: Until
) -> None:
    await client.task("visit").options(key="many").submit_many([("many", number) for number in range(500)])
    async with working(concurrency=5):
        await until(lambda: len(run_log.started) > 50)
        before = len(run_log.started)
        few = [await to(client, "few", number) for number in range(10)]
        await asyncio.gather(*(job.wait(10) for job in few))
        started = run_log.started[before:]
        last = max(place for place, one in enumerate(started) if one.startswith("few:"))
        others = sum(one.startswith("many:") for one in started[:last])

        # One job of `many` for each of `few`, and those that started while the few were being submitted.
        first = min(place for place, one in enumerate(started) if one.startswith("few:"))
        assert others - first <= 30
        assert [one for one in started if one.startswith("few:")] == [f"few:{number}" for number in range(10)]
        assert run_log.count("many") < 500
        assert await client.queues.purge(QUEUE) > 0
        await until(lambda: nothing_is_left(broker))


async def test_a_key_with_a_weight_of_three_starts_three_jobs_for_each_of_another(
    app: App, client: Client, working: Working, run_log: RunLog, until: Until
) -> None:
    app.queue(QUEUE, weights={"gold": 3})
    await client.admin.provision(app.declared)
    for key in ("gold", "tin"):
        await client.task("visit").options(key=key).submit_many([(key, number) for number in range(120)])

    async with working(concurrency=1):
        await until(lambda: run_log.count("gold") and run_log.count("tin"))
        before = len(run_log.started)
        await until(lambda: len(run_log.started) >= before + 80, 30)

    started = [one.partition(":")[0] for one in run_log.started[before : before + 80]]
    assert 56 <= started.count("gold") <= 64
    # The keys alternate; no key starts a dozen jobs in a row.
    assert all(2 <= started[start : start + 8].count("gold") <= 8 for start in range(0, 72, 8))


@pytest.mark.parametrize("way", ["set", "provision"])
async def test_a_changed_key_group_limit_reaches_a_running_worker_and_waiting_jobs(
    way: str,
    app: App,
    server: EmbeddedServer,
    client: Client,
    working: Working,
    run_log: RunLog,
    until: Until,
) -> None:
    """The caller admits waiting jobs at once; the worker uses the new limit for its next admissions."""
    app.queue(QUEUE, per_key=1)
    first_gate = asyncio.Event()

    @app.task
    async def go(key: str, number: int) -> None:
        run_log.started.append(f"{key}:{number}")
        await (first_gate if number == 0 else run_log.gate).wait()

    async with (
        working(concurrency=20) as worker,
        Client(server.url, namespace=client.namespace) as other,
    ):
        jobs = [await to(client, "k", number, "go") for number in range(6)]
        others = [await to(client, "o", number + 1, "go") for number in range(2)]
        await until(lambda: (run_log.count("k"), run_log.count("o")) == (1, 1))
        if way == "set":
            await other.queues.update(QUEUE, per_key=3)
        else:
            await other.admin.provision({QUEUE: QueueSettings(per_key=3)})
        await until(lambda: (run_log.count("k"), run_log.count("o")) == (3, 2))  # and no job has ended

        async def has_learned() -> bool:
            return (await worker.resources.broker.key_groups._limits(QUEUE)).per_key == 3

        await until(has_learned, 5)  # the worker is notified at once, before its next refresh
        first_gate.set()
        await jobs[0].wait(10)
        await until(lambda: run_log.count("k") == 4)
        assert (await client.queues.stats(QUEUE))[0].waiting_for_key == 2
        run_log.gate.set()
        await asyncio.gather(*(job.wait(10) for job in (*jobs, *others)))


async def test_cached_settings_of_a_queue_expire(
    server: EmbeddedServer, client: Client, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that is not a worker receives no notification, and reads the settings again after a while."""
    await client.admin.provision({QUEUE: QueueSettings(per_key=1)})
    assert (await broker.streams.settings(QUEUE)).per_key == 1
    async with Client(server.url, namespace=client.namespace) as other:
        await other.queues.update(QUEUE, per_key=2)

    assert (await broker.streams.settings(QUEUE)).per_key == 1
    monkeypatch.setattr(streams, "SETTINGS_SECONDS", 0.0)
    assert (await broker.streams.settings(QUEUE)).per_key == 2


async def test_whether_a_queue_has_key_groups_is_asked_once_for_concurrent_submits(
    server: EmbeddedServer, client: Client, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    api_calls = count_calls(broker, "STREAM.INFO.", monkeypatch)
    await client.admin.provision()
    api_calls.clear()

    assert not any(await asyncio.gather(*(broker.streams.has_groups(QUEUE) for _ in range(100))))
    assert len(api_calls) <= 2
    async with Client(server.url, namespace=client.namespace) as other:
        await to(other, "k", 1)
    assert all(await asyncio.gather(*(broker.streams.has_groups(QUEUE) for _ in range(100))))
    assert len(api_calls) <= 4
    assert await broker.streams.has_groups(QUEUE)
    assert len(api_calls) <= 4


async def test_jobs_without_keys_are_cancelled_without_a_read_of_key_groups(
    client: Client, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.task("visit").submit_many([("none", number) for number in range(200)])
    api_calls = count_calls(broker, f"STREAM.INFO.{broker.subjects.streams.groups(QUEUE)}", monkeypatch)

    assert (await client.jobs.cancel_many(queue=QUEUE)).cancelled == 200
    assert len(api_calls) <= 3
    assert await broker.job_reader.waiting_ids(QUEUE) == []


def count_calls(broker: Broker, prefix: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The API calls of the server with this prefix, from now on."""
    calls: list[str] = []
    api = broker.wire.api

    async def counted(name: str, *more: Any, **named: Any) -> Any:
        if name.startswith(prefix):
            calls.append(name)
        return await api(name, *more, **named)

    monkeypatch.setattr(broker.wire, "api", counted)
    return calls


# -- the life of a job ---------------------------------------------------------------------------------------


async def test_a_plain_queue_has_no_key_group_streams(
    client: Client, broker: Broker, working: Working, app: App
) -> None:
    @app.task(per_key=1)
    async def add(a: int, b: int) -> int:
        return a + b

    async with working():
        assert await (await add.submit(1, 2)).result(60) == 3
        assert await broker.streams.has_groups(QUEUE) is False
        assert await broker.jetstream.stream_info(broker.subjects.streams.group_state(QUEUE)) is None
        # A queue that has key groups only now has workers for them at once.
        assert await (await add.options(key="k").submit(1, 2)).result(60) == 3


@pytest.mark.parametrize("key", ["tenant-7", "a b.c > *", "ü 漢字 🙂", '"quoted" \\', "x" * 256])
async def test_any_printable_text_is_a_key_and_the_record_shows_it(
    key: str, client: Client, working: Working, run_log: RunLog, broker: Broker
) -> None:
    waits = await to(client, key, 1, per_key=2, priority="high")
    assert (await waits.status()).key == key
    assert (await broker.job_reader.find(waits.id, consistent=True)) is not None
    async with working():
        await waits.wait(10)
    assert [(event.state, event.revision.key) for event in await broker.records.history(waits.id)] == [
        ("running", key),
        ("succeeded", key),
    ]


async def test_jobs_that_wait_in_a_key_group_are_found_without_a_record(
    client: Client, broker: Broker
) -> None:
    job = await to(client, "k", 1)
    assert await broker.records.last(job.id, QUEUE, consistent=True) is None

    record = await job.status()

    assert (record.state, record.key, record.task) == ("queued", "k", "visit")
    assert await broker.job_reader.waiting_ids(QUEUE) == [job.id]


async def test_jobs_that_wait_in_key_groups_are_counted(
    client: Client, broker: Broker, working: Working, run_log: RunLog, until: Until
) -> None:
    jobs = [await to(client, "k", number, "wait", per_key=1) for number in range(5)]
    async with working():
        await until(lambda: run_log.count("k") == 1)
        [stats] = await client.queues.stats(QUEUE)
        assert (stats.waiting_for_key, sum(stats.waiting.values()), stats.running) == (4, 0, 1)
        assert await client.queues.count_waiting(QUEUE) == 4
        assert await broker.records.history(jobs[1].id) == []
        run_log.gate.set()
        await asyncio.gather(*(job.wait(10) for job in jobs))
        assert run_log.peak["k"] == 1
        assert run_log.started == [f"k:{number}" for number in range(5)]


async def test_a_queue_sets_the_limit_of_keys_that_a_submit_does_not_set(
    app: App, client: Client, working: Working, run_log: RunLog, until: Until
) -> None:
    app.queue(QUEUE, per_key=2)
    async with working():
        jobs = [await to(client, "k", number, "wait") for number in range(6)]
        one = [await to(client, "one", number, "wait", per_key=1) for number in range(3)]
        await until(lambda: (run_log.count("k"), run_log.count("one")) == (2, 1))
        run_log.gate.set()
        await asyncio.gather(*(job.wait(10) for job in [*jobs, *one]))
    assert (run_log.peak["k"], run_log.peak["one"]) == (2, 1)


async def test_a_retrying_job_keeps_its_slot_where_order_matters(
    app: App, client: Client, working: Working
) -> None:
    ran: list[int] = []

    @app.task(retries=2, per_key=1)
    async def step(ctx: Context, number: int) -> None:
        ran.append(number)
        if number == 1 and ctx.attempt < 3:
            raise Retry("not yet", delay=0.4)

    async with working():
        jobs = [await step.options(key="k").submit(number) for number in range(4)]
        await asyncio.gather(*(job.wait(15) for job in jobs))

    assert ran == [0, 1, 1, 1, 2, 3]


async def test_a_retrying_job_releases_its_slot_where_several_may_run(
    app: App, client: Client, working: Working, broker: Broker, until: Until
) -> None:
    ran: list[tuple[int, int]] = []

    @app.task(retries=2, per_key=2)
    async def step(ctx: Context, number: int) -> None:
        ran.append((number, ctx.attempt))
        if number < 2 and ctx.attempt == 1:
            raise Retry("not yet", delay=1.0)

    async with working():
        jobs = [await step.options(key="k").submit(number) for number in range(8)]
        await asyncio.gather(*(job.wait(15) for job in jobs))
        await until(lambda: nothing_is_left(broker))

    assert set(ran[-2:]) == {(0, 2), (1, 2)}
    assert sorted(ran[:-2]) == [(number, 1) for number in range(8)]


async def test_a_delayed_job_joins_the_end_of_its_key_group_when_it_is_due(
    client: Client, working: Working, run_log: RunLog, broker: Broker, until: Until
) -> None:
    later = await to(client, "k", 1, delay=0.5, per_key=1)
    assert (await later.status()).state == "scheduled"
    first = await to(client, "k", 0, "wait", per_key=1)
    async with working():
        await until(lambda: run_log.started == ["k:0"])
        await until(lambda: waiting_for_key(broker))
        behind = await to(client, "k", 2, per_key=1)
        run_log.gate.set()
        await asyncio.gather(*(job.wait(10) for job in (later, first, behind)))
    assert run_log.started == ["k:0", "k:1", "k:2"]


async def test_a_requeued_job_keeps_its_slot(
    client: Client, app: App, run_log: RunLog, broker: Broker, until: Until
) -> None:
    jobs = [await to(client, "k", number, "wait", per_key=1) for number in range(3)]
    async with running_worker(Worker(app, settings=WorkerSettings(grace=0.0))):
        await until(lambda: run_log.count("k") == 1)
    assert (await jobs[0].status()).state == "interrupted"
    assert [one.id for one in (await group_state(broker, "k")).slots] == [jobs[0].id]
    run_log.gate.set()
    async with running_worker(Worker(app, settings=WorkerSettings())):
        await asyncio.gather(*(job.wait(10) for job in jobs))
    assert run_log.started == ["k:0", "k:0", "k:1", "k:2"]


async def test_a_failed_job_releases_its_slot_and_its_replay_waits_in_the_key_group(
    app: App, client: Client, working: Working, until: Until
) -> None:
    ran: list[int] = []
    gate = asyncio.Event()

    @app.task(per_key=1)
    async def step(number: int) -> None:
        ran.append(number)
        if number == 0 and ran.count(0) == 1:
            raise Reject("no")
        if number == 1:
            await gate.wait()

    async with working():
        jobs = [await step.options(key="k").submit(number) for number in range(3)]
        await until(lambda: ran == [0, 1])
        await client.dead_letters.retry(jobs[0].id)
        assert (await jobs[0].status()).key == "k"
        broker = await client.broker()

        async def are_in_key_group() -> bool:
            return len(await waiting_for_key(broker)) == 2

        await until(are_in_key_group)
        gate.set()
        await asyncio.gather(*(job.wait(10) for job in jobs))
        await until(lambda: nothing_is_left(broker))
    assert ran == [0, 1, 2, 0]


async def test_a_deadline_passes_while_a_job_waits_in_its_key_group(
    client: Client, working: Working, run_log: RunLog, broker: Broker, until: Until
) -> None:
    first = await to(client, "k", 0, "wait", per_key=1)
    late = await to(client, "k", 1, per_key=1, deadline=0.3)
    last = await to(client, "k", 2, per_key=1)
    async with working():
        await until(lambda: run_log.count("k") == 1)
        await asyncio.sleep(0.3)  # the test waits for the deadline itself
        run_log.gate.set()
        assert (await late.wait(10)).state == "expired"
        assert (await last.wait(10)).state == "succeeded"
        assert (await first.wait(10)).state == "succeeded"
        await until(lambda: nothing_is_left(broker))
    assert run_log.started == ["k:0", "k:2"]


async def test_a_job_in_quarantine_has_left_its_key_group(
    app: App, client: Client, working: Working, broker: Broker, until: Until
) -> None:
    app.queue(QUEUE, max_crashes=1, quarantine="apart")
    await client.admin.provision(app.declared)

    @app.task(per_key=1)
    async def step(number: int) -> int:
        return number

    bad, good = [await step.options(key="k").submit(number) for number in range(2)]
    await admit_jobs(broker, "k")
    gone = Revision("running", "step", attempt=1, worker="gone", message=1, delivery=0, key="k")
    await broker.records.write(QUEUE, bad.id, gone, expect=0)

    async with working(queues=[QUEUE]):
        assert await good.result(60) == 1
        assert (await bad.status()).quarantine == "apart"
        await until(lambda: nothing_is_left(broker))
    async with working(queues=["apart"]):
        assert await bad.result(60) == 0


async def test_a_message_that_is_not_a_job_becomes_a_dead_letter(
    client: Client, working: Working, run_log: RunLog, broker: Broker, until: Until
) -> None:
    await to(client, "k", 0, per_key=1)
    headers = {"Jsq-Job": "nonsense", "Jsq-Key": 'normal 1 "k"'}
    await broker.wire.publish(broker.subjects.groups.job(QUEUE, "k", "odd"), b"{}", headers)
    await broker.wire.publish(broker.subjects.groups.job(QUEUE, "k", "odder"), b"{}", {"Jsq-Key": "nonsense"})
    last = await to(client, "k", 1, per_key=1)

    async with working():
        await last.wait(10)
        await until(lambda: nothing_is_left(broker))

    assert {dead_letter.id for dead_letter in await client.dead_letters.list()} == {"odd", "odder"}


@pytest.mark.parametrize("where", ["key group", "queue"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Jsq-Attempts": "9" * 5_000},
        {"Jsq-Key": 'normal 1 "k"', "Jsq-Attempts": "1 0 " + "9" * 300},
        {"Jsq-Group-Slot": "strict k never"},
    ],
)
async def test_invalid_numbers_in_a_group_state_stop_no_worker_and_no_key(
    client: Client,
    working: Working,
    run_log: RunLog,
    broker: Broker,
    until: Until,
    where: str,
    headers: dict[str, str],
) -> None:
    await to(client, "k", 0, per_key=1)
    subjects = broker.subjects
    subject = (
        subjects.groups.job(QUEUE, "k", "odd")
        if where == "key group"
        else subjects.ready(QUEUE, "normal", "odd")
    )
    await broker.wire.publish(subject, b"{}", {"Jsq-Job": "nonsense"} | headers)
    last = await to(client, "k", 1, per_key=1)

    async with working():
        await last.wait(10)

        async def is_dead_lettered() -> bool:
            return [dead_letter.id for dead_letter in await client.dead_letters.list()] == ["odd"]

        await until(is_dead_lettered)
        await until(lambda: nothing_is_left(broker))


async def test_an_unreadable_key_group_ends_no_worker(
    app: App,
    client: Client,
    working: Working,
    run_log: RunLog,
    broker: Broker,
    until: Until,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    admit, has_failed = KeyGroups.admit, asyncio.Event()

    async def stumble(self: KeyGroups, queue: str, token: str, **until: Any) -> None:
        if token == "odd":
            has_failed.set()
            raise ValueError("nobody thought of it")
        await admit(self, queue, token, **until)

    monkeypatch.setattr(KeyGroups, "admit", stumble)
    await to(client, "odd", 0)
    async with working():
        await asyncio.wait_for(has_failed.wait(), 10)
        await (await to(client, "k", 1)).wait(10)
    assert run_log.started == ["k:1"]


# -- cancel --------------------------------------------------------------------------------------------------


async def test_a_job_of_a_key_group_is_cancelled_while_it_waits_and_while_it_runs(
    client: Client, working: Working, run_log: RunLog, broker: Broker, until: Until
) -> None:
    jobs = [await to(client, "k", number, "wait", per_key=1) for number in range(4)]
    await admit_jobs(broker, "k")
    assert await on_queue(broker) == [jobs[0].id]

    assert (await jobs[1].cancel()).state == "cancelled"  # waiting in the key group
    assert await waiting_for_key(broker) == [jobs[2].id, jobs[3].id]
    assert (await jobs[0].cancel()).state == "cancelled"  # admitted
    assert await on_queue(broker) == [jobs[2].id]
    assert (await group_state(broker, "k")).slots == ((jobs[2].id, "job", 0),)
    async with working():
        await until(lambda: run_log.started == ["k:2"])
        assert (await jobs[2].cancel()).state == "cancelled"  # running
        await until(lambda: run_log.started == ["k:2", "k:3"])
        run_log.gate.set()
        assert (await jobs[3].wait(10)).state == "succeeded"
        await until(lambda: nothing_is_left(broker))


async def test_a_job_that_waits_for_its_retry_is_cancelled_with_its_slot(
    app: App, client: Client, working: Working, until: Until
) -> None:
    @app.task(retries=2, per_key=1)
    async def step(number: int) -> int:
        if number == 0:
            raise Retry("not yet", delay=3_600)
        return number

    async with working():
        first, second = [await step.options(key="k").submit(number) for number in range(2)]

        async def retries() -> bool:
            return (await first.status()).state == "retrying"

        await until(retries)
        assert (await first.cancel()).state == "cancelled"
        assert await second.result(60) == 1


async def test_a_purge_of_a_queue_empties_its_key_groups(client: Client, broker: Broker) -> None:
    for key in ("a", "b"):
        await client.task("visit").options(key=key).submit_many([(key, number) for number in range(50)])
    await to(client, "a", 50, delay=60)
    await admit_jobs(broker, "a")

    assert await client.queues.purge(QUEUE) == 101

    assert await nothing_is_left(broker)
    assert await client.queues.count_waiting(QUEUE) == 0


# -- bulks and full queues -----------------------------------------------------------------------------------


async def test_a_bulk_of_one_key_runs_in_its_order(client: Client, working: Working, run_log: RunLog) -> None:
    calls = [("k", number) for number in range(150)]
    jobs = await client.task("visit").options(key="k", per_key=1).submit_many(calls)
    async with working():
        await asyncio.gather(*(job.wait(30) for job in jobs))
    assert run_log.started == [f"k:{number}" for number in range(150)]
    assert run_log.peak["k"] == 1


async def test_key_groups_have_the_limits_of_their_queue_and_full_ones_still_progress(
    app: App, client: Client, working: Working, run_log: RunLog, broker: Broker, until: Until
) -> None:
    app.queue(QUEUE, max_jobs=3, per_key=1)
    await client.admin.provision(app.declared)
    jobs = [await to(client, f"k{number}", number) for number in range(3)]
    with pytest.raises(QueueFull, match="max_jobs"):
        await to(client, "k0", 9)
    plain = [await client.task("visit").submit("p", number) for number in range(3)]

    async with working():
        await asyncio.gather(*(job.wait(10) for job in [*jobs, *plain]))
        await until(lambda: nothing_is_left(broker))


# -- faults between two steps --------------------------------------------------------------------------------


async def test_a_queued_job_without_a_slot_joins_the_end_of_its_key_group(
    client: Client, working: Working, run_log: RunLog, broker: Broker, until: Until
) -> None:
    waits = await to(client, "k", 0, "wait", per_key=1)
    astray = await to(client, "k", 1, per_key=1)
    [message] = [
        one
        for one in await broker.reads.fetch(
            broker.subjects.streams.groups(QUEUE), broker.subjects.groups.job(QUEUE, "k", ANY)
        )
        if one.headers["Nats-Subject"].endswith(astray.id)
    ]
    async with working():
        await until(lambda: run_log.started == ["k:0"])
        last = await to(client, "k", 2, per_key=1)
        await broker.jetstream.delete_message(
            broker.subjects.streams.groups(QUEUE), int(message.headers["Nats-Sequence"])
        )
        headers = {name: value for name, value in message.headers.items() if name.startswith("Jsq-")}
        await broker.wire.publish(broker.subjects.ready(QUEUE, "normal", astray.id), message.payload, headers)

        async def is_in_key_group() -> bool:
            return await waiting_for_key(broker) == [last.id, astray.id]

        await until(is_in_key_group)
        run_log.gate.set()
        await asyncio.gather(*(job.wait(10) for job in (waits, astray, last)))
    assert run_log.started == ["k:0", "k:2", "k:1"]


async def test_a_message_without_a_slot_is_replaced_at_admission(
    client: Client, working: Working, run_log: RunLog, broker: Broker, until: Until
) -> None:
    """A delivery that moved to the key group and is not settled yet does not count for the admitted job."""
    job = await to(client, "k", 0, per_key=1)
    [message] = await broker.reads.fetch(
        broker.subjects.streams.groups(QUEUE), broker.subjects.groups.job(QUEUE, "k", ANY)
    )
    headers = {name: value for name, value in message.headers.items() if name.startswith("Jsq-")}
    old = await broker.wire.publish(broker.subjects.ready(QUEUE, "normal", job.id), message.payload, headers)

    await admit_jobs(broker, "k")

    assert await on_queue(broker) == [job.id, job.id]
    await broker.jetstream.delete_message(broker.subjects.streams.ready(QUEUE), old)
    async with working():
        await job.wait(10)
        await until(lambda: nothing_is_left(broker))
    assert run_log.started == ["k:0"]


async def test_a_message_of_an_ended_attempt_does_not_count_for_the_next_one(
    client: Client, working: Working, run_log: RunLog, broker: Broker, until: Until
) -> None:
    """The message is stored until its worker settles it; an admitted job is stored beside it."""
    job = await to(client, "k", 0, per_key=2)
    await admit_jobs(broker, "k")
    [old] = await broker.reads.fetch(
        broker.subjects.streams.ready(QUEUE), broker.subjects.ready(QUEUE, "*", ANY)
    )
    headers = {name: value for name, value in old.headers.items() if name in ("Jsq-Job", "Jsq-Key")}
    started = await broker.records.write(
        QUEUE, job.id, Revision("running", "visit", 1, message=1, key="k"), expect=0
    )
    token = await broker.records.write(
        QUEUE, job.id, Revision("retrying", "visit", 1, failures=1, token=started, key="k"), expect=started
    )
    again = headers | {"Jsq-Attempts": f"1 0 {token}"}
    await broker.wire.publish(broker.subjects.groups.job(QUEUE, "k", job.id), old.payload, again)

    await admit_jobs(broker, "k")  # it has not released its slot yet
    assert (await waiting_for_key(broker), await on_queue(broker)) == ([job.id], [job.id])
    await broker.key_groups.release_slot(QUEUE, "k", job.id, up_to=0)
    await broker.key_groups.release_slot(QUEUE, "k", job.id, up_to=token - 1)  # a late second release

    assert (await group_state(broker, "k")).slots == ((job.id, "attempt", token),)
    assert (await waiting_for_key(broker), await on_queue(broker)) == ([], [job.id, job.id])
    await broker.jetstream.delete_message(
        broker.subjects.streams.ready(QUEUE), int(old.headers["Nats-Sequence"])
    )
    async with working():
        assert (await job.wait(10)).attempt == 2
        await until(lambda: nothing_is_left(broker))


async def test_a_job_that_leaves_its_key_group_removes_the_rest_of_its_attempt(
    client: Client, broker: Broker
) -> None:
    """A retry that was stored twice: its worker had died before it could settle the delivery."""
    job, behind = await to(client, "k", 0, per_key=1), await to(client, "k", 1, per_key=1)
    [first, _] = await broker.reads.fetch(
        broker.subjects.streams.groups(QUEUE), broker.subjects.groups.job(QUEUE, "k", ANY)
    )
    await admit_jobs(broker, "k")
    headers = {name: value for name, value in first.headers.items() if name.startswith("Jsq-")}
    await broker.jetstream.delete_message(
        broker.subjects.streams.groups(QUEUE), int(first.headers["Nats-Sequence"]) + 1
    )
    await broker.records.write(QUEUE, job.id, Revision("running", "visit", 1, message=1, key="k"), expect=0)
    for id in (job.id, behind.id):
        await broker.wire.publish(broker.subjects.groups.job(QUEUE, "k", id), first.payload, headers)

    await broker.key_groups.release_slot(QUEUE, "k", job.id, up_to=0)

    assert [one.id for one in (await group_state(broker, "k")).slots] == [behind.id]
    assert await waiting_for_key(broker) == []
    assert await on_queue(broker) == [job.id, behind.id]


async def test_a_late_release_does_not_delete_a_job_submitted_again_with_the_id_of_a_removed_one(
    client: Client, broker: Broker
) -> None:
    """The first job has ended and was removed, and its worker has not released its slot yet."""
    job = await to(client, "k", 0, per_key=1)
    await admit_jobs(broker, "k")
    await broker.jetstream.purge(broker.subjects.streams.ready(QUEUE), broker.subjects.ready(QUEUE, "*", ANY))
    [again] = [await to(client, "k", 0, per_key=1, id=job.id)]
    assert await waiting_for_key(broker) == [again.id]

    await broker.key_groups.release_slot(QUEUE, "k", job.id, up_to=0)

    assert (await waiting_for_key(broker), await on_queue(broker)) == ([], [job.id])


class Halted(Exception):
    """The worker that admits jobs dies here."""


@pytest.mark.parametrize("place", ["_put_on_queue", "_store", "delete_message"])
async def test_an_interrupted_change_of_a_key_group_is_completed_by_the_next_reader(
    place: str,
    client: Client,
    working: Working,
    run_log: RunLog,
    broker: Broker,
    until: Until,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker dies after the group state was written, before the job is queued or left the key group."""
    jobs = [await to(client, "k", number, per_key=1) for number in range(3)]

    async def die(*_: object, **__: object) -> None:
        raise Halted

    with monkeypatch.context() as patch:
        patch.setattr(broker.jetstream if place == "delete_message" else KeyGroups, place, die)
        with pytest.raises(Halted):
            await admit_jobs(broker, "k")
    assert [one.id for one in (await group_state(broker, "k")).slots] == [jobs[0].id]
    assert len(await waiting_for_key(broker)) == 3

    async with working():
        await asyncio.gather(*(job.wait(10) for job in jobs))
        await until(lambda: nothing_is_left(broker))
    assert run_log.started == ["k:0", "k:1", "k:2"]


async def test_a_slot_released_twice_at_the_same_time_is_free(
    client: Client, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job is still in its group, so the first release admits it again, and the second one must count."""
    job = await to(client, "k", 0, per_key=2)

    async def die(*_: object, **__: object) -> None:
        raise Halted

    with monkeypatch.context() as patch:
        patch.setattr(broker.jetstream, "delete_message", die)
        with pytest.raises(Halted):
            await admit_jobs(broker, "k")
    publish, again = broker.wire.publish, list[asyncio.Task[None]]()

    async def publish_and_release(subject: str, *rest: Any, **how: Any) -> int:
        if subject == broker.subjects.groups.state(QUEUE, "k"):
            release = broker.key_groups.release_slot(QUEUE, "k", job.id, up_to=0)
            again.append(asyncio.create_task(release))
            await asyncio.sleep(0)  # the release has been requested
        return await publish(subject, *rest, **how)

    monkeypatch.setattr(broker.wire, "publish", publish_and_release)
    await broker.key_groups.release_slot(QUEUE, "k", job.id, up_to=0)
    for task in again:
        await task

    assert len(again) > 1
    assert (await group_state(broker, "k")).slots == ()


async def test_a_job_that_arrives_as_the_last_one_leaves_its_key_group_starts(
    client: Client, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job arrives after the key group was found empty. Its wake-up is handled before the slot is free."""
    first = await to(client, "k", 0, per_key=1)
    await admit_jobs(broker, "k")
    publish, late = broker.wire.publish, list[JobHandle[Any]]()

    async def publish_late(subject: str, *rest: Any, **how: Any) -> int:
        if subject == broker.subjects.groups.state(QUEUE, "k"):
            monkeypatch.setattr(broker.wire, "publish", publish)
            late.append(await to(client, "k", 1, per_key=1))
            await KeyGroups(broker.namespace, broker.store).admit(QUEUE, "k")
            assert await waiting_for_key(broker) == [late[0].id]
        return await publish(subject, *rest, **how)

    monkeypatch.setattr(broker.wire, "publish", publish_late)
    await broker.key_groups.release_slot(QUEUE, "k", first.id)

    assert (await group_state(broker, "k")).slots == ((late[0].id, "job", 0),)
    assert await waiting_for_key(broker) == []


async def test_concurrent_admissions_to_one_key_admit_no_more_than_its_limit(
    server: EmbeddedServer, namespace: str, client: Client, broker: Broker
) -> None:
    jobs = [await to(client, "k", number, per_key=3) for number in range(12)]
    others = [Client(server.url, namespace=namespace) for _ in range(4)]
    try:
        lines = [broker.key_groups, *[(await other.broker()).key_groups for other in others]]
        await asyncio.gather(*(one.admit(QUEUE, "k") for one in lines for _ in range(3)))
        assert sorted(await on_queue(broker)) == sorted(job.id for job in jobs[:3])
        await broker.jetstream.purge(
            broker.subjects.streams.ready(QUEUE), broker.subjects.ready(QUEUE, "*", ANY)
        )
        leaving = zip(lines, jobs[:3], strict=False)
        await asyncio.gather(*(one.release_slot(QUEUE, "k", job.id) for one, job in leaving))
        holders = [id for id, *_ in (await group_state(broker, "k")).slots]
        assert sorted(holders) == sorted(job.id for job in jobs[3:6])
        assert sorted(await on_queue(broker)) == sorted(holders)
        assert len(await waiting_for_key(broker)) == 6
    finally:
        for other in others:
            await other.close()


async def test_key_group_streams_that_were_removed_are_created_again(
    client: Client, working: Working, run_log: RunLog, broker: Broker
) -> None:
    async with working():
        await (await to(client, "k", 0, per_key=1)).wait(10)
        await broker.jetstream.call(f"STREAM.DELETE.{broker.subjects.streams.groups(QUEUE)}")
        job = await to(client, "k", 1, per_key=1)
        await client.admin.sweep(age=0)  # the server retries to find the stream only after a while
        await job.wait(10)
    assert run_log.started == ["k:0", "k:1"]


async def test_the_state_of_an_empty_key_group_expires(
    client: Client, broker: Broker, working: Working, run_log: RunLog
) -> None:
    async with working():
        await (await to(client, "k", 0, per_key=1)).wait(10)

    def read_state() -> Any:
        return broker.reads.last(
            broker.subjects.streams.group_state(QUEUE), broker.subjects.groups.state(QUEUE, "k")
        )

    found: Reply | None = await read_state()
    assert found is not None
    assert found.headers["Nats-TTL"] == "60"


# -- sweeps --------------------------------------------------------------------------------------------------


def summary(swept: list[Any]) -> list[tuple[Inconsistency, str, bool]]:
    return [(one.kind, one.job, one.repaired) for one in swept]


async def test_waiting_jobs_and_slot_holders_are_not_reported_as_inconsistent(
    client: Client, broker: Broker, working: Working, run_log: RunLog, until: Until
) -> None:
    for number in range(3):
        await to(client, "k", number, "wait", per_key=1)
    await to(client, "k", 9, delay=60)
    async with working():
        await until(lambda: run_log.count("k") == 1)
        assert [one.state for one in await broker.records.list_last()] == ["running"]
        assert summary(await client.admin.sweep(age=0)) == []
        run_log.gate.set()


async def test_a_sweep_finds_a_key_group_whose_wake_up_was_lost(client: Client, broker: Broker) -> None:
    job = await to(client, "k", 0, per_key=1)
    await to(client, "k", 1, per_key=1)

    assert summary(await client.admin.sweep(age=0)) == [(Inconsistency.STALLED_KEY_GROUP, "", True)]

    assert await on_queue(broker) == [job.id]
    assert summary(await client.admin.sweep(age=0)) == []


async def test_an_admitted_job_whose_canceller_died_is_put_on_the_queue_by_a_sweep(
    client: Client, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The canceller had cancelled the previous job, and no other job joins or leaves the key group."""
    first, second = [await to(client, "k", number, per_key=1) for number in range(2)]
    await admit_jobs(broker, "k")

    publish = broker.wire.publish

    async def die_before_the_queue(subject: str, *rest: Any, **how: Any) -> int:
        if subject == broker.subjects.ready(QUEUE, "normal", second.id):
            raise Halted
        return await publish(subject, *rest, **how)

    with monkeypatch.context() as patch:
        patch.setattr(broker.wire, "publish", die_before_the_queue)
        with pytest.raises(Halted):
            await first.cancel()
    assert [one.id for one in (await group_state(broker, "k")).slots] == [second.id]
    assert (await waiting_for_key(broker), await on_queue(broker)) == ([second.id], [])

    assert summary(await client.admin.sweep(age=0)) == [(Inconsistency.STALLED_KEY_GROUP, "", True)]

    assert (await waiting_for_key(broker), await on_queue(broker)) == ([], [second.id])
    assert summary(await client.admin.sweep(age=0)) == []


async def test_a_sweep_releases_the_slot_of_a_finished_job(
    client: Client, broker: Broker, until: Until
) -> None:
    first, second = [await to(client, "k", number, per_key=1) for number in range(2)]
    await admit_jobs(broker, "k")
    await broker.records.write(QUEUE, first.id, Revision("cancelled", "visit", key="k"), expect=0)
    await broker.jetstream.purge(
        broker.subjects.streams.ready(QUEUE), broker.subjects.ready(QUEUE, "*", first.id)
    )

    async def is_known() -> bool:
        found = await broker.records.last(first.id)
        return found is not None and found.state in FINAL_STATES

    await until(is_known)
    assert summary(await client.admin.sweep(age=0)) == [(Inconsistency.LEAKED_SLOT, first.id, True)]

    assert (await group_state(broker, "k")).slots == ((second.id, "job", 0),)
    assert await on_queue(broker) == [second.id]
    assert summary(await client.admin.sweep(age=0)) == []


# -- provision -----------------------------------------------------------------------------------------------


async def test_key_group_streams_are_provisioned_where_they_are_declared_or_exist(
    client: Client, broker: Broker
) -> None:
    subjects = broker.subjects
    await client.admin.provision({"mail": QueueSettings(weights={"gold": 2}), "plain": QueueSettings()})
    assert await broker.streams.has_groups("mail")
    assert not await broker.streams.has_groups("plain")

    changes = await client.admin.provision({"mail": QueueSettings(weights={"gold": 2}, max_jobs=7)})
    assert {change.what for change in changes} == {
        subjects.streams.ready("mail"),
        subjects.streams.groups("mail"),
    }
    found = await broker.jetstream.stream_info(subjects.streams.groups("mail"))
    assert found is not None
    assert found["config"]["max_msgs"] == 8  # seven, and the message before them

    await broker.jetstream.call(f"CONSUMER.DELETE.{subjects.streams.group_state('mail')}.wakeups")
    wrong = [one for one in await client.admin.doctor() if one.severity == "error"]
    assert [one.subject for one in wrong] == ["queue mail"]
    assert "wakeups: missing" in wrong[0].message
    await client.admin.provision()
    assert not [one for one in await client.admin.doctor() if one.severity == "error"]


async def test_a_worker_without_a_connection_leaves_a_wake_up_to_another(
    client: Client, broker: Broker, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    wakeup_consumer = functools.partial(
        broker.jetstream.consumer_info, broker.subjects.streams.group_state("mail"), WAKEUPS
    )

    async def under_way() -> int:
        return int((await wakeup_consumer() or {}).get("num_ack_pending", 0))

    async def answered() -> bool:
        return (await wakeup_consumer() or {}).get("num_pending", 1) == 0 and not await under_way()

    await client.admin.provision({"mail": QueueSettings(per_key=1)})
    await client.task("add").options(queue="mail", key="a").submit(1, 2)
    async with asyncio.TaskGroup() as group:
        wakeups = GroupWakeups(broker, "mail", group)
        running_wakeups = group.create_task(wakeups.run())
        await until(answered)
        running_wakeups.cancel()

    await client.task("add").options(queue="mail", key="b").submit(1, 2)
    await until(under_way)
    await broker.wire.flush()

    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    await wakeups.close()
