"""Headers that an attempt adds to its job, and how long its message waited."""

import pytest

from jsq import App, BadName, Context
from tests.helpers.workers import Working


async def test_the_next_attempt_has_the_header_that_an_attempt_has_added(app: App, working: Working) -> None:
    @app.task(retries=2, backoff="none")
    async def asynchronous(ctx: Context) -> str:
        if ctx.attempt < 3:
            await ctx.add_header("tries", f"{ctx.headers.get('tries', '')}{ctx.attempt}")
            assert ctx.headers["tries"].endswith(str(ctx.attempt))
            raise ValueError("again")
        return f"{ctx.headers['tenant']} {ctx.headers['tries']}"

    @app.task(retries=1, backoff="none")
    def blocking(ctx: Context) -> str:
        ctx.blocking.add_header("try", str(ctx.attempt))
        if ctx.attempt == 1:
            raise ValueError("again")
        return ctx.headers["try"]

    async with working():
        first = await asynchronous.options(headers={"tenant": "t7"}).submit()
        second = await blocking.submit()

        assert await first.result(10) == "t7 12"
        assert await second.result(10) == "2"
        assert (await first.status()).headers == {"tenant": "t7", "tries": "12"}


async def test_a_reserved_header_cannot_be_added(app: App, working: Working) -> None:
    @app.task
    async def add(ctx: Context) -> str:
        with pytest.raises(BadName):
            await ctx.add_header("Jsq-Job", "x")
        return "refused"

    async with working():
        assert await (await add.submit()).result(10) == "refused"


async def test_a_context_knows_how_long_its_message_waited(app: App, working: Working) -> None:
    @app.task
    async def waited(ctx: Context) -> float:
        return ctx.waited

    job = await waited.submit()
    before = await waited.options(delay=0.3).submit()
    async with working():
        seconds = await job.result(10)
        record = await job.status()
        assert record.waited is not None
        assert abs(seconds - record.waited) < 0.1
        assert await before.result(10) < 0.3
