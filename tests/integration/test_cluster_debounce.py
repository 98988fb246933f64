"""A schedule may be replaced and fire on three servers. The last submit of a debounced key runs anyway."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from jsq import App
from jsq.settings import WorkerSettings
from jsq.worker import Worker
from tests.helpers.cluster import cluster
from tests.helpers.conditions import Until
from tests.helpers.workers import running_worker

KEYS, DELAY, LATER, ROUNDS = 100, 1.0, 2.0, 5


@pytest.mark.proof
async def test_the_last_submit_of_a_key_runs_if_it_arrives_as_the_previous_one_is_due(
    tmp_path: Path, until: Until
) -> None:
    async with cluster(tmp_path) as servers, App(servers.url) as app:
        runs: Counter[tuple[int, str]] = Counter()

        @app.task
        async def note(number: int, content: str) -> None:
            runs[number, content] += 1

        async def submit_when_due(number: int) -> None:
            due = time.time() + DELAY
            await note.options(unique=f"key {number}", debounce=DELAY).submit(number, "first")
            await asyncio.sleep(max(0.0, due - time.time() + random.uniform(-0.12, 0.0)))
            await note.options(unique=f"key {number}", debounce=LATER).submit(number, "last")

        await app.client.admin.provision(app.declared, replicas=3)
        async with running_worker(Worker(app, settings=WorkerSettings(concurrency=KEYS))):
            for repetition in range(ROUNDS):
                await asyncio.gather(*(submit_when_due(repetition * KEYS + number) for number in range(KEYS)))

            def lost() -> list[int]:
                return [number for number in range(ROUNDS * KEYS) if not runs[number, "last"]]

            with contextlib.suppress(TimeoutError):
                await until(lambda: not lost(), 15)

        assert lost() == []
        assert max(runs.values()) == 1
