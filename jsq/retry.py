"""When a failed job is tried again."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeAlias

from jsq.errors import LONGEST, BadOption

Shape = Literal["none", "linear", "exponential"]
MOST_RETRIES = 1000


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before the n-th retry.

    `none`: no wait. `linear`: n * `base`. `exponential`: somewhere between 0 and `base * factor**(n-1)`,
    which is full jitter (M. Brooker, "Exponential Backoff and Jitter", 2015). All in seconds, never more
    than `ceiling`. `steps`, where given, are the waits themselves, the last one repeated.
    """

    shape: Shape = "exponential"
    base: float = 1.0
    factor: float = 2.0
    ceiling: float = 3600.0
    steps: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.shape not in ("none", "linear", "exponential"):
            raise BadOption("backoff", self.shape, "it takes none, linear, exponential or a list of seconds")
        check_number("backoff base", self.base, 0.001, LONGEST)
        check_number("backoff ceiling", self.ceiling, self.base, LONGEST)
        check_number("backoff factor", self.factor, 1, 100)
        if len(self.steps) > MOST_RETRIES:
            raise BadOption("backoff", f"{len(self.steps)} steps", f"it takes {MOST_RETRIES} at most")
        for step in self.steps:
            check_number("backoff", step, 0, LONGEST)

    def delay(self, retry: int, *, pick: Callable[[float, float], float] = random.uniform) -> float:
        """Seconds before retry number `retry`, which counts from 1."""
        if self.steps:
            return self.steps[min(retry, len(self.steps)) - 1]
        if self.shape == "none":
            return 0.0
        if self.shape == "linear":
            return min(self.ceiling, self.base * retry)
        return pick(0.0, self._top(retry))

    def _top(self, retry: int) -> float:
        try:
            return min(self.ceiling, self.base * self.factor ** (retry - 1))
        except OverflowError:
            return self.ceiling


def check_number(field: str, value: float, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise BadOption(field, value, f"it takes a number from {least:g} to {most:.10g}")


BackoffOption: TypeAlias = Shape | Sequence[float | timedelta] | Backoff
"""What a user may write for `backoff`: a shape's name, a list of seconds, or a `Backoff`."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a job that failed is tried again, and when."""

    retries: int = 3
    backoff: Backoff = Backoff()

    def __post_init__(self) -> None:
        check_retries(self.retries)

    def allows(self, failures: int) -> bool:
        """Whether there is another try after this many failures."""
        return failures <= self.retries


def check_retries(retries: int) -> int:
    if isinstance(retries, bool) or not isinstance(retries, int) or not 0 <= retries <= MOST_RETRIES:
        raise BadOption("retries", retries, f"it takes a whole number from 0 to {MOST_RETRIES}")
    return retries


def backoff(option: BackoffOption) -> Backoff:
    """Read what a user wrote for `backoff`. Raises `BadOption`."""
    match option:
        case Backoff():
            return option
        case str():
            return Backoff(option)
        case [_, *_]:
            return Backoff(steps=tuple(map(in_seconds, option)))
    raise BadOption("backoff", option, "it takes none, linear, exponential or a list of seconds")


def in_seconds(step: float | timedelta) -> float:
    return step.total_seconds() if isinstance(step, timedelta) else step
