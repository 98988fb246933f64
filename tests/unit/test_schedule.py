"""The ticks of a schedule, and the decisions about due ticks: pure functions with fixed times."""

import itertools
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jsq.codec import schedules
from jsq.errors import BadEnvelope, BadName, BadOption, NewerEnvelope
from jsq.model.job import Job
from jsq.model.retry import build_backoff
from jsq.model.schedule import (
    EPOCH,
    MAX_CATCH_UP,
    NICKNAMES,
    Schedule,
    ScheduleState,
    carry_over,
    due_ticks,
    judge_tick,
    read_every,
    read_schedule,
    schedule_differences,
    tick_id,
    tick_job,
)
from tests.helpers.examples import examples

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
JOB = Job("", "report")
BERLIN, NEW_YORK = "Europe/Berlin", "America/New_York"


def schedule(**terms: Any) -> Schedule:
    return Schedule(terms.pop("name", "nightly"), terms.pop("job", JOB), **terms)


def ticks(found: Schedule, after: datetime, count: int) -> list[str]:
    """The next ticks in local time of the schedule."""
    coming = itertools.islice(found.next_ticks(after), count)
    return [f"{tick.astimezone(found.zone):%d %H:%M:%S%z}" for tick in coming]


# -- clock changes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tz", "cron", "day", "expected"),
    [
        # Spring: ticks within the gap come right after it, once.
        (BERLIN, "30 2 * * *", "2026-03-29", ["29 03:00:00+0200", "30 02:30:00+0200"]),
        (BERLIN, "0,30 2 * * *", "2026-03-29", ["29 03:00:00+0200", "30 02:00:00+0200"]),
        (BERLIN, "30 1 * * *", "2026-03-29", ["29 01:30:00+0100", "30 01:30:00+0200"]),
        (BERLIN, "30 * * * *", "2026-03-29", ["29 00:30:00+0100", "29 01:30:00+0100", "29 03:30:00+0200"]),
        (BERLIN, "0 30 2 * * *", "2026-03-29", ["30 02:30:00+0200", "31 02:30:00+0200"]),
        (NEW_YORK, "30 2 * * *", "2026-03-08", ["08 03:00:00-0400", "09 02:30:00-0400"]),
        (
            NEW_YORK,
            "*/30 1-3 * * *",
            "2026-03-08",
            ["08 01:00:00-0500", "08 01:30:00-0500", "08 03:00:00-0400"],
        ),
        # Autumn: a named hour ticks once in the repeated hour; an interval ticks in both.
        (BERLIN, "30 2 * * *", "2026-10-25", ["25 02:30:00+0200", "26 02:30:00+0100"]),
        (
            BERLIN,
            "30 * * * *",
            "2026-10-25",
            [
                "25 00:30:00+0200",
                "25 01:30:00+0200",
                "25 02:30:00+0200",
                "25 02:30:00+0100",
                "25 03:30:00+0100",
            ],
        ),
        (BERLIN, "0 30 2 * * *", "2026-10-25", ["25 02:30:00+0200", "25 02:30:00+0100", "26 02:30:00+0100"]),
        (NEW_YORK, "30 1 * * *", "2026-11-01", ["01 01:30:00-0400", "02 01:30:00-0500"]),
        (
            NEW_YORK,
            "*/30 * * * *",
            "2026-11-01",
            [
                "01 00:00:00-0400",
                "01 00:30:00-0400",
                "01 01:00:00-0400",
                "01 01:30:00-0400",
                "01 01:00:00-0500",
                "01 01:30:00-0500",
                "01 02:00:00-0500",
            ],
        ),
    ],
)
def test_a_clock_change_neither_skips_nor_repeats_a_tick(
    tz: str, cron: str, day: str, expected: list[str]
) -> None:
    midnight = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(tz))

    assert ticks(schedule(cron=cron, tz=tz), midnight - timedelta(seconds=1), len(expected)) == expected


@given(
    st.sampled_from(["30 2 * * *", "*/30 * * * *", "15,45 1-3 * * *", "0 */20 * * * *", "0 30 2 * * *"]),
    st.sampled_from([BERLIN, NEW_YORK, "UTC", "Australia/Lord_Howe"]),
    st.sampled_from(
        [datetime(2026, 3, 8), datetime(2026, 3, 29), datetime(2026, 10, 25), datetime(2026, 11, 1)]
    ),
    st.integers(0, 2 * 86_400),
)
@examples(150)
def test_the_ticks_after_a_time_do_not_depend_on_where_the_search_starts(
    cron: str, tz: str, day: datetime, seconds: int
) -> None:
    found = schedule(cron=cron, tz=tz)
    start = day.replace(tzinfo=UTC) - timedelta(days=1)
    moment = start + timedelta(seconds=seconds)

    walked = list(itertools.takewhile(lambda t: t < start + timedelta(days=4), found.next_ticks(start)))

    assert walked == sorted(set(walked))
    assert found.next_tick(moment) == next(tick for tick in walked if tick > moment)
    assert found.latest_due(start, moment) == max((tick for tick in walked if tick <= moment), default=None)


