"""The signals of `jsq worker`, of its supervisor and of `jsq dev`."""

import asyncio
import contextlib
import faulthandler
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol


class SignalledWorker(Protocol):
    """A worker, or the supervisor of several."""

    def stop(self) -> None: ...

    def quiet(self) -> None: ...

    def resume(self) -> None: ...

    def print_stacks(self) -> None: ...


@contextlib.contextmanager
def on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at SIGTERM, at SIGINT, and when the terminal is closed, unless `nohup` ignores that."""
    ends = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        ends.append(signal.SIGHUP)
    with signal_handlers(dict.fromkeys(ends, stop)):
        yield


@contextlib.contextmanager
def on_worker_signals(worker: SignalledWorker) -> Iterator[None]:
    """Stop a worker as `on_signals` does. SIGTSTP makes it quiet until SIGCONT, SIGUSR1 prints its stacks."""
    from jsq.executors.forks import reset_signals_in_forks

    reset_signals_in_forks()
    calls = {
        signal.SIGTSTP: worker.quiet,
        signal.SIGCONT: worker.resume,
        signal.SIGUSR1: worker.print_stacks,
    }
    with on_signals(worker.stop), signal_handlers(calls):
        yield


@contextlib.contextmanager
def signal_handlers(calls: Mapping[signal.Signals, Callable[[], None]]) -> Iterator[None]:
    """Call functions on the running event loop at signals."""
    loop = asyncio.get_running_loop()
    for number, call in calls.items():
        loop.add_signal_handler(number, call)
    try:
        yield
    finally:
        for number in calls:
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def thread_stacks_on(number: signal.Signals) -> Iterator[None]:
    """Print the stacks of all threads at a signal, also while the event loop is blocked.

    Then the handler that Python has for the signal is called.
    """
    faulthandler.register(number, file=sys.stderr, all_threads=True, chain=True)
    try:
        yield
    finally:
        faulthandler.unregister(number)
