"""The outcome of an exception, and its description."""

import asyncio
import pickle
import re
import sys
import traceback
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jsq.codec.signature import Signature
from jsq.errors import BadArguments, BadResult, StepUnknown, UnknownTask
from jsq.model.job import Job
from jsq.model.outcome import (
    MAX_ERROR_LENGTH,
    MAX_TRACEBACK_LENGTH,
    RATE_LIMITED,
    Expired,
    Failed,
    Fault,
    Interrupted,
    Outcome,
    Succeeded,
    TaskTimeout,
    TryAgain,
    apply_deadline,
    describe_error,
    judge_outcome,
    replace_surrogates,
)
from jsq.model.retry import Backoff, Retries, RetryPolicy, build_policy
from jsq.model.revision import REASONS
from jsq.model.signals import RateLimited, Reject, Retry, Snooze
from jsq.worker.transitions import with_deadline
from tests.helpers.examples import examples

STEPS = RetryPolicy(retries=2, backoff=Backoff(steps=(1.0, 5.0)))


def caught(error: BaseException) -> BaseException:
    """The exception with a traceback, as if a task had raised it."""
    try:
        raise error
    except BaseException as raised:
        return raised


def judged(error: BaseException, *, failures: int = 0, policy: RetryPolicy = STEPS) -> Outcome:
    return judge_outcome(error, failures=failures, policy=policy, pick=max)


# -- judge ---------------------------------------------------------------------------------------------------


def test_an_error_is_retried_after_the_delay_of_its_attempt() -> None:
    waits = [judged(ValueError("no"), failures=failures) for failures in (0, 1)]

    assert [(wait.delay, wait.counts_as_failure) for wait in waits if isinstance(wait, TryAgain)] == [
        (1.0, True),
        (5.0, True),
    ]


def test_an_error_after_the_last_retry_fails_the_job() -> None:
    outcome = judged(ValueError("no"), failures=2)

    assert isinstance(outcome, Failed)
    assert (outcome.reason, outcome.fault.error) == ("error", "ValueError: no")


def test_a_timeout_is_retried_and_then_fails_with_reason_timeout() -> None:
    first, last = judged(TaskTimeout("too long")), judged(TaskTimeout("too long"), failures=2)

    assert isinstance(first, TryAgain)
    assert isinstance(last, Failed)
    assert last.reason == "timeout"


def test_a_timeout_error_raised_by_the_task_is_an_ordinary_error() -> None:
    outcome = judged(TimeoutError("the other side"), failures=2)

    assert isinstance(outcome, Failed)
    assert outcome.reason == "error"


def test_a_retry_with_a_delay_waits_for_that_delay() -> None:
    outcome = judged(Retry("busy", delay=7))

    assert isinstance(outcome, TryAgain)
    assert (outcome.delay, outcome.counts_as_failure, outcome.fault.error) == (7.0, True, "Retry: busy")


def test_a_retry_without_a_delay_waits_as_the_policy_defines() -> None:
    outcome = judged(Retry("busy"), failures=1)

    assert isinstance(outcome, TryAgain)
    assert outcome.delay == 5.0


def test_a_retry_at_once_does_not_wait() -> None:
    outcome = judged(Retry(delay=0))

    assert isinstance(outcome, TryAgain)
    assert outcome.delay == 0.0


def test_a_raised_retry_counts_as_a_retry() -> None:
    outcome = judged(Retry("busy", delay=7), failures=2)

    assert isinstance(outcome, Failed)
    assert outcome.reason == "error"


def test_a_snooze_never_counts_as_a_retry() -> None:
    outcome = judged(Snooze(60, "not yet"), failures=1_000)

    assert isinstance(outcome, TryAgain)
    assert (outcome.delay, outcome.counts_as_failure) == (60.0, False)


def test_a_traceback_starts_in_the_code_of_the_user() -> None:
    from jsq.model.durations import seconds

    try:
        seconds("delay", -1)
    except Exception as error:
        described = describe_error(error).traceback

    assert "test_outcome.py" in described.splitlines()[0]


