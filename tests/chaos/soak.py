"""A long, even load, and what it leaves behind: `python -m tests.chaos.soak --seconds 600 --rate 200`.

Watched from the third minute on: the memory and the open files of the worker and of the client; at the end
what the server holds of the queue: messages, unsettled deliveries, consumers. The server's own memory grows
by what it is to keep (the log, for seven days), so it is told for each job and not judged.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from jsq import Client
from jsq.server import EmbeddedServer

ROOT = Path(__file__).parents[2]
WARM_SECONDS = 180.0
SAMPLE_SECONDS = 5.0
MOST_GROWTH = 0.05
SPARE_FILES = 3
RESULT_EVERY = 20


@dataclass(frozen=True)
class Sample:
    """What the processes hold: bytes resident, and open files; how many tasks the client's loop has."""

    at: float
    jobs: int
    worker: int
    client: int
    server: int
    worker_files: int
    client_files: int
    tasks: int


def resident(pid: int) -> int:
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


class Soak:
    """One run: a server, a worker process, and a client in this one."""

    def __init__(self, server: EmbeddedServer, worker: subprocess.Popen[bytes], client: Client) -> None:
        self.server = server
        self.worker = worker
        self.client = client
        self.jobs = 0
        self.samples: list[Sample] = []

    async def run(self, seconds: float, rate: float) -> None:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            load = group.create_task(self.load(rate))
            while (passed := time.monotonic() - began) < seconds:
                await asyncio.sleep(SAMPLE_SECONDS)
                self.sample(passed)
            load.cancel()

    async def load(self, rate: float) -> None:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            while True:
                while self.jobs < (time.monotonic() - began) * rate:
                    self.jobs += 1
                    group.create_task(self.one(self.jobs))
                await asyncio.sleep(0.01)

    async def one(self, number: int) -> None:
        job = await self.client.submit("add", number, 1)
        if number % RESULT_EVERY == 0:
            assert await job.result(30) == number + 1

    def sample(self, at: float) -> None:
        worker, client = self.worker.pid, os.getpid()
        self.samples.append(
            Sample(
                at,
                self.jobs,
                resident(worker),
                resident(client),
                resident(self.server.pid),
                files(worker),
                files(client),
                len(asyncio.all_tasks()),
            )
        )

    async def left(self) -> list[str]:
        """What the server still holds of jobs that have all ended."""
        broker = await self.client.broker()
        info = await broker.streams.info(broker.names.ready_stream("default"))
        assert info is not None
        found = [f"{info['state']['messages']} messages"] if info["state"]["messages"] else []
        if info["state"]["consumer_count"] != 3:
            found.append(f"{info['state']['consumer_count']} consumers instead of 3")
        for level in ("high", "normal", "low"):
            known = await broker.streams.consumer_info(broker.names.ready_stream("default"), level)
            if known and known["num_ack_pending"]:
                found.append(f"{known['num_ack_pending']} unsettled deliveries of {level}")
        return found

    def grown(self) -> list[str]:
        """What grew after the first minutes and should not have."""
        warm = [sample for sample in self.samples if sample.at >= WARM_SECONDS]
        if not warm:
            return ["the run was too short to tell: it takes more than 180 s"]
        first, last = warm[0], warm[-1]
        found = []
        for name in ("worker", "client"):
            before, after = getattr(first, name), getattr(last, name)
            if after > before * (1 + MOST_GROWTH):
                found.append(f"the {name}'s memory grew from {before:,} to {after:,} bytes")
        for name in ("worker_files", "client_files"):
            before, after = getattr(first, name), getattr(last, name)
            if after > before + SPARE_FILES:
                found.append(f"{name.replace('_', ' ')} grew from {before} to {after}")
        if last.tasks > first.tasks + 100:
            found.append(f"the client's tasks grew from {first.tasks} to {last.tasks}")
        return found

    def told(self) -> str:
        first = next((sample for sample in self.samples if sample.at >= WARM_SECONDS), self.samples[0])
        last = self.samples[-1]
        each = (last.server - first.server) / max(1, last.jobs - first.jobs)
        return (
            f"{last.jobs:,} jobs in {last.at:.0f} s; from {first.at:.0f} s on: worker "
            f"{first.worker:,} -> {last.worker:,} bytes, client {first.client:,} -> {last.client:,}, files "
            f"{first.worker_files} -> {last.worker_files} and {first.client_files} -> {last.client_files}; "
            f"the server {each:,.0f} bytes for each job that it keeps"
        )


async def until(condition: Callable[[], Awaitable[bool]], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if await condition():
            return True
        await asyncio.sleep(0.1)
    return False


async def soak(seconds: float, rate: float) -> int:
    with EmbeddedServer(sync_interval="1s") as server:
        env = {**os.environ, "JSQ_URL": server.url, "JSQ_NAMESPACE": "soak", "LEASE": "5"}
        command = (sys.executable, "-m", "jsq", "worker", "tests.apps.faults:app", "--log-level", "warning")
        worker = subprocess.Popen(  # noqa: ASYNC220 -- it returns at once
            (*command, "--concurrency", "50"), cwd=ROOT, env=env
        )
        try:
            async with Client(server.url, namespace="soak") as client:
                run = Soak(server, worker, client)
                await run.run(seconds, rate)

                async def nothing_left() -> bool:
                    return not await run.left()

                drained = await until(nothing_left, 30)
                faults = run.grown() + ([] if drained else await run.left())
                print(run.told())
                print("\n".join(faults) or "nothing leaked")
                return int(bool(faults))
        finally:
            worker.terminate()
            worker.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--rate", type=float, default=200, help="jobs a second")
    asked = parser.parse_args()
    sys.exit(asyncio.run(soak(asked.seconds, asked.rate)))


if __name__ == "__main__":
    main()
