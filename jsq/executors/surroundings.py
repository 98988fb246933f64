"""What a function finds around it in a child process: put back after each, so that the next finds the same.

The working directory, the environment, the file mask, signals and timers, limits, and the files 0 to 2. What
a function leaves in memory, in the modules it imported, and in threads of its own is not undone.
"""

import contextlib
import fcntl
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

STANDARD = (0, 1, 2)
SPARE = 20
"""Copies of the standard files have numbers from here on, out of the way of what closes the first few."""

SIGNALS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
RESOURCE_LIMITS = sorted({value for name, value in vars(resource).items() if name.startswith("RLIMIT_")})


class Surroundings:
    """The surroundings as they are now."""

    def __init__(self) -> None:
        self._folder = working_directory()
        self._environment = dict(os.environ)
        self._mask = file_mask()
        self._handlers = {number: signal.getsignal(number) for number in SIGNALS}
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._limits = {limit: resource.getrlimit(limit) for limit in RESOURCE_LIMITS}
        self._streams = (sys.stdin, sys.stdout, sys.stderr)

    def put_back(self, files: "Files") -> bool:
        """Make all as it was; False where that cannot be done."""
        steps: tuple[Callable[[], object], ...] = (
            self._stop_timers,
            self._put_back_limits,
            self._put_back_signals,
            files.put_back,
            self._put_back_environment,
            self._put_back_folder,
            lambda: os.umask(self._mask),
        )
        undone = [step for step in steps if not succeeds(step)]
        return not undone and self._streams_are_open()

    def _stop_timers(self) -> None:
        for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
            signal.setitimer(timer, 0)

    def _put_back_limits(self) -> None:
        for limit, values in self._limits.items():
            if resource.getrlimit(limit) != values:
                resource.setrlimit(limit, values)

    def _put_back_signals(self) -> None:
        for number, handler in self._handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)

    def _put_back_folder(self) -> None:
        if self._folder:
            os.chdir(self._folder)

    def _put_back_environment(self) -> None:
        if os.environ != self._environment:
            os.environ.clear()
            os.environ.update(self._environment)

    def _streams_are_open(self) -> bool:
        sys.stdin, sys.stdout, sys.stderr = self._streams
        return not any(stream is not None and stream.closed for stream in self._streams)


class Files:
    """Copies of the standard files."""

    def __init__(self) -> None:
        self._copies = {number: fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, SPARE) for number in STANDARD}

    def put_back(self) -> None:
        """Make the standard files those that were copied. Raises `OSError` if the copies were closed."""
        for number, copy in self._copies.items():
            if not is_same_file(number, copy):
                os.dup2(copy, number)


def is_same_file(number: int, copy: int) -> bool:
    """Whether two numbers stand for the same file; raises `OSError` where the copy is closed."""
    kept = os.fstat(copy)
    try:
        return os.path.samestat(os.fstat(number), kept)
    except OSError:
        return False


def working_directory() -> str:
    """The path of the working directory; empty where somebody has removed it."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def file_mask() -> int:
    """The mask of this process, which can be read only by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def succeeds(step: Callable[[], Any]) -> bool:
    """Whether a step could be done."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        step()
        return True
    return False
