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
from tests.helpers.jobs import final_states
from tests.helpers.key_groups import nothing_is_left
from tests.helpers.rate_limits import most_in_a_window
from tests.helpers.workers import Workers, Working, worker_processes

WAIT = 60.0
QUEUE = "default"
FAR = 3600


class Ground:
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
            return not waits and all({"Jsq-Held", "Jsq-Turn"} & one.keys() for one in found)

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
async def ground(app: App, working: Working, until: Until) -> Ground:
    return Ground(app, working, until)


HOLDS: dict[str, dict[str, str]] = {"queue": {}, "task": {"task": "note"}, "key": {"key": "k"}}


# -- keys and other options ----------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["queue", "task", "key"])
async def test_jobs_in_strict_order_keep_it_while_they_wait_for_a_rate_limit(
    ground: Ground, limit: str
) -> None:
    started: list[tuple[str, int]] = []
    rates: dict[str, Any] = {"task": {"rate": "6/1s"}, "key": {"key_rate": "6/1s"}}
    if limit == "queue":
        ground.app.queue(QUEUE, rate="6/1s")

    @ground.app.task(per_key=1, **rates.get(limit, {}))
    async def limited(key: str, number: int) -> None:
        started.append((key, number))

    jobs = [await limited.options(key=key).submit(key, number) for number in range(6) for key in "ab"]
    async with ground.working(), ground.working():
        await ground.results(*jobs)
        await ground.clean()

    for key in "ab":
        assert [number for one, number in started if one == key] == list(range(6))


@pytest.mark.parametrize("held", HOLDS)
async def test_jobs_in_strict_order_keep_it_during_a_pause(ground: Ground, held: str) -> None:
    await ground.pause(**HOLDS[held])
    async with ground.working():
        jobs = [await ground.to("note", str(number), key="k", per_key=1) for number in range(5)]
        if held != "queue":
            await ground.until_requeued(jobs[0])
        assert await ground.states(*jobs) == {"queued"}
        await ground.client.queues.resume(QUEUE, **HOLDS[held])
        await ground.results(*jobs)
        await ground.clean()
    assert ground.started == ["0", "1", "2", "3", "4"]


async def test_a_paused_task_delays_only_its_own_keys(ground: Ground) -> None:
    await ground.pause(task="note")
    async with ground.working():
        jobs = [await ground.to("note", str(number), key="k") for number in range(10)]
        await (await ground.to("other", "of another key", key="z")).result(WAIT)
        assert await ground.states(*jobs) == {"queued"}
        await ground.client.queues.resume(QUEUE, task="note")
        await ground.results(*jobs)
        await ground.clean()


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
    ground: Ground, way: Any, started: list[str]
) -> None:
    async with ground.working():
        await ground.to("wait", "0", key="k", per_key=1)
        await ground.until_started()
        jobs = [
            await ground.to("note", "a", key="k", per_key=1, unique="u", on_duplicate=way),
            await ground.to("note", "b", key="k", per_key=1),
        ]
        with contextlib.suppress(DuplicateJob) if way == "raise" else contextlib.nullcontext():
            jobs.append(await ground.to("note", "c", key="k", per_key=1, unique="u", on_duplicate=way))
        ground.gate.set()
        await asyncio.gather(*(job.wait(WAIT) for job in jobs))
        await ground.clean()
    assert ground.started == started


async def test_a_pending_duplicate_joins_the_end_of_its_key_group_when_it_is_submitted(
    ground: Ground,
) -> None:
    options: dict[str, Any] = {"key": "k", "per_key": 1, "unique": "u", "on_duplicate": "keep_last"}
    async with ground.working():
        await ground.to("wait", "first", **options)
        await ground.until_started()
        between = await ground.to("note", "between", key="k", per_key=1)
        await ground.to("wait", "older", **options)
        newest = await ground.to("wait", "newest", **options)
        ground.gate.set()
        await ground.results(between, newest)
        await ground.clean()
    assert ground.started == ["first", "between", "newest"]


