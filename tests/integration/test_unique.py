"""Unique jobs: one job of a key at a time, whatever dies between its claim and its end."""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jsq import App, BrokerUnavailable, Client, DuplicateJob, JobHandle, PartlySubmitted, Reject
from jsq.broker import Broker
from jsq.broker.flow.pauses import PAUSED_BY
from jsq.broker.topology.configs import ID_SECONDS
from jsq.model.job import Job
from jsq.model.repair import Inconsistency
from jsq.model.unique import JobLife, UniqueClaim, unique_hash
from jsq.server import EmbeddedServer
from jsq.transport.server_clock import OUTLIVED_SECONDS
from jsq.worker import Worker
from tests.helpers.conditions import Until
from tests.helpers.workers import Working, running_worker

WAIT = 60.0


class Gate:
    """The arguments of the runs of a task, and a gate that lets them end."""

    def __init__(self) -> None:
        self.runs: list[int] = []
        self.open = asyncio.Event()

    def declare(self, app: App, **options: Any) -> Any:
        @app.task(name="work", **options)
        async def work(n: int = 0) -> int:
            self.runs.append(n)
            await self.open.wait()
            return n

        return work


@pytest.fixture
def gate() -> Gate:
    return Gate()


async def waiting(client: Client, queue: str = "default") -> list[str]:
    return await (await client.broker()).job_reader.waiting_ids(queue)


async def state(job: JobHandle[Any]) -> str:
    return (await job.status()).state


def runs(gate: Gate, *wanted: int) -> Callable[[], bool]:
    return lambda: gate.runs == list(wanted)


# -- how long a key is held ----------------------------------------------------------------------------------


async def test_a_key_is_held_until_its_job_has_ended(
    app: App, working: Working, gate: Gate, until: Until
) -> None:
    work = gate.declare(app)
    first = await work.options(unique="k").submit(1)
    assert not first.duplicate
    again = await work.options(unique="k").submit(2)
    other = await work.options(unique="other").submit(3)
    assert (again.id, again.duplicate, other.duplicate) == (first.id, True, False)

    async with working():
        await until(lambda: sorted(gate.runs) == [1, 3])
        assert (await work.options(unique="k").submit(4)).id == first.id
        gate.open.set()
        assert await first.result(WAIT) == 1
        free = await work.options(unique="k").submit(5)
        assert not free.duplicate
        assert await free.result(WAIT) == 5


async def test_with_until_start_the_key_is_free_when_the_job_runs(
    app: App, working: Working, gate: Gate, until: Until
) -> None:
    work = gate.declare(app, unique="k", unique_until="start")
    first = await work.submit(1)
    assert (await work.submit(2)).id == first.id
    async with working():
        await until(runs(gate, 1))
        second = await work.submit(3)
        assert not second.duplicate
        await until(runs(gate, 1, 3))
        gate.open.set()
        assert [await first.result(WAIT), await second.result(WAIT)] == [1, 3]


async def test_with_a_window_the_key_is_held_after_the_end_of_its_job(
    app: App, working: Working, gate: Gate, until: Until
) -> None:
    work = gate.declare(app)
    gate.open.set()
    async with working():
        first = await work.options(unique="k", unique_for=1.5).submit(1)
        start_time = time.monotonic()
        await first.result(WAIT)
        assert (await work.options(unique="k", unique_for=1.5).submit(2)).id == first.id
        assert (await work.options(unique="k", throttle=1.5).submit(2)).id == first.id

        async def is_free() -> bool:
            return not (await work.options(unique="k", unique_for=1.5).submit(3)).duplicate

        await until(is_free)
        assert time.monotonic() - start_time >= 1.4
        await until(runs(gate, 1, 3))


async def test_a_window_may_be_longer_than_the_records_of_its_job(app: App, gate: Gate) -> None:
    """A record is kept for a week, and a waiting job has none."""
    work = gate.declare(app)
    broker, month = await app.client.broker(), timedelta(days=30)
    first = await work.options(unique="k", throttle=month).submit(1)
    await broker.job_writer.remove("default", first.id)
    assert await broker.records.last(first.id) is None

    again = await work.options(unique="k", throttle=month).submit(2)

    assert (again.id, again.duplicate) == (first.id, True)
    assert await waiting(app.client) == []


