"""Two features at once: each keeps its guarantees beside the other, and nothing is left behind.

The assertions use what the tasks recorded themselves, and that afterwards the server stores nothing.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from jsq import (
    App,
    BadOption,
    Client,
    Context,
    DuplicateJob,
    Failure,
    JobExpired,
    JobFailed,
    JobHandle,
    RateLimited,
    Reject,
    Retry,
    Snooze,
    WrongState,
)
from jsq.task import Task
from tests.helpers.conditions import Until
from tests.helpers.forkserver import ForkServer
from tests.helpers.jobs import final_states
from tests.helpers.key_groups import nothing_is_left
from tests.helpers.rate_limits import most_in_a_window
from tests.helpers.workers import Workers, Working, worker_processes

WAIT = 60.0
QUEUE = "default"
FAR = 3600


class Harness:
    """An app with a few tasks, each of which appends its argument to `started`.

    `note` and `other` return at once, and `wait` waits for the `gate`. `flaky` fails the first time, and
    `doomed` fails permanently if its argument is in `dooms`.
    """

    def __init__(self, app: App, working: Working, until: Until) -> None:
        self.app = app
        self.client = app.client
        self.working = working
        self._until = until
        self.started: list[str] = []
        self.gate = asyncio.Event()
        self.dooms: set[str] = set()

        async def note(label: str) -> str:
            self.started.append(label)
            return label

        async def wait(label: str) -> str:
            self.started.append(label)
            await self.gate.wait()
            return label

        async def flaky(ctx: Context, label: str) -> str:
            self.started.append(label)
            if ctx.attempt == 1:
                raise ValueError("once more")
            return label

        async def doomed(label: str) -> str:
            self.started.append(label)
            if label in self.dooms:
                raise ValueError("for good")
            return label

        app.task(name="note")(note)
        app.task(name="other")(note)
        app.task(wait)
        app.task(retries=3, backoff=[0.2])(flaky)
        app.task(retries=0)(doomed)

    async def to(self, task: str, label: str, **options: Any) -> JobHandle[Any]:
        return await self.client.task(task).options(**options).submit(label)

    async def until(self, condition: Callable[[], Any]) -> None:
        await self._until(condition, WAIT)

    async def until_started(self, count: int = 1) -> None:
        await self.until(lambda: len(self.started) >= count)

    async def until_state(self, job: JobHandle[Any], state: str) -> None:
        async def there() -> bool:
            return (await job.status()).state == state

        await self.until(there)

    async def until_requeued(self, *jobs: JobHandle[Any]) -> None:
        """Wait until jobs were requeued by a worker because they may not start now."""

        async def all_requeued() -> bool:
            found = [await self.later_message(job) for job in jobs]
            # The worker settles the delivery after it has stored the copy.
            waits = await (await self.client.broker()).job_reader.queued_ids(QUEUE, [job.id for job in jobs])
            return not waits and all({"Jsq-Paused-By", "Jsq-Reserved"} & one.keys() for one in found)

        await self.until(all_requeued)

    async def later_message(self, job: JobHandle[Any]) -> dict[str, str]:
        """The headers of the scheduled message of a job."""
        broker = await self.client.broker()
        subjects = broker.subjects
        found = await broker.reads.last(
            subjects.streams.scheduled(QUEUE), subjects.scheduled(QUEUE, job.id), consistent=True
        )
        return found.headers if found is not None else {}

    async def until_in_key_group(self, count: int) -> None:
        async def are_in_key_group() -> bool:
            return (await self.client.queues.stats(QUEUE))[0].waiting_for_key == count

        await self.until(are_in_key_group)

    async def results(self, *jobs: JobHandle[Any]) -> None:
        await asyncio.gather(*(job.result(WAIT) for job in jobs))

    async def states(self, *jobs: JobHandle[Any]) -> set[str]:
        return {(await job.status()).state for job in jobs}

    async def expired(self, job: JobHandle[Any]) -> None:
        with pytest.raises(JobExpired):
            await job.result(WAIT)

    async def pause(self, **place: str) -> None:
        """Pause before a worker starts: a running worker would observe it a moment later."""
        await self.client.admin.provision()
        await self.client.queues.pause(QUEUE, task=place.get("task"), key=place.get("key"))

    async def clean(self, *, sweeps: bool = False) -> None:
        """Wait until the server stores nothing of any job: no message, slot, pause or inconsistency."""
        if sweeps:
            await self.client.admin.sweep(age=0.0)
        await self.until(lambda: is_clean(self.client))


async def is_clean(client: Client) -> bool:
    broker = await client.broker()
    [stats] = await client.queues.stats(QUEUE)
    if (
        sum(stats.waiting.values())
        or stats.running
        or stats.scheduled
        or stats.waiting_for_key
        or stats.pauses
    ):
        return False
    if await broker.streams.has_groups(QUEUE) and not await nothing_is_left(broker):
        return False
    if await client.admin.sweep(age=0.0, dry_run=True):
        return False
    return all(one.severity != "error" for one in await client.admin.doctor())


@pytest.fixture
async def harness(app: App, working: Working, until: Until) -> Harness:
    return Harness(app, working, until)


HOLDS: dict[str, dict[str, str]] = {"queue": {}, "task": {"task": "note"}, "key": {"key": "k"}}


# -- keys and other options ----------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["queue", "task", "key"])
async def test_jobs_in_strict_order_keep_it_while_they_wait_for_a_rate_limit(
    harness: Harness, limit: str
) -> None:
    started: list[tuple[str, int]] = []
    rates: dict[str, Any] = {"task": {"rate": "6/1s"}, "key": {"key_rate": "6/1s"}}
    if limit == "queue":
        harness.app.queue(QUEUE, rate="6/1s")

    @harness.app.task(per_key=1, **rates.get(limit, {}))
    async def limited(key: str, number: int) -> None:
        started.append((key, number))

    jobs = [await limited.options(key=key).submit(key, number) for number in range(6) for key in "ab"]
    async with harness.working(), harness.working():
        await harness.results(*jobs)
        await harness.clean()

    for key in "ab":
        assert [number for one, number in started if one == key] == list(range(6))


@pytest.mark.parametrize("paused", HOLDS)
async def test_jobs_in_strict_order_keep_it_during_a_pause(harness: Harness, paused: str) -> None:
    await harness.pause(**HOLDS[paused])
    async with harness.working():
        jobs = [await harness.to("note", str(number), key="k", per_key=1) for number in range(5)]
        if paused != "queue":
            await harness.until_requeued(jobs[0])
        assert await harness.states(*jobs) == {"queued"}
        await harness.client.queues.resume(QUEUE, **HOLDS[paused])
        await harness.results(*jobs)
        await harness.clean()
    assert harness.started == ["0", "1", "2", "3", "4"]


async def test_a_paused_task_delays_only_its_own_keys(harness: Harness) -> None:
    await harness.pause(task="note")
    async with harness.working():
        jobs = [await harness.to("note", str(number), key="k") for number in range(10)]
        await (await harness.to("other", "of another key", key="z")).result(WAIT)
        assert await harness.states(*jobs) == {"queued"}
        await harness.client.queues.resume(QUEUE, task="note")
        await harness.results(*jobs)
        await harness.clean()


@pytest.mark.parametrize(
    ("way", "started"),
    [
        ("return", ["0", "a", "b"]),
        ("raise", ["0", "a", "b"]),
        ("replace", ["0", "b", "c"]),
        ("keep_last", ["0", "b", "c"]),
    ],
)
async def test_a_unique_job_that_waits_in_its_key_group_holds_its_key(
    harness: Harness, way: Any, started: list[str]
) -> None:
    async with harness.working():
        await harness.to("wait", "0", key="k", per_key=1)
        await harness.until_started()
        jobs = [
            await harness.to("note", "a", key="k", per_key=1, unique="u", on_duplicate=way),
            await harness.to("note", "b", key="k", per_key=1),
        ]
        with contextlib.suppress(DuplicateJob) if way == "raise" else contextlib.nullcontext():
            jobs.append(await harness.to("note", "c", key="k", per_key=1, unique="u", on_duplicate=way))
        harness.gate.set()
        await asyncio.gather(*(job.wait(WAIT) for job in jobs))
        await harness.clean()
    assert harness.started == started


async def test_a_pending_duplicate_joins_the_end_of_its_key_group_when_it_is_submitted(
    harness: Harness,
) -> None:
    options: dict[str, Any] = {"key": "k", "per_key": 1, "unique": "u", "on_duplicate": "keep_last"}
    async with harness.working():
        await harness.to("wait", "first", **options)
        await harness.until_started()
        between = await harness.to("note", "between", key="k", per_key=1)
        await harness.to("wait", "older", **options)
        newest = await harness.to("wait", "newest", **options)
        harness.gate.set()
        await harness.results(between, newest)
        await harness.clean()
    assert harness.started == ["first", "between", "newest"]


async def test_a_debounced_job_joins_its_key_group_when_it_is_due(harness: Harness) -> None:
    options: dict[str, Any] = {"key": "k", "per_key": 1, "unique": "u"}
    async with harness.working():
        await harness.to("wait", "first", key="k", per_key=1)
        await harness.until_started()
        older_jobs = [
            await harness.to("note", f"older {number}", debounce=3.0, **options) for number in range(3)
        ]
        older = older_jobs[-1]
        await harness.until_in_key_group(1)
        newer = await harness.to("note", "newer", debounce=0.1, **options)
        assert (newer.id != older.id, newer.duplicate) == (True, False)
        harness.gate.set()
        await harness.results(older, newer)
        await harness.clean()
    assert harness.started == ["first", "older 2", "newer"]


async def test_slots_and_priorities_do_not_change_the_order_of_a_key(harness: Harness) -> None:
    jobs = [
        await harness.to(
            "note",
            f"{key}{number}",
            key=key,
            per_key=1,
            slots=(1, 4, 9)[number % 3],
            priority=("low", "high")[number % 2],
        )
        for number in range(8)
        for key in "ab"
    ]
    async with harness.working(concurrency=4):
        await harness.results(*jobs)
        await harness.clean()
    for key in "ab":
        assert [one for one in harness.started if one[0] == key] == [f"{key}{number}" for number in range(8)]


@pytest.mark.parametrize("how", ["many", "atomic", "map"])
@pytest.mark.parametrize("delay", [None, 0.3])
async def test_jobs_of_one_key_run_in_the_order_of_their_bulk(
    harness: Harness, how: str, delay: float | None
) -> None:
    calls = [[str(number)] for number in range(30)]
    options = harness.client.task("note").options(key="k", per_key=1, delay=delay)
    async with harness.working(concurrency=8):
        if how == "map":
            assert await options.map(calls) == [str(number) for number in range(30)]
        else:
            await harness.results(*await options.submit_many(calls, all_or_nothing=how == "atomic"))
        await harness.clean()
    # Jobs that are due at the same time join their key group in any order.
    started = sorted(harness.started, key=int) if delay else harness.started
    assert started == [str(number) for number in range(30)]


async def test_a_promoted_job_with_a_slot_runs_before_the_others_of_its_key(harness: Harness) -> None:
    @harness.app.task(retries=3, backoff=[FAR])
    async def later(ctx: Context, label: str) -> None:
        harness.started.append(label)
        if ctx.attempt == 1:
            raise ValueError("once more")

    async with harness.working():
        first = await harness.to("later", "first", key="k", per_key=1)
        second = await harness.to("note", "second", key="k", per_key=1)
        await harness.until_state(first, "retrying")
        await first.promote()
        await harness.results(first, second)
        await harness.clean()
    assert harness.started == ["first", "first", "second"]


async def test_a_promoted_job_that_has_not_started_joins_its_key_group(harness: Harness) -> None:
    async with harness.working():
        await harness.to("wait", "first", key="k", per_key=1)
        await harness.until_started()
        promoted = await harness.to("note", "promoted", key="k", per_key=1, delay=FAR)
        waits = await harness.to("note", "waits", key="k", per_key=1)
        await promoted.promote()
        await harness.until_in_key_group(2)
        harness.gate.set()
        await harness.results(promoted, waits)
        await harness.clean()
    assert harness.started == ["first", "waits", "promoted"]


async def test_rate_limited_keeps_the_slot_of_a_strict_key(harness: Harness) -> None:
    @harness.app.task
    async def call(ctx: Context, label: str) -> None:
        harness.started.append(label)
        if label == "0" and harness.started.count("0") == 1:
            raise RateLimited(0.5)

    jobs = [await harness.to("call", str(number), key="k", per_key=1) for number in range(4)]
    async with harness.working():
        await (await harness.to("other", "of another key", key="z")).result(WAIT)
        await harness.results(*jobs)
        assert (await jobs[0].status()).attempt == 1
        await harness.clean()
    assert [one for one in harness.started if len(one) == 1] == ["0", "0", "1", "2", "3"]


async def test_the_next_job_of_a_key_is_retried_in_order_after_a_cancelled_one(
    harness: Harness,
) -> None:
    async with harness.working():
        first = await harness.to("wait", "first", key="k", per_key=1)
        await harness.to("flaky", "second", key="k", per_key=1)
        third = await harness.to("note", "third", key="k", per_key=1)
        await harness.until_started()
        await first.cancel()
        await third.result(WAIT)
        await harness.clean()
    assert harness.started == ["first", "second", "second", "third"]


async def test_the_ticks_of_a_schedule_wait_in_the_group_of_their_key(harness: Harness) -> None:
    async def fired() -> bool:
        return (await harness.client.schedules.list())[0].fired >= 3

    async with harness.working():
        await harness.client.schedules.add("ticks", "wait", ["tick"], every=1, key="k", per_key=1)
        await harness.until(fired)
        await harness.client.schedules.remove("ticks")
        assert harness.started == ["tick"]
        harness.gate.set()
        await harness.clean()
    assert len(harness.started) >= 3


async def test_replayed_jobs_of_a_paused_key_run_when_it_is_resumed(harness: Harness) -> None:
    harness.dooms |= {"0", "1", "2"}
    jobs = [await harness.to("doomed", str(number), key="k", per_key=1) for number in range(3)]
    async with harness.working():
        assert [(await job.wait(WAIT)).state for job in jobs] == ["failed"] * 3
    harness.dooms.clear()
    harness.started.clear()
    await harness.pause(key="k")
    assert await harness.client.jobs.retry_many(task="doomed") == 3
    async with harness.working():
        await harness.until_in_key_group(2)
        assert not harness.started
        await harness.client.queues.resume(QUEUE, key="k")
        await harness.results(*jobs)
        await harness.clean()
    assert sorted(harness.started) == ["0", "1", "2"]


# -- jobs that expire while they wait ------------------------------------------------------------------------


async def test_a_job_that_expires_at_the_head_of_its_key_group_admits_the_next(harness: Harness) -> None:
    async with harness.working():
        await harness.to("wait", "first", key="k", per_key=1)
        await harness.until_started()
        late = await harness.to("note", "late", key="k", per_key=1, expires=0.3)
        last = await harness.to("note", "last", key="k", per_key=1)
        await harness.expired(late)
        harness.gate.set()
        await last.result(WAIT)
        await harness.clean()
    assert harness.started == ["first", "last"]


@pytest.mark.parametrize("declared", [False, True])
async def test_a_job_that_expires_while_its_task_is_paused_admits_the_next_of_its_key(
    harness: Harness, declared: bool
) -> None:
    @harness.app.task(expires=1.0)
    async def soon(label: str) -> None:
        harness.started.append(label)

    task = "soon" if declared else "other"
    options: dict[str, Any] = {} if declared else {"expires": 1.0}
    await harness.pause(task=task)
    async with harness.working():
        late = await harness.to(task, "late", key="k", per_key=1, **options)
        last = await harness.to("note", "last", key="k", per_key=1)
        await last.result(WAIT)
        await harness.expired(late)
        await harness.client.queues.resume(QUEUE, task=task)
        await harness.clean()
    assert harness.started == ["last"]


async def test_a_job_that_expires_while_it_waits_for_its_rate_admits_the_next_of_its_key(
    harness: Harness,
) -> None:
    @harness.app.task(rate="1/1h")
    async def rare(label: str) -> None:
        harness.started.append(label)

    async with harness.working():
        await (await harness.to("rare", "first")).result(WAIT)
        late = await harness.to("rare", "late", key="k", per_key=1, expires=1.0)
        last = await harness.to("note", "last", key="k", per_key=1)
        await harness.expired(late)
        await last.result(WAIT)
        await harness.clean()
    assert harness.started == ["first", "last"]


@pytest.mark.parametrize("where", ["queue", "key group", "later", "paused"])
async def test_an_expired_job_releases_its_unique_key_wherever_it_waits(harness: Harness, where: str) -> None:
    options_of: dict[str, dict[str, Any]] = {"key group": {"key": "k"}, "later": {"delay": 0.2}}
    options = options_of.get(where, {})
    await harness.pause(task="note")
    async with harness.working() if where == "paused" else contextlib.nullcontext():
        old = await harness.to("note", "old", unique="u", expires=2.0, **options)
        assert (await harness.to("note", "old", unique="u")).id == old.id
        await harness.expired(old)
        new = await harness.to("note", "new", unique="u")
        assert (new.id != old.id, new.duplicate) == (True, False)
    await harness.client.queues.resume(QUEUE, task="note")
    async with harness.working():
        assert await new.result(WAIT) == "new"
        await harness.clean()
    assert harness.started == ["new"]
    assert await harness.states(old) == {"expired"}


async def test_an_expired_job_of_an_unknown_task_releases_its_unique_key(harness: Harness) -> None:
    old = await harness.to("missing", "old", unique="u", expires=5.0)
    async with harness.working():
        await harness.until_state(old, "snoozed")
    await harness.expired(old)
    new = await harness.to("missing", "new", unique="u")
    assert (new.id != old.id, new.duplicate) == (True, False)
    await new.cancel()
    await harness.clean(sweeps=True)


async def test_an_expired_pending_duplicate_is_replaced_by_a_newer_one(harness: Harness) -> None:
    options: dict[str, Any] = {"unique": "u", "on_duplicate": "keep_last"}
    async with harness.working():
        await harness.to("wait", "first", **options)
        await harness.until_started()
        late = await harness.to("wait", "late", expires=0.3, **options)
        await harness.expired(late)
        newer = await harness.to("wait", "newer", **options)
        assert newer.id != late.id
        harness.gate.set()
        await newer.result(WAIT)
        await harness.clean(sweeps=True)
    assert harness.started == ["first", "newer"]


async def test_a_debounced_job_expires_by_its_newest_submit(harness: Harness) -> None:
    options: dict[str, Any] = {"unique": "u", "debounce": 3.0, "expires": 60.0}
    await harness.client.admin.provision()
    older = await harness.to("note", "older", **options)
    before = (await older.status()).expires
    newer = await harness.to("note", "newer", **options)

    async def moved() -> bool:
        found = (await newer.status()).expires
        return before is not None and found is not None and found > before

    assert (newer.id, newer.duplicate) == (older.id, True)
    await harness.until(moved)
    async with harness.working():
        assert await newer.result(WAIT) == "newer"
        await harness.clean()


# -- unique jobs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["cancelled", "promoted", "moved"])
async def test_a_delayed_unique_job_holds_its_key_until_it_has_ended(harness: Harness, end: str) -> None:
    harness.dooms.add("first")
    async with harness.working():
        first = await harness.to("doomed", "first", unique="u", delay=FAR)
        assert (await harness.to("doomed", "second", unique="u")).id == first.id
        if end == "cancelled":
            await first.cancel()
        elif end == "promoted":
            await first.promote()
        else:
            await first.reschedule(delay=0.5)
            assert (await harness.to("doomed", "second", unique="u")).id == first.id
        await first.wait(WAIT)
        other = await harness.to("doomed", "third", unique="u")
        assert (other.id != first.id, other.duplicate) == (True, False)
        await other.result(WAIT)
        await harness.clean()


@pytest.mark.parametrize("how", ["retry", "snooze", "rate limited"])
async def test_a_unique_job_holds_its_key_while_it_waits_for_its_next_attempt(
    harness: Harness, how: str
) -> None:
    signals = {"retry": Retry(delay=FAR), "snooze": Snooze(FAR), "rate limited": RateLimited(FAR)}

    @harness.app.task
    async def fails_once(ctx: Context, label: str) -> None:
        harness.started.append(label)
        if len(harness.started) == 1:
            raise signals[how]

    async with harness.working():
        first = await harness.to("fails_once", "first", unique="u", key="k")
        await harness.until_state(first, "retrying" if how == "retry" else "snoozed")
        assert (await harness.to("fails_once", "second", unique="u", key="k")).id == first.id
        await harness.client.queues.resume(QUEUE, key="k")
        await first.promote()
        await first.result(WAIT)
        other = await harness.to("fails_once", "third", unique="u", key="k")
        assert not other.duplicate
        await other.result(WAIT)
        await harness.clean()


@pytest.mark.parametrize(
    ("way", "started"),
    [("return", "older"), ("replace", "newer"), ("keep_last", "newer"), ("debounce", "newer")],
)
async def test_a_paused_unique_job_counts_as_a_waiting_one(harness: Harness, way: Any, started: str) -> None:
    options: dict[str, Any] = {"debounce": 0.1} if way == "debounce" else {"on_duplicate": way}
    await harness.pause(task="note")
    async with harness.working():
        older = await harness.to("note", "older", unique="u", **options)
        await harness.until_requeued(older)
        newer = await harness.to("note", "newer", unique="u", **options)
        assert (newer.id == older.id) == (way in ("return", "debounce"))
        await harness.client.queues.resume(QUEUE, task="note")
        await newer.result(WAIT)
        await harness.clean()
    assert harness.started == [started]


async def test_with_until_start_a_paused_job_holds_its_key(harness: Harness) -> None:
    await harness.pause(task="wait")
    async with harness.working():
        first = await harness.to("wait", "first", unique="u", unique_until="start")
        await harness.until_requeued(first)
        assert (await harness.to("wait", "second", unique="u", unique_until="start")).id == first.id
        await harness.client.queues.resume(QUEUE, task="wait")
        await harness.until_started()
        other = await harness.to("wait", "third", unique="u", unique_until="start")
        assert not other.duplicate
        harness.gate.set()
        await other.result(WAIT)
        await harness.clean()


async def test_options_that_do_not_combine_with_unique_are_refused_by_name(harness: Harness) -> None:
    many = harness.client.task("note").options(unique="u")
    with pytest.raises(BadOption) as caught:
        await many.submit_many([["a"]], all_or_nothing=True)
    assert caught.value.field == "all_or_nothing"
    with pytest.raises(BadOption) as caught:
        await many.submit_many([["a"]], ids=["a"])
    assert caught.value.field == "unique"
    with pytest.raises(BadOption) as caught:
        harness.client.task("any").options(unique="u", on_duplicate="keep_last", delay=5)
    assert caught.value.field == "delay"

    @harness.app.task(unique=["label"])
    async def once(label: str) -> None: ...

    with pytest.raises(BadOption) as caught:
        harness.app.schedule("ticks", once, ["a"], every=5)
    assert (caught.value.field, "overlap" in caught.value.rule) == ("unique", True)
    harness.app.schedule("ticks", once, ["a"], every=5, unique=False)

    @harness.app.task(unique=["label"], debounce=5)
    async def late(label: str) -> None: ...

    @harness.app.task(unique=["label"], unique_until="start", on_duplicate="raise")
    async def first(label: str) -> None: ...

    for task in (late, first):
        harness.app.schedule(f"ticks-{task.name}", task, ["a"], every=5, unique=False)
    with pytest.raises(BadOption, match=r"debounce must .*got 5"):
        harness.app.schedule("more", once, ["a"], every=5, unique=False, debounce=5)  # type: ignore[call-arg]


# -- pauses --------------------------------------------------------------------------------------------------


async def test_due_jobs_and_ticks_of_a_paused_queue_run_when_it_is_resumed(
    harness: Harness,
) -> None:
    await harness.pause()

    async def skipped() -> bool:
        found = {one.name: one for one in await harness.client.schedules.list()}
        return found["skips"].skipped >= 2 and found["all"].fired >= 2

    async with harness.working():
        due = await harness.to("note", "due", delay=0.3)
        await harness.client.schedules.add("skips", "note", ["skips"], every=1, overlap="skip")
        await harness.client.schedules.add("all", "note", ["all"], every=1)
        await harness.until(skipped)
        assert not harness.started
        with pytest.raises(WrongState):
            await due.promote()
        for name in ("skips", "all"):
            await harness.client.schedules.remove(name)
        await harness.client.queues.resume(QUEUE)
        await due.result(WAIT)
        await harness.clean()
    assert harness.started.count("skips") == 1
    assert harness.started.count("all") >= 2


async def test_a_promoted_job_of_a_paused_task_keeps_waiting_and_keeps_its_priority(harness: Harness) -> None:
    @harness.app.task(retries=3, backoff=[FAR])
    async def later(ctx: Context, label: str) -> None:
        if ctx.attempt == 1:
            raise ValueError("once more")

    job = await harness.to("later", "a", priority="low")
    async with harness.working():
        await harness.until_state(job, "retrying")
    await harness.pause(task="later")
    async with harness.working():
        for _ in range(2):  # the second time it is promoted after it was requeued
            await job.promote()
            await harness.until_requeued(job)
        assert (await harness.later_message(job))["Jsq-Submitted-Priority"] == "low"
        await harness.client.queues.resume(QUEUE, task="later")
        await job.result(WAIT)
        await harness.clean()


@pytest.mark.parametrize("overlap", ["skip", "cancel", "queue"])
async def test_a_tick_while_the_previous_job_waits_for_its_retry(harness: Harness, overlap: Any) -> None:
    @harness.app.task(retries=3, backoff=[FAR])
    async def later(label: str) -> None:
        raise ValueError("once more")

    async def ticked() -> bool:
        [found] = await harness.client.schedules.list()
        return found.fired + found.skipped >= 3

    async with harness.working():
        await harness.client.schedules.add("ticks", "later", ["tick"], every=1, overlap=overlap)
        await harness.until(ticked)
        await harness.client.schedules.remove("ticks")
        found = [one.state for one in await harness.client.jobs.list(task="later")]
        if overlap == "skip":
            assert len(found) == 1
        elif overlap == "cancel":
            assert found[:-1] == ["cancelled"] * (len(found) - 1)
        else:
            assert "cancelled" not in found
            assert len(found) >= 3
        await harness.client.jobs.cancel_many(task="later")
        await harness.clean()


@pytest.mark.parametrize("how", ["asked", "declared", "run"])
async def test_a_scheduled_job_expires_if_no_worker_starts_it(harness: Harness, how: str) -> None:
    @harness.app.task(expires=1.5)
    async def soon(label: str) -> None:
        harness.started.append(label)

    async def two() -> bool:
        return (await harness.client.schedules.list())[0].fired >= 2

    schedules = harness.client.schedules
    await harness.pause()
    async with harness.working():
        if how == "asked":
            await schedules.add("ticks", "note", ["a"], every=1, overlap="skip", expires=1.5)
        else:
            await schedules.add("ticks", soon, ["a"], every=1 if how == "declared" else FAR, overlap="skip")
        if how == "run":
            jobs = [await schedules.run("ticks")]
        else:
            await harness.until(two)  # the second one is not admitted: by then the first one has expired
            jobs = [harness.client.jobs.handle(one.id) for one in await harness.client.jobs.list()]
        await schedules.remove("ticks")
    for job in jobs:
        await harness.expired(job)
        assert (await job.status()).expires is not None
    await harness.client.queues.resume(QUEUE)
    async with harness.working():
        await harness.clean()
    assert not harness.started


# -- many waiting jobs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("waits", ["paused queue", "paused task", "paused key", "rate"])
async def test_all_waiting_jobs_are_listed_as_queued_and_cancelled_by_that_state(
    harness: Harness, waits: str
) -> None:
    @harness.app.task(name="rare", rate="1/1h")
    async def rare(label: str) -> None:
        harness.started.append(label)

    place = {"paused task": {"task": "note"}, "paused key": {"key": "k"}}.get(waits, {})
    await harness.client.admin.provision()
    if waits != "rate":
        await harness.pause(**place)
    task = "rare" if waits == "rate" else "note"
    async with harness.working():
        if waits == "rate":
            await (await harness.to("rare", "first")).result(WAIT)
        jobs = [await harness.to(task, str(number), key="k", tags=["all"]) for number in range(10)]
        if waits != "paused queue":
            await harness.until_requeued(*jobs[:4])  # admitted to the queue; the others wait in their group

        async def listed() -> bool:
            return len(await harness.client.jobs.list(tag="all", state="queued")) == 10

        await harness.until(listed)  # lists read a view of the log, which is a moment behind
        assert await harness.states(*jobs) == {"queued"}
        assert (await harness.client.jobs.cancel_many(tag="all", state="queued")).cancelled == 10
        if waits != "rate":
            await harness.client.queues.resume(QUEUE, **place)
        await harness.clean()
    assert harness.started == (["first"] if waits == "rate" else [])


# -- batches -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", ["10/2s", "10/2s burst 4"])
async def test_a_batch_observes_the_rate_of_its_task(harness: Harness, rate: str) -> None:
    starts: list[float] = []

    @harness.app.batch_task(size=20, wait=0.2, rate=rate)
    async def together(items: list[int]) -> None:
        starts.extend([time.time()] * len(items))

    jobs = await together.submit_many([(number,) for number in range(25)])
    async with harness.working(), harness.working():
        await harness.results(*jobs)
        await harness.clean()

    assert len(starts) == 25
    assert most_in_a_window(starts, 2.0) <= (14 if "burst" in rate else 10)
    if "burst" in rate:
        assert most_in_a_window(starts, 0.19) <= 5  # one token is added while the four of the burst start


async def test_jobs_of_one_key_fill_a_batch(harness: Harness) -> None:
    sizes: list[int] = []

    @harness.app.batch_task(size=20, wait=FAR)
    async def together(items: list[int]) -> None:
        sizes.append(len(items))

    jobs = await together.options(key="k").submit_many([(number,) for number in range(40)])
    async with harness.working():
        await harness.results(*jobs)
        await harness.clean()
    assert sizes == [20, 20]


async def test_with_strict_order_a_batch_has_one_job_of_each_key(harness: Harness) -> None:
    batches: list[list[str]] = []

    @harness.app.batch_task(size=4, wait=0.5)
    async def together(items: list[str]) -> None:
        batches.append(items)

    jobs = [
        await together.options(key=key, per_key=1).submit(f"{key}{number}")
        for number in range(4)
        for key in "abcd"
    ]
    async with harness.working():
        await harness.results(*jobs)
        await harness.clean()
    for items in batches:
        assert len({one[0] for one in items}) == len(items)
    for key in "abcd":
        started = [one for items in batches for one in items if one[0] == key]
        assert started == [f"{key}{number}" for number in range(4)]


async def test_a_paused_batch_task_collects_jobs_when_it_is_resumed(harness: Harness) -> None:
    started: list[str] = []

    @harness.app.batch_task(size=5, wait=0.2)
    async def together(items: list[str]) -> None:
        started.extend(items)

    await harness.pause(task="together")
    async with harness.working():
        jobs = await together.submit_many([(str(number),) for number in range(10)])
        await harness.until_requeued(*jobs)
        await jobs[3].cancel()
        await harness.client.queues.resume(QUEUE, task="together")
        await asyncio.gather(*(job.wait(WAIT) for job in jobs))
        await harness.clean()
    assert sorted(started) == sorted({str(number) for number in range(10)} - {"3"})


async def test_an_item_that_is_rate_limited_holds_its_own_key(harness: Harness) -> None:
    started: list[str] = []

    @harness.app.batch_task(size=5, wait=0.2)
    async def together(items: list[str]) -> list[Any]:
        first = "a" not in started
        started.extend(items)
        return [RateLimited(FAR) if one == "a" and first else None for one in items]

    async with harness.working():
        limited = await together.options(key="a").submit("a")
        await harness.until_state(limited, "snoozed")
        second = await together.options(key="a").submit("second")
        await (await together.options(key="b").submit("b")).result(WAIT)
        await harness.until_requeued(second)
        await harness.client.queues.resume(QUEUE, key="a")
        await limited.promote()
        await harness.results(limited, second)
        await harness.clean()
    assert sorted(started) == ["a", "a", "b", "second"]


async def test_each_failed_item_has_its_callback_and_an_expired_job_joins_no_batch(harness: Harness) -> None:
    calls: list[tuple[str, str]] = []

    @harness.app.task
    async def on_dead(failure: Failure) -> None:
        calls.append(("dead", failure.job))

    @harness.app.task
    async def on_failure(failure: Failure) -> None:
        calls.append(("failure", failure.job))

    @harness.app.task
    async def instead(item: str) -> str:
        return f"instead of {item}"

    @harness.app.batch_task(
        size=10, wait=0.3, retries=1, backoff="none", on_dead=on_dead, on_failure=on_failure, fallback=instead
    )
    async def together(items: list[str]) -> list[Any]:
        harness.started.extend(items)
        errors = {"fails": ValueError("it fails"), "rejected": Reject("no")}
        return [errors.get(one) for one in items]

    await harness.client.admin.provision()
    late = await together.options(expires=0.2).submit("late")
    await harness.expired(late)
    fails, rejected, fine = [await together.submit(label) for label in ("fails", "rejected", "fine")]
    async with harness.working():
        await fine.result(WAIT)
        spares = []
        for job in (fails, rejected):
            with pytest.raises(JobFailed) as failed:
                await job.result(WAIT)
            assert failed.value.fallback
            spares.append(harness.client.jobs.handle(failed.value.fallback))
        assert [await spare.result(WAIT) for spare in spares] == ["instead of fails", "instead of rejected"]
        await harness.until(lambda: len(calls) == 5)
        await harness.clean()
    dead = [("dead", fails.id), ("dead", rejected.id)]
    assert sorted(calls) == sorted([*dead, *[("failure", fails.id)] * 2, ("failure", rejected.id)])
    assert "late" not in harness.started


async def test_a_unique_item_holds_its_key_while_its_batch_is_collected(harness: Harness) -> None:
    @harness.app.batch_task(size=10, wait=0.5)
    async def together(items: list[str]) -> list[str]:
        return items

    async with harness.working():
        first = await together.options(unique="u").submit("first")
        assert (await together.options(unique="u").submit("second")).id == first.id
        assert await first.result(WAIT) == "first"
        third = await together.options(unique="u").submit("third")
        assert not third.duplicate
        assert await third.result(WAIT) == "third"
        await harness.clean()


# -- callbacks -----------------------------------------------------------------------------------------------


async def test_callbacks_wait_for_the_pause_and_the_rate_of_their_own_task(harness: Harness) -> None:
    starts: list[float] = []

    @harness.app.task(rate="3/1s")
    async def alarm(failure: Failure) -> None:
        starts.append(time.time())

    @harness.app.task(retries=0, on_dead=alarm)
    async def die(number: int) -> None:
        raise ValueError("for good")

    await harness.pause(task="alarm")
    async with harness.working():
        jobs = await die.submit_many([(number,) for number in range(5)])
        for job in jobs:
            with pytest.raises(JobFailed):
                await job.result(WAIT)
        assert not starts
        await harness.client.queues.resume(QUEUE, task="alarm")
        await harness.until(lambda: len(starts) == 5)
        await harness.clean()
    assert most_in_a_window(starts, 1.0) <= 3


# -- blocking forms ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"delay": 0.2},
        {"expires": 60.0, "deadline": 120.0},
        {"key": "k", "per_key": 1},
        {"slots": 3, "priority": "high"},
        {"unique": "u", "on_duplicate": "replace"},
        {"unique": "u", "debounce": 0.2},
        {"unique": "u", "throttle": 5.0},
        {"id": "own"},
    ],
    ids=lambda options: "-".join(options),
)
async def test_every_option_works_with_the_blocking_form(harness: Harness, options: dict[str, Any]) -> None:
    task = harness.app.tasks["note"]
    assert isinstance(task, Task)
    async with harness.working():
        job = await asyncio.to_thread(lambda: task.options(**options).blocking.submit("a"))
        assert await asyncio.to_thread(job.result, WAIT) == "a"
        await harness.clean()


# -- a killed worker -----------------------------------------------------------------------------------------


@pytest.fixture
async def workers(server: Any, namespace: str, tmp_path: Any, forks: ForkServer) -> AsyncIterator[Workers]:
    async with worker_processes(server.url, namespace, tmp_path, forks) as workers:
        yield workers


async def test_keyed_items_of_a_killed_workers_batch_end_once_and_release_their_slots(
    workers: Workers, until: Until
) -> None:
    client = workers.client
    first = await workers.start(lease=1.5)
    keyed: list[dict[str, Any]] = [{"key": "a"}] * 12 + [{"key": key, "per_key": 1} for key in "bcbc"]
    jobs = [await client.task("nap_together").options(**one).submit(1.0) for one in keyed]
    await until(lambda: workers.effects(pid=first.pid), WAIT)
    first.kill()
    await workers.start(lease=1.5)
    await asyncio.gather(*(job.wait(WAIT) for job in jobs))
    assert [await final_states(job) for job in jobs] == [["succeeded"]] * len(jobs)
    await until(lambda: is_clean(client), WAIT)
