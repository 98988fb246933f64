"""An attempt that runs for longer than the TTL of its record keeps the record, and its fencing token."""

import asyncio

from jsq import App, Client, Context, JobHandle
from jsq.worker.timings import WorkerTimings
from tests.helpers.conditions import Until
from tests.helpers.workers import Working

SHORT = WorkerTimings(start_ttl=2.0)


async def test_an_attempt_that_outlives_the_ttl_of_its_record_is_recorded(
    app: App, client: Client, working: Working, until: Until
) -> None:
    """The plain job uses the short path; the other one has stages, progress and checkpoints."""
    runs: list[str] = []
    may_end = asyncio.Event()

    @app.task
    async def plain() -> str:
        runs.append("plain")
        await may_end.wait()
        return "done"

    @app.task
    async def reporting(ctx: Context) -> str:
        runs.append("reporting")
        ctx.progress(0.5, "half")
        while not may_end.is_set():
            await ctx.checkpoint(len(runs))
        return "done"

    async with working(timings=SHORT):
        jobs: list[JobHandle[str]] = [await plain.submit(), await reporting.submit()]
        records = (await client.broker()).records
        await until(lambda: len(runs) == 2)
        first = {job.id: found.sequence for job in jobs if (found := await records.last(job.id)) is not None}
        assert len(first) == 2

        async def outlived() -> bool:
            """Whether the server has deleted the first revisions of both."""
            each = [await records.history(job.id) for job in jobs]
            return not any(first[one.job] == one.sequence for found in each for one in found)

        await until(outlived, 20)
        assert [(await job.status()).state for job in jobs] == ["running", "running"]
        assert (await jobs[1].status()).progress == 0.5
        may_end.set()
        assert [await job.result(10) for job in jobs] == ["done", "done"]

    assert sorted(runs) == ["plain", "reporting"]
    for job in jobs:
        assert [one.state for one in await job.attempts()] == ["succeeded"]
