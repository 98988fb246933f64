"""The interface of the executors: they start a function, and report how it ended."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from jsq.model.outcome import Outcome


@dataclass(frozen=True, slots=True)
class Returned:
    """The function returned a value."""

    value: Any


@dataclass(frozen=True, slots=True)
class Raised:
    """The function raised an exception, `SystemExit` included."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Judged:
    """The function ran in another process, which judged it and sent the outcome."""

    outcome: Outcome


FunctionEnd: TypeAlias = Returned | Raised | Judged


class Execution(Protocol):
    """A function that runs. `end` is done when the function has ended; it never raises."""

    end: asyncio.Future[FunctionEnd]

    def interrupt(self) -> bool:
        """Interrupt the function; False if it cannot be interrupted."""
        ...

    def kill(self) -> bool:
        """Kill the function; False if it cannot be killed."""
        ...


def ignore_end() -> None:
    """The callback of a caller that does not need the call."""


class Executor(Protocol):
    """Starts functions. `ended` is called on the loop when one has ended, just before `end` is done."""

    def start(self, function: Callable[[], Any], ended: Callable[[], None] = ignore_end) -> Execution: ...


def value_of(end: FunctionEnd) -> Any:
    """The value that a function returned. Raises what it raised."""
    if isinstance(end, Raised):
        raise end.error
    return end.value if isinstance(end, Returned) else None