def test_leading_frames_of_jsq_are_removed_from_a_traceback() -> None:
    frames: dict[str, Any] = {
        "__name__": "jsq.worker.run"
    }  # another folder than the module of `describe_error`
    exec("def call(function): return function()", frames)
    try:
        frames["call"](lambda: int("x"))
    except ValueError as error:
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next  # without this function
        first = describe_error(error).traceback.splitlines()[0]

    assert "test_outcome.py" in first


def calling(module: str, name: str) -> Any:
    """A function of a module that calls its argument."""
    frames: dict[str, Any] = {"__name__": module}
    exec(f"def {name}(function): return function()", frames)
    return frames[name]


def test_frames_of_jsq_between_those_of_a_user_are_removed_from_a_traceback() -> None:
    worker, hooks = calling("jsq.worker.run", "run_attempt"), calling("jsq.hooks", "run_hooks")
    middleware, waiting = calling("shop", "around"), calling("asyncio.tasks", "wait_for")
    client = calling("jsq.client.submitter", "submit")
    cause = ValueError("the cause")

    def fail() -> None:
        raise OSError("no") from caught(cause)

    def task() -> None:
        waiting(lambda: client(fail))

    with pytest.raises(OSError, match="no") as raised:
        worker(lambda: middleware(lambda: hooks(lambda: hooks(task))))

    error = raised.value
    error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next  # without this function
    described = describe_error(error).traceback
    for shown in (described, "".join(traceback.format_exception(error))):
        assert not re.search("in (run_attempt|run_hooks|submit)$", shown, re.MULTILINE)
        assert [name for name in ("around", "task", "fail", "caught") if f"in {name}\n" not in shown] == []


def test_a_users_own_call_of_asyncio_keeps_its_frames() -> None:
    worker, waiting = calling("jsq.worker.run", "run_attempt"), calling("asyncio.tasks", "wait_for")

    with pytest.raises(ValueError, match="invalid literal") as raised:
        worker(lambda: waiting(lambda: int("x")))

    error = raised.value
    error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next  # without this function
    described = describe_error(error).traceback
    assert "in wait_for" in described
    assert "in run_attempt" not in described


def test_the_exception_of_a_fault_stays_in_its_process() -> None:
    error = caught(ValueError("no"))
    fault = describe_error(error)

    assert fault.exception is error
    assert fault == Fault(fault.error, fault.traceback)
    assert "exception" not in repr(fault)
    assert pickle.loads(pickle.dumps(fault)).exception is None


def test_an_error_about_wrong_arguments_has_no_frames_of_jsq() -> None:
    def add(a: int) -> None: ...

    try:
        Signature(add).unpack(b'["x"]')
    except BadArguments as error:
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next  # without this function
        describe_error(error)
        shown = traceback.format_exception(error)

    assert len(shown) == 1


def test_a_rejected_job_is_not_retried() -> None:
    outcome = judged(Reject("never"))

    assert isinstance(outcome, Failed)
    assert outcome.reason == "rejected"


@pytest.mark.parametrize("error", [UnknownTask("mail"), BadArguments("x: missing"), BadResult("a socket")])
def test_an_error_of_a_submit_within_a_task_is_retried_like_any_other(error: Exception) -> None:
    assert isinstance(judged(error), TryAgain)


def test_subclasses_of_signals_are_recognized() -> None:
    class Busy(Retry):
        def __init__(self) -> None:
            pass

    class Never(Reject):
        pass

    assert isinstance(judged(Busy()), TryAgain)
    assert isinstance(judged(Never()), Failed)


def test_the_caller_picks_the_wait_within_the_jitter() -> None:
    def pick(least: float, longest: float) -> float:
        return (least + longest) / 4

    outcome = judge_outcome(ValueError(), failures=3, policy=RetryPolicy(9), pick=pick)

    assert isinstance(outcome, TryAgain)
    assert outcome.delay == 2.0


