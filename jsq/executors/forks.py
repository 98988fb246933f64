"""Signals in the processes that a task forks, as `multiprocessing` does on Linux.

A forked process inherits the handlers of its parent, and the descriptor by which they wake the event loop. So
a SIGTERM to a process of a pool would stop the worker, and a handler that does nothing would keep the pool
from ending it. A forked process starts with the default handlers, and without the descriptor.
"""

import os
import signal
import threading
from typing import Any

DEFAULT_HANDLERS: dict[signal.Signals, Any] = {
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,
    signal.SIGHUP: signal.SIG_DFL,
    signal.SIGTSTP: signal.SIG_DFL,
    signal.SIGCONT: signal.SIG_DFL,
}
"""The signals that a worker or its child process handles, and the handlers of a new process."""


class ForkingThread(threading.local):
    """The signal mask of a thread before it forks. The signals are blocked until they have their handlers."""

    mask: set[Any] = frozenset()  # type: ignore[assignment]  # replaced before it is used

    def block(self) -> None:
        self.mask = signal.pthread_sigmask(signal.SIG_BLOCK, DEFAULT_HANDLERS)

    def unblock(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)

    def reset(self) -> None:
        """Take back what this process has inherited. The thread that forked is its main thread."""
        signal.set_wakeup_fd(-1)
        for number, handler in DEFAULT_HANDLERS.items():
            if signal.getsignal(number) is not signal.SIG_IGN:  # as after `nohup`
                signal.signal(number, handler)
        self.unblock()


_registered: list[ForkingThread] = []


def reset_signals_in_forks() -> None:
    """Give each process that this one forks from now on the default signal handlers. May be called twice."""
    if not _registered:
        _registered.append(forking := ForkingThread())
        os.register_at_fork(
            before=forking.block, after_in_parent=forking.unblock, after_in_child=forking.reset
        )
