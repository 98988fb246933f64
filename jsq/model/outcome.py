"""The outcomes of attempts, and how an exception becomes an outcome."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TypeAlias

from jsq.errors import BadOption, JsqError, StepUnknown, UsageError, shorten
from jsq.model.durations import seconds
from jsq.model.retry import Predicate, RetryPolicy
from jsq.model.signals import RateLimited, Reject, Retry, Snooze

OWN_PACKAGE = __name__.partition(".")[0]
CALLER_PACKAGES = (OWN_PACKAGE, "asyncio")
"""The packages whose functions call a task's function: jsq, and the runner of a coroutine in a process."""

RATE_LIMITED = "rate_limited"
"""The reason of a job that was snoozed by `RateLimited`."""

MAX_ERROR_LENGTH = 2_000
MAX_TRACEBACK_LENGTH = 12_000
MAX_NAMED_LEAVES = 3


@dataclass(frozen=True, slots=True)
class Fault:
    """An exception as text: `Type: message`, and its traceback.

    `exception` is the exception itself if the attempt ran in this process. It is neither stored nor sent to
    another process. It refers to the frames of the task, so nothing may keep it after the attempt has ended.
    """

    error: str
    traceback: str = ""
    exception: BaseException | None = field(default=None, compare=False, repr=False)

    def __reduce__(self) -> tuple[type["Fault"], tuple[str, str]]:
        return Fault, (self.error, self.traceback)


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The task returned; `result` is the returned value as JSON.

    If the value cannot be stored, the result is empty, and `dropped` is the reason.
    """

    result: bytes
    dropped: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """The job failed for good. `reason` is one of `jsq.model.revision.REASONS`."""

    reason: str
    fault: Fault


@dataclass(frozen=True, slots=True)
class TryAgain:
    """Another attempt follows after `delay` seconds. If this one does not count as a failure, it uses no
    retry.

    `reason` and `text` are copied into the job's record. `final_reason` is the reason of the failure if there
    is no time for another attempt.
    """

    delay: float
    fault: Fault
    counts_as_failure: bool = True
    reason: str = ""
    text: str = ""
    final_reason: str = "error"


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A cancel was requested, and the attempt has ended."""


@dataclass(frozen=True, slots=True)
class Expired:
    """The job did not succeed before its deadline; `cause` is its last error."""

    cause: Fault


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The worker is stopping: the job is handed back, and uses no attempt."""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """The job crashed too many workers: it moves to a quarantine, a queue with workers of its own."""

    queue: str
    fault: Fault


@dataclass(frozen=True, slots=True)
class Waiting:
    """The job waits for other jobs. Another attempt follows when they have ended, or after `delay`."""

    delay: float


Outcome: TypeAlias = Succeeded | Failed | TryAgain | Cancelled | Expired | Interrupted | Quarantined | Waiting


def success_without_result(error: Exception) -> Succeeded:
    """The success of a function whose returned value cannot be stored, because of an error."""
    return Succeeded(b"", replace_surrogates(shorten(str(error), MAX_ERROR_LENGTH)))


class TaskTimeout(TimeoutError):
    """An attempt ran longer than its timeout."""


class ChildDied(Exception):
    """The child process of an attempt ended: by `os._exit`, a signal, or lack of memory."""


OUTCOME_SIGNALS = (Snooze, Reject, Retry, StepUnknown)
"""Exceptions that state the outcome themselves."""

REASON_OF: dict[type[BaseException], str] = {TaskTimeout: "timeout", ChildDied: "child_died"}
"""Why a job failed for good, by its last exception; any other is an `error`."""


def judge_outcome(
    error: BaseException,
    *,
    failures: int,
    policy: RetryPolicy,
    pick: Callable[[float, float], float],
    attempt: int | None = None,
) -> Outcome:
    """The outcome of an exception that a task raised.

    The exceptions of a group are judged one by one, and the worst outcome counts. If the policy names the
    type of the group, the group is judged as one exception, with the signals in it.

    `failures` counts the failures before this one, `attempt` is the number of the attempt. `pick` chooses the
    wait within the jitter of the backoff, as `random.uniform` does.
    """
    fault = describe_error(error)
    if isinstance(error, BaseExceptionGroup):
        parts = list(leaves_of(error))
        if policy.names_group(error):
            parts = [error, *(part for part in parts if isinstance(part, OUTCOME_SIGNALS))]
        return worst_outcome([judge_part(part, fault, failures, policy, pick, attempt) for part in parts])
    return judge_part(error, fault, failures, policy, pick, attempt)


def judge_part(
    error: BaseException,
    fault: Fault,
    failures: int,
    policy: RetryPolicy,
    pick: Callable[[float, float], float],
    attempt: int | None,
) -> Outcome:
    """The outcome of an exception that is described by `fault`, which may be that of its group."""
    match error:
        case RateLimited():
            return TryAgain(
                requested_delay(error) or 0.0, fault, counts_as_failure=False, reason=RATE_LIMITED
            )
        case Snooze():
            return TryAgain(requested_delay(error) or 0.0, fault, counts_as_failure=False)
        case Reject():
            return Failed("rejected", fault)
        case StepUnknown():  # no other attempt could know more
            return Failed("step_unknown", fault)
    last, retry = REASON_OF.get(type(error), "error"), failures + 1
    own = policy.policy_for(error)
    if own is None or not own.allows(retry):
        return Failed(last, fault)
    if policy.retry_if is not None and not isinstance(error, Retry):
        agreed, fault = ask_predicate(policy.retry_if, error, attempt or retry, fault)
        if not agreed:
            return Failed(last, fault)
    wait = requested_delay(error) if isinstance(error, Retry) else None
    if wait is None:
        wait = own.backoff.delay(retry, pick)
    return TryAgain(wait, fault, final_reason=last)


def leaves_of(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """The exceptions of a group and of the groups in it."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves_of(error)
        else:
            yield error


