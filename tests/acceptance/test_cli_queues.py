"""`jsq queue rm`, and the counts of `jsq queue stats`."""

import signal

from jsq import App, Client
from tests.acceptance.conftest import Command


async def test_an_empty_queue_is_removed_after_confirmation(jsq: Command, client: Client) -> None:
    await client.admin.provision()

    refused = await jsq("queue", "rm", "default")
    assert refused.code == 2
    assert "this would remove queue default; confirm with --yes" in refused.err
    removed = await jsq("queue", "rm", "default", "--yes")
    assert removed.code == 0
    assert removed.err == "removed queue default\n"
    assert removed.json == {"queue": "default", "jobs": 0, "dead": 0, "records": 0}
    missing = await jsq("queue", "rm", "default", "--yes")
    assert (missing.code, missing.err) == (
        5,
        "jsq: error: there is no queue default; `jsq queue ls` lists the queues\n",
    )


async def test_a_queue_is_shown_with_a_setting_on_each_line(jsq: Command, app: App, client: Client) -> None:
    app.queue("mail", concurrency=5, rate="100/m")
    await client.admin.provision(app.declared)

    lines = (await jsq("queue", "get", "mail", "-o", "table")).out.splitlines()

    assert lines[0] == "queue: mail"
    assert {"concurrency: 5", "rate: 100/m", "waiting: 0", "running: 0"} <= set(lines)


async def test_counts_are_printed_until_interrupted(jsq: Command, client: Client) -> None:
    await client.admin.provision()

    async with jsq.running("queue", "stats", "--watch", "-o", "name") as process:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"default\n"
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130


async def test_a_queue_with_jobs_is_removed_by_force_with_their_number(jsq: Command, client: Client) -> None:
    job = await client.task("any").submit(1)
    await client.task("any").submit(2)
    await client.schedules.add("nightly", "any", cron="0 3 * * *")

    dry = await jsq("queue", "rm", "default", "--dry-run")
    assert (dry.code, dry.json["jobs"], dry.json["schedules"]) == (0, 2, ["nightly"])
    refused = await jsq("queue", "rm", "default", "--yes")
    assert refused.code == 6
    assert refused.err.startswith("jsq: error: queue default holds 2 jobs and 1 schedule (nightly); ")
    unconfirmed = await jsq("queue", "rm", "default", "--force")
    assert unconfirmed.code == 2
    assert "this would remove queue default with 2 jobs and 1 schedule" in unconfirmed.err
    assert (await job.status()).state == "queued"

    removed = await jsq("queue", "rm", "default", "--force", "--yes", "-o", "name")

    assert (removed.code, removed.out) == (0, "default\n")
    assert removed.err.startswith("removed queue default with 2 jobs and 1 schedule")
    assert (await job.status()).state == "cancelled"
    assert await client.queues.list() == []
