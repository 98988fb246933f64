"""Retries: whether and when a failed job is retried."""

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Literal, TypeAlias

from jsq.errors import BadOption
from jsq.model.durations import MAX_DURATION, Duration, seconds
from jsq.model.signals import Reject, Retry, Snooze

Shape = Literal["none", "linear", "exponential"]
MAX_RETRIES = 1000

CHILD_MAIN = "__jsq_main__"
"""The name under which a child process runs the file that is the main module of its worker."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """The longest wait before the n-th retry.

    `none`: no wait. `linear`: n * `base`. `exponential`: `base * factor**(n-1)`. All in seconds, never more
    than `ceiling`. `steps`, if given, are the waits themselves, the last one repeated.

    `jitter` is the random share of each wait: 0 (or False) none of it, 1 (or True) all of it, 0.2 the last
    fifth. The default is 1 for `exponential`, which is full jitter (M. Brooker, "Exponential Backoff and
    Jitter", 2015), and 0 for the others.
    """

    shape: Shape = "exponential"
    base: float = 1.0
    factor: float = 2.0
    ceiling: float = 3600.0
    steps: tuple[float, ...] = ()
    jitter: float | None = None

    def __post_init__(self) -> None:
        if self.shape not in ("none", "linear", "exponential"):
            raise BadOption("backoff", self.shape, "must be none, linear, exponential or a list of seconds")
        check_number("backoff base", self.base, 0.001, MAX_DURATION)
        check_number("backoff ceiling", self.ceiling, self.base, MAX_DURATION)
        check_number("backoff factor", self.factor, 1, 100)
        if len(self.steps) > MAX_RETRIES:
            raise BadOption("backoff", f"{len(self.steps)} steps", f"must have {MAX_RETRIES} steps at most")
        for step in self.steps:
            check_number("backoff", step, 0, MAX_DURATION)
        check_jitter(self.jitter)

    def delay(self, retry: int, pick: Callable[[float, float], float]) -> float:
        """Seconds before retry number `retry`, from 1. `pick` works as `random.uniform`."""
        longest, chance = self._longest(retry), self._chance()
        return pick(longest * (1 - chance), longest) if chance else longest

    def _chance(self) -> float:
        if self.jitter is not None:
            return float(self.jitter)
        return 1.0 if self.shape == "exponential" and not self.steps else 0.0

    def _longest(self, retry: int) -> float:
        if self.steps:
            return self.steps[min(retry, len(self.steps)) - 1]
        if self.shape == "none":
            return 0.0
        if self.shape == "linear":
            return min(self.ceiling, self.base * retry)
        try:
            return min(self.ceiling, self.base * self.factor ** (retry - 1))
        except OverflowError:
            return self.ceiling


def check_number(field: str, value: float, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise BadOption(field, value, f"must be a number from {least:g} to {most:.10g}")


def check_jitter(jitter: float | None) -> None:
    if jitter is not None and (not isinstance(jitter, (int, float)) or not 0 <= jitter <= 1):
        raise BadOption("jitter", jitter, "must be True, False or a number from 0 to 1")


BackoffOption: TypeAlias = (
    Shape | Sequence[float | timedelta] | list[str] | list[Duration] | tuple[Duration, ...] | Backoff
)
"""The values of the option `backoff`: the name of a shape, a list of seconds, or a `Backoff`."""

ExceptionTypes: TypeAlias = type[BaseException] | Iterable[type[BaseException]]
"""The values of options that take exception types: one type, or several."""

Predicate: TypeAlias = Callable[[BaseException, int], bool]
"""Whether a job is retried, by its exception and the number of the attempt, from 1."""


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a job is retried for one type of exception, and after which waits.

    `retry={ConnectionError: Retries(10, backoff="exponential", backoff_max=60)}`. All failures of a job are
    counted together: with 10, this exception is retried as long as the job has not failed more than ten times
    in all. Raises `BadOption`.
    """

    retries: int = 3
    backoff: BackoffOption = "exponential"
    backoff_max: Duration | None = None
    jitter: float | None = None

    def __post_init__(self) -> None:
        self.policy()

    def policy(self) -> "RetryPolicy":
        return RetryPolicy(self.retries, build_backoff(self.backoff, self.backoff_max, self.jitter))


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a failed job is retried, when, and after which exceptions.

    Exception types are stored by their full names (`type_name`): so a policy reaches a child process without
    pickling or importing classes of a user. `retry_on` are the types that are retried (empty: all),
    `no_retry_on` those that are not, `by_type` those with a policy of their own; `retry_if` is called last.
    With `retries` None, only the window of `retry_for` seconds from the first start ends the retries.
    """

    retries: int | None = 3
    backoff: Backoff = Backoff()
    retry_for: float | None = None
    retry_on: tuple[str, ...] = ()
    no_retry_on: tuple[str, ...] = ()
    by_type: tuple[tuple[str, "RetryPolicy"], ...] = ()
    retry_if: Predicate | None = None

    def __post_init__(self) -> None:
        if self.retries is not None or self.retry_for is None:
            check_retries(self.retries)

    def allows(self, failures: int) -> bool:
        """Whether there is a retry after this many failures."""
        return self.retries is None or failures <= self.retries

    def policy_for(self, error: BaseException) -> "RetryPolicy | None":
        """The policy for an exception; None if it is not retried.

        Of all named types, the closest base class of the exception decides. A `Retry` is requested by the
        task itself, so only `by_type` applies to it.
        """
        each, asked_for = dict(self.by_type), isinstance(error, Retry)
        for kind in type_names(type(error)):
            if kind in each:
                return each[kind]
            if kind in self.no_retry_on and not asked_for:
                return None
            if kind in self.retry_on:
                return self
        return self if not self.retry_on or asked_for else None

    def names_group(self, error: BaseException) -> bool:
        """Whether an option names the type of an exception group, so that its exceptions are not examined."""
        named = {*self.retry_on, *self.no_retry_on, *dict(self.by_type)}
        groups = (kind for kind in type(error).__mro__ if issubclass(kind, BaseExceptionGroup))
        return any(type_name(kind) in named for kind in groups)

    def with_submit_options(
        self, retries: int | None, backoff: Backoff | None, retry_for: float | None
    ) -> "RetryPolicy":
        """The policy with the options of a submit, which apply to every type of exception."""
        each = tuple(
            (kind, policy.with_submit_options(retries, backoff, None)) for kind, policy in self.by_type
        )
        return replace(
            self,
            retries=self.retries if retries is None else retries,
            backoff=backoff or self.backoff,
            retry_for=self.retry_for if retry_for is None else retry_for,
            by_type=each,
        )


def check_retries(retries: int | None) -> int:
    if isinstance(retries, bool) or not isinstance(retries, int) or not 0 <= retries <= MAX_RETRIES:
        raise BadOption("retries", retries, f"must be a whole number from 0 to {MAX_RETRIES}")
    return retries


def build_backoff(
    option: BackoffOption, most: Duration | None = None, jitter: float | None = None
) -> Backoff:
    """Read the options `backoff`, `backoff_max` and `jitter`. Raises `BadOption`."""
    check_jitter(jitter)
    longest = seconds("backoff_max", most, least=0.001)
    read = _shaped(option)
    if longest is not None:
        read = cap_backoff(read, longest, own_base=isinstance(option, Backoff))
    return read if jitter is None else replace(read, jitter=float(jitter))


def cap_backoff(backoff: Backoff, most: float, *, own_base: bool) -> Backoff:
    """A backoff that never waits longer than `most` seconds. Raises `BadOption` if its base is longer."""
    if own_base and not backoff.steps and most < backoff.base:
        raise BadOption("backoff_max", most, f"must not be below the base of the backoff, {backoff.base:g} s")
    steps = tuple(min(step, most) for step in backoff.steps)
    return replace(backoff, base=min(backoff.base, most), ceiling=most, steps=steps)


def _shaped(option: BackoffOption) -> Backoff:
    match option:
        case Backoff():
            return option
        case "none" | "linear" | "exponential":
            return Backoff(option)
        case str():
            pass
        case [_, *_]:
            return Backoff(steps=tuple(map(to_seconds, option)))
    raise BadOption("backoff", option, "must be none, linear, exponential or a list of seconds")


def to_seconds(step: Duration) -> float:
    if isinstance(step, str):
        return seconds("backoff", step) or 0.0
    return step.total_seconds() if isinstance(step, timedelta) else step


def build_policy(
    retries: int | None,
    waits: Backoff,
    *,
    retry_for: Duration | None = None,
    retry_on: ExceptionTypes | None = None,
    no_retry_on: ExceptionTypes | None = None,
    retry_if: Predicate | None = None,
    retry: Mapping[type[BaseException], Retries] | None = None,
) -> RetryPolicy:
    """Read the retry options of a task. Raises `BadOption`."""
    window = seconds("retry_for", retry_for, least=0.001)
    if retries is None and window is None:
        raise BadOption("retries", None, "must be a number unless retry_for ends the retries")
    only = () if retry_on is None else read_exception_types("retry_on", retry_on)
    never = () if no_retry_on is None else read_exception_types("no_retry_on", no_retry_on)
    own = () if retry is None else read_policies(retry)
    for error in never:
        if issubclass(error, Retry):
            raise BadOption("no_retry_on", error, "must not name Retry, by which a task requests a retry")
        if error in only or any(error is other for other, _ in own):
            raise BadOption("no_retry_on", error, "must not name a type that retry_on or retry names")
    if retry_if is not None:
        check_predicate(retry_if)
    return RetryPolicy(
        retries,
        waits,
        window,
        tuple(map(type_name, only)),
        tuple(map(type_name, never)),
        tuple((type_name(error), one.policy()) for error, one in own),
        retry_if,
    )


def read_exception_types(field: str, option: ExceptionTypes) -> tuple[type[BaseException], ...]:
    """Read exception types. Raises `BadOption`."""
    several = (option,) if isinstance(option, type) or not isinstance(option, Iterable) else tuple(option)
    if not several:
        raise BadOption(field, option, "must be an exception type, or a list of at least one")
    for error in several:
        check_exception_type(field, error)
    return several


def check_exception_type(field: str, error: object) -> None:
    if not isinstance(error, type) or not issubclass(error, BaseException):
        raise BadOption(field, error, "must be an exception type")
    if issubclass(error, (Snooze, Reject)):
        raise BadOption(field, error, "must not name Snooze or Reject, which decide by themselves")


def read_policies(
    option: Mapping[type[BaseException], Retries],
) -> tuple[tuple[type[BaseException], Retries], ...]:
    """Read policies by exception types. Raises `BadOption`."""
    if not isinstance(option, Mapping) or not option:
        raise BadOption("retry", option, "must map exception types to Retries(...)")
    for error, retries in option.items():
        check_exception_type("retry", error)
        if not isinstance(retries, Retries):
            raise BadOption("retry", retries, f"must map {error.__name__} to Retries(...)")
    return tuple(option.items())


def check_predicate(predicate: object) -> None:
    """Raises `BadOption` for anything that cannot be called with an exception and a number."""
    rule = "must be a plain function of two arguments, the exception and the number of the attempt"
    if not callable(predicate) or inspect.iscoroutinefunction(predicate):
        raise BadOption("retry_if", predicate, rule)
    try:
        inspect.signature(predicate).bind(Exception(), 1)
    except TypeError as error:
        raise BadOption("retry_if", predicate, f"{rule}; {error}") from error
    except ValueError:  # a builtin without a signature
        return


def type_names(error: type[BaseException]) -> Iterator[str]:
    """The full names of an exception type and of its base classes, the closest first."""
    return map(type_name, error.__mro__)


def type_name(error: type) -> str:
    """The full name of a type: the same in the worker, and in a child process that runs its main module."""
    return f"{_module_of(error)}.{error.__qualname__}"


def _module_of(error: type) -> str:
    if error.__module__ == CHILD_MAIN:
        return "__main__"
    spec = getattr(sys.modules.get("__main__"), "__spec__", None) if error.__module__ == "__main__" else None
    return spec.name if spec is not None else error.__module__