def worst_outcome(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome of several exceptions: a final one before a retry, and a retry before a snooze.

    Of those that wait, the longest delay counts.
    """
    worst = min(outcomes, key=severity)
    if isinstance(worst, TryAgain):
        return replace(worst, delay=max(one.delay for one in outcomes if isinstance(one, TryAgain)))
    return worst


def severity(outcome: Outcome) -> int:
    """The rank of an outcome among those of a group, the most severe first."""
    match outcome:
        case Failed(reason="rejected"):
            return 0
        case Failed(reason="step_unknown"):
            return 1
        case Failed():
            return 2
        case TryAgain(counts_as_failure=True):
            return 3
        case TryAgain(reason=reason):
            return 4 if reason else 5
    return 6


def ask_predicate(when: Predicate, error: BaseException, attempt: int, fault: Fault) -> tuple[bool, Fault]:
    """The answer of a user's predicate. If it raises, that counts as no answer, and is recorded."""
    try:
        return bool(when(error, attempt)), fault
    except Exception as second:  # a user's function may raise anything
        text = f"{fault.error} (its retry_if raised {describe_error(second).error})"
        return True, replace(fault, error=shorten(text, MAX_ERROR_LENGTH))


def apply_deadline(outcome: Outcome, left: float | None, window: float | None = None) -> Outcome:
    """The outcome, given the seconds left until the deadline, and in the retry window.

    A job is not retried at its deadline or after, and not after a failure outside its retry window. At the
    deadline it expires; outside the retry window it fails.
    """
    match outcome:
        case TryAgain(delay=delay, fault=fault, counts_as_failure=counts):
            if counts and window is not None and delay >= window and (left is None or window < left):
                return Failed(outcome.final_reason, fault)
            if left is not None and delay >= left:
                text = f"its deadline is before the next attempt; the last: {fault.error or 'snoozed'}"
                return Expired(replace(fault, error=shorten(text, MAX_ERROR_LENGTH)))
    return outcome


def requested_delay(signal: Retry | Snooze) -> float | None:
    """The delay that a signal requests; None if a subclass has set an invalid one."""
    try:
        return seconds("delay", signal.delay)
    except BadOption:
        return None


def describe_error(error: BaseException) -> Fault:
    """An exception as text, shortened. The text of a group names the exceptions in it.

    The exception loses the frames of callers; see `drop_caller_frames`.
    """
    text = error_line(error)
    if isinstance(error, BaseExceptionGroup):
        leaves = list(leaves_of(error))
        named = "; ".join(error_line(leaf) for leaf in leaves[:MAX_NAMED_LEAVES])
        more = len(leaves) - MAX_NAMED_LEAVES
        text = f"{text}: {named}; and {more} more" if more > 0 else f"{text}: {named}"
    drop_caller_frames(error)
    frames = replace_surrogates(format_traceback(error))
    return Fault(replace_surrogates(shorten(text, MAX_ERROR_LENGTH)), frames, error)


def error_line(error: BaseException) -> str:
    """The type and the message of an exception; if its message raises, the type of that exception."""
    name = type(error).__name__
    try:
        text = str(error)
    except BaseException as second:  # a user's __str__ may raise anything
        text = f"<its message raised {type(second).__name__}>"
    return f"{name}: {text}" if text else name


def format_traceback(error: BaseException) -> str:
    """The frames of an exception; with its causes, notes and group, as Python prints them.

    If the frames are too long, these are the innermost. A chain of causes that is too long loses its middle,
    because it begins with the first cause.
    """
    try:
        if has_more_than_frames(error):
            printed = traceback.TracebackException.from_exception(error, compact=True).format()
            return cut_middle("".join(printed))
        text = "".join(traceback.format_tb(error.__traceback__))
    except Exception:  # a missing traceback must not fail the job
        return ""
    return text if len(text) <= MAX_TRACEBACK_LENGTH else "...\n" + text[-MAX_TRACEBACK_LENGTH:]


def cut_middle(text: str) -> str:
    """The first and the last half of a traceback that is too long."""
    half = MAX_TRACEBACK_LENGTH // 2
    return text if len(text) <= 2 * half else f"{text[:half]}\n...\n{text[-half:]}"


def has_more_than_frames(error: BaseException) -> bool:
    """Whether an exception has a cause, notes, or exceptions in it.

    The causes of a `UsageError` are left out: its message is complete, and theirs may show a user's values.
    """
    chained = error.__cause__ is not None or (
        error.__context__ is not None and not error.__suppress_context__
    )
    return (
        (chained and not isinstance(error, UsageError))
        or bool(getattr(error, "__notes__", None))
        or isinstance(error, BaseExceptionGroup)
    )


def user_frames(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without the frames of callers; unchanged if it has no other frames."""
    frames = frames_of(trace)
    kept = without_callers(frames)
    if not kept:
        return trace
    if len(kept) == len(frames) - frames.index(kept[0]):
        return kept[0]
    joined = None
    for one in reversed(kept):
        joined = TracebackType(joined, one.tb_frame, one.tb_lasti, one.tb_lineno)
    return joined


def frames_of(trace: TracebackType | None) -> list[TracebackType]:
    """The entries of a traceback, the outermost first."""
    found: list[TracebackType] = []
    while trace is not None:
        found.append(trace)
        trace = trace.tb_next
    return found


def without_callers(frames: Sequence[TracebackType]) -> list[TracebackType]:
    """The entries without those of callers, except at the end; none if all are those of callers.

    Callers are jsq and asyncio at the start, and jsq between the frames of a user: the frames that lead from
    a middleware to the function of a task. A user's own call of asyncio keeps its frames.
    """
    kept: list[TracebackType] = []
    pending: list[TracebackType] = []
    for one in frames:
        pending.append(one)
        if not is_caller_frame(one):
            between = pending[:-1]
            kept += pending if kept and not any(map(is_own_frame, between)) else [one]
            pending = []
    return kept + pending if kept else []


def drop_caller_frames(error: BaseException) -> None:
    """Remove the frames of callers from an exception, and from those that it is linked to.

    An error of jsq that has no other frames loses all, because its message names the fault. Any other
    exception keeps its frames then: they show a fault of jsq itself. A `UsageError` loses its cause, which
    may show values of the user.
    """
    for one in linked_errors(error):
        if isinstance(one, UsageError):
            one.__cause__ = None
        trace = one.__traceback__
        named = isinstance(one, JsqError) and all(map(is_caller_frame, frames_of(trace)))
        one.__traceback__ = None if named else user_frames(trace)


def linked_errors(error: BaseException) -> list[BaseException]:
    """An exception with its causes and contexts, and the exceptions in their groups."""
    found: dict[int, BaseException] = {}
    left = [error]
    while left:
        one = left.pop()
        if id(one) not in found:
            found[id(one)] = one
            context = None if one.__suppress_context__ else one.__context__
            parts = one.exceptions if isinstance(one, BaseExceptionGroup) else ()
            left += [linked for linked in (one.__cause__, context, *parts) if linked is not None]
    return list(found.values())


def is_caller_frame(trace: TracebackType) -> bool:
    """Whether the frame runs code of jsq or asyncio."""
    return package_of(trace) in CALLER_PACKAGES


def is_own_frame(trace: TracebackType) -> bool:
    return package_of(trace) == OWN_PACKAGE


def package_of(trace: TracebackType) -> str:
    """The package whose code a frame runs: by the name of its module, because paths are ambiguous."""
    return str(trace.tb_frame.f_globals.get("__name__")).partition(".")[0]


def replace_surrogates(text: str) -> str:
    """Text that can be sent as UTF-8."""
    return text.encode(errors="replace").decode()