@pytest.mark.parametrize("end", ["failed", "cancelled", "expired"])
async def test_every_outcome_of_a_job_releases_its_key(
    app: App, working: Working, until: Until, end: str
) -> None:
    @app.task(name="work", unique="k", retries=0)
    async def work(n: int) -> int:
        raise Reject("no")

    first = await work.options(deadline=0.2 if end == "expired" else None).submit(1)
    if end == "cancelled":
        await first.cancel()
    else:

        async def is_late() -> bool:
            at = (await first.status()).at
            return at is not None and time.time() - at.timestamp() > 2

        await until(is_late)
        async with working():
            await first.wait(WAIT)
    assert await state(first) == end
    second = await work.submit(2)
    assert not second.duplicate
    assert second.id != first.id


async def test_a_retrying_job_holds_its_key(app: App, working: Working, until: Until) -> None:
    @app.task(name="work", retries=1, backoff=[60], unique="k", on_duplicate="replace")
    async def work() -> None:
        raise ValueError("again")

    async with working():
        first = await work.submit()

        async def is_retrying() -> bool:
            return await state(first) == "retrying"

        await until(is_retrying)
        second = await work.submit()
    assert (second.id, second.duplicate) == (first.id, True)  # the job has started: it is not replaced


async def test_an_expired_record_holds_no_key(app: App, working: Working, until: Until) -> None:
    @app.task(name="work")
    async def work() -> None: ...

    broker = await app.client.broker()
    async with working():
        first = await work.options(unique="k").submit()
        await first.result(WAIT)
    assert (await broker.unique.positions.find("default", first.id)).life is JobLife.ENDED
    # As if its time had passed: no revision remains after the last one.
    record = broker.subjects.record("default", first.id)
    await broker.jetstream.purge(broker.subjects.streams.records, record)
    assert (await broker.unique.positions.find("default", first.id)).life is JobLife.MISSING

    assert not (await work.options(unique="k").submit()).duplicate


# -- which jobs are duplicates -------------------------------------------------------------------------------


async def test_a_key_is_made_of_all_arguments_or_some_or_by_a_function(app: App) -> None:
    @app.task(unique=True)
    async def by_all(a: int, b: int = 2) -> None: ...

    @app.task(unique=["a"])
    async def by_some(a: int, b: int = 2) -> None: ...

    @app.task(unique=lambda a, b: a + b)
    async def by_sum(a: int, b: int) -> None: ...

    calls = [(1, 2), (1, 2), (1, 3), (2, 1)]
    duplicates = {
        task.name: [h.duplicate for h in await task.submit_many(calls)] for task in (by_all, by_some, by_sum)
    }
    assert duplicates == {
        "by_all": [False, True, False, False],
        "by_some": [False, True, True, False],
        "by_sum": [False, True, False, True],
    }
    assert (await by_all.submit(1)).duplicate
    assert (await app.client.task("by_all").options(unique=True).submit(a=1, b=2)).duplicate
    assert not (await by_all.options(unique=False).submit(1)).duplicate
    assert not (await by_all.options(unique="own").submit(1)).duplicate


async def test_a_unique_key_belongs_to_its_task_on_every_queue(app: App) -> None:
    client = app.client
    first = await client.task("one").options(unique="k").submit()
    assert (
        (await client.task("one").options(unique="k", queue="other").submit()).queue
        == first.queue
        == "default"
    )
    assert not (await client.task("two").options(unique="k").submit()).duplicate


async def test_a_bulk_of_unique_jobs_submits_the_jobs_of_a_key_in_order(app: App, gate: Gate) -> None:
    work = gate.declare(app, unique=["n"], on_duplicate="raise")
    with pytest.raises(PartlySubmitted) as caught:
        await work.submit_many([(1,), (2,), (1,), (3,), (2,)])

    assert sorted(caught.value.refused) == [2, 4]
    assert all(isinstance(error, DuplicateJob) for error in caught.value.refused.values())
    assert sorted(await waiting(app.client)) == sorted(caught.value.stored)
    assert len(caught.value.stored) == 3
    with pytest.raises(DuplicateJob):
        await work.submit_many([(1,), (2,)])