@examples(60)
@given(
    failures=st.integers(0, 30),
    retries=st.integers(0, 20),
    error=st.sampled_from([ValueError("no"), Retry(), Retry(delay=1), TaskTimeout("late"), KeyError("k")]),
)
def test_a_job_fails_exactly_when_its_retries_are_spent(
    failures: int, retries: int, error: Exception
) -> None:
    outcome = judged(error, failures=failures, policy=RetryPolicy(retries))

    assert isinstance(outcome, Failed) == (failures >= retries)
    assert isinstance(outcome, TryAgain) or outcome.reason in REASONS  # type: ignore[union-attr]  # Failed has it


# -- retry rules: type, predicate, window --------------------------------------------------------------------


def ruled(**options: Any) -> RetryPolicy:
    return build_policy(3, Backoff("none"), **options)


def test_an_error_that_is_not_to_be_retried_fails_at_once() -> None:
    only = ruled(retry_on=ConnectionError)

    assert isinstance(judged(ConnectionResetError("gone"), policy=only), TryAgain)
    outcome = judged(KeyError("k"), policy=only)
    assert isinstance(outcome, Failed)
    assert (outcome.reason, outcome.fault.error) == ("error", "KeyError: 'k'")


def test_a_timeout_is_retried_if_retry_on_names_it() -> None:
    assert isinstance(judged(TaskTimeout("late"), policy=ruled(retry_on=TimeoutError)), TryAgain)
    outcome = judged(TaskTimeout("late"), policy=ruled(retry_on=ConnectionError))
    assert isinstance(outcome, Failed)
    assert outcome.reason == "timeout"


def test_error_types_have_their_own_policies_and_share_one_failure_count() -> None:
    each = ruled(retry={ConnectionError: Retries(5, backoff=[7]), KeyError: Retries(1, backoff=[1])})

    outcomes = [judged(error, failures=4, policy=each) for error in (ConnectionError(), KeyError())]

    assert isinstance(outcomes[0], TryAgain)
    assert outcomes[0].delay == 7
    assert isinstance(outcomes[1], Failed)


def test_a_predicate_is_called_with_the_error_and_the_attempt() -> None:
    seen: list[tuple[str, int]] = []

    def when(error: BaseException, attempt: int) -> bool:
        seen.append((str(error), attempt))
        return attempt < 3

    policy = ruled(retry_if=when)
    error = ValueError("no")
    outcomes = [
        judge_outcome(error, failures=1, policy=policy, pick=max, attempt=attempt)
        for attempt in (2, 3)  # a crash counts as an attempt, not as a failure
    ]

    assert seen == [("no", 2), ("no", 3)]
    assert [type(outcome) for outcome in outcomes] == [TryAgain, Failed]


def test_a_predicate_is_not_called_for_an_error_that_is_decided_already() -> None:
    def when(error: BaseException, attempt: int) -> bool:
        raise AssertionError("called")

    policy = ruled(retry_if=when, no_retry_on=KeyError)

    assert isinstance(judged(Retry(), policy=policy), TryAgain)
    assert isinstance(judged(Snooze(1), policy=policy), TryAgain)
    assert isinstance(judged(KeyError(), policy=policy), Failed)
    spent = judged(ValueError("no"), failures=3, policy=policy)
    assert isinstance(spent, Failed)
    assert spent.fault.error == "ValueError: no"


def test_a_predicate_that_raises_is_recorded_and_ignored() -> None:
    def when(error: BaseException, attempt: int) -> bool:
        return error.status > 500  # type: ignore[attr-defined,no-any-return]  # what users write

    outcome = judged(ValueError("no"), policy=ruled(retry_if=when))

    assert isinstance(outcome, TryAgain)
    message = (
        "ValueError: no (its retry_if raised AttributeError: 'ValueError' object has no attribute 'status')"
    )
    assert outcome.fault.error == message


