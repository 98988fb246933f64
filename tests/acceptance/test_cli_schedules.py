"""`jsq schedule`, and the schedules of `jsq provision`."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest

from jsq import App, Client
from jsq.broker.schedules import ScheduleEntry
from tests.acceptance.conftest import Command
from tests.helpers.workers import Working

Until = Callable[..., Awaitable[None]]

DECLARED = """
from jsq import App

app = App()


@app.cron("0 3 * * *", ["eu"], name="nightly-eu", tz="Europe/Berlin")
@app.task(queue="reports")
async def nightly(region: str) -> None: ...
"""


async def entry(client: Client, name: str) -> ScheduleEntry:
    return await (await client.broker()).schedules.find(name)


async def test_a_schedule_is_added_listed_changed_and_removed(jsq: Command, client: Client) -> None:
    words = ("--cron", "0 3 * * MON-FRI", "--tz", "Europe/Berlin", "--jitter", "5m", "--catch-up", "all")
    added = await jsq(
        "schedule", "add", "nightly", "report", "eu", "5", *words, "--tag", "x", "--overlap", "skip"
    )
    assert (added.code, added.err) == (0, "")
    assert added.json["arguments"] == [["eu", 5], {}]
    [listed] = (await jsq("schedule", "ls")).lines
    assert listed == added.json
    assert (listed["cron"], listed["jitter"], listed["catch_up"]) == ("0 3 * * MON-FRI", 300.0, "all")
    assert (await entry(client, "nightly")).schedule.job.tags == ("x",)

    named = ("--arg", "region=us", "--queue", "reports", "--start", "2030-01-01T00:00Z", "--retries", "1")
    changed = await jsq("schedule", "add", "nightly", "report", *named, "--every", "1h30m")
    assert (changed.json["every"], changed.json["queue"]) == (5400.0, "reports")
    assert changed.json["arguments"] == [[], {"region": "us"}]
    assert changed.err == ("replaced: schedule nightly submitted report, 0 3 * * MON-FRI Europe/Berlin\n")
    assert (await entry(client, "nightly")).schedule.start == datetime(2030, 1, 1, tzinfo=UTC)

    more = ("--key", "eu", "--per-key", "1", "--slots", "2", "--header", "Trace=7", "--deadline", "1h")
    await jsq("schedule", "add", "nightly", "report", *named, "--every", "1h30m", *more, "--retry-for", "30m")
    job = (await entry(client, "nightly")).schedule.job
    assert (job.key, job.per_key, job.slots, job.headers) == ("eu", 1, 2, {"Trace": "7"})
    assert (job.deadline, job.retry_for) == (3600.0, 1800.0)

    refused = await jsq("schedule", "rm", "nightly")
    assert (refused.code, "this would remove schedule nightly; confirm with --yes" in refused.err) == (
        2,
        True,
    )
    removed = await jsq("schedule", "rm", "nightly", "--yes", "-o", "name")
    assert (removed.code, removed.out) == (0, "nightly\n")
    assert (await jsq("schedule", "ls")).out == ""


async def test_the_jobs_of_a_schedule_take_the_options_of_a_submit(jsq: Command, client: Client) -> None:
    words = ("--deadline", "1h", "--key", "eu", "--per-key", "1", "--slots", "2", "--retry-for", "10m")
    await jsq("schedule", "add", "pulse", "report", "--every", "1h", *words, "--header", "Trace=7")
    job = (await entry(client, "pulse")).schedule.job
    assert (job.deadline, job.key, job.per_key, job.slots, job.retry_for) == (3600, "eu", 1, 2, 600)
    assert job.headers == {"Trace": "7"}


async def test_the_next_ticks_are_shown_in_the_time_zone_and_in_utc(jsq: Command) -> None:
    await jsq("schedule", "add", "nightly", "report", "--cron", "30 2 * * *", "--tz", "Europe/Berlin")

    ticks = (await jsq("schedule", "next", "nightly", "-n", "3")).lines

    assert len(ticks) == 3
    for tick in ticks:
        utc = datetime.fromisoformat(tick["utc"])
        assert utc > datetime.now(UTC)
        assert " 02:30:00 CE" in tick["local"] or " 03:00:00 CEST" in tick["local"]
        assert set(tick) == {"local", "utc", "in"}
    shown = await jsq.on_terminal("schedule", "next", "nightly", "-n", "1")
    assert [word in shown.out for word in ("LOCAL", "UTC", "IN", ticks[0]["utc"])] == [True] * 4


async def test_a_schedule_is_paused_run_and_resumed(
    jsq: Command, app: App, client: Client, working: Working
) -> None:
    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    await jsq("schedule", "add", "sums", "add", "--json", "[1, 2]", "--every", "1h")
    paused = await jsq("schedule", "pause", "sums")
    assert (paused.json["paused"], "next" in paused.json) == (True, False)
    shown = await jsq.on_terminal("schedule", "ls")
    assert [word in shown.out for word in ("NAME", "sums", "every 3600s", "paused")] == [True] * 4

    ran = await jsq("schedule", "run", "sums")
    assert ran.out.startswith("sums-")
    async with working():
        assert await client.jobs.handle(ran.out.strip()).result(60) == 3

    resumed = await jsq("schedule", "resume", "sums")
    assert (resumed.json["paused"], "next" in resumed.json) == (False, True)


async def test_an_unknown_schedule_is_not_found(jsq: Command) -> None:
    for words in (("rm", "x", "--yes"), ("run", "x"), ("pause", "x"), ("resume", "x"), ("next", "x")):
        ended = await jsq("schedule", *words)
        assert (ended.code, ended.out) == (5, "")
        assert ended.err == "jsq: error: no schedule is named 'x'; `jsq schedule ls` lists the schedules\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("1", "--arg", "a=1"), "positional or named"),
        (("1", "--json", "[]"), "--json gives all arguments"),
        (("--json", "5"), "write an object of named arguments, or a list"),
        (("--jitter", "soon"), "is not a duration"),
        (("--start", "tomorrow"), "is not a moment with a time zone"),
        (("--app", "nothing:app"), "no module is named nothing"),
    ],
)
async def test_an_invalid_schedule_is_reported_in_one_line(
    jsq: Command, words: tuple[str, ...], message: str
) -> None:
    ended = await jsq("schedule", "add", "x", "any", "--every", "5s", *words)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err
    assert "Traceback" not in ended.err


async def test_provision_stores_the_schedules_that_the_app_declares(jsq: Command, client: Client) -> None:
    jsq.write("shop.py", DECLARED)
    jsq.write("gone.py", DECLARED.replace('@app.cron("0 3', '#("0 3'))

    missing = await jsq("provision", "shop:app", "--check")
    assert missing.code == 1
    assert {"what": "schedule nightly-eu", "how": "missing"} in missing.lines
    assert (await jsq("provision", "shop:app")).code == 0
    assert (await jsq("provision", "shop:app", "--check")).code == 0
    [known] = (await jsq("schedule", "ls")).lines
    assert (known["queue"], known["declared"]) == ("reports", "jsq")

    taken = await jsq("schedule", "add", "nightly-eu", "any", "--every", "5s")
    assert (taken.code, "change it in the App jsq" in taken.err) == (2, True)
    by_app = await jsq("schedule", "add", "ours", "nightly", "us", "--every", "5s", "--app", "shop:app")
    assert (by_app.json["queue"], by_app.json["arguments"]) == ("reports", {"region": "us"})
    wrong = await jsq("schedule", "add", "ours", "nightly", "--every", "5s", "--app", "shop:app")
    assert (wrong.code, "missing a required argument" in wrong.err) == (2, True)

    removed = await jsq("provision", "gone:app")
    assert {"what": "schedule nightly-eu", "how": "not declared any more: an orphan"} in removed.lines
    assert [one["name"] for one in (await jsq("schedule", "ls")).lines] == ["ours"]
