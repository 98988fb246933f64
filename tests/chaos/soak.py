"""A long, even load that finds leaks: `python -m tests.chaos.soak --seconds 600 --rate 200`.

Some of the jobs have a key, an id of the caller, a unique key, or a delay. From the third minute on, the run
samples the memory, the open files and the asyncio tasks of the worker and of the client. At the end it reads
what the server holds of the queue: messages, unsettled deliveries, consumers and slots of key groups. It also
counts the keys of buckets, except those that ids and unique keys occupy for a week. The memory of the server
grows with the log, which it keeps for seven days, so it is reported per job and not checked.
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
from typing import Any

from jsq import Client
from jsq.server import EmbeddedServer

ROOT = Path(__file__).parents[2]
WARM_SECONDS = 180.0
SAMPLE_SECONDS = 5.0
MOST_GROWTH = 0.05
SPARE_FILES = 3
SPARE_TASKS = 100
RESULT_EVERY = 20
KEYS = 50
PATIENCE = 120.0
"""Seconds until everything that expires by itself has expired. An empty group state takes one minute."""


@dataclass(frozen=True)
class Sample:
    """The resources of the processes: resident bytes, open files, and tasks of their event loops."""

    at: float
    jobs: int
    worker: int
    client: int
    server: int
    worker_files: int
    client_files: int
    worker_tasks: int
    client_tasks: int


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
        self.claims = 0
        self.samples: list[Sample] = []

    async def run(self, seconds: float, rate: float) -> None:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            load = group.create_task(self.load(rate))
            while (passed := time.monotonic() - began) < seconds:
                await asyncio.sleep(SAMPLE_SECONDS)
                await self.sample(passed)
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
        job = await self.client.task("add").options(**self.options(number)).submit(number, 1)
        if number % RESULT_EVERY == 0:
            assert await job.result(PATIENCE) == number + 1

    def options(self, number: int) -> dict[str, Any]:
        """The options of a job. Most jobs have none; some have options that leave something on the server."""
        match number % 100:
            case 1:
                self.claims += 1
                return {"id": f"own-{number}"}
            case 2:
                self.claims += 1
                return {"unique": f"unique-{number}"}
            case 3:
                return {"delay": 1}
            case kind if kind < 14:
                return {"key": f"k{number // 100 % KEYS}", "per_key": 1 if kind < 9 else None}
        return {}

    async def sample(self, at: float) -> None:
        worker, client = self.worker.pid, os.getpid()
        worker_tasks = await (await self.client.task("count_tasks").options(priority="high").submit()).result(
            60
        )
        self.samples.append(
            Sample(
                at,
                self.jobs,
                resident(worker),
                resident(client),
                resident(self.server.pid),
                files(worker),
                files(client),
                int(worker_tasks),
                len(asyncio.all_tasks()),
            )
        )

    async def left(self) -> list[str]:
        """The things that the server still holds although all jobs have ended."""
        broker = await self.client.broker()
        info = await broker.jetstream.stream_info(broker.subjects.streams.ready("default"))
        assert info is not None
        found = [f"{info['state']['messages']} messages"] if info["state"]["messages"] else []
        if info["state"]["consumer_count"] != 3:
            found.append(f"{info['state']['consumer_count']} consumers instead of 3")
        for level in ("high", "normal", "low"):
            known = await broker.jetstream.consumer_info(broker.subjects.streams.ready("default"), level)
            if known and known["num_ack_pending"]:
                found.append(f"{known['num_ack_pending']} unsettled deliveries of {level}")
        return found + await self.keys_left()

    async def keys_left(self) -> list[str]:
        """The streams that hold more messages than they should when there is no work."""
        broker = await self.client.broker()
        subjects = broker.subjects
        kept = {
            subjects.streams.scheduled("default"): 0,
            subjects.streams.groups("default"): 1,  # the permanent first message of the stream
            subjects.streams.group_state("default"): 0,
            subjects.streams.bucket("limits"): 0,
            subjects.streams.bucket("schedules"): 0,
            subjects.streams.bucket("workers"): 3,  # the worker, the sweeper, and the last sweep
            subjects.streams.bucket("ids"): self.claims,
        }
        found = []
        for stream, most in kept.items():
            info = await broker.jetstream.stream_info(stream)
            messages = info["state"]["messages"] if info else 0
            if messages > most:
                found.append(f"{messages} keys or messages in {stream} instead of {most}")
        return found

    def grown(self) -> list[str]:
        """The resources that grew after the first minutes although they should not."""
        warm = [sample for sample in self.samples if sample.at >= WARM_SECONDS]
        if not warm:
            return ["the run was too short to measure growth; it must take more than 180 s"]
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
        for name in ("worker_tasks", "client_tasks"):
            before, after = getattr(first, name), getattr(last, name)
            if after > before + SPARE_TASKS:
                found.append(f"{name.replace('_', ' ')} grew from {before} to {after}")
        return found

    def summary(self) -> str:
        first = next((sample for sample in self.samples if sample.at >= WARM_SECONDS), self.samples[0])
        last = self.samples[-1]
        each = (last.server - first.server) / max(1, last.jobs - first.jobs)
        grown = {
            "worker's bytes": (first.worker, last.worker),
            "client's bytes": (first.client, last.client),
            "worker's files": (first.worker_files, last.worker_files),
            "client's files": (first.client_files, last.client_files),
            "worker's tasks": (first.worker_tasks, last.worker_tasks),
            "client's tasks": (first.client_tasks, last.client_tasks),
        }
        growth = ", ".join(f"{what} {before:,} -> {after:,}" for what, (before, after) in grown.items())
        return (
            f"{last.jobs:,} jobs in {last.at:.0f} s; from {first.at:.0f} s on: {growth}; "
            f"the server: {each:,.0f} bytes for each job that it keeps"
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

                drained = await until(nothing_left, PATIENCE)
                faults = run.grown() + ([] if drained else await run.left())
                print(run.summary())
                print("\n".join(faults) or "nothing leaked")
                return int(bool(faults))
        finally:
            worker.terminate()
            worker.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--rate", type=float, default=200, help="jobs a second")
    arguments = parser.parse_args()
    sys.exit(asyncio.run(soak(arguments.seconds, arguments.rate)))


if __name__ == "__main__":
    main()
