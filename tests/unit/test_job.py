"""The names, ids and options of a job."""

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jsq.codec import envelope
from jsq.codec.envelope import new_id
from jsq.errors import BadName, BadOption
from jsq.model.durations import MAX_DURATION
from jsq.model.job import (
    PRIORITIES,
    RESERVED_QUEUES,
    Job,
    JobRecord,
    check_id,
    check_namespace,
    check_queue,
    check_task,
)
from jsq.model.options import MAX_HEADER_BYTES, MAX_HEADERS, MAX_TAGS, Options, parse_options, read_options
from tests.helpers.examples import examples

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)

HOSTILE = [
    "",
    "a.b",
    "*",
    ">",
    "a b",
    "a\r\nPUB x 0",
    "a\x00",
    "a" * 300,
    "%s",
    "a%b",
    "é",
    "\uff41",
    "a\u200f",
    "_x",
    "-x",
    "$JS",
    "..",
    "a/b",
    "a\n",
    "\U0001f600",
    "\ud800",
    None,
    5,
    b"default",
]
"""Values that are not valid names."""


# -- names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [check_queue, check_namespace])
@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_hostile_name_is_refused_with_the_rule(check: Callable[[str], str], name: Any) -> None:
    with pytest.raises(BadName, match=r"name must be .*letters, digits") as refused:
        check(name)

    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("name", ["default", "q", "Q", "0", "a-b_c", "a" * 64])
def test_a_plain_name_is_accepted_unchanged(name: str) -> None:
    assert check_queue(name) == name
    assert check_id(name) == name


@pytest.mark.parametrize("name", sorted(RESERVED_QUEUES))
def test_a_reserved_name_may_be_an_id_but_not_a_queue(name: str) -> None:
    with pytest.raises(BadName, match="reserved name"):
        check_queue(name)

    assert check_id(name) == name


@pytest.mark.parametrize("name", ["a" * 65, "a" * 1_000_000], ids=len)
def test_a_long_name_is_refused(name: str) -> None:
    with pytest.raises(BadName):
        check_queue(name)


@pytest.mark.parametrize("name", ["Jsq", "a_b", "a" * 33, "a.b"])
def test_a_namespace_is_lower_case_and_short(name: str) -> None:
    with pytest.raises(BadName, match="lower case"):
        check_namespace(name)


@pytest.mark.parametrize("name", ["mail", "emails.send", "os.system", "__import__", "a.b-c.d_e", "a" * 128])
def test_a_task_may_be_named_by_parts(name: str) -> None:
    assert check_task(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "a.", ".a", "a..b", "a b", "<lambda>", "f.<locals>.g", "a/b", "*", "é", "a" * 129, None]
)
def test_an_invalid_task_name_is_refused(name: Any) -> None:
    with pytest.raises(BadName, match="task name must"):
        check_task(name)


# -- ids -----------------------------------------------------------------------------------------------------


def test_a_new_id_is_a_name() -> None:
    id = new_id()

    assert check_id(id) == id
    assert re.fullmatch(r"[0-9a-v]{26}", id)


def test_new_ids_are_unique() -> None:
    assert len({new_id() for _ in range(20_000)}) == 20_000


