"""One chaos run on one server: load and faults, then peace, then the whole history."""

import asyncio
import contextlib
import os
import random
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from jsq import BrokerError, Client
from jsq.server import EmbeddedServer
from tests.chaos.history import History, by_job, read_effects
from tests.chaos.load import Load
from tests.chaos.nemesis import Nemesis, Workers
from tests.chaos.proxy import Proxy

CLIENTS = 4
WORKERS = 3
NAMESPACE = "chaos"
PEACE_SECONDS = 120.0


@dataclass(frozen=True)
class Run:
    """What came of it."""

    history: History
    faults: dict[str, int]
    longest_gap: float
    refused: int
    seconds: float


async def run(
    seconds: float,
    seed: int,
    rate: float,
    *,
    only: Collection[str] = (),
    mutant: bool = False,
    peace: float = PEACE_SECONDS,
) -> Run:
    """Break and load for so long, then mend, drain, and gather the history. `only` names the faults."""
    chance, history, began = random.Random(seed), History(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="jsq-chaos-") as name:
        folder = Path(name)
        (folder / "effects").mkdir()
        with EmbeddedServer(sync_interval="1s") as server:
            host, _, port = server.url.removeprefix("nats://").partition(":")
            async with contextlib.AsyncExitStack() as stack:
                links = {
                    name: await stack.enter_async_context(Proxy(host, int(port)))
                    for name in ("clients", "workers")
                }
                env = {
                    **os.environ,
                    "JSQ_URL": links["workers"].url,
                    "JSQ_NAMESPACE": NAMESPACE,
                    "EFFECTS": str(folder / "effects"),
                } | ({"CHAOS_MUTANT": "1"} if mutant else {})
                clients = [
                    await stack.enter_async_context(Client(links["clients"].url, namespace=NAMESPACE))
                    for _ in range(CLIENTS)
                ]
                workers = Workers(WORKERS, env, folder / "worker.log")
                nemesis = Nemesis(server, workers, links, chance, history.kills, only)
                load = Load(clients, history, random.Random(seed + 1), rate)
                keeping = asyncio.create_task(workers.keep())
                try:
                    await clients[0].provision()
                    async with asyncio.TaskGroup() as group:
                        group.create_task(load.run(seconds))
                        group.create_task(nemesis.run(seconds))
                    async with Client(server.url, namespace=NAMESPACE) as judge:
                        await gather(judge, history, peace)
                finally:
                    keeping.cancel()
                    workers.stop()
        history.effects = read_effects(folder / "effects")
        refused = (folder / "worker.log").read_text(errors="replace").count("job lost")
    return Run(history, dict(nemesis.faults), load.longest_gap, refused, time.monotonic() - began)


async def gather(client: Client, history: History, peace: float) -> None:
    """Wait until nothing is left to do, and read what there is."""
    broker = await client.broker()
    ready = broker.names.ready_stream("default")
    end = time.monotonic() + peace
    left: list[str] = ["nothing was read"]
    while left and time.monotonic() < end:
        await asyncio.sleep(0.5)
        with contextlib.suppress(BrokerError):
            left = [f"{id} is on the queue" for id in await broker.jobs.waiting("default")]
            for level in ("high", "normal", "low"):
                known = await broker.streams.consumer_info(ready, level)
                if known and known["num_ack_pending"]:
                    left.append(f"{known['num_ack_pending']} deliveries of {level} are not settled")
    history.left = left
    history.events = by_job(await broker.log.history())
    history.view = {event.job: event for event in await broker.log.view()}
    history.letters = [letter.id for letter in await client.dead_letters()]
