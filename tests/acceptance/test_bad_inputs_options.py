"""Bad inputs 31 to 39: options that say when, how often and for how long a job runs."""

import math
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from jsq import App, BadOption, Client, Retry, Snooze
from jsq.errors import display
from jsq.model.retry import Backoff
from tests.acceptance.bad_inputs import mentions, row, rows, stored
from tests.acceptance.conftest import Command
from tests.helpers.workers import Working

BERLIN = ZoneInfo("Europe/Berlin")


def option_functions(app: App, client: Client) -> list[Any]:
    """The two functions that accept options of a submit: of a task by its name, and of a declared task."""
    return [client.task("any").options, app.task(name="any")(lambda: None).options]


# -- delays and due times -------------------------------------------------------------------------------


@rows(
    {
        "31-negative": -1,
        "31-no-number": math.nan,
        "31-thirty-thousand-years": 10**12,
        "31-infinite": math.inf,
        "31-negative-timedelta": timedelta(seconds=-1),
        "31-longest-timedelta": timedelta.max,
        "31-text": "soon",
        "31-true": True,
    }
)
async def test_an_invalid_delay_is_refused(app: App, client: Client, given: Any) -> None:
    for call in (*option_functions(app, client), Retry, Snooze):
        with pytest.raises(BadOption) as caught:
            call(delay=given)
        assert caught.value.field == "delay"
        assert mentions(caught, "must be 0 to 31622400 seconds, a timedelta, or text such as 30s")
    assert await stored(client) == 0


@row("31-at-the-command-line")
async def test_an_invalid_delay_on_the_command_line_is_refused(client: Client, jsq: Command) -> None:
    ended = await jsq("submit", "any", "--delay=999999999999d")
    assert (ended.code, ended.out, len(ended.err.splitlines())) == (2, "", 1)
    assert "delay must be 0 to 31622400 seconds, a timedelta" in ended.err
    assert await stored(client) == 0


@rows(
    {
        "32-past": datetime(2000, 1, 1, tzinfo=UTC),
        "32-long-past": datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
    }
)
async def test_a_job_due_in_the_past_starts_at_once(app: App, working: Working, given: datetime) -> None:
    @app.task
    async def soon() -> str:
        return "now"

    async with working():
        job = await soon.options(at=given).submit()
        assert await job.result(60) == "now"


@rows(
    {
        "32-naive": (datetime(2030, 1, 1), "with a time zone"),
        "32-year-9999": (datetime(9999, 1, 1, tzinfo=UTC), "at most 366 days ahead"),
        "32-last-moment": (
            datetime.max.replace(tzinfo=timezone(timedelta(hours=-12))),
            "at most 366 days ahead",
        ),
        "32-seconds": (time.time() + 60, "with a time zone"),
        "32-text": ("2030-01-01T00:00Z", "with a time zone"),
    }
)
async def test_an_invalid_due_time_is_refused(app: App, client: Client, given: tuple[Any, str]) -> None:
    at, limit = given
    for options in option_functions(app, client):
        with pytest.raises(BadOption) as caught:
            options(at=at)
        assert mentions(caught, "at must ", display(at)[:100], limit)
    with pytest.raises(BadOption, match="at must not be combined with delay"):
        client.task("any").options(delay=1, at=datetime.now(UTC))
    assert await stored(client) == 0


def clock_change(month: int) -> datetime:
    """Half past two in the next night with a clock change in Berlin: a time that occurs never or twice."""
    now = datetime.now(BERLIN)
    days = (
        datetime(year, month, day, 2, 30, tzinfo=BERLIN)
        for year in (now.year, now.year + 1)
        for day in range(25, 32)
    )
    return next(day for day in days if day.weekday() == 6 and day > now)


