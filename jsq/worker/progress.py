"""How far a job is, told twice a second at most: the newest word wins."""

import asyncio
from collections.abc import Callable

INTERVAL = 0.5


class ProgressReporter:
    """Takes word of progress from any thread, and passes it on."""

    def __init__(self, note: Callable[[float, str], None]) -> None:
        self._note = note
        self._loop = asyncio.get_running_loop()
        self._newest: tuple[float, str] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._next = 0.0
        self._closed = False

    def tell(self, fraction: float, text: str) -> None:
        self._loop.call_soon_threadsafe(self._take, fraction, text)

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _take(self, fraction: float, text: str) -> None:
        self._newest = (fraction, text)
        if self._timer is None and not self._closed:
            self._timer = self._loop.call_at(max(self._next, self._loop.time()), self._send)

    def _send(self) -> None:
        self._timer = None
        if self._newest is not None and not self._closed:
            self._note(*self._newest)
            self._newest = None
            self._next = self._loop.time() + INTERVAL
