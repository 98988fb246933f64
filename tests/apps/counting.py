"""An app that counts the bytecodes and the calls of the thread that runs its jobs.

In a worker it counts while the worker drains the queue. Run as a program, it counts a client that submits
jobs.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from jsq import App

JOBS = int(os.environ.get("JOBS", "1500"))
WARM = JOBS // 2
"""The number of first jobs that are not counted: they fill caches, and the mode of writing is measured."""

app = App(os.environ.get("JSQ_URL", "nats://127.0.0.1:1"), namespace=os.environ.get("JSQ_NAMESPACE", "jsq"))


class Counter:
    """Counts bytecodes and Python calls."""

    def __init__(self) -> None:
        self.bytecodes = 0
        self.calls = 0

    def start(self) -> None:
        sys.settrace(self._call)

    def stop(self, jobs: int) -> None:
        """Stop, and write the counts of one job to the file of the environment variable `COUNTS`."""
        sys.settrace(None)
        counts = {"bytecodes": self.bytecodes / jobs, "calls": self.calls / jobs}
        Path(os.environ["COUNTS"]).write_text(json.dumps(counts))

    def _call(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        self.calls += 1
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._opcode

    def _opcode(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        self.bytecodes += event == "opcode"
        return self._opcode


counter, ran = Counter(), [0]


@app.task
async def noop(sent: int, body: str = "") -> None:
    ran[0] += 1
    if ran[0] == WARM:
        counter.start()
    elif ran[0] == JOBS - 100:
        counter.stop(JOBS - 100 - WARM)


async def submit(count: int) -> None:
    left = iter(range(count))

    async def submit_next() -> None:
        for number in left:
            await noop.submit(number, "x" * 16)

    await asyncio.gather(*(submit_next() for _ in range(100)))


async def main() -> None:
    """Submit jobs, and count the cost."""
    await submit(JOBS - WARM)
    counter.start()
    await submit(WARM)
    counter.stop(WARM)
    await app.close()


if __name__ == "__main__":
    asyncio.run(main())