@rows({"32-gap": (3, 0), "32-overlap-first": (10, 0), "32-overlap-second": (10, 1)})
async def test_a_due_time_within_a_clock_change_is_read_as_python_reads_it(
    client: Client, given: tuple[int, int]
) -> None:
    month, fold = given
    at = clock_change(month).replace(fold=fold)
    before = timedelta(hours=1 if month == 3 or fold else 2)

    job = await client.task("any").options(at=at).submit()

    found = await job.status()
    assert found.state == "scheduled"
    assert found.due == at.astimezone(UTC) == at.replace(tzinfo=UTC) - before


# -- schedules ------------------------------------------------------------------------------------------


@rows(
    {
        "33-four-fields": (
            {"cron": "* * * *"},
            "cron",
            "six with the seconds first, got '* * * *'; it has 4",
        ),
        "33-minute-61": ({"cron": "61 * * * *"}, "cron", "it has a wrong minute"),
        "33-30-february": ({"cron": "* * 30 2 *"}, "cron", "it has a wrong day-of-month"),
        "33-never": ({"cron": "0 0 */5 2 MON#5"}, "cron", "must match at least one date"),
        "33-step-0": ({"cron": "*/0 * * * *"}, "cron", "it has a wrong minute"),
        "33-10-kb": ({"cron": "1," * 5_000}, "cron", "must have 256 characters at most"),
        "33-10-kb-of-spaces": ({"cron": " " * 10_000}, "cron", "must be text such as"),
        "33-digits-of-another-alphabet": ({"cron": "\u0661 * * * *"}, "cron", "must be text such as"),
        "34-mars": ({"cron": "@daily", "tz": "Mars/Phobos"}, "tz", "such as Europe/Berlin"),
        "34-path": ({"cron": "@daily", "tz": "../../etc/passwd"}, "tz", "such as Europe/Berlin"),
        "34-nul": ({"cron": "@daily", "tz": "a\0b"}, "tz", "such as Europe/Berlin"),
        "34-folder": ({"cron": "@daily", "tz": "Europe"}, "tz", "such as Europe/Berlin"),
        "35-tenth-of-a-second": ({"every": 0.1}, "every", "must be 1 to 31622400 seconds"),
        "35-tenth-of-a-second-as-text": ({"every": "100ms"}, "every", "must be 1 to 31622400 seconds"),
        "35-negative": ({"every": timedelta(seconds=-1)}, "every", "must be 1 to 31622400 seconds"),
        "35-no-number": ({"every": math.nan}, "every", "must be 1 to 31622400 seconds"),
    }
)
async def test_an_invalid_schedule_is_refused(
    app: App, client: Client, given: tuple[dict[str, Any], str, str]
) -> None:
    terms, field, message = given

    async def declare(name: str, task: str, **terms: Any) -> None:
        app.schedule(name, task, **terms)

    async def decorate(name: str, task: str, **terms: Any) -> None:
        kind = "cron" if "cron" in terms else "every"
        getattr(app, kind)(
            terms.pop(kind), name=name, **terms
        )  # refused before the decorator receives a function

    for act in (declare, decorate, client.schedules.add):
        began = time.process_time()
        with pytest.raises(BadOption) as caught:
            await act("nightly", "any", **terms)
        assert time.process_time() - began < 0.05
        assert caught.value.field == field
        assert mentions(caught, f"{field} must ", f"got {repr(terms[field])[:100]}", message)
    assert app.schedules == {}
    assert await stored(client) == 0


@rows(
    {
        "33-typed-four-fields": (("--cron", "* * * *"), "cron must "),
        "33-typed-10-kb": (("--cron", "1," * 5_000), "must have 256 characters at most"),
        "34-typed-mars": (("--cron", "@daily", "--tz", "Mars/Phobos"), "tz must "),
        "34-typed-path": (
            ("--cron", "@daily", "--tz", "../../etc/passwd"),
            "tz must ",
        ),
        "35-typed": (("--every", "0.1s"), "every must "),
        "35-typed-nothing": ((), "give --cron or --every, one of the two"),
    }
)
async def test_an_invalid_schedule_on_the_command_line_is_refused(
    client: Client, jsq: Command, given: tuple[tuple[str, ...], str]
) -> None:
    words, message = given
    ended = await jsq("schedule", "add", "nightly", "any", *words)
    assert (ended.code, ended.out, len(ended.err.splitlines())) == (2, "", 1)
    assert message in ended.err
    assert await stored(client) == 0