# -- times of ticks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NICKNAMES)
def test_a_nickname_is_replaced_by_its_cron_expression(name: str) -> None:
    found = read_schedule("x", "report", b"", cron=name.upper())

    assert found.cron == NICKNAMES[name]
    assert found.next_tick(NOON) is not None


def test_in_six_fields_the_first_is_the_second() -> None:
    found = schedule(cron="*/20 30 12 * * *")

    assert ticks(found, NOON, 4) == [
        *("01 12:30:00+0000", "01 12:30:20+0000", "01 12:30:40+0000"),
        "02 12:30:00+0000",
    ]


def test_intervals_count_from_1970_so_that_restarts_do_not_shift_them() -> None:
    found = schedule(every=90.0)

    for seconds in (0.0, 0.001, 12.5, 89.999):
        assert found.next_tick(NOON + timedelta(seconds=seconds)) == NOON + timedelta(seconds=90)
    assert (found.next_tick(NOON) - EPOCH) % timedelta(seconds=90) == timedelta(0)  # type: ignore[operator]  # it is one


def test_an_interval_with_a_start_counts_from_the_start() -> None:
    start = NOON + timedelta(seconds=7)
    found = schedule(every=60.0, start=start, end=start + timedelta(minutes=2))

    assert list(found.next_ticks(NOON)) == [start + timedelta(minutes=n) for n in range(3)]
    assert found.next_tick(start + timedelta(minutes=2)) is None


def test_a_tick_at_the_start_and_one_at_the_end_count() -> None:
    found = schedule(cron="0 * * * *", start=NOON, end=NOON + timedelta(hours=1))

    assert list(found.next_ticks(NOON - timedelta(days=9))) == [NOON, NOON + timedelta(hours=1)]


def test_the_jitter_of_a_tick_is_fixed_and_within_its_limit() -> None:
    found = schedule(every=60.0, jitter=30.0)
    coming = list(itertools.islice(found.next_ticks(NOON), 200))

    late = [(found.fires_at(tick) - tick).total_seconds() for tick in coming]

    assert late == [
        (schedule(every=60.0, jitter=30.0).fires_at(tick) - tick).total_seconds() for tick in coming
    ]
    assert min(late) < 3 < 27 < max(late) < 30
    other = schedule(name="other", every=60.0, jitter=30.0)
    assert late != [(other.fires_at(tick) - tick).total_seconds() for tick in coming]


@pytest.mark.parametrize("terms", [{"every": 1.0, "jitter": 1.0}, {"cron": "* * 9-17 * * *", "tz": BERLIN}])
def test_the_latest_of_millions_of_missed_ticks_is_found_at_once(terms: dict[str, Any]) -> None:
    found = schedule(**terms)
    began = time.process_time()

    latest = found.latest_due(NOON - timedelta(days=3000), NOON)

    assert time.process_time() - began < 0.25
    assert latest is not None
    assert found.fires_at(latest) <= NOON < found.fires_at(found.next_tick(latest))  # type: ignore[arg-type]  # it is one


# -- due ticks ----------------------------------------------------------------------------------------------

MINUTES = [NOON + timedelta(minutes=n) for n in range(10)]


def minutely(**terms: Any) -> Schedule:
    return schedule(every=60.0, **terms)


def test_of_missed_ticks_the_latest_all_or_none_fire() -> None:
    now = NOON + timedelta(minutes=3, seconds=5)

    assert due_ticks(minutely(), NOON, now) == ((MINUTES[3],), MINUTES[3])
    assert due_ticks(minutely(catch_up="all"), NOON, now) == (tuple(MINUTES[1:4]), MINUTES[3])
    # The last tick is only 5 seconds late, so it does not count as missed.
    assert due_ticks(minutely(catch_up="none"), NOON, now) == ((MINUTES[3],), MINUTES[3])
    hourly = schedule(every=3600.0, catch_up="none")
    assert due_ticks(hourly, NOON, NOON + timedelta(minutes=90)) == ((), NOON + timedelta(hours=1))


def test_before_the_tick_nothing_is_due() -> None:
    for catch_up in ("latest", "all", "none"):
        now = NOON + timedelta(seconds=59.999)
        assert due_ticks(minutely(catch_up=catch_up), NOON, now) == ((), NOON)


