"""Values as text: without control characters, and unchanged when they are read back."""

import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as some

from jsq.cli.errors import CODES, code_of, describe
from jsq.cli.escaping import json_text, safe, yaml_text
from jsq.cli.events import event_line
from jsq.cli.job_view import job_fields
from jsq.cli.printing import away, cells, cut, document, fit
from jsq.cli.styles import paint
from jsq.cli.waiting import no_worker_reason
from jsq.errors import JobNotFound, ResultTimeout, UsageError, count_noun
from jsq.model.job import JobRecord

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
HOSTILE = "\x1b[31m\r\u202e\x00\x7f\x9b\u2028[red]é\U0001f600"

texts = some.text(some.characters(codec="utf-8"), max_size=20)
values: some.SearchStrategy[Any] = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False) | texts,
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


def test_control_characters_are_escaped_for_a_terminal() -> None:
    assert safe(HOSTILE) == r"\x1b[31m\r\u202e\x00\x7f\x9b\u2028[red]é" + "\U0001f600"
    assert safe("a\nb") == r"a\nb"
    assert safe("a\n\rb", lines=True) == "a\n\\rb"
    assert safe("\ud800") == r"\ud800"


@given(values)
def test_json_has_no_control_characters_and_reads_back(value: object) -> None:
    text = json_text(value, indent=2)
    assert text.replace("\n", "").isprintable()
    assert json.loads(text) == value


@given(values)
def test_yaml_has_no_control_characters_and_reads_back(value: object) -> None:
    text = yaml_text(value)
    assert text.replace("\n", "").isprintable()
    assert yaml.safe_load(text) == value


@pytest.mark.parametrize("key", ["k" * 2_000, "yes", "null", "1", "", "a: b", "- a", "#", "~"])
def test_a_strange_key_reads_back_from_yaml(key: str) -> None:
    values: list[Any] = [1, [1, {"a": []}], {"b": {}}]
    for value in values:
        assert yaml.safe_load(yaml_text({key: value})) == {key: value}


def test_yaml_represents_infinity_and_nan() -> None:
    assert yaml_text([float("inf"), float("-inf"), float("nan")]) == "- .inf\n- -.inf\n- .nan"


def test_a_document_omits_empty_fields_and_includes_a_stored_result() -> None:
    record = JobRecord("a", "default", "succeeded", at=NOW, has_result=True, result=None)
    written = document(record)
    assert written["result"] is None
    assert written["at"] == "2026-01-02T12:00:00Z"
    assert "due" not in written
    assert "error" not in written
    assert "result" not in document(JobRecord("a", "default", "queued"))


def test_a_cell_is_one_line_without_control_characters() -> None:
    record = JobRecord("a", "default", "failed", error=HOSTILE + "\nsecond", tags=("x", "y"))
    shown = cells(record, ("error", "tags", "due"))
    assert all(text.isprintable() for text in shown.values())
    assert shown["tags"] == "x, y"
    assert shown["due"] == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s ago"), (59, "59s ago"), (61, "1m ago"), (7_300, "2h ago"), (-90_000, "in 1d")],
)
def test_a_time_is_shown_by_its_distance_from_now(seconds: float, text: str) -> None:
    assert away(NOW - timedelta(seconds=seconds), NOW) == text


def test_columns_are_cut_from_the_last_one_and_never_the_first() -> None:
    assert fit([26, 9, 60], 100) == [26, 9, 60]
    assert fit([26, 9, 60], 50) == [26, 9, 15]
    assert fit([26, 9, 60], 42) == [26, 8, 8]
    assert fit([26, 9, 60], 41) is None


def test_a_cell_that_was_cut_is_marked() -> None:
    assert cut("ValueError", 10) == "ValueError"
    assert cut("ValueError", 8) == "ValueEr…"
    assert cut("一二三四", 7) == "一二三…"


def test_the_noun_after_a_count_is_singular_or_plural() -> None:
    assert count_noun(1, "job") == "1 job"
    assert count_noun(1_000, "job") == "1,000 jobs"
    assert count_noun(0, "job") == "0 jobs"


