"""One chaos run on one server or three: load and faults, then peace, then the whole history."""

import asyncio
import contextlib
import itertools
import os
import random
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from jsq import BrokerError, Client
from jsq.broker import Broker as Place
from jsq.broker.jobs.records import RecordStore
from jsq.broker.maintenance.sweeper import MIN_AGE
from jsq.broker.submit.unique import read_claim
from jsq.model.event import OPEN_STATES
from jsq.model.job import PRIORITIES
from jsq.model.key_group import key_token
from jsq.model.schedule import tick_id
from tests.chaos.brokers import NAMESPACE, Broker, serving
from tests.chaos.checker import TICKING, check, i7
from tests.chaos.flow import KEYS
from tests.chaos.history import History, by_job, read_effects
from tests.chaos.load import Load
from tests.chaos.nemesis import Nemesis, Workers
from tests.chaos.tasks import CONCURRENCY, RATES, queues, settings
from tests.helpers.proxy import Link

CLIENTS = 4
WORKERS = 3
PEACE_SECONDS = 300.0
SHORT_AGE = 5.0
"""The age in seconds at which a short run sweeps; the sweeps of workers come too late for it (`MIN_AGE`)."""

MOST_EVIDENCE = 5


@dataclass(frozen=True)
class Run:
    """What came of it."""

    history: History
    faults: dict[str, int]
    longest_gap: float
    refused: int
    seconds: float
    evidence: dict[str, list[str]]


async def run(
    seconds: float,
    seed: int,
    rate: float,
    *,
    servers: int = 1,
    only: Collection[str] = (),
    mutants: Collection[str] = (),
    disk: bool = False,
    peace: float = PEACE_SECONDS,
) -> Run:
    """Break and load for so long, then mend, drain, and gather the history.

    `only` names the faults, `mutants` what the workers lack.
    """
    chance, history, began = (
        random.Random(seed),
        History(rates=RATES, concurrency=CONCURRENCY),
        time.monotonic(),
    )
    history.slot_lease = settings(servers).lease
    with tempfile.TemporaryDirectory(prefix="jsq-chaos-") as name:
        folder = Path(name)
        (folder / "effects").mkdir()
        async with serving(servers, folder, disk=disk) as broker, contextlib.AsyncExitStack() as stack:
            links = {
                name: await stack.enter_async_context(Link(broker.url)) for name in ("clients", "workers")
            }
            env = {
                **os.environ,
                "JSQ_URL": links["workers"].url,
                "JSQ_NAMESPACE": NAMESPACE,
                "EFFECTS": str(folder / "effects"),
                "CHAOS_SERVERS": str(servers),
            } | ({"CHAOS_MUTANT": ",".join(mutants)} if mutants else {})
            clients = [
                await stack.enter_async_context(Client(links["clients"].url, namespace=NAMESPACE))
                for _ in range(CLIENTS)
            ]
            workers = Workers(WORKERS, env, folder / "worker.log")
            nemesis = Nemesis(broker, workers, links, chance, history, settings(servers).lease, only)
            load = Load(clients, history, random.Random(seed + 1), rate)
            keeping = asyncio.create_task(workers.keep())
            try:
                await clients[0].admin.provision(queues(servers))
                await clients[0].schedules.add(TICKING, "tick", every=1, catch_up="all")
                since = (await (await clients[0].broker()).schedules.find(TICKING)).state.decided_until
                async with asyncio.TaskGroup() as group:
                    group.create_task(load.run(seconds))
                    group.create_task(nemesis.run(seconds))
                if set(nemesis.faults) <= {"worker killed"}:
                    history.lease = settings(servers).lease
                async with Client(broker.url, namespace=NAMESPACE) as judge:
                    await stop_ticking(judge, history, since, peace)
                    await gather(judge, broker, history, peace)
                    history.effects = read_effects(folder / "effects")
                    evidence = await look_closer(judge, history)
            finally:
                keeping.cancel()
                await asyncio.to_thread(workers.stop)  # the loop serves the links meanwhile
        told = (folder / "worker.log").read_text(errors="replace")
        refused = told.count("lease lost")
        for id in evidence:
            evidence[id] += [line for line in told.splitlines() if id in line]
    return Run(history, dict(nemesis.faults), load.longest_gap, refused, time.monotonic() - began, evidence)