@examples(60)
@given(moments=st.lists(st.integers(0, 2**48 - 1), min_size=2, max_size=10, unique=True))
def test_ids_sort_by_their_creation_time(moments: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        made = []
        for moment in moments:
            patch.setattr(time, "time_ns", lambda moment=moment: moment * 1_000_000)
            made.append((moment, new_id()))

    assert [id for _, id in sorted(made)] == sorted(id for _, id in made)


# -- options -------------------------------------------------------------------------------------------------


def test_without_options_the_task_decides() -> None:
    assert Options().due(NOW) is None
    assert Options().queue is None


@pytest.mark.parametrize("name", [name for name in HOSTILE if name is not None], ids=ascii)
def test_options_check_the_names_they_carry(name: Any) -> None:
    with pytest.raises(BadName):
        Options(queue=name)


@pytest.mark.parametrize("id", ["", "a\n", "a\u200f", "a" * 129, "\ud800", 5, b"default"], ids=ascii)
def test_options_check_the_id_they_carry(id: Any) -> None:
    with pytest.raises(BadName, match="job id must be printable text of 1 to 128 characters"):
        Options(id=id)


@pytest.mark.parametrize(
    "delay", [-1, -0.001, float("nan"), float("inf"), 10**12, "soon", True, [1]], ids=repr
)
@pytest.mark.parametrize("field", ["delay", "timeout", "keep_result", "wait_for_room"])
def test_an_out_of_range_duration_is_refused(field: str, delay: Any) -> None:
    with pytest.raises(BadOption, match=f"{field} must "):
        Options(**{field: delay})


@pytest.mark.parametrize("timeout", [0, 1e-9, "0s", "soon"])
def test_a_timeout_must_leave_some_time(timeout: Any) -> None:
    with pytest.raises(BadOption, match="timeout must "):
        Options(timeout=timeout)


def test_a_user_may_write_durations_as_timedelta() -> None:
    options = parse_options(
        delay=timedelta(minutes=1), timeout=timedelta(seconds=2), keep_result=timedelta(0)
    )

    assert (options.delay, options.timeout, options.keep_result) == (60.0, 2.0, 0.0)


@pytest.mark.parametrize("priority", [99, "HIGH", "", True, ["high"]], ids=repr)
def test_a_priority_is_one_of_three(priority: Any) -> None:
    with pytest.raises(BadOption, match=r"priority must be one of high, normal, low"):
        Options(priority=priority)


def test_high_is_served_before_normal_before_low() -> None:
    assert PRIORITIES == ("high", "normal", "low")


@pytest.mark.parametrize("retries", [-1, 10**9, 1.5, "3", True])
def test_an_invalid_number_of_retries_is_refused(retries: Any) -> None:
    with pytest.raises(BadOption, match="retries must "):
        Options(retries=retries)


def test_delay_and_at_together_are_refused() -> None:
    with pytest.raises(BadOption, match="at must not be combined with delay"):
        Options(delay=1, at=NOW)


# -- due times -----------------------------------------------------------------------------------------------


class Nowhere(tzinfo):
    """A time zone without an offset."""

    def utcoffset(self, at: datetime | None) -> None:
        return None

    def dst(self, at: datetime | None) -> None:
        return None

    def tzname(self, at: datetime | None) -> str:
        return "nowhere"


def test_a_delay_is_due_from_now() -> None:
    assert Options(delay=60).due(NOW) == NOW + timedelta(minutes=1)


def test_a_delay_of_zero_is_due_at_once() -> None:
    assert Options(delay=0).due(NOW) is None


def test_a_time_in_the_past_is_due_at_once() -> None:
    assert Options(at=NOW - timedelta(days=1)).due(NOW) is None
    assert Options(at=datetime.min.replace(tzinfo=UTC)).due(NOW) is None
    assert Options(at=datetime.min.replace(tzinfo=timezone(timedelta(hours=14)))).due(NOW) is None


def test_a_time_in_another_zone_is_converted_to_utc() -> None:
    at = datetime(2026, 7, 1, 16, tzinfo=timezone(timedelta(hours=2)))

    due = Options(at=at).due(NOW)

    assert due == at
    assert due is not None
    assert due.tzinfo is UTC


@pytest.mark.parametrize(
    "at",
    [datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=Nowhere()), "2026-01-01", 1_800_000_000, NOW.date()],
    ids=["no zone", "a zone that does not say", "text", "a number", "a date"],
)
def test_a_time_without_a_time_zone_is_refused(at: Any) -> None:
    with pytest.raises(BadOption, match="must be a datetime with a time zone"):
        Options(at=at)


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=-12)), timezone(timedelta(hours=14))])
def test_a_time_too_far_ahead_is_refused(zone: tzinfo) -> None:
    with pytest.raises(BadOption, match="at most 366 days ahead"):
        read_options(NOW, at=datetime.max.replace(tzinfo=zone))


def test_a_time_within_a_clock_change_is_read_as_python_reads_it() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    winter = datetime(2026, 1, 1, tzinfo=UTC)
    left_out = datetime(2026, 3, 29, 2, 30, tzinfo=berlin)
    shown_twice = datetime(2026, 10, 25, 2, 30, tzinfo=berlin)

    assert Options(at=left_out).due(winter) == datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
    assert Options(at=shown_twice).due(winter) == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    assert Options(at=shown_twice.replace(fold=1)).due(winter) == datetime(2026, 10, 25, 1, 30, tzinfo=UTC)


# -- headers and tags ----------------------------------------------------------------------------------------


def test_headers_and_tags_may_be_of_any_script() -> None:
    options = Options(headers={"Who": "Żółw 🐢", "Empty": ""}, tags=("münchen", "東京"))

    assert options.headers["Who"] == "Żółw 🐢"


@pytest.mark.parametrize("name", ["A:B", "", "a b", "a\r\nb", "é", "-a", "a" * 65, "a.b", 5, None], ids=repr)
def test_a_header_name_that_cannot_be_sent_is_refused(name: Any) -> None:
    with pytest.raises(BadName, match="header name must"):
        Options(headers={name: "x"})


