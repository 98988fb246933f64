"""Process tasks of a module whose import in a child process is slow or ends the process."""

import os
import time
from pathlib import Path

from jsq import App

app = App()

IMPORTS = "CHILD_IMPORTS"
"""The environment variable with the file to which each child process writes a line during the import."""

IMPORT_SECONDS = "CHILD_IMPORT_SECONDS"
"""The environment variable with the seconds that the import takes; -1 ends the process."""


if IMPORTS in os.environ:
    with Path(os.environ[IMPORTS]).open("a") as file:
        file.write(f"{os.getpid()}\n")
    seconds = float(os.environ[IMPORT_SECONDS])
    if seconds < 0:
        os._exit(9)
    time.sleep(seconds)


@app.task(executor="process", retries=0, timeout=0.5)
def child_pid() -> int:
    return os.getpid()


@app.task(executor="process", retries=0, timeout=0.5)
def sleep_long() -> None:
    time.sleep(60)


@app.task(executor="process", retries=0)
def end_child() -> None:
    os._exit(7)