async def stop_ticking(client: Client, history: History, since: datetime, peace: float) -> None:
    """Wait until each tick up to now is decided upon, and tick no more; note the jobs they were to make."""
    schedules = (await client.broker()).schedules
    end, last = time.monotonic() + peace, schedules.now()
    while time.monotonic() < end:
        await asyncio.sleep(0.2)
        with contextlib.suppress(BrokerError):
            entry = await schedules.find(TICKING)
            due = itertools.takewhile(lambda tick: tick <= last, entry.schedule.next_ticks(since))
            history.ticks = [tick_id(TICKING, tick) for tick in due]
            if entry.state.decided_until > last:
                await client.schedules.pause(TICKING)
                return


async def gather(client: Client, servers: Broker, history: History, peace: float) -> None:
    """Wait until nothing is left to do, and read what there is."""
    broker = await client.broker()
    end = time.monotonic() + peace
    left: list[str] = ["nothing was read"]
    while left and time.monotonic() < end:
        await asyncio.sleep(0.5)
        with contextlib.suppress(BrokerError):
            if peace < MIN_AGE and time.monotonic() > end - peace + SHORT_AGE:
                await client.admin.sweep(
                    age=SHORT_AGE
                )  # the workers' sweeps come later than the end of the run
            left = [one for queue in queues(1) for one in await left_on(broker, queue)]
            # A replay that broke off stands on no queue until a sweep has mended it.
            left = left or [
                f"{one.job} is {one.state}"
                for one in await broker.records.list_last()
                if one.state in OPEN_STATES
            ]
    history.left = left
    history.behind = await servers.mend()
    history.events = by_job([await broker.records.with_result(one) for one in await broker.records.history()])
    await read_view(broker.records, history, end)
    history.letters = [letter.id for letter in await client.dead_letters.list()]


async def left_on(broker: Place, queue: str) -> list[str]:
    """What is left of a queue: jobs, deliveries, places in the turns of keys."""
    left = [f"{id} is on the queue {queue}" for id in await broker.job_reader.waiting_ids(queue)]
    for level in PRIORITIES:
        known = await broker.jetstream.consumer_info(broker.subjects.streams.ready(queue), level)
        if known and known["num_ack_pending"]:
            left.append(f"{known['num_ack_pending']} deliveries of {level} are not settled on {queue}")
    left += [f"{queue} is held: {place}" for place in (await broker.pauses.active(queue)).pauses]
    if await broker.streams.has_groups(queue):
        for key in KEYS:
            turn, _ = await broker.key_groups.state(queue, key_token(key))
            left += [f"{one.id} has a place in the turn of {key}" for one in turn.slots]
    return left


async def read_view(records: RecordStore, history: History, end: float) -> None:
    """Read the last revisions, once the replica that answers has all of them."""
    while True:
        with contextlib.suppress(BrokerError):
            history.view = {event.job: event for event in await records.list_last()}
            if not any(i7(history)) or time.monotonic() > end:
                return
        await asyncio.sleep(1.0)


async def look_closer(client: Client, history: History) -> dict[str, list[str]]:
    """What can be found out about the jobs that violations name: messages, events, runs; the consumers."""
    broker = await client.broker()
    subjects = broker.subjects
    named = {word for told in check(history).values() for one in told for word in one.split()}
    found: dict[str, list[str]] = {}
    for id in sorted(named & history.events.keys())[:MOST_EVIDENCE]:
        about, queue = found.setdefault(id, []), history.events[id][0].queue
        for stream, subject in (
            (subjects.streams.ready(queue), subjects.ready(queue, "*", id)),
            (subjects.streams.scheduled(queue), subjects.scheduled(queue, id)),
            (subjects.streams.scheduled(queue), subjects.due(queue, "*", id)),
            (subjects.streams.records, subjects.record(queue, id)),
        ):
            stored = await broker.reads.fetch(stream, subject)
            about += [f"{stream}: {one.headers} {one.payload.decode()}" for one in stored]
        claims = await broker.reads.fetch(subjects.streams.bucket("ids"), subjects.key("ids", "u.*"))
        for claim in (read_claim(one) for one in claims):
            if id in (claim.job, claim.successor):
                about.append(str(claim))
                about += [str(event) for event in history.events.get(claim.job, []) if claim.job != id]
        about += [str(asked) for asked in history.asked if asked.job == id]
        about += [str(effect) for effect in history.effects if effect.job == id]
    if found:
        found["consumers"] = [
            f"{queue}: {await broker.jetstream.consumer_info(subjects.streams.ready(queue), level)}"
            for queue in queues(1)
            for level in PRIORITIES
        ]
        held = await broker.reads.fetch(subjects.streams.bucket("limits"), subjects.limits.pauses("*"))
        found["holds"] = [f"{one.headers} {one.payload.decode()}" for one in held]
    return found