async def test_a_unique_job_has_the_other_options(
    app: App, working: Working, gate: Gate, until: Until
) -> None:
    work = gate.declare(app)
    submitter = work.options(unique="k", delay=0.5, priority="high", id="mine", deadline=30, tags=["t"])
    first = await submitter.submit(1)
    second = await submitter.submit(2)  # the same submit twice
    third = await work.options(unique="k").submit(3)
    assert [(h.id, h.duplicate) for h in (first, second, third)] == [("mine", d) for d in (False, True, True)]
    assert (await first.status()).state == "scheduled"
    assert (await first.status()).tags == ("t",)
    gate.open.set()
    async with working():
        assert await first.result(WAIT) == 1
        assert (await submitter.submit(4)).duplicate  # its id is in use, though the key is free
        fourth = await work.options(unique="k", id="yours").submit(5)
        assert await fourth.result(WAIT) == 5
    assert gate.runs == [1, 5]


# -- policies for duplicates ---------------------------------------------------------------------------------


async def test_raise_names_the_job_that_holds_the_key(app: App, gate: Gate) -> None:
    work = gate.declare(app)
    first = await work.options(unique="k").submit(1)
    with pytest.raises(DuplicateJob, match=f"work: job {first.id} holds this unique key") as caught:
        await work.options(unique="k", on_duplicate="raise").submit(2)
    assert (caught.value.id, caught.value.task) == (first.id, "work")
    assert await waiting(app.client) == [first.id]


@pytest.mark.parametrize("delay", [None, 30])
async def test_replace_cancels_the_waiting_job(
    app: App, working: Working, gate: Gate, delay: float | None
) -> None:
    work = gate.declare(app)
    gate.open.set()
    first = await work.options(unique="k", delay=delay).submit(1)
    second = await work.options(unique="k", on_duplicate="replace", delay=delay).submit(2)
    assert not second.duplicate
    assert (await state(first), await waiting(app.client)) == ("cancelled", [second.id])
    if delay:
        await second.promote()
    async with working():
        assert await second.result(WAIT) == 2
    assert gate.runs == [2]


async def test_replace_keeps_a_running_job(app: App, working: Working, gate: Gate, until: Until) -> None:
    work = gate.declare(app, unique="k", on_duplicate="replace")
    async with working():
        first = await work.submit(1)
        await until(runs(gate, 1))
        assert (await work.submit(2)).id == first.id
        gate.open.set()
        assert await first.result(WAIT) == 1
    assert gate.runs == [1]


async def test_many_concurrent_replacements_leave_one_job(app: App, working: Working, gate: Gate) -> None:
    work = gate.declare(app, unique="k", on_duplicate="replace")
    gate.open.set()
    jobs = await asyncio.gather(*(work.submit(n) for n in range(20)))
    left = await waiting(app.client)
    assert len(left) == 1
    async with working():
        await asyncio.gather(*(job.wait(WAIT) for job in jobs))
    ended = {job.id: await state(job) for job in jobs}
    assert [id for id, how in ended.items() if how != "cancelled"] == left
    assert len(gate.runs) == 1


# -- debounce and throttle -----------------------------------------------------------------------------------


async def test_a_debounced_job_starts_after_the_last_submit_with_its_arguments(
    app: App, working: Working, gate: Gate, until: Until
) -> None:
    work = gate.declare(app, unique="k", debounce=2)
    gate.open.set()
    async with working():
        jobs = []
        for n in range(4):
            last = time.time()
            jobs.append(await work.submit(n))
            assert gate.runs == []
            await asyncio.sleep(0.1)  # so that the timer starts again at another moment
        assert {job.id for job in jobs} == {jobs[0].id}
        assert [job.duplicate for job in jobs] == [False, *[True] * 3]
        assert await jobs[0].result(WAIT) == 3
        ended = (await jobs[0].status()).at.timestamp()
        assert 1.9 <= ended - last < 20

        new = await work.submit(9)
        assert not new.duplicate
    assert gate.runs == [3]
    history = [event.state for event in await (await app.client.broker()).records.history(jobs[0].id)]
    assert history == ["running", "succeeded"]


async def test_many_concurrent_debounced_submits_are_one_job(app: App, working: Working, gate: Gate) -> None:
    work = gate.declare(app, unique="k", debounce=20)
    gate.open.set()
    jobs = await asyncio.gather(*(work.submit(n) for n in range(100)))
    assert len({job.id for job in jobs}) == 1
    assert await waiting(app.client) == [jobs[0].id]
    last = await work.options(debounce=0.3).submit(100)
    async with working():
        assert await last.result(WAIT) == 100
    assert gate.runs == [100]