@given(
    delay=st.floats(0, 1000),
    left=st.none() | st.floats(0, 1000),
    window=st.none() | st.floats(0, 1000),
    counts=st.booleans(),
)
def test_the_earlier_of_retry_window_and_deadline_ends_the_job(
    delay: float, left: float | None, window: float | None, counts: bool
) -> None:
    again = TryAgain(delay, Fault("ValueError: no"), counts_as_failure=counts, final_reason="timeout")

    outcome = apply_deadline(again, left, window)

    late = left is not None and delay >= left
    closed = counts and window is not None and delay >= window
    if late and closed:
        assert left is not None and window is not None  # noqa: PT018 -- for the type checker
        assert isinstance(outcome, Failed if window < left else Expired)
    elif closed:
        assert outcome == Failed("timeout", Fault("ValueError: no"))
    else:
        assert isinstance(outcome, Expired if late else TryAgain)


# -- groups --------------------------------------------------------------------------------------------------


def group(*errors: Exception) -> ExceptionGroup[Exception]:
    return ExceptionGroup("unhandled errors in a TaskGroup", list(errors))


@pytest.mark.parametrize(
    ("errors", "reason"),
    [
        ([Reject("never")], "rejected"),
        ([ValueError(), group(Snooze(60), Reject("never"))], "rejected"),
        ([ValueError(), StepUnknown("j1", "pay", 1, "")], "step_unknown"),
    ],
    ids=str,
)
def test_a_final_signal_in_a_group_ends_the_job(errors: list[Exception], reason: str) -> None:
    outcome = judged(group(*errors))

    assert isinstance(outcome, Failed)
    assert outcome.reason == reason


@pytest.mark.parametrize(
    ("errors", "delay", "counts"),
    [
        ([Snooze(60)], 60.0, False),
        ([Snooze(60), Snooze(90)], 90.0, False),
        ([Snooze(60), ValueError()], 60.0, True),
        ([Retry("busy", delay=7)], 7.0, True),
        ([Retry("busy", delay=7), ValueError()], 7.0, True),
        ([ValueError(), KeyError()], 1.0, True),
        ([group(ConnectionError())], 1.0, True),
    ],
    ids=str,
)
def test_an_error_in_a_group_outranks_a_snooze_and_the_longest_delay_counts(
    errors: list[Exception], delay: float, counts: bool
) -> None:
    outcome = judged(group(*errors))

    assert isinstance(outcome, TryAgain)
    assert (outcome.delay, outcome.counts_as_failure) == (delay, counts)


def test_a_rate_limit_in_a_group_keeps_its_reason() -> None:
    outcome = judged(group(Snooze(60), RateLimited(30)))

    assert isinstance(outcome, TryAgain)
    assert (outcome.delay, outcome.reason) == (60.0, RATE_LIMITED)


def test_the_retry_rules_examine_the_exceptions_of_a_group() -> None:
    only = build_policy(2, Backoff("none"), retry_on=ConnectionError)
    never = build_policy(2, Backoff("none"), no_retry_on=KeyError)
    own = build_policy(0, Backoff("none"), retry={ConnectionError: Retries(5, backoff=[9])})

    assert isinstance(judged(group(ConnectionResetError()), policy=only), TryAgain)
    assert isinstance(judged(group(ConnectionResetError(), ValueError()), policy=only), Failed)
    assert isinstance(judged(group(ValueError(), KeyError()), policy=never), Failed)
    retried = judged(group(ConnectionResetError()), policy=own)
    assert isinstance(retried, TryAgain)
    assert retried.delay == 9.0


def test_a_predicate_is_asked_about_each_exception_of_a_group() -> None:
    asked: list[BaseException] = []
    first, second = ValueError("a"), KeyError("b")

    def when(error: BaseException, attempt: int) -> bool:
        asked.append(error)
        return error is not second

    policy = build_policy(2, Backoff("none"), retry_if=when)

    assert isinstance(judged(group(first, group(second)), policy=policy), Failed)
    assert asked == [first, second]


def test_a_rule_that_names_the_group_applies_to_the_group_but_not_to_its_signals() -> None:
    policy = build_policy(2, Backoff("none"), no_retry_on=ExceptionGroup)

    assert isinstance(judged(group(ConnectionError()), policy=policy), Failed)
    assert isinstance(judged(ValueError(), policy=policy), TryAgain)
    rejected = judged(group(Reject("never")), policy=policy)
    assert isinstance(rejected, Failed)
    assert rejected.reason == "rejected"


