"""Bad inputs 1 to 18: names of queues, jobs and tasks."""

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jsq import App, Client, JobFailed
from jsq.errors import BadName, TaskExists
from jsq.model.job import MAX_ID_LENGTH, NAME_RULE, text_rule
from jsq.worker import Worker
from tests.acceptance.bad_inputs import mentions, row, rows, stored
from tests.acceptance.conftest import Command, Dying
from tests.helpers.workers import Working

# -- queues ---------------------------------------------------------------------------------------------


@rows(
    {
        "01-empty": "",
        "02-dot": "a.b",
        "03-star": "*",
        "04-greater-than": ">",
        "05-space": "a b",
        "06-protocol-line": "a\r\nPUB x 0",
        "07-nul": "\0",
        "08-300-characters": "x" * 300,
        "09-percent-alone": "%s",
        "09-percent-within": "a%b",
        "10-accent": "é",
        "10-full-width": "ａ",  # noqa: RUF001 -- the very point
        "10-right-to-left-mark": "\u200f",
        "12-private": "_x",
        "12-of-the-server": "$JS",
    }
)
async def test_an_invalid_queue_name_is_refused_by_every_entry_point(
    app: App, client: Client, given: str
) -> None:
    entry_points: tuple[Callable[[], Any], ...] = (
        lambda: client.task("any").options(queue=given),
        lambda: app.queue(given),
        lambda: app.task(name="any", queue=given)(lambda: None),
        lambda: Worker(app, queues=[given]),
    )
    shown = repr(given) if len(given) < 120 else "(302 characters)"
    for entry_point in entry_points:
        with pytest.raises(BadName) as caught:
            entry_point()
        assert mentions(caught, shown, "queue name must be", NAME_RULE)
    for ask in (client.queues.stats, client.queues.count_waiting, client.queues.purge):
        with pytest.raises(BadName):
            await ask(given)
    for choose in (
        client.jobs.list,
        client.jobs.list_open,
        client.jobs.cancel_many,
        client.dead_letters.list,
        client.dead_letters.purge,
    ):
        with pytest.raises(BadName):
            await choose(queue=given)
    if given != "*":  # a handle may have any queue
        with pytest.raises(BadName):
            client.jobs.handle("some", given)
    with pytest.raises(BadName):
        [event async for event in client.jobs.events(queue=given, follow=False)]
    assert (app.declared, app.tasks, await stored(client)) == ({}, {}, 0)


@row("11-two-cases")
async def test_names_that_differ_in_case_are_two_queues(app: App, client: Client, working: Working) -> None:
    @app.task
    async def where() -> str:
        return "here"

    small, large = [await where.options(queue=queue).submit() for queue in ("q", "Q")]

    async with working(queues=["Q"]):
        assert await large.result(60) == "here"
    assert (await small.status()).state == "queued"
    assert {one.queue: one.waiting["normal"] for one in await client.queues.stats()} == {"q": 1, "Q": 0}


@rows({"12-dead-letters": "dlq", "12-events": "events", "12-jobs": "jobs"})
async def test_a_reserved_name_is_refused_as_a_queue(client: Client, given: str) -> None:
    with pytest.raises(BadName) as caught:
        client.task("any").options(queue=given)
    assert mentions(caught, repr(given), "queue name must be none of the reserved names")
    assert await stored(client) == 0


# -- jobs -----------------------------------------------------------------------------------------------


@rows(
    {
        "13-empty": "",
        "13-line-feed": "a\n",
        "13-half-a-character": "\ud83d",
        "13-1000-characters": "x" * 1_000,
        "13-writing-direction": "\u202e",
    }
)
async def test_an_invalid_job_id_is_refused_by_every_entry_point(client: Client, given: str) -> None:
    with pytest.raises(BadName) as caught:
        client.task("any").options(id=given)
    shown = repr(given) if len(given) < 120 else "(1002 characters)"
    rule, fix = text_rule(MAX_ID_LENGTH).split("; ")
    assert mentions(caught, shown, f"job id must be {rule}", fix)
    for ask in (client.jobs.get, client.dead_letters.get, client.dead_letters.retry):
        with pytest.raises(BadName):
            await ask(given)
    with pytest.raises(BadName):
        await client.dead_letters.purge(id=given)
    with pytest.raises(BadName):
        [event async for event in client.jobs.events(job=given, follow=False)]
    assert await stored(client) == 0


