"""The threads of a worker end with it."""

import threading

import pytest

from jsq import App
from jsq.broker.delivery import leases
from tests.helpers.conditions import Until
from tests.helpers.workers import Working


def threads(name: str) -> set[threading.Thread]:
    return {one for one in threading.enumerate() if one.name == name}


async def test_a_stop_does_not_wait_for_the_next_check_of_the_leases(
    app: App, working: Working, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LEASE_CHECK_SECONDS", 60.0)
    before = threads("jsq-leases")

    @app.task
    async def nothing() -> None: ...

    async with working():
        await (await nothing.submit()).result(timeout=10)

    assert threads("jsq-leases") == before


async def test_idle_threads_of_plain_functions_end_with_their_worker(
    app: App, working: Working, until: Until
) -> None:
    before = threads("jsq-task")

    @app.task
    def nothing() -> None: ...

    async with working():
        await (await nothing.submit()).result(timeout=10)
        assert threads("jsq-task") - before

    await until(lambda: threads("jsq-task") <= before)
