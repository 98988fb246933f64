"""The tasks of `tests.figures.flow`. Each start of a job writes a line."""

import os
import time
from typing import Any

from jsq import App

KIND = os.environ.get("KIND", "plain")

QUEUES: dict[str, dict[str, Any]] = {
    "concurrency": {"concurrency": 1_000},
    "queue rate": {"rate": "1000000/s"},
    "slow queue": {"rate": "50/s"},
}
RATES = {"task rate": "1000000/s", "slow task": "50/s"}

app = App()
app.queue("default", lease=5, **QUEUES.get(KIND, {}))
file = os.open(os.environ.get("EFFECTS", os.devnull), os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@app.task(rate=RATES.get(KIND), keep_result=60, retries=3, backoff=[0.1])
async def note(key: str, number: int) -> None:
    os.write(file, f"{time.time()} {key} {number}\n".encode())
