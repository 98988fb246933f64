"""The output of a worker: metrics, probes and log lines; and the reload of changed code."""

import asyncio
import contextlib
import json
import os
import re
import signal
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from jsq import Client
from jsq.server import EmbeddedServer
from tests.helpers.conditions import Until
from tests.helpers.forkserver import ForkedProcess, ForkServer

ROOT = Path(__file__).parents[2]


class WorkerOutput:
    """A worker process, its output on stderr, and what it serves."""

    def __init__(self, process: ForkedProcess, stderr_file: Path) -> None:
        self.process = process
        self.stderr_file = stderr_file

    def lines(self) -> list[str]:
        return self.stderr_file.read_text().splitlines()

    @property
    def address(self) -> str:
        return str(re.findall(r"probes at (http://\S+)", self.stderr_file.read_text())[0])

    async def get(self, path: str) -> tuple[int, str]:
        def ask() -> tuple[int, str]:
            try:
                with urllib.request.urlopen(self.address + path, timeout=5) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read().decode()

        return await asyncio.to_thread(ask)

    async def metric(self, name: str) -> float:
        """The sum of a metric over all series that the pattern `name` matches."""
        _, text = await self.get("/metrics")
        return sum(float(value) for value in re.findall(rf"^{name} (\S+)$", text, re.MULTILINE))


@contextlib.asynccontextmanager
async def worker(
    server: EmbeddedServer,
    namespace: str,
    folder: Path,
    forks: ForkServer,
    *args: str,
    app: str = "tests.apps.faults:app",
) -> AsyncIterator[WorkerOutput]:
    stderr_file = folder / "stderr"
    env = {
        **os.environ,
        "JSQ_URL": server.url,
        "JSQ_NAMESPACE": namespace,
        "EFFECTS": str(folder / "effects"),
        "PYTHONPATH": str(ROOT),
    }
    with stderr_file.open("wb") as file:
        process = forks.spawn(["worker", app, *args], env, folder, file.fileno())
    try:
        yield WorkerOutput(process, stderr_file)
    finally:
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 30) == 0


@pytest.fixture
async def client(server: EmbeddedServer, namespace: str) -> AsyncIterator[Client]:
    async with Client(server.url, namespace=namespace) as client:
        yield client


async def test_metrics_count_attempts(
    server: EmbeddedServer, namespace: str, tmp_path: Path, client: Client, until: Until, forks: ForkServer
) -> None:
    async with worker(
        server, namespace, tmp_path, forks, "--http", "127.0.0.1:0", "--concurrency", "7"
    ) as output:
        await until(lambda: "worker ready" in output.stderr_file.read_text())
        for n in range(3):
            await (await client.task("add").submit(n, 1)).result(60)
        await (await client.task("add").submit("x", 1)).wait(5)

        finished = r'jsq_jobs_finished_total\{outcome="%s",queue="default",task="add"\}'

        async def counted() -> bool:
            return await output.metric(finished % "failed") == 1

        await until(counted)
        assert await output.metric(finished % "succeeded") == 3
        assert await output.metric(r'jsq_job_run_seconds_count\{queue="default",task="add"\}') == 4
        assert await output.metric(r'jsq_job_queue_seconds_count\{queue="default"\}') == 4
        assert await output.metric("jsq_reconnects_total") == 0

        async def measured() -> bool:
            return await output.metric("jsq_worker_slots") == 7

        await until(measured)
        assert await output.metric("jsq_event_loop_lag_seconds") < 1


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_metrics_show_the_size_of_queues(
    server: EmbeddedServer,
    namespace: str,
    tmp_path: Path,
    client: Client,
    until: Until,
    forks: ForkServer,
    processes: str,
) -> None:
    task = client.task("add").options(queue="mail")
    await task.submit(1, 1)
    await task.options(priority="high").submit(1, 1)
    await task.options(delay=3600).submit(1, 1)
    await client.queues.pause("mail")
    async with worker(
        *(
            server,
            namespace,
            tmp_path,
            forks,
            "--http",
            "127.0.0.1:0",
            "--queues",
            "mail",
            "--processes",
            processes,
        )
    ) as output:
        await until(lambda: "probes at" in output.stderr_file.read_text(), 20)

        async def measured() -> bool:
            return await output.metric(r'jsq_queue_depth\{priority="normal",queue="mail"\}') == 1

        await until(measured, 20)
        assert await output.metric(r'jsq_queue_depth\{priority="high",queue="mail"\}') == 1
        assert await output.metric(r'jsq_queue_scheduled\{queue="mail"\}') == 1
        assert await output.metric(r'jsq_queue_running\{queue="mail"\}') == 0
        assert await output.metric(r'jsq_queue_waiting_for_key\{queue="mail"\}') == 0
        assert 0 < await output.metric(r'jsq_queue_oldest_job_age_seconds\{queue="mail"\}') < 60
        assert await output.metric(r'jsq_queue_dead_letters\{queue="mail"\}') == 0
        assert 'jsq_queue_revisions{queue="mail"}' in (await output.get("/metrics"))[1]


async def test_a_lost_server_makes_a_worker_unready_but_not_dead(
    own_server: EmbeddedServer, namespace: str, tmp_path: Path, until: Until, forks: ForkServer
) -> None:
    async with worker(own_server, namespace, tmp_path, forks, "--http", "127.0.0.1:0") as output:
        await until(lambda: "worker ready" in output.stderr_file.read_text())
        assert await output.get("/readyz") == (200, "ok\n")
        assert await output.get("/livez") == (200, "ok\n")
        assert (await output.get("/other"))[0] == 404
        own_server.kill()

        async def unready() -> bool:
            return await output.get("/readyz") == (503, "no\n")

        await until(unready)
        assert await output.get("/livez") == (200, "ok\n")
        await asyncio.to_thread(own_server.restart)

        async def ready() -> bool:
            return await output.get("/readyz") == (200, "ok\n")

        await until(ready)

        async def noticed() -> bool:
            return await output.metric("jsq_reconnects_total") == 1

        await until(noticed)


