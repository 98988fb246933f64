"""The state of a child process that functions share. It is restored after each function.

It consists of the working directory, the environment, the file mode mask, signals and timers, resource
limits, and the files 0 to 2. Changes in memory, in imported modules and in threads are not undone.
"""

import contextlib
import faulthandler
import fcntl
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

STANDARD = (0, 1, 2)
SPARE = 20
"""The least descriptor of a copy of a standard file: some functions close the first few descriptors."""

SIGNALS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
RESOURCE_LIMITS = sorted({value for name, value in vars(resource).items() if name.startswith("RLIMIT_")})


class ProcessState:
    """The state of this process at one moment."""

    def __init__(self) -> None:
        self._folder = working_directory()
        self._environment = dict(os.environ)
        self._mask = file_mask()
        self._handlers = {number: signal.getsignal(number) for number in SIGNALS}
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._limits = {limit: resource.getrlimit(limit) for limit in RESOURCE_LIMITS}
        self._streams = (sys.stdin, sys.stdout, sys.stderr)

    def restore(self, files: "StandardFiles") -> bool:
        """Restore the state; False if some of it cannot be restored."""
        steps: tuple[Callable[[], object], ...] = (
            self._stop_timers,
            self._restore_limits,
            self._restore_signals,
            files.restore,
            self._restore_environment,
            self._restore_folder,
            lambda: os.umask(self._mask),
        )
        failed = [step for step in steps if not succeeds(step)]
        return not failed and self._streams_are_open()

    def _stop_timers(self) -> None:
        for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
            signal.setitimer(timer, 0)

    def _restore_limits(self) -> None:
        for limit, values in self._limits.items():
            if resource.getrlimit(limit) != values:
                resource.setrlimit(limit, values)

    def _restore_signals(self) -> None:
        for number, handler in self._handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)

    def _restore_folder(self) -> None:
        if self._folder:
            os.chdir(self._folder)

    def _restore_environment(self) -> None:
        if os.environ != self._environment:
            os.environ.clear()
            os.environ.update(self._environment)

    def _streams_are_open(self) -> bool:
        sys.stdin, sys.stdout, sys.stderr = self._streams
        return not any(stream is not None and stream.closed for stream in self._streams)


class StandardFiles:
    """Copies of the standard files."""

    def __init__(self) -> None:
        self._copies = {number: fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, SPARE) for number in STANDARD}

    def print_stacks_on(self, number: signal.Signals) -> None:
        """Print the stacks of all threads at a signal, whatever a function has done to standard error."""
        faulthandler.unregister(number)
        faulthandler.register(number, file=self._copies[2], all_threads=True)

    def restore(self) -> None:
        """Restore the standard files from the copies. Raises `OSError` if the copies were closed."""
        for number, copy in self._copies.items():
            if not is_same_file(number, copy):
                os.dup2(copy, number)


def is_same_file(number: int, copy: int) -> bool:
    """Whether two descriptors refer to the same file. Raises `OSError` if the copy is closed."""
    kept = os.fstat(copy)
    try:
        return os.path.samestat(os.fstat(number), kept)
    except OSError:
        return False


def working_directory() -> str:
    """The path of the working directory; empty if it was removed."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def file_mask() -> int:
    """The file mode mask of this process, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def succeeds(step: Callable[[], Any]) -> bool:
    """Whether a step raises none of the expected errors."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        step()
        return True
    return False