@pytest.mark.parametrize(
    "name",
    [
        "Nats-Rollup",
        "Nats-Msg-Id",
        "Nats-TTL",
        "Nats-Schedule",
        "nats-expected-stream",
        "JSQ-Job",
        "jsq-attempts",
    ],
)
def test_headers_of_the_server_and_of_jsq_are_reserved(name: str) -> None:
    with pytest.raises(BadName, match="reserved"):
        Options(headers={name: "all"})


@pytest.mark.parametrize(
    "value", ["a\r\nNats-TTL: 1s", "a\nb", "\x00", "\x7f", "\ud800", "\u202e", 5, None], ids=ascii
)
def test_a_header_value_must_be_one_line_of_text(value: Any) -> None:
    with pytest.raises(BadOption, match="header X-A must be"):
        Options(headers={"X-A": value})


@pytest.mark.parametrize("headers", ["a=b", [("a", "b")], 5], ids=repr)
def test_headers_that_are_not_a_mapping_are_refused(headers: Any) -> None:
    with pytest.raises(BadOption, match=r"headers must map names to values"):
        Options(headers=headers)


def test_too_many_headers_are_refused() -> None:
    with pytest.raises(BadOption, match="64 at most"):
        Options(headers={f"h{n}": "" for n in range(MAX_HEADERS + 1)})


@pytest.mark.parametrize("character", ["x", "é", "🐢", '"'])
def test_headers_are_measured_as_they_are_sent(character: str) -> None:
    with pytest.raises(BadOption, match="16384 bytes at most"):
        Options(headers={"big": character * MAX_HEADER_BYTES})

    largest = character * ((MAX_HEADER_BYTES - 20) // 12)
    sealed = envelope.encode(Job("j1", "mail", headers=Options(headers={"big": largest}).headers))

    assert sum(len(value) for value in sealed.values()) < MAX_HEADER_BYTES + 200


def test_escapes_count_towards_the_size_of_headers() -> None:
    with pytest.raises(BadOption, match="headers must take 16384 bytes at most, got '48"):
        Options(headers={"X-A": "é" * 8_000})


def test_the_largest_options_fit_into_the_headers_of_a_message() -> None:
    options = parse_options(
        headers={f"h{n}": "🐢" * 20 for n in range(60)},
        tags=[f"{n:02}" + "🐢" * 62 for n in range(MAX_TAGS)],
        backoff=[0.1 + n / 3 for n in range(1_000)],
    )

    sealed = envelope.encode(
        Job("j1", "a" * 128, headers=options.headers, tags=options.tags, backoff=options.backoff)
    )

    assert sum(len(name) + len(value) for name, value in sealed.items()) < 64 * 1024


@pytest.mark.parametrize("tag", ["", "a" * 65, "a\nb", "\x1b[2J", "\u202e", "\ud800", 5, None], ids=ascii)
def test_a_tag_must_be_one_line_of_text(tag: Any) -> None:
    with pytest.raises(BadOption, match="tags must be printable texts"):
        Options(tags=(tag,))


@pytest.mark.parametrize("tags", ["urgent", ["a"] * (MAX_TAGS + 1)], ids=["a string", "too many"])
def test_tags_are_a_short_list(tags: Any) -> None:
    with pytest.raises(BadOption, match="must be a list of 20 tags at most"):
        Options(tags=tags)


# -- the job -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("failures", "crashes", "attempt"), [(0, 0, 1), (2, 0, 3), (2, 1, 4)])
def test_the_attempt_number_counts_failures_and_crashes(failures: int, crashes: int, attempt: int) -> None:
    assert Job("j1", "mail", failures=failures, crashes=crashes).attempt == attempt


def test_a_year_and_a_day_is_the_longest_delay() -> None:
    assert Options(delay=MAX_DURATION).due(NOW) == NOW + timedelta(days=366)


@pytest.mark.parametrize(
    ("state", "due", "first", "waited"),
    [
        ("succeeded", None, None, 9.0),
        ("succeeded", None, 2.0, 2.0),
        ("running", None, 2.0, 2.0),
        ("retrying", 60.0, None, 9.0),
    ],
)
def test_a_record_shows_how_long_a_job_waited_for_its_first_start(
    state: str, due: float | None, first: float | None, waited: float
) -> None:
    submitted = datetime(2026, 11, 30, tzinfo=UTC)
    started = submitted + timedelta(seconds=9)

    def after(seconds: float | None) -> datetime | None:
        return None if seconds is None else submitted + timedelta(seconds=seconds)

    record = JobRecord(
        "a", "mail", state, due=after(due), submitted=submitted, started=started, first_started=after(first)
    )
    assert record.waited == waited
    assert JobRecord("a", "mail", "scheduled", due=after(due), submitted=submitted).waited is None
