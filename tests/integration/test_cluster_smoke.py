"""One loss of a leader on three servers. The proof tier has the others, in `test_clusters.py`."""

import asyncio
from pathlib import Path

from jsq import App
from jsq.settings import WorkerSettings
from jsq.worker import Worker
from tests.helpers.cluster import cluster
from tests.helpers.workers import running_worker


async def test_jobs_run_over_the_loss_of_the_server_that_leads_their_queue(tmp_path: Path) -> None:
    async with cluster(tmp_path) as servers, App(servers.url) as app:

        @app.task
        async def double(number: int) -> int:
            return 2 * number

        await app.client.admin.provision(app.declared, replicas=3)
        ready = (await app.client.broker()).subjects.streams.ready("default")
        leader = await servers.leader(app.client, ready)
        before = [await double.submit(number) for number in range(5)]

        await asyncio.to_thread(leader.kill)
        during = [await double.submit(number) for number in range(5, 10)]
        async with running_worker(Worker(app, settings=WorkerSettings())):
            results = [await job.result(20) for job in (*before, *during)]

    assert results == [2 * number for number in range(10)]