@pytest.mark.parametrize(("paused", "debounce"), [(False, 0.05), (True, 0.001)])
async def test_a_job_that_becomes_due_while_it_replaces_another_is_one_job(
    app: App, working: Working, gate: Gate, until: Until, paused: bool, debounce: float
) -> None:
    """A submit that replaces a schedule checks whether the old one has fired. The new one may fire first."""
    work = gate.declare(app, unique="k")
    gate.open.set()
    await app.client.admin.provision()
    broker = await app.client.broker()
    first = await work.options(debounce=0.1 if paused else 0.5).submit(1)
    if paused:
        await app.client.queues.pause("default", task="work")
        async with working():
            await until(lambda: is_requeued(broker, first.id))
    else:
        broker.wire.clock.uncertainty = 1.0

    last = await work.options(debounce=debounce).submit(2)

    assert (last.id, last.duplicate) == (first.id, True)
    await app.client.queues.resume("default", task="work")
    async with working():
        assert await last.result(WAIT) == 2
    assert gate.runs == [2]


async def is_requeued(broker: Broker, id: str) -> bool:
    """Whether a worker has requeued a job until the end of a pause, and settled its delivery."""
    found = await broker.reads.last(
        broker.subjects.streams.scheduled("default"), broker.subjects.scheduled("default", id)
    )
    return (
        found is not None
        and PAUSED_BY in found.headers
        and not await broker.job_reader.queued_ids("default", [id])
    )


async def test_a_debounced_submit_after_a_cancelled_one_is_a_new_job(
    app: App, working: Working, gate: Gate
) -> None:
    work = gate.declare(app, unique="k", debounce=0.3)
    gate.open.set()
    first = await work.submit(1)
    await first.cancel()
    second = await work.submit(2)
    assert not second.duplicate
    async with working():
        assert await second.result(WAIT) == 2
    assert await state(first) == "cancelled"


async def test_throttle_stores_the_first_job_of_a_window(
    app: App, gate: Gate, working: Working, until: Until
) -> None:
    work = gate.declare(app, unique=["n"], throttle=1)
    gate.open.set()
    async with working():
        handles = [await work.submit(n) for n in (1, 1, 2, 1)]
        assert [h.duplicate for h in handles] == [False, True, False, True]

        async def next_window() -> bool:
            return not (await work.submit(1)).duplicate

        await until(next_window)
        await until(lambda: sorted(gate.runs) == [1, 1, 2])


# -- keep_last -----------------------------------------------------------------------------------------------


async def test_keep_last_has_one_running_job_and_the_newest_one_waiting(
    app: App, working: Working, gate: Gate, until: Until
) -> None:
    work = gate.declare(app, unique="k", on_duplicate="keep_last")
    old = await work.submit(0)
    first = await work.submit(1)
    assert (await state(old), first.duplicate) == ("cancelled", False)
    async with working():
        await until(runs(gate, 1))
        jobs = [await work.submit(n) for n in (2, 3, 4)]
        assert len({job.id for job in jobs}) == 1
        assert [job.duplicate for job in jobs] == [False, True, True]
        assert (await state(jobs[0]), gate.runs) == ("scheduled", [1])
        gate.open.set()
        assert await first.result(WAIT) == 1
        assert await jobs[0].result(WAIT) == 4
        new = await work.submit(5)
        assert await new.result(WAIT) == 5
    assert gate.runs == [1, 4, 5]


async def test_a_running_pending_duplicate_may_have_a_pending_duplicate(
    app: App, working: Working, gate: Gate, until: Until
) -> None:
    work = gate.declare(app, unique="k", on_duplicate="keep_last")
    async with working():
        first = await work.submit(1)
        await until(runs(gate, 1))
        second = await work.submit(2)
        gate.open.set()
        await first.result(WAIT)
        gate.open.clear()
        await until(runs(gate, 1, 2))
        third = await work.submit(3)
        assert await state(third) == "scheduled"
        gate.open.set()
        assert [await second.result(WAIT), await third.result(WAIT)] == [2, 3]
    assert gate.runs == [1, 2, 3]