def test_a_tick_with_jitter_is_due_when_it_fires() -> None:
    found = minutely(jitter=60.0)
    fires = found.fires_at(MINUTES[1])

    for catch_up in ("latest", "all", "none"):
        one = replace(found, catch_up=catch_up)
        assert due_ticks(one, NOON, fires - timedelta(milliseconds=1)) == ((), NOON)
        assert due_ticks(one, NOON, fires) == ((MINUTES[1],), MINUTES[1])


def test_very_many_missed_ticks_are_fired_in_parts() -> None:
    due, done = due_ticks(schedule(every=1.0, catch_up="all"), NOON, NOON + timedelta(days=1))

    assert len(due) == MAX_CATCH_UP
    assert done == due[-1] == NOON + timedelta(seconds=MAX_CATCH_UP)


@pytest.mark.parametrize(
    ("overlap", "busy", "fires", "skipped"),
    [
        ("queue", True, [1, 2, 3], 0),
        ("queue", False, [1, 2, 3], 0),
        ("skip", True, [], 3),
        ("skip", False, [1], 2),
        ("cancel", True, [3], 2),
        ("cancel", False, [3], 2),
    ],
)
def test_an_overlapping_tick_is_queued_or_skipped_or_replaces_the_job(
    overlap: Any, busy: bool, fires: list[int], skipped: int
) -> None:
    found = minutely(catch_up="all", overlap=overlap)

    decision = judge_tick(found, ScheduleState(NOON, last="before"), MINUTES[3], busy=busy)

    assert decision.ticks == tuple(MINUTES[n] for n in fires)
    assert decision.state.decided_until == MINUTES[3]
    assert (decision.state.fired, decision.state.skipped) == (len(fires), skipped)
    assert decision.state.last == (tick_id("nightly", MINUTES[fires[-1]]) if fires else "before")


def test_a_tick_that_is_decided_twice_has_one_id() -> None:
    at = datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo(BERLIN))

    assert tick_id("nightly", at) == tick_id("nightly", at.astimezone(UTC)) == "nightly-20261025T003000Z"
    assert tick_id("nightly", at.replace(fold=1)) == "nightly-20261025T013000Z"
    assert tick_id("fast", NOON + timedelta(seconds=1.5)) == "fast-20260601T120001500Z"
    assert len(tick_id("n" * 36, NOON + timedelta(seconds=1.5))) <= 64


def test_the_job_of_a_tick_names_its_schedule_and_its_time() -> None:
    job = tick_job(schedule(every=60.0, job=replace(JOB, headers={"a": "b"})), NOON)

    assert job.id == "nightly-20260601T120000Z"
    assert job.headers == {"a": "b", "schedule": "nightly", "tick": "2026-06-01T12:00:00Z"}


def test_only_a_change_of_times_restarts_the_progress_of_a_schedule() -> None:
    old, progress = minutely(), ScheduleState(NOON - timedelta(days=1), fired=3)

    assert carry_over(old, progress, replace(old, job=Job("", "other")), NOON) == progress
    assert carry_over(old, progress, schedule(every=61.0), NOON) == replace(progress, decided_until=NOON)


def test_a_difference_of_schedules_is_described_in_words() -> None:
    old, new = schedule(cron="0 3 * * *"), schedule(every=60.0, job=Job("", "other", retries=1))

    assert schedule_differences(old, old) == []
    assert schedule_differences(old, new) == [
        "cron is 0 3 * * *, should be none",
        "every is none, should be 60.0",
        "its task is report, should be other",
        "its jobs have other arguments or options",
    ]


# -- options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("30s", 30.0),
        ("1h30m", 5400.0),
        ("1.5s", 1.5),
        (1, 1.0),
        (timedelta(days=1), 86_400.0),
        ("2d", 172_800.0),
    ],
)
def test_an_interval_is_seconds_a_timedelta_or_text(written: Any, seconds: float) -> None:
    assert read_every(written) == seconds


