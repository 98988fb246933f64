"""The commands `jsq job`, `queue`, `dead`, `events`, `provision`, `doctor` and `version`."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import yaml

from jsq import App, Client, Reject
from jsq.server import EmbeddedServer
from tests.acceptance.conftest import Command, Dying, Listed
from tests.helpers.undeliverable import make_undeliverable

Working = Callable[..., AbstractAsyncContextManager[Any]]
Until = Callable[..., Awaitable[None]]


@pytest.fixture
def tasks(app: App) -> App:
    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    @app.task(retries=0)
    async def picky(why: str) -> None:
        raise Reject(why)

    @app.task
    async def endless() -> None:
        await asyncio.Event().wait()

    return app


@pytest.fixture
async def worker(tasks: App, working: Working) -> AsyncIterator[Any]:
    async with working() as worker:
        yield worker


# -- job ------------------------------------------------------------------------------------------------


async def test_jobs_are_listed_and_filtered(jsq: Command, client: Client, listed: Listed) -> None:
    await client.admin.provision()
    first = await client.task("add").options(tags=["x"]).submit(1, 2)
    second = await client.task("sub").options(queue="other").submit(1, 2)
    await listed(2)

    async def chosen(*words: str) -> list[str]:
        return [job["id"] for job in (await jsq("job", "ls", *words)).lines]

    assert await chosen() == [first.id, second.id]
    assert await chosen("--queue", "other") == [second.id]
    assert await chosen("--task", "add") == [first.id]
    assert await chosen("--tag", "x") == [first.id]
    assert await chosen("--state", "failed") == []
    assert await chosen("--limit", "1") == [second.id]
    wrong = await jsq("job", "ls", "--state", "queed")
    assert wrong.code == 2
    assert "succeeded" in wrong.err


async def test_the_first_job_of_a_namespace_is_listed(jsq: Command, listed: Listed) -> None:
    submitted = await jsq("submit", "add", "1")
    await listed()
    assert submitted.out == (await jsq("job", "ls", "-o", "name")).out


async def test_a_list_has_every_output_format(jsq: Command, client: Client, listed: Listed) -> None:
    await client.admin.provision()
    id = (await client.task("add").submit(1, 2)).id
    await listed()
    known = (await jsq("job", "ls", "-o", "jsonl")).lines

    assert known[0]["id"] == id
    assert known[0]["at"].endswith("Z")
    assert "error" not in known[0]
    assert (await jsq("job", "ls", "-o", "json")).json == known
    assert yaml.safe_load((await jsq("job", "ls", "-o", "yaml")).out) == yaml.safe_load(str(known))
    assert (await jsq("job", "ls", "-o", "name")).out == f"{id}\n"
    head, row = (await jsq("job", "ls", "-o", "table")).out.splitlines()
    assert head.split() == ["ID", "STATE", "QUEUE", "TASK", "AT", "ERROR"]
    assert row.split()[:4] == [id, "queued", "default", "add"]
    assert (await jsq("job", "ls", "-o", "json", "--state", "failed")).json == []


async def test_a_list_has_results_only_on_request(
    jsq: Command, client: Client, worker: Any, listed: Listed
) -> None:
    job = await client.task("add").submit(1, 2)
    await job.result(30)
    await listed()

    [without] = (await jsq("job", "ls")).lines
    [with_result] = (await jsq("job", "ls", "--results")).lines

    assert ("result" in without, with_result["result"]) == (False, 3)
    assert without.items() <= with_result.items()


async def test_a_job_has_every_output_format(jsq: Command, client: Client) -> None:
    id = (await client.task("add").submit(1, 2)).id

    job = (await jsq("job", "get", id)).json
    assert (job["id"], job["state"], job["task"]) == (id, "queued", "add")
    assert yaml.safe_load((await jsq("job", "get", id, "-o", "yaml")).out)["state"] == "queued"
    assert (await jsq("job", "get", id, "-o", "name")).out == f"{id}\n"
    assert "state: queued\n" in (await jsq("job", "get", id, "-o", "table")).out


async def test_a_job_is_waited_for(jsq: Command, client: Client, worker: Any) -> None:
    good, bad = await client.task("add").submit(1, 2), await client.task("picky").submit("no")

    waited, result = await jsq("job", "wait", good.id), await jsq("job", "result", good.id)
    assert (waited.code, waited.json["state"], waited.json["result"]) == (0, "succeeded", 3)
    assert (result.code, result.out) == (0, "3\n")

    waited, result = await jsq("job", "wait", bad.id), await jsq("job", "result", bad.id)
    assert (waited.code, waited.json["state"], waited.json["reason"]) == (3, "failed", "rejected")
    assert (result.code, result.out) == (3, "")
    assert "failed (rejected): Reject: no" in result.err


async def test_a_wait_has_an_end(jsq: Command, client: Client) -> None:
    id = (await client.task("add").submit(1, 2)).id

    for verb in ("wait", "result"):
        for timeout in ("0", "100ms"):
            ended = await jsq("job", verb, id, "--timeout", timeout)
            assert (ended.code, ended.out) == (124, "")


async def test_jobs_are_cancelled(jsq: Command, client: Client, worker: Any, until: Until) -> None:
    running, waiting = (
        await client.task("endless").submit(),
        await client.task("add").options(delay=60).submit(1, 2),
    )

    async def runs() -> bool:
        return (await running.status()).state == "running"

    await until(runs)
    ended = await jsq("job", "cancel", running.id, waiting.id)

    assert ended.code == 0, ended.err
    assert [job["state"] for job in ended.lines] == ["cancelled", "cancelled"]
    assert (await jsq("job", "cancel", running.id)).code == 0
    assert (await jsq("job", "result", running.id)).code == 3


async def test_jobs_are_cancelled_by_a_filter(jsq: Command, client: Client) -> None:
    jobs = [await client.task("add").options(tags=["x"]).submit(1, n) for n in range(3)]
    other = await client.task("add").submit(1, 2)

    listed = await jsq("job", "cancel", "--tag", "x", "--dry-run")
    assert (listed.code, [job["id"] for job in listed.lines]) == (0, [job.id for job in jobs])
    unconfirmed = await jsq("job", "cancel", "--tag", "x")
    assert (unconfirmed.code, unconfirmed.out) == (2, "")
    assert "cancel 3 jobs; confirm with --yes" in unconfirmed.err
    for words in ((), (other.id, "--tag", "x"), (other.id, "--dry-run"), ("--state", "failed")):
        assert (await jsq("job", "cancel", *words)).code == 2
    asked = await jsq.on_terminal("job", "cancel", "--tag", "x", typed=b"n\n")
    assert asked.code == 1
    assert "Cancel 3 jobs?" in asked.out
    assert (await jobs[0].status()).state == "queued"

    ended = await jsq("job", "cancel", "--tag", "x", "--state", "queued", "--yes")
    assert (ended.code, ended.json) == (0, {"cancelled": 3, "ended": 0, "unmatched": 0})
    assert (await jsq("job", "cancel", "--tag", "x", "--yes")).json["cancelled"] == 0
    assert (await other.status()).state == "queued"


async def test_a_failed_job_is_retried(jsq: Command, client: Client, worker: Any) -> None:
    job = await client.task("picky").submit("no")
    await job.wait(timeout=10)

    ended = await jsq("job", "retry", job.id)
    assert ended.code == 0, ended.err
    assert ended.lines[0]["id"] == job.id

    assert (await jsq("job", "wait", job.id)).json["reason"] == "rejected"


async def test_one_bad_id_does_not_stop_the_others(jsq: Command, client: Client, worker: Any) -> None:
    done, waiting = (
        await client.task("add").submit(1, 2),
        await client.task("add").options(delay=60).submit(1, 2),
    )
    await done.wait(timeout=10)

    ended = await jsq("job", "cancel", "unknown", done.id, waiting.id)

    assert ended.code == 5
    assert [job["id"] for job in ended.lines] == [waiting.id]
    assert len(ended.err.splitlines()) == 2


# -- queue ----------------------------------------------------------------------------------------------


async def test_queues_are_counted(jsq: Command, app: App, client: Client) -> None:
    app.queue("mail", concurrency=3)
    await client.admin.provision(app.declared)
    for priority in ("high", "low", "low"):
        await client.task("add").options(queue="mail", priority=priority).submit(1, 2)
    await client.task("add").options(queue="mail", delay=60).submit(1, 2)

    assert [one["queue"] for one in (await jsq("queue", "ls")).lines] == ["mail"]
    [stats] = (await jsq("queue", "stats")).lines
    assert stats["waiting"] == {"high": 1, "normal": 0, "low": 2}
    assert (stats["scheduled"], stats["running"], stats["settings"]["concurrency"]) == (1, 0, 3)
    table = (await jsq("queue", "stats", "mail", "-o", "table")).out.splitlines()
    assert table[1].split()[:8] == ["mail", "3", "(1", "high,", "2", "low)", "0", "0"]
    assert (await jsq("queue", "stats", "nope")).code == 5


async def test_a_queue_is_purged_only_after_confirmation(jsq: Command, client: Client) -> None:
    for _ in range(3):
        await client.task("add").submit(1, 2)

    asked = await jsq("queue", "purge", "default")
    assert (asked.code, asked.out) == (2, "")
    assert "3 waiting jobs" in asked.err

    refused = await jsq.on_terminal("queue", "purge", "default", typed=b"n\n")
    assert refused.code == 1
    assert "Cancel 3 waiting jobs of queue default?" in refused.out

    agreed = await jsq.on_terminal("queue", "purge", "default", typed=b"y\n")
    assert agreed.code == 0
    assert "cancelled: 3" in agreed.out

    again = await jsq("queue", "purge", "default")
    assert again.json == {"queue": "default", "cancelled": 0}
    assert (await jsq("queue", "purge", "nope", "--yes")).code == 5


# -- dead -----------------------------------------------------------------------------------------------


async def test_a_dead_letter_has_every_detail(
    jsq: Command, client: Client, worker: Any, dying: Dying
) -> None:
    job = await client.task("picky").options(headers={"trace": "7"}, tags=["x"], retries=0).submit("no")
    await job.wait(timeout=10)
    await dying()

    [listed] = (await jsq("dead", "ls")).lines
    assert (listed["id"], listed["reason"]) == (job.id, "rejected")
    shown = (await jsq("dead", "get", job.id)).json
    assert shown["error"] == "Reject: no"
    assert shown["arguments"] == [["no"], {}]
    assert (shown["headers"], shown["tags"], shown["retries"]) == ({"trace": "7"}, ["x"], 0)
    assert (await jsq("dead", "ls", "--queue", "other")).out == ""
    assert (await jsq("dead", "get", "unknown")).code == 5


async def test_a_message_that_is_not_a_job_is_shown_by_its_bytes(
    jsq: Command, client: Client, worker: Any, dying: Dying
) -> None:
    wire = (await client.broker()).wire
    await wire.publish(f"{client.namespace}.q.default.normal.raw", b"\x80\x04pickle")
    await dying()

    shown = (await jsq("dead", "get", "raw")).json
    assert shown["raw_base64"] == "gARwaWNrbGU="
    assert (await jsq("dead", "retry", "raw")).code == 6


async def test_a_job_without_a_dead_letter_is_named_with_its_state(
    jsq: Command, client: Client, worker: Any, dying: Dying
) -> None:
    job = await client.task("add").submit(1, 2)
    await job.result(60)
    died = await client.task("picky").submit("no")
    await dying(1)
    await jsq("dead", "purge", died.id, "--yes")

    for verb in (["get"], ["purge", "--yes"]):
        found = await jsq("dead", *verb, job.id)
        why = f"job {job.id} has no dead letter: it is succeeded, and only a failed job has one"
        assert (found.code, found.err) == (5, f"jsq: error: {why}\n")
    assert f"job {died.id} has no dead letter: it was purged" in (await jsq("dead", "get", died.id)).err
    assert "its dead letter was purged; submit it again" in (await jsq("dead", "retry", died.id)).err
    assert "(`jsq job retry --again`)" in (await jsq("job", "retry", job.id)).err
    chosen = await jsq("job", "retry", died.id, "--arg", "why=now")
    assert (chosen.code, "`jsq dead retry ID --arg`" in chosen.err) == (2, True)


async def test_dead_letters_are_retried(jsq: Command, client: Client, worker: Any, dying: Dying) -> None:
    job = await client.task("picky").submit("no")
    await job.wait(timeout=10)
    await dying()

    named = await jsq("dead", "retry", job.id)
    assert (named.code, named.lines) == (0, [{"id": job.id}])
    await dying()

    asked = await jsq("dead", "retry", "--all")
    assert (asked.code, asked.out) == (2, "")
    assert "1 dead job again" in asked.err
    assert (await jsq("dead", "retry", "--all", "--queue", "other", "--yes")).out == ""
    assert (await jsq("dead", "retry", "--all", "--yes")).lines == [{"id": job.id}]
    for words in ([], ["--all", "x"], ["x", "--queue", "default"]):
        assert (await jsq("dead", "retry", *words)).code == 2
    assert (await jsq("dead", "retry", "unknown")).code == 5


async def test_dead_letters_are_filtered_and_retried_with_other_arguments(
    jsq: Command, client: Client, worker: Any, dying: Dying
) -> None:
    job = await client.task("picky").submit(why="no")
    added = await client.task("add").submit(a=1)
    await dying(2)

    chosen = ("--task", "picky", "--reason", "rejected", "--error", "Reject", "--since", "1h")
    assert [dead_letter["id"] for dead_letter in (await jsq("dead", "ls", *chosen)).lines] == [job.id]
    assert (await jsq("dead", "ls", "--until", "1h")).out == ""
    for words in (("--since", "never"), ("--reason", "tired")):
        assert (await jsq("dead", "ls", *words)).code == 2
    for wrong in ((job.id, "--task", "picky"), ("--all", "--arg", "a=1"), (job.id, "--json", "5")):
        assert (await jsq("dead", "retry", *wrong)).code == 2

    assert (await jsq("dead", "retry", added.id, "--arg", "b=4")).lines == [{"id": added.id}]
    assert (await jsq("job", "result", added.id)).out == "5\n"
    asked = await jsq("dead", "purge", *chosen)
    assert (asked.code, "1 dead letter for good" in asked.err) == (2, True)
    assert (await jsq("dead", "purge", *chosen, "--free-id", "--yes")).lines == [{"id": job.id}]
    assert (await jsq("job", "get", job.id)).code == 5


async def test_dead_letters_are_filtered_by_tags(
    jsq: Command, client: Client, worker: Any, dying: Dying
) -> None:
    plain = await client.task("picky").submit(why="no")
    tagged = await client.task("picky").options(tags=["nightly", "eu"]).submit(why="no")
    await dying(2)

    assert [one["id"] for one in (await jsq("dead", "ls", "--tag", "nightly", "--tag", "eu")).lines] == [
        tagged.id
    ]
    assert (await jsq("dead", "ls", "--tag", "nightly", "--tag", "us")).out == ""
    assert (await jsq("dead", "retry", "--tag", "us", "--yes")).out == ""
    assert (await jsq("dead", "retry", "--tag", "eu", "--yes")).lines == [{"id": tagged.id}]
    await dying(2)
    assert (await jsq("dead", "purge", "--tag", "nightly", "--yes")).lines == [{"id": tagged.id}]
    assert [one["id"] for one in (await jsq("dead", "ls")).lines] == [plain.id]


async def test_dead_letters_are_purged_only_after_confirmation(
    jsq: Command, client: Client, worker: Any, dying: Dying
) -> None:
    for _ in range(2):
        job = await client.task("picky").submit("no")
        await job.wait(timeout=10)
    await dying(2)

    asked = await jsq("dead", "purge", "--all")
    assert asked.code == 2
    assert "2 dead letters" in asked.err
    assert (await jsq("dead", "purge", job.id, "--yes")).lines == [{"id": job.id}]
    assert (await jsq("dead", "purge", job.id, "--yes")).code == 5
    assert (await jsq("dead", "purge", "*", "--yes")).code == 5  # `*` is an id here, and no job has it
    assert len(await client.dead_letters.list()) == 1
    assert (await jsq("dead", "purge", "--all", "--yes")).code == 0
    assert await client.dead_letters.list() == []


# -- events ---------------------------------------------------------------------------------------------


async def test_events_are_printed_as_they_arrive(jsq: Command, client: Client, worker: Any) -> None:
    first = await client.task("add").submit(1, 2)
    await first.wait(timeout=10)
    async with jsq.running("events", "--since", "10m") as process:
        assert process.stdout is not None
        events = [json.loads(await process.stdout.readline()) for _ in range(2)]
        assert {event["id"] for event in events} == {first.id}

        second = await client.task("add").submit(3, 4)
        events = [json.loads(await process.stdout.readline()) for _ in range(2)]
        assert [event["state"] for event in events] == ["running", "succeeded"]
        assert {event["id"] for event in events} == {second.id}

        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    assert (process.returncode, out, err) == (130, b"", b"")


async def test_past_events_are_filtered(jsq: Command, client: Client, worker: Any) -> None:
    job, other = await client.task("add").submit(1, 2), await client.task("picky").submit("no")
    await job.wait(timeout=10)
    await other.wait(timeout=10)

    async def states(*words: str) -> list[str]:
        return [event["state"] for event in (await jsq("events", "--no-follow", *words)).lines]

    assert await states("--job", job.id) == ["running", "succeeded"]
    assert await states("--state", "failed") == ["failed"]
    assert await states("--queue", "other") == []
    assert await states("--since", "2100-01-01T00:00Z") == []
    line = (await jsq("events", "--no-follow", "--job", other.id, "-o", "table")).out.splitlines()[-1]
    assert line.endswith("rejected  Reject: no")
    for wrong in (["--since", "yore"], ["--state", "ill"], ["--job", ""], ["--queue", ">"]):
        assert (await jsq("events", "--no-follow", *wrong)).code == 2


# -- the server -----------------------------------------------------------------------------------------


async def test_provision_reports_the_differences(jsq: Command, client: Client) -> None:
    jsq.write(
        "shop.py",
        f"from jsq import App\napp = App(namespace={client.namespace!r})\napp.queue('mail', concurrency=2)\n",
    )

    checked = await jsq("provision", "shop", "--check")
    assert checked.code == 1
    assert {"how": "missing"}.items() <= checked.lines[0].items()
    assert await client.queues.list() == []

    made = await jsq("provision", "shop")
    assert (made.code, made.lines) == (0, checked.lines)
    assert await client.queues.list() == ["mail"]

    same = await jsq("provision", "shop", "--check")
    assert (same.code, same.out, same.err) == (0, "", "nothing differs\n")


async def test_provision_without_an_app_does_not_change_the_default_queue(
    jsq: Command, app: App, client: Client
) -> None:
    app.queue("default", concurrency=2)
    await client.admin.provision(app.declared)

    assert (await jsq("provision")).err == "nothing differs\n"
    [stats] = await client.queues.stats("default")
    assert stats.settings.concurrency == 2


async def test_doctor_reports_the_checks_that_pass(jsq: Command, client: Client) -> None:
    await client.admin.provision()

    ended = await jsq("doctor")
    assert ended.code == 0
    found = {finding["subject"]: finding["severity"] for finding in ended.lines}
    assert (found["server"], found["workers"]) == ("ok", "warning")
    table = (await jsq("doctor", "-o", "table")).out
    assert "\nwarning  workers: none is alive" in table


async def test_doctor_of_an_empty_namespace_has_one_line_for_the_streams(jsq: Command) -> None:
    ended = await jsq("doctor")

    assert ended.code == 0
    subjects = [finding["subject"] for finding in ended.lines]
    [streams] = [finding for finding in ended.lines if finding["subject"] == "streams"]
    assert (streams["severity"], "is empty" in streams["message"]) == ("warning", True)
    assert [subject for subject in subjects if subject.startswith("KV_")] == []


async def test_live_workers_are_listed_with_their_tasks(
    jsq: Command, client: Client, worker: Any, until: Until
) -> None:
    await until(lambda: client.admin.workers())

    [known] = (await jsq("worker", "ls")).lines
    head, row = (await jsq("worker", "ls", "-o", "table")).out.splitlines()

    assert (known["queues"], known["tasks"]) == (["default"], ["add", "endless", "picky"])
    assert head.split()[:3] == ["WORKER", "HOST", "PID"]
    assert row.endswith("default  add, endless, picky")
    assert (await jsq("worker", "ls", "-o", "name")).out == f"{known['worker']}\n"


async def test_doctor_reads_the_monitoring_endpoints_of_servers(
    jsq: Command, client: Client, server: EmbeddedServer
) -> None:
    await client.admin.provision()

    sound = await jsq("doctor", "--monitor", server.monitor)
    away = await jsq("doctor", "--monitor", server.monitor, "--monitor", "http://127.0.0.1:1")
    wrong = await jsq("doctor", "--monitor", "nonsense")

    assert (sound.code, away.code, wrong.code) == (0, 1, 2)
    assert "monitor http://127.0.0.1:1" in {finding["subject"] for finding in away.lines}
    assert "monitor must " in wrong.err


async def test_sweep_reports_and_repairs_inconsistencies(jsq: Command, client: Client) -> None:
    assert (await jsq("sweep")).err == "0 inconsistencies found, 0 repaired\n"
    job = await client.task("any").submit()
    await make_undeliverable(client)

    found = {"inconsistency": "undeliverable", "queue": "default", "job": job.id}
    young = await jsq("sweep")
    dry_run = await jsq("sweep", "--dry-run", "--age", "0")
    repaired = await jsq("sweep", "--age", "0", "-o", "jsonl")
    wrong = await jsq("sweep", "--age", "-1")

    assert (young.code, young.out) == (0, "")
    assert dry_run.lines == [found | {"repaired": False}]
    assert (repaired.lines, repaired.err) == (
        [found | {"repaired": True}],
        "1 inconsistency found, 1 repaired\n",
    )
    assert (wrong.code, "'-1' is not a duration" in wrong.err) == (2, True)


async def test_version_shows_the_version_of_a_reachable_server(jsq: Command) -> None:
    near = await jsq("version")
    far = await jsq("version", "--server", "nats://127.0.0.1:1")

    assert near.code == far.code == 0
    assert near.json["server"].startswith("2.")
    assert "server" not in far.json
    assert far.json["nats-py"] == near.json["nats-py"]
    assert "no NATS server answers" in far.err
    assert (await jsq("--version")).out == f"jsq {near.json['jsq']}\n"
