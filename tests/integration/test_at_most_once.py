"""Steps that a job runs at most once, over all its attempts."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from jsq import (
    App,
    BadName,
    BadOption,
    BadResult,
    Client,
    Context,
    JobFailed,
    LeaseLost,
    Reject,
    StepUnknown,
    UsageError,
)
from jsq.model.checkpoint import MAX_STEPS, MAX_VALUE_BYTES, OnUnknownStep
from jsq.model.revision import Revision
from tests.helpers.conditions import Until
from tests.helpers.workers import Working

WAIT = 60.0


class Effects:
    """The external effects of steps, and how each step ends."""

    def __init__(self, error: Exception | None = None) -> None:
        self.done: list[object] = []
        self.error = error

    async def charge(self, euro: int) -> dict[str, int]:
        return self.charge_now(euro)

    def charge_now(self, euro: int) -> dict[str, int]:
        self.done.append(euro)
        if self.error is not None and len(self.done) == 1:
            raise self.error
        return {"receipt": euro}


async def test_a_step_runs_once_and_every_attempt_gets_its_result(app: App, working: Working) -> None:
    outside, results = Effects(), []

    @app.task(retries=2, backoff="none")
    async def buy(ctx: Context) -> None:
        results.append(await ctx.once("charge", outside.charge, 5))
        results.append(await ctx.once("charge", outside.charge, 6))
        if ctx.attempt < 3:
            raise ValueError("after the charge")

    async with working():
        job = await buy.submit()
        await job.result(WAIT)

    assert outside.done == [5]
    assert results == [{"receipt": 5}] * 6
    assert [event.state for event in await (await job._connection.broker()).records.history(job.id)] == [
        *["running", "retrying"] * 2,
        *["running", "succeeded"],
    ]


async def test_a_step_in_a_thread_runs_once(app: App, working: Working) -> None:
    outside = Effects()

    @app.task(retries=1, backoff="none")
    def buy(ctx: Context) -> Any:
        receipt = ctx.blocking.once("charge", outside.charge_now, 5)
        if ctx.attempt == 1:
            raise ValueError("after the charge")
        return receipt

    async with working():
        assert await (await buy.submit()).result(WAIT) == {"receipt": 5}
    assert outside.done == [5]


async def test_a_step_that_raised_is_unknown_and_fails_the_job_without_a_second_call(
    app: App, working: Working
) -> None:
    outside = Effects(ConnectionError("cut off"))

    @app.task(retries=5, backoff="none")
    async def buy(ctx: Context) -> None:
        await ctx.once("charge", outside.charge, 5)

    async with working():
        job = await buy.submit()
        with pytest.raises(
            JobFailed, match="started by attempt 1 and raised ConnectionError: cut off"
        ) as caught:
            await job.result(WAIT)

    assert caught.value.reason == "step_unknown"
    assert (await job.status()).attempt == 2
    assert outside.done == [5]


@pytest.mark.parametrize("unknown", ["run", "skip"])
async def test_a_task_decides_how_to_handle_an_unknown_step(
    app: App, working: Working, unknown: OnUnknownStep
) -> None:
    outside = Effects(ConnectionError("cut off"))

    @app.task(retries=1, backoff="none")
    async def buy(ctx: Context) -> Any:
        if ctx.attempt == 1:
            return await ctx.once("charge", outside.charge, 5)
        with pytest.raises(StepUnknown) as caught:
            await ctx.once("charge", outside.charge, 5)
        assert (caught.value.step, caught.value.attempt) == ("charge", 1)
        assert caught.value.error == "ConnectionError: cut off"
        first = await ctx.once("charge", outside.charge, 6, unknown=unknown)
        return [first, await ctx.once("charge", outside.charge, 7)]

    async with working():
        result = await (await buy.submit()).result(WAIT)

    assert result == ([{"receipt": 6}] * 2 if unknown == "run" else [None, None])
    assert outside.done == ([5, 6] if unknown == "run" else [5])


async def test_a_step_that_certainly_had_no_effect_may_run_again(app: App, working: Working) -> None:
    outside = Effects(ConnectionRefusedError("nobody there"))

    @app.task(retries=1, backoff="none")
    async def buy(ctx: Context) -> Any:
        return await ctx.once("charge", outside.charge, 5, undone=(KeyError, ConnectionRefusedError))

    async with working():
        assert await (await buy.submit()).result(WAIT) == {"receipt": 5}
    assert outside.done == [5, 5]


async def test_a_step_survives_a_replay(app: App, client: Client, working: Working, until: Until) -> None:
    outside, reopen = Effects(), asyncio.Event()

    @app.task
    async def buy(ctx: Context) -> Any:
        receipt = await ctx.once("charge", outside.charge, 5)
        if not reopen.is_set():
            raise Reject("nobody delivers today")
        return receipt

    async with working():
        job = await buy.submit()
        await until(client.dead_letters.list)
        reopen.set()
        await job.retry()
        assert await job.result(WAIT) == {"receipt": 5}

    assert outside.done == [5]


async def test_a_superseded_attempt_runs_no_step(
    app: App, client: Client, working: Working, until: Until
) -> None:
    outside = Effects()
    errors: list[Exception] = []

    @app.task
    async def buy(ctx: Context) -> None:
        log = (await client.broker()).records
        await log.write("default", ctx.id, Revision("running", "buy", worker="other"), expect=ctx.token)
        try:
            await ctx.once("charge", outside.charge, 5)
        except LeaseLost as lost:
            errors.append(lost)
            raise

    async with working():
        job = await buy.submit()
        await until(lambda: errors)

    assert outside.done == []
    broker = await client.broker()
    assert (
        await broker.reads.fetch(
            broker.subjects.streams.records, broker.subjects.checkpoint("*", job.id, ">")
        )
        == []
    )


async def test_the_step_result_of_an_attempt_superseded_meanwhile_is_not_stored(
    app: App, client: Client, working: Working, until: Until
) -> None:
    ids: list[str] = []

    @app.task
    async def buy(ctx: Context) -> None:
        async def is_superseded() -> None:
            log = (await client.broker()).records
            await log.write("default", ctx.id, Revision("running", "buy", worker="other"), expect=ctx.token)

        with pytest.raises(LeaseLost):
            await ctx.once("charge", is_superseded)
        ids.append(ctx.id)

    async with working():
        await buy.submit()
        await until(lambda: ids)

    broker = await client.broker()
    [claim] = await broker.reads.fetch(
        broker.subjects.streams.records, broker.subjects.checkpoint("*", ids[0], ">")
    )
    assert claim.payload == b'{"attempt":1,"number":1}'


async def test_concurrent_steps_need_different_names(app: App, working: Working) -> None:
    outside = Effects()

    @app.task
    async def buy(ctx: Context) -> Any:
        both = await asyncio.gather(*(ctx.once(f"charge-{n}", outside.charge, n) for n in range(10)))
        twice = (ctx.once("same", outside.charge, n) for n in (98, 99))
        one, other = await asyncio.gather(*twice, return_exceptions=True)
        assert isinstance(other, UsageError)
        return [*both, one]

    async with working():
        result = await (await buy.submit()).result(WAIT)
    assert result == [{"receipt": n} for n in (*range(10), 98)]
    assert outside.done == [*range(10), 98]


ASK: Any = "ask"

BAD: dict[str, tuple[type[Exception], str, Callable[[Context, Effects], Awaitable[Any]]]] = {
    "empty": (BadName, "step name must", lambda ctx, out: ctx.once("", out.charge, 1)),
    "lines": (BadName, "step name must", lambda ctx, out: ctx.once("a\nb", out.charge, 1)),
    "long": (BadName, "step name must", lambda ctx, out: ctx.once("a" * 129, out.charge, 1)),
    "unknown": (
        BadOption,
        "unknown must be one of raise, run, skip, got 'ask'",
        lambda ctx, out: ctx.once("a", out.charge, 1, unknown=ASK),
    ),
}


@pytest.mark.parametrize("bad", BAD)
async def test_an_invalid_step_is_refused_before_any_effect(app: App, working: Working, bad: str) -> None:
    kind, message, call = BAD[bad]
    outside = Effects()

    @app.task
    async def buy(ctx: Context) -> None:
        with pytest.raises(kind, match=message):
            await call(ctx, outside)

    async with working():
        await (await buy.submit()).result(WAIT)
    assert outside.done == []


@pytest.mark.parametrize(
    ("value", "message"),
    [(object(), "type object"), ("x" * MAX_VALUE_BYTES, "65,538 bytes")],
    ids=["object", "large"],
)
async def test_a_step_whose_result_cannot_be_stored_fails_and_does_not_run_again(
    app: App, working: Working, value: object, message: str
) -> None:
    calls: list[int] = []

    @app.task(retries=3, backoff="none")
    async def buy(ctx: Context) -> None:
        async def charge() -> object:
            calls.append(1)
            return value

        with pytest.raises(BadResult, match=f"the result of step charge {message}"):
            await ctx.once("charge", charge, undone=Exception)
        await ctx.once("charge", charge)

    async with working():
        with pytest.raises(JobFailed, match="raised BadResult") as caught:
            await (await buy.submit()).result(WAIT)
    assert caught.value.reason == "step_unknown"
    assert calls == [1]


async def test_a_job_has_a_maximum_number_of_steps(app: App, working: Working) -> None:
    outside = Effects()

    @app.task(retries=1, backoff="none")
    async def buy(ctx: Context) -> str:
        for n in range(MAX_STEPS):
            await ctx.once(f"s{n}", outside.charge, n)
        if ctx.attempt == 1:
            raise ValueError("once more, with all of them")
        with pytest.raises(BadOption) as caught:
            await ctx.once("more", outside.charge, -1)
        return str(caught.value)

    async with working():
        error = await (await buy.submit()).result(2 * WAIT)
    assert error == f"once must be one of {MAX_STEPS} steps at most, which the job has already, got 'more'"
    assert outside.done == list(range(MAX_STEPS))


async def test_a_coroutine_function_cannot_be_a_step_in_a_thread(app: App, working: Working) -> None:
    outside = Effects()

    @app.task
    def buy(ctx: Context) -> None:
        with pytest.raises(UsageError, match="takes no coroutine function"):
            _ = ctx.blocking.once("charge", outside.charge, 5)

    async with working():
        await (await buy.submit()).result(WAIT)
    assert outside.done == []