@row("14-of-a-finished-job")
async def test_submitting_the_id_of_a_finished_job_returns_that_job(
    app: App, client: Client, working: Working
) -> None:
    runs: list[int] = []

    @app.task
    async def keep(x: int) -> int:
        runs.append(x)
        return x

    async with working():
        first = await keep.options(id="mine").submit(1)
        assert await first.result(60) == 1
        second = await keep.options(id="mine").submit(2)
        assert await second.result(60) == 1
    assert (first.duplicate, second.duplicate, second.id, runs) == (False, True, "mine", [1])
    assert len(await client.jobs.list()) == 1


@rows({"15-1-mb": "x" * 1_000_000, "15-binary": b"\0\xff"})
async def test_a_unique_key_of_any_size_and_bytes_is_hashed(app: App, client: Client, given: Any) -> None:
    task = app.task(name="any")(lambda: None)
    first = await client.task("any").options(unique=given).submit()
    assert not first.duplicate
    for second in (
        await client.task("any").options(unique=given).submit(),
        await task.options(unique=given).submit(),
    ):
        assert (second.id, second.duplicate) == (first.id, True)
    other = await client.task("any").options(unique=given[:-1]).submit()
    assert not other.duplicate
    assert len(await (await client.broker()).job_reader.waiting_ids("default")) == 2


# -- tasks ----------------------------------------------------------------------------------------------


@row("16-declared-twice")
async def test_a_task_name_can_be_declared_only_once(app: App) -> None:
    @app.task(aliases=["older"])
    def double() -> int:
        return 1

    for name in ("double", "older"):
        with pytest.raises(TaskExists) as caught:
            app.task(name=name)(lambda: 2)
        assert mentions(caught, repr(name), "already declared", "name=")
    assert (list(app.tasks), app.find("older").function()) == (["double"], 1)


@row("17-unknown")
async def test_an_unknown_task_becomes_a_dead_letter_without_a_crash(
    app: App, client: Client, jsq: Command, working: Working, dying: Dying
) -> None:
    @app.task
    async def fine() -> int:
        return 1

    jsq.write("shop.py", "from jsq import App\napp = App()\n")
    refused = await jsq("submit", "unknown", "--app", "shop", "--namespace", client.namespace)
    assert (refused.code, "no task is named 'unknown'" in refused.err) == (2, True)
    assert await stored(client) == 0

    async with working(unknown_task_for=0):
        job = await client.task("unknown").submit()  # without an app, the worker reports it
        with pytest.raises(JobFailed, match="UnknownTask: no task is named 'unknown'") as caught:
            await job.result(60)
        assert await (await fine.submit()).result(60) == 1
        await dying()
    [dead_letter] = await client.dead_letters.list()
    assert (caught.value.reason, dead_letter.reason, dead_letter.id) == (
        "unknown_task",
        "unknown_task",
        job.id,
    )


@rows(
    {"18-function-of-a-module": "os.system", "18-import": "__import__", "18-module-not-yet-there": "trap.run"}
)
async def test_a_task_name_never_imports_a_module(
    app: App,
    client: Client,
    working: Working,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: str,
) -> None:
    (tmp_path / "trap.py").write_text("def run(*args):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    proof = tmp_path / "ran"

    async with working(unknown_task_for=0):
        job = await client.task(given).submit(f"touch {proof}")
        with pytest.raises(JobFailed) as caught:
            await job.result(60)
    assert caught.value.reason == "unknown_task"
    assert not proof.exists()
    assert not isinstance(sys.modules.get("trap"), types.ModuleType)
