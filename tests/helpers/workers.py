"""Workers of the tests: in this process, or in processes that a test may kill."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jsq import Client
from jsq.worker import Worker
from tests.helpers.forkserver import ForkServer
from tests.helpers.repository import ROOT

Working = Callable[..., AbstractAsyncContextManager[Worker]]
"""The type of the fixture `working`."""


@contextlib.asynccontextmanager
async def running_worker(worker: Worker) -> AsyncIterator[None]:
    """Run a worker until the end of the block, which starts when the worker is ready.

    Raises its startup error.
    """
    running = asyncio.create_task(worker.run())
    ready = asyncio.create_task(worker.ready.wait())
    await asyncio.wait((running, ready), timeout=30, return_when="FIRST_COMPLETED")
    ready.cancel()
    if running.done():
        running.result()
    try:
        yield
    finally:
        worker.stop()
        await asyncio.wait_for(running, 60)


@dataclass(frozen=True)
class Effect:
    """One line that a task wrote: time, process, word, job and attempt."""

    at: float
    pid: int
    word: str
    job: str
    attempt: int


class WorkerProcess(Protocol):
    """A worker process: a new interpreter, or a fork of the fork server."""

    returncode: int | None

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, number: int, /) -> None: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


class Workers:
    """Starts worker processes for one namespace and reads the effects of their tasks.

    With a fork server they start as its forks, at a tenth of the CPU time.
    """

    def __init__(
        self, url: str, namespace: str, folder: Path, client: Client, forks: ForkServer | None = None
    ) -> None:
        self._forks = forks
        self.effects_file = folder / "effects"
        self.effects_file.touch()
        self.client = client
        self.env = {
            **os.environ,
            "JSQ_URL": url,
            "JSQ_NAMESPACE": namespace,
            "EFFECTS": str(self.effects_file),
            "LEASE": "5",
        }
        self.processes: list[WorkerProcess] = []

    async def start(self, *args: str, lease: float = 5, known: int | None = 1) -> WorkerProcess:
        """Start a worker and wait until `known` more workers are registered; None does not wait."""
        before = len(await self.client.admin.workers())
        words = ["worker", "tests.apps.faults:app", "--log-level", "warning", *args]
        env = self.env | {"LEASE": str(lease)}
        process: WorkerProcess
        if self._forks is not None:
            process = self._forks.spawn(words, env, ROOT)
        else:
            process = subprocess.Popen(  # noqa: ASYNC220 -- it returns at once
                [sys.executable, "-m", "jsq", *words], cwd=ROOT, env=env, start_new_session=True
            )
        self.processes.append(process)
        async with asyncio.timeout(60):
            while known is not None and len(await self.client.admin.workers()) < before + known:
                assert process.poll() is None, "the worker did not start"
                await asyncio.sleep(0.02)
        return process

    async def nothing_runs(self) -> bool:
        return (await self.client.queues.stats("default"))[0].running == 0

    def effects(self, word: str = "begin", pid: int | None = None) -> list[Effect]:
        lines = [line.split() for line in self.effects_file.read_text().splitlines()]
        found = [Effect(float(at), int(by), what, job, int(n)) for at, by, what, job, n in lines]
        return [one for one in found if one.word == word and pid in (None, one.pid)]


async def exit_code(process: WorkerProcess, seconds: float | None = 90) -> int:
    return await asyncio.to_thread(process.wait, seconds)


@contextlib.asynccontextmanager
async def worker_processes(
    url: str, namespace: str, folder: Path, forks: ForkServer | None = None
) -> AsyncIterator[Workers]:
    async with Client(url, namespace=namespace) as client:
        await client.admin.provision()
        workers = Workers(url, namespace, folder, client, forks)
        try:
            yield workers
        finally:
            for process in workers.processes:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGCONT)
                    process.kill()
                process.wait()