async def test_a_cancelled_pending_duplicate_is_replaced_by_another(
    app: App, working: Working, gate: Gate, until: Until
) -> None:
    work = gate.declare(app, unique="k", on_duplicate="keep_last")
    async with working():
        first = await work.submit(1)
        await until(runs(gate, 1))
        second = await work.submit(2)
        await second.cancel()
        third = await work.submit(3)
        assert (third.id != second.id, third.duplicate) == (True, False)
        gate.open.set()
        assert [await first.result(WAIT), await third.result(WAIT)] == [1, 3]
    assert (gate.runs, await state(second)) == ([1, 3], "cancelled")


async def test_submits_that_race_with_the_end_of_the_running_job_are_not_lost(
    app: App, working: Working, until: Until
) -> None:
    ran: list[int] = []

    @app.task(unique="k", on_duplicate="keep_last")
    async def quick(n: int) -> int:
        ran.append(n)
        return n

    async with working(concurrency=4):
        for n in range(60):
            await quick.submit(n)
        last = await quick.submit(60)
        assert await last.result(WAIT) == 60
        await until(lambda: ran[-1] == 60)

        async def nothing_waits() -> bool:
            return not await waiting(app.client)

        await until(nothing_waits)
    assert ran == sorted(ran)


async def test_a_sweep_submits_the_pending_duplicate_of_a_job_cancelled_between_attempts(
    app: App, working: Working, until: Until
) -> None:
    ran: list[int] = []

    @app.task(name="work", retries=1, backoff=[600], unique="k", on_duplicate="keep_last")
    async def work(n: int) -> int:
        ran.append(n)
        if n == 1:
            raise ValueError("again")
        return n

    async with working():
        first = await work.submit(1)

        async def is_retrying() -> bool:
            return await state(first) == "retrying"

        await until(is_retrying)
        second = await work.submit(2)
        assert await state(second) == "scheduled"
        await first.cancel()
        swept = await app.client.admin.sweep(age=0)
        assert [(one.kind, one.job, one.repaired) for one in swept] == [
            (Inconsistency.ORPHANED_SUCCESSOR, second.id, True)
        ]
        assert await second.result(WAIT) == 2
        assert not [
            one for one in await app.client.admin.sweep(age=0) if one.kind is Inconsistency.ORPHANED_SUCCESSOR
        ]
    assert ran == [1, 2]


# -- deaths between a claim and its end ----------------------------------------------------------------------


async def claim_for_nothing(client: Client, **more: Any) -> str:
    """Claim the key `k` of the task `work` as a client that dies before it stores its job."""
    broker = await client.broker()
    await client.queues.list()
    value = {"job": "never", "queue": "default", "until": "finish", **more}
    subject = broker.subjects.unique_key(unique_hash("work", "k"))
    await broker.job_writer.publish_shared(
        subject, json.dumps(value).encode(), {"Nats-TTL": str(int(ID_SECONDS))}
    )
    return "never"


@pytest.mark.parametrize("way", ["return", "raise", "replace", "keep_last"])
async def test_a_claim_without_a_job_is_completed_by_the_next_submit(
    app: App, working: Working, gate: Gate, way: Any
) -> None:
    work = gate.declare(app)
    gate.open.set()
    claimed = await claim_for_nothing(app.client)
    job = await work.options(unique="k", on_duplicate=way).submit(1)
    assert (job.id, job.duplicate) == (claimed, False)
    async with working():
        assert await job.result(WAIT) == 1
    assert gate.runs == [1]


async def test_a_claimed_duplicate_that_was_never_stored_is_completed(
    app: App, working: Working, gate: Gate, until: Until
) -> None:
    work = gate.declare(app, unique="k", on_duplicate="keep_last")
    async with working():
        first = await work.submit(1)
        await until(runs(gate, 1))
        await claim_for_nothing(app.client, job=first.id, successor="never")
        second = await work.submit(2)
        assert (second.id, second.duplicate, await state(second)) == ("never", False, "scheduled")
        gate.open.set()
        assert [await first.result(WAIT), await second.result(WAIT)] == [1, 2]


async def test_a_pending_duplicate_that_was_never_stored_blocks_no_later_submit(
    app: App, working: Working, gate: Gate, until: Until
) -> None:
    work = gate.declare(app, unique="k", on_duplicate="keep_last")
    gate.open.set()
    async with working():
        first = await work.submit(1)
        await first.result(WAIT)
        await claim_for_nothing(app.client, job=first.id, successor="never")
        assert await (await work.submit(2)).result(WAIT) == 2


