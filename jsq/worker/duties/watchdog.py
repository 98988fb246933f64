"""A thread that detects a blocked event loop while it is blocked, and logs the task and the line of code.

A call that holds the global interpreter lock stops this thread too: then it logs after the call has ended.
"""

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

from jsq.executors import loop as on_loop

log = logging.getLogger("jsq.worker")

CHECK_INTERVAL = 0.2
"""Seconds between two checks."""

BLOCKED_AFTER = 1.0
"""Seconds without a turn of the event loop that are logged."""

MAX_FRAMES = 5

Describe = Callable[[object], dict[str, object]]


class Watchdog:
    """Watches the event loop on which it is started.

    `beaten` returns the time (monotonic, seconds) of the last beat of the loop. `describe` returns a
    description of the running asyncio task; `blocked` is called once for each block. The thread calls both.
    """

    def __init__(
        self, beaten: Callable[[], float], describe: Describe, blocked: Callable[[dict[str, object]], None]
    ) -> None:
        self._beaten = beaten
        self._describe = describe
        self._blocked = blocked
        self._stopping = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._owner = threading.get_ident()

    def __enter__(self) -> None:
        threading.Thread(target=self._run, name="jsq-watchdog", daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._stopping.set()

    def _run(self) -> None:
        reported = 0.0
        while not self._stopping.wait(CHECK_INTERVAL):
            beat = self._beaten()
            silent = time.monotonic() - beat
            if silent > BLOCKED_AFTER and beat != reported:
                reported = beat
                self._report(silent)

    def _report(self, silent: float) -> None:
        try:
            about = self._describe(asyncio.current_task(self._loop))
            where = locate_frame(sys._current_frames().get(self._owner))
            log.warning("event loop stalled", extra={**about, "seconds": round(silent, 1), "at": where})
            self._blocked(about)
        except Exception:
            log.exception("blocking task not identified")


def locate_frame(frame: FrameType | None) -> str:
    """The position of a thread, innermost frame first, down to the code of the task."""
    lines: list[str] = []
    while frame is not None and frame.f_code.co_filename != on_loop.__file__ and len(lines) < MAX_FRAMES:
        lines.append(f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(lines)
