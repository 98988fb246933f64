"""What a task's function may change of its process, put back so that the next job finds it as this one did.

The working directory, the environment, the handlers, the mask and the timers of signals, and the first three
files. What cannot be put back is a thread that never ends, and what a module holds: `--child-tasks` has the
child replaced.
"""

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from typing import Any

SIGNALS = tuple(signal.Signals)
TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)


class Surroundings:
    """Those of this process; its first three files are to be as they were when this was made."""

    def __init__(self) -> None:
        self._files = {number: os.dup(number) for number in range(3) if is_open(number)}

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Put back at the end what was changed meanwhile. For the main thread alone."""
        folder, environment = working_folder(), os.environ.copy()
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            yield
        finally:
            for timer in TIMERS:
                signal.setitimer(timer, 0)
            hear_again(handlers)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            mend(environment)
            return_to(folder)
            self._reopen()

    def _reopen(self) -> None:
        for number, copied in self._files.items():
            with contextlib.suppress(OSError):  # the copy was closed as well, with all that there was
                if not (is_open(number) and os.path.sameopenfile(number, copied)):
                    os.dup2(copied, number)


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def working_folder() -> str:
    """The path of the working directory; empty where somebody has removed it."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def return_to(folder: str) -> None:
    if folder and working_folder() != folder:
        with contextlib.suppress(OSError):  # somebody has removed it
            os.chdir(folder)


def mend(environment: Mapping[str, str]) -> None:
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    for name, value in environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def hear_again(handlers: Mapping[signal.Signals, Any]) -> None:
    """Give signals the handlers that they had."""
    for number, handler in handlers.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)
