"""The reports of `jsq worker`, `jsq submit` and `jsq dev` about tasks, queues and workers."""

import asyncio
from pathlib import Path

import pytest

from jsq import App, Client
from jsq.cli.dev import DevServer, run_dev_worker
from jsq.cli.waiting import limit_reason
from jsq.server import EmbeddedServer
from jsq.worker import Worker
from tests.acceptance.conftest import Command
from tests.helpers.conditions import Until
from tests.helpers.workers import running_worker

SHOP = """
from jsq import App
app = App(routes={"mail.*": "mail-out"})
app.queue("mail-in", concurrency=2)
app.queue("other")
"""

MAIL = """
from jsq import Router
router = Router("mail")
@router.task
async def send(to: str) -> None: ...
"""


async def test_a_worker_prints_a_banner_and_serves_the_queues_that_match(jsq: Command) -> None:
    jsq.write("shop.py", SHOP)
    jsq.write("mail.py", MAIL)
    command = ("worker", "shop:app", "--burst", "--queues", "mail-*")

    refused = await jsq(*command)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith("jsq: error: shop:app declares no task: ")

    text = await jsq(*command, "--include", "mail")
    json = await jsq(*command, "--include", "mail", "--log-format", "json")

    assert (text.code, json.code) == (0, 0)
    lines = text.err.splitlines()
    place = next(number for number, line in enumerate(lines) if "namespace" in line)
    assert lines[place + 1 : place + 6] == [
        "  slots: 10",
        "  queues:",
        "    mail-in  concurrency=2",
        "    mail-out",
        "  tasks: mail.send",
    ]
    assert all(line.startswith("{") for line in json.err.splitlines())


async def test_a_submit_by_name_warns_about_what_the_live_workers_know_better(
    jsq: Command, app: App, client: Client
) -> None:
    @app.task(queue="albums", per_key=2, aliases=["make"])
    async def build() -> None: ...

    @app.task
    async def send() -> None: ...

    async with running_worker(Worker(app)):
        wrong = await jsq("submit", "sent")
        lost = await jsq("submit", "build", "--queue", "albums")
        right = await jsq("submit", "send")
        older = await jsq("submit", "make", "--queue", "albums")

    assert wrong.err == "jsq: warning: no live worker of queue default has a task sent; is send meant?\n"
    assert "task build declares per_key=2, which a submit by name does not use" in lost.err
    assert (right.err, older.err, right.code) == ("", "", 0)


async def test_a_wait_reports_the_pause_or_the_limit_that_holds_a_job(app: App, client: Client) -> None:
    app.queue("mail", concurrency=1)

    @app.task(queue="mail")
    async def send() -> None: ...

    await client.admin.provision(app.declared)
    job = await send.submit()
    record = await job.status()
    worker = {"queues": ["mail"], "tasks": ["send"], "slots": 10}

    assert await limit_reason(client, record, [worker]) == ""
    await client.queues.pause("mail", task="send")
    assert await limit_reason(client, record, [worker]) == "task send is paused"
    await client.queues.pause("mail")
    assert "mail is paused" in await limit_reason(client, record, [worker])


async def test_the_list_of_workers_shows_a_busy_worker_soon(app: App, client: Client, until: Until) -> None:
    release = asyncio.Event()

    @app.task
    async def hold() -> None:
        await release.wait()

    async def is_busy() -> bool:
        return [one["busy"] for one in await client.admin.workers()] == [1]

    async with running_worker(Worker(app)):
        await hold.submit()
        await until(is_busy, 5)
        release.set()


async def test_dev_ends_with_an_error_when_its_server_has_died(capsys: pytest.CaptureFixture[str]) -> None:
    dead = DevServer("nats://127.0.0.1:1", lambda: True, Path(".jsq"))
    assert await run_dev_worker("", dead, 1, reload=False, http="") == 1
    assert capsys.readouterr().err == "the nats-server has ended; its log is .jsq/nats.log\n"


async def test_dev_ends_with_one_error_if_its_folder_has_streams_of_another_version(
    jsq: Command, namespace: str
) -> None:
    jsq.write("shop.py", "from jsq import App\napp = App()\n@app.task\ndef add() -> None: ...\n")
    with EmbeddedServer(jsq.folder / "old") as old:
        async with Client(old.url) as client:
            wire = (await client.broker()).wire
            await wire.api("STREAM.CREATE.DEAD", {"name": "DEAD", "subjects": [f"{namespace}.dead.>"]})

    async with jsq.running("dev", "shop:app", "--folder", "old", "--port", "0", "--no-reload") as dev:
        err = (await dev.communicate())[1].decode()

    assert (dev.returncode, err.count("jsq: error: subjects of ")) == (1, 1)
    assert "(`nats stream rm DEAD`)" in err
    assert err.endswith("move the folder away, or choose another one with --folder\n")
    assert "worker process died" not in err
