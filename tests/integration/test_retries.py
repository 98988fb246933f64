"""Retry options of tasks and submits apply at the worker, in every executor."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jsq import (
    App,
    BadOption,
    Client,
    Context,
    JobExpired,
    JobFailed,
    JobHandle,
    Reject,
    Retries,
    Retry,
    Snooze,
)
from jsq.model.retry import Backoff
from jsq.model.revision import Revision
from jsq.worker import Worker
from tests.apps import rules
from tests.helpers.conditions import Until
from tests.helpers.workers import Working

WAIT = 30.0


class Down(ConnectionError):
    """The remote service is down."""


async def failed(job: JobHandle[Any]) -> JobFailed:
    with pytest.raises(JobFailed) as caught:
        await job.result(WAIT)
    return caught.value


async def attempts(job: JobHandle[Any]) -> int:
    """The number of attempts of a job that have started."""
    return [event.state for event in await (await job._connection.broker()).records.history(job.id)].count(
        "running"
    )


async def retries_wait(job: JobHandle[Any], *expected: float) -> bool:
    """Whether a job was retried this many times, each time after this many seconds.

    The worker counts them from the failure, and the event is stored up to a second later.
    """
    history = await (await job._connection.broker()).records.history(job.id)
    waits = [
        (event.revision.due - event.at).total_seconds()
        for event in history
        if event.state == "retrying" and event.revision.due is not None
    ]
    return len(waits) == len(expected) and all(
        longest - 1 < wait < longest + 0.05 for wait, longest in zip(waits, expected, strict=True)
    )


# -- which errors --------------------------------------------------------------------------------------------


async def test_only_named_exceptions_are_retried(app: App, working: Working) -> None:
    @app.task(
        retries=2, backoff="none", retry_on=(ConnectionError, KeyError), no_retry_on=ConnectionResetError
    )
    async def picky(kind: str) -> None:
        raise {"down": Down("d"), "key": KeyError("k"), "reset": ConnectionResetError(), "type": TypeError()}[
            kind
        ]

    async with working():
        jobs = {kind: await picky.submit(kind) for kind in ("down", "key", "reset", "type")}
        for job in jobs.values():
            assert (await failed(job)).reason == "error"
    assert {kind: await attempts(job) for kind, job in jobs.items()} == {
        "down": 3,
        "key": 3,
        "reset": 1,
        "type": 1,
    }


async def test_each_exception_type_has_its_own_retries_and_delays(app: App, working: Working) -> None:
    @app.task(
        retries=0, retry={ConnectionError: Retries(2, backoff=[0.2, 0.4]), Down: Retries(1, backoff=[0.3])}
    )
    async def each(kind: str) -> None:
        raise {"down": Down("d"), "reset": ConnectionResetError(), "type": TypeError()}[kind]

    async with working():
        jobs = {kind: await each.submit(kind) for kind in ("down", "reset", "type")}
        for job in jobs.values():
            await failed(job)
    assert await retries_wait(jobs["down"], 0.3)
    assert await retries_wait(jobs["reset"], 0.2, 0.4)
    assert await retries_wait(jobs["type"])


async def test_a_timeout_is_retried_where_it_is_named(app: App, working: Working) -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    named = app.task(name="named", timeout=0.05, retries=1, backoff="none", retry_on=TimeoutError)(hang)
    other = app.task(name="other", timeout=0.05, retries=1, backoff="none", retry_on=ConnectionError)(hang)

    async with working():
        jobs = [await named.submit(), await other.submit()]
        assert [(await failed(job)).reason for job in jobs] == ["timeout", "timeout"]
    assert [await attempts(job) for job in jobs] == [2, 1]


async def test_a_predicate_gets_the_error_and_the_attempt_number(app: App, working: Working) -> None:
    @app.task(retries=9, backoff="none", retry_if=lambda error, attempt: "soft" in str(error) and attempt < 3)
    def ask(how: str) -> None:
        raise ValueError(how)

    async with working():
        jobs = [await ask.submit(how) for how in ("soft", "hard")]
        for job in jobs:
            await failed(job)
    assert [await attempts(job) for job in jobs] == [3, 1]


async def test_a_submit_sets_its_own_retries_and_delays(app: App, client: Client, working: Working) -> None:
    @app.task(retries=5, backoff=[5], retry={Down: Retries(7, backoff=[7])})
    async def down() -> None:
        raise Down

    async with working():
        own = await down.options(retries=2, backoff="linear", backoff_max=0.3, jitter=False).submit()
        capped = await down.options(retries=1, backoff_max=0.2).submit()
        by_name = await client.task("down").options(retries=1, backoff=[0.2], jitter=0).submit()
        for job in (own, capped, by_name):
            await failed(job)
    assert await retries_wait(own, 0.3, 0.3)
    assert await retries_wait(capped, 0.2)
    assert await retries_wait(by_name, 0.2)


async def test_the_jitter_of_an_exponential_backoff_can_be_disabled(app: App, working: Working) -> None:
    @app.task(retries=3, backoff=Backoff(base=0.1), jitter=False)
    async def consistent() -> None:
        raise Down

    async with working():
        await failed(job := await consistent.submit())
    assert await retries_wait(job, 0.1, 0.2, 0.4)


async def test_a_submit_by_name_sets_a_jitter_only_with_a_backoff(client: Client) -> None:
    with pytest.raises(BadOption, match=r"jitter must be used together with backoff"):
        client.task("any").options(jitter=0.5)


# -- how long ------------------------------------------------------------------------------------------------


async def test_a_job_is_retried_as_often_as_fits_into_its_window(app: App, working: Working) -> None:
    start_times: list[float] = []

    @app.task(retries=None, retry_for=1.5, backoff=[0.3])
    async def often() -> None:
        start_times.append(time.monotonic())
        raise Down("down")

    async with working():
        error = await failed(job := await often.submit())
    assert (error.reason, error.error) == ("error", "Down: down")
    assert 2 <= len(start_times) == await attempts(job) <= 6
    assert start_times[-1] - start_times[0] < 3


async def test_the_first_limit_of_retries_and_their_window_applies(app: App, working: Working) -> None:
    @app.task(retries=2, retry_for=60, backoff=[0.05])
    async def number() -> None:
        raise Down

    @app.task(retries=2, retry_for=timedelta(seconds=1), backoff=[0.05, 30])
    async def window() -> None:
        raise Down

    async with working():
        jobs = [await number.submit(), await window.submit()]
        for job in jobs:
            await failed(job)
    assert [await attempts(job) for job in jobs] == [3, 2]


async def test_a_submit_has_its_own_window_in_seconds_or_until_a_time(
    app: App, client: Client, working: Working
) -> None:
    @app.task(retries=5, backoff=[0.05, 30], retry_for=600)
    async def down() -> None:
        raise Down

    soon = datetime.now(UTC) + timedelta(seconds=20)
    async with working():
        jobs = [
            await down.options(retry_for=20).submit(),
            await client.task("down").options(retry_for=soon).submit(),
            *await down.options(retry_for=soon).submit_many([(), ()]),
        ]
        for job in jobs:
            assert (await failed(job)).reason == "error"
        waiting = await down.submit()
        record = await waiting.status()
        while record.failures < 2:
            record = await waiting.status()
        assert record.state == "retrying"
    assert [await attempts(job) for job in jobs] == [2, 2, 2, 2]


async def test_no_attempt_starts_after_the_window_though_it_was_scheduled_within_it(
    app: App, working: Working, until: Until
) -> None:
    ran: list[int] = []

    @app.task(retries=5, backoff=[0.5], retry_for=1)
    async def down() -> None:
        ran.append(1)
        raise Down("down")

    async with working():
        job = await down.submit()
        await until(lambda: retrying(job))
    end = time.time() + 1.2
    await until(lambda: time.time() > end)
    async with working():
        error = await failed(job)
        await until(lambda: nothing_is_stored(job))
    assert error.reason == "overdue"
    assert error.error.endswith("closed before another attempt; the last: Down: down")
    assert ran == [1]
    assert (await job.status()).attempt == 1
    [dead_letter] = await app.client.dead_letters.list()
    assert (dead_letter.id, dead_letter.reason, dead_letter.attempt) == (job.id, "overdue", 1)
    # A replayed job has a new window.
    async with working():
        await job.retry()
        await until(lambda: len(ran) >= 3)


async def retrying(job: JobHandle[Any]) -> bool:
    return (await job.status()).state == "retrying"


async def nothing_is_stored(job: JobHandle[Any]) -> bool:
    return await (await job._connection.broker()).job_reader.waiting_ids(job.queue) == []


async def test_a_snooze_does_not_spend_the_window(app: App, working: Working) -> None:
    @app.task(retries=0, retry_for=0.2)
    async def snooze(ctx: Context) -> int:
        if ctx.checkpointed is None:
            await ctx.checkpoint(1)
            raise Snooze(0.5)
        return 7

    async with working():
        assert await (await snooze.submit()).result(WAIT) == 7


async def test_a_crash_does_not_move_the_window(app: App, working: Working, until: Until) -> None:
    """The first start counts, though its worker no longer exists."""

    @app.task(retries=5, backoff=[30], retry_for=60)
    async def down() -> None:
        raise Down

    job = await down.submit()
    broker = await job._connection.broker()
    message = await broker.reads.last(
        broker.subjects.streams.ready("default"), broker.subjects.ready("default", "*", job.id)
    )
    assert message is not None
    gone = Revision(
        "running",
        "down",
        attempt=1,
        worker="gone",
        message=int(message.headers["Nats-Sequence"]),
        retry_until=datetime.now(UTC) + timedelta(seconds=20),
    )
    await broker.records.write("default", job.id, gone, expect=0)
    async with working():
        await failed(job)
    assert await attempts(job) == 2


async def test_a_deadline_within_the_window_expires_the_job(app: App, working: Working) -> None:
    @app.task(retries=5, backoff=[30])
    async def down() -> None:
        raise Down

    async with working():
        early = await down.options(deadline=5, retry_for=10).submit()
        late = await down.options(deadline=20, retry_for=10).submit()
        with pytest.raises(JobExpired, match="its deadline is before the next attempt"):
            await early.result(WAIT)
        await failed(late)


async def test_a_retry_raised_by_a_task_overrides_its_rules(app: App, working: Working) -> None:
    @app.task(retries=1, backoff=[30], retry_on=KeyError)
    async def signal(kind: str) -> None:
        raise {"Retry": Retry("again", delay=0.05), "Reject": Reject("never")}[kind]

    async with working():
        again, never = await signal.submit("Retry"), await signal.submit("Reject")
        assert (await failed(again)).reason == "error"
        assert (await failed(never)).reason == "rejected"
    assert (await attempts(again), await attempts(never)) == (2, 1)


# -- in a child process --------------------------------------------------------------------------------------


async def test_retry_rules_apply_to_exceptions_of_a_child_process(server: Any, namespace: str) -> None:
    """The worker names the classes. Neither the worker nor the child imports a name."""
    async with App(server.url, namespace=namespace) as app:
        typed = app.task(
            name="typed",
            executor="process",
            retries=2,
            backoff="none",
            retry_on=rules.Upstream,
            no_retry_on=rules.Gone,
            retry={KeyError: Retries(1, backoff="none")},
        )(rules.fail)
        running = asyncio.create_task((worker := Worker(app)).run())
        try:
            jobs = {
                kind: await typed.submit(kind) for kind in ("Upstream", "Busy", "Gone", "KeyError", "OSError")
            }
            for job in jobs.values():
                await failed(job)
        finally:
            worker.stop()
            await asyncio.wait_for(running, 30)
        assert {kind: await attempts(job) for kind, job in jobs.items()} == {
            "Upstream": 3,
            "Busy": 3,
            "Gone": 1,
            "KeyError": 2,
            "OSError": 1,
        }


async def test_a_predicate_is_called_in_the_child_process(
    server: Any, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = App(server.url, namespace=namespace)
    monkeypatch.setattr(rules.app, "client", app.client)
    monkeypatch.setattr(rules.asking, "_connection", app.client.connection)
    async with app:
        running = asyncio.create_task((worker := Worker(rules.app)).run())
        try:
            jobs = [await rules.asking.submit(how) for how in ("soft", "hard")]
            for job in jobs:
                await failed(job)
        finally:
            worker.stop()
            await asyncio.wait_for(running, 30)
        assert [await attempts(job) for job in jobs] == [3, 1]


async def test_a_predicate_a_child_cannot_import_is_reported_before_the_worker_starts(app: App) -> None:
    app.task(name="hidden", executor="process", retry_if=lambda error, attempt: True)(rules.fail)

    with pytest.raises(BadOption, match="retry_if of hidden must be found by a child process"):
        await Worker(app).run()