# -- describe ------------------------------------------------------------------------------------------------


def test_an_exception_is_described_with_its_type_and_traceback() -> None:
    fault = describe_error(caught(ValueError("no such town")))

    assert fault.error == "ValueError: no such town"
    assert "in caught" in fault.traceback


def test_an_exception_without_a_message_is_its_type() -> None:
    assert describe_error(ValueError()).error == "ValueError"


@pytest.mark.parametrize("second", [RuntimeError, SystemExit, KeyboardInterrupt, RecursionError])
def test_an_exception_whose_message_raises_is_described_by_its_type(second: type[BaseException]) -> None:
    class Hostile(Exception):
        def __str__(self) -> str:
            raise second

    fault = describe_error(caught(Hostile()))

    assert fault.error == f"Hostile: <its message raised {second.__name__}>"


def test_an_exception_whose_message_is_not_text_is_described_by_its_type() -> None:
    class Hostile(Exception):
        def __str__(self) -> Any:
            return 5

    assert describe_error(Hostile()).error == "Hostile: <its message raised TypeError>"


def test_a_message_of_50_mb_is_cut() -> None:
    fault = describe_error(caught(ValueError("x" * 50_000_000)))

    assert len(fault.error) < MAX_ERROR_LENGTH + 100
    assert "characters)" in fault.error


def test_a_name_of_any_length_is_cut() -> None:
    assert len(describe_error(type("E" * 1_000_000, (Exception,), {})()).error) < MAX_ERROR_LENGTH + 100


