"""One chaos run on one server or three: load with faults, a quiet time, and the history."""

import asyncio
import contextlib
import itertools
import logging
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from jsq import BrokerError, Client
from jsq.broker import Broker as Place
from jsq.broker.jobs.records import RecordStore
from jsq.broker.maintenance.sweeper import MIN_AGE
from jsq.broker.submit.unique import read_claim
from jsq.broker.topology.configs import MAX_HISTORY
from jsq.codec.subject_token import ANY
from jsq.model.job import PRIORITIES
from jsq.model.key_group import key_token
from jsq.model.revision import OPEN_STATES, StoredRevision, is_progress_report
from jsq.model.schedule import tick_id
from tests.chaos.brokers import NAMESPACE, Broker, serving
from tests.chaos.checker import TICKING, check, i7
from tests.chaos.flow import EDITED_KEYS, KEYS
from tests.chaos.history import History, by_job, read_effects
from tests.chaos.hooks import REFUSED, RaisingApp
from tests.chaos.load import Load
from tests.chaos.nemesis import Nemesis, Workers
from tests.chaos.tasks import CONCURRENCY, HOOKED, RATES, queues, settings
from tests.helpers.proxy import Link

CLIENTS = 4
WORKERS = 3
QUIET_SECONDS = 300.0
SHORT_AGE = 5.0
"""The `age` in seconds of the sweep of a short run; sweeps of workers come too late for it (`MIN_AGE`)."""

MOST_EVIDENCE = 5