def test_the_most_specific_error_class_decides_the_exit_code() -> None:
    assert code_of(JobNotFound("x")) == 5
    assert code_of(UsageError("x")) == 2
    assert code_of(ResultTimeout("x", 1)) == 124
    assert code_of(ValueError("x")) == 1
    for place, (kind, _) in enumerate(CODES):
        assert not any(issubclass(kind, earlier) for earlier, _ in CODES[:place]), kind


def test_an_error_without_a_jsq_class_is_reported_as_internal() -> None:
    text = describe(ZeroDivisionError("by zero"))
    assert text == "internal error: ZeroDivisionError: by zero (JSQ_DEBUG=1 prints the traceback)"


SECRET_FIELDS = ("sequence", "has_result", "has_arguments", "arguments_size", "failures", "interruptions")


def test_a_job_for_people_has_its_arguments_and_times_and_no_internal_fields() -> None:
    ended = NOW + timedelta(seconds=1.5)
    job = JobRecord(
        *("a1", "mail", "failed", "send", 7, ended, 2),
        submitted=NOW,
        started=NOW + timedelta(seconds=1),
        has_arguments=True,
        arguments=[["you"], {"subject": "hi"}],
        options={"retries": 3},
        error="ValueError: no",
    )

    fields = {name: text for name, text in job_fields(job).items() if text}

    assert not fields.keys() & set(SECRET_FIELDS)
    assert fields["arguments"] == '"you", subject="hi"'
    assert fields["attempt"] == "2 of 4"
    assert (fields["submitted"], fields["waited"]) == ("2026-01-02 12:00:00.000Z", "1.000 s")
    assert (fields["ended"], fields["ran"]) == ("2026-01-02 12:00:01.500Z", "0.500 s")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ([1, 2], "[1, 2]"),
        (None, "null"),
        (list(range(3_000)), "3,000 items, 17 KB; jsq job result a1"),
        ({"k" * 300: 1}, "1 field, 307 bytes; jsq job result a1"),
        ("x" * 2_000_000, "2,000,000 characters, 2 MB; jsq job result a1"),
    ],
)
def test_a_long_result_is_replaced_by_its_size(value: object, shown: str) -> None:
    job = JobRecord("a1", "mail", "succeeded", has_result=True, result=value)

    assert job_fields(job)["result"] == shown


def test_arguments_that_the_record_lacks_have_their_size() -> None:
    job = JobRecord("a1", "mail", "succeeded", arguments_size=20_000, arguments_hash="ab")

    assert job_fields(job)["arguments"] == "20 KB, not in the record"


def test_pipes_dumb_terminals_and_users_without_colors_get_plain_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert paint("failed", "failed", Terminal()) == "\x1b[31mfailed\x1b[0m"
    assert paint("other", "other", Terminal()) == "other"
    assert paint("failed", "failed", io.StringIO()) == "failed"
    monkeypatch.setenv("NO_COLOR", "1")
    assert paint("failed", "failed", Terminal()) == "failed"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert paint("failed", "failed", Terminal()) == "failed"


@pytest.mark.parametrize(
    ("workers", "reason"),
    [
        ([], "no live worker serves queue mail"),
        ([{"queues": ["other"], "tasks": ["sendd"]}], "no live worker serves queue mail"),
        (
            [{"queues": ["mail"], "tasks": ["sent", "add"]}],
            "no live worker of queue mail has a task send; is sent meant?",
        ),
        ([{"queues": ["mail"], "tasks": ["send"]}], ""),
        ([{"queues": ["mail"], "tasks": ["sent"], "aliases": ["send"]}], ""),
    ],
)
def test_a_wait_for_a_job_that_no_worker_can_run_has_a_reason(
    workers: list[dict[str, object]], reason: str
) -> None:
    job = JobRecord("a1", "mail", "snoozed", "send", reason="unknown_task")

    assert no_worker_reason(job, workers) == reason


def test_an_event_line_shows_attempt_and_progress() -> None:
    event = JobRecord("a1", "mail", "running", "send", at=NOW, attempt=2, progress=0.25, text="pages")

    assert event_line(event) == "12:00:00.000  running      a1  mail  send  attempt 2  25% pages"
    assert event_line(JobRecord("a1", "mail", "queued", "send")) == "queued       a1  mail  send"