# -- priority, timeout and retries ----------------------------------------------------------------------


@rows(
    {"36-number": 99, "36-other-word": "urgent", "36-capitals": "HIGH", "36-true": True, "36-list": ["high"]}
)
async def test_an_invalid_priority_is_refused(app: App, client: Client, given: Any) -> None:
    for options in (*option_functions(app, client), app.task):
        with pytest.raises(BadOption) as caught:
            options(priority=given)
        assert caught.value.field == "priority"
        assert mentions(caught, "priority must ", f"got {given!r}", "must be one of high, normal, low")
    assert await stored(client) == 0


@row("36-word")
async def test_a_priority_is_given_by_name(client: Client) -> None:
    await client.task("any").options(priority="high").submit()
    [stats] = await client.queues.stats()
    assert stats.waiting == {"high": 1, "normal": 0, "low": 0}


@rows({"37-zero": 0, "37-negative": -1, "37-text": "soon", "37-a-nanosecond": 1e-9, "37-no-number": math.nan})
async def test_an_invalid_timeout_is_refused(app: App, client: Client, given: Any) -> None:
    for options in (*option_functions(app, client), app.task):
        with pytest.raises(BadOption) as caught:
            options(timeout=given)
        assert caught.value.field == "timeout"
        assert mentions(caught, "timeout must ", f"got {given!r}", "must be 0.001 to 31622400 seconds")
    with pytest.raises(BadOption, match="hard_timeout must "):
        app.task(hard_timeout=given)
    assert await stored(client) == 0


@row("37-typed-with-a-unit")
async def test_a_timeout_on_the_command_line_may_have_a_unit(client: Client, jsq: Command) -> None:
    refused = await jsq("submit", "any", "--timeout=0.5ms")
    assert (refused.code, "timeout must " in refused.err) == (2, True)
    assert await stored(client) == 0
    assert (await jsq("submit", "any", "--timeout", "5m")).code == 0
    assert await stored(client) > 0


@rows({"38-negative": -1, "38-billion": 10**9, "38-true": True, "38-half": 1.5, "38-text": "3"})
async def test_an_invalid_retry_count_is_refused(app: App, client: Client, given: Any) -> None:
    for options in (*option_functions(app, client), app.task):
        with pytest.raises(BadOption) as caught:
            options(retries=given)
        assert caught.value.field == "retries"
        assert mentions(caught, "retries must ", f"got {given!r}", "must be a whole number from 0 to 1000")
    assert await stored(client) == 0


@row("38-zero")
async def test_zero_retries_mean_one_attempt_and_crashes_have_their_own_limit(
    app: App, working: Working
) -> None:
    runs: list[int] = []

    @app.task(retries=0)
    async def fails() -> None:
        runs.append(1)
        raise ValueError("once")

    async with working():
        job = await fails.submit()
        assert (await job.wait(10)).state == "failed"
    assert runs == [1]
    for wrong in (0, -1, 10**9):
        with pytest.raises(BadOption, match=f"max_crashes must .*got {wrong}"):
            app.queue("some", max_crashes=wrong)
    assert app.declared == {}


@rows(
    {
        "39-base-0": ({"base": 0}, "backoff base must be a number from 0.001"),
        "39-base-negative": ({"base": -1}, "backoff base must "),
        "39-ceiling-below-base": (
            {"base": 10, "ceiling": 5},
            "backoff ceiling must be a number from 10",
        ),
        "39-shrinking": ({"factor": 0.5}, "backoff factor must be a number from 1 to 100"),
        "39-no-number": ({"base": math.nan}, "backoff base must "),
        "39-other-shape": (
            {"shape": "random"},
            "backoff must be none, linear, exponential",
        ),
        "39-negative-step": ({"steps": (1, -1)}, "backoff must "),
    }
)
def test_an_invalid_backoff_is_refused(given: tuple[dict[str, Any], str]) -> None:
    fields, message = given
    with pytest.raises(BadOption) as caught:
        Backoff(**fields)
    assert mentions(caught, message)


