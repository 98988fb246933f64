"""A stream or a consumer that is deleted under a live worker is reported, and created again."""

import logging
from collections.abc import Callable

import pytest

from jsq import App, Client
from jsq.broker.topology.subjects import StreamNames
from jsq.model.job import PRIORITIES
from jsq.worker import Observer
from tests.helpers.conditions import Until
from tests.helpers.workers import Working

WAIT = 15.0


class Watched(Observer):
    """Records how many streams were missing."""

    def __init__(self) -> None:
        self.missing: list[int] = []

    def streams_missing(self, number: int) -> None:
        if self.missing[-1:] != [number]:
            self.missing.append(number)


STREAMS: dict[str, Callable[[StreamNames], str]] = {
    "ids": lambda names: names.bucket("ids"),
    "records": lambda names: names.records,
    "schedules": lambda names: names.bucket("schedules"),
    "ready": lambda names: names.ready("default"),
    "scheduled": lambda names: names.scheduled("default"),
    "groups": lambda names: names.groups("default"),
    "group state": lambda names: names.group_state("default"),
}


@pytest.mark.parametrize("which", STREAMS)
async def test_a_stream_that_is_deleted_under_a_worker_is_created_again(
    app: App,
    client: Client,
    working: Working,
    until: Until,
    caplog: pytest.LogCaptureFixture,
    which: str,
) -> None:
    app.queue("default", max_jobs=1_000, lease=20)

    @app.task(retries=0)
    async def divide(number: int) -> float:
        return 1 / number

    app.schedule("yearly", divide, [1], cron="0 0 1 1 *")
    watched = Watched()
    async with working(observer=watched, sweep=0) as worker:
        await (await divide.options(key="a").submit(1)).result(WAIT)
        await until(lambda: watched.missing == [0])
        broker = await client.broker()
        stream = STREAMS[which](broker.subjects.streams)
        await broker.jetstream.call(f"STREAM.DELETE.{stream}")
        await until(lambda: len(watched.missing) >= 3 and watched.missing[-1] == 0)
        assert worker.is_ready()

        for options in ({}, {"key": "a"}, {"delay": 0.3}, {"id": "own"}):
            assert await (await divide.options(**options).submit(2)).result(WAIT) == 0.5
        failed = await divide.submit(0)
        await failed.wait(WAIT)

        async def has_dead_letter() -> bool:
            return [one.id for one in await client.dead_letters.list()] == [failed.id]

        await until(has_dead_letter)
        assert [one.name for one in await client.schedules.list()] == ["yearly"]
        settings = await broker.queues.setting("default")
        assert settings is not None
        assert (settings.max_jobs, settings.lease) == (1_000, 20)

    records = [one for one in caplog.records if one.message in ("stream missing", "stream restored")]
    # The heartbeat may have created the stream before the watch checked it: then its consumers were missing.
    named = {(one.levelno, getattr(one, "stream", "").split(" ")[0]) for one in records}
    assert named >= {(logging.ERROR, stream), (logging.WARNING, stream)}


async def test_a_consumer_that_is_deleted_under_a_worker_is_created_again(
    app: App, client: Client, working: Working, until: Until
) -> None:
    @app.task
    async def note() -> str:
        return "done"

    watched = Watched()
    async with working(observer=watched, sweep=0):
        await until(lambda: watched.missing == [0])
        broker = await client.broker()
        ready = broker.subjects.streams.ready("default")
        await broker.jetstream.call(f"CONSUMER.DELETE.{ready}.{PRIORITIES[1]}")
        await until(lambda: watched.missing == [0, 1, 0])

        assert await (await note.options(priority=PRIORITIES[1]).submit()).result(WAIT) == "done"