@pytest.mark.parametrize(
    ("terms", "field", "message"),
    [
        ({}, "every", "must have either cron or every"),
        ({"cron": "* * * * *", "every": 5}, "every", "must have either cron or every"),
        ({"cron": ""}, "cron", "must be text"),
        ({"cron": 5}, "cron", "must be text"),
        ({"cron": "@reboot"}, "cron", "must be one of @hourly, @daily"),
        ({"cron": "* * * *"}, "cron", "five fields, or six with the seconds first, got '* * * *'; it has 4"),
        ({"cron": "0 0 29 2 * * *"}, "cron", "it has 7"),
        ({"cron": "99 * * * * *"}, "cron", "it has a wrong second"),
        ({"cron": "0 0 31 4,6,9,11 *"}, "cron", "it has a wrong day-of-month"),
        ({"every": True}, "every", "must be 1 to 31622400 seconds"),
        ({"every": "soon"}, "every", "or text such as 30s"),
        ({"every": 0.999}, "every", "must be 1 to 31622400 seconds"),
        ({"every": 10**9}, "every", "must be 1 to 31622400 seconds"),
        ({"every": 5, "jitter": 6}, "jitter", "must not exceed the interval, 5 s"),
        ({"cron": "@daily", "jitter": 3601}, "jitter", "3600 seconds at most"),
        ({"cron": "@daily", "tz": "Europe"}, "tz", "such as Europe/Berlin"),
        ({"cron": "@daily", "tz": "x" * 5000}, "tz", "such as Europe/Berlin"),
        ({"cron": "@daily", "tz": 5}, "tz", "such as Europe/Berlin"),
        ({"every": 5, "catch_up": "some"}, "catch_up", "must be one of latest, all, none"),
        ({"every": 5, "overlap": "maybe"}, "overlap", "must be one of skip, queue, cancel"),
        ({"every": 5, "start": datetime(2026, 1, 1)}, "start", "a datetime with a time zone"),
        ({"every": 5, "start": NOON, "end": NOON - timedelta(1)}, "end", "after the start"),
        ({"every": 5, "delay": 5}, "delay", "must not be set for a schedule"),
        ({"every": 5, "id": "mine"}, "id", "must not be set for a schedule"),
        ({"every": 5, "wait_for_room": 5}, "wait_for_room", "must not be set for a schedule"),
        ({"every": 5, "headers": {"tick": "x"}}, "header tick", "the schedule sets this header"),
        ({"every": 5, "headers": {f"h{n}": "" for n in range(63)}}, "headers", "64 at most"),
        (
            {"every": 5, "deadline": NOON + timedelta(days=200)},
            "deadline",
            "seconds, which count for each job",
        ),
        ({"every": 5, "expires": NOON + timedelta(days=200)}, "expires", "seconds, which count for each job"),
        ({"every": 5, "expires": 0}, "expires", "must be 0.001 to 31622400 seconds"),
        ({"every": 5, "unique": True}, "unique", "use overlap='skip'"),
        ({"every": 5, "unique": "k", "debounce": 5}, "unique", "must not be set for a schedule"),
        ({"every": 5, "priority": "urgent"}, "priority", "high, normal, low"),
        ({"every": 5, "jiter": 5}, "jiter", "is jitter meant?"),
    ],
)
def test_an_invalid_schedule_option_is_refused_by_name(
    terms: dict[str, Any], field: str, message: str
) -> None:
    with pytest.raises(BadOption) as caught:
        read_schedule("x", "report", b"", **terms)

    assert caught.value.field == field
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["", "x" * 101, None, "a\nb"])
def test_a_schedule_name_must_leave_space_for_the_time_of_a_tick(name: Any) -> None:
    with pytest.raises(BadName, match="printable text of 1 to 100 characters"):
        read_schedule(name, "report", b"", every=5)


# -- encoding -----------------------------------------------------------------------------------------------


def test_a_schedule_is_decoded_as_it_was_encoded() -> None:
    job = Job(
        "",
        "report",
        "mail",
        "high",
        b'{"number":12345678901234567890}',
        headers={"a": "\u00fc"},
        tags=("x",),
        retries=1,
        backoff=build_backoff([1, 2]),
        timeout=3.5,
        deadline=60.0,
    )
    full = schedule(
        job=job,
        cron="0 3 * * *",
        tz=BERLIN,
        jitter=1.5,
        catch_up="all",
        overlap="cancel",
        start=NOON + timedelta(microseconds=1),
        end=NOON + timedelta(days=1),
        expires=90.0,
        declared="jsq",
    )
    progress = ScheduleState(NOON, paused=True, last="nightly-1", fired=2, skipped=1)

    for found in (full, schedule(every=1.5)):
        stored = schedules.encode(found, progress)
        again = schedules.decode(stored, name=found.name, queue=found.job.queue)
        assert again == (found, progress)
        assert schedules.encode(*again) == stored


def test_an_invalid_schedule_and_one_of_a_later_release_are_distinguished() -> None:
    stored = schedules.encode(schedule(every=5.0), ScheduleState(NOON))

    with pytest.raises(NewerEnvelope, match="schedule x has version 2"):
        schedules.decode(stored.replace(b'"v":1', b'"v":2'), name="x", queue="default")
    for garbage in (b"", b"[]", b"{}", stored.replace(b"5.0", b"0.5"), stored.replace(b"Jsq-Job", b"X")):
        with pytest.raises(BadEnvelope, match="the value of schedule x is not a schedule"):
            schedules.decode(garbage, name="x", queue="default")
