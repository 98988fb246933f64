"""The tasks of `jsq bench`, which note when each job started, and the worker of the baseline."""

import array
import asyncio
import os
import sys
import time
from pathlib import Path

from pydantic_core import from_json

from jsq import App
from jsq.broker import Broker
from jsq.cli.bench.baseline import Baseline
from jsq.cli.loop import run_on_loop
from jsq.settings import read_login, read_namespace

QUEUE = "bench"
FOLDER = "JSQ_BENCH_FOLDER"
SLEEP_SECONDS = 0.01
FLUSH_SECONDS = 0.02

app = App(name="jsq-bench")


class Marks:
    """The times at which each job was sent and started, in nanoseconds, in one file for each process."""

    def __init__(self) -> None:
        self._rows = array.array("q")
        self._file = -1

    def add(self, sent: int) -> None:
        self._rows.extend((sent, time.time_ns()))
        if len(self._rows) == 2:
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._flush)

    def _flush(self) -> None:
        if self._file < 0:
            path = Path(os.environ[FOLDER], str(os.getpid()))
            self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        rows, self._rows = self._rows, array.array("q")
        os.write(self._file, rows.tobytes())


marks = Marks()


@app.task(name="noop", queue=QUEUE)
async def noop(sent: int, body: str = "") -> None:
    """Do nothing."""
    marks.add(sent)


@app.task(name="sleep", queue=QUEUE)
async def sleep(sent: int, body: str = "") -> None:
    """Wait for `SLEEP_SECONDS`, as a call of another service would."""
    marks.add(sent)
    await asyncio.sleep(SLEEP_SECONDS)


def main() -> None:
    """Run the worker of the baseline. The arguments are `TASK CONCURRENCY`."""
    task, concurrency = sys.argv[1], int(sys.argv[2])
    run_on_loop(work(task, concurrency))


async def work(task: str, concurrency: int) -> None:
    broker = await Broker.connect(read_login(), namespace=read_namespace(), name="jsq-baseline")
    baseline = await Baseline(broker.wire, broker.subjects, QUEUE, task).open()
    await baseline.work(
        concurrency,
        SLEEP_SECONDS if task == "sleep" else 0.0,
        lambda arguments: marks.add(from_json(arguments)["sent"]),
    )


if __name__ == "__main__":
    main()