async def test_a_worker_that_starts_before_its_server_waits_for_it(
    own_server: EmbeddedServer, namespace: str, tmp_path: Path, until: Until, forks: ForkServer
) -> None:
    own_server.kill()
    async with worker(own_server, namespace, tmp_path, forks, "--http", "127.0.0.1:0") as output:
        await until(lambda: "start delayed" in output.stderr_file.read_text(), 20)
        assert await output.get("/readyz") == (503, "no\n")
        assert await output.get("/livez") == (200, "ok\n")
        await asyncio.to_thread(own_server.restart)
        await until(lambda: "worker ready" in output.stderr_file.read_text(), 20)
        assert await output.get("/readyz") == (200, "ok\n")
        async with Client(own_server.url, namespace=namespace) as client:
            assert await (await client.task("add").submit(1, 1)).result(20) == 2
        assert output.stderr_file.read_text().count("start delayed") == 1


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_a_worker_that_waits_for_its_server_ends_at_once_when_stopped(
    own_server: EmbeddedServer,
    namespace: str,
    tmp_path: Path,
    until: Until,
    forks: ForkServer,
    processes: str,
) -> None:
    own_server.kill()
    async with worker(own_server, namespace, tmp_path, forks, "--processes", processes) as output:
        await until(lambda: output.stderr_file.read_text().count("start delayed") == int(processes), 20)
        output.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(output.process.wait, 3) == 0
        assert output.lines()[-1].endswith("jobs=0")


async def test_the_metrics_of_all_processes_are_merged(
    server: EmbeddedServer, namespace: str, tmp_path: Path, client: Client, until: Until, forks: ForkServer
) -> None:
    async with worker(
        server, namespace, tmp_path, forks, "--http", "127.0.0.1:0", "--processes", "2", "--concurrency", "3"
    ) as output:

        async def ready() -> bool:
            return len(await client.admin.workers()) == 2 and await output.metric("jsq_worker_slots") == 6

        await until(lambda: "probes at" in output.stderr_file.read_text())
        await until(ready)
        jobs = await asyncio.gather(*(client.task("add").submit(n, 1) for n in range(30)))
        await asyncio.gather(*(job.result(60) for job in jobs))

        async def counted() -> bool:
            return await output.metric(r'jsq_jobs_finished_total\{outcome="succeeded".*\}') == 30

        await until(counted)
        assert await output.get("/livez") == (200, "ok\n")

        async def takes_jobs() -> bool:
            return await output.get("/readyz") == (200, "ok\n")

        await until(takes_jobs)


async def test_each_event_of_a_job_is_one_json_log_entry_without_its_arguments(
    server: EmbeddedServer, namespace: str, tmp_path: Path, client: Client, until: Until, forks: ForkServer
) -> None:
    async with worker(
        server, namespace, tmp_path, forks, "--log-format", "json", "--log-level", "debug"
    ) as output:
        job = await client.task("add").submit("s3cret", 1)
        await job.wait(10)
        await until(lambda: "job failed" in output.stderr_file.read_text())
        lines = [json.loads(line) for line in output.lines()]
    entries = [line for line in lines if line.get("job") == job.id]
    assert [line["message"] for line in entries] == ["job started", "job failed"]
    assert entries[0] | {"time": "", "token": 0} == {
        "time": "",
        "level": "debug",
        "logger": "jsq.job",
        "message": "job started",
        "job": job.id,
        "task": "add",
        "queue": "default",
        "attempt": 1,
        "token": 0,
    }
    assert (entries[1]["reason"], "s3cret" in output.stderr_file.read_text()) == ("bad_arguments", False)


async def test_a_worker_that_reloads_runs_the_new_code(
    server: EmbeddedServer, namespace: str, tmp_path: Path, client: Client, until: Until, forks: ForkServer
) -> None:
    code = tmp_path / "changing.py"
    text = f"from jsq import App\napp = App(namespace={namespace!r})\n"
    text += "@app.task\ndef state() -> str:\n    return %r\n"
    code.write_text(text % "old")
    async with worker(server, namespace, tmp_path, forks, "--reload", app="changing:app") as output:
        assert await (await client.task("state").submit()).result(60) == "old"
        code.write_text(text % "new!")
        await until(lambda: output.stderr_file.read_text().count("worker ready") == 2, 20)
        assert await (await client.task("state").submit()).result(60) == "new!"
        code.write_text("def broken(:\n")
        await until(lambda: "app not loaded" in output.stderr_file.read_text(), 20)
        code.write_text(text % "fixed")
        assert await (await client.task("state").submit()).result(60) == "fixed"


@pytest.mark.parametrize("address", ["x", "127.0.0.1:99999", "203.0.113.1:80"])
def test_a_bad_address_for_the_probes_is_refused(
    server: EmbeddedServer, namespace: str, address: str, forks: ForkServer
) -> None:
    env = {**os.environ, "JSQ_URL": server.url, "JSQ_NAMESPACE": namespace}
    words = ["worker", "tests.apps.faults:app", "--http", address]
    done = forks.run(words, env, ROOT, 20)
    assert done.returncode == 2
    assert done.stderr.startswith(("jsq: error: http must be HOST:PORT", "jsq: error: cannot listen on"))
    assert "Traceback" not in done.stderr
