"""What every executor does: start a function, and say how it ended, whatever it raised."""

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
    """The function raised; `SystemExit` and its like are no exception."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Judged:
    """The function ran elsewhere, and was judged there; neither value nor exception came back."""

    outcome: Outcome


FunctionEnd: TypeAlias = Returned | Raised | Judged


class Execution(Protocol):
    """A function under way. `end` is done when the function has ended; it never raises."""

    end: asyncio.Future[FunctionEnd]

    def interrupt(self) -> bool:
        """Ask the function to end; False if it cannot be made to, only told."""
        ...

    def kill(self) -> bool:
        """End the function whatever it does; False where that cannot be done."""
        ...


def ignore_end() -> None:
    """What is called where nobody wants to know."""


class Executor(Protocol):
    """Starts functions. `ended` is called on the loop when one has ended, just before its `end` is done."""

    def start(self, function: Callable[[], Any], ended: Callable[[], None] = ignore_end) -> Execution: ...
