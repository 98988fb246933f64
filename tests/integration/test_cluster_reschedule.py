"""On three servers a schedule may be replaced and fire. An acknowledged reschedule holds nevertheless."""

import asyncio
import random
import time
from collections import defaultdict
from pathlib import Path

import pytest

from jsq import App, JobHandle, WrongState
from jsq.settings import WorkerSettings
from jsq.worker import Worker
from tests.helpers.cluster import cluster
from tests.helpers.conditions import Until
from tests.helpers.workers import running_worker

JOBS, DELAY, LATER, CLOSE = 100, 1.0, 3.0, 0.05


@pytest.mark.proof
async def test_a_job_moved_just_as_it_was_due_starts_at_its_new_time(tmp_path: Path, until: Until) -> None:
    async with cluster(tmp_path) as servers, App(servers.url) as app:
        begins: dict[str, list[float]] = defaultdict(list)
        moved: dict[str, float] = {}

        @app.task
        async def note(number: int) -> None:
            begins[jobs[number].id].append(time.time())

        jobs: dict[int, JobHandle[None]] = {}

        async def move_when_due(number: int) -> None:
            due = time.time() + DELAY
            jobs[number] = job = await note.options(delay=DELAY).submit(number)
            await asyncio.sleep(max(0.0, due - time.time() + random.uniform(-0.02, 0.03)))
            start_time = time.time()
            try:
                await job.reschedule(delay=LATER)
            except WrongState:
                return
            moved[job.id] = start_time + LATER

        await app.client.admin.provision(app.declared, replicas=3)
        async with running_worker(Worker(app, settings=WorkerSettings(concurrency=JOBS))):
            for _ in range(3):
                base = len(jobs)
                await asyncio.gather(*(move_when_due(base + number) for number in range(JOBS)))
            await until(lambda: len(begins) == len(jobs), 20)

        assert moved
        assert [id for id, due in moved.items() if begins[id][0] < due - CLOSE] == []
        assert all(len(times) == 1 for times in begins.values())
        assert await app.client.jobs.list_open(queue="default") == []
