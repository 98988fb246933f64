"""Tasks of Routers in the child processes of a worker."""

import asyncio
import os
import sys

from jsq import App
from jsq.server import EmbeddedServer
from tests.helpers.repository import ROOT


async def test_a_child_process_enters_the_lifespan_of_the_app_that_includes_the_router(
    server: EmbeddedServer, namespace: str
) -> None:
    async with App(server.url, namespace=namespace) as app:
        job = await app.client.task("shop.inner.state_in_child").submit()

        worker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "jsq", "worker", "tests.apps.routing:app", "--burst"),
            cwd=ROOT,
            env={**os.environ, "JSQ_URL": server.url, "JSQ_NAMESPACE": namespace},
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            _, printed = await worker.communicate()

        assert worker.returncode == 0, printed.decode()
        pool, pid = await job.result(5)
    assert pool == "open"
    assert pid not in (worker.pid, os.getpid())
