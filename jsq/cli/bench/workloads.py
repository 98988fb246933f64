"""The workloads of `jsq bench`. jsq and the baseline do each of them in turn, on the same server."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic_core import to_json

from jsq.app import App
from jsq.broker.topology.removal import remove_everything
from jsq.cli.bench.baseline import Baseline
from jsq.cli.bench.resources import cpu_seconds, family, memory_mb
from jsq.cli.bench.tasks import FOLDER, QUEUE
from jsq.codec.envelope import new_id
from jsq.errors import BrokerUnavailable, JsqError
from jsq.server import die_with_us
from jsq.settings import Login, QueueSettings, WriteGrouping
from jsq.task import AnyTask

WARM_UP = 200
PAUSE_SECONDS = 0.02
"""Seconds between the jobs of `latency`: long enough for all processes to become idle."""

NOTES_POLL_SECONDS = 0.005
"""Seconds between two reads of the notes of the workers."""

STALL_SECONDS = 60.0
"""Seconds without the start of a job after which a run fails."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The settings of a measurement."""

    jobs: int = 10_000
    samples: int = 200
    payload: int = 16
    concurrency: int = 100
    processes: int = 1
    storage: str = "file"
    replicas: int = 1
    group_writes: WriteGrouping = "auto"


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one run. CPU is in seconds for 1,000 jobs, memory in MiB, latency in milliseconds."""

    per_second: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    client_cpu: float | None = None
    worker_cpu: float | None = None
    server_cpu: float | None = None
    worker_mb: float | None = None
    server_mb: float | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """The figures of jsq for a workload, and those of the baseline. `ratio` is 1 if they are equal."""

    workload: str
    payload: int
    figures: Figures
    floor: Figures
    ratio: float


class Site:
    """The namespace of one run on the server, its tasks and its worker processes."""

    def __init__(self, plan: Plan, app: App, server: int | None) -> None:
        self.plan = plan
        self.app = app
        self.server = server
        self.body = "x" * plan.payload
        self.folder = Path(tempfile.mkdtemp(prefix="jsq-bench-"))
        self.workers: list[int] = []

        @app.task(name="noop", queue=QUEUE)
        async def noop(sent: int, body: str = "") -> None: ...

        @app.task(name="sleep", queue=QUEUE)
        async def sleep(sent: int, body: str = "") -> None: ...

        self.tasks: dict[str, AnyTask] = {"noop": noop, "sleep": sleep}

    async def baseline(self, task: str = "noop") -> Baseline:
        broker = await self.app.client.broker()
        return await Baseline(broker.wire, broker.subjects, QUEUE, task).open()

    def arguments(self) -> bytes:
        return to_json({"sent": time.time_ns(), "body": self.body})

    # -- workers -----------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def working(self, task: str, *, baseline: bool) -> AsyncIterator[subprocess.Popen[bytes]]:
        """Worker processes, which are ended when the block ends; gives the first."""
        plan = self.plan
        words = ["jsq", "worker", "jsq.cli.bench.tasks:app", "--queues", QUEUE, "--log-level", "warning"]
        words += ["--concurrency", str(plan.concurrency), "--processes", str(plan.processes)]
        words += ["--group-writes", plan.group_writes]
        if baseline:
            words = ["jsq.cli.bench.tasks", task, str(plan.concurrency)]
        login = self.app.client.login
        env = {**os.environ, "JSQ_URL": login.url, "JSQ_NAMESPACE": self.app.namespace}
        env[FOLDER] = str(self.folder)
        count = plan.processes if baseline else 1
        processes = [start_process(words, env) for _ in range(count)]
        try:
            yield processes[0]
        finally:
            for process in processes:
                process.send_signal(signal.SIGKILL if baseline else signal.SIGTERM)
            for process in processes:
                await asyncio.to_thread(process.wait)
            self.workers = []

    # -- what workers noted ------------------------------------------------------------------------------

    def count(self) -> int:
        return sum(path.stat().st_size // 16 for path in self.folder.iterdir())

    def rows(self) -> list[tuple[int, int]]:
        """When each job was sent and when it started, in nanoseconds, in the order of the starts."""
        flat = array("q")
        for path in self.folder.iterdir():
            flat.frombytes(path.read_bytes())
        return sorted(zip(flat[::2], flat[1::2], strict=True), key=lambda row: row[1])

    async def until(self, count: int, worker: subprocess.Popen[bytes]) -> None:
        """Wait until so many jobs have started. Raises `BrokerUnavailable` if no more jobs start."""
        seen, since = -1, time.monotonic()
        while (found := self.count()) < count:
            if found > seen:
                seen, since = found, time.monotonic()
            if worker.poll() is not None or time.monotonic() - since > STALL_SECONDS:
                raise BrokerUnavailable(f"{found:,} of {count:,} jobs started, and then no more")
            await asyncio.sleep(NOTES_POLL_SECONDS)

    # -- measuring ---------------------------------------------------------------------------------------

    def server_cpu(self) -> float | None:
        return cpu_seconds([self.server]) if self.server else None

    def used(self, jobs: int, *, client: float, worker: float | None, server: float | None) -> Figures:
        """CPU seconds for 1,000 jobs since the given readings, and the memory now."""

        def each(now: float | None, before: float | None) -> float | None:
            return round((now - before) / jobs * 1000, 4) if now is not None and before is not None else None

        return Figures(
            client_cpu=each(time.process_time(), client),
            worker_cpu=each(cpu_seconds(self.workers), worker) if self.workers else None,
            server_cpu=each(self.server_cpu(), server),
            worker_mb=memory_mb(self.workers),
            server_mb=memory_mb([self.server]) if self.server else None,
        )


# -- workloads, each done by jsq or by the baseline ----------------------------------------------------


async def submit(site: Site, *, baseline: bool) -> Figures:
    """Submit jobs one by one, 100 at a time."""
    jobs, noop = site.plan.jobs, site.tasks["noop"]

    async def go(count: int) -> None:
        left = iter(range(count))

        async def pump() -> None:
            for _ in left:
                await noop.submit(time.time_ns(), site.body)

        await asyncio.gather(*(pump() for _ in range(100)))

    loop = await site.baseline() if baseline else None
    send = (lambda count: loop.submit(count, site.arguments())) if loop else go
    return await timed(site, jobs, send)


async def bulk(site: Site, *, baseline: bool) -> Figures:
    """Submit all jobs in one call."""
    noop = site.tasks["noop"]

    async def go(count: int) -> None:
        await noop.submit_many([(time.time_ns(), site.body)] * count)

    loop = await site.baseline() if baseline else None
    send = (lambda count: loop.submit_batches(count, site.arguments())) if loop else go
    return await timed(site, site.plan.jobs, send)


async def timed(site: Site, jobs: int, send: Callable[[int], Awaitable[None]]) -> Figures:
    await send(min(jobs, WARM_UP))
    await send(min(jobs, WARM_UP))
    client, server, began = time.process_time(), site.server_cpu(), time.perf_counter()
    await send(jobs)
    seconds = time.perf_counter() - began
    found = site.used(jobs, client=client, worker=None, server=server)
    return replace(found, per_second=round(jobs / seconds))


async def drain(site: Site, *, baseline: bool) -> Figures:
    """Run jobs that do nothing, from a full queue."""
    return await measure_drain(site, "noop", baseline=baseline)


async def mixed(site: Site, *, baseline: bool) -> Figures:
    """Run jobs that wait for 10 ms each."""
    return await measure_drain(site, "sleep", baseline=baseline)


async def measure_drain(site: Site, task: str, *, baseline: bool) -> Figures:
    jobs = site.plan.jobs
    await site.tasks[task].submit_many([(time.time_ns(), site.body)] * jobs)
    async with site.working(task, baseline=baseline) as worker:
        await site.until(1, worker)
        early, site.workers = site.count(), family(worker.pid)
        before, server, client = cpu_seconds(site.workers), site.server_cpu(), time.process_time()
        await site.until(jobs, worker)
        found = site.used(max(1, jobs - early), client=client, worker=before, server=server)
        rows = site.rows()
    seconds = max(1, rows[-1][1] - rows[0][1]) / 1e9
    return replace(found, per_second=round((len(rows) - 1) / seconds), client_cpu=None)


async def latency(site: Site, *, baseline: bool) -> Figures:
    """The time from a submit to the start of its job, on an idle worker."""
    samples, noop = site.plan.samples, site.tasks["noop"]
    loop = await site.baseline() if baseline else None

    async def send() -> None:
        if loop is None:
            await noop.submit(time.time_ns(), site.body)
        else:
            loop.put(new_id(), site.arguments(), lambda _: None)

    async with site.working("noop", baseline=baseline) as worker:
        for count in (WARM_UP // 10, WARM_UP // 10 + samples):
            while (begun := site.count()) < count:
                for _ in range(count - begun):
                    await send()
                    await asyncio.sleep(PAUSE_SECONDS)
                await site.until(count, worker)
        waits = sorted((began - sent) / 1e6 for sent, began in site.rows()[WARM_UP // 10 :])
    return Figures(p50_ms=percentile(waits, 0.5), p99_ms=percentile(waits, 0.99))


async def roundtrip(site: Site, *, baseline: bool) -> Figures:
    """The time from a submit to the result of its job, one job after the other."""
    noop = site.tasks["noop"]
    loop = await site.baseline() if baseline else None
    times: list[float] = []
    async with site.working("noop", baseline=baseline):
        for _ in range(WARM_UP // 10 + site.plan.samples):
            began = time.perf_counter()
            if loop is None:
                await (await noop.submit(time.time_ns(), site.body)).result(STALL_SECONDS)
            else:
                await loop.outcome(new_id(), site.arguments())
            times.append((time.perf_counter() - began) * 1e3)
    times = sorted(times[WARM_UP // 10 :])
    return Figures(p50_ms=percentile(times, 0.5), p99_ms=percentile(times, 0.99))


Workload = Callable[..., Awaitable[Figures]]
WORKLOADS: dict[str, Workload] = {
    load.__name__: load for load in (submit, bulk, drain, latency, roundtrip, mixed)
}


async def measure(name: str, plan: Plan, login: Login, server: int | None) -> Result:
    """Do a workload with jsq and with the baseline, each in a namespace that is removed at the end."""
    found = [
        await once(WORKLOADS[name], plan, login, server, baseline=baseline) for baseline in (False, True)
    ]
    figures, floor = found
    if figures.per_second is not None:
        ratio = figures.per_second / max(1e-9, floor.per_second or 0.0)
    else:
        ratio = (figures.p50_ms or 0.0) / max(1e-9, floor.p50_ms or 0.0)
    return Result(name, plan.payload, figures, floor, round(ratio, 2))


async def once(load: Workload, plan: Plan, login: Login, server: int | None, *, baseline: bool) -> Figures:
    async with App(login, name="jsq-bench", namespace=f"bench-{new_id()[-8:]}") as app:
        settings = QueueSettings.read(storage=plan.storage, replicas=plan.replicas)
        await app.client.admin.provision({QUEUE: settings})
        broker = await app.client.broker()
        site = Site(plan, app, server)
        try:
            return await load(site, baseline=baseline)
        finally:
            with contextlib.suppress(JsqError):
                await remove_everything(broker.namespace, QUEUE)
            for path in site.folder.iterdir():
                path.unlink()
            site.folder.rmdir()


def start_process(words: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a Python process that ends with this one."""
    command = [sys.executable, "-m", *words]
    return subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=die_with_us())


def percentile(values: list[float], share: float) -> float:
    return round(values[min(len(values) - 1, int(len(values) * share))], 3)
