"""The budget of a plain job: the files that it passes through, and the calls between them."""

import asyncio
import json
import urllib.request
from typing import Any

from jsq import App
from jsq.broker.topology.subjects import Subjects
from jsq.server import EmbeddedServer
from tests.helpers.conditions import Until
from tests.helpers.walk import Walk
from tests.helpers.workers import Working

MOST_FILES = 26
MOST_CALLS = 90
MOST_FILES_OF_A_KEY = 14
"""The additional files of a job with `key=`: eight of the general path, and six of key groups."""

WALKS = 10
"""The number of measured jobs.

The one with the fewest calls counts, because loops of the worker run meanwhile.
"""


async def is_settled(server: EmbeddedServer, stream: str) -> bool:
    """Whether each delivery of a stream is acknowledged, according to the server."""

    def ask() -> bool:
        url = f"{server.monitor}/jsz?accounts=true&streams=true&consumers=true"
        with urllib.request.urlopen(url, timeout=5) as answer:
            accounts = json.load(answer)["account_details"]
        streams = [found for account in accounts for found in account.get("stream_detail") or []]
        [ready] = [found for found in streams if found["name"] == stream]
        return not any(consumer["num_ack_pending"] for consumer in ready["consumer_detail"])

    return await asyncio.to_thread(ask)


async def walk(
    app: App, server: EmbeddedServer, namespace: str, working: Working, until: Until, **options: Any
) -> Walk:
    """Record a job with these options, from its submit until its delivery is settled."""

    @app.task
    async def add(first: int, second: int) -> int:
        return first + second

    ready, walks = Subjects(namespace).streams.ready("default"), list[Walk]()
    task = add.options(**options) if options else add
    async with working():
        for _ in range(WALKS):
            found = Walk()
            with found.recorded():
                assert await (await task.submit(1, 2)).result(10) == 3
                await until(lambda: is_settled(server, ready))
            walks.append(found)
    return min(walks, key=lambda found: found.call_count)


async def test_a_plain_job_stays_within_its_budget_of_files(
    app: App, server: EmbeddedServer, namespace: str, working: Working, until: Until
) -> None:
    found = await walk(app, server, namespace, working, until)

    assert found.file_count <= MOST_FILES, str(found)
    assert found.call_count <= MOST_CALLS, str(found)


async def test_a_job_with_a_key_stays_within_its_budget_of_files(
    app: App, server: EmbeddedServer, namespace: str, working: Working, until: Until
) -> None:
    found = await walk(app, server, namespace, working, until, key="k")

    assert found.file_count <= MOST_FILES + MOST_FILES_OF_A_KEY, str(found)