def test_a_deep_traceback_keeps_its_innermost_frames() -> None:
    def down(depth: int, last: str = "") -> None:
        if depth == 0:
            raise ValueError("the bottom")
        # Two alternating lines, because Python prints equal frames only once.
        if depth % 2:
            down(depth - 1)
        else:
            down(depth - 1)

    with pytest.raises(ValueError, match="the bottom") as raised:
        down(min(400, sys.getrecursionlimit() // 2))
    fault = describe_error(raised.value)

    assert len(fault.traceback) <= MAX_TRACEBACK_LENGTH + len("...\n")
    assert fault.traceback.startswith("...\n")
    assert 'raise ValueError("the bottom")' in fault.traceback


def test_endless_recursion_is_described() -> None:
    def down() -> None:
        down()

    with pytest.raises(RecursionError) as raised:
        down()

    assert describe_error(raised.value).error.startswith("RecursionError: maximum recursion depth")


def test_a_lone_surrogate_can_be_sent() -> None:
    fault = describe_error(caught(ValueError("a\ud800b")))

    assert fault.error.encode() == b"ValueError: a?b"


@examples(60)
@given(message=st.text(st.characters(codec=None, categories=None)))
def test_any_message_can_be_sent(message: str) -> None:
    assert describe_error(ValueError(message)).error.encode()


@given(text=st.text())
@examples(30)
def test_plain_text_is_unchanged(text: str) -> None:
    assert replace_surrogates(text) == text


@given(delay=st.floats(0, 1000), left=st.floats(0, 1000))
def test_no_attempt_starts_at_or_after_the_deadline(delay: float, left: float) -> None:
    again = TryAgain(delay, Fault("ValueError: no", "where"))

    outcome = apply_deadline(again, left)

    if delay < left:
        assert outcome is again
    else:
        message = "its deadline is before the next attempt; the last: ValueError: no"
        assert outcome == Expired(Fault(message, "where"))


@pytest.mark.parametrize(
    "outcome",
    [Succeeded(b"1"), Failed("error", Fault("no")), Interrupted()],
    ids=lambda one: type(one).__name__,
)
def test_a_final_outcome_is_unchanged_after_the_deadline(outcome: Outcome) -> None:
    assert apply_deadline(outcome, -5) is outcome


def test_a_job_without_a_deadline_is_retried_after_any_delay() -> None:
    assert apply_deadline(TryAgain(10**9, Fault("")), None) == TryAgain(10**9, Fault(""))


def test_a_deadline_in_seconds_counts_from_when_the_server_stored_the_job() -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    job = Job("j1", "mail", deadline=30.0)

    assert with_deadline(job, 5.0, noon.timestamp()).deadline == noon + timedelta(seconds=30)
    assert with_deadline(Job("j1", "mail"), 5.0, noon.timestamp()).deadline == noon + timedelta(seconds=5)
    assert with_deadline(Job("j1", "mail"), None, noon.timestamp()).deadline is None
    assert with_deadline(Job("j1", "mail", deadline=noon), 5.0, 0.0).deadline == noon
    assert (
        with_deadline(Job("j1", "mail", previous_sequence=7), 5.0, 0.0).deadline is None
    )  # a retried dead letter has none


def test_a_group_is_described_with_the_exceptions_in_it() -> None:
    inner = group(caught(KeyError("b")), *map(ValueError, range(3)))  # type: ignore[arg-type]  # no BaseException
    fault = describe_error(caught(group(ValueError("order 17"), inner)))

    assert fault.error == (
        "ExceptionGroup: unhandled errors in a TaskGroup (2 sub-exceptions): ValueError: order 17; "
        "KeyError: 'b'; ValueError: 0; and 2 more"
    )
    assert "KeyError: 'b'" in fault.traceback
    assert fault.traceback.count("in caught") == 2


def test_causes_contexts_and_notes_are_in_the_traceback() -> None:
    def fail(how: str) -> None:
        try:
            raise KeyError("order 17")
        except KeyError as error:
            match how:
                case "cause":
                    raise RuntimeError("import failed") from error
                case "context":
                    raise RuntimeError("import failed")  # noqa: B904 -- that is what is tested
                case "hidden":
                    raise RuntimeError("import failed") from None
                case _:
                    error.add_note("in the night")
                    raise

    described: dict[str, Fault] = {}
    for how in ("cause", "context", "hidden", "note"):
        with pytest.raises((RuntimeError, KeyError)) as raised:
            fail(how)
        described[how] = describe_error(raised.value)

    assert "KeyError: 'order 17'\n\nThe above exception was the direct cause" in described["cause"].traceback
    assert "KeyError: 'order 17'\n\nDuring handling" in described["context"].traceback
    assert described["cause"].error == "RuntimeError: import failed"
    assert "KeyError" not in described["hidden"].traceback.replace('raise KeyError("order 17")', "")
    assert described["note"].traceback.endswith("KeyError: 'order 17'\nin the night\n")


def test_a_long_chain_of_causes_keeps_both_of_its_ends() -> None:
    error: Exception = ValueError("the first")
    for number in range(200):
        try:
            raise RuntimeError(f"number {number}") from error
        except RuntimeError as raised:
            error = raised
    fault = describe_error(error)

    assert len(fault.traceback) <= MAX_TRACEBACK_LENGTH + len("\n...\n")
    assert fault.traceback.startswith("ValueError: the first")
    assert fault.traceback.endswith("RuntimeError: number 199\n")


def test_the_cause_of_an_error_of_use_is_not_described() -> None:
    def count(number: int) -> None: ...

    try:
        Signature(count).pack(["s3cret"], {})
    except BadArguments as error:
        fault = describe_error(error)

    assert "s3cret" not in fault.error + fault.traceback.replace('["s3cret"]', "")
    assert "ValidationError" not in fault.traceback


def test_leading_frames_of_callers_are_removed_from_each_exception_of_a_group() -> None:
    async def fail() -> None:
        raise ValueError("order 17")

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())

    try:
        asyncio.run(main())
    except ExceptionGroup as error:
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next  # without this function
        lines = describe_error(error).traceback.splitlines()

    frames = [line.rpartition(" in ")[2] for line in lines if " File " in line]
    assert frames == ["main", "__aexit__", "fail"]