@rows({"39-no-wait-given": [], "39-number": 5, "39-steps-of-text": ["soon"], "39-too-many": [1] * 1_001})
async def test_an_invalid_backoff_on_the_command_line_is_refused(
    app: App, client: Client, given: Any
) -> None:
    for options in (*option_functions(app, client), app.task):
        with pytest.raises(BadOption) as caught:
            options(backoff=given)
        assert mentions(caught, "backoff must ")
    assert await stored(client) == 0


@rows(
    {
        "39-jitter-above-1": 2,
        "39-jitter-below-0": -0.1,
        "39-jitter-nan": math.nan,
        "39-jitter-text": "full",
    }
)
async def test_an_invalid_jitter_is_refused(app: App, client: Client, given: Any) -> None:
    message = "must be True, False or a number from 0 to 1"
    with pytest.raises(BadOption) as caught:
        Backoff(jitter=given)
    assert mentions(caught, "jitter must ", f"got {given!r}", message)
    for options in (*option_functions(app, client), app.task):
        with pytest.raises(BadOption) as caught:
            options(backoff="linear", jitter=given)
        assert mentions(caught, "jitter must ", f"got {given!r}", message)
    assert await stored(client) == 0


@rows({"39-max-0": 0, "39-max-negative": -1, "39-max-nan": math.nan, "39-max-text": "soon"})
async def test_an_invalid_backoff_max_is_refused(app: App, client: Client, given: Any) -> None:
    for options in (*option_functions(app, client), app.task):
        with pytest.raises(BadOption) as caught:
            options(backoff="linear", backoff_max=given)
        assert mentions(caught, "backoff_max must ", f"got {given!r}", "must be 0.001 to 31622400 seconds")
    assert await stored(client) == 0


@row("39-max-below-base")
async def test_a_backoff_max_below_the_base_is_refused(app: App, client: Client) -> None:
    for options in (*option_functions(app, client), app.task):
        with pytest.raises(BadOption) as caught:
            options(backoff=Backoff(base=10), backoff_max=5)
        assert mentions(caught, "backoff_max must ", "must not be below the base of the backoff, 10 s")
    assert await stored(client) == 0


@rows({"38-window-0": 0, "38-window-negative": -1, "38-window-nan": math.nan, "38-window-text": "soon"})
async def test_an_invalid_retry_window_is_refused(app: App, client: Client, given: Any) -> None:
    for options in (*option_functions(app, client), app.task):
        with pytest.raises(BadOption) as caught:
            options(retry_for=given)
        assert mentions(caught, "retry_for must ", f"got {given!r}", "must be 0.001 to 31622400 seconds")
    assert await stored(client) == 0


@rows(
    {
        "38-window-naive": (datetime(2030, 1, 1), "must be a datetime with a time zone"),
        "38-window-passed": (datetime(2020, 1, 1, tzinfo=UTC), "must be in the future"),
        "38-window-year-9999": (datetime(9999, 1, 1, tzinfo=UTC), "must be at most 366 days ahead"),
    }
)
async def test_an_invalid_end_of_a_retry_window_is_refused(
    app: App, client: Client, given: tuple[datetime, str]
) -> None:
    moment, message = given
    for options in option_functions(app, client):
        with pytest.raises(BadOption) as caught:
            options(retry_for=moment)
        assert mentions(caught, "retry_for must ", f"got {display(moment)}", message)
    assert await stored(client) == 0


@row("38-endless")
def test_retries_without_a_count_or_a_window_are_refused(app: App) -> None:
    with pytest.raises(BadOption) as caught:
        app.task(retries=None)
    assert mentions(caught, "retries must be a number unless retry_for ends the retries", "got None")
    assert app.tasks == {}
