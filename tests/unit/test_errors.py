"""The tree of errors, and their messages."""

import inspect
import pickle
from datetime import timedelta

import pytest

from jsq import errors
from jsq.errors import (
    BadName,
    BadOption,
    BrokerError,
    JobCancelled,
    JobError,
    JobFailed,
    JobNotFound,
    JsqError,
    QueueFull,
    ResultDropped,
    ResultGone,
    ResultTimeout,
    SubmitUnknown,
    TaskExists,
    UnknownTask,
    UsageError,
    WrongState,
    shorten,
)
from jsq.model.durations import MAX_DURATION, seconds
from jsq.model.signals import Reject, Retry, Snooze

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == "jsq.errors"]
SIGNALS = (Retry, Snooze, Reject)
BRANCHES = (UsageError, BrokerError, JobError)
ERRORS = [kind for kind in CLASSES if issubclass(kind, JsqError) and kind not in (*BRANCHES, JsqError)]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_class_has_a_docstring(kind: type[Exception]) -> None:
    assert kind.__dict__.get("__doc__")


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_belongs_to_one_branch(kind: type[Exception]) -> None:
    above = [
        one for one in kind.__mro__[1:] if issubclass(one, JsqError)
    ]  # an error class may be a subclass of another one

    assert [branch for branch in BRANCHES if issubclass(kind, branch)] == [above[-2]]
    assert set(above[:-2]) <= set(ERRORS)


@pytest.mark.parametrize("kind", SIGNALS)
def test_signals_are_not_errors_of_jsq(kind: type[Exception]) -> None:
    assert not issubclass(kind, JsqError)


def test_only_temporary_errors_are_retryable() -> None:
    retryable = {kind.__name__ for kind in ERRORS if kind.retryable}

    assert retryable == {
        "BrokerUnavailable",
        "SubmitUnknown",
        "BulkUnknown",
        "QueueFull",
        "BrokerFull",
        "PartlySubmitted",
        "ResultTimeout",
    }


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (BadName("queue", "a b", "no blanks"), "queue name must be no blanks, got 'a b'"),
        (BadOption("delay", -1, "must be 0 or more; x"), "delay must be 0 or more, got -1; x"),
        (UnknownTask("mail"), "no task is named 'mail'; was its module imported?"),
        (TaskExists("mail"), "a task named 'mail' is already declared; give one of them another name="),
        (
            JobNotFound("j1"),
            "no job has the id 'j1': it was never submitted, or its record has expired",
        ),
        (WrongState("j1", "running", "retried"), "job j1 is running: it cannot be retried"),
        (JobFailed("j1", "error", "ValueError: no"), "job j1 failed (error): ValueError: no"),
        (JobCancelled("j1"), "job j1 was cancelled"),
        (ResultTimeout("j1", 2.5), "job j1 did not end within 2.5 s; it continues"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_message_names_its_subject(error: Exception, message: str) -> None:
    assert str(error) == message


def test_an_unknown_submit_names_the_id_that_makes_a_retry_safe() -> None:
    assert "Submitting again with id='j1' is safe." in str(SubmitUnknown("j1", 5))


def test_a_full_queue_error_names_its_limit_and_its_value_if_known() -> None:
    assert "queue q is full: its max_bytes is reached" in str(QueueFull("q", "max_bytes"))
    assert "queue q is full: its max_jobs, 10,000, is reached" in str(QueueFull("q", "max_jobs", 10_000))


def test_a_missing_result_error_names_the_option_that_keeps_results() -> None:
    assert "submit jobs with keep_result" in str(ResultGone("j1"))
    assert str(ResultDropped("j1", "too large")) == "job j1 succeeded, but its result was dropped: too large"


def test_a_result_timeout_is_a_builtin_timeout_error() -> None:
    assert isinstance(ResultTimeout("j1", 1), TimeoutError)


@pytest.mark.parametrize(
    "error",
    [BadName("queue", "x" * 100_000, "r"), BadOption("f", "x" * 100_000, "r"), UnknownTask("x" * 100_000)],
    ids=lambda error: type(error).__name__,
)
def test_an_error_message_stays_short_for_any_value(error: Exception) -> None:
    assert len(str(error)) < 300


def test_an_error_message_survives_a_failing_repr() -> None:
    class Hostile:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert "<Hostile>" in str(BadOption("delay", Hostile(), "must be seconds"))
    assert "<int>" in str(BadOption("retries", 10**5000, "must be less"))


def test_an_error_message_contains_no_control_characters() -> None:
    message = str(BadName("queue", "a\x1b[2J\r\n\u202e\ud800", "no"))

    assert message.isprintable()
    assert message.encode()


@pytest.mark.parametrize(
    "error", [JobFailed("j1", "error", "no", "trace"), WrongState("j1", "failed", "run")]
)
def test_an_error_with_several_parts_has_them_as_attributes(error: JobFailed | WrongState) -> None:
    assert error.id == "j1"


@pytest.mark.parametrize(
    "value",
    [
        -1,
        float("nan"),
        float("inf"),
        10**12,
        "5 minutes",
        "-5m",
        "",
        "1h 30m",
        "9" * 400,
        True,
        [1],
        MAX_DURATION + 1,
    ],
)
def test_an_invalid_duration_is_refused(value: object) -> None:
    with pytest.raises(BadOption, match=r"^delay must be 0 to 31622400 seconds"):
        seconds("delay", value)  # type: ignore[arg-type]  # that is what is tested


def test_durations_are_read_as_seconds() -> None:
    assert seconds("delay", None) is None
    assert seconds("delay", 5) == 5.0
    assert seconds("delay", timedelta(minutes=1)) == 60.0
    assert seconds("delay", 0) == 0.0


@pytest.mark.parametrize("signal", [Retry, Snooze])
def test_a_signal_with_a_bad_delay_is_refused_where_it_is_raised(signal: type[Retry] | type[Snooze]) -> None:
    with pytest.raises(BadOption, match=r"delay must .*got -1"):
        signal(delay=-1)


def test_a_delay_in_place_of_the_reason_of_a_retry_is_refused() -> None:
    with pytest.raises(BadOption, match=r"reason must be a text, got 60; write Retry\(delay=\.\.\.\)"):
        Retry(60)  # type: ignore[arg-type]  # the mistake


def test_a_subclass_of_a_signal_need_not_call_its_init() -> None:
    class Busy(Retry):
        def __init__(self) -> None:
            pass

    class Later(Snooze):
        def __init__(self) -> None:
            pass

    assert Busy().delay is None
    assert Later().delay == 0.0


def test_only_long_text_is_shortened_and_its_length_shown() -> None:
    assert shorten("abc") == "abc"
    assert shorten("x" * 500, 10) == "xxxxxxxxxx... (500 characters)"


def test_errors_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(errors.BrokerUnavailable("nobody")))

    assert str(error) == "nobody"


@pytest.mark.parametrize(
    ("written", "expected"),
    [("90", 90.0), ("1.5", 1.5), ("250ms", 0.25), ("5m", 300.0), ("1h30m", 5_400.0), ("2d", 172_800.0)],
)
def test_a_duration_may_be_text(written: str, expected: float) -> None:
    assert seconds("delay", written) == pytest.approx(expected)


def test_an_invalid_duration_text_is_refused_with_field_rule_and_value() -> None:
    with pytest.raises(BadOption) as refused:
        seconds("delay", "5 minutes")

    assert (refused.value.field, refused.value.value) == ("delay", "5 minutes")
    assert "text such as 30s, 5m, 1h30m" in refused.value.rule
