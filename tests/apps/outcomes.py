"""The possible outcomes of tasks, for every executor, and damage of a task to its process."""

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from jsq import App

app = App(namespace=os.environ.get("JSQ_NAMESPACE", "jsq"))


class Rude(BaseException):
    """An exception that is not an `Exception`."""


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


def raising(error: BaseException) -> Callable[[], NoReturn]:
    def throw() -> NoReturn:
        raise error

    return throw


def endless() -> None:
    endless()


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def circular() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


def counting() -> Iterator[int]:
    yield from range(3)


def starved() -> int:
    """Allocate more memory than this process may have, which raises a real `MemoryError`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + 2**30, hard))
    try:
        return len(bytearray(8 * 2**30))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


DROPPED = "dropped"
"""In place of a reason: the job succeeds, and its result is dropped."""

WAYS: dict[str, tuple[Callable[[], object], str, str]] = {
    "SystemExit": (raising(SystemExit(3)), "error", "SystemExit: 3"),
    "KeyboardInterrupt": (raising(KeyboardInterrupt("key")), "error", "KeyboardInterrupt: key"),
    "GeneratorExit": (raising(GeneratorExit("end")), "error", "GeneratorExit: end"),
    "CancelledError": (raising(asyncio.CancelledError("mine")), "error", "CancelledError: mine"),
    "StopIteration": (raising(StopIteration(3)), "error", "StopIteration"),
    "BaseException": (raising(Rude("rude")), "error", "Rude: rude"),
    "group": (
        raising(BaseExceptionGroup("all", [SystemExit(1), Rude()])),
        "error",
        "BaseExceptionGroup: all",
    ),
    "MemoryError": (raising(MemoryError("full")), "error", "MemoryError: full"),
    "starved": (starved, "error", "MemoryError"),
    "recursion": (endless, "error", "RecursionError: maximum recursion depth exceeded"),
    "unspeakable": (raising(Unspeakable()), "error", "Unspeakable: <its message raised RuntimeError>"),
    "long": (raising(ValueError("x" * 50_000_000)), "error", "ValueError: xxx"),
    "surrogate": (raising(ValueError("\ud800")), "error", "ValueError: ?"),
    "object": (object, DROPPED, "object"),
    "function": (lambda: endless, DROPPED, "function"),
    "generator": (counting, DROPPED, "generator"),
    "lock": (threading.Lock, DROPPED, "lock"),
    "lone": (lambda: "\ud800", DROPPED, ""),
    "circular": (circular, DROPPED, ""),
    "nested": (lambda: nested(100_000), DROPPED, ""),
    "large": (lambda: "x" * 5_000_000, DROPPED, "5,000,0"),
}
"""For each way to end: the function, the reason of the failure, and a part of the error."""


def end_by(way: str) -> object:
    return WAYS[way][0]()


@app.task(executor="async", retries=0)
async def on_loop(way: str) -> object:
    return end_by(way)


@app.task(executor="thread", retries=0)
def in_thread(way: str) -> object:
    return end_by(way)


@app.task(executor="process", retries=0)
def in_process(way: str) -> object:
    return end_by(way)


@app.task(executor="process", retries=0)
async def on_loop_in_process(way: str) -> object:
    return end_by(way)


# -- damage to the process -------------------------------------------------------------------------------


def close_standard() -> None:
    for number in range(3):
        os.close(number)


def close_all() -> None:
    os.closerange(0, 1_000)


def close_streams() -> None:
    sys.stdout.close()
    sys.stderr.close()


def change_folder() -> None:
    os.chdir("/")


def change_environment() -> None:
    os.environ.pop("PATH")
    os.environ["MARK"] = "left"


def change_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))


def set_alarm() -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(1)


def lower_limits() -> None:
    for limit in (resource.RLIMIT_AS, resource.RLIMIT_NOFILE):
        _, hard = resource.getrlimit(limit)
        resource.setrlimit(limit, (20, hard))


def change_mask() -> None:
    os.umask(0o777)


def start_threads() -> None:
    for _ in range(5):
        threading.Thread(target=threading.Event().wait).start()


def start_process() -> None:
    if os.fork() == 0:
        with contextlib.suppress(BaseException):
            time.sleep(20)
        os._exit(0)


DEEDS: dict[str, Callable[[], None]] = {
    deed.__name__: deed
    for deed in (
        *(close_standard, close_streams, change_folder, change_environment, change_signals),
        *(set_alarm, lower_limits, change_mask, start_threads, start_process),
    )
}


@app.task(executor="process", retries=0)
def do(deed: str) -> None:
    DEEDS[deed]()


@app.task(executor="process", retries=0)
def close_everything() -> None:
    close_all()


@app.task(executor="process", retries=0)
def read_surroundings() -> dict[str, Any]:
    """The state of the process as a task sees it."""
    print("stdout works")
    mask = os.umask(0o022)
    os.umask(mask)
    return {
        "folder": os.getcwd(),
        "environment": {name: value for name, value in os.environ.items() if name in ("PATH", "MARK")},
        "signals": [
            str(signal.getsignal(number)).partition(" at ")[0] for number in sorted(signal.valid_signals())
        ],
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "alarm": signal.getitimer(signal.ITIMER_REAL)[0],
        "limits": [resource.getrlimit(limit) for limit in (resource.RLIMIT_AS, resource.RLIMIT_NOFILE)],
        "mask": mask,
        "files": [os.fstat(number).st_rdev for number in range(3)],
    }


@app.task(executor="thread", retries=0)
def die_in_thread() -> None:
    ctypes.string_at(0)


@app.task(executor="async", retries=0)
async def die_on_loop() -> None:
    os._exit(3)
