"""Jobs that kill their workers affect no other job: a last attempt runs alone in its worker."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from jsq import App, Client, JobFailed, JobHandle
from jsq.model.revision import Revision
from jsq.server import EmbeddedServer
from jsq.worker.timings import WorkerTimings
from tests.helpers.conditions import Until
from tests.helpers.forkserver import ForkServer
from tests.helpers.workers import Workers, Working, exit_code, worker_processes


@pytest.fixture
async def workers(
    server: EmbeddedServer, namespace: str, tmp_path: Path, forks: ForkServer
) -> AsyncIterator[Workers]:
    async with worker_processes(server.url, namespace, tmp_path, forks) as workers:
        yield workers


async def outcome(job: JobHandle[object], seconds: float) -> str:
    """`succeeded`, or the reason for the failure of the job."""
    try:
        await job.result(seconds)
    except JobFailed as error:
        return error.reason
    return "succeeded"


async def keep_working(workers: Workers) -> None:
    """Start a worker, and another one whenever it dies, without the pauses of a supervisor."""
    while True:
        process = await workers.start("--concurrency", "10", lease=1, known=None)
        await exit_code(process, None)


async def mixed(
    workers: Workers, good: int, poison: int, seconds: float, *, processes: int = 2
) -> tuple[Counter[str], Counter[str]]:
    """Run good jobs beside jobs that kill their workers. Returns how often each of both had each outcome."""
    client, jobs, killers = workers.client, list[JobHandle[object]](), list[JobHandle[object]]()
    for _ in range(poison):
        jobs += [await client.task("nap").submit(0.3) for _ in range(good // poison)]
        killers.append(await client.task("die").submit())
    keeping = [asyncio.create_task(keep_working(workers)) for _ in range(processes)]
    try:
        found = await asyncio.gather(*(outcome(job, seconds) for job in [*jobs, *killers]))
    finally:
        for one in keeping:
            one.cancel()
    return Counter(found[: len(jobs)]), Counter(found[len(jobs) :])


@pytest.mark.timeout(60)  # workers die nine times at most, and on a busy machine each start takes a while
async def test_good_jobs_survive_jobs_that_kill_their_workers(workers: Workers) -> None:
    good, killers = await mixed(workers, 30, 3, 55)

    assert good == {"succeeded": 30}
    assert killers == {"crashed": 3}


@pytest.mark.proof
async def test_five_hundred_good_jobs_survive_fifty_jobs_that_kill_their_workers(workers: Workers) -> None:
    good, killers = await mixed(workers, 500, 50, 560, processes=4)

    assert good == {"succeeded": 500}
    assert killers == {"crashed": 50}


class Steps:
    """Tasks that record their start, and end when the test releases them."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.started: list[str] = []
        self.finish: dict[str, asyncio.Event] = {}

        @app.task
        async def step(name: str) -> str:
            self.started.append(name)
            await self.finish.setdefault(name, asyncio.Event()).wait()
            return name

        self.task = step

    async def submit(self, name: str) -> JobHandle[str]:
        return await self.task.submit(name)

    async def submit_suspect(self, name: str) -> JobHandle[str]:
        """A job with which two workers died: one crash is recorded, and one worker runs it by its record."""
        job = await self.task.options(delay=0.5).submit(name)
        running = Revision("running", "step", 2, crashes=1, worker="gone", message=10**6, delivery=1)
        await (await self.app.client.broker()).records.write("default", job.id, running, expect=0)
        return job

    def end(self, name: str) -> None:
        self.finish.setdefault(name, asyncio.Event()).set()


@pytest.fixture
def steps(app: App) -> Steps:
    return Steps(app)


async def test_a_last_attempt_waits_for_running_jobs_and_runs_alone(
    steps: Steps, working: Working, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "jsq.job")
    async with working(concurrency=5) as worker:
        await steps.submit("first")
        await until(lambda: steps.started == ["first"])
        suspects = [await steps.submit_suspect(name) for name in ("second", "third")]
        await until(lambda: worker.dispatcher.room("default") < 0 and len(worker.dispatcher.attempts) == 3)
        last = await steps.submit("fourth")
        await stays_queued(last)
        assert steps.started == ["first"]

        steps.end("first")
        await until(lambda: len(steps.started) == 2)
        await stays_queued(last)
        [name] = steps.started[1:]
        steps.end(name)
        await until(lambda: len(steps.started) == 3)
        assert last.id not in caplog.text
        steps.end("second")
        steps.end("third")
        steps.end("fourth")

        assert [await job.result(10) for job in suspects] == ["second", "third"]
        assert await last.result(10) == "fourth"
        assert [(await job.status()).crashes for job in suspects] == [2, 2]
        assert steps.started[-1] == "fourth"
        assert caplog.text.count("job isolated") == 2


@pytest.mark.proof
async def test_a_last_attempt_that_cannot_run_alone_is_handed_back_and_others_run(
    steps: Steps, working: Working, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "jsq.job")
    async with working(concurrency=5, timings=WorkerTimings(isolation=0.2)):
        await steps.submit("first")
        await until(lambda: steps.started == ["first"])
        suspect = await steps.submit_suspect("second")
        await until(lambda: "delivery requeued" in caplog.text)
        await steps.submit("third")
        await until(lambda: steps.started == ["first", "third"])

        assert (await suspect.status()).crashes == 1
        steps.end("first")
        steps.end("third")
        steps.end("second")
        assert await suspect.result(25) == "second"
        assert (await suspect.status()).crashes == 2


async def test_a_waiting_last_attempt_does_not_start_on_a_queue_paused_meanwhile(
    steps: Steps, working: Working, until: Until, client: Client
) -> None:
    async with working(concurrency=5) as worker:
        await steps.submit("first")
        await until(lambda: steps.started == ["first"])
        suspect = await steps.submit_suspect("second")
        await until(lambda: worker.dispatcher.room("default") < 0)
        await client.queues.pause("default")
        await until(lambda: worker.dispatcher.limits.rules.queue_pause("default") is not None)
        steps.end("first")
        await until(lambda: not worker.dispatcher.attempts)
        assert steps.started == ["first"]

        steps.end("second")
        await client.queues.resume("default")
        assert await suspect.result(20) == "second"


async def test_a_worker_that_stops_hands_back_a_waiting_last_attempt(
    steps: Steps, working: Working, until: Until
) -> None:
    async with working(concurrency=5, grace=0.1) as worker:
        await steps.submit("first")
        await until(lambda: steps.started == ["first"])
        suspect = await steps.submit_suspect("second")
        await until(lambda: worker.dispatcher.room("default") < 0)

    assert (await suspect.status()).crashes == 1
    assert steps.started == ["first"]
    steps.end("first")
    steps.end("second")
    async with working(concurrency=5):
        assert await suspect.result(10) == "second"


async def test_a_waiting_last_attempt_can_be_cancelled(steps: Steps, working: Working, until: Until) -> None:
    async with working(concurrency=5) as worker:
        await steps.submit("first")
        await until(lambda: steps.started == ["first"])
        suspect = await steps.submit_suspect("second")
        await until(lambda: worker.dispatcher.room("default") < 0)

        assert (await suspect.cancel()).state == "cancelled"
        assert steps.started == ["first"]
        steps.end("first")


async def stays_queued(job: JobHandle[str]) -> None:
    """Fails if a job starts within a time in which a worker would start it."""
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        assert (await job.status()).state == "queued"
        await asyncio.sleep(0.02)