async def test_a_debounced_job_joins_its_key_group_when_it_is_due(ground: Ground) -> None:
    options: dict[str, Any] = {"key": "k", "per_key": 1, "unique": "u"}
    async with ground.working():
        await ground.to("wait", "first", key="k", per_key=1)
        await ground.until_started()
        olders = [await ground.to("note", f"older {number}", debounce=3.0, **options) for number in range(3)]
        older = olders[-1]
        await ground.until_in_key_group(1)
        newer = await ground.to("note", "newer", debounce=0.1, **options)
        assert (newer.id != older.id, newer.duplicate) == (True, False)
        ground.gate.set()
        await ground.results(older, newer)
        await ground.clean()
    assert ground.started == ["first", "older 2", "newer"]


async def test_slots_and_priorities_do_not_change_the_order_of_a_key(ground: Ground) -> None:
    jobs = [
        await ground.to(
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
    async with ground.working(concurrency=4):
        await ground.results(*jobs)
        await ground.clean()
    for key in "ab":
        assert [one for one in ground.started if one[0] == key] == [f"{key}{number}" for number in range(8)]


@pytest.mark.parametrize("how", ["many", "atomic", "map"])
@pytest.mark.parametrize("delay", [None, 0.3])
async def test_jobs_of_one_key_run_in_the_order_of_their_bulk(
    ground: Ground, how: str, delay: float | None
) -> None:
    calls = [[str(number)] for number in range(30)]
    options = ground.client.task("note").options(key="k", per_key=1, delay=delay)
    async with ground.working(concurrency=8):
        if how == "map":
            assert await options.map(calls) == [str(number) for number in range(30)]
        else:
            await ground.results(*await options.submit_many(calls, all_or_nothing=how == "atomic"))
        await ground.clean()
    # Jobs that are due at the same time join their key group in any order.
    started = sorted(ground.started, key=int) if delay else ground.started
    assert started == [str(number) for number in range(30)]


async def test_a_promoted_job_with_a_slot_runs_before_the_others_of_its_key(ground: Ground) -> None:
    @ground.app.task(retries=3, backoff=[FAR])
    async def later(ctx: Context, label: str) -> None:
        ground.started.append(label)
        if ctx.attempt == 1:
            raise ValueError("once more")

    async with ground.working():
        first = await ground.to("later", "first", key="k", per_key=1)
        second = await ground.to("note", "second", key="k", per_key=1)
        await ground.until_state(first, "retrying")
        await first.promote()
        await ground.results(first, second)
        await ground.clean()
    assert ground.started == ["first", "first", "second"]


async def test_a_promoted_job_that_has_not_started_joins_its_key_group(ground: Ground) -> None:
    async with ground.working():
        await ground.to("wait", "first", key="k", per_key=1)
        await ground.until_started()
        promoted = await ground.to("note", "promoted", key="k", per_key=1, delay=FAR)
        waits = await ground.to("note", "waits", key="k", per_key=1)
        await promoted.promote()
        await ground.until_in_key_group(2)
        ground.gate.set()
        await ground.results(promoted, waits)
        await ground.clean()
    assert ground.started == ["first", "waits", "promoted"]


async def test_rate_limited_keeps_the_slot_of_a_strict_key(ground: Ground) -> None:
    @ground.app.task
    async def call(ctx: Context, label: str) -> None:
        ground.started.append(label)
        if label == "0" and ground.started.count("0") == 1:
            raise RateLimited(0.5)

    jobs = [await ground.to("call", str(number), key="k", per_key=1) for number in range(4)]
    async with ground.working():
        await (await ground.to("other", "of another key", key="z")).result(WAIT)
        await ground.results(*jobs)
        assert (await jobs[0].status()).attempt == 1
        await ground.clean()
    assert [one for one in ground.started if len(one) == 1] == ["0", "0", "1", "2", "3"]


async def test_the_next_job_of_a_key_is_retried_in_order_after_a_cancelled_one(
    ground: Ground,
) -> None:
    async with ground.working():
        first = await ground.to("wait", "first", key="k", per_key=1)
        await ground.to("flaky", "second", key="k", per_key=1)
        third = await ground.to("note", "third", key="k", per_key=1)
        await ground.until_started()
        await first.cancel()
        await third.result(WAIT)
        await ground.clean()
    assert ground.started == ["first", "second", "second", "third"]


async def test_the_ticks_of_a_schedule_wait_in_the_group_of_their_key(ground: Ground) -> None:
    async def fired() -> bool:
        return (await ground.client.schedules.list())[0].fired >= 3

    async with ground.working():
        await ground.client.schedules.add("ticks", "wait", ["tick"], every=1, key="k", per_key=1)
        await ground.until(fired)
        await ground.client.schedules.remove("ticks")
        assert ground.started == ["tick"]
        ground.gate.set()
        await ground.clean()
    assert len(ground.started) >= 3


async def test_replayed_jobs_of_a_paused_key_run_when_it_is_resumed(ground: Ground) -> None:
    ground.dooms |= {"0", "1", "2"}
    jobs = [await ground.to("doomed", str(number), key="k", per_key=1) for number in range(3)]
    async with ground.working():
        assert [(await job.wait(WAIT)).state for job in jobs] == ["failed"] * 3
    ground.dooms.clear()
    ground.started.clear()
    await ground.pause(key="k")
    assert await ground.client.jobs.retry_many(task="doomed") == 3
    async with ground.working():
        await ground.until_in_key_group(2)
        assert not ground.started
        await ground.client.queues.resume(QUEUE, key="k")
        await ground.results(*jobs)
        await ground.clean()
    assert sorted(ground.started) == ["0", "1", "2"]


# -- jobs that expire while they wait ------------------------------------------------------------------------


async def test_a_job_that_expires_at_the_head_of_its_key_group_admits_the_next(ground: Ground) -> None:
    async with ground.working():
        await ground.to("wait", "first", key="k", per_key=1)
        await ground.until_started()
        late = await ground.to("note", "late", key="k", per_key=1, expires=0.3)
        last = await ground.to("note", "last", key="k", per_key=1)
        await ground.expired(late)
        ground.gate.set()
        await last.result(WAIT)
        await ground.clean()
    assert ground.started == ["first", "last"]


@pytest.mark.parametrize("declared", [False, True])
async def test_a_job_that_expires_while_its_task_is_paused_admits_the_next_of_its_key(
    ground: Ground, declared: bool
) -> None:
    @ground.app.task(expires=1.0)
    async def soon(label: str) -> None:
        ground.started.append(label)

    task = "soon" if declared else "other"
    options: dict[str, Any] = {} if declared else {"expires": 1.0}
    await ground.pause(task=task)
    async with ground.working():
        late = await ground.to(task, "late", key="k", per_key=1, **options)
        last = await ground.to("note", "last", key="k", per_key=1)
        await last.result(WAIT)
        await ground.expired(late)
        await ground.client.queues.resume(QUEUE, task=task)
        await ground.clean()
    assert ground.started == ["last"]


async def test_a_job_that_expires_while_it_waits_for_its_rate_admits_the_next_of_its_key(
    ground: Ground,
) -> None:
    @ground.app.task(rate="1/1h")
    async def rare(label: str) -> None:
        ground.started.append(label)

    async with ground.working():
        await (await ground.to("rare", "first")).result(WAIT)
        late = await ground.to("rare", "late", key="k", per_key=1, expires=1.0)
        last = await ground.to("note", "last", key="k", per_key=1)
        await ground.expired(late)
        await last.result(WAIT)
        await ground.clean()
    assert ground.started == ["first", "last"]


@pytest.mark.parametrize("where", ["queue", "line", "later", "held"])
async def test_an_expired_job_releases_its_unique_key_wherever_it_waits(ground: Ground, where: str) -> None:
    wheres: dict[str, dict[str, Any]] = {"line": {"key": "k"}, "later": {"delay": 0.2}}
    options = wheres.get(where, {})
    await ground.pause(task="note")
    async with ground.working() if where == "held" else contextlib.nullcontext():
        old = await ground.to("note", "old", unique="u", expires=2.0, **options)
        assert (await ground.to("note", "old", unique="u")).id == old.id
        await ground.expired(old)
        new = await ground.to("note", "new", unique="u")
        assert (new.id != old.id, new.duplicate) == (True, False)
    await ground.client.queues.resume(QUEUE, task="note")
    async with ground.working():
        assert await new.result(WAIT) == "new"
        await ground.clean()
    assert ground.started == ["new"]
    assert await ground.states(old) == {"expired"}


async def test_an_expired_job_of_an_unknown_task_releases_its_unique_key(ground: Ground) -> None:
    old = await ground.to("missing", "old", unique="u", expires=5.0)
    async with ground.working():
        await ground.until_state(old, "snoozed")
    await ground.expired(old)
    new = await ground.to("missing", "new", unique="u")
    assert (new.id != old.id, new.duplicate) == (True, False)
    await new.cancel()
    await ground.clean(sweeps=True)


async def test_an_expired_pending_duplicate_is_replaced_by_a_newer_one(ground: Ground) -> None:
    options: dict[str, Any] = {"unique": "u", "on_duplicate": "keep_last"}
    async with ground.working():
        await ground.to("wait", "first", **options)
        await ground.until_started()
        late = await ground.to("wait", "late", expires=0.3, **options)
        await ground.expired(late)
        newer = await ground.to("wait", "newer", **options)
        assert newer.id != late.id
        ground.gate.set()
        await newer.result(WAIT)
        await ground.clean(sweeps=True)
    assert ground.started == ["first", "newer"]


async def test_a_debounced_job_expires_by_its_newest_submit(ground: Ground) -> None:
    options: dict[str, Any] = {"unique": "u", "debounce": 3.0, "expires": 60.0}
    await ground.client.admin.provision()
    older = await ground.to("note", "older", **options)
    before = (await older.status()).expires
    newer = await ground.to("note", "newer", **options)

    async def moved() -> bool:
        found = (await newer.status()).expires
        return before is not None and found is not None and found > before

    assert (newer.id, newer.duplicate) == (older.id, True)
    await ground.until(moved)
    async with ground.working():
        assert await newer.result(WAIT) == "newer"
        await ground.clean()


# -- unique jobs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["cancelled", "promoted", "moved"])
async def test_a_delayed_unique_job_holds_its_key_until_it_has_ended(ground: Ground, end: str) -> None:
    ground.dooms.add("first")
    async with ground.working():
        first = await ground.to("doomed", "first", unique="u", delay=FAR)
        assert (await ground.to("doomed", "second", unique="u")).id == first.id
        if end == "cancelled":
            await first.cancel()
        elif end == "promoted":
            await first.promote()
        else:
            await first.reschedule(delay=0.5)
            assert (await ground.to("doomed", "second", unique="u")).id == first.id
        await first.wait(WAIT)
        other = await ground.to("doomed", "third", unique="u")
        assert (other.id != first.id, other.duplicate) == (True, False)
        await other.result(WAIT)
        await ground.clean()


@pytest.mark.parametrize("how", ["retry", "snooze", "rate limited"])
async def test_a_unique_job_holds_its_key_while_it_waits_for_its_next_attempt(
    ground: Ground, how: str
) -> None:
    signals = {"retry": Retry(delay=FAR), "snooze": Snooze(FAR), "rate limited": RateLimited(FAR)}

    @ground.app.task
    async def fails_once(ctx: Context, label: str) -> None:
        ground.started.append(label)
        if len(ground.started) == 1:
            raise signals[how]

    async with ground.working():
        first = await ground.to("fails_once", "first", unique="u", key="k")
        await ground.until_state(first, "retrying" if how == "retry" else "snoozed")
        assert (await ground.to("fails_once", "second", unique="u", key="k")).id == first.id
        await ground.client.queues.resume(QUEUE, key="k")
        await first.promote()
        await first.result(WAIT)
        other = await ground.to("fails_once", "third", unique="u", key="k")
        assert not other.duplicate
        await other.result(WAIT)
        await ground.clean()


@pytest.mark.parametrize(
    ("way", "started"),
    [("return", "older"), ("replace", "newer"), ("keep_last", "newer"), ("debounce", "newer")],
)
async def test_a_paused_unique_job_counts_as_a_waiting_one(ground: Ground, way: Any, started: str) -> None:
    options: dict[str, Any] = {"debounce": 0.1} if way == "debounce" else {"on_duplicate": way}
    await ground.pause(task="note")
    async with ground.working():
        older = await ground.to("note", "older", unique="u", **options)
        await ground.until_requeued(older)
        newer = await ground.to("note", "newer", unique="u", **options)
        assert (newer.id == older.id) == (way in ("return", "debounce"))
        await ground.client.queues.resume(QUEUE, task="note")
        await newer.result(WAIT)
        await ground.clean()
    assert ground.started == [started]


async def test_with_until_start_a_paused_job_holds_its_key(ground: Ground) -> None:
    await ground.pause(task="wait")
    async with ground.working():
        first = await ground.to("wait", "first", unique="u", unique_until="start")
        await ground.until_requeued(first)
        assert (await ground.to("wait", "second", unique="u", unique_until="start")).id == first.id
        await ground.client.queues.resume(QUEUE, task="wait")
        await ground.until_started()
        other = await ground.to("wait", "third", unique="u", unique_until="start")
        assert not other.duplicate
        ground.gate.set()
        await other.result(WAIT)
        await ground.clean()


async def test_options_that_do_not_combine_with_unique_are_refused_by_name(ground: Ground) -> None:
    many = ground.client.task("note").options(unique="u")
    with pytest.raises(BadOption) as caught:
        await many.submit_many([["a"]], all_or_nothing=True)
    assert caught.value.field == "all_or_nothing"
    with pytest.raises(BadOption) as caught:
        await many.submit_many([["a"]], ids=["a"])
    assert caught.value.field == "unique"
    with pytest.raises(BadOption) as caught:
        ground.client.task("any").options(unique="u", on_duplicate="keep_last", delay=5)
    assert caught.value.field == "delay"

    @ground.app.task(unique=["label"])
    async def once(label: str) -> None: ...

    with pytest.raises(BadOption) as caught:
        ground.app.schedule("ticks", once, ["a"], every=5)
    assert (caught.value.field, "overlap" in caught.value.rule) == ("unique", True)
    ground.app.schedule("ticks", once, ["a"], every=5, unique=False)

    @ground.app.task(unique=["label"], debounce=5)
    async def late(label: str) -> None: ...

    @ground.app.task(unique=["label"], unique_until="start", on_duplicate="raise")
    async def first(label: str) -> None: ...

    for task in (late, first):
        ground.app.schedule(f"ticks-{task.name}", task, ["a"], every=5, unique=False)
    with pytest.raises(BadOption, match=r"debounce must .*got 5"):
        ground.app.schedule("more", once, ["a"], every=5, unique=False, debounce=5)  # type: ignore[call-arg]


# -- pauses --------------------------------------------------------------------------------------------------


async def test_due_jobs_and_ticks_of_a_paused_queue_run_when_it_is_resumed(
    ground: Ground,
) -> None:
    await ground.pause()

    async def skipped() -> bool:
        found = {one.name: one for one in await ground.client.schedules.list()}
        return found["skips"].skipped >= 2 and found["all"].fired >= 2

    async with ground.working():
        due = await ground.to("note", "due", delay=0.3)
        await ground.client.schedules.add("skips", "note", ["skips"], every=1, overlap="skip")
        await ground.client.schedules.add("all", "note", ["all"], every=1)
        await ground.until(skipped)
        assert not ground.started
        with pytest.raises(WrongState):
            await due.promote()
        for name in ("skips", "all"):
            await ground.client.schedules.remove(name)
        await ground.client.queues.resume(QUEUE)
        await due.result(WAIT)
        await ground.clean()
    assert ground.started.count("skips") == 1
    assert ground.started.count("all") >= 2


async def test_a_promoted_job_of_a_paused_task_keeps_waiting_and_keeps_its_priority(ground: Ground) -> None:
    @ground.app.task(retries=3, backoff=[FAR])
    async def later(ctx: Context, label: str) -> None:
        if ctx.attempt == 1:
            raise ValueError("once more")

    job = await ground.to("later", "a", priority="low")
    async with ground.working():
        await ground.until_state(job, "retrying")
    await ground.pause(task="later")
    async with ground.working():
        for _ in range(2):  # the second time it is promoted after it was requeued
            await job.promote()
            await ground.until_requeued(job)
        assert (await ground.later_message(job))["Jsq-Level"] == "low"
        await ground.client.queues.resume(QUEUE, task="later")
        await job.result(WAIT)
        await ground.clean()


@pytest.mark.parametrize("overlap", ["skip", "cancel", "queue"])
async def test_a_tick_while_the_previous_job_waits_for_its_retry(ground: Ground, overlap: Any) -> None:
    @ground.app.task(retries=3, backoff=[FAR])
    async def later(label: str) -> None:
        raise ValueError("once more")

    async def ticked() -> bool:
        [found] = await ground.client.schedules.list()
        return found.fired + found.skipped >= 3

    async with ground.working():
        await ground.client.schedules.add("ticks", "later", ["tick"], every=1, overlap=overlap)
        await ground.until(ticked)
        await ground.client.schedules.remove("ticks")
        found = [one.state for one in await ground.client.jobs.list(task="later")]
        if overlap == "skip":
            assert len(found) == 1
        elif overlap == "cancel":
            assert found[:-1] == ["cancelled"] * (len(found) - 1)
        else:
            assert "cancelled" not in found
            assert len(found) >= 3
        await ground.client.jobs.cancel_many(task="later")
        await ground.clean()


@pytest.mark.parametrize("how", ["asked", "declared", "run"])
async def test_a_scheduled_job_expires_if_no_worker_starts_it(ground: Ground, how: str) -> None:
    @ground.app.task(expires=1.5)
    async def soon(label: str) -> None:
        ground.started.append(label)

    async def two() -> bool:
        return (await ground.client.schedules.list())[0].fired >= 2

    schedules = ground.client.schedules
    await ground.pause()
    async with ground.working():
        if how == "asked":
            await schedules.add("ticks", "note", ["a"], every=1, overlap="skip", expires=1.5)
        else:
            await schedules.add("ticks", soon, ["a"], every=1 if how == "declared" else FAR, overlap="skip")
        if how == "run":
            jobs = [await schedules.run("ticks")]
        else:
            await ground.until(two)  # the second one is not admitted: by then the first one has expired
            jobs = [ground.client.jobs.handle(one.id) for one in await ground.client.jobs.list()]
        await schedules.remove("ticks")
    for job in jobs:
        await ground.expired(job)
        assert (await job.status()).expires is not None
    await ground.client.queues.resume(QUEUE)
    async with ground.working():
        await ground.clean()
    assert not ground.started


# -- many waiting jobs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("waits", ["paused queue", "paused task", "paused key", "rate"])
async def test_all_waiting_jobs_are_listed_as_queued_and_cancelled_by_that_state(
    ground: Ground, waits: str
) -> None:
    @ground.app.task(name="rare", rate="1/1h")
    async def rare(label: str) -> None:
        ground.started.append(label)

    place = {"paused task": {"task": "note"}, "paused key": {"key": "k"}}.get(waits, {})
    await ground.client.admin.provision()
    if waits != "rate":
        await ground.pause(**place)
    task = "rare" if waits == "rate" else "note"
    async with ground.working():
        if waits == "rate":
            await (await ground.to("rare", "first")).result(WAIT)
        jobs = [await ground.to(task, str(number), key="k", tags=["all"]) for number in range(10)]
        if waits != "paused queue":
            await ground.until_requeued(*jobs[:4])  # admitted to the queue; the others wait in their group

        async def listed() -> bool:
            return len(await ground.client.jobs.list(tag="all", state="queued")) == 10

        await ground.until(listed)  # lists read a view of the log, which is a moment behind
        assert await ground.states(*jobs) == {"queued"}
        assert (await ground.client.jobs.cancel_many(tag="all", state="queued")).cancelled == 10
        if waits != "rate":
            await ground.client.queues.resume(QUEUE, **place)
        await ground.clean()
    assert ground.started == (["first"] if waits == "rate" else [])


# -- batches -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", ["10/2s", "10/2s burst 4"])
async def test_a_batch_observes_the_rate_of_its_task(ground: Ground, rate: str) -> None:
    starts: list[float] = []

    @ground.app.batch_task(size=20, wait=0.2, rate=rate)
    async def together(items: list[int]) -> None:
        starts.extend([time.time()] * len(items))

    jobs = await together.submit_many([(number,) for number in range(25)])
    async with ground.working(), ground.working():
        await ground.results(*jobs)
        await ground.clean()

    assert len(starts) == 25
    assert most_in_a_window(starts, 2.0) <= (14 if "burst" in rate else 10)
    if "burst" in rate:
        assert most_in_a_window(starts, 0.19) <= 5  # one token is added while the four of the burst start


async def test_jobs_of_one_key_fill_a_batch(ground: Ground) -> None:
    sizes: list[int] = []

    @ground.app.batch_task(size=20, wait=FAR)
    async def together(items: list[int]) -> None:
        sizes.append(len(items))

    jobs = await together.options(key="k").submit_many([(number,) for number in range(40)])
    async with ground.working():
        await ground.results(*jobs)
        await ground.clean()
    assert sizes == [20, 20]


async def test_with_strict_order_a_batch_has_one_job_of_each_key(ground: Ground) -> None:
    batches: list[list[str]] = []

    @ground.app.batch_task(size=4, wait=0.5)
    async def together(items: list[str]) -> None:
        batches.append(items)

    jobs = [
        await together.options(key=key, per_key=1).submit(f"{key}{number}")
        for number in range(4)
        for key in "abcd"
    ]
    async with ground.working():
        await ground.results(*jobs)
        await ground.clean()
    for items in batches:
        assert len({one[0] for one in items}) == len(items)
    for key in "abcd":
        started = [one for items in batches for one in items if one[0] == key]
        assert started == [f"{key}{number}" for number in range(4)]


async def test_a_paused_batch_task_collects_jobs_when_it_is_resumed(ground: Ground) -> None:
    started: list[str] = []

    @ground.app.batch_task(size=5, wait=0.2)
    async def together(items: list[str]) -> None:
        started.extend(items)

    await ground.pause(task="together")
    async with ground.working():
        jobs = await together.submit_many([(str(number),) for number in range(10)])
        await ground.until_requeued(*jobs)
        await jobs[3].cancel()
        await ground.client.queues.resume(QUEUE, task="together")
        await asyncio.gather(*(job.wait(WAIT) for job in jobs))
        await ground.clean()
    assert sorted(started) == sorted({str(number) for number in range(10)} - {"3"})


async def test_an_item_that_is_rate_limited_holds_its_own_key(ground: Ground) -> None:
    started: list[str] = []

    @ground.app.batch_task(size=5, wait=0.2)
    async def together(items: list[str]) -> list[Any]:
        first = "a" not in started
        started.extend(items)
        return [RateLimited(FAR) if one == "a" and first else None for one in items]

    async with ground.working():
        limited = await together.options(key="a").submit("a")
        await ground.until_state(limited, "snoozed")
        held = await together.options(key="a").submit("held")
        await (await together.options(key="b").submit("b")).result(WAIT)
        await ground.until_requeued(held)
        await ground.client.queues.resume(QUEUE, key="a")
        await limited.promote()
        await ground.results(limited, held)
        await ground.clean()
    assert sorted(started) == ["a", "a", "b", "held"]


async def test_each_failed_item_has_its_callback_and_an_expired_job_joins_no_batch(ground: Ground) -> None:
    calls: list[tuple[str, str]] = []

    @ground.app.task
    async def on_dead(failure: Failure) -> None:
        calls.append(("dead", failure.job))

    @ground.app.task
    async def on_failure(failure: Failure) -> None:
        calls.append(("failure", failure.job))

    @ground.app.task
    async def instead(item: str) -> str:
        return f"instead of {item}"

    @ground.app.batch_task(
        size=10, wait=0.3, retries=1, backoff="none", on_dead=on_dead, on_failure=on_failure, fallback=instead
    )
    async def together(items: list[str]) -> list[Any]:
        ground.started.extend(items)
        errors = {"fails": ValueError("it fails"), "rejected": Reject("no")}
        return [errors.get(one) for one in items]

    await ground.client.admin.provision()
    late = await together.options(expires=0.2).submit("late")
    await ground.expired(late)
    fails, rejected, fine = [await together.submit(label) for label in ("fails", "rejected", "fine")]
    async with ground.working():
        await fine.result(WAIT)
        spares = []
        for job in (fails, rejected):
            with pytest.raises(JobFailed) as failed:
                await job.result(WAIT)
            assert failed.value.fallback
            spares.append(ground.client.jobs.handle(failed.value.fallback))
        assert [await spare.result(WAIT) for spare in spares] == ["instead of fails", "instead of rejected"]
        await ground.until(lambda: len(calls) == 5)
        await ground.clean()
    dead = [("dead", fails.id), ("dead", rejected.id)]
    assert sorted(calls) == sorted([*dead, *[("failure", fails.id)] * 2, ("failure", rejected.id)])
    assert "late" not in ground.started


async def test_a_unique_item_holds_its_key_while_its_batch_is_collected(ground: Ground) -> None:
    @ground.app.batch_task(size=10, wait=0.5)
    async def together(items: list[str]) -> list[str]:
        return items

    async with ground.working():
        first = await together.options(unique="u").submit("first")
        assert (await together.options(unique="u").submit("second")).id == first.id
        assert await first.result(WAIT) == "first"
        third = await together.options(unique="u").submit("third")
        assert not third.duplicate
        assert await third.result(WAIT) == "third"
        await ground.clean()


# -- callbacks -----------------------------------------------------------------------------------------------


async def test_callbacks_wait_for_the_pause_and_the_rate_of_their_own_task(ground: Ground) -> None:
    starts: list[float] = []

    @ground.app.task(rate="3/1s")
    async def alarm(failure: Failure) -> None:
        starts.append(time.time())

    @ground.app.task(retries=0, on_dead=alarm)
    async def die(number: int) -> None:
        raise ValueError("for good")

    await ground.pause(task="alarm")
    async with ground.working():
        jobs = await die.submit_many([(number,) for number in range(5)])
        for job in jobs:
            with pytest.raises(JobFailed):
                await job.result(WAIT)
        assert not starts
        await ground.client.queues.resume(QUEUE, task="alarm")
        await ground.until(lambda: len(starts) == 5)
        await ground.clean()
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
async def test_every_option_works_with_the_blocking_form(ground: Ground, options: dict[str, Any]) -> None:
    task = ground.app.tasks["note"]
    assert isinstance(task, Task)
    async with ground.working():
        job = await asyncio.to_thread(lambda: task.options(**options).blocking.submit("a"))
        assert await asyncio.to_thread(job.result, WAIT) == "a"
        await ground.clean()


# -- a killed worker -----------------------------------------------------------------------------------------


@pytest.fixture
async def workers(server: Any, namespace: str, tmp_path: Any) -> AsyncIterator[Workers]:
    async with worker_processes(server.url, namespace, tmp_path) as workers:
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
