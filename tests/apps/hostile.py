"""Functions that return, raise, or do to their process something that no task should."""

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any


class Strange(BaseException):
    """Neither an `Exception` nor an exit."""


class Mute(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError


def give(kind: str) -> Any:
    """Return a value that cannot be stored."""
    closed = socket.socket()
    closed.close()
    return {
        "generator": (n for n in (1, 2)),
        "socket": closed,
        "lambda": lambda: 1,
        "5 MB": "x" * 5_000_000,
        "bytes": b"\xff",
    }[kind]


def give_bytes() -> bytes:
    return b"\xff\x00"


def leave(kind: str) -> None:
    """Raise an exception that ends more than a function."""
    ends = (SystemExit, KeyboardInterrupt, GeneratorExit, Strange, asyncio.CancelledError)
    raise {end.__name__: end for end in ends}[kind]()


def raise_odd(kind: str, secret: str) -> None:
    """Raise an exception that is difficult to describe."""
    password = secret + "!"
    raise {"mute": Mute(), "long": ValueError("x" * 50_000_000), "secret": RuntimeError(str(len(password)))}[
        kind
    ]


def take_a_number(number: int) -> int:
    return number


def fine() -> int:
    return os.getpid()


def die(how: str) -> None:
    """End the process in one of several ways."""
    match how:
        case "exit":
            os._exit(7)
        case "segfault":
            ctypes.string_at(0)
        case "killed":  # as a system that is out of memory does
            os.kill(os.getpid(), signal.SIGKILL)


def exhaust() -> None:
    """Allocate more memory than the process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, hard))
    try:
        bytearray(32 * 2**30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def multiply(count: int) -> list[int]:
    """Fork processes that outlive the job; returns their ids."""
    found = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        found.append(pid)
    return found


def meddle() -> int:
    """Change everything that a function can change in its process."""
    for number in range(3):
        os.close(number)
    os.open("/dev/zero", os.O_RDONLY)  # it gets the number of a standard stream
    os.chdir("/")
    os.environ["PATH"] = "nowhere"
    os.environ["LEFT_BEHIND"] = "yes"
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    return os.getpid()


def surroundings() -> list[Any]:
    """The state of the process that `meddle` changes."""
    files = []
    for number in range(3):
        with contextlib.suppress(OSError):
            files.append(os.readlink(f"/proc/self/fd/{number}"))
    return [
        files,
        str(Path.cwd()),
        os.environ.get("PATH"),
        os.environ.get("LEFT_BEHIND"),
        [str(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)],
        [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        signal.getitimer(signal.ITIMER_REAL),
    ]


def stay(file: str) -> None:
    """Ignore interrupts and run until the process is killed."""
    Path(file).write_text(str(os.getpid()))
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(60)