@dataclass(frozen=True)
class Run:
    """The result of a chaos run."""

    history: History
    faults: dict[str, int]
    longest_gap: float
    lost_leases: int
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
    quiet: float = QUIET_SECONDS,
) -> Run:
    """Run load with faults for `seconds`, then end the faults, drain the queues and collect the history.

    `only` names the faults to inject, `mutants` the features that the workers lack. `quiet` limits the
    seconds in which the queues are drained.
    """
    chance, history, began = (
        random.Random(seed),
        History(rates=RATES, concurrency=CONCURRENCY, hooked=frozenset(HOOKED), refused=REFUSED),
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
            clients[0].connection.app = RaisingApp()
            stack.enter_context(silent(logging.getLogger("jsq.job")))
            workers = Workers(WORKERS, env, folder / "worker.log")
            nemesis = Nemesis(broker, workers, links, chance, history, settings(servers).lease, only)
            load = Load(clients, history, random.Random(seed + 1), rate)
            keeping = asyncio.create_task(workers.keep())
            try:
                await clients[0].admin.provision(queues(servers), events="1d")
                await clients[0].schedules.add(TICKING, "tick", every=1, catch_up="all")
                since = (await (await clients[0].broker()).schedules.find(TICKING)).state.decided_until
                async with asyncio.TaskGroup() as group:
                    group.create_task(load.run(seconds))
                    group.create_task(nemesis.run(seconds))
                if set(nemesis.faults) <= {"worker killed"}:
                    history.lease = settings(servers).lease
                async with Client(broker.url, namespace=NAMESPACE) as judge:
                    await stop_ticking(judge, history, since, quiet)
                    await gather(judge, broker, history, quiet)
                    history.effects = read_effects(folder / "effects")
                    evidence = await collect_evidence(judge, history)
            finally:
                keeping.cancel()
                await asyncio.to_thread(workers.stop)  # the loop serves the links meanwhile
        log = (folder / "worker.log").read_text(errors="replace")
        for id in evidence:
            evidence[id] += [line for line in log.splitlines() if id in line]
    return Run(
        history,
        dict(nemesis.faults),
        load.longest_gap,
        log.count("lease lost"),
        time.monotonic() - began,
        evidence,
    )


@contextlib.contextmanager
def silent(logger: logging.Logger) -> Iterator[None]:
    """Log nothing: the middleware of a client raises at every submit."""
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


async def stop_ticking(client: Client, history: History, since: datetime, quiet: float) -> None:
    """Wait until each tick up to now is decided, then pause the schedule. Note the ids of the jobs."""
    schedules = (await client.broker()).schedules
    end, last = time.monotonic() + quiet, schedules.now()
    while time.monotonic() < end:
        await asyncio.sleep(0.2)
        with contextlib.suppress(BrokerError):
            entry = await schedules.find(TICKING)
            due = itertools.takewhile(lambda tick: tick <= last, entry.schedule.next_ticks(since))
            history.ticks = [tick_id(TICKING, tick) for tick in due]
            if entry.state.decided_until > last:
                await client.schedules.pause(TICKING)
                return


async def gather(client: Client, servers: Broker, history: History, quiet: float) -> None:
    """Wait until nothing is left to do, then read the state of the server."""
    broker = await client.broker()
    end = time.monotonic() + quiet
    left: list[str] = ["nothing was read"]
    while left and time.monotonic() < end:
        await asyncio.sleep(0.5)
        with contextlib.suppress(BrokerError):
            if quiet < MIN_AGE and time.monotonic() > end - quiet + SHORT_AGE:
                await client.admin.sweep(
                    age=SHORT_AGE
                )  # the sweeps of the workers come after the end of a short run
            left = [one for queue in queues(1) for one in await left_on(broker, queue)]
            # An incomplete retry of a dead letter has no message until a sweep repairs it.
            left = left or [
                f"{one.job} is {one.state}"
                for one in await broker.records.list_last()
                if one.state in OPEN_STATES
            ]
    history.leftovers = left
    history.lagging = await servers.synchronize()
    held, history.from_log = await read_events(broker)
    history.events = by_job([await broker.records.with_result(one) for one in held])
    await read_view(broker.records, history, end)
    history.dead_letters = [letter.id for letter in await client.dead_letters.list()]


async def read_events(broker: Place) -> tuple[list[StoredRevision], list[str]]:
    """The events of all jobs, and the jobs for which the event log was needed.

    The bucket keeps the last revisions of a record. Of a job with that many, the others are in the log.
    """
    held = await broker.records.history()
    revisions = Counter(one.job for one in held if not is_progress_report(one.revision))
    full = sorted(job for job, count in revisions.items() if count >= MAX_HISTORY)
    more = {one.sequence: one for job in full for one in await broker.event_log.history(job, ANY)}
    return sorted(({one.sequence: one for one in held} | more).values(), key=sequence_number), full


def sequence_number(event: StoredRevision) -> int:
    return event.sequence


async def left_on(broker: Place, queue: str) -> list[str]:
    """The things that a queue still holds: jobs, deliveries, pauses, and slots of key groups."""
    left = [f"{id} is on the queue {queue}" for id in await broker.job_reader.waiting_ids(queue)]
    for level in PRIORITIES:
        known = await broker.jetstream.consumer_info(broker.subjects.streams.ready(queue), level)
        if known and known["num_ack_pending"]:
            left.append(f"{known['num_ack_pending']} deliveries of {level} are not settled on {queue}")
    left += [f"{queue} is paused: {scope}" for scope in (await broker.pauses.active(queue)).pauses]
    if await broker.streams.has_groups(queue):
        for key in (*KEYS, *EDITED_KEYS):
            state, _ = await broker.key_groups.state(queue, key_token(key))
            left += [f"{one.id} holds a slot of {key}" for one in state.slots]
    return left


async def read_view(records: RecordStore, history: History, end: float) -> None:
    """Read the last revisions; repeat this until the replica that replies has all of them."""
    while True:
        with contextlib.suppress(BrokerError):
            history.view = {event.job: event for event in await records.list_last()}
            if not any(i7(history)) or time.monotonic() > end:
                return
        await asyncio.sleep(1.0)


async def collect_evidence(client: Client, history: History) -> dict[str, list[str]]:
    """Collect the messages, events and runs of the jobs that violations name, and the consumers."""
    broker = await client.broker()
    subjects = broker.subjects
    named = {word for found in check(history).values() for one in found for word in one.split()}
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
        claims = await broker.reads.fetch(subjects.streams.bucket("ids"), subjects.unique_key("*"))
        for claim in (read_claim(one) for one in claims):
            if id in (claim.job, claim.successor):
                about.append(str(claim))
                about += [str(event) for event in history.events.get(claim.job, []) if claim.job != id]
        about += [str(submit) for submit in history.flow_submits if submit.job == id]
        about += [str(effect) for effect in history.effects if effect.job == id]
    if found:
        found["consumers"] = [
            f"{queue}: {await broker.jetstream.consumer_info(subjects.streams.ready(queue), level)}"
            for queue in queues(1)
            for level in PRIORITIES
        ]
        held = await broker.reads.fetch(subjects.streams.bucket("limits"), subjects.limits.pauses("*"))
        found["pauses"] = [f"{one.headers} {one.payload.decode()}" for one in held]
    return found