async def test_claims_survive_the_death_of_server_and_clients(own_server: EmbeddedServer) -> None:
    async def submit(n: int, **options: Any) -> JobHandle[Any]:
        async with Client(own_server.url) as client:
            return await client.task("work").options(**options).submit(n)

    first = await submit(1, unique="k")
    windowed = await submit(1, unique="w", unique_for=600)
    for _ in range(2):
        own_server.kill()
        own_server.restart()
        assert (await submit(2, unique="k")).id == first.id
        assert (await submit(2, unique="w", throttle=600)).id == windowed.id

    app = App(own_server.url)
    gate = Gate()
    gate.open.set()
    gate.declare(app)
    async with app:
        async with running_worker(Worker(app)):
            assert await app.client.jobs.handle(first.id).result(WAIT) == 1
            assert await app.client.jobs.handle(windowed.id).result(WAIT) == 1
        own_server.kill()
        own_server.restart()
        assert (await app.client.task("work").options(unique="w", unique_for=600).submit(3)).id == windowed.id
        assert (await app.client.task("work").options(unique="k").submit(3)).id != first.id
    assert sorted(gate.runs) == [1, 1]


async def test_a_debounce_replaces_a_job_only_if_it_did_not_change_meanwhile(app: App) -> None:
    """The primitive: a job replaces its schedule, by the sequence of that."""
    broker = await app.client.broker()
    due = datetime.now(UTC) + timedelta(minutes=5)
    job = await app.client.task("work").options(delay=60).submit(1)
    subject = broker.subjects.scheduled("default", job.id)
    stream = broker.subjects.streams.scheduled("default")
    before = await broker.reads.last(stream, subject, consistent=True)
    assert before is not None
    sequence = int(before.headers["Nats-Sequence"])
    other = Job(job.id, "work", arguments=b"[[2], {}]")
    assert not await broker.job_writer.replace_scheduled(other, due, expect=sequence + 1)
    assert not await broker.job_writer.replace_scheduled(other, due, expect=0)
    assert await broker.job_writer.replace_scheduled(other, due, expect=sequence)
    third = Job(job.id, "work", arguments=b"[[3], {}]")
    assert not await broker.job_writer.replace_scheduled(third, due, expect=sequence)
    after = await broker.reads.fetch(stream, subject)
    assert [reply.payload for reply in after] == [b"[[2], {}]"]


async def test_a_submit_fails_while_other_clients_keep_claiming_its_key(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jsq.broker.submit.unique.DEADLINE_SECONDS", 0.2)
    broker = await app.client.broker()
    await app.client.task("work").options(unique="k").submit()
    claim = broker.unique.claim

    async def claim_of_before(key: str) -> UniqueClaim | None:
        """The claim as it was before another submitter wrote it again."""
        found = await claim(key)
        return None if found is None else replace(found, revision=found.revision - 1)

    monkeypatch.setattr(broker.unique, "claim", claim_of_before)
    with pytest.raises(BrokerUnavailable, match="other submits kept claiming its unique key"):
        await app.client.task("work").options(unique="k", on_duplicate="replace").submit()


@pytest.mark.parametrize("way", ["return", "raise", "replace"])
async def test_a_claim_that_the_server_stores_after_its_window_blocks_no_submit(
    app: App, gate: Gate, way: Any
) -> None:
    """As after a restart of a killed server, which restores the claim without its TTL."""
    work = gate.declare(app, unique="k", unique_for=60, on_duplicate=way)
    first = await work.submit(1)
    broker = await app.client.broker()

    broker.wire.clock.offset += 60 + OUTLIVED_SECONDS + 1
    second = await work.submit(2)

    assert (second.id != first.id, second.duplicate) == (True, False)
    assert sorted(await waiting(app.client)) == sorted([first.id, second.id])


async def test_an_id_whose_claim_the_server_stores_too_long_can_be_used_again(app: App, gate: Gate) -> None:
    work = gate.declare(app)
    await app.client.admin.provision()
    broker = await app.client.broker()
    claim = json.dumps({"queue": "default", "stored": True}).encode()
    await broker.job_writer.publish_shared(broker.subjects.own_id("order-1"), claim, {"Nats-TTL": "60"})
    assert (await work.options(id="order-1").submit(1)).duplicate

    broker.wire.clock.offset += 60 + OUTLIVED_SECONDS + 1
    job = await work.options(id="order-1").submit(2)

    assert not job.duplicate
    assert await waiting(app.client) == ["order-1"]
